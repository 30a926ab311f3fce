"""The critic against independent sums: equations 3 to 5, the margin, the way of its gradient."""

import copy

import numpy as np
import pytest
import torch
import torch.nn.functional as F

import critic
from critic import (DECODE, EDITED, SOURCE, SYSTEM, THINK, VERDICT, Critic, clean_estimate,
                    decode_frames, gate, reason_loss)
from model import TRAINED, add_noise, flow_loss, velocity_target
from presets import PRESETS

TINY = PRESETS["tiny"]
WORDS = ["wait", "a hard frost came overnight and all is different"]
TURN = "<|eot_id|><|start_header_id|>assistant<|end_header_id|>\n\n"
SEEN = [0, (TINY.frames - 1) // 2, TINY.frames - 1]      # the K frames


@pytest.fixture
def mine(tiny):
    """A copy of `tiny`, ready for training, that a test may change."""
    model = copy.deepcopy(tiny)
    model.freeze()
    return model


# ---------------------------------------------------------------------------------------- equations

def test_eq_3_undoes_eq_2(latents):
    noise = torch.randn(latents.shape, generator=torch.Generator().manual_seed(4))
    t = torch.tensor([.03, .9])
    x_t = add_noise(latents, noise, t)
    back = clean_estimate(x_t, velocity_target(latents, noise), t)
    assert torch.allclose(back, latents, atol=1e-6)
    v = torch.zeros_like(x_t, requires_grad=True)
    clean_estimate(x_t, v, t).sum().backward()
    assert torch.equal(v.grad, -t.view(-1, 1, 1, 1, 1).expand_as(v))


def test_gate_is_strict():
    assert gate(torch.tensor([.1, .4999, .5, 1.]), .5).tolist() == [True, True, False, False]
    assert gate(torch.tensor([.9999, 1.]), 1.).tolist() == [True, False]


def test_eq_4_against_numpy():
    m, m0 = np.random.default_rng(0).normal(0, 3, (2, 50))
    p = 1 / (1 + np.exp(-(m - m0)))
    want = -np.log(p)                                    # cross-entropy, the answer is Yes
    np.testing.assert_allclose(reason_loss(torch.tensor(m), torch.tensor(m0)), want, rtol=1e-9)
    far = reason_loss(torch.tensor([-200., 200.]), torch.zeros(2))
    assert far.tolist() == [200, 0]                      # neither overflows


def test_baseline_has_no_gradient_in_eq_4():
    m, m0 = (torch.tensor([.3, -1.], requires_grad=True) for _ in range(2))
    reason_loss(m, m0).sum().backward()
    assert m0.grad is None and torch.allclose(m.grad, torch.full((2,), -.5))    # sigmoid(0) - 1


# ------------------------------------------------------------------------------------------- decode

@torch.no_grad()
def test_alone_is_a_clip_of_each_latent_frame(tiny, latents):
    """Exact for the first one only: the VAE is causal, and before it there is nothing."""
    exact, alone = (decode_frames(tiny, latents, how) for how in ("exact", "alone"))
    singles = [tiny.decode_video(latents[:, :, k:k + 1]) for k in range(latents.shape[2])]
    assert torch.allclose(alone, torch.cat(singles, 1), atol=1e-5)
    assert torch.allclose(alone[:, 0], exact[:, 0], atol=1e-4)
    assert (alone[:, 1:] - exact[:, 1:]).abs().max() > 1e-3


# ----------------------------------------------------------------------------------------- thoughts

@pytest.mark.parametrize("think", THINK)
def test_a_thought_does_not_depend_on_the_batch(tiny, sources, edits, think):
    asked = Critic(tiny, think)
    both = asked.thoughts(sources, WORDS, edits)
    alone = [asked.thoughts(sources[i:i + 1], WORDS[i:i + 1], edits[i:i + 1])[0]
             for i in range(2)]
    assert both == alone and any(both) == (think != "none")


@pytest.mark.parametrize("think, clips", [("expect", 1), ("full", 2)])
def test_only_full_thoughts_see_the_edit(tiny, sources, edits, monkeypatch, think, clips):
    read, join = [], tiny.vlm.join
    monkeypatch.setattr(tiny.vlm, "join", lambda rows: read.append(rows) or join(rows))
    Critic(tiny, think).thoughts(sources, WORDS, edits, limit=1)
    seen = [part for part in read[0][1] if isinstance(part, torch.Tensor)]
    assert len(seen) == clips
    if think == "full":                                  # side by side with the source's tokens
        assert torch.allclose(seen[1][1::2], tiny.vlm.see(edits)[1], atol=1e-5)


@pytest.mark.parametrize("said, want", [
    (["a", " .", "<|eot_id|>", "never"], "a"), (["so", " . ", "Verdict :", " ", "Yes"], "so"),
    (["on"] * 50, "on" * 6)])
def test_where_a_thought_ends(tiny, sources, monkeypatch, said, want):
    """The VLM's answers are put into its mouth, token by token."""
    tokenizer, limit = tiny.vlm.tokenizer, 6 if len(said) == 50 else 48
    ids = [k for text in [*said, "<|eot_id|>"]
           for k in tokenizer(text, add_special_tokens=False).input_ids]

    class Said:
        def __init__(self, k):
            self.logits = F.one_hot(torch.tensor([[k]]), TINY.llama["vocab_size"])
    monkeypatch.setattr(tiny.vlm, "read", lambda *args, **named: Said(ids.pop(0)))
    assert Critic(tiny, "expect").thoughts(sources[:1], ["wait"], limit=limit) == [want]


# ------------------------------------------------------------------------------------------- margin

def plain_margin(model, think, source, edited, words, thoughts):
    """The margin of each row by one pass over its whole chat, written out; no cache, no padding."""
    vlm, values = model.vlm, []
    user = "<|start_header_id|>user<|end_header_id|>\n\n"
    head = (f"<|begin_of_text|><|start_header_id|>system<|end_header_id|>\n\n{SYSTEM}<|eot_id|>"
            f"{user}")
    yes, no = (vlm.tokenizer(word, add_special_tokens=False).input_ids[0] for word in ("Yes", "No"))
    for s, e, text, thought in zip(vlm.see(source), vlm.see(edited), words, thoughts):
        e = torch.cat([token for both in zip(s.split(1), e.split(1)) for token in both])
        before = {"expect": [TURN, f"{thought} .<|eot_id|>{user}{EDITED}"]}.get(think, [EDITED])
        said = [TURN, f"{thought} . ", VERDICT] if think == "full" else [TURN + VERDICT]
        parts = [head, f"{text}\n{SOURCE}", s, *before, e, *said]
        row = torch.cat([vlm.words(part) if isinstance(part, str) else part for part in parts])
        logits = vlm.llm(inputs_embeds=row[None]).logits[0, -1]
        values.append(logits[yes] - logits[no])
    return torch.stack(values)


@pytest.mark.parametrize("think", THINK)
def test_margin_with_its_cache_is_the_plain_pass(tiny, sources, edits, think):
    thoughts = ["the ball", "the water turns to ice and the rest is kept"]
    if think == "none":
        thoughts = ["", ""]
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
    assert (got_gradient[:, SEEN].abs().amax((2, 3, 4)) > 0).all()
    unseen = [k for k in range(TINY.frames) if k not in SEEN]
    assert got_gradient[:, unseen].eq(0).all()


@torch.no_grad()
@pytest.mark.parametrize("think", THINK)
def test_margin_writes_its_own_thoughts(tiny, sources, edits, think):
    asked = Critic(tiny, think)
    want = asked.margin(sources, edits, WORDS, asked.thoughts(sources, WORDS, edits))
    assert torch.equal(asked.margin(sources, edits, WORDS), want)


@pytest.mark.parametrize("think", ["expect", "full"])
def test_finite_differences(tiny, sources, edits, think):
    """d margin / d pixels along a random direction, in float64."""
    model = copy.deepcopy(tiny).double()
    for norm in model.vlm.llm.modules():
        if type(norm).__name__ == "LlamaRMSNorm":        # the library's computes in float32
            norm.forward = lambda x, n=norm: n.weight * F.rms_norm(x, x.shape[-1:],
                                                                   eps=n.variance_epsilon)
    source, x = sources[:1].double(), edits[:1].double().requires_grad_(True)
    asked = Critic(model, think)

    def margin(edited):
        return asked.margin(source, edited, WORDS[:1], ["the ball"])
    generator = torch.Generator().manual_seed(0)
    direction = torch.randn(x.shape, dtype=x.dtype, generator=generator)
    gradient, = torch.autograd.grad(margin(x).sum(), x)
    slope = (gradient * direction).sum().item()
    with torch.no_grad():
        ahead, behind = (margin(x + h * direction).item() for h in (1e-4, -1e-4))
    assert abs(slope) > 1e-6
    assert (ahead - behind) / 2e-4 == pytest.approx(slope, rel=1e-3)


# -------------------------------------------------------------------------- where the gradient goes

def gradients(model, loss):
    model.zero_grad(set_to_none=True)
    loss.backward()
    return {k for k, p in model.named_parameters() if p.grad is not None and p.grad.any()}


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
    asked, thoughts = Critic(mine), ["the ball", "the sky"]
    margin = asked.margin(sources, frames, WORDS, thoughts)
    reason = gradients(mine, reason_loss(margin, asked.baseline(sources, WORDS, thoughts)).mean())
    trainable = {k for k, p in mine.named_parameters() if p.requires_grad}
    assert reason == flow and flow <= trainable and len(flow) > .9 * len(trainable)
    assert {k.split(".")[0] for k in flow} == set(TRAINED)
    assert all(p.grad is None for k, p in mine.named_parameters() if k not in trainable)


# -------------------------------------------------------------------------------------- the command

def test_the_picture_of_one_reflection(tiny_dir, tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(Critic, "thoughts", lambda *args: ["it is cold"])       # random: no end
    out = tmp_path / "new" / "a.png"
    critic.main(["--weights", str(tiny_dir), "--out", str(out)])
    printed = capsys.readouterr().out
    assert out.read_bytes().startswith(b"\x89PNG") and "U thinks: it is cold" in printed
