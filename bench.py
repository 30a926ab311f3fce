"""What does a training step cost, and what of it is self-reflection? (Sec. 5.1, Table 6)

    python bench.py                                  # the released weights; some minutes
    python bench.py --random --batch 2 --repeats 1   # quick, without weights: does it run at all?

Milliseconds a step of SFT and of USO at five tau, their ratio, where the time goes, FLOPs and peak
memory, for each --decode and --think of train.py, on random data of the preset's shapes: printed,
and bench.json and bench.png in --out.

The step is `train.uso_step` itself, with train.py's clipping and optimizer; hooks on the modules
and tensors in it say when a part of it is done. The learning rate is 0, which is as much work.

How many of a batch of B are below tau is random, and with it what a step costs. So a step is timed
for each number g = 0..B of gated samples, and averaged with the weights that g has by chance:
binomial, P(t < tau) = tau / (3 - 2 tau). Each USO step is divided by an SFT step of the same few
seconds, so that a drift of the machine cancels; medians over --repeats, and beside a ratio its
lowest and highest repeat.

m_0 and the thoughts of "expect" are made once a training sample and kept: timed apart. Left out:
reading a batch from the cache, logging, several ranks. The real size: realsize/. Other ways to use
a reward: experiments/.

Axis letters: B batch, K frames seen by the critic, C f h w latents, T tokens, D width.
"""

import json
import math
import os
import platform
import re
import sys
import tempfile
import time
from importlib.metadata import version
from pathlib import Path
from statistics import median

# the profiler is talkative
os.environ |= {"TORCH_CPP_LOG_LEVEL": "ERROR", "KINETO_LOG_LEVEL": "99"}

import common  # noqa: F401              before what takes seconds to load: Ctrl-C is a line
import torch
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils.flop_counter import FlopCounterMode
from tqdm import tqdm

from common.distributed import device as this_device
from common.files import (BadInput, Parser, atomic_write, check_writable, markdown, positive,
                          run_script)
from common.plots import pyplot, save_figure
from critic import DECODE, SYSTEM, THINK, Critic
from data import Batch
from model import UnifiedModel, load_model
from presets import PRESETS
from tiny import world
from tiny.tokenizer import make_tokenizer
from train import uso_step

TAUS = (.1, .3, .5, .7, .9)                              # Table 6's columns
TAU, LAMBDA = .5, .25                                    # the paper's choice
GOAL = 2.0                                               # USO / SFT at TAU, at most
WAYS = [(decode, think) for think in THINK for decode in DECODE]        # train.py's default first
PARTS = ("DiT forward", "decode forward", "VLM forward", "VLM backward", "decode backward",
         "DiT backward", "optimizer")                    # in the order in which a step does them


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


# ----------------------------------------------------------------------------------------- the step

def all_phrases() -> list[str]:
    """What the tiny world's instructions can say."""
    rules = [rule for rules in world.RULES.values() for rule in rules]
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
    return Batch(source, target, bridged, text, frames, instructions, thoughts=[""] * size,
                 baseline=nothing, t=nothing + (1 + TAU) / 2, noise=noise, near=nothing > 0,
                 n_near=0, seed=0)


def set_gated(batch: Batch, n: int) -> None:
    """The first n samples are below tau, the others are not."""
    batch.near = torch.arange(len(batch.t), device=batch.t.device) < n
    batch.t = torch.where(batch.near, TAU / 2, (1 + TAU) / 2)
    batch.n_near = n


def set_reflections(batch: Batch, critic: Critic) -> None:
    """Thoughts and m_0, as `data.reflect` makes them once a training sample."""
    thoughts = critic.thoughts(batch.frames, batch.instructions, batch.frames)
    batch.baseline = critic.baseline(batch.frames, batch.instructions, thoughts)
    batch.thoughts = None if critic.think == "full" else thoughts


def training_step(model, optimizer, batch, critic, lam, mark=lambda part: None) -> None:
    """A step of train.py. mark(part): called when one of PARTS is done."""
    optimizer.zero_grad(set_to_none=True)
    with marked(model, mark), model.precision():
        loss, _ = uso_step(model, critic, batch, lam)
        loss.backward()
    mark("DiT backward")
    norm = torch.nn.utils.clip_grad_norm_(optimizer.param_groups[0]["params"], 1.0)
    if torch.isfinite(loss) and torch.isfinite(norm):
        optimizer.step()
    mark("optimizer")


