"""The figures: what the paper's Figure 4 shows, and what the paper does not show.

A function a figure; each writes a PNG into study.out and returns Markdown with the same numbers.
They need the scores of runs.NEEDED_SCORES.
"""

import itertools
from dataclasses import dataclass, field, replace
from pathlib import Path

import numpy as np
import torch
from scipy.stats import pearsonr, spearmanr
from tqdm import tqdm

from common.files import markdown, replacing
from common.intervals import bootstrap_interval, format_interval
from common.plots import pyplot, save_figure
from critic import THINK, Critic
from experiments.gradient_probe import gradient_at_levels
from experiments.one_step_probe import NOISED, one_step_margins
from experiments.runs import (BASE, BASELINES, CHOICE, CHOSEN, CHOSEN_TOO, CRITICS, GAMED,
                              GAMED_OWN, GAMED_RUNS, HALF, HEADLINE, IN_DRIFT, LEARNERS, MAP,
                              MAP_LONGER, OBJECTIVES, ON_FEW, OVER_STEPS, OWN_EDITS,
                              OWN_EDITS_ON_FEW, RUNS, SFT_ON_FEW, TAUS, TRIPLETS, TWICE,
                              VARIED_ON_FEW, Cell, Score, Study, name_and_targets,
                              run_of_triplets, run_on)
from experiments.scores import (GAINS, SHOWN, Interval, cell, compare, correlation_of, gains,
                                measured_once, read_scores, seed_and_sample_interval)
from model import load_model
from tiny import world

plt = pyplot()


@dataclass
class Panel:
    """One set of axes: lines with a band, or horizontal bars with an error bar."""
    title: str
    xlabel: str = ""
    lines: dict[str, tuple[list[float], list[Interval]]] = field(default_factory=dict)
    bars: dict[str, Interval] = field(default_factory=dict)
    log: bool = False                            # the x axis, of lines


def draw_panels(path: Path, panels: list[Panel], height: float = 3.4) -> None:
    """Draw the panels side by side into a PNG; a legend where its lines are new. height: inches.
    Panels of bars name their bars once, at the left."""
    only_bars = all(panel.bars for panel in panels)
    figure, axes = plt.subplots(1, len(panels), figsize=(4.2 * len(panels), height), squeeze=False,
                                sharey=only_bars)
    known = None
    for axis, panel in zip(axes[0], panels):
        for k, (name, (x, intervals)) in enumerate(panel.lines.items()):
            mean, low, high = np.array(intervals).T
            axis.plot(x, mean, "o-", color=f"C{k}", ms=3, label=name)
            axis.fill_between(x, low, high, color=f"C{k}", alpha=.15, lw=0)
        for k, (name, (mean, low, high)) in enumerate(panel.bars.items()):
            axis.barh(name, mean, color=f"C{k}", alpha=.6, xerr=[[mean - low], [high - mean]])
        if panel.bars:
            axis.axvline(0, color="black", lw=.8)
        axis.set(title=panel.title, xlabel=panel.xlabel)
        if panel.log:
            ticks, _ = next(iter(panel.lines.values()))
            axis.set_xscale("log")
            axis.set_xticks(ticks, ticks)
            axis.minorticks_off()
        if panel.lines and panel.lines.keys() != known:
            axis.legend(fontsize=7)
        known = panel.lines.keys()
    figure.tight_layout()
    save_figure(figure, path, dpi=110)


def gain_intervals(gain: dict[str, np.ndarray]) -> dict[str, Interval]:
    """The interval of each column of `gains`, over seeds and samples."""
    return {column: seed_and_sample_interval(x) for column, x in gain.items()}


def gain_cells(intervals: dict[str, Interval]) -> list[str]:
    """As cells of a table, with their sign."""
    return [format_interval(interval, "+.2f") for interval in intervals.values()]


def figure_4(study: Study) -> str:
    """Is the soft margin worth more than the word? Spearman with the oracle's EA, first seed."""
    runs = [Score(run, "rave") for run in OBJECTIVES]
    margin = np.concatenate([read_scores(study, run, "margin, own")[:1] for run in runs])
    ea = np.concatenate([read_scores(study, run, "EA")[:1] for run in runs])             # (4, N)
    soft = correlation_of(spearmanr, margin, ea)
    hard = correlation_of(spearmanr, margin > 0, ea)

    def soft_minus_hard(seeds, samples):
        return soft(seeds, samples) - hard(seeds, samples)

    both = {"soft: z_yes - z_no": bootstrap_interval(soft, *ea.shape),
            "hard: Yes or No": bootstrap_interval(hard, *ea.shape)}
    gain = bootstrap_interval(soft_minus_hard, *ea.shape)
    title = f"Spearman with the oracle's EA, {ea.size} edits"
    draw_panels(study.out / "figure-4.png", [Panel(title, bars=both)])
    lines = [["reward", "Spearman with EA"]]
    lines += [[name, format_interval(rho, ".3f")] for name, rho in both.items()]
    lines.append(["soft - hard", format_interval(gain, "+.3f")])
    head = f"{ea.size} RAVE edits of base, sft, rwr and uso (seed {study.seeds[0]})."
    return f"{head}\n\n{markdown(lines)}"


