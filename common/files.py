"""Files and errors: one clear line for bad input, files written whole or not at all, Markdown
tables."""

import argparse
import hashlib
import json
import os
import re
import shutil
import sys
import tempfile
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Callable, Iterator

from safetensors import SafetensorError

ROOM = 2 ** 20                                           # bytes that a disk must have room for


# --------------------------------------------------------------------------------- errors and flags

class BadInput(ValueError):
    """What the user gave cannot be used. One line: the file, line or flag, what is wrong, the
    mend."""


def run_script(main: Callable,
               stopped: str = "stopped; the same command goes on from here") -> None:
    """Run a script's `main`: bad input becomes one line and exit code 2, Ctrl-C exit code 130."""
    script = Path(sys.argv[0])
    name = script.parent.name if script.stem == "__main__" else script.name
    try:
        main()
    except (BadInput, OSError, SafetensorError) as error:
        print(f"{name}: {error}", file=sys.stderr)
        sys.exit(2)
    except KeyboardInterrupt:
        print(f"\n{name}: {stopped}", file=sys.stderr)
        sys.exit(130)


class FlagHelp(argparse.ArgumentDefaultsHelpFormatter):
    """Defaults in the help, where there is one."""

    def _get_help_string(self, action):
        if action.default is None or action.default is False:
            return action.help
        return super()._get_help_string(action)


class Parser(argparse.ArgumentParser):
    """argparse, with defaults in the help, and errors as one line instead of the whole usage.

    An empty text, as an unset variable of a shell gives, is no value of any flag: as a path it
    would mean the folder one is in.
    """

    def __init__(self, **settings):
        module = sys.modules["__main__"].__spec__        # None: started as a script
        if module:
            settings.setdefault("prog", f"python -m {module.name.removesuffix('.__main__')}")
        super().__init__(formatter_class=FlagHelp, allow_abbrev=False, **settings)

    def parse_known_args(self, args=None, namespace=None):
        args = sys.argv[1:] if args is None else list(args)
        for before, text in zip(["an argument", *args], args):
            flag, _, value = text.partition("=")
            if text == "" or (flag.startswith("--") and "=" in text and value == ""):
                raise BadInput(f"{flag or before} is empty (an unset variable?): "
                               f"give a value, or leave it out")
        return super().parse_known_args(args, namespace)

    def error(self, message):
        raise BadInput(message)


def positive(text: str, least: int = 1) -> int:
    """A whole number from 1 on, as a flag's `type`; argparse tells the ValueError of a text."""
    value = int(text)
    if not least <= value < 2 ** 32:                     # a seed is multiplied by a million
        raise argparse.ArgumentTypeError(f"must be at least {least} and below 2^32, not {value}")
    return value


def at_least_0(text: str) -> int:
    """A whole number from 0 on, as a flag's `type`: counts, and seeds."""
    return positive(text, least=0)


def between(low: float, high: float, open_low: bool = False) -> Callable[[str], float]:
    """A number in [low, high], or (low, high] where `open_low`, as a flag's `type`."""

    def number(text: str) -> float:
        value = float(text)
        enough = value > low if open_low else value >= low
        if not (enough and value <= high):
            bracket = "(" if open_low else "["
            raise argparse.ArgumentTypeError(f"must be in {bracket}{low:g}, {high:g}], not {text}")
        return value
    return number


# ------------------------------------------------------------------------------------ writing files

@contextmanager
def replacing(path: str | Path) -> Iterator[Path]:
    """A temporary name beside `path`, with its suffix, renamed to `path` when the block ends well.
    Raises BadInput, and leaves nothing behind, where that cannot be done."""
    path = Path(path)
    temporary = path.with_name(f"{path.stem}.tmp{os.getpid()}{path.suffix}")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        yield temporary
        os.replace(temporary, path)
    except OSError as error:
        reason = error.strerror or str(error).partition("\n")[0]
        raise BadInput(f"{path}: cannot be written ({reason}); "
                       f"choose a place that is writable and has room") from error
    finally:
        with suppress(OSError):
            temporary.unlink()


def atomic_write(path: str | Path, content: bytes | str) -> None:
    """Write the whole file or nothing. Raises BadInput where it cannot be written."""
    data = content.encode() if isinstance(content, str) else content
    with replacing(path) as temporary:
        temporary.write_bytes(data)


def check_writable(path: str | Path, *suffixes: str) -> None:
    """Raises BadInput where the file `path` cannot be written, before any work is done for it.

    It is tried where the file will be: nothing else finds a disk that is full or read-only.
    suffixes: its name must end in one of them, as ".png", which says how it is written.
    """
    path = Path(path)
    if suffixes and path.suffix.lower() not in suffixes:
        raise BadInput(f"{path}: is written as {' or '.join(suffixes)}; let its name end so")
    if path.is_dir():
        raise BadInput(f"{path}: cannot be written (it is a folder); name a file")
    folder = next(parent for parent in path.absolute().parents if os.path.lexists(parent))
    try:
        with tempfile.TemporaryFile(dir=folder) as trial:
            trial.write(bytes(ROOM))
            trial.flush()
    except OSError as error:
        raise BadInput(f"{path}: cannot be written ({folder}: {error.strerror}); "
                       f"choose a place that is writable and has room") from error


def remove_leftovers(folder: Path) -> None:
    """Remove what killed processes have left in a folder: the temporary names of `replacing`."""
    for path in list(folder.rglob("*.tmp*")):
        owner = re.search(r"\.tmp(\d+)(\.|$)", path.name)
        if not owner or Path("/proc", owner[1]).exists():
            continue
        if path.is_dir():
            shutil.rmtree(path)
        else:
            path.unlink()


def markdown(lines: list[list[str]]) -> str:
    """A Markdown table with aligned columns, numbers to the right; the first line is its head."""
    widths = [max(3, *map(len, column)) for column in zip(*lines)]
    rule = ["-" * widths[0]] + ["-" * (width - 1) + ":" for width in widths[1:]]
    table = ""
    for line in [lines[0], rule, *lines[1:]]:
        cells = [cell.rjust(width) for cell, width in zip(line, widths)]
        cells[0] = line[0].ljust(widths[0])
        table += f"| {' | '.join(cells)} |\n"
    return table


# ----------------------------------------------------- what was made before, and with what settings

def is_of(folder: Path, settings: dict) -> bool:
    """Whether what lies in `folder` was made with these settings."""
    try:
        return json.loads((folder / "settings.json").read_text("utf-8")) == settings
    except (OSError, ValueError):                        # there are none, or not ours
        return False


def start_afresh(folder: Path, settings: dict, *stale: str) -> None:
    """Clear away the files of `folder` that these patterns name, and write the settings down."""
    for pattern in stale:
        for old in folder.glob(pattern):
            old.unlink()
    atomic_write(folder / "settings.json", json.dumps(settings, indent=1) + "\n")


def hash_of_file(path: str | Path) -> str:
    """Names a file's bytes: sixteen letters of their sha256."""
    return hashlib.sha256(Path(path).read_bytes()).hexdigest()[:16]
