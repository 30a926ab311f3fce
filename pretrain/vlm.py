"""Pretrain the tiny VLM, from scratch, in four lessons.

    python -m pretrain.vlm
    torchrun --nproc_per_node 2 -m pretrain.vlm     # 56 minutes on two cores
    python -m pretrain.vlm --weights weights/tiny   # with the VAE of this repository

It reads the VAE in out/vae/model and writes out/vlm/model, which base.py reads.

    1   eyes        what covers this patch?                               the first 5 % of the steps
    2   words       captions and chains of thought                        up to 16 %
    3   verdicts    is it done? and the dense questions of heads.py       up to 60 %
    4   estimates   verdicts also on what a half-trained generator made   to the end

Answers to be judged come in twos, to the same instruction: what tells them apart is only whether it
is done.

Axis letters: B rows, N frames, K frames of a clip that the VLM sees, F frames, H W pixels, C f h w
latents, T tokens, D width.
"""

from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch
import torch.nn.functional as F
from tqdm import tqdm

from common.distributed import RANK, WORLD_SIZE, is_first_rank
from common.files import positive, run_script
from common.run import Run
from critic import THINK, clean_estimate
from model import UnifiedModel, add_noise
from pretrain import stage
from pretrain.base import Edits, base_step, encode_edits, encode_videos, new_generator
from pretrain.chats import caption_row, teach, thought_row, verdict_row
from pretrain.heads import Heads, compares, covers, expects
from pretrain.lessons import (VLM_STRIDE, Answer, as_bytes, as_video, grade, render_lessons,
                              training_triplet, vlm_frames, vlm_lesson)
from vlm import VILA

WORDS_FROM, VERDICTS_FROM, ESTIMATES_FROM = 5, 16, 60    # percent of the steps
THINK_SHARE = (.8, .1, .1)                               # of critic.THINK: expect, full, none
ESTIMATES_SHARE = .4                                     # of the pairs in the fourth lesson
TARGET_GRADE = .95                                  # the soft label of the target: an Overall of 10


class Shown(NamedTuple):
    """An answer in a batch."""
    lesson: dict
    frames: torch.Tensor                                 # (K, 3, H, W) in [-1, 1]
    seen: str                                            # what has been done, "" where unknown
    grade: float                                         # the soft label


