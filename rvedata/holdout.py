"""How is RVE-Bench held out, with no leak, and verified by people? (Sec. 3.2; `python curate.py bench`)

Whole movies and whole source videos go to one side; what is in the training set then and is the same as, looks like or
reads like something of the test goes; and a person accepts or rejects each test triplet in verify.html.

Axis letters: N triplets of the test, D width of an embedding.
"""

import base64
import hashlib
import json
import os
from collections import Counter
from pathlib import Path
from typing import Callable

import numpy as np
from scipy.sparse import csr_matrix

from rvedata import pages as curate_pages
from data import FIELDS
from common.files import BadInput, atomic_write
from rvedata.film import clip_vectors, read_frames, words
from rvedata.lines import good, sha, stage, write_lines

VIDEOS = FIELDS[:2]                                      # the fields that are paths


def moved(record: dict, old: Path, new: Path, own: tuple[str, ...] = ()) -> dict:
    """A record whose paths, relative to `old`, are made relative to `new`; but not in folders that move too, `own`."""
    return {key: os.path.relpath(old / value, new) if key in VIDEOS and not value.startswith(own or "\0") else value
            for key, value in record.items()}


def split(items: list[dict], n: int, share: float) -> tuple[list[dict], list[dict], list[dict]]:
    """(test, reserve, train): `n` triplets, equally many of each type, and at most `share` of a type, for the test.

    A whole movie (ICVG) or source video (RAVE) goes to one side; `reserve` is what the test's have too much.
    """
    of_type, groups = Counter(r["type"] for r in items), {}
    quota = {t: min(n // len(of_type) + (k < n % len(of_type)), max(1, int(share * of_type[t])))
             for k, t in enumerate(sorted(of_type))}
    for r in sorted(items, key=lambda r: r["id"]):
        groups.setdefault(r.get("movie") or r[VIDEOS[0]], []).append(r)
    test, reserve, train = [], [], []
    for group in sorted(groups, key=lambda g: sha("test", g)):
        chosen = []
        for r in groups[group]:
            if quota[r["type"]] > 0:
                quota[r["type"]] -= 1
                chosen.append(r)
        test += chosen
        (reserve if chosen else train).extend(r for r in groups[group] if r not in chosen)
    return test, reserve, train


def leaks(test: list[dict], train: list[dict], videos: dict[str, dict], same: float, near: float) -> dict[str, str]:
    """Which of `train` are too near to the test, and why: {id: reason}. In blocks, never all at once.

    A video is the same file, or its embedding's cosine is at least `same`; or the instructions are `alike`. videos:
    {path: {"sha": of the file, "vector": (D,)}}.
    """
    shown = [(r["id"], r[field]) for r in test for field in VIDEOS]
    files = {videos[path]["sha"]: name for name, path in shown}
    sights = np.stack([videos[path]["vector"] for _, path in shown])                       # (2 N, D)
    said = [words(r["instruction"]) for r in test]
    column = {word: k for k, word in enumerate(sorted(frozenset().union(*said)))}
    lengths, found = np.array([len(s) for s in said]), {}

    def bag(texts):                                      # (len(texts), vocabulary), 0 and 1
        cells = [(i, column[word]) for i, text in enumerate(texts) for word in text if word in column]
        rows, columns = zip(*cells) if cells else ((), ())
        return csr_matrix((np.ones(len(cells)), (rows, columns)), (len(texts), len(column)))

    for start in range(0, len(train), 1024):
        block = train[start:start + 1024]
        texts = [words(r["instruction"]) for r in block]
        shared = (bag(texts) @ bag(said).T).toarray()                                      # (block, N)
        union = np.array([len(t) for t in texts])[:, None] + lengths - shared
        for k, r in enumerate(block):
            for path in (r[field] for field in VIDEOS):
                cosine = sights @ videos[path]["vector"]
                if videos[path]["sha"] in files:
                    found[r["id"]] = f"{path} is a file of {files[videos[path]['sha']]}"
                elif cosine.max() >= same:
                    found.setdefault(r["id"], f"{path} looks like {shown[cosine.argmax()][1]} ({cosine.max():.3f})")
            twins = np.flatnonzero(shared[k] >= near * union[k])
            if len(twins):
                found.setdefault(r["id"], f"reads like {test[twins[0]]['id']}: {r['instruction']!r}")
    return found


def bench(args, embed: tuple[Callable, Callable]) -> None:
    """train.jsonl and test.jsonl without leaks between them, verify.html, and what was kept out and why, in args.out.

    Once there are decisions ({id: "accept" or "reject"}), only what was accepted is in test.jsonl.
    """
    items = {r["id"]: moved(r, folder, args.out) for folder in args.source for r in good(folder / "triplets.jsonl")}
    if not items:
        raise BadInput(f"--from {' '.join(map(str, args.source))}: no triplets.jsonl there; run rave or icvg first")
    decisions = read_decisions(args.decisions or args.out / "decisions.json", args.decisions is not None, items)

    def work(item):
        path, frames = args.out / item["id"], read_frames(args.out / item["id"])
        with open(path, "rb") as file:
            digest = hashlib.file_digest(file, "sha256").hexdigest()
        vector = clip_vectors(embed[0], [frames])[0].astype(np.float16)
        return {"sha": digest, "vector": base64.b64encode(vector.tobytes()).decode()}
    paths = sorted({r[field] for r in items.values() for field in VIDEOS})
    stage(args.out / "videos.jsonl", ({"id": path} for path in paths), work, args.skip_bad, args.workers)
    halves = lambda text: np.frombuffer(base64.b64decode(text), np.float16).astype(np.float32)
    videos = {r["id"]: {"sha": r["sha"], "vector": halves(r["vector"])} for r in good(args.out / "videos.jsonl")}
    items = [r for r in items.values() if all(r[field] in videos for field in VIDEOS)]
    test, reserve, train = split(items, args.n, args.share)
    why = leaks(test, train, videos, args.same, args.near)
    write_lines(args.out / "removed.jsonl", ({"id": name, "rejected": reason} for name, reason in sorted(why.items())))
    write_lines(args.out / "reserve.jsonl", reserve)
    write_lines(args.out / "train.jsonl", (r for r in train if r["id"] not in why))
    write_lines(args.out / "candidates.jsonl", test)
    accepted = [r for r in test if decisions is None or decisions.get(r["id"]) == "accept"]
    write_lines(args.out / "test.jsonl", accepted)
    print("test: " + ", ".join(f"{n} {t}" for t, n in sorted(Counter(r["type"] for r in accepted).items())))
    if decisions is None:
        print(f"not verified yet: open {args.out}/verify.html, then pass what it downloads as --decisions")
    else:
        atomic_write(args.out / "decisions.json", json.dumps(decisions, indent=1) + "\n")
        print(f"{len(accepted)} accepted, {sum(decisions.get(r['id']) == 'reject' for r in test)} rejected, "
              f"{sum(r['id'] not in decisions for r in test)} not decided, of {len(test)}")
    curate_pages.verify(args.out, test, sha([r["id"] for r in test]))
    curate_pages.report(args.out, read_frames)


def read_decisions(path: Path, needed: bool, items: dict) -> dict | None:
    """{id: "accept" or "reject"} as verify.html writes it; None where there is none. Raises BadInput."""
    if not needed and not path.exists():
        return None
    try:
        decisions = json.loads(path.read_text())
        odd = [k for k, v in decisions.items() if k not in items or v not in ("accept", "reject")]
    except (OSError, ValueError, AttributeError) as error:
        raise BadInput(f"--decisions {path}: cannot be read ({error}); give what verify.html downloaded") from error
    if odd:
        raise BadInput(f"--decisions {path}: {odd[0]!r} is no triplet here, or neither accept nor reject; whose is it?")
    return decisions
