"""Less memory: run blocks again in the backward pass instead of keeping what is inside them."""

from functools import partial

import torch
import torch.nn as nn
from torch.utils.checkpoint import checkpoint

from model import UnifiedModel


def blocks(model: UnifiedModel) -> dict[str, nn.ModuleList]:
    """The layers that most of the work and of the memory is in."""
    return {"transformer": model.transformer.blocks,
            "vlm.llm": model.vlm.llm.model.layers,
            "vlm.vision_tower": model.vlm.vision_tower.encoder.layers}


def recompute_activations(model: UnifiedModel) -> None:
    """Keep only what goes into each block, and run it again: a third more FLOPs, less memory.

    Not the libraries' switches: transformers' ignores the key-value cache that the critic's prefix
    is in, and diffusers has none for this VAE.
    """
    for layers in blocks(model).values():
        for block in layers:
            block.forward = partial(run_again, block.forward)
    model.run_decoder = partial(decode_recomputed, model.vae)


def run_again(forward, *args, **named):
    """forward(...), whose inside is not kept for the backward pass."""
    if not torch.is_grad_enabled():
        return forward(*args, **named)
    return checkpoint(forward, *args, use_reentrant=False, **named)


def decode_recomputed(vae, z: torch.Tensor) -> torch.Tensor:
    """vae.decode with memory for one latent frame: (B, C, f, h, w) -> (B, 3, F, H, W).

    The library's own loop, but its cache of earlier frames, instead of being changed in place, goes
    into each frame's decoding and comes out of it. So a frame can be run again in the backward
    pass.
    """
    if not (torch.is_grad_enabled() and z.requires_grad):
        return vae.decode(z).sample

    def decode(first, x, *cache):
        cache = list(cache)
        frame = vae.decoder(x, feat_cache=cache, feat_idx=[0], first_chunk=first)
        return frame, *cache
    z = vae.post_quant_conv(z)
    cache, frames = [None] * vae._cached_conv_counts["decoder"], []
    for i in range(z.shape[2]):
        frame, *cache = checkpoint(decode, i == 0, z[:, :, i:i + 1], *cache, use_reentrant=False)
        frames.append(frame)
    return torch.cat(frames, 2).clamp(-1, 1)
