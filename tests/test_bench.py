"""bench.py: its arithmetic by hand, that its step is train.py's, that the command runs.

Nothing here is timed.
"""

import json
import re
from pathlib import Path

import pytest
import torch
import torch.nn.functional as F
from torch.optim.optimizer import register_optimizer_step_pre_hook

import bench
import train
from bench import PARTS, TAUS, WAYS, Way, expected_cost, trigger_rate
from common.measure import Clock, count_flops, peak_memory
from critic import Critic, critic_loss

CPU = torch.device("cpu")


# ----------------------------------------------------------------------------------- the arithmetic

def test_trigger_rates_are_those_of_table_6():
    rates = [100 * trigger_rate(tau) for tau in TAUS]
    assert rates == pytest.approx([3.5, 12.5, 25.0, 43.7, 75.0], abs=.1)
    assert trigger_rate(1) == 1


def test_expected_cost_by_hand():
    assert expected_cost([10, 20], .5, 1) == pytest.approx(12.5)                        # p = 1/4
    assert expected_cost([10, 20, 60], .5, 2) == pytest.approx((9 * 10 + 6 * 20 + 60) / 16)
    assert expected_cost([5.] * 9, .3, 8) == pytest.approx(5)           # the weights add up to 1
    assert expected_cost(list(range(9)), .3, 8) == pytest.approx(8 / 8)         # the mean, B p
    assert expected_cost([1, 2, 3, 9], 1, 3) == pytest.approx(9)        # all are gated


def test_expected_cost_of_a_simulation():
    cost, tau = torch.tensor([1., 5., 6., 20.]), .7
    t = 1 - torch.rand(100_000, 3, generator=torch.manual_seed(0))
    gated = (3 * t / (1 + 2 * t) < tau).sum(1)
    assert cost[gated].mean() == pytest.approx(expected_cost(cost.tolist(), tau, 3), rel=.01)


@pytest.mark.parametrize("costs, tau, batch, words", [
    ([1, 2], .5, 2, "3 costs, not 2"), ([1, 2], 0, 1, "tau"), ([1, 2], float("nan"), 1, "tau")])
def test_expected_cost_refuses(costs, tau, batch, words):
    with pytest.raises(ValueError, match=words):
        expected_cost(costs, tau, batch)


def test_flops_by_hand():
    x, w = torch.randn(3, 4), torch.randn(4, 5)
    clip, kernel = torch.randn(1, 2, 6, 6, 6), torch.randn(7, 2, 3, 3, 3)
    q, k = torch.randn(1, 2, 8, 16), torch.randn(1, 2, 12, 16)
    for step, want in ((lambda: x @ w, 2 * 3 * 4 * 5),
                       (lambda: F.conv3d(clip, kernel), 2 * 7 * 4 ** 3 * 2 * 27),
                       (lambda: F.scaled_dot_product_attention(q, k, k),
                        2 * 2 * (2 * 8 * 12 * 16))):
        with count_flops() as count:
            step()
        assert count.flops == want


def test_peak_memory_by_hand():
    for _ in range(2):                                   # what came before does not count
        with peak_memory(CPU) as peak:
            a, b = torch.zeros(2 ** 20), torch.zeros(2 ** 21)           # 4 and 8 MiB
            del a
            c = torch.zeros(2 ** 18)
            del b, c
        assert peak.mib == pytest.approx(12, abs=.1)


# ----------------------------------------------------------------------------------------- the step

def one_step(model, way, gated):
    """(parts, gradient by name) of one step of train.py's loop; way None is SFT."""
    wanted = [p.requires_grad for p in model.parameters()]
    model.freeze()
    batch, critic = bench.random_batch(model, 2), None
    if way:
        critic = Critic(model, *reversed(way))
        bench.set_reflections(batch, critic)
    clock, gradients, steps = Clock(CPU), {}, []

    def keep(*_):
        steps.append(1)
        gradients.update({k: p.grad.clone() for k, p in model.named_parameters()
                          if p.grad is not None})

    def plan():
        with bench.marked(model, clock.mark):
            yield Way(batch, critic).gated(gated)
    hook = register_optimizer_step_pre_hook(keep)
    try:
        bench.run_plan(model, plan(), 1)
        trained = {k for k, p in model.named_parameters() if p.requires_grad}
    finally:
        hook.remove()
        for p, want in zip(model.parameters(), wanted):
            p.requires_grad_(want).grad = None
    assert set(gradients) == trained and len(steps) == 1
    return list(clock.parts), gradients


