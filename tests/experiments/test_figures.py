"""figures.py: a rank correlation by hand, and what is drawn."""

import json

import numpy as np
import pytest

from critic import THINK
from experiments import figures
from experiments.runs import BASE, Score


def test_figure_4_is_a_rank_correlation(study, pretend):
    study = study(n=4, seeds=range(1))
    for run in (BASE, "sft", "rwr", "uso"):
        # the margin has the order of EA, the word only half of it
        pretend(study, Score(run, "rave"), 0, [1, 2, 3, 4], [-2, -1, 1, 2])
    text = figures.figure_4(study)
    soft, hard = [float(line.split("|")[2].split()[0]) for line in text.splitlines()[4:6]]
    assert soft == pytest.approx(1)
    assert hard == pytest.approx(.894, abs=.001)         # of ranks 1 2 3 4 with 0 0 1 1
    assert (study.out / "figure-4.png").stat().st_size > 1000


def test_figure_gradient(study, tiny_dir):
    study = study(weights=str(tiny_dir), n=7)
    text = figures.figure_gradient(study)
    found = json.loads((study.folder / "measured" / "gradient.json").read_text())
    levels = found.pop("levels")
    rows = {name: np.array(x) for name, x in found.items()}
    for name, x in rows.items():
        assert x.shape == ((7,) if name == "area" else (len(levels), 7))
    for name in ("area", *THINK):
        assert ((0 <= rows[name]) & (rows[name] <= 1)).all()
    for which in ("right", "wrong"):             # there is a gradient, whatever this critic knows
        assert (rows[f"size, {which}"] > 0).all() and (abs(rows[f"aim, {which}"]) <= 1).all()
    lines = [line for line in text.splitlines() if line.startswith("| 0")]
    assert [line.split()[1] for line in lines] == [str(t) for t in levels]
    assert (study.out / "gradient.png").stat().st_size > 10_000
