"""The paper's Tables 2 to 6 in the tiny world, each as Markdown with the paper's own beneath.

A function a table; they need the scores of runs.NEEDED_SCORES.
"""

import csv

import numpy as np
from scipy.stats import pearsonr

from bench import trigger_rate
from common.files import markdown
from common.intervals import COLUMNS, bootstrap_interval, format_interval
from experiments.one_step_probe import one_step_margins
from experiments.runs import BASE, LAMBDAS, OBJECTIVES, TAUS, Score, Study
from experiments.scores import (GAINS, SHOWN, by_type, cell, compare, correlation_of, gains,
                                measured_once, read_scores)
from rvebench.scores import as_markdown, paper_table


def paper(name: str, columns: tuple[str, ...] = COLUMNS) -> str:
    """The paper's own table."""
    return as_markdown(paper_table(name, columns))


def table_2(study: Study) -> str:
    """Does it carry over to what no training sample has?"""
    ours = compare(study, [BASE, "sft", "uso"], "cross", "sft")
    head = "`cross`: phrasings, and rules in places, that no training sample has."
    return f"{head}\n\n{ours}\n{paper('Table 2 VIE-Bench')}"


def table_3(study: Study) -> str:
    """Is conventional editing kept?"""
    ours = compare(study, [BASE, "sft", "uso"], "literal", "sft")
    return f"`literal`: the same edits, told in plain words.\n\n{ours}\n{paper('Table 3 Ditto-1M')}"


def table_4(study: Study) -> str:
    """Which objective is best?"""
    parts = []
    for subset in ("rave", "icvg"):
        scores = compare(study, OBJECTIVES, subset, "sft")
        parts.append(f"{subset.upper()}\n\n{scores}\n{by_type(study, OBJECTIVES, subset)}")
    return "\n".join([*parts, paper("Table 4 objective")])


def table_5(study: Study) -> str:
    """Which lambda is best?"""
    ours = compare(study, LAMBDAS.values(), "rave", "sft")
    head = "RAVE. sft is lambda = 0, uso is lambda = 0.25."
    return f"{head}\n\n{ours}\n{paper('Table 5 lambda')}"


def table_6(study: Study) -> str:
    """Which tau is best: how often is the critic asked, and what is its answer worth there?"""
    found = measured_once(study, "one-step", one_step_margins)
    ea = np.array(found["EA"])                                               # (models, N)
    clean = np.array(found["clean"])

    def pearson(margin):
        return pearsonr(margin.ravel(), ea.ravel()).statistic

    def pearson_cell(margin):
        return format_interval(bootstrap_interval(correlation_of(pearsonr, margin, ea), *ea.shape))

    lines = [["tau", "trigger rate", "tau / (3 - 2 tau)", "Pearson", "share of the bound", *SHOWN,
              *(f"{column} - sft" for column in GAINS)]]
    for tau, run in TAUS.items():
        margin, score = np.array(found[f"the edit {tau}"]), Score(run, "rave")
        gain = gains(study, score, Score("sft", "rave"))
        lines.append([str(tau), f"{measured_trigger_rate(study, run):.1%}",
                      f"{trigger_rate(tau):.1%}", pearson_cell(margin),
                      f"{pearson(margin) / pearson(clean):.0%}",
                      *(cell(read_scores(study, score, column)) for column in SHOWN),
                      *(cell(x, sign="+") for x in gain.values())])
    head = (f"RAVE. Pearson: margin on the one-step estimate at a t < tau, from the noised "
            f"finished edit, with the oracle's EA of that edit; {ea.size} edits of base, sft and "
            f"uso. The bound is the margin on the finished edit itself: {pearson_cell(clean)}.")
    theirs = paper("Table 6 tau", ("trigger rate", "Pearson"))
    return f"{head}\n\n{markdown(lines)}\n{theirs}"


def measured_trigger_rate(study: Study, run: str) -> float:
    """The share of samples with t < tau in the logs of a run."""
    rates = []
    for seed in study.seeds:
        with (study.run_folder(run, seed) / "log.csv").open(encoding="utf-8") as log:
            rates.append([float(row["trigger_rate"]) for row in csv.DictReader(log)])
    return float(np.mean(rates))
