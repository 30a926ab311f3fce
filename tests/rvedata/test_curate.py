"""Films with known cuts, places and movies through the stages; what they say is recomputed here in another way."""

import dataclasses
import json
import os
import re
import runpy
import shutil
import subprocess
import sys
from collections import Counter
from itertools import combinations
from pathlib import Path
from types import SimpleNamespace

import imageio.v3 as iio
import numpy as np
import pytest
import torch
from scipy.stats import norm
from transformers import SiglipConfig, SiglipModel

import bench
from rvedata import curate
from rvedata import demo as curate_demo
from rvedata import film
from rvedata import holdout
from tiny import world
from rvedata.curate import clusters, components, implicit, local_vlm, pairs, valley, wrong
from common.files import BadInput
from common.video import count_frames, write_video
from data import manifest_items
from endpoint import Endpoint
from rvedata.lines import Rejected, grouped, mine, stage
from model import PRESETS, make_tokenizer

SCRIPT = Path(curate.__file__)
VERBS = json.loads((SCRIPT.parent / "curate_examples.json").read_text())["forbidden"]
PLACES = [("meadow", "day", "grass"), ("city", "night", "stone"), ("desert", "dusk", "sand"), ("lake", "day", "ice"),
          ("lake", "night", "water"), ("desert", "day", "sand")]
PLAN = ["ABABAB", "CDCDCD", "EFEFEF"]                    # shots 0 to 5 of movie 0 are in places A, B, A, ...
FADES = {4}


def read(path):
    return [json.loads(line) for line in path.read_text().splitlines()]


@pytest.fixture(scope="session")
def movies(tmp_path_factory):
    """A folder of three films, and of each its cuts and the place of each shot."""
    folder, rng, truth = tmp_path_factory.mktemp("movies"), np.random.default_rng(3), {}
    for number, plan in enumerate(PLAN):
        shots, last = [], {}
        for letter in plan:
            place, time, ground = PLACES["ABCDEF".index(letter)]
            new = dataclasses.replace(world.random_scene(rng, place), time=time, ground=ground, light=1, ridge=1.)
            shots.append(curate_demo.shot(new))          # the same place, with other things in it
        clip, cuts = curate_demo.join(shots, FADES)
        write_video(folder / f"m{number}.mp4", clip, 24, 4)
        truth[f"m{number}.mp4"] = SimpleNamespace(cuts=cuts, places=plan, clip=clip)
    return SimpleNamespace(folder=folder, truth=truth)


def knows(system, parts, schema):
    """A VLM that knows nothing: it tells colours, and has an answer that the check lets pass."""
    if "caption" in schema["properties"]:
        return {"caption": f"a place of colour {' '.join(str(int(x) // 64) for x in parts[0].mean((0, 1)))}"}
    captions = [p for p in parts if isinstance(p, str)]
    number = sum(map(ord, "".join(captions)))
    types = schema["properties"]["type"]["enum"]
    return {"type": types[number % len(types)], "rationale": "it is so",
            "instruction": f"hours go by unnoticed {number}"}


def go(command, out, *flags, ask=knows):
    siglip = [] if command == "rave" else ["--siglip", "pixels"]
    curate.main([command, "--out", str(out), *siglip, *map(str, flags)], ask)


@pytest.fixture(scope="session")
def icvg(movies, tmp_path_factory):
    out = tmp_path_factory.mktemp("curated") / "icvg"
    go("icvg", out, "--movies", movies.folder, "--least", 9)
    return out


# ------------------------------------------------------------------------------------------------------------- films

def test_cuts_are_found_within_a_frame(movies, tmp_path):
    true = hits = found = 0
    known = {movies.folder / name: movie.cuts for name, movie in movies.truth.items()}
    known |= {tmp_path / name: cuts for name, cuts in
              curate_demo.make_movies(tmp_path, 3, 8, curate_demo.TinyWorldKnows()).items()}
    for path, wanted in known.items():
        cuts, frames, fps = film.find_cuts(path)
        assert frames == 27 * (len(wanted) + 1) and fps == 24
        true, found = true + len(wanted), found + len(cuts)
        hits += sum(min(abs(cut - c) for c in cuts) <= 1 for cut in wanted)
    assert hits / true >= .95 and hits / found >= .95


