"""Training: the step by hand, resume bit for bit, two ranks against one, own videos, bad input."""

import csv
import json
import math
import os
import runpy
import shutil
import signal
import subprocess
import sys
import time
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

import data
import train
from by_hand import a_step, by_hand
from common.distributed import mean_log
from common.files import BadInput
from common.run import check_run, read_run
from common.video import write_video
from critic import Critic
from data import Batches, Latents, batch_indices, draws, reflect, world_items
from model import TRAINED, load_model
from presets import PRESETS
from tiny import world

SCRIPT = Path(train.__file__)
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


def weights(run: Path) -> dict[str, bytes]:
    files = sorted((run / "model").rglob("*.safetensors"))
    assert len(files) == 2                               # G and the visual context adapter
    return {str(file.relative_to(run)): file.read_bytes() for file in files}


def read_log(run: Path) -> list[dict[str, float]]:
    with (run / "log.csv").open() as file:
        return [{k: float(v) for k, v in row.items()} for row in csv.DictReader(file)]


def same_runs(a: Path, b: Path) -> bool:
    """Whether two runs are equal bit for bit."""
    return weights(a) == weights(b) and (a / "log.csv").read_bytes() == (b / "log.csv").read_bytes()


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


# ------------------------------------------------------------------------------ the step, by hand

@pytest.fixture(scope="module")
def encoded(tiny_dir, small):
    """(model ready for training, its six encoded triplets)."""
    model = load_model(tiny_dir)
    model.freeze()
    items = world_items(("rave", "icvg"), "train", 6)
    return model, Latents(items, model, small[3], progress=False)


def made_batches(model, latents, args, folder):
    """The batches of a training, and its critic, as `train.main` makes them."""
    critic = reflections = None
    if args.lam > 0:
        critic = Critic(model, args.think, args.decode)
        reflections = reflect(critic, latents, folder)
    return critic, Batches(latents, model, reflections, batch=args.batch, tau=args.tau,
                           drop=args.drop, seed=args.seed, accumulate=args.accumulate)


def loss_of(model, critic, batches, step, lam):
    """The mean loss, and log, of a step's micro-batches."""
    losses, logs = zip(*(train.uso_step(model, critic, batch, lam) for batch in batches.of(step)))
    return torch.stack(losses).mean(), mean_log(logs)


def compare_with_hand(model, latents, args, step, loss, log):
    """Loss, gradient and log are those of `by_hand`; nothing frozen has a gradient."""
    leaf = model.transformer.proj_out.weight
    gradients = []
    want, want_log = by_hand(model, latents, args, step)
    for value in (loss, want):
        model.zero_grad(set_to_none=True)
        value.backward()
        gradients.append(leaf.grad.clone())
        assert all(p.grad is None for p in model.parameters() if not p.requires_grad)
    got_gradient, want_gradient = gradients
    assert loss.item() == pytest.approx(want.item(), abs=1e-4)
    assert (got_gradient - want_gradient).abs().max() < 1e-3 * want_gradient.abs().max()
    got_log = {k: log.get(k, math.nan) for k in want_log}
    assert got_log == pytest.approx(want_log, abs=1e-4, nan_ok=True)


@pytest.mark.parametrize("objective, think, decode", [
    ("sft", "expect", "alone"), ("uso", "expect", "alone"), ("uso", "expect", "exact"),
    ("uso", "full", "exact"), ("uso", "none", "alone")])
def test_a_step_by_hand(encoded, small, tmp_path, objective, think, decode):
    """Two of four samples are gated, two have lost their condition."""
    model, latents = encoded
    args = train.parse([*small, "--batch", "4", "--drop", ".5", "--objective", objective,
                        "--think", think, "--decode", decode])
    step = a_step(4, .5, gated=2, dropped=2)
    critic, batches = made_batches(model, latents, args, tmp_path)
    compare_with_hand(model, latents, args, step, *loss_of(model, critic, batches, step, args.lam))


