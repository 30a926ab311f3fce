"""What does a training step cost, and what of it is self-reflection? (Sec. 5.1, Table 6)

    python bench.py                                  # some minutes
    python bench.py --batch 2 --repeats 1            # quick: does it run at all?

Milliseconds a step of SFT and of USO at five tau, their ratio, where the time goes, FLOPs and peak
memory, for each --decode and --think of train.py, on random data of the preset's shapes: printed,
and bench.json and bench.png in --out.

It is train.py's own loop that runs, with a learning rate of 0, which is as much work. `yield
way.gated(n)` in a plan means: train.py takes one step on this batch, and comes back. Hooks hear
when a part of the step is done.

How many of a batch of B are below tau is random, and with it what a step costs. So a step is timed
for each number g = 0..B of gated samples (see `expected_cost`). Each USO step is divided by an SFT
step of the same few seconds, so that a drift of the machine cancels; medians over --repeats, and
beside a ratio its lowest and highest repeat.

m_0 and the thoughts of "expect" are made once a training sample and kept: timed apart. Left out:
reading a batch from the cache, several ranks. The real size: realsize/. Other ways to use a reward:
experiments/.

Axis letters: B batch, K frames seen by the critic, C f h w latents, T tokens, D width.
"""

import json
import math
import tempfile
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from statistics import median

import common.measure  # noqa: F401      before torch is loaded: its profiler is talkative
import torch
from torch.optim.optimizer import (register_optimizer_step_post_hook,
                                   register_optimizer_step_pre_hook)

import train
from common.distributed import device as this_device
from common.files import Parser, atomic_write, check_writable, markdown, positive, run_script
from common.measure import Clock, about, count_flops, peak_memory
from common.plots import pyplot, save_figure
from critic import DECODE, THINK, Critic
from data import Batch
from model import UnifiedModel, load_model
from tiny import world

TAUS = (.1, .3, .5, .7, .9)                              # Table 6's columns
TAU, LAMBDA = .5, .25                                    # the paper's choice
GOAL = 2.0                                               # USO / SFT at TAU, at most
WAYS = [(decode, think) for think in THINK for decode in DECODE]        # train.py's default first
PARTS = ("DiT forward", "decode forward", "VLM forward", "VLM backward", "decode backward",
         "DiT backward", "optimizer", "the rest")        # in the order in which a step does them


# ----------------------------------------------------------------------------------- the arithmetic

def trigger_rate(tau: float) -> float:
    """P(t < tau) = tau / (3 - 2 tau), at flow shift 3 (Table 6). ValueError: tau not in (0, 1]."""
    if not 0 < tau <= 1:
        raise ValueError(f"tau must be in (0, 1], not {tau}")
    return tau / (3 - 2 * tau)


def expected_cost(cost_by_gated: list[float], tau: float, batch: int) -> float:
    """The mean cost of a step, any unit: sum over g of P(g samples are gated) * cost_by_gated[g].

    Raises ValueError for tau outside (0, 1] and where there are not batch + 1 costs.
    """
    if len(cost_by_gated) != batch + 1:
        raise ValueError(f"a batch of {batch} needs {batch + 1} costs, not {len(cost_by_gated)}")
    p = trigger_rate(tau)
    total = 0.
    for g, cost in enumerate(cost_by_gated):
        total += math.comb(batch, g) * p ** g * (1 - p) ** (batch - g) * cost
    return total


# ----------------------------------------------------------------------------- what a step is of

def all_phrases() -> list[str]:
    """What the tiny world's instructions can say."""
    rules = [rule for of_subset in world.RULES.values() for rule in of_subset]
    return [phrase for rule in rules for phrase in rule.phrases]


def random_batch(model: UnifiedModel, size: int) -> Batch:
    """A batch of the preset's shapes, random but for the instructions; nothing is gated yet."""
    torch.manual_seed(0)
    p, where = model.preset, model.device
    phrases = all_phrases()
    instructions = [phrases[7 * i % len(phrases)].format(n="the red ball") for i in range(size)]
    text = [torch.randn(12, p.dit["text_dim"], device=where) for _ in range(size)]
    source, target, noise = torch.randn(3, size, *p.latent_shape, device=where)
    frames = torch.rand(size, p.vlm_frames, 3, p.height, p.width, device=where) * 2 - 1
    bridged = torch.randn(size, p.ar_queries * p.adapter_queries, p.dit["text_dim"], device=where)
    nothing = torch.zeros(size, device=where)
    batch = Batch(source, target, bridged, text, frames, instructions, thoughts=[""] * size,
                  baseline=nothing, t=nothing, noise=noise, near=nothing > 0, n_near=0, seed=0)
    set_gated(batch, 0)
    return batch


