"""Which clips of a film show the same scene, and which two make a source and a target? (Sec. 3.1.2)

The same scene: those whose cosine is above a threshold, which is data-driven: it lies in the valley
between the two groups of the cosines of all pairs of clips within windows of consecutive shots.

The best pairs say the same in their captions and look different; the earlier clip is the source. A
pair must share enough context, and differ enough to learn from: its pictures have a cosine in
[low, high]. That is asked before pairs are ranked: clips may be linked by way of others only.

Axis letters: N clips, D width of an embedding, B bins of a histogram.
"""

import json
from bisect import bisect_left
from functools import lru_cache
from pathlib import Path
from typing import Iterator

import numpy as np
from safetensors.numpy import load_file
from scipy.sparse import csr_matrix
from scipy.sparse.csgraph import connected_components
from tqdm import tqdm

from common.files import BadInput, atomic_write
from rvedata.stages import read_accepted, read_grouped, short_hash, write_stage

BIN_EDGES = np.linspace(-1, 1, 401)                      # of the histogram of cosines


@lru_cache(maxsize=4)
def load_vectors(out: Path, name: str) -> dict[str, np.ndarray]:
    """{"image": (N, D), "text": (N, D')} of a movie's clips, as icvg.embed_shots wrote them."""
    return load_file(out / "embeddings" / f"{name}.safetensors")


def read_movies(out: Path) -> Iterator[tuple[list[dict], np.ndarray]]:
    """(clips in temporal order, their image embeddings (N, D)) of each movie."""
    for _, records in read_grouped(out / "embeddings.jsonl", lambda record: record["movie"]):
        newest = max(records, key=lambda record: len(record["members"]))    # a caption came later
        clips = [{**clip, "file": newest["id"], "row": row}
                 for row, clip in enumerate(newest["members"])]
        yield clips, load_vectors(out, newest["id"])["image"]


def windows(clips: list[dict], size: int) -> Iterator[slice]:
    """The rows of each window of `size` consecutive shots of a movie: 0 to size - 1, and so on."""
    index = [clip["index"] for clip in clips]
    for first in range(0, index[-1] + 1, size):
        yield slice(bisect_left(index, first), bisect_left(index, first + size))


# ------------------------------------------------------------------------------------ the threshold

def count_cosines(out: Path, size: int) -> np.ndarray:
    """The histogram (B,) of the cosines of all pairs of clips that share a window."""
    counts = np.zeros(len(BIN_EDGES) - 1, int)
    for clips, image in tqdm(read_movies(out), desc="cosines", unit="movie", disable=None):
        for rows in windows(clips, size):
            cosines = image[rows] @ image[rows].T
            cosines = cosines[np.triu_indices(len(cosines), 1)]
            counts += np.histogram(cosines.clip(-1, 1), BIN_EDGES)[0]
    return counts


def minimum_error_threshold(counts: np.ndarray) -> float:
    """The threshold between two groups of a histogram (Kittler and Illingworth 1986).

    Each side is taken for a Gaussian with share p and variance v of its own. The threshold with
    the least J = sum over the sides of p ln v - 2 p ln p puts the fewest on the wrong side. Unlike
    Otsu's it holds when few pairs are alike and most are not, in a broad group.
    counts: (B,), of BIN_EDGES. Raises ValueError if there is only one group: the best threshold
    leaves 1 % or less on one side.
    """
    centres = (BIN_EDGES[1:] + BIN_EDGES[:-1]) / 2
    p, v = _share_and_variance(counts, centres)
    q, w = _share_and_variance(counts[::-1], centres[::-1])
    q, w = q[::-1], w[::-1]
    allowed = np.flatnonzero(np.minimum(p, q) > .01)
    p, v, q, w = p[allowed], v[allowed], q[allowed], w[allowed]
    cost = p * np.log(v) + q * np.log(w) - 2 * p * np.log(p) - 2 * q * np.log(q)
    best = allowed[cost <= cost.min(initial=np.inf) + 1e-9]                         # a gap has many
    if not len(best) or best[0] == allowed[0] or best[-1] == allowed[-1]:
        raise ValueError(f"the {counts.sum()} cosines within windows do not form two groups")
    return float(BIN_EDGES[1 + best].mean())