@pytest.mark.parametrize("flags", [
    ["--drop", "1"], ["--lambda", "0"], ["--lambda", "2"], ["--tau", "1"], ["--accumulate", "2"]])
def test_a_step_by_hand_with_other_flags(encoded, small, tmp_path, flags):
    model, latents = encoded
    args = train.parse([*small, "--batch", "4", *flags])
    step = a_step(4, .5, gated=3)                # in micro-batches of different numbers of gated
    critic, batches = made_batches(model, latents, args, tmp_path)
    loss, log = loss_of(model, critic, batches, step, args.lam)
    if args.lam == 0:
        assert set(log) == {"flow_loss", "trigger_rate"}
        args.objective = "sft"
    compare_with_hand(model, latents, args, step, loss, log)


@pytest.mark.parametrize("accumulate", [1, 2])
def test_a_step_by_hand_on_two_ranks(encoded, small, tmp_path, monkeypatch, accumulate):
    """Each rank's micro-batches, one rank after the other: their mean is the whole batch's loss."""
    model, latents = encoded
    args = train.parse([*small, "--batch", "4"])
    args.accumulate = accumulate
    critic, _ = made_batches(model, latents, args, tmp_path)
    step, losses, logs = a_step(4, .5, gated=3), [], []
    monkeypatch.setattr(data, "WORLD_SIZE", 2)
    for rank in (0, 1):
        monkeypatch.setattr(data, "RANK", rank)
        _, batches = made_batches(model, latents, args, tmp_path)
        for batch in batches.of(step):
            assert len(batch.t) == 2 // accumulate and batch.n_near == 3 / (2 * accumulate)
            loss, log = train.uso_step(model, critic, batch, args.lam)
            losses.append(loss)
            logs.append(log)
    compare_with_hand(model, latents, args, step, torch.stack(losses).mean(), mean_log(logs))


def test_select_takes_rows_of_everything(encoded, small, tmp_path):
    model, latents = encoded
    args = train.parse([*small, "--batch", "4"])
    batch, = made_batches(model, latents, args, tmp_path)[1].of(0)
    picked = batch.select(torch.tensor([True, False, True, False]))
    assert torch.equal(picked.frames, batch.frames[[0, 2]])
    assert torch.equal(picked.baseline, batch.baseline[[0, 2]])
    assert picked.instructions == batch.instructions[::2] and picked.n_near == batch.n_near
    assert picked.thoughts == batch.thoughts[::2]
    nothing = replace(batch, thoughts=None).select(torch.ones(4, dtype=torch.bool))
    assert nothing.thoughts is None


def test_only_gated_samples_cost_anything(encoded, small, tmp_path, monkeypatch):
    model, latents = encoded
    args = train.parse([*small, "--batch", "4"])
    critic, batches = made_batches(model, latents, args, tmp_path)
    shown, margin = [], Critic.margin

    def counting(self, *rest):
        shown.append(len(rest[0]))
        return margin(self, *rest)
    monkeypatch.setattr(Critic, "margin", counting)
    monkeypatch.setattr(Critic, "thoughts", lambda *args: pytest.fail("thoughts are kept"))
    for n in (0, 1, 3):
        loss, log = loss_of(model, critic, batches, a_step(4, .5, n), .25)
        assert log["trigger_rate"] == n / 4 and shown == [n] * bool(n)
        assert ("reason_loss" in log) == (n > 0) and loss.isfinite()
        shown.clear()


