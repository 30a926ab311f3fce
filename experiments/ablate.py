"""Does self-reflection work? The paper's Tables 2 to 6 and Figure 4 in the tiny world, and what it does not show.

    python ablate.py --all                 # every run, table and figure; what is done is skipped, Ctrl-C loses nothing
    python ablate.py --table 4             # 2: cross, 3: literal, 4: objectives, 5: lambda, 6: tau
    python ablate.py --figure gamed        # also 4, samples, data, gradient, read, compute, search
    python ablate.py --all --list          # only what is left to do, and how long it takes

Trains with train.py and scores with evaluate.py, as a user would, one command on each core; keeps the runs and their
scores per sample in out/ablate, a folder for each base, and writes Markdown and PNG into results/. All runs share
base, data, steps, batch and learning rate. Three targets in ten of their data are near misses (`--wrong 0.3`), as in a
dataset that a model has made; `--figure data` has other shares. An interval is 95 % of a bootstrap that draws anew both
training seeds and test samples; methods are compared on the same seeds and samples.

Axis letters: S seeds, N samples, B batch, K frames that the critic sees, H W pixels.
"""

import csv
import hashlib
import json
import os
import platform
import subprocess
import sys
import time
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path
from queue import SimpleQueue
from threading import Lock
from typing import NamedTuple

import numpy as np
import torch
from scipy.stats import pearsonr, spearmanr
from tqdm import tqdm

from tiny import world
from bench import trigger_rate
from critic import THINK, Critic, clean_estimate, decode_frames, load_model, reason_loss
from common.files import BadInput, Parser, atomic_write, markdown, replacing, run_script
from model import add_noise, shifted, velocity_target
from common.intervals import COLUMNS, format_interval
from rvebench.scores import as_markdown, paper_table

HERE, BASE = Path(__file__).parents[1], "base"
LAMBDAS, TAUS, LRS = (0, .1, .25, .5, .75), (.1, .3, .5, .7, .9), ("4e-4", "8e-4", "1.6e-3", "3.2e-3")
WRONG, WRONGS = .3, (0, .3, .6)                          # share of the training targets that are near misses
WIDE = "tau 0.9"                                         # in Table 4, too: there the critic is asked most of the time
EVERY = 250                                              # steps between the copies of the runs that look for gaming
RUNS = {                                                 # what train.py is told beside --wrong; the rest is default
    "sft": "--objective sft", "rwr": "--objective rwr", "uso": "",
    **{f"lambda {x}": f"--lambda {x}" for x in LAMBDAS[1:] if x != .25},
    **{f"tau {x}": f"--tau {x}" for x in TAUS if x != .5},
    **{f"uso, no {x}": f"--without {x}" for x in ("vlm", "position")},
    **{f"{o}, lr {x}": f"--objective {o} --lr {x}" for x in LRS for o in ("sft", "rwr", "uso")},
    **{f"{o}, {x} wrong": f"--objective {o} --wrong {x}" for x in WRONGS if x != WRONG for o in ("sft", "uso")},
    "lambda 3": "--lambda 3", "lambda 3, m_0 = 0": "--lambda 3 --without baseline",
    "lambda 3, K = 1": "--lambda 3 --vlm-frames 1", "lambda 3, tau = 1": "--lambda 3 --tau 1",
    "lambda 3, no flow": "--lambda 3 --without flow", "refl": "--objective refl", "grpo": "--objective grpo"}
WATCHED = ["sft", "uso", "lambda 0.75", "lambda 3"]       # for gaming
SWITCHED = [run for run in RUNS if run.startswith("lambda 3, ")]
RIVALS = ("refl", "grpo")
ALONE = lambda score: score.run == BASE or ", lr " in score.run    # one seed: the base has none, a search needs no more
of_lambda = lambda x: {0: "sft", .25: "uso"}.get(x, f"lambda {x}")
of_wrong = lambda objective, x: objective if x == WRONG else f"{objective}, {x} wrong"
of_tau = lambda x: {.5: "uso"}.get(x, f"tau {x}")
test = lambda runs, *subsets: [Score(run, subset) for run in runs for subset in subsets]


# ------------------------------------------------------------------------------------------------------- the jobs

class Job(NamedTuple):
    """A command of ours, and the file that is there once it is done."""
    name: str
    command: list[str]
    makes: Path


