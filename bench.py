"""What does a training step cost, and what of it is self-reflection? (Sec. 5.1, Table 6)

    python bench.py                                  # some minutes
    python bench.py --batch 2 --repeats 1            # quick: does it run at all?

Milliseconds a step of SFT, of USO at five tau for each --decode and --think of train.py, and of own
edits; their ratio to SFT, where the time goes, FLOPs and peak memory, on random data of the
preset's shapes: printed, and bench.json and bench.png in --out.

It is train.py's own loop that runs, with a learning rate of 0, which is as much work; hooks hear
when a part of a step is done.

How many of a batch of B are below tau is random, and with it what a step costs. So a step is timed
for each number g = 0..B of gated samples (see `expected_cost`). Each step is divided by an SFT step
of the same few seconds, so that a drift of the machine cancels; medians over --repeats, and beside
a ratio its lowest and highest repeat.

m_0 and the thoughts of "expect" are made once a training sample and kept: timed apart. Left out:
reading a batch from the cache, several ranks. The real size: realsize/. Other ways to use a reward:
experiments/.

Axis letters: B batch, K frames seen by the critic, C f h w latents, T tokens, D width.
"""

import json
import math
import tempfile
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from statistics import median
from typing import Callable

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
CRITICS = [(decode, think) for think in THINK for decode in DECODE]     # train.py's default first
PARTS = ("rollout", "DiT forward", "decode forward", "VLM forward", "VLM backward",
         "decode backward", "DiT backward", "optimizer", "the rest")    # in a step's order


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


# --------------------------------------------------------------------------------- what is measured

@dataclass
class Way:
    """A way to train: a step of train.py, the critic that it asks, and its batch."""
    step: Callable
    critic: Critic | None
    batch: Batch

    def run(self, model: UnifiedModel) -> tuple[torch.Tensor, dict]:
        """The step's loss and log."""
        return self.step(model, self.critic, self.batch, LAMBDA if self.critic else 0.)

    def gate(self, n: int) -> None:
        """The first n samples are below tau, the others are not."""
        for batch in (self.batch, self.batch.pairs):
            if batch:
                batch.near = torch.arange(len(batch.t), device=batch.t.device) < n
                batch.t = torch.where(batch.near, TAU / 2, (1 + TAU) / 2)
                batch.n_near = n


def make_ways(model: UnifiedModel, size: int, critics: list[tuple]) -> dict[str, Way]:
    """SFT, USO with each critic (--decode, --think), and own edits with the first of them."""
    ways = {"SFT": Way(train.uso_step, None, random_batch(model, size))}
    for decode, think in critics:
        critic = Critic(model, think, decode)
        ways[f"{decode}/{think}"] = Way(train.uso_step, critic, random_batch(model, size))
    own_edits = random_batch(model, size)
    own_edits.pairs = random_batch(model, size)
    first = ways["/".join(critics[0])].critic
    ways["own edits"] = Way(train.own_edit_step, first, own_edits)
    return ways


def random_batch(model: UnifiedModel, size: int) -> Batch:
    """A batch of the preset's shapes, random but for the instructions."""
    torch.manual_seed(0)
    p, where = model.preset, model.device
    phrases = all_phrases()
    instructions = [phrases[7 * i % len(phrases)].format(n="the red ball") for i in range(size)]
    text = [torch.randn(12, p.dit["text_dim"], device=where) for _ in range(size)]
    source, target, noise = torch.randn(3, size, *p.latent_shape, device=where)
    frames = torch.rand(size, p.vlm_frames, 3, p.height, p.width, device=where) * 2 - 1
    bridged = torch.randn(size, p.ar_queries * p.adapter_queries, p.dit["text_dim"], device=where)
    nothing = torch.zeros(size, device=where)
    return Batch(source, target, bridged, text, frames, instructions, thoughts=[""] * size,
                 baseline=nothing, t=nothing, noise=noise, near=nothing > 0, n_near=0)


def all_phrases() -> list[str]:
    """What the tiny world's instructions can say."""
    rules = [rule for of_subset in world.RULES.values() for rule in of_subset]
    return [phrase for rule in rules for phrase in rule.phrases]


# ------------------------------------------------------------------------------------ the measuring

