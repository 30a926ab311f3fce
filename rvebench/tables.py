"""The tables of a benchmark, from the rows of scores.jsonl; table.md and report.html show them."""

import csv
import math
from pathlib import Path

import numpy as np

from common.files import BadInput
from common.intervals import COLUMNS, METHOD, format_interval
from rvebench.benchmark import QUALITY
from rvebench.scores import NO_INTERVAL, correlation, paper_table, value

PAPER = {
    "rave": "Table 1 rave", "icvg": "Table 1 icvg", "literal": "Table 3 Ditto-1M",
    "cross": "Table 2 VIE-Bench"}


def tables(rows: list[dict], about: dict, parts: list[dict], human: dict) -> list:
    """For each subset scores, differences, quality; then what is missing.

    A block is a text or a table, a list of lines of cells. parts: of scores.summarise; human: of
    `read_human`.
    """
    columns, methods = judged_columns(about), about["methods"]
    blocks = [f"{about['head']} {METHOD}\n"]
    for part in parts:
        if part["name"] == "all":
            continue
        blocks += [f"## {part['name']}\n", score_table(part, columns)]
        if len(methods) > 1 and columns:
            blocks += ["The same samples, method by method:\n", difference_table(part, columns)]
        blocks += ["Video quality, 0 to 1, each clip counting once:\n", quality_table(part)]
        if part["name"] in PAPER:
            blocks += paper_table(PAPER[part["name"]], [*columns, *QUALITY])
    if columns and not any(row["video"] == row["source"] for row in rows):
        blocks.append("PC gives a video in which nothing was changed 10 by construction: "
                      "--references adds what doing nothing gets.\n")
    if human:
        blocks.append(human_table(rows, human))
    return blocks + missing_answers(rows) + failures(rows, methods)


def judged_columns(about: dict) -> list[str]:
    """The columns that the judge gives."""
    return [] if about["judge"] == "none" else list(COLUMNS)


def score_table(part: dict, columns: list[str]) -> list[list[str]]:
    """A line for each method and type, and one for all of a method: mean [95 % interval]."""
    lines = [["method", "type", "N scored", "N failed", *columns]]
    for method, groups in part["groups"].items():
        for kind in [*(kind for kind in groups if kind != "all"), "all"]:
            group = groups[kind]
            cells = [format_interval(group["scores"][column]) for column in columns]
            lines.append([method, kind, str(group["scored"]), str(group["failed"]), *cells])
    return lines


def difference_table(part: dict, columns: list[str]) -> list[list[str]]:
    """a - b of each two methods, over the samples that both have."""
    lines = [["difference", "N pairs", *columns]]
    for pair in part["pairs"]:
        cells = [format_interval(pair["differences"][column], "+.2f") for column in columns]
        lines.append([f"{pair['a']} - {pair['b']}", str(pair["n"]), *cells])
    return lines


def quality_table(part: dict) -> list[list[str]]:
    """VBench's measures, mean [95 % interval] over clips; those that nobody took are left out."""
    found = {method: groups["all"] for method, groups in part["groups"].items()}
    columns = [column for column in QUALITY if any(some["n"][column] for some in found.values())]
    lines = [["method", "N", *columns]]
    for method, some in found.items():
        cells = [format_interval(some["scores"][column], ".3f") for column in columns]
        lines.append([method, str(max(some["n"][column] for column in QUALITY)), *cells])
    return lines


def missing_answers(rows: list[dict]) -> list[str]:
    """How many judgements are missing, in whole or in part, and what can be done about it."""
    unanswered = sum(row["unanswered"] for row in rows)
    refused = sum(len(row["missing"]) for row in rows) - unanswered
    found = []
    if refused:
        found.append(f"{refused} judgements are missing: refused, cut off, malformed or out of "
                     f"range after the last try. --judge-tokens leaves a reasoning model more "
                     f"room.\n")
    if unanswered:
        found.append(f"{unanswered} judgements are missing, for the endpoint did not answer: the "
                     f"same command asks again.\n")
    return found


def failures(rows: list[dict], methods: list[str]) -> list[str]:
    """What is not scored, and why."""
    found = []
    for method in methods:
        own = [row for row in rows if row["method"] == method]
        failed = [row for row in own if row["failed"]]
        if failed:
            lines = [f"- {row['id']}: {' '.join(row['failed'].split())}\n" for row in failed]
            found.append(f"{method}: {len(failed)} of {len(own)} failed and are not scored:\n")
            found.append("".join(lines))
    return found


# ------------------------------------------------------------------------------------------- people

def read_human(path: str | Path) -> dict[str, dict[tuple[str, str], float]]:
    """{column: {(id, method): mean rating}} of a CSV: columns id, method and some of the scores'.

    A line is one person's rating; empty cells are none. Raises BadInput, naming file:line.
    """
    ratings, lines = {}, None
    try:
        with open(path, newline="", encoding="utf-8-sig") as file:
            lines = csv.DictReader(file)
            names = lines.fieldnames or ()
            columns = [column for column in COLUMNS if column in names]
            if not columns or not {"id", "method"} <= set(names):
                raise ValueError(f"it needs the columns id, method and one of {', '.join(COLUMNS)}")
            for line in lines:
                for column in columns:
                    cell = (line[column] or "").strip()
                    if cell and not math.isfinite(float(cell)):
                        raise ValueError(f"{column} is {cell}")
                    if cell:
                        several = ratings.setdefault(column, {})
                        several.setdefault((line["id"], line["method"]), []).append(float(cell))
    except (OSError, ValueError, csv.Error) as error:
        where = f":{lines.line_num}" if lines else ""
        raise BadInput(f"--human {path}{where}: cannot be read ({error}); give a CSV of "
                       f"numbers") from error
    return {column: {key: float(np.mean(some)) for key, some in several.items()}
            for column, several in ratings.items()}


def human_table(rows: list[dict], human: dict) -> list[list[str]]:
    """How well the judge agrees with people, by Spearman's rho (Sec. 4.2)."""
    lines = [["judge and people", "N", "Spearman"]]
    for column, ratings in human.items():
        both = []
        for row in rows:
            rated, judged = ratings.get((row["id"], row["method"])), value(row, column)
            if rated is not None and judged is not None:
                both.append((judged, rated))
        rho = correlation([judged for judged, _ in both], [rated for _, rated in both])
        lines.append([column, str(len(both)), format_interval(rho)])
    return lines


def study_table(rankings: dict[str, list], rates: dict[str, dict]) -> list[list[str]]:
    """Win rates of each criterion's rankings, a line for each ordered pair of methods.

    rates: {criterion: of scores.win_rates}.
    """
    lines = [["wins over", "N", *rankings]]
    for pair in dict.fromkeys(pair for found in rates.values() for pair in found):
        counts = [sum(set(pair) <= set(ranks) for ranks in some) for some in rankings.values()]
        cells = [format_interval(found.get(pair, NO_INTERVAL), ".0%") for found in rates.values()]
        lines.append([f"{pair[0]} over {pair[1]}", str(max(counts)), *cells])
    return lines
