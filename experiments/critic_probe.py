"""Is the critic right, and where does its gradient act? (Sec. 4.2.2)

    python -m experiments.critic_probe                               # weights/tiny
    python -m experiments.critic_probe --weights weights/hardened --n 100 --split val

Measures a model's frozen VAE and VLM on held-out triplets of the tiny world, prints what it found
and keeps it in out/critic/<model>.json. Four questions, a function each:

    measure_vae        what does the critic get to see?
    measure_verdicts   does it say Yes to right edits and No to wrong ones?
    measure_gradient   does its margin agree with the oracle, and which pixels does it look at?
    measure_ascent     what is a gain of margin worth, if one follows its gradient?

The right answers are the targets, the wrong ones near misses that the oracle gives an Overall
below 6; RAVE and ICVG take turns.

Axis letters: N samples, F frames, K frames that the critic sees, H W pixels.
"""

import itertools
import json
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from scipy.stats import spearmanr
from tqdm import tqdm

from common.files import (Parser, at_least_0, atomic_write, check_writable, positive,
                          run_script)
from common.intervals import format_interval, paired_difference
from common.weights import read_vlm
from critic import THINK, Critic, decode_frames, follow
from evaluate import judge, run_name
from model import UnifiedModel, load_model
from tiny import world

WRONG_BELOW = 6                # the oracle's Overall of a near miss that counts as a wrong answer
CHANGED = .02                  # a pixel in [-1, 1] that differs by more is one that should change
BATCH = 20                     # clips at a time
WAYS = (.3, .6)                # RMS of the whole way up the margin, in deviations of a latent
SCORES = ("Overall", "EA", "PC", "GR")           # of the oracle


# ------------------------------------------------------------------------ what the probes share

def batches(n: int, size: int = BATCH) -> list[slice]:
    """The numbers below n in slices of `size`; the last one may be shorter."""
    return [slice(start, min(start + size, n)) for start in range(0, n, size)]


def changed_region(vlm, source: torch.Tensor, target: torch.Tensor) -> torch.Tensor:
    """Where the frames that the VLM sees should change: (N, F, 3, H, W) -> bool (N, K, 1, H, W)."""
    difference = vlm.pick(source) - vlm.pick(target)                         # (N, K, 3, H, W)
    return difference.abs().amax(2, keepdim=True) > CHANGED


def share_inside(gradient: torch.Tensor, region: torch.Tensor) -> torch.Tensor:
    """The share (N,) of |gradient| (N, K, 3, H, W) that falls on the region (N, K, 1, H, W)."""
    size = gradient.abs()
    inside = size * region
    return inside.flatten(1).sum(1) / size.flatten(1).sum(1)


def psnr(a: torch.Tensor, b: torch.Tensor) -> float:
    """Mean over clips of the peak signal-to-noise ratio in dB; (N, F, 3, H, W) in [-1, 1]."""
    error = (a - b).pow(2).mean((1, 2, 3, 4)).clamp_min(1e-9)
    return float((10 * torch.log10(4 / error)).mean())


def load_with_vlm(folder: str | Path | None) -> UnifiedModel:
    """`load_model(folder)`; of a VLM alone, as in weights/hardened, weights/tiny with that VLM."""
    parts = {path.name for path in Path(folder).glob("*")} if folder else set()
    if "vlm.llm" in parts and "transformer" not in parts:
        model = load_model(None)
        model.vlm = read_vlm(model, folder)
        return model
    return load_model(folder)


# ------------------------------------------------------------------------ the held-out answers

@dataclass
class HeldOut:
    """Instructions with a right and a wrong answer each; row i belongs to triplet i."""
    triplets: list
    instructions: list[str]
    source: torch.Tensor                 # (N, F, 3, H, W) in [-1, 1]
    right: torch.Tensor                  # (N, F, 3, H, W)
    wrong: torch.Tensor                  # (N, F, 3, H, W)
    kinds: list[str]                     # what is wrong: one of world.MISSES each

    def __len__(self) -> int:
        return len(self.triplets)

    def batches(self, progress: str):
        """The rows in slices of BATCH, behind a progress bar."""
        return tqdm(batches(len(self)), desc=progress)


def wrong_answer(triplet, first: int, rng: np.random.Generator) -> tuple[torch.Tensor, str]:
    """A near miss with an Overall below WRONG_BELOW, and its kind: the `first`, or one after it."""
    kinds = itertools.cycle(world.MISSES)
    for kind in itertools.islice(kinds, first % len(world.MISSES), None):
        video, _ = world.near_miss(triplet, kind, rng)
        if judge(triplet, video)["Overall"] < WRONG_BELOW:
            return video, kind


