"""Two pages: report.html, what came out of each stage, and verify.html, for people to decide.

Each is one file that works from the file system, without network (rvebench/page.py); templates,
scripts and style lie beside this file. Both play the videos where they are, by relative paths.
"""

import base64
import json
import os
import re
from collections import Counter
from itertools import islice
from pathlib import Path
from statistics import median

import cv2

from common.files import BadInput
from common.manifest import SUBSET_OF
from rvebench.page import HERE as RVEBENCH
from rvebench.page import write_page
from rvedata.film import read_clips
from rvedata.manifest import VIDEO_FIELDS
from rvedata.stages import read_accepted, read_records
from rvedata.text import STOP_WORDS

HERE, FORM = Path(__file__).parent, RVEBENCH / "form.html"
STAGES = ("shots", "captions", "embeddings", "clusters", "pairs", "instructions", "rewrites",
          "duplicates", "triplets", "videos", "removed", "reserve", "candidates", "train", "test")
SHOWN = 40                                               # clusters, triplets, at most
SHOWN_CUTS = 8                                           # of a film, of SHOWN / 8 films
SHOWN_BAD = 1000                                         # rejected and failed items, at most
SIDE = 192                                               # pixels of a picture


# ---------------------------------------------------------------------------------- report.html

def report(folder: Path, movies: Path | None = None) -> None:
    """Write report.html about a folder of rave, icvg or split. movies: where its films are."""
    title = os.fsencode(folder.name).decode("utf-8", "replace")      # whatever the locale
    stages, bad = count_stages(folder)
    manifests = {name: list(read_accepted(folder / f"{name}.jsonl"))
                 for name in ("triplets", "train", "test")}
    data = {
        "stages": stages,
        "manifests": [statistics(name, some) for name, some in manifests.items() if some],
        "threshold": threshold(folder),
        "cuts": cuts(folder, movies) if movies else [],
        "clusters": clusters(folder, movies) if movies else [],
        "shown": [{"name": name, "items": [shown_triplet(each) for each in some[:SHOWN]]}
                  for name, some in manifests.items() if name != "train"],
        "rejected": [card(record, (reason, "bad"), (record["id"], "dim"))
                     for record, _, _, reason in bad
                     if all(field in record for field in VIDEO_FIELDS)],
        "bad": [[stage, record["id"], kind, reason] for record, stage, kind, reason in bad],
    }
    write_page(folder / "report.html", HERE / "report.html", f"RVE-Dataset: {title}", data=data)


def count_stages(folder: Path) -> tuple[list[list], list[tuple]]:
    """Rows (stage, done, rejected, failed); (record, stage, kind, reason) of what was not done.

    The newest line of an item counts: what failed may have been done later.
    """
    rows, bad = [], []
    for path in [folder / f"{stage}.jsonl" for stage in STAGES]:
        if not path.exists():
            continue
        kinds, others = {}, {}
        for record in read_records(path):
            kind = next((kind for kind in ("rejected", "failed") if kind in record), "done")
            kinds[record["id"]] = kind
            if kind != "done" and len(bad) + len(others) < SHOWN_BAD:
                others[record["id"]] = record
        count = Counter(kinds.values())
        rows.append([path.stem, count["done"], count["rejected"], count["failed"]])
        bad += [(record, path.stem, kinds[name], str(record.get(kinds[name], "")))
                for name, record in others.items() if kinds[name] != "done"]
    return rows, bad


def statistics(name: str, triplets: list[dict]) -> dict:
    """How many of each type, how long the instructions are, and which words they use."""
    texts = [triplet["instruction"] for triplet in triplets]
    lengths = sorted(len(text.split()) for text in texts)
    words = Counter()
    for text in texts:
        found = re.findall("[a-z]+", text.lower())
        words.update(word for word in found if word not in STOP_WORDS)
    common = ", ".join(f"{word} {n}" for word, n in words.most_common(25))
    said = (f"Instructions have {lengths[0]} to {lengths[-1]} words, {median(lengths):g} in the "
            f"middle; {len(set(texts)):,} are different, of {len(words):,} different content "
            f"words. The commonest: {common}.")
    types = Counter(triplet["type"] for triplet in triplets)
    return {"name": name, "n": len(triplets), "types": dict(sorted(types.items())), "words": said}


def threshold(folder: Path) -> dict | None:
    """The histogram of cosines within windows, the threshold, and what it came to."""
    path = folder / "clusters.json"
    return json.loads(path.read_text("utf-8")) if path.exists() else None


# ------------------------------------------------------------------------------------- pictures

