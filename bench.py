"""What does a training step cost, and against what? (Sec. 5.1, Table 6)

    python bench.py                                     # the released weights; some minutes on two idle cores
    python bench.py --random --batch 2 --repeats 1      # quick, and needs no weights: does it run at all?
    python bench.py --curate                            # curate.py instead: shots, embeddings, clusters of 1M shots
    python bench.py --report                            # evaluate.py instead: 1,000 clips of 352 x 640 into a report
    python bench.py --preset wan1.3b --rivals --out results      # the real size, random weights; the tiny one without a GPU

Milliseconds a step of SFT and of USO at five tau, their ratio, where the time goes and peak memory, for each --decode
and --think of train.py, on random data of the preset's shapes: printed, and bench.json and bench.png in --out.

How many of a batch of B are below tau is random, and with it what a step costs. So a step is timed for each number
g = 0..B of gated samples, and averaged with the weights that g has by chance: binomial, P(t < tau) = tau / (3 - 2 tau).
That is the mean of endless training, free of the luck of some hundred draws. Each USO step is divided by an SFT step of
the same few seconds, so that a drift of the machine cancels; medians over --repeats, and beside a ratio its lowest and
highest repeat. lambda only scales a number: it costs nothing, as long as it is not 0.

m_0 and the thoughts of "expect" are made once a training sample and kept, so they are no part of a step: timed apart.
The step is train.py's, its functions, clipping and optimizer, with a learning rate of 0, which is as much work. Left
out: reading a batch from the cache, logging, several ranks.

Axis letters: B batch, K frames seen by the critic, C f h w latents, T tokens, D width.
"""

import argparse
import json
import math
import os
import platform
import re
import resource
import subprocess
import sys
import tempfile
import time
from functools import partial
from importlib.metadata import version
from pathlib import Path
from statistics import median
from types import SimpleNamespace

os.environ |= {"TORCH_CPP_LOG_LEVEL": "ERROR", "KINETO_LOG_LEVEL": "99"}                  # the profiler is talkative

import numpy as np
import torch
import torch.nn.functional as F
from accelerate import init_empty_weights
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils.flop_counter import FlopCounterMode
from tqdm import tqdm
from transformers.initialization import no_init_weights

from experiments import rivals
from tiny import world
from realsize.cost import PEAK, dit_flops, real_tokens, step_flops
from critic import DECODE, SYSTEM, THINK, Critic, clean_estimate, decode_frames, flow_loss, gate, load_model, reason_loss, uso_loss
from common.files import BadInput, Parser, atomic_write, markdown, replacing, run_script
from common.video import write_video
from model import LIBRARY, OURS, PRESETS, UnifiedModel, add_noise, make_tokenizer, shifted, velocity_target
from realsize.scale import device as this_device, lean

TAUS, TAU, GOAL = (.1, .3, .5, .7, .9), .5, 1.4          # Table 6's columns, the paper's choice, USO / SFT at most
GOAL_AT_SIZE = 1.25
DEFAULT = f"{DECODE[0]}/{THINK[0]}"                      # train.py's --decode / --think
PARTS = ("DiT forward", "decode forward", "thought", "VLM forward", "VLM backward", "decode backward", "DiT backward",
         "optimizer")                                    # in the order in which a step does them


# ------------------------------------------------------------------------------------------------- the arithmetic

def trigger_rate(tau: float) -> float:
    """P(t < tau) = tau / (3 - 2 tau), at flow shift 3 (Table 6). Raises ValueError for tau outside (0, 1]."""
    if not 0 < tau <= 1:
        raise ValueError(f"tau must be in (0, 1], not {tau}")
    return tau / (3 - 2 * tau)


def expected_cost(cost_by_gated: list[float], tau: float, batch: int) -> float:
    """The mean cost of a step at tau: sum over g = 0..batch of P(g samples are gated) * cost_by_gated[g]. Any unit.

    Raises ValueError for tau outside (0, 1] and where there are not batch + 1 costs.
    """
    if len(cost_by_gated) != batch + 1:
        raise ValueError(f"a batch of {batch} needs {batch + 1} costs, not {len(cost_by_gated)}")
    p = trigger_rate(tau)
    return sum(math.comb(batch, g) * p ** g * (1 - p) ** (batch - g) * cost for g, cost in enumerate(cost_by_gated))


# ------------------------------------------------------------------------------------------------------- the step

