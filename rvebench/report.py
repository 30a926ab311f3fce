"""Looking at what was scored: report.html for whoever works with it, study.html for people who rank (Sec. 5.3, Fig. 7).

    python evaluate.py --report results                # both come from evaluate.py, without a call or a model
    python evaluate.py --report results --study 50     # 50 samples for people to rank
    python evaluate.py --report results --study-results ratings/*.json

Each page is one file that works from the file system, without network. The videos stay where they are, and are loaded
when they are scrolled to; those of one sample play in step: each at the pace at which it takes as long as the longest.
All that comes from elsewhere (instructions, reasons, names) reaches the page as JSON and is shown as text, not as HTML.
"""

import hashlib
import html
import json
import shutil
from pathlib import Path

import numpy as np

from common.files import BadInput, atomic_write, replacing

CRITERIA = ("Edit Accuracy", "Content Preservation", "Visual Quality")
COLOURS = ("#4878a8", "#d8894a", "#5a9a5a", "#b05555", "#8870a8", "#8a6a55", "#c87aa8", "#777777")

STYLE = """<meta charset=utf-8><meta name=viewport content="width=device-width"><style>
body{font:14px/1.45 system-ui,sans-serif;max-width:1400px;margin:1.5em auto;padding:0 1em;color:#222;background:#fff}
table{border-collapse:collapse;margin:.5em 0 1.2em;font-size:13px}td,th{padding:2px 10px 2px 0;text-align:right;
border-bottom:1px solid #eee;white-space:nowrap}td:first-child,th:first-child{text-align:left}section{overflow-x:auto}
#bar{position:sticky;top:0;background:#fffe;padding:.6em 0;border-bottom:1px solid #ccc;z-index:1}
#bar label{margin-right:1em}article{border-bottom:1px solid #ddd;padding:.8em 0;min-height:250px;
content-visibility:auto;contain-intrinsic-size:auto 330px}
.row{display:flex;flex-wrap:wrap;gap:10px}figure{margin:0;width:200px;font-size:12px}video{width:200px;min-height:112px;
background:#eee;display:block;image-rendering:auto}figcaption{font-weight:600}small{color:#666}.bad{color:#a33}
h3{margin:.1em 0 .4em;font-size:15px;font-weight:500}summary{cursor:pointer;color:#555}</style>"""

SCRIPT = r"""
const data = JSON.parse(document.getElementById('data').textContent), by = id => document.getElementById(id);
const make = (tag, text, parent) => { const e = document.createElement(tag); if (text != null) e.textContent = text;
  if (parent) parent.append(e); return e };
const url = path => path.split('/').map(encodeURIComponent).join('/');

function inStep(videos) {                  // starts when all can; every one takes as long as the longest
  let waiting = videos.length, over = 0, live = [];
  const start = () => live.forEach(v => { v.currentTime = 0; v.play().catch(() => {}) });
  const ready = () => { if (--waiting == 0 && live.length) {
    const longest = Math.max(...live.map(v => v.duration));
    live.forEach(v => v.playbackRate = Math.min(16, Math.max(.0625, v.duration / longest || 1))); start() } };
  videos.forEach(v => {
    v.muted = v.playsInline = true;
    v.onloadeddata = () => { v.onloadeddata = null; live.push(v); ready() };
    v.onerror = () => { v.onerror = null; make('small', 'cannot be played here', v.parentNode); ready() };
    v.onended = () => { if (++over >= live.length) { over = 0; start() } };
    v.src = v.dataset.src });
  return { toggle() { const stop = live.some(v => !v.paused); stop ? live.forEach(v => v.pause()) :
             live.forEach(v => v.ended || v.play()) },
           end() { videos.forEach(v => {
             v.onloadeddata = v.onerror = v.onended = null; v.removeAttribute('src'); v.load() }) } } }

function lazily(node, fill) {              // fill(node) when it comes near, undone when it is far away
  const watch = new IntersectionObserver(([e]) => {
    if (e.isIntersecting && !node.player) node.player = fill(node);
    else if (!e.isIntersecting && node.player) { node.style.minHeight = node.offsetHeight + 'px';
      node.player.end(); node.player = null; node.querySelector('.row').replaceChildren() } }, { rootMargin: '300px' });
  watch.observe(node); node.watch = watch }
"""


