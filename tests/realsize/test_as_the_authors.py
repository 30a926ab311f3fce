"""What the authors' code does and the tiny preset does otherwise, each against its formula."""

import json
from dataclasses import replace
from types import SimpleNamespace

import numpy as np
import pytest
import torch
import torch.nn as nn
import torch.nn.functional as F
from PIL import Image

import data
import evaluate
import sample
from common import precision
from common.unipc import unipc
from common.video import fit, from_bytes, to_bytes
from critic import SYSTEM, Critic
from model import PARTS, TRAINED, UnifiedModel, VisualContextAdapter, euler
from presets import PRESETS
from rvebench.benchmark import read_manifest
from rvebench.score import generate
from small import SMALL, WAN, a_clip

TINY = PRESETS["tiny"]
pytestmark = pytest.mark.usefixtures("small")


@pytest.fixture
def seeded():
    torch.manual_seed(0)


# ------------------------------------------------------------------------- visual context adapter

def test_layer_norms_of_the_visual_context_adapter(seeded):
    """eps 1e-6: where patch embeddings are small, another one shows."""
    adapter = VisualContextAdapter(16, 24, 24, SMALL.visual_kernel, SMALL.visual_eps)
    nn.init.zeros_(adapter.patch_embedding.bias)
    latents = torch.randn(1, *SMALL.latent_shape) * 1e-4
    patches = adapter.patch_embedding(latents).flatten(2).transpose(1, 2)                # (1, T, D)

    def norm(x, eps):
        centred = x - x.mean(-1, keepdim=True)
        return centred / (centred.pow(2).mean(-1, keepdim=True) + eps).sqrt()
    got, (want, other) = adapter(latents), [
        norm(adapter.projection(norm(patches, eps)), eps) for eps in (1e-6, 1e-5)]
    assert torch.allclose(got, want, atol=1e-5) and (other - want).abs().max() > .01
    assert WAN.visual_eps == 1e-6 and TINY.visual_eps == 1e-5


# ----------------------------------------------------------------------------------------- the chat

VILA_SENTENCE = (
    "You are a helpful language and vision assistant. You are able to understand the visual "
    "content that the user provides, and assist the user with a variety of tasks using natural "
    "language.")
SYSTEM_TURN = "<|begin_of_text|><|start_header_id|>system<|end_header_id|>\n\n"
USER_TURN = "<|eot_id|><|start_header_id|>user<|end_header_id|>\n\n"
ANSWER_TURN = "<|eot_id|><|start_header_id|>assistant<|end_header_id|>\n\n"


@pytest.mark.parametrize("name, sentence, prefix, end, vision_tokens", [
    ("original", VILA_SENTENCE, "<video>\n", "<|end_of_text|>", 1),                  # one frame's
    ("tiny", "You are a helpful assistant that edits videos.", "", "", 3 * 16)])
def test_the_chat_of_the_condition(request, monkeypatch, name, sentence, prefix, end,
                                   vision_tokens):
    """Llama-3's chat as VILA writes it: one BOS, the frame, <video> and a new line, the prompt;
    and tiny's."""
    model = request.getfixturevalue(name)
    rows, join, texts = [], model.vlm.join, model.vlm.tokenizer
    monkeypatch.setattr(model.vlm, "join", lambda these: rows.extend(these) or join(these))
    model.encode_vlm(a_clip(model.preset), ["frost came"])
    (begun, seen, asked, answer), = rows
    assert len(seen) == vision_tokens
    assert begun == SYSTEM_TURN + sentence + USER_TURN
    assert asked == f"{prefix}frost came" and answer == f"{ANSWER_TURN}[GEN_VID]{end}"
    bos = texts.convert_tokens_to_ids("<|begin_of_text|>")
    assert texts(begun, add_special_tokens=False).input_ids.count(bos) == 1


def test_the_critic_speaks_in_the_chat_of_the_condition(original, tiny, monkeypatch):
    """VILA's own system sentence; the user says what is to be judged. Tiny was taught otherwise."""
    rows, join = [], original.vlm.join
    monkeypatch.setattr(original.vlm, "join", lambda these: rows.extend(these) or join(these))
    clip = a_clip(SMALL)[:, :SMALL.vlm_frames]
    Critic(original).margin(clip, clip, ["frost came"], ["a thought"])
    before, after = rows
    assert before[0] == SYSTEM_TURN + VILA_SENTENCE + USER_TURN
    assert before[1] == f"{SYSTEM}\nfrost came\nSource :"
    assert after[1].endswith("assistant<|end_header_id|>\n\nVerdict : ")
    assert Critic(tiny).system is None                   # the question is the system sentence


