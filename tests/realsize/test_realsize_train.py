"""Training at size, at no size: less memory, ranks, shards, crashes. What is the same in another way is the same."""

import csv
import hashlib
import json
import math
import multiprocessing
import os
import shutil
import signal
import subprocess
import sys
from dataclasses import replace
from functools import partial
from pathlib import Path

import pytest
import torch
import torch.nn as nn
from safetensors.torch import load_file
from scipy.stats import ks_2samp, kstest

import bench
import common.weights
import data
import sample
from common.files import BadInput
from common.run import Run, load_state, save_state
from common.video import count_frames, write_video
from critic import Critic, decode_frames
from data import draws
from model import load_model, sample_timesteps
from presets import PRESETS
from realsize import train as size_train
from realsize import weighting
from realsize.gate_together import sample_timesteps_together
from realsize.recompute import recompute_activations
from small import SMALL

TINY = PRESETS["tiny"]
ROOT = Path(size_train.__file__).parents[1]


@pytest.fixture(scope="module")
def common(tiny_dir, tmp_path_factory) -> list[str]:
    """The flags of all small runs; they share one cache."""
    return ["--weights", str(tiny_dir), "--cache", str(tmp_path_factory.mktemp("cache")), "--items", "8",
            "--batch", "4", "--steps", "3", "--lr", "1e-3", "--eval-items", "0", "--tau", ".8",
            "--gate-together", "2"]


def run(common, out, *flags):
    """Train in this process; returns the run folder."""
    size_train.main([*common, "--out", str(out), *flags])
    return Path(out)


@pytest.fixture(scope="module")
def one(common, tmp_path_factory):
    """What a single process makes of `common`."""
    return run(common, tmp_path_factory.mktemp("runs") / "one")


def read_log(run: Path) -> list[dict[str, float]]:
    return [{k: float(v) for k, v in row.items()} for row in csv.DictReader((run / "log.csv").open())]


def weights(run: Path) -> dict[str, torch.Tensor]:
    files = (run / "model").rglob("*.safetensors")
    return {f"{file.parent.name}.{k}": v for file in files for k, v in load_file(file).items()}


def same_run(a: Path, b: Path, lr=1e-3):
    """Equal but for the order of sums; Adam makes much of small gradients, so weights are only near."""
    for x, y in zip(read_log(a), read_log(b), strict=True):
        norms = x.pop("grad_norm"), y.pop("grad_norm")
        assert y == pytest.approx(x, rel=1e-4, abs=1e-5, nan_ok=True)
        assert norms[0] == pytest.approx(norms[1], rel=1e-3)
    x, y = weights(a), weights(b)
    assert x.keys() == y.keys()
    assert torch.cat([(x[k] - y[k]).abs().flatten() for k in x]).mean() < lr / 200


# ------------------------------------------------------------------------------------- nobody waits for the gate

@pytest.mark.parametrize("tau, shift", [(.5, 3.), (.1, 3.), (.9, 3.), (.3, 1.), (.5, 5.)])
@pytest.mark.parametrize("ranks", [1, 8])
def test_together_each_sample_is_drawn_as_ever(tau, shift, ranks):
    """Kolmogorov and Smirnov cannot tell them apart, from each other or from t's own distribution, on any rank."""
    n = 4000
    t = torch.stack([sample_timesteps_together(ranks, ranks, tau, shift, torch.Generator().manual_seed(seed))
                     for seed in range(n)])                                                # (n, ranks)
    alone = sample_timesteps(20_000, shift, torch.Generator().manual_seed(n))
    for rank in {0, ranks - 1}:
        assert ks_2samp(t[:, rank].numpy(), alone.numpy()).pvalue > .01
        assert kstest(t[:, rank].numpy(), lambda t: t / (shift - (shift - 1) * t)).pvalue > .01
        p = tau / (shift - (shift - 1) * tau)
        assert (t[:, rank] < tau).float().mean().item() == pytest.approx(p, abs=3.5 * (p * (1 - p) / n) ** .5)
    below = t < tau
    assert (below == below[:, :1]).all() and 0 < below[:, 0].sum() < n
    if ranks > 1:                                        # each its own t
        assert all(len(set(row.tolist())) == ranks for row in t[:100])
        within = torch.corrcoef(t[below[:, 0]].T)[0, 1]
        assert abs(within) < 4 / below[:, 0].sum() ** .5


