"""What do the scores of several seeds and samples say, and how sure is it?

Everything here is an array (S, N): S training seeds, N test samples. Runs are compared on the same
seeds and samples, so their difference is an array of the same shape.
"""

import json
from typing import Callable

import numpy as np

from common.files import BadInput, atomic_write, markdown
from common.intervals import COLUMNS, bootstrap_interval, format_interval
from experiments.runs import Score, Study
from tiny import world

SHOWN = COLUMNS[:5]                              # EA, PC, GN, GR, Overall
GAINS = ("Overall", "EA", "PC")                  # shown beside them, against another run
Interval = tuple[float, float, float]            # (value, low, high)


def read_scores(study: Study, score: Score, column: str = "Overall",
                types: str | None = None) -> np.ndarray:
    """(S, N) of a column: 0..10, or the critic's margin; a failed sample is a NaN. The base has no
    seeds: S is 1. types: only the samples of this reasoning type."""
    table = []
    for seed in study.seeds_of(score.run):
        file = score.folder(study, seed) / "scores.jsonl"
        samples = [json.loads(line) for line in file.read_text("utf-8").splitlines()[:study.n]]
        if column not in samples[0]:
            raise BadInput(f"{file.parent}: its scores have no {column!r}, they are of an earlier "
                           f"version; delete this folder, and the same command scores again")
        row = [sample[column] for sample in samples if types in (None, sample["type"])]
        table.append([np.nan if value is None else value for value in row])
    return np.array(table, float)


def seed_and_sample_interval(x: np.ndarray) -> Interval:
    """The mean of x (S, N) and its 95 % interval over seeds *and* samples: another training and
    another test set would both give another number."""
    def mean(seeds, samples):
        return np.nanmean(x[seeds[:, None], samples])
    return bootstrap_interval(mean, *x.shape)


def correlation_of(correlation, a: np.ndarray, b: np.ndarray) -> Callable[..., float]:
    """scipy's pearsonr or spearmanr of a and b, both (S, N), as a statistic of drawn indices, for
    `bootstrap_interval`."""
    def statistic(seeds, samples):
        drawn = seeds[:, None], samples
        return correlation(a[drawn].ravel(), b[drawn].ravel()).statistic
    return statistic


def gains(study: Study, score: Score, against: Score,
          columns: tuple[str, ...] = GAINS) -> dict[str, np.ndarray]:
    """(S, N) by column: the scores minus those of another run, paired by seed and sample."""
    return {column: read_scores(study, score, column) - read_scores(study, against, column)
            for column in columns}


# ------------------------------------------------------------------------ as a table

def cell(x: np.ndarray, sign: str = "") -> str:
    """'mean [low, high]' of x (S, N); '-' where there is no number, as for PC on ICVG."""
    if np.isnan(x).all():
        return "-"
    return format_interval(seed_and_sample_interval(x), f"{sign}.2f")


def compare(study: Study, runs: list[str], subset: str, against: str) -> str:
    """Markdown: the scores of `runs` on a subset, and GAINS minus those of `against`, paired."""
    lines = [["run", *SHOWN, *(f"{column} - {against}" for column in GAINS)]]
    for run in runs:
        score = Score(run, subset)
        gain = gains(study, score, Score(against, subset))
        lines.append([run, *(cell(read_scores(study, score, column)) for column in SHOWN),
                      *("" if run == against else cell(x, sign="+") for x in gain.values())])
    return markdown(lines)


def by_type(study: Study, runs: list[str], subset: str) -> str:
    """Markdown: Overall of `runs` on a subset, by reasoning type."""
    lines = [["Overall", *world.TYPES[subset]]]
    for run in runs:
        score = Score(run, subset)
        lines.append([run, *(cell(read_scores(study, score, types=type_))
                             for type_ in world.TYPES[subset])])
    return markdown(lines)


def measured_once(study: Study, name: str, measure: Callable[[Study], dict]) -> dict:
    """What measure(study) returned when it was first called for a study like this one; it is kept
    in the study's folder."""
    like_this = f"{study.targets}, {study.steps} steps, {study.n} samples"
    file = study.folder / "measured" / f"{name}, {like_this}.json"
    if not file.exists():
        atomic_write(file, json.dumps(measure(study)))
    return json.loads(file.read_text("utf-8"))