def test_frames_are_those_asked_for(movies):
    name, movie = next(iter(movies.truth.items()))
    whole = iio.imread(movies.folder / name, plugin="FFMPEG")
    for a, b in ((0, 8), (30, 50), (100, len(whole)), (77, 78)):
        frames = film.read_frames(movies.folder / name, (a, b), k=4)
        places = [a + (2 * i + 1) * (b - a) // 8 for i in range(4)]
        for frame, place in zip(frames, places):
            assert np.abs(frame.astype(int) - whole[place]).mean() < 2, (a, b, place)
    assert film.read_frames(movies.folder / name, side=64)[0].shape == (64, 64, 3)
    with pytest.raises(BadInput, match="frame 9.. cannot be read"):
        film.read_frames(movies.folder / name, (900, 1000))


def test_a_clip_is_cut_at_the_frame(movies, tmp_path):
    name = next(iter(movies.truth))
    film.write_clip(movies.folder / name, (31, 52), 24, tmp_path / "clip.mp4")
    assert count_frames(tmp_path / "clip.mp4") == 21
    whole, clip = (iio.imread(p, plugin="FFMPEG").astype(int) for p in (movies.folder / name, tmp_path / "clip.mp4"))
    distance = [[np.abs(clip[k] - whole[31 + k + d]).mean() for d in (-1, 0, 1)] for k in (0, 10, 20)]
    assert all(row[1] <= min(row) + .2 and row[1] < 3 for row in distance), distance


@pytest.mark.parametrize("make, words", [
    (lambda path, good: path.write_bytes(b""), "bad.mp4: cannot be read as a film"),
    (lambda path, good: path.write_bytes(b"no film" * 999), "bad.mp4: cannot be read as a film"),
    (lambda path, good: write_video(path, torch.zeros(40, 3, 32, 32)), "bad.mp4: is a movie without cuts"),
    (lambda path, good: path.write_bytes(good.read_bytes()), "bad.mp4: has 6 shots, more than --max-shots 5"),
], ids=["zero length", "no film", "without cuts", "too many cuts"])
def test_bad_films(make, words, movies, tmp_path, capsys):
    folder = tmp_path / "movies"
    folder.mkdir()
    write_video(folder / "good.mp4", movies.truth["m0.mp4"].clip[:108], 24, 4)             # four shots
    make(folder / "bad.mp4", movies.folder / "m0.mp4")
    flags = ["--movies", folder, "--least", 9, "--max-shots", 5, "--threshold", .8]
    with pytest.raises(BadInput, match=words):
        go("icvg", tmp_path / "out", *flags)
    go("icvg", tmp_path / "out", *flags, "--skip-bad")
    out, err = capsys.readouterr()
    assert re.search(words, err) and "1 failed" in out
    assert {r["movie"] for r in read(tmp_path / "out/captions.jsonl")} == {"good.mp4"}
    assert words.split(": ")[1] in (tmp_path / "out/report.html").read_text()


def test_a_film_that_is_cut_off(movies, tmp_path):
    data = (movies.folder / "m0.mp4").read_bytes()
    subprocess.run([film.imageio_ffmpeg.get_ffmpeg_exe(), "-v", "error", "-i", movies.folder / "m0.mp4", "-c", "copy",
                    "-movflags", "faststart", tmp_path / "whole.mp4"], check=True)         # its index comes first
    (tmp_path / "cut.mp4").write_bytes((tmp_path / "whole.mp4").read_bytes()[:len(data) // 2])
    with pytest.raises(BadInput, match="cut.mp4: ends at frame .* of 162"):
        film.find_cuts(tmp_path / "cut.mp4")


# -------------------------------------------------------------------------------------------- ICVG, from end to end

def test_the_same_place_is_clustered_and_others_are_not(icvg, movies):
    place = lambda r: movies.truth[r["movie"]].places[r["index"]]
    members = [{(r["movie"], place(r)) for r in cluster["members"]} for cluster in read(icvg / "clusters.jsonl")]
    assert all(len(places) == 1 for places in members)
    assert Counter(p for places in members for p in places) == {(f"m{k}.mp4", p): 1 for k, plan in enumerate(PLAN)
                                                              for p in set(plan)}
    assert sum(len(cluster["members"]) for cluster in read(icvg / "clusters.jsonl")) == 18
    threshold, image = json.loads((icvg / "clusters.json").read_text())["threshold"], {}
    for line in read(icvg / "embeddings.jsonl"):         # and the threshold parts all pairs of a window
        for r, x in zip(line["members"], curate.vectors(icvg, line["id"])["image"]):
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


def test_a_service_that_dies(icvg, movies, tmp_path):
    calls = []

    def dies(*question):
        calls.append(question)
        if len(calls) == 8:
            raise BadInput("the service does not answer")
        return knows(*question)
    flags = ["--movies", movies.folder, "--least", 9, "--workers", 1]
    with pytest.raises(BadInput, match="captions: the service does not answer"):
        go("icvg", tmp_path / "out", *flags, ask=dies)
    known = len(read(tmp_path / "out/captions.jsonl"))   # the eighth died; the ninth had begun, or had not
    assert known == len(calls) - 1
    with open(tmp_path / "out/captions.jsonl", "a") as file:
        file.write('{"id": "m2.mp4#000')                 # and the machine stopped in the middle of a line
    go("icvg", tmp_path / "out", *flags, ask=dies)
    assert len(calls) == 18 + 6 + 1                      # each caption and instruction once, and what had failed again
    assert (tmp_path / "out/triplets.jsonl").read_bytes() == (icvg / "triplets.jsonl").read_bytes()


def test_a_service_that_is_ill_skipped_and_tried_again(icvg, movies, tmp_path, capsys):
    calls = []

    def ill(*question):
        calls.append(question)
        if len(calls) in (3, 5):
            raise BadInput("status 500")
        return knows(*question)
    flags = ["--movies", movies.folder, "--least", 9, "--workers", 1, "--skip-bad"]
    go("icvg", tmp_path / "out", *flags, ask=ill)
    assert "captions: 16 done, 2 failed" in capsys.readouterr().out
    go("icvg", tmp_path / "out", *flags, ask=ill)
    assert "captions: 2 done" in capsys.readouterr().out
    assert (tmp_path / "out/triplets.jsonl").read_bytes() == (icvg / "triplets.jsonl").read_bytes()
    assert "status 500" not in (tmp_path / "out/report.html").read_text()


def test_shards_are_merged_into_the_same(icvg, movies, tmp_path, capsys):
    assert {mine(f"m{k}.mp4", (0, 2)) for k in range(3)} == {True, False}
    for i in range(2):
        go("icvg", tmp_path / f"part{i}", "--movies", movies.folder, "--least", 9, "--shard", f"{i}/2")
        assert not (tmp_path / f"part{i}/clusters.jsonl").exists()
    (tmp_path / "part1/replies.jsonl").write_text('{"key": "what was paid for stays with its shard"}\n')
    curate.main(["merge", "--from", str(tmp_path / "part1"), str(tmp_path / "part0"), "--out", str(tmp_path / "whole")])
    for i in range(2):                                   # the instructions in shards, too: each on a copy of the whole
        go("icvg", tmp_path / "whole", "--movies", movies.folder, "--least", 9, "--shard", f"{i}/2",
           ask=lambda system, parts, schema: knows(system, parts, schema) if "type" in schema["properties"] else
           pytest.fail("captions are there"))
    for name in ("clusters", "pairs", "filter", "triplets"):
        assert (tmp_path / f"whole/{name}.jsonl").read_bytes() == (icvg / f"{name}.jsonl").read_bytes(), name


# -------------------------------------------------------------------------------------------------- stages by hand

def test_valley_of_two_groups():
    rng, edges = np.random.default_rng(0), curate.BINS
    for share, low, high in ((.5, (.3, .1), (.8, .05)), (.05, (.3, .15), (.9, .03)), (.02, (0., .1), (.7, .05))):
        n = 200_000
        x = np.concatenate([rng.normal(*low, int(n * (1 - share))), rng.normal(*high, int(n * share))])
        found = valley(np.histogram(x, edges)[0])
        grid = np.linspace(low[0], high[0], 10_001)      # where the two densities cross
        best = grid[np.argmin(np.abs((1 - share) * norm.pdf(grid, *low) - share * norm.pdf(grid, *high)))]
        wrong_at = lambda t: (1 - share) * norm.sf(t, *low) + share * norm.cdf(t, *high)
        assert wrong_at(found) < 1.6 * wrong_at(best) + 1e-4, (share, found, best)
    counts = np.zeros(400, int)
    counts[[100, 101, 102, 300, 301]] = 5, 9, 5, 4, 4
    assert valley(counts) == pytest.approx((edges[103] + edges[300]) / 2)                  # the middle of the gap
    with pytest.raises(ValueError, match="do not form two groups"):
        valley(np.histogram(rng.normal(.4, .1, 10_000), edges)[0])
    with pytest.raises(ValueError, match="the 0 cosines"):
        valley(np.zeros(400, int))


def test_components_by_hand():
    angles = np.radians([0, 10, 20, 90, 100, 180])       # linked: 10 degrees at most; and who is linked to them
    labels = components(np.stack([np.cos(angles), np.sin(angles)], 1), np.cos(np.radians(10.1)))
    assert labels.tolist() == [0, 0, 0, 1, 1, 2]


def fake(out, movies, dim=8, seed=0, spread=.05):
    """Embeddings of shots without films: {movie: [place of each shot, ...]}; returns {(movie, index): image}."""
    rng, truth = np.random.default_rng(seed), {}
    (out / "embeddings").mkdir(parents=True)
    with open(out / "embeddings.jsonl", "w") as file:
        for movie, places in movies.items():
            centres = film.unit(rng.normal(size=(max(places) + 1, dim)))
            for chunk in range(0, len(places), curate.CHUNK):
                these = range(chunk, min(chunk + curate.CHUNK, len(places)))
                image = film.unit(centres[[places[k] for k in these]] + spread * rng.normal(size=(len(these), dim)))
                text = film.unit(rng.normal(size=(len(these), 4)))
                tensors = {"image": image.astype(np.float32), "text": text.astype(np.float32)}
                (out / "embeddings" / f"{movie}-{chunk}.safetensors").write_bytes(curate.save(tensors))
                members = [{"id": f"{movie}#{k:05d}", "movie": movie, "index": k, "clip": [9 * k, 9 * k + 9]}
                           for k in these]
                file.write(json.dumps({"id": f"{movie}-{chunk}", "movie": movie, "chunk": chunk // curate.CHUNK,
                                       "members": members}) + "\n")
                truth |= {(movie, k): x for k, x in zip(these, tensors["image"])}
    return truth


def test_a_movie_of_5000_cuts(tmp_path):
    places = [k // 16 * 3 + k % 3 for k in range(5001)]  # three places in turn in each window
    image = fake(tmp_path, {"m": places}, dim=64)
    threshold = clusters(tmp_path, 16)
    found = read(tmp_path / "clusters.jsonl")
    for cluster in found:
        index = [r["index"] for r in cluster["members"]]
        assert len({places[k] for k in index}) == len({k // 16 for k in index}) == 1
    assert len(found) == 313 * 3 and threshold == json.loads((tmp_path / "clusters.json").read_text())["threshold"]
    counts = np.zeros(400, int)                          # the histogram, pair by pair
    for k in range(0, 5001, 16):
        for i, j in combinations(range(k, min(k + 16, 5001)), 2):
            counts[min(399, int((float(image["m", i] @ image["m", j]) + 1) * 200))] += 1
    kept = np.array(json.loads((tmp_path / "clusters.json").read_text())["counts"])
    assert kept.sum() == counts.sum() and np.abs(kept - counts).sum() <= 40              # rounding at the bins' edges


def test_the_order_of_the_lines_does_not_matter(tmp_path):
    for name in ("a", "b"):
        fake(tmp_path / name, {"m": [k % 5 for k in range(150)], "n": [k % 4 for k in range(70)]})
    lines = (tmp_path / "b/embeddings.jsonl").read_text().splitlines(True)
    (tmp_path / "b/embeddings.jsonl").write_text("".join([lines[2], lines[4], lines[1], lines[0], lines[3], lines[1]]))
    for name in ("a", "b"):
        clusters(tmp_path / name, 16)
        pairs(tmp_path / name, 1, 1, 2)
    assert (tmp_path / "a/pairs.jsonl").read_text() == (tmp_path / "b/pairs.jsonl").read_text() != ""


def test_pairs_by_hand(tmp_path):
    (tmp_path / "embeddings").mkdir()
    turn = lambda degrees: np.stack([np.cos(np.radians(degrees)), np.sin(np.radians(degrees))], 1).astype(np.float32)
    tensors = {"image": turn(np.array([0, 60, 60, 0])), "text": turn(np.array([0, 0, 90, 45]))}
    (tmp_path / "embeddings/f.safetensors").write_bytes(curate.save(tensors))
    members = [{"id": f"m#{k}", "movie": "m", "index": k, "file": "f", "row": k} for k in range(4)]
    (tmp_path / "clusters.jsonl").write_text(json.dumps({"id": "c", "members": members}) + "\n")

    def best(*flags):
        pairs(tmp_path, *flags)
        return [(r["source"]["index"], r["target"]["index"], round(r["score"], 3))
                for r in read(tmp_path / "pairs.jsonl")]
    # captions: 01 1, 02 0, 03 .707, 12 0, 13 .707, 23 .707; 1 - pictures: 01 .5, 02 .5, 03 0, 12 0, 13 .5, 23 .5
    assert best(1, 1, 3) == [(0, 1, 1.5), (2, 3, 1.207)]
    assert best(1, 1, 1) == [(0, 1, 1.5)]
    assert best(0, 1, 3) == [(0, 1, .5), (2, 3, .5)]
    assert best(.1, 2, 3) == [(0, 1, 1.1), (2, 3, 1.071)]
    curate.consistent(tmp_path, .6, .9)
    assert all("cosine of the pictures 0.500" in r["rejected"] for r in read(tmp_path / "filter.jsonl"))
    curate.consistent(tmp_path, .4, .9)
    assert read(tmp_path / "filter.jsonl") == read(tmp_path / "pairs.jsonl")


def test_clips_of_shots():
    movie = {"id": "m", "fps": 10., "shots": [[0, 100], [100, 120], [120, 130], [130, 137]]}
    assert [r["clip"] for r in curate.clips(movie, 5., 7)] == [[25, 75], [102, 118], [121, 129], [130, 137]]
    assert [r["index"] for r in curate.clips(movie, 5., 9)] == [0, 1]


def test_grouped_reads_any_order(tmp_path):
    lines = [{"id": "b", "k": 2}, {"id": "c", "k": 1}, {"id": "a", "k": 2}, {"id": "d", "failed": "x"},
             {"id": "e", "rejected": "y"}]
    (tmp_path / "x.jsonl").write_text("".join(json.dumps(r) + "\n" for r in lines) + '{"id": "f", "k"')
    found = [(k, [r["id"] for r in rows]) for k, rows in grouped(tmp_path / "x.jsonl", lambda r: r["k"])]
    assert found == [(1, ["c"]), (2, ["a", "b"])]
    assert list(grouped(tmp_path / "none.jsonl", lambda r: r["k"])) == []
    (tmp_path / "x.jsonl").write_text('{"id": 1}\n{"broken\n')
    with pytest.raises(BadInput, match="x.jsonl: the line at byte 10 is not JSON"):
        list(grouped(tmp_path / "x.jsonl", lambda r: r["id"]))


def test_stage_streams(tmp_path):
    taken, done = [], []

    def items():
        for k in range(200):
            taken.append(k)
            assert len(taken) - len(done) <= 9           # it never runs ahead: two for each of the workers
            yield {"id": k}
    stage(tmp_path / "x.jsonl", items(), lambda item: done.append(item["id"]) or {"square": item["id"] ** 2}, workers=4)
    assert sorted(r["square"] for r in read(tmp_path / "x.jsonl")) == [k * k for k in range(200)]


# ------------------------------------------------------------------------------------------------ the check and RAVE

def answer(instruction, type="Temporal Reasoning", rationale="so it is"):
    return {"type": type, "rationale": rationale, "instruction": instruction}


@pytest.mark.parametrize("given, literal, reason", [
    (answer("an hour after sunset everyone left"), "remove the crowd", ""),
    (answer("please remove the crowd"), "darken it", "operation: remove"),
    (answer("the crowd was Removed an hour ago"), "darken it", "operation: remove"),
    (answer("they are swapping their hats"), "darken it", "operation: swap"),
    (answer("somebody has swapped the hats"), "darken it", "operation: swap"),
    (answer("after replacing what was old"), "darken it", "operation: replace"),
    (answer("the seasons changed over night"), "darken it", "operation: change"),
    (answer("an address by the editor"), "darken it", ""),         # add, edit: within other words
    (answer("the red ball rolled under the green tent"), "put the red ball under a green tent", "words: ball, green"),
    (answer("a red ball"), "make the wooden house with its many windows look red like a ball in bright light", "words"),
    (answer("an hour later", type="Camera Reasoning"), "darken it", "the type must be one of Temporal Reasoning"),
    (answer("an hour later", type=None), "darken it", "the type must be one of"),
    (answer("later"), "darken it", "3 to 60 words"), (answer("so " * 61), "darken it", "3 to 60 words"),
    (answer(7), "darken it", "3 to 60 words"), (answer("an hour later", rationale=" "), "darken it", "the rationale"),
    ({}, "darken it", "the type must be one of"),
])
def test_the_check(given, literal, reason):
    found = wrong(given, literal, world.TYPES["rave"], VERBS)
    assert (reason in found) if reason else found == ""


def test_our_examples_pass_the_check():
    examples = curate.read_examples(SCRIPT.parent / "curate_examples.json")
    for subset, types in world.TYPES.items():
        assert Counter(e["type"] for e in examples[subset]) == dict.fromkeys(types, 2)
        for e in examples[subset]:
            assert wrong(e, e.get("original") or e["target"], types, VERBS) == "", e


def test_an_answer_is_sent_back_once_with_the_reason():
    replies, heard = [answer("remove the dog"), answer("it has run after a cat")], []

    def ask(system, parts, schema):
        heard.append(parts)
        assert "Temporal Reasoning" in system and all(json.dumps(e) in system for e in examples["rave"])
        return replies[len(heard) - 1]
    examples = curate.read_examples(SCRIPT.parent / "curate_examples.json")
    assert implicit(ask, ["Literal: erase the dog"], "erase the dog", "rave", examples, .5) == replies[1]
    assert len(heard) == 2 and heard[0] == ["Literal: erase the dog"]
    assert "it states an operation: remove" in heard[1][-1]
    heard.clear()
    replies[1] = answer("erase that dog now")
    with pytest.raises(Rejected, match="it states an operation: erase .*erase that dog now"):
        implicit(ask, ["Literal: erase the dog"], "erase the dog", "rave", examples, .5)
    assert len(heard) == 2


@pytest.fixture(scope="session")
def rave(tmp_path_factory):
    folder, vlm = tmp_path_factory.mktemp("rave"), curate_demo.TinyWorldKnows()
    metadata = curate_demo.make_ditto(folder / "ditto", 24, vlm)
    go("rave", folder / "rave", "--ditto", metadata, "--videos", folder / "ditto", ask=vlm)
    return SimpleNamespace(out=folder / "rave", folder=folder / "ditto", metadata=metadata, vlm=vlm)


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


def test_rave_in_shards(rave, tmp_path):
    for i in range(3):
        go("rave", tmp_path / f"part{i}", "--ditto", rave.metadata, "--videos", rave.folder, "--shard", f"{i}/3",
           ask=rave.vlm)
    parts = [str(tmp_path / f"part{i}") for i in range(3)]
    curate.main(["merge", "--from", *parts, "--out", str(tmp_path / "sub/whole")])
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


# --------------------------------------------------------------------------------------------------------- the bench

def no_leak(out, same=.98, near=.8):
    """Recompute, pair by pair, that nothing of the test is in the training set."""
    test, train = read(out / "test.jsonl"), read(out / "train.jsonl")
    group = lambda r: r.get("movie") or r["source_video_path"]
    assert test and train and not {group(r) for r in test} & {group(r) for r in train}
    seen = {}

    def video(path):
        if path not in seen:
            x = film.pixels(film.read_frames(out / path)).mean(0)
            seen[path] = (out / path).read_bytes(), x / np.linalg.norm(x)
        return seen[path]
    stop = lambda text: film.words(text)
    for a in test:
        for b in train:
            x, y = stop(a["instruction"]), stop(b["instruction"])
            assert len(x & y) / len(x | y) < near, (a, b)
            for p in ("source_video_path", "target_video_path"):
                for q in ("source_video_path", "target_video_path"):
                    (one, u), (other, v) = video(a[p]), video(b[q])
                    assert one != other and u @ v < same + 2e-3, (a[p], b[q])              # half precision is kept
    return test, train


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
    (tmp_path / "decisions.json").write_text(json.dumps(decisions))
    go("bench", out, *flags, "--decisions", tmp_path / "decisions.json")
    accepted = [r["id"] for r in read(out / "test.jsonl")]
    assert accepted == [name for name, what in decisions.items() if what == "accept"]
    told = f"{len(accepted)} accepted, {len(test) - 1 - len(accepted)} rejected, 1 not decided"
    assert told in capsys.readouterr().out
    go("bench", out, *flags)                             # they are kept
    assert [r["id"] for r in read(out / "test.jsonl")] == accepted and read(out / "candidates.jsonl") == test
    (tmp_path / "decisions.json").write_text('{"another": "accept"}')
    with pytest.raises(BadInput, match="decisions.json: 'another' is no triplet here"):
        go("bench", out, *flags, "--decisions", tmp_path / "decisions.json")


def test_leaks_of_every_kind():
    turn = lambda degrees: np.array([np.cos(np.radians(degrees)), np.sin(np.radians(degrees))], np.float32)
    videos = {name: {"sha": sha, "vector": turn(at)} for name, sha, at in
              (("t1", "A", 0), ("t2", "B", 40), ("copy", "A", 180), ("twin", "C", 41), ("far", "D", 90),
               ("other", "E", 120))}
    item = lambda name, a, b, text: {"id": name, "source_video_path": a, "target_video_path": b, "instruction": text}
    test = [item("T", "t1", "t2", "an hour after the train has left")]
    train = [item("file", "far", "copy", "one"), item("sight", "twin", "far", "two"),
             item("text", "far", "other", "The train left an hour ago, after..."),
             item("fine", "far", "other", "an hour")]
    why = holdout.leaks(test, train, videos, np.cos(np.radians(2)), .7)
    assert why.keys() == {"file", "sight", "text"}
    assert "copy is a file of T" in why["file"] and "twin looks like t2" in why["sight"]
    assert "reads like T" in why["text"]


def test_split_is_balanced_and_whole():
    rng = np.random.default_rng(0)
    items = [{"id": f"{k:04d}", "type": str(rng.choice(list("abcd"), p=[.4, .3, .28, .02])),
              "source_video_path": f"s{k}", "movie": f"m{rng.integers(80)}" if k % 2 else None} for k in range(2000)]
    test, reserve, train = holdout.split(items, 100, .2)
    counts = Counter(r["type"] for r in test)
    assert [counts[t] for t in "abc"] == [25] * 3 and counts["d"] == int(.2 * sum(r["type"] == "d" for r in items))
    group = lambda r: r["movie"] or r["source_video_path"]
    of = lambda rows: {group(r) for r in rows}
    assert not of(test + reserve) & of(train) and of(reserve) <= of(test)
    assert sorted(r["id"] for r in test + reserve + train) == [r["id"] for r in items]
    assert holdout.split(items[::-1], 100, .2) == (test, reserve, train)


# ----------------------------------------------------------------------------------------------- models and pages

def test_siglip(tmp_path):
    torch.manual_seed(0)
    small = dict(hidden_size=16, intermediate_size=32, num_hidden_layers=1, num_attention_heads=2)
    model = SiglipModel(SiglipConfig(vision_config={**small, "image_size": 32, "patch_size": 8},
                                     text_config={**small, "vocab_size": 300, "max_position_embeddings": 12,
                                                  "projection_size": 16})).eval()
    model.save_pretrained(tmp_path)
    tokenizer = make_tokenizer(["a red ball"], 300)
    tokenizer.save_pretrained(tmp_path)
    image, text = film.embedder(str(tmp_path))
    frames = [np.random.default_rng(k).integers(0, 256, (40, 60, 3), np.uint8) for k in range(3)]
    found = image(frames)
    for frame, row in zip(frames, found):                # one by one, through torch's own resizing
        x = torch.from_numpy(frame).permute(2, 0, 1)[None] / 127.5 - 1
        x = torch.nn.functional.interpolate(x, (32, 32), mode="bilinear", antialias=True)
        with torch.no_grad():
            y = model.vision_model(x).pooler_output[0]
        np.testing.assert_allclose(row, y / y.norm(), atol=.01)
    first, second = film.clip_vectors(image, [frames, frames[::-1]])
    np.testing.assert_allclose(first, found.mean(0) / np.linalg.norm(found.mean(0)), atol=1e-6)
    np.testing.assert_allclose(second, first, atol=1e-6)
    ids = tokenizer("a red ball").input_ids
    ids = torch.tensor([ids + [tokenizer.pad_token_id] * (12 - len(ids))])
    with torch.no_grad():
        y = model.text_model(ids).pooler_output[0]
    np.testing.assert_allclose(text(["A red Ball", "a ball " * 50])[0], y / y.norm(), atol=1e-5)
    with pytest.raises(BadInput, match="--siglip .*none: cannot be loaded"):
        film.embedder(str(tmp_path / "none"))


def test_the_local_vlm(tiny, monkeypatch):
    ask, rows = local_vlm(tiny, 8), []
    frames = [np.zeros((32, 32, 3), np.uint8)] * 4
    with pytest.raises(Rejected, match="the VLM's answer is not JSON"):
        ask("system", [*frames, "which?"], {})           # its weights are random

    def write(vlm, given, limit):
        rows.append(given[0])
        return ['Here it is: {"caption": "grey {and} black"} .']
    monkeypatch.setattr(curate, "write", write)
    parts = ["Earlier:", *frames, "one", "Later:", *frames, "two"]
    assert ask("be brief", parts, {}) == {"caption": "grey {and} black"}
    head, earlier, a, between, b, later, question, tail = rows[0]
    assert "be brief" in head and (earlier, between, later) == ("Earlier:\n", "one\nLater:\n", "two\n")
    tokens = tiny.vlm.see(torch.full((1, 4, 3, 32, 32), -1.))[0]
    torch.testing.assert_close(a, tokens)
    torch.testing.assert_close(b, tokens)
    assert "JSON" in question and "assistant" in tail


def test_a_service_over_http(movies, tmp_path, monkeypatch, capsys):
    monkeypatch.setenv("OPENAI_API_KEY", "secret-key")
    ill, first = [True], []

    def answer(body, n):
        schema, content = body["response_format"]["json_schema"]["schema"], body["messages"][1]["content"]
        pictures = [c["image_url"]["url"] for c in content if c["type"] == "image_url"]
        texts = [c["text"] for c in content if c["type"] == "text"]
        assert len(pictures) == (4 if "caption" in schema["properties"] else 8)
        if "caption" in schema["properties"]:
            if ill[0] and len(server.requests) > 12:
                return 503, {"error": {"message": "overloaded"}}
            first[:] = first or pictures
            if pictures == first:                        # this one is never answered
                return {"message": {"role": "assistant", "content": None, "refusal": "not such a film"}}
            return "no JSON at all" if n == 0 and len(server.requests) % 5 == 0 else json.dumps({"caption": "a place"})
        sent_back = texts[-1].startswith("Your answer was")
        return json.dumps(answer_of(body) | ({} if sent_back else {"instruction": "please remove the ball"}))

    def answer_of(body):
        types = body["response_format"]["json_schema"]["schema"]["properties"]["type"]["enum"]
        assert types == world.TYPES["icvg"] and "Never use the verbs add, alter" in body["messages"][0]["content"]
        return {"type": types[0], "rationale": "so it is", "instruction": "its hour has come at last"}
    with Endpoint(answer) as server:
        flags = ["--movies", movies.folder, "--least", 9, "--workers", 2, "--base-url", server.url, "--model", "m",
                 "--price-in", 10, "--price-out", 100]
        with pytest.raises(BadInput, match="captions: the VLM gave no answer: error 503"):
            go("icvg", tmp_path, *flags, ask=None)
        ill[0] = False
        go("icvg", tmp_path, *flags, ask=None)
        paid = len(server.requests)
        go("icvg", tmp_path, *flags, ask=None)
        assert len(server.requests) == paid              # all of it is in the file
    replies = read(tmp_path / "replies.jsonl")
    good = [r["key"] for r in replies if r["reply"] and r["reply"].startswith("{")]
    assert len(good) == len(set(good)) == 17 + 2 * len(read(tmp_path / "triplets.jsonl"))  # and nothing was paid twice
    captions = read(tmp_path / "captions.jsonl")
    assert [r["rejected"] for r in captions if "rejected" in r] == ["the VLM gave no answer: refused: not such a film"]
    assert len(captions) == 18
    assert {r["instruction"] for r in read(tmp_path / "triplets.jsonl")} == {"its hour has come at last"}
    out = capsys.readouterr().out                        # 1000 tokens in and 100 out are two cents
    assert re.search(r"instructions: \$0\.\d\d00 spent on \d+ calls", out)
    assert not any(b"secret-key" in p.read_bytes() for p in tmp_path.rglob("*") if p.is_file())


def test_a_service_that_is_not_there(movies, tmp_path, monkeypatch):
    monkeypatch.delenv("OPENAI_API_KEY", raising=False)
    monkeypatch.delenv("OPENAI_BASE_URL", raising=False)
    flags = ["--movies", movies.folder, "--least", 9, "--skip-bad"]                        # which does not help
    with pytest.raises(BadInput, match="captions: OPENAI_API_KEY: is not set; [^(]*$"):
        go("icvg", tmp_path, *flags, ask=None)
    with pytest.raises(BadInput, match="captions: http://127.0.0.1:9/v1: cannot be reached"):
        go("icvg", tmp_path, *flags, "--base-url", "http://127.0.0.1:9/v1", ask=None)
    assert read(tmp_path / "captions.jsonl") == []


def test_a_vlm_that_is_of_no_use(movies, tmp_path):
    def useless(*question):
        raise Rejected("the VLM's answer is not JSON: 'g g g'")
    with pytest.raises(BadInput, match="no movie has two clips in a window of 16 shots"):
        go("icvg", tmp_path, "--movies", movies.folder, "--least", 9, ask=useless)
    assert (tmp_path / "report.html").read_text().count("&#x27;g g g&#x27;") == 18


def test_pages_are_escaped_and_whole(tmp_path):
    bad = "</script><script>alert(1)</script>"
    row = {"id": "x", "type": "Causal Reasoning", "rationale": bad, "instruction": f"run {bad}", "literal": bad,
           "source_video_path": "a #1?.mp4", "target_video_path": "b.mp4"}
    (tmp_path / "triplets.jsonl").write_text(json.dumps(row) + "\n")
    (tmp_path / "rewrites.jsonl").write_text(json.dumps({"id": bad, "rejected": bad}) + "\n")
    curate.curate_pages.report(tmp_path, film.read_frames)
    curate.curate_pages.verify(tmp_path, [row], "key")
    report, verify = (tmp_path / "report.html").read_text(), (tmp_path / "verify.html").read_text()
    assert "<script" not in report and report.count("alert(1)") >= 4
    assert verify.count("</script>") == 2 and "alert(1)</script>" not in verify
    data = re.search(r'<script id=data type="application/json">(.*?)</script>', verify, re.S)[1]
    assert json.loads(data) == [row]


def test_the_report_counts(icvg):
    text = (icvg / "report.html").read_text()
    assert "<tr><td>captions</td><td class=n>18</td><td class=n>0</td><td class=n>0</td></tr>" in text
    assert "All" not in text and text.count("<img") >= 18 + 2 and "<svg" in text and "6 clusters" in text


def test_verify_in_a_browser(rave, tmp_path):
    webdriver = pytest.importorskip("selenium.webdriver")
    wait = pytest.importorskip("selenium.webdriver.support.ui").WebDriverWait
    chromium = shutil.which("chromium") or shutil.which("google-chrome")
    if not (chromium and shutil.which("chromedriver")):
        pytest.skip("there is no Chromium with its driver here")
    rows = [{**r, **{k: os.path.relpath(rave.out / r[k], tmp_path) for k in curate.FIELDS[:2]}}
            for r in read(rave.out / "triplets.jsonl")[:3]]
    curate.curate_pages.verify(tmp_path, rows, "key")
    options = webdriver.ChromeOptions()
    options.binary_location = chromium
    for flag in ("--headless=new", "--no-sandbox", "--disable-gpu", "--disable-dev-shm-usage"):
        options.add_argument(flag)
    options.add_experimental_option("prefs", {"download.default_directory": str(tmp_path / "down")})
    browser = webdriver.Chrome(options=options, service=webdriver.ChromeService(shutil.which("chromedriver")))
    try:
        browser.get((tmp_path / "verify.html").as_uri())
        shown = lambda name: browser.find_element("id", name).text
        until = lambda script: wait(browser, 30).until(lambda b: b.execute_script(script))
        assert shown("text") == rows[0]["instruction"] and shown("where").startswith("1 of 3, 0 decided")
        until("return ['source', 'target'].every(k => document.getElementById(k).currentTime > 0)")        # both play
        press = lambda key: browser.find_element("tag name", "body").send_keys(key)
        press("a")
        assert shown("text") == rows[1]["instruction"]
        press("r")
        browser.refresh()                                # decisions outlive it; it goes on with the first undecided
        assert shown("text") == rows[2]["instruction"] and shown("where").startswith("3 of 3, 2 decided")
        press("\ue012")                                  # the left arrow
        assert "reject" in shown("where")
        press("d")
        wait(browser, 30).until(lambda b: (tmp_path / "down/decisions.json").exists())
    finally:
        browser.quit()
    decisions = holdout.read_decisions(tmp_path / "down/decisions.json", True, {r["id"]: r for r in rows})
    assert decisions == {rows[0]["id"]: "accept", rows[1]["id"]: "reject"}


def test_synthetic_shots_of_the_bench(tmp_path):
    bench.synthetic_shots(tmp_path, 4000)
    clusters(tmp_path, 16)
    members = [[(r["movie"], r["index"]) for r in cluster["members"]] for cluster in read(tmp_path / "clusters.jsonl")]
    assert sum(map(len, members)) > .99 * 4000 and len({m for some in members for m, _ in some}) == 3
    assert all(len({(m, k // 16, k % 5) for m, k in some}) == 1 for some in members)


# -------------------------------------------------------------------------------------------------------- the command

@pytest.mark.parametrize("flags, words", [
    ([], "the following arguments are required"),
    (["rave", "--ditto", "x.json"], "the following arguments are required: --videos"),
    (["rave", "--ditto", "none.json", "--videos", "."], "none.json: no list of"),
    (["rave", "--ditto", "none.json", "--videos", "nowhere"], "nowhere: there is no such folder"),
    (["icvg", "--movies", "nowhere", "--siglip", "pixels"], "--movies nowhere: holds no film"),
    (["icvg", "--movies", ".", "--shard", "2/2"], "argument --shard: must be i/n"),
    (["icvg", "--movies", ".", "--window", "0"], "argument --window: must be 1 or more"),
    (["icvg", "--movies", ".", "--threshold", "2"], "argument --threshold: must be 0 or more, 1 at most"),
    (["icvg", "--movies", ".", "--examples", "none"], "--examples none: FileNotFoundError"),
    (["bench", "--from", ".", "--siglip", "pixels"], "--from .: no triplets.jsonl there"),
    (["bench", "--from", "nowhere"], "nowhere: there is no such folder"),
])
def test_bad_flags(flags, words, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "argv", ["curate.py", *flags])
    with pytest.raises(SystemExit) as end:
        runpy.run_path(str(SCRIPT), run_name="__main__")
    error = capsys.readouterr().err
    assert end.value.code == 2 and error.count("\n") == 1 and error.startswith("curate.py: ") and words in error, error


def test_the_demo(tiny_dir, tmp_path):
    run = subprocess.run([sys.executable, SCRIPT, "demo", "--out", tmp_path / "demo", "--movies", "1", "--steps", "1",
                          "--weights", tiny_dir], capture_output=True, text=True,
                         env={**os.environ, "OMP_NUM_THREADS": "1"})
    assert run.returncode == 0, run.stderr
    demo = tmp_path / "demo"
    no_leak(demo / "bench")
    for page in ("rave/report.html", "icvg/report.html", "bench/report.html", "bench/verify.html"):
        assert page.split("/")[0] in (demo / page).read_text().lower() or "verify" in page
    assert (demo / "train/model/model.json").is_file() and "1/1" in run.stderr
