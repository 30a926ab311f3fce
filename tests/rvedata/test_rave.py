"""Ditto-like edits through the rave command."""

import json
import re
from pathlib import Path

from curation import go, knows, read
from data import manifest_items
from presets import PRESETS
from tiny import world


def test_rave(rave):
    lines, rows = read(rave.out / "rewrites.jsonl"), read(rave.out / "triplets.jsonl")
    refused = [r for r in lines if "rejected" in r]
    assert len(rows) == 24 - len(refused) > 18
    assert all(re.search("states|repeats", r["rejected"]) for r in refused)
    for r in rows:
        t = world.make_triplet(int(Path(r["source_video_path"]).stem), "rave", "train")
        assert r["literal"] == t.literal
        assert (r["instruction"], r["type"], r["rationale"]) == (t.instruction, t.type, t.thought)
    items, _ = manifest_items(rave.out / "triplets.jsonl", PRESETS["tiny"])
    assert [item.instruction for item in items] == [r["instruction"] for r in rows]


def test_a_rejected_target_leaves_its_source_and_instruction(rave, tmp_path):
    """The VLM's second question finds that every second target does not fit."""
    records = json.loads(rave.metadata.read_text())[:5]
    (tmp_path / "meta.json").write_text(json.dumps(records))
    flags = ["--ditto", tmp_path / "meta.json", "--videos", rave.folder]
    unfit = [f"The plain description: {record['instruction']}" for record in records[1::2]]

    def ask(system, parts, schema):
        is_unfit = any(isinstance(part, str) and part in unfit for part in parts)
        return knows(system, parts, schema) | ({"fits": "no"} if is_unfit else {})
    out = tmp_path / "out"
    go("rave", out, *flags, ask=ask)
    pairs = read(out / "pairs.jsonl")
    assert sorted((out / r["source_video_path"]).resolve() for r in pairs) \
        == sorted(rave.folder / record["source_path"] for record in records[1::2])
    for r in pairs:
        assert r.keys() == {"id", "subset", "source_video_path", "instruction", "type", "rationale"}
        assert r["instruction"].startswith("hours go by") and r["type"] in world.TYPES["rave"]
    assert not {r["id"] for r in pairs} & {r["id"] for r in read(out / "triplets.jsonl")}
