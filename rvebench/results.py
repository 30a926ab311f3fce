"""What was scored: folders of results, read and put together, for the report and the study."""

from datetime import date
from pathlib import Path

from common.files import BadInput
from common.jsonl import from_json, read_rows
from rvebench.benchmark import SCORES
from rvebench.page import relative

SUMMARIES = ("Overall", "Geometric mean", "Yes")
SAMPLE = ("id", "subset", "type", "instruction", "source", "target")
VIDEOS = ("source", "target", "video")                   # the fields of a row that are paths
RESULT = ("video", "failed", "frames", "repeats", "reasons", "missing", "replies")
ROW = (*SAMPLE, *RESULT, "method", *SCORES, *SUMMARIES, "quality", "unanswered")
ABOUT = ("head", "judge", "repeat", "methods", "labels", "why")
NOTHING, REFERENCE = "do nothing (the source)", "reference"


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
        "spent": sum(about.get("spent", 0) for about in abouts),
    }


def role(rows: list[dict], method: str) -> str | None:
    """NOTHING if a method's videos are the sources, REFERENCE if the targets, else None."""
    own = [row for row in rows if row["method"] == method]
    if own and all(row["video"] == row["source"] for row in own):
        return NOTHING
    if own and all(row["video"] == row["target"] for row in own):
        return REFERENCE
    return None


def samples(rows: list[dict], human: dict) -> list[dict]:
    """The rows, one a sample and method, gathered by sample; people's ratings beside them."""
    found = {}
    for row in rows:
        sample = {field: row[field] for field in SAMPLE} | {"methods": {}}
        sample = found.setdefault(row["id"], sample)
        key = row["id"], row["method"]
        scores = {c: row[c] for c in (*SCORES, *SUMMARIES) if row[c] is not None}
        rated = {c: ratings[key] for c, ratings in human.items() if key in ratings}
        sample["methods"][row["method"]] = {
            **{field: row[field] for field in RESULT},
            "scores": scores | row["quality"],
            "human": rated,
        }
    return list(found.values())
