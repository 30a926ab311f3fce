"""The rivals' losses that are timed: the rollout's gradient against one written out, and that all run."""

import math

import pytest
import torch

import bench
from critic import Critic, clean_estimate, decode_frames, reason_loss
from experiments.rivals_cost import measure, policy_loss, rollout_loss
from model import load_model


@pytest.fixture
def parts(tiny_dir):
    """(model, critic, a batch of one), everything frozen but what is trained."""
    model = load_model(tiny_dir)
    model.freeze()
    critic, batch = Critic(model, decode="alone"), bench.random_batch(model, 1)
    batch.thoughts, batch.baseline = ["it is cold"], torch.tensor([.5])
    return model, critic, batch


def gradient(model, loss):
    model.zero_grad(set_to_none=True)
    loss.backward()
    return model.transformer.proj_out.weight.grad.clone()


def test_the_rollout_through_its_last_step_is_refl(parts):
    model, critic, batch = parts
    one, five = (gradient(model, rollout_loss(model, critic, batch, last, steps=6)) for last in (1, 5))
    assert one.abs().max() > 0 and not torch.allclose(one, five, rtol=.1)
    c = model.context(batch.source, batch.bridged, batch.text)
    x, t = batch.noise, torch.ones(1)
    with torch.no_grad():
        for k in range(5, 0, -1):
            to = torch.tensor([3 * (k / 6) / (1 + 2 * k / 6)])
            x = x + (to - t).view(-1, 1, 1, 1, 1) * model.velocity(x, t, c, batch.source)
            t = to
    x0 = clean_estimate(x, model.velocity(x, t, c, batch.source), t)
    margin = critic.margin(batch.frames, decode_frames(model, x0, "alone"), batch.instructions,
                           batch.thoughts)
    want = gradient(model, reason_loss(margin, batch.baseline).mean())
    assert (one - want).abs().max() < 1e-3 * want.abs().max()
    assert t.item() == pytest.approx(3 * (1 / 6) / (1 + 2 / 6))


def test_the_policy_gradient_reaches_the_generator(parts):
    model, critic, batch = parts
    assert gradient(model, policy_loss(model, critic, batch, group=2, steps=3)).abs().max() > 0


def test_what_is_measured(parts, monkeypatch):
    model, _, _ = parts
    thoughts = Critic.thoughts
    monkeypatch.setattr(Critic, "thoughts", lambda *args: thoughts(*args, limit=2))
    found = measure(model, 1, 1)
    assert len(found) == 4 and all(math.isfinite(row["ms"]) and row["ms"] > 0 for row in found.values())
    for name, row in found.items():
        assert name == "USO" or row["in_uso_steps"] == pytest.approx(row["ms"] / found["USO"]["ms"])