def embed(value) -> str:
    """JSON that can stand in a <script>: nothing in it ends that, or begins a comment."""
    return json.dumps(value).replace("<", "\\u003c").replace(">", "\\u003e").replace("&", "\\u0026")


def _page(title: str, body: str, data, script: str) -> str:
    return (f"<!doctype html><html lang=en><title>{html.escape(title)}</title>{STYLE}<body>{body}"
            f'<script id=data type="application/json">{embed(data)}</script><script>{SCRIPT}{script}</script>')


# ----------------------------------------------------------------------------------------------------- report.html

def _block(block) -> str:
    """A block of benchmark.tables as HTML: a table (list of lines), a "## heading", or text."""
    if isinstance(block, str):
        if block.startswith("## "):
            return f"<h2>{html.escape(block[3:])}</h2>"
        return f"<p style='white-space:pre-line'>{html.escape(block)}</p>"
    line = lambda cells, tag: "<tr>" + "".join(f"<{tag}>{html.escape(c)}</{tag}>" for c in cells) + "</tr>"
    return f"<table>{line(block[0], 'th')}{''.join(line(cells, 'td') for cells in block[1:])}</table>"


def bars(groups: list[tuple[str, list[tuple[str, float, float, float]]]], title: str, top: float) -> str:
    """Bars as SVG: groups of (type, [(method, mean, low, high), ...]), NaN where there is none; `top` ends the scale."""
    names = list(dict.fromkeys(name for _, some in groups for name, *_ in some))
    colour = {name: COLOURS[k % len(COLOURS)] for k, name in enumerate(names)}
    out, y, x = [], 24, lambda value: 210 + 620 * min(max(value / top, 0), 1)
    for kind, some in groups:
        out.append(f'<text x="200" y="{y + 8 * len(some) + 4}" text-anchor="end">{html.escape(kind)}</text>')
        for name, mean, low, high in some:
            if mean == mean:
                out.append(f'<rect x="210" y="{y}" width="{x(mean) - 210:.1f}" height="13" fill="{colour[name]}">'
                           f'<title>{html.escape(name)}: {mean:.2f}</title></rect>')
            if low == low:
                out.append(f'<path d="M{x(low):.1f} {y + 6.5}H{x(high):.1f}M{x(low):.1f} {y + 3}v7M{x(high):.1f} '
                           f'{y + 3}v7" stroke="#222" fill="none"/>')
            y += 16
        y += 8
    for k, name in enumerate(names):
        out.append(f'<rect x="850" y="{24 + 18 * k}" width="11" height="11" fill="{colour[name]}"/>'
                   f'<text x="866" y="{34 + 18 * k}">{html.escape(name)}</text>')
    height = max(y, 30 + 18 * len(names))
    return (f'<svg class=bars viewBox="0 0 1040 {height}" width="100%" style="max-width:1040px;font-size:12px">'
            f'<text x="210" y="14">{html.escape(title)}, 0 to {top:g}, with 95 % intervals</text>{"".join(out)}</svg>')


def samples(rows: list[dict], human: dict | None = None) -> list[dict]:
    """The rows of scores.jsonl, one for each sample and method, gathered by sample; people's ratings beside them."""
    found = {}
    for r in rows:
        s = found.setdefault(r["id"], {**{k: r[k] for k in ("id", "subset", "type", "instruction", "source", "target")},
                                       "methods": {}})
        scores = {k: r[k] for k in ("EA", "PC", "GN", "GR", "Overall", "Geometric mean", "Yes") if r[k] is not None}
        rated = {c: x[r["id"], r["method"]] for c, x in (human or {}).items() if (r["id"], r["method"]) in x}
        s["methods"][r["method"]] = {"video": r["video"], "failed": r["failed"], "scores": {**scores, **r["quality"]},
                                     "reasons": r["reasons"], "missing": r["missing"], "human": rated}
    return list(found.values())


