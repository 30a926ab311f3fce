"""The resumable run: a training that may be stopped at any moment and goes on bit for bit.

    optimizer = torch.optim.AdamW(params.values(), lr=1e-3)
    run = Run(out, params, [optimizer])
    for step in run.steps(1000):             # from the last checkpoint on; progress bar
        loss, log = ...                      # of nothing but the step and the parameters
        run.update(loss, log)                # backward, ranks, clipping, learning rate, optimizers
    ...                                      # save what was trained, and then:
    run.write_log()

train.py writes out what `update` does: `note`, `finite` and `update_mean` are what is left of a
step for the run to know.

It leaves state.pt (the checkpoint), log.csv and curves.png in the run's folder. In log.csv a
value is nan where a step did not log it: the critic's, where no sample was below tau. SIGINT
(Ctrl-C), SIGTERM and SIGHUP let the step end, save, and raise KeyboardInterrupt. A run's script
holds its folder with `claim_folder`, so that no other run mixes with it.
"""

import csv
import fcntl
import io
import json
import math
import os
import signal
import sys
from contextlib import contextmanager
from pathlib import Path

import numpy as np
import torch
import torch.nn as nn
from tqdm import tqdm

from common.distributed import (all_true, average_gradients, is_first_rank, mean_log, shard_like,
                                whole, whole_on_first_rank)
from common.files import BadInput, Parser, atomic_write, remove_leftovers
from common.plots import optional_picture, pyplot, save_figure


