"""How is a test split held out without leaks? (Sec. 3.2)

Whole movies and whole source videos go to one side. Then what is left for training and is the same
as, looks like or reads like something of the test is removed.

Axis letters: N triplets of the test, M of the training set, D width of an embedding, W words.
"""

from collections import Counter
from typing import Iterable

import numpy as np
from scipy.sparse import csr_matrix

from rvedata.manifest import VIDEO_FIELDS
from rvedata.stages import short_hash
from rvedata.text import content_words

BLOCK = 1024                                             # triplets that are compared at a time


def group_of(triplet: dict) -> str:
    """What must not be on both sides: the movie (ICVG), or the source video (RAVE)."""
    return triplet.get("movie") or triplet["source_video_path"]


def test_quota(triplets: list[dict], n: int, share: float) -> dict[str, int]:
    """{type: triplets for the test}: equally many of each, but at most `share` of a type."""
    count = Counter(triplet["type"] for triplet in triplets)
    each, remainder = divmod(n, len(count))
    quota = {}
    for k, name in enumerate(sorted(count)):
        wanted = each + (1 if k < remainder else 0)
        quota[name] = min(wanted, max(1, int(share * count[name])))
    return quota


def split(triplets: list[dict], n: int, share: float) -> tuple[list[dict], list[dict], list[dict]]:
    """(test, reserve, train): `n` triplets for the test, see test_quota.

    `reserve`: what the groups of the test have beyond the quota.
    """
    quota = test_quota(triplets, n, share)
    groups = {}
    for triplet in sorted(triplets, key=lambda triplet: triplet["id"]):
        groups.setdefault(group_of(triplet), []).append(triplet)
    test, reserve, train = [], [], []
    for name in sorted(groups, key=lambda name: short_hash("test", name)):
        chosen, others = [], []
        for triplet in groups[name]:
            if quota[triplet["type"]] > 0:
                quota[triplet["type"]] -= 1
                chosen.append(triplet)
            else:
                others.append(triplet)
        test += chosen
        if chosen:
            reserve += others
        else:
            train += others
    return test, reserve, train


def find_leaks(test: list[dict], train: list[dict], videos: dict[str, dict], same: float,
               near: float) -> dict[str, str]:
    """Which triplets of `train` are too near to the test, and why: {id: reason}.

    A video is the same file, or its embedding has a cosine of at least `same`; or the instructions
    are near duplicates. videos: {path: {"sha": hash of the file, "vector": (D,)}}.
    """
    index = _TestIndex(test, videos)
    leaks = {}
    for start in range(0, len(train), BLOCK):            # never all at once
        block = train[start:start + BLOCK]
        readers = index.like_texts([triplet["instruction"] for triplet in block], near)
        for triplet, reads_like in zip(block, readers):
            reason = index.like_videos(triplet, same)
            if not reason and reads_like is not None:
                reason = f"reads like {test[reads_like]['id']}: {triplet['instruction']!r}"
            if reason:
                leaks[triplet["id"]] = reason
    return leaks


class _TestIndex:
    """The test's files, embeddings and texts, to be compared with."""

    def __init__(self, test: list[dict], videos: dict[str, dict]):
        self.videos = videos
        self.paths = [triplet[field] for triplet in test for field in VIDEO_FIELDS]
        self.owner = {}                                  # hash of a file -> id of its triplet
        for triplet in test:
            for field in VIDEO_FIELDS:
                self.owner[videos[triplet[field]]["sha"]] = triplet["id"]
        self.vectors = np.stack([videos[path]["vector"] for path in self.paths])       # (2 N, D)
        texts = [content_words(triplet["instruction"]) for triplet in test]
        vocabulary = sorted(frozenset().union(*texts))
        self.column = {word: k for k, word in enumerate(vocabulary)}
        self.bags = self._bags(texts)                                                  # (N, W)
        self.lengths = np.array([len(text) for text in texts])                         # (N,)

    def like_videos(self, triplet: dict, same: float) -> str:
        """Which video of a triplet is, or looks like, one of the test; or ""."""
        reason = ""
        for path in [triplet[field] for field in VIDEO_FIELDS]:
            owner = self.owner.get(self.videos[path]["sha"])
            if owner:
                reason = f"{path} is a file of {owner}"
                continue
            cosines = self.vectors @ self.videos[path]["vector"]                       # (2 N,)
            if not reason and cosines.max() >= same:
                best = cosines.argmax()
                reason = f"{path} looks like {self.paths[best]} ({cosines[best]:.3f})"
        return reason

    def like_texts(self, texts: Iterable[str], near: float) -> list[int | None]:
        """For each text the first of the test that says nearly the same, or None."""
        words = [content_words(text) for text in texts]
        shared = (self._bags(words) @ self.bags.T).toarray()                           # (M, N)
        lengths = np.array([len(text) for text in words])
        union = lengths[:, None] + self.lengths - shared
        found = []
        for row in shared >= near * union:
            hits = np.flatnonzero(row)
            found.append(int(hits[0]) if len(hits) else None)
        return found

    def _bags(self, texts: list[frozenset[str]]) -> csr_matrix:
        """Which of the test's words each text has: (len(texts), W), 0 and 1."""
        rows, columns = [], []
        for k, text in enumerate(texts):
            known = [self.column[word] for word in text if word in self.column]
            rows += [k] * len(known)
            columns += known
        return csr_matrix((np.ones(len(rows)), (rows, columns)), (len(texts), len(self.column)))
