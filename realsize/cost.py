"""What does a training step at the real size cost, on paper?

    python -m realsize.cost                        # FLOPs, bytes and hours, from the shapes alone

A FLOP is an addition or a multiplication; counted are matrix products, convolutions and attention
(its full square), not norms and activations. torch's counter sees the model's own modules run,
forward and backward, on torch's "meta" device: tensors that have a shape and no numbers.

Hours are FLOPs divided by a share of the GPU's peak (--mfu): an assumption, not a measurement.
"""

import math
from collections.abc import Callable
from typing import NamedTuple

import torch
from transformers import DynamicCache

import bench
from common.files import Parser, between, markdown, run_script
from common.measure import count_flops
from model import ROLLOUT_STEPS, TRAINED, UnifiedModel
from presets import PRESETS, Preset

SAMPLES = 56_000 * 15                            # of the paper's run: triplets times epochs
RATE = bench.trigger_rate(bench.TAU)             # the share of them that the critic is asked about
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


def step_flops(model: UnifiedModel, prefix: int, suffix: int) -> dict[str, Flops]:
    """FLOPs of one sample by part, where the critic is asked; SFT is "DiT" alone.

    prefix, suffix: tokens that the VLM reads before the edited frames, and from them on.
    """
    p, cache = model.preset, DynamicCache()
    channels, f, h, w = p.latent_shape
    with torch.device("meta"):
        latents = torch.empty(1, channels, f, h, w)
        bridged = torch.empty(1, p.ar_queries * p.adapter_queries, p.dit["text_dim"])
        text = [torch.empty(1, p.dit["text_dim"])]       # the context is filled up
        level = torch.empty(1)
        alone = p.decode == "alone"                      # K latent frames, each a clip of its own
        decoded = torch.empty(p.vlm_frames, channels, 1, h, w) if alone else latents.clone()
        seen = torch.empty(1, p.vlm_frames, 3, p.vlm_size, p.vlm_size)

    def velocity():
        context = model.context(latents, bridged, text)
        return model.velocity(latents, level, context, latents)

    def read(tokens, gradient):
        shape = (1, tokens, p.llama["hidden_size"])
        embeddings = torch.empty(shape, device="meta", requires_grad=gradient)
        llm = model.vlm.llm
        return llm(inputs_embeds=embeddings, past_key_values=cache, logits_to_keep=1).logits
    parts = {"DiT": count(velocity),
             "VAE decoder": count(lambda: model.run_decoder(decoded.requires_grad_())),
             "SigLIP, source": count(lambda: model.vlm.see(seen)),           # without gradient
             "SigLIP, edit": count(lambda: model.vlm.see(seen.requires_grad_())),
             "Llama, prefix": count(lambda: read(prefix, gradient=False))}
    after = count(lambda: read(suffix, gradient=True))
    head = 2 * p.llama["hidden_size"] * p.llama["vocab_size"]            # is not run again
    return parts | {"Llama, edit and verdict": after._replace(again=after.forward - head)}


def amortised(parts: dict[str, Flops]) -> dict[str, float]:
    """FLOPs a sample of each part; all but the DiT are run only where t < tau."""
    return {name: sum(x) * (1 if name == "DiT" else RATE) for name, x in parts.items()}


# -------------------------------------------------------------------------------------------- bytes

def part_bytes(model: UnifiedModel, part: str) -> int:
    """Bytes of a part's weights as they are loaded: frozen ones in half precision, if preset."""
    numbers = sum(p.numel() for p in model.get_submodule(part).parameters())
    return numbers * model.dtype_of(part).itemsize