REPORT = r"""
const names = data.methods, shown = new Set(names), list = by('list');
const score = (s, m, c) => { const x = s.methods[m]; return x && !x.failed ? x.scores[c] : undefined };
const columns = [...new Set(data.samples.flatMap(s => names.flatMap(m => Object.keys(s.methods[m]?.scores ?? {}))))];
const option = (select, value, text) => { const o = make('option', text, by(select)); o.value = value };
for (const type of new Set(data.samples.map(s => s.type))) option('type', type, type);
for (const subset of new Set(data.samples.map(s => s.subset))) option('subset', subset, subset);
for (const c of columns) option('column', c, c);
for (const m of names) { const l = make('label', null, by('methods')), b = make('input', null, l); b.type = 'checkbox';
  b.checked = true; b.value = m; l.append(m); b.onchange = () => { b.checked ? shown.add(m) : shown.delete(m); draw() } }

const spread = v => v.length ? Math.max(...v) - Math.min(...v) : NaN;
const keys = {                             // of a sample: a number, or NaN to come last
  low: (s, c, v) => Math.min(...v), high: (s, c, v) => -Math.max(...v),
  methods: (s, c, v) => v.length > 1 ? -spread(v) : NaN,
  people: (s, c) => -Math.max(...[...shown].map(m => { const x = s.methods[m];
    return x?.human[c] == null || score(s, m, c) == null ? -Infinity : Math.abs(x.human[c] - score(s, m, c)) })) };

function draw() {
  const c = by('column').value, how = by('sort').value;
  let some = data.samples.filter(s => [s.type, ''].includes(by('type').value)
    && [s.subset, ''].includes(by('subset').value)
    && (!by('failed').checked || [...shown].some(m => s.methods[m]?.failed)));
  if (how != 'order') {
    const of = new Map(some.map(s => {
      const k = keys[how](s, c, [...shown].map(m => score(s, m, c)).filter(x => x != null));
      return [s, Number.isFinite(k) ? k : Infinity] }));
    some = [...some].sort((a, b) => of.get(a) == of.get(b) ? 0 : of.get(a) - of.get(b)) }
  for (const old of list.children) { old.watch?.disconnect(); old.player?.end() }
  list.replaceChildren(...some.map(card));
  by('count').textContent = `${some.length} of ${data.samples.length} samples` }

function card(s) {
  const a = make('article'), h = make('h3', s.instruction, a);
  a.dataset.id = s.id; make('small', `${s.id} · ${s.subset} · ${s.type} `, a);
  const b = make('button', 'play / pause', a); b.onclick = () => a.player?.toggle();
  make('div', null, a).className = 'row';
  lazily(a, () => fill(a, s)); return a }

function fill(a, s) {
  const row = a.querySelector('.row'), videos = [];
  const figure = (name, path) => { const f = make('figure', null, row); make('figcaption', name, f);
    if (path) { const v = make('video', null, f); v.dataset.src = url(path); videos.push(v) } return f };
  figure('source', s.source); figure('target', s.target);
  for (const m of names.filter(m => shown.has(m) && s.methods[m])) {
    const x = s.methods[m], f = figure(m, x.failed && !x.scores.TF ? null : x.video);
    if (x.failed) make('div', x.failed, f).className = 'bad';
    const told = some => Object.entries(some).map(([k, v]) => `${k} ${v.toFixed(k in data.small ? 3 : 1)}`).join(' · ');
    make('div', told(x.scores), f);
    if (told(x.human)) make('div', 'people: ' + told(x.human), f);
    if (x.reasons.length + x.missing.length) {
      const d = make('details', null, f); make('summary', "the judge's reasons", d);
      for (const r of x.reasons) make('p', r, d);
      for (const r of x.missing) make('p', 'missing: ' + r, d).className = 'bad' } }
  return inStep(videos) }

for (const id of ['type', 'subset', 'column', 'sort', 'failed']) by(id).onchange = draw;
draw();
"""


