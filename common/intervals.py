"""What is a score worth? Overall, intervals, paired differences (Sec. 3.2)."""

import math

import numpy as np
from scipy.stats import bootstrap

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


def format_interval(value: tuple[float, float, float], form: str = ".2f") -> str:
    """(value, low, high) for a table, with its interval where it has one; "-" for a NaN."""
    mean, low, high = value
    return "-" if math.isnan(mean) else f"{mean:{form}}" + ("" if math.isnan(low) else f" [{low:{form}}, {high:{form}}]")
