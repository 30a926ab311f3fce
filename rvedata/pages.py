"""Two pages: report.html, what came out of each stage, and verify.html, for people to decide.

Each is one file that works from the file system, without network (rvebench/page.py); templates,
scripts and style lie beside this file. Both play the videos where they are, by relative paths.
"""

import json
from collections import Counter
from itertools import groupby, islice
from pathlib import Path

from rvebench.ask import data_url
from rvebench.page import HERE as RVEBENCH
from rvebench.page import write_page
from rvedata.film import read_clips
from rvedata.stages import VIDEO_FIELDS, read_accepted, read_records

HERE, FORM = Path(__file__).parent, RVEBENCH / "form.html"
STAGES = ("shots", "captions", "embeddings", "clusters", "pairs", "instructions", "rewrites",
          "triplets", "videos", "removed", "train", "test")
SHOWN = 40                                               # clusters, triplets, at most
SHOWN_BAD = 1000                                         # rejected and failed items, at most
SIDE = 192                                               # pixels of a picture


# ---------------------------------------------------------------------------------- report.html

def report(folder: Path, movies: Path | None = None) -> None:
    """Write report.html about a folder of rave, icvg or split. movies: where its films are."""
    stages, bad = count_stages(folder)
    manifests = {name: list(read_accepted(folder / f"{name}.jsonl"))
                 for name in ("triplets", "train", "test")}
    found = folder / "clusters.json"                     # histogram of cosines, threshold, counts
    data = {
        "stages": stages,
        "manifests": [{"name": name, "n": len(some),
                       "types": Counter(sorted(triplet["type"] for triplet in some))}
                      for name, some in manifests.items() if some],
        "threshold": json.loads(found.read_text("utf-8")) if found.exists() else None,
        "clusters": clusters(folder, movies) if movies else [],
        "shown": [{"name": name, "items": list(map(with_videos, some[:SHOWN]))}
                  for name, some in manifests.items() if name != "train"],
        "bad": bad,
    }
    title = f"RVE-Dataset: {folder.name}"
    write_page(folder / "report.html", HERE / "report.html", title, data=data)


def count_stages(folder: Path) -> tuple[list[list], list[list]]:
    """Rows [stage, done, rejected, failed]; [stage, id, kind, reason] of what was not done.

    The newest line of an item counts: what failed may have been done later.
    """
    rows, bad = [], []
    for path in [folder / f"{stage}.jsonl" for stage in STAGES]:
        if not path.exists():
            continue
        found = {}
        for record in read_records(path):
            kind = next((kind for kind in ("rejected", "failed") if kind in record), "done")
            found[record["id"]] = kind, record.get(kind)
        count = Counter(kind for kind, _ in found.values())
        rows.append([path.stem, count["done"], count["rejected"], count["failed"]])
        bad += [[path.stem, name, kind, reason] for name, (kind, reason) in found.items()
                if kind != "done"]
    return rows, bad[:SHOWN_BAD]


def clusters(folder: Path, movies: Path) -> list:
    """[id, [(picture, caption), ...]]: the middle frames of the clips of the first clusters.

    A picture is a data URL.
    """
    some = list(islice(read_accepted(folder / "clusters.jsonl"), SHOWN))
    clips = [clip for cluster in some for clip in cluster["members"]]
    clips.sort(key=lambda clip: (clip["movie"], clip["index"]))
    pictures = {}
    for movie, own in groupby(clips, lambda clip: clip["movie"]):       # one pass through each
        own = list(own)
        frames = read_clips(movies / movie, [clip["clip"] for clip in own], 1, SIDE)
        for clip, (frame,) in zip(own, frames):
            pictures[clip["id"]] = data_url(frame)
    return [[cluster["id"], [(pictures[clip["id"]], f"#{clip['index']} {clip['caption'][:120]}")
                             for clip in cluster["members"]]] for cluster in some]


def with_videos(triplet: dict) -> dict:
    """A triplet with {"source": path, "target": path}, for both pages."""
    paths = [triplet[field] for field in VIDEO_FIELDS]
    return triplet | {"videos": dict(zip(("source", "target"), paths))}


# ---------------------------------------------------------------------------------- verify.html

HELP = (
    "Accept a triplet if its instruction is physically plausible, does not say the edit outright, "
    "and one can reason from source and instruction to the target. Correct the instruction where "
    "that is enough. Reject what cannot be mended, and say why.",
    "Keys: a accept, 1 to 4 reject for that reason, r write another reason (Enter rejects), e edit "
    "the instruction (Esc leaves it), left and right previous and next, space from the start, d "
    "save.",
    "All is kept in this browser as you go. Save it at the end, and give it to python -m "
    "rvedata.split ... --decisions yours.json theirs.json.")


def verify(folder: Path, triplets: list[dict], key: str) -> None:
    """Write verify.html for these triplets. key: their name, so that decisions stay apart."""
    items = list(map(with_videos, triplets))
    data = {"key": f"verify {key}", "help": HELP, "items": items}
    write_page(folder / "verify.html", FORM, "Verify RVE-Bench", data=data,
               style=HERE / "pages.css", fields=HERE / "verify.html", script=HERE / "verify.js")
