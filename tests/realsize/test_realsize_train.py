"""Training at size, at no size: less memory, ranks, shards, crashes; each is the plain run."""

import math
import multiprocessing
import os
import shutil
import signal
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file
from scipy.stats import kstest

import bench
from common.files import BadInput
from common.jsonl import write_rows
from common.measure import peak_memory
from common.video import write_video
from critic import Critic, decode_frames
from model import load_model
from presets import PRESETS
from realsize import train as size_train
from realsize.train import recompute_activations, sample_timesteps_together
from runs import read_log
from small import SMALL
from train import uso_step

ROOT = Path(size_train.__file__).parents[1]


def seeded(seed=0):
    return torch.Generator().manual_seed(seed)


@pytest.fixture(scope="module")
def common(tiny_dir, tmp_path_factory) -> list[str]:
    """The flags of all small runs; they share one cache."""
    return ["--weights", str(tiny_dir), "--cache", str(tmp_path_factory.mktemp("cache")),
            "--items", "4", "--batch", "4", "--steps", "2", "--lr", "1e-3", "--eval-items", "0",
            "--save-every", "1", "--tau", ".8", "--gate-together", "2", "--think", "none"]


@pytest.fixture(scope="module")
def one(common, tmp_path_factory) -> Path:
    """What a single process makes of `common`; tests must not change it."""
    out = tmp_path_factory.mktemp("runs") / "one"
    size_train.main([*common, "--out", str(out)])
    return out


# ------------------------------------------------------------------------ nobody waits for the gate

def test_together_each_sample_is_drawn_as_ever():
    """Kolmogorov and Smirnov cannot tell t, of any rank, from the formula of t drawn alone."""
    tau, shift, ranks, n = .9, 5., 8, 3000
    t = torch.stack([sample_timesteps_together(ranks, ranks, tau, shift, seeded(k))
                     for k in range(n)])                                     # (n, ranks)
    for rank in {0, ranks - 1}:
        assert kstest(t[:, rank].numpy(), lambda t: t / (shift - (shift - 1) * t)).pvalue > .01
    below = t < tau
    assert (below == below[:, :1]).all()
    p = tau / (shift - (shift - 1) * tau)
    assert below[:, 0].float().mean().item() == pytest.approx(p, abs=3.5 * (p * (1 - p) / n) ** .5)
    within = torch.corrcoef(t[below[:, 0]].T)[0, 1]      # each its own t
    assert abs(within) < 4 / below[:, 0].sum() ** .5


def test_rounding_carries_no_rank_over(monkeypatch):
    """Where the draws are the most extreme there are, all of a row are still on one side."""
    last = 1 - 2 ** -24
    extreme = iter([torch.tensor([0., last]), torch.tensor([0., last, 0., last])])
    monkeypatch.setattr(torch, "rand", lambda n, generator=None: next(extreme))
    t = sample_timesteps_together(4, 2, .7)
    assert (t < .7).tolist() == [True, True, False, False] and (t > 0).all() and (t <= 1).all()


# -------------------------------------------------------------------------------------- less memory

@pytest.fixture(scope="module")
def plain_and_recomputed(tiny_dir):
    models = load_model(tiny_dir), load_model(tiny_dir)
    for model in models:
        model.freeze()
    recompute_activations(models[1])
    return models


@pytest.mark.parametrize("how", ["exact", "alone"])
def test_recomputed_gradients_are_the_plain_ones(plain_and_recomputed, how):
    """Of a USO step with all parts in it."""
    gradients = []
    for model in plain_and_recomputed:
        way = bench.make_ways(model, 2, [(how, "expect")])[f"{how}/expect"]
        way.batch.thoughts = ["it is cold"] * 2
        way.gate(2)
        model.zero_grad()
        uso_step(model, way.critic, way.batch, .25)[0].backward()
        gradients.append({k: p.grad for k, p in model.named_parameters() if p.grad is not None})
    plain, again = gradients
    assert plain.keys() == again.keys() and len(plain) > 50
    largest = max(g.abs().max() for g in plain.values())
    for k, g in plain.items():
        assert torch.allclose(again[k], g, atol=1e-4 * largest), k


