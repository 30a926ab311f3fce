"""What a training step costs, from the shapes alone: FLOPs and bytes.

A FLOP is an addition or a multiplication; counted are matrix products, convolutions and attention
(its full square, as torch's counter has it), not norms and activations. A product of an (m, k) and
a (k, n) matrix is m k n multiply-adds, so the lines below are products of three sizes, and `flops`
doubles their sum.

Backward passes. With y = W x, a trained W costs two products as large as the forward one (for the
gradients of x and of W), a frozen one only passes a gradient on: one product. In attention both
factors are activations: two products, trained or frozen. What sees no gradient costs nothing.

Axis letters: B batch, C f h w latents, K frames seen by the critic, N tokens of the DiT, T context
tokens, D width.
"""

import math
from typing import NamedTuple

import torch
from diffusers import AutoencoderKLWan
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils.flop_counter import FlopCounterMode

from common.fast_vae import fold_first_frame
from model import TRAINED, UnifiedModel
from presets import Preset

# bfloat16 FLOPs a second without sparsity, by the makers
PEAK = {"H100": 989e12, "H200": 989e12, "A100": 312e12}


class Flops(NamedTuple):
    """Of a part of the step; `again` is what `recompute_activations` repeats."""
    forward: float
    backward: float
    again: float = 0.


def flops(multiply_adds: float) -> float:
    return 2. * multiply_adds


# -------------------------------------------------------------------------------- sizes of a preset

def dit_width(p: Preset) -> int:
    return p.dit["num_attention_heads"] * p.dit["attention_head_dim"]


def dit_tokens(p: Preset) -> int:
    """N: patches of the latents."""
    _, f, h, w = p.latent_shape
    return f * h * w // math.prod(p.dit["patch_size"])


