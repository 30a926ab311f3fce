"""Train ReViSE: USO, and SFT which is USO with lambda = 0 (Sec. 4.2.3, 5.1).

    python train.py --lambda 0.25 --tau 0.5            # USO on the tiny world, from weights/tiny
    python train.py --objective sft                    # plain flow matching: the same with lambda 0
    python train.py --data triplets.jsonl              # your own videos
    python train.py --resume out/uso                   # go on after Ctrl-C or a crash, bit for bit
    torchrun --nproc_per_node 2 train.py               # the same on two ranks

Chosen where the paper's numbers are lost: learning rate, clip, drop ratio, K; see the flags. Other
objectives are other steps, in experiments/; the real size, in shards, is in realsize/.

Axis letters: B batch, G gated samples, C f h w latents.
"""

import argparse
import hashlib
import json
import math
import sys
from collections import Counter
from pathlib import Path

import common  # noqa: F401              before what takes seconds to load: Ctrl-C is a line
import numpy as np
import torch

from common.distributed import WORLD_SIZE, device, is_first_rank, start, stop
from common.files import (BadInput, Parser, at_least_0, atomic_write, between, check_writable,
                          positive, run_script)
from common.plots import optional_picture
from common.run import Run, check_run, claim_folder, read_run
from critic import DECODE, THINK, Critic, critic_loss
from data import Batch, Batches, Latents, manifest_items, reflect, vlm_view, world_items
from evaluate import generate_and_judge
from model import TRAINED, UnifiedModel, add_noise, flow_loss, load_model, velocity_target
from presets import PRESETS
from tiny import world


def uso_step(model, critic, batch: Batch, lam: float) -> tuple[torch.Tensor, dict]:
    """Flow matching on every sample, self-reflection on those with t < tau (Sec. 4.2).

    Returns the loss, a scalar, and what to log.
    """
    x_t = add_noise(batch.target, batch.noise, batch.t)                 # Eq. 2
    c = model.context(batch.source, batch.bridged, batch.text)          # Eq. 1
    v = model.velocity(x_t, batch.t, c, batch.source)                   # (B, C, f, h, w)
    flow = flow_loss(v, velocity_target(batch.target, batch.noise))     # (B,)
    loss = flow.mean()
    log = {"flow_loss": loss.item(), "trigger_rate": batch.near.float().mean().item()}
    if lam > 0 and batch.near.any():
        reason, margin = critic_loss(critic, x_t, v, batch)             # (G,), (G,)
        loss = loss + lam * reason.sum() / batch.n_near                 # Eq. 5
        log["reason_loss"] = reason.sum().item() / batch.n_near
        log["p_yes"] = margin.sigmoid().sum().item() / batch.n_near
    return loss, log


def train(model, critic, batches, args, step=uso_step, name="uso", gather=lambda model: model):
    """The loop: `args.steps` of `step`, from the last checkpoint on; returns the log, a dict each.

    gather: the model with its trained parts whole, to be saved; realsize/ has them in shards.
    """
    params = trained_parameters(model)
    optimizer = torch.optim.AdamW(params.values(), lr=args.lr, betas=(.9, .95),
                                  weight_decay=args.weight_decay)
    run = Run(args.out, params, [optimizer], clip=args.clip, accumulate=args.accumulate,
              ema=args.ema, save_every=args.save_every, name=name)
    for number in run.steps(args.steps):                 # resume, progress bar, Ctrl-C, checkpoints
        if args.keep_every and number % args.keep_every == 0:
            save(gather(model), args, f"model-{number}")
        # ----------------------------------------------------------------------- one training step
        for batch in batches.of(number):                 # this rank's micro-batches
            with model.precision():
                loss, log = step(model, critic, batch, args.lam)
            run.backward(loss, log)
        run.update()                                     # average, clip, skip what is not finite
        # ------------------------------------------------------------------------------------------
    save(gather(model), args, "model")
    run.write_log()
    return run.log


def trained_parameters(model) -> dict[str, torch.nn.Parameter]:
    """The parameters of G and the visual context adapter, by name."""
    return {f"{part}.{name}": p
            for part in TRAINED for name, p in getattr(model, part).named_parameters()}


