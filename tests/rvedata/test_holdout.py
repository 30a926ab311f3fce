"""The split, by hand."""

from collections import Counter

import numpy as np

from rvedata.holdout import find_leaks, split


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
    why = find_leaks(test, train, videos, np.cos(np.radians(2)), .7)
    assert why.keys() == {"file", "sight", "text"}
    assert "copy is a file of T" in why["file"] and "twin looks like t2" in why["sight"]
    assert "reads like T" in why["text"]


def test_split_is_balanced_and_whole():
    rng = np.random.default_rng(0)
    items = [{"id": f"{k:04d}", "type": str(rng.choice(list("abcd"), p=[.4, .3, .28, .02])),
              "source_video_path": f"s{k}", "movie": f"m{rng.integers(80)}" if k % 2 else None} for k in range(2000)]
    test, reserve, train = split(items, 100, .2)
    counts = Counter(r["type"] for r in test)
    assert [counts[t] for t in "abc"] == [25] * 3 and counts["d"] == int(.2 * sum(r["type"] == "d" for r in items))
    group = lambda r: r["movie"] or r["source_video_path"]
    of = lambda rows: {group(r) for r in rows}
    assert not of(test + reserve) & of(train) and of(reserve) <= of(test)
    assert sorted(r["id"] for r in test + reserve + train) == [r["id"] for r in items]
    assert split(items[::-1], 100, .2) == (test, reserve, train)