def measure(model: UnifiedModel, size: int, repeats: int, critics=CRITICS, flops=True) -> dict:
    """Milliseconds, MiB and FLOPs of each of `make_ways`, as they go to bench.json.

    size: of a batch. The first of the critics is the one that the report begins with.
    """
    model.freeze()
    ways = make_ways(model, size, critics)
    sft, uso = list(ways)[:2]                            # their names
    steps = {}
    for name, way in ways.items():
        asked = [ask_about_sources(model, way) for _ in range(repeats)]
        with_sft = {sft: ways[sft], name: way}
        parts = time_steps(model, with_sft, size, repeats)
        steps[name] = summary(parts[name], parts[sft], size)
        steps[name]["once_a_sample_ms"] = median(asked) / size
        way.gate(size)
        with peak_memory(model.device) as memory:
            forward_and_backward(model, way)
        steps[name]["peak_mib_all_gated"] = memory.mib
    result = {"steps": steps, "uso": uso}
    if flops:
        result["flops"] = {"SFT": flops_of(model, ways[sft]),
                           "USO, all gated": flops_of(model, ways[uso])}
    return result


def ask_about_sources(model: UnifiedModel, way: Way) -> float:
    """Milliseconds of a batch's thoughts and m_0, which are kept in it; 0 without a critic."""
    if way.critic is None:
        return 0.
    batch = way.batch.pairs or way.batch
    clock = Clock(model.device)
    with model.precision():
        thoughts, batch.baseline = way.critic.about_sources(batch.frames, batch.instructions)
    batch.thoughts = None if None in thoughts else thoughts
    clock.mark("ask")
    return clock.parts["ask"]


def forward_and_backward(model: UnifiedModel, way: Way) -> None:
    """A step without its optimizer; no gradient stays."""
    with model.precision():
        loss, _ = way.run(model)
    loss.backward()
    model.zero_grad()


def flops_of(model: UnifiedModel, way: Way) -> int:
    with count_flops() as count:
        forward_and_backward(model, way)
    return count.flops


class Timed:
    """Stands in for data.Batches and train.py's step: step number n is of jobs[n], a way and how
    many samples are gated; clocks[n].parts are its milliseconds."""

    def __init__(self, jobs: list[tuple[Way, int]]):
        self.jobs, self.clocks = jobs, []

    def of(self, number: int):
        self.way, gated = self.jobs[number]
        self.way.gate(gated)
        if self.clocks:
            self.mark("the rest")                        # of the step before: log, progress bar
        self.clocks.append(Clock(self.way.batch.t.device))
        yield self.way.batch

    def step(self, model, critic, batch, lam):
        return self.way.run(model)

    def mark(self, part: str) -> None:
        self.clocks[-1].mark(part)


def time_steps(model: UnifiedModel, ways: dict[str, Way], size: int,
               repeats: int) -> dict[str, list[list[dict]]]:
    """[name][gated][repeat]: the milliseconds of a step's parts, in train.py's loop.

    The ways take turns, so that a drift meets all alike; but only two of them, since oneDNN keeps
    1,024 prepared convolutions and no more. The first round warms up.
    """
    one_round = [(name, gated) for gated in range(size + 1) for name in ways]
    jobs = one_round * (1 + repeats)
    jobs.append(jobs[0])                                 # not timed: after the last step it saves
    timed = Timed([(ways[name], gated) for name, gated in jobs])
    with tempfile.TemporaryDirectory() as folder, heard(model, timed.mark):
        args = train.parse(["--out", folder, "--lr", "0", "--steps", str(len(jobs)),
                            "--save-every", str(len(jobs))])
        train.train(model, None, timed, args, timed.step, "bench")
    parts = {name: [[] for _ in range(size + 1)] for name in ways}
    for (name, gated), clock in list(zip(jobs, timed.clocks))[len(one_round):-1]:
        parts[name][gated].append(clock.parts)
    return parts


