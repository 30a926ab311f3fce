"""What pleasing a critic buys: the ascent gains margin, its length is bounded, its gains are the oracle's."""

import json

import numpy as np
import pytest
import torch

from common.intervals import overall
from experiments import pleasing
from experiments.critic_probe import hold_out
from model import load_model
from tiny import world


@pytest.fixture(scope="module")
def model():
    return load_model(None, "tiny").requires_grad_(False)


def test_the_ascent_pleases_the_critic_and_the_oracle_scores_what_it_made(model):
    held = hold_out(2, "val")
    climbed = pleasing.climb(model, held, .6, "climb")
    with torch.no_grad():
        decoded = model.decode_video(model.encode_video(held.wrong))
    assert (climbed["margin"] > 0).all()
    for triplet, before, after, gains in zip(held.triplets, decoded, climbed["videos"], climbed["oracle"]):
        then, now = world.judge(triplet, before), world.judge(triplet, after)
        assert gains[1] == pytest.approx(now["EA"] - then["EA"], abs=1e-4)
        whole = [overall(s["EA"], s.get("PC"), s["GN"], s["GR"]) for s in (then, now)]
        assert gains[0] == pytest.approx(whole[1] - whole[0], abs=1e-4)
        assert np.isnan(gains[2]) == (triplet.subset == "icvg")


def test_command_prints_a_line_for_each_critic_and_size(tmp_path, capsys):
    pleasing.main(["--critic", "weights/tiny", "--n", "2", "--split", "val", "--out", str(tmp_path)])
    table = (tmp_path / "pleasing.md").read_text()
    assert table in capsys.readouterr().out
    assert [line.count("|") for line in table.splitlines()[2:]] == [9] * 4
    numbers = json.loads((tmp_path / "pleasing.json").read_text())
    assert len(numbers["weights/tiny"]["0.6"]["oracle"]) == 2
    assert (tmp_path / "pleasing.png").stat().st_size > 1000
