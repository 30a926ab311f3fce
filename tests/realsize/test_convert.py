"""The authors' directory at tiny sizes, with their key names: every tensor arrives, and nothing else is let through."""

import json
import os
import pickle
import re
import runpy
import shutil
import sys
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

from realsize import convert
import model as m
from critic import load_model
from common.files import BadInput
from model import LIBRARY, OURS, PRESETS, TRAINED, UnifiedModel
from tiny.tokenizer import make_tokenizer

WAN = PRESETS["wan1.3b"]
SMALL = replace(
    WAN, frames=5, height=64, width=64, vlm_frames=2, vlm_size=28,
    siglip=dict(hidden_size=16, intermediate_size=24, num_hidden_layers=2, num_attention_heads=2, image_size=28,
                patch_size=14, vision_use_head=False),
    llama=dict(hidden_size=24, intermediate_size=32, num_hidden_layers=2, num_attention_heads=4, num_key_value_heads=2,
               max_position_embeddings=512, vocab_size=600, rope_theta=500000.0),
    t5=dict(d_model=24, d_kv=8, d_ff=32, num_layers=2, num_heads=2, vocab_size=600, feed_forward_proj="gated-gelu",
            tie_word_embeddings=False),
    vae=WAN.vae | dict(base_dim=8),
    dit=WAN.dit | dict(num_attention_heads=2, attention_head_dim=12, text_dim=24, freq_dim=16, ffn_dim=32, num_layers=2),
    ar_width=16, ar_layers=1, ar_heads=2, adapter_layers=1, adapter_heads=2, adapter_queries=4, visual_width=24,
    context_length=64, text_length=32, bf16=False)


# ------------------------------------------------------------------------------------ their names, written by hand

def wan_name(key):
    for ours, theirs in {"condition_embedder.time_embedder.linear_1": "time_embedding.0",
                         "condition_embedder.time_embedder.linear_2": "time_embedding.2",
                         "condition_embedder.text_embedder.linear_1": "text_embedding.0",
                         "condition_embedder.text_embedder.linear_2": "text_embedding.2",
                         "condition_embedder.time_proj": "time_projection.1", "attn1.": "self_attn.", "attn2.": "cross_attn.",
                         "to_out.0": "o", "to_q": "q", "to_k": "k", "to_v": "v", "ffn.net.0.proj": "ffn.0",
                         "ffn.net.2": "ffn.2", "proj_out": "head.head", "norm2.": "norm3."}.items():
        key = key.replace(ours, theirs)
    return "head.modulation" if key == "scale_shift_table" else key.replace("scale_shift_table", "modulation")


def t5_name(key):
    key = {"shared.weight": "token_embedding.weight", "encoder.final_layer_norm.weight": "norm.weight"}.get(key, key)
    for ours, theirs in {"encoder.block": "blocks", "layer.0.SelfAttention.relative_attention_bias": "pos_embedding.embedding",
                         "layer.0.SelfAttention": "attn", "layer.0.layer_norm": "norm1", "layer.1.layer_norm": "norm2",
                         "layer.1.DenseReluDense.wi_0": "ffn.gate.0", "layer.1.DenseReluDense.wi_1": "ffn.fc1",
                         "layer.1.DenseReluDense.wo": "ffn.fc2"}.items():
        key = key.replace(ours, theirs)
    return key


def vae_name(key):
    for ours, theirs in {"post_quant_conv": "conv2", "quant_conv": "conv1", ".conv_in.": ".conv1.", ".conv_out.": ".head.2.",
                         ".norm_out.": ".head.0.", "mid_block.resnets.0": "middle.0", "mid_block.resnets.1": "middle.2",
                         "mid_block.attentions.0": "middle.1", "down_blocks": "downsamples"}.items():
        key = key.replace(ours, theirs)
    key = re.sub(r"up_blocks\.(\d)\.resnets\.(\d)", lambda k: f"upsamples.{4 * int(k[1]) + int(k[2])}", key)
    key = re.sub(r"up_blocks\.(\d)\.upsamplers\.0", lambda k: f"upsamples.{4 * int(k[1]) + 3}", key)
    if re.search(r"samples|middle\.[02]", key):
        for ours, theirs in {".norm1.": ".residual.0.", "norm2.": "residual.3.", "conv2.": "residual.6.",
                             "conv_shortcut": "shortcut"}.items():
            key = key.replace(ours, theirs)
        key = re.sub(r"(samples\.\d+|middle\.\d)\.conv1\.", r"\1.residual.2.", key)
    return key