class Score(NamedTuple):
    """What is asked of evaluate.py: a run's model (or the copy "-<step>" made on its way) on a subset of a split."""
    run: str
    subset: str
    split: str = "test"
    copy: str = ""

    def folder(self, a, seed: int) -> Path:
        name = run_folder(a, self.run, seed).name + self.copy if self.run != BASE else Path(a.weights or "tiny").name
        return a.root / "eval" / f"{name}-{self.subset}-{self.split}"


def run_folder(a, run: str, seed: int) -> Path:
    return a.root / f"{''.join(c if c.isalnum() or c == '.' else '-' for c in run)}-{seed}"


def flags(a, run: str) -> list[str]:
    """What train.py is told. In "equal time" a rival gets as many steps as fit into the time that USO takes."""
    rival, _, equal = run.partition(", equal ")
    steps = a.steps
    if equal:
        times = read_times(a)
        quickest = {r: min(times[f"train {r}, seed {seed}"] for seed in a.seeds) for r in ("uso", rival)}
        steps = max(1, int(a.steps * quickest["uso"] / quickest[rival]))
    copies = ["--keep-every", str(EVERY)] if run in WATCHED else []
    return ["--wrong", str(WRONG), *RUNS[rival].split(), "--steps", str(steps), *copies, *a.more.split()]


def chain(a, run: str, seed: int, scores: list[Score]) -> list[Job]:
    """The jobs of one run with one seed: train it, then score it."""
    folder, python = run_folder(a, run, seed), [sys.executable]
    jobs = [] if run == BASE else [Job(
        f"train {run}, seed {seed}",
        python + [str(HERE / "train.py"), *flags(a, run), "--seed", str(seed), "--out", str(folder), "--cache",
                  str(a.root / "cache"), "--eval-items", "0", *(["--weights", a.weights] if a.weights else [])],
        folder / "model" / "model.json")]
    for score in scores:
        model = a.weights if run == BASE else folder / f"model{score.copy}"
        where = ["--checkpoint", str(model)] if model else []
        margin = ["--margin"] if score.split == "val" or score in NEEDS["figure 4"] else []          # a third more time
        jobs.append(Job(f"{score.subset} {score.split} {run}{score.copy}, seed {seed}",
                        python + [str(HERE / "evaluate.py"), *margin, "--subset", score.subset, "--split",
                                  score.split, "--n", str(a.n), *where, "--out", str(a.root / "eval")],
                        score.folder(a, seed) / "table.md"))
    return jobs


def plan(a, items: list[str], done: bool = False) -> list[list[Job]]:
    """The chains that the tables and figures `items` need, with or without the jobs that are done."""
    wanted = {}
    for item in items:
        for score in NEEDS[item](a) if callable(NEEDS[item]) else NEEDS[item]:
            rival, _, equal = score.run.partition(", equal ")
            if equal and not {f"train {r}, seed {s}" for r in ("uso", rival) for s in a.seeds} <= read_times(a).keys():
                continue                                 # the time that it is to be equal to is not known yet
            for seed in (0,) if ALONE(score) else a.seeds:
                wanted.setdefault((score.run, seed), {})[score] = None
    chains = [[job for job in chain(a, *key, list(scores)) if done or not job.makes.exists()]
              for key, scores in wanted.items()]
    return [jobs for jobs in chains if jobs]


def work(a, chains: list[list[Job]]) -> None:
    """Do the chains, one on each core. Raises BadInput with the log's last line where a command fails."""
    cores, times, writing = SimpleQueue(), read_times(a), Lock()
    for core in sorted(os.sched_getaffinity(0)):
        cores.put(core)
    bar = tqdm(total=sum(map(len, chains)), desc="jobs", unit="job")

    def do(jobs):
        for job in jobs:
            log = a.root / "logs" / f"{job.name.replace(' ', '-').replace(',', '')}.txt"
            log.parent.mkdir(parents=True, exist_ok=True)
            start = time.monotonic()
            with log.open("w") as file:
                done = subprocess.run(job.command, stdout=file, stderr=file, env={**os.environ, "OMP_NUM_THREADS": "1"})
            if done.returncode == 130:
                raise KeyboardInterrupt
            if done.returncode or not job.makes.exists():
                last = (log.read_text().splitlines() or ["nothing"])[-1]
                raise BadInput(f"{job.name} failed, {log} says: {last}")
            with writing:
                times[job.name] = round(time.monotonic() - start, 1)
                atomic_write(a.root / "times.json", json.dumps(times, indent=1))
                bar.update()

    def pin():                                           # of this thread and the commands that it starts
        os.sched_setaffinity(0, {cores.get()})
    with bar, ThreadPoolExecutor(cores.qsize(), initializer=pin) as pool:
        try:
            for future in [pool.submit(do, jobs) for jobs in chains]:
                future.result()
        except BaseException:
            pool.shutdown(wait=True, cancel_futures=True)
            raise


