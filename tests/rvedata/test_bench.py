"""The test split from end to end, without leaks, with people's decisions."""

import json
from collections import Counter

import pytest

from common.files import BadInput
from common.manifest import SUBSET_OF
from curation import go, no_leak, read
from data import manifest_items
from presets import PRESETS


def test_bench_holds_out_without_leaks(rave, icvg, tmp_path, capsys):
    out = tmp_path / "bench"
    flags = ["--from", rave.out, icvg, "--n", 8, "--share", .3]
    go("bench", out, *flags)
    test, train = no_leak(out)
    counts = Counter(r["type"] for r in test)
    assert counts.keys() == {r["type"] for folder in (rave.out, icvg) for r in read(folder / "triplets.jsonl")}
    assert max(counts.values()) - min(counts.values()) <= 1
    removed, reserve = read(out / "removed.jsonl"), read(out / "reserve.jsonl")
    everything = {r["id"] for folder in (rave.out, icvg) for r in read(folder / "triplets.jsonl")}
    parts = [{r["id"] for r in rows} for rows in (test, train, removed, reserve)]
    assert sum(map(len, parts)) == len(everything) and set().union(*parts) == everything
    for name in ("test", "train"):
        assert len(manifest_items(out / f"{name}.jsonl", PRESETS["tiny"])[0]) == len(read(out / f"{name}.jsonl"))
    decisions = {r["id"]: "accept" if k % 2 else "reject" for k, r in enumerate(test[:-1])}
    said = {name: {"decision": word} for name, word in decisions.items()}
    kind = test[1]["type"]
    other = next(x for x in SUBSET_OF if SUBSET_OF[x] == SUBSET_OF[kind] and x != kind)
    said[test[1]["id"]] |= {"instruction": "a week of frost", "type": other}               # corrected
    (tmp_path / "anna.json").write_text(json.dumps({"annotator": "anna", "decisions": said}))
    ben = {"annotator": "ben", "decisions": {r["id"]: {"decision": "accept"} for r in test[1:3]}}
    (tmp_path / "ben.json").write_text(json.dumps(ben))
    go("bench", out, *flags, "--decisions", tmp_path / "anna.json", tmp_path / "ben.json")
    assert "anna and ben decide alike on 50% of 2, Cohen's kappa 0.00" in capsys.readouterr().out
    corrected = read(out / "test.jsonl")[0]
    assert (corrected["id"], corrected["instruction"], corrected["type"]) == (test[1]["id"], "a week of frost", other)
    test[1]["instruction"] = "a week of frost"
    accepted = [r["id"] for r in read(out / "test.jsonl")]
    assert accepted == [name for name, what in decisions.items() if what == "accept"]
    rejected = [r for r in test if decisions.get(r["id"]) == "reject"]
    filled = read(out / "candidates.jsonl")              # others take the rejected places
    assert [r for r in filled if r in test] == test
    new = [r for r in filled if r not in test]
    missing = Counter(r["type"] for r in rejected)
    assert Counter(r["type"] for r in new) <= missing and len(new) >= len(rejected) - 1
    told = f"{len(accepted)} accepted, {len(rejected)} rejected, {1 + len(new)} not decided"
    page = (out / "verify.html").read_text()
    assert all(r["id"] in page for r in new) and not any(name in page for name in decisions)
    assert not {r["id"] for r in read(out / "train.jsonl")} & {r["id"] for r in filled}
    go("bench", out, *flags)                             # they are kept
    assert told in capsys.readouterr().out
    assert [r["id"] for r in read(out / "test.jsonl")] == accepted
    assert read(out / "candidates.jsonl") == filled
    (tmp_path / "no id").mkdir()
    (tmp_path / "no id/triplets.jsonl").write_text('{"type": "Temporal Reasoning"}\n')
    with pytest.raises(BadInput, match="triplets.jsonl:1: is no record of ours"):
        go("bench", tmp_path / "other", "--from", tmp_path / "no id")
    (tmp_path / "decisions.json").write_text('{"another": "accept"}')
    with pytest.raises(BadInput, match="decisions.json: 'another' is no triplet here"):
        go("bench", out, *flags, "--decisions", tmp_path / "decisions.json")
