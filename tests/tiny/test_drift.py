"""The data generator's own hand: always the same, seen at once, as far off as Ditto's targets."""

import numpy as np
import pytest
import torch
from scipy.ndimage import uniform_filter

from tiny.drift import drifted
from tiny.world import judge, make_triplet


def test_drift_is_a_blur_a_lower_contrast_and_a_tint():
    video = make_triplet(3, "rave", "train").target
    frame = video[4, :, 1:-1, 1:-1].numpy()
    blurred = uniform_filter(video[4].numpy(), (0, 3, 3))[:, 1:-1, 1:-1]
    tint = np.array([.25, -.05, -.25]).reshape(3, 1, 1)
    expected = (.75 * (.5 * frame + .5 * blurred) + tint).clip(-1, 1)
    assert np.allclose(drifted(video)[4, :, 1:-1, 1:-1].numpy(), expected, atol=1e-6)


def test_drift_of_a_flat_frame_has_no_edge():
    flat = torch.zeros(1, 3, 8, 8)
    assert torch.allclose(drifted(flat)[0].flatten(1), torch.tensor([.25, -.05, -.25])[:, None])


def test_the_oracle_sees_the_edit_and_that_the_rest_is_not_kept():
    triplets = [make_triplet(index, "rave", "val") for index in range(30)]
    scores = [judge(triplet, drifted(triplet.target)) for triplet in triplets]
    assert np.mean([score["PC"] for score in scores]) == pytest.approx(5.4, abs=.4)
    assert np.mean([score["EA"] for score in scores]) > 5.5
    assert min(score["GN"] for score in scores) > 9.9
