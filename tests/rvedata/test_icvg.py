"""Films with known cuts and places through all stages; what they say is recomputed in another way."""

import json
import re
import shutil
from collections import Counter
from itertools import combinations

import pytest

from common.files import BadInput
from curation import PLAN, go, knows, read, with_shots
from data import manifest_items
from model import PRESETS

from rvedata import merge
from rvedata.clusters import load_vectors
from rvedata.manifest import write_triplets
from rvedata.shots import clips_of, movie_names
from rvedata.stages import Rejected, my_shard


def test_the_same_place_is_clustered_and_others_are_not(icvg, movies):
    place = lambda r: movies.truth[r["movie"]].places[r["index"]]
    members = [{(r["movie"], place(r)) for r in cluster["members"]} for cluster in read(icvg / "clusters.jsonl")]
    assert all(len(places) == 1 for places in members)
    assert Counter(p for places in members for p in places) == {(f"m{k}.mp4", p): 1 for k, plan in enumerate(PLAN)
                                                              for p in set(plan)}
    assert sum(len(cluster["members"]) for cluster in read(icvg / "clusters.jsonl")) == 18
    threshold, image = json.loads((icvg / "clusters.json").read_text())["threshold"], {}
    for line in read(icvg / "embeddings.jsonl"):         # and the threshold parts all pairs of a window
        for r, x in zip(line["members"], load_vectors(icvg, line["id"])["image"]):
            image[r["movie"], r["index"]] = place(r), x
    for a, b in combinations(image, 2):
        if a[0] == b[0]:
            assert (image[a][1] @ image[b][1] > threshold) == (image[a][0] == image[b][0]), (a, b)


def test_no_pair_crosses_a_movie_or_goes_back_in_time(icvg, movies):
    found = read(icvg / "pairs.jsonl")
    assert len(found) == 6 and len({r["id"] for r in found}) == 6          # of three clips each, one pair
    for pair in found:
        a, b = pair["source"], pair["target"]
        assert a["movie"] == b["movie"] and a["clip"][1] <= b["clip"][0] and a["index"] < b["index"]
        cuts = [0, *movies.truth[a["movie"]].cuts, 162]
        for r in (a, b):                                 # and each clip lies within its shot
            assert cuts[r["index"]] <= r["clip"][0] and r["clip"][1] <= cuts[r["index"] + 1]


def test_the_manifest_is_one(icvg):
    rows = read(icvg / "triplets.jsonl")
    items, skipped = manifest_items(icvg / "triplets.jsonl", PRESETS["tiny"])
    assert len(items) == len(rows) > 0 and not skipped
    for item, row in zip(items, rows):
        assert item.subset == row["subset"] == "icvg" and re.fullmatch(r"[\w-]+", row["id"])
    source, target = items[0].load()
    assert source.shape == (9, 3, 32, 32) and (source - target).abs().mean() > .01


def test_nothing_is_done_twice(icvg, movies, tmp_path):
    before = {p.name: p.read_bytes() for p in icvg.glob("*.jsonl")}
    asked = lambda *question: pytest.fail("asked again")
    go("icvg", icvg, "--movies", movies.folder, "--least", 9, ask=asked)
    assert {p.name: p.read_bytes() for p in icvg.glob("*.jsonl")} == before


def test_a_film_that_is_gone_takes_its_triplets_with_it(icvg, movies, tmp_path, capsys):
    shutil.copytree(icvg, tmp_path / "films/out")        # within the films: its clips are none
    for name in ("m0.mp4", "m2.mp4"):
        shutil.copy(movies.folder / name, tmp_path / "films")
    asked = lambda *question: pytest.fail("asked again")
    go("icvg", tmp_path / "films/out", "--movies", tmp_path / "films", "--least", 9, ask=asked)
    assert "films, and left out: m1.mp4" in capsys.readouterr().out
    kept = [r for r in read(icvg / "triplets.jsonl") if r["movie"] != "m1.mp4"]
    assert read(tmp_path / "films/out/triplets.jsonl") == kept != []


def test_what_is_no_film(tmp_path):
    for name in ("a.mp4", "._a.mp4", "__MACOSX/a.mp4", ".trash/a.mp4", "x.txt", "sub/b.MKV",
                 "icvg/clips/0123456789abcdef.mp4"):
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).touch()
    assert movie_names(tmp_path) == ["a.mp4", "sub/b.MKV"]