def _share_and_variance(counts: np.ndarray, centres: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Share and variance of the bins up to each bin but the last. (B - 1,), (B - 1,)"""
    n = counts.cumsum()
    mean = (counts * centres).cumsum() / np.maximum(n, 1)
    square = (counts * centres ** 2).cumsum() / np.maximum(n, 1)
    share = n / max(1, n[-1])
    least = (centres[1] - centres[0]) ** 2 / 12          # the variance within one bin
    variance = np.maximum(square - mean ** 2, least)
    return share[:-1], variance[:-1]


# ------------------------------------------------------------------------------------- the clusters

def clusters_of(clips: list[dict], image: np.ndarray, size: int,
                threshold: float) -> list[list[int]]:
    """The clusters of a movie, as rows of `image` (N, D): at least two clips of a window each.

    They are the connected components of cosines above the threshold.
    """
    found = []
    for rows in windows(clips, size):
        linked = csr_matrix(image[rows] @ image[rows].T > threshold)
        _, labels = connected_components(linked, directed=False)
        members = [np.flatnonzero(labels == label) + rows.start for label in np.unique(labels)]
        found += [some.tolist() for some in members if len(some) > 1]
    return found


def find_clusters(out: Path, size: int, threshold: float | None = None) -> float:
    """Write clusters.jsonl, a line for each cluster of at least two clips, and clusters.json.

    The latter has the histogram and the threshold, which is returned. The embeddings are read
    twice: for the histogram, and to link. Raises BadInput if no threshold can be chosen.
    """
    counts = count_cosines(out, size)
    if not counts.any():
        raise BadInput(f"{out}: no movie has two clips in a window of {size} shots, so there is "
                       f"nothing to pair; what was rejected, and why, is in {out}/report.html")
    chosen_by = "minimum error" if threshold is None else "hand"
    if threshold is None:
        try:
            threshold = minimum_error_threshold(counts)
        except ValueError as error:
            raise BadInput(f"{out}: no threshold can be chosen: {error}; give more movies, "
                           f"or --threshold") from error
    clusters, alone = [], 0
    for clips, image in tqdm(read_movies(out), desc="clusters", unit="movie", disable=None):
        found = clusters_of(clips, image, size, threshold)
        alone += len(clips) - sum(map(len, found))
        for rows in found:
            members = [clips[row] for row in rows]
            clusters.append({"id": members[0]["id"], "movie": members[0]["movie"],
                             "members": members})
    write_stage(out / "clusters.jsonl", clusters)
    record = {"threshold": threshold, "chosen by": chosen_by, "clusters": len(clusters),
              "alone": alone, "counts": counts.tolist()}
    atomic_write(out / "clusters.json", json.dumps(record) + "\n")
    return threshold


# ---------------------------------------------------------------------------------------- the pairs

def cosines(out: Path, clips: list[dict], kind: str) -> np.ndarray:
    """The cosines (N, N) of the clips' embeddings of this kind: "image" or "text"."""
    vectors = np.stack([load_vectors(out, clip["file"])[kind][clip["row"]] for clip in clips])
    return vectors @ vectors.T


def select_pairs(out: Path, similarity: float, diversity: float, per_cluster: int, low: float,
                 high: float) -> None:
    """Write pairs.jsonl: the best pairs of each cluster. No clip is in two of them.

    score = similarity * cosine of the captions + diversity * (1 - cosine of the pictures)
    """
    def pairs() -> Iterator[dict]:
        for cluster in read_accepted(out / "clusters.jsonl"):
            clips = cluster["members"]
            captions, pictures = cosines(out, clips, "text"), cosines(out, clips, "image")
            score = similarity * captions + diversity * (1 - pictures)
            allowed = (low <= pictures) & (pictures <= high)
            chosen = best_disjoint(score, allowed, per_cluster)
            if not chosen:
                yield {"id": cluster["id"], "rejected": f"no pair of its {len(clips)} clips has a "
                       f"cosine of the pictures in {low:.3f} to {high:.3f}"}
            for i, j in chosen:
                yield {"id": f"icvg-{short_hash(clips[i]['id'], clips[j]['id'])}",
                       "source": clips[i], "target": clips[j], "score": float(score[i, j]),
                       "captions": float(captions[i, j]), "pictures": float(pictures[i, j])}

    write_stage(out / "pairs.jsonl", pairs())


def best_disjoint(score: np.ndarray, allowed: np.ndarray, most: int) -> list[tuple[int, int]]:
    """The `most` best allowed pairs i < j, greedily; no index occurs twice.

    score: (N, N) floats, allowed: (N, N) booleans.
    """
    rows, columns = np.nonzero(np.triu(allowed, 1))
    ranked = sorted((-score[i, j], i, j) for i, j in zip(rows.tolist(), columns.tolist()))
    chosen, used = [], set()
    for _, i, j in ranked:
        if len(chosen) < most and not {i, j} & used:
            chosen.append((i, j))
            used |= {i, j}
    return chosen
