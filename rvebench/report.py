"""Who is better, by how much, and why? The tables and report.html, from what was scored (Sec. 5).

    python -m rvebench.report results                      # table.md and report.html again
    python -m rvebench.report results --human ratings.csv  # people's scores: id, method, EA, ...

No call and no model is needed. report.html is one file (page.py). Statistics are those of
scores.summarise; the page's scripts show them, count wins, filter and sort.
"""

import math
from pathlib import Path

from common.files import Parser, atomic_write, run_script
from common.intervals import COLUMNS
from rvebench import study
from rvebench.benchmark import QUALITY
from rvebench.page import HERE, make_playable, write_page
from rvebench.scores import (NOTHING, as_markdown, main_column, read_results, role, samples,
                             summarise)
from rvebench.tables import judged_columns, read_human, tables


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


def write_report(out: Path, rows: list[dict], about: dict, human: dict | None = None,
                 ranked: dict | None = None) -> str:
    """Write out/table.md and out/report.html; returns the tables.

    human: of `read_human`; ranked: of the study.
    """
    parts = summarise(rows, about["methods"], judged_columns(about))
    blocks = tables(rows, about, parts, human or {})
    if ranked:
        blocks += ["## user study\n", f"{ranked['words']} Pairwise win rates:\n",
                   ranked["table"]]
    text = as_markdown(blocks)
    atomic_write(out / "table.md", text)
    data = page_data(make_playable(rows, out), about, parts) | {"study": ranked, "blocks": blocks}
    write_page(out / "report.html", HERE / "report.html", f"RVE-Bench: {data['title']}", data=data)
    return text


def build(folder: Path) -> None:
    """Write table.md and report.html of a folder of results into it; print the tables.

    Raises BadInput.
    """
    rows, about = read_results(folder)
    ratings = folder / "human.csv"
    human = read_human(ratings) if ratings.exists() else {}
    text = write_report(folder, rows, about, human, study.results(folder))
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
