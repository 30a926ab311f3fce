"""What was scored: a folder of results, for the report and the study."""

from datetime import date
from pathlib import Path

from common.files import BadInput
from common.jsonl import from_json, read_rows
from rvebench.benchmark import SCORES

SUMMARIES = ("Overall", "Geometric mean")
SAMPLE = ("id", "subset", "type", "instruction", "source", "target")
VIDEOS = ("source", "target", "video")                   # the fields of a row that are paths
RESULT = ("video", "failed", "frames", "reasons", "missing", "replies")
ROW = (*SAMPLE, *RESULT, "method", *SCORES, *SUMMARIES, "quality", "unanswered")
ABOUT = ("head", "judge", "methods")
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
    if "own vision tower" in about.get("labels", {}).get("SC", ""):      # an earlier version's
        for row in rows:
            row["quality"].pop("SC", None)
    scored_on = date.fromtimestamp((folder / "scores.jsonl").stat().st_mtime)
    return rows, {"date": scored_on.isoformat(), **about}


def judged_by(about: dict) -> str:
    """The judge in words: "gpt-4o, 8 frames, prompt judge-1"."""
    return about["head"].partition("judged by ")[2].partition(": means")[0]


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
        scores = {c: row[c] for c in (*SCORES, *SUMMARIES) if row[c] is not None}
        result = {field: row[field] for field in RESULT}
        sample["methods"][row["method"]] = result | {"scores": scores | row["quality"]}
    return list(found.values())
