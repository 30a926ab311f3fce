"""critic_probe.py: what it measures, on clips whose answer is known, and the command."""

import json

import pytest
import torch

from common import intervals
from common.intervals import overall
from critic import THINK, Critic
from experiments import critic_probe
from experiments.critic_probe import HeldOut, hold_out, measure_gradient
from tiny import world


class StubCritic:
    """Its margin is a weighted sum of the pixels of the frames that it sees: all of them."""
    think = "expect"

    class vlm:
        pick = staticmethod(lambda clips: clips)

    def __init__(self, weight):
        self.weight = weight

    def margin(self, source, edited, instructions, thoughts):
        return (edited * self.weight).sum((1, 2, 3, 4))


def test_a_linear_critic_has_the_gradient_that_was_built_in():
    held = hold_out(3, "val")
    region = critic_probe.changed_region(StubCritic.vlm, held.source, held.right)
    by_hand = (held.source - held.right).abs().max(2, keepdim=True).values > .02
    assert torch.equal(region, by_hand)
    critic = StubCritic(torch.ones_like(held.source[0]))
    found = measure_gradient(critic, held, [None], held.right)
    assert found["gradient"] == pytest.approx(held.source[0].numel() ** .5)
    assert found["inside"] == pytest.approx(region.float().mean().item(), rel=1e-5)
    assert found["spearman"] is None                     # the oracle gives all targets a 10


def test_verdicts_are_counted_by_kind():
    clip = torch.zeros(4, 1, 3, 2, 2)
    held = HeldOut([None] * 4, ["a", "b", "c", "d"], clip, clip.clone(), clip.clone(),
                   ["half", "half", "noise", "noise"])
    held.right[:3] += 1                                  # three of four edits get a Yes
    held.wrong[:2] -= 1                                  # both "half" get a No ...
    held.wrong[2] += 1                                   # ... of "noise" one a Yes, one a 0
    found = critic_probe.measure_verdicts(StubCritic(torch.ones_like(clip[0])), held, [None])
    assert found == {"right": 5 / 8, "by_kind": {"edit": .75, "half": 1., "noise": 0.}}


def test_the_oracle_scores_what_was_moved(tiny, monkeypatch):
    moved, held = torch.randn(2, *tiny.preset.latent_shape), hold_out(2, "val")
    monkeypatch.setattr(critic_probe, "follow", lambda *args, size: moved)
    monkeypatch.setattr(intervals, "interval", list)
    found = critic_probe.measure_ascent(Critic(tiny), held, [["a", "b"]], .6)
    with torch.no_grad():
        before, after = tiny.decode_video(tiny.encode_video(held.wrong)), tiny.decode_video(moved)
    for k, triplet in enumerate(held.triplets):
        then, now = (world.judge(triplet, clips[k]) for clips in (before, after))
        assert found["EA"][k] == pytest.approx(now["EA"] - then["EA"], abs=1e-4)
        whole = [overall(s["EA"], s.get("PC"), s["GN"], s["GR"]) for s in (then, now)]
        assert found["Overall"][k] == pytest.approx(whole[1] - whole[0], abs=1e-4)
    assert len(found["PC"]) == 1                         # ICVG has none


def test_the_command_on_a_random_model(tiny_dir, tmp_path, capsys):
    critic_probe.main(["--weights", str(tiny_dir), "--n", "2", "--split", "val",
                       "--out", str(tmp_path)])
    assert "on 2 triplets of the val split: VAE" in capsys.readouterr().out
    found = json.loads((tmp_path / "tiny.json").read_text())
    assert found["n"] == 2 and set(THINK) <= set(found)
    assert all(found["expect"][f"RMS {way}"]["margin"] > 0 for way in critic_probe.WAYS)
    assert len(found["alone_psnr"]) == 3 and found["alone_psnr"][0] > 60       # the first is exact
