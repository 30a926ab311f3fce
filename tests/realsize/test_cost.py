"""cost.py: its sums against torch's counter, its expectation against a simulation and by hand."""

import json
import math
from dataclasses import replace

import pytest
import torch

import bench
from critic import Critic, decode_frames
from model import UnifiedModel, add_noise
from presets import PRESETS
from realsize import cost, flops
from realsize.flops import step_flops
from realsize.gate_cost import expected_step, gated_counts

TINY, WAN = PRESETS["tiny"], PRESETS["wan1.3b"]


@pytest.mark.parametrize("decode", ["alone", "exact"])
def test_flops_are_those_that_torch_counts(tiny_dir, monkeypatch, decode):
    """Each part of a step of the tiny preset, forward and backward."""
    model = UnifiedModel.from_pretrained(tiny_dir)
    model.freeze()
    data, read = bench.random_batch(model, 1), []
    critic, plain = Critic(model), model.vlm.read
    monkeypatch.setattr(model.vlm, "read", lambda e, *rest, **more: read.append(e.shape[1]) or plain(e, *rest, **more))
    critic.margin(data.frames, data.frames, data.instructions, ["a"])
    parts = step_flops(replace(TINY, decode=decode), *read)
    t = torch.tensor([.3])

    def velocity():
        return model.velocity(add_noise(data.target, data.noise, t), t, model.context(data.source, data.bridged, data.text),
                              data.source)
    x = torch.randn(1, *TINY.latent_shape, requires_grad=True)
    frames = data.frames.clone().requires_grad_()
    for names, forward in ((["DiT"], velocity), (["VAE decoder"], lambda: decode_frames(model, x, decode)),
                           (["SigLIP, source", "SigLIP, edit", "Llama, prefix", "Llama, edit and verdict"],
                            lambda: critic.margin(data.frames, frames, data.instructions, ["a"]))):
        there = bench.count_flops(forward)
        back = bench.count_flops(lambda: forward().sum().backward()) - there
        assert sum(parts[name][0] for name in names) == pytest.approx(there, rel=1e-3), names
        assert sum(parts[name][1] for name in names) == pytest.approx(back, rel=2e-2), names


@pytest.fixture(scope="module")
def real_parts():
    return step_flops(WAN, 1748, 1584)


def test_flops_of_the_real_size_against_the_rule_of_thumb(real_parts):
    """2 FLOPs a parameter and token, and attention; and what torch counts of G on shapes alone."""
    parts = real_parts
    assert parts["Llama, prefix"][0] == pytest.approx(2 * 7e9 * 1748, rel=.1)
    with torch.device("meta"):
        model = UnifiedModel(WAN)
        latents, t = torch.empty(1, *WAN.latent_shape), torch.empty(1)
        text = [torch.empty(9, 4096)]

        def velocity():
            return model.velocity(latents, t, model.context(latents, torch.empty(1, 1024, 4096), text), latents)
        forward = bench.count_flops(lambda: velocity())
    assert parts["DiT"][0] == pytest.approx(forward, rel=1e-3)
    assert parts["DiT"][1] == pytest.approx(2 * forward, rel=.01)
    held = flops.step_bytes(WAN, 1748, 1584)
    assert held["G: weights, gradients, AdamW"] == pytest.approx(16 * 1.4257e9, rel=1e-3)
    assert held["all-reduced"] == pytest.approx(4 * 1.4257e9, rel=1e-3)


def test_the_page(real_parts, capsys, monkeypatch):
    """Hours by hand from the FLOPs."""
    parts, asked = real_parts, []
    monkeypatch.setattr(cost, "step_flops", lambda *args: asked.append(args) or parts)
    cost.main([])
    printed = capsys.readouterr().out
    assert asked == [(WAN, 1748, 1584)]
    whole = sum(sum(x) * (1 if name == "DiT" else .25) for name, x in parts.items())
    assert flops.prompt_tokens(WAN) == (8 * 196 + 180, 8 * 196 + 16)
    assert f"USO / SFT in FLOPs {whole / sum(parts['DiT']):.2f}" in printed
    hours = 56_000 * 15 * whole / (.45 * 989e12) / 3600
    assert f"{hours:.1f} | {hours / 8:6.1f} |" in printed


# --------------------------------------------------------------------------------------------- waiting for the gate

def test_expected_step_by_hand():
    assert expected_step([10, 30], .25, 1, False) == expected_step([10, 30], .25, 1, True) == pytest.approx(15)
    assert expected_step([10, 30], .25, 64, True) == pytest.approx(15)
    assert expected_step([10, 30], .25, 2, False) == pytest.approx(10 + 20 * (1 - .75 ** 2))
    assert expected_step([10, 30], .25, 1024, False) == pytest.approx(30)
    assert expected_step([0, 1, 5], .5, 3, False) == pytest.approx((.75 ** 3 - .25 ** 3) + 5 * (1 - .75 ** 3))


@pytest.mark.parametrize("batch, ranks", [(1, 8), (4, 4)])
@pytest.mark.parametrize("together", [True, False])
def test_expected_step_of_a_simulation(batch, ranks, together):
    """With the draws of training, each rank as slow as its number gated, all as slow as the slowest."""
    price = torch.tensor([1., 3., 4., 6., 7.])[:batch + 1]
    counts = gated_counts(batch, ranks, .5, together, 8000)
    assert counts.shape == (8000, ranks) and counts.float().mean().item() == pytest.approx(batch / 4, rel=.06)
    slowest = price[counts].max(1).values.mean().item()
    assert slowest == pytest.approx(expected_step(price.tolist(), .25, ranks, together), rel=.02)
    assert (counts == counts[:, :1]).all() == together


def test_the_figure(tmp_path, monkeypatch):
    reflect = Critic.thoughts
    monkeypatch.setattr(Critic, "thoughts", lambda *args: reflect(*args, limit=2))
    cost.main(["--gate", "--repeats", "1", "--out", str(tmp_path)])
    found = json.loads((tmp_path / "gate.json").read_text())
    assert (tmp_path / "gate.png").read_bytes().startswith(b"\x89PNG")
    assert {"command", "date", "device", "torch", "load"} < set(found) and len(found["ms_by_gated"]) == 2
    points = found["step_over_sft"]
    assert points["ranks"] == [2 ** k for k in range(11)]
    sft, gated = found["ms_by_gated"]
    assert points["together"] == pytest.approx([1 + .25 * (gated / sft - 1)] * 11)
    assert points["alone"][0] == pytest.approx(points["together"][0])
    assert points["alone"][-1] == pytest.approx(gated / sft) and math.isfinite(gated)