def random_data(model: UnifiedModel, batch: int) -> SimpleNamespace:
    """What train.py has of a batch before its step, of the preset's shapes; random but for the instructions."""
    torch.manual_seed(0)
    p, words = model.preset, [phrase for rules in world.RULES.values() for rule in rules for phrase in rule.phrases]
    instructions = [words[7 * i % len(words)].format(n="the red ball") for i in range(batch)]
    with torch.no_grad():                                                                  # B of (T, D)
        text = model.encode_text(instructions) if p.name == "tiny" else \
            list(torch.randn(batch, 64, p.dit["text_dim"], device=model.device))           # its T5 is not built
    source, x0, noise = torch.randn(3, batch, *p.latent_shape, device=model.device)        # (B, C, f, h, w)
    frames = torch.rand(batch, p.vlm_frames, 3, p.height, p.width, device=model.device) * 2 - 1      # (B, K, 3, H, W)
    bridged = torch.randn(batch, p.ar_queries * p.adapter_queries, p.dit["text_dim"], device=model.device)
    return SimpleNamespace(batch=batch, source=source, x0=x0, noise=noise, frames=frames, bridged=bridged, text=text,
                           instructions=instructions)


def reflect(critic: Critic, data: SimpleNamespace) -> tuple[list[str], torch.Tensor]:
    """(thoughts, m_0 (B,)) of a batch: what `train.reflections` asks for, once a training sample."""
    thoughts = critic.thoughts(data.frames, data.instructions, data.frames)
    return thoughts, critic.baseline(data.frames, data.instructions, thoughts)


def training_step(model, optimizer, data, critic, decode, asked, gated, mark=lambda part: None) -> None:
    """A step of train.py: SFT where critic is None, else USO with the first `gated` of the batch below tau.

    asked: from `reflect`. mark(part) is called when one of PARTS is done; in the backward pass by hooks, so that it is
    one pass still. Autograd takes the younger nodes first: all of the critic's before any of the DiT's.
    """
    with model.precision():
        loss = step_loss(model, data, critic, decode, asked, gated, mark)
    descend(optimizer, loss, mark)


def step_loss(model, data, critic, decode, asked, gated, mark) -> torch.Tensor:
    t = torch.where(torch.arange(data.batch, device=model.device) < gated, TAU / 2, (1 + TAU) / 2)
    x_t = add_noise(data.x0, data.noise, t)                                                # Eq. 2
    v = model.velocity(x_t, t, model.context(data.source, data.bridged, data.text), data.source)
    flow = flow_loss(v, velocity_target(data.x0, data.noise))                              # (B,)
    mark("DiT forward")
    reason, at = flow.new_zeros(0), gate(t, TAU)
    if critic and at.any():
        x0_hat = clean_estimate(x_t[at], v[at], t[at])                                     # Eq. 3
        x0_hat.register_hook(lambda gradient: mark("decode backward"))
        frames = decode_frames(model, x0_hat, decode)                                      # (gated, K, 3, H, W)
        frames.register_hook(lambda gradient: mark("VLM backward"))
        mark("decode forward")
        source, instructions, thoughts = data.frames[at], data.instructions[:gated], asked[0][:gated]
        if critic.think == "full":                       # it has to see the edit first, so it is written in every step
            thoughts = critic.thoughts(source, instructions, frames.detach())
            mark("thought")
        reason = reason_loss(critic.margin(source, frames, instructions, thoughts), asked[1][at])     # Eq. 4
        mark("VLM forward")
    return uso_loss(flow, reason, 0.25)                                                    # Eq. 5


def descend(optimizer, loss, mark) -> None:
    optimizer.zero_grad(set_to_none=True)
    loss.backward()
    mark("DiT backward")
    norm = torch.nn.utils.clip_grad_norm_(optimizer.param_groups[0]["params"], 1.0)
    if torch.isfinite(loss) and torch.isfinite(norm):
        optimizer.step()
    mark("optimizer")


def rollout_step(model, optimizer, data, critic, decode, asked, last: int, steps: int = 30, mark=lambda part: None) -> None:
    """Reward backpropagated through the last `last` of a rollout's `steps` Euler steps; no flow matching.

    1 is ReFL's and 5 VideoX-Fun's way. Every sample pays, for there is no gate.
    """
    ts = shifted(torch.linspace(1, 0, steps + 1), model.preset.shift).tolist()
    with model.precision():
        x = data.noise
        for k, (t, to) in enumerate(zip(ts[:-1], ts[1:])):
            with torch.set_grad_enabled(k >= steps - last):
                c = model.context(data.source, data.bridged, data.text)
                x = x + (to - t) * model.velocity(x, x.new_full((data.batch,), t), c, data.source)
        margin = critic.margin(data.frames, decode_frames(model, x, decode), data.instructions, asked[0])
        loss = reason_loss(margin, asked[1]).mean()
    descend(optimizer, loss, mark)


