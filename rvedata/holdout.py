"""How is a test split held out without leaks? (Sec. 3.2)

Whole movies and whole source videos go to one side. Then what is left for training and is the same
as, looks like or reads like something of the test is removed, and within the test what looks like
another movie's. Mirrored copies look alike, too.

A video is {"sha": hash of its file, "vector": (D,), "mirrored": (D,)}, the last two the embeddings
of its frames and of their mirror images.

Axis letters: N triplets of the test, D width of an embedding.
"""

from collections import Counter
from dataclasses import dataclass

import numpy as np

from rvedata.manifest import paths_of
from rvedata.stages import short_hash
from rvedata.text import Texts


def group_of(triplet: dict) -> str:
    """What must not be on both sides: the movie (ICVG), or the source video (RAVE)."""
    return triplet.get("movie") or triplet["source_video_path"]


def quota_of_types(triplets: list[dict], n: int, share: float) -> dict[str, int]:
    """{type: triplets for the test}: equally many of each, but at most `share` of a type."""
    count = Counter(triplet["type"] for triplet in triplets)
    each, remainder = divmod(n, len(count))
    quota = {}
    for k, name in enumerate(sorted(count)):
        wanted = each + (1 if k < remainder else 0)
        quota[name] = min(wanted, max(1, int(share * count[name])))
    return quota


def take_groups(triplets: list[dict], quota: dict[str, int]
                ) -> tuple[list[dict], list[dict], list[dict]]:
    """(chosen, others, rest): whole groups of triplets until the quota of each type is filled.

    `others`: what the groups that were taken have beyond the quota; `rest`: the groups that were
    not. Which groups are taken depends on their names, not on the order of the triplets.
    """
    left, groups = Counter(quota), {}
    for triplet in sorted(triplets, key=lambda triplet: triplet["id"]):
        groups.setdefault(group_of(triplet), []).append(triplet)
    taken, others, rest = [], [], []
    for name in sorted(groups, key=lambda name: short_hash("test", name)):
        chosen, unchosen = fill_places(groups[name], left)
        taken += chosen
        if chosen:
            others += unchosen
        else:
            rest += unchosen
    return taken, others, rest


@dataclass
class Split:
    """candidates and reserve are of the groups of the test, train has the other groups.

    duplicates: {id: reason} of what is neither candidate nor reserve.
    """
    candidates: list[dict]
    reserve: list[dict]
    train: list[dict]
    duplicates: dict[str, str]


def make_split(triplets: list[dict], quota: dict[str, int], videos: dict[str, dict], same: float,
               rejected: set[str] = frozenset()) -> Split:
    """Hold out `quota` triplets of each type, and as many more as people rejected of them.

    The rejected ones stay among the candidates. Their places, and those of duplicates, are filled
    from the reserve, and then by more groups. More rejections only add candidates.
    """
    wanted = Counter(quota)
    wanted.update(triplet["type"] for triplet in triplets if triplet["id"] in rejected)
    side, train, missing = [], triplets, quota
    while True:
        taken, others, train = take_groups(train, missing)
        side += taken + others
        duplicates = find_duplicates(side, videos, same)
        usable = [triplet for triplet in side if triplet["id"] not in duplicates]
        candidates, reserve = fill_places(usable, Counter(wanted))
        missing = wanted - Counter(triplet["type"] for triplet in candidates)
        if not taken or not missing:
            return Split(candidates, reserve, train, duplicates)


def fill_places(triplets: list[dict], left: Counter) -> tuple[list[dict], list[dict]]:
    """(chosen, others): of each type the first triplets, as many as `left` has places for it.

    The places that they take are taken from `left`.
    """
    chosen, others = [], []
    for triplet in triplets:
        if left[triplet["type"]] > 0:
            left[triplet["type"]] -= 1
            chosen.append(triplet)
        else:
            others.append(triplet)
    return chosen, others


def find_duplicates(test: list[dict], videos: dict[str, dict], same: float) -> dict[str, str]:
    """Which triplets of the test have a video of an earlier one of another group: {id: reason}."""
    known = KnownVideos(test, videos)
    kept = np.zeros(len(known.paths), bool)
    duplicates = {}
    for triplet in test:
        others = kept & (known.groups != group_of(triplet))
        reason = known.why_alike(triplet, same, others)
        if reason:
            duplicates[triplet["id"]] = reason
        else:
            kept |= known.ids == triplet["id"]
    return duplicates


def find_leaks(test: list[dict], train: list[dict], videos: dict[str, dict], same: float,
               near: float) -> dict[str, str]:
    """Which triplets of `train` are too near to the test, and why: {id: reason}.

    A video is the same file, or its embedding has a cosine of at least `same`; or the instructions
    say nearly the same (see text.Texts). Those of `train` may lack a target. videos: {path: video}.
    """
    known, texts = KnownVideos(test, videos), Texts(near)
    for triplet in test:
        texts.add(triplet["id"], triplet["instruction"])
    leaks = {}
    for triplet in train:
        reason = known.why_alike(triplet, same)
        reads_like = texts.first_like(triplet["instruction"])
        if not reason and reads_like is not None:
            reason = f"reads like {reads_like}: {triplet['instruction']!r}"
        if reason:
            leaks[triplet["id"]] = reason
    return leaks


class KnownVideos:
    """Files and embeddings of triplets, to be compared with.

    Each video has two rows: as it is, and mirrored. ids, groups: of their triplets.
    """

    def __init__(self, triplets: list[dict], videos: dict[str, dict]):
        self.videos = videos
        self.paths, ids, groups, vectors = [], [], [], []
        self.rows_of_file = {}                           # hash of a file -> rows
        for triplet in triplets:
            for path in paths_of(triplet):
                video = videos[path]
                self.rows_of_file.setdefault(video["sha"], []).append(len(self.paths))
                self.paths += [path, f"{path} mirrored"]
                ids += [triplet["id"]] * 2
                groups += [group_of(triplet)] * 2
                vectors += [video["vector"], video["mirrored"]]
        self.ids, self.groups = np.array(ids), np.array(groups)
        self.vectors = np.stack(vectors)                                               # (4 N, D)

    def why_alike(self, triplet: dict, same: float, rows: np.ndarray | None = None) -> str:
        """Which video of a triplet is a known file, or looks like a known video; or "".

        rows: which of the rows to compare with, (4 N,) booleans; all if None.
        """
        paths = paths_of(triplet)
        for path in paths:
            for row in self.rows_of_file.get(self.videos[path]["sha"], []):
                if rows is None or rows[row]:
                    return f"{path} is a file of {self.ids[row]}"
        for path in paths:
            cosines = self.vectors @ self.videos[path]["vector"]                       # (4 N,)
            if rows is not None:
                cosines[~rows] = -1
            best = cosines.argmax()
            if cosines[best] >= same:
                return f"{path} looks like {self.paths[best]} ({cosines[best]:.3f})"
        return ""
