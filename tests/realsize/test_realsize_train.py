"""Training at size, at no size: less memory, ranks, shards, crashes; each is the plain run."""

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
from safetensors.torch import load_file
from scipy.stats import ks_2samp, kstest

import bench
import common.weights as model_folders
import data
import sample
from common.files import BadInput
from common.measure import peak_memory
from common.run import load_state, save_state
from common.video import count_frames, write_video
from critic import Critic, decode_frames
from data import draws
from model import load_model, sample_timesteps
from presets import PRESETS
from realsize import train as size_train
from realsize.train import bell_weight, recompute_activations, sample_timesteps_together
from small import SMALL
from train import uso_step

TINY = PRESETS["tiny"]
ROOT = Path(size_train.__file__).parents[1]


def seeded(seed=0):
    return torch.Generator().manual_seed(seed)


@pytest.fixture(scope="module")
def common(tiny_dir, tmp_path_factory) -> list[str]:
    """The flags of all small runs; they share one cache."""
    return ["--weights", str(tiny_dir), "--cache", str(tmp_path_factory.mktemp("cache")),
            "--items", "4", "--batch", "4", "--steps", "2", "--lr", "1e-3", "--eval-items", "0",
            "--tau", ".8", "--gate-together", "2", "--think", "none"]


def run(common, out, *flags):
    """Train in this process; returns the run folder."""
    size_train.main([*common, "--out", str(out), *flags])
    return Path(out)


@pytest.fixture(scope="module")
def one(common, tmp_path_factory):
    """What a single process makes of `common`."""
    return run(common, tmp_path_factory.mktemp("runs") / "one")


def read_log(run: Path) -> list[dict[str, float]]:
    rows = csv.DictReader((run / "log.csv").open())
    return [{k: float(v) for k, v in row.items()} for row in rows]


def weights(run: Path) -> dict[str, torch.Tensor]:
    files = (run / "model").rglob("*.safetensors")
    return {f"{file.parent.name}.{k}": v for file in files for k, v in load_file(file).items()}


def same_run(a: Path, b: Path, lr=1e-3):
    """Equal but for the order of sums; Adam makes much of small gradients: weights are near."""
    for x, y in zip(read_log(a), read_log(b), strict=True):
        norms = x.pop("grad_norm"), y.pop("grad_norm")
        assert y == pytest.approx(x, rel=1e-4, abs=1e-5, nan_ok=True)
        assert norms[0] == pytest.approx(norms[1], rel=1e-3)
    x, y = weights(a), weights(b)
    assert x.keys() == y.keys()
    assert torch.cat([(x[k] - y[k]).abs().flatten() for k in x]).mean() < lr / 200


# ------------------------------------------------------------------------ nobody waits for the gate

@pytest.mark.parametrize("tau, shift", [(.5, 3.), (.1, 3.), (.9, 5.)])
@pytest.mark.parametrize("ranks", [1, 8])
def test_together_each_sample_is_drawn_as_ever(tau, shift, ranks):
    """Kolmogorov and Smirnov cannot tell t, of any rank, from t drawn alone, or by its formula."""
    n, p = 3000, tau / (shift - (shift - 1) * tau)
    t = torch.stack([sample_timesteps_together(ranks, ranks, tau, shift, seeded(k))
                     for k in range(n)])                                     # (n, ranks)
    alone = sample_timesteps(20_000, shift, seeded(n))
    for rank in {0, ranks - 1}:
        assert ks_2samp(t[:, rank].numpy(), alone.numpy()).pvalue > .01
        assert kstest(t[:, rank].numpy(), lambda t: t / (shift - (shift - 1) * t)).pvalue > .01
        share = (t[:, rank] < tau).float().mean().item()
        assert share == pytest.approx(p, abs=3.5 * (p * (1 - p) / n) ** .5)
    below = t < tau
    assert (below == below[:, :1]).all() and 0 < below[:, 0].sum() < n
    if ranks > 1:                                        # each its own t
        assert all(len(set(row.tolist())) == ranks for row in t[:100])
        within = torch.corrcoef(t[below[:, 0]].T)[0, 1]
        assert abs(within) < 4 / below[:, 0].sum() ** .5


def test_the_test_can_fail():
    """A coin with a probability a tenth off is told apart."""
    n = 20_000
    t = sample_timesteps_together(n, 1, .5, 3., seeded())
    wrong = torch.where(torch.rand(n, generator=seeded(1)) < .075, t * .3, t)
    assert ks_2samp(wrong.numpy(), sample_timesteps(n, generator=seeded(2)).numpy()).pvalue < .01