def renamed(tensors, name=lambda key: key, prefix=""):
    return {prefix + name(k): v.clone() for k, v in tensors.items()}


def write(path: Path, content):
    path.parent.mkdir(parents=True, exist_ok=True)
    if path.suffix == ".pkl":
        path.write_bytes(pickle.dumps(content))
    elif path.suffix == ".safetensors":
        save_file(content, path)
    else:
        torch.save(content, path)


@pytest.fixture(scope="module")
def original():
    torch.manual_seed(0)
    model = UnifiedModel(SMALL)
    for p in model.parameters():                         # no two alike
        torch.nn.init.normal_(p)
    model.vlm.tokenizer = model.text_tokenizer = make_tokenizer(["a hard frost came"], 600)
    model.nothing = {"vlm": torch.randn(7, 24), "text": torch.randn(3, 24)}
    return model.eval()


@pytest.fixture(scope="module")
def released(original, tmp_path_factory):
    folder = tmp_path_factory.mktemp("released") / "revise_ckpt"
    part = {name: original.get_submodule(name).state_dict() for name in (*LIBRARY, *OURS)}
    wan, vila = folder / "wan" / "wanxiang1_3b", folder / "ar_model" / "checkpoint"
    stale = {k: v + 1 for k, v in part["transformer"].items()}                             # the base, before ReViSE
    write(wan / "diffusion_pytorch_model.safetensors", renamed(stale, wan_name))
    t5 = renamed(part["text_encoder"], t5_name)
    del t5["encoder.embed_tokens.weight"]
    write(wan / "models_t5_umt5-xxl-enc-bf16.pth", t5)
    write(wan / "Wan2.1_VAE.pth", renamed(part["vae"], vae_name))
    original.text_tokenizer.save_pretrained(wan / "google" / "umt5-xxl")
    llm = renamed(part["vlm.llm"])
    half = len(llm) // 2
    for k, shard in enumerate((list(llm.items())[:half], list(llm.items())[half:])):
        write(vila / "llm" / f"model-0000{k + 1}-of-00002.safetensors", dict(shard))
    original.vlm.tokenizer.save_pretrained(vila / "llm")
    tower = renamed(part["vlm.vision_tower"], prefix="vision_tower.vision_model.")
    tower["vision_tower.vision_model.head.probe"] = torch.zeros(1, 1, 16)
    write(vila / "vision_tower" / "model.safetensors", tower)
    write(vila / "mm_projector" / "model.safetensors",
          renamed(part["vlm.mm_projector"], lambda k: re.sub(r"\d+", lambda n: str(int(n[0]) + 1), k, count=1)))
    write(folder / "adapter" / "model.pt", {"model_state_dict": renamed(
        {k: v + 1 for k, v in part["adapter"].items()}, prefix="module.")})
    write(folder / "vision_head" / "vision_head" / "pytorch_model.bin", renamed(part["ar_head"]))
    write(folder / "transformer" / "model.pt", {"module": {
        **renamed(part["transformer"], wan_name, "wan_model."), **renamed(part["adapter"], prefix="adapter."),
        **renamed(part["ar_head"], prefix="ar_vision_head."),
        **renamed(part["visual_context_adapter"], prefix="visual_context_adapter.")}})
    write(folder / "special_tokens" / "tokens.pkl",
          {f"<{k}>": v[None].to(torch.bfloat16 if k == "img_st" else v.dtype) for k, v in part["boundary"].items()})
    write(folder / "unconditioned_context" / "context.pkl",
          {"text_emb_siglip2": torch.zeros(2, 5), "text_emb": original.nothing["text"],
           "vlm_last_hidden_states": original.nothing["vlm"][None]})
    return folder


@pytest.fixture(autouse=True)
def small(monkeypatch):
    monkeypatch.setitem(PRESETS, "wan1.3b", SMALL)


@pytest.fixture(scope="module")
def converted(released, tmp_path_factory):
    """What `python model.py convert` writes."""
    to = tmp_path_factory.mktemp("converted") / "revise"
    with pytest.MonkeyPatch.context() as patch:
        patch.setitem(PRESETS, "wan1.3b", SMALL)
        convert.main(["--from", str(released), "--to", str(to)])
    return to