def visual_tokens(p: Preset) -> int:
    """Tokens of the visual context adapter: patches of one latent frame each."""
    _, f, h, w = p.latent_shape
    return f * (h // p.visual_kernel) * (w // p.visual_kernel)


def siglip_side(p: Preset) -> int:
    """Patches along the side of a frame."""
    return p.siglip["image_size"] // p.siglip["patch_size"]


def frame_tokens(p: Preset) -> int:
    """Tokens of a frame that the VLM reads: 2x2 patches each, an odd side filled up."""
    half = math.ceil(siglip_side(p) / 2)
    return half * half


def key_value_width(p: Preset) -> int:
    """Width of Llama's keys and values: several query heads share one."""
    head = p.llama["hidden_size"] // p.llama["num_attention_heads"]
    return p.llama["num_key_value_heads"] * head


def prompt_tokens(p: Preset) -> tuple[int, int]:
    """(prefix, suffix) that the critic reads before the edited frames, and from them on.

    The frames' tokens are exact; some 180 and 16 tokens of text are an estimate.
    """
    source = p.vlm_frames * frame_tokens(p)
    edited = source * 2 if p.paired else source
    return source + 180, edited + 16


# -------------------------------------------------------------------------------- FLOPs of a sample

def dit_flops(p: Preset) -> Flops:
    """G and the visual context adapter on one clip; trained."""
    n, t, visual = dit_tokens(p), p.context_length, visual_tokens(p)
    width, text_width, layers = dit_width(p), p.dit["text_dim"], p.dit["num_layers"]
    patch = math.prod(p.dit["patch_size"])
    latent_channels = p.latent_shape[0]

    # what begins with the clip, the noise level or the source: no gradient is passed on to those
    patches = n * (patch * p.dit["in_channels"]) * width
    noise_level = p.dit["freq_dim"] * width
    visual_patches = visual * (latent_channels * p.visual_kernel ** 2) * p.visual_width
    first = patches + noise_level + visual_patches

    # a block: self-attention, cross-attention to the context, feed-forward
    projections = 4 * n * width * width                  # query, key, value, output
    attention = 2 * n * n * width                        # scores; their sum of values
    cross_queries = 2 * n * width * width                # query, output
    cross_keys = 2 * t * width * width                   # key, value of each context token
    cross_attention = 2 * n * t * width
    feed_forward = 2 * n * width * p.dit["ffn_dim"]      # up, down
    block = (projections + attention + cross_queries + cross_keys + cross_attention
             + feed_forward)

    # the rest
    text_embedder = t * (text_width * width + width * width)
    time_embedder = width * width + width * (6 * width)
    head = n * width * (patch * p.dit["out_channels"])
    visual_projection = visual * p.visual_width * text_width
    rest = layers * block + text_embedder + time_embedder + head + visual_projection

    forward = flops(first + rest)
    return Flops(forward, flops(first + 2 * rest), again=forward)


def decode_flops(p: Preset) -> Flops:
    """The frozen VAE's decoder on a clip, or on K latent frames alone; by torch's counter."""
    channels, frames, h, w = p.latent_shape
    shape = (1, channels, frames, h, w)
    if p.decode == "alone":
        shape = (p.vlm_frames, channels, 1, h, w)
    with torch.device("meta"):                           # shapes, and no numbers
        vae = AutoencoderKLWan(**p.vae).requires_grad_(False)
        vae.decoder.apply(fold_first_frame)
        z = torch.empty(shape, requires_grad=True)
    with sdpa_kernel(SDPBackend.MATH), FlopCounterMode(display=False) as counter:
        video = vae.decode(z).sample
        forward = counter.get_total_flops()
        video.sum().backward()
    return Flops(forward, counter.get_total_flops() - forward, again=forward)


def siglip_flops(p: Preset) -> Flops:
    """The frozen SigLIP and projector on K frames. The last block's output is not used."""
    n, d = siglip_side(p) ** 2, p.siglip["hidden_size"]
    layers, llama_width = p.siglip["num_hidden_layers"], p.llama["hidden_size"]

    patches = n * (3 * p.siglip["patch_size"] ** 2) * d
    projections = 4 * n * d * d                          # query, key, value, output
    attention = 2 * n * n * d
    feed_forward = 2 * n * d * p.siglip["intermediate_size"]
    projector = frame_tokens(p) * (4 * d * llama_width + llama_width * llama_width)

    weights = projections + feed_forward
    forward = patches + layers * (weights + attention) + projector
    backward = patches + (layers - 1) * (weights + 2 * attention) + projector
    k = p.vlm_frames
    return Flops(flops(k * forward), flops(k * backward), again=flops(k * forward))


def llama_flops(p: Preset, tokens: int, before: int = 0) -> Flops:
    """The frozen Llama on `tokens` tokens after `before` cached ones; logits of the last one."""
    d, layers = p.llama["hidden_size"], p.llama["num_hidden_layers"]

    queries = 2 * tokens * d * d                         # query, output
    keys = 2 * tokens * d * key_value_width(p)           # key, value
    feed_forward = 3 * tokens * d * p.llama["intermediate_size"]        # gate, up, down
    attention = 2 * tokens * (tokens + before) * d
    logits = d * p.llama["vocab_size"]

    weights = layers * (queries + keys + feed_forward)
    squares = layers * attention
    return Flops(forward=flops(weights + squares + logits),
                 backward=flops(weights + 2 * squares + logits),
                 again=flops(weights + squares))         # the head is not run again


def step_flops(p: Preset, prefix: int, suffix: int) -> dict[str, Flops]:
    """FLOPs of one sample by part, where the critic is asked; SFT is "DiT" alone.

    prefix, suffix: tokens that the VLM reads before the edited frames, and from them on.
    """
    siglip = siglip_flops(p)
    before, after = llama_flops(p, prefix), llama_flops(p, suffix, prefix)
    return {"DiT": dit_flops(p),
            "VAE decoder": decode_flops(p),
            "SigLIP, source": Flops(siglip.forward, 0.),              # read without gradient
            "SigLIP, edit": siglip,
            "Llama, prefix": Flops(before.forward, 0.),
            "Llama, edit and verdict": after}


def sampling_flops(p: Preset, parts: dict[str, Flops]) -> float:
    """An edit of one clip with guidance: G twice a step, and the decoder. Without VLM and T5.

    parts: of `step_flops`.
    """
    return 2 * p.sample_steps * parts["DiT"].forward + parts["VAE decoder"].forward


# -------------------------------------------------------------------------------------------- bytes

def part_bytes(p: Preset) -> dict[str, float]:
    """Bytes of each part's weights as they are loaded."""
    with torch.device("meta"):
        model = UnifiedModel(p)
    parts = ("vlm", "text_encoder", "ar_head", "adapter", "vae", *TRAINED)
    half = 2 if p.bf16 else 4
    sizes = {}
    for part in parts:
        numbers = sum(x.numel() for x in model.get_submodule(part).parameters())
        sizes[part] = numbers * (4 if part in ("vae", *TRAINED) else half)
    return sizes


def step_bytes(p: Preset, prefix: int, suffix: int, batch: int = 1) -> dict[str, float]:
    """Bytes that live through a USO step with recomputed activations, and that a step moves.

    float32 for G, its gradients and AdamW's two moments; the VLM in bfloat16 where the preset says.
    """
    held = part_bytes(p)
    numbers = sum(held[part] for part in TRAINED) / 4
    half = 2 if p.bf16 else 4
    c, f, h, w = p.latent_shape

    dit_inputs = 4 * dit_tokens(p) * dit_width(p) * p.dit["num_layers"]
    llama_inputs = half * suffix * p.llama["hidden_size"] * p.llama["num_hidden_layers"]
    patches = p.vlm_frames * siglip_side(p) ** 2
    siglip_inputs = half * patches * p.siglip["hidden_size"] * p.siglip["num_hidden_layers"]
    cached = 2 * half * prefix * key_value_width(p) * p.llama["num_hidden_layers"]

    # a cached clip: adapter tokens and some 32 of text, two clips' latents, K frames of 8 bits
    clip_tokens = half * (p.ar_queries * p.adapter_queries + 32) * p.dit["text_dim"]
    clip_latents = 2 * 4 * c * f * h * w
    clip_frames = 3 * p.vlm_frames * p.height * p.width
    return {"G: weights, gradients, AdamW": 16. * numbers,
            "VLM": held["vlm"],
            "VAE": held["vae"],
            "inputs of the DiT's blocks": batch * float(dit_inputs),
            "inputs of the VLM's blocks": batch * float(llama_inputs + siglip_inputs),
            "keys and values of the prefix": batch * float(cached),
            "moved by AdamW": 28. * numbers,
            "all-reduced": 4. * numbers,
            "cache of latents, a clip": float(clip_tokens + clip_latents + clip_frames)}
