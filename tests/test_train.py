"""Training: the losses by hand, resume bit for bit, two ranks against one, the user's own videos, and bad input."""

import csv
import errno
import json
import math
import os
import runpy
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch
import torch.nn as nn
from safetensors.torch import load_file

import data
from tiny import pretrain
import train
from tiny import world
from critic import Critic, load_model
from common.files import BadInput
from data import Latents, batch_indices, world_items
from model import PRESETS, TRAINED, draws
from train import fit, learning_rate

SCRIPT = Path(train.__file__)
TINY = PRESETS["tiny"]


@pytest.fixture(autouse=True)
def one_thread(monkeypatch):
    """Sums depend on the number of threads in their last bits."""
    before = torch.get_num_threads()
    monkeypatch.setattr(os, "sched_getaffinity", lambda pid: {0})
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


@pytest.fixture(scope="module")
def common(tiny_dir, tmp_path_factory) -> list[str]:
    """The flags of all small runs; they share one cache."""
    cache = str(tmp_path_factory.mktemp("cache"))
    return ["--weights", str(tiny_dir), "--cache", cache, "--items", "6", "--batch", "2", "--steps", "4",
            "--lr", "1e-3", "--eval-items", "0"]


def opened(flags):
    """What `main` does before it trains."""
    args = train.parse(flags)
    args.record = train.recognise(args)
    return args


@pytest.fixture(scope="module")
def finetune(common):
    """finetune(out, *flags): train in this process; returns the run folder."""
    def run(out, *flags):
        torch.set_num_threads(1)
        train.finetune(opened([*common, "--out", str(out), *flags]))
        return Path(out)
    return run


@pytest.fixture(scope="module")
def sft(finetune, tmp_path_factory):
    return finetune(tmp_path_factory.mktemp("runs") / "sft", "--objective", "sft")


@pytest.fixture(scope="module")
def uso(finetune, tmp_path_factory):
    """With tau 1 every sample is gated."""
    return finetune(tmp_path_factory.mktemp("runs") / "uso", "--tau", "1")


def weights(run: Path) -> dict[str, bytes]:
    files = sorted((run / "model").rglob("*.safetensors"))
    assert len(files) == 2                               # G and the visual context adapter
    return {str(file.relative_to(run)): file.read_bytes() for file in files}


def read_log(run: Path) -> list[dict[str, float]]:
    return [{k: float(v) for k, v in row.items()} for row in csv.DictReader((run / "log.csv").open())]


def shell(monkeypatch, capfd, *args) -> tuple[int, str, str]:
    """Run the script as the shell does, in this process; returns (exit code, stdout, stderr)."""
    monkeypatch.setattr(sys, "argv", ["train.py", *map(str, args)])
    capfd.readouterr()
    code = 0
    try:
        runpy.run_path(str(SCRIPT), run_name="__main__")
    except SystemExit as stop:
        code = stop.code
    return code, *capfd.readouterr()


# ------------------------------------------------------------------------------------- the pieces of the training

def test_learning_rate_endpoints():
    rates = [learning_rate(step, 100, 2., 10) for step in range(101)]
    assert rates[0] == .2 and rates[9] == 2 and rates[10] == 2                             # warm-up: 1/10, 2/10, ... 1
    assert rates[55] == pytest.approx(2 * .55) and rates[100] == pytest.approx(.2)
    assert all(a < b for a, b in zip(rates[:9], rates[1:10])) and all(a > b for a, b in zip(rates[10:], rates[11:]))
    assert learning_rate(0, 1, 2., 1) == 2 and math.isfinite(learning_rate(1, 1, 2., 1))


def test_draws_depend_on_step_and_seed_alone():
    shape = (2, 1, 3, 3)
    t, noise, u = draws(5, 1, 4, shape, 3.)
    assert t.shape == u.shape == (4,) and noise.shape == (4, *shape)
    torch.rand(7)
    assert all(torch.equal(a, b) for a, b in zip((t, noise, u), draws(5, 1, 4, shape, 3.)))
    for other in (draws(6, 1, 4, shape, 3.), draws(5, 2, 4, shape, 3.)):
        assert not any(torch.equal(a, b) for a, b in zip((t, noise, u), other))
    many = torch.cat([draws(step, 0, 50, shape, 3.)[0] for step in range(400)])
    assert (many < .5).float().mean().item() == pytest.approx(.25, abs=.01)                # the point
    u = torch.cat([draws(step, 0, 50, shape, 3.)[2] for step in range(400)])
    assert (u < .1).float().mean().item() == pytest.approx(.1, abs=.01)


def toy(out, steps=8, loss_at=None, **flags):
    """Six numbers that are drawn towards random goals; returns (numbers, log)."""
    w = nn.Parameter(torch.linspace(-1, 1, 6))

    def pull(step):
        goal = torch.randn(6, generator=torch.Generator().manual_seed(step))
        return (w - goal).pow(2).mean(), {"goal": goal.mean().item()}
    log = fit({"w": w}, (lambda step: loss_at(step, w, pull)) if loss_at else pull, out,
              **{"steps": steps, "lr": .1, "clip": 1., "weight_decay": .01, **flags})
    return w.detach(), log


