"""Which clips of a film show the same scene? Those whose cosine is high (Sec. 3.1.2).

The threshold is data-driven: it lies in the valley between the two groups of the cosines of all
pairs of clips within windows of consecutive shots.

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
from rvedata.stages import read_grouped, write_stage

BIN_EDGES = np.linspace(-1, 1, 401)                      # of the histogram of cosines
BIN_WIDTH = BIN_EDGES[1] - BIN_EDGES[0]


@lru_cache(maxsize=4)
def load_vectors(out: Path, name: str) -> dict[str, np.ndarray]:
    """{"image": (N, D), "text": (N, D')} of a chunk of shots, as icvg.embed_shots wrote it."""
    return load_file(out / "embeddings" / f"{name}.safetensors")


def read_movies(out: Path) -> Iterator[tuple[list[dict], np.ndarray]]:
    """(clips in temporal order, their image embeddings (N, D)) of each movie."""
    for _, chunks in read_grouped(out / "embeddings.jsonl", lambda record: record["movie"]):
        newest = {}
        for chunk in sorted(chunks, key=lambda chunk: len(chunk["members"])):
            newest[chunk["chunk"]] = chunk               # the longer line: a caption came later
        clips, vectors = [], []
        for _, chunk in sorted(newest.items()):
            vectors.append(load_vectors(out, chunk["id"])["image"])
            for row, clip in enumerate(chunk["members"]):
                clips.append({**clip, "file": chunk["id"], "row": row})
        yield clips, np.concatenate(vectors)


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
            bins = ((cosines + 1) / BIN_WIDTH).clip(0, len(counts) - 1).astype(int)
            counts += np.bincount(bins, minlength=len(counts))
    return counts


def minimum_error_threshold(counts: np.ndarray, edges: np.ndarray = BIN_EDGES) -> float:
    """The threshold between two groups of a histogram (Kittler and Illingworth 1986).

    Each side is taken for a Gaussian with share p and variance v of its own. The threshold with
    the least J = sum over the sides of p ln v - 2 p ln p puts the fewest on the wrong side. Unlike
    Otsu's it holds when few pairs are alike and most are not, in a broad group.
    counts: (B,), edges: (B + 1,). Raises ValueError if there is only one group: the best threshold
    leaves 1 % or less on one side.
    """
    centres = (edges[1:] + edges[:-1]) / 2
    p, v = _share_and_variance(counts, centres)
    q, w = _share_and_variance(counts[::-1], centres[::-1])
    q, w = q[::-1], w[::-1]
    allowed = np.flatnonzero(np.minimum(p, q) > .01)
    p, v, q, w = p[allowed], v[allowed], q[allowed], w[allowed]
    cost = p * np.log(v) + q * np.log(w) - 2 * p * np.log(p) - 2 * q * np.log(q)
    best = allowed[cost <= cost.min(initial=np.inf) + 1e-9]                         # a gap has many
    if not len(best) or best[0] == allowed[0] or best[-1] == allowed[-1]:
        raise ValueError(f"the {counts.sum()} cosines within windows do not form two groups")
    return float(edges[1 + best].mean())


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
