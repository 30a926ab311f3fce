"""Threshold and clusters, against counts and labels made in another way."""

import json
from itertools import combinations

import numpy as np
import pytest
from safetensors.numpy import save
from scipy.stats import norm

from curation import read
from rvedata.clusters import (BIN_EDGES, clusters_of, find_clusters, link_clips,
                              minimum_error_threshold)
from rvedata.embed import unit
from rvedata.icvg import CHUNK
from rvedata.pairs import select_pairs


def test_threshold_of_two_groups():
    rng, edges = np.random.default_rng(0), BIN_EDGES
    for share, low, high in ((.5, (.3, .1), (.8, .05)), (.05, (.3, .15), (.9, .03)), (.02, (0., .1), (.7, .05))):
        n = 200_000
        x = np.concatenate([rng.normal(*low, int(n * (1 - share))), rng.normal(*high, int(n * share))])
        found = minimum_error_threshold(np.histogram(x, edges)[0])
        grid = np.linspace(low[0], high[0], 10_001)      # where the two densities cross
        best = grid[np.argmin(np.abs((1 - share) * norm.pdf(grid, *low) - share * norm.pdf(grid, *high)))]
        wrong_at = lambda t: (1 - share) * norm.sf(t, *low) + share * norm.cdf(t, *high)
        assert wrong_at(found) < 1.6 * wrong_at(best) + 1e-4, (share, found, best)
    counts = np.zeros(400, int)
    counts[[100, 101, 102, 300, 301]] = 5, 9, 5, 4, 4
    assert minimum_error_threshold(counts) == pytest.approx((edges[103] + edges[300]) / 2)                  # the middle of the gap
    with pytest.raises(ValueError, match="do not form two groups"):
        minimum_error_threshold(np.histogram(rng.normal(.4, .1, 10_000), edges)[0])
    with pytest.raises(ValueError, match="the 0 cosines"):
        minimum_error_threshold(np.zeros(400, int))


def test_links_by_hand():
    angles = np.radians([0, 10, 20, 90, 100, 180])       # linked: 10 degrees at most; and who is linked to them
    labels = link_clips(np.stack([np.cos(angles), np.sin(angles)], 1), np.cos(np.radians(10.1)))
    assert labels.tolist() == [0, 0, 0, 1, 1, 2]


def fake(out, movies, dim=8, seed=0, spread=.05):
    """Embeddings of shots without films: {movie: [place of each shot, ...]}; returns {(movie, index): image}."""
    rng, truth = np.random.default_rng(seed), {}
    (out / "embeddings").mkdir(parents=True)
    with open(out / "embeddings.jsonl", "w") as file:
        for movie, places in movies.items():
            centres = unit(rng.normal(size=(max(places) + 1, dim)))
            for chunk in range(0, len(places), CHUNK):
                these = range(chunk, min(chunk + CHUNK, len(places)))
                image = unit(centres[[places[k] for k in these]] + spread * rng.normal(size=(len(these), dim)))
                text = unit(rng.normal(size=(len(these), 4)))
                tensors = {"image": image.astype(np.float32), "text": text.astype(np.float32)}
                (out / "embeddings" / f"{movie}-{chunk}.safetensors").write_bytes(save(tensors))
                members = [{"id": f"{movie}#{k:05d}", "movie": movie, "index": k, "clip": [9 * k, 9 * k + 9]}
                           for k in these]
                file.write(json.dumps({"id": f"{movie}-{chunk}", "movie": movie, "chunk": chunk // CHUNK,
                                       "members": members}) + "\n")
                truth |= {(movie, k): x for k, x in zip(these, tensors["image"])}
    return truth


def windows_of(i, j, size=16, step=8):
    """The windows [k step, k step + size) that hold both shots."""
    return [k for k in range(j // step + 1) if k * step <= i and j < k * step + size]


def test_a_movie_of_5000_cuts(tmp_path):
    places = [k // 16 * 3 + k % 3 for k in range(5001)]  # three places in turn, for sixteen shots
    image = fake(tmp_path, {"m": places}, dim=64)
    threshold = find_clusters(tmp_path, {"m"}, 16)
    kept = json.loads((tmp_path / "clusters.json").read_text())
    assert threshold == kept["threshold"] and kept["alone"] == 0
    found = [[r["index"] for r in cluster["members"]]
             for cluster in read(tmp_path / "clusters.jsonl")]
    for index in found:                                  # alike, and within one window
        assert len({places[k] for k in index}) == 1 and windows_of(min(index), max(index))
    together = {pair for index in found for pair in combinations(index, 2)}
    counts = np.zeros(400, int)                          # pair by pair
    for i in range(5001):
        for j in range(i + 1, min(i + 16, 5001)):
            if windows_of(i, j):
                assert ((i, j) in together) == (places[i] == places[j]), (i, j)
                counts[min(399, int((float(image["m", i] @ image["m", j]) + 1) * 200))] += 1
    kept = np.array(kept["counts"])
    assert kept.sum() == counts.sum()
    assert np.abs(kept - counts).sum() <= 80             # rounding at the bins' edges


def test_overlapping_windows_by_hand():
    """Of 24 shots, those of a scene across the border of two windows of 16 are one cluster."""
    clips = [{"index": k} for k in range(24)]
    image = np.eye(24, dtype=np.float32)
    image[[14, 15, 17]] = image[14]                      # only in window 8..23 are all three
    image[[2, 9]] = image[2]                             # only in window 0..15
    image[[10, 12]] = image[10]                          # in both: once
    assert clusters_of(clips, image, 16, .5) == [[2, 9], [10, 12], [14, 15, 17]]


def test_the_order_of_the_lines_does_not_matter(tmp_path):
    for name in ("a", "b"):
        fake(tmp_path / name, {"m": [k % 5 for k in range(150)], "n": [k % 4 for k in range(70)]})
    lines = (tmp_path / "b/embeddings.jsonl").read_text().splitlines(True)
    (tmp_path / "b/embeddings.jsonl").write_text("".join([lines[2], lines[4], lines[1], lines[0], lines[3], lines[1]]))
    for name in ("a", "b"):
        find_clusters(tmp_path / name, {"m", "n"}, 16)
        select_pairs(tmp_path / name, 1, 1, 2, -1, 1)
    assert (tmp_path / "a/pairs.jsonl").read_text() == (tmp_path / "b/pairs.jsonl").read_text() != ""