def read_times(a) -> dict[str, float]:
    """Seconds of the jobs that are done, by name."""
    file = a.root / "times.json"
    return json.loads(file.read_text()) if file.exists() else {}


def how_long(a, chains: list[list[Job]]) -> str:
    """How long the jobs that are left will take, from those that are done."""
    times, kinds = read_times(a), {}
    for name, seconds in times.items():
        kinds.setdefault(kind(name), []).append(seconds)
    jobs = [job for jobs in chains for job in jobs]
    known = [np.mean(kinds[kind(job.name)]) for job in jobs if kind(job.name) in kinds]
    if not jobs:
        return "nothing is left to run"
    if not known:
        return f"{len(jobs)} commands are left; how long they take is known once some are done"
    minutes = np.mean(known) * len(jobs) / len(os.sched_getaffinity(0)) / 60
    return f"{len(jobs)} commands are left, about {minutes:.0f} minutes"


def kind(name: str) -> str:
    """What jobs have in common that take about as long."""
    return " ".join(name.split()[:2]) if name.startswith(("train grpo", "train refl")) else name.split()[0]


# -------------------------------------------------------------------------------------------------- the statistics

def scores(a, score: Score, column: str = "Overall", types: str | None = None) -> np.ndarray:
    """(S, N) of one column, 0..10, or the critic's margin; the base has S = 1. A failed sample is a NaN."""
    rows = []
    for seed in (0,) if ALONE(score) else a.seeds:
        lines = [json.loads(line) for line in (score.folder(a, seed) / "scores.jsonl").read_text().splitlines()][:a.n]
        rows.append([np.nan if r[column] is None else r[column] for r in lines if types in (None, r["type"])])
    return np.array(rows, float)


def interval(x: np.ndarray, statistic=None, repeats: int = 1000) -> tuple[float, float, float]:
    """(value, low, high): the mean of x (S, N) and 95 % of a bootstrap over seeds and samples, drawn independently.

    statistic: another function than the mean of x[seeds][:, samples]; it gets the two index arrays.
    """
    statistic = statistic or (lambda s, n: np.nanmean(x[s[:, None], n]))
    rng, (S, N) = np.random.default_rng(0), x.shape
    drawn = [statistic(rng.integers(S, size=S), rng.integers(N, size=N)) for _ in range(repeats)]
    return (float(statistic(np.arange(S), np.arange(N))), *map(float, np.nanpercentile(drawn, (2.5, 97.5))))


def cell(x, statistic=None, sign: str = "") -> str:
    """'mean [low, high]' of x (S, N); '-' where there is nothing, as for PC on ICVG."""
    if np.isnan(x).all():
        return "-"
    return format_interval(interval(x, statistic), f"{sign}.2f")


def compare(a, runs: list[str], subset: str, against: str, columns=COLUMNS[:5], name: str = "run") -> str:
    """The Markdown table of `runs` on a subset: the columns, and Overall minus that of `against`, paired."""
    lines = [[name, *columns, f"Overall - {against}"]]
    other = scores(a, Score(against, subset))
    for run in runs:
        here = Score(run, subset)
        lines.append([run, *(cell(scores(a, here, c)) for c in columns),
                      "" if run == against else cell(scores(a, here) - other, sign="+")])
    return markdown(lines)


def by_type(a, runs: list[str], subset: str) -> str:
    """Overall of `runs` by reasoning type."""
    lines = [["Overall", *world.TYPES[subset]]]
    lines += [[run, *(cell(scores(a, Score(run, subset), types=t)) for t in world.TYPES[subset])] for run in runs]
    return markdown(lines)


# ------------------------------------------------------------------------------------------------ tables 2 to 6

def paper(name: str, columns=COLUMNS) -> str:
    """The paper's own table, to stand under ours."""
    return "\n" + as_markdown(paper_table(name, columns))


def table_2(a):
    return ("`cross`: phrasings, and rules in places, that no training sample has.\n\n"
            + compare(a, [BASE, "sft", "uso"], "cross", "sft") + paper("Table 2 VIE-Bench"))


