"""bench.py: its arithmetic by hand, that its step is train.py's, that the command runs.

Nothing here is timed.
"""

import copy
import io
import json
from contextlib import redirect_stdout
from functools import partial

import pytest
import torch
from torch.optim.optimizer import register_optimizer_step_pre_hook

import bench
import train
from bench import PARTS, TAUS, WAYS, Way, expected_cost, trigger_rate
from common.measure import Clock, count_flops, peak_memory
from critic import Critic

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


def test_flops_by_hand():
    with count_flops() as count:
        torch.randn(3, 4) @ torch.randn(4, 5)
    assert count.flops == 2 * 3 * 4 * 5


def test_peak_memory_by_hand():
    for _ in range(2):                                   # what came before does not count
        with peak_memory(CPU) as peak:
            a, b = torch.zeros(2 ** 20), torch.zeros(2 ** 21)           # 4 and 8 MiB
            del a
            c = torch.zeros(2 ** 18)
            del b, c
        assert peak.mib == pytest.approx(12, abs=.1)


# ----------------------------------------------------------------------------------------- the step

@pytest.fixture(scope="module")
def model(tiny):
    """A copy of `tiny`, ready for training."""
    model = copy.deepcopy(tiny)
    model.freeze()
    return model


def one_step(model, gated, decode=None, think=None):
    """(its parts, the gradient by name) of one step of train.py's loop; SFT without a critic."""
    batch, critic = bench.random_batch(model, 2), None
    if think:
        critic = Critic(model, think, decode)
        bench.set_reflections(batch, critic)
    clock, gradients = Clock(CPU), {}

    def keep(*_):
        assert not gradients                             # it is one step
        gradients.update({k: p.grad.clone() for k, p in model.named_parameters()
                          if p.grad is not None})

    def plan():
        with bench.marked(model, clock.mark):
            yield Way(batch, critic).gated(gated)
    hook = register_optimizer_step_pre_hook(keep)
    try:
        bench.run_plan(model, plan(), 1)
    finally:
        hook.remove()
    return list(clock.parts), gradients


@pytest.mark.parametrize("decode, think", [("exact", "expect"), ("alone", "full")])
def test_a_steps_parts_are_heard_in_order(model, decode, think):
    parts, _ = one_step(model, 1, decode, think)
    assert parts == list(PARTS)
    for module in (model.transformer, model.vae.decoder, model.vlm.llm):
        assert not module._forward_hooks and not module._forward_pre_hooks


def test_shut_the_gate_leaves_sft_bit_for_bit(model):
    parts, sft = one_step(model, 0)
    shut_parts, shut = one_step(model, 0, "exact", "expect")
    assert shut_parts == parts == ["DiT forward", "DiT backward", "optimizer", "the rest"]
    assert sft.keys() == {k for k, p in model.named_parameters() if p.requires_grad}
    assert all(torch.equal(shut[k], sft[k]) for k in sft)


def test_the_first_ones_are_gated(tiny):
    batch = bench.random_batch(tiny, 3)
    bench.set_gated(batch, 2)
    assert batch.near.tolist() == [True, True, False] == (batch.t < bench.TAU).tolist()
    assert batch.n_near == 2


def test_the_default_is_that_of_training():
    args = train.parse(["--lambda", "0.25"])
    assert (args.decode, args.think) == WAYS[0]
    assert (args.tau, args.lam) == (bench.TAU, bench.LAMBDA)


# -------------------------------------------------------------------------------------- the command

@pytest.fixture(scope="module")
def written(tiny_dir, tmp_path_factory):
    """(the folder, bench.json, what is printed) of the command, with two of its six ways."""
    out = tmp_path_factory.mktemp("new") / "bench"
    flags = ["--weights", str(tiny_dir), "--batch", "1", "--repeats", "1", "--out", str(out)]
    printed = io.StringIO()
    with pytest.MonkeyPatch.context() as patch, redirect_stdout(printed):
        patch.setattr(bench, "measure", partial(bench.measure, ways=WAYS[:2]))
        bench.main(flags)
    return out, json.loads((out / "bench.json").read_text()), printed.getvalue()


def test_what_the_command_leaves(written, tiny_dir):
    out, result, printed = written
    assert (out / "bench.png").read_bytes().startswith(b"\x89PNG")
    assert {"command", "date", "device", "load", "python", "torch", "diffusers"} < set(result)
    assert (result["batch"], result["weights"]) == (1, str(tiny_dir))
    assert list(result["steps"]) == ["SFT", "alone/expect", "exact/expect"]
    assert all(f"| {part} " in printed for part in PARTS)


def test_a_row_of_the_results_adds_up(written):
    _, result, _ = written
    steps = result["steps"]
    for name, row in steps.items():
        assert row["peak_mib_all_gated"] >= steps["SFT"]["peak_mib_all_gated"] > 0
        assert (row["once_a_sample_ms"] > 0) == (name != "SFT")
        assert list(row["tau"]) == [str(tau) for tau in TAUS]
        for tau, x in row["tau"].items():
            assert x["lowest"] <= x["ratio"] <= x["highest"]            # one repeat: all the same
            assert x["ms"] == pytest.approx(expected_cost(row["ms_by_gated"], float(tau), 1))
            assert sum(x["parts"].values()) == pytest.approx(x["ms"])
            assert (x["parts"]["VLM backward"] > 0) == (name != "SFT")
    assert [x["ratio"] for x in steps["SFT"]["tau"].values()] == pytest.approx([1] * 5)


def test_the_report_says_whether_the_goal_is_met(written):
    _, result, printed = written
    assert result["flops"]["SFT"] < result["flops"]["USO, all gated"]
    ratio = result["steps"]["alone/expect"]["tau"]["0.5"]["ratio"]
    met = "met" if ratio <= 2 else "NOT met"
    assert f"at most 2.0 at tau 0.5: {ratio:.2f}, {met}\n" in printed