def test_rounding_carries_no_rank_over(monkeypatch):
    """Where the draws are the most extreme there are, all of a row are still on one side."""
    last = 1 - 2 ** -24
    extreme = iter([torch.tensor([0., last]), torch.tensor([0., last, 0., last])])
    monkeypatch.setattr(torch, "rand", lambda n, generator=None: next(extreme))
    t = sample_timesteps_together(4, 2, .7)
    assert (t < .7).tolist() == [True, True, False, False] and (t > 0).all() and (t <= 1).all()


def test_rows_of_a_batch_share_a_coin():
    together = partial(sample_timesteps_together, ranks=4, tau=.5)
    below = (draws(3, 0, 16, (1,), together)[0] < .5).view(4, 4)
    assert (below == below[:, :1]).all()
    assert len(sample_timesteps_together(7, 4, .5)) == 7
    for tau in (0, 1.1, float("nan")):
        with pytest.raises(ValueError, match="tau must be in"):
            sample_timesteps_together(4, 2, tau)


# -------------------------------------------------------------------------------------- less memory

@pytest.fixture(scope="module")
def plain_and_recomputed(tiny_dir):
    models = load_model(tiny_dir), load_model(tiny_dir)
    for model in models:
        model.freeze()
    recompute_activations(models[1])
    return models


def a_step(model, how):
    """The gradients of a USO step with all parts in it."""
    batch, critic = bench.random_batch(model, 2), Critic(model, decode=how)
    batch.thoughts = ["it is cold"] * 2
    bench.set_gated(batch, 2)
    model.freeze()
    model.zero_grad()
    loss, _ = uso_step(model, critic, batch, .25)
    loss.backward()
    return {k: p.grad for k, p in model.named_parameters() if p.grad is not None}


@pytest.mark.parametrize("how", ["exact", "alone"])
def test_recomputed_gradients_are_the_plain_ones(plain_and_recomputed, how):
    plain, again = (a_step(model, how) for model in plain_and_recomputed)
    assert plain.keys() == again.keys() and len(plain) > 50
    largest = max(g.abs().max() for g in plain.values())
    for k, g in plain.items():
        assert torch.allclose(again[k], g, atol=1e-4 * largest), k


def test_recomputed_decode_is_the_libraries(plain_and_recomputed):
    """Value and gradient, for each latent frame."""
    results = []
    for model in plain_and_recomputed:
        z = torch.randn(2, *TINY.latent_shape, generator=seeded()).requires_grad_()
        video = model.decode_video(z)
        weight = torch.linspace(-1, 1, video.numel()).view_as(video)
        (video * weight).sum().backward()
        results.append((video.detach(), z.grad))
        assert all(z.grad[:, :, k].abs().max() > 0 for k in range(z.shape[2]))
    (video, gradient), (video_again, gradient_again) = results
    assert torch.allclose(video, video_again, atol=1e-5)
    assert torch.allclose(gradient, gradient_again, atol=1e-4 * gradient.abs().max())


@pytest.mark.parametrize("part", ["DiT", "VLM", "VAE"])
def test_recomputing_saves_memory(plain_and_recomputed, part):
    """Most bytes alive at once, forward and backward, in each part."""
    def work(model):
        batch = bench.random_batch(model, 2)
        x = batch.target.requires_grad_()
        frames = batch.frames.clone().requires_grad_()
        if part == "DiT":
            c = model.context(batch.source, batch.bridged, batch.text).detach()
            t = torch.full((2,), .5)
            return lambda: model.velocity(x, t, c, batch.source).sum().backward()
        if part == "VLM":
            critic = Critic(model)
            return lambda: critic.margin(batch.frames, frames, batch.instructions,
                                         ["a", "a"]).sum().backward()
        return lambda: decode_frames(model, x).sum().backward()
    peaks = []
    for model in plain_and_recomputed:
        step = work(model)
        with peak_memory(torch.device("cpu")) as peak:
            step()
        peaks.append(peak.mib)
    plain, again = peaks
    assert again < .75 * plain


def test_recomputed_in_parts_is_the_plain_run(common, one, tmp_path):
    same_run(one, run(common, tmp_path / "run", "--accumulate", "2", "--recompute"))


# ---------------------------------------------------------------------------------------- the bell

def test_the_bell_by_its_values():
    """1.8 at t = 0.5, 0.27 at 0.05, near 0 at the ends; of mean 1 over the levels of training."""
    t = torch.tensor([.5, .05, 1e-3, 1.])
    assert bell_weight(t).tolist() == pytest.approx([1.798, .276, .004, 0.], abs=2e-3)
    drawn = sample_timesteps(20_000, generator=seeded())
    assert bell_weight(drawn).mean().item() == pytest.approx(1, abs=.02)


