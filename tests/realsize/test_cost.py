"""cost.py against the real step, a sum of bytes and hours by hand; bench.py on a small preset."""

from dataclasses import replace

import pytest
import torch

import bench
from critic import Critic, decode_frames
from model import UnifiedModel
from presets import PRESETS
from realsize import bench as real_bench
from realsize import cost
from realsize.cost import Flops
from small import SMALL

TINY, WAN = PRESETS["tiny"], PRESETS["wan1.3b"]


def test_flops_are_those_of_the_step(tiny_dir, monkeypatch):
    """Counted by part on shapes alone; here, on the tiny preset's numbers, by what a step calls."""
    model = UnifiedModel.from_pretrained(tiny_dir)
    model.freeze()
    data, lengths, critic = bench.random_batch(model, 1), [], Critic(model)
    read = model.vlm.read

    def note_length(embeddings, *rest, **more):
        lengths.append(embeddings.shape[1])
        return read(embeddings, *rest, **more)
    monkeypatch.setattr(model.vlm, "read", note_length)
    frames = data.frames.clone().requires_grad_()
    asked = cost.count(lambda: critic.margin(data.frames, frames, data.instructions, ["a"]))
    x = torch.randn(1, *TINY.latent_shape, requires_grad=True)
    decoded = cost.count(lambda: decode_frames(model, x, TINY.decode))
    c = model.context(data.source, data.bridged, data.text)
    denoised = cost.count(lambda: model.velocity(data.noise, data.t, c, data.source))
    parts = cost.step_flops(cost.on_meta(TINY), *lengths)
    vlm = [part for name, part in parts.items() if name.split()[0] in ("SigLIP,", "Llama,")]
    assert len(vlm) == 4
    for theirs, ours in ((asked, vlm), (decoded, [parts["VAE decoder"]]),
                         (denoised, [parts["DiT"]])):
        assert sum(part.forward for part in ours) == pytest.approx(theirs.forward, rel=.02)
        assert sum(part.backward for part in ours) == pytest.approx(theirs.backward, rel=.02)
    held = cost.step_bytes(cost.on_meta(WAN), 1748, 1584)
    assert held["G: weights, gradients, AdamW"] == pytest.approx(16 * 1.4257e9, rel=1e-3)


def test_the_page(capsys, monkeypatch):
    """Hours by hand from the FLOPs."""
    parts, asked = {"DiT": Flops(17e12, 35e12, 17e12), "VAE decoder": Flops(31e12, 31e12, 31e12),
                    "Llama, prefix": Flops(26e12, 0, 0)}, []
    monkeypatch.setattr(cost, "step_flops", lambda *args: asked.append(args) or parts)
    cost.main([])
    printed = capsys.readouterr().out
    assert [args[1:] for args in asked] == [(8 * 196 + 180, 8 * 196 + 16)]
    whole = 69e12 + .25 * (93e12 + 26e12)
    assert f"USO / SFT in FLOPs {whole / 69e12:.2f}" in printed
    own = 69e12 + .25 * (6 * 17e12 + 69e12 + 93e12 + 26e12)
    for flops in (whole, own):
        hours = 56_000 * 15 * flops / (.45 * 989e12) / 3600
        assert f"{hours:.1f} | {hours / 8:6.1f} |" in printed


def test_the_bench_as_on_a_gpu(monkeypatch):
    preset = replace(SMALL, bf16=True, context_length=128,
                     llama=SMALL.llama | dict(vocab_size=1024))
    monkeypatch.setitem(PRESETS, "wan1.3b", preset)
    model = real_bench.random_model()
    assert not [k for k, x in (*model.named_parameters(), *model.named_buffers()) if x.is_meta]
    assert {p.dtype for p in model.vlm.parameters()} == {torch.bfloat16}
    assert {p.dtype for p in model.transformer.parameters()} == {torch.float32}
    result = real_bench.measure(model, 1, 1, peak=1e9)
    assert list(result["steps"]) == ["SFT", "exact/expect", "own edits"]
    sft = result["steps"]["SFT"]["tau"][bench.TAU]["ms"]
    forward, backward, _ = cost.step_flops(cost.on_meta(preset), 1, 1)["DiT"]
    assert result["mfu_of_sft"] == pytest.approx((forward + backward) / (sft / 1000) / 1e9)
    assert "exact/expect" in bench.report(result)
