"""Training: the step by hand, what a run leaves, resume bit for bit, two ranks against one."""

import json
import math
import os
import runpy
import shutil
import signal
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

import data
import train
from by_hand import a_step, by_hand
from common.distributed import mean_log
from common.files import BadInput
from common.run import read_run
from common.video import write_video
from critic import Critic
from data import batch_indices, draws
from model import TRAINED, load_model
from presets import PRESETS
from runs import assert_same, read_log, weights
from tiny import world

TINY = PRESETS["tiny"]


@pytest.fixture(scope="module")
def small(tiny_dir, tmp_path_factory) -> list[str]:
    """The flags of all small runs; they share one cache."""
    return ["--weights", str(tiny_dir), "--cache", str(tmp_path_factory.mktemp("cache")),
            "--items", "6", "--batch", "2", "--steps", "4", "--lr", "1e-3", "--eval-items", "0"]


@pytest.fixture(scope="module")
def finetune(small):
    """finetune(out, *flags): train in this process; returns the run folder."""
    def run(out, *flags):
        train.main([*small, "--out", str(out), *flags])
        return Path(out)
    return run


@pytest.fixture(scope="module")
def sft(finetune, tmp_path_factory):
    return finetune(tmp_path_factory.mktemp("runs") / "sft", "--objective", "sft")


@pytest.fixture(scope="module")
def uso_and_model(finetune, tmp_path_factory):
    """(run folder, the model that was trained); with tau 1 every sample is gated."""
    models, load = [], train.load_model
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(train, "load_model", lambda *args: models.append(load(*args)) or models[-1])
        run = finetune(tmp_path_factory.mktemp("runs") / "uso", "--tau", "1")
    return run, models[0]


@pytest.fixture(scope="module")
def uso(uso_and_model):
    return uso_and_model[0]


def same_runs(a: Path, b: Path) -> bool:
    """Whether two runs are equal bit for bit."""
    return weights(a) == weights(b) and (a / "log.csv").read_bytes() == (b / "log.csv").read_bytes()


# ------------------------------------------------------------------------------ the step, by hand

def compare_with_hand(encoded, args, critic, step, parts):
    """Loss, gradient and log of a step's micro-batches are those of `by_hand`."""
    _, model, latents = encoded
    losses, logs = zip(*(train.uso_step(model, critic, batch, args.lam) for batch in parts))
    want, want_log = by_hand(model, latents, args, step)
    assert_same(model, torch.stack(losses).mean(), want)
    log = {k: mean_log(logs).get(k, math.nan) for k in want_log}
    assert log == pytest.approx(want_log, abs=1e-4, nan_ok=True)


@pytest.mark.parametrize("flags", [
    "", "--objective sft", "--lambda 2 --drop 1", "--think full --decode exact", "--accumulate 2"])
def test_a_step_by_hand(encoded, made, flags):
    """Three of four samples are gated, two have lost their condition."""
    args, critic, batches = made("--drop", ".5", *flags.split())
    step = a_step(4, .5, gated=3, dropped=2)
    compare_with_hand(encoded, args, critic, step, batches.of(step))


def test_a_step_by_hand_on_two_ranks(encoded, made, monkeypatch):
    """Two micro-batches of each rank: the mean of all four is the whole batch's loss."""
    args, critic, batches = made("--accumulate", "2")
    step, parts = a_step(4, .5, gated=3), []
    monkeypatch.setattr(data, "WORLD_SIZE", 2)
    for rank in (0, 1):
        monkeypatch.setattr(data, "RANK", rank)
        parts += batches.of(step)
    assert [(len(batch.t), batch.n_near) for batch in parts] == [(1, 3 / 4)] * 4
    compare_with_hand(encoded, args, critic, step, parts)


@pytest.mark.parametrize("n", [0, 3])
def test_the_critic_is_asked_about_gated_samples_alone(encoded, made, monkeypatch, n):
    _, critic, batches = made()
    shown = []

    def counting(source, *rest):
        shown.append(len(source))
        return Critic.margin(critic, source, *rest)
    monkeypatch.setattr(critic, "margin", counting)
    monkeypatch.setattr(critic, "thoughts", lambda *args: pytest.fail("thoughts are kept"))
    batch, = batches.of(a_step(4, .5, n))
    _, log = train.uso_step(encoded[1], critic, batch, .25)
    assert shown == [n] * (n > 0) and ("reason_loss" in log) == (n > 0)
    assert log["trigger_rate"] == n / 4


# ----------------------------------------------------------------------------------- whole runs