class marked:
    """Hooks that call mark(part) when a part of the step is done, forward and in the one backward.

    Autograd runs the younger nodes first: all of the critic's before any of the DiT's.
    """

    def __init__(self, model, mark):
        self.model, self.mark, self.vlm_is_done = model, mark, False

    def __enter__(self):
        decoder = self.model.vae.decoder
        self.hooks = [
            self.model.transformer.register_forward_hook(lambda *_: self.mark("DiT forward")),
            decoder.register_forward_pre_hook(self.before_decoder),
            decoder.register_forward_hook(self.after_decoder),
            self.model.vlm.llm.register_forward_hook(lambda *_: self.mark("VLM forward"))]

    def before_decoder(self, module, inputs):
        if inputs[0].requires_grad:
            inputs[0].register_hook(lambda gradient: self.mark("decode backward"))

    def after_decoder(self, module, inputs, output):
        self.mark("decode forward")
        if output.requires_grad:
            output.register_hook(self.gradient_at_output)

    def gradient_at_output(self, gradient):
        # the exact decode calls the decoder once a latent frame: between two outputs it is its
        # backward pass
        self.mark("decode backward" if self.vlm_is_done else "VLM backward")
        self.vlm_is_done = True

    def __exit__(self, *error):
        for hook in self.hooks:
            hook.remove()


# ------------------------------------------------------------------------------------ the measuring

def timed(step, device: torch.device) -> dict[str, float]:
    """Milliseconds of each part of step(mark=...), in the order in which they were first done."""
    parts, last = {}, time.perf_counter()

    def mark(part):
        nonlocal last
        if device.type == "cuda":
            torch.cuda.synchronize(device)
        now = time.perf_counter()
        parts[part] = parts.get(part, 0.) + 1000 * (now - last)
        last = now
    step(mark=mark)
    return parts


def peak_memory(step, device: torch.device) -> float:
    """The most MiB of tensors alive at once in step(), beyond what was alive before it.

    Not ru_maxrss: a process's high-water mark is reached once, and is then blind to smaller steps.
    """
    if device.type == "cuda":
        before = torch.cuda.memory_allocated(device)
        torch.cuda.reset_peak_memory_stats(device)
        step()
        return (torch.cuda.max_memory_allocated(device) - before) / 2 ** 20
    with torch.profiler.profile(activities=[torch.profiler.ProfilerActivity.CPU],
                                profile_memory=True) as record:
        step()
    with tempfile.TemporaryDirectory() as folder:
        record.export_chrome_trace(f"{folder}/trace.json")
        events = json.loads(Path(f"{folder}/trace.json").read_text("utf-8"))["traceEvents"]
    alive = highest = 0
    for event in sorted((e for e in events if e["name"] == "[memory]"), key=lambda e: e["ts"]):
        alive += event["args"]["Bytes"]                  # below zero where they are freed
        highest = max(highest, alive)
    return highest / 2 ** 20


def count_flops(step) -> int:
    """Floating-point operations of the matrix products and convolutions in step()."""
    with sdpa_kernel(SDPBackend.MATH), FlopCounterMode(display=False) as counter:
        step()                                           # it counts no fused attention
    return counter.get_total_flops()


def measure(model: UnifiedModel, batch_size: int, repeats: int, ways=WAYS, flops=True) -> dict:
    """Milliseconds, MiB and FLOPs of SFT and of each way of USO, as they go to bench.json.

    ways: pairs of train.py's --decode and --think; the first is the one that the goal is about.
    """
    device = model.device
    optimizer = torch.optim.AdamW(model.freeze(), lr=0., betas=(.9, .95), weight_decay=1e-4)
    plain = random_batch(model, batch_size)
    steps = {"SFT": gated_step(model, optimizer, plain, None, 0.)}
    once_a_sample = {"SFT": 0.}
    for decode, think in ways:
        critic, batch = Critic(model, think, decode), random_batch(model, batch_size)

        def ask(mark):
            set_reflections(batch, critic)
            mark("ask")
        with model.precision():
            times = [timed(ask, device)["ask"] for _ in range(repeats)]
        once_a_sample[f"{decode}/{think}"] = median(times) / batch_size
        steps[f"{decode}/{think}"] = gated_step(model, optimizer, batch, critic, LAMBDA)
    steps["SFT"](0)                                      # makes the optimizer's state
    peak = {name: peak_memory(lambda: step(batch_size), device) for name, step in steps.items()}
    own = f"{ways[0][0]}/{ways[0][1]}"
    results = {}
    for name in list(steps)[1:]:                         # as in a training, one way at a time
        runs = time_steps({"SFT": steps["SFT"], name: steps[name]}, batch_size, repeats, device)
        if name == own:
            results["SFT"] = summary(runs["SFT"], runs["SFT"], batch_size)
        results[name] = summary(runs[name], runs["SFT"], batch_size)
    for name, row in results.items():
        row |= {"peak_mib_all_gated": peak[name], "once_a_sample_ms": once_a_sample[name]}
    ratio = results[own]["tau"][TAU]["ratio"]
    found = {"steps": results, "own": own,
             "goal": {"tau": TAU, "at_most": GOAL, "ratio": ratio, "met": ratio <= GOAL}}
    if flops:
        found["flops"] = {"SFT": count_flops(lambda: steps["SFT"](0)),
                          "USO, all gated": count_flops(lambda: steps[own](batch_size))}
    return found


