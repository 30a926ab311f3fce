"""What does it cost that ranks wait for each other at the gate? Parts measured, then arithmetic.

`python -m realsize.cost --gate` times a step of the tiny preset with 0, 1, ... of its samples
gated, and says from these what a step of 1 to 1024 ranks costs on average. Under torchrun a real
run of those ranks stands beside the expectation.
"""

import math
import time
from pathlib import Path
from statistics import mean, median

import torch
import torch.distributed as dist

import bench
from common.distributed import RANK, WORLD_SIZE, average_gradients, device
from common.plots import pyplot, save_figure
from critic import Critic
from model import sample_timesteps
from realsize.gate_together import sample_timesteps_together

RANKS = [2 ** k for k in range(11)]
WAYS = ("alone", "together")
TAU = 0.5


def expected_step(cost: list[float], p: float, ranks: int, together: bool) -> float:
    """The mean time of a step of `ranks` ranks that wait for each other, in the unit of `cost`.

    cost[g]: of a rank's step with g of its len(cost) - 1 samples gated, each with probability p;
    rising in g. The step takes E[max over ranks of cost[g]]. Together, the ranks' numbers are the
    same, so the maximum is any of them. Alone, P(max <= g) = P(one <= g)^ranks.
    """
    batch = len(cost) - 1
    chance = [math.comb(batch, g) * p ** g * (1 - p) ** (batch - g) for g in range(batch + 1)]
    if together:
        return sum(c * x for c, x in zip(chance, cost))
    total, below = 0., 0.
    for g in range(batch + 1):
        at_most = sum(chance[:g + 1]) ** ranks           # P(max <= g)
        total += (at_most - below) * cost[g]
        below = at_most
    return total


def gated_counts(batch: int, ranks: int, tau: float, together: bool, steps: int,
                 seed: int = 0) -> torch.Tensor:
    """How many of each rank's samples are gated, by training's own draws: (steps, ranks)."""
    generator = torch.Generator().manual_seed(seed)
    n, levels = batch * ranks, []
    for _ in range(steps):
        if together:
            levels.append(sample_timesteps_together(n, ranks, tau, generator=generator))
        else:
            levels.append(sample_timesteps(n, generator=generator))
    near = torch.stack(levels) < tau                     # (steps, batch * ranks)
    return near.view(steps, batch, ranks).sum(1)


class TimedStep:
    """A rank's training step on random data of the tiny preset, timed."""

    def __init__(self, batch: int):
        self.model = bench.random_model().to(device())
        self.batch, self.critic = bench.random_batch(self.model, batch), Critic(self.model)
        self.params = self.model.freeze()
        self.optimizer = torch.optim.AdamW(self.params, lr=0.)

    def milliseconds(self, gated: int) -> float:
        """Of a step in which so many samples are gated, with the all-reduce of its gradients."""
        bench.set_gated(self.batch, gated)
        began = time.perf_counter()
        bench.training_step(self.model, self.optimizer, self.batch, self.critic, bench.LAMBDA)
        average_gradients(self.params)                   # after the optimizer: as much work
        if self.model.device.type == "cuda":
            torch.cuda.synchronize()
        return 1000 * (time.perf_counter() - began)


def measure_gate(batch: int, repeats: int, steps: int) -> dict:
    """Milliseconds of a rank's step by how many are gated; with ranks, also of a real run."""
    step = TimedStep(batch)
    for gated in range(batch + 1):                       # to warm up
        step.milliseconds(gated)
    by_gated = []
    for gated in range(batch + 1):                       # all ranks the same: nobody waits
        by_gated.append(median(step.milliseconds(gated) for _ in range(repeats)))
    found = {"batch": batch, "ms_by_gated": by_gated}
    if WORLD_SIZE > 1:
        found |= measure_ranks(step, batch, steps, by_gated)
    return found


def measure_ranks(step: TimedStep, batch: int, steps: int, by_gated: list[float]) -> dict:
    """A real run of these ranks, each gating alone and all together, step by step in turn."""
    counts = {way: gated_counts(batch, WORLD_SIZE, TAU, way == "together", steps) for way in WAYS}
    times = {way: [] for way in WAYS}
    for k in range(steps):                               # in turn: a drift of the machine cancels
        for way in WAYS:
            dist.barrier()
            times[way].append(step.milliseconds(counts[way][k, RANK].item()))
    # the parts once more, as they were during the run: from the steps where nobody waited
    during = []
    for gated in range(batch + 1):
        own = counts["together"][:, RANK].tolist()
        same = [ms for ms, n in zip(times["together"], own) if n == gated]
        during.append(mean(same) if same else by_gated[gated])
    slowest = counts["alone"].max(1).values.tolist()
    asked = {way: (counts[way].max(1).values > 0).float().mean().item() for way in WAYS}
    return {"ms_by_gated": during, "ranks": WORLD_SIZE, "steps": steps,
            "real_ms": {way: mean(times[way]) for way in WAYS},
            "alone_foretold_ms": mean(during[g] for g in slowest),
            "share_of_steps_with_a_gated_sample": asked}


def step_over_sft(found: dict, tau: float = TAU) -> dict[str, list]:
    """For each of RANKS: the mean step over an SFT step, gating alone and together."""
    cost, p = found["ms_by_gated"], bench.trigger_rate(tau)
    ratios = {"ranks": RANKS}
    for way in WAYS:
        ratios[way] = [expected_step(cost, p, n, way == "together") / cost[0] for n in RANKS]
    return ratios


def draw_gate(found: dict, path: Path, tau: float = TAU) -> None:
    """The figure: step over SFT against the number of ranks."""
    plt = pyplot()
    cost, ratios = found["ms_by_gated"], step_over_sft(found, tau)
    labels = {"alone": "each rank gates alone", "together": "all gate together"}
    figure, ax = plt.subplots(figsize=(6, 3.4))
    for way in WAYS:
        line, = ax.plot(RANKS, ratios[way], "o-", ms=3, label=labels[way])
        if "real_ms" in found:
            ax.plot(found["ranks"], found["real_ms"][way] / cost[0], "*", ms=13,
                    color=line.get_color(), label=f"{way}: {found['steps']} real steps")
    ax.axhline(cost[-1] / cost[0], color="grey", ls="--", lw=1, label="every sample gated")
    ax.set(xscale="log", xlabel="ranks", ylabel="mean step / SFT step",
           title=f"batch {found['batch']} a rank, tau {tau}")
    ax.set_xticks(RANKS, RANKS, fontsize=7)
    ax.legend(fontsize=7)
    figure.tight_layout()
    save_figure(figure, path, dpi=110)
