"""Statistics of tables and pages: win rates, the judge against people, the paper's numbers."""

import json
import math
from pathlib import Path

import numpy as np
from scipy.stats import spearmanr

from common.files import markdown
from common.intervals import FEWEST, bootstrap_interval, interval

NO_INTERVAL = (math.nan, math.nan, math.nan)


def win_rates(rankings: list[dict[str, float]],
              clusters: list[tuple[str, str]] | None = None,
              ) -> dict[tuple[str, str], tuple[float, float, float]]:
    """{(a, b): (rate, low, high)}: how often a is ranked before b, with its 95 % interval (Fig. 7).

    rankings: one {method: rank} for each judgement, 1 the best; equal ranks are half a win, and a
    ranking without one of the two says nothing about them. There is an entry for each ordered pair
    that is in some ranking; the two rates of a pair add up to 1. clusters: (rater, sample) of each
    ranking. What one person says of all samples, and all people of one sample, hangs together: the
    interval then draws both anew.
    """
    names = dict.fromkeys(name for ranks in rankings for name in ranks)
    rates = {}
    for a in names:
        for b in names:
            both = [k for k, ranks in enumerate(rankings) if a in ranks and b in ranks]
            if a == b or not both:
                continue
            won = [(1 + np.sign(rankings[k][b] - rankings[k][a])) / 2 for k in both]
            if clusters is None:
                rate = interval(won)
            else:
                rate = clustered_interval(won, [clusters[k] for k in both])
            rates[a, b] = tuple(np.clip(rate, 0, 1).tolist())
    return rates


def clustered_interval(values: list[float],
                       clusters: list[tuple[str, str]]) -> tuple[float, float, float]:
    """(mean, low, high) by a bootstrap that draws raters and samples anew, each with replacement.

    clusters: (rater, sample) of each value. A value whose rater is drawn i times and whose sample j
    times counts i * j times. No interval below 5 samples; of one rater only samples are drawn.
    """
    x = np.asarray(values, float)
    raters, rater_of = np.unique([rater for rater, _ in clusters], return_inverse=True)
    samples, sample_of = np.unique([sample for _, sample in clusters], return_inverse=True)
    if len(samples) < FEWEST:
        return float(x.mean()), math.nan, math.nan

    def mean(drawn_raters, drawn_samples):
        times_rater = np.bincount(drawn_raters, minlength=len(raters))
        times_sample = np.bincount(drawn_samples, minlength=len(samples))
        weights = times_rater[rater_of] * times_sample[sample_of]
        if not weights.any():                            # who was drawn may have ranked nothing drawn
            return math.nan
        return np.average(x, weights=weights)
    return bootstrap_interval(mean, len(raters), len(samples))


def correlation(a, b) -> tuple[float, float, float]:
    """Spearman's rho of two lists and its 95 % interval, by the bootstrap over pairs.

    NaN where there is none: fewer than 3 pairs, or all values of a list the same.
    """
    a, b = np.asarray(a, float), np.asarray(b, float)
    if len(a) < 3 or len(set(a)) < 2 or len(set(b)) < 2:
        return NO_INTERVAL

    def rho(i):
        if len(set(a[i])) < 2 or len(set(b[i])) < 2:
            return math.nan
        return spearmanr(a[i], b[i]).statistic
    return bootstrap_interval(rho, len(a))


# ---------------------------------------------------------------------------------------- in tables

def paper_table(name: str, columns) -> list:
    """[a line that says what it is, table] of a table of paper_results.json, of these columns."""
    results = json.loads((Path(__file__).parent / "paper_results.json").read_text("utf-8"))[name]
    known = [column for column in columns
             if any(row.get(column) is not None for row in results.values())]
    lines = [["paper", *known]]
    for method, row in results.items():
        values = [row.get(column) for column in known]
        lines.append([method, *["-" if value is None else f"{value:g}" for value in values]])
    table = " ".join(name.split()[:2])
    return [f"The paper's {table}, for comparison only: another judge (GPT-4o of its day, by the "
            f"authors' prompts) on other data:\n", lines]


def as_markdown(blocks: list) -> str:
    """The blocks of `tables` as table.md has them; a bar within a cell would end it."""
    texts = []
    for block in blocks:
        if isinstance(block, str):
            texts.append(block)
        else:
            cells = [[" ".join(cell.replace("|", "/").split()) for cell in line] for line in block]
            texts.append(markdown(cells))
    return "\n".join(texts)
