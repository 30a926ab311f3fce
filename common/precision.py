"""How exact is what, and how fast? Fast kernels on a CPU; bfloat16 for products, float32 around the
DiT's blocks; Wan's VAE, a third of the work for a frame that comes alone, and the same numbers."""

from functools import partial

import torch
import torch.nn as nn
import torch.nn.functional as F
from diffusers.models.autoencoders.autoencoder_kl_wan import WanCausalConv3d

if not torch.cuda.is_available():  # the faster kernels of a CPU: 1.5 times as many steps
    torch.set_float32_matmul_precision("medium")         # oneDNN's matrix products
    torch.backends.cuda.enable_flash_sdp(False)          # this switch is not CUDA's alone


# In which the VLM reads a condition: float16 as the authors', ten times as exact; slow on a CPU.
VLM_DTYPE = torch.float16 if torch.cuda.is_available() else torch.bfloat16


def autocast(device: torch.device, on: bool, dtype: torch.dtype = torch.bfloat16):
    """A context in which products are computed in `dtype`, if `on`; else it does nothing."""
    # no cache: a weight cast without gradient would be used again with one
    return torch.autocast(device.type, dtype, enabled=on, cache_enabled=False)


def keep_ends_in_float32(dit) -> None:
    """Keep what the DiT does outside of its blocks out of autocast.

    So its residual stream, time embedding and head are in float32, as the authors' are, and only
    the products in its blocks are not.
    """
    embedder = dit.condition_embedder
    for part in (dit.patch_embedding, embedder.time_embedder, embedder.time_proj, dit.proj_out):
        part.forward = partial(in_float32, part.forward)


def in_float32(forward, x: torch.Tensor) -> torch.Tensor:
    """forward(x) in float32, also where autocast is on."""
    with torch.autocast(x.device.type, enabled=False):
        return forward(x.float())


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