def test_draws_depend_on_step_and_seed_alone():
    shape = (2, 1, 3, 3)
    t, noise, u = draws(5, 1, 4, shape)
    assert t.shape == u.shape == (4,) and noise.shape == (4, *shape)
    torch.rand(7)
    assert all(torch.equal(a, b) for a, b in zip((t, noise, u), draws(5, 1, 4, shape)))
    for other in (draws(6, 1, 4, shape), draws(5, 2, 4, shape)):
        assert not any(torch.equal(a, b) for a, b in zip((t, noise, u), other))
    many = [draws(step, 0, 50, shape) for step in range(400)]
    below = (torch.cat([t for t, _, _ in many]) < .5).float().mean().item()
    dropped = (torch.cat([u for _, _, u in many]) < .1).float().mean().item()
    assert below == pytest.approx(.25, abs=.01) and dropped == pytest.approx(.1, abs=.01)


# ----------------------------------------------------------------------------------- whole runs

def test_what_a_run_leaves(sft, tiny):
    left = sorted(path.name for path in sft.iterdir())
    assert left == ["curves.png", "lock", "log.csv", "model", "run.json", "state.pt"]
    log = read_log(sft)
    assert [row["step"] for row in log] == [0, 1, 2, 3]
    assert set(log[0]) == {"step", "loss", "grad_norm", "flow_loss", "trigger_rate"}  # no critic
    assert all(row["loss"] == row["flow_loss"] for row in log)
    model = load_model(sft)
    for part, p in tiny.named_parameters():              # the frozen parts are the base's
        assert torch.equal(p, model.get_parameter(part)) == (part.split(".")[0] not in TRAINED)
    saved = torch.load(sft / "state.pt")["params"]
    assert all(torch.equal(p, model.get_parameter(k)) for k, p in saved.items())


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
    logs = read_log(uso), read_log(sft)
    assert set(logs[0][0]) == {*logs[1][0], "reason_loss", "p_yes"}
    assert logs[0][0]["flow_loss"] == logs[1][0]["flow_loss"]          # the same first batch
    for row in logs[0]:
        assert row["trigger_rate"] == 1 and 0 < row["p_yes"] < 1
        want = row["flow_loss"] + .25 * row["reason_loss"]
        assert row["loss"] == pytest.approx(want, abs=1e-5)


def test_no_part_of_the_critic_moves(uso_and_model, tiny):
    _, model = uso_and_model
    moved = {k for k, p in model.named_parameters() if not torch.equal(p, tiny.get_parameter(k))}
    assert {k.split(".")[0] for k in moved} == set(TRAINED)
    buffers = dict(tiny.named_buffers())
    assert all(torch.equal(b, buffers[k]) for k, b in model.named_buffers())


@pytest.mark.parametrize("flags", [
    ("--think", "full"), ("--think", "none", "--decode", "exact"),
    ("--vlm-frames", "5", "--decode", "exact")])
def test_each_way_runs(finetune, uso, tmp_path, flags):
    row, = read_log(finetune(tmp_path / "run", *flags, "--tau", "1", "--steps", "1"))
    assert all(map(math.isfinite, row.values())) and row["trigger_rate"] == 1
    first = read_log(uso)[0]
    same = row["flow_loss"] == pytest.approx(first["flow_loss"], abs=1e-5)
    assert same == (flags[0] != "--vlm-frames")  # what the VLM sees is part of the condition, too
    assert row["reason_loss"] != first["reason_loss"]


def stop_at(monkeypatch, step):
    """Ctrl-C while the batch of `step` is put together: that step is done before the run stops."""
    def batch(n, size, now, seed):
        if now == step:
            signal.raise_signal(signal.SIGINT)
        return batch_indices(n, size, now, seed)
    monkeypatch.setattr(data, "batch_indices", batch)


