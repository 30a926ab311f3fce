"""Pretrain the tiny generator G and the connector: literal edits and plain generation.

    python -m pretrain.base
    torchrun --nproc_per_node 2 -m pretrain.base    # 20 minutes on two cores

It reads out/vlm/model and writes out/base/model: a whole model, as in weights/tiny. This is the
paper's baseline: it edits well when told the operation ("turn the ground to ice"), and not when
told the cause.

All of T5, ARHead, Adapter, the boundary tokens, the visual context adapter and G are trained here;
the VLM and the VAE are frozen. Later, train.py trains G and the visual context adapter alone.

Axis letters: B batch, N lessons, F frames, H W pixels, C f h w latents, T tokens, D width.
"""

from dataclasses import dataclass
from pathlib import Path
from typing import Callable

import torch
import torch.nn as nn
from tqdm import tqdm

from common.distributed import gather_rows, is_first_rank, my_shard
from common.files import run_script
from common.run import Run
from data import batch_indices, draws
from model import TRAINED, UnifiedModel, add_noise, flow_loss, load_model, velocity_target
from presets import PRESETS
from pretrain import stage
from pretrain.lessons import as_video, base_lesson, render_lessons

DROP = .1                                 # share of the samples with an empty instruction
LEARNED = (*TRAINED, "ar_head", "adapter", "boundary", "text_encoder")


@dataclass
class Edits:
    """Encoded lessons."""
    source: torch.Tensor                                 # (N, C, f, h, w)  latents
    target: torch.Tensor                                 # (N, C, f, h, w)
    h: list[torch.Tensor]                                # N x (T, D)       U(V_src, I)
    texts: list[str]                                     # N instructions
    nothing: torch.Tensor                                # (T, D)            U of an empty one


def base_step(model: UnifiedModel, edits: Edits, step: int, batch: int, seed: int,
              drop: float) -> torch.Tensor:
    """Flow matching on batch number `step`, with T5 and the connector in training: the loss.

    drop: the share of the samples that are trained with an empty instruction.
    """
    rows = my_shard(batch_indices(len(edits.source), batch, step, seed))
    t, noise, u = [my_shard(x) for x in draws(step, seed, batch, model.preset.latent_shape)]
    source, target = edits.source[rows], edits.target[rows]                  # (B, C, f, h, w)
    texts, h = [], []
    for i, dropped in zip(rows, u < drop):
        texts.append("<pad>" if dropped else edits.texts[i])
        h.append(edits.nothing if dropped else edits.h[i])
    text = model.encode_text(texts)
    bridged = model.bridge(h)                                                # (B, T, D)
    x_t = add_noise(target, noise, t)                                        # Eq. 2
    c = model.context(source, bridged, text)                                 # Eq. 1
    v = model.velocity(x_t, t, c, source)
    return flow_loss(v, velocity_target(target, noise)).mean()


def new_generator(model: UnifiedModel, seed: int) -> dict[str, nn.Parameter]:
    """Give `model` a new G, connector and T5, random from `seed`: their parameters, by name."""
    torch.manual_seed(seed)
    fresh = UnifiedModel(PRESETS["tiny"])
    for part in LEARNED:
        setattr(model, part, getattr(fresh, part))
    return {f"{part}.{name}": p.requires_grad_(True)
            for part in LEARNED for name, p in getattr(model, part).named_parameters()}


def encode_edits(model: UnifiedModel, sources: list[torch.Tensor], targets: list[torch.Tensor],
                 texts: list[str]) -> Edits:
    """All lessons through the frozen VLM and VAE, shared among the ranks."""
    h = encode_all(model.encode_vlm, sources, texts, title="reading")        # Eq. 1
    nothing, _ = model.unconditional()
    return Edits(encode_videos(model, sources), encode_videos(model, targets), h, texts, nothing)


def encode_videos(model: UnifiedModel, videos: list[torch.Tensor]) -> torch.Tensor:
    """The latents of all clips, (N, C, f, h, w)."""
    return torch.stack(encode_all(model.encode_video, videos, title="encoding"))


def encode_all(encode: Callable, videos: list[torch.Tensor], *texts: list[str],
               title: str) -> list[torch.Tensor]:
    """encode(videos, texts), eight rows at a time, shared among the ranks: one a row."""
    videos, *texts = map(my_shard, (videos, *texts))
    encoded = []
    for i in tqdm(range(0, len(videos), 8), desc=title, disable=not is_first_rank()):
        encoded += encode(torch.stack(videos[i:i + 8]), *[column[i:i + 8] for column in texts])
    return gather_rows(encoded)


def main(argv=None) -> None:
    parser = stage.flags("Pretrain the tiny base generator and the connector.",
                         steps=5000, batch=16, lr=2e-3, items=8000, out="out/base")
    parser.add_argument("--weights", type=Path, default=Path("out/vlm/model"),
                        help="model folder with VAE and VLM, as vlm.py writes it")
    args = stage.begin(parser, argv)
    model = load_model(args.weights, "tiny").requires_grad_(False)
    params = new_generator(model, args.seed)
    lessons = render_lessons(base_lesson, args.items)
    clips, texts = zip(*lessons)
    edits = encode_edits(model, [as_video(source) for source, _ in clips],
                         [as_video(target) for _, target in clips], list(texts))
    stage.claim(args)
    both = stage.optimizers(params, args.lr, 1e-4, muon=stage.hidden_matrices(params))
    run = Run(args.out, params, both, save_every=args.save_every, name="base")
    for step in run.steps(args.steps):
        # -------------------------------------------------------------------- one training step
        loss = base_step(model, edits, step, args.batch, args.seed, DROP)
        run.update(loss, {})
        # ---------------------------------------------------------------------------------------
    stage.end(model, args, run)


if __name__ == "__main__":
    run_script(main, stage.STOPPED)
