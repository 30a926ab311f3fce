"""What a training leaves, read back; and whether two losses are one."""

import csv
from pathlib import Path

import pytest


def read_log(run: Path) -> list[dict[str, float]]:
    """A dict a step."""
    with (run / "log.csv").open() as file:
        return [{name: float(x) for name, x in row.items()} for row in csv.DictReader(file)]


def weights(folder: Path) -> dict[str, bytes]:
    """All weights below a folder, by file."""
    files = sorted(folder.rglob("*.safetensors"))
    return {str(file.relative_to(folder)): file.read_bytes() for file in files}


def assert_same(model, got, want):
    """Two losses are one, and have one gradient, which no frozen part has."""
    assert got.item() == pytest.approx(want.item(), abs=1e-4)
    gradients = []
    for loss in (got, want):
        model.zero_grad(set_to_none=True)
        loss.backward()
        gradients.append(model.transformer.proj_out.weight.grad.clone())
        assert all(p.grad is None for p in model.parameters() if not p.requires_grad)
    ours, theirs = gradients
    assert (ours - theirs).abs().max() < 1e-3 * theirs.abs().max()
