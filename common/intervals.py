"""What is a score worth? Overall, intervals, paired differences (Sec. 3.2)."""

import math
from typing import Callable

import numpy as np
from scipy.stats import bootstrap, t

COLUMNS = ("EA", "PC", "GN", "GR", "Overall", "Geometric mean")
FEWEST, FEW = 5, 30                         # no interval below FEWEST values, Student's t below FEW
METHOD = f"Intervals: bootstrap from {FEW} samples on, Student's t below, none below {FEWEST}."


def overall(ea, pc, gn, gr):
    """A sample's Overall in 0..10: sqrt(SC * PQ), SC = min(EA, PC), PQ = min(GN, GR) (Sec. 3.2).

    This reads the paper's sentence as VIEScore does. Numbers or arrays in 0..10. pc is None on
    ICVG, which has no Preservation Consistency: then SC = EA.
    """
    sc = ea if pc is None else np.minimum(ea, pc)
    return np.sqrt(sc * np.minimum(gn, gr))


def geometric_mean(ea, pc, gn, gr):
    """The geometric mean of all four scores, three where pc is None: the other reading."""
    if pc is None:
        return np.cbrt(ea * gn * gr)
    return np.sqrt(np.sqrt(ea * pc * gn * gr))


def interval(values, scale: tuple[float, float] = (-math.inf, math.inf),
             ) -> tuple[float, float, float]:
    """(mean, low, high): the mean of `values` and its 95 % interval, cut at the ends of the scale.

    From 30 values on by the percentile bootstrap; below, where that is too narrow (at n = 5 it
    covers 82 %), by Student's t; below 5 values low and high are NaN. Of an empty list the mean is
    NaN, too.
    """
    x = np.asarray(values, float)
    if len(x) == 0:
        return math.nan, math.nan, math.nan
    mean = float(x.mean())
    if len(x) < FEWEST:
        return mean, math.nan, math.nan
    if len(x) < FEW:
        half = float(t.ppf(0.975, len(x) - 1) * x.std(ddof=1) / math.sqrt(len(x)))
        return mean, max(scale[0], mean - half), min(scale[1], mean + half)
    rng = np.random.default_rng(0)
    found = bootstrap((x,), np.mean, method="percentile", batch=1000, rng=rng).confidence_interval
    return mean, float(found.low), float(found.high)


def bootstrap_interval(statistic: Callable[..., float], *sizes: int,
                       draws: int = 1000) -> tuple[float, float, float]:
    """(value, low, high) of a statistic of drawn indices, and its 95 % percentile interval.

    sizes: what is drawn anew, each with replacement and independently of the others: N samples, or
    S seeds and N samples, or raters and samples. statistic(*indices) gets as many indices of each;
    a draw for which it is NaN does not count. For the mean of one list `interval` is faster.
    """
    rng = np.random.default_rng(0)
    drawn = [statistic(*(rng.integers(n, size=n) for n in sizes)) for _ in range(draws)]
    low, high = np.nanpercentile(drawn, (2.5, 97.5))
    return float(statistic(*map(np.arange, sizes))), float(low), float(high)


def paired_difference(a, b) -> tuple[float, float, float]:
    """(mean, low, high) of a - b over the same samples: what one method gains on another.

    Pairs in which either is None (a failed sample) are left out. Raises ValueError where the
    lengths differ.
    """
    pairs = zip(a, b, strict=True)
    return interval([x - y for x, y in pairs if x is not None and y is not None])


def format_interval(value: tuple[float, float, float], form: str = ".2f") -> str:
    """(value, low, high) for a table, with its interval where it has one; "-" for a NaN."""
    mean, low, high = value
    if math.isnan(mean):
        return "-"
    if math.isnan(low):
        return f"{mean:{form}}"
    return f"{mean:{form}} [{low:{form}}, {high:{form}}]"
