"""Training at size, at no size: less memory, ranks, shards, crashes. What is the same in another way must be the same."""

import csv
import hashlib
import json
import math
import multiprocessing
import os
import random
import shutil
import subprocess
import sys
import time
from contextlib import suppress
from dataclasses import replace
from pathlib import Path

import pytest
import torch
import torch.nn as nn
from safetensors.torch import load_file
from scipy.stats import ks_2samp, kstest

import bench
import data
import sample
from realsize import scale
import train
from critic import Critic, decode_frames, load_model
from common.files import BadInput
from model import PRESETS, draws, sample_timesteps, sample_timesteps_together
from small import SMALL

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
    return ["--weights", str(tiny_dir), "--cache", str(tmp_path_factory.mktemp("cache")), "--items", "8", "--batch", "4",
            "--steps", "4", "--lr", "1e-3", "--eval-items", "0", "--tau", ".8", "--gate-together", "2"]


def run(common, out, *flags):
    """Train in this process; returns the run folder."""
    torch.set_num_threads(1)
    args = train.parse([*common, "--out", str(out), *flags])
    args.record = train.recognise(args)
    train.finetune(args)
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
        assert y == pytest.approx(x, rel=1e-4, abs=1e-5, nan_ok=True) and norms[0] == pytest.approx(norms[1], rel=1e-3)
    x, y = weights(a), weights(b)
    assert x.keys() == y.keys() and torch.cat([(x[k] - y[k]).abs().flatten() for k in x]).mean() < lr / 200


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
    a, b = draws(3, 0, 16, (1,), 3.), draws(3, 0, 16, (1,), 3., .5, 4)
    assert torch.equal(a[0], sample_timesteps(16, 3., torch.Generator().manual_seed(3)))   # without tau nothing changes
    below = (b[0] < .5).view(4, 4)
    assert (below == below[:, :1]).all()
    assert len({tuple((draws(s, 0, 16, (1,), 3., .5, 4)[0] < .5)[::4].tolist()) for s in range(40)}) > 5
    assert len(sample_timesteps_together(7, 4, .5)) == 7
    for tau in (0, 1.1, float("nan")):
        with pytest.raises(ValueError, match="tau must be in"):
            sample_timesteps_together(4, 2, tau)


# ---------------------------------------------------------------------------------------------------- less memory

@pytest.fixture(scope="module")
def plain_and_lean(tiny_dir):
    models = load_model(tiny_dir), load_model(tiny_dir)
    for model in models:
        model.freeze()
    scale.lean(models[1])
    return models


def a_step(model, how="exact"):
    """A USO step with all parts in it."""
    torch.manual_seed(0)
    data, critic = bench.random_data(model, 2), Critic(model)
    optimizer = torch.optim.SGD(model.freeze(), lr=0.)
    asked = ["it is cold"] * 2, torch.zeros(2)
    bench.training_step(model, optimizer, data, critic, how, asked, 2)
    return {k: p.grad for k, p in model.named_parameters() if p.grad is not None}


@pytest.mark.parametrize("how", ["exact", "alone"])
def test_lean_gradients_are_the_plain_ones(plain_and_lean, how):
    plain, lean = (a_step(model, how) for model in plain_and_lean)
    assert plain.keys() == lean.keys() and len(plain) > 50
    for k, g in plain.items():
        assert torch.allclose(lean[k], g, atol=1e-4 * max(p.abs().max() for p in plain.values())), k


def test_lean_decode_is_the_libraries(plain_and_lean):
    """Value and gradient, for each latent frame; and where no gradient is asked for, it is the library's own."""
    plain, lean = plain_and_lean
    results = []
    for model in (plain, lean):
        z = torch.randn(2, *TINY.latent_shape, generator=torch.Generator().manual_seed(0)).requires_grad_()
        video = model.decode_video(z)
        weight = torch.linspace(-1, 1, video.numel()).view_as(video)
        (video * weight).sum().backward()
        results.append((video.detach(), z.grad))
        assert all(z.grad[:, :, k].abs().max() > 0 for k in range(z.shape[2]))
    assert torch.allclose(results[0][0], results[1][0], atol=1e-5)
    assert torch.allclose(results[0][1], results[1][1], atol=1e-4 * results[0][1].abs().max())


