"""Manifests: triplets as JSON lines, each checked, with the line's number in every complaint.

    {"source_video_path": "a.mp4", "target_video_path": "b.mp4", "instruction": "...",
     "type": "Temporal Reasoning", "start": 40, "stride": 2}

Paths are relative to the manifest. `start` and `stride` are optional, other fields are left alone.
"""

import json
from pathlib import Path

from common.files import BadInput

FIELDS = ("source_video_path", "target_video_path", "instruction", "type")
SUBSET_OF = {"Temporal Reasoning": "rave", "Spatial Reasoning": "rave",      # Sec. 3.1
             "Physical Causality": "rave", "Semantic Inference": "rave",
             "Camera Reasoning": "icvg", "Causal Reasoning": "icvg",
             "Emotional Reasoning": "icvg", "Commonsense Reasoning": "icvg"}


def manifest_lines(path: Path) -> list[tuple[int, str]]:
    """(number, line) of a manifest's lines that are not empty. BadInput: it cannot be read."""
    try:
        lines = path.read_text("utf-8-sig").split("\n")
    except (OSError, UnicodeDecodeError) as error:
        reason = getattr(error, "strerror", None) or error
        raise BadInput(f"{path}: cannot be read ({reason}); "
                       f"give a manifest of JSON lines, in UTF-8") from error
    return [(number, line) for number, line in enumerate(lines, 1) if line.strip()]


def manifest_record(line: str, fields: tuple[str, ...] = FIELDS) -> dict:
    """A line of a manifest: an object with these fields, of a known type, and perhaps with `start`
    and `stride`. Raises BadInput."""
    try:
        record = json.loads(line)
    except (ValueError, RecursionError) as error:
        raise BadInput(f"is not JSON ({error}); write one object on each line") from error
    if not isinstance(record, dict):
        raise BadInput(f"is no JSON object; write {{\"{FIELDS[0]}\": ..., ...}}")
    for field in fields:
        value = record.get(field)
        if not isinstance(value, str) or not value.strip():
            found = json.dumps(value)[:40] if field in record else "missing"
            raise BadInput(f"the field {field!r} is {found}; "
                           f"each line needs texts for {', '.join(fields)}")
    if record["type"] not in SUBSET_OF:
        raise BadInput(f"unknown type {record['type'][:80]!r}; "
                       f"choose one of {', '.join(SUBSET_OF)}")
    start, stride = record.get("start", 0), record.get("stride", "spread")
    if not (type(start) is int and start >= 0):
        raise BadInput(f"the field 'start' is {json.dumps(start)[:40]}; "
                       f"give the number of a frame, 0 for the first")
    if stride != "spread" and not (type(stride) is int and stride >= 1):
        raise BadInput(f"the field 'stride' is {json.dumps(stride)[:40]}; "
                       f"give a whole number from 1 on, or \"spread\"")
    return record