def report(out: Path, rows: list[dict], about: dict, blocks: list, charts: list[str], human: dict | None = None) -> None:
    """Write out/report.html: the tables (`blocks`, see benchmark.tables), bars, and all samples with their videos."""
    people = "<option value=people>judge and people disagree most</option>" if human else ""
    controls = (f"<div id=bar><label>type <select id=type><option value=''>all</select></label>"
                f"<label>subset <select id=subset><option value=''>all</select></label>"
                f"<label>score <select id=column></select></label>"
                f"<label>order <select id=sort><option value=order>of the manifest<option value=low>lowest first"
                f"<option value=high>highest first<option value=methods>methods disagree most{people}</select></label>"
                f"<label><input type=checkbox id=failed>with failures</label><span id=methods></span> "
                f"<small id=count></small></div>")
    body = (f"<h1>RVE-Bench</h1><section>{''.join(charts)}{''.join(map(_block, blocks))}</section>"
            f"<h2>Samples</h2>{controls}<div id=list></div>")
    data = {"methods": about["methods"], "samples": samples(rows, human),
            "small": dict.fromkeys(("TF", "SC", "BC", "OC", "ViCLIP-T", "MS"), 1)}
    atomic_write(out / "report.html", _page("RVE-Bench: " + about["head"].split(":")[0], body, data, REPORT))


# ------------------------------------------------------------------------------------------------------ study.html

STUDY = r"""
const kept = 'study ' + data.study, ranks = JSON.parse(localStorage.getItem(kept) ?? '{}');
const done = (k, c) => Object.keys(data.samples[k].edits).every(l => ranks[k]?.[c]?.[l]);
const count = () => { const n = data.samples.filter((s, k) => data.criteria.every(c => done(k, c))).length;
  by('count').textContent = `${n} of ${data.samples.length} samples ranked` };
data.samples.forEach((s, k) => {
  const a = make('article', null, by('list')); make('h3', `${k + 1}. ${s.instruction}`, a);
  const b = make('button', 'play / pause', a); b.onclick = () => a.player?.toggle();
  make('div', null, a).className = 'row';
  const t = make('table', null, a), head = make('tr', null, t), letters = Object.keys(s.edits);
  for (const x of ['rank, 1 is best', ...letters]) make('th', x, head);
  for (const c of data.criteria) { const line = make('tr', null, t); make('td', c, line);
    for (const l of letters) { const e = make('select', null, make('td', null, line));
      for (const x of ['', ...letters.map((_, i) => i + 1)]) make('option', x, e);
      e.name = `${k} ${c} ${l}`; e.value = ranks[k]?.[c]?.[l] ?? '';
      e.onchange = () => { ((ranks[k] ??= {})[c] ??= {})[l] = +e.value;
        localStorage.setItem(kept, JSON.stringify(ranks)); count() } } }
  lazily(a, () => { const row = a.querySelector('.row'), videos = [];
    for (const [name, path] of [['source', s.source], ...Object.entries(s.edits)]) { const f = make('figure', null, row);
      make('figcaption', name, f); const v = make('video', null, f); v.dataset.src = url(path); videos.push(v) }
    return inStep(videos) }) });
by('save').onclick = () => { const rankings = [];
  data.samples.forEach((s, k) => { for (const c of data.criteria) if (done(k, c))
    rankings.push({ sample: k, criterion: c, ranks: ranks[k][c] }) });
  const a = make('a', null, document.body); a.download = 'ratings.json';
  a.href = URL.createObjectURL(new Blob([JSON.stringify({ study: data.study, rankings })])); a.click() };
count();
"""


