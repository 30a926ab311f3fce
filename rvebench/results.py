"""What was scored: folders of results, read and put together, for the report and the study."""

import json
from datetime import date
from pathlib import Path

from common.files import BadInput
from rvebench.benchmark import SCORES
from rvebench.page import relative

SUMMARIES = ("Overall", "Geometric mean", "Yes")
FIELDS = ("id", "subset", "type", "instruction", "source", "target")
VIDEOS = ("source", "target", "video")                   # the fields of a row that are paths
NOTHING, REFERENCE = "do nothing (the source)", "reference"


def read_results(folder: Path) -> tuple[list[dict], dict]:
    """(rows, about) of a folder of results. Raises BadInput where there are none."""
    try:
        lines = (folder / "scores.jsonl").read_text("utf-8").splitlines()
        rows = [json.loads(line) for line in lines]
        about = json.loads((folder / "about.json").read_text("utf-8"))
        for row in rows:
            check_fields(row, (*FIELDS, "method", "video", "failed", "quality"))
        check_fields(about, ("judge", "head", "methods", "labels", "why"))
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise BadInput(f"{folder}: holds no results of a benchmark ({error!r:.80}); make them "
                       f"with python -m rvebench.score") from error
    scored_on = date.fromtimestamp((folder / "scores.jsonl").stat().st_mtime)
    return rows, {"date": scored_on.isoformat(), **about}


def check_fields(record: dict, names: tuple[str, ...]) -> None:
    """Raises KeyError where one is missing."""
    for name in names:
        record[name]


def judged_by(about: dict) -> str:
    """The judge in words: "gpt-4o, 8 frames, prompt judge-1"."""
    return about["head"].partition("judged by ")[2].partition(": means")[0]


def merge(folders: list[Path], out: Path) -> tuple[list[dict], dict]:
    """The rows of several folders, with paths relative to `out`, and what is said about all.

    A method whose name is taken becomes "name (folder)"; where both have the same rows, it is there
    once. Raises BadInput where judges differ, or samples of one id.
    """
    rows, abouts, known = [], [], {}
    for folder in folders:
        some, about = read_results(folder)
        if abouts and judged_by(about) != judged_by(abouts[0]):
            raise BadInput(f"{folder}: was judged by {judged_by(about)}, and {folders[0]} by "
                           f"{judged_by(abouts[0])}; their scores cannot be compared: score one of "
                           f"them again")
        for row in some:
            sample = row["instruction"], row["type"], row["subset"]
            if known.setdefault(row["id"], sample) != sample:
                raise BadInput(f"{folder}: its sample {row['id']} is another than that of "
                               f"{folders[0]}; give results of one benchmark")
            for field in VIDEOS:
                row[field] = relative(folder / row[field], out)
        rows += rename_taken(some, about["methods"], rows, folder.resolve().name)
        abouts.append(about)
    return rows, merge_abouts(rows, abouts)


def rename_taken(some: list[dict], methods: list[str], rows: list[dict], label: str) -> list[dict]:
    """`some` rows; a method that is in `rows` already is renamed, or left out if it is the same."""
    taken = {}
    for row in rows:
        taken.setdefault(row["method"], {})[row["id"]] = row
    kept = []
    for method in methods:
        own = [row for row in some if row["method"] == method]
        if method in taken:
            if all(taken[method].get(row["id"]) == row for row in own):
                continue
            own = [row | {"method": f"{method} ({label})"} for row in own]
        kept += own
    return kept


def merge_abouts(rows: list[dict], abouts: list[dict]) -> dict:
    """What is said about all: of the first, with the methods, labels and money of all."""
    labels, why = {}, {}
    for about in reversed(abouts):
        labels |= about["labels"]
        why |= about["why"]
    measured = {column for row in rows for column in row["quality"]}
    return abouts[0] | {
        "methods": list(dict.fromkeys(row["method"] for row in rows)),
        "labels": labels,
        "why": {column: reason for column, reason in why.items() if column not in measured},
        "date": max(about["date"] for about in abouts),
        "spent": sum(about.get("spent") or 0 for about in abouts),
    }


def role(rows: list[dict], method: str) -> str | None:
    """NOTHING if a method's videos are the sources, REFERENCE if the targets, else None."""
    own = [row for row in rows if row["method"] == method]
    if own and all(row["video"] == row["source"] for row in own):
        return NOTHING
    if own and all(row["video"] == row["target"] for row in own):
        return REFERENCE
    return None


def samples(rows: list[dict], human: dict | None = None) -> list[dict]:
    """The rows, one a sample and method, gathered by sample; people's ratings beside them."""
    found = {}
    for row in rows:
        sample = {field: row[field] for field in FIELDS} | {"methods": {}}
        sample = found.setdefault(row["id"], sample)
        key = row["id"], row["method"]
        scores = {c: row[c] for c in (*SCORES, *SUMMARIES) if row.get(c) is not None}
        rated = {c: ratings[key] for c, ratings in (human or {}).items() if key in ratings}
        sample["methods"][row["method"]] = {
            "video": row["video"],
            "failed": row["failed"],
            "frames": row.get("frames"),
            "scores": scores | row["quality"],
            "human": rated,
            "repeats": row.get("repeats", []),
            "reasons": row.get("reasons", []),
            "missing": row.get("missing", []),
        }
    return list(found.values())


def replies(rows: list[dict]) -> dict[str, dict[str, list]]:
    """{id: {method: what a service said, {what it was asked about: text} a repeat}}."""
    found = {}
    for row in rows:
        if row.get("replies"):
            found.setdefault(row["id"], {})[row["method"]] = row["replies"]
    return found
