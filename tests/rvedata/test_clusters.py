"""Threshold, clusters and pairs, against counts, labels and cosines made in another way."""

import json
from itertools import combinations

import numpy as np
import pytest
from safetensors.numpy import save
from scipy.stats import norm

from curation import read, turn, write
from rvedata.clusters import BIN_EDGES, clusters_of, find_clusters, minimum_error_threshold
from rvedata.embed import unit
from rvedata.icvg import CHUNK
from rvedata.pairs import select_pairs


@pytest.mark.parametrize("share, low, high", [
    (.5, (.3, .1), (.8, .05)), (.05, (.3, .15), (.9, .03)), (.02, (0., .1), (.7, .05))])
def test_threshold_of_two_groups(share, low, high):
    rng, n = np.random.default_rng(0), 200_000
    x = np.concatenate([rng.normal(*low, int(n * (1 - share))), rng.normal(*high, int(n * share))])
    found = minimum_error_threshold(np.histogram(x, BIN_EDGES)[0])
    grid = np.linspace(low[0], high[0], 10_001)          # where the two densities cross
    gap = np.abs((1 - share) * norm.pdf(grid, *low) - share * norm.pdf(grid, *high))
    wrong_at = lambda t: (1 - share) * norm.sf(t, *low) + share * norm.cdf(t, *high)
    assert wrong_at(found) < 1.6 * wrong_at(grid[np.argmin(gap)]) + 1e-4


def test_threshold_of_a_gap_and_of_one_group():
    counts = np.zeros(400, int)
    counts[[100, 101, 102, 300, 301]] = 5, 9, 5, 4, 4
    middle = (BIN_EDGES[103] + BIN_EDGES[300]) / 2
    assert minimum_error_threshold(counts) == pytest.approx(middle)
    one = np.random.default_rng(0).normal(.4, .1, 10_000)
    with pytest.raises(ValueError, match="do not form two groups"):
        minimum_error_threshold(np.histogram(one, BIN_EDGES)[0])
    with pytest.raises(ValueError, match="the 0 cosines"):
        minimum_error_threshold(np.zeros(400, int))