def set_gated(batch: Batch, n: int) -> None:
    """The first n samples are below tau, the others are not."""
    batch.near = torch.arange(len(batch.t), device=batch.t.device) < n
    batch.t = torch.where(batch.near, TAU / 2, (1 + TAU) / 2)
    batch.n_near = n


def set_reflections(batch: Batch, critic: Critic) -> None:
    """Thoughts and m_0, as they are made once a training sample."""
    thoughts, batch.baseline = critic.about_sources(batch.frames, batch.instructions)
    batch.thoughts = None if None in thoughts else thoughts


@dataclass
class Way:
    """A way to train: USO with a critic, or SFT without one."""
    batch: Batch
    critic: Critic | None = None

    def gated(self, n: int) -> "Way":
        """This way, for a plan: its next step has n samples below tau."""
        set_gated(self.batch, n)
        return self


class Finished(Exception):
    """Nothing more is planned."""


class Plan:
    """Stands in for data.Batches: a generator says what each step is of.

    Between two of its `yield way.gated(n)` lies one step of train.py, whole.
    """

    def __init__(self, steps):
        self.steps, self.way = steps, None

    def of(self, number: int):
        self.way = next(self.steps, None)
        if self.way is None:
            raise Finished
        yield self.way.batch

    def step(self, model, critic, batch, lam):
        """train.py's step, with the critic of the way that is planned."""
        return train.uso_step(model, self.way.critic, batch, LAMBDA if self.way.critic else 0.)


def run_plan(model: UnifiedModel, steps, n: int) -> None:
    """Train, in `n` steps that the generator `steps` plans; nothing is kept of it."""
    plan = Plan(steps)
    with tempfile.TemporaryDirectory() as folder, suppress(Finished):
        args = train.parse(["--out", folder, "--lr", "0", "--steps", f"{n + 1}",
                            "--save-every", f"{n + 2}"])         # never reached: nothing is saved
        train.train(model, None, plan, args, plan.step, "bench")


@contextmanager
def marked(model: UnifiedModel, mark):
    """mark(part) is called when a part of a step is done, forward, in the one backward, and after.

    Autograd runs the younger nodes first: all of the critic's before any of the DiT's. Clipping is
    counted to the DiT's backward pass.
    """
    decoder, vlm_is_done = model.vae.decoder, False

    def before_decoder(module, inputs):
        if inputs[0].requires_grad:
            inputs[0].register_hook(lambda gradient: mark("decode backward"))

    def after_decoder(module, inputs, output):
        mark("decode forward")
        if output.requires_grad:
            output.register_hook(gradient_at_output)

    def gradient_at_output(gradient):
        # the exact decode calls the decoder once a latent frame: between two outputs it is its
        # backward pass
        nonlocal vlm_is_done
        mark("decode backward" if vlm_is_done else "VLM backward")
        vlm_is_done = True
    hooks = [model.transformer.register_forward_hook(lambda *_: mark("DiT forward")),
             decoder.register_forward_pre_hook(before_decoder),
             decoder.register_forward_hook(after_decoder),
             model.vlm.llm.register_forward_hook(lambda *_: mark("VLM forward")),
             register_optimizer_step_pre_hook(lambda *_: mark("DiT backward")),
             register_optimizer_step_post_hook(lambda *_: mark("optimizer"))]
    try:
        yield
        mark("the rest")                                 # the log, gradients set to None
    finally:
        for hook in hooks:
            hook.remove()


# ------------------------------------------------------------------------------------ the measuring