def table_3(a):
    return ("`literal`: the same edits, told in plain words.\n\n"
            + compare(a, [BASE, "sft", "uso"], "literal", "sft") + paper("Table 3 Ditto-1M"))


def table_4(a):
    runs = [BASE, "sft", "rwr", "uso", WIDE]
    return "\n".join(f"{subset.upper()}\n\n{compare(a, runs, subset, 'sft')}\n{by_type(a, runs, subset)}"
                     for subset in ("rave", "icvg")) + paper("Table 4 objective")


def table_5(a):
    return ("RAVE. sft is lambda = 0, uso is lambda = 0.25.\n\n"
            + compare(a, [of_lambda(x) for x in LAMBDAS], "rave", "sft") + paper("Table 5 lambda"))


def table_6(a):
    """Trigger rate, scores, and what the critic's word on a one-step estimate is worth: Pearson with the edit's EA."""
    found = measured(a, "one-step", one_step)
    ea, clean = np.array(found["EA"]), np.array(found["clean"])                            # (models, N)
    pearson = lambda m: cell(ea, lambda s, n: pearsonr(m[s[:, None], n].ravel(), ea[s[:, None], n].ravel()).statistic)
    lines = [["tau", "trigger rate", "tau / (3 - 2 tau)", "Pearson", "share of the bound", *COLUMNS[:5],
              "Overall - sft"]]
    bound = pearsonr(clean.ravel(), ea.ravel()).statistic
    for tau in TAUS:
        run = of_tau(tau)
        logs = [(run_folder(a, run, seed) / "log.csv").read_text().splitlines() for seed in a.seeds]
        rate = np.mean([[float(row["trigger_rate"]) for row in csv.DictReader(log)] for log in logs])
        m = np.array(found[str(tau)])
        lines.append([str(tau), f"{rate:.1%}", f"{trigger_rate(tau):.1%}", pearson(m),
                      f"{pearsonr(m.ravel(), ea.ravel()).statistic / bound:.0%}",
                      *(cell(scores(a, Score(run, "rave"), c)) for c in COLUMNS[:5]),
                      cell(scores(a, Score(run, "rave")) - scores(a, Score("sft", "rave")), sign="+")])
    return (f"RAVE. Pearson: margin on the one-step estimate at a t < tau, from the noised finished edit, with the "
            f"oracle's EA of that edit; {ea.size} edits of base, sft and uso. The bound is the margin on the finished "
            f"edit itself: {pearson(clean)}.\n\n" + markdown(lines) + paper("Table 6 tau", ("trigger rate", "Pearson")))


def measured(a, name: str, measure) -> dict:
    """What measure(a) returns, kept in a file."""
    file = a.root / "measured" / f"{name}.json"
    if not file.exists():
        atomic_write(file, json.dumps(measure(a)))
    return json.loads(file.read_text())


def batches(n: int, size: int = 20):
    return [slice(i, min(i + size, n)) for i in range(0, n, size)]


def models(a, runs):
    """(name, model) of the base and of each run's first seed."""
    return [(run, load_model(a.weights if run == BASE else run_folder(a, run, a.seeds[0]))) for run in runs]


@torch.no_grad()
def one_step(a) -> dict:
    """For base, sft and uso: oracle's EA of n finished RAVE edits, margins on them ("clean") and, for each tau, on the
    one-step estimates at one noise level t < tau each, drawn as in training: lists (models, N)."""
    triplets = [world.make_triplet(i, "rave", "test") for i in range(a.n)]
    source, words, found = torch.stack([t.source for t in triplets]), [t.instruction for t in triplets], {}
    g = torch.Generator().manual_seed(0)
    u, eps = torch.rand(a.n, generator=g), None
    for run, model in models(a, (BASE, "sft", "uso")):
        critic = Critic(model)
        row = {"EA": [], "clean": [], **{str(tau): [] for tau in TAUS}}
        for b in tqdm(batches(a.n), desc=f"one-step estimates, {run}"):
            edit = model.sample(source[b], words[b], seed=b.start)
            row["EA"] += [world.judge(t, v)["EA"] for t, v in zip(triplets[b], edit)]
            thoughts = critic.thoughts(source[b], words[b])
            row["clean"] += critic.margin(source[b], edit, words[b], thoughts).tolist()
            x0, z = model.encode_video(edit), model.encode_video(source[b])
            c = model.context(z, model.bridge(model.encode_vlm(source[b], words[b])), model.encode_text(words[b]))
            eps = torch.randn(x0.shape, generator=g)
            for tau in TAUS:
                t = shifted(u[b] * trigger_rate(tau), model.preset.shift).clamp_min(1e-3)
                x_t = add_noise(x0, eps, t)
                frames = decode_frames(model, clean_estimate(x_t, model.velocity(x_t, t, c, z), t), model.preset.decode)
                row[str(tau)] += critic.margin(source[b], frames, words[b], thoughts).tolist()
        for key, values in row.items():
            found.setdefault(key, []).append(values)
    return found


