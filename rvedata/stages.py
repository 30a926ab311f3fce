"""How does long work go on after a stop, and split over machines? Stages: files of JSON lines.

A stage is a file, and each of its lines is a record of one item:

    {"id": ..., ...}                    what was made of it
    {"id": ..., "rejected": reason}     it is not good enough; that is final
    {"id": ..., "failed": reason}       it could not be read or asked; the next run tries again

A line is added as soon as its item is done. So a rerun does what has no line yet, or a failed one.
Nothing depends on the order of the lines: two shards are joined by writing one after the other.
"""

import hashlib
import json
import sys
from collections import Counter
from concurrent.futures import FIRST_COMPLETED, Future, ThreadPoolExecutor, wait
from pathlib import Path
from typing import BinaryIO, Callable, Iterable, Iterator

from tqdm import tqdm

from common.files import BadInput, replacing
from common.jsonl import JsonLines, read_rows, to_json


class Rejected(ValueError):
    """An item is not good enough, which is no error. The reason goes into the stage's file."""


class StopRun(BadInput):
    """What would go wrong for every item, such as a missing key: skipping one does not help."""


def short_hash(*parts) -> str:
    """16 hex digits that depend on all parts, which must be JSON."""
    return hashlib.sha256(json.dumps(parts).encode()).hexdigest()[:16]


def my_shard(name: str, shard: tuple[int, int]) -> bool:
    """Whether an item belongs to shard (i, n): by a hash of its name, not by its place."""
    index, count = shard
    return int(short_hash(name), 16) % count == index


# ---------------------------------------------------------------------------------- reading a stage

def read_records(path: Path) -> Iterator[tuple[int, dict]]:
    """(offset in the file, record) of each line. Raises BadInput for a line that is not ours."""
    for offset, record in read_rows(path, "record", ("id",)):
        _check_fields(record, {"id": str}, path, offset)
        yield offset, record


def is_accepted(record: dict) -> bool:
    """Whether an item was done: neither rejected nor failed."""
    return "rejected" not in record and "failed" not in record


def finished_ids(path: Path) -> set[str]:
    """The ids of the items that are done or rejected; what failed is tried again."""
    return {record["id"] for _, record in read_records(path) if "failed" not in record}


def read_accepted(path: Path, **fields: type) -> Iterator[dict]:
    """The records of what was done. Raises BadInput if one lacks a field of this type."""
    for offset, record in read_records(path):
        if is_accepted(record):
            _check_fields(record, fields, path, offset)
            yield record


def _check_fields(record: dict, fields: dict[str, type], path: Path, offset: int) -> None:
    for name, kind in fields.items():
        value = record.get(name)
        if not isinstance(value, (int, float) if kind is float else kind):
            raise BadInput(f"{path}: the line at byte {offset} has no {name} of type "
                           f"{kind.__name__}; delete it")


def read_grouped(path: Path, key: Callable[[dict], object],
                 **fields: type) -> Iterator[tuple[object, list[dict]]]:
    """(key, its accepted records sorted by id), sorted by key.

    Only offsets are held in memory: a file may be larger.
    """
    groups = {}
    for offset, record in read_records(path):
        if is_accepted(record):
            _check_fields(record, fields, path, offset)
            groups.setdefault(key(record), {})[record["id"]] = offset
    for group in sorted(groups):
        offsets = [offset for _, offset in sorted(groups[group].items())]
        with open(path, "rb") as file:
            yield group, [_read_at(file, offset) for offset in offsets]


def _read_at(file: BinaryIO, offset: int) -> dict:
    file.seek(offset)
    return json.loads(file.readline())


# ---------------------------------------------------------------------------------- writing a stage

def print_counts(path: Path, counts: Counter) -> None:
    """One line: what a stage did."""
    parts = [f"{n} {what}" for what, n in sorted(counts.items())]
    print(f"{path.stem}: {', '.join(parts) or 'nothing to do'}")