def test_what_is_saved_is_the_base_but_for_the_trained_parts(sft, tiny):
    left = sorted(path.name for path in sft.iterdir())
    assert left == ["curves.png", "lock", "log.csv", "model", "run.json", "state.pt"]
    assert len(weights(sft)) == 2                        # G and the visual context adapter
    model = load_model(sft)
    for name, p in tiny.named_parameters():
        trained = name.partition(".")[0] in TRAINED
        assert torch.equal(p, model.get_parameter(name)) == (not trained)
    saved = torch.load(sft / "state.pt")["params"]
    assert all(torch.equal(p, model.get_parameter(name)) for name, p in saved.items())


def test_a_run_from_a_run(finetune, sft, tmp_path):
    further = finetune(tmp_path / "further", "--objective", "sft", "--weights", str(sft),
                       "--steps", "1")
    before, after = load_model(sft), load_model(further)
    assert torch.equal(before.vae.post_quant_conv.weight, after.vae.post_quant_conv.weight)
    assert weights(further) != weights(sft)


def test_lambda_0_is_sft_bit_for_bit(finetune, sft, tmp_path):
    assert same_runs(finetune(tmp_path / "zero", "--objective", "uso", "--lambda", "0"), sft)


def test_uso_is_not_sft(uso, sft):
    assert all(a != b for a, b in zip(weights(uso).values(), weights(sft).values()))
    log = read_log(uso)
    assert log[0]["flow_loss"] == read_log(sft)[0]["flow_loss"]        # the same first batch
    for row in log:
        assert row["trigger_rate"] == 1 and 0 < row["p_yes"] < 1
        want = row["flow_loss"] + .25 * row["reason_loss"]             # Eq. 5
        assert row["loss"] == pytest.approx(want, abs=1e-5)


def test_no_part_of_the_critic_moves(uso_and_model, tiny):
    _, model = uso_and_model
    moved = {k for k, p in model.named_parameters() if not torch.equal(p, tiny.get_parameter(k))}
    assert {k.split(".")[0] for k in moved} == set(TRAINED)
    buffers = dict(tiny.named_buffers())
    assert all(torch.equal(b, buffers[k]) for k, b in model.named_buffers())


def test_scores_before_and_after(finetune, tmp_path, capfd):
    run = finetune(tmp_path / "run", "--eval-items", "1", "--steps", "1", "--objective", "sft")
    *_, where, line = capfd.readouterr().out.strip().split("\n")
    assert where == f"wrote model/, log.csv and curves.png into {run}"
    assert line.startswith("oracle on 1 val samples of RAVE: ")
    record = json.loads((run / "summary.json").read_text())
    assert set(record["before"]) == set(record["after"]) == {"EA", "PC", "GN", "GR", "Overall"}
    for k, v in record["before"].items():
        assert 0 <= v <= 10 and f"{k} {v:.2f} -> {record['after'][k]:.2f}" in line
    assert (run / "samples.png").stat().st_size > 10_000


# --------------------------------------------------------------------- it goes on after a stop

def stop_at(monkeypatch, step):
    """Ctrl-C while the batch of `step` is put together: that step is done before the run stops."""
    def batch(n, size, now, seed):
        if now == step:
            signal.raise_signal(signal.SIGINT)
        return batch_indices(n, size, now, seed)
    monkeypatch.setattr(data, "batch_indices", batch)


def test_ctrl_c_and_resume_bit_for_bit(small, uso, tmp_path, monkeypatch, capsys):
    run = tmp_path / "run"
    with monkeypatch.context() as patch:
        stop_at(patch, 1)
        patch.setattr(sys, "argv", ["train.py", *small, "--out", str(run), "--tau", "1"])
        with pytest.raises(SystemExit, match="130"):
            runpy.run_path(train.__file__, run_name="__main__")
    stopped = "train.py: stopped and saved; the same command goes on from here"
    assert stopped in capsys.readouterr().err
    assert torch.load(run / "state.pt")["step"] == 2 and not (run / "model").exists()
    torch.rand(3)                                        # the global generator plays no part
    train.main(["--resume", str(run)])
    assert same_runs(run, uso)
    shutil.rmtree(run / "model")                         # killed after the last step
    train.main(["--resume", str(run)])
    assert same_runs(run, uso)


def test_a_resumed_run_may_grow_and_be_moved(finetune, uso, tmp_path):
    run = finetune(tmp_path / "run", "--tau", "1", "--steps", "2").rename(tmp_path / "moved")
    train.main(["--resume", str(run), "--steps", "4"])
    assert len(read_log(run)) == 4 and read_run(run)["settings"]["steps"] == 4
    assert read_log(run)[:2] == read_log(uso)[:2] and not (tmp_path / "run").exists()