# ---------------------------------------------------------------------------------------------------- the figures

def picture(path: Path, panels: list[dict]) -> None:
    """Draw panels side by side, each a dict: title, xlabel, lines {name: (x, [(value, low, high), ...])} or bars {name:
    (value, low, high)}."""
    import matplotlib
    matplotlib.use("Agg")
    import matplotlib.pyplot as plt
    figure, axes = plt.subplots(1, len(panels), figsize=(4.2 * len(panels), 3.4), squeeze=False)
    for axis, panel in zip(axes[0], panels):
        for k, (name, (x, y)) in enumerate(panel.get("lines", {}).items()):
            mean, low, high = np.array(y).T
            axis.plot(x, mean, "o-", color=f"C{k}", ms=3, label=name)
            axis.fill_between(x, low, high, color=f"C{k}", alpha=.15, lw=0)
        for k, (name, (mean, low, high)) in enumerate(panel.get("bars", {}).items()):
            axis.barh(name, mean, color=f"C{k}", alpha=.6, xerr=[[mean - low], [high - mean]])
        axis.set(title=panel["title"], xlabel=panel.get("xlabel", ""))
    for k, (axis, panel) in enumerate(zip(axes[0], panels)):
        if panel.get("lines") and (not k or panel["lines"].keys() != panels[k - 1].get("lines", {}).keys()):
            axis.legend(fontsize=7)
    figure.tight_layout()
    with replacing(path) as temporary:
        figure.savefig(temporary, dpi=110)
    plt.close(figure)


def figure_4(a):
    """Is the soft margin worth more than the word? Spearman with the oracle's EA on edits of base, sft, rwr and uso."""
    runs = [Score(run, "rave") for run in (BASE, "sft", "rwr", "uso")]
    pick = lambda column: np.concatenate([scores(a, run, column)[:1] for run in runs])     # (4, N): of the first seed
    margin, ea = pick("margin"), pick("EA")
    rho = lambda m: (lambda s, n: spearmanr(m[s[:, None], n].ravel(), ea[s[:, None], n].ravel()).statistic)
    both = {name: interval(ea, rho(m)) for name, m in (("soft: z_yes - z_no", margin), ("hard: Yes or No", margin > 0))}
    gain = interval(ea, lambda s, n: rho(margin)(s, n) - rho(margin > 0)(s, n))
    picture(a.results / "figure-4.png", [dict(title=f"Spearman with the oracle's EA, {ea.size} edits", bars=both)])
    lines = [["reward", "Spearman with EA"]] + [[k, format_interval(v, ".3f")] for k, v in both.items()]
    lines.append(["soft - hard", format_interval(gain, "+.3f")])
    return f"{ea.size} RAVE edits of base, sft, rwr and uso (seed {a.seeds[0]}).\n\n{markdown(lines)}"


def figure_samples(a):
    """Figures 1 and 6: source, edits of base, SFT and USO, target, with instruction and chain of thought."""
    rows = range(min(12, a.n))
    triplets = [world.make_triplet(i, "rave", "test") for i in rows]
    source, words = torch.stack([t.source for t in triplets]), [t.instruction for t in triplets]
    edits = {run: model.sample(source, words, seed=0) for run, model in models(a, (BASE, "sft", "uso"))}
    thoughts = Critic(load_model(a.weights)).thoughts(source, words)
    told = [replace(t, instruction=f"{t.instruction}   |   U: {thought}") for t, thought in zip(triplets, thoughts)]
    with replacing(a.results / "samples.png") as temporary:
        world.contact_sheet(told, {"source": source, **edits, "target": [t.target for t in triplets]}, temporary)
    return "The first dozen of the test split, seed 0, not chosen. After the bar: the critic's chain of thought."


def copies(a) -> list[str]:
    """The suffixes of the copies that a watched run keeps on its way, and of its end."""
    return [*(f"-{step}" for step in range(EVERY, a.steps, EVERY)), ""]


