"""The split, by hand."""

from collections import Counter

import numpy as np

from curation import turn
from rvedata.holdout import find_leaks, make_split, quota_of_types, take_groups


def test_leaks_of_every_kind():
    def item(name, source, target, text):
        return {"id": name, "source_video_path": source, "target_video_path": target,
                "instruction": text}
    videos = {name: {"sha": sha, "vector": turn(at)[0], "mirrored": turn(-at)[0]}
              for name, sha, at in
              (("t1", "A", 0), ("t2", "B", 40), ("copy", "A", 180), ("twin", "C", 41),
               ("far", "D", 90), ("other", "E", 120), ("flipped", "F", -41))}
    test = [item("T", "t1", "t2", "an hour after the train has left")]
    train = [item("file", "far", "copy", "one"), item("sight", "twin", "far", "two"),
             item("text", "far", "other", "The train left an hour ago, after..."),
             item("mirror", "far", "flipped", "three"), item("fine", "far", "other", "an hour")]
    why = find_leaks(test, train, videos, np.cos(np.radians(2)), .7)
    assert why.keys() == {"file", "sight", "text", "mirror"}
    assert "copy is a file of T" in why["file"] and "twin looks like t2" in why["sight"]
    assert "flipped looks like t2 mirrored" in why["mirror"]
    assert "reads like T" in why["text"]


def test_split_is_balanced_and_whole():
    rng = np.random.default_rng(0)
    items = [{"id": f"{k:04d}", "type": str(rng.choice(list("abcd"), p=[.4, .3, .28, .02])),
              "source_video_path": f"s{k}", "movie": f"m{rng.integers(80)}" if k % 2 else None}
             for k in range(2000)]
    test, reserve, train = take_groups(items, quota_of_types(items, 100, .2))
    counts = Counter(r["type"] for r in test)
    assert [counts[t] for t in "abc"] == [25] * 3
    assert counts["d"] == int(.2 * sum(r["type"] == "d" for r in items))
    of = lambda rows: {r["movie"] or r["source_video_path"] for r in rows}
    assert not of(test + reserve) & of(train) and of(reserve) <= of(test)
    assert sorted(r["id"] for r in test + reserve + train) == [r["id"] for r in items]
    assert take_groups(items[::-1], quota_of_types(items, 100, .2)) == (test, reserve, train)


def synthetic(n, groups, rng):
    """Triplets of one type with random videos: (triplets, videos)."""
    videos, triplets = {}, []
    for k in range(n):
        group = f"movie{k % groups}"
        paths = [f"{k}s.mp4", f"{k}t.mp4"]
        for path in paths:
            a, b = rng.normal(size=(2, 16))
            videos[path] = {"sha": path, "vector": a / np.linalg.norm(a),
                            "mirrored": b / np.linalg.norm(b)}
        triplets.append({"id": f"{k:03d}", "type": "a", "movie": group, "instruction": str(k),
                         "source_video_path": paths[0], "target_video_path": paths[1]})
    return triplets, videos


def test_copies_within_the_test_go_and_others_take_their_places():
    rng = np.random.default_rng(0)
    triplets, videos = synthetic(60, 30, rng)
    first = make_split(triplets, {"a": 10}, videos, .98)
    assert len(first.candidates) == 10 and not first.duplicates
    a, b, c = first.candidates[0], first.candidates[4], first.candidates[8]
    assert len({r["movie"] for r in (a, b, c)}) == 3
    noise = rng.normal(size=16) * .01            # b has a's source encoded again, c mirrored
    videos[b["source_video_path"]]["vector"] = videos[a["source_video_path"]]["vector"] + noise
    videos[c["target_video_path"]]["vector"] = videos[a["target_video_path"]]["mirrored"]
    again = make_split(triplets, {"a": 10}, videos, .98)
    assert again.duplicates.keys() == {b["id"], c["id"]}
    assert "mirrored" in again.duplicates[c["id"]]
    assert len(again.candidates) == 10 and [r for r in first.candidates if r not in (b, c)] == [
        r for r in again.candidates if r in first.candidates]
    same_movie = make_split([{**r, "movie": "one"} for r in triplets], {"a": 60}, videos, .98)
    assert not same_movie.duplicates and len(same_movie.candidates) == 60


def test_rejected_places_are_filled_and_nothing_else_moves():
    triplets, videos = synthetic(60, 30, np.random.default_rng(1))
    first = make_split(triplets, {"a": 10}, videos, .98)
    rejected = {r["id"] for r in first.candidates[:7]}
    second = make_split(triplets, {"a": 10}, videos, .98, rejected)
    assert len(second.candidates) == 17
    assert [r for r in second.candidates if r in first.candidates] == first.candidates
    movies = {r["movie"] for r in second.candidates + second.reserve}
    assert not movies & {r["movie"] for r in second.train}
    all_rejected = make_split(triplets, {"a": 10}, videos, .98, {r["id"] for r in triplets})
    assert len(all_rejected.candidates) == 60            # until there is nothing left
