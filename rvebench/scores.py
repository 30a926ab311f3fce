"""What is a score worth? Overall, intervals, paired differences, win rates, and how a table tells of them (Sec. 3.2).

Read by evaluate.py (the tiny world), benchmark.py (any videos) and ablate.py (the paper's tables).
"""

import json
import math
from pathlib import Path

import numpy as np
from scipy.stats import bootstrap, spearmanr

from common.intervals import interval
from common.files import markdown

def win_rates(rankings: list[dict[str, float]]) -> dict[tuple[str, str], tuple[float, float, float]]:
    """{(a, b): (rate, low, high)}: how often a is ranked before b, with its 95 % interval (Fig. 7).

    rankings: one {method: rank} for each judgement, 1 the best; equal ranks are half a win, and a ranking without one of
    the two says nothing about them. For each ordered pair that is in some ranking; the two rates of a pair add up to 1.
    """
    names = list(dict.fromkeys(name for ranks in rankings for name in ranks))
    wins = {(a, b): [(np.sign(ranks[b] - ranks[a]) + 1) / 2 for ranks in rankings if a in ranks and b in ranks]
            for a in names for b in names if a != b}
    return {pair: interval(won) for pair, won in wins.items() if won}


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


# ------------------------------------------------------------------------------------------------------- in tables

def paper_table(name: str, columns) -> list:
    """[a line that says what it is, table] of a table of paper_results.json: of these columns those that it has."""
    theirs = json.loads((Path(__file__).parent / "paper_results.json").read_text())[name]
    both = [c for c in columns if any(row.get(c) is not None for row in theirs.values())]
    cell = lambda x: "-" if x is None else f"{x:g}"
    return [f"The paper's {' '.join(name.split()[:2])}, for comparison only: another judge (GPT-4o of its day, by the "
            f"authors' prompts) on other data:\n",
            [["paper", *both], *([row, *[cell(values.get(c)) for c in both]] for row, values in theirs.items())]]


def as_markdown(blocks: list) -> str:
    """The blocks of `tables` as table.md has them; a bar within a cell would end it."""
    return "\n".join(block if isinstance(block, str) else
                     markdown([[" ".join(cell.replace("|", "/").split()) for cell in line] for line in block])
                     for block in blocks)
