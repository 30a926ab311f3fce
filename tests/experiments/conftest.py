"""What the tests of experiments/ share: a small study, and scores as evaluate.py leaves them."""

import json

import pytest

from experiments.runs import Study


@pytest.fixture
def study(tmp_path):
    """study(**changes): a Study in a temporary folder, of which nothing is done yet."""
    def make(**changes):
        return Study(folder=tmp_path / "runs", out=tmp_path / "results", **changes)
    return make


@pytest.fixture
def pretend():
    """pretend(study, score, seed, overall, margin): leave the rows that evaluate.py would leave."""
    def write(study, score, seed, overall, margin=None):
        folder = score.folder(study, seed)
        folder.mkdir(parents=True)
        lines = []
        for value, m in zip(overall, margin or overall):
            row = dict.fromkeys(("Overall", "EA", "PC", "GN", "GR"), value)
            row |= {"type": "Temporal Reasoning", "margin, own": m,
                    "margin, hardened": None if m is None else -m}
            lines.append(json.dumps(row) + "\n")
        (folder / "scores.jsonl").write_text("".join(lines))
        (folder / "table.md").write_text("done")
    return write
