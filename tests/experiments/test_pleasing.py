"""pleasing.py: the ascent gains margin, and what it gains besides is what the oracle says."""

import json

import numpy as np
import pytest
import torch

from common.intervals import overall
from experiments import pleasing
from experiments.critic_probe import hold_out
from tiny import world


def test_the_command_on_two_triplets(tmp_path, capsys):
    pleasing.main(["--critic", "weights/tiny", "--n", "2", "--split", "val", "--out",
                   str(tmp_path)])
    table = (tmp_path / "pleasing.md").read_text()
    assert table in capsys.readouterr().out
    assert [line.count("|") for line in table.splitlines()[2:]] == [9] * 4
    numbers = json.loads((tmp_path / "pleasing.json").read_text())["weights/tiny"]
    assert all(gain > 0 for size in numbers.values() for gain in size["margin"])
    assert (tmp_path / "pleasing.png").stat().st_size > 1000


def test_the_oracle_scores_what_was_made(tiny, monkeypatch):
    moved = torch.randn(2, *tiny.preset.latent_shape)
    monkeypatch.setattr(pleasing, "follow", lambda *args, size: moved)
    held = hold_out(2, "val")
    climbed = pleasing.climb(tiny, held, .6, "climb")
    with torch.no_grad():
        before, after = tiny.decode_video(tiny.encode_video(held.wrong)), tiny.decode_video(moved)
    for triplet, *clips, gains in zip(held.triplets, before, after, climbed["oracle"]):
        then, now = (world.judge(triplet, clip) for clip in clips)
        assert gains[1] == pytest.approx(now["EA"] - then["EA"], abs=1e-4)
        whole = [overall(s["EA"], s.get("PC"), s["GN"], s["GR"]) for s in (then, now)]
        assert gains[0] == pytest.approx(whole[1] - whole[0], abs=1e-4)
        assert np.isnan(gains[2]) == (triplet.subset == "icvg")