def step_bytes(model: UnifiedModel, prefix: int, suffix: int) -> dict[str, float]:
    """Bytes that live through a USO step of one sample with recomputed activations.

    float32 for G, its gradients and AdamW's two moments; the VLM in half precision where the preset
    says.
    """
    p = model.preset
    numbers = sum(part_bytes(model, part) for part in TRAINED) / 4
    half = 2 if p.bf16 else 4
    _, f, h, w = p.latent_shape
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
    return {"G: weights, gradients, AdamW": 16 * numbers,
            "VLM": part_bytes(model, "vlm"),
            "VAE": part_bytes(model, "vae"),
            "inputs of the DiT's blocks": dit_inputs,
            "inputs of the VLM's blocks": llama_inputs + siglip_inputs,
            "keys and values of the prefix": cached}


# ------------------------------------------------------------------------------------------- tables

def tera(x: float) -> str:
    return f"{x / 1e12:.2f}"


def flops_table(parts: dict[str, Flops]) -> str:
    mean = amortised(parts)
    total = sum(mean.values())
    rows = [["TFLOPs a sample", "forward", "backward", "run again", f"amortised, tau {bench.TAU}",
             "share"]]
    for name, x in parts.items():
        rows.append([name, *map(tera, x), tera(mean[name]), f"{mean[name] / total:.0%}"])
    columns = [sum(column) for column in zip(*parts.values())]
    rows.append(["all", *map(tera, columns), tera(total), "100%"])
    return markdown(rows)


def hours_table(parts: dict[str, Flops], speed: float) -> str:
    """speed: FLOPs a second that are reached."""
    rows = [[f"hours at {speed / 1e12:.0f} TFLOPs/s", "1 GPU", "8 GPUs"]]
    sft, uso = sum(parts["DiT"]), sum(amortised(parts).values())
    # a pair is rolled out to t < tau, and has the one-step estimate and the critic after that
    pair = ROLLOUT_STEPS * parts["DiT"].forward + sum(map(sum, parts.values()))
    own = sft + RATE * pair
    for name, flops in (("SFT", sft), ("USO", uso), ("own edits", own)):
        hours = SAMPLES * flops / speed / 3600
        rows.append([name, f"{hours:.1f}", f"{hours / 8:.1f}"])
    return markdown(rows)


def bytes_table(title: str, sizes: dict[str, float]) -> str:
    rows = [[title, "GB"]]
    rows += [[name, f"{size / 1e9:.3f}"] for name, size in sizes.items()]
    return markdown(rows)


def on_paper(mfu: float) -> str:
    """The tables of realsize/README.md."""
    p = PRESETS["wan1.3b"]
    model, (prefix, suffix) = on_meta(p), prompt_tokens(p)
    parts, peak = step_flops(model, prefix, suffix), PEAK["H100"]
    ratio = sum(amortised(parts).values()) / sum(parts["DiT"])
    weights = {part: part_bytes(model, part) for part in (
        "vlm", "text_encoder", "ar_head", "adapter", "vae", *TRAINED)}
    # with guidance G runs twice a step; VLM and T5 are left out
    sampling = 2 * p.sample_steps * parts["DiT"].forward + parts["VAE decoder"].forward
    head = (f"{p.name}: {p.frames} frames of {p.height}x{p.width}; the VLM reads "
            f"{prefix} + {suffix} tokens; USO / SFT in FLOPs {ratio:.2f}\n")
    edit = (f"An edit of one clip, {p.sample_steps} steps with guidance: {tera(sampling)} TFLOPs, "
            f"{sampling / (mfu * peak):.1f} s at {mfu:.0%} of {peak / 1e12:.0f} TFLOPs/s; "
            f"weights {sum(weights.values()) / 1e9:.1f} GB\n")
    return "\n".join([head, flops_table(parts), hours_table(parts, mfu * peak),
                      bytes_table("a training step, batch 1", step_bytes(model, prefix, suffix)),
                      edit, bytes_table("weights, as loaded", weights)])


def main(argv=None) -> None:
    parser = Parser(description="What the real run costs.")
    parser.add_argument("--mfu", type=between(0, 1, True), default=.45,
                        help="share of the GPU's peak that is assumed to be reached")
    print(on_paper(parser.parse_args(argv).mfu))


if __name__ == "__main__":
    run_script(main, "stopped")
