"""Two pages: report.html, what came out of each stage, and verify.html, for people to decide.

Each is one file that works from the file system, without network; every text is escaped.
verify.html (its template lies beside this file) plays the videos where they are, by relative paths.
"""

import base64
import json
import re
from collections import Counter
from html import escape
from itertools import islice
from pathlib import Path
from statistics import median

import cv2
import numpy as np

from common.files import BadInput, atomic_write
from rvedata.film import read_clips, read_frames
from rvedata.manifest import VIDEO_FIELDS
from rvedata.stages import read_accepted, read_records
from rvedata.text import STOP_WORDS

HERE = Path(__file__).parent
STYLE = f"<meta charset=utf-8><style>\n{(HERE / 'pages.css').read_text()}</style>"
STAGES = ("shots", "captions", "embeddings", "clusters", "pairs", "instructions", "rewrites",
          "duplicates", "triplets", "videos", "removed", "reserve", "candidates", "train", "test")
SHOWN = 40                                               # clusters and triplets, at most
SHOWN_BAD = 1000                                         # rejected and failed items, at most
SIDE = 192                                               # pixels of a picture


# ---------------------------------------------------------------------------------- report.html

def report(folder: Path, movies: Path | None = None) -> None:
    """Write report.html about a folder of rave, icvg or bench. movies: where its films are."""
    folder = Path(folder)
    counts, bad = count_stages(folder)
    parts = ["<h2>Stages</h2>", _table([["stage", "done", "rejected", "failed"], *counts])]
    manifests = {}
    for name in ("triplets", "train", "test"):
        manifests[name] = list(read_accepted(folder / f"{name}.jsonl"))
        if manifests[name]:
            parts.append(_statistics(name, manifests[name]))
    if (folder / "clusters.json").exists():
        record = json.loads((folder / "clusters.json").read_text())
        parts += ["<h2>Threshold</h2>", _histogram(record)]
    if movies and (folder / "clusters.jsonl").exists():
        parts.append(_clusters(folder, movies))
    for name in ("triplets", "test"):
        if manifests[name]:
            parts.append(f"<h2>Some of {name}</h2>")
            parts += [_triplet(folder, triplet) for triplet in manifests[name][:SHOWN]]
    parts += ["<h2>Rejected and failed</h2>", _table(bad) if bad else "<p>None.</p>"]
    head = f"<!doctype html><title>RVE-Dataset: {escape(folder.name)}</title>{STYLE}"
    title = f"<h1>{escape(folder.name)}</h1>"
    atomic_write(folder / "report.html", head + title + "\n".join(parts))


def count_stages(folder: Path) -> tuple[list[list], list[list]]:
    """Rows (stage, done, rejected, failed); rows (stage, id, kind, reason) of what was not done.

    The newest line of an item counts: what failed may have been done later.
    """
    counts, bad = [], []
    for stage in STAGES:
        if not (folder / f"{stage}.jsonl").exists():
            continue
        newest, reasons = {}, {}
        for _, record in read_records(folder / f"{stage}.jsonl"):
            kind = _kind(record)
            newest[record["id"]] = kind
            if kind != "done" and len(bad) + len(reasons) < SHOWN_BAD:
                reasons[record["id"]] = str(record[kind])
        count = Counter(newest.values())
        counts.append([stage, count["done"], count["rejected"], count["failed"]])
        for name, reason in reasons.items():
            if newest[name] != "done":
                bad.append([stage, name, newest[name], reason])
    return counts, bad


def _kind(record: dict) -> str:
    for kind in ("rejected", "failed"):
        if kind in record:
            return kind
    return "done"


def _statistics(name: str, triplets: list[dict]) -> str:
    """How many of each type, how long the instructions are, and which words they use."""
    types = Counter(triplet["type"] for triplet in triplets)
    most = max(types.values())
    rows = ""
    for type_name, n in sorted(types.items()):
        bar = f'<span class=bar style="width:{300 * n // most}px"></span>'
        rows += f"<tr><td>{escape(type_name)}<td class=n>{n:,}<td>{bar}</tr>"
    texts = [triplet["instruction"] for triplet in triplets]
    lengths = sorted(len(text.split()) for text in texts)
    words = Counter()
    for text in texts:
        found = re.findall("[a-z]+", text.lower())
        words.update(word for word in found if word not in STOP_WORDS)
    common = ", ".join(f"{word} {n}" for word, n in words.most_common(25))
    return (f"<h2>{name}: {len(triplets):,}</h2><table>{rows}</table>"
            f"<p>Instructions have {lengths[0]} to {lengths[-1]} words, {median(lengths):g} in the "
            f"middle; {len(set(texts)):,} are different, of {len(words):,} different content "
            f"words. The commonest: {escape(common)}.</p>")