def test_ctrl_c_and_resume_bit_for_bit(small, uso, tmp_path, monkeypatch, capfd):
    run = tmp_path / "run"
    with monkeypatch.context() as patch:
        stop_at(patch, 1)
        code, _, printed = shell(patch, capfd, *small, "--out", run, "--tau", "1")
    assert code == 130 and "Traceback" not in printed
    assert "train.py: stopped and saved; the same command goes on from here" in printed
    assert sorted(p.name for p in run.iterdir()) == ["lock", "run.json", "state.pt"]
    assert torch.load(run / "state.pt")["step"] == 2
    dead = subprocess.Popen(["true"])
    dead.wait()
    (run / f"state.tmp{dead.pid}.pt").write_bytes(b"half a checkpoint")    # what a kill leaves
    torch.rand(3)                                        # the global generator plays no part
    assert shell(monkeypatch, capfd, "--resume", run)[0] == 0
    assert same_runs(run, uso) and not list(run.glob("*.tmp*"))
    shutil.rmtree(run / "model")                         # killed after the last step
    assert shell(monkeypatch, capfd, "--resume", run)[0] == 0
    assert same_runs(run, uso)


def test_kill_minus_nine(small, uso, tmp_path, monkeypatch, capfd):
    """A process of its own, killed as soon as it has left a checkpoint."""
    run = tmp_path / "run"
    flags = [*small, "--out", run, "--tau", "1", "--save-every", "1"]
    process = subprocess.Popen([sys.executable, SCRIPT, *flags], stderr=subprocess.DEVNULL)
    try:
        end = time.time() + 240
        while not (run / "state.pt").exists() and process.poll() is None and time.time() < end:
            time.sleep(.01)
    finally:
        process.kill()
        process.wait()
    assert 1 <= torch.load(run / "state.pt")["step"] <= 4
    assert shell(monkeypatch, capfd, "--resume", run)[0] == 0
    assert same_runs(run, uso)


def test_a_resumed_run_may_grow_and_be_moved(finetune, uso, tmp_path):
    run = finetune(tmp_path / "run", "--tau", "1", "--steps", "2").rename(tmp_path / "moved")
    train.main(["--resume", str(run), "--steps", "4"])
    assert len(read_log(run)) == 4 and read_run(run)["settings"]["steps"] == 4
    assert read_log(run)[:2] == read_log(uso)[:2] and not (tmp_path / "run").exists()


def test_two_ranks_are_one(small, finetune, tmp_path):
    """torchrun on gloo logs what one process logs with the same global batch, and ends with its
    weights."""
    flags = ["--batch", "4", "--steps", "3", "--drop", ".3", "--tau", ".8"]
    levels = [draws(step, 0, 4, (1,))[0] for step in range(3)]
    assert any((t < .8)[rank::2].sum() != 1 for t in levels for rank in (0, 1))
    one, two = finetune(tmp_path / "one", *flags), tmp_path / "two"
    launch = [sys.executable, "-m", "torch.distributed.run", "--standalone",
              "--nproc_per_node", "2", SCRIPT]
    done = subprocess.run([*launch, *small, *flags, "--out", two], capture_output=True, text=True,
                          timeout=600, env={**os.environ, "OMP_NUM_THREADS": "1"})
    assert done.returncode == 0, done.stderr[-2000:]
    for a, b in zip(read_log(one), read_log(two), strict=True):
        assert a.pop("grad_norm") == pytest.approx(b.pop("grad_norm"), rel=1e-4)
        assert b == pytest.approx(a, rel=1e-5, abs=1e-5, nan_ok=True)
    for part in ("transformer/diffusion_pytorch_model", "visual_context_adapter"):
        a, b = (load_file(run / "model" / f"{part}.safetensors") for run in (one, two))
        apart = torch.cat([(a[k] - b[k]).abs().flatten() for k in a])
        assert apart.max() < 3e-3                        # three steps of Adam at 1e-3, at most
        assert apart.mean() < 2e-6


