"""Train ReViSE: the tiny parts once, then SFT, RWR or USO (Sec. 4.2.3, 5.1, 5.4).

    python train.py --lambda 0.25 --tau 0.5            # USO on the tiny world, from the weights in weights/tiny
    python train.py --objective sft                    # the same with lambda = 0; rwr: reward-weighted flow matching
    python train.py --data triplets.jsonl              # your own videos
    python train.py --resume out/uso                   # go on after Ctrl-C or a crash, bit for bit
    torchrun --nproc_per_node 2 train.py               # the same on two ranks
    python train.py --stage vae|vlm|base               # how weights/tiny was made, in this order

There is one loop, `fit`; a stage or an objective is a function of the step that returns the loss.

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
from concurrent.futures import ProcessPoolExecutor
from contextlib import contextmanager, suppress
from multiprocessing import get_context
from pathlib import Path

import numpy as np
import torch
import torch.distributed as dist
import torch.nn as nn
import torch.nn.functional as F
from diffusers import AutoencoderKLWan
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from tqdm import tqdm

import world
from critic import (DECODE, EDITED, SOURCE, SYSTEM, THINK, VERDICT, Critic, clean_estimate, decode_frames, flow_loss, gate,
                    load_model, opening, reason_loss, rwr_weights, uso_loss)
from data import (BadInput, Latents, Parser, atomic_write, batch_indices, from_bytes, manifest_items, replacing, to_bytes,
                  world_items)
from evaluate import generate_and_judge, overall
from model import (GENERATE, PRESETS, TRAINED, UnifiedModel, add_noise, chat, make_tokenizer, sample_timesteps,
                   velocity_target)

RANK, WORLD = int(os.environ.get("RANK", 0)), int(os.environ.get("WORLD_SIZE", 1))


# ------------------------------------------------------------------------------------------------------- the loop

def learning_rate(step: int, steps: int, peak: float, warmup: int) -> float:
    """Linear warm-up, then a cosine to a tenth of the peak."""
    if step < warmup:
        return peak * (step + 1) / warmup
    return peak * (.1 + .45 * (1 + math.cos(math.pi * (step - warmup) / max(1, steps - warmup))))


@contextmanager
def first_rank_first():
    """What fills a cache on disk: rank 0 does it, then the others find it done."""
    if RANK > 0:
        dist.barrier()
    yield
    if RANK == 0 and WORLD > 1:
        dist.barrier()


def average_gradients(params: list[nn.Parameter]) -> None:
    """Data parallelism in three lines: the mean of every gradient over all ranks (a missing one counts as zero)."""
    flat = torch.cat([(p.grad if p.grad is not None else torch.zeros_like(p)).flatten() for p in params])
    dist.all_reduce(flat)
    for p, g in zip(params, (flat / WORLD).split([p.numel() for p in params])):
        p.grad = g.view_as(p)


def fit(params: dict[str, nn.Parameter], loss_at, out: Path, *, steps: int, lr: float, clip: float, weight_decay: float,
        save_every: int = 100, name: str = "train", record: dict | None = None) -> list[dict]:
    """Train `params` for `steps` steps of AdamW and return the log, one dict a step.

    loss_at(step) -> (loss, logged values) must depend on nothing but the step and the parameters: with that, `state.pt`
    (parameters, optimizer, step, log) is all the state there is, and a resumed run is the uninterrupted one, bit for bit.
    A step whose loss or gradient is not finite is skipped and counted. Ctrl-C saves and raises KeyboardInterrupt.
    """
    leaves, state_file = list(params.values()), out / "state.pt"
    optimizer = torch.optim.AdamW(leaves, lr=lr, betas=(.9, .95), weight_decay=weight_decay)
    start, log, skipped = 0, [], 0
    if state_file.exists():
        try:
            state = torch.load(state_file, weights_only=True)
        except Exception as error:                       # a dozen kinds, all of them a file that is not whole
            raise BadInput(f"{state_file}: is broken ({type(error).__name__}); delete it to start this run again") from error
        for k, p in params.items():
            p.data.copy_(state["params"][k])
        optimizer.load_state_dict(state["optimizer"])
        start, log, skipped = state["step"], state["log"], state["skipped"]

    def save(step):
        if RANK == 0:
            state = {"params": {k: p.data for k, p in params.items()}, "optimizer": optimizer.state_dict(), "step": step,
                     "log": log, "skipped": skipped}
            buffer = io.BytesIO()
            torch.save(state, buffer)
            atomic_write(state_file, buffer.getvalue())

    if record and RANK == 0:                             # from here on the folder is this run's
        atomic_write(out / "run.json", json.dumps(record, indent=1))
    stopped = []                                         # Ctrl-C waits for the end of the step: no half of an update
    before = signal.signal(signal.SIGINT, lambda *_: stopped.append(True))
    bar = tqdm(range(start, steps), initial=start, total=steps, desc=name, disable=RANK > 0, smoothing=.05)
    try:
        for step in bar:
            # -------------------------------------------------------------------------------- one training step
            for group in optimizer.param_groups:
                group["lr"] = learning_rate(step, steps, lr, min(50, steps // 10 + 1))
            loss, shown = loss_at(step)
            optimizer.zero_grad(set_to_none=True)
            loss.backward()
            if WORLD > 1:
                average_gradients(leaves)
            norm = nn.utils.clip_grad_norm_(leaves, clip)
            finite = (torch.isfinite(loss) & torch.isfinite(norm)).float()
            if WORLD > 1:                                # all ranks take the step or none does
                dist.all_reduce(finite, dist.ReduceOp.MIN)
            if finite:
                optimizer.step()
            else:
                skipped += 1
            # --------------------------------------------------------------------------------------------------
            log.append({"step": step, "loss": loss.item(), "grad_norm": norm.item(), **shown})
            recent = log[-50:]
            means = {k: np.nanmean([r[k] for r in recent]) for k in log[-1]
                     if k not in ("step", "grad_norm") and not all(math.isnan(r[k]) for r in recent)}
            bar.set_postfix({k: f"{v:.3g}" for k, v in means.items()} | ({"skipped": skipped} if skipped else {}))
            if stopped:
                raise KeyboardInterrupt
            if (step + 1) % save_every == 0:
                save(step + 1)
    except KeyboardInterrupt:
        save(len(log))
        raise
    finally:
        signal.signal(signal.SIGINT, before)
    save(steps)
    if stopped:
        raise KeyboardInterrupt
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

def draws(step: int, seed: int, batch: int, shape: tuple, shift: float) -> tuple:
    """What is random in a step, from (seed, step) alone: t (B,), noise (B, C, f, h, w), condition dropout u (B,)."""
    g = torch.Generator().manual_seed(seed * 1_000_003 + step)
    return sample_timesteps(batch, shift, g), torch.randn(batch, *shape, generator=g), torch.rand(batch, generator=g)


def reflections(critic: Critic, latents: Latents, folder: Path, fresh_every: int = 16) -> list[tuple[str, float]]:
    """(thought, m_0) of every training sample: asked once, kept in a file, in batches of a fixed order (Sec. 4.2.3)."""
    file = folder / f"reflections-{critic.think}-{latents.key}.json"
    with suppress(OSError, ValueError):                  # it is not there, or broken
        return [tuple(row) for row in json.loads(file.read_text())]
    answers = []
    for i in tqdm(range(0, len(latents), fresh_every), desc="asking the critic about the sources", disable=RANK > 0):
        rows = [latents[k] for k in range(i, min(i + fresh_every, len(latents)))]
        source = torch.stack([row["frames"] for row in rows])
        instructions = [item.instruction for item in latents.items[i:i + fresh_every]]
        thoughts = critic.thoughts(source, instructions, source)
        answers += zip(thoughts, critic.baseline(source, instructions, thoughts).tolist())
    atomic_write(file, json.dumps(answers))
    return answers


def objective(model: UnifiedModel, latents: Latents, args):
    """loss_at(step) of SFT, RWR or USO. With lambda 0, USO is SFT bit for bit: the critic is not even asked."""
    lam = {"sft": 0., "rwr": 0., "uso": args.lam}[args.objective]
    ask = lam > 0 or args.objective == "rwr"
    critic = Critic(model, args.think)
    # one chain of thought a sample; "full" has to see the edit first, so it is written anew in every step
    with first_rank_first():
        asked = reflections(critic, latents, args.cache) if ask else None
    h, empty = model.unconditional()
    with torch.no_grad():
        nothing = model.bridge([h])[0]

    def loss_at(step):
        picked = batch_indices(len(latents), args.batch, step, args.seed)[RANK::WORLD]
        t, noise, u = (x[RANK::WORLD] for x in draws(step, args.seed, args.batch, model.preset.latent_shape, args.shift))
        rows, drop = [latents[i] for i in picked], (u < args.drop).tolist()
        x0, source = (torch.stack([row[k] for row in rows]) for k in ("target", "source"))           # (B, C, f, h, w)
        bridged = torch.stack([nothing if d else row["bridged"] for row, d in zip(rows, drop)])      # (B, T, D)
        text = [empty if d else row["text"] for row, d in zip(rows, drop)]

        x_t = add_noise(x0, noise, t)                                                                # Eq. 2
        v = model.velocity(x_t, t, model.context(source, bridged, text), source)
        flow = flow_loss(v, velocity_target(x0, noise))                                              # (B,)

        gated = gate(t, args.tau) if ask else torch.zeros_like(t, dtype=torch.bool)
        count = gated.sum()                                                   # a rank's share of the gated of all ranks
        if ask and WORLD > 1:
            dist.all_reduce(count)
        reason, margin, baseline = flow.new_zeros(0), flow.new_zeros(0), flow.new_zeros(0)
        if gated.any():
            at = gated.nonzero()[:, 0].tolist()
            x0_hat = clean_estimate(x_t[gated], v[gated], t[gated])                                  # Eq. 3
            with torch.set_grad_enabled(args.objective == "uso"):
                frames = decode_frames(model, x0_hat, args.decode)                                   # (gated, K, 3, H, W)
                thoughts = None if args.think == "full" else [asked[picked[i]][0] for i in at]
                margin = critic.margin(torch.stack([rows[i]["frames"] for i in at]), frames,
                                       [latents.items[picked[i]].instruction for i in at], thoughts)
            baseline = torch.tensor([asked[picked[i]][1] for i in at])
            reason = reason_loss(margin, baseline)                                                   # Eq. 4
        if args.objective == "rwr" and len(margin):
            flow = flow.clone()
            flow[gated] = flow[gated] * rwr_weights(margin, baseline)
        loss = uso_loss(flow, reason if lam else reason[:0], lam, count.item() / WORLD)              # Eq. 5
        told = torch.stack([loss.detach(), flow.detach().mean(), gate(t, args.tau).float().mean(),
                            reason.detach().sum() / max(1, count), torch.sigmoid(margin.detach()).sum() / max(1, count)])
        if WORLD > 1:                                                         # the log tells of the whole batch
            dist.all_reduce(told)
            told[:3] /= WORLD
        told = dict(zip(("loss", "flow_loss", "trigger_rate", "reason_loss", "p_yes"), told.tolist()))
        return loss, told if count else {**told, "reason_loss": float("nan"), "p_yes": float("nan")}
    return loss_at


def finetune(args) -> None:
    """SFT, RWR or USO from base weights; at the end samples, curves and the oracle's scores before and after."""
    model = load_model(args.weights, args.preset)
    try:
        model.look(args.vlm_frames, args.vlm_pool)
    except ValueError as error:
        raise BadInput(f"--vlm-frames {args.vlm_frames}: {error}") from error
    trained = model.freeze()
    if args.data:
        items, bad = manifest_items(args.data, model.preset, args.skip_bad, lambda text: model.encode_text([text]))
        for line in bad:
            print(f"skipped: {line}", file=sys.stderr)
        if bad:
            print(f"skipped {len(bad)} bad triplets, {len(items)} are left", file=sys.stderr)
    else:
        items = world_items(("rave", "icvg"), "train", args.items)
    with first_rank_first():
        latents = Latents(items, model, args.cache, progress=RANK == 0)
    params = {f"{part}.{k}": p for part in TRAINED for k, p in getattr(model, part).named_parameters()}
    assert len(params) == len(trained)
    log = fit(params, objective(model, latents, args), args.out, steps=args.steps, lr=args.lr,
              clip=args.clip, weight_decay=args.weight_decay, save_every=args.save_every, name=args.objective,
              record=args.record)
    if RANK > 0:
        return
    model.save_pretrained(args.out / "model", frozen=args.weights or Path(__file__).parent / "weights" / args.preset)
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
        rows = generate_and_judge(m, "rave", "val", args.eval_items, seed=args.seed, keep=lambda row, video: kept.append(video))
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
    edits = {name: m.sample(sources, words, seed=args.seed) for name, m in
             (("base's edit", base), ("this run's edit", model))}
    world.contact_sheet(latents.items[:6], {"source": sources, **edits, "target": targets}, args.out / "samples.png")
    psnr = [10 * math.log10(4 / (e - targets).pow(2).mean().item()) for e in edits.values()]
    print(f"PSNR to the target on {len(words)} training clips: {psnr[0]:.1f} -> {psnr[1]:.1f} dB | {args.out}")


