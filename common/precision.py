"""How exact is what? Fast kernels on a CPU; bfloat16 for products, float32 around the DiT's blocks.
"""

from functools import partial

import torch

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
