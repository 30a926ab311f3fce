"""bench.py: its arithmetic by hand, that its step is the one it says, that the command runs. Nothing here is timed."""

import json
import os
import re
import runpy
import sys
from pathlib import Path

import pytest
import torch
import torch.nn.functional as F

import bench
import train
from bench import PARTS, TAUS, WAYS, count_flops, expected_cost, peak_memory, timed, trigger_rate
from critic import Critic, critic_loss

SCRIPT = Path(bench.__file__)
CPU = torch.device("cpu")


# ------------------------------------------------------------------------------------------------- the arithmetic

def test_trigger_rates_are_those_of_table_6():
    assert [100 * trigger_rate(tau) for tau in TAUS] == pytest.approx([3.5, 12.5, 25.0, 43.7, 75.0], abs=.1)
    assert trigger_rate(1) == 1


def test_expected_cost_by_hand():
    assert expected_cost([10, 20], .5, 1) == pytest.approx(12.5)                           # p = 1/4
    assert expected_cost([10, 20, 60], .5, 2) == pytest.approx((9 * 10 + 6 * 20 + 60) / 16)
    assert expected_cost([0, 0, 7], .9, 2) == pytest.approx(7 * .75 ** 2)
    assert expected_cost([5.] * 9, .3, 8) == pytest.approx(5)                              # the weights add up to 1
    assert expected_cost(list(range(9)), .3, 8) == pytest.approx(8 / 8)                    # the mean number gated, B p
    assert expected_cost([1, 2, 3, 9], 1, 3) == pytest.approx(9)                           # all are gated
    assert expected_cost([0, 1, 1, 1, 1], .5, 4) == pytest.approx(1 - .75 ** 4)            # the first sample costs most


def test_expected_cost_of_a_simulation():
    cost, tau, t = torch.tensor([1., 5., 6., 20.]), .7, 1 - torch.rand(100_000, 3, generator=torch.manual_seed(0))
    gated = (3 * t / (1 + 2 * t) < tau).sum(1)
    assert cost[gated].mean() == pytest.approx(expected_cost(cost.tolist(), tau, 3), rel=.01)


@pytest.mark.parametrize("costs, tau, batch, words", [([1, 2], .5, 2, "3 costs, not 2"), ([1, 2], 0, 1, "tau"),
                                                      ([1, 2], 1.1, 1, "tau"), ([1, 2], float("nan"), 1, "tau")])
def test_expected_cost_refuses(costs, tau, batch, words):
    with pytest.raises(ValueError, match=words):
        expected_cost(costs, tau, batch)


def test_flops_by_hand():
    x, w, clip, kernel = torch.randn(3, 4), torch.randn(4, 5), torch.randn(1, 2, 6, 6, 6), torch.randn(7, 2, 3, 3, 3)
    assert count_flops(lambda: x @ w) == 2 * 3 * 4 * 5
    assert count_flops(lambda: F.conv3d(clip, kernel)) == 2 * 7 * 4 ** 3 * 2 * 27
    q, k = torch.randn(1, 2, 8, 16), torch.randn(1, 2, 12, 16)
    assert count_flops(lambda: F.scaled_dot_product_attention(q, k, k)) == 2 * 2 * (2 * 8 * 12 * 16)


def test_peak_memory_by_hand():
    def step():
        a, b = torch.zeros(2 ** 20), torch.zeros(2 ** 21)                                  # 4 and 8 MiB
        del a
        c = torch.zeros(2 ** 18)
        del b
        return c
    for _ in range(2):                                   # what came before does not count
        assert peak_memory(step, CPU) == pytest.approx(12, abs=.1)


def test_timed_names_the_parts_in_order():
    def step(mark):
        mark("one"), mark("two")
    parts = timed(step, CPU)
    assert list(parts) == ["one", "two"] and min(parts.values()) >= 0


# ------------------------------------------------------------------------------------------------------- the step

class Keep(torch.optim.SGD):
    """An optimizer that leaves the model, which the tests share, alone."""
    def step(self):
        pass


def one_step(model, way, gated):
    """(parts, gradient by name, how often uso_step was called) of one step; way None is SFT."""
    wanted = [p.requires_grad for p in model.parameters()]
    model.zero_grad()                                    # of other tests
    calls = []

    def counted(*args):
        calls.append(1)
        return train.uso_step(*args)
    try:
        optimizer, batch = Keep(model.freeze(), lr=0.), bench.random_batch(model, 2)
        critic = Critic(model, *reversed(way)) if way else None
        if critic:
            bench.set_reflections(batch, critic)
        step = bench.gated_step(model, optimizer, batch, critic, bench.LAMBDA if way else 0.)
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(bench, "uso_step", counted)
            parts = timed(lambda mark: step(gated, mark), CPU)
        found = {k: p.grad for k, p in model.named_parameters() if p.grad is not None}
        assert set(found) == {k for k, p in model.named_parameters() if p.requires_grad}   # all trained, none frozen
        assert len(calls) == 1
        return list(parts), found
    finally:
        for p, want in zip(model.parameters(), wanted):
            p.requires_grad_(want).grad = None