# ------------------------------------------------------------------------------ the tiny parts: vae, vlm, base

DESCRIBE = "Describe the video ."


def world_tokenizer():
    """The tokenizer of all that the tiny world and its chats can say."""
    chats = [SYSTEM, GENERATE, SOURCE, EDITED, VERDICT, DESCRIBE, "system\n\nuser\n\nassistant\n\n"]
    return make_tokenizer(world.all_texts() + 50 * chats, PRESETS["tiny"].t5["vocab_size"])


def stage_vae(args) -> UnifiedModel:
    """The VAE, from scratch, on clips of the tiny world."""
    torch.manual_seed(args.seed)
    model = UnifiedModel(PRESETS["tiny"])
    clips = render_pool(range(args.items), "clips")                                        # uint8 (N, 2, F, 3, H, W)
    vae, raw = model.vae, []
    for module in vae.modules():                          # the library's default gains are too small to learn from scratch
        if isinstance(module, (nn.Conv2d, nn.Conv3d)):
            nn.init.kaiming_normal_(module.weight, nonlinearity="linear")
            nn.init.zeros_(module.bias)
    # decode() clamps, and a clamped pixel has no gradient: learn from what the decoder says before that
    hook = vae.decoder.register_forward_hook(lambda module, inputs, output: raw.append(output))

    def loss_at(step):
        g = torch.Generator().manual_seed(args.seed * 1_000_003 + step * WORLD + RANK)
        single = step < args.steps * .2                   # single frames, which is quick, then whole clips
        n = (args.batch if single else args.batch // 2) // WORLD
        picked = clips[torch.randint(len(clips), (n,), generator=g), torch.randint(2, (n,), generator=g)]
        if single:
            picked = picked[torch.arange(n), torch.randint(picked.shape[1], (n,), generator=g)][:, None]
        x = (picked.float() / 127.5 - 1).transpose(1, 2)                                   # (B, 3, F, H, W)
        z = vae.encode(x).latent_dist.mode()
        noisy = z + .05 * torch.randn(z.shape, generator=g)         # a little noise makes the latents smooth
        raw.clear()
        vae.decode(noisy)
        error = torch.cat(raw, 2) - x
        loss = error.abs().mean() + error.pow(2).mean() + 1e-4 * z.pow(2).mean()
        if not single:                                    # a latent frame alone is to give the last of its four frames,
            k = 1 + step % (z.shape[2] - 1)               # so that the critic's K frames need no more than K latents
            raw.clear()
            vae.decode(noisy[:, :, k:k + 1])
            alone = raw[0] - x[:, :, 4 * k:4 * k + 1]
            loss = loss + .3 * (alone.abs().mean() + alone.pow(2).mean())
        return loss, {"psnr": 10 * math.log10(4 / error.pow(2).mean().item())}

    fit(dict(vae.named_parameters()), loss_at, args.out, steps=args.steps, lr=args.lr, clip=1.,
        weight_decay=1e-4, save_every=args.save_every, name="vae", record=args.record)
    hook.remove()
    with torch.no_grad():                                 # the DiT wants latents of mean 0 and deviation 1
        z = torch.cat([vae.encode((clips[i:i + 8, 1].float() / 127.5 - 1).transpose(1, 2)).latent_dist.mode()
                       for i in range(0, min(256, len(clips)), 8)])
    vae.register_to_config(latents_mean=z.mean((0, 2, 3, 4)).tolist(), latents_std=z.std((0, 2, 3, 4)).tolist())
    return model


WORKERS = max(1, len(os.sched_getaffinity(0)) // WORLD)


def _clips(index: int):
    t = world.make_triplet(index, ("rave", "icvg")[index % 2], "train")
    return torch.stack([to_bytes(t.source), to_bytes(t.target)]).numpy()


def looked_at(clip: np.ndarray) -> torch.Tensor:
    """The three frames of a stored clip that the VLM looks at: (K, 3, H, W) in [-1, 1]."""
    return from_bytes(torch.from_numpy(clip)[::4])


def lesson_triplet(index: int) -> world.Triplet:
    """The triplet that lesson number `index` is about: the subsets in turn."""
    return world.make_triplet(index // 2, ("rave", "icvg")[index % 2], "train")


def _lesson(index: int):
    """All that the VLM learns from one triplet: clips, texts, what covers each patch, wrong answers and their grades."""
    triplet = lesson_triplet(index)
    rng = np.random.default_rng([7, index])
    labels = world.paint(triplet.before)[1][::4, 1::2, 1::2]                               # (K, 16, 16)
    answers = []
    for kind in rng.choice(world.MISSES, 3, replace=False, p=MISS_SHARE):
        video, seen = world.near_miss(triplet, str(kind), rng)
        answers.append((to_bytes(video).numpy(), seen, grade(world.judge(triplet, video))))
    return dict(index=index, instruction=triplet.instruction if rng.random() < .8 else triplet.literal,
                thought=triplet.thought, literal=triplet.literal, caption=world.caption(triplet.before), labels=labels.astype(np.uint8),
                source=to_bytes(triplet.source).numpy(), target=to_bytes(triplet.target).numpy(), misses=answers)


MISS_SHARE = [.14, .10, .22, .22, .18, .08, .06]                          # of world.MISSES: mostly the hard ones


def grade(scores: dict) -> float:
    """The soft label of a verdict: the oracle's Overall, as a share."""
    return overall(scores["EA"], scores.get("PC"), scores["GN"], scores["GR"]) / 10


def render_pool(indices, what: str):
    """Render triplets on all cores, with a progress bar."""
    work = {"clips": _clips, "lessons": _lesson}[what]
    with ProcessPoolExecutor(WORKERS, get_context("spawn"), torch.set_num_threads, (1,)) as pool:
        done = list(tqdm(pool.map(work, indices, chunksize=16), total=len(indices), desc=f"rendering {what}"))
    return torch.from_numpy(np.stack(done)) if what == "clips" else done


def teach(vlm, rows: list[list[tuple]], answers: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """Next-token loss on the parts of rows that are to be learnt, and the loss of the verdicts, with soft labels.

    rows: lists of (text or vision tokens, "given", "learn" or "verdict"); the verdict is the one token Yes or No.
    answers: (B,) share of Yes, NaN where a row has no verdict. Returns (text loss, verdict loss, margin (B,)).
    """
    embeddings, mask = vlm.join([[part for part, _ in row] for row in rows])
    labels, at = torch.full(mask.shape, -100), torch.full((len(rows),), -1)
    for r, row in enumerate(rows):
        ids = [vlm.tokenizer(part, add_special_tokens=False).input_ids if isinstance(part, str) else [0] * len(part)
               for part, _ in row]
        position = mask.shape[1] - sum(map(len, ids))
        for part, (_, role) in zip(ids, row):
            if role == "learn":
                labels[r, position:position + len(part)] = torch.tensor(part)
            if role == "verdict":
                at[r] = position - 1                      # the position that says it
            position += len(part)
    logits = vlm.read(embeddings, mask).logits
    text = F.cross_entropy(logits[:, :-1].flatten(0, 1), labels[:, 1:].flatten(), ignore_index=-100)
    yes, no = vlm.tokenizer.convert_tokens_to_ids(["Yes", "No"])
    said, has, y = logits[torch.arange(len(rows)), at].log_softmax(-1), ~answers.isnan(), answers.nan_to_num()
    verdict = (-(y * said[:, yes] + (1 - y) * said[:, no]) * has).sum() / has.sum().clamp_min(1)
    return text, verdict, said[:, yes] - said[:, no]


def model_with_vae(args) -> UnifiedModel:
    """The tiny preset, random but for the VAE, which comes from --weights; with a tokenizer."""
    home = Path(args.weights or "out/vae/model") / "vae"
    if not (home / "config.json").is_file():
        raise BadInput(f"--weights: there is no VAE in {home}; make one with --stage vae, or name the folder that has it")
    torch.manual_seed(args.seed)
    model = UnifiedModel(PRESETS["tiny"]).requires_grad_(False)
    model.vae = AutoencoderKLWan.from_pretrained(home, torch_dtype=torch.float32).requires_grad_(False)
    model.vlm.tokenizer = model.text_tokenizer = world_tokenizer()
    return model


def stage_vlm(args) -> UnifiedModel:
    """The VLM: what covers this patch, captions, chains of thought, verdicts; in the second half of the steps also on
    what it will have to judge, the decoded one-step estimates and edits of a half-trained generator, with the oracle's grade."""
    model = model_with_vae(args)
    vlm = model.vlm
    lessons = render_pool(range(args.items), "lessons")
    estimates = []                                                                         # (lesson, frames, grade)
    head = nn.Linear(vlm.vision_tower.config.hidden_size, 4 * len(world.LABELS))           # four points of each patch
    vlm.requires_grad_(True)
    params = {f"{name}.{k}": p for name, part in (("vlm", vlm), ("head", head)) for k, p in part.named_parameters()}
    first, nan = args.steps // 8, float("nan")

    def covers(frames, labels):                           # (N, 3, H, W), (N, 16, 16): which share of points is right?
        points = labels.view(-1, 8, 2, 8, 2).transpose(2, 3).reshape(-1, 64, 4)
        guess = head(vlm.patches(frames)).view(-1, 64, 4, len(world.LABELS))
        return F.cross_entropy(guess.flatten(0, 2), points.flatten().long()), (guess.argmax(-1) == points).float().mean()

    def an_answer(x, kind, rng):
        """Of lesson x (or another): (lesson, K frames to be judged, what is to be seen in them, share of Yes)."""
        u = rng.random()
        if kind == 0:                                     # no answer: a caption instead
            answer = x, looked_at(x["source"]), "", math.nan
        elif estimates and u < .6:
            which, frames, y = estimates[int(rng.integers(len(estimates)))]
            answer = lessons[which], from_bytes(torch.from_numpy(frames)), "", y
        elif kind < 4:
            answer = x, looked_at(x["target"]), x["literal"], 1.
        else:
            video, seen, y = x["misses"][int(rng.integers(3))]
            answer = x, looked_at(video), seen, y
        x, frames, seen, y = answer
        if rng.random() < .3:                             # a little grain alone is no reason for No
            frames = frames + .05 * rng.random() * torch.from_numpy(rng.normal(size=frames.shape).astype(np.float32))
        return x, frames, seen, float(np.clip(y, .05, .95))

    def loss_at(step):
        rng = np.random.default_rng([args.seed, step, RANK])
        some = [lessons[i] for i in rng.integers(len(lessons), size=args.batch // WORLD)]
        k = 0 if step < first else int(rng.integers(3))
        part = slice(k, 3 if step < first else k + 1)     # all three frames of a clip at first, then one
        patch_loss, right = covers(torch.cat([looked_at(x["source"])[part] for x in some[:8]]),
                                   torch.cat([torch.from_numpy(x["labels"])[part] for x in some[:8]]))
        if step < first:
            return patch_loss, {"patches_right": right.item(), "text_loss": nan, "verdict_loss": nan, "yes_right": nan,
                                "no_right": nan}
        if step >= args.steps // 2 and not estimates:
            estimates.extend(draft_estimates(lessons, args))

        shown = [an_answer(x, i % 8, rng) for i, x in enumerate(some)]
        source = vlm.see(torch.stack([looked_at(x["source"]) for x, *_ in shown]))
        edited = vlm.see(torch.stack([frames for _, frames, _, _ in shown]))
        rows = []
        for i, (x, _, seen, y) in enumerate(shown):
            think = ("expect", "expect", "full", "none")[int(rng.integers(4))]
            rows.append(verdict_row(think, source[i], edited[i], x["instruction"], x["thought"], seen, y) if i % 8 else
                        [*((part, "given") for part in chat(SYSTEM, [source[i], DESCRIBE])),
                         (x["caption"] + "<|eot_id|>", "learn")])
        answers = torch.tensor([y for *_, y in shown])
        text, verdict, margin = teach(vlm, rows, answers)
        return .3 * patch_loss + text + 2 * verdict, {
            "patches_right": right.item(), "text_loss": text.item(), "verdict_loss": verdict.item(),
            "yes_right": (margin[answers > .7] > 0).float().mean().item(),
            "no_right": (margin[answers < .3] < 0).float().mean().item()}

    fit(params, loss_at, args.out, steps=args.steps, lr=args.lr, clip=1., weight_decay=.01,
        save_every=args.save_every, name="vlm", record=args.record)
    return model


def verdict_row(think, source, edited, instruction, thought, seen, y):
    """One training row of the critic's chat, in the form that `critic.Critic` asks in; what was seen is told, too:
    before the verdict in "full", after it in the others, where the verdict cannot read it but the eyes learn from it."""
    turn, eot = "<|eot_id|><|start_header_id|>assistant<|end_header_id|>\n\n", "<|eot_id|>"
    *asked, tail = opening(source, instruction)
    asked, word = [(part, "given") for part in asked], ("Yes" if y > .5 else "No", "verdict")
    told = [(f" , {seen}{eot}", "learn")] if seen else []
    if think == "full" and seen:
        return [*asked, (EDITED, "given"), (edited, "given"), (turn, "given"), (f"{thought} . {seen} . ", "learn"),
                (VERDICT, "learn"), word]
    if think == "expect":
        return [*asked, (tail, "given"), (f"{thought} .{eot}", "learn"),
                (f"<|start_header_id|>user<|end_header_id|>\n\n{EDITED}", "given"), (edited, "given"),
                (turn + VERDICT, "given"), word, *told]
    return [*asked, (EDITED, "given"), (edited, "given"), (turn + VERDICT, "given"), word, *told]


def draft_estimates(lessons, args) -> list[tuple]:
    """What a half-trained generator makes: one-step estimates at every t and finished edits, (lesson, frames, grade).

    The generator knows text and source but no VLM (that is not there yet); it is thrown away afterwards. Estimates start
    from noised targets and, just as often, from noised wrong answers: at small t, x_t itself shows what it was made of.
    """
    file = args.out / "estimates.safetensors"
    if not file.exists():
        draft = model_with_vae(args)
        params = new_generator(draft, args.seed)
        some = lessons[:args.draft_items]
        source, target, wrong = (encode_all(draft, [from_bytes(torch.from_numpy(x)) for x in clips], "encoding clips")
                                 for clips in zip(*((x["source"], x["target"], x["misses"][0][0]) for x in some)))
        words, h = [x["instruction"] for x in some], draft.unconditional()[0]
        fit(params, plain_flow(draft, source, target, [h] * len(some), words, args.batch, args.seed, 0.),
            args.out / "draft", steps=args.draft_steps, lr=1e-3, clip=1., weight_decay=1e-4, name="draft")
        with first_rank_first():
            if not file.exists():
                write_estimates(file, draft, some, h, source, target, wrong, args.seed)
    held = load_file(file)
    return list(zip(held["which"].tolist(), held["frames"].numpy(), held["grades"].tolist()))


@torch.no_grad()
def write_estimates(file, draft, lessons, h, source, target, wrong, seed):
    """Make, judge and keep the draft's estimates and edits of `lessons`; source, target, wrong are their latents."""
    which, frames, grades, g = [], [], [], torch.Generator().manual_seed(seed)

    def keep(rows, latents):
        for i, video in zip(rows, draft.decode_video(latents)):
            triplet = lesson_triplet(lessons[i]["index"])
            which.append(i), frames.append(to_bytes(video[::4])), grades.append(grade(world.judge(triplet, video)))

    for i in tqdm(range(0, len(lessons), 8), desc="estimates"):
        rows = list(range(i, min(i + 8, len(lessons))))
        src, noise = source[rows], torch.randn(source[rows].shape, generator=g)
        c = draft.context(src, draft.bridge([h] * len(rows)), draft.encode_text([lessons[k]["instruction"] for k in rows]))
        for x0 in (target[rows], wrong[rows]):
            t = torch.rand(len(rows), generator=g) * .85 + .02
            x_t = add_noise(x0, noise, t)
            keep(rows, clean_estimate(x_t, draft.velocity(x_t, t, c, src), t))
            if i % 3 == 0:
                keep(rows, x0)                            # the decoder's own blur
        if i % 4 == 0:                                    # finished edits, 8 steps
            ts = [3 * u / (1 + 2 * u) for u in np.linspace(1, 0, 9).tolist()]
            for t, t_next in zip(ts[:-1], ts[1:]):
                noise = noise + (t_next - t) * draft.velocity(noise, torch.full((len(rows),), t), c, src)
            keep(rows, noise)
    with replacing(file) as temporary:
        save_file({"which": torch.tensor(which), "frames": torch.stack(frames), "grades": torch.tensor(grades)}, temporary)


def encode_all(model, videos: list[torch.Tensor], title: str) -> torch.Tensor:
    return torch.cat([model.encode_video(torch.stack(videos[i:i + 8])) for i in tqdm(range(0, len(videos), 8), desc=title)])


def new_generator(model, seed: int) -> dict[str, nn.Parameter]:
    """Give `model` a new G and connector, random from `seed`; returns their parameters. Of these, all but G and the
    visual context adapter are frozen once the base stage is over."""
    torch.manual_seed(seed)
    fresh = UnifiedModel(PRESETS["tiny"])
    parts = (*TRAINED, "ar_head", "adapter", "boundary", "text_encoder")
    for part in parts:
        setattr(model, part, getattr(fresh, part))
    return {f"{part}.{k}": p.requires_grad_(True) for part in parts for k, p in getattr(model, part).named_parameters()}


def plain_flow(model, source, target, h, words, batch, seed, drop):
    """loss_at(step) of flow matching with T5 and connector in training."""
    nothing = model.unconditional()[0]

    def loss_at(step):
        picked = batch_indices(len(source), batch, step, seed)[RANK::WORLD]
        t, noise, u = (x[RANK::WORLD] for x in draws(step, seed, batch, model.preset.latent_shape, 3.0))
        dropped = (u < drop).tolist()
        text = model.encode_text(["<pad>" if d else words[i] for i, d in zip(picked, dropped)])
        bridged = model.bridge([nothing if d else h[i] for i, d in zip(picked, dropped)])
        x_t = add_noise(target[picked], noise, t)
        v = model.velocity(x_t, t, model.context(source[picked], bridged, text), source[picked])
        return flow_loss(v, velocity_target(target[picked], noise)).mean(), {}
    return loss_at


def stage_base(args) -> UnifiedModel:
    """The base generator and connector: literal edits and plain generation, no implicit instruction (the paper's baseline)."""
    model = load_model(args.weights or "out/vlm/model", "tiny").requires_grad_(False)
    params = new_generator(model, args.seed)
    items = world_items(("rave", "icvg"), "train", args.items, literal=True)
    sources, targets, words = [], [], []
    for k, item in enumerate(tqdm(items, desc="rendering")):
        source, target = item.load()
        if k % 8 == 7:                                    # plain generation: from nothing, by its caption
            triplet = world.make_triplet(item.index, item.subset, "train")
            source, target, text = torch.zeros_like(source), source, world.caption(triplet.before)
        else:
            text = item.instruction
        sources.append(source), targets.append(target), words.append(text)
    h = [row for i in tqdm(range(0, len(items), 16), desc="reading")
         for row in model.encode_vlm(torch.stack(sources[i:i + 16]), words[i:i + 16])]
    source, target = encode_all(model, sources, "encoding sources"), encode_all(model, targets, "encoding targets")
    fit(params, plain_flow(model, source, target, h, words, args.batch, args.seed, args.drop), args.out,
        steps=args.steps, lr=args.lr, clip=1., weight_decay=1e-4, save_every=args.save_every, name="base", record=args.record)
    return model


STAGES = {"vae": stage_vae, "vlm": stage_vlm, "base": stage_base}
DEFAULTS = {                                              # what the flags mean where they are not given
    "vae": dict(steps=5800, batch=8, lr=1e-3, items=4000),
    "vlm": dict(steps=3000, batch=16, lr=1e-3, items=6000),
    "base": dict(steps=4000, batch=16, lr=1e-3, items=4000),
    "finetune": dict(steps=500, batch=8, lr=2e-4, items=1200)}


# ------------------------------------------------------------------------------------------------------ the flags

def settings(args) -> dict:
    """What must be equal for a run to be the same run."""
    skip = ("resume", "out", "cache", "save_every", "eval_items", "skip_bad", "argv", "record")
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
    a("--objective", choices=("uso", "sft", "rwr"), default="uso", help="Eq. 5, plain flow matching, or reward-weighted")
    a("--stage", choices=STAGES, help="make a tiny frozen part instead: vae, then vlm, then base")
    a("--preset", choices=PRESETS, default="tiny", help="size of the model")
    a("--weights", help="model folder to start from (default: weights/<preset>; for a stage, what the one before wrote)")
    a("--data", help="manifest of your own triplets, JSON lines (default: the tiny world)")
    a("--skip-bad", action="store_true", help="go on without the manifest's bad triplets")
    a("--items", type=positive, help="how many tiny-world triplets to train on")
    a = parser.add_argument_group("ReViSE").add_argument
    a("--lambda", dest="lam", type=between(0, 1e6), default=0.25, help="weight of the reason loss, Eq. 5")
    a("--tau", type=between(0, 1, True), default=0.5, help="the critic is asked where t < tau")
    a("--think", choices=THINK, default="expect", help="chain of thought: before the edit is seen, in full after it, none")
    a("--decode", choices=DECODE, help="single latent frames alone, or the exact whole clip (default: the preset's)")
    a("--vlm-frames", type=positive, help="K, how many frames of a clip the VLM looks at (default: the preset's)")
    a("--vlm-pool", type=positive, help="average its tokens of a frame over squares of this side (default: the preset's)")
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
    a = parser.add_argument_group("files").add_argument
    a("--out", type=Path, help="run folder (default: out/<objective or stage>)")
    a("--resume", type=Path, metavar="RUN", help="run folder to go on with; all other flags come from it")
    a("--cache", type=Path, default=Path("out/cache"), help="latents, encoded once")
    a("--save-every", type=positive, default=100, help="steps between checkpoints")
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
    if args.batch % WORLD:
        raise BadInput(f"--batch {args.batch} does not divide among {WORLD} ranks: pass a multiple of {WORLD}")
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
    torch.set_num_threads(max(1, len(os.sched_getaffinity(0)) // WORLD))
    if WORLD > 1:
        dist.init_process_group("gloo")
    args.record = recognise(args)
    if args.stage:
        model = STAGES[args.stage](args)
        if RANK == 0:
            model.eval().save_pretrained(args.out / "model", dtype=torch.float16, parts=("vae",) if args.stage == "vae" else None)
            print(f"wrote {args.out / 'model'}")
    else:
        finetune(args)
    if WORLD > 1:
        dist.barrier()
        dist.destroy_process_group()


if __name__ == "__main__":
    try:
        main()
    except KeyboardInterrupt:
        print("\ntrain.py: stopped and saved; the same command goes on from here", file=sys.stderr)
        sys.exit(130)
    except (BadInput, OSError, SafetensorError) as error:
        print(f"train.py: {error}", file=sys.stderr)
        sys.exit(2)
