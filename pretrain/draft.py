"""What the critic will have to judge: estimates and edits of a half-trained generator, graded.

A VLM that has only seen the world's own clips is fooled by decoder blur and by half-made edits. So
vlm.py first trains a draft of the base generator for some minutes, keeps what it makes, and throws
it away.

Axis letters: B batch, N lessons, K frames that the VLM sees, F frames, H W pixels, C f h w latents.
"""

import torch
from tqdm import tqdm

from common.distributed import is_first_rank
from common.run import Run
from critic import clean_estimate
from model import UnifiedModel, add_noise
from pretrain import stage
from pretrain.base import (Edits, base_step, encode_edits, encode_videos, generator_params,
                           new_generator)
from pretrain.lessons import VLM_STRIDE, Answer, as_bytes, as_video, grade, training_triplet


def train_draft(lessons: list[dict], args) -> tuple[UnifiedModel, Edits, torch.Tensor]:
    """A generator trained on the lessons: model, encoded lessons, latents of the wrong answers.

    Its own VLM is untrained: it reads through T5 alone.
    """
    model = stage.model_with_vae(args.weights, args.seed)
    sources, targets, wrong = [[as_video(lesson[key]) for lesson in lessons]
                               for key in ("source", "target", "wrong")]
    edits = encode_edits(model, sources, targets, [lesson["instruction"] for lesson in lessons])
    wrong = encode_videos(model, wrong)
    new_generator(model, args.seed)
    params = generator_params(model)
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
