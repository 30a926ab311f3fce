"""How is a test split held out without leaks? (Sec. 3.2)

Whole movies and whole source videos go to one side. Then what is left for training and is the same
as, looks like or reads like something of the test is removed.

Axis letters: N triplets of the test, D width of an embedding.
"""

from collections import Counter
from typing import Callable

import numpy as np

from rvedata.stages import paths_of, short_hash
from rvedata.text import content_words

NEAR = .8                                                # texts that share so much are the same


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
    """(test, surplus, train): whole groups of triplets until the quota of each type is filled.

    `surplus`: what the groups of the test have beyond the quota; `train`: the other groups. Which
    groups are taken depends on their names, not on the order of the triplets. So if some of the
    test are left out of `triplets`, others take their places, and the rest of the test stays.
    """
    left, groups = Counter(quota), {}
    for triplet in sorted(triplets, key=lambda triplet: triplet["id"]):
        groups.setdefault(group_of(triplet), []).append(triplet)
    test, surplus, train = [], [], []
    for name in sorted(groups, key=lambda name: short_hash("test", name)):
        chosen, others = [], []
        for triplet in groups[name]:
            if left[triplet["type"]] > 0:
                left[triplet["type"]] -= 1
                chosen.append(triplet)
            else:
                others.append(triplet)
        test += chosen
        if chosen:
            surplus += others
        else:
            train += others
    return test, surplus, train


def finder_of_alike(test: list[dict]) -> Callable[[str], str | None]:
    """text -> the id of the first triplet of the test whose instruction says nearly the same.

    Of their content words, of both together, they share at least NEAR. Only those of the test that
    share a word are looked at: there may be a million texts to ask for.
    """
    words_of = [content_words(triplet["instruction"]) for triplet in test]
    places = {}                                          # content word -> places of texts with it
    for place, words in enumerate(words_of):
        for word in words:
            places.setdefault(word, []).append(place)

    def find(text: str) -> str | None:
        words = content_words(text)
        shared = Counter(place for word in words for place in places.get(word, []))
        alike = [place for place, n in shared.items() if n >= NEAR * len(words | words_of[place])]
        return test[min(alike)]["id"] if alike else None
    return find


def find_leaks(test: list[dict], train: list[dict], videos: dict[str, dict],
               same: float) -> dict[str, str]:
    """Which triplets of `train` are too near to the test, and why: {id: reason}.

    A video is the same file, or its embedding has a cosine of at least `same`; or the instructions
    say nearly the same. Those of `train` may lack a target.
    videos: {path: {"sha": hash of its file, "vector": (D,), of length 1}}.
    """
    find_alike, paths, id_of_file = finder_of_alike(test), [], {}
    for triplet in test:
        for path in paths_of(triplet):
            paths.append(path)
            id_of_file[videos[path]["sha"]] = triplet["id"]
    vectors = np.stack([videos[path]["vector"] for path in paths])                     # (2 N, D)

    def why(triplet: dict) -> str:
        for path in paths_of(triplet):
            if videos[path]["sha"] in id_of_file:
                return f"{path} is a file of {id_of_file[videos[path]['sha']]}"
            cosines = vectors @ videos[path]["vector"]                                 # (2 N,)
            if cosines.max() >= same:
                return f"{path} looks like {paths[cosines.argmax()]} ({cosines.max():.3f})"
        other = find_alike(triplet["instruction"])
        return "" if other is None else f"reads like {other}: {triplet['instruction']!r}"

    reasons = {triplet["id"]: why(triplet) for triplet in train}
    return {name: reason for name, reason in reasons.items() if reason}
