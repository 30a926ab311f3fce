"""Who is better, by how much, and why? The tables and report.html, from what was scored (Sec. 5).

    python -m rvebench.report results                      # table.md and report.html again
    python -m rvebench.report results more --out page      # methods of several folders in one page
    python -m rvebench.report results --human ratings.csv  # people's scores: id, method, EA, ...
    python -m rvebench.report results --out page --bundle  # with the videos: a folder to send

No call and no model is needed. report.html is one file (page.py). Statistics are made here; its
scripts show them, count wins, filter and sort. Results of different judges are refused: their
numbers are not on one scale.
"""

import re
from itertools import combinations
from pathlib import Path

from common.files import BadInput, Parser, atomic_write, run_script
from common.intervals import interval, paired_difference
from rvebench import quality, study
from rvebench.benchmark import SCORES
from rvebench.page import HERE, write_page
from rvebench.playable import make_playable
from rvebench.results import NOTHING, SUMMARIES, judged_by, merge, replies, role, samples
from rvebench.scores import as_markdown, correlation
from rvebench.tables import read_human, tables

Interval = tuple[float, float, float]                    # mean, low, high; NaN where there is none


# ------------------------------------------------------------------------------- who is better

def main_column(rows: list[dict]) -> str:
    """What methods are ranked by: Overall, a local VLM's Yes, or flicker where nobody judged."""
    for column in ("Overall", "Yes"):
        if any(row.get(column) is not None for row in rows):
            return column
    return "TF"


def value(row: dict, column: str) -> float | None:
    """A row's score or measure; None where it has none, or has failed."""
    if column in row["quality"]:
        return row["quality"][column]
    return None if row["failed"] else row.get(column)


def values(rows: list[dict], column: str) -> list[float]:
    """The values of those rows that have one."""
    found = [value(row, column) for row in rows]
    return [x for x in found if x is not None]


def ranking(rows: list[dict], methods: list[str], columns: list[str], main: str) -> list[dict]:
    """An entry a method, the best by `main` first: N scored and failed, the columns' intervals."""
    entries = []
    for method in methods:
        own = [row for row in rows if row["method"] == method]
        failed = sum(bool(row["failed"]) for row in own)
        scores = {column: interval(values(own, column)) for column in columns}
        entries.append({"method": method, "scored": len(own) - failed, "failed": failed,
                        "scores": scores})

    def place(entry):
        mean = entry["scores"][main][0]
        return -mean if mean == mean else float("inf")   # NaN, which is not itself, comes last
    return sorted(entries, key=place)


def differences(rows: list[dict], methods: list[str], column: str) -> list[dict]:
    """a - b over the samples that both have, for each two methods, in the order of `methods`."""
    scores = {}
    for method in methods:
        own = [row for row in rows if row["method"] == method]
        scores[method] = {row["id"]: value(row, column) for row in own
                          if value(row, column) is not None}
    found = []
    for a, b in combinations(methods, 2):
        both = [key for key in scores[a] if key in scores[b]]
        gain = paired_difference([scores[a][key] for key in both], [scores[b][key] for key in both])
        found.append({"a": a, "b": b, "n": len(both), "difference": gain, "real": is_real(gain)})
    return found


def is_real(difference: Interval) -> bool | None:
    """Whether a 95 % interval leaves out zero; None where there is no interval."""
    _, low, high = difference
    if low != low:
        return None
    return low > 0 or high < 0


def verdict(order: list[dict], pairs: list[dict], main: str, roles: dict) -> str:
    """Who is ahead, and whether that is more than chance, in a sentence. order: of `ranking`."""
    rivals = [entry for entry in order if not roles[entry["method"]] and entry["scored"]]
    if not rivals:
        return "No method was scored."
    best = rivals[0]["method"]
    nothing = [method for method, name in roles.items() if name == NOTHING]
    ahead, unsettled = [], []
    for method in [entry["method"] for entry in rivals[1:]] + nothing:
        pair = next(pair for pair in pairs if {pair["a"], pair["b"]} == {best, method})
        first = pair["difference"][0] if pair["a"] == best else -pair["difference"][0]
        name = "doing nothing" if method in nothing else method
        (ahead if pair["real"] and first > 0 else unsettled).append(name)
    words = f"{best} has {'the highest ' if len(rivals) > 1 else ''}{main} "
    words += f"{rivals[0]['scores'][main][0]:.2f}"
    if ahead:
        words += f"; it is ahead of {', '.join(ahead)}"
    if unsettled:
        words += f"; these samples do not settle whether it is better than {', '.join(unsettled)}"
    return words + "."


def summaries(rows: list[dict], methods: list[str], columns: list[str], main: str) -> list[dict]:
    """Ranking, differences and verdict: of all samples, and of each subset if there are several."""
    roles = {method: role(rows, method) for method in methods}
    subsets = list(dict.fromkeys(row["subset"] for row in rows))
    found = []
    for name in ["all", *subsets] if len(subsets) > 1 else subsets:
        own = [row for row in rows if name in ("all", row["subset"])]
        order = ranking(own, methods, columns, main)
        pairs = differences(own, [entry["method"] for entry in order], main)
        found.append({"name": name, "n": len({row["id"] for row in own}), "ranking": order,
                      "pairs": pairs, "verdict": verdict(order, pairs, main, roles)})
    return found


