"""Train ReViSE: the tiny parts once, then SFT, RWR or USO (Sec. 4.2.3, 5.1, 5.4).

    python train.py --lambda 0.25 --tau 0.5            # USO on the tiny world, from the weights in weights/tiny
    python train.py --objective sft                    # the same with lambda = 0; rwr: reward-weighted flow matching
    python train.py --data triplets.jsonl              # your own videos
    python train.py --resume out/uso                   # go on after Ctrl-C or a crash, bit for bit
    torchrun --nproc_per_node 2 train.py               # the same on two ranks; at the real size see scale.py
    python train.py --stage vae|vlm|base               # how weights/tiny was made, in this order

There is one loop, `fit`; an objective here, and a stage in pretrain.py, is a function of the step that returns the loss.

Chosen where the paper's numbers are lost: learning rate, clip, drop ratio, K; see the flags. Left out: nothing of the
method; the paper's 56K triplets are our tiny world's or yours.

Axis letters: B batch, K frames seen by the critic, C f h w latents, T tokens.
"""

import argparse
import csv
import hashlib
import io
import json
import math
import os
import signal
import sys
from collections.abc import Collection
from contextlib import suppress
from pathlib import Path

import numpy as np
import torch
import torch.distributed as dist
import torch.nn as nn
from torch.distributed.tensor import DTensor
from tqdm import tqdm

from tiny import world
from critic import DECODE, THINK, Critic, clean_estimate, decode_frames, flow_loss, gate, load_model, reason_loss, rwr_weights, uso_loss
from common.distributed import RANK, WORLD_SIZE
from common.files import BadInput, Parser, atomic_write, run_script
from data import Latents, batch_indices, manifest_items, world_items
from evaluate import generate_and_judge
from model import PRESETS, TRAINED, UnifiedModel, add_noise, draws, velocity_target
from tiny.pretrain import STAGES
from experiments.rivals import group_loss, refl_estimate
from realsize.scale import (average_gradients, blocks, device, gathered, lean, like, load_state,
                            on_device, on_first_rank, save_state, shard, start, whole)


# ------------------------------------------------------------------------------------------------------- the loop

def learning_rate(step: int, steps: int, peak: float, warmup: int) -> float:
    """Linear warm-up, then a cosine to a tenth of the peak."""
    if step < warmup:
        return peak * (step + 1) / warmup
    return peak * (.1 + .45 * (1 + math.cos(math.pi * (step - warmup) / max(1, steps - warmup))))


