"""What curation writes: a manifest of triplets, which train.py and evaluate.py read."""

import os
from pathlib import Path
from typing import Iterable

from common.manifest import FIELDS
from rvedata.stages import write_stage

VIDEO_FIELDS = FIELDS[:2]                                # the fields that hold paths


def rebase_paths(record: dict, old: Path, new: Path, keep: str | None = None) -> dict:
    """A record whose video paths are relative to `old`, made relative to `new`.

    Paths that start with `keep` stay: that folder moves along with the manifest.
    """
    rebased = dict(record)
    for field in VIDEO_FIELDS:
        path = record.get(field)
        if path is None or (keep and path.startswith(keep)):
            continue
        rebased[field] = os.path.relpath(old / path, new)
    return rebased


def paths_of(record: dict) -> list[str]:
    """The paths of its videos: source and target, or the source alone."""
    return [record[field] for field in VIDEO_FIELDS if field in record]


def write_triplets(out: Path, records: Iterable[dict]) -> None:
    """Write triplets.jsonl, the manifest, sorted by id."""
    write_stage(out / "triplets.jsonl", sorted(records, key=lambda record: record["id"]))