def check(model, original):
    for name in (*LIBRARY, *OURS):
        want, got = original.get_submodule(name).state_dict(), model.get_submodule(name).state_dict()
        assert want.keys() == got.keys()
        for k, v in want.items():
            v = v.bfloat16().float() if (name, k) == ("boundary", "img_st") else v
            assert torch.equal(got[k], v), f"{name}.{k}"
    assert all(torch.equal(a, b) for a, b in zip(model.unconditional(), original.unconditional()))
    assert model.vlm.tokenizer.get_vocab() == original.vlm.tokenizer.get_vocab()


# ----------------------------------------------------------------------------------------------------------- tests

def test_their_names_are_theirs(released):
    """A few by heart, so that the two lists above cannot be wrong together."""
    dit = load_file(released / "wan" / "wanxiang1_3b" / "diffusion_pytorch_model.safetensors")
    assert {"patch_embedding.weight", "text_embedding.0.weight", "time_projection.1.bias", "blocks.0.self_attn.norm_q.weight",
            "blocks.1.cross_attn.o.bias", "blocks.1.norm3.weight", "blocks.0.ffn.2.weight", "blocks.0.modulation",
            "head.head.weight", "head.modulation"} <= dit.keys()
    t5 = torch.load(released / "wan" / "wanxiang1_3b" / "models_t5_umt5-xxl-enc-bf16.pth")
    assert {"token_embedding.weight", "blocks.1.attn.q.weight", "blocks.0.pos_embedding.embedding.weight",
            "blocks.0.ffn.gate.0.weight", "blocks.1.norm2.weight", "norm.weight"} <= t5.keys()
    vae = torch.load(released / "wan" / "wanxiang1_3b" / "Wan2.1_VAE.pth")
    assert {"conv1.weight", "encoder.conv1.weight", "encoder.downsamples.0.residual.2.weight", "encoder.middle.1.to_qkv.weight",
            "encoder.downsamples.5.time_conv.weight", "encoder.head.2.bias", "decoder.upsamples.4.shortcut.weight",
            "decoder.upsamples.11.resample.1.weight", "decoder.upsamples.14.residual.6.weight"} <= vae.keys()
    assert "layers.1.weight" in load_file(released / "ar_model" / "checkpoint" / "mm_projector" / "model.safetensors")


def test_every_tensor_arrives(original, converted):
    check(load_model(str(converted), "wan1.3b"), original)
    check(UnifiedModel.from_preset("wan1.3b", weights=converted), original)


def test_the_directory_itself_can_be_used(original, released):
    model = UnifiedModel.from_preset("wan1.3b", weights=released)
    check(model, original)
    assert not [k for k, x in (*model.named_parameters(), *model.named_buffers()) if x.is_meta]
    source = torch.rand(1, SMALL.frames, 3, SMALL.height, SMALL.width) * 2 - 1
    got, want = (x.sample(source, ["frost"], steps=1) for x in (model, original))
    assert got.isfinite().all() and (got - want).abs().max() < .05                         # one token was rounded


def test_diffusers_layout(original, released, tmp_path):
    folder = tmp_path / "revise_ckpt"
    shutil.copytree(released, folder)
    wan = folder / "wan" / "wanxiang1_3b"
    shutil.rmtree(wan)
    for name in ("transformer", "vae", "text_encoder"):
        getattr(original, name).save_pretrained(wan / name)
    original.text_tokenizer.save_pretrained(wan / "tokenizer")
    check(UnifiedModel.from_pretrained(folder), original)


def test_the_command(released, tmp_path, monkeypatch, capfd):
    def run(*args):
        monkeypatch.setattr(sys, "argv", ["model.py", *map(str, args)])
        with pytest.raises(SystemExit) as stop:
            runpy.run_path(m.__file__, run_name="__main__")
        return stop.value.code, capfd.readouterr()
    code, (_, complaint) = run("convert", "--from", tmp_path / "none", "--to", tmp_path / "new")
    assert code == 2 and complaint == f"model.py: --from {tmp_path}/none: there is no such directory\n"
    code, (_, complaint) = run("convert", "--from", released)
    assert code == 2 and "--to" in complaint and not (tmp_path / "new").exists()


