"""How does long work go on after a stop, and split over machines? Files of JSON lines, for curate.py.

A stage is a file: {"id": ...} and what was made of the item, {"id": ..., "rejected": why} where it is not good enough,
{"id": ..., "failed": why} where it could not be read. A line is added as soon as its item is done, so a rerun does what
has no line yet, and what has failed. Nothing depends on the order of the lines, and two files are joined by writing one
after the other.
"""

import hashlib
import json
import os
import sys
from collections import Counter
from concurrent.futures import FIRST_COMPLETED, ThreadPoolExecutor, wait
from pathlib import Path
from typing import Callable, Iterable, Iterator

from tqdm import tqdm

from common.files import BadInput, replacing


class Rejected(ValueError):
    """An item that is not good enough, which is no error. The reason goes into the stage's file."""


class Stop(BadInput):
    """What would go wrong for each item, such as a service that is not there: to skip one does not help."""


def sha(*parts) -> str:
    return hashlib.sha256(json.dumps(parts).encode()).hexdigest()[:16]


def mine(name: str, shard: tuple[int, int]) -> bool:
    """Whether an item belongs to shard (i, n): by a hash of its name, whatever the order and the company."""
    return int(sha(name), 16) % shard[1] == shard[0]


def scan(path: Path) -> Iterator[tuple[int, dict]]:
    """(place in the file, record) of each line; a last line that a stop has cut off is none."""
    place = 0
    for line in open(path, "rb") if path.exists() else ():
        if line.endswith(b"\n"):
            try:
                yield place, json.loads(line)
            except ValueError as error:
                raise BadInput(f"{path}: the line at byte {place} is not JSON; delete it") from error
        place += len(line)


def is_good(record: dict) -> bool:
    return "rejected" not in record and "failed" not in record


def good(path: Path) -> Iterator[dict]:
    return (record for _, record in scan(path) if is_good(record))


def grouped(path: Path, key: Callable) -> Iterator[tuple]:
    """(key, its good records by id), sorted by key, whatever the file's order. Only the places of lines are held."""
    places = {}
    for place, record in scan(path):
        if is_good(record):
            places.setdefault(key(record), {})[record["id"]] = place
    for k in sorted(places):
        with open(path, "rb") as file:
            yield k, [(file.seek(place), json.loads(file.readline()))[1] for _, place in sorted(places[k].items())]


def tell(path: Path, counts: Counter) -> Counter:
    print(f"{path.stem}: " + (", ".join(f"{n} {what}" for what, n in sorted(counts.items())) or "nothing to do"))
    return counts


def write_lines(path: Path, records: Iterable[dict]) -> Counter:
    """Write the file of a cheap stage, whole; returns how many lines are done and how many rejected."""
    counts = Counter()
    with replacing(path) as temporary, open(temporary, "w") as file:
        for record in records:
            counts["rejected" if "rejected" in record else "done"] += 1
            file.write(json.dumps(record) + "\n")
    return tell(path, counts)


def stage(path: Path, items: Iterable[dict], work: Callable[[dict], dict], skip_bad=False, workers=1,
          total: int | None = None, ask: Callable | None = None) -> Counter:
    """Add to `path` a line, work(item), for each item whose id has none; items and lines stream.

    `work` raises Rejected (a line with the reason) or BadInput: with skip_bad a line, and else the end, after which
    the same command goes on from the lines that are there. total: how many items there are, for the bar, which also
    tells ask.note(done, left), where `ask` has it: the money.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    note = getattr(ask, "note", None)
    done, counts, pending = {r["id"] for _, r in scan(path) if "failed" not in r}, Counter(), {}
    with open(path, "ab+") as file, ThreadPoolExecutor(workers) as pool, \
            tqdm(desc=path.stem, unit="item", total=total, initial=min(len(done), total or 0), disable=None) as bar:
        size = file.seek(0, os.SEEK_END)
        file.seek(max(0, size - 2 ** 26))
        tail = file.read()
        file.truncate(size - len(tail) + tail.rfind(b"\n") + 1)                            # half a line of a stop

        def collect(most: int):
            broken = None
            while len(pending) > most or broken and pending:
                for future in wait(pending, return_when=FIRST_COMPLETED).done:
                    name, what = pending.pop(future), "done"
                    try:
                        record = {"id": name, **future.result()}
                    except Rejected as error:
                        record, what = {"id": name, "rejected": str(error)}, "rejected"
                    except BadInput as error:
                        record, what = {"id": name, "failed": str(error)}, "failed"
                        if not skip_bad or isinstance(error, Stop):      # what has begun is paid for: it is written yet
                            broken = broken or error
                            for other in [other for other in pending if other.cancel()]:
                                del pending[other]
                            continue
                        print(f"{path.stem}: skipped: {error}", file=sys.stderr)
                    file.write(json.dumps(record).encode() + b"\n")
                    file.flush()
                    counts[what] += 1
                    bar.update()
                    if note:
                        told = note(sum(counts.values()), total and max(0, total - bar.n))
                        bar.set_postfix_str(told, refresh=False)
            if broken:
                hint = "" if isinstance(broken, Stop) else " (or pass --skip-bad)"
                raise BadInput(f"{path.stem}: {broken}{hint}") from broken

        try:
            for item in items:
                if item["id"] not in done:
                    done.add(item["id"])
                    pending[pool.submit(work, item)] = item["id"]
                    collect(2 * workers - 1)
            collect(0)
        except BaseException:                            # Ctrl-C: do not begin what still waits
            pool.shutdown(wait=False, cancel_futures=True)
            raise
    if note and counts:
        print(f"{path.stem}: {note(sum(counts.values()), None)}")
    return tell(path, counts)