def figure_samples(study: Study) -> str:
    """Figures 1 and 6: source, edits of base, SFT and USO, target, with instruction and thought."""
    triplets = [world.make_triplet(i, "rave", "test") for i in range(min(12, study.n))]
    critic = Critic(load_model(study.weights))
    thoughts = critic.thoughts(torch.stack([triplet.source for triplet in triplets]),
                               [triplet.instruction for triplet in triplets])
    captions = {i: f"{triplet.instruction}   |   U: {thought}"
                for i, (triplet, thought) in enumerate(zip(triplets, thoughts))}
    draw_edits(study, "samples.png", captions, {run: run for run in (BASE, "sft", "uso")})
    return ("The first dozen of the test split, seed 0, not chosen. "
            "After the bar: the critic's chain of thought.")


def draw_edits(study: Study, name: str, captions: dict[int, str], runs: dict[str, str]) -> None:
    """Source, what the first seed of each run makes of it, and target of these samples of RAVE's
    test split, into a PNG."""
    triplets = [world.make_triplet(i, "rave", "test") for i in captions]
    rows = {"source": [triplet.source for triplet in triplets]}
    for row, run in tqdm(runs.items(), desc="edits", unit="model"):
        model = load_model(study.model_folder(run, study.seeds[0]))
        rows[row] = [model.sample(triplet.source[None], [triplet.instruction], seed=i)[0]
                     for i, triplet in zip(captions, triplets)]
    rows["target"] = [triplet.target for triplet in triplets]
    captioned = [replace(triplet, instruction=caption)
                 for triplet, caption in zip(triplets, captions.values())]
    with replacing(study.out / name) as temporary:
        world.contact_sheet(captioned, rows, temporary)


GAMED_COLUMNS = ("margin, own", "margin, hardened", "EA", "PC", "GR", "Overall")


def figure_gamed(study: Study) -> str:
    """Does a critic's margin rise with lambda while the oracle's scores fall?"""
    lines = {f"{critic} judged": runs for critic, runs in GAMED.items()}
    text = draw_gamed(study, GAMED_RUNS, "sft", lines, "lambda", "gamed.png")
    return f"lambda 0 is SFT. {text}"


def figure_gamed_own(study: Study) -> str:
    """And by own edits, the longer they are learnt?"""
    lines = {OWN_EDITS: {round(times * study.steps): run for times, run in OVER_STEPS.items()}}
    return draw_gamed(study, GAMED_OWN, SFT_ON_FEW, lines, "steps", "gamed-own.png", log=True)


def draw_gamed(study: Study, runs: list[str], sft: str, lines: dict[str, dict[float, str]],
               xlabel: str, picture: str, log: bool = False) -> str:
    """Margins of two critics and the oracle's scores, minus SFT's. lines: {label: {x: run}}."""
    scores, table, gained = [["run", *GAMED_COLUMNS]], [[f"run - {sft}", *GAMED_COLUMNS]], {}
    for run in runs:
        score = Score(run, "rave", "val")
        scores.append([run, *(cell(read_scores(study, score, c)) for c in GAMED_COLUMNS)])
        gain = gains(study, score, Score(sft, "rave", "val"), GAMED_COLUMNS)
        gained[run] = gain_intervals(gain)
        if run not in (BASE, sft):
            table.append([run, *gain_cells(gained[run])])
    drawn = ("margin, own", "margin, hardened", "PC", "Overall")
    panels = [Panel(f"{column}, minus SFT's", xlabel, log=log) for column in drawn]
    for column, panel in zip(drawn, panels):
        for label, some in lines.items():
            panel.lines[label] = list(some), [gained[run][column] for run in some.values()]
    draw_panels(study.out / picture, panels)
    head = ("RAVE, val split. The margins are those of the model's own VLM and of the hardened one "
            "on K frames of the finished edit; in training, one of them judged one-step estimates.")
    return f"{head}\n\n{markdown(scores)}\n{markdown(table)}"