def test_the_test_can_fail():
    """A coin with a probability a tenth off is told apart."""
    n = 20_000
    t = sample_timesteps_together(n, 1, .5, 3., torch.Generator().manual_seed(0))
    wrong = torch.where(torch.rand(n, generator=torch.Generator().manual_seed(1)) < .075, t * .3, t)
    assert ks_2samp(wrong.numpy(), sample_timesteps(n, generator=torch.Generator().manual_seed(2)).numpy()).pvalue < .01


def test_rounding_carries_no_rank_over(monkeypatch):
    """Where the draws are the most extreme there are, all of a row are still on one side."""
    extreme = iter([torch.tensor([0., 1 - 2 ** -24]), torch.tensor([0., 1 - 2 ** -24, 0., 1 - 2 ** -24])])
    monkeypatch.setattr(torch, "rand", lambda n, generator=None: next(extreme))
    t = sample_timesteps_together(4, 2, .7)
    assert (t < .7).tolist() == [True, True, False, False] and (t > 0).all() and (t <= 1).all()


def test_rows_share_a_coin_and_draws_are_as_before():
    together = partial(sample_timesteps_together, ranks=4, tau=.5)
    a, b = draws(3, 0, 16, (1,)), draws(3, 0, 16, (1,), together)
    assert torch.equal(a[0], sample_timesteps(16, 3., torch.Generator().manual_seed(3)))   # without tau nothing changes
    below = (b[0] < .5).view(4, 4)
    assert (below == below[:, :1]).all()
    assert len({tuple((draws(s, 0, 16, (1,), together)[0] < .5)[::4].tolist()) for s in range(40)}) > 5
    assert len(sample_timesteps_together(7, 4, .5)) == 7
    for tau in (0, 1.1, float("nan")):
        with pytest.raises(ValueError, match="tau must be in"):
            sample_timesteps_together(4, 2, tau)


# ------------------------------------------------------------------------------------- less memory

@pytest.fixture(scope="module")
def plain_and_recomputed(tiny_dir):
    models = load_model(tiny_dir), load_model(tiny_dir)
    for model in models:
        model.freeze()
    recompute_activations(models[1])
    return models


def a_step(model, how="exact"):
    """The gradients of a USO step with all parts in it."""
    batch, critic = bench.random_batch(model, 2), Critic(model, decode=how)
    batch.thoughts = ["it is cold"] * 2
    bench.set_gated(batch, 2)
    optimizer = torch.optim.SGD(model.freeze(), lr=0.)
    bench.training_step(model, optimizer, batch, critic, .25)
    return {k: p.grad for k, p in model.named_parameters() if p.grad is not None}


@pytest.mark.parametrize("how", ["exact", "alone"])
def test_recomputed_gradients_are_the_plain_ones(plain_and_recomputed, how):
    plain, again = (a_step(model, how) for model in plain_and_recomputed)
    assert plain.keys() == again.keys() and len(plain) > 50
    for k, g in plain.items():
        assert torch.allclose(again[k], g, atol=1e-4 * max(p.abs().max() for p in plain.values())), k