def fit(params: dict[str, nn.Parameter], loss_at, out: Path, *, steps: int, lr: float, clip: float, weight_decay: float,
        save_every: int = 100, name: str = "train", record: dict | None = None, accumulate: int = 1,
        ema: float = 0., muon: Collection[str] = ()) -> list[dict]:
    """Train `params` for `steps` steps of AdamW, those named in `muon` of Muon; returns the log, one dict a step.

    loss_at(step) -> (loss, logged values) must depend on nothing but the step and the parameters: with that, `state.pt`
    (parameters, optimizer, step, log) is all the state there is, and a resumed run is the uninterrupted one, bit for bit.
    It holds whole tensors, whatever `params` are sharded to, so that another number of ranks can go on from it.
    accumulate: a step's gradient is the mean of those of loss_at(accumulate * step + 0, 1, ...).
    ema: with it, what is left in `params` at the end is their exponential mean, e <- ema e + (1 - ema) p.
    A step whose loss or gradient is not finite is skipped and counted. Ctrl-C saves and raises KeyboardInterrupt.
    """
    leaves, state_file = list(params.values()), out / "state.pt"
    optimizers = [torch.optim.AdamW([p for k, p in params.items() if k not in muon], lr=lr, betas=(.9, .95),
                                    weight_decay=weight_decay)]
    if muon:                                             # its steps are scaled to the size of AdamW's
        optimizers.append(torch.optim.Muon([params[k] for k in params if k in muon], lr=lr, weight_decay=weight_decay,
                                           adjust_lr_fn="match_rms_adamw"))
    start, log, skipped = 0, [], 0
    if state := load_state(state_file):
        for k, p in params.items():
            p.data.copy_(like(state["params"][k], p))
        for optimizer, then in zip(optimizers, state["optimizers"], strict=True):
            for i, moments in then["state"].items():
                p = optimizer.param_groups[0]["params"][i]
                moments.update({k: like(x, p) for k, x in moments.items() if x.shape == p.shape})
            optimizer.load_state_dict(then)
        start, log, skipped = state["step"], state["log"], state["skipped"]
    mean = {k: like(state["ema"][k], p) if state else p.detach().clone() for k, p in params.items()} if ema else {}

    def save(step):
        made_whole = lambda tensors: {k: on_first_rank(x.detach()) for k, x in tensors.items()}
        now = [optimizer.state_dict() for optimizer in optimizers]
        for then in now:
            then["state"] = {i: made_whole(moments) for i, moments in then["state"].items()}
        state = {"params": made_whole(params), "optimizers": now, "step": step, "log": log, "skipped": skipped,
                 **({"ema": made_whole(mean)} if ema else {})}
        if RANK == 0:
            save_state(state_file, state)

    if record and RANK == 0:                             # from here on the folder is this run's
        atomic_write(out / "run.json", json.dumps(record, indent=1))
    stopped = []                                         # Ctrl-C waits for the end of the step: no half of an update
    before = signal.signal(signal.SIGINT, lambda *_: stopped.append(True))
    bar = tqdm(range(start, steps), initial=start, total=steps, desc=name, disable=RANK > 0, smoothing=.05)
    try:
        for step in bar:
            # -------------------------------------------------------------------------------- one training step
            for optimizer in optimizers:
                optimizer.param_groups[0]["lr"] = learning_rate(step, steps, lr, min(50, steps // 10 + 1))
                optimizer.zero_grad(set_to_none=True)
            told = []
            for part in range(accumulate):
                loss, shown = loss_at(step * accumulate + part)
                (loss / accumulate).backward()
                told.append({"loss": loss.item(), **shown})
            shown = {k: sum(row[k] for row in told) / accumulate for k in told[0]}
            if WORLD_SIZE > 1 and not isinstance(leaves[0], DTensor):                           # shards have done it
                average_gradients(leaves)
            norm = whole(nn.utils.clip_grad_norm_(leaves, clip))
            finite = all(map(math.isfinite, (*[row["loss"] for row in told], norm.item())))
            if WORLD_SIZE > 1:                                # all ranks take the step or none does, and they stop together
                agreed = torch.tensor([finite, not stopped], dtype=torch.float)
                dist.all_reduce(agreed, dist.ReduceOp.MIN)
                finite, going_on = agreed.bool().tolist()
            if finite:
                for optimizer in optimizers:
                    optimizer.step()
                for k, e in mean.items():
                    e.mul_(ema).add_(params[k].detach(), alpha=1 - ema)
            else:
                skipped += 1
            # --------------------------------------------------------------------------------------------------
            log.append({"step": step, "loss": shown.pop("loss"), "grad_norm": norm.item(), **shown})
            recent = log[-50:]
            means = {k: np.nanmean([r[k] for r in recent]) for k in log[-1]
                     if k not in ("step", "grad_norm") and not all(math.isnan(r[k]) for r in recent)}
            bar.set_postfix({k: f"{v:.3g}" for k, v in means.items()} | ({"skipped": skipped} if skipped else {}))
            if (stopped if WORLD_SIZE == 1 else not going_on):
                raise KeyboardInterrupt
            if (step + 1) % save_every == 0 or step + 1 == steps:
                save(step + 1)
    except KeyboardInterrupt:
        save(len(log))
        raise
    finally:
        signal.signal(signal.SIGINT, before)
    if stopped:
        raise KeyboardInterrupt
    for k, e in mean.items():
        params[k].data.copy_(e)
    if RANK == 0:
        text = io.StringIO()
        writer = csv.DictWriter(text, log[-1].keys())
        writer.writeheader()
        writer.writerows(log)
        atomic_write(out / "log.csv", text.getvalue())
        curves(log, out / "curves.png")
    return log


def curves(log: list[dict], path: Path) -> None:
    """Plot every logged value over the steps, as running means of 25."""
    import matplotlib
    matplotlib.use("Agg")
    import matplotlib.pyplot as plt
    keys = [k for k in log[-1] if k != "step"]
    fig, axes = plt.subplots(1, len(keys), figsize=(3.2 * len(keys), 2.6), squeeze=False)
    for ax, key in zip(axes[0], keys):
        points = [(r["step"], r[key]) for r in log if not math.isnan(r[key])]
        if points:
            x, y = np.array(points).T
            n = min(25, len(y))
            ax.plot(x[n - 1:], np.convolve(y, np.ones(n) / n, "valid"))
        ax.set_title(key.replace("_", " "))
        ax.set_xlabel("step")
    fig.tight_layout()
    fig.savefig(path, dpi=90)
    plt.close(fig)


# ------------------------------------------------------------------------------------- SFT, RWR, USO (Sec. 4.2)

def reflections(critic: Critic, latents: Latents, folder: Path, batch: int = 16) -> list[tuple[str, float]]:
    """(thought, m_0) of every training sample: asked once, kept in a file, in batches of a fixed order (Sec. 4.2.3).

    Each rank asks about its share of the batches; nobody writes the file before all have looked for it.
    """
    file = folder / f"reflections-{critic.think}-{latents.key}.json"
    with suppress(OSError, ValueError):                  # it is not there, or broken
        return [tuple(row) for row in json.loads(file.read_text())]
    answers, shares = {}, [None] * WORLD_SIZE
    for i in tqdm(range(0, len(latents), batch)[RANK::WORLD_SIZE], desc="asking the critic about the sources", disable=RANK > 0):
        rows = [latents[k] for k in range(i, min(i + batch, len(latents)))]
        source = torch.stack([row["frames"] for row in rows]).to(critic.vlm.llm.device)
        instructions = [item.instruction for item in latents.items[i:i + batch]]
        thoughts = critic.thoughts(source, instructions, source)
        answers[i] = list(zip(thoughts, critic.baseline(source, instructions, thoughts).tolist()))
    if WORLD_SIZE > 1:
        dist.all_gather_object(shares, answers)
        answers = {i: part for share in shares for i, part in share.items()}
    answers = [row for i in sorted(answers) for row in answers[i]]
    if RANK == 0:
        atomic_write(file, json.dumps(answers))
    return answers


def objective(model: UnifiedModel, latents: Latents, args):
    """loss_at(step) of SFT, RWR or USO. With lambda 0, USO is SFT bit for bit: the critic is not even asked."""
    lam = {"sft": 0., "rwr": 0.}.get(args.objective, args.lam)
    ask = lam > 0 or args.objective == "rwr"
    critic = Critic(model, args.think)
    # one chain of thought a sample; "full" has to see the edit first, so it is written anew in every step
    with model.precision():
        asked = reflections(critic, latents, args.cache) if ask else None
    with torch.no_grad(), model.precision():
        h, empty = model.unconditional()
        nothing, empty = model.bridge([h])[0].float(), empty.float()
    for part in ("text_encoder", "ar_head", "adapter", *(() if ask else ("vlm", "vae"))):           # their work is done
        getattr(model, part).cpu()
    shares = WORLD_SIZE * args.accumulate                      # of a batch: what each rank takes at a time

    def loss_at(number):
        step, part = divmod(number, args.accumulate)
        mine = lambda x: x[RANK::WORLD_SIZE][part::args.accumulate]
        to = lambda x: x.to(model.device)
        picked = mine(batch_indices(len(latents), args.batch, step, args.seed))
        t, noise, u = draws(step, args.seed, args.batch, model.preset.latent_shape, args.shift,
                            args.tau if args.gate_together else None, args.gate_together or 1)
        count = gate(t, args.tau).sum().item() * ask                          # how many are gated, of the whole batch
        t, noise, u = to(mine(t)), to(mine(noise)), mine(u)
        rows, drop = [{k: to(x) for k, x in latents[i].items()} for i in picked], (u < args.drop).tolist()
        x0, source = (torch.stack([row[k] for row in rows]) for k in ("target", "source"))           # (B, C, f, h, w)
        bridged = torch.stack([nothing if d else row["bridged"] for row, d in zip(rows, drop)])      # (B, T, D)
        text = [empty if d else row["text"] for row, d in zip(rows, drop)]

        x_t = add_noise(x0, noise, t)                                                                # Eq. 2
        c = model.context(source, bridged, text)
        v = model.velocity(x_t, t, c, source)
        flow = flow_loss(v, velocity_target(x0, noise))                                              # (B,)

        gated = gate(t, args.tau) if ask else torch.zeros_like(t, dtype=torch.bool)
        reason, margin, baseline = flow.new_zeros(0), flow.new_zeros(0), flow.new_zeros(0)
        if gated.any():
            at = gated.nonzero()[:, 0].tolist()
            baseline = to(torch.tensor([asked[picked[i]][1] * ("baseline" not in args.without) for i in at]))

            def margin_of(estimate, copies=1):            # (gated * copies, C, f, h, w), copies of a row side by side
                who = [i for i in at for _ in range(copies)]
                return critic.margin(torch.stack([rows[i]["frames"] for i in who]),
                                     decode_frames(model, estimate, args.decode),                # (len(who), K, 3, H, W)
                                     [latents.items[picked[i]].instruction for i in who],
                                     None if args.think == "full" else [asked[picked[i]][0] for i in who])
            if args.objective == "grpo":
                reason, margin = group_loss(model, c[gated], source[gated], margin_of,
                                            args.seed * 1_000_003 + number * WORLD_SIZE + RANK)
            else:
                x0_hat = (clean_estimate(x_t[gated], v[gated], t[gated]) if args.objective != "refl" else    # Eq. 3
                          refl_estimate(model, noise[gated], t[gated], c[gated], source[gated]))
                with torch.set_grad_enabled(args.objective != "rwr"):
                    margin = margin_of(x0_hat)
                reason = reason_loss(margin, baseline)                                           # Eq. 4
        if args.objective == "rwr" and len(margin):
            flow = flow.clone()
            flow[gated] = flow[gated] * rwr_weights(margin, baseline)
        if "flow" in args.without:
            flow = 0 * flow
        loss = uso_loss(flow, reason if lam else reason[:0], lam, count / shares)                    # Eq. 5
        told = torch.stack([loss.detach(), flow.detach().mean(), gate(t, args.tau).float().mean(),
                            *(x.detach().sum() * shares / max(1, count) for x in (reason, torch.sigmoid(margin)))]).cpu()
        if WORLD_SIZE > 1:                                                         # the log tells of the whole batch
            dist.all_reduce(told)
            told /= WORLD_SIZE
        told = dict(zip(("loss", "flow_loss", "trigger_rate", "reason_loss", "p_yes"), told.tolist()))
        return loss, told if count else {**told, "reason_loss": float("nan"), "p_yes": float("nan")}

    def in_precision(number):
        with model.precision():
            return loss_at(number)
    return in_precision


def finetune(args) -> None:
    """SFT, RWR or USO from base weights; at the end samples, curves and the oracle's scores before and after."""
    model = load_model(args.weights, args.preset)
    try:
        model.look(args.vlm_frames, args.vlm_pool)
    except ValueError as error:
        raise BadInput(f"--vlm-frames {args.vlm_frames}: {error}") from error
    if args.decode == "alone" and model.vlm.frames > model.preset.latent_shape[1]:
        raise BadInput(f"--vlm-frames {model.vlm.frames}: a clip has {model.preset.latent_shape[1]} latent frames to be "
                       f"decoded alone; pass --decode exact, or fewer frames")
    model.without(args.without)
    trained = model.freeze()
    model.to(device())
    if args.lean or args.lean is None and model.preset.bf16:
        lean(model)
    if args.compile:
        for block in blocks(model)["transformer"]:
            block.compile()
    if args.data:
        items, bad = manifest_items(args.data, model.preset, args.skip_bad, lambda text: model.encode_text([text]))
        for line in bad:
            print(f"skipped: {line}", file=sys.stderr)
        if bad:
            print(f"skipped {len(bad)} bad triplets, {len(items)} are left", file=sys.stderr)
    else:
        items = world_items(("rave", "icvg"), "train", args.items, args.wrong)
    latents = Latents(items, model, args.cache, progress=RANK == 0)
    loss_at, sharded = objective(model, latents, args), args.parallel == "fsdp" and WORLD_SIZE > 1
    if sharded:
        shard(model)
    params = {f"{part}.{k}": p for part in TRAINED for k, p in getattr(model, part).named_parameters()}
    assert len(params) == len(trained)
    frozen = args.weights or Path(__file__).parent / "weights" / args.preset

    def keep(name):
        plain = gathered(model) if sharded else model
        if RANK == 0:
            plain.save_pretrained(args.out / name, frozen=frozen)

    def watched(number):                                  # copies of the model on its way
        step, part = divmod(number, args.accumulate)
        if args.keep_every and step % args.keep_every == part == 0:
            keep(f"model-{step}")
        return loss_at(number)
    log = fit(params, watched, args.out, steps=args.steps, lr=args.lr,
              clip=args.clip, weight_decay=args.weight_decay, save_every=args.save_every, name=args.objective,
              record=args.record, accumulate=args.accumulate, ema=args.ema or 0.)
    keep("model")
    if RANK > 0:
        return
    model = load_model(args.out, args.preset) if sharded else model.cpu()
    base = load_model(args.weights, args.preset)
    base.look(args.vlm_frames, args.vlm_pool)
    if args.data:
        report_on_manifest(base, model, latents, args)
    elif args.eval_items:
        report_on_world(base, model, log, args)


def report_on_world(base, model, log, args):
    """The oracle's scores before and after, on the val split (never the test split), and a picture."""
    videos, scores = {}, {}
    for name, m in (("base's edit", base), ("this run's edit", model)):
        kept = videos.setdefault(name, [])
        with on_device(m):                               # one at a time: there may be no room for two
            rows = generate_and_judge(m, "rave", "val", args.eval_items, seed=args.seed,
                                      keep=lambda row, video: kept.append(video))
        scores[name] = {k: float(np.mean([r[k] for r in rows])) for k in ("EA", "PC", "GN", "GR", "Overall")}
    triplets = [world.make_triplet(i, "rave", "val") for i in range(min(8, args.eval_items))]
    world.contact_sheet(triplets, {"source": [t.source for t in triplets], **{k: v[:8] for k, v in videos.items()},
                                   "target": [t.target for t in triplets]}, args.out / "samples.png")
    before, after = scores.values()
    gated = [r["trigger_rate"] for r in log]
    summary = " ".join(f"{k} {before[k]:.2f} -> {after[k]:.2f}" for k in before)
    atomic_write(args.out / "summary.json", json.dumps({"before": before, "after": after, "steps": len(log),
                                                        "trigger_rate": float(np.mean(gated)), **settings(args)}, indent=1))
    print(f"oracle on {args.eval_items} val samples of RAVE: {summary} | trigger rate {np.mean(gated):.1%} | {args.out}")


def report_on_manifest(base, model, latents, args):
    """No oracle for real videos: a picture, and the distance to the targets."""
    clips = [item.load() for item in latents.items[:6]]
    sources, targets = (torch.stack(x) for x in zip(*clips))
    words = [item.instruction for item in latents.items[:6]]
    edits = {}
    for name, m in (("base's edit", base), ("this run's edit", model)):
        with on_device(m):
            edits[name] = m.sample(sources.to(m.device), words, seed=args.seed).cpu()
    world.contact_sheet(latents.items[:6], {"source": sources, **edits, "target": targets}, args.out / "samples.png")
    psnr = [10 * math.log10(4 / (e - targets).pow(2).mean().item()) for e in edits.values()]
    print(f"PSNR to the target on {len(words)} training clips: {psnr[0]:.1f} -> {psnr[1]:.1f} dB | {args.out}")


# ------------------------------------------------------------------------------------------------------ the flags

DEFAULTS = {                                              # what the flags mean where they are not given
    "vae": dict(steps=5800, batch=8, lr=1e-3, items=4000),
    "vlm": dict(steps=7500, batch=16, lr=2e-3, items=24000),
    "base": dict(steps=5000, batch=16, lr=2e-3, items=8000),
    "finetune": dict(steps=1000, batch=8, lr=1.6e-3, items=1200)}


def settings(args) -> dict:
    """What must be equal for a run to be the same run."""
    skip = ("resume", "out", "cache", "save_every", "keep_every", "eval_items", "skip_bad", "argv", "record", "parallel",
            "accumulate", "compile", "lean")
    same = {k: v if isinstance(v, (int, float, str, bool, type(None))) else str(v) for k, v in vars(args).items()
            if k not in skip}
    if args.data and Path(args.data).is_file():          # another manifest under the same name is another run
        same["data"] += " " + hashlib.sha256(Path(args.data).read_bytes()).hexdigest()[:16]
    return same


def positive(text):
    value = int(text)
    if value < 1:
        raise argparse.ArgumentTypeError(f"must be at least 1, not {value}")
    return value


def at_least_0(text):
    value = int(text)
    if value < 0:
        raise argparse.ArgumentTypeError(f"must not be negative, but is {value}")
    return value


def between(low, high, open_low=False):
    def parse(text):
        value = float(text)
        if not (low < value <= high if open_low else low <= value <= high):
            raise argparse.ArgumentTypeError(f"must be in {'(' if open_low else '['}{low:g}, {high:g}], not {text}")
        return value
    return parse


def parse(argv=None):
    parser = Parser(description=__doc__.split("\n\n")[0])
    a = parser.add_argument_group("what to train").add_argument
    a("--objective", choices=("uso", "sft", "rwr", "refl", "grpo"), default="uso",
      help="Eq. 5, plain flow matching, reward-weighted, or the other two ways to learn from a reward, see rivals.py")
    a("--stage", choices=STAGES, help="make a tiny frozen part instead: vae, then vlm, then base")
    a("--preset", choices=PRESETS, default="tiny", help="size of the model")
    a("--weights", help="model folder to start from (default: weights/<preset>; for a stage, what the one before wrote)")
    a("--data", help="manifest of your own triplets, JSON lines (default: the tiny world)")
    a("--skip-bad", action="store_true", help="go on without the manifest's bad triplets")
    a("--items", type=positive, help="how many tiny-world triplets to train on")
    a("--wrong", type=between(0, 1), default=0., help="share of the tiny world's targets that are near misses: data as made by a model")
    a = parser.add_argument_group("ReViSE").add_argument
    a("--lambda", dest="lam", type=between(0, 1e6), default=0.25, help="weight of the reason loss, Eq. 5")
    a("--tau", type=between(0, 1, True), default=0.5, help="the critic is asked where t < tau")
    a("--think", choices=THINK, default="expect", help="chain of thought: before the edit is seen, in full after it, none")
    a("--decode", choices=DECODE, help="single latent frames alone, or the exact whole clip (default: the preset's)")
    a("--vlm-frames", type=positive, help="K, how many frames of a clip the VLM looks at (default: the preset's)")
    a("--vlm-pool", type=positive, help="average its tokens of a frame over squares of this side (default: the preset's)")
    a("--without", nargs="+", choices=("baseline", "flow", "vlm", "position"), default=[], metavar="PART",
      help="switch off, for ablations: baseline (m_0 = 0), flow (its loss), vlm (its states), position (of visual tokens)")
    a("--shift", type=between(.01, 100), default=3.0, help="flow shift of the noise levels")
    a("--drop", type=between(0, 1), default=0.1, help="share of samples trained without VLM and T5 states")
    a = parser.add_argument_group("optimization").add_argument
    a("--steps", type=positive, help="training steps")
    a("--batch", type=positive, help="samples a step, over all ranks")
    a("--lr", type=between(0, 1), help="peak learning rate of AdamW")
    a("--weight-decay", type=between(0, 1), default=1e-4, help="of AdamW")
    a("--clip", type=between(0, 1e6, True), default=1.0, help="gradient norm above which it is scaled down")
    a("--seed", type=at_least_0, default=0, help="of everything random")
    a("--draft-items", type=positive, default=1200, help="stage vlm: triplets for the half-trained generator")
    a("--draft-steps", type=positive, default=1200, help="stage vlm: its steps")
    a("--ema", type=between(0, 1), help="keep the weights' exponential mean, of this decay (default: their last values)")
    a = parser.add_argument_group("size").add_argument
    a("--parallel", choices=("ddp", "fsdp"), default="ddp", help="under torchrun: whole copies, or shards of G and of the VLM")
    a("--gate-together", type=positive, metavar="N", help="so many samples in a row are below tau together, or none is: with "
      "the number of ranks, all ask the critic in the same steps and none waits for it")
    a("--accumulate", type=positive, default=1, help="into so many parts each rank's share of a batch is divided")
    a("--lean", action=argparse.BooleanOptionalAction, help="run blocks again in the backward pass (default: the real size does)")
    a("--compile", action="store_true", help="torch.compile the blocks of G")
    a = parser.add_argument_group("files").add_argument
    a("--out", type=Path, help="run folder (default: out/<objective or stage>)")
    a("--resume", type=Path, metavar="RUN", help="run folder to go on with; all other flags come from it")
    a("--cache", type=Path, default=Path("out/cache"), help="latents, encoded once")
    a("--save-every", type=positive, default=100, help="steps between checkpoints")
    a("--keep-every", type=positive, help="steps between copies of the model that are kept (default: none)")
    a("--eval-items", type=at_least_0, default=42, help="val samples for the scores before and after; 0: none")
    argv = sys.argv[1:] if argv is None else list(argv)
    args = parser.parse_args(argv)
    if args.resume:
        file = args.resume / "run.json"
        if not file.is_file():
            raise BadInput(f"--resume {args.resume}: no run.json there; pass the folder of a run")
        argv, run = read_run(args.resume)["argv"], args.resume
        args = parser.parse_args(argv)
        args.out = run
    for key, value in DEFAULTS[args.stage or "finetune"].items():
        if getattr(args, key) is None:
            setattr(args, key, value)
    args.decode = args.decode or PRESETS[args.preset].decode
    args.out, args.argv = args.out or Path("out") / (args.stage or args.objective), argv
    if args.batch % (WORLD_SIZE * args.accumulate):
        parts = f" in {args.accumulate} parts" if args.accumulate > 1 else ""
        raise BadInput(f"--batch {args.batch} does not divide among {WORLD_SIZE} ranks{parts}: "
                       f"pass a multiple of {WORLD_SIZE * args.accumulate}")
    for flag in ("accumulate", "ema", "gate_together", "compile", "lean", "parallel"):
        if args.stage and getattr(args, flag) != parser.get_default(flag):
            raise BadInput(f"--{flag.replace('_', '-')} is not for --stage {args.stage}: drop it")
    together = args.objective == "sft" or (args.gate_together or 1) % WORLD_SIZE == 0 and args.think != "full"
    if args.parallel == "fsdp" and not together:
        raise BadInput(f"--parallel fsdp: ranks that share the VLM must ask it together: pass --gate-together {WORLD_SIZE}, and "
                       f"not --think full, whose thoughts differ in length")
    return args


def read_run(run: Path) -> dict:
    """run.json of a run's folder: argv and settings. Raises BadInput where it is broken."""
    try:
        record = json.loads((run / "run.json").read_text())
        return {"argv": record["argv"], "settings": record["settings"]}
    except (ValueError, KeyError, TypeError) as error:
        raise BadInput(f"{run}/run.json: is broken ({error}); delete the folder, or choose another") from error


def recognise(args) -> dict:
    """What `fit` will write to run.json; BadInput where the run folder holds a run with other settings: nothing is lost."""
    file, now = args.out / "run.json", settings(args)
    if file.is_file():
        then = read_run(args.out)["settings"]
        other = [k for k in now if then.get(k) != now[k]]
        if other:
            raise BadInput(f"{args.out} holds a run with another --{other[0].replace('lam', 'lambda').replace('_', '-')} "
                           f"({then.get(other[0])}, not {now[other[0]]}): choose another --out, or delete it")
    return {"argv": args.argv, "settings": now}


def main():
    args = parse()
    torch.set_num_threads(max(1, len(os.sched_getaffinity(0)) // WORLD_SIZE))
    start()
    args.record = recognise(args)
    if args.stage:
        model = STAGES[args.stage](args, fit)
        if RANK == 0:
            model.eval().save_pretrained(args.out / "model", dtype=torch.float16,
                                         parts=("vae",) if args.stage == "vae" else None)
            print(f"wrote {args.out / 'model'}")
    else:
        finetune(args)
    if WORLD_SIZE > 1:
        dist.barrier()
        dist.destroy_process_group()


if __name__ == "__main__":
    run_script(main, "stopped and saved; the same command goes on from here")