def vlm_step(vlm: VILA, heads: Heads, lessons: list[dict], estimates: list, step: int,
             args) -> tuple[torch.Tensor, dict]:
    """The loss of step number `step` of args.steps, and what to log."""
    rng = np.random.default_rng([args.seed, step, RANK])
    numbers = rng.integers(len(lessons), size=args.batch // WORLD_SIZE)
    batch = [lessons[i] for i in numbers]
    if step < args.steps * WORDS_FROM // 100:
        return name_patches(vlm, heads, batch, slice(None))
    k = int(rng.integers(3))                             # from here on one frame is enough
    eyes_loss, log = name_patches(vlm, heads, batch, slice(k, k + 1))
    if step < args.steps * VERDICTS_FROM // 100:
        loss, more = write_texts(vlm, batch, rng)
    else:
        if step < args.steps * ESTIMATES_FROM // 100:
            estimates = []
        shown = [answer for lesson in batch[::2] for answer in two_answers(lesson, estimates, rng)]
        loss, more = judge_answers(vlm, heads, shown, rng)
    return .3 * eyes_loss + loss, log | more


# ----------------------------------------------------------------------------------- lesson 1: eyes

def name_patches(vlm: VILA, heads: Heads, batch: list[dict],
                 frames: slice) -> tuple[torch.Tensor, dict]:
    """What covers each patch of the source? Of these of its frames, and of the first eight rows."""
    batch = batch[:8]
    source = torch.cat([vlm_frames(lesson["source"])[frames] for lesson in batch])   # (N, 3, H, W)
    labels = torch.cat([torch.from_numpy(lesson["labels"])[frames] for lesson in batch])
    loss, right = covers(vlm, heads, source, labels)
    return loss, {"patches_right": right.item()}


# ---------------------------------------------------------------------------------- lesson 2: words

def write_texts(vlm: VILA, batch: list[dict], rng) -> tuple[torch.Tensor, dict]:
    """Describe the source, and think about the instruction."""
    source = vlm.see(torch.stack([vlm_frames(lesson["source"]) for lesson in batch]))    # (B, T, D)
    rows = []
    for lesson, seen in zip(batch, source):
        instruction = instruction_of(lesson, rng)
        rows.append(caption_row(seen, lesson["caption"]))
        rows.append(thought_row(seen, instruction, lesson["thought"]))
    taught = teach(vlm, rows)
    return taught.text_loss, {"text_loss": taught.text_loss.item()}


def instruction_of(lesson: dict, rng) -> str:
    """Mostly the implicit one, at times the edit in plain words."""
    return lesson["instruction" if rng.random() < .8 else "literal"]


# ------------------------------------------------------------------------ lessons 3 and 4: verdicts

def two_answers(lesson: dict, estimates: list, rng) -> list[Shown]:
    """A right and a wrong answer to the lesson; or, in lesson 4, two of the draft's to another."""
    if estimates and rng.random() < ESTIMATES_SHARE:
        lesson, made = estimates[int(rng.integers(len(estimates)))]
        answers = [made[k] for k in rng.choice(len(made), 2, replace=False)]
    else:
        right = Answer(lesson["target"][::VLM_STRIDE], lesson["literal"], TARGET_GRADE)
        answers = [right, lesson["misses"][int(rng.integers(3))]]
    shown = []
    for answer in answers:
        frames = as_video(answer.frames)
        if rng.random() < .3:                            # a little grain alone is no reason for No
            size = .05 * rng.random()
            grain = rng.normal(size=frames.shape).astype(np.float32)
            frames = frames + size * torch.from_numpy(grain)
        shown.append(Shown(lesson, frames, answer.seen, answer.grade))
    return shown


def judge_answers(vlm: VILA, heads: Heads, shown: list[Shown], rng) -> tuple[torch.Tensor, dict]:
    """Is it done, and what has been done?

    shown: pairs of answers, each pair to one lesson, one after the other. The dense questions are
    asked where the thought comes before the edit: "expect".
    """
    frames = torch.stack([answer.frames for answer in shown])                      # (B, K, 3, H, W)
    source = vlm.see(torch.stack([vlm_frames(answer.lesson["source"]) for answer in shown[::2]]))
    edited = vlm.see(frames)                                                             # (B, T, D)
    rows, asked = [], []
    for i, answer in enumerate(shown):
        if i % 2 == 0:                              # a pair has one chat, and the first is "expect"
            think = str(rng.choice(THINK, p=THINK_SHARE)) if i > 0 else "expect"
            instruction = instruction_of(answer.lesson, rng)
        if think == "expect":
            asked.append(i)
        rows.append(verdict_row(think, source[i // 2], edited[i], instruction,
                                answer.lesson["thought"], answer.seen, answer.grade))
    grades = torch.tensor([answer.grade for answer in shown])                              # (B,)
    taught = teach(vlm, rows, grades)

    lessons = [shown[i].lesson for i in asked]
    expect_loss, expected_right = expects(heads, taught.there, taught.expected, lessons)
    wrong_loss = compares(heads, taught.found, frames[asked], lessons)
    order_loss, order_right = order(taught.margin, grades)
    dense = taught.verdict_loss + order_loss + expect_loss + wrong_loss
    log = {"text_loss": taught.text_loss,
           "expected_right": expected_right,
           "wrong_loss": wrong_loss,
           "verdict_loss": taught.verdict_loss,
           "yes_right": (taught.margin[grades > .7] > 0).float().mean(),   # NaN where there is none
           "no_right": (taught.margin[grades < .3] < 0).float().mean(),
           "order_right": order_right}
    return taught.text_loss + 2 * dense, {name: x.item() for name, x in log.items()}


def order(margin: torch.Tensor, grades: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """Of two answers the better one should have the larger margin: loss, share in order.

    margin, grades: (B,), pairs one after the other. Pairs whose grades differ by less than .2 do
    not count.
    """
    difference = grades[0::2] - grades[1::2]                                               # (B/2,)
    better = difference.where(difference.abs() > .2, torch.zeros(())).sign()
    ahead = (margin[0::2] - margin[1::2]) * better       # by how much the better one is
    ahead_where = ahead[better != 0]
    loss = F.softplus(-ahead_where).sum() / len(ahead)
    return loss, (ahead_where > 0).float().mean()


# ------------------------------------------------- lesson 4: estimates of a half-trained generator
#
# A VLM that has only seen the world's own clips is fooled by decoder blur and by half-made edits.
# So a draft of the base generator is trained first, for some minutes; what it makes is graded, and
# the draft is thrown away.

def train_draft(lessons: list[dict], args) -> tuple[UnifiedModel, Edits, torch.Tensor]:
    """A generator trained on the lessons: model, encoded lessons, latents of the wrong answers.

    Its own VLM is untrained: it reads through T5 alone.
    """
    model = stage.model_with_vae(args.weights, args.seed)
    sources, targets, wrong = [[as_video(lesson[key]) for lesson in lessons]
                               for key in ("source", "target", "wrong")]
    edits = encode_edits(model, sources, targets, [lesson["instruction"] for lesson in lessons])
    wrong = encode_videos(model, wrong)
    params = new_generator(model, args.seed)
    run = Run(args.out / "draft", params, stage.optimizers(params, 1e-3, 1e-4), name="draft")
    for step in run.steps(args.draft_steps):
        loss = base_step(model, edits, step, args.batch, args.seed, drop=0.)
        run.update(loss, {})
    return model, edits, wrong


@torch.no_grad()
def draft_answers(lessons: list[dict], model: UnifiedModel, edits: Edits, wrong: torch.Tensor,
                  seed: int) -> list[tuple[dict, list[Answer]]]:
    """What the draft makes of each lesson, graded. Each rank does all of it, and gets the same."""
    answers = [(lesson, []) for lesson in lessons]
    generator = torch.Generator().manual_seed(seed)
    for start in tqdm(range(0, len(lessons), 8), desc="estimates", disable=not is_first_rank()):
        rows = list(range(start, min(start + 8, len(lessons))))
        videos = one_step_estimates(model, edits, wrong, rows, generator, with_blur=start % 3 == 0)
        if start % 4 == 0:                               # finished edits
            sources = torch.stack([as_video(lessons[i]["source"]) for i in rows])
            texts = [edits.texts[i] for i in rows]
            videos.append(model.sample(sources, texts, steps=8, guidance=0, seed=start))
        for batch in videos:
            for i, video in zip(rows, batch):
                value = grade(training_triplet(lessons[i]["index"]), video)
                answers[i][1].append(Answer(as_bytes(video[::VLM_STRIDE]), "", value))
    return answers


def one_step_estimates(model: UnifiedModel, edits: Edits, wrong: torch.Tensor, rows: list[int],
                       generator: torch.Generator, with_blur: bool) -> list[torch.Tensor]:
    """Batches of clips (B, F, 3, H, W): estimates from noised targets and noised wrong answers.

    Of both, since at small t, x_t itself shows what it was made of. with_blur: also targets and
    wrong answers themselves, as the decoder shows them.
    """
    source = edits.source[rows]
    text = model.encode_text([edits.texts[i] for i in rows])
    c = model.context(source, model.bridge([edits.h[i] for i in rows]), text)
    videos = []
    for x0 in (edits.target[rows], wrong[rows]):
        t = torch.rand(len(rows), generator=generator) * .85 + .02
        noise = torch.randn(x0.shape, generator=generator)
        videos.append(model.decode_video(one_step(model, c, source, x0, t, noise)))
        if with_blur:
            videos.append(model.decode_video(x0))
    return videos


def one_step(model: UnifiedModel, c: torch.Tensor, source: torch.Tensor, x0: torch.Tensor,
             t: torch.Tensor, noise: torch.Tensor) -> torch.Tensor:
    """Eq. 3: the clean estimate of x0 noised to levels t (B,). Latents are (B, C, f, h, w)."""
    x_t = add_noise(x0, noise, t)
    return clean_estimate(x_t, model.velocity(x_t, t, c, source), t)


# ---------------------------------------------------------------------------------------- the stage

def main(argv=None) -> None:
    parser = stage.flags("Pretrain the tiny VLM.",
                         steps=7500, batch=16, lr=2e-3, items=24000, out="out/vlm")
    parser.add_argument("--weights", type=Path, default=Path("out/vae/model"),
                        help="model folder with the VAE, as vae.py writes it")
    parser.add_argument("--draft-items", type=positive, default=1200,
                        help="lessons that the half-trained generator learns from and answers")
    parser.add_argument("--draft-steps", type=positive, default=1200, help="its training steps")
    args = stage.begin(parser, argv)
    model = stage.model_with_vae(args.weights, args.seed)
    vlm = model.vlm.requires_grad_(True)
    heads = Heads(vlm)
    lessons = render_lessons(vlm_lesson, args.items)
    stage.claim(args)
    some = lessons[:args.draft_items]
    estimates = draft_answers(some, *train_draft(some, args), args.seed)
    run = stage.run_of_vlm(vlm, heads, args, "vlm")
    for step in run.steps(args.steps):
        # -------------------------------------------------------------------- one training step
        loss, log = vlm_step(vlm, heads, lessons, estimates, step, args)
        run.update(loss, log)
        # ---------------------------------------------------------------------------------------
    stage.end(model, args, run)


if __name__ == "__main__":
    run_script(main, stage.STOPPED)
