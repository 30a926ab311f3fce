"""Pretrain the tiny video VAE, from scratch, on clips of the tiny world.

    python -m pretrain.vae
    torchrun --nproc_per_node 2 -m pretrain.vae     # 40 minutes on two cores
    python -m pretrain.vae --steps 20 --items 40    # does it run? half a minute

It writes out/vae/model, which vlm.py reads. Single frames first, which is quick, then
whole clips.

Beside the usual reconstruction it learns to decode a latent frame alone: each stands for four
frames, and the critic looks at one of them. Left out: adversarial and perceptual losses, and the KL
term; a little noise on the latents makes them smooth instead.

Axis letters: B batch, N clips, F frames, H W pixels, C f h w latents.
"""

import math

import numpy as np
import torch
import torch.nn as nn

from common.distributed import RANK, WORLD_SIZE
from common.files import run_script
from common.run import Run
from common.video import from_bytes
from model import UnifiedModel
from presets import PRESETS
from pretrain import stage
from pretrain.lessons import render_lessons, vae_lesson

SINGLE_FRAMES = .2                                       # share of the steps on single frames
LATENT_NOISE = .05                                       # their deviation is about 1


def vae_step(vae, x: torch.Tensor, step: int,
             generator: torch.Generator) -> tuple[torch.Tensor, dict]:
    """Reconstruct clips x (B, 3, F, H, W) in [-1, 1]: loss, what to log."""
    z = vae.encode(x).latent_dist.mode()                                     # (B, C, f, h, w)
    noisy = z + LATENT_NOISE * torch.randn(z.shape, generator=generator)
    error = decode_unclamped(vae, noisy) - x
    loss = error.abs().mean() + error.pow(2).mean() + 1e-4 * z.pow(2).mean()
    if z.shape[2] > 1:
        k = 1 + step % (z.shape[2] - 1)
        last_of_four = x[:, :, 4 * k:4 * k + 1]
        error_alone = decode_unclamped(vae, noisy[:, :, k:k + 1]) - last_of_four
        loss = loss + .3 * (error_alone.abs().mean() + error_alone.pow(2).mean())
    psnr = 10 * math.log10(4 / error.pow(2).mean().item())
    return loss, {"psnr": psnr}


def decode_unclamped(vae, z: torch.Tensor) -> torch.Tensor:
    """vae.decode without its last step, the clamp to [-1, 1]: a clamped pixel has no gradient.

    (B, C, f, h, w) -> (B, 3, F, H, W).
    """
    frames = []

    def keep(module, inputs, output):
        frames.append(output)
    hook = vae.decoder.register_forward_hook(keep)
    vae.decode(z)
    hook.remove()
    return torch.cat(frames, 2)


def pick(clips: torch.Tensor, n: int, single: bool, generator: torch.Generator) -> torch.Tensor:
    """n random clips, or single frames, of (N, 2, F, 3, H, W), uint8: (n, 3, F or 1, H, W)."""
    rows = torch.randint(len(clips), (n,), generator=generator)
    which = torch.randint(2, (n,), generator=generator)
    picked = clips[rows, which]                                              # (n, F, 3, H, W)
    if single:
        frames = torch.randint(picked.shape[1], (n,), generator=generator)
        picked = picked[torch.arange(n), frames][:, None]                    # (n, 1, 3, H, W)
    return from_bytes(picked).transpose(1, 2)


def init_weights(vae) -> None:
    """The library's default gains are too small to learn from scratch."""
    for module in vae.modules():
        if isinstance(module, (nn.Conv2d, nn.Conv3d)):
            nn.init.kaiming_normal_(module.weight, nonlinearity="linear")
            nn.init.zeros_(module.bias)


@torch.no_grad()
def set_latent_scale(vae, clips: torch.Tensor) -> None:
    """Write down mean and deviation of the latents: the DiT wants them to be 0 and 1."""
    targets = clips[:256, 1]                                                 # (N, F, 3, H, W)
    z = torch.cat([vae.encode(from_bytes(some).transpose(1, 2)).latent_dist.mode()
                   for some in targets.split(8)])                            # (N, C, f, h, w)
    axes = (0, 2, 3, 4)
    vae.register_to_config(latents_mean=z.mean(axes).tolist(), latents_std=z.std(axes).tolist())


def main(argv=None) -> None:
    parser = stage.flags("Pretrain the tiny video VAE.",
                         steps=5800, batch=8, lr=1e-3, items=4000, out="out/vae")
    args = stage.begin(parser, argv)
    torch.manual_seed(args.seed)
    model = UnifiedModel(PRESETS["tiny"])
    clips = torch.from_numpy(np.stack(render_lessons(vae_lesson, args.items)))
    stage.claim(args)
    vae = model.vae
    init_weights(vae)
    params = dict(vae.named_parameters())
    run = Run(args.out, params, stage.optimizers(params, args.lr, weight_decay=1e-4),
              save_every=args.save_every, name="vae")
    for step in run.steps(args.steps):
        # -------------------------------------------------------------------- one training step
        seed = args.seed * 1_000_003 + step * WORLD_SIZE + RANK
        generator = torch.Generator().manual_seed(seed)
        single = step < args.steps * SINGLE_FRAMES
        n = args.batch // WORLD_SIZE                     # whole clips come in half as many
        x = pick(clips, n if single else max(1, n // 2), single, generator)
        loss, log = vae_step(vae, x, step, generator)
        run.update(loss, log)
        # ---------------------------------------------------------------------------------------
    set_latent_scale(vae, clips)
    stage.end(model, args, run, parts=("vae",))


if __name__ == "__main__":
    run_script(main, stage.STOPPED)
