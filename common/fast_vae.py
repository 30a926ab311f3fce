"""Wan's VAE, a third of the work for a frame that comes alone; the same numbers."""

from functools import partial

import torch
import torch.nn as nn
import torch.nn.functional as F
from diffusers.models.autoencoders.autoencoder_kl_wan import WanCausalConv3d


def fold_first_frame(layer: nn.Module) -> None:
    """Let a causal convolution see a first frame that comes alone in two dimensions.

    For `vae.decoder.apply`. Most of what the critic's decode "alone" costs is such frames.
    """
    if isinstance(layer, WanCausalConv3d):
        layer.forward = partial(convolve_causally, layer, layer.forward)


def convolve_causally(conv: WanCausalConv3d, whole, x: torch.Tensor, cache=None) -> torch.Tensor:
    """conv(x): (B, C, F, H, W) -> (B, D, F, H, W). cache: the frames before x.

    Before a first frame there are only zeros, so that of the kernel only the last slice counts.
    """
    if cache is not None or x.shape[2] > 1:
        return whole(x, cache)
    left, _, top, *_ = conv._padding
    frame = F.conv2d(x[:, :, 0], conv.weight[:, :, -1], conv.bias, padding=(top, left))
    return frame[:, :, None]
