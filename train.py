"""Train ReViSE: USO, and SFT which is USO with lambda = 0 (Sec. 4.2.3, 5.1).

    python train.py --lambda 0.25 --tau 0.5            # USO on the tiny world, from weights/tiny
    python train.py --objective sft                    # plain flow matching: the same with lambda 0
    python train.py --data triplets.jsonl              # your own videos
    python train.py --items 100 --pairs 4000           # own edits: few triplets, and sources alone
    python train.py --resume out/uso                   # go on after Ctrl-C or a crash, bit for bit
    torchrun --nproc_per_node 2 train.py               # the same on two ranks

Chosen where the paper's numbers are lost: learning rate, clip, drop ratio, K; see the flags. Other
objectives are other steps, in experiments/; the real size, in shards, is in realsize/.

Axis letters: B batch, G gated samples, C f h w latents.
"""

import argparse
import sys
from pathlib import Path

import torch
from torch.nn.utils import clip_grad_norm_

from common.distributed import (WORLD_SIZE, average_gradients, device, is_first_rank, start, stop)
from common.files import (BadInput, Parser, at_least_0, between, check_writable, hash_of_file,
                          positive, run_script)
from common.run import Run, argv_of, check_run, claim_folder, learning_rate, plain_settings
from common.weights import frozen_folder, hash_of_weights, read_vlm
from critic import DECODE, THINK, Critic, critic_loss
from data import Batch, Batches, Item, Latents, manifest_items, reflect, world_items, world_pairs
from evaluate import report
from model import (TRAINED, UnifiedModel, add_noise, flow_loss, load_model, rollout,
                   velocity_target)
from presets import PRESETS

SEED_OF_PAIRS = 7                # added to --seed: other noise than the triplets', another order

# Settings that may differ when a run goes on; with another value of any other it is another run.
FREE = ("resume", "out", "cache", "save_every", "eval_items", "skip_bad", "accumulate", "argv")


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
        # Eq. 5: the mean over the step's gated samples, those of other ranks among them
        loss = loss + lam * reason.sum() / batch.n_near
        log["reason_loss"] = reason.sum().item() / batch.n_near
        log["p_yes"] = margin.sigmoid().sum().item() / batch.n_near
    return loss, log


def own_edit_step(model, critic, batch: Batch, lam: float) -> tuple[torch.Tensor, dict]:
    """Flow matching on triplets, self-reflection on what the model itself makes of pairs: sources
    with instructions, and no target. Not in the paper. Loss and log as in uso_step.

    In uso_step x_t is a noised target, and the one-step estimate shows that target, whatever the
    generator would do by itself. Here x_t is where the generator has come to from pure noise.
    """
    loss, log = uso_step(model, critic, batch, lam=0)                   # Eq. 2, on triplets
    log["trigger_rate"] = batch.pairs.near.float().mean().item()
    if batch.pairs.near.any():
        pairs = batch.pairs.select(batch.pairs.near)                    # those with t < tau
        c = model.context(pairs.source, pairs.bridged, pairs.text)      # Eq. 1   (G, T, D)
        x_t = rollout(model, pairs.noise, pairs.t, c, pairs.source)     # without gradient
        v = model.velocity(x_t, pairs.t, c, pairs.source)               # (G, C, f, h, w)
        reason, margin = critic_loss(critic, x_t, v, pairs)             # (G,), (G,)
        loss = loss + lam * reason.sum() / pairs.n_near                 # Eq. 5
        log["reason_loss"] = reason.sum().item() / pairs.n_near
        log["p_yes"] = margin.sigmoid().sum().item() / pairs.n_near
    return loss, log


def train(model, critic, batches, args, step=uso_step, name: str = "uso") -> Run:
    """The loop: `args.steps` of `step`, from the last checkpoint on; returns the finished run."""
    params = trained_parameters(model)
    optimizer = torch.optim.AdamW(params.values(), lr=args.lr, betas=(.9, .95),
                                  weight_decay=args.weight_decay)
    run = Run(args.out, params, [optimizer], ema=args.ema, save_every=args.save_every, name=name)
    for number in run.steps(args.steps):                 # resume, progress bar, Ctrl-C, checkpoints
        # ----------------------------------------------------------------------- one training step
        for group in optimizer.param_groups:             # warm-up, then a cosine
            group["lr"] = learning_rate(number, args.steps, args.lr)
        for batch in batches.of(number):                 # this rank's micro-batches
            with model.precision():
                loss, log = step(model, critic, batch, args.lam)
            (loss / args.accumulate).backward()
            run.note(loss, log)
        average_gradients(params.values())               # over ranks; a missing one counts as zero
        norm = clip_grad_norm_(params.values(), args.clip)
        if run.finite(norm):                             # on every rank, else all skip the step
            optimizer.step()
            run.update_mean()                            # of the weights: --ema
        optimizer.zero_grad(set_to_none=True)
        # ------------------------------------------------------------------------------------------
    return run


