"""A page is one file: a template with its styles, scripts and data. Here and in curation.

    write_page("out/report.html", Path("rvebench/report.html"), "RVE-Bench", data=data)

A template names what goes into it: {{title}}, values such as {{data}} (a path: what is in that
file), or a file beside it or beside this script, such as {{page.css}}. The page then works from the
file system, without network. Whatever comes from elsewhere (instructions, reasons, names) reaches
it as the JSON of a value, escaped here and nowhere else; the scripts show it as text, never as
HTML. Videos lie beside the page; of those that no browser plays there are copies.
"""

import hashlib
import html
import json
import os
import re
import shutil
from pathlib import Path

from tqdm import tqdm

from common.files import BadInput, atomic_write, replacing
from common.video import frame_rate, read_pixels, write_pixels

HERE = Path(__file__).parent
VIDEOS = ("source", "target", "video")                   # the fields of a row that are paths
FOLDER = "videos_of_the_page"
CODECS = re.compile(rb"avcC|av01|vp09|V_VP8|V_VP9|V_AV1")


def embed(value) -> str:
    """JSON that can stand in a <script>: nothing in it ends that, or begins a comment. NaN and
    infinity, for which JSON has no word, become null."""
    finite = json.loads(json.dumps(value), parse_constant=lambda name: None)
    text = json.dumps(finite)
    return text.replace("<", "\\u003c").replace(">", "\\u003e").replace("&", "\\u0026")


def write_page(path: str | Path, template: Path, title: str, **values) -> None:
    """Fill the slots of a template and write the page. Raises BadInput where it cannot."""
    def fill(slot):
        name = slot[1]
        if name == "title":
            return html.escape(title)
        if isinstance(values.get(name), Path):
            return values[name].read_text("utf-8")
        if name in values:
            return embed(values[name])
        beside = template.parent / name
        return (beside if beside.exists() else HERE / name).read_text("utf-8")

    # One pass: what has been filled in is not searched for slots.
    atomic_write(path, re.sub(r"\{\{([\w.]+)\}\}", fill, template.read_text("utf-8")))


# ----------------------------------------------------------------------------------- its videos

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