@pytest.mark.parametrize("part", ["DiT", "VLM", "VAE"])
def test_lean_is_lean(plain_and_lean, part):
    """Most bytes alive at once, forward and backward, in each part."""
    def work(model):
        data = bench.random_data(model, 2)
        if part == "DiT":
            x = data.x0.requires_grad_()
            c = model.context(data.source, data.bridged, data.text).detach()
            return lambda: model.velocity(x, torch.full((2,), .5), c, data.source).sum().backward()
        if part == "VLM":
            frames = data.frames.clone().requires_grad_()
            return lambda: Critic(model).margin(data.frames, frames, data.instructions, ["a", "a"]).sum().backward()
        x = data.x0.requires_grad_()
        return lambda: decode_frames(model, x).sum().backward()
    plain, lean = (bench.peak_memory(work(model), torch.device("cpu")) for model in plain_and_lean)
    assert lean < .75 * plain


# -------------------------------------------------------------------------------------------- one loop, other ways

def test_parts_of_a_batch_are_the_batch(common, one, tmp_path):
    same_run(one, run(common, tmp_path / "run", "--accumulate", "2"))


def test_lean_run_is_the_plain_run(common, one, tmp_path):
    same_run(one, run(common, tmp_path / "run", "--lean"))


def test_compiled_run_is_the_plain_run(common, one, tmp_path, monkeypatch):
    compiled = []
    monkeypatch.setattr(nn.Module, "compile", lambda self: compiled.append(self) or setattr(
        self, "_compiled_call_impl", torch.compile(self._call_impl, backend="aot_eager")))
    same_run(one, run(common, tmp_path / "run", "--compile", "--steps", "4"))
    assert len(compiled) == TINY.dit["num_layers"]


def test_ema_by_hand(tmp_path):
    w = nn.Parameter(torch.zeros(3))
    seen, steps = [], 6

    def pull(step):
        seen.append(w.detach().clone())
        return (w - torch.tensor([1., 2., 3.])).pow(2).sum(), {}
    settings = dict(steps=steps, lr=.1, clip=9., weight_decay=0., ema=.7)

    def stop(step):
        if step == 3:
            raise KeyboardInterrupt
        return pull(step)
    with pytest.raises(KeyboardInterrupt):
        train.fit({"w": w}, stop, tmp_path, **settings)
    w.data.fill_(5.)                                     # all comes from the checkpoint
    train.fit({"w": w}, pull, tmp_path, **settings)
    last = torch.load(tmp_path / "state.pt")["params"]["w"]
    want = seen[0]
    for p in (*seen[1:], last):
        want = .7 * want + .3 * p
    assert torch.allclose(w, want, atol=1e-6) and not torch.allclose(w, last, atol=1e-2)


# ----------------------------------------------------------------------------------------------- many ranks