def _histogram(record: dict) -> str:
    """The cosines within windows as SVG, and the threshold.

    The scale is that of square roots, so that small groups show.
    """
    counts = record["counts"]
    n, top = len(counts), max(counts) ** .5 or 1
    first = next((k for k, count in enumerate(counts) if count), 0)
    step = 1000 / (n - first)
    bars = ""
    for k, count in enumerate(counts):
        height = 190 * count ** .5 / top
        if count:
            x, y = step * (k - first), 200 - height
            bars += (f'<rect x="{x:.1f}" y="{y:.1f}" width="{step:.1f}" height="{height:.1f}" '
                     f'fill="#4a7ebb"/>')
    at = step * (n * (record["threshold"] + 1) / 2 - first)
    return (f'<svg viewBox="0 0 1000 225" width="100%">{bars}'
            f'<line x1="{at:.1f}" x2="{at:.1f}" y1="0" y2="200" stroke="#c33" stroke-width="2"/>'
            f'<text x="0" y="220">{2 * first / n - 1:.2f}</text>'
            f'<text x="1000" y="220" text-anchor="end">1</text>'
            f'<text x="{min(at, 900):.1f}" y="220" fill="#c33">{record["threshold"]:.3f}</text>'
            f'</svg><p><small>Cosines of all {sum(counts):,} pairs of clips within windows '
            f'(height: square root of count). The threshold was chosen by '
            f'{escape(record["chosen by"])}; '
            f'{record["clusters"]:,} clusters, {record["alone"]:,} clips alone.</small></p>')


def _clusters(folder: Path, movies: Path) -> str:
    """Contact sheets of the first clusters."""
    clusters = list(islice(read_accepted(folder / "clusters.jsonl"), SHOWN))
    pictures = _clip_pictures(movies, [clip for one in clusters for clip in one["members"]])
    sheets = f"<h2>Clusters, the first {SHOWN}</h2>"
    for cluster in clusters:
        figures = ""
        for clip in cluster["members"]:
            caption = f"#{clip['index']} {escape(clip['caption'][:120])}"
            figures += f"<figure>{pictures[clip['id']]}{caption}</figure>"
        sheets += f"<b>{escape(cluster['id'])}</b><div class=sheet>{figures}</div>"
    return sheets


def _clip_pictures(movies: Path, clips: list[dict]) -> dict[str, str]:
    """{id of a clip: its middle frame as HTML}, in one pass through each movie."""
    pictures, by_movie = {}, {}
    for clip in clips:
        by_movie.setdefault(clip["movie"], {})[clip["index"]] = clip                   # each once
    for movie, by_index in by_movie.items():
        wanted = [clip for _, clip in sorted(by_index.items())]
        spans = [clip["clip"] for clip in wanted]
        try:
            for clip, frames in zip(wanted, read_clips(movies / movie, spans, 1, SIDE)):
                pictures[clip["id"]] = _picture(frames[0])
        except BadInput as error:                        # it was there for its stage; go on without
            for clip in wanted:
                pictures.setdefault(clip["id"], f"<small>{escape(str(error))}</small>")
    return pictures


def _triplet(folder: Path, triplet: dict) -> str:
    """The middle frames of both videos beside the instruction."""
    figures = ""
    for field, name in zip(VIDEO_FIELDS, ("source", "target")):
        figures += f"<figure>{_video_picture(folder / triplet[field])}{name}</figure>"
    return (f"<div class=sheet>{figures}<div><b>{escape(triplet['instruction'])}</b><br>"
            f"{escape(triplet['type'])}<br><small>{escape(triplet['rationale'])}<br>"
            f"{escape(triplet.get('literal', ''))}</small></div></div>")


def _video_picture(path: Path) -> str:
    try:
        return _picture(read_frames(path, 1, SIDE)[0])
    except BadInput as error:
        return f"<small>{escape(str(error))}</small>"


def _picture(frame: np.ndarray) -> str:
    """A frame (H, W, 3) as an <img>."""
    jpeg = cv2.imencode(".jpg", frame[..., ::-1], [cv2.IMWRITE_JPEG_QUALITY, 80])[1]
    return f'<img src="data:image/jpeg;base64,{base64.b64encode(jpeg).decode()}">'


def _table(rows: list[list]) -> str:
    lines = ""
    for row in rows:
        cells = ""
        for cell in row:
            is_number = isinstance(cell, int)
            cells += f"<td class=n>{cell:,}</td>" if is_number else f"<td>{escape(str(cell))}</td>"
        lines += f"<tr>{cells}</tr>"
    return f"<table>{lines}</table>"


# ---------------------------------------------------------------------------------- verify.html

def verify(folder: Path, triplets: list[dict], key: str) -> None:
    """Write verify.html for these triplets. key: their name, so that decisions stay apart."""
    data = json.dumps(triplets).replace("<", "\\u003c")  # no text can end the script
    page = (HERE / "verify.html").read_text()
    page = page.replace("STYLE", STYLE).replace("KEY", key).replace("DATA", data)
    atomic_write(folder / "verify.html", page)
