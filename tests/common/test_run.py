"""The resumable run: against a plain loop, resumed bit for bit, stopped."""

import json
import math
import pkgutil
import shutil
import signal
import subprocess
import sys

import pytest
import torch
import torch.nn as nn

from common.files import BadInput
from common.run import Run, check_run, claim_folder, learning_rate, read_run
from runs import read_log


def fresh():
    """A matrix and a vector, and the two optimizers that share them."""
    m, b = nn.Parameter(torch.linspace(-1, 1, 12).view(4, 3)), nn.Parameter(torch.zeros(3))
    adam = torch.optim.AdamW([b], lr=.1, betas=(.9, .95), weight_decay=.01)
    muon = torch.optim.Muon([m], lr=.1, weight_decay=.01, adjust_lr_fn="match_rms_adamw")
    return m, b, [adam, muon]


def distance(m, b, step):
    """From a random goal, another in each step."""
    goal = torch.randn(4, 3, generator=torch.Generator().manual_seed(step))
    return 3 * (m + b - goal).pow(2).mean()


def numbers(m, b):
    return torch.cat([m.detach().flatten(), b.detach()])


def toy(out, change=lambda step, loss: loss, **settings):
    """Eight steps towards the goals: (the numbers before each step and at the end, the log)."""
    m, b, optimizers = fresh()
    run = Run(out, {"m": m, "b": b}, optimizers, **settings)
    trace = []
    for step in run.steps(8):
        trace.append(numbers(m, b))
        run.update(change(step, distance(m, b, step)), {"goal": step / 2})
    run.write_log()
    return [*trace, numbers(m, b)], run.log


def test_learning_rate_endpoints():
    rates = [learning_rate(step, 100, 2.) for step in range(101)]
    assert rates[0] == 2 / 11 and rates[10] == rates[11] == 2 and rates[100] == pytest.approx(.2)
    assert (rates[55] + rates[56]) / 2 == pytest.approx(2 * .55)       # half of the way down
    assert sorted(rates[:11]) == rates[:11] and sorted(rates[11:], reverse=True) == rates[11:]
    assert learning_rate(0, 1, 2.) == 2 and math.isfinite(learning_rate(1, 1, 2.))
    assert learning_rate(49, 1000, 2.) == 2 > learning_rate(48, 1000, 2.)


def test_run_against_a_loop(tmp_path):
    """Warm-up, cosine, clipping and both optimizers, by torch's own pieces."""
    m, b, optimizers = fresh()
    for step in range(8):
        cosine = (1 + math.cos(math.pi * (step - 1) / 7)) / 2
        for optimizer in optimizers:
            optimizer.param_groups[0]["lr"] = .1 if step < 1 else .1 * (.1 + .9 * cosine)
            optimizer.zero_grad()
        distance(m, b, step).backward()
        nn.utils.clip_grad_norm_([m, b], 1.)
        for optimizer in optimizers:
            optimizer.step()
    trace, log = toy(tmp_path)
    torch.testing.assert_close(trace[-1], numbers(m, b), atol=1e-6, rtol=0)
    assert not torch.allclose(trace[-1], trace[0], atol=.1)
    assert max(row["grad_norm"] for row in log) > 1      # as it was before clipping
    assert [list(row) for row in log] == [["step", "loss", "grad_norm", "goal"]] * 8
    assert read_log(tmp_path) == [pytest.approx(row) for row in log]
    assert sorted(p.name for p in tmp_path.iterdir()) == ["curves.png", "log.csv", "state.pt"]


def test_the_exponential_mean_is_what_is_left(tmp_path):
    mean, *after = toy(tmp_path / "plain")[0]
    for w in after:
        mean = .9 * mean + .1 * w
    assert torch.allclose(toy(tmp_path / "mean", ema=.9)[0][-1], mean, atol=1e-6)


@pytest.mark.parametrize("broken", [
    lambda loss: loss * math.nan,
    lambda loss: loss + (loss - loss.detach()).sqrt()])  # finite, but its gradient is not
def test_a_step_that_is_not_finite_is_skipped_and_counted(tmp_path, broken, capfd):
    trace, log = toy(tmp_path, lambda step, loss: broken(loss) if step in (3, 5) else loss)
    same = [torch.equal(a, b) for a, b in zip(trace, trace[1:])]
    assert same == [step in (3, 5) for step in range(8)] and trace[-1].isfinite().all()
    assert torch.load(tmp_path / "state.pt")["skipped"] == 2 and len(log) == 8
    assert "skipped=2" in capfd.readouterr().err         # shown