def test_the_bell_weighs_each_sample(tiny, monkeypatch):
    """The loss by hand; and with a weight of 1, it is train.uso_step's, self-reflection and all."""
    batch, critic = bench.random_batch(tiny, 2), Critic(tiny)
    bench.set_gated(batch, 1)
    with torch.no_grad():
        loss, log = size_train.bell_step(tiny, critic, batch, 0.)
        t = batch.t.view(-1, 1, 1, 1, 1)
        c = tiny.context(batch.source, batch.bridged, batch.text)
        v = tiny.velocity((1 - t) * batch.target + t * batch.noise, batch.t, c, batch.source)
        errors = (v - (batch.noise - batch.target)).pow(2).flatten(1).mean(1)
        want = (bell_weight(batch.t) * errors).mean().item()
        assert loss.item() == log["flow_loss"] == pytest.approx(want, rel=1e-5)
        monkeypatch.setattr(size_train, "bell_weight", torch.ones_like)
        ours, theirs = (step(tiny, critic, batch, .25)
                        for step in (size_train.bell_step, uso_step))
    assert ours[0].item() == theirs[0].item() and ours[1] == theirs[1]


def test_the_bell_is_another_run(common, one, tmp_path):
    belled = run(common, tmp_path / "run", "--steps", "1", "--flow-weight", "bell")
    assert read_log(belled)[0]["flow_loss"] != read_log(one)[0]["flow_loss"]
    with pytest.raises(BadInput, match="another --flow-weight"):
        run(common, tmp_path / "run", "--steps", "1")


# --------------------------------------------------------------------------------------- many ranks

def ranks(tmp_path, *runs):
    """torchrun on two ranks of gloo: realsize.train for each (flags, step of a Ctrl-C or None)."""
    script = tmp_path / "driver.py"
    runs = [(list(map(str, flags)), stop_at) for flags, stop_at in runs]
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
train.start = train.stop = lambda: None                  # one group for all runs
for flags, stop_at in {runs!r}:
    try:
        size_train.main(flags)
        assert stop_at is None
    except KeyboardInterrupt:
        assert stop_at is not None