@pytest.mark.parametrize("part", ["DiT", "VLM", "VAE"])
def test_recomputing_saves_memory(plain_and_recomputed, part):
    """Most bytes alive at once, forward and backward, in each part."""
    peaks = []
    for model in plain_and_recomputed:
        batch = bench.random_batch(model, 2)
        x, frames = batch.target.requires_grad_(), batch.frames.clone().requires_grad_()
        c = model.context(batch.source, batch.bridged, batch.text).detach()
        parts = {"DiT": lambda: model.velocity(x, batch.t, c, batch.source),
                 "VLM": lambda: Critic(model).margin(batch.frames, frames, batch.instructions,
                                                     ["a", "a"]),
                 "VAE": lambda: decode_frames(model, x)}
        with peak_memory(torch.device("cpu")) as peak:
            parts[part]().sum().backward()
        peaks.append(peak.mib)
    plain, again = peaks
    assert again < .75 * plain


# --------------------------------------------------------------------------------------- many ranks

def test_shards_on_two_ranks_go_on_where_one_was(common, one, tmp_path, monkeypatch):
    """FSDP with all that goes with it: losses, weights and checkpoint are those of one process,
    but for the order of sums; and Adam makes much of small gradients: weights are near."""
    def stop_at_the_second(*step):
        if (tmp_path / "stopped" / "state.pt").exists():
            raise KeyboardInterrupt
        return uso_step(*step)
    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
        patch.setattr(size_train.train, "uso_step", stop_at_the_second)
        size_train.main([*common, "--out", str(tmp_path / "stopped")])
    two = shutil.copytree(tmp_path / "stopped", tmp_path / "two")      # whose lock nobody holds
    launch = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc_per_node",
              "2", "-m", "realsize.train", *common, "--out", two]
    flags = ["--parallel", "fsdp", "--accumulate", "2"]
    done = subprocess.run([*launch, *flags], capture_output=True, text=True, timeout=400, cwd=ROOT,
                          env={**os.environ, "OMP_NUM_THREADS": "1"})
    assert done.returncode == 0, done.stderr[-6000:]
    for x, y in zip(read_log(one), read_log(two), strict=True):
        assert y.pop("grad_norm") == pytest.approx(x.pop("grad_norm"), rel=1e-3)
        assert y == pytest.approx(x, rel=1e-4, abs=1e-5, nan_ok=True)
    state, want = (torch.load(run / "state.pt") for run in (two, one))
    assert state["step"] == 2 and state["params"].keys() == want["params"].keys()
    saved = {f"{file.parent.name}.{k}": v for file in (two / "model").rglob("*.safetensors")
             for k, v in load_file(file).items()}
    far = []
    for k, x in want["params"].items():
        mine = state["params"][k]
        assert type(mine) is torch.Tensor                # and no shard of one
        assert torch.equal(saved[k.replace("visual_context_adapter", "model")], mine)
        far.append((mine - x).abs().flatten())
    assert torch.cat(far).mean() < 1e-3 / 200            # of a learning rate of 1e-3


def test_ranks_that_share_the_vlm_must_ask_together(common, monkeypatch):
    monkeypatch.setattr(size_train, "WORLD_SIZE", 2)
    monkeypatch.setattr(size_train.train, "WORLD_SIZE", 2)
    for flags in (("--gate-together", "3"), ("--think", "full")):
        with pytest.raises(BadInput, match="--parallel fsdp: .* pass --gate-together 2"):
            size_train.parse([*common, "--parallel", "fsdp", *flags])
    size_train.parse([*common, "--parallel", "fsdp"])
    size_train.parse([*common, "--parallel", "fsdp", "--gate-together", "1", "--objective", "sft"])


# ------------------------------------------------------------------------------------------ crashes

