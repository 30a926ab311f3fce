"""rivals.py against the exact flow of a known distribution, and a policy gradient written out."""

import types

import pytest
import torch

from experiments import rivals
from model import rollout


def test_a_rollout_follows_the_flow_without_gradient():
    """Against the exact flow from noise to one clip mu: x_t = (1 - t) mu + t eps, v = eps - mu."""
    mu, eps = torch.full((3, 2, 1, 2, 2), 1.5, requires_grad=True), torch.randn(3, 2, 1, 2, 2)
    t = torch.tensor([.1, .3, .9]).view(-1, 1, 1, 1, 1)

    def velocity(x, t, c, source):
        return (x - mu) / t.view(-1, 1, 1, 1, 1)
    x = rollout(types.SimpleNamespace(velocity=velocity), eps, t.flatten(), None, None)
    torch.testing.assert_close(x, (1 - t) * mu.detach() + t * eps)
    assert not x.requires_grad


def test_stochastic_steps_keep_the_marginals_of_the_flow():
    g, mu, levels = torch.Generator().manual_seed(0), 2.0, torch.linspace(.95, .2, 400).tolist()
    x = (1 - levels[0]) * mu + levels[0] * torch.randn(20000, generator=g)
    for t, then in zip(levels[:-1], levels[1:]):
        mean, deviation = rivals.stochastic_step(x, (x - mu) / t, t, then)
        x = mean + deviation * torch.randn(20000, generator=g)
    assert x.mean().item() == pytest.approx(.8 * mu, abs=.01)
    assert x.std().item() == pytest.approx(.2, abs=.01)


def test_the_policy_gradient_is_that_of_its_groups():
    """Against score-function gradients of the Gaussian steps, by hand for v = w (a constant)."""
    w, seen = torch.tensor(.1, requires_grad=True), []

    def velocity(x, t, c, source):
        return w.expand_as(x)
    model = types.SimpleNamespace(velocity=velocity, preset=types.SimpleNamespace(shift=1.0))
    rewards = torch.tensor([1., 2., 3., 4., 8., 6., 4., 2.])

    def reward(x0):
        seen.append(x0)
        assert len(x0) == 2 * rivals.GROUP
        return rewards
    source = torch.zeros(2, 1, 1, 1, 1)
    loss, mean = rivals.group_loss(model, torch.zeros(2, 3, 4), source, reward, seed=5, steps=2)
    loss.sum().backward()
    assert mean.tolist() == [2.5, 5.0]
    assert loss.detach().abs().max() < 1e-5              # advantages have mean 0
    g = torch.Generator().manual_seed(5)
    x, z = torch.randn(8, generator=g), torch.randn(8, generator=g)      # start, the step's noise
    s2 = rivals.NOISE ** 2 / .05                         # at t = 1, then = .5

    def mu(w):
        return x + (w + s2 / 2 * x) * -.5                # (1 - t) v is 0 there
    sigma = (s2 * .5) ** .5
    drawn = mu(.1) + sigma * z
    torch.testing.assert_close(seen[0].flatten(), drawn - .5 * .1, atol=1e-5, rtol=1e-5)
    advantage = torch.cat([(r - r.mean()) / (r.std() + 1e-4) for r in rewards.view(2, 4)])
    dlogp_dw = z / sigma * -.5                           # d log p / d mu * d mu / dw
    by_hand = (-advantage * dlogp_dw).view(2, 4).mean(1).sum()
    assert w.grad.item() == pytest.approx(by_hand.item(), rel=1e-4)