# ------------------------------------------------------------------------- frames, the VLM's view

def test_consecutive_frames_uncropped_for_the_vlm(original, tmp_path, monkeypatch):
    """sample.py, training's cache, its report, the benchmark's generator: the same 5 of 9 frames,
    and the same view."""
    wide = torch.rand(9, 3, 48, 96, generator=torch.Generator().manual_seed(0)) * 2 - 1
    for k, frame in enumerate(to_bytes(wide)):
        (tmp_path / "clip").mkdir(exist_ok=True)
        Image.fromarray(frame.permute(1, 2, 0).numpy()).save(tmp_path / "clip" / f"{k}.png")
    line = {"source_video_path": "clip", "target_video_path": "clip", "instruction": "frost",
            "type": "Temporal Reasoning", "id": "a"}
    (tmp_path / "triplets.jsonl").write_text(json.dumps(line))
    items, _ = data.manifest_items(tmp_path / "triplets.jsonl", SMALL)
    shown, encoded, read, encode = [], [], original.encode_vlm, original.encode_video
    monkeypatch.setattr(original, "encode_vlm",
                        lambda source, texts: shown.append(source) or read(source, texts))
    monkeypatch.setattr(original, "encode_video",
                        lambda video: encoded.append(video) or encode(video))
    monkeypatch.setattr(sample, "load_model", lambda *args: original)

    data.encode(original, items)
    sample.main(["--preset", "wan1.3b", "--video", str(tmp_path / "clip"), "--instruction", "frost",
                 "--steps", "1", "--out", str(tmp_path / "edit.gif")])
    evaluate.report_on_manifest({"before": original, "after": original}, items,
                                SimpleNamespace(seed=0, out=tmp_path))
    generate(original, read_manifest(tmp_path / "triplets.jsonl"), tmp_path / "ours", 1, 0., 0, 1)
    consecutive = from_bytes(to_bytes(wide[:5]))
    view = F.interpolate(consecutive, (28, 28), mode="bicubic", antialias=True)[None]
    assert len(shown) == 5 and all(torch.allclose(x, view, atol=1e-6) for x in shown)
    cropped = F.interpolate(consecutive[..., 24:72], (64, 64), mode="bilinear", antialias=True)
    assert len(encoded) == 6 and all((x - cropped[None]).abs().max() < .02 for x in encoded)
    assert WAN.frame_stride == 1 and TINY.frame_stride is None
    assert WAN.whole_view and not TINY.whole_view


@pytest.mark.parametrize("size, box", [                  # (width, height); left, top, right, bottom
    ((854, 480), (0, 6, 854, 475)), ((500, 500), (0, 112, 500, 387))])
def test_frames_are_cropped_to_whole_pixels(size, box):
    """To the byte: torchvision's CenterCrop rounds half a pixel to the even side."""
    pixels = np.random.default_rng(0).integers(0, 256, (size[1], size[0], 3), np.uint8)
    want = Image.fromarray(pixels).crop(box).resize((640, 352), Image.Resampling.BILINEAR)
    assert np.array_equal(fit(pixels, 352, 640), np.asarray(want))


# ----------------------------------------------------------------------------------------- samplers

def exact_flow(mean, scale):
    """E[eps - x_0 | x_t]: the flow from noise to a Gaussian of this mean and scale."""
    def velocity(x, t):
        variance = ((1 - t) * scale) ** 2 + t ** 2
        return -mean + (x - (1 - t) * mean) * (t - (1 - t) * scale ** 2) / variance
    return velocity


def test_unipc_ends_where_the_flow_does(seeded):
    """The flow carries eps to mean + scale eps; UniPC is nearer to it than Euler is."""
    noise, mean = torch.randn(1, 4, 2, 6, 6), torch.randn(1, 4, 2, 6, 6)
    end, flow = mean + .3 * noise, exact_flow(mean, .3)

    def error(solve, steps):
        return (solve(flow, noise, steps, 5.) - end).pow(2).mean().sqrt().item()
    assert error(unipc, 40) < error(euler, 40) / 2
    assert error(unipc, 100) < error(euler, 100) / 15 and error(unipc, 100) < .001


