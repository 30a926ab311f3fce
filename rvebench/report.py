"""Who is better, by how much, and why? The tables and report.html, from what was scored (Sec. 5).

    python -m rvebench.report results                      # table.md and report.html again
    python -m rvebench.report results more --out page      # methods of several folders in one page
    python -m rvebench.report results --human ratings.csv  # people's scores: id, method, EA, ...
    python -m rvebench.report results --out page --bundle  # with the videos: a folder to send

No call and no model is needed. report.html is one file (page.py). Statistics are made here; its
scripts show them, count wins, filter and sort. Results of different judges are refused: their
numbers are not on one scale.
"""

from pathlib import Path

from common.files import Parser, atomic_write, run_script
from rvebench import study
from rvebench.benchmark import QUALITY, SCORES
from rvebench.page import HERE, write_page
from rvebench.playable import make_playable
from rvebench.results import NOTHING, SUMMARIES, judged_by, merge, replies, role, samples
from rvebench.scores import as_markdown, is_real, judge_and_people, main_column, summarise
from rvebench.tables import judged_columns, read_human, tables


# ------------------------------------------------------------------------------- who is better

def ranking(part: dict, main: str, columns: list[str]) -> list[dict]:
    """An entry a method, the best by `main` first: N scored and failed, the columns' intervals."""
    entries = []
    for method, groups in part["groups"].items():
        found = groups["all"]
        scores = {column: found["scores"][column] for column in columns}
        entries.append({"method": method, "scored": found["scored"], "failed": found["failed"],
                        "scores": scores})

    def place(entry):
        mean = entry["scores"][main][0]
        return -mean if mean == mean else float("inf")   # NaN, which is not itself, comes last
    return sorted(entries, key=place)


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


def summaries(parts: list[dict], roles: dict, columns: list[str], main: str) -> list[dict]:
    """Ranking, differences and verdict: of all samples, and of each subset if there are several."""
    found = []
    for part in parts if len(parts) > 2 else parts[1:]:
        order, pairs = ranking(part, main, columns), []
        for pair in part["pairs"]:
            gain = pair["differences"][main]
            pairs.append({"a": pair["a"], "b": pair["b"], "difference": gain,
                          "real": is_real(gain)})
        found.append({"name": part["name"], "n": part["n"], "ranking": order, "pairs": pairs,
                      "verdict": verdict(order, pairs, main, roles)})
    return found


def by_type(part: dict, column: str) -> dict[str, dict[str, tuple]]:
    """{type: {method: (N, mean, low, high)}} of a column."""
    found = {}
    for method, groups in part["groups"].items():
        for kind, group in groups.items():
            if kind != "all":
                numbers = group["n"][column], *group["scores"][column]
                found.setdefault(kind, {})[method] = numbers
    return found


# ------------------------------------------------------------------------------------ the page

def page_data(rows: list[dict], about: dict, parts: list[dict], people: list[dict],
              human: dict) -> dict:
    """What the page shows of the scores, for JSON. The source and the reference come last.

    parts, people: as in `tables`; human: of `read_human`.
    """
    main = main_column(rows)
    roles = {method: role(rows, method) for method in about["methods"]}
    methods = sorted(roles, key=lambda method: roles[method] is not None)
    columns = [c for c in (*SCORES, *SUMMARIES) if any(row[c] is not None for row in rows)]
    columns += [c for c in QUALITY if c == main or any(c in row["quality"] for row in rows)]
    return {
        "title": about["head"].partition(",")[0].partition(":")[0],
        "judge": judged_by(about) or "no judge",
        "date": about.get("date"),
        "spent": about.get("spent"),
        "methods": [{"name": method, "role": roles[method]} for method in methods],
        "main": main,
        "columns": columns,
        "unit": QUALITY,                                 # these are in 0..1, scores in 0..10
        "labels": about["labels"],
        "summaries": summaries(parts, roles, columns, main),
        "types": by_type(parts[0], main),
        "samples": samples(rows, human),
        "judgeSees": about.get("asked"),
        "people": people,
    }


def write_report(out: Path, rows: list[dict], about: dict, human: dict | None = None,
                 ranked: dict | None = None, bundle: bool = False) -> str:
    """Write out/table.md and out/report.html; returns the tables.

    human: of `read_human`; ranked: of the study; bundle: copy all videos there.
    """
    human = human or {}
    parts = summarise(rows, about["methods"], judged_columns(about))
    people = judge_and_people(rows, human)
    blocks = tables(rows, about, parts, people)
    if ranked:
        blocks += ["## user study\n", f"{ranked['words']} Pairwise win rates:\n",
                   ranked["table"]]
    text = as_markdown(blocks)
    atomic_write(out / "table.md", text)
    shown = make_playable(rows, out, bundle)
    data = page_data(shown, about, parts, people, human)
    data |= {"study": ranked, "blocks": blocks}
    write_page(out / "report.html", HERE / "report.html", f"RVE-Bench: {data['title']}", data=data,
               replies=replies(rows))
    return text


def read_all_human(folders: list[Path]) -> dict:
    """People's scores that are kept in the folders: {column: {(id, method): mean rating}}."""
    found = {}
    for folder in folders:
        if (folder / "human.csv").exists():
            for column, ratings in read_human(str(folder / "human.csv")).items():
                found.setdefault(column, {}).update(ratings)
    return found


def build(folders: list[Path], out: Path | None = None, bundle: bool = False) -> None:
    """Write table.md and report.html of what is in the folders into `out`; print the tables.

    out: the first folder, if None. bundle: copy all videos there. Raises BadInput.
    """
    out = out or folders[0]
    rows, about = merge(folders, out)
    studies = [found for found in map(study.results, folders) if found]
    ranked = studies[0] if studies else None
    text = write_report(out, rows, about, read_all_human(folders), ranked, bundle)
    print(f"{text}\nwrote table.md and report.html into {out}")


def main(argv: list[str] | None = None) -> None:
    parser = Parser(description=__doc__.partition("\n")[0])
    add = parser.add_argument
    add("results", nargs="+", type=Path, help="folders that rvebench.score has written")
    add("--out", type=Path, help="where the page goes (default: the first folder)")
    add("--human", type=Path, help="CSV of people's scores; a copy is kept in the first folder")
    add("--bundle", action="store_true", help="copy the videos, too, so that --out can be sent")
    args = parser.parse_args(argv)
    if args.human:
        read_human(str(args.human))                      # before anything is written
        atomic_write(args.results[0] / "human.csv", args.human.read_bytes())
    build(args.results, args.out, args.bundle)


if __name__ == "__main__":
    run_script(main)