def measure(model: UnifiedModel, batch_size: int, repeats: int, ways=WAYS, flops=True) -> dict:
    """Milliseconds, MiB and FLOPs of SFT and of each way of USO, as they go to bench.json.

    ways: pairs of train.py's --decode and --think; the first is the one that the goal is about.
    """
    model.freeze()
    by_name, once_a_sample = {"SFT": Way(random_batch(model, batch_size))}, {"SFT": 0.}
    for decode, think in ways:
        name = f"{decode}/{think}"
        way = Way(random_batch(model, batch_size), Critic(model, think, decode))
        times = [time_reflections(model, way) for _ in range(repeats)]
        once_a_sample[name] = median(times) / batch_size
        by_name[name] = way
    sft, own = list(by_name)[:2]                         # their names
    peak, runs, counted = {}, {}, {}

    def steps():
        yield by_name[sft].gated(0)                      # makes the optimizer's state
        for name, way in by_name.items():
            with peak_memory(model.device) as memory:
                yield way.gated(batch_size)
            peak[name] = memory.mib
        for name in list(by_name)[1:]:                   # as in a training, one way at a time
            two = {"SFT": by_name[sft], name: by_name[name]}
            runs[name] = yield from timed_steps(model, two, batch_size, repeats)
        if flops:
            for name, n in (sft, 0), (own, batch_size):
                with count_flops() as count:
                    yield by_name[name].gated(n)
                counted[name] = count.flops
    rounds = 2 * (batch_size + 1) * (repeats + (repeats > 1))           # for the progress bar
    run_plan(model, steps(), 1 + len(by_name) + rounds * len(ways) + 2 * flops)

    results = {sft: summary(runs[own][sft], runs[own][sft], batch_size)}
    for name, cells in runs.items():
        results[name] = summary(cells[name], cells[sft], batch_size)
    for name, row in results.items():
        row |= {"peak_mib_all_gated": peak[name], "once_a_sample_ms": once_a_sample[name]}
    ratio = results[own]["tau"][TAU]["ratio"]
    found = {"steps": results, "own": own,
             "goal": {"tau": TAU, "at_most": GOAL, "ratio": ratio, "met": ratio <= GOAL}}
    if flops:
        found["flops"] = {"SFT": counted[sft], "USO, all gated": counted[own]}
    return found


def time_reflections(model: UnifiedModel, way: Way) -> float:
    """Milliseconds of a batch's thoughts and m_0."""
    clock = Clock(model.device)
    with model.precision():
        set_reflections(way.batch, way.critic)
    clock.mark("ask")
    return clock.parts["ask"]


def timed_steps(model: UnifiedModel, ways: dict[str, Way], batch_size: int, repeats: int):
    """A part of a plan; returns [name][gated][repeat], the milliseconds of a step's parts.

    The ways take turns, so that a drift meets all alike; but only two of them, since oneDNN keeps
    1,024 prepared convolutions and no more.
    """
    runs = {name: [[] for _ in range(batch_size + 1)] for name in ways}
    warm_up = repeats > 1
    for repeat in range(repeats + warm_up):
        for gated in range(batch_size + 1):
            for name, way in ways.items():
                clock = Clock(model.device)
                with marked(model, clock.mark):
                    yield way.gated(gated)
                if not warm_up or repeat > 0:
                    runs[name][gated].append(clock.parts)
    return runs


def summary(cells: list[list[dict]], plain: list[list[dict]], batch_size: int) -> dict:
    """Milliseconds by number of gated samples; for each tau the mean step, its ratio, its parts."""

    def total(parts):
        return sum(parts.values())
    by_gated = [median(total(parts) for parts in cell) for cell in cells]
    ratios = [[total(a) / total(b) for a, b in zip(cell, sft)] for cell, sft in zip(cells, plain)]
    by_part = {part: [median(parts.get(part, 0.) for parts in cell) for cell in cells]
               for part in PARTS}
    taus = {}
    for tau in TAUS:
        each_repeat = [expected_cost(list(column), tau, batch_size) for column in zip(*ratios)]
        taus[tau] = {"ms": expected_cost(by_gated, tau, batch_size),
                     "ratio": expected_cost([median(row) for row in ratios], tau, batch_size),
                     "lowest": min(each_repeat), "highest": max(each_repeat),
                     "parts": {part: expected_cost(ms, tau, batch_size)
                               for part, ms in by_part.items()}}
    return {"ms_by_gated": by_gated, "tau": taus}


# --------------------------------------------------------------------------------------- the report