def test_the_step_is_that_of_training(tiny):
    """Its parts in order; shut, the gate leaves SFT, bit for bit; no weight is changed."""
    before = {k: p.clone() for k, p in tiny.named_parameters()}
    plain, shut = one_step(tiny, None, 0)
    assert plain == ["DiT forward", "DiT backward", "optimizer", "the rest"]
    none, without = one_step(tiny, ("exact", "expect"), 0)
    assert none == plain and all(torch.equal(shut[k], without[k]) for k in shut)
    _, sft = one_step(tiny, None, 1)
    for way in (("exact", "expect"), ("alone", "full")):
        order, uso = one_step(tiny, way, 1)
        assert order == list(PARTS) and any(not torch.equal(sft[k], uso[k]) for k in sft)
    for module in (tiny.transformer, tiny.vae.decoder, tiny.vlm.llm):
        assert not module._forward_hooks and not module._forward_pre_hooks
    assert all(torch.equal(p, before[k]) for k, p in tiny.named_parameters())


def test_the_gate_and_its_reflections(tiny):
    critic, batch = Critic(tiny, "expect", "alone"), bench.random_batch(tiny, 3)
    bench.set_reflections(batch, critic)
    bench.set_gated(batch, 2)
    assert batch.near.tolist() == [True, True, False] == (batch.t < bench.TAU).tolist()
    want = critic.baseline(batch.frames, batch.instructions, batch.thoughts)
    assert torch.equal(batch.baseline, want) and batch.n_near == 2
    x_t = torch.randn(batch.source.shape)
    assert len(critic_loss(critic, x_t, x_t, batch)[0]) == 2


def test_the_default_is_that_of_training():
    args = train.parse(["--lambda", "0.25"])
    assert (args.decode, args.think) == WAYS[0]
    assert (args.tau, args.lam) == (bench.TAU, bench.LAMBDA)


# -------------------------------------------------------------------------------------- the command

def test_the_command(tiny_dir, tmp_path, monkeypatch, capsys):
    out, thoughts = tmp_path / "new" / "bench", Critic.thoughts
    # random weights never stop
    monkeypatch.setattr(Critic, "thoughts", lambda *args: thoughts(*args, limit=4))
    bench.main(["--weights", str(tiny_dir), "--batch", "1", "--repeats", "1", "--out", str(out)])
    printed = capsys.readouterr().out
    assert {p.name for p in out.iterdir()} == {"bench.json", "bench.png"}
    assert (out / "bench.png").read_bytes().startswith(b"\x89PNG")
    result = json.loads(Path(out, "bench.json").read_text())
    assert {"command", "date", "device", "load", "python", "torch", "diffusers"} < set(result)
    assert (result["batch"], result["weights"]) == (1, str(tiny_dir))
    steps = result["steps"]
    assert set(steps) == {"SFT", *(f"{decode}/{think}" for decode, think in WAYS)}
    for name, row in steps.items():
        assert len(row["ms_by_gated"]) == 2 and list(row["tau"]) == [str(tau) for tau in TAUS]
        assert row["peak_mib_all_gated"] >= steps["SFT"]["peak_mib_all_gated"] > 0
        assert (row["once_a_sample_ms"] > 0) == (name != "SFT")
        for tau, x in row["tau"].items():
            assert x["lowest"] <= x["ratio"] <= x["highest"]            # one repeat: all the same
            assert x["ms"] == pytest.approx(expected_cost(row["ms_by_gated"], float(tau), 1))
            assert sum(x["parts"].values()) == pytest.approx(x["ms"])
            assert (x["parts"]["VLM backward"] > 0) == (name != "SFT")
    ratios = [x["ratio"] for x in steps["SFT"]["tau"].values()]
    assert ratios == pytest.approx([1] * 5)
    flops, goal = result["flops"], result["goal"]
    assert flops["SFT"] < flops["USO, all gated"]
    assert goal["ratio"] == steps["alone/expect"]["tau"]["0.5"]["ratio"]
    met = "met" if goal["ratio"] <= 2 else "NOT met"
    assert re.search(rf"Goal: .* 2.0 at tau 0.5: {goal['ratio']:.2f}, {met}\n", printed)
    assert all(f"| {part} " in printed for part in PARTS) and str(out) in printed
