"""The VLM's fifth lesson: what would please it? For a VLM after the four of vlm.py.

    python -m pretrain.harden --weights weights/tiny --steps 1200       # 50 minutes on one core
    python train.py --critic out/harden/model                           # it judges, and only that

A critic that is right on all answers it has seen can still be pleased by changes that are no edits:
its gradient leads there. So right and wrong answers are moved along that gradient, graded afresh by
the oracle, and shown to it.

Axis letters: B answers, K frames of a clip that the VLM sees, H W pixels, C f h w latents.
"""

import copy
from pathlib import Path

import numpy as np
import torch

from common.distributed import RANK, WORLD_SIZE
from common.files import run_script
from common.run import Run
from critic import Critic, follow
from model import UnifiedModel, load_model
from pretrain import stage
from pretrain.heads import Heads
from pretrain.lessons import (as_video, grade, render_lessons, training_triplet, vlm_frames,
                              vlm_lesson)
from pretrain.vlm import Shown, judge_answers, name_patches, one_step, two_answers

HEAD_STEPS = 200                                    # the heads of the dense questions alone, before
AS_BEFORE = .375                                         # the share of pairs as in the third lesson
FARTHEST = .7                                    # RMS of the longest way, in deviations of a latent


def harden_step(model: UnifiedModel, generator: UnifiedModel | None, heads: Heads,
                lessons: list[dict], number: int, args) -> tuple[torch.Tensor, dict]:
    """Eyes and verdicts: loss, what to log. Without a `generator`, as in the third lesson."""
    rng = np.random.default_rng([args.seed, 5, number, RANK])
    batch = [lessons[i] for i in rng.integers(len(lessons), size=args.batch // WORLD_SIZE)]
    k = int(rng.integers(3))
    eyes_loss, log = name_patches(model.vlm, heads, batch, slice(k, k + 1))
    asked = batch[::2]
    n_as_before = round(AS_BEFORE * len(asked)) if generator else len(asked)
    shown = []
    for lesson in asked[:n_as_before]:
        shown += two_answers(lesson, [], rng)
    if generator:
        shown += pleasing_answers(model, generator, asked[n_as_before:], rng)
    loss, more = judge_answers(model.vlm, heads, shown, rng)
    return .3 * eyes_loss + loss, log | more


def pleasing_answers(model: UnifiedModel, generator: UnifiedModel, lessons: list[dict],
                     rng) -> list[Shown]:
    """Two answers to each lesson, moved to please the critic, and graded afresh by the oracle.

    They begin as the target and a near miss, half of them as one-step estimates of `generator` of
    these. A coin says for all targets of a step whether they are moved to please or to displease.
    """
    rows = [lesson for lesson in lessons for _ in range(2)]
    clips = [as_video(lesson[key]) for lesson in lessons for key in ("target", "wrong")]
    latents = model.encode_video(torch.stack(clips))                         # (B, C, f, h, w)
    estimated = rng.random(len(rows)) < .5
    if estimated.any():
        some = [lesson for lesson, chosen in zip(rows, estimated) if chosen]
        latents[estimated] = estimates_of(generator, some, latents[estimated], rng)
    way_of_targets = float(rng.choice([-1, 1]))
    way = torch.tensor([way_of_targets, 1.] * len(lessons))
    length = torch.from_numpy(rng.random(len(rows)) * FARTHEST).float()
    moved = please(Critic(model), rows, latents, way * length, steps=int(rng.integers(1, 4)))
    with torch.no_grad():
        videos, frames = model.decode_video(moved), Critic(model).decode(moved)
    grades = [grade(training_triplet(lesson["index"]), video)
              for lesson, video in zip(rows, videos)]
    return [Shown(lesson, shown, "", value) for lesson, shown, value in zip(rows, frames, grades)]


@torch.no_grad()
def estimates_of(generator: UnifiedModel, lessons: list[dict], latents: torch.Tensor,
                 rng) -> torch.Tensor:
    """What `generator` makes of noised answers (B, C, f, h, w) in one step, at random t."""
    t = torch.from_numpy(rng.random(len(lessons)) * .85 + .02).float()
    noise = torch.from_numpy(rng.normal(size=tuple(latents.shape))).float()
    videos = torch.stack([as_video(lesson["source"]) for lesson in lessons])
    texts = [lesson["instruction"] for lesson in lessons]
    source = generator.encode_video(videos)
    bridged = generator.bridge(generator.encode_vlm(videos, texts))
    c = generator.context(source, bridged, generator.encode_text(texts))     # Eq. 1
    return one_step(generator, c, source, latents, t, noise)


def please(critic: Critic, lessons: list[dict], latents: torch.Tensor, size: torch.Tensor,
           steps: int) -> torch.Tensor:
    """Latents moved by an RMS of `size` (B,) along the margin's gradient; below 0, against it."""
    source = torch.stack([vlm_frames(lesson["source"]) for lesson in lessons])
    texts = [lesson["instruction"] for lesson in lessons]
    thoughts = [lesson["thought"] for lesson in lessons]

    def margin_of(frames):
        return critic.margin(source, frames, texts, thoughts)
    with torch.autocast("cpu", torch.bfloat16):          # a direction needs no more
        moved = follow(critic, latents, margin_of, steps=steps, size=size.view(-1, 1, 1, 1, 1))
    return moved.float()


def main(argv=None) -> None:
    parser = stage.flags("Harden the tiny VLM: its fifth lesson.",
                         steps=1000, batch=10, lr=1e-3, items=3000, out="out/harden")
    parser.add_argument("--weights", type=Path, default=Path("out/base/model"),
                        help="a whole model, as base.py writes it")
    args = stage.begin(parser, argv)
    model = load_model(args.weights, "tiny").requires_grad_(False)
    generator = copy.deepcopy(model)                     # whose VLM stays as it is
    torch.manual_seed(args.seed)
    heads = Heads(model.vlm)                             # they are not kept with a VLM
    lessons = render_lessons(vlm_lesson, args.items)
    stage.claim(args)

    params = dict(heads.named_parameters())
    run = Run(args.out / "heads", params, stage.optimizers(params, 1e-2, 0.), name="heads")
    for step in run.steps(HEAD_STEPS):
        run.update(*harden_step(model, None, heads, lessons, step, args))

    model.vlm.requires_grad_(True)
    run = stage.run_of_vlm(model.vlm, heads, args, "harden", ema=.99)
    for step in run.steps(args.steps):
        # -------------------------------------------------------------------- one training step
        loss, log = harden_step(model, generator, heads, lessons, HEAD_STEPS + step, args)
        run.update(loss, log)
        # ---------------------------------------------------------------------------------------
    stage.end(model, args, run)


if __name__ == "__main__":
    run_script(main, stage.STOPPED)