def test_recomputed_decode_is_the_libraries(plain_and_recomputed):
    """Value and gradient, for each latent frame; and where no gradient is asked for, it is the library's own."""
    results = []
    for model in plain_and_recomputed:
        z = torch.randn(2, *TINY.latent_shape, generator=torch.Generator().manual_seed(0)).requires_grad_()
        video = model.decode_video(z)
        weight = torch.linspace(-1, 1, video.numel()).view_as(video)
        (video * weight).sum().backward()
        results.append((video.detach(), z.grad))
        assert all(z.grad[:, :, k].abs().max() > 0 for k in range(z.shape[2]))
    assert torch.allclose(results[0][0], results[1][0], atol=1e-5)
    assert torch.allclose(results[0][1], results[1][1], atol=1e-4 * results[0][1].abs().max())


@pytest.mark.parametrize("part", ["DiT", "VLM", "VAE"])
def test_recomputing_saves_memory(plain_and_recomputed, part):
    """Most bytes alive at once, forward and backward, in each part."""
    def work(model):
        batch = bench.random_batch(model, 2)
        x = batch.target.requires_grad_()
        if part == "DiT":
            c = model.context(batch.source, batch.bridged, batch.text).detach()
            return lambda: model.velocity(x, torch.full((2,), .5), c, batch.source).sum().backward()
        if part == "VLM":
            frames = batch.frames.clone().requires_grad_()
            return lambda: Critic(model).margin(
                batch.frames, frames, batch.instructions, ["a", "a"]).sum().backward()
        return lambda: decode_frames(model, x).sum().backward()
    plain, again = (bench.peak_memory(work(model), torch.device("cpu")) for model in plain_and_recomputed)
    assert again < .75 * plain


# ----------------------------------------------------------------------------- one loop, other ways

def test_parts_of_a_batch_are_the_batch(common, one, tmp_path):
    same_run(one, run(common, tmp_path / "run", "--accumulate", "2"))


def test_recomputed_run_is_the_plain_run(common, one, tmp_path):
    same_run(one, run(common, tmp_path / "run", "--recompute"))


def test_the_bell_by_its_values():
    """1.8 at t = 0.5, 0.27 at 0.05, near 0 at the ends; of mean 1 over the noise levels of training."""
    t = torch.tensor([.5, .05, 1e-3, 1.])
    assert weighting.bell_weight(t).tolist() == pytest.approx([1.798, .276, .004, 0.], abs=2e-3)
    drawn = sample_timesteps(20_000, generator=torch.Generator().manual_seed(0))
    assert weighting.bell_weight(drawn).mean().item() == pytest.approx(1, abs=.02)


def test_the_bell_weighs_each_sample(tiny, monkeypatch):
    """The loss by hand; and with a weight of 1, it is train.uso_step's, self-reflection and all."""
    batch, critic = bench.random_batch(tiny, 2), Critic(tiny)
    bench.set_gated(batch, 1)
    with torch.no_grad():
        loss, log = weighting.bell_step(tiny, critic, batch, 0.)
        t = batch.t.view(-1, 1, 1, 1, 1)
        x_t = (1 - t) * batch.target + t * batch.noise
        v = tiny.velocity(x_t, batch.t, tiny.context(batch.source, batch.bridged, batch.text), batch.source)
        errors = (v - (batch.noise - batch.target)).pow(2).flatten(1).mean(1)
        assert loss.item() == pytest.approx((weighting.bell_weight(batch.t) * errors).mean().item(), rel=1e-5)
        monkeypatch.setattr(weighting, "bell_weight", torch.ones_like)
        ours, theirs = (step(tiny, critic, batch, .25) for step in (weighting.bell_step, bench.uso_step))
    assert ours[0].item() == theirs[0].item() and ours[1] == theirs[1]


def test_the_bell_is_another_run(common, one, tmp_path):
    belled = run(common, tmp_path / "run", "--flow-weight", "bell")
    assert [row["flow_loss"] for row in read_log(belled)] != [row["flow_loss"] for row in read_log(one)]
    with pytest.raises(BadInput, match="another --flow-weight"):
        run(common, tmp_path / "run")


# ---------------------------------------------------------------------------------------- many ranks

