"""The test split from end to end, without leaks, with people's decisions."""

import json
import os
from collections import Counter

import pytest

from common.files import BadInput
from common.manifest import SUBSET_OF
from curation import go, no_leak, read, write
from data import manifest_items
from presets import PRESETS


def ids(rows):
    return [r["id"] for r in rows]


def test_the_split_holds_out_without_leaks(rave, icvg, tmp_path, capsys):
    out = tmp_path / "bench"
    flags = ["--from", rave.out, icvg, "--n", 8, "--share", .3]
    go("split", out, *flags)
    test, train = no_leak(out)
    everything = read(rave.out / "triplets.jsonl") + read(icvg / "triplets.jsonl")
    counts = Counter(r["type"] for r in test)
    assert counts.keys() == {r["type"] for r in everything}
    assert max(counts.values()) - min(counts.values()) <= 1
    parts = ids(test + train + read(out / "removed.jsonl") + read(out / "reserve.jsonl"))
    assert sorted(parts) == sorted(ids(everything))      # each is in one of them
    for name, rows in (("test", test), ("train", train)):
        assert len(manifest_items(out / f"{name}.jsonl", PRESETS["tiny"])[0]) == len(rows)

    decisions = {r["id"]: "accept" if k % 2 else "reject" for k, r in enumerate(test[:-1])}
    said = {name: {"decision": word} for name, word in decisions.items()}
    kind = test[1]["type"]
    other = next(x for x in SUBSET_OF if SUBSET_OF[x] == SUBSET_OF[kind] and x != kind)
    said[test[1]["id"]] |= {"instruction": "a week of frost", "type": other}   # corrected
    anna, ben = tmp_path / "anna.json", tmp_path / "ben.json"
    anna.write_text(json.dumps({"annotator": "anna", "decisions": said}))
    said = {r["id"]: {"decision": "accept"} for r in test[1:3]}
    ben.write_text(json.dumps({"annotator": "ben", "decisions": said}))
    go("split", out, *flags, "--decisions", anna, ben)
    assert "anna and ben decide alike on 50% of 2, Cohen's kappa 0.00" in capsys.readouterr().out
    accepted = read(out / "test.jsonl")
    assert ids(accepted) == [name for name, word in decisions.items() if word == "accept"]
    assert (accepted[0]["instruction"], accepted[0]["type"]) == ("a week of frost", other)
    test[1]["instruction"] = "a week of frost"

    filled = read(out / "candidates.jsonl")              # others take the rejected places
    assert [r for r in filled if r in test] == test
    new = [r for r in filled if r not in test]
    rejected = [r for r in test if decisions.get(r["id"]) == "reject"]
    assert Counter(r["type"] for r in new) <= Counter(r["type"] for r in rejected)
    assert len(new) >= len(rejected) - 1
    page = (out / "verify.html").read_text()
    assert all(name in page for name in ids(new)) and not any(name in page for name in decisions)
    assert not {*ids(read(out / "train.jsonl"))} & {*ids(filled)}
    extra = tmp_path / "extra"                           # pairs without a target, of both sides
    extra.mkdir()
    pairs = [{"id": f"of {r['id']}", "type": r["type"], "instruction": f"as {r['id']} may have it",
              "source_video_path": os.path.relpath(out / r["source_video_path"], extra)}
             for r in [test[0], *train]]
    write(extra / "pairs.jsonl", pairs)
    go("split", out, *flags, "--from", rave.out, icvg, extra)    # decisions are kept
    kept = ids(read(out / "pairs.jsonl"))
    assert kept and set(kept) <= {f"of {name}" for name in ids(train)}
    leak, = [r for r in read(out / "removed.jsonl") if r["id"] == f"of {test[0]['id']}"]
    assert "is a file of" in leak["rejected"] and "target_video_path" not in leak
    told = f"{len(accepted)} accepted, {len(rejected)} rejected, {1 + len(new)} not decided"
    assert told in capsys.readouterr().out
    assert (read(out / "test.jsonl"), read(out / "candidates.jsonl")) == (accepted, filled)


def test_what_is_no_manifest(tmp_path, capsys):
    path, flags = tmp_path / "triplets.jsonl", ["--from", tmp_path, "--skip-bad"]
    path.write_text('{"type": "Temporal Reasoning"}\n')
    with pytest.raises(BadInput, match="triplets.jsonl:1: is no record of ours"):
        go("split", tmp_path / "out", *flags)
    (tmp_path / "empty.mp4").touch()
    rows = [{"id": video, "source_video_path": video, "target_video_path": "empty.mp4",
             "instruction": "dusk", "type": "Temporal Reasoning"}
            for video in ("empty.mp4", "gone.mp4", "x" * 300)]
    write(path, rows)
    with pytest.raises(BadInput, match="no triplet has videos that can be read"):
        go("split", tmp_path / "out", *flags)
    assert "2 left out: their videos are gone" in capsys.readouterr().out
