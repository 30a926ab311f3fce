"""The two pages of curate.py: report.html, what came out of each stage, and verify.html, where people accept or reject.

Both are one file that works from the file system, without network; every text is escaped. verify.html plays the videos
where they are, by relative paths.
"""

import base64
import html
import json
import re
from collections import Counter
from itertools import islice
from pathlib import Path
from statistics import median

import cv2

from data import FIELDS
from common.files import BadInput, atomic_write
from rvedata.film import read_clips, read_frames
from rvedata.stages import read_accepted, read_records
from rvedata.text import STOP_WORDS

STAGES = ("shots", "captions", "embeddings", "clusters", "pairs", "instructions", "rewrites", "duplicates",
          "triplets", "videos", "removed", "reserve", "candidates", "train", "test")
SHOWN = 40                                               # clusters, triplets and rejected items of a stage, at most
STYLE = """<meta charset=utf-8><style>
body{font:15px/1.45 system-ui,sans-serif;max-width:1100px;margin:2em auto;padding:0 1em;color:#222;background:#fff}
h2{margin-top:2em}table{border-collapse:collapse}td{padding:2px 12px 2px 0;vertical-align:top}td.n{text-align:right}
.sheet{display:flex;flex-wrap:wrap;gap:6px;margin:6px 0 18px}figure{margin:0;width:128px;font-size:11px;color:#555}
img{width:128px;display:block}.bar{background:#4a7ebb;height:11px;display:inline-block}small{color:#666}
</style>"""


def _thumbnail(path: Path) -> str:
    try:
        return _picture(read_frames(path, 1, 192)[0])
    except BadInput as error:                            # it was there when its stage was done; say so, and go on
        return f"<small>{html.escape(str(error))}</small>"


def _picture(frame) -> str:
    jpeg = cv2.imencode(".jpg", frame[..., ::-1], [cv2.IMWRITE_JPEG_QUALITY, 80])[1]
    return f'<img src="data:image/jpeg;base64,{base64.b64encode(jpeg).decode()}">'


def _clip_pictures(movies: Path, clips: list[dict]) -> dict[str, str]:
    """{id of a clip: its middle frame as HTML}, in one pass through each movie."""
    pictures, by_movie = {}, {}
    for clip in clips:
        by_movie.setdefault(clip["movie"], {})[clip["index"]] = clip       # once, where clusters overlap
    for name, by_index in by_movie.items():
        wanted = [clip for _, clip in sorted(by_index.items())]
        try:
            for clip, frames in zip(wanted, read_clips(movies / name, [clip["clip"] for clip in wanted], 1, 192)):
                pictures[clip["id"]] = _picture(frames[0])
        except BadInput as error:
            for clip in wanted:
                pictures.setdefault(clip["id"], f"<small>{html.escape(str(error))}</small>")
    return pictures


def _table(rows: list[list]) -> str:
    cell = lambda x: f"<td class=n>{x:,}</td>" if isinstance(x, int) else f"<td>{html.escape(str(x))}</td>"
    return "<table>" + "".join("<tr>" + "".join(map(cell, row)) + "</tr>" for row in rows) + "</table>"


def _histogram(record: dict) -> str:
    """The cosines within windows as SVG, on a scale of square roots so that small groups show, and the threshold."""
    counts, n = record["counts"], len(record["counts"])
    first = next((k for k, c in enumerate(counts) if c), 0)
    x = lambda k: 1000 * (k - first) / (n - first)
    top = max(counts) ** .5 or 1
    bars = "".join(f'<rect x="{x(k):.1f}" y="{200 - 190 * c ** .5 / top:.1f}" width="{x(first + 1):.1f}" '
                   f'height="{190 * c ** .5 / top:.1f}" fill="#4a7ebb"/>' for k, c in enumerate(counts) if c)
    at = x(n * (record["threshold"] + 1) / 2)
    return (f'<svg viewBox="0 0 1000 225" width="100%">{bars}<line x1="{at:.1f}" x2="{at:.1f}" y1="0" y2="200" '
            f'stroke="#c33" stroke-width="2"/><text x="0" y="220">{2 * first / n - 1:.2f}</text>'
            f'<text x="1000" y="220" text-anchor="end">1</text>'
            f'<text x="{min(at, 900):.1f}" y="220" fill="#c33">{record["threshold"]:.3f}</text></svg>'
            f'<p><small>Cosines of all {sum(counts):,} pairs of clips within windows (height: square root of count). '
            f'The threshold was chosen by {html.escape(record["chosen by"])}; {record["clusters"]:,} clusters, '
            f'{record["alone"]:,} clips alone.</small></p>')