def ranks(tmp_path, *runs, stop_at=None):
    """torchrun on two ranks of gloo: train.py's main with each of `runs`' flags in turn."""
    script = tmp_path / "driver.py"
    script.write_text(f"""
import sys
sys.path.insert(0, {str(Path(train.__file__).parent)!r})
import train
batch = train.batch_indices
def stopping(n, size, step, seed):
    if step == {stop_at!r}:
        raise KeyboardInterrupt
    return batch(n, size, step, seed)
train.batch_indices = stopping
train.start()
train.start = train.dist.destroy_process_group = lambda: None                              # one group for all runs
for flags in {[list(map(str, flags)) for flags in runs]!r}:
    sys.argv = ["train.py", *flags]
    try:
        train.main()
    except KeyboardInterrupt:
        pass
""")
    done = subprocess.run([sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc_per_node", "2", script],
                          capture_output=True, text=True, timeout=120, env={**os.environ, "OMP_NUM_THREADS": "1"})
    assert done.returncode == 0, done.stderr[-6000:]


def test_two_ranks_and_shards_are_one_and_go_on_from_each_other(common, one, tmp_path):
    """DDP, and FSDP with all that goes with it; stopped on two ranks and resumed on one, and back."""
    first, half = tmp_path / "first", tmp_path / "half"
    with pytest.MonkeyPatch.context() as patch:
        batch = train.batch_indices
        patch.setattr(train, "batch_indices", lambda n, size, step, seed: (_ for _ in ()).throw(KeyboardInterrupt)
                      if step == 2 else batch(n, size, step, seed))
        with pytest.raises(KeyboardInterrupt):
            run(common, first)                           # on one rank to step 2
    fsdp = ("--parallel", "fsdp")
    ranks(tmp_path, [*common, "--out", tmp_path / "ddp"], [*common, "--out", tmp_path / "fsdp", *fsdp],
          [*common, "--out", tmp_path / "all", *fsdp, "--lean", "--accumulate", "2"], [*common, "--out", first, *fsdp])
    for name in ("ddp", "fsdp", "all", "first"):
        same_run(one, tmp_path / name)
    ranks(tmp_path, [*common, "--out", half, *fsdp], stop_at=2)
    state = torch.load(half / "state.pt")
    assert state["step"] == 2 and all(isinstance(x, torch.Tensor) and type(x) is torch.Tensor for x in state["params"].values())
    shapes = lambda run: {k: v.shape for k, v in torch.load(run / "state.pt")["params"].items()}
    assert shapes(half) == shapes(one)
    same_run(one, run(common, half))                     # on one rank from step 2


def test_ranks_that_share_the_vlm_must_ask_together(common, monkeypatch):
    monkeypatch.setattr(train, "WORLD_SIZE", 2)
    for flags in (("--gate-together", "1"), ("--gate-together", "3"), ("--think", "full")):
        with pytest.raises(BadInput, match="--parallel fsdp: .* pass --gate-together 2"):
            train.parse([*common, "--parallel", "fsdp", *flags])
    train.parse([*common, "--parallel", "fsdp"])
    with pytest.raises(BadInput, match="--batch 6 does not divide among 2 ranks in 2 parts: pass a multiple of 4"):
        train.parse([*common, "--batch", "6", "--accumulate", "2"])


# --------------------------------------------------------------------------------------------------------- crashes

def toy(out, steps=8, loss_at=None):
    w = nn.Parameter(torch.linspace(-1, 1, 6))

    def pull(step):
        return (w - torch.randn(6, generator=torch.Generator().manual_seed(step))).pow(2).mean(), {}
    train.fit({"w": w}, loss_at or pull, out, steps=steps, lr=.1, clip=1., weight_decay=.01, save_every=1)
    return w.detach()


@pytest.mark.parametrize("damage", ["cut", "short", "empty", "first", "middle", "last", "seal"])
def test_a_broken_checkpoint_is_named_and_the_one_before_is_used(tmp_path, capfd, damage):
    want = toy(tmp_path / "straight")
    toy(tmp_path / "run")
    file = tmp_path / "run" / "state.pt"
    whole = file.read_bytes()
    assert scale.load_state(file)["step"] == 8 and torch.load(f"{file}.old")["step"] == 7
    broken = bytearray(whole)
    if damage in ("cut", "short", "empty"):
        broken = whole[:{"cut": len(whole) // 2, "short": -1, "empty": 0}[damage]]
    else:
        broken[{"first": 0, "middle": len(whole) // 2, "last": -1, "seal": -65}[damage]] ^= 1
    file.write_bytes(broken)
    capfd.readouterr()
    assert scale.load_state(file)["step"] == 7
    assert f"{file}: is broken, cut short or changed since it was written" in capfd.readouterr().err
    assert torch.equal(toy(tmp_path / "run"), want)      # the last step once more
    Path(f"{file}.old").write_bytes(broken)
    file.write_bytes(broken)
    with pytest.raises(BadInput, match="state.pt: is broken, and there is no whole one before it"):
        toy(tmp_path / "run")


def test_every_flipped_byte_is_seen(tmp_path):
    file = tmp_path / "state.pt"
    scale.save_state(file, {"x": torch.arange(3.)})
    content = file.read_bytes()
    assert torch.equal(torch.load(file)["x"], torch.arange(3.))                            # a torch file as any other
    assert content[-64:] == hashlib.sha256(content[:-64]).hexdigest().encode()
    for k in range(0, len(content), 7):
        file.write_bytes(content[:k] + bytes([content[k] ^ 64]) + content[k + 1:])
        with pytest.raises(BadInput):
            scale.load_state(file)


def test_twenty_kills(common, tmp_path):
    """kill -9 at random moments of a real run, each time resumed; the weights are those of the run that nobody killed."""
    flags = [*common, "--objective", "sft", "--batch", "2", "--steps", "40", "--save-every", "1"]
    straight = run(flags, tmp_path / "straight")
    fork = multiprocessing.get_context("forkserver")     # of a process without threads, which has imported all
    fork.set_forkserver_preload(["test_scale"])
    rng, state = random.Random(0), tmp_path / "run" / "state.pt"
    starts, kills = [], 0
    while kills < 20:
        starts.append(steps_of(state))
        if starts[-1] == 40:                             # it has arrived: begin once more
            shutil.rmtree(tmp_path / "run")
            continue
        process = fork.Process(target=run, args=(flags, tmp_path / "run"), daemon=True)
        process.start()
        further, end = starts[-1] + (rng.random() < .8), time.time() + 60                  # or it has hardly begun
        while steps_of(state) < further and process.is_alive() and time.time() < end:
            time.sleep(.02)
        time.sleep(rng.random() * .3)
        kills += process.is_alive()
        process.kill()
        process.join()
    run(flags, tmp_path / "run")
    assert len(set(starts)) > 5                          # it was killed on its way
    files = sorted(p.relative_to(straight) for p in (straight / "model").rglob("*.safetensors"))
    assert len(files) == 2
    assert all((straight / f).read_bytes() == (tmp_path / "run" / f).read_bytes() for f in (*files, "log.csv"))


def steps_of(state: Path) -> int:
    """How far a run is, by its newest checkpoint."""
    for file in (state, Path(f"{state}.old")):
        with suppress(FileNotFoundError):                # between two renames
            return torch.load(file)["step"]
    return 0


# -------------------------------------------------------------------------------------- all of it, as at the real size

def test_the_real_size_in_small(original, tmp_path, monkeypatch, capfd):
    """A converted model in bfloat16 learns from a manifest by USO, is resumed, and edits a video."""
    monkeypatch.setitem(PRESETS, "wan1.3b", replace(SMALL, bf16=True))
    original.save_pretrained(tmp_path / "revise")
    lines = []
    for i in range(4):
        for side in "ab":
            video = torch.rand(SMALL.frames, 3, SMALL.height, SMALL.width, generator=torch.Generator().manual_seed(i)) * 2 - 1
            data.write_video(tmp_path / f"{i}{side}.gif", video if side == "a" else -video)
        lines.append(json.dumps({"source_video_path": f"{i}a.gif", "target_video_path": f"{i}b.gif", "instruction": "frost",
                                 "type": "Temporal Reasoning"}))
    (tmp_path / "triplets.jsonl").write_text("\n".join(lines))
    flags = ["--preset", "wan1.3b", "--weights", str(tmp_path / "revise"), "--data", str(tmp_path / "triplets.jsonl"),
             "--cache", str(tmp_path / "cache"), "--batch", "2", "--steps", "3", "--tau", "1", "--accumulate", "2", "--ema", ".5"]
    modes = []
    monkeypatch.setattr(train, "lean", lambda model: modes.append("lean") or scale.lean(model))
    out = run(flags, tmp_path / "run")
    log = read_log(out)
    assert len(log) == 3 and all(math.isfinite(x) for row in log for x in row.values()) and modes == ["lean"]
    assert all(row["trigger_rate"] == 1 and row["reason_loss"] > 0 for row in log)
    state = torch.load(out / "state.pt")
    assert {x.dtype for x in state["params"].values()} == {torch.float32}                  # master weights and moments
    assert {m["exp_avg"].dtype for m in state["optimizers"][0]["state"].values()} == {torch.float32}
    assert "PSNR to the target" in capfd.readouterr().out
    file = next((tmp_path / "cache").glob("*.safetensors"))
    assert load_file(file)["bridged"].dtype == torch.bfloat16
    model, base = load_model(out), load_model(tmp_path / "revise")
    assert not torch.equal(model.transformer.proj_out.weight, base.transformer.proj_out.weight)
    assert torch.equal(model.vlm.llm.lm_head.weight, base.vlm.llm.lm_head.weight)
    sample.main(["--preset", "wan1.3b", "--weights", str(out), "--video", str(tmp_path / "0a.gif"), "--instruction", "frost",
                 "--steps", "1", "--out", str(tmp_path / "edit.gif")])
    assert data.count_frames(tmp_path / "edit.gif") == SMALL.frames


@pytest.mark.parametrize("flags", [("--accumulate", "2"), ("--ema", ".9"), ("--gate-together", "2"), ("--lean",),
                                   ("--compile",), ("--parallel", "fsdp")])
def test_a_stage_takes_none_of_it(flags):
    with pytest.raises(BadInput, match=f"{flags[0]} is not for --stage vae"):
        train.parse(["--stage", "vae", *flags])