def gated_step(model, optimizer, batch, critic, lam):
    """step(n): a training step in which n samples of the batch are gated."""

    def step(n, mark=lambda part: None):
        set_gated(batch, n)
        training_step(model, optimizer, batch, critic, lam, mark)
    return step


def time_steps(steps: dict, batch_size: int, repeats: int, device) -> dict:
    """[name][gated][repeat]: milliseconds of the parts. The steps take turns, so that a drift meets
    all alike; but only two of them, since oneDNN keeps 1,024 prepared convolutions and no more."""
    runs = {name: [[] for _ in range(batch_size + 1)] for name in steps}
    warm_up = repeats > 1
    for repeat in tqdm(range(repeats + warm_up), desc="bench", unit="round"):
        for gated in range(batch_size + 1):
            for name, step in steps.items():
                parts = timed(lambda mark: step(gated, mark), device)
                if not warm_up or repeat > 0:
                    runs[name][gated].append(parts)
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
    parts = [["", *steps]]
    for part in PARTS:
        parts.append([part, *[f"{x['tau'][TAU]['parts'][part]:.1f}" for x in steps.values()]])
    parts.append(["all", *[f"{x['tau'][TAU]['ms']:.1f}" for x in steps.values()]])
    parts.append(["USO / SFT", *[f"{x['tau'][TAU]['ratio']:.2f}" for x in steps.values()]])
    peaks = [f"{x['peak_mib_all_gated']:.0f}" for x in steps.values()]
    parts.append(["peak MiB, all gated", *peaks])
    once = [f"{x['once_a_sample_ms']:.1f}" for x in steps.values()]
    parts.append(["m_0 and thought, once a sample", *once])
    met = "met" if goal["met"] else "NOT met"
    return (f"The mean step, {result['own']}, whatever lambda is\n\n{markdown(lines)}\n"
            f"Milliseconds of a step at tau {TAU}, for each --decode/--think\n\n{markdown(parts)}\n"
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

def random_model() -> UnifiedModel:
    """The tiny preset with random weights, and a tokenizer of the world's phrases."""
    torch.manual_seed(0)
    model = UnifiedModel(PRESETS["tiny"]).eval()
    phrases = all_phrases()
    tokenizer = make_tokenizer([SYSTEM, *phrases], model.preset.t5["vocab_size"])
    model.vlm.tokenizer = model.text_tokenizer = tokenizer
    return model


def about(threads: int) -> dict:
    """What a measurement is of: command, date, device, versions, and who else was at work."""
    busy = os.getloadavg()[0]
    names = re.findall(r"model name\s*: (.+)", Path("/proc/cpuinfo").read_text("utf-8"))
    name = names[0] if names else platform.machine()
    if torch.cuda.is_available():
        name = torch.cuda.get_device_name()
    load = f"{busy:.1f} when it began"
    if busy > .5:
        load += " (BUSY: others took part of the time)"
    return {"command": " ".join(["python", Path(sys.argv[0]).name, *sys.argv[1:]]),
            "date": time.strftime("%Y-%m-%d %H:%M UTC", time.gmtime()),
            "device": f"{name}, {threads} CPU threads", "python": platform.python_version(),
            "torch": version("torch"), "transformers": version("transformers"),
            "diffusers": version("diffusers"), "load": load}


def parse(argv=None):
    cores = len(os.sched_getaffinity(0))
    parser = Parser(description="Measure what a training step costs.")
    add = parser.add_argument
    add("--batch", type=positive, default=8, help="samples a step")
    add("--repeats", type=positive, default=5, help="how often each step is timed")
    add("--threads", type=positive, default=cores, help="of the CPU, at most one a core")
    add("--out", type=Path, default=Path("out/bench"), help="folder of the results")
    add("--weights", help="model folder (without it: weights/tiny)")
    add("--random", action="store_true", help="random weights instead, which need no files")
    args = parser.parse_args(argv)
    if args.threads > cores:
        raise BadInput(f"--threads {args.threads}: there are {cores} cores; "
                       f"{cores} threads will do")
    if args.random and args.weights:
        raise BadInput(f"--random and --weights {args.weights} exclude each other: "
                       f"drop one of them")
    check_writable(args.out / "bench.json")
    return args


def main(argv=None) -> None:
    args = parse(argv)
    torch.set_num_threads(args.threads)
    model = random_model() if args.random else load_model(args.weights, "tiny")
    model.to(this_device())
    weights = "random" if args.random else args.weights or "weights/tiny"
    setting = about(args.threads)
    setting |= {"weights": weights, "batch": args.batch, "repeats": args.repeats}
    result = setting | measure(model, args.batch, args.repeats)
    for name, value in setting.items():
        print(f"{name}: {value}")
    print(f"\n{report(result)}")
    draw(result, args.out / "bench.png")
    atomic_write(args.out / "bench.json", json.dumps(result, indent=1) + "\n")
    print(f"wrote bench.json and bench.png into {args.out}")


if __name__ == "__main__":
    run_script(main, "stopped; nothing was written")