def learning_rate(step: int, steps: int, peak: float) -> float:
    """Linear warm-up (a tenth of the steps, 50 at most), then a cosine to a tenth of the peak."""
    warmup = min(50, steps // 10 + 1)
    if step < warmup:
        return peak * (step + 1) / warmup
    done = (step - warmup) / max(1, steps - warmup)
    return peak * (.1 + .45 * (1 + math.cos(math.pi * done)))


class Run:
    """A training of `params`, which `optimizers` share among them, in the folder `out`.

    params: by name, as they go into the checkpoint. ema: the decay of the weights' exponential
    mean, e <- ema e + (1 - ema) p, which is what `params` hold after the last step; 0 leaves their
    last values. The learning rate warms up to that of the first optimizer.
    """

    def __init__(self, out: Path, params: dict[str, nn.Parameter], optimizers: list, *,
                 save_every: int = 100, ema: float = 0., name: str = "train"):
        self.out, self.params, self.optimizers = Path(out), params, optimizers
        self.save_every, self.ema, self.name = save_every, ema, name
        self.peak = optimizers[0].param_groups[0]["lr"]
        self.log = []                                    # one dict a step
        self.skipped = 0                                 # steps that were not finite
        self.mean = {}                                   # the exponential mean of the parameters
        if ema:
            self.mean = {k: p.detach().clone() for k, p in params.items()}
        self._parts = []                                 # what this step's micro-batches logged
        self._load()

    # ---- the loop

    def steps(self, n: int):
        """The steps from the last checkpoint to `n`; saves every `save_every` steps, and at the
        end."""
        self.n, first = n, len(self.log)
        self.bar = tqdm(range(first, n), initial=first, total=n, desc=self.name, smoothing=.05,
                        disable=not is_first_rank())
        with stop_requests() as stop:
            for step in self.bar:
                yield step
                self._log_step()
                going_on = all_true(not stop)            # all ranks stop together
                if not going_on or (step + 1) % self.save_every == 0 or step + 1 == n:
                    self._save()
                if not going_on:
                    raise KeyboardInterrupt
        if self.log and self.skipped == len(self.log):
            raise BadInput(f"{self.out}: the loss was not finite in any of the {self.skipped} "
                           f"steps; check the weights and the data, or lower --lr")
        for k, mean in self.mean.items():
            self.params[k].data.copy_(mean)

    def note(self, loss: torch.Tensor, log: dict[str, float]) -> None:
        """Keep a micro-batch's values for the log, which has their mean over all of them."""
        self._parts.append({"loss": loss.item(), **log})

    def finite(self, norm: torch.Tensor) -> bool:
        """Whether the step's losses and the norm of its gradient are finite on every rank; else
        the step is counted as skipped."""
        self._norm = whole(norm).item()
        losses = [part["loss"] for part in self._parts]
        finite = all_true(all(map(math.isfinite, [*losses, self._norm])))
        self.skipped += not finite
        return finite

    def update_mean(self) -> None:
        """e <- ema e + (1 - ema) p, after each update of the parameters."""
        for k, mean in self.mean.items():
            mean.mul_(self.ema).add_(self.params[k].detach(), alpha=1 - self.ema)

    def update(self, loss: torch.Tensor, log: dict[str, float]) -> None:
        """A whole step; the parameters stay as they are where loss or gradient is not finite."""
        loss.backward()
        self.note(loss, log)
        leaves = list(self.params.values())
        average_gradients(leaves)
        norm = nn.utils.clip_grad_norm_(leaves, 1.)
        finite = self.finite(norm)
        for optimizer in self.optimizers:
            for group in optimizer.param_groups:
                group["lr"] = learning_rate(len(self.log), self.n, self.peak)
            if finite:
                optimizer.step()
            optimizer.zero_grad(set_to_none=True)
        if finite:
            self.update_mean()

    def _log_step(self) -> None:
        log = mean_log(self._parts)
        self._parts = []
        row = {"step": len(self.log), "loss": log.pop("loss"), "grad_norm": self._norm, **log}
        self.log.append(row)
        recent = {name: logged(self.log[-50:], name)[1] for name in row}
        means = {name: f"{np.mean(values):.3g}" for name, values in recent.items()
                 if values and name not in ("step", "grad_norm")}
        self.bar.set_postfix(means, skipped=self.skipped)

    def write_log(self) -> None:
        """log.csv and curves.png, once what was trained is saved: it must not hang on a picture."""
        if not (is_first_rank() and self.log):
            return
        if self.skipped:
            print(f"{self.skipped} of {len(self.log)} steps were skipped: loss or gradient was not "
                  f"finite; they are nan in {self.out / 'log.csv'}", file=sys.stderr)
        text = io.StringIO()
        names = list(dict.fromkeys(name for row in self.log for name in row))
        writer = csv.DictWriter(text, names, restval=math.nan)
        writer.writeheader()
        writer.writerows(self.log)
        atomic_write(self.out / "log.csv", text.getvalue())
        with optional_picture(self.out / "curves.png"):
            draw_curves(self.log, self.out / "curves.png")

    # ---- the checkpoint: whole tensors, so that another number of ranks can go on from it

    def _save(self) -> None:
        state = {"params": _whole_tensors(self.params), "step": len(self.log), "log": self.log,
                 "skipped": self.skipped, "ema": _whole_tensors(self.mean), "optimizers": []}
        for optimizer in self.optimizers:
            kept = optimizer.state_dict()
            kept["state"] = {i: _whole_tensors(moments) for i, moments in kept["state"].items()}
            state["optimizers"].append(kept)
        if is_first_rank():
            buffer = io.BytesIO()
            torch.save(state, buffer)
            atomic_write(self.out / "state.pt", buffer.getvalue())

    def _load(self) -> None:
        file = self.out / "state.pt"
        if not file.exists():
            return
        try:
            self._take(torch.load(file, map_location="cpu", weights_only=True))
        except Exception as error:                       # whatever a foreign file makes torch raise
            raise BadInput(f"{file}: is broken, or no checkpoint of this run ({error!r:.80}); "
                           f"take it away to start this run again") from error

    def _take(self, state: dict) -> None:
        """Go on from a checkpoint's state. Raises half a dozen kinds where it is another run's."""
        shapes = {k: p.shape for k, p in self.params.items()}
        if {k: p.shape for k, p in state["params"].items()} != shapes:
            raise ValueError("its parameters are others")
        self.log, self.skipped = state["log"], state["skipped"]
        for k, p in self.params.items():
            p.data.copy_(shard_like(state["params"][k], p))
        for k in self.mean:
            self.mean[k] = shard_like(state["ema"][k], self.params[k])
        for optimizer, kept in zip(self.optimizers, state["optimizers"], strict=True):
            for i, moments in kept["state"].items():
                p = optimizer.param_groups[0]["params"][i]
                for name, x in moments.items():
                    if x.shape == p.shape:               # not the step counter
                        moments[name] = shard_like(x, p)
            optimizer.load_state_dict(kept)


def _whole_tensors(tensors: dict) -> dict:
    return {k: whole_on_first_rank(x.detach()) for k, x in tensors.items()}


@contextmanager
def stop_requests():
    """A list that is no longer empty once SIGINT, SIGTERM or SIGHUP came: no half of an update is
    ever saved."""
    requests = []

    def request(number, frame):
        requests.append(number)
    before = {number: signal.signal(number, request)
              for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)}
    try:
        yield requests
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


