"""Who is better, by how much, and why? The tables and report.html, from what was scored (Sec. 5).

    python -m rvebench.report results                      # table.md and report.html again
    python -m rvebench.report results --human ratings.csv  # people's scores: id, method, EA, ...

No call and no model is needed. report.html is one file (page.py). Statistics are those of
scores.summarise; the page's scripts show them, count wins, filter and sort.
"""

import csv
import math
from pathlib import Path

import numpy as np

from common.files import BadInput, Parser, atomic_write, run_script
from common.intervals import COLUMNS, METHOD, format_interval
from rvebench import study
from rvebench.benchmark import QUALITY
from rvebench.page import HERE, make_playable, write_page
from rvebench.scores import (NOTHING, as_markdown, correlation, main_column, paper_table,
                             read_results, role, samples, summarise, value)

PAPER = {
    "rave": "Table 1 rave", "icvg": "Table 1 icvg", "literal": "Table 3 Ditto-1M",
    "cross": "Table 2 VIE-Bench"}


# -------------------------------------------------------------------------------------- its tables

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

# ------------------------------------------------------------------------------- who is better

def ranking(part: dict, main: str) -> list[str]:
    """The methods of a part of scores.summarise, the best by `main` first."""
    mean = {method: groups["all"]["scores"][main][0] for method, groups in part["groups"].items()}
    return sorted(mean, key=lambda method: (math.isnan(mean[method]), -mean[method]))


def verdict(part: dict, order: list[str], main: str, roles: dict) -> str:
    """Who is ahead, and whether that is more than chance, in a sentence. order: of `ranking`."""
    found = {method: groups["all"] for method, groups in part["groups"].items()}
    rivals = [method for method in order if not roles[method] and found[method]["scored"]]
    if not rivals:
        return "No method was scored."
    best = rivals[0]
    nothing = [method for method, name in roles.items() if name == NOTHING]
    ahead, unsettled = [], []
    for method in rivals[1:] + nothing:
        pair = next(pair for pair in part["pairs"] if {pair["a"], pair["b"]} == {best, method})
        _, low, high = pair["differences"][main]             # NaN where there is no interval
        is_ahead = low > 0 if pair["a"] == best else high < 0
        name = "doing nothing" if method in nothing else method
        (ahead if is_ahead else unsettled).append(name)
    words = f"{best} has {'the highest ' if len(rivals) > 1 else ''}{main} "
    words += f"{found[best]['scores'][main][0]:.2f}"
    if ahead:
        words += f"; it is ahead of {', '.join(ahead)}"
    if unsettled:
        words += f"; these samples do not settle whether it is better than {', '.join(unsettled)}"
    return words + "."


# ------------------------------------------------------------------------------------ the page

def page_data(rows: list[dict], about: dict, parts: list[dict]) -> dict:
    """What the page shows of the scores, for JSON. The source and the reference come last.

    parts: of scores.summarise.
    """
    main = main_column(rows)
    roles = {method: role(rows, method) for method in about["methods"]}
    methods = sorted(roles, key=lambda method: roles[method] is not None)
    columns = [c for c in COLUMNS if any(row[c] is not None for row in rows)]
    columns += [c for c in QUALITY if c == main or any(c in row["quality"] for row in rows)]
    shown = []
    for part in parts if len(parts) > 2 else parts[1:]:      # of one subset, "all" is the same
        order = ranking(part, main)
        shown.append({**part, "ranking": order, "verdict": verdict(part, order, main, roles)})
    return {
        "title": about["head"].partition(",")[0].partition(":")[0],
        "judge": about["head"].partition("judged by ")[2].partition(": means")[0] or "no judge",
        "date": about.get("date"),
        "methods": [{"name": method, "role": roles[method]} for method in methods],
        "main": main,
        "columns": columns,
        "unit": QUALITY,                                 # these are in 0..1, scores in 0..10
        "parts": shown,
        "samples": samples(rows),
        "judgeSees": about.get("asked"),
    }


def build(folder: Path) -> None:
    """Write table.md and report.html of a folder of results into it; print the tables. Raises
    BadInput."""
    rows, about = read_results(folder)
    ratings, ranked = folder / "human.csv", study.results(folder)
    human = read_human(ratings) if ratings.exists() else {}
    parts = summarise(rows, about["methods"], judged_columns(about))
    blocks = tables(rows, about, parts, human)
    if ranked:
        blocks += ["## user study\n", f"{ranked['words']} Pairwise win rates:\n",
                   ranked["table"]]
    text = as_markdown(blocks)
    atomic_write(folder / "table.md", text)
    data = page_data(make_playable(rows, folder), about, parts)
    write_page(folder / "report.html", HERE / "report.html", f"RVE-Bench: {data['title']}",
               data=data | {"study": ranked, "blocks": blocks})
    print(f"{text}\nwrote table.md and report.html into {folder}")


def main(argv: list[str] | None = None) -> None:
    parser = Parser(description=__doc__.partition("\n")[0])
    add = parser.add_argument
    add("results", type=Path, help="a folder that rvebench.score has written")
    add("--human", type=Path, help="CSV of people's scores; a copy is kept in the folder")
    args = parser.parse_args(argv)
    if args.human:
        read_human(args.human)                      # before anything is written
        atomic_write(args.results / "human.csv", args.human.read_bytes())
    build(args.results)


if __name__ == "__main__":
    run_script(main)
