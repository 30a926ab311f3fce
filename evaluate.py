"""How good is it? Generate, judge, and say how sure one can be (Sec. 3.2).

    python evaluate.py --subset rave                            # the base model; also icvg, literal, cross
    python evaluate.py --subset rave --checkpoint out/uso       # a run of train.py
    python evaluate.py --subset icvg --split val --n 50 --seed 1
    python evaluate.py --critic                                 # is the critic right? VAE, verdicts, gradients

Any method's videos of any benchmark (judge.py says what that is), by the paper's protocol:

    python evaluate.py --manifest bench.jsonl --videos ours=out/ours --videos vace=out/vace --judge openai --out results
    python evaluate.py --manifest bench.jsonl --checkpoint out/uso --subset icvg --judge vila   # makes its videos first
    python evaluate.py --report results                         # the tables again from what is there; no call, no model
    python evaluate.py --report results --study 50              # a page on which people rank the methods blindly
    python evaluate.py --report results --study-results *.json  # what they said

On the tiny world it writes scores.jsonl (one row a sample), table.md and strips.png (source, edit, target of the first
dozen) into out/eval/<checkpoint>-<subset>-<split>/. Stopped and started again with the same settings it goes on where it
was; other settings or other weights start afresh. The judge is the tiny world's oracle: it re-renders the right answer.

Of a benchmark it writes scores.jsonl (one row a sample and method), table.md, report.html, about.json and what needs no
second time: replies.jsonl (ask.py), kept.jsonl. A video that is missing, unreadable or too short is listed and counted,
never scored.

Axis letters: B batch, F frames, H W pixels.
"""

import argparse
import csv
import json
import math
import os
from concurrent.futures import ThreadPoolExecutor
from itertools import combinations
from pathlib import Path

import numpy as np
import torch
from scipy.stats import bootstrap, spearmanr
from tqdm import tqdm

import judge
import quality
import report
import world
from ask import Client, Missing
from critic import THINK, Critic, decode_frames, load_model
from data import (BadInput, Parser, atomic_write, fingerprint, hash_video, markdown, read_pixels, read_video, replacing,
                  run_script, write_video)
from model import FROZEN, TRAINED
from quality import feature_consistency, motion_smoothness, temporal_flickering       # for who imports them from here

COLUMNS = ("EA", "PC", "GN", "GR", "Overall", "Geometric mean")
STRIPS = 12                                              # how many samples strips.png shows


# --------------------------------------------------------------------------------------------------------- scores

def overall(ea, pc, gn, gr):
    """A sample's Overall in 0..10: sqrt(SC * PQ), SC = min(EA, PC), PQ = min(GN, GR) (Sec. 3.2, read as VIEScore does).

    Numbers or arrays in 0..10. pc is None on ICVG, which has no Preservation Consistency: then SC = EA.
    """
    return np.sqrt((ea if pc is None else np.minimum(ea, pc)) * np.minimum(gn, gr))


def geometric_mean(ea, pc, gn, gr):
    """The geometric mean of all four scores (of three where pc is None): the other reading of the paper's sentence."""
    return np.sqrt(np.sqrt(ea * pc * gn * gr)) if pc is not None else np.cbrt(ea * gn * gr)


def interval(values, seed: int = 0) -> tuple[float, float, float]:
    """(mean, low, high): the mean of `values` and its 95 % interval, by the percentile bootstrap.

    A single value has no interval (low and high are NaN), an empty list has no mean either.
    """
    x = np.asarray(values, float)
    if len(x) < 2:
        return float(x[0]) if len(x) else math.nan, math.nan, math.nan
    ci = bootstrap((x,), np.mean, method="percentile", batch=1000, rng=np.random.default_rng(seed)).confidence_interval
    return float(x.mean()), float(ci.low), float(ci.high)


def paired_difference(a, b) -> tuple[float, float, float]:
    """(mean, low, high) of a - b over the same samples: what one method gains on another, with its 95 % interval.

    Pairs in which either is None (a failed sample) are left out. Raises ValueError where the lengths differ.
    """
    return interval([x - y for x, y in zip(a, b, strict=True) if x is not None and y is not None])


def win_rates(rankings: list[dict[str, float]]) -> dict[tuple[str, str], tuple[float, float, float]]:
    """{(a, b): (rate, low, high)}: how often a is ranked before b, with its 95 % interval (Fig. 7).

    rankings: one {method: rank} for each judgement, 1 the best; equal ranks are half a win, and a ranking without one of
    the two says nothing about them. For each ordered pair that is in some ranking; the two rates of a pair add up to 1.
    """
    names = list(dict.fromkeys(name for ranks in rankings for name in ranks))
    wins = {(a, b): [(np.sign(ranks[b] - ranks[a]) + 1) / 2 for ranks in rankings if a in ranks and b in ranks]
            for a in names for b in names if a != b}
    return {pair: interval(won) for pair, won in wins.items() if won}


# ---------------------------------------------------------------------------- what was made before, and with what

def is_of(folder: Path, settings: dict) -> bool:
    """Whether what lies in `folder` was made with these settings."""
    try:
        return json.loads((folder / "settings.json").read_text()) == settings
    except (OSError, ValueError):                        # there are none, or not ours
        return False


