"""What the critic will have to judge: estimates and edits of a half-trained generator, graded.

A VLM that has only seen the world's own clips is fooled by decoder blur and by half-made edits. So
vlm.py first trains a draft of the base generator for some minutes, keeps what it makes,
and throws it away.

Axis letters: B batch, N lessons, K frames that the VLM sees, F frames, H W pixels, C f h w latents.
"""

from pathlib import Path

import torch
from safetensors.torch import load_file, save_file
from tqdm import tqdm

from common.distributed import is_first_rank, wait_for_all
from common.files import replacing
from common.run import Run
from common.video import to_bytes
from critic import clean_estimate
from model import UnifiedModel, add_noise
from pretrain import stage
from pretrain.base import (Edits, base_step, encode_edits, encode_videos, generator_params,
                           new_generator)
from pretrain.lessons import VLM_STRIDE, Answer, as_video, grade, training_triplet


def draft_answers(lessons: list[dict], args) -> list[tuple[dict, list[Answer]]]:
    """What the draft made of each of the first --draft-items lessons; kept in the run's folder."""
    file, lessons_of_draft = args.out / "estimates.safetensors", lessons[:args.draft_items]
    if not file.exists():
        with_wrong = train_draft(lessons_of_draft, args)
        if is_first_rank():
            write_answers(file, lessons_of_draft, *with_wrong, args.seed)
        wait_for_all()
    return read_answers(file, lessons_of_draft)


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
    run.write_log()
    return model, edits, wrong


@torch.no_grad()
def write_answers(file: Path, lessons: list[dict], model: UnifiedModel, edits: Edits,
                  wrong: torch.Tensor, seed: int) -> None:
    """Let the draft answer the lessons; keep its frames, their grades, whose answers they are."""
    which, frames, grades = [], [], []
    generator = torch.Generator().manual_seed(seed)
    for start in tqdm(range(0, len(lessons), 8), desc="estimates", disable=not is_first_rank()):
        rows = list(range(start, min(start + 8, len(lessons))))
        videos = one_step_estimates(model, edits, wrong, rows, generator, with_blur=start % 3 == 0)
        if start % 4 == 0:                               # finished edits
            sources = torch.stack([as_video(lessons[i]["source"]) for i in rows])
            texts = [edits.texts[i] for i in rows]
            videos.append(model.sample(sources, texts, steps=8, guidance=0, seed=start))
        for batch in videos:
            which += rows
            frames += to_bytes(batch[:, ::VLM_STRIDE])
            grades += [grade(training_triplet(lessons[i]["index"]), video)
                       for i, video in zip(rows, batch)]
    kept = {"which": torch.tensor(which), "frames": torch.stack(frames),
            "grades": torch.tensor(grades)}
    with replacing(file) as temporary:
        save_file(kept, temporary)


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


def condition(model: UnifiedModel, lessons: list[dict]) -> tuple[torch.Tensor, torch.Tensor]:
    """Eq. 1 for lessons: latents of their sources (B, C, f, h, w), and c (B, T, D)."""
    videos = torch.stack([as_video(lesson["source"]) for lesson in lessons])
    texts = [lesson["instruction"] for lesson in lessons]
    source = model.encode_video(videos)
    bridged = model.bridge(model.encode_vlm(videos, texts))
    return source, model.context(source, bridged, model.encode_text(texts))


def one_step(model: UnifiedModel, c: torch.Tensor, source: torch.Tensor, x0: torch.Tensor,
             t: torch.Tensor, noise: torch.Tensor) -> torch.Tensor:
    """Eq. 3: the clean estimate of x0 noised to levels t (B,). Latents are (B, C, f, h, w)."""
    x_t = add_noise(x0, noise, t)
    return clean_estimate(x_t, model.velocity(x_t, t, c, source), t)


def read_answers(file: Path, lessons: list[dict]) -> list[tuple[dict, list[Answer]]]:
    """What `write_answers` wrote, by lesson."""
    kept, answers = load_file(file), {}
    rows = zip(kept["which"].tolist(), kept["frames"].numpy(), kept["grades"].tolist())
    for which, frames, value in rows:
        answers.setdefault(which, []).append(Answer(frames, "", value))
    return [(lessons[which], made) for which, made in answers.items()]
