"""The model against independent sums: noise levels, projector, context, VLM, VAE, sampling, folders, the real size."""

import json
import os
import shutil
import socket
from pathlib import Path

import pytest
import torch
import torch.nn.functional as F
from safetensors.torch import load_file, save_file

from common.files import BadInput
from model import (PARTS, TRAINED, UnifiedModel, add_noise, load_model, sample_timesteps,
                   velocity_target)
from presets import GENERATE, PRESETS
from tiny import world
from tiny.tokenizer import SPECIAL_TOKENS
from vlm import DownsampleProjector, chat

TINY = PRESETS["tiny"]
SHORT, LONG = "wait", "a hard frost came overnight and the whole place is different now"


@pytest.fixture(scope="module")
def clips():
    """Two sources (2, F, 3, H, W)."""
    return torch.stack([world.make_triplet(i, "rave", "val").source for i in range(2)])


@pytest.fixture
def seeded():
    torch.manual_seed(0)


# ------------------------------------------------------------------------------------------------- flow matching

def test_trigger_rates_of_table_6():
    n = 200_000
    t = sample_timesteps(n, generator=torch.Generator().manual_seed(1))
    for tau, rate in ((.1, .035), (.3, .125), (.5, .25), (.7, .437), (.9, .75)):
        p = tau / (3 - 2 * tau)
        assert p == pytest.approx(rate, abs=1e-3)        # what the paper measured
        assert (t < tau).float().mean().item() == pytest.approx(p, abs=4 * (p * (1 - p) / n) ** .5)


@pytest.mark.parametrize("shift", [.5, 1., 3., 8.])
def test_noise_levels_are_in_range_and_seeded(shift):
    draw = lambda seed: sample_timesteps(50_000, shift, torch.Generator().manual_seed(seed))
    t = draw(0)
    assert t.shape == (50_000,) and t.min() > 0 and t.max() <= 1
    assert torch.equal(t, draw(0)) and not torch.equal(t, draw(1))
    u = t / (shift - (shift - 1) * t)                                                      # undone: uniform again
    want = torch.arange(1, 10) / 10
    assert (torch.quantile(u, want) - want).abs().max() < .01


def test_the_smallest_and_largest_draw(monkeypatch):
    monkeypatch.setattr(torch, "rand", lambda n, generator=None: torch.tensor([0., 1 - 2 ** -24]))
    t = sample_timesteps(2)
    assert t[0] == 1 and 0 < t[1] < 1e-6


@pytest.mark.parametrize("shift", [0, -1.])
def test_shift_must_be_positive(shift):
    with pytest.raises(ValueError, match="must be positive"):
        sample_timesteps(3, shift)


def test_noise_and_velocity_by_hand():
    x0, noise = torch.full((3, 1, 1, 1, 2), 2.), torch.full((3, 1, 1, 1, 2), -6.)
    x_t = add_noise(x0, noise, torch.tensor([0., .25, 1.]))
    assert x_t[:, 0, 0, 0].tolist() == [[2, 2], [0, 0], [-6, -6]]
    assert velocity_target(x0, noise).unique().tolist() == [-8]


# ----------------------------------------------------------------------------------------------------- projector

@pytest.mark.parametrize("side, after", [(2, 1), (4, 2), (5, 3), (27, 14)])               # 27: VILA's, padded to 28
def test_projector_against_a_loop(seeded, side, after):
    d = 3
    projector = DownsampleProjector(d, 7).double()
    x = torch.randn(2, side * side, d, dtype=torch.float64)
    out = projector(x)
    assert out.shape == (2, after * after, 7)
    grid = torch.zeros(2, 2 * after, 2 * after, d, dtype=torch.float64)
    for row in range(side):
        for column in range(side):
            grid[:, row, column] = x[:, row * side + column]
    for row in range(after):
        for column in range(after):
            four = torch.cat([grid[:, 2 * row + i, 2 * column + j] for i in (0, 1) for j in (0, 1)], -1)
            assert torch.allclose(out[:, row * after + column], projector.layers(four), atol=1e-12)