def fake(out, places, dim=64):
    """Embeddings of the shots of a movie "m", each at a place, without a film: (N, dim)."""
    rng = np.random.default_rng(0)
    centres = unit(rng.normal(size=(max(places) + 1, dim)))
    image = unit(centres[places] + .05 * rng.normal(size=(len(places), dim))).astype(np.float32)
    (out / "embeddings").mkdir(parents=True)
    lines = []
    for first in range(0, len(places), CHUNK):
        part, name = image[first:first + CHUNK], f"m-{first}"
        (out / f"embeddings/{name}.safetensors").write_bytes(save({"image": part, "text": part}))
        members = [{"id": f"m#{k:05d}", "movie": "m", "index": k, "clip": [9 * k, 9 * k + 9]}
                   for k in range(first, first + len(part))]
        lines.append({"id": name, "movie": "m", "chunk": first // CHUNK, "members": members})
    write(out / "embeddings.jsonl", lines)
    return image


def windows_of(i, j, size=16, step=8):
    """The windows [k step, k step + size) that hold both shots."""
    return [k for k in range(j // step + 1) if k * step <= i and j < k * step + size]


def test_a_movie_of_many_cuts(tmp_path):
    n = 1001
    places = [k // 16 * 3 + k % 3 for k in range(n)]     # three places in turn, for sixteen shots
    image = fake(tmp_path, places)
    threshold = find_clusters(tmp_path, {"m"}, 16)
    kept = json.loads((tmp_path / "clusters.json").read_text())
    assert threshold == kept["threshold"] and kept["alone"] == 0
    found = [[r["index"] for r in cluster["members"]]
             for cluster in read(tmp_path / "clusters.jsonl")]
    for index in found:                                  # alike, and within one window
        assert len({places[k] for k in index}) == 1 and windows_of(min(index), max(index))
    together = {pair for index in found for pair in combinations(index, 2)}
    counts = np.zeros(400, int)                          # pair by pair
    for i in range(n):
        for j in range(i + 1, min(i + 16, n)):
            if windows_of(i, j):
                assert ((i, j) in together) == (places[i] == places[j]), (i, j)
                counts[min(399, int((float(image[i] @ image[j]) + 1) * 200))] += 1
    kept = np.array(kept["counts"])
    assert kept.sum() == counts.sum()
    assert np.abs(kept - counts).sum() <= 20             # rounding at the bins' edges


def test_overlapping_windows_by_hand():
    """Of 24 shots, those of a scene across the border of two windows of 16 are one cluster."""
    clips = [{"index": k} for k in range(24)]
    image = np.eye(24, dtype=np.float32)
    image[[14, 15, 17]] = image[14]                      # only in window 8..23 are all three
    image[[2, 9]] = image[2]                             # only in window 0..15
    image[[10, 12]] = image[10]                          # in both: once
    assert clusters_of(clips, image, 16, .5) == [[2, 9], [10, 12], [14, 15, 17]]


def test_links_by_hand():
    """Linked are those within 10 degrees, and whoever is linked to them."""
    clips = [{"index": k} for k in range(6)]
    image = turn(0, 10, 20, 90, 100, 180)
    assert clusters_of(clips, image, 16, np.cos(np.radians(10.1))) == [[0, 1, 2], [3, 4]]


# -------------------------------------------------------------------------------------------- pairs

def write_clusters(out, image, text, *clusters):
    """clusters.jsonl of clips k with these embeddings, each cluster a range of them."""
    (out / "embeddings").mkdir()
    (out / "embeddings/f.safetensors").write_bytes(save({"image": image, "text": text}))
    lines = [{"id": str(number), "movie": "m", "members": [
        {"id": f"m#{k}", "movie": "m", "index": k, "file": "f", "row": k} for k in clips]}
        for number, clips in enumerate(clusters)]
    write(out / "clusters.jsonl", lines)


def test_pairs_by_hand(tmp_path):
    write_clusters(tmp_path, turn(0, 60, 60, 0), turn(0, 0, 90, 45), range(4))

    def best(similarity, diversity, per_cluster, low=-1, high=1):
        select_pairs(tmp_path, similarity, diversity, per_cluster, low, high)
        return [(r["source"]["index"], r["target"]["index"], round(r["score"], 3))
                for r in read(tmp_path / "pairs.jsonl") if "rejected" not in r]
    # captions: 01 1, 02 0, 03 .707, 12 0, 13 .707, 23 .707
    # 1 - pictures: 01 .5, 02 .5, 03 0, 12 0, 13 .5, 23 .5
    assert best(1, 1, 3) == [(0, 1, 1.5), (2, 3, 1.207)]
    assert best(1, 1, 1) == [(0, 1, 1.5)]
    assert best(0, 1, 3) == [(0, 1, .5), (2, 3, .5)]
    assert best(.1, 2, 3) == [(0, 1, 1.1), (2, 3, 1.071)]
    assert best(1, 1, 3, .4, .9) == [(0, 1, 1.5), (2, 3, 1.207)]
    assert best(1, 1, 1, .6, 1) == [(0, 3, .707)]        # the best pairs fail: the next one counts
    assert best(1, 1, 3, .6, .9) == []
    line, = read(tmp_path / "pairs.jsonl")
    assert line["rejected"] == ("no pair of its 4 clips has a cosine of the pictures in "
                                "0.600 to 0.900")


def test_no_clip_is_in_two_pairs_of_overlapping_clusters(tmp_path):
    vectors = np.random.default_rng(0).normal(size=(6, 4)).astype(np.float32)
    write_clusters(tmp_path, vectors, vectors, range(4), range(2, 6))
    select_pairs(tmp_path, 1, 1, 3, -99, 99)
    pairs = read(tmp_path / "pairs.jsonl")
    used = [r[side]["index"] for r in pairs for side in ("source", "target")]
    assert len(pairs) == 3 and sorted(used) == list(range(6))