def start_afresh(folder: Path, settings: dict, *stale: str) -> None:
    """Clear away the files of `folder` that these patterns name, and write the settings down."""
    for old in [file for pattern in stale for file in folder.glob(pattern)]:
        old.unlink()
    atomic_write(folder / "settings.json", json.dumps(settings, indent=1) + "\n")


# ------------------------------------------------------------------------------------------- generate and judge

def generate_and_judge(model, subset: str, split: str, n: int, steps: int = 12, guidance: float = 1.0, seed: int = 0,
                       batch: int = 20, progress: bool = True, keep=None, done: dict | None = None,
                       critic: Critic | None = None) -> list[dict]:
    """Edit the first `n` triplets of the tiny world and judge each; returns a row for each sample, in order.

    A row has id, index, subset, type, rule, instruction, failed (None or why) and the COLUMNS; PC is None on ICVG, and
    every score is None where the sample failed: a video that is not finite is counted, never scored. Sample i's noise
    comes from seed + i, whatever the batch. With a critic, its margin is in the row, too, beside the oracle's scores and
    in none of them. keep(row, video (F, 3, H, W)) is called for each new row; `done` holds rows
    by index that need not be made again.
    """
    rows = dict(done or {})
    todo = [i for i in range(n) if i not in rows]
    with tqdm(total=n, initial=n - len(todo), desc=f"evaluate {subset}", unit="sample", disable=not progress) as bar:
        while todo:
            now = [i for k, i in enumerate(todo[:batch]) if i == todo[0] + k]          # row k has the noise seed + k
            todo = todo[len(now):]
            triplets = [world.make_triplet(i, subset, split) for i in now]
            source = torch.stack([t.source for t in triplets]).to(model.device)            # (B, F, 3, H, W)
            edits = model.sample(source, [t.instruction for t in triplets], steps, guidance, seed + now[0]).cpu()
            told = [{}] * len(now)
            if critic:
                with torch.no_grad():
                    margin = critic.margin(source, edits, [t.instruction for t in triplets])
                told = [{"margin": m if math.isfinite(m) else None} for m in margin.tolist()]
            for i, triplet, video, more in zip(now, triplets, edits, told):
                rows[i] = {"id": f"{subset}-{split}-{i}", "index": i, "subset": subset, "type": triplet.type,
                           "rule": triplet.rule, "instruction": triplet.instruction, **_scores(triplet, video), **more}
                if keep:
                    keep(rows[i], video)
            bar.update(len(now))
    return [rows[i] for i in range(n)]


def _scores(triplet, video) -> dict:
    if not video.isfinite().all():
        return {"failed": "the video is not finite", **dict.fromkeys(COLUMNS)}
    s = world.judge(triplet, video)
    four = s["EA"], s.get("PC"), s["GN"], s["GR"]
    return {"failed": None, **dict(zip(COLUMNS, (*four, float(overall(*four)), float(geometric_mean(*four)))))}


def table(rows: list[dict]) -> str:
    """Rows of samples -> a Markdown table: a line for each reasoning type and one for all; mean [95 % interval]."""
    lines = [["type", "N scored", "N failed", *COLUMNS]]
    types = list(dict.fromkeys(r["type"] for r in rows))
    for name in types + ["all"]:
        group = [r for r in rows if name in (r["type"], "all")]
        scored = [r for r in group if not r["failed"]]
        lines.append([name, str(len(scored)), str(len(group) - len(scored)),
                      *[told(interval([r[column] for r in scored if r[column] is not None])) for column in COLUMNS]])
    return markdown(lines)


def told(value: tuple[float, float, float], form: str = ".2f") -> str:
    """(value, low, high) for a table, with its interval where it has one; "-" for a NaN."""
    mean, low, high = value
    return "-" if math.isnan(mean) else f"{mean:{form}}" + ("" if math.isnan(low) else f" [{low:{form}}, {high:{form}}]")


# ----------------------------------------------------------------------------- is the critic right? (Sec. 4.2.2)

def psnr(a: torch.Tensor, b: torch.Tensor) -> float:
    """Mean over clips of the peak signal-to-noise ratio in dB; a, b: (B, F, 3, H, W) in [-1, 1]."""
    return float((10 * torch.log10(4 / (a - b).pow(2).mean((1, 2, 3, 4)).clamp_min(1e-9))).mean())