def trained_parameters(model) -> dict[str, torch.nn.Parameter]:
    """The parameters of G and the visual context adapter, by name."""
    return {f"{part}.{name}": p
            for part in TRAINED for name, p in getattr(model, part).named_parameters()}


def main(argv=None) -> None:
    args = parse(argv)
    settings = settings_of(args)
    begin(args, settings)
    model = load(args)
    latents = encode(model, args)
    critic = make_critic(model, args)
    batches = make_batches(model, critic, latents, args)
    claim_folder(args.out, args.argv, settings, may_grow(args))
    step = own_edit_step if args.pairs else uso_step
    run = train(model, critic, batches, args, step, args.objective)
    end(run, model, latents, args, settings)


# ------------------------------------------------------------------------ before and after the loop

def begin(args, settings: dict) -> None:
    """Join the other ranks; raises BadInput where the run folder or the cache cannot be used."""
    start()
    check_run(args.out, settings, may_grow(args))
    check_writable(args.out / "run.json")
    check_writable(args.cache / "any name")


def may_grow(args) -> str | None:
    """The setting that may be larger when a run goes on."""
    return "steps" if args.resume else None


def load(args) -> UnifiedModel:
    """The model to start from, on this rank's device; what is not trained is frozen."""
    model = load_model(args.weights, args.preset)
    try:
        model.set_vlm_frames(args.vlm_frames)
    except ValueError as error:
        raise BadInput(f"--vlm-frames {args.vlm_frames}: {error}") from error
    latent_frames = model.preset.latent_shape[1]         # decode_frames would refuse it later
    if args.decode == "alone" and model.vlm.frames > latent_frames:
        raise BadInput(f"--vlm-frames {model.vlm.frames}: a clip has {latent_frames} latent frames "
                       f"to be decoded alone; pass --decode exact, or fewer frames")
    model.freeze()
    return model.to(device())


def encode(model, args) -> Latents:
    """The training triplets, --data's or the tiny world's, through the frozen encoders; cached."""
    if args.data:
        items = read_items(model, args.data, args.skip_bad)
    else:
        items = world_items(("rave", "icvg"), "train", args.items, args.wrong, args.drift)
    return Latents(items, model, args.cache, progress=is_first_rank())


def read_items(model, path: str, skip_bad: bool, targets: bool = True) -> list[Item]:
    """The triplets (or pairs) of a manifest; says what is skipped. Raises BadInput."""
    items, bad = manifest_items(path, model.preset, skip_bad, targets=targets,
                                check_text=lambda text: model.encode_text([text]))
    for line in bad:
        print(f"skipped: {line}", file=sys.stderr)
    if bad:
        print(f"{path}: skipped {len(bad)} bad lines, {len(items)} are left", file=sys.stderr)
    longer = sum(item.longer for item in items)
    if longer and is_first_rank():
        print(f"{path}: {longer} of {len(items)} lines have videos of more than "
              f"{model.preset.frames} frames; \"start\" and \"stride\" say which are used")
    return items


def make_critic(model, args) -> Critic | None:
    """The model's own VLM as its critic, or --critic's; None at lambda 0."""
    if args.lam == 0:
        return None
    try:
        vlm = read_vlm(model, args.critic) if args.critic else None
    except (OSError, ValueError, RuntimeError) as error:
        raise BadInput(f"--critic {args.critic}: {error}") from error
    return Critic(model, args.think, args.decode, vlm)


def make_batches(model, critic, latents: Latents, args, with_m_0: bool = False) -> Batches:
    """The batches, with the critic's thoughts and m_0; parts whose work is done leave the GPU.

    with_m_0: of --pairs, too.
    """
    reflections = None
    if critic and not args.pairs:
        reflections = ask_about_sources(model, critic, latents, args)
    batches = Batches(latents, model, reflections, batch=args.batch, tau=args.tau,
                      drop=args.drop, seed=args.seed, accumulate=args.accumulate,
                      pairs=make_pairs(model, critic, args, with_m_0) if args.pairs else None)
    for part in ("text_encoder", "ar_head", "adapter"):
        getattr(model, part).cpu()
    if critic is None:
        model.vlm.cpu()
        model.vae.cpu()
    return batches


