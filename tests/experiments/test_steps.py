"""steps.py: the loss and gradient of each step, one sample after the other, by its formula."""

from dataclasses import replace
from types import SimpleNamespace

import pytest
import torch

import train
from critic import Critic
from data import Batches, Latents, reflect, world_items
from experiments import rivals, steps
from model import load_model

LAMBDA = .25


@pytest.fixture(scope="module")
def made(tiny_dir, tmp_path_factory):
    """(model, critic, of): of(accumulate) is triplets with pairs, four of both a step."""
    model = load_model(tiny_dir)
    model.freeze()
    folder, critic = tmp_path_factory.mktemp("cache"), Critic(model)
    latents = Latents(world_items(n=4), model, folder, progress=False)
    reflections = reflect(critic, latents, folder)

    def of(accumulate):
        sizes = dict(batch=4, tau=.7, accumulate=accumulate)
        args = SimpleNamespace(cache=folder, pairs=5, critic=None, seed=0, **sizes)
        return Batches(latents, model, reflections, drop=.3, seed=0, **sizes,
                       pairs=train.make_pairs(model, critic, args))
    return model, critic, of


def gated(batch):
    return batch.near.sum() in (2, 3) and batch.pairs.near.sum() in (1, 2)


@pytest.fixture(scope="module")
def ready(made):
    """(model, critic, batch): of four triplets two or three are below tau, of the pairs fewer."""
    model, critic, of = made
    both = of(1)
    return model, critic, next(batch for step in range(100) for batch in both.of(step)
                               if gated(batch))


def ask(critic, one, x0_hat):
    """The margin of one sample's estimate, of which single latent frames are decoded alone."""
    frames = [critic.model.decode_video(x0_hat[:, :, k:k + 1]) for k in range(x0_hat.shape[2])]
    return critic.margin(one.frames, torch.cat(frames, 1), one.instructions, one.thoughts)[0]


def usual_estimate(one, c, x_t, v):
    return x_t - one.t.item() * v                                            # Eq. 3


def by_hand(model, critic, batch, estimate=usual_estimate):
    """L_FM of each sample (B,), and the margin of each gated one's estimate (G,)."""
    flows, margins = [], []
    for i in range(len(batch.t)):
        one = batch.select(torch.arange(len(batch.t)) == i)
        c = model.context(one.source, one.bridged, one.text)                 # Eq. 1
        x_t = (1 - one.t.item()) * one.target + one.t.item() * one.noise     # Eq. 2
        v = model.velocity(x_t, one.t, c, one.source)
        flows.append((v - (one.noise - one.target)).square().mean())
        if one.near.item():
            margins.append(ask(critic, one, estimate(one, c, x_t, v)))
    return torch.stack(flows), torch.stack(margins)


def reason_loss(margins, batch):
    return torch.log1p(torch.exp(batch.baseline[batch.near] - margins)).mean()      # Eq. 4


def gradient(model, loss):
    leaf = model.transformer.proj_out.weight
    model.zero_grad(set_to_none=True)
    loss.backward()
    return leaf.grad.clone()


def assert_same(model, got, want):
    assert got.item() == pytest.approx(want.item(), abs=1e-4)
    ours, theirs = gradient(model, got), gradient(model, want)
    assert (ours - theirs).abs().max() < 1e-3 * theirs.abs().max()


# ------------------------------------------------------------------------ the losses

def test_rwr(ready):
    model, critic, batch = ready
    loss, log = steps.rwr_step(model, critic, batch, 0.)
    flows, margins = by_hand(model, critic, batch)
    weights = torch.ones(len(flows))
    weights[batch.near] = 2 * torch.sigmoid(margins.detach() - batch.baseline[batch.near])
    assert_same(model, loss, (weights * flows).mean())
    assert log["flow_loss"] == loss.item() and 0 < log["p_yes"] < 1