def test_the_step_is_that_of_training(tiny):
    """Its parts in order; shut, the gate leaves SFT, bit for bit; nothing but train.uso_step computes the loss."""
    plain, shut = one_step(tiny, None, 0)
    assert plain == ["DiT forward", "DiT backward", "optimizer"]
    none, without = one_step(tiny, ("exact", "expect"), 0)
    assert none == plain and all(torch.equal(shut[k], without[k]) for k in shut)
    sft = one_step(tiny, None, 1)[1]
    for way in (("exact", "expect"), ("alone", "full")):
        order, uso = one_step(tiny, way, 1)
        assert order == list(PARTS) and any(not torch.equal(sft[k], uso[k]) for k in sft)


def test_hooks_leave_no_trace(tiny):
    one_step(tiny, ("alone", "expect"), 1)
    for module in (tiny.transformer, tiny.vae.decoder, tiny.vlm.llm):
        assert not module._forward_hooks and not module._forward_pre_hooks


def test_the_gate_and_its_reflections(tiny):
    critic, batch = Critic(tiny, "expect", "alone"), bench.random_batch(tiny, 3)
    bench.set_reflections(batch, critic)
    bench.set_gated(batch, 2)
    assert batch.near.tolist() == [True, True, False] == (batch.t < bench.TAU).tolist() and batch.n_near == 2
    want = critic.baseline(batch.frames, batch.instructions, batch.thoughts)
    assert torch.equal(batch.baseline, want)
    x_t = torch.randn(batch.source.shape)
    assert len(critic_loss(critic, x_t, x_t, batch)[0]) == 2


def test_the_default_is_that_of_training():
    args = train.parse(["--lambda", "0.25"])
    assert (args.decode, args.think) == WAYS[0] and args.tau == bench.TAU and args.lam == bench.LAMBDA


# ---------------------------------------------------------------------------------------------------- the command

def run(monkeypatch, *args):
    """Run the script as the shell does; returns its exit code."""
    monkeypatch.setattr(sys, "argv", ["bench.py", *map(str, args)])
    try:
        runpy.run_path(str(SCRIPT), run_name="__main__")
        return 0
    except SystemExit as end:
        return end.code


def test_the_command(tmp_path, monkeypatch, capsys):
    out, thoughts = tmp_path / "new" / "bench", Critic.thoughts
    monkeypatch.setattr(Critic, "thoughts", lambda *args: thoughts(*args, limit=4))        # random weights never stop
    assert run(monkeypatch, "--random", "--batch", 2, "--repeats", 1, "--threads", 1, "--out", out) == 0
    printed = capsys.readouterr().out
    assert {p.name for p in out.iterdir()} == {"bench.json", "bench.png"}
    assert (out / "bench.png").read_bytes().startswith(b"\x89PNG")
    result = json.loads((out / "bench.json").read_text())
    assert {"command", "date", "device", "batch", "repeats", "weights", "python", "torch", "transformers", "diffusers",
            "load"} < set(result)
    assert result["batch"] == 2 and result["weights"] == "random" and "--random --batch 2" in result["command"]
    steps = result["steps"]
    assert set(steps) == {"SFT", *(f"{d}/{t}" for d in ("exact", "alone") for t in ("expect", "full", "none"))}
    for name, row in steps.items():
        assert len(row["ms_by_gated"]) == 3 and list(row["tau"]) == [str(tau) for tau in TAUS]
        assert row["peak_mib_all_gated"] >= steps["SFT"]["peak_mib_all_gated"] > 0
        assert (row["once_a_sample_ms"] > 0) == (name != "SFT")
        for tau, x in row["tau"].items():
            assert x["lowest"] <= x["ratio"] <= x["highest"]                               # one repeat: all the same
            assert x["ms"] == pytest.approx(expected_cost(row["ms_by_gated"], float(tau), 2))
            assert name == "SFT" or sum(x["parts"].values()) == pytest.approx(x["ms"])     # one repeat: medians add up
            assert (x["parts"]["VLM backward"] > 0) == (name != "SFT")
    assert [x["ratio"] for x in steps["SFT"]["tau"].values()] == pytest.approx([1] * 5)
    flops, goal = result["flops"], result["goal"]
    assert flops["SFT"] < flops["USO, all gated"]
    assert goal["ratio"] == steps["alone/expect"]["tau"]["0.5"]["ratio"] and goal["met"] == (goal["ratio"] <= 2)
    assert re.search(rf"Goal: .* 2.0 at tau 0.5: {goal['ratio']:.2f}, {'met' if goal['met'] else 'NOT met'}\n", printed)
    assert all(f"| {part} " in printed for part in PARTS) and str(out) in printed


@pytest.mark.parametrize("flags, words", [
    (["--batch", "0"], "--batch: must be at least 1.*not 0"),
    (["--repeats", "-1"], "--repeats: must be at least 1.*not -1"),
    (["--threads", "0"], "--threads: must be at least 1.*not 0"),
    (["--threads", "100000"], "--threads 100000: there are"),
    (["--batch", "many"], "argument --batch: must be a whole number, not many"),
    (["--random", "--weights", "w"], "--random and --weights w exclude each other"),
    (["--weights", "no/such/run"], "no/such/run"),
    (["--random", "--out", "file/bench"], "file/bench/bench.json: cannot be written"),
    (["--frobnicate"], "unrecognized arguments: --frobnicate"),
])
def test_bad_flags(flags, words, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    Path("file").write_text("in the way")
    assert run(monkeypatch, *flags) == 2
    error = capsys.readouterr().err
    assert error.count("\n") == 1 and error.startswith("bench.py: ") and re.search(words, error), error
    assert os.listdir() == ["file"]
