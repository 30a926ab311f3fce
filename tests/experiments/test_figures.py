"""figures.py: a rank correlation by hand, and what is drawn."""

import json
from functools import partial

import numpy as np
import pytest

from common.intervals import bootstrap_interval
from critic import THINK
from experiments import figures, gradient_probe, one_step_probe, scores
from experiments.__main__ import maker
from experiments.one_step_probe import NOISED
from experiments.runs import (BASE, HALF, NEEDED_SCORES, OWN_EDITS_ON_FEW, SFT_ON_FEW,
                              TAUS, Score, Study)


@pytest.fixture(autouse=True)
def few_draws(monkeypatch):
    """Of the bootstraps: no number below depends on how many."""
    few = partial(bootstrap_interval, draws=20)
    for module in (figures, scores):
        monkeypatch.setattr(module, "bootstrap_interval", few)


@pytest.mark.parametrize("item", [
    "table 2", "table 4", "table 5", "figure gamed", "figure map", "figure map-longer",
    "figure headline", "figure triplets", "figure drift", "figure varied", "figure gamed-own",
    "figure chosen", "figure icvg", "figure twice"])
def test_each_runs_number_is_shown(study, pretend, item):
    """Its score; on the maps, what it gained over SFT, whose score is 1."""
    study, values = study(n=4, seeds=range(1)), {}
    for score in NEEDED_SCORES[item]:
        is_sft = score.run.startswith("sft on")
        value = values.setdefault(score.run, 1 if is_sft else 1.03 + .17 * len(values))
        pretend(study, score, 0, [value] * 4)
    text = maker(item)(study)
    for run, value in values.items():
        assert f"{value:.2f}" in text or f"{value - 1:+.2f}" in text, run
    if item.startswith("figure"):
        assert next(study.out.glob("*.png")).stat().st_size > 10_000


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


def test_figure_gradient(study, tiny_dir, monkeypatch):
    monkeypatch.setattr(gradient_probe, "LEVELS", (.05, .5))
    drawn, draw = [], figures.draw_panels
    monkeypatch.setattr(figures, "draw_panels",
                        lambda path, panels: drawn.extend(panels) or draw(path, panels))
    study = study(weights=str(tiny_dir), n=1)
    text = figures.figure_gradient(study)
    file = study.folder / "measured" / "gradient, wrong-30, 500 steps, 1 samples.json"
    rows = {name: np.array(x) for name, x in json.loads(file.read_text()).items()}
    for name in ("area", *THINK):
        assert ((0 <= rows[name]) & (rows[name] <= 1)).all()
    for which in ("right", "wrong"):             # there is a gradient, whatever this critic knows
        assert rows[f"size, {which}"].shape == (2, 1) and (rows[f"size, {which}"] > 0).all()
        assert (abs(rows[f"aim, {which}"]) <= 1).all()
    lines = [line.split()[1] for line in text.splitlines() if line.startswith("| 0")]
    assert lines == ["0.05", "0.5"]
    assert [len(panel.lines) for panel in drawn] == [4, 2, 2]
    assert (study.out / "gradient.png").stat().st_size > 10_000


def test_one_step_estimates_of_what_is_noised(study, tiny_dir, monkeypatch):
    monkeypatch.setattr(one_step_probe, "MODELS", (BASE,))
    study = study(weights=str(tiny_dir), n=2)
    found = one_step_probe.one_step_margins(study)
    assert {len(row) for rows in found.values() for row in rows} == {2}
    for tau in TAUS:                             # three others are seen, and so three other margins
        margins = {tuple(found[f"{name} {tau}"][0]) for name in NOISED}
        assert len(margins) == 3


def test_own_edits_and_halfway_back(study, pretend, tiny_dir, monkeypatch):
    study = study(n=5, seeds=range(1))
    monkeypatch.setattr(Study, "model_folder", lambda *_: str(tiny_dir))
    for number, run in enumerate((BASE, SFT_ON_FEW, OWN_EDITS_ON_FEW + HALF, OWN_EDITS_ON_FEW)):
        pretend(study, Score(run, "rave"), 0, [number] * 5)
    rows = [line.split("|") for line in figures.figure_own_edits(study).splitlines()]
    gained = {row[1].strip(): row[7].split()[0] for row in rows if row[1:] and "own" in row[1]}
    assert gained == {OWN_EDITS_ON_FEW: "+2.00", OWN_EDITS_ON_FEW + HALF: "+1.00"}
    for name in ("own-edits.png", "own-edits-samples.png"):
        assert (study.out / name).stat().st_size > 5_000
