"""What a training step costs, from the shapes alone: FLOPs, as torch counts them, and bytes.

A FLOP is an addition or a multiplication; counted are matrix products, convolutions and attention
(its full square), not norms and activations. The counter sees the model's own modules run, forward
and backward, on torch's "meta" device: tensors that have a shape and no numbers.
"""

import math
from collections.abc import Callable
from typing import NamedTuple

import torch
from transformers import DynamicCache

from common.measure import count_flops
from model import TRAINED, UnifiedModel
from presets import Preset

# bfloat16 FLOPs a second without sparsity, by the makers
PEAK = {"H100": 989e12, "H200": 989e12, "A100": 312e12}


class Flops(NamedTuple):
    """Of a part of the step; `again` is what `recompute_activations` repeats."""
    forward: float
    backward: float
    again: float


def count(run: Callable[[], torch.Tensor]) -> Flops:
    """FLOPs of run(), and of the backward pass through what it returns, where that has one."""
    with count_flops() as forward:
        result = run()
    backward = 0
    if result.requires_grad:
        with count_flops() as counted:
            result.sum().backward()
        backward = counted.flops
    return Flops(forward.flops, backward, again=forward.flops if backward else 0)


# -------------------------------------------------------------------------------- FLOPs of a sample

def prompt_tokens(p: Preset) -> tuple[int, int]:
    """(prefix, suffix) that the critic reads before the edited frames, and from them on.

    The frames' tokens are exact; some 180 and 16 tokens of text are an estimate.
    """
    side = p.siglip["image_size"] // p.siglip["patch_size"]
    source = p.vlm_frames * math.ceil(side / 2) ** 2     # 2x2 patches each, an odd side filled up
    edited = source * 2 if p.paired else source
    return source + 180, edited + 16


def on_meta(p: Preset) -> UnifiedModel:
    """The model without numbers; G and the visual context adapter are to be trained."""
    with torch.device("meta"):
        model = UnifiedModel(p)
    model.freeze()
    return model


def dit_flops(model: UnifiedModel) -> Flops:
    """G and the visual context adapter on one clip."""
    p = model.preset
    with torch.device("meta"):
        latents = torch.empty(1, *p.latent_shape)
        bridged = torch.empty(1, p.ar_queries * p.adapter_queries, p.dit["text_dim"])
        text = [torch.empty(1, p.dit["text_dim"])]       # the context is filled up

        def velocity():
            context = model.context(latents, bridged, text)
            return model.velocity(latents, torch.empty(1), context, latents)
        return count(velocity)


def decode_flops(model: UnifiedModel) -> Flops:
    """The frozen VAE's decoder on a clip, or on K latent frames alone."""
    p = model.preset
    channels, frames, h, w = p.latent_shape
    shape = (1, channels, frames, h, w)
    if p.decode == "alone":
        shape = (p.vlm_frames, channels, 1, h, w)
    latents = torch.empty(shape, device="meta", requires_grad=True)
    return count(lambda: model.run_decoder(latents))


def siglip_flops(model: UnifiedModel, gradient: bool) -> Flops:
    """The frozen SigLIP and projector on K frames; the source is seen without gradient."""
    p = model.preset
    shape = (1, p.vlm_frames, 3, p.vlm_size, p.vlm_size)
    frames = torch.empty(shape, device="meta", requires_grad=gradient)
    return count(lambda: model.vlm.see(frames))


def llama_flops(model: UnifiedModel, prefix: int, suffix: int) -> tuple[Flops, Flops]:
    """The frozen Llama on the prefix, without gradient, and on the suffix after it."""
    p, llm, cache = model.preset, model.vlm.llm, DynamicCache()

    def read(tokens, gradient):
        shape = (1, tokens, p.llama["hidden_size"])
        embeddings = torch.empty(shape, device="meta", requires_grad=gradient)
        return llm(inputs_embeds=embeddings, past_key_values=cache, logits_to_keep=1).logits
    before = count(lambda: read(prefix, False))
    after = count(lambda: read(suffix, True))
    head = 2 * p.llama["hidden_size"] * p.llama["vocab_size"]            # is not run again
    return before, after._replace(again=after.forward - head)


def step_flops(model: UnifiedModel, prefix: int, suffix: int) -> dict[str, Flops]:
    """FLOPs of one sample by part, where the critic is asked; SFT is "DiT" alone.

    prefix, suffix: tokens that the VLM reads before the edited frames, and from them on.
    """
    before, after = llama_flops(model, prefix, suffix)
    return {"DiT": dit_flops(model),
            "VAE decoder": decode_flops(model),
            "SigLIP, source": siglip_flops(model, gradient=False),
            "SigLIP, edit": siglip_flops(model, gradient=True),
            "Llama, prefix": before,
            "Llama, edit and verdict": after}


# -------------------------------------------------------------------------------------------- bytes

def part_bytes(model: UnifiedModel, part: str) -> int:
    """Bytes of a part's weights as they are loaded: frozen ones in half precision, if preset."""
    numbers = sum(p.numel() for p in model.get_submodule(part).parameters())
    return numbers * model.dtype_of(part).itemsize


def step_bytes(model: UnifiedModel, prefix: int, suffix: int) -> dict[str, float]:
    """Bytes that live through a USO step of one sample with recomputed activations, and that it
    moves.

    float32 for G, its gradients and AdamW's two moments; the VLM in half precision where the preset
    says.
    """
    p = model.preset
    numbers = sum(part_bytes(model, part) for part in TRAINED) / 4
    half = 2 if p.bf16 else 4
    c, f, h, w = p.latent_shape

    patches = f * h * w // math.prod(p.dit["patch_size"])
    width = p.dit["num_attention_heads"] * p.dit["attention_head_dim"]
    dit_inputs = 4 * patches * width * p.dit["num_layers"]
    llama_inputs = half * suffix * p.llama["hidden_size"] * p.llama["num_hidden_layers"]
    side = p.siglip["image_size"] // p.siglip["patch_size"]
    siglip_inputs = (half * p.vlm_frames * side ** 2 * p.siglip["hidden_size"]
                     * p.siglip["num_hidden_layers"])
    head = p.llama["hidden_size"] // p.llama["num_attention_heads"]
    keys = p.llama["num_key_value_heads"] * head         # several query heads share one
    cached = 2 * half * prefix * keys * p.llama["num_hidden_layers"]

    # a cached clip: adapter tokens and some 32 of text, two clips' latents, K frames of 8 bits
    clip_tokens = half * (p.ar_queries * p.adapter_queries + 32) * p.dit["text_dim"]
    clip_latents = 2 * 4 * c * f * h * w
    clip_frames = 3 * p.vlm_frames * p.height * p.width
    return {"G: weights, gradients, AdamW": 16 * numbers,
            "VLM": part_bytes(model, "vlm"),
            "VAE": part_bytes(model, "vae"),
            "inputs of the DiT's blocks": dit_inputs,
            "inputs of the VLM's blocks": llama_inputs + siglip_inputs,
            "keys and values of the prefix": cached,
            "moved by AdamW": 28 * numbers,
            "all-reduced": 4 * numbers,
            "cache of latents, a clip": clip_tokens + clip_latents + clip_frames}