def test_fit_against_a_loop(tmp_path):
    """AdamW with warm-up, cosine and clipping, by torch's own pieces."""
    w = nn.Parameter(torch.linspace(-1, 1, 6))
    adam = torch.optim.AdamW([w], betas=(.9, .95), weight_decay=.01)
    for step in range(8):
        adam.param_groups[0]["lr"] = .1 if step < 1 else .1 * (.1 + .9 * (1 + math.cos(math.pi * (step - 1) / 7)) / 2)
        adam.zero_grad()
        (w - torch.randn(6, generator=torch.Generator().manual_seed(step))).pow(2).mean().backward()
        nn.utils.clip_grad_norm_([w], .3)
        adam.step()
    got, log = toy(tmp_path, clip=.3)
    assert torch.allclose(got, w, atol=1e-6) and [row["step"] for row in log] == list(range(8))
    assert max(row["grad_norm"] for row in log) > .3                                       # as it was before clipping
    assert [list(row) for row in log] == [["step", "loss", "grad_norm", "goal"]] * 8
    assert read_log(tmp_path)[3] == pytest.approx(log[3])
    assert sorted(p.name for p in tmp_path.iterdir()) == ["curves.png", "log.csv", "state.pt"]


def test_fit_gives_named_matrices_to_muon_and_resumes_both(tmp_path):
    """Against torch's own optimizers, each on its part; and stopped in step 4 and taken up again."""
    goal = lambda step: torch.randn(4, 3, generator=torch.Generator().manual_seed(step))
    fresh = lambda: (nn.Parameter(torch.linspace(-1, 1, 12).view(4, 3)), nn.Parameter(torch.zeros(3)))
    loss = lambda m, b, step: (m + b - goal(step)).pow(2).mean()

    def fitted(out, stop=None):
        m, b = fresh()

        def loss_at(step):
            if step == stop:
                raise KeyboardInterrupt
            return loss(m, b, step), {}
        fit({"b": b, "m": m}, loss_at, out, steps=8, lr=.1, clip=9., weight_decay=.01, muon={"m"})
        return m, b
    m, b = fresh()
    adam = torch.optim.AdamW([b], betas=(.9, .95), weight_decay=.01)
    muon = torch.optim.Muon([m], weight_decay=.01, adjust_lr_fn="match_rms_adamw")
    for step in range(8):
        for optimizer in (adam, muon):
            optimizer.param_groups[0]["lr"] = learning_rate(step, 8, .1, 1)
            optimizer.zero_grad()
        loss(m, b, step).backward()
        adam.step(), muon.step()
    straight = fitted(tmp_path / "straight")
    assert torch.allclose(straight[0], m, atol=1e-6) and torch.allclose(straight[1], b, atol=1e-6)
    assert not torch.allclose(m, fresh()[0], atol=.1)
    with pytest.raises(KeyboardInterrupt):
        fitted(tmp_path / "stopped", stop=4)
    resumed = fitted(tmp_path / "stopped")
    assert all(torch.equal(x, y) for x, y in zip(straight, resumed))


@pytest.mark.parametrize("how", ["nan", "inf", "gradient"])
def test_a_step_that_is_not_finite_is_skipped_and_counted(tmp_path, how, capfd):
    seen = []

    def loss_at(step, w, pull):
        seen.append(w.detach().clone())
        loss, shown = pull(step)
        if step in (3, 5):
            steep = (w - w.detach()).abs().sqrt().sum()  # 0, with an infinite gradient
            loss = {"nan": loss * math.nan, "inf": loss + math.inf, "gradient": loss + steep}[how]
        return loss, shown

    w, log = toy(tmp_path, loss_at=loss_at)
    seen.append(w)
    same = [torch.equal(a, b) for a, b in zip(seen, seen[1:])]
    assert same == [step in (3, 5) for step in range(8)] and w.isfinite().all()
    assert torch.load(tmp_path / "state.pt")["skipped"] == 2 and len(log) == 8
    assert "skipped=2" in capfd.readouterr().err         # shown


# ---------------------------------------------------------------------------------------------------- resume: fit

def interrupted(out, when):
    """Run `toy` until Ctrl-C strikes in step 4 at the moment `when`; True if it was heard."""
    adam, replace = torch.optim.AdamW.step, os.replace
    calls = []

    def loss_at(step, w, pull):
        if step == 4 and when == "loss":
            raise KeyboardInterrupt
        if step == 4 and when == "signal in loss":
            signal.raise_signal(signal.SIGINT)
        return pull(step)

    def optimize(self):
        calls.append(1)
        if len(calls) == 5 and when == "before the update":
            signal.raise_signal(signal.SIGINT)
        adam(self)
        if len(calls) == 5 and when == "after the update":
            signal.raise_signal(signal.SIGINT)

    def rename(*names):
        if len(calls) == 5 and when == "checkpoint":
            calls.append(1)
            signal.raise_signal(signal.SIGINT)
        replace(*names)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(torch.optim.AdamW, "step", optimize)
        patch.setattr(os, "replace", rename)
        with pytest.raises(KeyboardInterrupt):
            toy(out, loss_at=loss_at, save_every=1 if when == "checkpoint" else 100)
    assert (out / "state.pt").exists() and not (out / "log.csv").exists()


