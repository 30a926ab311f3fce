"""The loss and gradient of the other steps, one sample after the other, by their formulas."""

from argparse import Namespace
from dataclasses import replace

import pytest
import torch

import train
from by_hand import by_hand, decode
from experiments.train import refl_step, rwr_step
from runs import assert_same

LAMBDA = .25
FLAGS = ("--tau", ".7", "--drop", ".3")


def first_gated(batches):
    """The first step of whose four triplets two or three are below tau, of the pairs fewer."""
    def is_gated(batch):
        return batch.near.sum() in (2, 3) and batch.pairs.near.sum() in (1, 2)
    return next(step for step in range(100) if is_gated(next(batches.of(step))))


@pytest.fixture(scope="module")
def ready(encoded, made):
    """(model, critic, a step's number, its batch), of own edits."""
    _, critic, batches = made(*FLAGS, "--pairs", "5")
    step = first_gated(batches)
    return encoded[1], critic, step, next(batches.of(step))


def test_rwr(encoded, made):
    _, model, latents = encoded
    args, critic, batches = made(*FLAGS, "--lambda", "1")
    args.objective = "rwr"
    loss, log = rwr_step(model, critic, next(batches.of(0)), 0.)
    want, want_log = by_hand(model, latents, args, 0)
    assert_same(model, loss, want)
    assert log.pop("flow_loss") == loss.item() and 0 < log["p_yes"] < 1
    assert log == pytest.approx(want_log, abs=1e-4)


def end_of_rollout(model, one):
    """x0_hat (1, C, f, h, w) of the model's own x_t, differentiable in the last velocity alone."""
    c = model.context(one.source, one.bridged, one.text)
    x, levels = one.noise, torch.linspace(1, one.t.item(), 7).tolist()
    with torch.no_grad():
        for t, then in zip(levels[:-1], levels[1:]):
            x = x + (then - t) * model.velocity(x, torch.tensor([t]), c, one.source)
    return x - one.t.item() * model.velocity(x, one.t, c, one.source)


def test_own_edits(encoded, ready):
    """L_FM of the triplets by hand, and -log sigmoid(m) of each gated pair: no m_0."""
    _, _, latents = encoded
    model, critic, step, batch = ready
    assert batch.pairs.target is None
    loss, log = train.own_edit_step(model, critic, batch, LAMBDA)
    sft = Namespace(objective="sft", think="expect", seed=0, batch=4, drop=.3, tau=.7)
    flow, _ = by_hand(model, latents, sft, step)
    reasons = []
    for i in batch.pairs.near.nonzero()[:, 0]:
        one = batch.pairs.select(torch.arange(len(batch.pairs.t)) == i)
        frames = decode(model, end_of_rollout(model, one), "alone")
        margin = critic.margin(one.frames, frames, one.instructions, one.thoughts)[0]
        reasons.append(torch.log1p(torch.exp(-margin)))
    reason = torch.stack(reasons).mean()
    assert_same(model, loss, flow + LAMBDA * reason)
    assert log["flow_loss"] == pytest.approx(flow.item(), abs=1e-4)
    assert log["reason_loss"] == pytest.approx(reason.item(), abs=1e-4)
    assert log["trigger_rate"] == batch.pairs.near.float().mean() != batch.near.float().mean()


def test_own_edits_in_two_micro_batches_are_the_same_step(ready, made):
    model, critic, step, batch = ready
    whole, _ = train.own_edit_step(model, critic, batch, LAMBDA)
    _, _, halves = made(*FLAGS, "--pairs", "5", "--accumulate", "2")
    parts = [train.own_edit_step(model, critic, half, LAMBDA)[0] for half in halves.of(step)]
    assert_same(model, sum(parts) / 2, whole)


@pytest.mark.parametrize("step", [rwr_step, refl_step, train.own_edit_step])
def test_where_no_sample_is_near_the_critic_is_not_asked(ready, step):
    model, _, _, batch = ready
    far = replace(batch, near=torch.zeros_like(batch.near), n_near=0.)
    far.pairs = replace(batch.pairs, near=torch.zeros_like(batch.pairs.near), n_near=0.)
    loss, log = step(model, None, far, LAMBDA)
    assert set(log) == {"flow_loss", "trigger_rate"} and log["trigger_rate"] == 0
    plain, _ = train.uso_step(model, None, far, 0.)
    assert loss.item() == plain.item()
