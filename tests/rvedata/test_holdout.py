"""The split, by hand."""

from collections import Counter

import numpy as np

from curation import turn
from rvedata.holdout import find_leaks, quota_of_types, take_groups


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