def policy_step(model, optimizer, data, critic, decode, asked, group: int, steps: int = 10, mark=lambda part: None) -> None:
    """A step of rivals.group_loss, Flow-GRPO's policy gradient: groups of `group` rollouts of `steps` steps."""
    kept = rivals.GROUP, rivals.STEPS
    rivals.GROUP, rivals.STEPS = group, steps
    many = lambda rows: [row for row in rows for _ in range(group)]

    def reward(x, copies):
        return critic.margin(data.frames.repeat_interleave(copies, 0), decode_frames(model, x, decode),
                             many(data.instructions), many(asked[0]))
    try:
        with model.precision():
            c = model.context(data.source, data.bridged, data.text)
            loss = rivals.group_loss(model, c, data.source, reward, 0)[0].mean()
        descend(optimizer, loss, mark)
    finally:
        rivals.GROUP, rivals.STEPS = kept


# -------------------------------------------------------------------------------------------------- the measuring

def timed(step, device: torch.device) -> dict[str, float]:
    """Milliseconds of each part of step(mark=...), in the order in which they were done."""
    names, moments = ["start"], []

    def mark(part):
        if device.type == "cuda":
            torch.cuda.synchronize(device)
        names.append(part), moments.append(time.perf_counter() * 1000)
    mark("start")
    step(mark=mark)
    return {name: now - last for name, last, now in zip(names[2:], moments, moments[1:])}


def peak_memory(step, device: torch.device) -> float:
    """The most MiB of tensors alive at once in step(), beyond what was alive before it.

    Not ru_maxrss: a process's high-water mark is reached once, and is then blind to the steps that stay below it.
    """
    if device.type == "cuda":
        before = torch.cuda.memory_allocated(device)
        torch.cuda.reset_peak_memory_stats(device)
        step()
        return (torch.cuda.max_memory_allocated(device) - before) / 2 ** 20
    with torch.profiler.profile(activities=[torch.profiler.ProfilerActivity.CPU], profile_memory=True) as record:
        step()
    with tempfile.TemporaryDirectory() as folder:
        record.export_chrome_trace(f"{folder}/trace.json")
        events = json.loads(Path(f"{folder}/trace.json").read_text())["traceEvents"]
    alive = highest = 0
    for event in sorted((e for e in events if e["name"] == "[memory]"), key=lambda e: e["ts"]):
        alive += event["args"]["Bytes"]                  # below zero where they are freed
        highest = max(highest, alive)
    return highest / 2 ** 20


def count_flops(step) -> int:
    """Floating-point operations of the matrix products and convolutions in step()."""
    with sdpa_kernel(SDPBackend.MATH), FlopCounterMode(display=False) as counter:          # counts no fused attention
        step()
    return counter.get_total_flops()


WAYS = [f"{decode}/{think}" for think in THINK for decode in DECODE]


