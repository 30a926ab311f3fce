"""The critic against independent sums: equations 3 to 5, the margin without its cache, the way of its gradient."""

import copy

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from diffusers import AutoencoderKLWan
from torch.utils.flop_counter import FlopCounterMode

import critic
from tiny import world
from critic import (DECODE, EDITED, SOURCE, SYSTEM, THINK, VERDICT, Critic, clean_estimate, decode_frames, gate,
                    reason_loss)
from common.files import BadInput
from model import TRAINED, UnifiedModel, add_noise, flow_loss, load_model, velocity_target
from presets import PRESETS

TINY = PRESETS["tiny"]
WORDS = ["wait", "a hard frost came overnight and all is different"]
TURN = "<|eot_id|><|start_header_id|>assistant<|end_header_id|>\n\n"


@pytest.fixture(scope="module")
def sources():
    return torch.stack([world.make_triplet(i, "rave", "val").source for i in range(2)])    # (2, F, 3, H, W)


@pytest.fixture(scope="module")
def edits():
    return torch.stack([world.make_triplet(i, "rave", "val").target for i in range(2)])


@pytest.fixture
def latents():
    return torch.randn(2, *TINY.latent_shape, generator=torch.Generator().manual_seed(3))


@pytest.fixture
def mine(tiny):
    """A copy of `tiny`, ready for training, that a test may change."""
    model = copy.deepcopy(tiny)
    model.freeze()
    return model


# ----------------------------------------------------------------------------------------------------- equations

def test_eq_3_undoes_eq_2(latents):
    noise = torch.randn(latents.shape, generator=torch.Generator().manual_seed(4))
    t = torch.tensor([.03, .9])
    x_t = add_noise(latents, noise, t)
    assert torch.allclose(clean_estimate(x_t, velocity_target(latents, noise), t), latents, atol=1e-6)
    v = torch.zeros_like(x_t, requires_grad=True)
    clean_estimate(x_t, v, t).sum().backward()
    assert torch.equal(v.grad, -t.view(-1, 1, 1, 1, 1).expand_as(v))


def test_gate_is_strict():
    assert gate(torch.tensor([.1, .4999, .5, 1.]), .5).tolist() == [True, True, False, False]
    assert gate(torch.tensor([.9999, 1.]), 1.).tolist() == [True, False]


def test_eq_4_against_numpy():
    m, m0 = np.random.default_rng(0).normal(0, 3, (2, 50))
    p = 1 / (1 + np.exp(-(m - m0)))
    y = 1.                                               # the answer is Yes
    want = -(y * np.log(p) + (1 - y) * np.log(1 - p))
    np.testing.assert_allclose(reason_loss(torch.tensor(m), torch.tensor(m0)), want, rtol=1e-9)
    assert reason_loss(torch.zeros(1), torch.zeros(1)).item() == pytest.approx(np.log(2))
    assert reason_loss(torch.tensor([-200., 200.]), torch.zeros(2)).tolist() == [200, 0]   # neither overflows


def test_baseline_has_no_gradient_in_eq_4():
    m, m0 = (torch.tensor([.3, -1.], requires_grad=True) for _ in range(2))
    reason_loss(m, m0).sum().backward()
    assert m0.grad is None and torch.allclose(m.grad, torch.full((2,), -.5))               # sigmoid(0) - 1


def test_eq_2_is_a_mean_per_sample(latents):
    other = torch.zeros_like(latents)
    other[1] += 2
    want = ((latents - other).numpy() ** 2).reshape(2, -1).mean(1)
    np.testing.assert_allclose(flow_loss(latents, other), want, rtol=1e-5)


# -------------------------------------------------------------------------------------------------------- decode

