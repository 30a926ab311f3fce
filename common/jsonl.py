"""Append-only files of JSON lines: what was paid for, or took long, is on disk at once.

A row is one line, written at once. So after a crash all rows are there but the one that was being
written, and half a line at the end of a file is not a row. JSON has no NaN: writing one raises
ValueError.
"""

import fcntl
import hashlib
import json
import os
from pathlib import Path
from threading import Lock
from typing import Callable, Iterable, Iterator

from common.files import BadInput, atomic_write

BLOCK = 2 ** 20                                          # bytes read at a time, from the end


def to_json(value) -> str:
    """The value as one line of JSON. Raises ValueError where it holds NaN or infinity."""
    return json.dumps(value, allow_nan=False)


def from_json(text: str | bytes):
    """The value of a JSON text. Raises ValueError for all else, NaN and infinity included."""

    def refuse(constant):
        raise ValueError(f"{constant} is no JSON")
    try:
        return json.loads(text, parse_constant=refuse)
    except RecursionError as error:
        raise ValueError("it is nested too deeply") from error


def read_rows(path: str | Path, what: str = "row",
              fields: tuple[str, ...] = ()) -> Iterator[tuple[int, dict]]:
    """(offset in bytes, row) of each whole line; no rows where there is no file.

    Raises BadInput, naming file:line, for a line that is no JSON object with these fields: no
    `what`.
    """
    path = Path(path)
    if not path.exists():
        return
    offset = 0
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
            yield offset, row
            offset += len(line)


def write_rows(path: str | Path, rows: Iterable[dict]) -> None:
    """Write a whole file of rows, or nothing. Raises BadInput where it cannot be written."""
    atomic_write(path, "".join(to_json(row) + "\n" for row in rows))


class JsonLines:
    """An append-only file, written by one run at a time, from any of its threads.

    Opening it makes its folder and cuts off half a line that a crash has left. Raises BadInput
    where it cannot be written, or another run is writing it.
    """

    def __init__(self, path: str | Path):
        self.path = Path(path)
        self._appending = Lock()
        try:
            self.path.parent.mkdir(parents=True, exist_ok=True)
            self._file = open(self.path, "ab")
            fcntl.flock(self._file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError as error:
            raise BadInput(f"{self.path}: another run is writing it; wait for it, or choose "
                           f"another --out") from error
        except OSError as error:
            raise BadInput(f"{self.path}: cannot be written ({error.strerror}); choose another "
                           f"--out") from error
        self._file.truncate(_end_of_rows(self.path))

    def append(self, row: dict) -> None:
        """Write one whole line. Raises ValueError for NaN, BadInput where the disk is full."""
        line = to_json(row).encode() + b"\n"
        with self._appending:
            try:
                self._file.write(line)
                self._file.flush()
            except OSError as error:
                raise BadInput(f"{self.path}: cannot be written ({error.strerror}); make room, and "
                               f"the same command goes on") from error

    def close(self) -> None:
        """Let go of the file, so that another run can write it."""
        self._file.close()

    def __enter__(self) -> "JsonLines":
        return self

    def __exit__(self, *error) -> None:
        self.close()


class Cache:
    """What took long to find out, by key, in an append-only file: a rerun has it already."""

    def __init__(self, path: str | Path):
        self._values = {}
        self._file = JsonLines(path)
        for _, row in read_rows(path, "line", ("key", "value")):
            self._values[row["key"]] = row["value"]

    def get(self, parts: list, find: Callable[[], dict]) -> dict:
        """The value of what `parts` (for JSON) name: find() where it is not there yet.

        What find() raises is not kept. May be called from several threads.
        """
        key = hashlib.sha256(to_json(parts).encode()).hexdigest()
        if key not in self._values:
            value = find()
            self._file.append({"key": key, "value": value})
            self._values[key] = value
        return self._values[key]

    def close(self) -> None:
        """Let go of the file."""
        self._file.close()


def _end_of_rows(path: Path) -> int:
    """The length in bytes of a file's whole lines."""
    with open(path, "rb") as file:
        end = file.seek(0, os.SEEK_END)
        while end > 0:
            start = max(0, end - BLOCK)
            file.seek(start)
            newline = file.read(end - start).rfind(b"\n")
            if newline >= 0:
                return start + newline + 1
            end = start
    return 0