def test_a_triplet_whose_videos_are_gone_is_left_out(tmp_path, capsys):
    rows = [{"id": name, "source_video_path": f"{name}.mp4", "target_video_path": "t.mp4",
             "instruction": name} for name in ("one", "two")]
    for name in ("one.mp4", "t.mp4"):
        (tmp_path / name).touch()
    write_triplets(tmp_path, rows, .8)
    assert read(tmp_path / "triplets.jsonl") == rows[:1]
    assert "1 left out: their videos are gone" in capsys.readouterr().out


def test_a_service_that_dies(icvg, movies, tmp_path):
    calls = []

    def dies(*question):
        calls.append(question)
        if len(calls) == 8:
            raise BadInput("the service does not answer")
        return knows(*question)
    flags = ["--movies", movies.folder, "--least", 9, "--workers", 1]
    with_shots(icvg, tmp_path / "out")
    with pytest.raises(BadInput, match="captions: the service does not answer"):
        go("icvg", tmp_path / "out", *flags, ask=dies)
    known = len(read(tmp_path / "out/captions.jsonl"))   # the eighth died; the ninth had begun, or had not
    assert known == len(calls) - 1
    with open(tmp_path / "out/captions.jsonl", "a") as file:
        file.write('{"id": "m2.mp4#000')                 # and the machine stopped in the middle of a line
    go("icvg", tmp_path / "out", *flags, ask=dies)
    assert len(calls) == 18 + 2 * 6 + 1                  # captions; instructions, checked; what failed
    assert (tmp_path / "out/triplets.jsonl").read_bytes() == (icvg / "triplets.jsonl").read_bytes()


def test_a_service_that_is_ill_skipped_and_tried_again(icvg, movies, tmp_path, capsys):
    calls = []

    def ill(*question):
        calls.append(question)
        if len(calls) in (3, 5):
            raise BadInput("status 500")
        return knows(*question)
    flags = ["--movies", movies.folder, "--least", 9, "--workers", 1, "--skip-bad"]
    with_shots(icvg, tmp_path / "out")
    go("icvg", tmp_path / "out", *flags, ask=ill)
    assert "captions: 16 done, 2 failed" in capsys.readouterr().out
    go("icvg", tmp_path / "out", *flags, ask=ill)
    assert "captions: 2 done" in capsys.readouterr().out
    assert (tmp_path / "out/triplets.jsonl").read_bytes() == (icvg / "triplets.jsonl").read_bytes()
    assert "status 500" not in (tmp_path / "out/report.html").read_text()


def test_shards_are_merged_into_the_same(icvg, movies, tmp_path, capsys):
    assert {my_shard(f"m{k}.mp4", (0, 2)) for k in range(3)} == {True, False}
    for i in range(2):
        go("icvg", tmp_path / f"part{i}", "--movies", movies.folder, "--least", 9, "--shard", f"{i}/2")
        assert not (tmp_path / f"part{i}/clusters.jsonl").exists()
    (tmp_path / "part1/replies.jsonl").write_text('{"key": "what was paid for stays with its shard"}\n')
    merge.main(["--from", str(tmp_path / "part1"), str(tmp_path / "part0"), "--out", str(tmp_path / "whole")])
    for i in range(2):                                   # the instructions in shards, too: each on a copy of the whole
        go("icvg", tmp_path / "whole", "--movies", movies.folder, "--least", 9, "--shard", f"{i}/2",
           ask=lambda system, parts, schema: knows(system, parts, schema) if "caption" not in schema["properties"] else
           pytest.fail("captions are there"))
    for name in ("clusters", "pairs", "triplets"):
        assert (tmp_path / f"whole/{name}.jsonl").read_bytes() == (icvg / f"{name}.jsonl").read_bytes(), name


def test_clips_of_shots():
    movie = {"id": "m", "fps": 10., "shots": [[0, 100], [100, 120], [120, 130], [130, 137]]}
    assert [r["clip"] for r in clips_of(movie, 5., 7)] == [[25, 75], [102, 118], [121, 129], [130, 137]]
    assert [r["index"] for r in clips_of(movie, 5., 9)] == [0, 1]


def test_a_vlm_that_is_of_no_use(icvg, movies, tmp_path):
    def useless(*question):
        raise Rejected("the VLM's answer is not JSON: 'g g g'")
    with pytest.raises(BadInput, match="no movie has two clips in a window of 16 shots"):
        go("icvg", with_shots(icvg, tmp_path), "--movies", movies.folder, "--least", 9, ask=useless)
    assert (tmp_path / "report.html").read_text().count("'g g g'") == 18