def test_two_ranks_are_one(small, finetune, tmp_path):
    """torchrun on gloo logs what one process logs with the same global batch, and ends with its
    weights."""
    flags = ["--batch", "4", "--steps", "2", "--drop", ".3", "--tau", ".7"]
    near = torch.stack([draws(step, 0, 4, (1,))[0] < .7 for step in range(2)])
    assert (near[:, ::2].sum(1) != near[:, 1::2].sum(1)).any()          # one rank has more
    one, two = finetune(tmp_path / "one", *flags), tmp_path / "two"
    launch = [sys.executable, "-m", "torch.distributed.run", "--standalone",
              "--nproc_per_node", "2", train.__file__]
    done = subprocess.run([*launch, *small, *flags, "--out", two], capture_output=True, text=True,
                          timeout=600, env={**os.environ, "OMP_NUM_THREADS": "1"})
    assert done.returncode == 0, done.stderr[-2000:]
    for a, b in zip(read_log(one), read_log(two), strict=True):
        assert a.pop("grad_norm") == pytest.approx(b.pop("grad_norm"), rel=1e-4)
        assert b == pytest.approx(a, rel=1e-5, abs=1e-5, nan_ok=True)
    for part in ("transformer/diffusion_pytorch_model", "visual_context_adapter"):
        a, b = (load_file(run / "model" / f"{part}.safetensors") for run in (one, two))
        apart = torch.cat([(a[k] - b[k]).abs().flatten() for k in a])
        assert apart.max() < 2e-3                        # two steps of Adam at 1e-3, at most
        assert apart.mean() < 2e-6


# -------------------------------------------------------------------------------- your own data

@pytest.fixture
def manifest(tmp_path):
    """Two triplets of small gifs, as a user would write them, between two that cannot be used."""
    lines = ["this is no JSON"]
    for i in range(2):
        t = world.make_triplet(i, "rave", "val")
        dawn = torch.linspace(0, .2, TINY.frames).view(-1, 1, 1, 1)  # equal frames are kept once
        write_video(tmp_path / f"{i}a.gif", t.source + dawn)
        write_video(tmp_path / f"{i}b.gif", t.target + dawn)
        record = {"source_video_path": f"{i}a.gif", "target_video_path": f"{i}b.gif",
                  "instruction": t.instruction, "type": t.type}
        lines.append(json.dumps(record))
    lines.append(json.dumps(record | {"instruction": "wait " * 99}))
    path = tmp_path / "triplets.jsonl"
    path.write_text("\n".join(lines))
    return path


def test_own_videos(finetune, manifest, tmp_path, capfd):
    """Bad triplets are listed and counted; the others are trained with."""
    run = finetune(tmp_path / "run", "--data", str(manifest), "--skip-bad", "--steps", "1",
                   "--cache", str(tmp_path / "cache"), "--tau", "1")
    printed = capfd.readouterr()
    assert f"skipped: {manifest}:1: is not JSON" in printed.err
    assert f"skipped: {manifest}:4: an instruction is" in printed.err
    assert "skipped 2 bad lines, 2 are left" in printed.err
    row, = read_log(run)
    assert math.isfinite(row["loss"] + row["reason_loss"])
    record = json.loads((run / "summary.json").read_text())
    psnr = f"PSNR {record['before']['PSNR']:.2f} -> {record['after']['PSNR']:.2f}"
    assert f"PSNR to the target, in dB, on 2 training clips: {psnr}" in printed.out
    assert (run / "samples.png").stat().st_size > 10_000


# ------------------------------------------------------------------------------------ bad input

@pytest.mark.parametrize("flags, words", [
    (["--vlm-frames", "5"], "--vlm-frames 5: a clip has 3"),
    (["--weights", "nowhere"], "cannot load nowhere"),
    (["--data", "triplets.jsonl"], "triplets.jsonl:1: is not JSON"),
    (["--preset", "wan1.3b"], "not 'wan1.3b': pass --preset tiny")])
def test_what_cannot_be_used(small, manifest, tmp_path, monkeypatch, flags, words):
    """What parsing the flags alone does not find; see test_flags.py for that."""
    monkeypatch.chdir(tmp_path)
    with pytest.raises(BadInput, match=words):
        train.main([*small, "--out", "new", "--objective", "sft", *flags])
    assert not Path("new").exists()


def test_a_folder_with_another_run_is_left_as_it_is(small, uso):
    before = {path: path.read_bytes() for path in uso.rglob("*") if path.is_file()}
    with pytest.raises(BadInput, match=r"another --lambda \(0.25, not 1.0\)"):
        train.main([*small, "--out", str(uso), "--tau", "1", "--lambda", "1"])
    assert before == {path: path.read_bytes() for path in uso.rglob("*") if path.is_file()}


def test_from_the_shell(tmp_path):
    """The one error in a process of its own: exit code, no traceback."""
    done = subprocess.run([sys.executable, train.__file__, "--resume", tmp_path],
                          capture_output=True, text=True)
    assert done.returncode == 2 and done.stdout == ""
    line, = done.stderr.splitlines()
    assert line.startswith(f"train.py: {tmp_path}/run.json: is missing or broken")