def measure(model: UnifiedModel, batch: int, repeats: int, ways: list[str] = WAYS, others: bool = False) -> dict:
    """Milliseconds, MiB and FLOPs of SFT and of each way of USO, "decode/think", as they go to bench.json.

    The first of `ways` is train.py's. others: also of the rivals, which learn from the same reward; see `measure_rivals`.
    """
    device, data, total = model.device, random_data(model, batch), lambda parts: sum(parts.values())
    optimizer = torch.optim.AdamW(model.freeze(), lr=0., betas=(.9, .95), weight_decay=1e-4)
    steps, once = {"SFT": partial(training_step, model, optimizer, data, None, None, None)}, {"SFT": 0.}
    for think in dict.fromkeys(way.partition("/")[2] for way in ways):
        critic, asking = Critic(model, think), lambda mark: (reflect(critic, data), mark("reflect"))
        with model.precision():
            asked = reflect(critic, data)                # and warms up
            a_sample = median(total(timed(asking, device)) for _ in range(repeats)) / batch
        for decode in [way.partition("/")[0] for way in ways if way.endswith(f"/{think}")]:
            steps[f"{decode}/{think}"] = partial(training_step, model, optimizer, data, critic, decode, asked)
            once[f"{decode}/{think}"] = a_sample
    steps["SFT"](0)                                      # makes the optimizer's state
    held = [*model.parameters(), *(x for state in optimizer.state.values() for x in state.values())]
    resting = sum(x.numel() * x.element_size() for x in held)                              # bytes, with the critic for SFT too
    peak = {name: peak_memory(lambda: step(batch), device) for name, step in steps.items()}
    if model.lean:                                       # counting forbids fused attention, for which there is no memory
        parts = step_flops(model.preset, *real_tokens(model.preset))
        flops = {"one DiT call": parts["DiT"][0], "SFT": batch * sum(parts["DiT"]),
                 "USO, all gated": batch * sum(map(sum, parts.values()))}
    else:
        with torch.no_grad():
            context, t = model.context(data.source, data.bridged, data.text), data.x0.new_full((batch,), TAU)
            call = count_flops(lambda: model.velocity(data.x0, t, context, data.source)) / batch
        flops = {"one DiT call": call, "SFT": count_flops(lambda: steps["SFT"](0)),
                 "USO, all gated": count_flops(lambda: steps[ways[0]](batch))}

    runs = {name: [[] for _ in range(batch + 1)] for name in steps}             # [name][gated][repeat]: ms of its parts
    for repeat in tqdm(range(-(repeats > 1), repeats), desc="bench", unit="round"):        # round -1 is to warm up
        for gated in range(batch + 1):
            for name, step in steps.items():
                parts = timed(partial(step, gated), device)
                if repeat >= 0:
                    runs[name][gated].append(parts)
    results = {}
    for name, cells in runs.items():
        ratios = [[total(x) / total(plain) for x, plain in zip(*pair)] for pair in zip(cells, runs["SFT"])]
        if name == "SFT":                                # it gates none, whatever gated is: they are all the same step
            cells = [sum(cells, [])] * (batch + 1)
        by_gated, middles = [median(map(total, cell)) for cell in cells], [median(row) for row in ratios]
        parts = {part: [median(x.get(part, 0.) for x in cell) for cell in cells] for part in PARTS}
        results[name] = {"ms_by_gated": by_gated, "parts_all_gated": {part: ms[-1] for part, ms in parts.items()},
                         "peak_mib_all_gated": peak[name], "once_a_sample_ms": once[name], "tau": {}}
        for tau in TAUS:
            mean = partial(expected_cost, tau=tau, batch=batch)
            each = [mean(column) for column in zip(*ratios)]
            results[name]["tau"][tau] = {"ms": mean(by_gated), "ratio": mean(middles), "lowest": min(each),
                                         "highest": max(each), "parts": {part: mean(ms) for part, ms in parts.items()}}
    ratio, sft = results[ways[0]]["tau"][TAU]["ratio"], results["SFT"]["tau"][TAU]["ms"]
    goal = GOAL_AT_SIZE if model.lean else GOAL
    if others:
        critic, decode = Critic(model, ways[0].partition("/")[2]), ways[0].partition("/")[0]
        results |= {"rivals": measure_rivals(model, optimizer, data, critic, decode, repeats, results[ways[0]]["tau"][TAU]["ms"])}
    found = {"rivals": results.pop("rivals")} if others else {}
    peak_rate = next((x for name, x in PEAK.items() if device.type == "cuda" and name in torch.cuda.get_device_name()), None)
    model_flops = batch * sum(dit_flops(model.preset))   # forward and backward once; what is run again does not count
    return {"steps": results, "flops": flops, "own": ways[0], **found,
            "mfu_of_sft": model_flops / (sft / 1000) / peak_rate if peak_rate else None,
            "peak_gib": {name: (resting + 2 ** 20 * results[name]["peak_mib_all_gated"]) / 2 ** 30 for name in ("SFT", ways[0])},
            "goal": {"tau": TAU, "at_most": goal, "ratio": ratio, "met": ratio <= goal}}


def measure_rivals(model, optimizer, data, critic, decode, repeats, uso: float, group: int = 2) -> dict:
    """ms and MiB of a step of the other ways to learn from the same reward, on the same parts, and their cost in USO steps.

    Flow-GRPO's groups of 24 are measured on groups of `group` and scaled: rollouts are independent, so 24 cost 24 / group.
    """
    with model.precision():
        asked, device = reflect(critic, data), model.device
    step = lambda make, **more: partial(make, model, optimizer, data, critic, decode, asked, **more)
    ways = {"reward through the last step of 30": (step(rollout_step, last=1), 1),
            "reward through the last 5 steps of 30": (step(rollout_step, last=5), 1),
            f"policy gradient, a group of 24 (measured on {group}, scaled)": (step(policy_step, group=group), 24 / group)}
    found = {}
    for name, (way, scale) in ways.items():
        mib = peak_memory(way, device)                   # and warms up
        ms = [scale * sum(timed(way, device).values()) for _ in range(repeats)]
        found[name] = {"ms": median(ms), "lowest": min(ms), "highest": max(ms), "peak_mib_measured": mib,
                       "in_uso_steps": median(ms) / uso}
    return found


# -------------------------------------------------------------------------------------------------- the reporting