def check_critic(model, n: int = 200, split: str = "test", seed: int = 0, batch: int = 20) -> dict:
    """Measure the frozen parts on `n` held-out triplets (RAVE and ICVG in turn) of the tiny world.

    psnr: the VAE on whole clips. alone_psnr: single latent frames decoded alone, against the same frames of the exact
    decode. For each chain of thought: right, the share of right verdicts on n edits (targets) and n near misses (with an
    oracle's Overall below 6); by_kind; spearman of margin and oracle's EA on n edits that the model generates;
    gradient, the mean norm of d margin / d pixels on those; inside, the share of its absolute value where source and
    target differ, beside `area`, the share of the picture that this is.
    """
    triplets = [world.make_triplet(k // 2, ("rave", "icvg")[k % 2], split) for k in range(n)]
    rng, misses, kinds = np.random.default_rng(seed), [], []
    for k, triplet in enumerate(triplets):
        while True:
            kind = world.MISSES[k % len(world.MISSES)]
            video, _ = world.near_miss(triplet, kind, rng)
            s = world.judge(triplet, video)
            if overall(s["EA"], s.get("PC"), s["GN"], s["GR"]) < 6:
                break
            k += 1                                       # too nearly right to be called wrong: another kind
        misses.append(video), kinds.append(kind)
    source, target = (torch.stack([getattr(t, name) for t in triplets]) for name in ("source", "target"))
    words, wrong = [t.instruction for t in triplets], torch.stack(misses)
    chunks = [slice(i, min(i + batch, n)) for i in range(0, n, batch)]
    edits = torch.cat([model.sample(source[c], words[c], seed=seed + c.start) for c in tqdm(chunks, desc="edits")])
    oracle = [world.judge(t, v)["EA"] for t, v in zip(triplets, edits)]
    with torch.no_grad():
        latents = torch.cat([model.encode_video(target[c]) for c in chunks])
        decoded = torch.cat([model.decode_video(latents[c]) for c in chunks])
        alone = torch.cat([decode_frames(model, latents[c], "alone") for c in chunks])
    result = {"n": n, "split": split, "psnr": psnr(decoded, target),
              "alone_psnr": [psnr(alone[:, k:k + 1], model.vlm.pick(decoded)[:, k:k + 1]) for k in range(alone.shape[1])]}
    region = (model.vlm.pick(source) - model.vlm.pick(target)).abs().amax(2, keepdim=True) > .02      # (B, K, 1, H, W)
    result["area"] = float(region.float().mean())
    for think in THINK:
        critic, margins = Critic(model, think), {}
        expected = [critic.thoughts(source[c], words[c]) if think == "expect" else None for c in chunks]
        for name, clips in (("edit", target), ("miss", wrong)):
            with torch.no_grad():
                margins[name] = torch.cat([critic.margin(source[c], clips[c], words[c], thought)
                                           for c, thought in zip(tqdm(chunks, desc=f"{think}: {name}"), expected)])
        generated, gradients = [], []
        for c, thought in zip(tqdm(chunks, desc=f"{think}: generated"), expected):
            frames = model.vlm.pick(edits[c]).requires_grad_()
            m = critic.margin(source[c], frames, words[c], thought)
            gradients.append(torch.autograd.grad(m.sum(), frames)[0])
            generated.append(m.detach())
        g = torch.cat(gradients)
        ok = {"edit": margins["edit"] > 0, "miss": margins["miss"] < 0}
        kind_of = {kind: [k == kind for k in kinds] for kind in dict.fromkeys(kinds)}
        result[think] = {
            "right": float(torch.cat(list(ok.values())).float().mean()),
            "by_kind": {"edit": float(ok["edit"].float().mean()),
                        **{kind: float(ok["miss"][these].float().mean()) for kind, these in kind_of.items()}},
            "spearman": float(spearmanr(torch.cat(generated), oracle).statistic),
            "gradient": float(g.flatten(1).norm(dim=1).mean()),
            "inside": float((g.abs() * region).flatten(1).sum(1).div(g.abs().flatten(1).sum(1)).mean())}
    return result


# ------------------------------------------------------------------------------ any method, on any benchmark (Sec. 5)

def generate(model, samples: list, folder: Path, steps: int, guidance: float, seed: int, batch: int) -> dict[str, str]:
    """Edit the samples of a benchmark into folder/<id>.mp4, those that are not there yet; {id: why} where that fails.

    The noise of a sample comes from seed + its place in the manifest. Other settings or weights start afresh. Raises
    BadInput for an instruction that the model cannot take; a source that cannot be read fails alone.
    """
    settings = {"checkpoint": fingerprint(model, (*FROZEN, *TRAINED)), "steps": steps, "guidance": guidance,
                "seed": seed}
    if not is_of(folder, settings):
        start_afresh(folder, settings, "*.mp4")
    failed = {}
    todo = [s for s in samples if not (folder / f"{s.id}.mp4").exists()]
    size = model.preset.frames, model.preset.height, model.preset.width
    with tqdm(total=len(samples), initial=len(samples) - len(todo), desc="generate", unit="sample") as bar:
        while todo:
            now = [s for k, s in enumerate(todo[:batch]) if s.index == todo[0].index + k]  # row k has the noise seed + k
            todo, sources = todo[len(now):], []
            for s in now:
                try:
                    sources.append(read_video(s.source, *size))
                except BadInput as error:
                    failed[s.id] = f"no source: {error}"
                    sources.append(torch.zeros(size[0], 3, *size[1:]))             # so that the others keep their noise
            try:
                edits = model.sample(torch.stack(sources).to(model.device), [s.instruction for s in now], steps,
                                     guidance, seed + now[0].index).float().cpu()
            except ValueError as error:
                raise BadInput(f"the manifest: {error}") from error
            for s, video in zip(now, edits):
                if s.id not in failed and not video.isfinite().all():
                    failed[s.id] = "the model's video is not finite"
                if s.id not in failed:
                    write_video(folder / f"{s.id}.mp4", video)
            bar.update(len(now))
    return failed


def look(jobs: list, measures, kept, workers: int) -> list[tuple[str | None, dict]]:
    """(why it cannot be scored, {column: value}) of each job, (sample, method, video): every video, to its end.

    One clip is in memory for each of the workers; what was measured before is `kept`.
    """
    def one(job):
        sample, _, path = job
        try:
            if not path.is_file():                       # what was seen once may be gone
                raise BadInput(f"{path}: there is no such video; correct the path")
            return None, kept(["quality", measures.stamp, sample.instruction, hash_video(path)], lambda: measures(
                torch.from_numpy(np.ascontiguousarray(read_pixels(path, 2).transpose(0, 3, 1, 2))), sample.instruction))
        except ValueError as error:                      # BadInput, or features that are not finite
            return str(error), {}
    with ThreadPoolExecutor(workers) as pool:
        return list(tqdm(pool.map(one, jobs), total=len(jobs), desc="look", unit="video"))


def ask_local(jobs: list, ask, stamp: str, kept) -> list:
    """The verdicts of a local judge(sample, video), a list of one for each job: scores or Missing."""
    verdicts = []
    for sample, _, path in tqdm(jobs, desc="judge", unit="video"):
        try:
            name = ["judge", stamp, sample.id, sample.instruction, hash_video(sample.source), hash_video(path)]
            verdicts.append([kept(name, lambda: ask(sample, path))])
        except ValueError as error:
            verdicts.append([Missing(str(error))])
    return verdicts


def score_row(verdicts: list) -> dict:
    """What the verdicts (scores or Missing, one a repeat) of one edit come to: for a row of scores.jsonl.

    Each column is the mean over the repeats that have it; `repeats` holds those, `missing` why the others do not.
    failed: why, where no repeat is left.
    """
    missing, repeats, reasons = [v.reason for v in verdicts if isinstance(v, Missing)], [], []
    for v in verdicts:
        if not isinstance(v, Missing):
            scores = {column: v[column] for column in (*judge.SCORES, "Yes") if column in v}
            if "EA" in v:
                four = v["EA"], v.get("PC"), v["GN"], v["GR"]
                scores |= {"Overall": float(overall(*four)), "Geometric mean": float(geometric_mean(*four))}
            repeats.append(scores)
            reasons += v.get("reasons", [])
    means = {column: float(np.mean([r[column] for r in repeats])) for column in (repeats[0] if repeats else ())}
    return {"failed": None if repeats or not verdicts else f"judge: {missing[-1]}",
            **{column: means.get(column) for column in (*COLUMNS, "Yes")},
            "missing": missing, "repeats": repeats, "reasons": reasons}


def judge_variance(rows: list[dict], column: str) -> float:
    """The mean over edits of the variance of `column` between the judge's repeats; NaN where none was judged twice."""
    several = [[r[column] for r in row["repeats"] if column in r] for row in rows]
    variances = [np.var(x, ddof=1) for x in several if len(x) > 1]
    return float(np.mean(variances)) if variances else math.nan


def correlation(a, b, seed: int = 0) -> tuple[float, float, float]:
    """Spearman's rho of two lists and its 95 % interval, by the bootstrap over pairs; NaN where there is none."""
    a, b = np.asarray(a, float), np.asarray(b, float)
    if len(a) < 3 or len(set(a)) < 2 or len(set(b)) < 2:
        return math.nan, math.nan, math.nan
    rng, draws = np.random.default_rng(seed), []
    for _ in range(1000):
        i = rng.integers(len(a), size=len(a))
        if len(set(a[i])) > 1 and len(set(b[i])) > 1:
            draws.append(spearmanr(a[i], b[i]).statistic)
    return float(spearmanr(a, b).statistic), *map(float, np.percentile(draws, (2.5, 97.5)))


def read_human(path: str) -> dict[str, dict[tuple[str, str], float]]:
    """{column: {(id, method): mean rating}} of a CSV with the columns id, method and some of the scores' names.

    A line is one person's rating; empty cells are none. Raises BadInput.
    """
    found = {}
    try:
        with open(path, newline="", encoding="utf-8-sig") as file:
            lines = csv.DictReader(file)
            rated = [c for c in (*COLUMNS, "Yes") if c in (lines.fieldnames or ())]
            if not rated or not {"id", "method"} <= set(lines.fieldnames):
                raise BadInput(f"--human {path}: needs the columns id, method and one of {', '.join(COLUMNS)}")
            for line in lines:
                for column in rated:
                    if (line[column] or "").strip():
                        value = float(line[column])
                        if not math.isfinite(value):
                            raise ValueError(f"{column} is {line[column]}")
                        found.setdefault(column, {}).setdefault((line["id"], line["method"]), []).append(value)
    except BadInput:
        raise
    except (OSError, ValueError, csv.Error) as error:
        where = f":{lines.line_num}" if "lines" in locals() else ""
        raise BadInput(f"--human {path}{where}: cannot be read ({error}); give a CSV of numbers") from error
    return {column: {key: float(np.mean(x)) for key, x in cells.items()} for column, cells in found.items()}


PAPER = {"rave": "Table 1 rave", "icvg": "Table 1 icvg", "literal": "Table 3 Ditto-1M", "cross": "Table 2 VIE-Bench"}


def paper_table(name: str, columns) -> list:
    """[a line that says what it is, table] of a table of paper_results.json: of these columns those that it has."""
    theirs = json.loads((Path(__file__).parent / "paper_results.json").read_text())[name]
    both = [c for c in columns if any(row.get(c) is not None for row in theirs.values())]
    cell = lambda x: "-" if x is None else f"{x:g}"
    return [f"The paper's {' '.join(name.split()[:2])}, for comparison only: another judge (GPT-4o of its day, by the "
            f"authors' prompts) on other data:\n",
            [["paper", *both], *([row, *[cell(values.get(c)) for c in both]] for row, values in theirs.items())]]


def tables(rows: list[dict], about: dict, human: dict | None = None) -> tuple[list, list]:
    """(blocks, charts) of a benchmark's rows: for each subset scores by method and type, differences, quality.

    A block is a text or a table, a list of lines of cells. A chart is what report.bars draws: (groups, title, top).
    """
    columns = {"vila": ["Yes"], "none": []}.get(about["judge"], list(COLUMNS))
    heads, names = about["labels"], about["methods"]
    pick = lambda group, column: [r[column] for r in group if not r["failed"] and r[column] is not None]
    drawn, top = (columns[-2], 10.) if len(columns) > 1 else (columns[0], 10.) if columns else ("TF", 1.)
    out, charts = [f"{about['head']}\n"], []
    for subset in dict.fromkeys(r["subset"] for r in rows):
        here = [r for r in rows if r["subset"] == subset]
        kinds = [*dict.fromkeys(r["type"] for r in here), "all"]
        lines, groups = [["method", "type", "N scored", "N failed", *columns]], {}
        for name in names:
            for kind in kinds:
                group = [r for r in here if r["method"] == name and kind in (r["type"], "all")]
                bad = sum(bool(r["failed"]) for r in group)
                lines.append([name, kind, str(len(group) - bad), str(bad), *[told(interval(pick(group, c))) for c in columns]])
                values = pick(group, drawn) if columns else [r["quality"]["TF"] for r in group if r["quality"]]
                groups.setdefault(kind, []).append((name, *interval(values)))
        out += [f"## {subset}\n", lines]
        charts.append((list(groups.items()), f"{subset}: {drawn}", top))
        by = {name: {r["id"]: r for r in here if r["method"] == name and not r["failed"]} for name in names}
        lines = [["difference", "N pairs", *columns]]
        for a, b in combinations(names, 2):
            both = [key for key in by[a] if key in by[b]]
            pair = lambda column: [[by[name][key][column] for key in both] for name in (a, b)]
            lines.append([f"{a} - {b}", str(len(both)), *[told(paired_difference(*pair(c)), "+.2f") for c in columns]])
        if len(lines) > 1 and columns:
            out += ["The same samples, method by method:\n", lines]
        lines = [["method", "N", *[heads[c] for c in quality.COLUMNS]]]
        for name in names:
            seen = [r["quality"] for r in here if r["method"] == name and r["quality"]]
            lines.append([name, str(len(seen)), *[told(interval([q[c] for q in seen if c in q]), ".3f") for c in quality.COLUMNS]])
        out += ["Video quality, 0 to 1:\n", lines]
        if subset in PAPER:
            out += paper_table(PAPER[subset], [*columns, *quality.COLUMNS])
    if about["why"]:
        out += ["Empty columns: " + "; ".join(f"{c}: {why}" for c, why in about["why"].items()) + ".\n"]
    own = {c: judge_variance(rows, c) for c in columns}
    lines = [f"{c} {v:.3f} (standard deviation {v ** .5:.2f})" for c, v in own.items() if not math.isnan(v)]
    if lines:
        out += [f"The judge's own variance, between {about['repeat']} judgements of the same edit: "
                f"{', '.join(lines)}.\n"]
    if human:
        lines = [["judge and people", "N", "Spearman"]]
        for column, ratings in human.items():
            pairs = [(r[column], ratings[r["id"], r["method"]]) for r in rows
                     if r[column] is not None and not r["failed"] and (r["id"], r["method"]) in ratings]
            lines.append([column, str(len(pairs)), told(correlation(*zip(*pairs)) if pairs else (math.nan,) * 3)])
        out += [lines]
    part = sum(len(r["missing"]) for r in rows)
    if part:
        out += [f"{part} judgements are missing: refused, cut off, malformed or out of range after the last try.\n"]
    for name in names:
        bad = [r for r in rows if r["method"] == name and r["failed"]]
        if bad:
            out += [f"{name}: {len(bad)} of {sum(r['method'] == name for r in rows)} failed and are not scored:\n",
                    "".join(f"- {r['id']}: {' '.join(r['failed'].split())}\n" for r in bad)]
    return out, charts


def as_markdown(blocks: list) -> str:
    """The blocks of `tables` as table.md has them; a bar within a cell would end it."""
    return "\n".join(block if isinstance(block, str) else
                     markdown([[" ".join(cell.replace("|", "/").split()) for cell in line] for line in block])
                     for block in blocks)


def benchmark(args) -> None:
    """Score methods on a manifest: their videos, the judge, the tables."""
    samples = judge.read_manifest(args.manifest, args.subset)[:args.n]
    out, methods = Path(args.out or Path("out/eval") / Path(args.manifest).stem), judge.methods(args.videos)
    vbench = quality.vbench_results(args.vbench_results) if args.vbench_results else {}
    client = None
    if args.judge == "openai":
        client = Client(out / "replies.jsonl", args.judge_model or "gpt-4o", args.base_url, args.price_in,
                        args.price_out)
    if args.dry_run:
        jobs = [(s, folder / f"{s.id}.mp4") for s in samples for folder in methods.values()]
        there = [job for job in jobs if job[1].is_file()]
        told = client.count(tqdm(judge.service(there, args.judge_frames, args.repeat)[0], desc="count", unit="question",
                                 total=2 * args.repeat * len(there)))
        print(f"{len(samples)} samples, {len(methods)} methods, {len(jobs) - len(there)} videos missing: "
              f"{told['questions']} questions, {told['calls']} of them not answered yet: about "
              f"{told['tokens_in']:,} tokens in, {told['tokens_out']:,} out, ${told['cost']:.2f}"
              + ("" if args.price_in or args.price_out else " (pass --price-in and --price-out)"))
        return
    model, failed = None, {}
    if args.checkpoint or args.judge == "vila":
        model = load_model(args.judge_model if args.judge == "vila" and args.judge_model else args.checkpoint)
        if torch.cuda.is_available():
            model.cuda()
    measures = quality.Measures(args.dino, args.clip, args.viclip, args.trust_remote_code, model,
                                fingerprint(model, ("vlm",)) if model else "")
    if args.checkpoint:
        name = run_name(args.checkpoint)
        if name in methods:
            raise BadInput(f"--videos {name}=...: the checkpoint is called so, too; rename the one")
        maker = load_model(args.checkpoint) if args.judge_model and args.judge == "vila" else model
        methods[name] = out / "videos" / name
        made = generate(maker.to(model.device), samples, methods[name], args.steps, args.guidance, args.seed, args.batch)
        failed = {(key, name): why for key, why in made.items()}
    kept = judge.Kept(out / "kept.jsonl")
    jobs = [(s, name, folder / f"{s.id}.mp4") for s in samples for name, folder in methods.items()]
    seen = look(jobs, measures, kept, len(os.sched_getaffinity(0)))
    whole = [k for k, (why, _) in enumerate(seen) if not why]
    good, verdicts = [jobs[k] for k in whole], [[] for _ in whole]
    if args.judge == "openai":
        asked, gather = judge.service([(s, path) for s, _, path in good], args.judge_frames, args.repeat)
        verdicts = gather(client.ask(asked, 2 * args.repeat * len(good), "judge"))
        client.close()
    elif args.judge == "oracle":
        for s in dict.fromkeys(s for s, *_ in good):     # of another world: no one's fault but the command's
            judge.world_triplet(s)
        verdicts = ask_local(good, judge.oracle, f"oracle {world.VERSION}", kept)
    elif args.judge == "vila":
        verdicts = ask_local(good, judge.vila(model), f"vila {fingerprint(model, ('vlm',))} {model.preset}", kept)
    verdicts, rows, near = dict(zip(whole, verdicts)), [], lambda path: os.path.relpath(path, out)
    for k, (s, name, path) in enumerate(jobs):
        scores = score_row(verdicts.get(k, []))
        scores["failed"] = failed.get((s.id, name)) or seen[k][0] or scores["failed"]
        rows.append({"id": s.id, "subset": s.subset, "type": s.type, "instruction": s.instruction, "method": name,
                     "source": near(s.source), "target": near(s.target), "video": near(path), **scores,
                     "quality": seen[k][1] | vbench.get((name, s.id), {}) if not seen[k][0] else {}})
    labels, why = dict(measures.labels), dict(measures.why)
    for column in {c for values in vbench.values() for c in values}:
        labels[column] = f"{column} (vbench)"
        why.pop(column, None)
    by = {"none": "no judge", "oracle": "the tiny world's oracle",
          "vila": f"the VLM of {args.judge_model or args.checkpoint or 'weights/tiny'}",
          "openai": f"{client.model}, {args.judge_frames} frames, prompt {judge.PROMPT}" if client else ""}[args.judge]
    about = {"head": f"{Path(args.manifest).name}{f', subset {args.subset}' if args.subset else ''}, judged by {by}"
                     f"{f', {args.repeat} times' if args.repeat > 1 else ''}: means [95 % bootstrap interval].",
             "judge": args.judge, "repeat": args.repeat, "methods": list(methods), "labels": labels, "why": why}
    atomic_write(out / "scores.jsonl", "".join(json.dumps(row) + "\n" for row in rows))
    atomic_write(out / "about.json", json.dumps(about, indent=1) + "\n")
    texts = {s.id: s.instruction for s in samples}
    commands = [quality.vbench_folder(out / "vbench", name, {s.id: path for s, its, path in good if its == name}, texts)
                for name in methods]
    if "MS" in why:
        print("motion smoothness, from the vbench package in its own environment, and then --vbench-results "
              f"{out}/vbench/results:\n  " + "\n  ".join(commands))
    rebuild(out, args)


def study_table(rankings: dict[str, list]) -> list[list[str]]:
    """Win rates of each criterion's rankings, a line for each ordered pair of methods."""
    lines = [["wins over", "N", *rankings]]
    rates = {criterion: win_rates(some) for criterion, some in rankings.items()}
    for pair in dict.fromkeys(pair for some in rates.values() for pair in some):
        n = max(sum(set(pair) <= set(ranks) for ranks in some) for some in rankings.values())
        cells = [told(some.get(pair, (math.nan,) * 3), ".0%") for some in rates.values()]
        lines.append([f"{pair[0]} over {pair[1]}", str(n), *cells])
    return lines


def rebuild(out: Path, args) -> None:
    """Write the tables and pages of what is in `out`, and print the tables; people's ratings are kept there, too.

    Raises BadInput where there are no results.
    """
    if args.human:
        atomic_write(out / "human.csv", Path(args.human).read_bytes())
    human = read_human(str(out / "human.csv")) if (out / "human.csv").exists() else None
    try:
        rows = [json.loads(line) for line in (out / "scores.jsonl").read_text().splitlines()]
        about = json.loads((out / "about.json").read_text())
        blocks, charts = tables(rows, about, human)
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise BadInput(f"--report {out}: holds no results of a benchmark ({error}); make them with --manifest") \
            from error
    if args.study_results:
        ranked = study_table(report.read_rankings(out, args.study_results))
        blocks += ["## user study\n", "Pairwise win rates of people's rankings [95 % bootstrap interval]:\n", ranked]
    text = as_markdown(blocks)
    atomic_write(out / "table.md", text)
    report.report(out, rows, about, blocks, [report.bars(*chart) for chart in charts], human)
    print(f"{text}\nwrote scores.jsonl, table.md and report.html into {out}")
    if args.study:
        print(f"wrote {report.study(out, rows, about['methods'], args.study, args.seed)}: hand out its folder; "
              f"{out}/study_key.json says which method is which")


# ---------------------------------------------------------------------------------------------------- the command

def parse(argv=None) -> argparse.Namespace:
    parser = Parser(description="Score a model on the tiny world.")
    parser.add_argument("--critic", action="store_true", help="measure the frozen parts instead of the generator")
    parser.add_argument("--subset", help=f"one of {', '.join(world.SUBSETS)} (default: rave), or a manifest's (all)")
    parser.add_argument("--split", default="test", help=f"one of {', '.join(world.SPLITS)}")
    parser.add_argument("--checkpoint", "--weights", help="a run's or model's folder (default: weights/<preset>)")
    parser.add_argument("--margin", action="store_true", help="keep the critic's margin in scores.jsonl, too")
    parser.add_argument("--n", type=int, help="how many samples (default: 200 of the tiny world, all of a manifest)")
    parser.add_argument("--steps", type=int, default=12, help="Euler steps from noise to clip")
    parser.add_argument("--guidance", type=float, default=1.0, help="c + g (c - uncond); 0 is none")
    parser.add_argument("--batch", type=int, default=20, help="clips generated at a time")
    parser.add_argument("--seed", type=int, default=0, help="of the noise")
    parser.add_argument("--out", help="where the results' folder goes (default: out/eval); of a manifest, that folder")
    add = parser.add_argument_group("any method on any benchmark").add_argument
    add("--manifest", help="JSON lines: data.py's record with id and subset")
    add("--videos", action="append", default=[], metavar="NAME=DIR", help="a method's folder of <id>.mp4; repeat it")
    add("--judge", default="none", choices=("none", "oracle", "vila", "openai"), help="who gives the scores")
    add("--judge-model", help="openai: the model's name (default: gpt-4o); vila: a model folder (default: weights/tiny)")
    add("--judge-frames", type=int, default=8, help="frames of source and edit that a service is shown")
    add("--base-url", help="openai: another endpoint that speaks its language")
    add("--price-in", type=float, default=0., help="openai: dollars a million tokens of questions")
    add("--price-out", type=float, default=0., help="openai: dollars a million tokens of answers")
    add("--dry-run", action="store_true", help="openai: print calls, tokens and dollars, and ask nothing")
    add("--repeat", type=int, default=1, help="openai: judge so many times, for the judge's own variance")
    add("--human", help="ratings of people, CSV: id, method and scores; for the judge's correlation with them")
    add("--dino", help="subject consistency: facebook/dino-vitb16, or a folder")
    add("--clip", help="background consistency: openai/clip-vit-base-patch32, or a folder")
    add("--viclip", help="overall consistency and ViCLIP-T: OpenGVLab/ViCLIP-L-14-hf, or a folder")
    add("--trust-remote-code", action="store_true", help="run the code that comes with ViCLIP")
    add("--vbench-results", help="folder of what the vbench package wrote: motion smoothness, and what else is there")
    add("--study", type=int, metavar="N", help="write a page with N samples, on which people rank the methods blindly")
    add("--study-results", nargs="+", metavar="JSON", help="what they downloaded: win rates go into the tables")
    add("--report", metavar="DIR", help="rebuild the tables of such results; no call, no model")

    args = parser.parse_args(argv)
    for flag in ("n", "steps", "batch", "judge_frames", "repeat", "study"):
        value, name = getattr(args, flag), flag.replace("_", "-")
        if value is not None and value < 1:
            raise BadInput(f"--{name} {value}: must be at least 1; {parser.get_default(flag) or 50} will do")
    for flag in ("guidance", "price_in", "price_out"):
        value = getattr(args, flag)
        if not 0 <= value < math.inf:
            raise BadInput(f"--{flag.replace('_', '-')} {value}: must be 0 or a positive number; 1 will do")
    if args.human:
        read_human(args.human)                           # what can go wrong at the end is found out at the start
    if args.report:
        return args
    if args.manifest:
        if args.critic or args.margin:
            raise BadInput(f"--{'critic' if args.critic else 'margin'}: is of the tiny world; leave out --manifest")
        if not (args.videos or args.checkpoint):
            raise BadInput("--manifest: needs a method; give --videos NAME=DIR, or --checkpoint")
        if args.repeat > 1 and args.judge != "openai":
            raise BadInput(f"--repeat {args.repeat}: the judge {args.judge} always says the same; pass --judge openai")
        if args.dry_run and (args.judge != "openai" or args.checkpoint):
            raise BadInput("--dry-run: counts what --judge openai would be asked about --videos that are there")
        return args
    for flag, value in (("videos", args.videos), ("judge", args.judge != "none"), ("dry-run", args.dry_run),
                        ("study", args.study), ("study-results", args.study_results)):
        if value:
            raise BadInput(f"--{flag}: needs --manifest or --report; the tiny world has its own oracle")
    args.subset, args.n, args.out = args.subset or "rave", args.n or 200, args.out or "out/eval"
    try:
        world.make_triplet(0, args.subset, args.split)
    except ValueError as error:
        raise BadInput(f"--subset {args.subset} --split {args.split}: {error}") from error
    return args


def resume(folder: Path, settings: dict) -> dict[int, dict]:
    """The rows, by index, that an earlier run with the same settings left in `folder`; other ones are cleared away."""
    try:
        if is_of(folder, settings):
            return {r["index"]: r for r in map(json.loads, (folder / "scores.jsonl").read_text().splitlines())}
    except (OSError, ValueError, KeyError, TypeError):   # there is none, or not one of ours
        pass
    if (folder / "scores.jsonl").exists():
        print(f"{folder} holds the scores of other settings or weights: starting afresh")
    start_afresh(folder, settings, "scores.jsonl", "table.md", "strips.png")
    return {}


def run_name(folder: str) -> str:
    """What a run is called: out/run/model is out/run, and out/run/model-300 its copy of step 300."""
    path = Path(folder).resolve()
    return path.parent.name + path.name.removeprefix("model") if path.name.startswith("model") else path.name


def main(argv=None) -> None:
    args = parse(argv)
    if args.report:
        return rebuild(Path(args.report), args)
    if args.manifest:
        return benchmark(args)
    model = load_model(args.checkpoint)
    if torch.cuda.is_available():
        model.cuda()
    if args.critic:
        result = check_critic(model, args.n, args.split, args.seed, args.batch)
        atomic_write(Path(args.out) / "critic.json", json.dumps(result, indent=1) + "\n")
        print(f"on {args.n} triplets of the {args.split} split: VAE {result['psnr']:.1f} dB; latent frames decoded alone, "
              f"against the exact decode: {', '.join(f'{x:.1f}' for x in result['alone_psnr'])} dB")
        for think in THINK:
            r = result[think]
            kinds = ", ".join(f"{kind} {right:.0%}" for kind, right in r["by_kind"].items())
            print(f"{think:7s} verdicts right {r['right']:.1%} ({kinds}); "
                  f"Spearman with EA {r['spearman']:.3f}; |d margin / d pixels| {r['gradient']:.3f}, "
                  f"{r['inside']:.0%} of it on the {result['area']:.0%} of pixels that should change")
        return
    name = run_name(args.checkpoint) if args.checkpoint else model.preset.name
    folder = Path(args.out) / f"{name}-{args.subset}-{args.split}"
    how = {k: getattr(args, k) for k in ("subset", "split", "steps", "guidance", "seed")}
    settings = {**how, "checkpoint": fingerprint(model, (*FROZEN, *TRAINED)), "world": world.VERSION,
                "margin": args.margin}
    rows, clips, strips = resume(folder, settings), {}, folder / "strips.png"

    def keep(row, video):
        rows[row["index"]] = row
        atomic_write(folder / "scores.jsonl", "".join(json.dumps(rows[i]) + "\n" for i in sorted(rows)))
        if row["index"] < STRIPS:
            clips[row["index"]] = video

    result = generate_and_judge(model, n=args.n, **how, batch=args.batch, keep=keep, done=rows,
                                critic=Critic(model) if args.margin else None)
    if clips or not strips.exists():
        first = range(min(args.n, STRIPS))
        if len(clips) < len(first):                      # before a stop only scores were kept: the same clips once more
            generate_and_judge(model, n=len(first), **how, batch=args.batch, progress=False,
                               keep=lambda row, video: clips.update({row["index"]: video}))
        triplets = [world.make_triplet(i, args.subset, args.split) for i in first]
        with replacing(strips) as temporary:
            world.contact_sheet(triplets, {"source": [t.source for t in triplets], "edit": [clips[i] for i in first],
                                           "target": [t.target for t in triplets]}, temporary)
    text = table(result)
    head = f"{args.checkpoint or 'weights/' + model.preset.name} on {args.subset}, {args.split} split: mean of 0..10 " \
           f"[95 % bootstrap interval], {args.steps} steps, guidance {args.guidance:g}, seed {args.seed}."
    atomic_write(folder / "table.md", f"{head}\n\n{text}")
    failed = sum(bool(r["failed"]) for r in result)
    print(f"{head}\n\n{text}" + (f"\n{failed} of {args.n} samples failed: not finite, not scored\n" if failed else "")
          + f"\nwrote scores.jsonl, table.md and strips.png into {folder}")


if __name__ == "__main__":
    run_script(main)
