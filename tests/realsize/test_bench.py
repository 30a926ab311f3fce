"""The bench of the real size, as on a GPU, with a small preset under the real one's name."""

from dataclasses import replace

import pytest
import torch

import bench
from presets import PRESETS
from realsize import bench as real_bench
from small import SMALL


@pytest.fixture
def model(monkeypatch):
    small = replace(SMALL, bf16=True, context_length=128, llama=SMALL.llama | dict(vocab_size=1024))
    monkeypatch.setitem(PRESETS, "wan1.3b", small)
    return real_bench.random_model()


def test_what_is_measured(model):
    assert not [k for k, x in (*model.named_parameters(), *model.named_buffers()) if x.is_meta]
    assert {p.dtype for p in model.vlm.parameters()} == {torch.bfloat16}
    assert {p.dtype for p in model.transformer.parameters()} == {torch.float32}
    result = real_bench.measure(model, 1, 1, peak=1e9)
    assert list(result["steps"]) == ["SFT", "exact/expect", "own edits"]
    sft = result["steps"]["SFT"]["tau"][bench.TAU]["ms"]
    on_meta = real_bench.on_meta(model.preset)
    forward, backward, _ = real_bench.step_flops(on_meta, 1, 1)["DiT"]
    assert result["mfu_of_sft"] == pytest.approx((forward + backward) / (sft / 1000) / 1e9)
    assert "exact/expect" in bench.report(result)