def test_exact_is_the_whole_clip(tiny, latents):
    with torch.no_grad():
        frames, video = decode_frames(tiny, latents, "exact"), tiny.decode_video(latents)
    assert frames.shape == (2, TINY.vlm_frames, 3, TINY.height, TINY.width)
    assert torch.equal(frames, video[:, [0, (TINY.frames - 1) // 2, TINY.frames - 1]])
    assert frames.min() >= -1 and frames.max() <= 1


def test_alone_is_exact_for_the_first_frame_only(tiny, latents):
    with torch.no_grad():
        exact, alone = (decode_frames(tiny, latents, how) for how in ("exact", "alone"))
        single = tiny.decode_video(latents[:, :, 2:])[:, 0]                                # the last latent, by hand
    assert alone.shape == exact.shape
    assert torch.allclose(alone[:, 0], exact[:, 0], atol=1e-4)
    assert (alone[:, 1:] - exact[:, 1:]).abs().max() > 1e-3
    assert torch.allclose(alone[:, -1], single, atol=1e-5)


def test_a_first_frame_is_decoded_as_by_the_library_in_a_third_of_the_work(tiny, latents):
    plain = AutoencoderKLWan(**TINY.vae).requires_grad_(False)
    plain.load_state_dict(tiny.vae.state_dict())
    found = []
    for vae in (plain, tiny.vae):
        for z in (latents, latents[:, :, :1]):
            z = z.clone().requires_grad_(True)
            with FlopCounterMode(display=False) as counter:
                video = vae.decode(z).sample
            gradient, = torch.autograd.grad(video.square().sum(), z)
            found.append((video, gradient, counter.get_total_flops()))
    for (want, gradient, flops), (video, mine, less) in zip(found[:2], found[2:]):
        torch.testing.assert_close(video, want, atol=1e-5, rtol=0)
        torch.testing.assert_close(mine, gradient, atol=1e-4, rtol=1e-4)
        assert less < flops
    assert found[3][2] < .4 * found[1][2]                               # the frame alone


def test_no_more_frames_alone_than_there_are_latent_ones(tiny, latents, monkeypatch):
    monkeypatch.setattr(tiny.vlm, "frames", 5)
    with pytest.raises(BadInput, match="5 frames cannot be decoded alone: a clip has 3 latent frames"):
        decode_frames(tiny, latents, "alone")
    assert decode_frames(tiny, latents, "exact").shape[1] == 5


def test_the_decoder_is_causal(tiny, latents):
    other = latents.clone()
    other[:, :, -1] += 1
    with torch.no_grad():
        a, b = tiny.decode_video(latents), tiny.decode_video(other)
        prefix = tiny.decode_video(latents[:, :, :-1])
    n = TINY.frames - 4                                  # pixel frames before those of the last latent
    assert torch.equal(a[:, 0], b[:, 0]) and torch.equal(a[:, :n], b[:, :n])
    assert (a[:, -1] - b[:, -1]).abs().max() > 1e-3
    assert prefix.shape[1] == n and torch.allclose(prefix, a[:, :n], atol=1e-5)            # a prefix is exact


def test_saturated_pixels_get_no_gradient(mine, latents):
    raw = []
    conv = [x for x in mine.vae.decoder.modules() if isinstance(x, torch.nn.Conv3d)][-1]   # the one that makes pixels
    with torch.no_grad():                                # so that a part of the pixels is saturated
        conv.weight *= 1 / mine.vae.decode(latents).sample.std()
    hook = mine.vae.decoder.register_forward_hook(lambda module, inputs, output: raw.append(output))
    x = latents.clone().requires_grad_(True)
    video = mine.decode_video(x)
    before = torch.cat(raw, 2).transpose(1, 2).detach()
    hook.remove()
    out = before.abs() > 1
    assert .05 < out.float().mean() < .95
    assert torch.equal(video.detach(), before.clamp(-1, 1))
    saturated, = torch.autograd.grad(video[out].sum(), x, retain_graph=True)
    assert saturated.eq(0).all()
    others, = torch.autograd.grad(video[~out].sum(), x)
    assert others.abs().max() > 0


@pytest.mark.parametrize("how", DECODE)
def test_decode_is_differentiable_in_every_picked_latent(tiny, latents, how):
    x = latents.clone().requires_grad_(True)
    decode_frames(tiny, x, how).square().sum().backward()
    assert (x.grad.abs().amax((0, 1, 3, 4)) > 0).all()


# ------------------------------------------------------------------------------------------------------ thoughts

@pytest.mark.parametrize("think", THINK)
def test_thoughts_are_deterministic_strings(tiny, sources, edits, think):
    asked = Critic(tiny, think)
    first = asked.thoughts(sources, WORDS, edits, limit=8)
    assert len(first) == 2 and all(isinstance(text, str) for text in first)
    assert first == asked.thoughts(sources, WORDS, edits, limit=8)
    assert any(first) == (think != "none")
    alone = [asked.thoughts(sources[i:i + 1], WORDS[i:i + 1], edits[i:i + 1], limit=8)[0] for i in range(2)]
    assert first == alone                                # padding does not change what is thought


def test_only_full_thoughts_see_the_edit(tiny, sources, edits, monkeypatch):
    asked = Critic(tiny, "expect")
    assert asked.thoughts(sources, WORDS, limit=8) == asked.thoughts(sources, WORDS, -edits, limit=8)
    read, rows = [], tiny.vlm.join
    monkeypatch.setattr(tiny.vlm, "join", lambda x: read.append(x) or rows(x))
    seen = tiny.vlm.see(edits)
    for think in ("expect", "full"):
        read.clear()
        Critic(tiny, think).thoughts(sources, WORDS, edits, limit=1)
        parts = [part for part in read[0][1] if isinstance(part, torch.Tensor)]
        assert len(parts) == 1 + (think == "full")
        assert think == "expect" or torch.allclose(parts[1][1::2], seen[1], atol=1e-5)


@pytest.mark.parametrize("said, want", [
    (["hello", "<|eot_id|>", "never"], "hello"), (["<|eot_id|>"], ""), (["a", " .", "<|eot_id|>"], "a"),
    (["so", " . ", "Verdict :", " ", "Yes"], "so"), (["on"] * 50, "on" * 6)])
def test_where_a_thought_ends(tiny, sources, monkeypatch, said, want):
    """The VLM's answers are put into its mouth, token by token."""
    ids = [k for text in said for k in tiny.vlm.tokenizer(text, add_special_tokens=False).input_ids]
    limit = 6 if len(said) == 50 else 48
    ids = [*ids, *tiny.vlm.tokenizer("<|eot_id|>").input_ids]

    class Said:
        def __init__(self, k): self.logits = torch.nn.functional.one_hot(torch.tensor([[k]]), TINY.llama["vocab_size"])
    monkeypatch.setattr(tiny.vlm, "read", lambda *args, **named: Said(ids.pop(0)))
    if len(said) == 50:
        assert len(tiny.vlm.tokenizer("on", add_special_tokens=False).input_ids) == 1
    assert Critic(tiny, "expect").thoughts(sources[:1], ["wait"], limit=limit) == [want]


def test_unknown_chain_of_thought(tiny):
    with pytest.raises(ValueError, match="unknown chain of thought 'aloud': choose one of expect, full, none"):
        Critic(tiny, "aloud")


# -------------------------------------------------------------------------------------------------------- margin

def plain_margin(model, think, source, edited, words, thoughts):
    """The margin of each row by one forward pass over its whole chat, written out here; no cache, no padding."""
    vlm, values = model.vlm, []
    user = "<|start_header_id|>user<|end_header_id|>\n\n"
    head = f"<|begin_of_text|><|start_header_id|>system<|end_header_id|>\n\n{SYSTEM}<|eot_id|>{user}"
    yes, no = (vlm.tokenizer(word, add_special_tokens=False).input_ids for word in ("Yes", "No"))
    for s, e, text, thought in zip(vlm.see(source), vlm.see(edited), words, thoughts):
        said = critic.prompt(think, [TURN], e, thought)[1][1:]
        assert "".join(said) == TURN + (f"{thought} . " if think == "full" else "") + VERDICT
        e = torch.cat([token for both in zip(s.split(1), e.split(1)) for token in both])   # side by side
        before = [TURN, f"{thought} .<|eot_id|>{user}{EDITED}"] if think == "expect" else [EDITED]
        row = torch.cat([vlm.words(part) if isinstance(part, str) else part for part in
                         [head, f"{text}\n{SOURCE}", s, *before, e, *said]])[None]
        logits = vlm.read(row, torch.ones(row.shape[:2], dtype=torch.long)).logits[0, -1]
        values.append(logits[yes[0]] - logits[no[0]])
    return torch.stack(values)


@pytest.mark.parametrize("think", THINK)
def test_margin_with_its_cache_is_the_plain_pass(tiny, sources, edits, think):
    thoughts = ["", ""] if think == "none" else ["the ball", "the water turns to ice and the rest is kept"]
    results = []
    for ask in (Critic(tiny, think).margin, lambda *args: plain_margin(tiny, think, *args)):
        edited = edits.clone().requires_grad_(True)
        margin = ask(sources, edited, WORDS, thoughts)
        gradient, = torch.autograd.grad((margin * torch.tensor([1., -2.])).sum(), edited)
        results.append((margin.detach(), gradient))
    (got, got_gradient), (want, want_gradient) = results
    assert got.shape == (2,) and (got[0] - got[1]).abs() > 1e-3
    assert torch.allclose(got, want, atol=1e-4)
    scale = want_gradient.abs().max()
    assert scale > 0 and (got_gradient - want_gradient).abs().max() < 1e-4 * scale
    seen = [0, (TINY.frames - 1) // 2, TINY.frames - 1]
    assert (got_gradient[:, seen].abs().amax((2, 3, 4)) > 0).all()
    assert got_gradient[:, [k for k in range(TINY.frames) if k not in seen]].eq(0).all()


@pytest.mark.parametrize("think", THINK)
def test_margin_writes_its_own_thoughts(tiny, sources, edits, think, monkeypatch):
    asked = Critic(tiny, think)
    monkeypatch.setattr(asked, "thoughts", lambda s, w, e=None, limit=8: Critic.thoughts(asked, s, w, e, limit))
    with torch.no_grad():
        thoughts = asked.thoughts(sources, WORDS, edits)
        want, got = asked.margin(sources, edits, WORDS, thoughts), asked.margin(sources, edits, WORDS)
    assert torch.equal(got, want)


def test_margin_of_picked_frames_is_that_of_the_clip(tiny, sources, edits):
    asked, pick = Critic(tiny, "none"), tiny.vlm.pick
    with torch.no_grad():
        want = asked.margin(sources, edits, WORDS)
        assert torch.allclose(asked.margin(pick(sources), pick(edits), WORDS), want, atol=1e-5)


def test_margin_depends_on_all_three(tiny, sources, edits):
    asked = Critic(tiny, "none")
    with torch.no_grad():
        m = asked.margin(sources, edits, WORDS)
        for other in ((edits, edits, WORDS), (sources, sources, WORDS), (sources, edits, ["stop", "go"])):
            assert (asked.margin(*other) - m).abs().max() > 1e-5


def test_baseline_is_the_margin_of_doing_nothing(tiny, sources):
    asked, thoughts = Critic(tiny), ["the ball", "the sky"]
    source = sources.clone().requires_grad_(True)
    m0 = asked.baseline(source, WORDS, thoughts)
    assert not m0.requires_grad
    assert torch.equal(m0, asked.margin(sources, sources, WORDS, thoughts).detach())


@pytest.mark.parametrize("think", ["expect", "full"])
def test_finite_differences(tiny, sources, edits, think, monkeypatch):
    """d margin / d pixels along a random direction, in float64."""
    model = copy.deepcopy(tiny).double()
    for norm in [x for x in model.vlm.llm.modules() if type(x).__name__ == "LlamaRMSNorm"]:
        norm.forward = lambda x, n=norm: n.weight * F.rms_norm(x, x.shape[-1:], eps=n.variance_epsilon)    # not float32
    source, x, thoughts = sources[:1].double(), edits[:1].double().requires_grad_(True), ["the ball"]
    direction = torch.randn(x.shape, dtype=x.dtype, generator=torch.Generator().manual_seed(0))
    asked = Critic(model, think)
    gradient, = torch.autograd.grad(asked.margin(source, x, WORDS[:1], thoughts).sum(), x)
    slope = (gradient * direction).sum().item()
    with torch.no_grad():
        ahead, behind = (asked.margin(source, x + h * direction, WORDS[:1], thoughts).item() for h in (1e-4, -1e-4))
    assert abs(slope) > 1e-6
    assert (ahead - behind) / 2e-4 == pytest.approx(slope, rel=1e-3)


# ---------------------------------------------------------------------------------------- where the gradient goes

def gradients(model, loss):
    model.zero_grad(set_to_none=True)
    loss.backward()
    return {k for k, p in model.named_parameters() if p.grad is not None and p.grad.abs().max() > 0}


@pytest.mark.parametrize("how", DECODE)
def test_reason_loss_reaches_what_flow_matching_reaches(mine, sources, latents, how):
    bridged = mine.bridge(mine.encode_vlm(sources, WORDS))
    text, source, t = mine.encode_text(WORDS), mine.encode_video(sources), torch.tensor([.2, .4])
    noise = torch.randn(latents.shape, generator=torch.Generator().manual_seed(4))
    x_t = add_noise(latents, noise, t)

    def velocity():
        return mine.velocity(x_t, t, mine.context(source, bridged, text), source)

    flow = gradients(mine, flow_loss(velocity(), velocity_target(latents, noise)).mean())
    frames = decode_frames(mine, clean_estimate(x_t, velocity(), t), how)
    asked = Critic(mine)
    thoughts = ["the ball", "the sky"]
    margin = asked.margin(sources, frames, WORDS, thoughts)
    reason = gradients(mine, reason_loss(margin, asked.baseline(sources, WORDS, thoughts)).mean())
    trainable = {k for k, p in mine.named_parameters() if p.requires_grad}
    assert reason == flow and flow <= trainable
    assert {k.split(".")[0] for k in flow} == set(TRAINED) and len(flow) > .9 * len(trainable)
    assert all(p.grad is None for k, p in mine.named_parameters() if k not in trainable)


def test_only_the_gated_samples_feel_the_critic(tiny, sources, latents):
    """The gradient of the reason loss is zero for a sample that is not shown."""
    x = latents.clone().requires_grad_(True)
    shown = gate(torch.tensor([.2, .8]), .5)
    margin = Critic(tiny, "none").margin(sources[shown], decode_frames(tiny, x[shown]), WORDS[:1])
    (.25 * reason_loss(margin, torch.zeros(1)).mean()).backward()
    assert x.grad[0].abs().max() > 0 and x.grad[1].eq(0).all()


def test_a_step_of_descent_makes_the_critic_say_yes(tiny, sources, edits):
    asked, x = Critic(tiny, "none"), edits.clone().requires_grad_(True)
    before = asked.margin(sources, x, WORDS)
    gradient, = torch.autograd.grad(reason_loss(before, torch.zeros(2)).sum(), x)
    with torch.no_grad():
        step = .01 * F.normalize(gradient.flatten(1)).view_as(x)
        after = asked.margin(sources, x - step, WORDS)
    assert (after > before).all()


# --------------------------------------------------------------------------------------------------- the promise

def test_inference_costs_the_same_after_tuning(tiny, sources):
    base, tuned = (copy.deepcopy(tiny).requires_grad_(False) for _ in range(2))            # the counter needs that
    for part in TRAINED:
        for p in getattr(tuned, part).parameters():
            p.add_(.02 * torch.randn(p.shape, generator=torch.Generator().manual_seed(0)))
    flops, videos = [], []
    for model in (base, tuned):
        with FlopCounterMode(display=False) as counter:
            videos.append(model.sample(sources[:1], WORDS[:1], steps=1))
        flops.append(counter.get_total_flops())
    assert flops[0] == flops[1] > 1e8 and (videos[0] - videos[1]).abs().max() > 1e-3


# ------------------------------------------------------------------------------------------------------- loading

def test_load_model(tiny, tiny_dir, tmp_path):
    run = tmp_path / "run"
    tiny.save_pretrained(run / "model", frozen=tiny_dir)
    for folder in (tiny_dir, str(tiny_dir), run, run / "model"):
        model = load_model(folder)
        assert all(torch.equal(a, b) for a, b in zip(model.parameters(), tiny.parameters()))


def test_load_model_says_what_is_wrong(tiny_dir, tmp_path, monkeypatch):
    with pytest.raises(BadInput, match="cannot load nowhere: nowhere/model.json is missing"):
        load_model("nowhere")
    with pytest.raises(BadInput, match="checkpoint of preset 'tiny', not 'wan1.3b': pass --preset tiny"):
        load_model(tiny_dir, "wan1.3b")
    (tmp_path / "model.json").write_text("{")
    with pytest.raises(BadInput, match=f"cannot load {tmp_path}"):
        load_model(tmp_path)

    def none(name):
        raise FileNotFoundError("weights/tiny/model.json is missing")
    monkeypatch.setattr(UnifiedModel, "from_preset", none)
    with pytest.raises(BadInput, match="cannot load weights/tiny: "):
        load_model(None)


def test_weights_whose_margin_is_not_finite_are_named(mine, tmp_path, monkeypatch):
    monkeypatch.setattr(critic, "load_model", lambda *which: mine)
    monkeypatch.setattr(critic, "reflection", lambda *args: {"m_0": 0., "m": float("nan"), "m_moved": 1.})
    with pytest.raises(BadInput, match="--weights broken: the margin is not finite; check the weights"):
        critic.main(["--weights", "broken", "--out", str(tmp_path / "a.png")])