def study(out: Path, rows: list[dict], names: list[str], n: int, seed: int = 0) -> Path:
    """Write out/study/, a folder to hand out: study.html and copies of the videos under names that tell nothing.

    n samples of which each method has a video; in each the methods get letters in an order of its own, by `seed`. Who
    is who is in out/study_key.json, which is not handed out. Raises BadInput where there are too few samples, or
    another study's key would be lost.
    """
    seen = lambda s, m: "TF" in s["methods"].get(m, {}).get("scores", {})
    whole = [s for s in samples(rows) if all(seen(s, m) for m in names) and (out / s["source"]).is_file()]
    if len(names) < 2 or len(whole) < n:
        raise BadInput(f"--study {n}: {len(whole)} samples have videos of all {len(names)} methods; take fewer samples, "
                       f"and two methods or more")
    rng, shown, key = np.random.default_rng(seed), [], {"study": "", "samples": []}
    folder, copied = out / "study", []
    for k, place in enumerate(rng.permutation(len(whole))[:n]):
        s, letters = whole[place], {chr(65 + x): names[i] for x, i in enumerate(rng.permutation(len(names)))}
        copies = {letter: f"{k + 1}{letter}.mp4" for letter in letters}
        original = f"{k + 1}source{Path(s['source']).suffix}"
        copied += [(original, s["source"]), *[(copies[x], s["methods"][m]["video"]) for x, m in letters.items()]]
        shown.append({"instruction": s["instruction"], "source": original, "edits": copies})
        key["samples"].append({"id": s["id"], **letters})
    key["study"] = hashlib.sha256(json.dumps(key).encode()).hexdigest()[:16]
    body = ("<h1>Which edit is best?</h1><p>Each sample shows a source, an instruction that hints at an edit, and the "
            "edits of several methods. Rank them: how well the edit does what the instruction means (Edit Accuracy), "
            "how well all else is as it was (Content Preservation), and how good the video looks (Visual Quality). 1 is the "
            "best, equals may share a rank. What you chose is kept in this browser.</p><div id=bar><b id=count></b> "
            "<button id=save>download ratings.json</button></div><div id=list></div>")
    data = {"study": key["study"], "criteria": CRITERIA, "samples": shown}
    record = out / "study_key.json"
    if record.exists() and json.loads(record.read_text()) != key:                          # without it, answers are lost
        raise BadInput(f"{record}: is the key of another study; move it and {folder} away, or pass the same --study and "
                       f"--seed")
    atomic_write(record, json.dumps(key, indent=1) + "\n")
    for name, path in copied:
        with replacing(folder / name) as temporary:
            shutil.copyfile(out / path, temporary)
    atomic_write(folder / "study.html", _page("Study", body, data, STUDY))
    return folder / "study.html"


def read_rankings(out: Path, files: list[str]) -> dict[str, list[dict[str, int]]]:
    """{criterion: [{method: rank}, ...]} of what people downloaded, by out/study_key.json. Raises BadInput."""
    try:
        key = json.loads((out / "study_key.json").read_text())
    except (OSError, ValueError) as error:
        raise BadInput(f"{out}/study_key.json: cannot be read ({error}); make the study with --study first") from error
    found = {criterion: [] for criterion in CRITERIA}
    for file in files:
        try:
            rated = json.loads(Path(file).read_text())
            if rated["study"] != key["study"]:
                raise BadInput(f"{file}: is of another study; give those of {out}/study")
            for row in rated["rankings"]:
                names = {x: m for x, m in key["samples"][row["sample"]].items() if x != "id"}
                possible = range(1, len(names) + 1)
                if set(row["ranks"]) != set(names) or not all(rank in possible for rank in row["ranks"].values()):
                    raise ValueError(f"ranks {row['ranks']}")
                found[row["criterion"]].append({names[x]: rank for x, rank in row["ranks"].items()})
        except BadInput:
            raise
        except (OSError, ValueError, KeyError, TypeError, IndexError) as error:
            raise BadInput(f"{file}: is no ratings.json of the study ({error}); take it away") from error
    return found
