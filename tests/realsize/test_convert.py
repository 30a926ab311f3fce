"""The authors' directory at tiny sizes, with their key names: every tensor arrives, and nothing else is let through."""

import json
import os
import pickle
import runpy
import shutil
import sys
from dataclasses import replace

import pytest
import torch
from safetensors.torch import load_file

from common.files import BadInput
from model import PARTS, TRAINED, UnifiedModel, load_model
from presets import PRESETS
from realsize import convert, tensors
from realsize.convert import read_released
from small import SMALL, WAN, write

pytestmark = pytest.mark.usefixtures("small")


def check(model, original):
    for name in PARTS:
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
    model = read_released(released).cast().eval()
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
    check(read_released(folder).cast(), original)


def test_the_command(released, tmp_path, monkeypatch, capfd):
    def run(*args):
        monkeypatch.setattr(sys, "argv", ["", *map(str, args)])
        monkeypatch.delitem(sys.modules, "realsize.convert", raising=False)
        with pytest.raises(SystemExit) as stop:
            runpy.run_module("realsize.convert", run_name="__main__", alter_sys=True)
        return stop.value.code, capfd.readouterr()
    code, (_, complaint) = run("--from", tmp_path / "none", "--to", tmp_path / "new")
    assert code == 2 and complaint == f"convert.py: --from {tmp_path}/none: there is no such directory\n"
    code, (_, complaint) = run("--from", released)
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
    content = tensors.TensorUnpickler(path.open("rb")).load() if path.suffix == ".pkl" else torch.load(path)
    change(content)
    write(path, content)
    if words is None:
        got = read_released(folder).cast().transformer.proj_out
        assert torch.equal(got.weight, original.transformer.proj_out.weight + 1)
        assert torch.equal(got.bias, original.transformer.proj_out.bias)
        return
    with pytest.raises(BadInput) as error:
        read_released(folder)
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
        read_released(folder)
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
        tensors.read_tensors(tmp_path / "a.pkl")
    assert not (tmp_path / "was-here").exists()


@pytest.mark.parametrize("content", [{"x": 3}, [torch.zeros(2)], {"x": [torch.zeros(2)]}, {3: torch.zeros(2)}])
def test_only_tensors_and_dicts(tmp_path, content):
    for name in ("a.pkl", "a.pt"):
        write(tmp_path / name, content)
        with pytest.raises(BadInput, match="only tensors and dicts of them are read"):
            tensors.read_tensors(tmp_path / name)


def test_pickled_tensors_are_read(tmp_path):
    content = {"a": torch.randn(2, 3).t(), "b": {"c": torch.arange(4, dtype=torch.bfloat16),
                                                 "d": torch.nn.Parameter(torch.ones(2))}}
    write(tmp_path / "a.pkl", content)
    torch.save(content, tmp_path / "b.pkl")              # a torch file under that name
    for name in ("a.pkl", "b.pkl"):
        got = tensors.read_tensors(tmp_path / name)
        assert got.keys() == {"a", "b.c", "b.d"} and got["b.c"].dtype == torch.bfloat16
        assert torch.equal(got["a"], content["a"]) and torch.equal(got["b.d"], torch.ones(2))
    (tmp_path / "a.pkl").write_bytes((tmp_path / "a.pkl").read_bytes()[:-9])
    with pytest.raises(BadInput, match="cannot be read as tensors"):
        tensors.read_tensors(tmp_path / "a.pkl")


# ------------------------------------------------------------------------------------------ the preset's switches

def test_first_frame_only(original):
    a, b = torch.rand(2, 1, SMALL.frames, 3, SMALL.height, SMALL.width) * 2 - 1
    same = torch.cat([a[:, :1], b[:, 1:]], 1)
    h = original.encode_vlm(a, ["frost"])[0]
    assert torch.equal(original.encode_vlm(same, ["frost"])[0], h)
    assert not torch.equal(original.encode_vlm(b, ["frost"])[0], h)
    assert WAN.first_frame and not PRESETS["tiny"].first_frame


def test_guidance_formula(original, monkeypatch):
    """x after one step from t = 1 to 0 is the noise minus v = c + g (c - u)."""
    source = torch.rand(1, SMALL.frames, 3, SMALL.height, SMALL.width) * 2 - 1
    halves = torch.tensor([2., 7.]).view(2, 1, 1, 1, 1)
    monkeypatch.setattr(original, "preset", replace(SMALL, sampler="euler"))
    monkeypatch.setattr(original, "decode_video", lambda x: x)
    monkeypatch.setattr(original, "velocity",
                        lambda x, t, c, s: halves.expand(2, *x.shape[1:]))
    noise = torch.randn(1, *SMALL.latent_shape, generator=torch.Generator().manual_seed(0))
    edited = original.sample(source, ["frost"], 1, guidance=3.)
    assert torch.allclose(edited, noise - (2 + 3 * (2 - 7)), atol=1e-5)
    assert WAN.context_length == 2560 and WAN.shift == 5


def test_half_precision_is_for_the_frozen(converted, monkeypatch):
    """bfloat16 on disk and in memory for what is frozen; G, its adapter and the VAE in float32; positions stay exact."""
    exact = UnifiedModel.from_pretrained(converted).vlm.llm.model.rotary_emb.inv_freq
    monkeypatch.setitem(PRESETS, "wan1.3b", replace(SMALL, bf16=True))
    model = UnifiedModel.from_pretrained(converted)
    for name in PARTS:
        half = name not in ("vae", *TRAINED)
        assert {p.dtype for p in model.get_submodule(name).parameters()} == {torch.bfloat16 if half else torch.float32}, name
    assert torch.equal(model.vlm.llm.model.rotary_emb.inv_freq, exact)
    source = torch.rand(1, SMALL.frames, 3, SMALL.height, SMALL.width) * 2 - 1
    assert model.sample(source, ["frost"], steps=1).isfinite().all()


def test_the_directory_itself_is_not_loaded_but_the_mend_is_named(released):
    with pytest.raises(BadInput, match="convert it first: python -m realsize.convert --from"):
        load_model(str(released), "wan1.3b")
