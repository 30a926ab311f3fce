"""wan1.3b at tiny sizes, and the authors' directory of such a model, their key names by hand."""

import json
import pickle
import re
from dataclasses import replace
from pathlib import Path

import torch
from safetensors.torch import load_file, save_file

from model import PARTS, UnifiedModel
from presets import PRESETS
from realsize.convert import build
from realsize.release import all_problems, fitted_preset, read_release
from realsize.tensors import TensorUnpickler

WAN = PRESETS["wan1.3b"]
SMALL = replace(
    WAN, frames=5, height=64, width=64, vlm_frames=2, vlm_size=28,
    siglip=dict(hidden_size=16, intermediate_size=24, num_hidden_layers=2, num_attention_heads=2,
                image_size=28, patch_size=14, vision_use_head=False),
    llama=dict(hidden_size=24, intermediate_size=32, num_hidden_layers=2, num_attention_heads=4,
               num_key_value_heads=2, max_position_embeddings=512, vocab_size=600,
               rope_theta=500000.0),
    t5=dict(d_model=24, d_kv=8, d_ff=32, num_layers=2, num_heads=2, vocab_size=600,
            feed_forward_proj="gated-gelu", tie_word_embeddings=False),
    vae=WAN.vae | dict(base_dim=8),
    dit=WAN.dit | dict(num_attention_heads=2, attention_head_dim=12, text_dim=24, freq_dim=16,
                       ffn_dim=32, num_layers=2),
    ar_width=16, ar_layers=1, ar_heads=2, adapter_layers=1, adapter_heads=2, adapter_queries=4,
    visual_width=24, context_length=96, text_length=32, bf16=False)


def a_clip(preset, seed: int = 0) -> torch.Tensor:
    """A random one: (1, F, 3, H, W)."""
    shape = (1, preset.frames, 3, preset.height, preset.width)
    return torch.rand(shape, generator=torch.Generator().manual_seed(seed)) * 2 - 1


# ---------------------------------------------------------------- their names, written by hand

def replaced(key, pairs):
    for ours, theirs in pairs.items():
        key = key.replace(ours, theirs)
    return key


def wan_name(key):
    key = replaced(key, {
        "condition_embedder.time_embedder.linear_1": "time_embedding.0",
        "condition_embedder.time_embedder.linear_2": "time_embedding.2",
        "condition_embedder.text_embedder.linear_1": "text_embedding.0",
        "condition_embedder.text_embedder.linear_2": "text_embedding.2",
        "condition_embedder.time_proj": "time_projection.1",
        "attn1.": "self_attn.", "attn2.": "cross_attn.",
        "to_out.0": "o", "to_q": "q", "to_k": "k", "to_v": "v",
        "ffn.net.0.proj": "ffn.0", "ffn.net.2": "ffn.2",
        "proj_out": "head.head", "norm2.": "norm3."})
    if key == "scale_shift_table":
        return "head.modulation"
    return key.replace("scale_shift_table", "modulation")


def t5_name(key):
    if key == "shared.weight":
        return "token_embedding.weight"
    if key == "encoder.final_layer_norm.weight":
        return "norm.weight"
    return replaced(key, {
        "encoder.block": "blocks",
        "layer.0.SelfAttention.relative_attention_bias": "pos_embedding.embedding",
        "layer.0.SelfAttention": "attn", "layer.0.layer_norm": "norm1",
        "layer.1.layer_norm": "norm2", "layer.1.DenseReluDense.wi_0": "ffn.gate.0",
        "layer.1.DenseReluDense.wi_1": "ffn.fc1", "layer.1.DenseReluDense.wo": "ffn.fc2"})


def vae_name(key):
    key = replaced(key, {
        "post_quant_conv": "conv2", "quant_conv": "conv1", ".conv_in.": ".conv1.",
        ".conv_out.": ".head.2.", ".norm_out.": ".head.0.", "mid_block.resnets.0": "middle.0",
        "mid_block.resnets.1": "middle.2", "mid_block.attentions.0": "middle.1",
        "down_blocks": "downsamples"})
    key = re.sub(r"up_blocks\.(\d)\.resnets\.(\d)",
                 lambda k: f"upsamples.{4 * int(k[1]) + int(k[2])}", key)
    key = re.sub(r"up_blocks\.(\d)\.upsamplers\.0", lambda k: f"upsamples.{4 * int(k[1]) + 3}", key)
    if re.search(r"samples|middle\.[02]", key):
        key = replaced(key, {".norm1.": ".residual.0.", "norm2.": "residual.3.",
                             "conv2.": "residual.6.", "conv_shortcut": "shortcut"})
        key = re.sub(r"(samples\.\d+|middle\.\d)\.conv1\.", r"\1.residual.2.", key)
    return key


def projector_name(key):
    return re.sub(r"\d+", lambda n: str(int(n[0]) + 1), key, count=1)


