"""What do the scores say? A folder of them, read; means, differences; judge and people; win rates.

A row is one of scores.jsonl, the score of one method on one sample.
"""

import json
import math
import warnings
from datetime import date
from itertools import combinations, permutations
from pathlib import Path

import numpy as np
from scipy.stats import spearmanr

from common.files import BadInput, markdown
from common.intervals import COLUMNS, FEWEST, bootstrap_interval, interval, paired_difference
from common.jsonl import from_json, read_rows
from rvebench.benchmark import QUALITY

SAMPLE = ("id", "subset", "type", "instruction", "source", "target")
RESULT = ("video", "failed", "frames", "reasons", "missing", "replies")
ROW = (*SAMPLE, *RESULT, "method", *COLUMNS, "quality", "unanswered")
ABOUT = ("head", "judge", "methods")
NOTHING, REFERENCE = "do nothing (the source)", "reference"
COSINES = ("OC", "ViCLIP-T")                             # in -1..1; other measures in 0..1
NO_INTERVAL = (math.nan, math.nan, math.nan)


# ------------------------------------------------------------------------------------ what is there

def read_results(folder: Path) -> tuple[list[dict], dict]:
    """(rows, about) of a folder of results. Raises BadInput where there are none."""
    try:
        rows = list(read_rows(folder / "scores.jsonl", "score", ROW))
        about = from_json((folder / "about.json").read_text("utf-8"))
        if not rows or not about.keys() >= set(ABOUT):
            raise ValueError("fields are missing")
    except (OSError, ValueError, AttributeError) as error:
        raise BadInput(f"{folder}: holds no results of this version ({error}); take its "
                       f"scores.jsonl away and score again: what a judge was paid for is in "
                       f"replies.jsonl, and asked no second time") from error
    scored_on = date.fromtimestamp((folder / "scores.jsonl").stat().st_mtime)
    return rows, {"date": scored_on.isoformat(), **about}


def role(rows: list[dict], method: str) -> str | None:
    """NOTHING if a method's videos are the sources, REFERENCE if the targets, else None."""
    own = [row for row in rows if row["method"] == method]
    if own and all(row["video"] == row["source"] for row in own):
        return NOTHING
    if own and all(row["video"] == row["target"] for row in own):
        return REFERENCE
    return None


def samples(rows: list[dict]) -> list[dict]:
    """The rows, one a sample and method, gathered by sample."""
    found = {}
    for row in rows:
        sample = {field: row[field] for field in SAMPLE} | {"methods": {}}
        sample = found.setdefault(row["id"], sample)
        scores = {c: row[c] for c in COLUMNS if row[c] is not None}
        result = {field: row[field] for field in RESULT}
        sample["methods"][row["method"]] = result | {"scores": scores | row["quality"]}
    return list(found.values())


# ------------------------------------------------------------------------------ means, differences

def value(row: dict, column: str) -> float | None:
    """A row's score or measure; None where it has none, or has failed."""
    if column in row["quality"]:
        return row["quality"][column]
    return None if row["failed"] else row.get(column)


def main_column(rows: list[dict]) -> str:
    """What methods are ranked by: Overall, or flicker where nobody judged."""
    return "Overall" if any(row["Overall"] is not None for row in rows) else "TF"


def group(rows: list[dict], columns: list[str]) -> dict:
    """{"scored": N, "failed": N, "n": {column: N}, "scores": {column: its interval}} of rows."""
    failed = sum(bool(row["failed"]) for row in rows)
    found = {"scored": len(rows) - failed, "failed": failed, "n": {}, "scores": {}}
    for column in columns:
        some = [value(row, column) for row in rows if value(row, column) is not None]
        scale = (0, 1) if column in QUALITY else (0, 10)
        found["n"][column] = len(some)
        found["scores"][column] = interval(some, (-1, 1) if column in COSINES else scale)
    return found


def differences(rows: list[dict], methods: list[str], columns: list[str]) -> list[dict]:
    """a - b over the samples that both have, for each two methods, {column: its interval}."""
    own = {method: {} for method in methods}
    for row in rows:
        own[row["method"]][row["id"]] = row
    found = []
    for a, b in combinations(methods, 2):
        both = [(own[a][key], own[b][key]) for key in own[a] if key in own[b]]
        gains = {}
        for column in columns:
            gains[column] = paired_difference([value(one, column) for one, _ in both],
                                              [value(other, column) for _, other in both])
        n = sum(not one["failed"] and not other["failed"] for one, other in both)
        found.append({"a": a, "b": b, "n": n, "differences": gains})
    return found


def summarise(rows: list[dict], methods: list[str], judged: list[str]) -> list[dict]:
    """Everything that tables and page show of the scores: of all samples, then of each subset.

    A part is {"name", "n": samples, "groups": {method: {type or "all": of `group`}}, "pairs": of
    `differences`}. judged: the judge's columns; of a type only these and the main one are there.
    """
    main = main_column(rows)
    few = list(dict.fromkeys([*judged, main]))
    parts = []
    for name in ["all", *dict.fromkeys(row["subset"] for row in rows)]:
        here = [row for row in rows if name in ("all", row["subset"])]
        groups = {}
        for method in methods:
            own = [row for row in here if row["method"] == method]
            groups[method] = {"all": group(own, list(dict.fromkeys([*few, *QUALITY])))}
            for kind in dict.fromkeys(row["type"] for row in here):
                groups[method][kind] = group([row for row in own if row["type"] == kind], few)
        parts.append({"name": name, "n": len({row["id"] for row in here}), "groups": groups,
                      "pairs": differences(here, methods, few)})
    return parts


# ------------------------------------------------------------------------------------------- people

def win_rates(rankings: list[dict[str, float]], clusters: list[tuple[str, str]] | None = None,
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
    for a, b in permutations(names, 2):
        both = [k for k, ranks in enumerate(rankings) if a in ranks and b in ranks]
        if not both:
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
        if not weights.any():                            # a sparse study: none is left
            return math.nan
        return np.average(x, weights=weights)
    return bootstrap_interval(mean, len(raters), len(samples))


def correlation(a, b) -> tuple[float, float, float]:
    """Spearman's rho of two lists and its 95 % interval, by the bootstrap over pairs. NaN where
    there is none: fewer than 3 pairs, or all values of a list the same."""
    if len(a) < 3:
        return NO_INTERVAL
    a, b = np.asarray(a, float), np.asarray(b, float)
    with warnings.catch_warnings(action="ignore"):       # rho of equal values is NaN, as it should
        return bootstrap_interval(lambda i: spearmanr(a[i], b[i]).statistic, len(a))


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