def report(result: dict) -> str:
    """The tables, and whether the goal is met."""
    steps, goal, flops = result["steps"], result["goal"], result["flops"]
    own, plain, shown = steps[result["own"]], steps["SFT"]["tau"][TAU]["ms"], [x["tau"][TAU] for x in steps.values()]
    more = flops["USO, all gated"] / flops["SFT"] - 1                                      # in proportion to the gated
    amortised = [[f"USO, tau {tau}", f"{trigger_rate(tau):.1%}", f"{x['ms']:.1f}", f"{x['ms'] - plain:.1f}",
                  f"{x['ratio']:.2f} [{x['lowest']:.2f}, {x['highest']:.2f}]", f"{1 + trigger_rate(tau) * more:.2f}"]
                 for tau, x in own["tau"].items()]
    return "\n".join([
        f"The mean step, {result['own']}, whatever lambda is\n",
        markdown([["", "trigger rate", "ms", "above SFT", "USO / SFT [lowest, highest]", "in FLOPs"],
                  ["SFT", "0.0%", f"{plain:.1f}", "0.0", "1", "1"], *amortised]),
        f"Where the milliseconds of a step go at tau {TAU}, for each --decode/--think\n",
        markdown([["", *steps], *[[part, *[f"{x['parts'][part]:.1f}" for x in shown]] for part in PARTS],
                  ["all", *[f"{x['ms']:.1f}" for x in shown]], ["USO / SFT", *[f"{x['ratio']:.2f}" for x in shown]],
                  ["peak MiB, all gated", *[f"{x['peak_mib_all_gated']:.0f}" for x in steps.values()]],
                  ["m_0 and thought, once a sample", *[f"{x['once_a_sample_ms']:.1f}" for x in steps.values()]]]),
        *([markdown([["a step of", "ms", "in USO steps", "peak MiB"], *[
            [name, f"{x['ms']:.0f}", f"{x['in_uso_steps']:.1f}", f"{x['peak_mib_measured']:.0f}"]
            for name, x in result["rivals"].items()]])] if "rivals" in result else []),
        *goals_at_size(result),
        f"Inference: {flops['one DiT call'] / 1e9:.3f} GFLOPs a clip and DiT call, for base, SFT and USO alike",
        f"Goal: USO / SFT at most {goal['at_most']} at tau {TAU}: {goal['ratio']:.2f}, {'met' if goal['met'] else 'NOT met'}"])


def goals_at_size(result: dict) -> list[str]:
    """A line for each of the other goals, where there is something to judge by."""
    sft, uso = result["peak_gib"].values()
    cheapest = min((x["in_uso_steps"] for x in result.get("rivals", {}).values()), default=None)
    lines = [("MFU of SFT at least 45 % (FLOPs of one forward and backward pass of G; none for what is run again)",
              result["mfu_of_sft"], lambda x: x >= .45),
             ("any rollout at least 5 times as dear as USO", cheapest, lambda x: x >= 5),
             (f"peak GiB of USO, weights and all, at most 1.25 of SFT's {sft:.2f} and below 80", uso,
              lambda x: x <= min(1.25 * sft, 80e9 / 2 ** 30))]
    return [f"Goal: {goal}: {x:.2f}, {'met' if met(x) else 'NOT met'}" if x is not None else f"Goal: {goal}: not measured here"
            for goal, x, met in lines]


def draw(result: dict, path: Path) -> None:
    """Write a picture: a bar for SFT and for each way of USO at TAU, made up of its parts."""
    import matplotlib
    matplotlib.use("Agg")
    import matplotlib.pyplot as plt
    bars = {name if name == "SFT" else f"USO {name}": x["tau"][TAU] for name, x in result["steps"].items()}
    figure, ax = plt.subplots(figsize=(9, 3.6))
    ends = [0.] * len(bars)
    for k, part in enumerate(PARTS):
        values = [bar["parts"][part] for bar in bars.values()]
        ax.barh(list(bars), values, left=ends, label=part, color=plt.cm.Paired(k))
        ends = [a + b for a, b in zip(ends, values)]
    for y, (end, bar) in enumerate(zip(ends, bars.values())):
        ax.text(end, y, f" {bar['ratio']:.2f} x", va="center", size=8)
    goal = result["goal"]["at_most"]
    ax.axvline(goal * ends[0], color="grey", ls="--", lw=1, label=f"goal: {goal} x SFT")
    ax.set(xlim=(0, 1.1 * max(*ends, goal * ends[0])), ylim=(len(bars) - .5, -.5),
           xlabel=f"milliseconds a step, batch {result['batch']}, tau {TAU}; {result['device']}")
    ax.legend(fontsize=7, loc="center left", bbox_to_anchor=(1, .5))
    figure.tight_layout()
    with replacing(path) as temporary:
        figure.savefig(temporary, dpi=110)
    plt.close(figure)


