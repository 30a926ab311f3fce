"""Ditto-like edits through the rave command."""

import json
import re
from pathlib import Path

import pytest

from common.files import BadInput
from curation import VERBS, go, knows, read
from data import manifest_items
from model import PRESETS
from rvedata import merge
from tiny import world


def test_rave(rave):
    lines, rows = read(rave.out / "rewrites.jsonl"), read(rave.out / "triplets.jsonl")
    assert len(lines) == 24 + 3                          # three are there twice
    assert sum("says near the same as" in r.get("rejected", "") for r in lines) == 3
    refused = [r for r in lines if "rejected" in r and "near" not in r["rejected"]]
    assert len(rows) == 24 - len(refused) > 18 and all(re.search("states|repeats", r["rejected"]) for r in refused)
    for r in rows:
        t = world.make_triplet(int(Path(r["source_video_path"]).stem), "rave", "train")
        assert re.sub("^Now |!$", "", r["literal"]) == t.literal
        assert (r["instruction"], r["type"], r["rationale"]) == (t.instruction, t.type, t.thought)
        assert not set(VERBS) & set(r["instruction"].split())
    items, _ = manifest_items(rave.out / "triplets.jsonl", PRESETS["tiny"])
    assert [item.instruction for item in items] == [r["instruction"] for r in rows]


def test_a_rejected_target_leaves_its_source_and_instruction(rave, tmp_path):
    """The VLM's second question finds that every second target does not fit."""
    records = json.loads(rave.metadata.read_text())[:5]
    (tmp_path / "meta.json").write_text(json.dumps(records))
    unfit = {record["instruction"] for record in records[1::2]}

    def ask(system, parts, schema):
        is_unfit = any(text == f"The plain description: {literal}" for text in parts
                       if isinstance(text, str) for literal in unfit)
        return knows(system, parts, schema) | ({"fits": "no"} if is_unfit else {})
    go("rave", tmp_path / "out", "--ditto", tmp_path / "meta.json", "--videos", rave.folder, ask=ask)
    pairs = read(tmp_path / "out/pairs.jsonl")
    assert {(tmp_path / "out" / r["source_video_path"]).resolve() for r in pairs} \
        == {rave.folder / record["source_path"] for record in records[1::2]}
    for r in pairs:
        assert r.keys() == {"id", "subset", "source_video_path", "instruction", "type", "rationale"}
        assert r["instruction"].startswith("hours go by") and r["type"] in world.TYPES["rave"]
    assert not {r["id"] for r in pairs} & {r["id"] for r in read(tmp_path / "out/triplets.jsonl")}


def test_rave_in_shards(rave, tmp_path):
    for i in range(3):
        go("rave", tmp_path / f"part{i}", "--ditto", rave.metadata, "--videos", rave.folder, "--shard", f"{i}/3",
           ask=rave.vlm)
    parts = [str(tmp_path / f"part{i}") for i in range(3)]
    merge.main(["--from", *parts, "--out", str(tmp_path / "sub/whole")])
    whole = {r["id"]: r for r in read(tmp_path / "sub/whole/triplets.jsonl")}
    once = {r["id"]: r for r in read(rave.out / "triplets.jsonl")}
    assert whole.keys() == once.keys()
    for name, r in whole.items():                        # the paths hold from where it is now
        assert (tmp_path / "sub/whole" / r["source_video_path"]).samefile(rave.out / once[name]["source_video_path"])
        assert r["instruction"] == once[name]["instruction"]


def test_a_metadata_file_whose_videos_are_missing(rave, tmp_path, capsys):
    records = json.loads(rave.metadata.read_text())
    records[3]["edited_path"] = "target/none.mp4"
    (tmp_path / "meta.json").write_text(json.dumps(records))
    flags = ["--ditto", tmp_path / "meta.json", "--videos", rave.folder]
    with pytest.raises(BadInput, match="target/none.mp4: the metadata names it, and it is missing"):
        go("rave", tmp_path / "out", *flags, ask=rave.vlm)
    go("rave", tmp_path / "out", *flags, "--skip-bad", ask=rave.vlm)
    out, err = capsys.readouterr()
    assert "1 failed" in out and "target/none.mp4" in err
    assert len(read(tmp_path / "out/triplets.jsonl")) >= len(read(rave.out / "triplets.jsonl")) - 1
    for text in ("{", '{"a": 1}', '[{"source_path": "a"}]',
                 '[{"source_path": 1, "edited_path": "b", "instruction": "c"}]'):
        (tmp_path / "meta.json").write_text(text)
        with pytest.raises(BadInput, match="meta.json: no list of source_path"):
            go("rave", tmp_path / "out2", *flags)
