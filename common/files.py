"""Files and errors: one clear line for bad input, files that are written whole or not at all, tables."""

import argparse
import json
import os
import sys
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Callable, Iterator

from safetensors import SafetensorError


class BadInput(ValueError):
    """What the user gave cannot be used. One line: the file, line or flag, what is wrong, and how to mend it."""


def run_script(main: Callable[[], None], stopped: str = "stopped; the same command goes on from here") -> None:
    """Run a script's `main`: what the user can mend becomes one line and exit code 2, Ctrl-C exit code 130."""
    name = Path(sys.argv[0]).name
    try:
        main()
    except (BadInput, OSError, SafetensorError) as error:
        print(f"{name}: {error}", file=sys.stderr)
        sys.exit(2)
    except KeyboardInterrupt:
        print(f"\n{name}: {stopped}", file=sys.stderr)
        sys.exit(130)


class Parser(argparse.ArgumentParser):
    """argparse, with defaults in the help, and errors as one line instead of the whole usage."""

    def __init__(self, **settings):
        super().__init__(formatter_class=argparse.ArgumentDefaultsHelpFormatter, **settings)

    def error(self, message):
        raise BadInput(message)


@contextmanager
def replacing(path: str | Path) -> Iterator[Path]:
    """A temporary name beside `path`, with its suffix, to be written in the block; renamed when the block ends well.

    Raises BadInput, and leaves nothing behind, where that cannot be done.
    """
    path = Path(path)
    temporary = path.with_name(f"{path.stem}.tmp{os.getpid()}{path.suffix}")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        yield temporary
        os.replace(temporary, path)
    except OSError as error:
        reason = error.strerror or str(error).partition("\n")[0]
        raise BadInput(f"{path}: cannot be written ({reason}); choose a place that is writable and has room") from error
    finally:
        with suppress(OSError):
            temporary.unlink()


def markdown(lines: list[list[str]]) -> str:
    """A Markdown table with aligned columns, numbers to the right; the first line is its head."""
    widths = [max(map(len, column)) for column in zip(*lines)]
    lines = [lines[0], ["-" * widths[0]] + ["-" * (w - 1) + ":" for w in widths[1:]], *lines[1:]]
    cells = [[f"{cell:{'>' if k else '<'}{w}}" for k, (cell, w) in enumerate(zip(line, widths))] for line in lines]
    return "".join(f"| {' | '.join(line)} |\n" for line in cells)


def atomic_write(path: str | Path, content: bytes | str) -> None:
    """Write the whole file or nothing. Raises BadInput where it cannot be written."""
    with replacing(path) as temporary:
        temporary.write_bytes(content.encode() if isinstance(content, str) else content)


def is_of(folder: Path, settings: dict) -> bool:
    """Whether what lies in `folder` was made with these settings."""
    try:
        return json.loads((folder / "settings.json").read_text()) == settings
    except (OSError, ValueError):                        # there are none, or not ours
        return False


def start_afresh(folder: Path, settings: dict, *stale: str) -> None:
    """Clear away the files of `folder` that these patterns name, and write the settings down."""
    for old in [file for pattern in stale for file in folder.glob(pattern)]:
        old.unlink()
    atomic_write(folder / "settings.json", json.dumps(settings, indent=1) + "\n")