def cuts(folder: Path, movies: Path) -> list:
    """[movie and frame, [(picture, words), ...]]: the frames before and after the first cuts.

    What lies between two shots, such as a dissolve, is in neither.
    """
    found = []
    still_there = (movie for movie in read_accepted(folder / "shots.jsonl")
                   if (movies / movie["id"]).is_file())
    for movie in islice(still_there, SHOWN // SHOWN_CUTS):
        shots = movie["shots"][:SHOWN_CUTS + 1]
        frames = [frame for (_, past), (first, _) in zip(shots, shots[1:])
                  for frame in (past - 1, first)]
        pictures = read_pictures(movies / movie["id"], [(frame, frame + 1) for frame in frames])
        pairs = [(picture, f"frame {frame}") for picture, frame in zip(pictures, frames)]
        found += [[f"{movie['id']}, cut {k // 2 + 1}", pairs[k:k + 2]]
                  for k in range(0, len(pairs), 2)]
    return found


def clusters(folder: Path, movies: Path) -> list:
    """[id, [(picture, caption), ...]]: the middle frames of the clips of the first clusters."""
    some = list(islice(read_accepted(folder / "clusters.jsonl"), SHOWN))
    by_movie = {}
    for clip in [clip for cluster in some for clip in cluster["members"]]:
        by_movie.setdefault(clip["movie"], {})[clip["index"]] = clip                   # each once
    pictures = {}
    for movie, by_index in by_movie.items():             # one pass through each
        clips = [clip for _, clip in sorted(by_index.items())]
        found = read_pictures(movies / movie, [clip["clip"] for clip in clips])
        pictures |= {clip["id"]: picture for clip, picture in zip(clips, found)}
    return [[cluster["id"], [(pictures[clip["id"]], f"#{clip['index']} {clip['caption'][:120]}")
                             for clip in cluster["members"]]] for cluster in some]


def read_pictures(path: Path, clips: list[tuple[int, int]]) -> list[str]:
    """The middle frame of each clip of a film as a data URL, or why there is none."""
    found = []
    try:
        for frames in read_clips(path, clips, 1, SIDE):
            jpeg = cv2.imencode(".jpg", frames[0][..., ::-1], [cv2.IMWRITE_JPEG_QUALITY, 80])[1]
            found.append(f"data:image/jpeg;base64,{base64.b64encode(jpeg).decode()}")
    except BadInput as error:                            # it was there for its stage; go on without
        found += [str(error)] * (len(clips) - len(found))
    return found


# --------------------------------------------------------------------------------------- videos

def shown_triplet(triplet: dict) -> dict:
    """The card of a triplet."""
    return card(triplet, (triplet["instruction"], "best"), (triplet["type"], ""),
                (triplet["rationale"], "dim"), (triplet.get("literal", ""), "dim"))


def card(record: dict, *texts: tuple[str, str]) -> dict:
    """Both videos, and texts with their style."""
    return {"videos": videos_of(record), "texts": texts}


def videos_of(record: dict) -> dict[str, str]:
    """{"source": path, "target": path}"""
    return dict(zip(("source", "target"), [record[field] for field in VIDEO_FIELDS]))


# ---------------------------------------------------------------------------------- verify.html

HELP = (
    "Accept a triplet if its instruction is physically plausible, does not say the edit outright, "
    "and one can reason from source and instruction to the target. Correct the instruction or the "
    "type where that is enough. Reject what cannot be mended, and say why.",
    "Keys: a accept, 1 to 4 reject for that reason, r write another reason (Enter rejects), e edit "
    "the instruction (Esc leaves it), left and right previous and next, o overview, space from the "
    "start, d save.",
    "All is kept in this browser as you go. Save it at the end, and give it to python -m "
    "rvedata.split ... --decisions yours.json theirs.json: it tells how far two people agree.")


def verify(folder: Path, triplets: list[dict], key: str) -> None:
    """Write verify.html for these triplets. key: their name, so that decisions stay apart."""
    types = {kind: [other for other in SUBSET_OF if SUBSET_OF[other] == SUBSET_OF[kind]]
             for kind in SUBSET_OF}                      # what a type may be corrected to
    items = [triplet | {"videos": videos_of(triplet)} for triplet in triplets]
    data = {"key": f"verify {key}", "help": HELP, "items": items, "types": types}
    write_page(folder / "verify.html", FORM, "Verify RVE-Bench", data=data,
               style=HERE / "pages.css", fields=HERE / "verify.html", script=HERE / "verify.js")
