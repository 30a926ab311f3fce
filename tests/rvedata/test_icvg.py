"""Films with known cuts and places through all stages, recomputed in another way."""

from collections import Counter

import pytest

from common.files import BadInput
from curation import PLAN, go, knows, read
from data import manifest_items
from presets import PRESETS
from rvedata import merge
from rvedata.film import clips_of
from rvedata.stages import Rejected, my_shard, read_accepted, run_stage


def asked(*question):
    pytest.fail("asked again")


def test_the_same_place_is_clustered_and_others_are_not(icvg):
    place = lambda r: PLAN[int(r["movie"][1])][r["index"]]
    clusters = [cluster["members"] for cluster in read(icvg / "clusters.jsonl")]
    members = [{(r["movie"], place(r)) for r in cluster} for cluster in clusters]
    assert all(len(places) == 1 for places in members)
    every = {(f"m{k}.mp4", p) for k, plan in enumerate(PLAN) for p in plan}
    assert Counter(p for places in members for p in places) == dict.fromkeys(every, 1)
    assert sum(map(len, clusters)) == 18


def test_the_pairs_and_their_manifest(icvg):
    """No pair crosses a movie or goes back in time."""
    found = read(icvg / "pairs.jsonl")
    assert len({r["id"] for r in found}) == len(found) == 6      # of three clips each, one pair
    for pair in found:
        a, b = pair["source"], pair["target"]
        assert a["movie"] == b["movie"] and a["clip"][1] <= b["clip"][0] and a["index"] < b["index"]
        for r in (a, b):                                 # and each clip lies within its shot
            assert 27 * r["index"] <= r["clip"][0] and r["clip"][1] <= 27 * (r["index"] + 1)
    items, skipped = manifest_items(icvg / "triplets.jsonl", PRESETS["tiny"])
    assert len(items) == 6 and not skipped
    source, target = items[0].load()
    assert source.shape == (9, 3, 32, 32) and (source - target).abs().mean() > .01


def test_a_service_that_dies(icvg, movies, begun):
    calls = []

    def dies(*question):
        calls.append(question)
        if len(calls) == 8:
            raise BadInput("the service does not answer")
        return knows(*question)
    with pytest.raises(BadInput, match="captions: the service does not answer"):
        go("icvg", begun, *movies.flags, "--workers", 1, ask=dies)
    captions = begun / "captions.jsonl"
    assert len(read(captions)) == len(calls) - 1         # the ninth had begun, or had not
    with captions.open("a") as file:
        file.write('{"id": "m2.mp4#000')                 # and the machine stopped within a line
    go("icvg", begun, *movies.flags, ask=dies)
    assert len(calls) == 18 + 2 * 6 + 1                  # captions; instructions, checked; failed
    assert (begun / "triplets.jsonl").read_bytes() == (icvg / "triplets.jsonl").read_bytes()


def test_shards_are_merged_into_the_same(icvg, movies, tmp_path):
    assert {my_shard(f"m{k}.mp4", (0, 2)) for k in range(3)} == {True, False}
    for i in range(2):
        go("icvg", tmp_path / f"part{i}", *movies.flags, "--shard", f"{i}/2")
        assert not (tmp_path / f"part{i}/clusters.jsonl").exists()
    (tmp_path / "part1/replies.jsonl").write_text('{"key": "stays with its shard"}\n')
    whole, parts = tmp_path / "whole", [str(tmp_path / f"part{i}") for i in (1, 0)]
    merge.main(["--from", *parts, "--out", str(whole)])

    def instructs(system, parts, schema):
        return asked() if "caption" in schema["properties"] else knows(system, parts, schema)
    go("icvg", whole, *movies.flags, ask=instructs)
    for name in ("clusters", "pairs", "triplets"):
        assert (whole / f"{name}.jsonl").read_bytes() == (icvg / f"{name}.jsonl").read_bytes(), name


def test_clips_of_shots():
    movie = {"id": "m", "fps": 10., "shots": [[0, 100], [100, 120], [120, 130], [130, 137]]}
    clips = [r["clip"] for r in clips_of(movie, 5., 7)]
    assert clips == [[25, 75], [102, 118], [121, 129], [130, 137]]
    assert [r["index"] for r in clips_of(movie, 5., 9)] == [0, 1]


def test_a_vlm_that_is_of_no_use(movies, begun):
    def useless(*question):
        raise Rejected("the VLM's answer is not JSON: 'g g g'")
    with pytest.raises(BadInput, match="no movie has two clips in a window of 16 shots"):
        go("icvg", begun, *movies.flags, ask=useless)
    assert (begun / "report.html").read_text().count("'g g g'") == 18


def test_what_fails_is_skipped_and_tried_again(tmp_path):
    path, tried = tmp_path / "x.jsonl", []

    def work(item):
        tried.append(item["id"])
        if tried.count(item["id"]) == 1 and item["id"] in "ab":
            raise BadInput("status 500") if item["id"] == "a" else PermissionError("not yours")
        if item["id"] == "c":
            raise Rejected("dull", instruction="do more")
        return {}
    items = [{"id": name, "shown": {"video": name}} for name in "abcd"]
    for item, error in zip(items, ("status 500", "not yours")):
        with pytest.raises(BadInput, match=rf"x: {error} \(or pass --skip-bad\)"):
            run_stage(path, [item], work)
    tried.clear()
    assert run_stage(path, items, work, skip_bad=True) == {"failed": 2, "rejected": 1, "done": 1}
    assert run_stage(path, items, work, skip_bad=True) == {"done": 2}
    assert {"id": "c", "rejected": "dull", "video": "c", "instruction": "do more"} in read(path)
    assert [r["id"] for r in read_accepted(path)] == ["d", "a", "b"]