# -------------------------------------------------------------------------------------------- curation (Sec. 3.1.2)

def synthetic_shots(folder: Path, n: int, per_movie: int = 2000, width: int = 64) -> None:
    """What `curate.embeddings` would leave of `n` shots: five places in turn in each window of 16, and some noise."""
    from rvedata import curate
    rng = np.random.default_rng(0)
    (folder / "embeddings").mkdir(parents=True)
    with open(folder / "embeddings.jsonl", "w") as file:
        for first in range(0, n, curate.CHUNK):
            movie, at = divmod(first, per_movie // curate.CHUNK * curate.CHUNK)
            k = np.arange(at, at + min(curate.CHUNK, n - first))
            place = rng.normal(size=(5 * (curate.CHUNK // 16), width))[k % curate.CHUNK // 16 * 5 + k % 5]
            image = place + .5 * rng.normal(size=place.shape)
            image = (image / np.linalg.norm(image, axis=1, keepdims=True)).astype(np.float32)      # (64, D)
            name = f"movie{movie:04d}-{at:06d}"
            (folder / "embeddings" / f"{name}.safetensors").write_bytes(curate.save({"image": image, "text": image}))
            members = [{"id": f"movie{movie:04d}#{i:05d}", "movie": f"movie{movie:04d}", "index": int(i),
                        "clip": [int(50 * i), int(50 * i + 40)], "fps": 25., "caption": "what is seen"} for i in k]
            line = {"id": name, "movie": members[0]["movie"], "chunk": at // curate.CHUNK, "members": members}
            file.write(json.dumps(line) + "\n")


def measure_curation(n: int, clips: int = 8) -> dict:
    """Shots found a second, clips embedded a second by a SigLIP of base size, seconds and MiB to cluster n shots."""
    from rvedata import demo as curate_demo
    from rvedata import film
    from transformers import SiglipConfig, SiglipModel
    with tempfile.TemporaryDirectory() as folder:
        folder = Path(folder)
        shots = [curate_demo.shot(world.make_triplet(i, "icvg", "train").before, 6) for i in range(32)]
        write_video(folder / "film.mp4", curate_demo.join(shots)[0], 24, 15)               # 480 x 480
        begin = time.perf_counter()
        cuts, frames, _ = film.find_cuts(folder / "film.mp4")
        seconds = time.perf_counter() - begin
        result = {"film": "480 x 480, 54 frames a shot", "shots_per_s": len(shots) / seconds,
                  "frames_per_s": frames / seconds}
        SiglipModel(SiglipConfig()).save_pretrained(folder / "siglip")                     # random weights cost as much
        make_tokenizer(["a"], 300).save_pretrained(folder / "siglip")
        image, _ = film.embedder(str(folder / "siglip"))
        begin = time.perf_counter()
        for k in range(clips):
            film.clip_vectors(image, [film.read_frames(folder / "film.mp4", (54 * k, 54 * k + 54))])
        result["clips_embedded_per_s"] = clips / (time.perf_counter() - begin)
        synthetic_shots(folder / "shots", n)
        code = ("import sys; from rvedata import curate; from pathlib import Path; curate.clusters(Path(sys.argv[1]), 16); "
                "print(Path('/proc/self/status').read_text())")                            # ru_maxrss would be ours
        begin = time.perf_counter()
        told = subprocess.run([sys.executable, "-c", code, folder / "shots"], cwd=Path(__file__).parent, check=True,
                              stdout=subprocess.PIPE, text=True).stdout
        result |= {"clustered": n, "cluster_s": time.perf_counter() - begin,
                   "cluster_mib": int(re.search(r"VmHWM:\s*(\d+) kB", told)[1]) / 2 ** 10}
        found = json.loads((folder / "shots" / "clusters.json").read_text())
        result |= {key: found[key] for key in ("threshold", "clusters", "alone")}
    goal = {"cluster_s": 120, "cluster_mib": 2048}
    return {**result, "goal": {**goal, "met": n >= 1e6 and all(result[k] <= most for k, most in goal.items())}}


# ------------------------------------------------------------------------------------------------- the benchmark's page

def many_clips(folder: Path, n: int, kinds: int = 8) -> None:
    """A benchmark of `n` clips of 17 frames of 352 x 640, no two files of which are the same: bench.jsonl and videos/.

    `kinds` moving pictures with some grain are encoded; a clip is one of them with a box of its own at the end, which
    players skip: to decode it costs the same.
    """
    from data import FIELDS, SUBSET_OF
    rng, clips = torch.Generator().manual_seed(0), []
    for _ in range(kinds):
        scene = F.interpolate(torch.rand(1, 3, 24, 44, generator=rng), (384, 704), mode="bicubic", align_corners=False)
        frames = torch.stack([scene[0, :, 2 * k:2 * k + 352, 4 * k:4 * k + 640] for k in range(17)])
        grain = .02 * torch.randn(frames.shape, generator=rng)
        write_video(folder / "kind.mp4", (2 * frames - 1 + grain).clamp(-1, 1), 16)
        clips.append((folder / "kind.mp4").read_bytes())
    (folder / "videos").mkdir()
    with open(folder / "bench.jsonl", "w") as file:
        for k in range(n):
            box = (16).to_bytes(4, "big") + b"free" + k.to_bytes(8, "big")
            (folder / f"videos/{k}.mp4").write_bytes(clips[k % kinds] + box)
            paths = dict.fromkeys(FIELDS[:2], f"videos/{k}.mp4")
            file.write(json.dumps({"id": str(k), **paths, "instruction": "it moves", "type": list(SUBSET_OF)[k % 8]}) + "\n")


def measure_report(n: int) -> dict:
    """Seconds and MiB of evaluate.py, from n videos to tables and report.html, by temporal flickering; and of n / 10."""
    code = "import sys, evaluate; evaluate.main(sys.argv[1:]); print(open('/proc/self/status').read())"
    result = {"clips": n, "size": "17 x 352 x 640"}
    with tempfile.TemporaryDirectory() as folder:
        folder = Path(folder)
        many_clips(folder, n)
        result["mib_of_videos"] = sum(p.stat().st_size for p in (folder / "videos").iterdir()) / 2 ** 20
        for some, name in ((max(1, n // 10), "_of_a_tenth"), (n, "")):
            begin = time.perf_counter()
            told = subprocess.run([sys.executable, "-c", code, "--manifest", folder / "bench.jsonl", "--n", str(some),
                                   "--videos", f"method={folder}/videos", "--out", folder / f"results{some}"],
                                  cwd=Path(__file__).parent, check=True, stdout=subprocess.PIPE, text=True).stdout
            result |= {f"report_s{name}": time.perf_counter() - begin,
                       f"report_mib{name}": int(re.search(r"VmHWM:\s*(\d+) kB", told)[1]) / 2 ** 10}
        rows = (folder / f"results{n}" / "scores.jsonl").read_text().splitlines()
        result["scored"] = sum("TF" in json.loads(row)["quality"] for row in rows)
        result["report_html_mib"] = (folder / f"results{n}" / "report.html").stat().st_size / 2 ** 20
    return {**result, "goal": {"report_s": 300, "met": n >= 1000 and result["scored"] == n and result["report_s"] < 300}}


# ---------------------------------------------------------------------------------------------------- the command

def random_model(preset: str = "tiny") -> UnifiedModel:
    """A preset with random weights, and a tokenizer of the world's phrases.

    At the real size without the parts that run once a sample (T5, ARHead, Adapter), and made where it is to run.
    """
    torch.manual_seed(0)
    if preset == "tiny":
        model = UnifiedModel(PRESETS["tiny"]).eval()
    else:
        with init_empty_weights(), no_init_weights():
            model = UnifiedModel(PRESETS[preset]).eval()
        for part in ("text_encoder", "ar_head", "adapter"):
            delattr(model, part)
        fill(model)
        model.to(this_device())
        lean(model)
    phrases = [phrase for rules in world.RULES.values() for rule in rules for phrase in rule.phrases]
    model.vlm.tokenizer = model.text_tokenizer = make_tokenizer([SYSTEM, *phrases], model.preset.t5["vocab_size"])
    return model


def fill(model: UnifiedModel) -> None:
    """Give every parameter that has no memory some, on this device: small random weights, norms of 1, biases of 0."""
    for part in (*LIBRARY, *OURS):
        if not hasattr(model, part.partition(".")[0]):
            continue
        for module in model.get_submodule(part).modules():
            for name, p in module.named_parameters(recurse=False):
                x = torch.empty(p.shape, dtype=model.dtype_of(part), device=this_device())
                x = x.normal_(0, .02) if x.ndim > 1 and "gamma" not in name else x.fill_(name != "bias")
                module.register_parameter(name, torch.nn.Parameter(x))


def about(threads: int, argv: list[str] | None = None) -> dict:
    """What a measurement is of: command, date, device, versions, and whether others were at work."""
    busy, names = os.getloadavg()[0], re.findall(r"model name\s*: (.+)", Path("/proc/cpuinfo").read_text())
    device = torch.cuda.get_device_name() if torch.cuda.is_available() else (names or [platform.machine()])[0]
    return {"command": " ".join(["python", Path(sys.argv[0]).name, *(sys.argv[1:] if argv is None else argv)]),
            "date": time.strftime("%Y-%m-%d %H:%M UTC", time.gmtime()), "device": f"{device}, {threads} CPU threads",
            "python": platform.python_version(),
            **{name: version(name) for name in ("torch", "transformers", "diffusers")},
            "load": f"{busy:.1f} when it began" + (" (BUSY: others took part of the time)" if busy > .5 else "")}


def parse(argv=None) -> argparse.Namespace:
    cores = len(os.sched_getaffinity(0))                 # as in train.py
    parser = Parser(description="Measure what a training step costs.")
    parser.add_argument("--batch", type=int, default=8, help="samples a step")
    parser.add_argument("--repeats", type=int, default=5, help="how often each step is timed")
    parser.add_argument("--threads", type=int, default=cores, help="of the CPU, at most one a core")
    parser.add_argument("--out", type=Path, default=Path("out/bench"), help="folder of the results")
    parser.add_argument("--weights", help="model folder, if not weights/tiny")
    parser.add_argument("--preset", choices=PRESETS, default="tiny", help="other than tiny: random weights, and only on a GPU")
    parser.add_argument("--rivals", action="store_true", help="also rollouts with a reward's gradient, and a policy gradient")
    parser.add_argument("--random", action="store_true", help="random weights instead, which need no files")
    parser.add_argument("--curate", type=int, nargs="?", const=1_000_000, metavar="N",
                        help="measure curate.py instead, its clustering on N synthetic shots (N: 1,000,000)")
    parser.add_argument("--report", type=int, nargs="?", const=1000, metavar="N",
                        help="measure evaluate.py instead, from N videos to its report (N: 1,000)")
    args = parser.parse_args(argv)
    for flag in ("batch", "repeats", "threads", "report"):
        if getattr(args, flag) is not None and getattr(args, flag) < 1:
            raise BadInput(f"--{flag} {getattr(args, flag)}: must be at least 1; {parser.get_default(flag) or 1000} will do")
    if args.threads > cores:
        raise BadInput(f"--threads {args.threads}: there are {cores} cores; {cores} threads will do")
    if args.preset != "tiny" and not torch.cuda.is_available():
        print(f"there is no GPU for --preset {args.preset}: this is the tiny one, with random weights", file=sys.stderr)
        args.preset, args.random = "tiny", not args.weights
    if args.random and args.weights:
        raise BadInput(f"--random and --weights {args.weights} exclude each other: drop one of them")
    folder = next(p for p in (args.out.resolve(), *args.out.resolve().parents) if p.exists())
    if not (folder.is_dir() and os.access(folder, os.W_OK)):
        raise BadInput(f"--out {args.out}: {folder} is no folder that can be written; choose another")
    return args


def main(argv=None) -> None:
    args = parse(argv)
    torch.set_num_threads(args.threads)
    if args.curate or args.report:
        result = measure_curation(args.curate) if args.curate else about(args.threads, argv) | measure_report(args.report)
        print("\n".join(f"{k}: {v:,.1f}" if isinstance(v, float) else f"{k}: {v}" for k, v in result.items()))
        atomic_write(args.out / f"{'curate' if args.curate else 'report'}.json", json.dumps(result, indent=1) + "\n")
        return
    at_size = args.preset != "tiny"
    model = random_model(args.preset) if args.random or at_size else load_model(args.weights, "tiny")
    if torch.cuda.is_available():
        model.cuda()
    weights = "random" if args.random or at_size else args.weights or "weights/tiny"
    now = about(args.threads, argv) | {"preset": args.preset, "weights": weights, "batch": args.batch, "repeats": args.repeats}
    result = {**now, **measure(model, args.batch, args.repeats,
                               [f"{model.preset.decode}/{THINK[0]}"] if at_size else WAYS, args.rivals)}
    most = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2 ** 10
    result["peak_mib_of_the_process"] = most
    print("\n".join(f"{k}: {v}" for k, v in now.items()) + f"\n\n{report(result)}")
    draw(result, args.out / "bench.png")
    atomic_write(args.out / "bench.json", json.dumps(result, indent=1) + "\n")
    print(f"The process with its libraries peaked at {most:.0f} MiB; wrote bench.json and bench.png into {args.out}")


if __name__ == "__main__":
    run_script(main, "stopped; nothing was written")