# ------------------------------------------------------------------------------------------------------- context

def test_context_order_and_padding(tiny, seeded):
    c, f, h, w = TINY.latent_shape
    width, visual = TINY.dit["text_dim"], f * (h // TINY.visual_kernel) * (w // TINY.visual_kernel)
    latents, bridged = torch.randn(2, c, f, h, w), torch.randn(2, 16, width)
    text = [torch.randn(5, width), torch.randn(9, width)]
    out = tiny.context(latents, bridged, text)
    assert out.shape == (2, TINY.context_length, width)
    seen = tiny.visual_context_adapter(latents)
    for row, (v, a, s) in zip(out, zip(seen, bridged, text)):
        at = {name: (row == p).all(-1).nonzero().flatten().tolist() for name, p in tiny.boundary.items()}
        places = [0, 1 + visual, 2 + visual, 3 + visual + 16, 4 + visual + 16, 5 + visual + 16 + len(s)]
        assert at == dict(zip(("img_st", "img_ed", "ipl_st", "ipl_ed", "prp_st", "prp_ed"), [[k] for k in places]))
        assert torch.equal(row[1:1 + visual], v)
        assert torch.equal(row[3 + visual:19 + visual], a)
        assert torch.equal(row[21 + visual:21 + visual + len(s)], s)
        assert row[places[-1] + 1:].eq(0).all() and places[-1] + 1 < TINY.context_length


def test_visual_tokens_against_a_loop(tiny, seeded):
    """Each token is one patch of one latent frame, in the order f, h, w, and knows its place in `tiny`."""
    vca, k = tiny.visual_context_adapter, TINY.visual_kernel
    latents = torch.randn(1, *TINY.latent_shape)
    weight, bias = vca.patch_embedding.weight.flatten(1), vca.patch_embedding.bias
    norm = lambda x: (x - x.mean()) / (x.var(unbiased=False) + 1e-5).sqrt()
    tokens = vca(latents)[0]
    _, f, h, w = TINY.latent_shape
    n = 0
    for i in range(f):
        for j in range(0, h, k):
            for l in range(0, w, k):
                x = norm(weight @ latents[0, :, i, j:j + k, l:l + k].flatten() + bias) + vca.position[0, n]
                assert torch.allclose(tokens[n], norm(vca.projection(x)), atol=1e-4)
                n += 1
    assert n == len(tokens)


def test_too_long_context_raises(tiny):
    latents, width = torch.zeros(1, *TINY.latent_shape), TINY.dit["text_dim"]
    room = TINY.context_length - 6 - tiny.visual_context_adapter(latents).shape[1] - 16
    tiny.context(latents, torch.zeros(1, 16, width), [torch.zeros(room, width)])           # exactly full
    with pytest.raises(ValueError, match=f"{TINY.context_length + 1} tokens long, its limit is {TINY.context_length}"):
        tiny.context(latents, torch.zeros(1, 16, width), [torch.zeros(room + 1, width)])


def test_longest_allowed_instruction_fits_the_tiny_context():
    _, f, h, w = TINY.latent_shape
    visual = f * (h // TINY.visual_kernel) * (w // TINY.visual_kernel)
    assert visual + TINY.ar_queries * TINY.adapter_queries + TINY.text_length + 6 <= TINY.context_length


def test_too_long_instruction_raises(tiny):
    with pytest.raises(ValueError, match=f"the limit is {TINY.text_length}: shorten"):
        tiny.encode_text([SHORT, "wait " * 60])


def test_text_does_not_depend_on_the_batch(tiny):
    alone = [tiny.encode_text([text])[0] for text in (SHORT, LONG)]
    for a, b in zip(alone, tiny.encode_text([SHORT, LONG])):
        assert a.shape == b.shape and torch.allclose(a, b, atol=1e-5)


# ------------------------------------------------------------------------------------------------- VLM and bridge

def test_vlm_states_do_not_depend_on_the_batch(tiny, clips):
    alone = [tiny.encode_vlm(clips[i:i + 1], [text])[0] for i, text in enumerate((SHORT, LONG))]
    both = tiny.encode_vlm(clips, [SHORT, LONG])
    assert len(alone[0]) < len(alone[1])
    for a, b in zip(alone, both):
        assert a.shape == b.shape and torch.allclose(a, b, atol=1e-5)
    singly = torch.cat([tiny.bridge([h]) for h in alone])
    assert torch.allclose(tiny.bridge(both), singly, atol=1e-5)


def test_vlm_states_are_those_of_the_plain_chat(tiny, clips):
    """Eq. 1 by hand: text and vision tokens in Llama-3's chat, no padding, no mask, the library's own positions."""
    vlm, text = tiny.vlm, "wait"
    ids = lambda s: vlm.llm.get_input_embeddings()(torch.tensor([vlm.tokenizer(s, add_special_tokens=False).input_ids]))
    frames = clips[:1, [0, (TINY.frames - 1) // 2, TINY.frames - 1]]
    seen = vlm.mm_projector(vlm.vision_tower(frames[0], output_hidden_states=True).hidden_states[-2])
    head = "<|begin_of_text|><|start_header_id|>system<|end_header_id|>\n\n" + GENERATE + "<|eot_id|>" \
        "<|start_header_id|>user<|end_header_id|>\n\n"
    tail = "<|eot_id|><|start_header_id|>assistant<|end_header_id|>\n\n[GEN_VID]"
    with torch.no_grad():
        row = torch.cat([ids(head), seen.flatten(0, 1)[None], ids(text), ids(tail)], 1)
        want = vlm.llm.model(inputs_embeds=row).last_hidden_state[0]
    assert torch.allclose(tiny.encode_vlm(clips[:1], [text])[0], want, atol=1e-5)


def test_vlm_states_depend_on_source_and_instruction(tiny, clips):
    h = tiny.encode_vlm(clips[:1], [SHORT])[0]
    other = tiny.encode_vlm(clips[1:], [SHORT])[0]
    said = tiny.encode_vlm(clips[:1], ["stop"])[0]
    assert (h - other)[-1].abs().max() > 1e-3 and (h[-1] - said[-1]).abs().max() > 1e-3
    assert (tiny.bridge([h]) - tiny.bridge([other])).abs().max() > 1e-5


def test_vlm_is_causal_and_sees_only_picked_frames(tiny, clips):
    h = tiny.encode_vlm(clips[:1], [SHORT])[0]
    said = tiny.encode_vlm(clips[:1], ["stop now"])[0]
    head, *_ = chat(GENERATE, [])
    before = len(tiny.vlm.tokenizer(head, add_special_tokens=False).input_ids) \
        + TINY.vlm_frames * (TINY.siglip["image_size"] // TINY.siglip["patch_size"] // 2) ** 2
    assert torch.allclose(h[:before], said[:before], atol=1e-5)                            # what is said later
    blind = clips[:1].clone()
    blind[:, [k for k in range(TINY.frames) if k not in (0, (TINY.frames - 1) // 2, TINY.frames - 1)]] = 1.
    assert torch.equal(tiny.encode_vlm(blind, [SHORT])[0], h)


@pytest.mark.parametrize("frames, of, want", [(3, 9, [0, 4, 8]), (3, 2, [0, 1]), (3, 1, [0]), (8, 17, None),
                                              (1, 9, [0])])
def test_picked_frames(tiny, monkeypatch, frames, of, want):
    monkeypatch.setattr(tiny.vlm, "frames", frames)
    got = tiny.vlm.pick(torch.arange(of).float().view(1, of, 1, 1, 1)).flatten().tolist()
    if want is None:
        gaps = [b - a for a, b in zip(got, got[1:])]
        assert len(got) == frames and (got[0], got[-1]) == (0, of - 1) and max(gaps) - min(gaps) <= 1
    else:
        assert got == want


def test_frames_of_another_size_are_resized(tiny, seeded):
    big = torch.rand(1, 3, 2 * TINY.vlm_size, 3 * TINY.vlm_size) * 2 - 1
    small = F.interpolate(big, (TINY.vlm_size,) * 2, mode="bicubic", antialias=True)
    assert torch.allclose(tiny.vlm.patches(big), tiny.vlm.patches(small), atol=1e-6)


def test_set_vlm_frames(tiny_dir, tmp_path, clips):
    """Other frames, which are kept in the folder."""
    model = UnifiedModel.from_pretrained(tiny_dir)
    per_frame = (TINY.siglip["image_size"] // TINY.siglip["patch_size"] // 2) ** 2         # 4x4
    width = TINY.llama["hidden_size"]
    assert model.vlm.see(clips[:1]).shape == (1, TINY.vlm_frames * per_frame, width)
    model.set_vlm_frames(5)
    assert model.vlm.see(clips[:1]).shape == (1, 5 * per_frame, width) and len(model.vlm.pick(clips)[0]) == 5
    model.save_pretrained(tmp_path / "m", frozen=tiny_dir)
    again = UnifiedModel.from_pretrained(tmp_path / "m")
    assert again.preset == model.preset and torch.equal(again.vlm.see(clips), model.vlm.see(clips))
    model.set_vlm_frames(None)
    assert model.preset.vlm_frames == 5
    for wrong in (10, -1):
        with pytest.raises(ValueError, match="the VLM can look at 1 to 9 frames"):
            model.set_vlm_frames(wrong)


def test_without(tiny_dir, tmp_path, clips):
    """Ablations are kept in the folder; without the VLM the generator still reads the instruction, through T5."""
    model, words = UnifiedModel.from_pretrained(tiny_dir), ["now it rains", "the sun is out"]
    latents, whole = model.encode_video(clips), model.encode_vlm(clips, words)
    zeroed = UnifiedModel.from_pretrained(tiny_dir).visual_context_adapter
    zeroed.position.data.zero_()
    model.without(["vlm", "position"])
    h = model.encode_vlm(clips, words)
    assert [row.shape for row in h] == [row.shape for row in whole] and not any(row.any() for row in h)
    assert torch.equal(model.visual_context_adapter(latents), zeroed(latents))
    model.save_pretrained(tmp_path / "m", frozen=tiny_dir)
    again = UnifiedModel.from_pretrained(tmp_path / "m")
    assert again.preset == model.preset and not again.preset.use_vlm and not again.preset.visual_position
    edits = model.sample(clips, words, steps=2)
    assert torch.equal(again.sample(clips, words, steps=2), edits)
    assert not torch.equal(model.sample(clips, words[::-1], steps=2), edits)


def test_join_pads_on_the_left(tiny):
    width = TINY.llama["hidden_size"]
    embeddings, mask = tiny.vlm.join([[torch.ones(2, width)], [torch.ones(3, width), SHORT]])
    n = 3 + len(tiny.vlm.words(SHORT))
    assert embeddings.shape == (2, n, width) and mask.tolist() == [[0] * (n - 2) + [1] * 2, [1] * n]
    assert embeddings[0, :n - 2].eq(0).all() and embeddings[0, n - 2:].eq(1).all()
    assert torch.equal(embeddings[1, 3:], tiny.vlm.words(SHORT))


def test_special_tokens_are_one_token_each(tiny):
    for word in SPECIAL_TOKENS:
        assert len(tiny.vlm.tokenizer(word, add_special_tokens=False).input_ids) == 1


# ----------------------------------------------------------------------------------------------------------- VAE

def test_latents_are_normalised(tiny, clips):
    assert tiny.encode_video(clips).shape == (2, *TINY.latent_shape)
    raw = tiny.vae.encode(clips.transpose(1, 2)).latent_dist.mode()
    n = TINY.latent_shape[0]
    mean, std = [.1 * k for k in range(n)], [.5 + .1 * k for k in range(n)]
    old = tiny.vae.config.latents_mean, tiny.vae.config.latents_std
    try:
        tiny.vae.register_to_config(latents_mean=mean, latents_std=std)
        z = tiny.encode_video(clips)
        for k in range(n):
            assert torch.allclose(z[:, k], (raw[:, k] - .1 * k) / (.5 + .1 * k), atol=1e-5)
        with torch.no_grad():
            video, want = tiny.decode_video(z), tiny.vae.decode(raw).sample.transpose(1, 2)
        assert video.shape == clips.shape and torch.allclose(video, want, atol=1e-4)
    finally:
        tiny.vae.register_to_config(latents_mean=old[0], latents_std=old[1])


# ------------------------------------------------------------------------------------------------------ sampling

def test_sample_is_deterministic_and_independent_of_the_batch(tiny, clips):
    words = [SHORT, LONG]
    both = tiny.sample(clips, words, steps=2, guidance=1., seed=5)
    assert both.shape == clips.shape and both.abs().max() <= 1
    assert torch.equal(both, tiny.sample(clips, words, steps=2, guidance=1., seed=5))
    for i in range(2):
        alone = tiny.sample(clips[i:i + 1], words[i:i + 1], steps=2, guidance=1., seed=5 + i)
        assert torch.allclose(alone[0], both[i], atol=1e-4)
    assert (tiny.sample(clips[:1], words[:1], steps=2, seed=6) - both[:1]).abs().max() > 1e-2


@pytest.mark.parametrize("g", [0., 1., 3.])
def test_guidance_and_euler_by_hand(tiny, clips, g):
    """dx/dt = v, from t = 1 to 0 in unequal steps; v = cond + g (cond - uncond)."""
    source, steps = clips[:1], 3
    with torch.no_grad():
        latents = tiny.encode_video(source)
        cond = tiny.context(latents, tiny.bridge(tiny.encode_vlm(source, [SHORT])), tiny.encode_text([SHORT]))
        h, s = tiny.unconditional()
        uncond = tiny.context(latents, tiny.bridge([h]), [s])
        x = torch.randn(1, *TINY.latent_shape, generator=torch.Generator().manual_seed(7))
        ts = [TINY.shift * u / (1 + (TINY.shift - 1) * u) for u in (1, 2 / 3, 1 / 3, 0)]
        for k in range(steps):
            t = torch.tensor([ts[k]])
            one, two = (tiny.transformer(torch.cat([x, latents], 1), t * 1000, c).sample for c in (cond, uncond))
            x = x - (ts[k] - ts[k + 1]) * ((1 + g) * one - g * two)
        want = tiny.decode_video(x)
    assert torch.allclose(tiny.sample(source, [SHORT], steps=steps, guidance=g, seed=7), want, atol=1e-4)


def test_no_guidance_asks_the_generator_once_a_step(tiny, clips, monkeypatch):
    sizes, velocity = [], tiny.velocity
    monkeypatch.setattr(tiny, "velocity", lambda x, *rest: sizes.append(len(x)) or velocity(x, *rest))
    tiny.sample(clips[:1], [SHORT], steps=2, guidance=0)
    tiny.sample(clips[:1], [SHORT], steps=1, guidance=2)
    assert sizes == [1, 1, 2]


def test_the_unconditional_context_knows_no_instruction(tiny, clips):
    """With g = -1 only the unconditional half is left: the same edit whatever was asked."""
    a, b = (tiny.sample(clips[:1], [text], steps=2, guidance=-1.) for text in (SHORT, LONG))
    assert torch.allclose(a, b, atol=1e-5)


# ------------------------------------------------------------------------------------------------------- folders

def parameters(model):
    return {k: v for k, v in model.state_dict().items()}


def test_round_trip_in_float32_is_exact(tiny, tiny_dir, clips):
    again = UnifiedModel.from_pretrained(tiny_dir)
    want, got = parameters(tiny), parameters(again)
    assert want.keys() == got.keys() and all(torch.equal(want[k], got[k]) for k in want)
    assert again.preset == tiny.preset and not again.training
    assert again.vae.config.latents_std == tiny.vae.config.latents_std
    assert again.vlm.tokenizer.get_vocab() == tiny.vlm.tokenizer.get_vocab()
    assert torch.equal(again.sample(clips[:1], [SHORT], steps=1), tiny.sample(clips[:1], [SHORT], steps=1))
    assert json.loads((tiny_dir / "model.json").read_text()) == {"preset": "tiny", "frozen": None, "vlm_frames": 3,
                                                                 "without": []}


def test_round_trip_in_float16_is_close_and_leaves_the_model_alone(tiny, tiny_dir, tmp_path):
    model = UnifiedModel.from_pretrained(tiny_dir)
    model.save_pretrained(tmp_path / "half", dtype=torch.float16)
    want, got = parameters(tiny), parameters(UnifiedModel.from_pretrained(tmp_path / "half"))
    for k, v in want.items():
        assert got[k].dtype == torch.float32 and torch.allclose(got[k], v, rtol=1e-3, atol=1e-6), k
    size = lambda folder: sum(p.stat().st_size for p in folder.rglob("*.safetensors"))
    assert size(tmp_path / "half") < .51 * size(tiny_dir)
    kept = parameters(model)
    assert [k for k in want if not torch.equal(kept[k], want[k])] == []                    # saving changes no weight


def test_a_run_keeps_only_the_trained_parts(tiny, tiny_dir, tmp_path):
    shutil.copytree(tiny_dir, tmp_path / "base")
    model = UnifiedModel.from_pretrained(tmp_path / "base")
    with torch.no_grad():
        for name in TRAINED:
            for p in getattr(model, name).parameters():
                p.add_(.01)
    run = tmp_path / "out" / "run" / "model"
    model.save_pretrained(run, frozen=tmp_path / "base")
    assert sorted(p.name for p in run.iterdir()) == ["model.json", "transformer", "visual_context_adapter.safetensors"]
    assert sorted(p.name for p in run.parent.iterdir()) == ["model"]                       # no temporary left
    want, got = parameters(model), parameters(UnifiedModel.from_pretrained(run))
    assert all(torch.equal(want[k], got[k]) for k in want)
    (tmp_path / "base").rename(tmp_path / "elsewhere")
    with pytest.raises(FileNotFoundError, match="base/.* is missing"):                     # the base that it stands on
        UnifiedModel.from_pretrained(run)


def test_no_path_of_this_machine_is_saved(tiny_dir, tmp_path):
    UnifiedModel.from_pretrained(tiny_dir).save_pretrained(tmp_path / "again")
    assert not [file for file in (tmp_path / "again").rglob("*.json") if str(tiny_dir) in file.read_text()]


def test_saving_replaces_what_was_there(tiny, tiny_dir, tmp_path):
    folder = tmp_path / "model"
    shutil.copytree(tiny_dir, folder)
    (folder / "old.txt").write_text("of the last time")
    tiny.save_pretrained(folder)
    assert not (folder / "old.txt").exists() and [p.name for p in tmp_path.iterdir()] == ["model"]
    UnifiedModel.from_pretrained(folder)


def test_what_is_missing_is_named(tiny_dir, tmp_path):
    with pytest.raises(FileNotFoundError, match="nowhere/model.json is missing"):
        UnifiedModel.from_pretrained(tmp_path / "nowhere")
    with pytest.raises(ValueError, match="unknown preset 'huge': choose one of tiny, wan1.3b"):
        UnifiedModel.from_preset("huge")
    with pytest.raises(ValueError, match="holds preset 'tiny', not 'wan1.3b': pass --preset tiny"):
        UnifiedModel.from_preset("wan1.3b", tiny_dir)
    for text in ('{"preset": "huge", "frozen": null}', '{"frozen": null}'):
        (tmp_path / "model.json").write_text(text)
        with pytest.raises(ValueError, match="names none of the presets tiny, wan1.3b"):
            UnifiedModel.from_pretrained(tmp_path)
    for text, words in (('{"preset": "tiny", "frozen": 3}', "is no record of a model"),
                        ("[]", "is no record of a model"), ('{"preset": "ti', "is no JSON")):
        (tmp_path / "model.json").write_text(text)
        with pytest.raises(BadInput, match=f"cannot load .*/model.json {words}"):
            load_model(tmp_path)


@pytest.mark.parametrize("gone", ["ar_head.safetensors", "vae", "tokenizer", "vlm.llm", "vlm.llm/model.safetensors"])
def test_a_missing_part_is_named_and_not_looked_for_on_the_hub(tiny_dir, tmp_path, monkeypatch, gone):
    """`model/tokenizer` could be a name on the hub, too."""
    asked = []
    monkeypatch.setattr(socket, "getaddrinfo", lambda host, *rest, **more: asked.append(host) or [])
    monkeypatch.chdir(tmp_path)
    folder = Path("model")
    shutil.copytree(tiny_dir, folder)
    shutil.rmtree(folder / gone) if (folder / gone).is_dir() else (folder / gone).unlink()
    with pytest.raises((OSError, ValueError), match=f"model/{gone}|no file named .* in directory model/vlm.llm"):
        UnifiedModel.from_pretrained(folder)
    assert asked == []


@pytest.mark.parametrize("part", ["boundary", "transformer/diffusion_pytorch_model", "vlm.llm/model"])
@pytest.mark.parametrize("wrong", ["lost", "extra", "shape"])
def test_foreign_weights_are_refused(tiny_dir, tmp_path, part, wrong):
    """Every key and every shape is accounted for; an error names what is not."""
    folder = tmp_path / "model"
    shutil.copytree(tiny_dir, folder)
    tensors = load_file(folder / f"{part}.safetensors")
    name = next(iter(tensors))
    if wrong == "lost":
        del tensors[name]
    elif wrong == "extra":
        tensors[name := "stranger"] = torch.zeros(3)
    else:
        tensors[name] = torch.zeros(3, 5, 7)
    save_file(tensors, folder / f"{part}.safetensors", {"format": "pt"})
    with pytest.raises((ValueError, RuntimeError), match=name.split(".")[-1]):
        UnifiedModel.from_pretrained(folder)


@pytest.mark.parametrize("pointer", ["ar_head.safetensors", "vlm.llm/model.safetensors",
                                     "tokenizer/tokenizer.json"])
def test_a_git_lfs_pointer_is_named(tiny_dir, tmp_path, pointer):
    folder = tmp_path / "model"
    shutil.copytree(tiny_dir, folder)
    (folder / pointer).write_text("version https://git-lfs.github.com/spec/v1\noid sha256:1\n")
    with pytest.raises(BadInput, match=f"model/{pointer} is a git-lfs pointer.*run git lfs pull"):
        load_model(folder)


@pytest.mark.parametrize("part", ["ar_head", "transformer/diffusion_pytorch_model",
                                  "vlm.llm/model"])
def test_prefixes_of_wrappers_are_stripped(tiny, tiny_dir, tmp_path, part):
    """torch.compile's and DistributedDataParallel's."""
    folder = tmp_path / "model"
    shutil.copytree(tiny_dir, folder)
    file = folder / f"{part}.safetensors"
    tensors = {f"module._orig_mod.{key}": value for key, value in load_file(file).items()}
    save_file(tensors, file, {"format": "pt"})
    want, got = tiny.state_dict(), load_model(folder).state_dict()
    assert want.keys() == got.keys() and all(torch.equal(want[key], got[key]) for key in want)


def test_files_have_the_permissions_of_the_umask(tiny, tmp_path):
    before = os.umask(0o027)
    try:
        tiny.save_pretrained(tmp_path / "model", parts=("ar_head", "vlm.vision_tower"))
    finally:
        os.umask(before)
    files = [file for file in (tmp_path / "model").rglob("*") if file.is_file()]
    assert len(files) > 3 and {file.stat().st_mode & 0o777 for file in files} == {0o640}


# ----------------------------------------------------------------------------------------------- parts and sizes

def test_freeze_leaves_only_the_generator_and_its_adapter(tiny_dir):
    model = UnifiedModel.from_pretrained(tiny_dir)
    trained = model.freeze()
    named = {k for k, p in model.named_parameters() if p.requires_grad}
    assert named == {k for k, _ in model.named_parameters() if k.startswith(tuple(f"{part}." for part in TRAINED))}
    assert {id(p) for p in trained} == {id(p) for k, p in model.named_parameters() if k in named}
    assert len(trained) == len(named) and not model.training
    assert {part.partition(".")[0] for part in PARTS} == {k for k, _ in model.named_children()}


def test_every_parameter_is_saved():
    with torch.device("meta"):
        model = UnifiedModel(TINY)
    saved = {f"{part}.{k}" for part in PARTS for k, _ in model.get_submodule(part).named_parameters()}
    assert saved == {k for k, _ in model.named_parameters()}


def test_the_real_size():
    """The numbers of the released weights, without allocating them."""
    with torch.device("meta"):
        model = UnifiedModel(PRESETS["wan1.3b"])
    count = lambda part: sum(p.numel() for p in model.get_submodule(part).parameters())
    assert count("ar_head") == 154_840_320
    assert count("adapter") == 1_902_141_440
    assert count("visual_context_adapter") == 16 * 16 * 1536 + 1536 + 1536 * 4096 + 4096 == 6_690_304
    assert count("vlm.llm") == 8_030_261_248                                               # Llama-3-8B
    assert count("vlm.vision_tower") == pytest.approx(428e6 - 15e6, rel=.01)              # so400m without its head
    assert count("text_encoder") == pytest.approx(5.68e9, rel=.01)                         # UMT5-XXL's encoder
    assert count("vae") == pytest.approx(126.9e6, rel=.01)
    assert count("transformer") == pytest.approx(1.42e9, rel=.02) and len(model.transformer.state_dict()) == 825
    assert model.vlm.llm.config.rope_parameters["rope_theta"] == 500_000
    with torch.device("meta"):
        patches = torch.empty(1, 27 * 27, 1152)
        assert model.vlm.mm_projector(patches).shape == (1, 196, 4096)
        assert model.ar_head(torch.empty(2, 9, 4096), torch.ones(2, 9)).shape == (2, 4, 1152)
        assert model.adapter(torch.empty(2, 4, 1152)).shape == (2, 1024, 4096)
        latents = torch.empty(1, *PRESETS["wan1.3b"].latent_shape)
        assert latents.shape == (1, 16, 5, 44, 80) and model.visual_context_adapter(latents).shape == (1, 1100, 4096)
        # 1100 + 1024 + 6 leave 430 of the 2560 for the text
        assert model.context(latents, torch.empty(1, 1024, 4096), [torch.empty(430, 4096)]).shape == (1, 2560, 4096)
        with pytest.raises(ValueError, match="2561 tokens long, its limit is 2560: 1100 of them"):
            model.context(latents, torch.empty(1, 1024, 4096), [torch.empty(431, 4096)])
