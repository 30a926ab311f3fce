"""What a training leaves, read back."""

import csv
from pathlib import Path


def read_log(run: Path) -> list[dict[str, float]]:
    """A dict a step."""
    with (run / "log.csv").open() as file:
        return [{name: float(x) for name, x in row.items()} for row in csv.DictReader(file)]


def weights(folder: Path) -> dict[str, bytes]:
    """All weights below a folder, by file."""
    files = sorted(folder.rglob("*.safetensors"))
    return {str(file.relative_to(folder)): file.read_bytes() for file in files}