def save(model, args, name: str) -> None:
    """G and the visual context adapter as a model folder that points to the frozen parts."""
    frozen = args.weights or Path(__file__).parent / "weights" / args.preset
    if is_first_rank():
        model.save_pretrained(args.out / name, frozen=frozen)


def main(argv=None, step=uso_step, settings=None, prepare=None, change=None,
         judge=Critic) -> None:
    """Train, and say what it did.

    step(model, critic, batch, lam) -> loss, log. settings: what tells a run with another step
    apart, its "objective" first. prepare(model, batches) -> gather, called before the optimizer is
    made: see `train`. change(model), called once it is loaded: experiments/ switches parts off.
    judge(model, think, decode) -> the critic.
    """
    args = parse(argv)
    start()
    settings = {**settings_of(args), **(settings or {})}
    may_grow = "steps" if args.resume else None
    check_run(args.out, settings, may_grow)
    check_writable(args.out / "run.json")
    check_writable(args.cache / "latents")
    model = load(args)
    if change:
        change(model)
    latents = encode(model, args)
    critic = reflections = None
    if args.lam > 0:
        critic = judge(model, args.think, args.decode)
        with model.precision():
            reflections = reflect(critic, latents, args.cache)
    batches = Batches(latents, model, reflections, batch=args.batch, tau=args.tau,
                      drop=args.drop, seed=args.seed, accumulate=args.accumulate)
    set_aside(model, critic)
    gather = prepare(model, batches) if prepare else lambda model: model
    claim_folder(args.out, args.argv, settings, may_grow)
    log = train(model, critic, batches, args, step, settings["objective"], gather)
    if is_first_rank():
        report(latents, log, args, settings)
    stop()


# ------------------------------------------------------------------------ before and after the loop

def load(args) -> UnifiedModel:
    """The model to start from, on this rank's device; what is not trained is frozen."""
    model = load_model(args.weights, args.preset)
    try:
        model.set_vlm_frames(args.vlm_frames)
    except ValueError as error:
        raise BadInput(f"--vlm-frames {args.vlm_frames}: {error}") from error
    latent_frames = model.preset.latent_shape[1]
    if args.decode == "alone" and model.vlm.frames > latent_frames:
        raise BadInput(f"--vlm-frames {model.vlm.frames}: a clip has {latent_frames} latent frames "
                       f"to be decoded alone; pass --decode exact, or fewer frames")
    model.freeze()
    return model.to(device())


def encode(model, args) -> Latents:
    """The training triplets, --data's or the tiny world's, through the frozen encoders; cached."""
    if not args.data:
        items = world_items(("rave", "icvg"), "train", args.items, args.wrong, args.drift)
        return Latents(items, model, args.cache, progress=is_first_rank())
    items, bad = manifest_items(args.data, model.preset, args.skip_bad,
                                check_text=lambda text: model.encode_text([text]))
    for line in bad:
        print(f"skipped: {line}", file=sys.stderr)
    if bad:
        print(f"skipped {len(bad)} bad triplets, {len(items)} are left", file=sys.stderr)
    parts = Counter(item.part for item in items if item.part)
    if parts and is_first_rank():
        used = [f"{part} ({n} triplets)" for part, n in parts.most_common(3)]
        if len(parts) > 3:
            used.append(f"{len(parts) - 3} other parts")
        print(f"{parts.total()} of {len(items)} triplets have longer videos than the preset; "
              f"used are {'; '.join(used)}")
    return Latents(items, model, args.cache, progress=is_first_rank())


def set_aside(model, critic) -> None:
    """Parts whose work is done leave the GPU: everything is encoded, and SFT needs no critic."""
    parts = ["text_encoder", "ar_head", "adapter"]
    if critic is None:
        parts += ["vlm", "vae"]
    for part in parts:
        getattr(model, part).cpu()