def test_a_run_that_never_steps_is_an_error(tmp_path):
    with pytest.raises(BadInput, match="not finite in any of the 8 steps; check the weights"):
        toy(tmp_path, lambda step, loss: loss * math.nan)
    assert not (tmp_path / "log.csv").exists()


# ------------------------------------------------------------------------------------------- resume

@pytest.mark.parametrize("place, number", [
    ("common.run.average_gradients", signal.SIGINT), ("torch.optim.AdamW.step", signal.SIGTERM),
    ("os.replace", signal.SIGHUP)])
def test_a_signal_at_any_moment_changes_nothing(tmp_path, place, number):
    """It strikes in the fifth call of this function: in a step, an update, a checkpoint."""
    function, calls, handler = pkgutil.resolve_name(place), [], signal.getsignal(number)

    def struck(*args, **named):
        calls.append(1)
        if len(calls) == 5:
            signal.raise_signal(number)
        return function(*args, **named)

    def lost(step, loss):
        return loss * math.nan if step == 1 else loss
    straight, stopped = tmp_path / "straight", tmp_path / "stopped"
    trace, _ = toy(straight, lost)
    with pytest.MonkeyPatch.context() as patch, pytest.raises(KeyboardInterrupt):
        patch.setattr(place, struck)
        toy(stopped, lost, save_every=1)
    assert signal.getsignal(number) is handler and not (stopped / "log.csv").exists()
    assert 1 < torch.load(stopped / "state.pt")["step"] < 8
    assert torch.equal(toy(stopped, lost)[0][-1], trace[-1])
    assert torch.load(stopped / "state.pt")["skipped"] == 1
    for name in ("log.csv", "curves.png"):
        assert (straight / name).read_bytes() == (stopped / name).read_bytes()


def test_a_finished_run_is_left_as_it_is(tmp_path):
    trace, log = toy(tmp_path)
    again, log_again = toy(tmp_path, change=None)        # there is nothing left to train
    assert torch.equal(trace[-1], *again) and log == log_again


def test_a_broken_checkpoint_is_named_and_runs_no_code(tmp_path):
    class Code:
        def __reduce__(self):
            return (tmp_path / "hacked").touch, ()
    toy(tmp_path)
    file = tmp_path / "state.pt"
    other, whole = torch.load(file), file.read_bytes()
    other["params"].update(m=torch.ones(1))
    torch.save(other, tmp_path / "other.pt")
    torch.save({"log": Code()}, tmp_path / "code.pt")
    (tmp_path / "cut.pt").write_bytes(whole[:-100])
    for name in ("cut.pt", "other.pt", "code.pt"):
        shutil.copy(tmp_path / name, file)
        with pytest.raises(BadInput, match="state.pt: is broken, or no checkpoint of this run"):
            toy(tmp_path)
    assert not (tmp_path / "hacked").exists()


# ------------------------------------------------------------------------ which run is in a folder?

def test_what_may_grow(tmp_path):
    record = {"argv": [], "settings": {"steps": 10, "lr": .1}}
    (tmp_path / "run.json").write_text(json.dumps(record))
    check_run(tmp_path, {"steps": 10, "lr": .1})
    check_run(tmp_path, {"steps": 20, "lr": .1}, may_grow="steps")
    for settings, grow in (({"steps": 20}, None), ({"steps": 9}, "steps"), ({"lr": .2}, "steps")):
        with pytest.raises(BadInput, match="holds a run with another"):
            claim_folder(tmp_path, [], settings, may_grow=grow)


HOLD = """import fcntl, sys
file = open(sys.argv[1], 'a')
fcntl.lockf(file, fcntl.LOCK_EX)
print(flush=True)
input()"""


def test_one_run_in_a_folder_at_a_time(tmp_path):
    """Another process has the lock; killed, it has it no more."""
    other = subprocess.Popen([sys.executable, "-c", HOLD, tmp_path / "lock"], stdin=subprocess.PIPE,
                             stdout=subprocess.PIPE)
    try:
        other.stdout.readline()
        for start in (lambda: check_run(tmp_path, {}), lambda: claim_folder(tmp_path, [], {})):
            with pytest.raises(BadInput, match=f"{tmp_path}/lock: another run is at work"):
                start()
        assert not (tmp_path / "run.json").exists()
    finally:
        other.kill()
        other.communicate()
    claim_folder(tmp_path, ["--seed", "1"], {"seed": 1})
    assert read_run(tmp_path) == {"argv": ["--seed", "1"], "settings": {"seed": 1}}