def test_scores_before_and_after(finetune, tmp_path, capfd):
    run = finetune(tmp_path / "run", "--eval-items", "2", "--steps", "1", "--objective", "sft")
    *_, where, line = capfd.readouterr().out.strip().split("\n")
    assert where == f"wrote model/, log.csv and curves.png into {run}"
    record = json.loads((run / "summary.json").read_text())
    assert set(record["before"]) == set(record["after"]) == {"EA", "PC", "GN", "GR", "Overall"}
    assert record["steps"] == 1 and record["objective"] == "sft"
    for k, v in record["before"].items():
        assert 0 <= v <= 10 and f"{k} {v:.2f} -> {record['after'][k]:.2f}" in line
    assert line.startswith("oracle on 2 val samples of RAVE: ")
    assert (run / "samples.png").stat().st_size > 10_000


# -------------------------------------------------------------------------------- your own data

@pytest.fixture
def manifest(tmp_path):
    """Three triplets of small gifs, as a user would write them."""
    lines = []
    for i in range(3):
        t = world.make_triplet(i, "rave", "val")
        dawn = torch.linspace(0, .2, TINY.frames).view(-1, 1, 1, 1)  # equal frames are kept once
        write_video(tmp_path / f"{i}a.gif", t.source + dawn)
        write_video(tmp_path / f"{i}b.gif", t.target + dawn)
        lines.append({"source_video_path": f"{i}a.gif", "target_video_path": f"{i}b.gif",
                      "instruction": t.instruction, "type": t.type})
    path = tmp_path / "triplets.jsonl"
    path.write_text("".join(json.dumps(line) + "\n" for line in lines))
    return path


GOOD = {"source_video_path": "0a.gif", "target_video_path": "0b.gif", "instruction": "wait",
        "type": "Temporal Reasoning"}
LINES = [("this is no JSON", "is not JSON"),
         (json.dumps({**GOOD, "target_video_path": "none.gif"}), "none.gif"),
         (json.dumps({**GOOD, "source_video_path": "x" * 300}), "no such video"),
         (json.dumps({**GOOD, "instruction": "wait " * 99}), "tokens long")]


def test_own_videos(finetune, manifest, tmp_path, capfd):
    """Bad triplets are skipped, counted and listed; the others are trained with."""
    manifest.write_text("".join(line + "\n" for line, _ in LINES) + manifest.read_text())
    run = finetune(tmp_path / "run", "--data", str(manifest), "--skip-bad", "--steps", "2",
                   "--cache", str(tmp_path / "cache"), "--tau", "1")
    printed = capfd.readouterr()
    skipped = [line for line in printed.err.split("\n") if line.startswith("skipped")]
    assert len(skipped) == 5 and skipped[-1] == "skipped 4 bad triplets, 3 are left"
    for number, (line, (_, why)) in enumerate(zip(skipped, LINES), 1):
        assert line.startswith(f"skipped: {manifest}:{number}: ") and why in line
    log = read_log(run)
    assert len(log) == 2 and all(math.isfinite(row["loss"] + row["reason_loss"]) for row in log)
    assert (run / "samples.png").stat().st_size > 10_000
    record = json.loads((run / "summary.json").read_text())
    psnr = f"PSNR {record['before']['PSNR']:.2f} -> {record['after']['PSNR']:.2f}"
    assert f"PSNR to the target, in dB, on 3 training clips: {psnr}" in printed.out
    cached = list((tmp_path / "cache").glob("*.safetensors"))
    assert len(cached) == 3 and len(load_file(cached[0])) == 5


# ------------------------------------------------------------------------------------ bad input

def refused(monkeypatch, capfd, folder, words, *args):
    """Exit code 2, one line on stderr that has `words` in it, and `folder` as it was."""
    def files():
        return {p: p.read_bytes() if p.is_file() else None for p in folder.rglob("*")}
    before = files()
    code, printed, complaint = shell(monkeypatch, capfd, *args)
    assert code == 2 and printed == "" and words in complaint
    *bars, line = complaint.strip().split("\n")
    assert line.startswith("train.py: ") and len(line) < 1000 and all("%|" in bar for bar in bars)
    assert files() == before