""")
    launch = [sys.executable, "-m", "torch.distributed.run", "--standalone",
              "--nproc_per_node", "2", script]
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


def test_shards_on_two_ranks_are_one_run_and_go_on_from_each_other(common, one, tmp_path):
    """FSDP with all that goes with it; stopped on one rank and resumed on two, and back."""
    first, half = tmp_path / "first", tmp_path / "half"
    with pytest.MonkeyPatch.context() as patch:
        stop_at(patch, 0)
        with pytest.raises(KeyboardInterrupt):
            run(common, tmp_path / "stopped")            # on one rank to the end of step 0
    shutil.copytree(tmp_path / "stopped", first)         # of which this process has no lock
    fsdp = ("--parallel", "fsdp", "--recompute", "--accumulate", "2")
    ranks(tmp_path, ([*common, "--out", first, *fsdp], None),            # on two from step 1
          ([*common, "--out", half, "--parallel", "fsdp"], 0))
    same_run(one, first)
    state = torch.load(half / "state.pt")
    assert state["step"] == 1 and all(type(x) is torch.Tensor for x in state["params"].values())
    whole = torch.load(one / "state.pt")["params"]
    assert all(whole[k].shape == v.shape for k, v in state["params"].items())
    same_run(one, run(common, half))                     # on one rank from step 1


def test_ranks_that_share_the_vlm_must_ask_together(common, monkeypatch):
    monkeypatch.setattr(size_train, "WORLD_SIZE", 2)
    monkeypatch.setattr(size_train.train, "WORLD_SIZE", 2)
    for flags in (("--gate-together", "1"), ("--gate-together", "3"), ("--think", "full")):
        with pytest.raises(BadInput, match="--parallel fsdp: .* pass --gate-together 2"):
            size_train.parse([*common, "--parallel", "fsdp", *flags])
    size_train.parse([*common, "--parallel", "fsdp"])
    size_train.parse([*common, "--parallel", "fsdp", "--gate-together", "1", "--objective", "sft"])


# ------------------------------------------------------------------------------------------ crashes

def test_every_flipped_byte_is_seen(tmp_path):
    file = tmp_path / "state.pt"
    save_state(file, {"x": torch.arange(3.)})
    content = file.read_bytes()
    assert torch.equal(torch.load(file)["x"], torch.arange(3.))          # a torch file as any other
    assert content[-64:] == hashlib.sha256(content[:-64]).hexdigest().encode()
    flipped = [content[:k] + bytes([content[k] ^ 64]) + content[k + 1:]
               for k in (0, *range(5, len(content), 29), len(content) - 1)]
    for broken in (*flipped, content[:-1], b""):
        file.write_bytes(broken)
        with pytest.raises(BadInput):
            load_state(file)


# In this order, each run goes on where the one before was killed.
MOMENTS = [
    "step 0",                                            # nothing is there yet
    "half of state.pt",
    "renamed to state.pt",                               # what was left is not cleared away yet
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
        reached("renamed to " + Path(new).name.rstrip("0123456789"))     # of a process
    os.rename = partial(rename, plain=os.rename)
    os.replace = partial(rename, plain=os.replace)

    def write_bytes(file, content, plain=Path.write_bytes):
        if file.suffix == ".pt":
            plain(file, content[:len(content) // 2])
            reached("half of state.pt")
        return plain(file, content)
    Path.write_bytes = write_bytes

    def write_part(*args, plain=model_folders.write_part):
        plain(*args)
        reached("half of the model")
    model_folders.write_part = write_part

    def batch_indices(n, size, step, seed, plain=data.batch_indices):
        reached(f"step {step}")
        return plain(n, size, step, seed)
    data.batch_indices = batch_indices


def run_until(moment, flags, out):
    """In a process of its own."""
    kill_at(moment)
    run(flags, out)


def test_killed_at_every_moment(common, tmp_path):
    """kill -9 of a real run wherever files are half written or renamed, each time resumed: in the
    end nothing but what the run left that nobody killed, to the last bit."""
    flags = [*common, "--objective", "sft", "--save-every", "1"]
    straight, killed = run(flags, tmp_path / "straight"), tmp_path / "killed"
    fork = multiprocessing.get_context("fork")           # it has imported all, and has one thread
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
    for file in weights_and_log:
        assert (straight / file).read_bytes() == (killed / file).read_bytes()


# ----------------------------------------------------------------- all of it, as at the real size

def write_manifest(folder: Path) -> Path:
    lines = []
    for i in range(2):
        shape = SMALL.frames + 2, 3, SMALL.height, SMALL.width
        video = torch.rand(shape, generator=seeded(i)) * 2 - 1
        write_video(folder / f"{i}a.gif", video)
        write_video(folder / f"{i}b.gif", -video)
        lines.append(json.dumps({
            "source_video_path": f"{i}a.gif", "target_video_path": f"{i}b.gif",
            "instruction": "frost", "type": "Temporal Reasoning"}))
    (folder / "triplets.jsonl").write_text("\n".join(lines))
    return folder / "triplets.jsonl"


def test_the_real_size_in_small(original, tmp_path, monkeypatch, capfd):
    """A model in half precision learns from a manifest by USO, is resumed, and edits a video."""
    monkeypatch.setitem(PRESETS, "wan1.3b", replace(SMALL, bf16=True, sample_steps=4))
    original.save_pretrained(tmp_path / "revise")
    flags = ["--preset", "wan1.3b", "--weights", str(tmp_path / "revise"),
             "--data", str(write_manifest(tmp_path)), "--cache", str(tmp_path / "cache"),
             "--batch", "2", "--steps", "3", "--tau", "1", "--accumulate", "2", "--ema", ".5"]
    modes = []
    monkeypatch.setattr(size_train, "recompute_activations",
                        lambda model: modes.append("again") or recompute_activations(model))
    with pytest.MonkeyPatch.context() as patch, pytest.raises(KeyboardInterrupt):
        stop_at(patch, 1)
        run(flags, tmp_path / "run")
    out = run(flags, tmp_path / "run")
    log = read_log(out)
    assert len(log) == 3 and all(math.isfinite(x) for row in log for x in row.values())
    assert all(row["trigger_rate"] == 1 and row["reason_loss"] > 0 for row in log)
    assert len(modes) == 2
    state = torch.load(out / "state.pt")                 # master weights and moments
    assert {x.dtype for x in state["params"].values()} == {torch.float32}
    moments = state["optimizers"][0]["state"].values()
    assert {m["exp_avg"].dtype for m in moments} == {torch.float32}
    printed = capfd.readouterr().out
    assert "2 of 2 triplets have longer videos than the preset; used are frames 0 to 4" in printed
    assert "PSNR to the target" in printed
    cached = load_file(next((tmp_path / "cache").glob("*.safetensors")))
    assert cached["bridged"].dtype == torch.bfloat16
    model, base = load_model(out), load_model(tmp_path / "revise")
    assert not torch.equal(model.transformer.proj_out.weight, base.transformer.proj_out.weight)
    assert torch.equal(model.vlm.llm.lm_head.weight, base.vlm.llm.lm_head.weight)
    sample.main(["--preset", "wan1.3b", "--weights", str(out), "--video", str(tmp_path / "0a.gif"),
                 "--instruction", "frost", "--steps", "1", "--out", str(tmp_path / "edit.gif")])
    assert count_frames(tmp_path / "edit.gif") == SMALL.frames
