"""Where does the critic's gradient act, how large is it, and where does it lead?

`--figure gradient` shows it. On the base's one-step estimates of RAVE's val split, at a few noise
levels t, from x_t noised from the target ("right") and from a near miss ("wrong"):

    share   of |d margin / d pixels| on the pixels that should change, for each way to think
    size    |d L_reason / d v| over |d L_FM / d v|, as they weigh in Eq. 5 at lambda 0.25, tau 0.5
    aim     the cosine of -d L_reason / d v with the way from v to the velocity whose one-step
            estimate (Eq. 3) is the right target

Axis letters: N samples, K frames that the critic sees, C f h w latents, H W pixels.
"""

from dataclasses import dataclass

import numpy as np
import torch
from tqdm import tqdm

from bench import trigger_rate
from critic import THINK, Critic, clean_estimate, decode_frames, reason_loss
from experiments.critic_probe import batches, changed_region, share_inside
from experiments.runs import Study
from model import add_noise, load_model, velocity_target
from tiny import world

LEVELS = (.05, .2, .35, .5, .65, .8, .95)        # of t
LAMBDA, TAU = .25, .5
MOST = 100                                       # samples, however many the study has


@dataclass
class Scene:
    """The encoded val samples; row i of everything belongs to the same triplet."""
    source: torch.Tensor                         # (N, F, 3, H, W)
    instructions: list[str]
    thoughts: list[str]
    baseline: torch.Tensor                       # (N,) m_0
    region: torch.Tensor                         # (N, K, 1, H, W) what should change
    x0: dict[str, torch.Tensor]                  # "right", "wrong": (N, C, f, h, w)
    z: torch.Tensor                              # (N, C, f, h, w) the source
    c: torch.Tensor                              # (N, T, D)
    noise: torch.Tensor                          # (N, C, f, h, w)


def near_miss(triplet, i: int) -> torch.Tensor:
    """A wrong answer to the i-th triplet; the kinds take turns."""
    kind = world.MISSES[i % len(world.MISSES)]
    video, _ = world.near_miss(triplet, kind, np.random.default_rng(i))
    return video


@torch.no_grad()
def encode(model, critic: Critic, n: int) -> Scene:
    """The first n samples of RAVE's val split, as the model and its critic need them."""
    triplets = [world.make_triplet(i, "rave", "val") for i in range(n)]
    source = torch.stack([triplet.source for triplet in triplets])
    target = torch.stack([triplet.target for triplet in triplets])
    wrong = torch.stack([near_miss(triplet, i) for i, triplet in enumerate(triplets)])
    instructions = [triplet.instruction for triplet in triplets]
    x0 = {"right": model.encode_video(target), "wrong": model.encode_video(wrong)}
    z = model.encode_video(source)
    bridged = model.bridge(model.encode_vlm(source, instructions))
    c = model.context(z, bridged, model.encode_text(instructions))
    thoughts = critic.thoughts(source, instructions)
    baseline = critic.baseline(source, instructions, thoughts)
    noise = torch.randn(z.shape, generator=torch.Generator().manual_seed(0))
    return Scene(source, instructions, thoughts, baseline,
                 changed_region(model.vlm, source, target), x0, z, c, noise)


def size_and_aim(model, critic: Critic, scene: Scene, which: str, level: float) -> tuple:
    """(size (N,), aim (N,), frames (N, K, 3, H, W)) for x_t noised from scene.x0[which] to t."""
    t = torch.full((len(scene.z),), level)
    x_t = add_noise(scene.x0[which], scene.noise, t)
    with torch.no_grad():
        v = model.velocity(x_t, t, scene.c, scene.z)
    sizes, aims, seen = [], [], []
    for rows in batches(len(t)):
        leaf = v[rows].clone().requires_grad_()
        estimate = clean_estimate(x_t[rows], leaf, t[rows])
        frames = decode_frames(model, estimate, model.preset.decode)
        margin = critic.margin(scene.source[rows], frames, scene.instructions[rows],
                               scene.thoughts[rows])
        loss = reason_loss(margin, scene.baseline[rows]).sum()
        of_reason = torch.autograd.grad(loss, leaf)[0].flatten(1)            # d L_reason / d v
        weighed = LAMBDA / trigger_rate(TAU) * of_reason
        error = v[rows] - velocity_target(scene.x0[which][rows], scene.noise[rows])
        of_flow = 2 * error.flatten(1) / v[0].numel()                        # d L_FM / d v
        right_v = (x_t[rows] - scene.x0["right"][rows]) / t[0]               # Eq. 3, solved for v
        way = (right_v - v[rows]).flatten(1)
        sizes.append(weighed.norm(dim=1) / of_flow.norm(dim=1))
        aims.append(torch.cosine_similarity(-weighed, way))
        seen.append(frames.detach())
    return torch.cat(sizes), torch.cat(aims), torch.cat(seen)


def share_on_region(critic: Critic, scene: Scene, frames: torch.Tensor) -> torch.Tensor:
    """The share (N,) of |d margin / d frames| on what should change; frames: (N, K, 3, H, W)."""
    shares = []
    for rows in batches(len(frames)):
        pixels = frames[rows].clone().requires_grad_()
        thoughts = scene.thoughts[rows] if critic.think == "expect" else None
        margin = critic.margin(scene.source[rows], pixels, scene.instructions[rows], thoughts)
        gradient = torch.autograd.grad(margin.sum(), pixels)[0]
        shares.append(share_inside(gradient, scene.region[rows]))
    return torch.cat(shares)


def gradient_at_levels(study: Study) -> dict[str, list]:
    """{"levels": LEVELS, "area": the region's share of the pixels (N,), and (levels, N) each of the
    three ways to think, "size, right", "size, wrong", "aim, right", "aim, wrong"}."""
    model = load_model(study.weights)
    critic = Critic(model)
    scene = encode(model, critic, min(study.n, MOST))
    found = {"levels": LEVELS, "area": scene.region.float().mean((1, 2, 3, 4)).tolist()}
    for name in (*THINK, "size, right", "size, wrong", "aim, right", "aim, wrong"):
        found[name] = []
    for level in tqdm(LEVELS, desc="gradients"):
        frames = {}
        for which in ("right", "wrong"):
            size, aim, frames[which] = size_and_aim(model, critic, scene, which, level)
            found[f"size, {which}"].append(size.tolist())
            found[f"aim, {which}"].append(aim.tolist())
        for think in THINK:
            share = share_on_region(Critic(model, think), scene, frames["right"])
            found[think].append(share.tolist())
    return found