def write_stage(path: Path, records: Iterable[dict]) -> Counter:
    """Write the file of a cheap stage anew. Returns how many records are done and rejected."""
    counts = Counter()
    with replacing(path) as temporary, open(temporary, "w") as file:
        for record in records:
            counts["rejected" if "rejected" in record else "done"] += 1
            file.write(to_json(record) + "\n")
    print_counts(path, counts)
    return counts


def run_stage(path: Path, items: Iterable[dict], work: Callable[[dict], dict],
              skip_bad: bool = False, workers: int = 1, total: int | None = None,
              cost: Callable[[int, int | None], str] | None = None) -> Counter:
    """Add a line work(item) to `path` for each item whose id has none yet. Items and lines stream.

    `work` raises Rejected, which becomes a line with the reason, or BadInput: with skip_bad that
    becomes a line, too, otherwise the run ends, and the same command goes on from what is there.
    An item's "shown" goes into its line where it is rejected, for the report: its videos.
    total: number of items, for the progress bar. cost(done, left): what to say about the money.
    """
    known = finished_ids(path)
    first = min(len(known), total or 0)
    with (JsonLines(path) as file, ThreadPoolExecutor(workers) as pool,
          tqdm(desc=path.stem, unit="item", total=total, initial=first, disable=None) as bar):
        running = _Running(path.stem, file, bar, skip_bad, cost)
        try:
            for item in items:
                if item["id"] in known:
                    continue
                known.add(item["id"])
                running.add(pool.submit(work, item), item)
                running.collect(at_most=2 * workers - 1)
            running.collect(at_most=0)
        except BaseException:                            # Ctrl-C: what still waits does not begin
            pool.shutdown(wait=False, cancel_futures=True)
            raise
    if cost and running.counts:
        print(f"{path.stem}: {cost(running.counts.total(), None)}")
    print_counts(path, running.counts)
    return running.counts


class _Running:
    """The items that are being worked on, and what becomes of them."""

    def __init__(self, stage: str, file: JsonLines, bar: tqdm, skip_bad: bool, cost):
        self.stage, self.file, self.bar = stage, file, bar
        self.skip_bad, self.cost = skip_bad, cost
        self.items: dict[Future, dict] = {}
        self.counts = Counter()
        self.fatal: BadInput | None = None

    def add(self, future: Future, item: dict) -> None:
        self.items[future] = item

    def collect(self, at_most: int) -> None:
        """Wait until at most so many items are running; write what they gave.

        After a fatal error what has begun is finished and written first: it is paid for.
        """
        while len(self.items) > (0 if self.fatal else at_most):
            for future in wait(self.items, return_when=FIRST_COMPLETED).done:
                self._settle(future)
        if self.fatal:
            hint = "" if isinstance(self.fatal, StopRun) else " (or pass --skip-bad)"
            raise BadInput(f"{self.stage}: {self.fatal}{hint}") from self.fatal

    def _settle(self, future: Future) -> None:
        item = self.items.pop(future)
        name = item["id"]
        try:
            self._write("done", {"id": name, **future.result()})
        except Rejected as error:
            shown = item.get("shown", {})
            self._write("rejected", {"id": name, "rejected": str(error), **shown})
        except BadInput as error:
            if self.skip_bad and not isinstance(error, StopRun):
                print(f"{self.stage}: skipped: {error}", file=sys.stderr)
                self._write("failed", {"id": name, "failed": str(error)})
            else:
                self.fatal = self.fatal or error
                self._cancel_waiting()

    def _cancel_waiting(self) -> None:
        for future in list(self.items):
            if future.cancel():
                del self.items[future]

    def _write(self, what: str, record: dict) -> None:
        self.file.append(record)
        self.counts[what] += 1
        self.bar.update()
        if self.cost:
            left = max(0, self.bar.total - self.bar.n) if self.bar.total else None
            self.bar.set_postfix_str(self.cost(self.counts.total(), left), refresh=False)