def figure_gamed(a):
    """Does the margin rise while the oracle falls?"""
    panels, columns = [], ("margin", "EA", "PC", "GR", "Overall")
    steps = [0, *range(EVERY, a.steps, EVERY), a.steps]
    for column in columns:
        value = lambda run, copy="": interval(scores(a, Score(run, "rave", "val", copy), column), repeats=300)
        lines = {run: (steps, [value(BASE), *(value(run, copy) for copy in copies(a))]) for run in WATCHED}
        panels.append(dict(title=column, xlabel="step", lines=lines))
    picture(a.results / "gamed.png", panels)
    lines = [["run", *columns]]
    lines += [[run, *(cell(scores(a, Score(run, "rave", "val"), column)) for column in columns)]
              for run in (BASE, *WATCHED, *SWITCHED)]
    return (f"RAVE, val split, after {steps[-1]} steps. The margin is that of K frames of the finished edit.\n\n"
            + markdown(lines))


def gradient(a) -> dict:
    """Where the critic's gradient acts, how large it is and where it leads: (t, N), on the base's one-step estimates.

    Share of |d margin / d pixels| on what should change, for each way to think, and that region's `area`, (N,). For x_t
    noised from the target ("right") and from a near miss ("wrong"): `size`, |d L_reason / d v| over |d L_FM / d v|, as
    they weigh in Eq. 5 at lambda 0.25, tau 0.5; `aim`, the cosine of -d L_reason / d v with the way from v to the
    velocity whose estimate (Eq. 3) is the right target.
    """
    model, n, levels = load_model(a.weights), min(a.n, 100), (.05, .2, .35, .5, .65, .8, .95)
    triplets = [world.make_triplet(i, "rave", "val") for i in range(n)]
    source, words = torch.stack([t.source for t in triplets]), [t.instruction for t in triplets]
    target, g = torch.stack([t.target for t in triplets]), torch.Generator().manual_seed(0)
    wrong = torch.stack([world.near_miss(t, world.MISSES[i % len(world.MISSES)], np.random.default_rng(i))[0]
                         for i, t in enumerate(triplets)])
    region = (model.vlm.pick(source) - model.vlm.pick(target)).abs().amax(2, keepdim=True) > .02
    found = {"levels": levels, "area": region.float().mean((1, 2, 3, 4)).tolist(), **{think: [] for think in THINK},
             **{f"{what}, {which}": [] for what in ("size", "aim") for which in ("right", "wrong")}}
    with torch.no_grad():
        x0, z = {"right": model.encode_video(target), "wrong": model.encode_video(wrong)}, model.encode_video(source)
        c = model.context(z, model.bridge(model.encode_vlm(source, words)), model.encode_text(words))
        eps = torch.randn(z.shape, generator=g)
        critic = Critic(model)
        thoughts = critic.thoughts(source, words)
        baseline = critic.baseline(source, words, thoughts)
    for t in tqdm(levels, desc="gradients"):
        t, shown = torch.full((n,), t), {which: [] for which in x0}
        for which in x0:
            with torch.no_grad():
                x_t = add_noise(x0[which], eps, t)
                v = model.velocity(x_t, t, c, z)
            size, aim = [], []
            for b in batches(n):
                free = v[b].clone().requires_grad_()
                frames = decode_frames(model, clean_estimate(x_t[b], free, t[b]), model.preset.decode)
                loss = reason_loss(critic.margin(source[b], frames, words[b], thoughts[b]), baseline[b]).sum()
                reason = .25 / trigger_rate(.5) * torch.autograd.grad(loss, free)[0].flatten(1)
                flow = 2 * (v[b] - velocity_target(x0[which][b], eps[b])).flatten(1) / v[0].numel()
                way = ((x_t[b] - x0["right"][b]) / t[0] - v[b]).flatten(1)
                size += (reason.norm(dim=1) / flow.norm(dim=1)).tolist()
                aim += torch.cosine_similarity(-reason, way).tolist()
                shown[which].append(frames.detach())
            found[f"size, {which}"].append(size)
            found[f"aim, {which}"].append(aim)
        for think in THINK:
            share = []
            for b, frames in zip(batches(n), shown["right"]):
                frames.requires_grad_()
                margin = Critic(model, think).margin(source[b], frames, words[b],
                                                     thoughts[b] if think == critic.think else None)
                pixels = torch.autograd.grad(margin.sum(), frames)[0].abs()
                share += ((pixels * region[b]).flatten(1).sum(1) / pixels.flatten(1).sum(1)).tolist()
            found[think].append(share)
    return found