def report(latents, log: list[dict], args, settings: dict) -> None:
    """Compare the base with this run: by the oracle in the tiny world, by PSNR on own videos."""
    print(f"wrote model/, log.csv and curves.png into {args.out}")
    if not (args.data or args.eval_items):
        return
    base, tuned = load_model(args.weights, args.preset), load_model(args.out, args.preset)
    base.set_vlm_frames(args.vlm_frames)
    models = {"base's edit": base, "this run's edit": tuned}
    if args.data:
        what, before, after = report_on_manifest(models, latents.items[:6], args)
    else:
        what, before, after = report_on_world(models, args)
    rate = float(np.mean([row["trigger_rate"] for row in log]))
    record = {"before": before, "after": after, "steps": len(log), "trigger_rate": rate, **settings}
    atomic_write(args.out / "summary.json", json.dumps(record, indent=1))
    changes = [f"{name} {before[name]:.2f} -> {after[name]:.2f}" for name in before]
    print(f"{what}: {' '.join(changes)} | trigger rate {rate:.1%} | {args.out}")


def report_on_world(models: dict, args) -> tuple[str, dict, dict]:
    """The oracle's scores before and after, on val (never on the test split), and a picture."""
    videos, scores = {}, []
    for name, model in models.items():
        clips = videos[name] = []
        model.to(device())  # one at a time: there may be no room for two
        rows = generate_and_judge(model, "rave", "val", args.eval_items, seed=args.seed,
                                  label=name, keep=lambda row, video: clips.append(video))
        model.cpu()
        scores.append({column: float(np.mean([row[column] for row in rows]))
                       for column in ("EA", "PC", "GN", "GR", "Overall")})
    triplets = [world.make_triplet(i, "rave", "val") for i in range(min(8, args.eval_items))]
    edits = {name: clips[:8] for name, clips in videos.items()}
    rows = {"source": [t.source for t in triplets], **edits, "target": [t.target for t in triplets]}
    with optional_picture(args.out / "samples.png"):
        world.contact_sheet(triplets, rows, args.out / "samples.png")
    return f"oracle on {args.eval_items} val samples of RAVE", *scores


def report_on_manifest(models: dict, items: list, args) -> tuple[str, dict, dict]:
    """No oracle for real videos: a picture, and the distance to the targets."""
    clips = [item.load() for item in items]
    source = torch.stack([source for source, _ in clips])               # (B, F, 3, H, W)
    target = torch.stack([target for _, target in clips])
    words, edits, psnr = [item.instruction for item in items], {}, []
    for name, model in models.items():
        model.to(device())
        shown = source.to(model.device)
        edits[name] = model.sample(shown, words, seed=args.seed,
                                   view=vlm_view(model, items, shown)).cpu()
        model.cpu()
        error = (edits[name] - target).pow(2).mean().item()
        psnr.append({"PSNR": 10 * math.log10(4 / error)})               # dB
    rows = {"source": source, **edits, "target": target}
    with optional_picture(args.out / "samples.png"):
        world.contact_sheet(items, rows, args.out / "samples.png")
    return f"PSNR to the target, in dB, on {len(items)} training clips", *psnr


# ---------------------------------------------------------------------------------------- the flags

