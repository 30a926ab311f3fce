"""What curation writes: a manifest of triplets, which train.py and evaluate.py read."""

import os
from pathlib import Path
from typing import Iterable

from common.manifest import FIELDS
from rvedata.stages import write_stage
from rvedata.text import Texts

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


def still_there(out: Path, records: Iterable[dict]) -> list[dict]:
    """The records whose videos can be found from `out`; says how many are left out."""
    records = list(records)
    found = [record for record in records
             if all(os.path.exists(out / path) for path in paths_of(record))]
    if len(found) < len(records):
        print(f"{len(records) - len(found)} left out: their videos are gone")
    return found


def paths_of(record: dict) -> list[str]:
    """The paths of its videos: source and target, or the source alone."""
    return [record[field] for field in VIDEO_FIELDS if field in record]


def write_triplets(out: Path, records: Iterable[dict], share: float) -> None:
    """Write triplets.jsonl, the manifest, sorted by id, and duplicates.jsonl.

    A duplicate says nearly the same as another triplet of the same source video (see
    text.Texts). Records whose videos are gone are left out.
    """
    texts_of, triplets, duplicates = {}, [], []
    for record in sorted(still_there(out, records), key=lambda record: record["id"]):
        texts = texts_of.setdefault(record["source_video_path"], Texts(share))
        other = texts.first_like(record["instruction"])
        if other is None:
            texts.add(record["id"], record["instruction"])
            triplets.append(record)
        elif other != record["id"]:                      # after a merge an item may have two lines
            reason = f"says near the same as {other}"
            videos = {field: record[field] for field in VIDEO_FIELDS}
            duplicates.append({"id": record["id"], "rejected": reason, **videos})
    write_stage(out / "duplicates.jsonl", duplicates)
    write_stage(out / "triplets.jsonl", triplets)
