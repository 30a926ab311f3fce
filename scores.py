"""What is a score worth? Overall, intervals, paired differences, win rates, and how a table tells of them (Sec. 3.2).

Read by evaluate.py (the tiny world), benchmark.py (any videos) and ablate.py (the paper's tables).
"""

import json
import math
from pathlib import Path

import numpy as np
from scipy.stats import bootstrap, spearmanr

from data import atomic_write, markdown

COLUMNS = ("EA", "PC", "GN", "GR", "Overall", "Geometric mean")


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

def told(value: tuple[float, float, float], form: str = ".2f") -> str:
    """(value, low, high) for a table, with its interval where it has one; "-" for a NaN."""
    mean, low, high = value
    return "-" if math.isnan(mean) else f"{mean:{form}}" + ("" if math.isnan(low) else f" [{low:{form}}, {high:{form}}]")


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


def run_name(folder: str) -> str:
    """What a run is called: out/run/model is out/run, and out/run/model-300 its copy of step 300."""
    path = Path(folder).resolve()
    return path.parent.name + path.name.removeprefix("model") if path.name.startswith("model") else path.name