def ranks(tmp_path, *runs):
    """torchrun on two ranks of gloo: realsize.train's main for each (flags, the step of a Ctrl-C or None)."""
    script = tmp_path / "driver.py"
    script.write_text(f"""
import signal, sys
sys.path.insert(0, {str(ROOT)!r})
import data, train
from realsize import train as size_train
batch, stop_at = data.batch_indices, None
def stopping(n, size, step, seed):
    if step == stop_at:
        signal.raise_signal(signal.SIGINT)
    return batch(n, size, step, seed)
data.batch_indices = stopping
train.start()
train.start = train.stop = lambda: None                              # one group for all runs
for flags, stop_at in {[(list(map(str, flags)), stop_at) for flags, stop_at in runs]!r}:
    try:
        size_train.main(flags)
        assert stop_at is None
    except KeyboardInterrupt:
        assert stop_at is not None
""")
    launch = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc_per_node", "2", script]
    done = subprocess.run(launch, capture_output=True, text=True, timeout=400,
                          env={**os.environ, "OMP_NUM_THREADS": "1"})
    assert done.returncode == 0, done.stderr[-6000:]


def stop_at(patch, number):
    """Ctrl-C in the middle of a step."""
    batch = data.batch_indices

    def stopping(n, size, step, seed):
        if step == number:
            signal.raise_signal(signal.SIGINT)
        return batch(n, size, step, seed)
    patch.setattr(data, "batch_indices", stopping)


def test_two_ranks_and_shards_are_one_and_go_on_from_each_other(common, one, tmp_path):
    """DDP, and FSDP with all that goes with it; stopped on two ranks and resumed on one, and back."""
    first, half = tmp_path / "first", tmp_path / "half"
    with pytest.MonkeyPatch.context() as patch:
        stop_at(patch, 1)
        with pytest.raises(KeyboardInterrupt):
            run(common, tmp_path / "stopped")            # on one rank to the end of step 1
    shutil.copytree(tmp_path / "stopped", first)         # of which this process has no lock
    fsdp = ("--parallel", "fsdp")
    ranks(tmp_path, ([*common, "--out", tmp_path / "ddp"], None),
          ([*common, "--out", tmp_path / "all", *fsdp, "--recompute", "--accumulate", "2"], None),
          ([*common, "--out", first, *fsdp], None),      # on two from step 2
          ([*common, "--out", half, *fsdp], 1))
    for name in ("ddp", "all", "first"):
        same_run(one, tmp_path / name)
    state = torch.load(half / "state.pt")
    assert state["step"] == 2 and all(type(x) is torch.Tensor for x in state["params"].values())
    shapes = lambda run: {k: v.shape for k, v in torch.load(run / "state.pt")["params"].items()}
    assert shapes(half) == shapes(one)
    same_run(one, run(common, half))                     # on one rank from step 2


def test_ranks_that_share_the_vlm_must_ask_together(common, monkeypatch):
    monkeypatch.setattr(size_train, "WORLD_SIZE", 2)
    monkeypatch.setattr(size_train.train, "WORLD_SIZE", 2)
    for flags in (("--gate-together", "1"), ("--gate-together", "3"), ("--think", "full")):
        with pytest.raises(BadInput, match="--parallel fsdp: .* pass --gate-together 2"):
            size_train.parse([*common, "--parallel", "fsdp", *flags])
    size_train.parse([*common, "--parallel", "fsdp"])
    size_train.parse([*common, "--parallel", "fsdp", "--gate-together", "1", "--objective", "sft"])
    with pytest.raises(BadInput, match="--batch 6 does not divide among 2 ranks in 2 parts: "
                                       "pass a multiple of 4"):
        size_train.parse([*common, "--batch", "6", "--accumulate", "2"])


# ------------------------------------------------------------------------------------------- crashes

