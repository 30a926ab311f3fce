"""bench.py: its arithmetic by hand, that its step is train.py's, that the command runs.

Nothing here is timed.
"""

import copy
import json
from functools import partial

import pytest
import torch
from torch.optim.optimizer import register_optimizer_step_pre_hook

import bench
from bench import CRITICS, PARTS, TAUS, expected_cost
from common.measure import peak_memory

CPU = torch.device("cpu")


# ----------------------------------------------------------------------------------- the arithmetic


def test_expected_cost_by_hand():
    assert expected_cost([10, 20], .5, 1) == pytest.approx(12.5)                        # p = 1/4
    assert expected_cost([10, 20, 60], .5, 2) == pytest.approx((9 * 10 + 6 * 20 + 60) / 16)
    assert expected_cost([5.] * 9, .3, 8) == pytest.approx(5)           # the weights add up to 1
    assert expected_cost(list(range(9)), .3, 8) == pytest.approx(8 / 8)         # the mean, B p
    assert expected_cost([1, 2, 3, 9], 1, 3) == pytest.approx(9)        # all are gated


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


def one_step(model, way, gated):
    """(its parts, the gradient by name) of one step of train.py's loop."""
    gradients = []

    def keep(*_):
        gradients.append({k: p.grad.clone() for k, p in model.named_parameters()
                          if p.grad is not None})
    hook = register_optimizer_step_pre_hook(keep)
    try:
        parts = bench.time_steps(model, {"way": way}, size=2, repeats=1)["way"][gated]
    finally:
        hook.remove()
    assert len(parts) == 1 and len(gradients) == 7       # a warm-up, one repeat, and one more
    return list(parts[0]), gradients[3 + gated]


def make_way(model, name, decode="exact", think="expect"):
    way = bench.make_ways(model, 2, [(decode, think)])[name]
    bench.ask_about_sources(model, way)
    return way


@pytest.mark.parametrize("decode, think", [("exact", "expect"), ("alone", "full")])
def test_a_steps_parts_are_heard_in_order(model, decode, think):
    parts, _ = one_step(model, make_way(model, f"{decode}/{think}", decode, think), 1)
    assert parts == list(PARTS[1:])
    for module in (model.transformer, model.vae.decoder, model.vlm.llm):
        assert not module._forward_hooks and not module._forward_pre_hooks


def test_own_edits_begin_with_flow_matching_and_a_rollout(model):
    parts, _ = one_step(model, make_way(model, "own edits"), 1)
    assert parts == ["DiT forward", "rollout", *PARTS[2:]]


def test_shut_the_gate_leaves_sft_bit_for_bit(model):
    parts, sft = one_step(model, make_way(model, "SFT"), 0)
    shut_parts, shut = one_step(model, make_way(model, "exact/expect"), 0)
    assert shut_parts == parts == ["DiT forward", "DiT backward", "optimizer", "the rest"]
    assert sft.keys() == {k for k, p in model.named_parameters() if p.requires_grad}
    assert all(torch.equal(shut[k], sft[k]) for k in sft)


# -------------------------------------------------------------------------------------- the command

def test_the_command(tiny_dir, tmp_path, monkeypatch, capsys):
    """Its files, and that each row of the results adds up; with two of its six critics."""
    monkeypatch.setattr(bench, "measure", partial(bench.measure, critics=CRITICS[:2]))
    bench.main(["--weights", str(tiny_dir), "--batch", "1", "--repeats", "1",
                "--out", str(tmp_path / "new")])
    result, printed = json.loads((tmp_path / "new/bench.json").read_text()), capsys.readouterr().out
    assert (tmp_path / "new/bench.png").read_bytes().startswith(b"\x89PNG")
    assert {"command", "date", "device", "load", "python", "torch", "diffusers"} < set(result)
    assert (result["batch"], result["weights"]) == (1, str(tiny_dir))
    assert all(f"| {part} " in printed for part in PARTS)
    steps = result["steps"]
    assert list(steps) == ["SFT", "alone/expect", "exact/expect", "own edits"]
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