def make_pairs(model, critic, args, with_m_0: bool = False) -> Batches:
    """The batches of --pairs. Their m_0 is 0, unless `with_m_0`: the critic's No to an unedited
    source is so clear that any edit is far ahead of it, and hardly a gradient is left."""
    latents = Latents(pair_items(model, args), model, args.cache, progress=is_first_rank())
    reflections = ask_about_sources(model, critic, latents, args)
    if not with_m_0:
        reflections = [(thought, 0.) for thought, _ in reflections]
    return Batches(latents, model, reflections, batch=args.batch, tau=args.tau, drop=0.,
                   seed=args.seed + SEED_OF_PAIRS, accumulate=args.accumulate)


def pair_items(model, args) -> list[Item]:
    """The sources and instructions of --pairs, of the tiny world or of a manifest."""
    if isinstance(args.pairs, int):
        return world_pairs(args.pairs)
    return read_items(model, args.pairs, args.skip_bad, targets=False)


def ask_about_sources(model, critic, latents: Latents, args) -> list[tuple[str | None, float]]:
    """(thought, m_0) of each sample; those of --critic are cached in a folder of their own."""
    folder = args.cache / hash_of_weights(args.critic) if args.critic else args.cache
    with model.precision():
        return reflect(critic, latents, folder)


def end(run: Run, model, latents: Latents, args, settings: dict) -> None:
    """Save the model, which points to its frozen parts; then pictures and scores."""
    if is_first_rank():
        start_weights = args.weights or Path(__file__).parent / "weights" / args.preset
        model.save_pretrained(args.out / "model", frozen=frozen_folder(start_weights))
    run.write_log()
    if is_first_rank():
        report(run.log, latents.items, args, settings)
    stop()


# ---------------------------------------------------------------------------------------- the flags

def flags() -> Parser:
    parser = Parser(description=__doc__.split("\n\n")[0])
    add = parser.add_argument_group("what to train").add_argument
    add("--objective", choices=("uso", "sft"), default="uso", help="Eq. 5, or lambda 0")
    add("--pairs", type=number_or_file, metavar="N|FILE",
        help="own edits, not in the paper: of how many sources of the tiny world without targets, "
             "or of a manifest that has none")
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
    add("--critic", metavar="FOLDER", help="another VLM that judges (without it: the model's own)")
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
        argv = argv_of(folder, argv)
        # argv_of has taken --resume out: this says that the run goes on
        args = parser.parse_args(argv, argparse.Namespace(resume=True))
        args.out = folder                                # the run may have been moved
    if args.objective == "sft":
        args.lam = 0.
    if args.pairs:
        args.objective = "own-edits"                     # the third, which --pairs stands for
    args.argv = argv
    args.out = args.out or default_folder(args.objective, args.data)
    args.decode = args.decode or PRESETS[args.preset].decode
    if args.ema == 1:
        raise BadInput("--ema 1: would keep the weights of the start; pass less, as 0.99")
    if args.wrong + args.drift > 1:
        raise BadInput(f"--wrong {args.wrong:g} --drift {args.drift:g}: are more than all targets; "
                       f"lower one of them")
    check_critic(args)
    parts = WORLD_SIZE * args.accumulate
    if args.batch % parts:
        among = f"among {WORLD_SIZE} ranks"
        if args.accumulate > 1:
            among += f" in {args.accumulate} parts"
        raise BadInput(f"--batch {args.batch} does not divide {among}: pass a multiple of {parts}")
    return args


def number_or_file(text: str) -> int | str:
    """How many, or the name of a manifest, as a flag's `type`."""
    return positive(text) if text.lstrip("-").isdigit() else text


def check_critic(args) -> None:
    """Raises BadInput where --pairs or --critic cannot be used."""
    for flag, value in (("--pairs", args.pairs), ("--critic", args.critic)):
        if value and args.lam == 0:
            raise BadInput(f"{flag} {value}: no critic is asked at lambda 0; drop it")
    if isinstance(args.pairs, str) and not Path(args.pairs).is_file():
        raise BadInput(f"--pairs {args.pairs}: no such file; give a manifest, or a number")
    if args.critic and not any(Path(args.critic).rglob("*.safetensors")):
        raise BadInput(f"--critic {args.critic}: holds no weights; weights/hardened does")


def default_folder(objective: str, data: str | None) -> Path:
    """out/uso for the tiny world, out/uso-triplets for triplets.jsonl: a folder a data set."""
    return Path("out") / (f"{objective}-{Path(data).stem}" if data else objective)


def settings_of(args) -> dict:
    """What must be equal for a run to be the same run."""
    settings = plain_settings(args, FREE)
    for name in ("data", "pairs"):               # another manifest of this name is another run
        file = getattr(args, name)
        if isinstance(file, str) and Path(file).is_file():
            settings[name] += f" {hash_of_file(file)}"
    if args.critic:
        settings["critic"] += f" {hash_of_weights(args.critic)}"
    return settings


if __name__ == "__main__":
    run_script(main, "stopped and saved; the same command goes on from here")
