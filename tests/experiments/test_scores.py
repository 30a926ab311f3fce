"""scores.py: its statistics by hand."""

import numpy as np
import pytest

from common.files import BadInput
from experiments.runs import BASE, Score
from experiments.scores import cell, compare, measured_once, read_scores, seed_and_sample_interval


def test_the_interval_draws_seeds_and_samples():
    x = np.random.default_rng(0).normal(5, 1, (1, 400))  # one seed: the theory of 400 samples
    mean, low, high = seed_and_sample_interval(x)
    assert mean == pytest.approx(x.mean())
    assert (high - low) / 2 == pytest.approx(1.96 / 20, rel=.15)
    between = np.array([[0.], [1.], [2.]]) + np.zeros((3, 400))      # seeds differ, samples do not
    assert seed_and_sample_interval(between) == (1, 0, 2)
    failed = np.array([[1., np.nan, 3.]])                # a failed sample is left out
    assert seed_and_sample_interval(failed)[0] == 2


def test_scores_are_paired_by_seed_and_sample(study, pretend):
    study = study(n=3, seeds=range(2))
    for seed in (0, 1):
        pretend(study, Score("sft", "rave"), seed, [1, 2, 9])
        pretend(study, Score("uso", "rave"), seed, [2, 3, 10])
    pretend(study, Score(BASE, "rave"), 0, [0, None, 1])
    assert read_scores(study, Score("uso", "rave")).shape == (2, 3)
    with pytest.raises(BadInput, match="have no 'margin', they are of an earlier version; delete"):
        read_scores(study, Score("uso", "rave"), "margin")
    text = compare(study, [BASE, "sft", "uso"], "rave", "sft")
    base, sft, uso = [line.split("|") for line in text.splitlines()[2:]]
    assert uso[-2].split() == ["+1.00", "[+1.00,", "+1.00]"]         # though samples differ by 8
    assert not sft[-2].strip() and base[2].split()[0] == "0.50"
    assert cell(np.full((2, 3), np.nan)) == "-"


def test_what_was_measured_is_kept(study):
    answers = iter([{"x": [.1]}, {"x": [.2]}])
    study = study(n=5)
    for _ in range(2):
        assert measured_once(study, "some", lambda study: next(answers)) == {"x": [.1]}