def figure_gradient(study: Study) -> str:
    """Where does the critic's gradient act, how large is it, and where does it lead?"""
    found = measured_once(study, "gradient", gradient_at_levels)
    levels = found["levels"]
    area = seed_and_sample_interval(np.array([found["area"]]))
    sizes, aims = ["size, right", "size, wrong"], ["aim, right", "aim, wrong"]
    at_level = {name: [seed_and_sample_interval(np.array([row])) for row in found[name]]
                for name in (*THINK, *sizes, *aims)}

    def lines_of(names):
        return {name: (levels, at_level[name]) for name in names}

    shares = lines_of(THINK) | {"area of the region": (levels, [area] * len(levels))}
    draw_panels(study.out / "gradient.png", [
        Panel("share of |d margin / d pixels|\non what should change", "t", shares),
        Panel("size beside flow matching's", "t", lines_of(sizes)),
        Panel("cosine with the way to the target", "t", lines_of(aims))])
    table = [["t", *THINK, "area", *sizes, *aims]]
    for i, t in enumerate(levels):
        cells = {name: format_interval(at_level[name][i]) for name in at_level}
        cells["area"] = f"{area[0]:.2f}"
        table.append([str(t), *(cells[name] for name in table[0][1:])])
    return (f"One-step estimates of the base; RAVE, val split, {len(found['area'])} samples. Share "
            f"of |d margin / d pixels| on what should change, by chain of thought, and that "
            f"region's area. size: |d L_reason / d v| over |d L_FM / d v| as they weigh in Eq. 5; "
            f"aim: cosine of -d L_reason / d v with the way to the right target; x_t noised from "
            f"the target (right) or a near miss (wrong).\n\n{markdown(table)}")


def figure_one_step(study: Study) -> str:
    """Why does the verdict on a one-step estimate not get worse with tau, as in Table 6?"""
    found = measured_once(study, "one-step", one_step_margins)
    ea = np.array(found["EA"])                                               # (models, N)

    def correlation(name):
        statistic = correlation_of(pearsonr, np.array(found[name]), ea)
        return bootstrap_interval(statistic, *ea.shape)

    taus = list(TAUS)
    lines = {noised: (taus, [correlation(f"{noised} {tau}") for tau in TAUS]) for noised in NOISED}
    bound = correlation("clean")
    lines["the bound"] = taus, [bound] * len(taus)
    title = "Pearson of margin and EA, x_t noised from ..."
    draw_panels(study.out / "one-step.png", [Panel(title, "tau", lines)])
    table = [["x_t noised from", *(f"tau {tau}" for tau in TAUS)]]
    for noised in NOISED:
        table.append([noised, *(format_interval(interval) for interval in lines[noised][1])])
    return (f"RAVE, {ea.size} edits of base, sft and uso. Pearson of the oracle's EA of the edit "
            f"with the critic's margin on a one-step estimate at a t < tau. The bound, its "
            f"margin on the finished edit: {format_interval(bound)}.\n\n{markdown(table)}")


def figure_headline(study: Study) -> str:
    """Is USO better than SFT where targets are re-rendered (--targets drift-60)?"""
    return against_sft(study, HEADLINE, "headline.png", sft="sft")


def figure_map(study: Study) -> str:
    """When does USO beat SFT, over critic, data and baseline? And what do these two change?"""
    own, hardened = CRITICS
    pairs = [(own + baseline, hardened + baseline) for baseline in BASELINES]
    pairs += [(critic, f"{critic}, no m_0") for critic in CRITICS]
    table = [["on drift-60", *GAINS]]
    for one, other in pairs:
        before, after = (Score(run_on(run, "drift-60"), "rave") for run in (one, other))
        gain = gain_intervals(gains(study, after, before))
        table.append([f"({other}) - ({one})", *gain_cells(gain)])
    return f"{draw_map(study, MAP, 'map.png')}\n{markdown(table)}"


def figure_map_longer(study: Study) -> str:
    """And in the paper's regime, after five times the steps?"""
    return draw_map(study, MAP_LONGER, "map-longer.png")


def draw_map(study: Study, cells: list[Cell], name: str) -> str:
    """The figure and the table of these places on the map."""
    table = [["targets", "critic", "baseline", "SFT", *(f"{c}, USO - SFT" for c in GAINS)]]
    bars = {column: {} for column in GAINS}
    for place in cells:
        sft, uso = (Score(run, "rave") for run in place.runs)
        gain = gain_intervals(gains(study, uso, sft))
        critic = "own" if place.critic == "uso" else "hardened"
        baseline = place.baseline.removeprefix(", ") or "m_0"
        table.append([place.targets, critic, baseline, cell(read_scores(study, sft)),
                      *gain_cells(gain)])
        for column in GAINS:
            where = f"{place.targets}, {critic}, {baseline}"
            bars[column][where] = gain[column]
    panels = [Panel(f"{column}, USO - SFT", bars=dict(reversed(bars[column].items())))
              for column in GAINS]
    draw_panels(study.out / name, panels, height=1.4 + .3 * len(cells))
    steps = study.steps_of(cells[0].runs[0])
    return f"RAVE, {steps} steps, paired by seed and sample.\n\n{markdown(table)}"


