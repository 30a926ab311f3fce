"""The test split by hand, and from end to end without leaks, with people's decisions; the demo."""

import json
import os
import sys
from collections import Counter
from itertools import product
from pathlib import Path
from types import SimpleNamespace

import numpy as np

import train
from curation import go, read, turn, write
from data import manifest_items
from presets import PRESETS
from rvedata import demo
from rvedata.embed import content_words, embed_pixels
from rvedata.film import read_frames
from rvedata.split import find_leaks, quota_of_types, take_groups

ROOT = Path(__file__).parents[2]


def test_leaks_of_every_kind():
    def item(name, source, target, text):
        return {"id": name, "source_video_path": source, "target_video_path": target,
                "instruction": text}
    videos = {name: {"sha": sha, "vector": turn(at)[0]} for name, sha, at in
              (("t1", "A", 0), ("t2", "B", 40), ("copy", "A", 180), ("twin", "C", 41),
               ("far", "D", 90), ("other", "E", 120))}
    test = [item("T", "t1", "t2", "an hour after the train has left")]
    train = [item("file", "far", "copy", "one"), item("sight", "twin", "far", "two"),
             item("text", "far", "other", "The train left an hour ago, after..."),
             item("fine", "far", "other", "an hour")]
    why = find_leaks(test, train, videos, np.cos(np.radians(2)))
    assert why.keys() == {"file", "sight", "text"}
    assert "copy is a file of T" in why["file"] and "twin looks like t2" in why["sight"]
    assert "reads like T" in why["text"]


def test_split_is_balanced_and_whole():
    rng = np.random.default_rng(0)
    items = [{"id": f"{k:04d}", "type": str(rng.choice(list("abcd"), p=[.4, .3, .28, .02])),
              "source_video_path": f"s{k}", "movie": f"m{rng.integers(80)}" if k % 2 else None}
             for k in range(2000)]
    quota = quota_of_types(items, 100, .2)
    test, surplus, train = take_groups(items, quota)
    counts = Counter(r["type"] for r in test)
    assert [counts[t] for t in "abc"] == [25] * 3
    assert counts["d"] == int(.2 * sum(r["type"] == "d" for r in items))
    of = lambda rows: {r["movie"] or r["source_video_path"] for r in rows}
    assert not of(test + surplus) & of(train) and of(surplus) <= of(test)
    assert sorted(r["id"] for r in test + surplus + train) == [r["id"] for r in items]
    assert take_groups(items[::-1], quota) == (test, surplus, train)
    rejected = test[:7]                                  # others take their places
    again, _, _ = take_groups([r for r in items if r not in rejected], quota)
    assert [r for r in again if r in test] == test[7:]
    assert Counter(r["type"] for r in again) == counts


# ---------------------------------------------------------------------------------- end to end

def no_leak(out, same=.98, near=.8):
    """Recompute, pair by pair, that nothing of the test is in the training set."""
    test, train = read(out / "test.jsonl"), read(out / "train.jsonl")
    group = lambda r: r.get("movie") or r["source_video_path"]
    assert test and train and not {group(r) for r in test} & {group(r) for r in train}

    def videos(r):
        for path in (out / r["source_video_path"], out / r["target_video_path"]):
            x = embed_pixels(read_frames(path)).mean(0)
            yield path.read_bytes(), x / np.linalg.norm(x)
    seen = {r["id"]: list(videos(r)) for r in test + train}
    for a, b in product(test, train):
        x, y = content_words(a["instruction"]), content_words(b["instruction"])
        assert len(x & y) / len(x | y) < near, (a, b)
        for (one, u), (other, v) in product(seen[a["id"]], seen[b["id"]]):
            assert one != other and u @ v < same + 2e-3, (a, b)            # half precision is kept
    return test, train


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
    parts = ids(test + train + read(out / "removed.jsonl"))
    assert sorted(parts) == sorted(ids(everything))      # each is in one of them
    for name, rows in (("test", test), ("train", train)):
        assert len(manifest_items(out / f"{name}.jsonl", PRESETS["tiny"])[0]) == len(rows)

    anna = {r["id"]: {"decision": "accept"} for r in test[:-1]}
    anna[test[1]["id"]]["instruction"] = "a week of frost"             # corrected
    ben = {test[0]["id"]: {"decision": "reject", "reason": "dark"}}
    files = [tmp_path / "anna.json", tmp_path / "ben.json"]
    for file, said in zip(files, (anna, ben)):
        file.write_text(json.dumps({"decisions": said}))
    extra = tmp_path / "extra"                           # pairs without a target, of both sides
    extra.mkdir()
    pairs = [{"id": f"of {r['id']}", "type": r["type"], "instruction": f"as {r['id']} may have it",
              "source_video_path": os.path.relpath(out / r["source_video_path"], extra)}
             for r in [test[1], *train]]
    write(extra / "pairs.jsonl", pairs)
    go("split", out, *flags, "--from", rave.out, icvg, extra, "--decisions", *files)
    accepted = read(out / "test.jsonl")
    assert ids(accepted) == ids(test[1:-1])
    assert accepted[0]["instruction"] == "a week of frost"
    told = capsys.readouterr().out
    assert f"{len(accepted)} accepted, 1 rejected, " in told and "rejected, 0 not" not in told
    page = (out / "verify.html").read_text()             # of who takes the rejected place
    assert test[-1]["id"] in page and not any(name in page for name in anna)
    kept = ids(read(out / "pairs.jsonl"))
    assert kept and set(kept) <= {f"of {name}" for name in ids(train)}
    leak, = [r for r in read(out / "removed.jsonl") if r["id"] == f"of {test[1]['id']}"]
    assert "is a file of" in leak["rejected"] and "target_video_path" not in leak


def test_the_demo(tmp_path, monkeypatch, capsys):
    """One short film; the training at its end is only started: a command that train.py takes."""
    commands = []

    def start(command):
        commands.append(command)
        return SimpleNamespace(returncode=0)
    monkeypatch.setattr(demo, "subprocess", SimpleNamespace(run=start))
    monkeypatch.setattr(demo, "TRIPLETS_A_MOVIE", 6)
    out = tmp_path / "demo"
    demo.main(["--out", str(out), "--movies", "1", "--steps", "1"])
    _, training = no_leak(out / "bench")
    (python, script, *flags), = commands
    args = train.parse(flags)
    assert (python, script) == (sys.executable, str(ROOT / "train.py")) and args.steps == 1
    assert len(manifest_items(args.data, PRESETS["tiny"])[0]) == len(training)
    assert {r["type"] for r in read(out / "icvg/triplets.jsonl")}
    for page in ("rave/report.html", "icvg/report.html", "bench/report.html", "bench/verify.html"):
        assert (out / page).is_file()