def renamed(tensors, name=lambda key: key, prefix=""):
    return {prefix + name(k): v.clone() for k, v in tensors.items()}


# ------------------------------------------------------------------------------ their directory

def write(path: Path, content):
    path.parent.mkdir(parents=True, exist_ok=True)
    if path.suffix == ".pkl":
        path.write_bytes(pickle.dumps(content))
    elif path.suffix == ".json":
        path.write_text(json.dumps(content))
    elif path.suffix == ".safetensors":
        save_file(content, path)
    else:
        torch.save(content, path)


def change(path: Path, edit):
    """Rewrite a file with its content edited; edit None: without it."""
    if edit is None:
        return path.unlink()
    if path.suffix == ".pkl":
        content = TensorUnpickler(path.open("rb")).load()
    elif path.suffix == ".json":
        content = json.loads(path.read_text())
    elif path.suffix == ".safetensors":
        content = load_file(path)
    else:
        content = torch.load(path)
    edit(content)
    write(path, content)


def write_release(folder: Path, model) -> None:
    """The authors' directory of a model with one-row boundary tokens."""
    part = {name: model.get_submodule(name).state_dict() for name in PARTS}
    write_wan(folder / "wan" / "wanxiang1_3b", model, part)
    write_vila(folder / "ar_model" / "checkpoint", model, part)
    before = {k: v + 1 for k, v in part["adapter"].items()}                      # ReViSE's training
    write(folder / "adapter" / "model.pt",
          {"model_state_dict": renamed(before, prefix="module.")})
    write(folder / "vision_head" / "vision_head" / "pytorch_model.bin", renamed(part["ar_head"]))
    write(folder / "transformer" / "model.pt", {"module": {
        **renamed(part["transformer"], wan_name, "wan_model."),
        **renamed(part["adapter"], prefix="adapter."),
        **renamed(part["ar_head"], prefix="ar_vision_head."),
        **renamed(part["visual_context_adapter"], prefix="visual_context_adapter.")}})
    tokens = {f"<{k}>": v[None] for k, v in part["boundary"].items()}
    tokens["<img_st>"] = tokens["<img_st>"].bfloat16()
    write(folder / "special_tokens" / "tokens.pkl", tokens)
    write(folder / "unconditioned_context" / "context.pkl",
          {"text_emb_siglip2": torch.zeros(2, 5),
           "text_emb": [model.released_unconditional["text"]],
           "vlm_last_hidden_states": model.released_unconditional["vlm"][None]})


def write_wan(wan: Path, model, part) -> None:
    base = {k: v + 1 for k, v in part["transformer"].items()}                    # before ReViSE
    write(wan / "diffusion_pytorch_model.safetensors", renamed(base, wan_name))
    t5 = renamed(part["text_encoder"], t5_name)
    del t5["encoder.embed_tokens.weight"]
    write(wan / "models_t5_umt5-xxl-enc-bf16.pth", t5)
    write(wan / "Wan2.1_VAE.pth", renamed(part["vae"], vae_name))
    model.text_tokenizer.save_pretrained(wan / "google" / "umt5-xxl")


def write_vila(vila: Path, model, part) -> None:
    llm = list(renamed(part["vlm.llm"]).items())
    half = len(llm) // 2
    write(vila / "llm" / "model-00001-of-00002.safetensors", dict(llm[:half]))
    write(vila / "llm" / "model-00002-of-00002.safetensors", dict(llm[half:]))
    model.vlm.tokenizer.save_pretrained(vila / "llm")
    tower = renamed(part["vlm.vision_tower"], prefix="vision_tower.vision_model.")
    tower["vision_tower.vision_model.head.probe"] = torch.zeros(1, 1, 16)
    write(vila / "vision_tower" / "model.safetensors", tower)
    write(vila / "mm_projector" / "model.safetensors",
          renamed(part["vlm.mm_projector"], projector_name))
    config = model.vlm.llm.config.to_dict()
    config["rope_theta"] = config.pop("rope_parameters")["rope_theta"]           # transformers 4's
    write(vila / "llm" / "config.json", config)
    write(vila / "vision_tower" / "config.json", model.vlm.vision_tower.config.to_dict())
    write(vila / "mm_projector" / "config.json", {"mm_projector_type": "mlp_downsample"})
    write(vila / "config.json", {"mm_vision_select_layer": -2, "image_aspect_ratio": "resize",
                                 "mm_vision_select_feature": "cls_patch"})


# --------------------------------------------------------------------------- what is made of it

def read_model(folder: Path):
    """The model that `convert` would write."""
    return build(read_release(folder), SMALL)


def problems(folder: Path) -> list[str]:
    """What `check` would name, and `convert` stop at."""
    release = read_release(folder, "meta")
    with torch.device("meta"):
        model = UnifiedModel(fitted_preset(release, SMALL))
    return sum(all_problems(release, model).values(), [])
