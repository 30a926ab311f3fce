"""Which two clips of a cluster make a source and a target? (Sec. 3.1.2)

The best pairs say the same in their captions and look different; the earlier clip is the source. A
pair must share enough context, and differ enough to learn from: its pictures have a cosine in
[low, high]. That is asked before pairs are ranked: clips may be linked by way of others only.
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