def end_of_rollout(model, one):
    """x0_hat (1, C, f, h, w) of the model's own x_t, differentiable in the last velocity alone."""
    c = model.context(one.source, one.bridged, one.text)
    x, levels = one.noise, torch.linspace(1, one.t.item(), 7).tolist()
    with torch.no_grad():
        for t, then in zip(levels[:-1], levels[1:]):
            x = x + (then - t) * model.velocity(x, torch.tensor([t]), c, one.source)
    return x - one.t.item() * model.velocity(x, one.t, c, one.source)


def test_refl(ready):
    model, critic, batch = ready
    loss, log = steps.refl_step(model, critic, batch, LAMBDA)
    flows, margins = by_hand(model, critic, batch,
                             lambda one, c, x_t, v: end_of_rollout(model, one))
    reason = reason_loss(margins, batch)
    assert_same(model, loss, flows.mean() + LAMBDA * reason)
    assert log["reason_loss"] == pytest.approx(reason.item(), abs=1e-4)


def test_own_edits(ready):
    """L_FM of the triplets by hand, and -log sigmoid(m) of each gated pair: no m_0."""
    model, critic, batch = ready
    assert batch.pairs.target is None
    loss, log = train.own_edit_step(model, critic, batch, LAMBDA)
    flows, _ = by_hand(model, critic, batch)
    flow, reasons = flows.mean(), []
    for i in batch.pairs.near.nonzero()[:, 0]:
        one = batch.pairs.select(torch.arange(len(batch.pairs.t)) == i)
        reasons.append(torch.log1p(torch.exp(-ask(critic, one, end_of_rollout(model, one)))))
    reason = torch.stack(reasons).mean()
    assert_same(model, loss, flow + LAMBDA * reason)
    assert log["flow_loss"] == pytest.approx(flow.item(), abs=1e-4)
    assert log["reason_loss"] == pytest.approx(reason.item(), abs=1e-4)
    assert log["trigger_rate"] == batch.pairs.near.float().mean() != batch.near.float().mean()


def test_own_edits_in_two_micro_batches_are_the_same_step(made):
    model, critic, of = made
    one, two = of(1), of(2)
    number = next(step for step in range(100) if gated(next(one.of(step))))
    whole, _ = train.own_edit_step(model, critic, next(one.of(number)), LAMBDA)
    parts = [train.own_edit_step(model, critic, batch, LAMBDA)[0] for batch in two.of(number)]
    assert_same(model, sum(parts) / 2, whole)


def test_grpo_rewards_each_rollout_by_its_own_question(ready, monkeypatch):
    model, critic, batch = ready
    seen = {}

    def group_loss(model, c, source, reward, seed):
        x0 = batch.target[batch.near].repeat_interleave(rivals.GROUP, 0)
        seen.update(c=c, seed=seed, rewards=reward(x0).detach())
        return torch.tensor([3.] * len(c)), seen["rewards"].view(len(c), -1).mean(1)
    monkeypatch.setattr(steps, "group_loss", group_loss)
    loss, log = steps.grpo_step(model, critic, batch, LAMBDA)
    flows, margins = by_hand(model, critic, batch, lambda one, c, x_t, v: one.target)
    assert torch.allclose(seen["rewards"], margins.repeat_interleave(rivals.GROUP), atol=1e-4)
    assert seen["seed"] == batch.seed and len(seen["c"]) == batch.near.sum()
    assert loss.item() == pytest.approx(flows.mean().item() + LAMBDA * 3, abs=1e-4)


@pytest.mark.parametrize("step", [steps.rwr_step, steps.refl_step, steps.grpo_step,
                                  steps.no_flow_step, train.own_edit_step])
def test_where_no_sample_is_near_the_critic_is_not_asked(ready, step):
    model, _, batch = ready
    far = replace(batch, near=torch.zeros_like(batch.near), n_near=0.)
    far.pairs = replace(batch.pairs, near=torch.zeros_like(batch.pairs.near), n_near=0.)
    loss, log = step(model, None, far, LAMBDA)
    assert set(log) == {"flow_loss", "trigger_rate"} and log["trigger_rate"] == 0
    plain, _ = train.uso_step(model, None, far, 0.)
    if step is steps.no_flow_step:
        assert loss.item() == 0 and not gradient(model, loss).any()
    else:
        assert loss.item() == plain.item()