def test_noise_levels_of_unipc(seeded):
    """s = .999 (1 - k / N), t = 5 s / (1 + 4 s), told to the model in whole thousandths."""
    levels = []
    unipc(lambda x, t: levels.append(t) or x, torch.randn(1, 2, 1, 2, 2), 8, 5.)
    s = [.999 * (1 - k / 8) for k in range(8)]
    want = [int(1000 * 5 * x / (1 + 4 * x)) / 1000 for x in s]
    assert levels == pytest.approx(want, abs=1.5e-3) and len(levels) == 8
    assert (WAN.sampler, WAN.sample_steps, WAN.shift, WAN.guidance) == ("unipc", 40, 5, 3)
    assert TINY.sampler == "euler" and TINY.sample_steps == 12
    assert TINY.source_beside_noise and not WAN.source_beside_noise


# --------------------------------------------------------------------------------------------- text

def test_t5_reads_clean_text_and_the_vlm_the_text_itself(original):
    same = original.encode_text(["frost &amp;  ice"])[0]
    assert torch.equal(original.encode_text(["frost & ice"])[0], same)
    a, b = (original.encode_vlm(a_clip(SMALL), [text])[0]
            for text in ("frost &amp;  ice", "frost & ice"))
    assert a.shape != b.shape


# ---------------------------------------------------------------------------------------- precision

@pytest.fixture
def in_half(monkeypatch):
    monkeypatch.setitem(PRESETS, "wan1.3b", replace(SMALL, bf16=True))


def test_only_products_are_in_bfloat16(converted, in_half):
    """Dtypes by module: DiT's stream, time embedding and head, and the VAE, are float32; products
    inside blocks half."""
    half = UnifiedModel.from_pretrained(converted)
    dit, dtypes = half.transformer, {}
    embedder = dit.condition_embedder
    exact = {"patches": dit.patch_embedding, "time": embedder.time_embedder,
             "time projection": embedder.time_proj, "block": dit.blocks[1], "head": dit.proj_out,
             "VAE in": half.vae.encoder.conv_in, "VAE out": half.vae.decoder.conv_out}
    rough = {"query": dit.blocks[0].attn1.to_q, "feed forward": dit.blocks[0].ffn.net[2],
             "text": embedder.text_embedder.linear_1, "llm": half.vlm.llm.model.layers[0].mlp,
             "siglip": half.vlm.vision_tower.encoder.layers[0].mlp}
    for name, module in (exact | rough).items():
        module.register_forward_hook(lambda module, inputs, output, name=name:
                                     dtypes.setdefault(name, set()).add(output.dtype))
    states = half.released_unconditional                 # in a release they are float16
    half.released_unconditional = {key: value.half() for key, value in states.items()}
    edited = half.sample(a_clip(SMALL), ["frost"], steps=1)
    assert edited.dtype == torch.float32 and edited.isfinite().all()
    assert {name: dtypes[name] for name in exact} == dict.fromkeys(exact, {torch.float32})
    assert {name: dtypes[name] for name in rough} == dict.fromkeys(rough, {torch.bfloat16})


def test_the_condition_is_read_in_float16_and_judged_in_bfloat16(converted, in_half, original,
                                                                 monkeypatch):
    """As on a GPU: the states are nearer to float32's than bfloat16's are. G, its adapter and the
    VAE are in float32, and positions stay exact."""
    exact, errors = original.encode_vlm(a_clip(SMALL), ["frost"])[0], []
    for dtype in (torch.float16, torch.bfloat16):
        monkeypatch.setattr(precision, "VLM_DTYPE", dtype)
        model = UnifiedModel.from_pretrained(converted)
        for name in PARTS:
            want = dtype if name.startswith("vlm") else torch.bfloat16
            want = torch.float32 if name in ("vae", *TRAINED) else want
            assert {p.dtype for p in model.get_submodule(name).parameters()} == {want}, name
        with model.precision():
            states = model.encode_vlm(a_clip(SMALL), ["frost"])[0].float()
        errors.append((states - exact).norm() / exact.norm())
        Critic(model)
        assert {p.dtype for p in model.vlm.parameters()} == {torch.bfloat16}
        positions = [x.vlm.llm.model.rotary_emb.inv_freq for x in (model, original)]
        assert torch.equal(*positions)
    assert 0 < errors[0] < errors[1] / 3


# ------------------------------------------------------------------------------- the first frame

def test_first_frame_only(original):
    a, b = a_clip(SMALL), a_clip(SMALL, seed=1)
    mixed = torch.cat([a[:, :1], b[:, 1:]], 1)
    h = original.encode_vlm(a, ["frost"])[0]
    assert torch.equal(original.encode_vlm(mixed, ["frost"])[0], h)
    assert not torch.equal(original.encode_vlm(b, ["frost"])[0], h)
    assert WAN.first_frame and not TINY.first_frame