def report(result: dict) -> str:
    """The tables, and whether the goal is met."""
    steps, goal = result["steps"], result["goal"]
    lines = [["", "trigger rate", "ms", "USO / SFT [lowest, highest]", "in FLOPs"]]
    lines.append(["SFT", "0.0%", f"{steps['SFT']['tau'][TAU]['ms']:.1f}", "1", "1"])
    for tau, x in steps[result["own"]]["tau"].items():
        flops = "-"
        if "flops" in result:                            # in proportion to the gated samples
            more = result["flops"]["USO, all gated"] / result["flops"]["SFT"] - 1
            flops = f"{1 + trigger_rate(tau) * more:.2f}"
        lines.append([f"USO, tau {tau}", f"{trigger_rate(tau):.1%}", f"{x['ms']:.1f}",
                      f"{x['ratio']:.2f} [{x['lowest']:.2f}, {x['highest']:.2f}]", flops])
    by_part = [["", *steps]]
    for part in PARTS:
        by_part.append([part, *[f"{x['tau'][TAU]['parts'][part]:.1f}" for x in steps.values()]])
    by_part.append(["all", *[f"{x['tau'][TAU]['ms']:.1f}" for x in steps.values()]])
    by_part.append(["USO / SFT", *[f"{x['tau'][TAU]['ratio']:.2f}" for x in steps.values()]])
    peaks = [f"{x['peak_mib_all_gated']:.0f}" for x in steps.values()]
    by_part.append(["peak MiB, all gated", *peaks])
    once = [f"{x['once_a_sample_ms']:.1f}" for x in steps.values()]
    by_part.append(["m_0 and thought, once a sample", *once])
    met = "met" if goal["met"] else "NOT met"
    return (f"The mean step, {result['own']}, whatever lambda is\n\n{markdown(lines)}\n"
            f"Milliseconds of a step at tau {TAU}, by --decode/--think\n\n{markdown(by_part)}\n"
            f"Goal: USO / SFT at most {goal['at_most']} at tau {TAU}: {goal['ratio']:.2f}, {met}")


def draw(result: dict, path: Path) -> None:
    """Write a picture: a bar for SFT and for each way of USO at TAU, made up of its parts."""
    plt = pyplot()
    bars = {name: row["tau"][TAU] for name, row in result["steps"].items()}
    figure, ax = plt.subplots(figsize=(9, 3.6))
    ends = [0.] * len(bars)
    for k, part in enumerate(PARTS):
        values = [bar["parts"][part] for bar in bars.values()]
        ax.barh(list(bars), values, left=ends, label=part, color=plt.cm.Paired(k))
        ends = [a + b for a, b in zip(ends, values)]
    for y, (end, bar) in enumerate(zip(ends, bars.values())):
        ax.text(end, y, f" {bar['ratio']:.2f} x", va="center", size=8)
    limit = result["goal"]["at_most"] * ends[0]
    ax.axvline(limit, color="grey", ls="--", lw=1, label=f"goal: {result['goal']['at_most']} x SFT")
    ax.set(xlim=(0, 1.1 * max(*ends, limit)), ylim=(len(bars) - .5, -.5),
           xlabel=f"milliseconds a step, batch {result['batch']}, tau {TAU}; {result['device']}")
    ax.legend(fontsize=7, loc="center left", bbox_to_anchor=(1, .5))
    figure.tight_layout()
    save_figure(figure, path, dpi=110)


# -------------------------------------------------------------------------------------- the command

def parse(argv=None):
    parser = Parser(description="Measure what a training step costs.")
    add = parser.add_argument
    add("--batch", type=positive, default=8, help="samples a step")
    add("--repeats", type=positive, default=5, help="how often each step is timed")
    add("--out", type=Path, default=Path("out/bench"), help="folder of the results")
    add("--weights", help="model folder (without it: weights/tiny)")
    args = parser.parse_args(argv)
    check_writable(args.out / "bench.json")
    return args


def main(argv=None) -> None:
    args = parse(argv)
    model = load_model(args.weights, "tiny").to(this_device())
    setting = about() | {"weights": args.weights or "weights/tiny", "batch": args.batch,
                         "repeats": args.repeats}
    result = setting | measure(model, args.batch, args.repeats)
    for name, value in setting.items():
        print(f"{name}: {value}")
    print(f"\n{report(result)}")
    draw(result, args.out / "bench.png")
    atomic_write(args.out / "bench.json", json.dumps(result, indent=1) + "\n")
    print(f"wrote bench.json and bench.png into {args.out}")


if __name__ == "__main__":
    run_script(main, "stopped; nothing was written")