@contextmanager
def heard(model: UnifiedModel, mark: Callable[[str], None]):
    """mark(part) is called when a part of a step is done, forward, in the one backward, and after.

    Autograd runs the younger nodes first: all of the critic's before any of the DiT's. Clipping is
    counted to the DiT's backward pass.
    """
    decoder, decoder_is_next = model.vae.decoder, False

    def after_dit(*_):
        mark("DiT forward" if torch.is_grad_enabled() else "rollout")

    def after_vlm(*_):
        nonlocal decoder_is_next
        decoder_is_next = False
        mark("VLM forward")

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
        nonlocal decoder_is_next
        mark("decode backward" if decoder_is_next else "VLM backward")
        decoder_is_next = True
    hooks = [model.transformer.register_forward_hook(after_dit),
             decoder.register_forward_pre_hook(before_decoder),
             decoder.register_forward_hook(after_decoder),
             model.vlm.llm.register_forward_hook(after_vlm),
             register_optimizer_step_pre_hook(lambda *_: mark("DiT backward")),
             register_optimizer_step_post_hook(lambda *_: mark("optimizer"))]
    try:
        yield
    finally:
        for hook in hooks:
            hook.remove()


def summary(cells: list[list[dict]], plain: list[list[dict]], size: int) -> dict:
    """Milliseconds by number of gated samples; for each tau the mean step, its ratio, its parts.

    cells, plain: [gated][repeat] of the way and of SFT.
    """
    def total(parts):
        return sum(parts.values())
    by_gated = [median(total(parts) for parts in cell) for cell in cells]
    ratios = [[total(a) / total(b) for a, b in zip(cell, sft)] for cell, sft in zip(cells, plain)]
    by_part = {part: [median(parts.get(part, 0.) for parts in cell) for cell in cells]
               for part in PARTS}
    taus = {}
    for tau in TAUS:
        each_repeat = [expected_cost(list(column), tau, size) for column in zip(*ratios)]
        taus[tau] = {"ms": expected_cost(by_gated, tau, size),
                     "ratio": expected_cost([median(row) for row in ratios], tau, size),
                     "lowest": min(each_repeat), "highest": max(each_repeat),
                     "parts": {part: expected_cost(ms, tau, size)
                               for part, ms in by_part.items()}}
    return {"ms_by_gated": by_gated, "tau": taus}


# --------------------------------------------------------------------------------------- the report

def report(result: dict) -> str:
    """The mean step by tau, and where the time of each way goes."""
    steps = result["steps"]
    lines = [["", "trigger rate", "ms", "USO / SFT [lowest, highest]", "in FLOPs"]]
    lines.append(["SFT", "0.0%", f"{steps['SFT']['tau'][TAU]['ms']:.1f}", "1", "1"])
    for tau, x in steps[result["uso"]]["tau"].items():
        flops = "-"
        if "flops" in result:                            # in proportion to the gated samples
            more = result["flops"]["USO, all gated"] / result["flops"]["SFT"] - 1
            flops = f"{1 + trigger_rate(tau) * more:.2f}"
        lines.append([f"USO, tau {tau}", f"{trigger_rate(tau):.1%}", f"{x['ms']:.1f}",
                      f"{x['ratio']:.2f} [{x['lowest']:.2f}, {x['highest']:.2f}]", flops])

    def row(name, value, digits=1):
        return [name, *[f"{value(step):.{digits}f}" for step in steps.values()]]
    parts = [["", *steps],
             *[row(part, lambda step: step["tau"][TAU]["parts"][part]) for part in PARTS],
             row("all", lambda step: step["tau"][TAU]["ms"]),
             row("times SFT", lambda step: step["tau"][TAU]["ratio"], digits=2),
             row("peak MiB, all gated", lambda step: step["peak_mib_all_gated"], digits=0),
             row("m_0 and thought, once a sample", lambda step: step["once_a_sample_ms"])]
    return (f"The mean step, {result['uso']}, whatever lambda is\n\n{markdown(lines)}\n"
            f"Milliseconds of a step at tau {TAU}; of USO by --decode/--think\n\n{markdown(parts)}")


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
    ax.set(xlim=(0, 1.1 * max(ends)), ylim=(len(bars) - .5, -.5),
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
    atomic_write(args.out / "bench.json", json.dumps(result, indent=1) + "\n")
    draw(result, args.out / "bench.png")
    print(f"wrote bench.json and bench.png into {args.out}")


if __name__ == "__main__":
    run_script(main, "stopped; nothing was written")
