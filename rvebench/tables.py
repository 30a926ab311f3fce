"""The tables of a benchmark, from the rows of scores.jsonl: Markdown and report.html show the same ones (Sec. 5)."""

import csv
import math
from itertools import combinations

import numpy as np

from rvebench import quality
from common.files import BadInput
from common.intervals import COLUMNS, format_interval, interval, paired_difference
from rvebench.scores import correlation, paper_table, win_rates


def judge_variance(rows: list[dict], column: str) -> float:
    """The mean over edits of the variance of `column` between the judge's repeats; NaN where none was judged twice."""
    several = [[r[column] for r in row["repeats"] if column in r] for row in rows]
    variances = [np.var(x, ddof=1) for x in several if len(x) > 1]
    return float(np.mean(variances)) if variances else math.nan


def read_human(path: str) -> dict[str, dict[tuple[str, str], float]]:
    """{column: {(id, method): mean rating}} of a CSV with the columns id, method and some of the scores' names.

    A line is one person's rating; empty cells are none. Raises BadInput.
    """
    found = {}
    try:
        with open(path, newline="", encoding="utf-8-sig") as file:
            lines = csv.DictReader(file)
            rated = [c for c in (*COLUMNS, "Yes") if c in (lines.fieldnames or ())]
            if not rated or not {"id", "method"} <= set(lines.fieldnames):
                raise BadInput(f"--human {path}: needs the columns id, method and one of {', '.join(COLUMNS)}")
            for line in lines:
                for column in rated:
                    if (line[column] or "").strip():
                        value = float(line[column])
                        if not math.isfinite(value):
                            raise ValueError(f"{column} is {line[column]}")
                        found.setdefault(column, {}).setdefault((line["id"], line["method"]), []).append(value)
    except BadInput:
        raise
    except (OSError, ValueError, csv.Error) as error:
        where = f":{lines.line_num}" if "lines" in locals() else ""
        raise BadInput(f"--human {path}{where}: cannot be read ({error}); give a CSV of numbers") from error
    return {column: {key: float(np.mean(x)) for key, x in cells.items()} for column, cells in found.items()}


PAPER = {"rave": "Table 1 rave", "icvg": "Table 1 icvg", "literal": "Table 3 Ditto-1M", "cross": "Table 2 VIE-Bench"}


def tables(rows: list[dict], about: dict, human: dict | None = None) -> tuple[list, list]:
    """(blocks, charts) of a benchmark's rows: for each subset scores by method and type, differences, quality.

    A block is a text or a table, a list of lines of cells. A chart is what report.bars draws: (groups, title, top).
    """
    columns = {"vila": ["Yes"], "none": []}.get(about["judge"], list(COLUMNS))
    heads, names = about["labels"], about["methods"]
    pick = lambda group, column: [r[column] for r in group if not r["failed"] and r[column] is not None]
    drawn, top = (columns[-2], 10.) if len(columns) > 1 else (columns[0], 10.) if columns else ("TF", 1.)
    out, charts = [f"{about['head']}\n"], []
    for subset in dict.fromkeys(r["subset"] for r in rows):
        here = [r for r in rows if r["subset"] == subset]
        kinds = [*dict.fromkeys(r["type"] for r in here), "all"]
        lines, groups = [["method", "type", "N scored", "N failed", *columns]], {}
        for name in names:
            for kind in kinds:
                group = [r for r in here if r["method"] == name and kind in (r["type"], "all")]
                bad = sum(bool(r["failed"]) for r in group)
                lines.append([name, kind, str(len(group) - bad), str(bad), *[format_interval(interval(pick(group, c))) for c in columns]])
                values = pick(group, drawn) if columns else [r["quality"]["TF"] for r in group if r["quality"]]
                groups.setdefault(kind, []).append((name, *interval(values)))
        out += [f"## {subset}\n", lines]
        charts.append((list(groups.items()), f"{subset}: {drawn}", top))
        by = {name: {r["id"]: r for r in here if r["method"] == name and not r["failed"]} for name in names}
        lines = [["difference", "N pairs", *columns]]
        for a, b in combinations(names, 2):
            both = [key for key in by[a] if key in by[b]]
            pair = lambda column: [[by[name][key][column] for key in both] for name in (a, b)]
            lines.append([f"{a} - {b}", str(len(both)), *[format_interval(paired_difference(*pair(c)), "+.2f") for c in columns]])
        if len(lines) > 1 and columns:
            out += ["The same samples, method by method:\n", lines]
        lines = [["method", "N", *[heads[c] for c in quality.COLUMNS]]]
        for name in names:
            seen = [r["quality"] for r in here if r["method"] == name and r["quality"]]
            lines.append([name, str(len(seen)), *[format_interval(interval([q[c] for q in seen if c in q]), ".3f") for c in quality.COLUMNS]])
        out += ["Video quality, 0 to 1:\n", lines]
        if subset in PAPER:
            out += paper_table(PAPER[subset], [*columns, *quality.COLUMNS])
    if about["why"]:
        out += ["Empty columns: " + "; ".join(f"{c}: {why}" for c, why in about["why"].items()) + ".\n"]
    own = {c: judge_variance(rows, c) for c in columns}
    lines = [f"{c} {v:.3f} (standard deviation {v ** .5:.2f})" for c, v in own.items() if not math.isnan(v)]
    if lines:
        out += [f"The judge's own variance, between {about['repeat']} judgements of the same edit: "
                f"{', '.join(lines)}.\n"]
    if human:
        lines = [["judge and people", "N", "Spearman"]]
        for column, ratings in human.items():
            pairs = [(r[column], ratings[r["id"], r["method"]]) for r in rows
                     if r[column] is not None and not r["failed"] and (r["id"], r["method"]) in ratings]
            lines.append([column, str(len(pairs)), format_interval(correlation(*zip(*pairs)) if pairs else (math.nan,) * 3)])
        out += [lines]
    part = sum(len(r["missing"]) for r in rows)
    if part:
        out += [f"{part} judgements are missing: refused, cut off, malformed or out of range after the last try.\n"]
    for name in names:
        bad = [r for r in rows if r["method"] == name and r["failed"]]
        if bad:
            out += [f"{name}: {len(bad)} of {sum(r['method'] == name for r in rows)} failed and are not scored:\n",
                    "".join(f"- {r['id']}: {' '.join(r['failed'].split())}\n" for r in bad)]
    return out, charts


def study_table(rankings: dict[str, list]) -> list[list[str]]:
    """Win rates of each criterion's rankings, a line for each ordered pair of methods."""
    lines = [["wins over", "N", *rankings]]
    rates = {criterion: win_rates(some) for criterion, some in rankings.items()}
    for pair in dict.fromkeys(pair for some in rates.values() for pair in some):
        n = max(sum(set(pair) <= set(ranks) for ranks in some) for some in rankings.values())
        cells = [format_interval(some.get(pair, (math.nan,) * 3), ".0%") for some in rates.values()]
        lines.append([f"{pair[0]} over {pair[1]}", str(n), *cells])
    return lines