def figure_gradient(a):
    found = measured(a, "gradient", gradient)
    at = {name: [interval(np.array([row])) for row in found[name]] for name in found.keys() - {"levels", "area"}}
    area = interval(np.array([found["area"]]))
    drawn = lambda names: {name: (found["levels"], at[name]) for name in names}
    ways = [[f"{what}, {which}" for which in ("right", "wrong")] for what in ("size", "aim")]
    picture(a.results / "gradient.png", [
        dict(title="share of |d margin / d pixels|\non what should change", xlabel="t",
             lines={**drawn(THINK), "area of the region": (found["levels"], [area] * len(found["levels"]))}),
        dict(title="size beside flow matching's", xlabel="t", lines=drawn(ways[0])),
        dict(title="cosine with the way to the target", xlabel="t", lines=drawn(ways[1]))])
    table = [["t", *THINK, "area", *ways[0], *ways[1]]]
    for i, t in enumerate(found["levels"]):
        of = lambda names: [format_interval(at[name][i]) for name in names]
        table.append([str(t), *of(THINK), f"{area[0]:.2f}", *of(ways[0]), *of(ways[1])])
    return (f"One-step estimates of the base; RAVE, val split, {len(found['area'])} samples. Share of "
            f"|d margin / d pixels| on what should change, by chain of thought, and that region's area. size: "
            f"|d L_reason / d v| over |d L_FM / d v| as they weigh in Eq. 5; aim: cosine of -d L_reason / d v with the way "
            f"to the right target; x_t noised from the target (right) or a near miss (wrong).\n\n" + markdown(table))


def bars(a, name: str, runs: list[str]) -> None:
    """A picture of what `runs` have on RAVE."""
    picture(a.results / f"{name}.png", [
        dict(title=c, bars={run: interval(scores(a, Score(run, "rave"), c)) for run in runs[::-1]})
        for c in ("EA", "PC", "Overall")])


def figure_read(a):
    bars(a, "read", BLIND)
    return ("RAVE. no vlm: its states are zeros. no position: of the visual context adapter.\n\n"
            + compare(a, BLIND, "rave", "uso"))


def figure_data(a):
    """Does the critic help where the data is wrong?"""
    at = {o: [scores(a, Score(of_wrong(o, x), "rave")) for x in WRONGS] for o in ("sft", "uso")}
    gain = {"uso - sft": [uso - sft for sft, uso in zip(*at.values())]}
    drawn = lambda named: {o: (WRONGS, [interval(y) for y in x]) for o, x in named.items()}
    picture(a.results / "data.png", [dict(title=title, xlabel="share of wrong targets", lines=drawn(named))
                                     for title, named in (("Overall", at), ("uso - sft", gain))])
    lines = [["wrong targets", *at, *gain]]
    lines += [[f"{x:.0%}", *(cell(y[i]) for y in at.values()), *(cell(y[i], sign="+") for y in gain.values())]
              for i, x in enumerate(WRONGS)]
    return f"Overall on RAVE. Wrong targets are near misses, of seven kinds, each as often.\n\n{markdown(lines)}"


def figure_compute(a):
    times = read_times(a)
    minutes = {run: np.mean([times[f"train {run}, seed {seed}"] for seed in a.seeds]) / 60 for run in EQUAL}
    picture(a.results / "compute.png", [dict(title="Overall", bars={
        f"{run}, {minutes[run]:.1f} min": interval(scores(a, Score(run, "rave"))) for run in EQUAL[::-1]})])
    return ("RAVE. Minutes of training on one core: " + ", ".join(f"{run} {m:.1f}" for run, m in minutes.items())
            + ".\n\n" + compare(a, EQUAL, "rave", "uso"))


def figure_search(a):
    lines = [["learning rate", "sft", "rwr", "uso", "mean"]]
    for lr in LRS:
        x = [scores(a, Score(f"{o}, lr {lr}", "rave", "val")) for o in ("sft", "rwr", "uso")]
        lines.append([lr, *map(cell, x), f"{np.mean(x):.2f}"])
    return f"Overall on RAVE's val split, seed 0; the default is the rate with the best mean.\n\n{markdown(lines)}"