def report(folder: Path, movies: Path | None = None) -> None:
    """Write report.html of what is in a folder of rave, icvg or bench; `movies`: where its films are."""
    folder, parts, bad = Path(folder), [], []
    rows = [["stage", "done", "rejected", "failed"]]
    for name in STAGES:
        if (folder / f"{name}.jsonl").exists():
            newest = {}                                  # what failed may have been done later
            for _, r in read_records(folder / f"{name}.jsonl"):
                kind = "rejected" if "rejected" in r else "failed" if "failed" in r else "done"
                newest[r["id"]] = kind
                if kind != "done" and len(bad) < 1000:
                    bad.append([name, r["id"], kind, r[kind]])
            counts = Counter(newest.values())
            rows.append([name, *(counts[kind] for kind in rows[0][1:])])
            bad = [b for b in bad if b[0] != name or newest[b[1]] != "done"]
    parts += ["<h2>Stages</h2>", _table(rows)]
    sets = {name: list(read_accepted(folder / f"{name}.jsonl")) for name in ("triplets", "train", "test")
            if (folder / f"{name}.jsonl").exists()}
    for name, items in sets.items():
        if not items:
            continue
        types, lengths = Counter(r["type"] for r in items), sorted(len(r["instruction"].split()) for r in items)
        bar = lambda n: f'<span class=bar style="width:{300 * n // max(types.values())}px"></span>'
        said = Counter(w for r in items for w in re.findall("[a-z]+", r["instruction"].lower()) if w not in STOP_WORDS)
        parts.append(f"<h2>{name}: {len(items):,}</h2><table>" + "".join(
            f"<tr><td>{html.escape(t)}<td class=n>{n:,}<td>{bar(n)}</tr>" for t, n in sorted(types.items()))
            + "</table>")
        parts.append(f"<p>Instructions have {lengths[0]} to {lengths[-1]} words, {median(lengths):g} in the middle; "
                     f"{len({r['instruction'] for r in items}):,} are different, of {len(said):,} different content "
                     "words. The commonest: "
                     + html.escape(", ".join(f"{w} {n}" for w, n in said.most_common(25))) + ".</p>")
    if (folder / "clusters.json").exists():
        parts += ["<h2>Threshold</h2>", _histogram(json.loads((folder / "clusters.json").read_text()))]
    if movies and (folder / "clusters.jsonl").exists():
        parts.append(f"<h2>Clusters, the first {SHOWN}</h2>")
        shown = list(islice(read_accepted(folder / "clusters.jsonl"), SHOWN))
        pictures = _clip_pictures(movies, [clip for cluster in shown for clip in cluster["members"]])
        for cluster in shown:
            parts.append(f"<b>{html.escape(cluster['id'])}</b><div class=sheet>" + "".join(
                f"<figure>{pictures[r['id']]}#{r['index']} "
                f"{html.escape(r['caption'][:120])}</figure>" for r in cluster["members"]) + "</div>")
    for name in ("triplets", "test"):
        if sets.get(name):
            parts.append(f"<h2>Some of {name}</h2>")
        for r in sets.get(name, [])[:SHOWN]:
            parts.append("<div class=sheet>" + "".join(
                f"<figure>{_thumbnail(folder / r[field])}{name}</figure>"
                for field, name in zip(FIELDS, ("source", "target")))
                + f"<div><b>{html.escape(r['instruction'])}</b><br>{html.escape(r['type'])}<br>"
                f"<small>{html.escape(r['rationale'])}<br>{html.escape(r.get('literal', ''))}</small></div></div>")
    parts += ["<h2>Rejected and failed</h2>", _table(bad) if bad else "<p>None.</p>"]
    atomic_write(folder / "report.html", f"<!doctype html><title>curate.py: {html.escape(folder.name)}</title>{STYLE}"
                                         f"<h1>{html.escape(folder.name)}</h1>" + "\n".join(parts))