def test_a_bad_triplet_is_one_line(small, manifest, tmp_path, monkeypatch, capfd):
    with manifest.open("a") as file:
        file.write(LINES[3][0] + "\n")
    refused(monkeypatch, capfd, tmp_path, f"{manifest}:4: ", *small, "--data", manifest,
            "--out", tmp_path / "new", "--cache", tmp_path / "cache")


@pytest.mark.parametrize("flags, words", [
    (["--vlm-frames", "10"], "--vlm-frames 10"),
    (["--vlm-frames", "5"], "--vlm-frames 5: a clip has 3"),
    (["--out", "broken"], "broken"),
    (["--out", "file/run"], "cannot be written"),
    (["--cache", "file"], "cannot be written"),
    (["--weights", "nowhere"], "cannot load nowhere"),
    (["--data", "none.jsonl"], "none.jsonl: cannot be read"),
    (["--preset", "wan1.3b"], "not 'wan1.3b': pass --preset tiny")])
def test_what_cannot_be_used(small, tmp_path, monkeypatch, capfd, flags, words):
    """What parsing the flags alone does not find; see test_flags.py for that."""
    monkeypatch.chdir(tmp_path)
    Path("broken").mkdir()
    Path("broken/run.json").write_text('{"argv": [')
    Path("file").write_text("no folder")
    refused(monkeypatch, capfd, tmp_path, words, *small, "--out", "new", "--steps", "1",
            "--objective", "sft", *flags)


def test_the_batch_must_divide_among_ranks(small, monkeypatch):
    monkeypatch.setattr(train, "WORLD_SIZE", 2)
    with pytest.raises(BadInput, match="--batch 3 does not divide among 2 ranks: .* multiple of 2"):
        train.parse([*small, "--batch", "3"])


@pytest.fixture
def recorded(small, tmp_path):
    """(flags, run folder) of a run that has just begun."""
    flags, run = [*small, "--out", str(tmp_path / "run"), "--steps", "1"], tmp_path / "run"
    run.mkdir()
    args = train.parse(flags)
    content = {"argv": args.argv, "settings": train.settings_of(args)}
    (run / "run.json").write_text(json.dumps(content))
    return flags, run


@pytest.mark.parametrize("flags, words", [
    (["--lambda", "1"], "another --lambda (0.25, not 1.0)"),
    (["--objective", "sft"], "another --objective (uso, not sft)"),
    (["--steps", "9"], "another --steps (1, not 9)"),
    (["--weight-decay", ".1"], "another --weight-decay (0.0001, not 0.1)")])
def test_other_settings_in_a_run_folder_are_refused(recorded, tmp_path, monkeypatch, capfd, flags,
                                                    words):
    args, run = recorded
    (run / "state.pt").write_bytes(b"three days of work")
    refused(monkeypatch, capfd, tmp_path, words, *args, *flags)
    if flags[0] != "--steps":                            # these may grow
        refused(monkeypatch, capfd, tmp_path, words, "--resume", str(run), *flags)


def test_the_same_settings_and_those_that_do_not_matter_go_on(recorded):
    args, run = recorded
    for more in ([], ["--save-every", "7"], ["--eval-items", "3"], ["--cache", "elsewhere"]):
        check_run(run, train.settings_of(train.parse([*args, *more])))
    again = train.parse(["--resume", str(run)])
    assert again.out == run and again.argv == args
    assert train.settings_of(again) == read_run(run)["settings"]
    longer = train.settings_of(train.parse(["--resume", str(run), "--steps", "99"]))
    assert longer["steps"] == 99
    check_run(run, longer, may_grow="steps")


def test_from_the_shell(tmp_path):
    """The one error in a process of its own: exit code, no traceback."""
    done = subprocess.run([sys.executable, SCRIPT, "--resume", tmp_path], capture_output=True,
                          text=True)
    assert done.returncode == 2 and done.stdout == ""
    wrong = f"train.py: --resume {tmp_path}: no run.json there; pass the folder of a run\n"
    assert done.stderr == wrong