# ------------------------------------------------------------------------ which run is in a folder?

def read_run(folder: Path) -> dict:
    """run.json of a run's folder: its argv and settings. Raises BadInput where it is missing or
    broken."""
    try:
        record = json.loads((folder / "run.json").read_text("utf-8"))
        return {"argv": record["argv"], "settings": record["settings"]}
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise BadInput(f"{folder}/run.json: is missing or broken ({error}); name the folder of a "
                       f"run, or delete this one") from error


def argv_of(folder: Path, argv: list[str]) -> list[str]:
    """The flags with which a run goes on: its own, then those beside --resume, which count more."""
    only_resume = Parser(add_help=False)
    only_resume.add_argument("--resume")
    _, beside = only_resume.parse_known_args(argv)
    return read_run(folder)["argv"] + beside


def plain_settings(args, free: tuple[str, ...]) -> dict:
    """The flags, for run.json, but those named `free`, which may differ when a run goes on."""
    settings = {name: value for name, value in vars(args).items() if name not in free}
    return json.loads(json.dumps(settings, default=str))         # as they will be read again


def check_run(folder: Path, settings: dict, may_grow: str | None = None) -> None:
    """Raises BadInput where the folder holds a run with other settings, or one that is at work.

    may_grow: the setting, a number, that may be larger than it was.
    """
    if is_first_rank() and (folder / "lock").exists():
        os.close(lock(folder))
    if not (folder / "run.json").is_file():
        return
    before = read_run(folder)["settings"]
    for name, value in settings.items():
        same = before.get(name) == value
        grown = name == may_grow and isinstance(before.get(name), int) and before[name] < value
        if not (same or grown):
            flag = name.replace("lam", "lambda").replace("_", "-")
            raise BadInput(f"{folder} holds a run with another --{flag} "
                           f"({before.get(name)}, not {value}): choose another --out, or delete it")


def claim_folder(folder: Path, argv: list[str], settings: dict,
                 may_grow: str | None = None) -> None:
    """Write run.json: from here on, until this process ends, the folder is this run's.

    What a kill has left there is cleared away. Raises BadInput as `check_run` does.
    """
    check_run(folder, settings, may_grow)                # another run may have come first
    if is_first_rank():
        folder.mkdir(parents=True, exist_ok=True)
        lock(folder)
        remove_leftovers(folder)
        record = {"argv": argv, "settings": settings}
        atomic_write(folder / "run.json", json.dumps(record, indent=1))


def lock(folder: Path) -> int:
    """Take the folder's lock; returns the open file. Its end, or the process's, lets go of it.
    Raises BadInput where another process has it."""
    file = os.open(folder / "lock", os.O_CREAT | os.O_RDWR)
    try:
        fcntl.lockf(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError as error:
        os.close(file)
        raise BadInput(f"{folder}/lock: another run is at work in this folder; wait for it, or "
                       f"choose another --out") from error
    return file


# ----------------------------------------------------------------------------------- the log, drawn

def logged(log: list[dict], name: str) -> tuple[list, list]:
    """The steps that logged this value, as a number, and the values."""
    rows = [row for row in log if not math.isnan(row.get(name, math.nan))]
    return [row["step"] for row in rows], [row[name] for row in rows]


def draw_curves(log: list[dict], path: Path, window: int = 25) -> None:
    """Plot every logged value over the steps, as running means."""
    plt = pyplot()
    names = list(dict.fromkeys(name for row in log for name in row if name != "step"))
    figure, axes = plt.subplots(1, len(names), figsize=(3.2 * len(names), 2.6), squeeze=False)
    for ax, name in zip(axes[0], names):
        x, y = logged(log, name)
        ax.plot(x, [np.mean(y[max(0, i - window + 1):i + 1]) for i in range(len(y))])
        ax.set_title(name.replace("_", " "))
        ax.set_xlabel("step")
    figure.tight_layout()
    save_figure(figure, path, dpi=90)