VERIFY = """<!doctype html><title>Verify RVE-Bench</title>""" + STYLE + """
<style>video{width:48%;background:#000}#text{font-size:20px;margin:.6em 0}button{font-size:16px;padding:.4em 1em}
.accept{color:#080}.reject{color:#b00}</style>
<p id=where></p><video id=source muted loop autoplay playsinline></video>
<video id=target muted loop autoplay playsinline></video>
<p id=text></p><p id=about></p>
<p><button id=accept>accept (a)</button> <button id=reject>reject (r)</button> <button id=back>back (&larr;)</button>
<button id=next>next (&rarr;)</button> <button id=again>from the start (space)</button>
<button id=download>download the decisions (d)</button></p>
<p><small>Accept it if the instruction is physically plausible, does not say the edit outright, and one can reason from
source and instruction to the target. Decisions are kept in this browser until you download them; then:
python curate.py bench ... --decisions decisions.json</small></p>
<script id=data type="application/json">DATA</script>
<script>
const items = JSON.parse(document.getElementById('data').textContent), $ = id => document.getElementById(id);
const key = 'rve-bench KEY', decisions = JSON.parse(localStorage.getItem(key) || '{}');
let at = Math.max(0, items.findIndex(r => !decisions[r.id]));
const url = path => path.split('/').map(encodeURIComponent).join('/');
function play() { for (const v of [$('source'), $('target')]) { v.currentTime = 0; v.play().catch(() => {}); } }
function show() {
  const r = items[at], n = items.filter(r => decisions[r.id]).length;
  $('where').textContent = `${at + 1} of ${items.length}, ${n} decided: ${decisions[r.id] || 'not decided'}`;
  $('where').className = decisions[r.id] || '';
  $('text').textContent = r.instruction;
  $('about').textContent = [r.type, r.rationale, r.literal && `literally: ${r.literal}`, r.id].filter(x => x).join(' | ');
  $('source').src = url(r.source_video_path); $('target').src = url(r.target_video_path); play();
}
function go(by) { at = Math.min(items.length - 1, Math.max(0, at + by)); show(); }
function decide(what) { decisions[items[at].id] = what; localStorage.setItem(key, JSON.stringify(decisions)); go(1); }
function download() {
  const a = document.createElement('a');
  a.href = URL.createObjectURL(new Blob([JSON.stringify(decisions, null, 1)], {type: 'application/json'}));
  a.download = 'decisions.json'; a.click();
}
const keys = {a: () => decide('accept'), r: () => decide('reject'), ArrowLeft: () => go(-1), ArrowRight: () => go(1),
              ' ': play, d: download};
addEventListener('keydown', e => {
  if (keys[e.key] && !e.ctrlKey && !e.metaKey) { e.preventDefault(); keys[e.key](); }
});
for (const [id, k] of [['accept', 'a'], ['reject', 'r'], ['back', 'ArrowLeft'], ['next', 'ArrowRight'], ['again', ' '],
                       ['download', 'd']]) $(id).onclick = e => { keys[k](); e.target.blur(); };
if (items.length) show(); else $('where').textContent = 'Nothing to verify.';
</script>
"""


def verify(folder: Path, items: list[dict], key: str) -> None:
    """Write verify.html for the items; `key` names this set of them, so that another's decisions are not mixed in."""
    data = json.dumps(items).replace("<", "\\u003c")     # no text can end the script element
    atomic_write(folder / "verify.html", VERIFY.replace("KEY", key).replace("DATA", data))