@pytest.mark.parametrize("when", ["loss", "signal in loss", "before the update", "after the update", "checkpoint"])
def test_ctrl_c_at_any_moment_changes_nothing(tmp_path, when):
    w, log = toy(tmp_path / "straight")
    handler = signal.getsignal(signal.SIGINT)
    interrupted(tmp_path / "stopped", when)
    assert signal.getsignal(signal.SIGINT) is handler
    assert torch.load(tmp_path / "stopped" / "state.pt")["step"] in (4, 5, 6)
    again, log_again = toy(tmp_path / "stopped")
    assert torch.equal(w, again) and log == log_again
    for name in ("log.csv", "curves.png"):
        assert (tmp_path / "straight" / name).read_bytes() == (tmp_path / "stopped" / name).read_bytes()


def test_skipped_steps_survive_a_stop(tmp_path):
    def loss_at(step, w, pull, stop=False):
        if stop and step == 6:
            raise KeyboardInterrupt
        loss, shown = pull(step)
        return (loss * math.nan if step == 3 else loss), shown

    w, _ = toy(tmp_path / "straight", loss_at=loss_at)
    with pytest.raises(KeyboardInterrupt):
        toy(tmp_path / "stopped", loss_at=lambda *args: loss_at(*args, stop=True))
    again, _ = toy(tmp_path / "stopped", loss_at=loss_at)
    assert torch.equal(w, again) and torch.load(tmp_path / "stopped" / "state.pt")["skipped"] == 1


def test_a_finished_run_is_left_as_it_is(tmp_path):
    w, log = toy(tmp_path)

    def never(*args):
        raise AssertionError("there is nothing left to train")
    again, log_again = toy(tmp_path, loss_at=never)
    assert torch.equal(w, again) and log == log_again