def flags() -> Parser:
    parser = Parser(description=__doc__.split("\n\n")[0])
    add = parser.add_argument_group("what to train").add_argument
    add("--objective", choices=("uso", "sft"), default="uso", help="Eq. 5, or lambda 0")
    add("--preset", choices=PRESETS, default="tiny", help="size of the model")
    add("--weights", help="model folder to start from (without it: weights/<preset>)")
    add("--data", help="manifest of your own triplets, JSON lines (without it: the tiny world)")
    add("--skip-bad", action="store_true", help="go on without the manifest's bad triplets")
    add("--items", type=positive, default=1200, help="how many tiny-world triplets to train on")
    add("--wrong", type=between(0, 1), default=0., help="share of its targets that are near misses")
    add("--drift", type=between(0, 1), default=0., help="share re-rendered by a generator")
    add = parser.add_argument_group("ReViSE").add_argument
    add("--lambda", dest="lam", type=between(0, 1e6), default=0.25, help="of the reason loss")
    add("--tau", type=between(0, 1, True), default=0.5, help="the critic is asked where t < tau")
    add("--think", choices=THINK, default="expect", help="before the edit is seen, after, or not")
    add("--decode", choices=DECODE, help="latent frames alone, or whole (the preset's)")
    add("--vlm-frames", type=positive, help="K, frames that the VLM sees (the preset's)")
    add("--drop", type=between(0, 1), default=0.1, help="share without VLM and T5 states")
    add = parser.add_argument_group("optimization").add_argument
    add("--steps", type=positive, default=1000, help="training steps")
    add("--batch", type=positive, default=8, help="samples a step, over all ranks")
    add("--accumulate", type=positive, default=1, help="micro-batches a rank and step")
    add("--lr", type=between(0, 1), default=1.6e-3, help="peak learning rate of AdamW")
    add("--weight-decay", type=between(0, 1), default=1e-4, help="of AdamW")
    add("--clip", type=between(0, 1e6, True), default=1.0, help="of the gradient norm")
    add("--ema", type=between(0, 1), default=0., help="decay of the weights' mean; 0: none")
    add("--seed", type=at_least_0, default=0, help="of everything random")
    add = parser.add_argument_group("files").add_argument
    add("--out", type=Path, help="run folder (without it: out/<objective>[-<data>])")
    add("--resume", type=Path, metavar="RUN", help="run to go on with; --steps may grow")
    add("--cache", type=Path, default=Path("out/cache"), help="latents, encoded once")
    add("--save-every", type=positive, default=100, help="steps between checkpoints")
    add("--keep-every", type=positive, help="steps between models that are kept (none)")
    add("--eval-items", type=at_least_0, default=42, help="val samples to score; 0: none")
    return parser


def parse(argv=None):
    parser, argv = flags(), sys.argv[1:] if argv is None else list(argv)
    args = parser.parse_args(argv)
    if args.resume:
        folder = args.resume
        if args.out and args.out.resolve() != folder.resolve():
            raise BadInput(f"--resume {folder} --out {args.out}: a run goes on in its own folder; "
                           f"drop one of the two")
        argv = [*read_run(folder)["argv"], *without_resume(argv)]
        args = parser.parse_args(argv, argparse.Namespace(resume=True))
        args.out = folder                                # the run may have been moved
    if args.objective == "sft":
        args.lam = 0.
    args.argv = argv
    args.out = args.out or default_folder(args.objective, args.data)
    args.decode = args.decode or PRESETS[args.preset].decode
    if args.ema == 1:
        raise BadInput("--ema 1: would keep the weights of the start; pass less, as 0.99")
    if args.wrong + args.drift > 1:
        raise BadInput(f"--wrong {args.wrong:g} --drift {args.drift:g}: are more than all targets; "
                       f"lower one of them")
    parts = WORLD_SIZE * args.accumulate
    if args.batch % parts:
        among = f"among {WORLD_SIZE} ranks"
        if args.accumulate > 1:
            among += f" in {args.accumulate} parts"
        raise BadInput(f"--batch {args.batch} does not divide {among}: pass a multiple of {parts}")
    return args


def default_folder(objective: str, data: str | None) -> Path:
    """out/uso for the tiny world, out/uso-triplets for triplets.jsonl: a folder a data set."""
    return Path("out") / (f"{objective}-{Path(data).stem}" if data else objective)


def without_resume(argv: list[str]) -> list[str]:
    """The flags beside --resume RUN."""
    for i, flag in enumerate(argv):
        if flag == "--resume":
            return argv[:i] + argv[i + 2:]
        if flag.startswith("--resume="):
            return argv[:i] + argv[i + 1:]
    return argv


def settings_of(args) -> dict:
    """What must be equal for a run to be the same run."""
    free = ("resume", "out", "cache", "save_every", "keep_every", "eval_items", "skip_bad",
            "accumulate", "argv")
    settings = {}
    for name, value in vars(args).items():
        if name not in free:
            plain = value is None or isinstance(value, (int, float, str, bool))
            settings[name] = value if plain else str(value)
    if args.data and Path(args.data).is_file():  # another manifest of this name is another run
        content = hashlib.sha256(Path(args.data).read_bytes())
        settings["data"] += " " + content.hexdigest()[:16]
    return settings


if __name__ == "__main__":
    run_script(main, "stopped and saved; the same command goes on from here")