def toy(out, steps=8):
    w = nn.Parameter(torch.linspace(-1, 1, 6))
    optimizer = torch.optim.AdamW([w], lr=.1, betas=(.9, .95), weight_decay=.01)
    run = Run(out, {"w": w}, [optimizer], clip=1., save_every=1)
    for step in run.steps(steps):
        pull = torch.randn(6, generator=torch.Generator().manual_seed(step))
        run.backward((w - pull).pow(2).mean(), {})
        run.update()
    return w.detach()


@pytest.mark.parametrize("damage", ["cut", "short", "empty", "first", "middle", "last", "seal"])
def test_a_broken_checkpoint_is_named_and_the_one_before_is_used(tmp_path, capfd, damage):
    want = toy(tmp_path / "straight")
    toy(tmp_path / "run")
    file = tmp_path / "run" / "state.pt"
    whole = file.read_bytes()
    assert load_state(file)["step"] == 8 and torch.load(f"{file}.old")["step"] == 7
    broken = bytearray(whole)
    if damage in ("cut", "short", "empty"):
        broken = whole[:{"cut": len(whole) // 2, "short": -1, "empty": 0}[damage]]
    else:
        broken[{"first": 0, "middle": len(whole) // 2, "last": -1, "seal": -65}[damage]] ^= 1
    file.write_bytes(broken)
    capfd.readouterr()
    assert load_state(file)["step"] == 7
    assert f"{file}: is broken, cut short or changed since it was written" in capfd.readouterr().err
    assert torch.equal(toy(tmp_path / "run"), want)      # the last step once more
    Path(f"{file}.old").write_bytes(broken)
    file.write_bytes(broken)
    with pytest.raises(BadInput, match="state.pt: is broken, and there is no whole one before it"):
        toy(tmp_path / "run")


def test_every_flipped_byte_is_seen(tmp_path):
    file = tmp_path / "state.pt"
    save_state(file, {"x": torch.arange(3.)})
    content = file.read_bytes()
    assert torch.equal(torch.load(file)["x"], torch.arange(3.))                            # a torch file as any other
    assert content[-64:] == hashlib.sha256(content[:-64]).hexdigest().encode()
    for k in range(0, len(content), 7):
        file.write_bytes(content[:k] + bytes([content[k] ^ 64]) + content[k + 1:])
        with pytest.raises(BadInput):
            load_state(file)


# In this order, each run goes on where the one before was killed.
MOMENTS = [
    "step 0",                                            # nothing is there yet
    "half of state.pt",
    "renamed to state.pt",                               # what was left over is not cleared away yet
    "step 1",
    "renamed to state.pt.old",                           # and no state.pt
    "renamed to log.csv",
    "half of the model",
    "renamed to model",
    "renamed to model.old",                              # and no model
]


def kill_at(moment):
    """kill -9 of this process when it comes to `moment`."""
    def reached(name):
        if name == moment:
            os.kill(os.getpid(), signal.SIGKILL)

    def rename(old, new, plain):
        plain(old, new)
        reached("renamed to " + Path(new).name.rstrip("0123456789"))             # of a process
    os.rename, os.replace = partial(rename, plain=os.rename), partial(rename, plain=os.replace)

    def write_bytes(file, content, plain=Path.write_bytes):
        if file.suffix == ".pt":
            plain(file, content[:len(content) // 2])
            reached("half of state.pt")
        return plain(file, content)
    Path.write_bytes = write_bytes

    def write_part(*args, plain=common.weights.write_part):
        plain(*args)
        reached("half of the model")
    common.weights.write_part = write_part

    def batch_indices(n, size, step, seed, plain=data.batch_indices):
        reached(f"step {step}")
        return plain(n, size, step, seed)
    data.batch_indices = batch_indices


def run_until(moment, flags, out):
    """In a process of its own."""
    kill_at(moment)
    run(flags, out)


def test_killed_at_every_moment(common, tmp_path):
    """kill -9 of a real run wherever files are half written or renamed, each time resumed: in the end
    nothing but what the run left that nobody killed, to the last bit."""
    flags = [*common, "--objective", "sft", "--save-every", "1"]
    straight, killed = run(flags, tmp_path / "straight"), tmp_path / "killed"
    fork = multiprocessing.get_context("fork")           # so it has one thread, too, and has imported all
    for moment in MOMENTS:
        process = fork.Process(target=run_until, args=(moment, flags, killed), daemon=True)
        process.start()
        process.join(120)
        assert process.exitcode == -signal.SIGKILL, moment
    run(flags, killed)
    files = {file.relative_to(straight) for file in straight.rglob("*") if file.is_file()}
    assert {file.relative_to(killed) for file in killed.rglob("*") if file.is_file()} == files
    weights_and_log = [file for file in files if file.suffix in (".safetensors", ".csv")]
    assert len(weights_and_log) == 3
    assert all((straight / file).read_bytes() == (killed / file).read_bytes() for file in weights_and_log)


# ------------------------------------------------------------------ all of it, as at the real size

def test_the_real_size_in_small(original, tmp_path, monkeypatch, capfd):
    """A converted model in bfloat16 learns from a manifest by USO, is resumed, and edits a video."""
    monkeypatch.setitem(PRESETS, "wan1.3b", replace(SMALL, bf16=True, sample_steps=4))
    original.save_pretrained(tmp_path / "revise")
    lines = []
    for i in range(2):
        for side in "ab":
            video = torch.rand(SMALL.frames + 2, 3, SMALL.height, SMALL.width, generator=torch.Generator().manual_seed(i)) * 2 - 1
            write_video(tmp_path / f"{i}{side}.gif", video if side == "a" else -video)
        lines.append(json.dumps({"source_video_path": f"{i}a.gif", "target_video_path": f"{i}b.gif", "instruction": "frost",
                                 "type": "Temporal Reasoning"}))
    (tmp_path / "triplets.jsonl").write_text("\n".join(lines))
    flags = ["--preset", "wan1.3b", "--weights", str(tmp_path / "revise"), "--data", str(tmp_path / "triplets.jsonl"),
             "--cache", str(tmp_path / "cache"), "--batch", "2", "--steps", "3", "--tau", "1", "--accumulate", "2", "--ema", ".5"]
    modes = []
    monkeypatch.setattr(size_train, "recompute_activations",
                        lambda model: modes.append("again") or recompute_activations(model))
    with pytest.MonkeyPatch.context() as patch, pytest.raises(KeyboardInterrupt):
        stop_at(patch, 1)
        run(flags, tmp_path / "run")
    out = run(flags, tmp_path / "run")
    log = read_log(out)
    assert len(log) == 3 and all(math.isfinite(x) for row in log for x in row.values()) and len(modes) == 2
    assert all(row["trigger_rate"] == 1 and row["reason_loss"] > 0 for row in log)
    state = torch.load(out / "state.pt")
    assert {x.dtype for x in state["params"].values()} == {torch.float32}                  # master weights and moments
    assert {m["exp_avg"].dtype for m in state["optimizers"][0]["state"].values()} == {torch.float32}
    printed = capfd.readouterr().out
    assert "2 of 2 triplets have longer videos than the preset; used are frames 0 to 4 (2 triplets)\n" in printed
    assert "PSNR to the target" in printed
    file = next((tmp_path / "cache").glob("*.safetensors"))
    assert load_file(file)["bridged"].dtype == torch.bfloat16
    model, base = load_model(out), load_model(tmp_path / "revise")
    assert not torch.equal(model.transformer.proj_out.weight, base.transformer.proj_out.weight)
    assert torch.equal(model.vlm.llm.lm_head.weight, base.vlm.llm.lm_head.weight)
    sample.main(["--preset", "wan1.3b", "--weights", str(out), "--video", str(tmp_path / "0a.gif"), "--instruction", "frost",
                 "--steps", "1", "--out", str(tmp_path / "edit.gif")])
    assert count_frames(tmp_path / "edit.gif") == SMALL.frames