def test_a_full_disk_is_one_line_and_keeps_the_last_checkpoint(tmp_path):
    written, write = [], Path.write_bytes

    def half(path, content):
        written.append(path)
        write(path, content[:len(content) // len(written)])
        if len(written) == 2:
            raise OSError(errno.ENOSPC, "No space left on device")
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(Path, "write_bytes", half)
        with pytest.raises(BadInput, match="state.pt: cannot be written .*No space.*; choose a place that is writable"):
            toy(tmp_path, save_every=4)
    assert [p.name for p in tmp_path.iterdir()] == ["state.pt"]
    assert torch.load(tmp_path / "state.pt")["step"] == 4
    assert torch.equal(toy(tmp_path)[0], toy(tmp_path / "straight")[0])


# --------------------------------------------------------------------------------------- the objectives, by hand

@pytest.fixture(scope="module")
def encoded(tiny_dir, common):
    """(model ready for training, its six encoded triplets)."""
    torch.set_num_threads(1)
    model = load_model(tiny_dir)
    model.freeze()
    return model, Latents(world_items(("rave", "icvg"), "train", 6), model, common[3], progress=False)


def by_hand(model, latents, args, step):
    """The loss of a step, one sample after the other, from the clips themselves."""
    asked = Critic(model, args.think)
    ts, noises, us = draws(step, args.seed, args.batch, TINY.latent_shape, 3.)
    flows, reasons, margins = [], [], []
    for i, t, noise, u in zip(batch_indices(6, args.batch, step, args.seed), ts, noises, us):
        source, target = (clip[None] for clip in latents.items[i].load())
        words = [latents.items[i].instruction]
        z, x0 = model.encode_video(source), model.encode_video(target)
        h, s = model.encode_vlm(source, words), model.encode_text(words)
        if u < args.drop:
            h, s = ([x] for x in model.unconditional())
        x_t = (1 - t) * x0 + t * noise
        v = model.velocity(x_t, t[None], model.context(z, model.bridge(h), s), z)
        flow = (v - (noise - x0)).square().mean()
        if t < args.tau and args.objective != "sft":
            x0_hat = x_t - t * v
            frames = model.vlm.pick(model.decode_video(x0_hat)) if args.decode == "exact" else \
                torch.cat([model.decode_video(x0_hat[:, :, k:k + 1]) for k in range(x0_hat.shape[2])], 1)
            seen = data.from_bytes(data.to_bytes(model.vlm.pick(source)))                  # as the cache keeps them
            said = asked.thoughts(seen, words, seen)
            m0 = asked.margin(seen, seen, words, said)[0].detach()
            m = asked.margin(seen, frames, words, None if args.think == "full" else said)[0]
            margins.append(torch.sigmoid(m.detach()))
            reasons.append(torch.log1p(torch.exp(m0 - m)))
            if args.objective == "rwr":
                flow = flow * 2 / (1 + torch.exp(m0 - m.detach()))
        flows.append(flow)
    loss = torch.stack(flows).mean()
    if args.objective == "uso" and reasons:
        loss = loss + args.lam * torch.stack(reasons).mean()
    return loss, {"reason_loss": torch.stack(reasons).mean().item() if reasons else math.nan,
                  "p_yes": torch.stack(margins).mean().item() if margins else math.nan,
                  "trigger_rate": (ts < args.tau).float().mean().item()}


def a_step(batch, tau, gated, dropped=None, drop=.5):
    """The first step with so many gated and dropped samples."""
    return next(step for step in range(500) for t, _, u in [draws(step, 0, batch, TINY.latent_shape, 3.)]
                if (t < tau).sum() == gated and dropped in (None, (u < drop).sum()))


@pytest.mark.parametrize("objective, think, decode", [
    ("sft", "expect", "alone"), ("rwr", "expect", "alone"), ("uso", "expect", "alone"), ("uso", "expect", "exact"),
    ("uso", "full", "exact"), ("uso", "none", "alone")])
def test_a_step_by_hand(encoded, common, objective, think, decode):
    model, latents = encoded
    args = train.parse([*common, "--batch", "4", "--drop", ".5", "--objective", objective, "--think", think,
                        "--decode", decode])
    step = a_step(4, .5, gated=2, dropped=2)
    leaf = model.transformer.proj_out.weight
    results = []
    for loss, shown in (train.objective(model, latents, args)(step), by_hand(model, latents, args, step)):
        model.zero_grad(set_to_none=True)
        loss.backward()
        results.append((loss.item(), leaf.grad.clone(), shown))
        assert all(p.grad is None for p in model.parameters() if not p.requires_grad)
    (got, got_gradient, shown), (want, want_gradient, want_shown) = results
    assert got == pytest.approx(want, abs=1e-4)
    assert (got_gradient - want_gradient).abs().max() < 1e-3 * want_gradient.abs().max()
    assert {k: shown[k] for k in want_shown} == pytest.approx(want_shown, abs=1e-4, nan_ok=True)


def test_only_gated_samples_cost_anything(encoded, common, monkeypatch):
    model, latents = encoded
    loss_at = train.objective(model, latents, train.parse([*common, "--batch", "4"]))
    shown, margin = [], Critic.margin
    monkeypatch.setattr(Critic, "margin", lambda self, *rest: shown.append(len(rest[0])) or margin(self, *rest))
    monkeypatch.setattr(Critic, "thoughts", lambda *args: pytest.fail("thoughts are kept"))
    for n in (0, 1, 3):
        loss, log = loss_at(a_step(4, .5, n))
        assert log["trigger_rate"] == n / 4 and shown == [n] * bool(n)
        assert math.isnan(log["reason_loss"]) == (n == 0) and loss.isfinite()
        shown.clear()


def test_reflections_are_asked_once_and_kept(encoded, common, tmp_path, monkeypatch):
    model, latents = encoded
    asked = Critic(model)
    first = train.reflections(asked, latents, tmp_path, batch=4)
    for i, (thought, m0) in enumerate(first):
        seen, words = latents[i]["frames"][None], [latents.items[i].instruction]
        assert asked.thoughts(seen, words) == [thought]
        assert asked.baseline(seen, words, [thought]).item() == pytest.approx(m0, abs=1e-4)
    monkeypatch.setattr(Critic, "thoughts", lambda *args: pytest.fail("asked again"))
    assert train.reflections(asked, latents, tmp_path) == first
    with pytest.raises(pytest.fail.Exception):           # another way to think is another file
        train.reflections(Critic(model, "full"), latents, tmp_path)


def test_broken_reflections_are_made_again(encoded, tmp_path):
    model, latents = encoded
    first = train.reflections(Critic(model, "none"), latents, tmp_path)
    file, = tmp_path.iterdir()
    file.write_text(file.read_text()[:-9])
    assert train.reflections(Critic(model, "none"), latents, tmp_path) == first


# ---------------------------------------------------------------------------------------------------- whole runs

def test_what_a_run_leaves(sft, tiny, tiny_dir):
    assert sorted(p.name for p in sft.iterdir()) == ["curves.png", "log.csv", "model", "run.json", "state.pt"]
    log = read_log(sft)
    assert [row["step"] for row in log] == [0, 1, 2, 3]
    assert set(log[0]) == {"step", "loss", "grad_norm", "flow_loss", "reason_loss", "trigger_rate", "p_yes"}
    assert all(row["loss"] == row["flow_loss"] and math.isnan(row["reason_loss"]) for row in log)
    model = load_model(sft)
    for part, p in tiny.named_parameters():              # the frozen parts are the base's
        assert torch.equal(p, model.get_parameter(part)) == (part.split(".")[0] not in TRAINED), part
    saved = torch.load(sft / "state.pt")["params"]
    assert all(torch.equal(p, model.get_parameter(k)) for k, p in saved.items())


def test_lambda_0_is_sft_bit_for_bit(finetune, sft, tmp_path):
    zero = finetune(tmp_path / "zero", "--objective", "uso", "--lambda", "0")
    assert weights(zero) == weights(sft)
    assert (zero / "log.csv").read_bytes() == (sft / "log.csv").read_bytes()


def test_uso_is_not_sft(uso, sft):
    assert all(a != b for a, b in zip(weights(uso).values(), weights(sft).values()))
    logs = read_log(uso), read_log(sft)
    assert logs[0][0]["flow_loss"] == logs[1][0]["flow_loss"]                              # the same first batch
    for row in logs[0]:
        assert row["trigger_rate"] == 1 and 0 < row["p_yes"] < 1
        assert row["loss"] == pytest.approx(row["flow_loss"] + .25 * row["reason_loss"], abs=1e-5)


def test_no_part_of_the_critic_moves(finetune, tiny, tmp_path, monkeypatch):
    models, load = [], train.load_model
    monkeypatch.setattr(train, "load_model", lambda *args: models.append(load(*args)) or models[-1])
    finetune(tmp_path / "run", "--tau", "1", "--steps", "2")
    moved = {k for k, p in models[0].named_parameters() if not torch.equal(p, tiny.get_parameter(k))}
    assert {k.split(".")[0] for k in moved} == set(TRAINED)
    buffers = dict(tiny.named_buffers())
    assert all(torch.equal(b, buffers[k]) for k, b in models[0].named_buffers())


@pytest.mark.parametrize("flags", [("--objective", "rwr", "--tau", "1"), ("--think", "full", "--tau", "1"),
                                   ("--think", "none", "--tau", "1"), ("--decode", "exact", "--tau", "1"),
                                   ("--vlm-frames", "5", "--vlm-pool", "2", "--decode", "exact", "--tau", "1")])
def test_each_way_runs(finetune, uso, sft, tmp_path, flags):
    run = finetune(tmp_path / "run", *flags, "--steps", "1")
    row, = read_log(run)
    assert all(map(math.isfinite, row.values())) and row["trigger_rate"] == 1
    first = read_log(uso)[0]
    if flags[0] == "--objective":
        assert row["p_yes"] == pytest.approx(first["p_yes"], abs=1e-5)
        assert row["loss"] == row["flow_loss"] != first["flow_loss"]
    else:                                                # the VLM's eyes are part of the condition, too
        assert (row["flow_loss"] == pytest.approx(first["flow_loss"], abs=1e-5)) == (flags[0] != "--vlm-frames")
        assert row["reason_loss"] != first["reason_loss"]


def test_what_is_switched_off_is_off(finetune, uso, tiny_dir, tmp_path):
    first = read_log(uso)[0]
    flags = ("--tau", "1", "--steps", "1", "--without")
    row, = read_log(finetune(tmp_path / "baseline", *flags, "baseline"))
    assert row["flow_loss"] == first["flow_loss"] and row["p_yes"] == first["p_yes"]
    assert row["reason_loss"] >= -math.log(first["p_yes"]) - 1e-5                          # Jensen: m_0 = 0
    row, = read_log(finetune(tmp_path / "flow", *flags, "flow"))
    assert row["flow_loss"] == 0 and row["loss"] == pytest.approx(.25 * first["reason_loss"], abs=1e-5)
    run = finetune(tmp_path / "vlm", *flags, "vlm", "position")
    assert json.loads((run / "model" / "model.json").read_text())["without"] == ["vlm", "position"]
    model = load_model(run)
    assert not model.preset.use_vlm and not hasattr(model.visual_context_adapter, "position")


def test_copies_on_the_way(finetune, tiny, uso, tmp_path):
    run = finetune(tmp_path / "run", "--tau", "1", "--keep-every", "2")
    assert sorted(p.name for p in run.glob("model*")) == ["model", "model-0", "model-2"]
    assert weights(run) == weights(uso)                  # and nothing else is changed by it
    start, way, end = (load_model(str(run / name)).get_parameter("transformer.proj_out.weight")
                       for name in ("model-0", "model-2", "model"))
    assert torch.equal(start, tiny.transformer.proj_out.weight) and not torch.equal(start, way) and not torch.equal(way, end)


def stop_at(monkeypatch, step):
    """Ctrl-C while the batch of `step` is put together."""
    def batch(n, size, now, seed):
        if now == step:
            raise KeyboardInterrupt
        return batch_indices(n, size, now, seed)
    monkeypatch.setattr(data, "batch_indices", batch)
    monkeypatch.setattr(train, "batch_indices", batch)


def test_resume_is_bit_for_bit(finetune, uso, tmp_path, monkeypatch):
    run = tmp_path / "run"
    with monkeypatch.context() as patch:
        stop_at(patch, 2)
        with pytest.raises(KeyboardInterrupt):
            finetune(run, "--tau", "1")
    assert sorted(p.name for p in run.iterdir()) == ["run.json", "state.pt"]
    (run / "state.tmp123.pt").write_bytes(b"half a checkpoint")                            # what a kill -9 leaves
    (run / "model.tmp123").mkdir()
    torch.rand(3)                                        # the global generator plays no part
    finetune(run, "--tau", "1")
    assert weights(run) == weights(uso) and (run / "log.csv").read_bytes() == (uso / "log.csv").read_bytes()
    shutil.rmtree(run / "model")                         # killed after the last step
    finetune(run, "--tau", "1")
    assert weights(run) == weights(uso)


def test_ctrl_c_and_resume_from_the_shell(common, uso, tmp_path, monkeypatch, capfd):
    run = tmp_path / "run"
    with monkeypatch.context() as patch:
        stop_at(patch, 1)
        code, _, printed = shell(patch, capfd, *common, "--out", run, "--tau", "1", "--save-every", "3")
    assert code == 130 and "train.py: stopped and saved; the same command goes on from here" in printed
    assert "Traceback" not in printed and torch.load(run / "state.pt")["step"] == 1
    assert shell(monkeypatch, capfd, "--resume", run)[0] == 0
    assert weights(run) == weights(uso) and (run / "log.csv").read_bytes() == (uso / "log.csv").read_bytes()


def test_kill_minus_nine(common, uso, tmp_path, monkeypatch, capfd):
    """A process of its own, killed as soon as it has left a checkpoint."""
    run = tmp_path / "run"
    monkeypatch.undo()
    core = min(os.sched_getaffinity(0))
    process = subprocess.Popen([sys.executable, SCRIPT, *common, "--out", run, "--tau", "1", "--save-every", "1"],
                               preexec_fn=lambda: os.sched_setaffinity(0, {core}), stderr=subprocess.DEVNULL)
    try:
        end = time.time() + 120
        while not (run / "state.pt").exists() and process.poll() is None and time.time() < end:
            time.sleep(.01)
    finally:
        process.kill()
        process.wait()
    assert 1 <= torch.load(run / "state.pt")["step"] <= 4
    torch.set_num_threads(1)
    monkeypatch.setattr(os, "sched_getaffinity", lambda pid: {0})
    assert shell(monkeypatch, capfd, "--resume", run)[0] == 0
    assert weights(run) == weights(uso) and (run / "log.csv").read_bytes() == (uso / "log.csv").read_bytes()


def test_two_ranks_are_one(common, finetune, tmp_path):
    """torchrun on gloo logs what one process logs with the same global batch, and ends with its weights."""
    flags = ["--batch", "4", "--steps", "3", "--drop", ".3", "--tau", ".8"]
    assert any((draws(step, 0, 4, (1,), 3.)[0] < .8)[rank::2].sum() != 1 for step in range(3) for rank in (0, 1))
    one = finetune(tmp_path / "one", *flags)
    launch = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc_per_node", "2", SCRIPT]
    done = subprocess.run([*launch, *common, *flags, "--out", tmp_path / "two"], capture_output=True, text=True,
                          timeout=300, env={**os.environ, "OMP_NUM_THREADS": "1"})
    assert done.returncode == 0, done.stderr[-2000:]
    for a, b in zip(read_log(one), read_log(tmp_path / "two"), strict=True):
        norms = a.pop("grad_norm"), b.pop("grad_norm")
        assert b == pytest.approx(a, rel=1e-5, abs=1e-5, nan_ok=True) and norms[0] == pytest.approx(norms[1], rel=1e-4)
    for part in ("transformer/diffusion_pytorch_model", "visual_context_adapter"):
        a, b = (load_file(tmp_path / name / "model" / f"{part}.safetensors") for name in ("one", "two"))
        far = max((a[k] - b[k]).abs().max().item() for k in a)
        assert far < 3e-3                                # three steps of Adam at 1e-3 can be no farther from the start
        near = torch.cat([(a[k] - b[k]).abs().flatten() for k in a])
        assert near.mean() < 2e-6


def test_scores_before_and_after(finetune, tmp_path, capfd):
    run = finetune(tmp_path / "run", "--eval-items", "2", "--steps", "1", "--objective", "sft")
    line = capfd.readouterr().out.strip().split("\n")[-1]
    record = json.loads((run / "summary.json").read_text())
    assert set(record["before"]) == set(record["after"]) == {"EA", "PC", "GN", "GR", "Overall"}
    assert record["steps"] == 1 and record["objective"] == "sft"
    for k, v in record["before"].items():
        assert 0 <= v <= 10 and f"{k} {v:.2f} -> {record['after'][k]:.2f}" in line
    assert line.startswith("oracle on 2 val samples of RAVE: ") and (run / "samples.png").stat().st_size > 10_000


# ---------------------------------------------------------------------------------------------------- the stages

@pytest.fixture
def small_world(monkeypatch):
    """Few texts for the tokenizer, and no pool of processes for the renderer."""
    phrases = [phrase for rules in world.RULES.values() for rule in rules for phrase in rule.phrases]
    monkeypatch.setattr(world, "all_texts", lambda: phrases)

    def render(indices, what):
        done = [{"clips": pretrain._clips, "lessons": pretrain._lesson, "edits": pretrain._edit}[what](i) for i in indices]
        return torch.stack([torch.as_tensor(x) for x in done]) if what == "clips" else done
    monkeypatch.setattr(pretrain, "render_pool", render)


@pytest.mark.parametrize("seen", ["", "it is done and the rest is kept"])
@pytest.mark.parametrize("think", train.THINK)
def test_what_is_taught_is_what_is_asked(tiny, small_world, monkeypatch, think, seen):
    """Token by token: the same text, cut at another place, can be other tokens."""
    monkeypatch.setattr(tiny.vlm, "tokenizer", pretrain.world_tokenizer())
    width, instruction = TINY.llama["hidden_size"], "a hard frost came"
    source, edited = torch.full((1, 3, width), 1.), torch.full((1, 3, width), 2.)
    thought = "the water turns to ice"
    row = pretrain.verdict_row(think, source[0], edited[0], instruction, thought, seen, 1.)
    verdict, = [k for k, (_, role) in enumerate(row) if role == "verdict"]
    taught, _ = tiny.vlm.join([[part for part, _ in row[:verdict]]])
    asked, join = [], tiny.vlm.join
    monkeypatch.setattr(tiny.vlm, "see", lambda video: video)
    monkeypatch.setattr(tiny.vlm, "join", lambda rows: asked.append(join(rows)[0]) or join(rows))
    said = {"expect": thought, "none": "", "full": f"{thought} . {seen}" if seen else ""}[think]
    Critic(tiny, think).margin(source, edited, [instruction], [said])
    asked = torch.cat(asked, 1)
    assert asked.shape == taught.shape and torch.equal(asked, taught)


def test_stages_follow_each_other(small_world, tmp_path, capfd):
    """Three steps of each. What they are good for only hours can show; here it is that each trains its own part."""
    made, base = {}, None
    for stage, more in (("vae", ["--items", "4"]), ("vlm", ["--items", "8", "--batch", "8", "--draft-items", "2",
                                                            "--draft-steps", "1"]), ("base", ["--items", "8"])):
        args = opened(["--stage", stage, "--steps", "3", "--batch", "2", "--out", str(tmp_path / stage), *more,
                       *(["--weights", base] if base else [])])
        model = pretrain.STAGES[stage](args, fit).eval()
        assert all(math.isfinite(row["loss"]) for row in read_log(args.out))
        base = str(tmp_path / stage / "model")
        model.save_pretrained(base, dtype=torch.float16, parts=("vae",) if stage == "vae" else None)
        vae = Path(base) / "vae" / "diffusion_pytorch_model.safetensors"
        made[stage] = load_file(vae) if stage == "vae" else load_model(base)
    vlm, end = made["vlm"], made["base"]
    moved = {k.split(".")[0] for k, p in end.named_parameters() if not torch.equal(p, vlm.get_parameter(k))}
    assert moved == {*TRAINED, "ar_head", "adapter", "boundary", "text_encoder"}
    assert all(torch.equal(p, made["vae"][k].float()) for k, p in end.vae.named_parameters())
    assert min(end.vae.config.latents_std) > 0 and end.vae.config.latents_std != TINY.vae["latents_std"]
    assert end.sample(torch.zeros(1, TINY.frames, 3, TINY.height, TINY.width), ["wait"], steps=1).isfinite().all()


# --------------------------------------------------------------------------------------------------- your own data

@pytest.fixture
def manifest(tmp_path):
    """Three triplets of small gifs, as a user would write them."""
    lines = []
    for i in range(3):
        t = world.make_triplet(i, "rave", "val")
        data.write_video(tmp_path / f"{i}a.gif", t.source)
        data.write_video(tmp_path / f"{i}b.gif", t.target)
        lines.append({"source_video_path": f"{i}a.gif", "target_video_path": f"{i}b.gif", "instruction": t.instruction,
                      "type": t.type})
    path = tmp_path / "triplets.jsonl"
    path.write_text("".join(json.dumps(line) + "\n" for line in lines))
    return path


def test_own_videos(finetune, manifest, tmp_path, capfd):
    run = finetune(tmp_path / "run", "--data", str(manifest), "--cache", str(tmp_path / "cache"), "--tau", "1",
                   "--steps", "2")
    log = read_log(run)
    assert len(log) == 2 and all(math.isfinite(row["loss"] + row["reason_loss"]) for row in log)
    assert (run / "samples.png").stat().st_size > 10_000
    assert "PSNR to the target on 3 training clips: " in capfd.readouterr().out
    assert len(list((tmp_path / "cache").glob("*.safetensors"))) == 3
    assert len(load_file(next((tmp_path / "cache").glob("*.safetensors")))) == 5


LINES = [("this is no JSON", "is not JSON"),
         ('{"source_video_path": "0a.gif"}', "the field 'target_video_path' is missing"),
         (json.dumps({"source_video_path": "0a.gif", "target_video_path": "none.gif", "instruction": "wait",
                      "type": world.TYPES["icvg"][0]}), "none.gif"),
         (json.dumps({"source_video_path": "0a.gif", "target_video_path": "0b.gif", "instruction": "wait " * 99,
                      "type": world.TYPES["rave"][0]}), "tokens long")]


def test_bad_triplets_are_skipped_counted_and_listed(finetune, manifest, tmp_path, capfd):
    manifest.write_text("".join(line + "\n" for line, _ in LINES) + manifest.read_text())
    run = finetune(tmp_path / "run", "--data", str(manifest), "--skip-bad", "--cache", str(tmp_path / "cache"),
                   "--objective", "sft", "--steps", "1")
    told = [line for line in capfd.readouterr().err.split("\n") if line.startswith("skipped")]
    assert len(told) == 5 and told[-1] == "skipped 4 bad triplets, 3 are left"
    for number, (line, (_, why)) in enumerate(zip(told, LINES), 1):
        assert line.startswith(f"skipped: {manifest}:{number}: ") and why in line
    assert len(read_log(run)) == 1


@pytest.mark.parametrize("number", [0, 1, 3])
def test_a_bad_triplet_is_one_line(common, manifest, tmp_path, monkeypatch, capfd, number):
    with manifest.open("a") as file:
        file.write(LINES[number][0] + "\n")
    refused(monkeypatch, capfd, tmp_path, f"{manifest}:4: ", *common, "--data", manifest, "--out", tmp_path / "new",
            "--cache", tmp_path / "cache")


# ------------------------------------------------------------------------------------------------------ bad input

def refused(monkeypatch, capfd, folder, words, *args):
    """Exit code 2, one line on stderr that has `words` in it, and `folder` as it was."""
    files = lambda: {p: p.read_bytes() if p.is_file() else None for p in folder.rglob("*")}
    before = files()
    code, printed, complaint = shell(monkeypatch, capfd, *args)
    assert code == 2 and printed == "" and words in complaint
    *bars, line = complaint.strip().split("\n")
    assert line.startswith("train.py: ") and len(line) < 1000 and all("%|" in bar for bar in bars)
    assert files() == before


@pytest.mark.parametrize("flags, words", [
    (["--tau", "0"], "--tau"), (["--tau", "1.5"], "--tau"), (["--tau", "nan"], "--tau"), (["--tau", "half"], "--tau"),
    (["--lambda", "-1"], "--lambda"), (["--lambda", "inf"], "--lambda"), (["--objective", "dpo"], "--objective"),
    (["--steps", "0"], "--steps"), (["--batch", "0"], "--batch"), (["--items", "many"], "--items"),
    (["--drop", "2"], "--drop"), (["--wrong", "2"], "--wrong"), (["--lr", "nan"], "--lr"), (["--clip", "0"], "--clip"), (["--seed", "-1"], "--seed"),
    (["--eval-items", "-1"], "--eval-items"), (["--think", "aloud"], "--think"), (["--decode", "none"], "--decode"),
    (["--vlm-frames", "10"], "--vlm-frames 10"), (["--vlm-frames", "5"], "--vlm-frames 5: a clip has 3"),
    (["--vlm-pool", "0"], "--vlm-pool"),
    (["--resume", "nowhere"], "--resume nowhere: no run.json"), (["--resume", "broken"], "broken"),
    (["--out", "broken"], "broken"), (["--out", "file"], "cannot be written"),
    (["--out", "file/run"], "cannot be written"), (["--cache", "file"], "cannot be written"),
    (["--weights", "nowhere"], "cannot load nowhere"), (["--data", "none.jsonl"], "none.jsonl: cannot be read"),
    (["--preset", "wan1.3b"], "not 'wan1.3b': pass --preset tiny")])
def test_bad_flags(common, tmp_path, monkeypatch, capfd, flags, words):
    monkeypatch.chdir(tmp_path)
    Path("broken").mkdir()
    Path("broken/run.json").write_text('{"argv": [')
    Path("file").write_text("no folder")
    refused(monkeypatch, capfd, tmp_path, words, *common, "--out", "new", "--steps", "1", "--objective", "sft", *flags)


def test_the_batch_must_divide_among_ranks(common, tmp_path, monkeypatch, capfd):
    monkeypatch.setattr(data, "WORLD_SIZE", 2)
    refused(monkeypatch, capfd, tmp_path, "--batch 3 does not divide among 2 ranks: pass a multiple of 2",
            *common, "--out", tmp_path / "new", "--batch", "3")


@pytest.mark.parametrize("flags, words", [(["--tau", ".3"], "another --tau (0.5, not 0.3)"),
                                          (["--lambda", "1"], "another --lambda (0.25, not 1.0)"),
                                          (["--objective", "rwr"], "another --objective (sft, not rwr)"),
                                          (["--steps", "9"], "another --steps (1, not 9)"),
                                          (["--weight-decay", ".1"], "another --weight-decay (0.0001, not 0.1)")])
def test_other_settings_in_a_run_folder_are_refused(common, tmp_path, monkeypatch, capfd, flags, words):
    args = [*common, "--out", str(tmp_path / "run"), "--objective", "sft", "--steps", "1"]
    (tmp_path / "run").mkdir()
    (tmp_path / "run" / "run.json").write_text(json.dumps(opened(args).record))
    (tmp_path / "run" / "state.pt").write_bytes(b"three days of work")
    refused(monkeypatch, capfd, tmp_path, words, *args, *flags)


def test_the_same_settings_and_those_that_do_not_matter_go_on(common, tmp_path):
    args = [*common, "--out", str(tmp_path / "run")]
    (tmp_path / "run").mkdir()
    (tmp_path / "run" / "run.json").write_text(json.dumps(opened(args).record))
    for more in ([], ["--save-every", "7"], ["--eval-items", "3"], ["--cache", "elsewhere"]):
        assert opened([*args, *more]).record["settings"] == opened(args).record["settings"]
    again = opened(["--resume", str(tmp_path / "run")])
    assert again.record == opened(args).record and again.out == tmp_path / "run"


def test_from_the_shell(tmp_path):
    """The one error in a process of its own: exit code, no traceback."""
    done = subprocess.run([sys.executable, SCRIPT, "--resume", tmp_path], capture_output=True, text=True)
    assert done.returncode == 2 and done.stdout == ""
    assert done.stderr == f"train.py: --resume {tmp_path}: no run.json there; pass the folder of a run\n"