def test_what_is_written_is_small_and_whole(released, converted):
    record = json.loads((converted / "model.json").read_text())
    assert record["preset"] == "wan1.3b" and record["frozen"] is None
    assert set(load_file(converted / "unconditional.safetensors")) == {"vlm", "text"}
    with pytest.raises(BadInput, match="is there already, and no model folder"):
        convert.main(["--from", str(released), "--to", str(converted.parent)])


@pytest.mark.parametrize("file, change, words", [
    ("transformer/model.pt", lambda t: t["module"].pop("wan_model.head.head.weight"), None),   # the base still has it
    ("transformer/model.pt", lambda t: t["module"].pop("visual_context_adapter.projection.bias"),
     ["visual_context_adapter: projection.bias is in no file"]),
    ("transformer/model.pt", lambda t: t["module"].update(stranger=torch.zeros(2), **{"adapter.fc.0.bias": torch.zeros(5)}),
     ["model.pt: stranger is unknown", "model.pt: fc.0.bias is (5,), not (24,)"]),
    ("wan/wanxiang1_3b/Wan2.1_VAE.pth", lambda t: t.pop("decoder.upsamples.7.time_conv.bias"), ["time_conv.bias is in no file"]),
    ("wan/wanxiang1_3b/models_t5_umt5-xxl-enc-bf16.pth", lambda t: t.update({"blocks.9.attn.q.weight": torch.zeros(16, 24)}),
     ["encoder.block.9.layer.0.SelfAttention.q.weight is unknown"]),
    ("special_tokens/tokens.pkl", lambda t: t.update({"<img_st>": torch.zeros(1, 5)}), ["img_st is (5,), not (24,)"]),
    ("unconditioned_context/context.pkl", lambda t: t.pop("text_emb"), ["text_emb is missing, not (T, 24)"])])
def test_what_does_not_fit_is_listed(original, released, tmp_path, file, change, words):
    folder = tmp_path / "revise_ckpt"
    shutil.copytree(released, folder)
    path = folder / file
    content = convert.TensorUnpickler(path.open("rb")).load() if path.suffix == ".pkl" else torch.load(path)
    change(content)
    write(path, content)
    if words is None:
        got = UnifiedModel.from_pretrained(folder).transformer.proj_out
        assert torch.equal(got.weight, original.transformer.proj_out.weight + 1)
        assert torch.equal(got.bias, original.transformer.proj_out.bias)
        return
    with pytest.raises(BadInput) as error:
        UnifiedModel.from_pretrained(folder)
    assert f"{len(words)} keys: " in str(error.value) and all(word in str(error.value) for word in words)


class Evil:
    def __reduce__(self):
        return os.mkdir, ("was-here",)


@pytest.mark.parametrize("file", ["special_tokens/tokens.pkl", "unconditioned_context/context.pkl", "transformer/model.pt",
                                  "vision_head/vision_head/pytorch_model.bin", "wan/wanxiang1_3b/Wan2.1_VAE.pth"])
def test_no_pickle_runs_code(released, tmp_path, monkeypatch, file):
    monkeypatch.chdir(tmp_path)
    folder = tmp_path / "revise_ckpt"
    shutil.copytree(released, folder)
    write(folder / file, {"x": Evil()})
    with pytest.raises(BadInput, match=file.rpartition("/")[2]):
        UnifiedModel.from_pretrained(folder)
    assert not (tmp_path / "was-here").exists()


def test_no_code_in_the_bytes_of_a_tensor(tmp_path, monkeypatch):
    """A pickled tensor holds a torch file, which holds a pickle of its own."""
    monkeypatch.chdir(tmp_path)
    inner = pickle.dumps(Evil(), protocol=2)

    class Nested:
        def __reduce__(self):
            return torch.storage._load_from_bytes, (inner,)
    write(tmp_path / "a.pkl", {"x": Nested()})
    with pytest.raises(BadInput, match="a.pkl"):
        convert.read_tensors(tmp_path / "a.pkl")
    assert not (tmp_path / "was-here").exists()


@pytest.mark.parametrize("content", [{"x": 3}, [torch.zeros(2)], {"x": [torch.zeros(2)]}, {3: torch.zeros(2)}])
def test_only_tensors_and_dicts(tmp_path, content):
    for name in ("a.pkl", "a.pt"):
        write(tmp_path / name, content)
        with pytest.raises(BadInput, match="only tensors and dicts of them are read"):
            convert.read_tensors(tmp_path / name)


