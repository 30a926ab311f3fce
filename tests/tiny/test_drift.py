"""The data generator's own hand: always the same, seen at once, as far off as Ditto's targets."""

import numpy as np
import pytest
import torch
from scipy.ndimage import uniform_filter

from tiny.drift import drifted
from tiny.world import judge, make_triplet


def test_drift_is_a_blur_a_lower_contrast_and_a_tint():
    video = make_triplet(3, "rave", "train").target
    blurred = uniform_filter(video.numpy(), (0, 0, 3, 3))
    tint = np.array([.25, -.05, -.25]).reshape(3, 1, 1)
    expected = (.75 * (.5 * video.numpy() + .5 * blurred) + tint).clip(-1, 1)
    inside = (..., slice(1, -1), slice(1, -1))
    assert np.allclose(drifted(video)[inside].numpy(), expected[inside], atol=1e-6)
    flat = drifted(torch.zeros(1, 3, 8, 8))              # has no edge
    assert torch.allclose(flat, torch.tensor(tint).float().expand(1, 3, 8, 8))


def test_the_oracle_sees_the_edit_and_that_the_rest_is_not_kept():
    triplets = [make_triplet(index, "rave", "val") for index in range(30)]
    scores = [judge(triplet, drifted(triplet.target)) for triplet in triplets]
    assert np.mean([score["PC"] for score in scores]) == pytest.approx(5.4, abs=.4)
    assert np.mean([score["EA"] for score in scores]) > 5.5
    assert min(score["GN"] for score in scores) > 9.9