# Each run goes on where the one before was killed, before it renamed a file to this name, for the
# first or the second time.
MOMENTS = [
    ("state.pt", 1),                                     # a temporary one is left
    ("state.pt", 2),                                     # after the first of two steps
    ("model", 1),
    ("log.csv", 1),
    ("model", 1),                                        # the one before was renamed to model.old
]


def run_and_kill(moment: tuple[str, int], flags: list[str]):
    """kill -9 of this process, in which a run is at work."""
    renamed = []

    def guarded(rename):
        def guard(old, new):
            renamed.append(Path(new).name)
            if (renamed[-1], renamed.count(renamed[-1])) == moment:
                os.kill(os.getpid(), signal.SIGKILL)
            rename(old, new)
        return guard
    os.rename, os.replace = guarded(os.rename), guarded(os.replace)
    size_train.main(flags)


def test_killed_at_every_moment(common, tmp_path, monkeypatch):
    """In the end nothing but what the run left that nobody killed, to the last bit."""
    monkeypatch.setattr(size_train.train, "start", lambda: torch.set_num_threads(1))
    flags = [*common, "--objective", "sft", "--out"]
    straight, killed = tmp_path / "straight", tmp_path / "killed"
    size_train.main([*flags, str(straight)])
    fork = multiprocessing.get_context("fork")           # it has imported all; no thread but one
    for moment in MOMENTS:
        process = fork.Process(target=run_and_kill, args=(moment, [*flags, str(killed)]))
        process.start()
        process.join(120)
        assert process.exitcode == -signal.SIGKILL, moment
    size_train.main([*flags, str(killed)])
    files = {file.relative_to(straight) for file in straight.rglob("*") if file.is_file()}
    assert {file.relative_to(killed) for file in killed.rglob("*") if file.is_file()} == files
    weights_and_log = [file for file in files if file.suffix in (".safetensors", ".csv")]
    assert len(weights_and_log) == 3
    for file in weights_and_log:
        assert (straight / file).read_bytes() == (killed / file).read_bytes()


# ----------------------------------------------------------------- all of it, as at the real size

def test_the_real_size_in_small(original, tmp_path, monkeypatch, capfd):
    """A model in half precision learns from a manifest by USO, and edits its videos."""
    monkeypatch.setitem(PRESETS, "wan1.3b", replace(SMALL, bf16=True, sample_steps=1))
    weights, out, manifest = tmp_path / "revise", tmp_path / "run", tmp_path / "triplets.jsonl"
    original.save_pretrained(weights)
    shape = SMALL.frames + 2, 3, SMALL.height, SMALL.width
    write_video(tmp_path / "a.gif", torch.rand(shape, generator=seeded()) * 2 - 1)
    write_rows(manifest, [{"source_video_path": "a.gif", "target_video_path": "a.gif",
                           "instruction": text, "type": "Temporal Reasoning"}
                          for text in ("frost", "ice")])
    size_train.main(["--preset", "wan1.3b", "--weights", str(weights), "--data", str(manifest),
                     "--cache", str(tmp_path / "cache"), "--out", str(out), "--batch", "2",
                     "--steps", "1", "--tau", "1", "--accumulate", "2", "--ema", ".5"])
    row, = read_log(out)
    assert all(map(math.isfinite, row.values()))
    assert row["trigger_rate"] == 1 and row["reason_loss"] > 0
    state = torch.load(out / "state.pt")                 # master weights and moments
    assert {x.dtype for x in state["params"].values()} == {torch.float32}
    moments = state["optimizers"][0]["state"].values()
    assert {m["exp_avg"].dtype for m in moments} == {torch.float32}
    printed = capfd.readouterr().out
    assert "2 of 2 lines have videos of more than 5 frames" in printed
    assert "PSNR to the target" in printed
    cached = load_file(next((tmp_path / "cache").glob("*.safetensors")))
    assert cached["bridged"].dtype == torch.bfloat16
    model, base = load_model(out), load_model(weights)
    assert not torch.equal(model.transformer.proj_out.weight, base.transformer.proj_out.weight)
    assert torch.equal(model.vlm.llm.lm_head.weight, base.vlm.llm.lm_head.weight)