def hold_out(n: int, split: str = "test", seed: int = 0) -> HeldOut:
    """n triplets of the split, RAVE and ICVG in turn, with wrong answers of all kinds in turn."""
    triplets = [world.make_triplet(k // 2, ("rave", "icvg")[k % 2], split) for k in range(n)]
    rng = np.random.default_rng(seed)
    misses = [wrong_answer(triplet, k, rng) for k, triplet in enumerate(triplets)]
    return HeldOut(
        triplets=triplets,
        instructions=[triplet.instruction for triplet in triplets],
        source=torch.stack([triplet.source for triplet in triplets]),
        right=torch.stack([triplet.target for triplet in triplets]),
        wrong=torch.stack([video for video, _ in misses]),
        kinds=[kind for _, kind in misses])


# ------------------------------------------------------------------------ the measurements

@torch.no_grad()
def measure_vae(model, clips: torch.Tensor) -> dict:
    """In dB, on clips (N, F, 3, H, W): psnr of the VAE on whole clips; alone_psnr of each of the K
    latent frames decoded alone, against the same frame of the exact decode."""
    latents = torch.cat([model.encode_video(clips[rows]) for rows in batches(len(clips))])
    exact, alone = [], []
    for rows in batches(len(clips)):
        exact.append(model.decode_video(latents[rows]))
        alone.append(decode_frames(model, latents[rows], "alone"))
    exact, alone = torch.cat(exact), torch.cat(alone)
    seen = model.vlm.pick(exact)                                             # (N, K, 3, H, W)
    by_frame = [psnr(alone[:, k:k + 1], seen[:, k:k + 1]) for k in range(seen.shape[1])]
    return {"psnr": psnr(exact, clips), "alone_psnr": by_frame}


def early_thoughts(critic: Critic, held: HeldOut) -> list:
    """A list of thoughts for each batch; None for each where they wait until the edit is seen."""
    if critic.think != "expect":
        return [None] * len(batches(len(held)))
    return [critic.thoughts(held.source[rows], held.instructions[rows])
            for rows in batches(len(held))]


@torch.no_grad()
def margins(critic: Critic, held: HeldOut, answers: torch.Tensor, thoughts: list,
            progress: str) -> torch.Tensor:
    """The critic's margin (N,) on `answers` (N, F, 3, H, W)."""
    found = []
    for rows, written in zip(held.batches(progress), thoughts):
        margin = critic.margin(held.source[rows], answers[rows], held.instructions[rows], written)
        found.append(margin)
    return torch.cat(found)


def measure_verdicts(critic: Critic, held: HeldOut, thoughts: list) -> dict:
    """right: the share of right verdicts; by_kind: of those on edits and on each kind of miss."""
    yes = margins(critic, held, held.right, thoughts, f"{critic.think}: edit") > 0
    no = margins(critic, held, held.wrong, thoughts, f"{critic.think}: miss") < 0
    by_kind = {"edit": float(yes.float().mean())}
    for kind in dict.fromkeys(held.kinds):
        of_this_kind = [other == kind for other in held.kinds]
        by_kind[kind] = float(no[of_this_kind].float().mean())
    return {"right": float(torch.cat([yes, no]).float().mean()), "by_kind": by_kind}


def measure_gradient(critic: Critic, held: HeldOut, thoughts: list, edits: torch.Tensor) -> dict:
    """On generated edits (N, F, 3, H, W), good and bad ones:

    spearman   of the margin with the oracle's EA; None where one of them is constant
    gradient   the mean norm of d margin / d pixels
    inside     the share of its absolute value on the pixels that should change
    """
    found, gradients = [], []
    for rows, written in zip(held.batches(f"{critic.think}: generated"), thoughts):
        frames = critic.vlm.pick(edits[rows]).requires_grad_()
        margin = critic.margin(held.source[rows], frames, held.instructions[rows], written)
        gradients.append(torch.autograd.grad(margin.sum(), frames)[0])
        found.append(margin.detach())
    gradient = torch.cat(gradients)                                          # (N, K, 3, H, W)
    region = changed_region(critic.vlm, held.source, held.right)
    ea = [world.judge(triplet, edit)["EA"] for triplet, edit in zip(held.triplets, edits)]
    return {"spearman": spearman(torch.cat(found).tolist(), ea),
            "gradient": float(gradient.flatten(1).norm(dim=1).mean()),
            "inside": float(share_inside(gradient, region).mean())}


@torch.no_grad()
def measure_ascent(critic: Critic, held: HeldOut, thoughts: list, way: float) -> dict:
    """The wrong answers are moved up the margin by six normalised steps, of an RMS of `way` in all.
    Returns what the "margin" gained on average, and of the oracle's SCORES [gain, low, high].

    A critic whose gradient is an edit gains as much of the oracle as of itself. Before and after
    are both decoded latents, so that the VAE's own blur counts on neither side.
    """
    model, margin_gains, scores_before, scores_after = critic.model, [], [], []
    for rows, written in zip(held.batches(f"{critic.think}: RMS {way}"), thoughts):
        def margin_of(frames):
            return critic.margin(held.source[rows], frames, held.instructions[rows], written)
        latents = model.encode_video(held.wrong[rows])                       # (B, C, f, h, w)
        with torch.enable_grad():
            moved = follow(critic, latents, margin_of, size=way)
        margin_gains.append(margin_of(critic.decode(moved)) - margin_of(critic.decode(latents)))
        before, after = model.decode_video(latents), model.decode_video(moved)
        scores_before += map(judge, held.triplets[rows], before)
        scores_after += map(judge, held.triplets[rows], after)
    found = {"margin": float(torch.cat(margin_gains).mean())}
    for name in SCORES:
        found[name] = paired_difference([scores[name] for scores in scores_after],
                                        [scores[name] for scores in scores_before])
    return found


def spearman(a: list[float], b: list[float]) -> float | None:
    """The rank correlation of two lists; None where one of them is constant."""
    if len(set(a)) < 2 or len(set(b)) < 2:
        return None
    return float(spearmanr(a, b).statistic)


def probe(model, n: int = 200, split: str = "test", seed: int = 0) -> dict:
    """All measurements: those of verdicts, gradient and ascent stand under each way to think, the
    ascent only where the thought comes first; `area` is the share of pixels that should change."""
    held = hold_out(n, split, seed)
    edits = torch.cat([model.sample(held.source[rows], held.instructions[rows],
                                    seed=seed + rows.start) for rows in held.batches("edits")])
    region = changed_region(model.vlm, held.source, held.right)
    found = {"n": n, "split": split, **measure_vae(model, held.right)}
    found["area"] = float(region.float().mean())
    for think in THINK:
        critic = Critic(model, think)
        thoughts = early_thoughts(critic, held)
        verdicts = measure_verdicts(critic, held, thoughts)
        found[think] = verdicts | measure_gradient(critic, held, thoughts, edits)
        if think == "expect":
            for way in WAYS:
                found[think][f"RMS {way}"] = measure_ascent(critic, held, thoughts, way)
    return found


# ------------------------------------------------------------------------ the command

def describe(found: dict) -> str:
    """What `probe` found, in words."""
    alone = ", ".join(f"{x:.1f}" for x in found["alone_psnr"])
    lines = [f"on {found['n']} triplets of the {found['split']} split: VAE {found['psnr']:.1f} dB; "
             f"latent frames decoded alone, against the exact decode: {alone} dB"]
    for think in THINK:
        row = found[think]
        kinds = ", ".join(f"{kind} {share:.0%}" for kind, share in row["by_kind"].items())
        rho = "-" if row["spearman"] is None else f"{row['spearman']:.3f}"
        lines.append(f"{think:7s} verdicts right {row['right']:.1%} ({kinds}); "
                     f"Spearman with EA {rho}; |d margin / d pixels| {row['gradient']:.3f}, "
                     f"{row['inside']:.0%} of it on the {found['area']:.0%} of pixels that "
                     f"should change")
    for way in WAYS:
        gained = found["expect"][f"RMS {way}"]
        scores = ", ".join(f"{name} {format_interval(gained[name], '+.2f')}" for name in SCORES)
        lines.append(f"wrong answers moved up the margin by an RMS of {way}: margin "
                     f"{gained['margin']:+.2f}, {scores}")
    return "\n".join(lines)


def parse(argv=None):
    parser = Parser(description="Measure a model's frozen critic and VAE on held-out triplets.")
    parser.add_argument("--weights", help="a run's or model's folder (default: weights/tiny)")
    add = parser.add_argument
    add("--n", type=positive, default=200, help="how many triplets")
    add("--split", choices=world.SPLITS, default="test", help="of the tiny world")
    add("--seed", type=at_least_0, default=0, help="of near misses and generated edits")
    parser.add_argument("--out", type=Path, default=Path("out/critic"), help="folder of the JSON")
    args = parser.parse_args(argv)
    check_writable(args.out / "model.json")
    return args


def main(argv=None) -> None:
    args = parse(argv)
    model = load_with_vlm(args.weights)
    found = probe(model, args.n, args.split, args.seed)
    name = run_name(args.weights) if args.weights else model.preset.name
    file = args.out / f"{name}.json"
    atomic_write(file, json.dumps(found, indent=1) + "\n")
    print(f"{describe(found)}\nwrote {file}")


if __name__ == "__main__":
    run_script(main)
