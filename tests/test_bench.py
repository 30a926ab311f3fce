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
from bench import DEFAULT, PARTS, TAUS, count_flops, expected_cost, peak_memory, timed, trigger_rate
from critic import Critic
from common.video import read_pixels

SCRIPT = Path(bench.__file__)
CPU = torch.device("cpu")


@pytest.fixture(autouse=True)
def one_thread():
    """Quick wherever it runs: threads that wait for a busy core cost more than they bring to a tiny model."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


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


def gradients(model, think, gated, decode="exact"):
    """(parts, gradient by name) of one step; think None is SFT."""
    wanted = [p.requires_grad for p in model.parameters()]
    try:
        optimizer = Keep(model.freeze(), lr=0.)
        data = bench.random_data(model, 2)
        critic = Critic(model, think) if think else None
        asked = bench.reflect(critic, data) if think else None
        parts = timed(lambda mark: bench.training_step(model, optimizer, data, critic, decode, asked, gated, mark), CPU)
        found = {k: p.grad for k, p in model.named_parameters() if p.grad is not None}
        assert set(found) == {k for k, p in model.named_parameters() if p.requires_grad}   # all trained, none frozen
        return list(parts), found
    finally:
        for p, want in zip(model.parameters(), wanted):
            p.requires_grad_(want).grad = None


def test_the_step(tiny):
    skip = lambda *words: [part for part in PARTS if not any(word in part for word in words)]
    plain, shut = gradients(tiny, None, 0)
    assert plain == skip("decode", "VLM", "thought")
    none, without = gradients(tiny, "expect", 0)         # a gate that is shut: SFT, bit for bit
    assert none == plain and all(torch.equal(shut[k], without[k]) for k in shut)
    sft = gradients(tiny, None, 1)[1]
    for think, decode, parts in (("expect", "exact", skip("thought")), ("full", "alone", list(PARTS))):
        order, uso = gradients(tiny, think, 1, decode)
        assert order == parts and any(not torch.equal(sft[k], uso[k]) for k in sft)


def test_the_default_is_that_of_training():
    import train
    args = train.parse(["--lambda", "0.25"])
    assert f"{args.decode}/{args.think}" == DEFAULT and args.tau == bench.TAU


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
            assert (x["parts"]["thought"] > 0) == ("full" in name)
            assert (x["parts"]["VLM backward"] > 0) == (name != "SFT")
    assert [x["ratio"] for x in steps["SFT"]["tau"].values()] == pytest.approx([1] * 5)
    flops, goal = result["flops"], result["goal"]
    assert flops["one DiT call"] < flops["SFT"] < flops["USO, all gated"]
    assert goal["ratio"] == steps[DEFAULT]["tau"]["0.5"]["ratio"] and goal["met"] == (goal["ratio"] <= 1.4)
    assert re.search(rf"Goal: .* 1.4 at tau 0.5: {goal['ratio']:.2f}, {'met' if goal['met'] else 'NOT met'}\n", printed)
    assert all(f"| {part} " in printed for part in PARTS) and "GFLOPs" in printed and str(out) in printed


def test_many_clips_into_a_report(tmp_path, monkeypatch, capsys):
    bench.many_clips(tmp_path, 3, kinds=2)
    files = [(tmp_path / f"videos/{k}.mp4") for k in range(3)]
    a, b, c = (read_pixels(file) for file in files)
    assert a.shape == (17, 352, 640, 3) and (a == c).all() and (a != b).any()
    assert len({file.read_bytes() for file in files}) == 3
    make = bench.many_clips
    monkeypatch.setattr(bench, "many_clips", lambda folder, n: make(folder, n, kinds=1))
    bench.main(["--report", "10", "--threads", "1", "--out", str(tmp_path / "out")])
    result = json.loads((tmp_path / "out/report.json").read_text())
    assert result["clips"] == result["scored"] == 10 and result["report_mib"] > 50 and not result["goal"]["met"]
    assert result["report_s"] > 0 < result["report_s_of_a_tenth"]


@pytest.mark.parametrize("flags, words", [
    (["--report", "0"], "--report 0: must be at least 1; 1000 will do"),
    (["--batch", "0"], "--batch 0: must be at least 1"),
    (["--repeats", "-1"], "--repeats -1: must be at least 1"),
    (["--threads", "0"], "--threads 0: must be at least 1"),
    (["--threads", "100000"], "--threads 100000: there are"),
    (["--batch", "many"], "argument --batch: invalid int value: 'many'"),
    (["--random", "--weights", "w"], "--random and --weights w exclude each other"),
    (["--weights", "no/such/run"], "no/such/run"),
    (["--random", "--out", "file/bench"], "--out file/bench: .*is no folder that can be written"),
    (["--frobnicate"], "unrecognized arguments: --frobnicate"),
])
def test_bad_flags(flags, words, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    Path("file").write_text("in the way")
    assert run(monkeypatch, *flags) == 2
    error = capsys.readouterr().err
    assert error.count("\n") == 1 and error.startswith("bench.py: ") and re.search(words, error), error
    assert os.listdir() == ["file"]


# -------------------------------------------------------------------------------------------------------- at size

def test_rollouts_and_groups_against_what_they_are(tiny_dir):
    """The gradient through the last step of a rollout is ReFL's; a policy step is rivals'."""
    from experiments import rivals
    from critic import clean_estimate, load_model, reason_loss
    model = load_model(tiny_dir)
    optimizer, data, critic = Keep(model.freeze(), lr=0.), bench.random_data(model, 1), Critic(model)
    asked, leaf = (["it is cold"], torch.tensor([.5])), model.transformer.proj_out.weight

    def gradient(step, *args, **more):
        model.zero_grad(set_to_none=True)
        step(model, optimizer, data, critic, "alone", asked, *args, **more)
        return leaf.grad.clone()
    one, five = (gradient(bench.rollout_step, last=last, steps=6) for last in (1, 5))
    assert one.abs().max() > 0 and not torch.allclose(one, five, rtol=.1)
    c = model.context(data.source, data.bridged, data.text)
    x, t = data.noise, torch.ones(1)
    with torch.no_grad():
        for k in range(5, 0, -1):
            to = torch.tensor([3 * (k / 6) / (1 + 2 * k / 6)])
            x = x + (to - t).view(-1, 1, 1, 1, 1) * model.velocity(x, t, c, data.source)
            t = to
    x0 = clean_estimate(x, model.velocity(x, t, c, data.source), t)
    model.zero_grad(set_to_none=True)
    frames = bench.decode_frames(model, x0, "alone")
    reason_loss(critic.margin(data.frames, frames, data.instructions, asked[0]), asked[1]).mean().backward()
    assert (one - leaf.grad).abs().max() < 1e-3 * leaf.grad.abs().max() and t.item() == pytest.approx(3 * (1 / 6) / (1 + 2 / 6))
    kept = rivals.GROUP, rivals.STEPS
    assert gradient(bench.policy_step, group=2, steps=3).abs().max() > 0 and (rivals.GROUP, rivals.STEPS) == kept


def test_the_real_size_in_small(monkeypatch):
    """random_model and all of its measurement, as on a GPU, with a small preset under the real one's name."""
    from small import SMALL
    from dataclasses import replace
    from model import PRESETS, TRAINED
    monkeypatch.setitem(PRESETS, "wan1.3b", replace(
        SMALL, bf16=True, context_length=128, llama=SMALL.llama | dict(vocab_size=1024)))
    model = bench.random_model("wan1.3b")
    assert not hasattr(model, "text_encoder") and model.lean
    assert not [k for k, x in (*model.named_parameters(), *model.named_buffers()) if x.is_meta]
    assert {p.dtype for p in model.vlm.parameters()} == {torch.bfloat16}
    assert {p.dtype for name in TRAINED for p in getattr(model, name).parameters()} == {torch.float32}
    thoughts = Critic.thoughts
    monkeypatch.setattr(Critic, "thoughts", lambda *args: thoughts(*args, limit=2))
    result = bench.measure(model, 1, 1, ["exact/expect"], others=True)
    assert result["own"] == "exact/expect" and set(result["steps"]) == {"SFT", "exact/expect"}
    assert len(result["rivals"]) == 3 and all(x["ms"] > 0 and x["in_uso_steps"] > 0 for x in result["rivals"].values())
    assert result["mfu_of_sft"] is None and result["flops"]["SFT"] < result["flops"]["USO, all gated"]
    assert "policy gradient, a group of 24 (measured on 2, scaled)" in bench.report(result | {"batch": 1})


def test_without_a_gpu_it_is_the_tiny_one(tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    args = bench.parse(["--preset", "wan1.3b", "--out", str(tmp_path)])
    assert args.preset == "tiny" and args.random
    assert "there is no GPU for --preset wan1.3b: this is the tiny one" in capsys.readouterr().err