def by_type(rows: list[dict], methods: list[str], column: str) -> dict[str, dict[str, tuple]]:
    """{type: {method: (N, mean, low, high)}} of a column."""
    found = {}
    for kind in dict.fromkeys(row["type"] for row in rows):
        found[kind] = {}
        for method in methods:
            own = [row for row in rows if (row["type"], row["method"]) == (kind, method)]
            found[kind][method] = (len(values(own, column)), *interval(values(own, column)))
    return found


def judge_and_people(rows: list[dict], human: dict) -> list[dict]:
    """For each column that people rated: the points, and Spearman's rho with its interval."""
    found = []
    for column, ratings in human.items():
        points = []
        for row in rows:
            rated = ratings.get((row["id"], row["method"]))
            if rated is not None and value(row, column) is not None:
                points.append({"id": row["id"], "method": row["method"],
                               "judge": value(row, column), "people": rated})
        rho = correlation([p["judge"] for p in points], [p["people"] for p in points])
        found.append({"column": column, "points": points, "correlation": rho})
    return found


# ------------------------------------------------------------------------------------ the page

def judge_sees(about: dict) -> dict | None:
    """What an endpoint was shown and asked: N frames of a clip, the texts by type; else None.

    Older results do not say what was asked.
    """
    frames = re.search(r"(\d+) frames", judged_by(about))
    if about["judge"] != "openai" or not frames:
        return None
    return about.get("asked", {"frames": int(frames[1]), "prompts": {}})


def page_data(rows: list[dict], about: dict, blocks: list, human: dict | None = None,
              ranked: dict | None = None) -> dict:
    """All that the page shows, for JSON. The methods come first, the source and reference last."""
    main = main_column(rows)
    roles = {method: role(rows, method) for method in about["methods"]}
    methods = sorted(roles, key=lambda method: roles[method] is not None)
    columns = [c for c in (*SCORES, *SUMMARIES) if any(row.get(c) is not None for row in rows)]
    columns += [c for c in quality.COLUMNS if any(c in row["quality"] for row in rows)]
    return {
        "title": about["head"].partition(",")[0].partition(":")[0],
        "judge": judged_by(about) or "no judge",
        "date": about.get("date"),
        "spent": about.get("spent"),
        "methods": [{"name": method, "role": roles[method]} for method in methods],
        "main": main,
        "columns": columns,
        "unit": list(quality.COLUMNS),                   # these are in 0..1, scores in 0..10
        "labels": about["labels"],
        "summaries": summaries(rows, methods, columns, main),
        "types": by_type(rows, methods, main),
        "samples": samples(rows, human),
        "judgeSees": judge_sees(about),
        "people": judge_and_people(rows, human or {}),
        "study": ranked,
        "blocks": blocks,
    }


def write_report(out: Path, rows: list[dict], about: dict, blocks: list, human: dict | None = None,
                 ranked: dict | None = None) -> None:
    """Write out/report.html. blocks: of `tables`; human: of `read_human`; ranked: of the study."""
    data = page_data(rows, about, blocks, human, ranked)
    write_page(out / "report.html", HERE / "report.html", f"RVE-Bench: {data['title']}", data=data,
               replies=replies(rows))


def read_all_human(folders: list[Path]) -> dict:
    """People's scores that are kept in the folders: {column: {(id, method): mean rating}}."""
    found = {}
    for folder in folders:
        if (folder / "human.csv").exists():
            for column, ratings in read_human(str(folder / "human.csv")).items():
                found.setdefault(column, {}).update(ratings)
    return found


def build(folders: list[Path], out: Path | None = None, bundle: bool = False) -> str:
    """Write table.md and report.html of what is in the folders into `out`; returns the tables.

    out: the first folder, if None. bundle: copy all videos there. Raises BadInput.
    """
    out = out or folders[0]
    rows, about = merge(folders, out)
    human = read_all_human(folders)
    studies = [found for found in map(study.results, folders) if found]
    ranked = studies[0] if studies else None
    blocks = tables(rows, about, human or None)[0]
    if ranked:
        blocks += ["## user study\n", f"{ranked['words']} Pairwise win rates:\n",
                   ranked["table"]]
    text = as_markdown(blocks)
    atomic_write(out / "table.md", text)
    write_report(out, make_playable(rows, out, bundle), about, blocks, human, ranked)
    return text


def rebuild(folders: list[Path], out: Path | None = None, bundle: bool = False) -> None:
    """`build`, and print the tables."""
    text = build(folders, out, bundle)
    print(f"{text}\nwrote table.md and report.html into {out or folders[0]}")


def main(argv: list[str] | None = None) -> None:
    parser = Parser(prog="python -m rvebench.report", description=__doc__.partition("\n")[0])
    add = parser.add_argument
    add("results", nargs="+", type=Path, help="folders that rvebench.score has written")
    add("--out", type=Path, help="where the page goes (default: the first folder)")
    add("--human", type=Path, help="CSV of people's scores; a copy is kept in the first folder")
    add("--bundle", action="store_true", help="copy the videos, too, so that --out can be sent")
    args = parser.parse_args(argv)
    if args.human:
        read_human(str(args.human))                      # before anything is written
        atomic_write(args.results[0] / "human.csv", args.human.read_bytes())
    rebuild(args.results, args.out, args.bundle)


if __name__ == "__main__":
    run_script(main)