def figure_own_edits(study: Study) -> str:
    """What do own edits teach beside 100 triplets, and at which price? Also the five samples that
    gained most over SFT in the first seed, and the five that lost most."""
    gain = gains(study, Score(OWN_EDITS_ON_FEW, "rave"), Score(SFT_ON_FEW, "rave"))["Overall"][0]
    best_first = gain.argsort()[::-1].tolist()
    captions = {i: f"{gain[i]:+.1f}: {world.make_triplet(i, 'rave', 'test').instruction}"
                for i in [*best_first[:5], *best_first[-5:]]}
    draw_edits(study, "own-edits-samples.png", captions, {"SFT": SFT_ON_FEW, **ON_FEW})
    return against_sft(study, ON_FEW, "own-edits.png")


def figure_varied(study: Study) -> str:
    """Is it the pairs, how many, and whose verdict?"""
    return against_sft(study, {"own edits": OWN_EDITS_ON_FEW, **VARIED_ON_FEW}, "varied.png")


def figure_twice(study: Study) -> str:
    """And for twice as long?"""
    return against_sft(study, TWICE, "twice.png")


def figure_chosen(study: Study) -> str:
    """And where they are chosen by the VLM, and learnt without its gradient?"""
    return against_sft(study, CHOSEN_TOO, "chosen.png")


def figure_icvg(study: Study) -> str:
    """And on ICVG, where there is nothing to preserve?"""
    return against_sft(study, CHOSEN_TOO, "icvg.png", subset="icvg")


def figure_drift(study: Study) -> str:
    """And in the paper's regime: many triplets, most of them re-rendered (--targets drift-60)?"""
    return against_sft(study, IN_DRIFT, "drift.png", sft="sft")


def against_sft(study: Study, runs: dict[str, str], picture: str, sft: str = SFT_ON_FEW,
                subset: str = "rave") -> str:
    """What these runs gain over SFT on as many triplets: bars, and a table."""
    columns = GAINS if subset == "rave" else GAINS[:2]   # ICVG has no PC
    gained = {name: gain_intervals(gains(study, Score(run, subset), Score(sft, subset), columns))
              for name, run in reversed(runs.items())}
    panels = []
    for column in columns:
        bars = {name: intervals[column] for name, intervals in gained.items()}
        panels.append(Panel(f"{subset.upper()}: {column} - {sft}", bars=bars))
    draw_panels(study.out / picture, panels, height=1.2 + .25 * len(runs))
    how = "; ".join(f"{name}: `{flags_of(run)}`" for name, run in runs.items())
    return f"{how}.\n\n{compare(study, [BASE, sft, *runs.values()], subset, sft)}"


def flags_of(run: str) -> str:
    """How the run is made."""
    if run.endswith(CHOSEN):
        return f"experiments.choose {CHOICE}"
    return "experiments.mix" if run.endswith(HALF) else RUNS[name_and_targets(run)[0]]


def figure_triplets(study: Study) -> str:
    """How many targets is a frozen VLM worth? Scores over the number of triplets."""
    panels = []
    for column in GAINS:
        panel = Panel(f"RAVE: {column}", "triplets, each with its target", log=True)
        for run in LEARNERS:
            scores = [read_scores(study, Score(run_of_triplets(run, n), "rave"), column)
                      for n in TRIPLETS]
            panel.lines[run] = TRIPLETS, [seed_and_sample_interval(x) for x in scores]
        goal = panel.lines["sft"][1][-1]
        panel.lines[f"sft on {TRIPLETS[-1]}"] = TRIPLETS, [goal] * len(TRIPLETS)
        panels.append(panel)
    draw_panels(study.out / "triplets.png", panels)
    table = [["run", *SHOWN, *(f"{column} - SFT on as many" for column in GAINS)]]
    for n, run in itertools.product(TRIPLETS, LEARNERS):
        score, sft = (Score(run_of_triplets(name, n), "rave") for name in (run, "sft"))
        table.append([score.run, *(cell(read_scores(study, score, c)) for c in SHOWN),
                      *("" if score == sft else cell(x, sign="+")
                        for x in gains(study, score, sft).values())])
    overall = {run: [value for value, _, _ in line[1]] for run, line in panels[0].lines.items()}
    rising = np.maximum.accumulate(overall["sft"])
    worth = np.exp(np.interp(overall[OWN_EDITS], rising, np.log(TRIPLETS)))
    return (f"RAVE. own edits: beside the triplets, pairs without a target "
            f"(`{LEARNERS[OWN_EDITS]}`). On {', '.join(map(str, TRIPLETS))} triplets its Overall "
            f"is SFT's on {', '.join(f'{n:.0f}' for n in worth)}, read off SFT's own line, which "
            f"ends there.\n\n{markdown(table)}")
