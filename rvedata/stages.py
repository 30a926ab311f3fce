"""How does long work go on after a stop, and split over machines? Stages: files of JSON lines.

A stage is a file, and each of its lines is a record of one item:

    {"id": ..., ...}                    what was made of it
    {"id": ..., "rejected": reason}     it is not good enough; that is final
    {"id": ..., "failed": reason}       it could not be read or asked; the next run tries again

A line is added as soon as its item is done. So a rerun does what has no line yet, or a failed one.
Nothing depends on the order of the lines: two shards are joined by writing one after the other.
"""

import argparse
import hashlib
import json
import os
import sys
from collections import Counter
from pathlib import Path
from typing import Callable, Iterable, Iterator

from tqdm import tqdm

from common.files import BadInput, positive
from common.jsonl import Store, in_threads, read_rows, write_rows
from common.manifest import FIELDS

VIDEO_FIELDS = FIELDS[:2]                                # of a triplet: those that hold paths


class Rejected(ValueError):
    """An item is not good enough, which is no error. The reason goes into the stage's file.

    about: more fields of its line.
    """

    def __init__(self, reason: str, **about):
        super().__init__(reason)
        self.about = about


class StopRun(BadInput):
    """What would go wrong for every item, such as a missing key: skipping one does not help."""


# --------------------------------------------------------------------------------- flags, shards

def folder(text: str) -> Path:
    """An argparse type: a folder that is there."""
    if not Path(text).is_dir():
        raise argparse.ArgumentTypeError(f"{text}: there is no such folder; correct the path")
    return Path(text)


def shard(text: str) -> tuple[int, int]:
    """An argparse type: "i/n" with 0 <= i < n."""
    i, _, n = text.partition("/")
    if not (i.isdecimal() and n.isdecimal() and int(i) < int(n)):
        raise argparse.ArgumentTypeError(f"must be i/n with 0 <= i < n, such as 0/4, not {text}")
    return int(i), int(n)


def add_work_flags(parser: argparse.ArgumentParser) -> None:
    """Of every command that reads videos."""
    add = parser.add_argument
    add("--skip-bad", action="store_true",
        help="go on without what cannot be read or asked, and count it")
    add("--workers", type=positive, default=8, help="items that are worked on at a time")


def short_hash(*parts) -> str:
    """16 hex digits that depend on all parts, which must be JSON."""
    return hashlib.sha256(json.dumps(parts).encode()).hexdigest()[:16]


def my_shard(name: str, shard: tuple[int, int]) -> bool:
    """Whether an item belongs to shard (i, n): by a hash of its name, not by its place."""
    index, count = shard
    return int(short_hash(name), 16) % count == index


# ---------------------------------------------------------------------------------- reading a stage

def read_records(path: Path) -> Iterator[dict]:
    """The record of each line. Raises BadInput for a line that is not ours."""
    return read_rows(path, "record", ("id",))


def finished_ids(path: Path) -> set[str]:
    """The ids of the items that are done or rejected; what failed is tried again."""
    return {record["id"] for record in read_records(path) if "failed" not in record}


def read_accepted(path: Path) -> Iterator[dict]:
    """The records of what was done: neither rejected nor failed."""
    return (record for record in read_records(path)
            if "rejected" not in record and "failed" not in record)


def read_grouped(path: Path, key: Callable[[dict], str]) -> Iterator[tuple[str, list[dict]]]:
    """(key, its accepted records sorted by id), sorted by key."""
    groups = {}
    for record in read_accepted(path):
        groups.setdefault(key(record), {})[record["id"]] = record
    for group in sorted(groups):
        yield group, [record for _, record in sorted(groups[group].items())]


# ---------------------------------------------------------------------------------- writing a stage

def write_stage(path: Path, records: Iterable[dict]) -> None:
    """Write the file of a cheap stage anew."""
    records = list(records)
    write_rows(path, records)
    counts = Counter("rejected" if "rejected" in record else "done" for record in records)
    _print_counts(path, counts)


def _print_counts(path: Path, counts: Counter) -> None:
    parts = [f"{n} {what}" for what, n in sorted(counts.items())]
    print(f"{path.stem}: {', '.join(parts) or 'nothing to do'}")


def write_triplets(out: Path, records: Iterable[dict]) -> None:
    """Write triplets.jsonl, the manifest that train.py reads, sorted by id."""
    write_stage(out / "triplets.jsonl", sorted(records, key=lambda record: record["id"]))


def run_stage(path: Path, items: Iterable[dict], work: Callable[[dict], dict],
              skip_bad: bool = False, workers: int = 1, total: int | None = None) -> Counter:
    """Add a line work(item) to `path` for each item whose id has none yet. Items and lines stream.

    `work` raises Rejected, which becomes a line with the reason, or BadInput or OSError: with
    skip_bad that becomes a line, too, otherwise the run ends, and the same command goes on from
    what is there.
    An item's "shown" goes into its line where it is rejected, for the report: its videos. Its
    "error", if it has one, is raised instead of the work: its video could not be read.
    total: number of items, for the progress bar.
    """
    counts = Counter()
    with Store(path, "id", "record", counts=lambda record: "failed" not in record) as store:

        def new_items() -> Iterator[dict]:
            begun = set()
            for item in items:
                if item["id"] not in store and item["id"] not in begun:
                    begun.add(item["id"])
                    yield item

        def finish(item: dict) -> str:                   # in a thread; nothing that is done is lost
            what, record = _outcome(path.stem, item, work, skip_bad)
            store.append(record)
            return what

        with tqdm(desc=path.stem, unit="item", total=total, initial=min(len(store), total or 0),
                  disable=None) as bar:
            for _, what in in_threads(finish, new_items(), workers):
                counts[what] += 1
                bar.update()
    _print_counts(path, counts)
    return counts


def _outcome(stage: str, item: dict, work: Callable, skip_bad: bool) -> tuple[str, dict]:
    """(done, rejected or failed; the item's line). Raises BadInput where the run has to end."""
    name = {"id": item["id"]}
    try:
        if item.get("error"):
            raise item["error"]
        return "done", {**name, **work(item)}
    except Rejected as error:
        return "rejected", {**name, "rejected": str(error), **item.get("shown", {}),
                            **error.about}
    except StopRun as error:
        raise BadInput(f"{stage}: {error}") from error
    except (BadInput, OSError) as error:                 # a path of 300 letters, no permission
        if not skip_bad:
            raise BadInput(f"{stage}: {error} (or pass --skip-bad)") from error
        print(f"{stage}: skipped: {error}", file=sys.stderr)
        return "failed", {**name, "failed": str(error)}


# ---------------------------------------------------------------------------- the paths of videos

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
