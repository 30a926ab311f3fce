"""What was paid for, or took long: append-only files of JSON lines, and the threads that ask.

A row is one line, written at once. So after a crash all rows are there but the one that was being
written, and half a line at the end of a file is not a row. JSON has no NaN: writing one raises
ValueError.
"""

import errno
import fcntl
import hashlib
import json
import os
from concurrent.futures import FIRST_COMPLETED, ThreadPoolExecutor, wait
from itertools import islice
from pathlib import Path
from threading import Lock
from typing import Any, Callable, Iterable, Iterator

from common.files import BadInput, atomic_write


def to_json(value) -> str:
    """The value as one line of JSON. Raises ValueError where it holds NaN or infinity."""
    return json.dumps(value, allow_nan=False)


def from_json(text: str | bytes):
    """The value of a JSON text. Raises ValueError for all else, NaN and infinity included."""

    def refuse(constant):
        raise ValueError(f"{constant} is no JSON")
    return json.loads(text, parse_constant=refuse)


def read_rows(path: str | Path, what: str = "row", fields: tuple[str, ...] = ()) -> Iterator[dict]:
    """The row of each whole line; no rows where there is no file. Raises BadInput, naming
    file:line, for a line that is no JSON object with these fields: no `what`."""
    return (row for _, _, row in _read_lines(Path(path), what, fields))


def _read_lines(path: Path, what: str,
                fields: tuple[str, ...]) -> Iterator[tuple[int, int, dict]]:
    """(where it begins, where it ends, row) of each whole line."""
    if not path.exists():
        return
    begin = 0
    with open(path, "rb") as file:
        for number, line in enumerate(file, 1):
            if not line.endswith(b"\n"):                 # a crash has cut it off
                return
            try:
                row = from_json(line)
                if not isinstance(row, dict) or not row.keys() >= set(fields):
                    raise ValueError(f"it has not the fields {', '.join(fields)}")
            except ValueError as error:
                raise BadInput(f"{path}:{number}: is no {what} of ours ({error}); delete this "
                               f"line") from error
            end = begin + len(line)
            yield begin, end, row
            begin = end


def write_rows(path: str | Path, rows: Iterable[dict]) -> None:
    """Write a whole file of rows, or nothing. Raises BadInput where it cannot be written."""
    atomic_write(path, "".join(to_json(row) + "\n" for row in rows))


class Store:
    """Rows by key in an append-only file: what was paid for, or took long, is found again.

        with Store("out/kept.jsonl") as store:           # no other run may write it meanwhile
            store.append({"key": "a", "value": 1})
            store.rows("a")                              # [{"key": "a", "value": 1}]

    key: the field that has it. Rows of one key stand in the order of the file. Only their places
    are in memory: the file may be larger. what, fields: as in `read_rows`. counts(row): whether a
    row is to be found again. After the constructor one can read; `open`, or the `with`, makes
    ready to write. All may be called from several threads.
    """

    def __init__(self, path: str | Path, key: str = "key", what: str = "row",
                 fields: tuple[str, ...] = (), counts: Callable[[dict], bool] = lambda row: True):
        self.path, self.key, self.counts = Path(path), key, counts
        self._format = what, (key, *fields)
        self._file, self._writing = None, Lock()
        self._index()

    def _index(self) -> None:
        self._places: dict[str, list[int]] = {}
        self._end = 0
        for begin, self._end, row in _read_lines(self.path, *self._format):
            self._add(row, begin)

    def _add(self, row: dict, place: int) -> None:
        if self.counts(row):
            self._places.setdefault(row[self.key], []).append(place)

    def __contains__(self, key: str) -> bool:
        return key in self._places

    def __iter__(self) -> Iterator[dict]:
        """All rows, in the order of the file."""
        return read_rows(self.path, *self._format)

    def __len__(self) -> int:
        """How many keys there are."""
        return len(self._places)

    def rows(self, key: str) -> list[dict]:
        """The rows of a key that count."""
        if key not in self._places:
            return []
        found = []
        with open(self.path, "rb") as file:
            for place in self._places[key]:
                file.seek(place)
                found.append(from_json(file.readline()))
        return found

    def open(self) -> "Store":
        """Make its folder, and the file this run's own; cut off half a line that a crash has left.
        Raises BadInput where it cannot be written, or another run is writing it."""
        try:
            self.path.parent.mkdir(parents=True, exist_ok=True)
            file = open(self.path, "ab", buffering=0)
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError as error:
            raise BadInput(f"{self.path}: another run is writing it; wait for it, or choose "
                           f"another --out") from error
        except OSError as error:
            raise BadInput(f"{self.path}: cannot be written ({error.strerror}); choose another "
                           f"--out") from error
        if os.path.getsize(self.path) != self._end:      # another run may have written since
            self._index()
            file.truncate(self._end)
        self._file = file
        return self

    def append(self, row: dict) -> None:
        """Write one whole line. Raises ValueError for NaN, BadInput where the disk is full."""
        line = to_json(row).encode() + b"\n"
        with self._writing:
            try:
                if self._file.write(line) < len(line):   # what is left of the disk
                    self._file.truncate(self._end)
                    raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
            except OSError as error:
                raise BadInput(f"{self.path}: cannot be written ({error.strerror}); make room, and "
                               f"the same command goes on") from error
            self._add(row, self._end)
            self._end += len(line)

    def find(self, parts: list, find: Callable[[], dict]) -> dict:
        """The value of what `parts` (for JSON) name: find() where it is not there yet. What find()
        raises is not kept."""
        key = hashlib.sha256(to_json(parts).encode()).hexdigest()
        if key not in self:
            self.append({self.key: key, "value": find()})
        return self.rows(key)[-1]["value"]

    def close(self) -> None:
        """Let go of the file, so that another run can write it."""
        if self._file:
            self._file.close()
            self._file = None

    def __enter__(self) -> "Store":
        return self.open()

    def __exit__(self, *error) -> None:
        self.close()


def in_threads(work: Callable[[Any], Any], items: Iterable, workers: int) -> Iterator[tuple]:
    """(item, work(item)) for each item, in the order in which they end.

    At most 2 * workers items are drawn and not done: there may be more than fit into memory.
    Raises the first error of `work`. Then, or where the caller stops (Ctrl-C), what has not begun
    never does, and what has is waited for: it may have been paid for.
    """
    items, running = iter(items), {}
    with ThreadPoolExecutor(workers) as pool:
        try:
            while True:
                for item in islice(items, 2 * workers - len(running)):
                    running[pool.submit(work, item)] = item
                if not running:
                    return
                for future in wait(running, return_when=FIRST_COMPLETED).done:
                    yield running.pop(future), future.result()
        finally:
            pool.shutdown(cancel_futures=True)