EQUAL = ["sft", "uso", *RIVALS, *(f"{rival}, equal time" for rival in RIVALS)]
BLIND = ["uso", "uso, no vlm", "uso, no position"]
NEEDS = {
    "table 4": test((BASE, "sft", "rwr", "uso", WIDE), "rave", "icvg"),
    "figure 4": test((BASE, "sft", "rwr", "uso"), "rave"), "figure samples": test((BASE, "sft", "uso"), "rave"),
    "table 3": test((BASE, "sft", "uso"), "literal"), "table 2": test((BASE, "sft", "uso"), "cross"),
    "table 5": test([of_lambda(x) for x in LAMBDAS], "rave"),
    "table 6": test([BASE, "sft", *(of_tau(x) for x in TAUS)], "rave"),
    "figure data": test([of_wrong(o, x) for x in WRONGS for o in ("sft", "uso")], "rave"),
    "figure gradient": [], "figure read": test(BLIND, "rave"), "figure compute": test(EQUAL, "rave"),
    "figure gamed": lambda a: [*(Score(run, "rave", "val") for run in (BASE, *SWITCHED)),
                               *(Score(run, "rave", "val", copy) for run in WATCHED for copy in copies(a))],
    "figure search": [Score(f"{o}, lr {lr}", "rave", "val") for lr in LRS for o in ("sft", "rwr", "uso")]}


# ---------------------------------------------------------------------------------------------------- the command

def parse(argv=None):
    parser = Parser(description="Reproduce the paper's tables in the tiny world, and ask what it does not show.")
    parser.add_argument("--all", action="store_true", help="every table and figure")
    for kind, text in (("table", "one table of the paper"), ("figure", "one figure")):
        parser.add_argument(f"--{kind}", action="append", default=[], help=text,
                            choices=[item.split()[1] for item in NEEDS if item.startswith(kind)])
    parser.add_argument("--list", action="store_true", help="only say what is left to run")
    parser.add_argument("--weights", help="another base than weights/tiny")
    parser.add_argument("--seeds", type=int, default=3, help="how many training seeds")
    parser.add_argument("--n", type=int, default=200, help="samples of a split to score")
    parser.add_argument("--steps", type=int, default=500, help="of each training")
    parser.add_argument("--more", default="", help="flags for every training, such as '--batch 2', to try things out")
    parser.add_argument("--out", type=Path, default=Path("out/ablate"), help="folder of the runs")
    parser.add_argument("--results", type=Path, default=Path("results"), help="folder of tables and figures")
    a = parser.parse_args(argv)
    a.items = list(NEEDS) if a.all else [f"table {x}" for x in a.table] + [f"figure {x}" for x in a.figure]
    if not a.items:
        raise BadInput("nothing to do: pass --all, --table or --figure")
    for flag in ("seeds", "n", "steps"):
        if getattr(a, flag) < 1:
            raise BadInput(f"--{flag} {getattr(a, flag)}: must be at least 1; {parser.get_default(flag)} will do")
    a.seeds = range(a.seeds)
    return a


def main(argv=None):
    a = parse(argv)
    stamp = hashlib.sha256(f"{world.VERSION} {a.steps} {a.more}".encode())                 # another base, other runs
    for file in sorted(Path(a.weights or HERE / "weights" / "tiny").rglob("*.safetensors")):
        stamp.update(file.read_bytes())
    a.root = a.out / stamp.hexdigest()[:8]
    left = plan(a, a.items)
    print(how_long(a, left))
    if a.list:
        return print("\n".join(job.name for jobs in left for job in jobs))
    while left:                                          # the runs of equal time are known once others are done
        work(a, left)
        left = plan(a, a.items)
    for item in a.items:
        text = globals()[item.replace(" ", "_")](a)
        names = {job.name for jobs in plan(a, [item], done=True) for job in jobs}
        seeds = sorted({name.split()[-1] for name in names if name.startswith("train ")})
        minutes = sum(seconds for name, seconds in read_times(a).items() if name in names) / 60
        made = (f"training seeds {', '.join(seeds)}, {a.steps} steps; scores 0..10 of {a.n} samples; {minutes:.0f} "
                f"core-minutes; " if seeds else "")
        note = (f"`python ablate.py --{item}`: {made}[95 % interval]; torch {torch.__version__}, Python "
                f"{platform.python_version()}, base {a.root.name}.")
        atomic_write(a.results / f"{item.replace(' ', '-')}.md", f"{note}\n\n{text}\n")
        print(f"\n## {item}\n\n{text}")


if __name__ == "__main__":
    run_script(main)
