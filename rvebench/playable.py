"""Copies of videos beside a page: of those that a browser cannot play."""

import hashlib
import os
import re
import shutil
from pathlib import Path

from tqdm import tqdm

from common.files import BadInput, replacing
from common.video import frame_rate, read_pixels, write_pixels
from rvebench.results import VIDEOS

FOLDER = "videos_of_the_page"
CODECS = re.compile(rb"avcC|av01|vp09|V_VP8|V_VP9|V_AV1")


def plays(path: Path) -> bool:
    """Whether a browser plays it: mp4 or WebM with H.264, VP8, VP9 or AV1.

    Told by the codec's name in the file, without decoding: a page has thousands of videos. Where
    this is wrong, the page says "cannot be played here".
    """
    if path.suffix.lower() not in (".mp4", ".m4v", ".webm") or not path.is_file():
        return False
    return CODECS.search(path.read_bytes()) is not None


def copy_or_encode(path: Path, copy: Path) -> None:
    """Write `copy`: the same bytes where a browser plays them, else as H.264. Raises BadInput."""
    if not plays(path):
        write_pixels(copy, read_pixels(path), frame_rate(path))
        return
    with replacing(copy) as temporary:
        shutil.copyfile(path, temporary)


def make_playable(rows: list[dict], out: Path) -> list[dict]:
    """The rows with their videos replaced by copies in `out`, where a browser needs one.

    A copy that is not older than its video is kept. What cannot be read keeps its path, and the
    page says that it cannot be played.
    """
    paths = sorted({row[field] for row in rows for field in VIDEOS})
    copies = {}
    for path in tqdm(paths, desc="videos", unit="video", disable=len(paths) < 1000):
        original = out / path
        if not original.exists() or plays(original):
            continue
        name = f"{original.stem[:40]}-{hashlib.sha256(path.encode()).hexdigest()[:10]}.mp4"
        copy = out / FOLDER / name
        try:
            if not copy.exists() or copy.stat().st_mtime < original.stat().st_mtime:
                copy_or_encode(original, copy)
            copies[path] = os.path.relpath(copy, out)
        except BadInput:
            continue
    return [row | {field: copies.get(row[field], row[field]) for field in VIDEOS} for row in rows]