def test_pickled_tensors_are_read(tmp_path):
    content = {"a": torch.randn(2, 3).t(), "b": {"c": torch.arange(4, dtype=torch.bfloat16),
                                                 "d": torch.nn.Parameter(torch.ones(2))}}
    write(tmp_path / "a.pkl", content)
    torch.save(content, tmp_path / "b.pkl")              # a torch file under that name
    for name in ("a.pkl", "b.pkl"):
        got = convert.read_tensors(tmp_path / name)
        assert got.keys() == {"a", "b.c", "b.d"} and got["b.c"].dtype == torch.bfloat16
        assert torch.equal(got["a"], content["a"]) and torch.equal(got["b.d"], torch.ones(2))
    (tmp_path / "a.pkl").write_bytes((tmp_path / "a.pkl").read_bytes()[:-9])
    with pytest.raises(BadInput, match="cannot be read as tensors"):
        convert.read_tensors(tmp_path / "a.pkl")


# ------------------------------------------------------------------------------------------ the preset's switches

def test_first_frame_only(original):
    a, b = torch.rand(2, 1, SMALL.frames, 3, SMALL.height, SMALL.width) * 2 - 1
    same = torch.cat([a[:, :1], b[:, 1:]], 1)
    h = original.encode_vlm(a, ["frost"])[0]
    assert torch.equal(original.encode_vlm(same, ["frost"])[0], h)
    assert not torch.equal(original.encode_vlm(b, ["frost"])[0], h)
    assert WAN.first_frame and not PRESETS["tiny"].first_frame


@pytest.mark.parametrize("start, by", [("cond", (1 + 3, -3)), ("uncond", (3, 1 - 3))])
def test_guidance_formula(original, monkeypatch, start, by):
    """x after one step from t = 1 to 0 is the noise minus v."""
    source = torch.rand(1, SMALL.frames, 3, SMALL.height, SMALL.width) * 2 - 1
    monkeypatch.setattr(original, "preset", replace(SMALL, guidance_from=start))
    monkeypatch.setattr(original, "decode_video", lambda x: x)
    monkeypatch.setattr(original, "velocity", lambda x, t, c, s: torch.tensor([2., 7.]).view(2, 1, 1, 1, 1).expand(2, *x.shape[1:]))
    noise = torch.randn(1, *SMALL.latent_shape, generator=torch.Generator().manual_seed(0))
    assert torch.allclose(original.sample(source, ["frost"], 1, 3.), noise - (by[0] * 2 + by[1] * 7), atol=1e-5)
    assert WAN.guidance_from == "cond"


def test_order_of_the_context(original, monkeypatch):
    monkeypatch.setattr(original, "preset", replace(SMALL, order=("prp", "img", "ipl")))
    latents, bridged, text = torch.randn(1, *SMALL.latent_shape), torch.randn(1, 16, 24), [torch.randn(5, 24)]
    row = original.context(latents, bridged, text)[0]
    e = original.boundary
    visual = original.visual_context_adapter(latents)[0]
    want = [e["prp_st"][None], text[0], e["prp_ed"][None], e["img_st"][None], visual, e["img_ed"][None],
            e["ipl_st"][None], bridged[0], e["ipl_ed"][None]]
    n = sum(map(len, want))
    assert torch.equal(row[:n], torch.cat(want)) and len(row) == SMALL.context_length and row[n:].eq(0).all()
    assert WAN.order == ("img", "ipl", "prp") and WAN.context_length == 2560 and WAN.shift == 5


def test_half_precision_is_for_the_frozen(converted, monkeypatch):
    """bfloat16 on disk and in memory for what is frozen; G, its adapter and the VAE in float32; positions stay exact."""
    exact = UnifiedModel.from_pretrained(converted).vlm.llm.model.rotary_emb.inv_freq
    monkeypatch.setitem(PRESETS, "wan1.3b", replace(SMALL, bf16=True))
    model = UnifiedModel.from_pretrained(converted)
    for name in (*LIBRARY, *OURS):
        half = name not in ("vae", *TRAINED)
        assert {p.dtype for p in model.get_submodule(name).parameters()} == {torch.bfloat16 if half else torch.float32}, name
    assert torch.equal(model.vlm.llm.model.rotary_emb.inv_freq, exact)
    source = torch.rand(1, SMALL.frames, 3, SMALL.height, SMALL.width) * 2 - 1
    assert model.sample(source, ["frost"], steps=1).isfinite().all()
