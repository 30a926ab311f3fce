"""figures.py: a rank correlation by hand, and what is drawn."""

import json
from functools import partial

import numpy as np
import pytest

from common.intervals import bootstrap_interval
from critic import THINK
from experiments import figures, gradient_probe, one_step_probe, scores
from experiments.one_step_probe import NOISED
from experiments.runs import (BASE, HALF, HEADLINE, LEARNERS, MAP, OWN_EDITS_ON_FEW, SFT_ON_FEW,
                              TAUS, TRIPLETS, Score, Study, run_of_triplets)


@pytest.fixture(autouse=True)
def few_draws(monkeypatch):
    """Of the bootstraps: no number below depends on how many."""
    few = partial(bootstrap_interval, draws=20)
    for module in (figures, scores):
        monkeypatch.setattr(module, "bootstrap_interval", few)


def cells_of(table):
    """The cells of a Markdown table, but for its head."""
    return [[cell.strip() for cell in line.split("|")[1:-1]] for line in table.splitlines()[2:]]


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
    assert (study.out / "gradient.png").stat().st_size > 10_000


def test_headline_is_paired_and_says_what_could_have_been_seen(study, pretend):
    study = study(n=5, seeds=range(2))
    for subset in ("rave", "icvg"):
        pretend(study, Score(BASE, subset), 0, [1] * 5)
        for number, run in enumerate(HEADLINE):          # a run is ahead of SFT by its number
            for seed in (0, 1):
                pretend(study, Score(run, subset), seed, [seed + k + number for k in range(5)])
    text = figures.figure_headline(study)
    uso = [[cell.strip() for cell in line.split("|")[2:-1]] for line in text.splitlines()
           if line.startswith("| uso  ")]
    for scores, visible in zip(uso[::2], uso[1::2], strict=True):            # on both subsets
        assert scores[-3:] == ["+2.00 [+2.00, +2.00]"] * 3                   # Overall, EA, PC
        assert visible == ["0.00"]                       # both seeds gain the same
    assert len(uso) == 4
    assert (study.out / "headline.png").stat().st_size > 1000


def test_map_is_uso_minus_sft_place_by_place(study, pretend):
    """SFT has 1 everywhere, USO 0.1 more from place to place."""
    study, scores = study(n=5, seeds=range(1), steps=100), {}
    for number, place in enumerate(MAP):
        sft, uso = place.runs
        scores |= {sft: 1, uso: 1 + number / 10}
    for run, value in scores.items():
        pretend(study, Score(run, "rave"), 0, [value] * 5)
    head, table, differences = figures.figure_map(study).split("\n\n")
    assert "RAVE, 100 steps" in head
    rows = cells_of(table)
    assert rows[3][:4] == ["drift-60", "own", "m_0", "1.00 [1.00, 1.00]"]
    gains = [float(row[4].split()[0]) for row in rows]
    assert gains == pytest.approx([number / 10 for number in range(len(MAP))])
    found = [float(row[1].split()[0]) for row in cells_of(differences)]
    assert found == pytest.approx([.4, .2, .2, .6, .4])
    assert (study.out / "map.png").stat().st_size > 10_000


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


def test_own_edits_over_triplets_and_what_they_are_worth(study, pretend):
    study = study(n=5, seeds=range(1))
    for number, n in enumerate(TRIPLETS):                # SFT has 1, 2, 3, 4; own edits 1 more
        for ahead, run in enumerate(LEARNERS):
            for subset in ("rave", "icvg"):
                score = Score(run_of_triplets(run, n), subset)
                pretend(study, score, 0, [1 + number + ahead / 2] * 5)
    text = figures.figure_triplets(study)
    assert "SFT's on 100, 300, 1200, 1200, read off" in text
    gained = [line.split("|")[7].split()[0] for line in text.splitlines()
              if line.startswith("| own edits")]
    assert gained == ["+1.00"] * 2 * len(TRIPLETS)
    assert (study.out / "triplets.png").stat().st_size > 10_000
