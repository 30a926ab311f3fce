"""Which two clips of a cluster make a source and a target? (Sec. 3.1.2)

The best pairs say the same in their captions and look different; the earlier clip is the source.
"""

from pathlib import Path
from typing import Iterator

import numpy as np

from rvedata.clusters import load_vectors
from rvedata.stages import read_accepted, short_hash, write_stage


def cosines(out: Path, clips: list[dict], kind: str) -> np.ndarray:
    """The cosines (N, N) of the clips' embeddings of this kind: "image" or "text"."""
    vectors = np.stack([load_vectors(out, clip["file"])[kind][clip["row"]] for clip in clips])
    return vectors @ vectors.T


def select_pairs(out: Path, similarity: float, diversity: float, per_cluster: int) -> None:
    """Write pairs.jsonl: the best pairs of each cluster. No clip is in two of them.

    score = similarity * cosine of the captions + diversity * (1 - cosine of the pictures)
    """
    def pairs() -> Iterator[dict]:
        for cluster in read_accepted(out / "clusters.jsonl"):
            clips = cluster["members"]
            captions, pictures = cosines(out, clips, "text"), cosines(out, clips, "image")
            score = similarity * captions + diversity * (1 - pictures)
            for i, j in best_disjoint(score, per_cluster):
                yield {"id": f"icvg-{short_hash(clips[i]['id'], clips[j]['id'])}",
                       "source": clips[i], "target": clips[j], "score": float(score[i, j]),
                       "captions": float(captions[i, j]), "pictures": float(pictures[i, j])}
    write_stage(out / "pairs.jsonl", pairs())


def best_disjoint(score: np.ndarray, most: int) -> list[tuple[int, int]]:
    """The `most` best pairs i < j of a matrix of scores (N, N), greedily; no index occurs twice."""
    n = len(score)
    ranked = sorted((-score[i, j], i, j) for i in range(n) for j in range(i + 1, n))
    chosen, used = [], set()
    for _, i, j in ranked:
        if len(chosen) < most and not {i, j} & used:
            chosen.append((i, j))
            used |= {i, j}
    return chosen


def filter_pairs(out: Path, low: float, high: float) -> None:
    """Write filter.jsonl: pairs that share enough context, and differ enough to learn from.

    That is low <= cosine of the pictures <= high: two clips of a cluster may be linked by way of
    others only, and be far apart themselves.
    """
    def filtered() -> Iterator[dict]:
        for pair in read_accepted(out / "pairs.jsonl"):
            cosine = pair["pictures"]
            if low <= cosine <= high:
                yield pair
            else:
                reason = f"cosine of the pictures {cosine:.3f}, not in {low:.3f} to {high:.3f}"
                yield {"id": pair["id"], "rejected": reason}
    write_stage(out / "filter.jsonl", filtered())
