"""Two other ways from the same reward to the same generator, to compare USO with: `train.py --objective refl|grpo`.

USO asks the critic about the one-step estimate from a *noised training target*: one look at what the flow-matching step
has made anyway. The rivals ask about what the model makes by itself:

    refl    as ReFL and VADER: from pure noise down to t without gradient, then one step that the reward's flows through
    grpo    as Flow-GRPO: whole rollouts with noise on the way, in groups; what beat its group is made likelier

Everything else is shared: data, flow matching, gate, critic, lambda, and the loss L_FM + lambda * mean of this.

Left out of Flow-GRPO: ratio clipping (one update a group: the ratio is 1), the KL to the reference (L_FM holds it), and
groups of 24 (ours are of 4, in rollouts of 6 steps: what two cores can do).

Axis letters: B batch, C f h w latents, T tokens, D width, R rows = B * GROUP.
"""

import math

import torch

from critic import clean_estimate
from model import shifted

STEPS = 6                                                # of a rollout
GROUP, NOISE = 4, 0.7                                    # Flow-GRPO's: samples compared; how random a rollout is


@torch.no_grad()
def rollout(model, noise: torch.Tensor, t: torch.Tensor, c: torch.Tensor, source: torch.Tensor, steps: int = STEPS):
    """x at the noise levels t (B,), from pure noise, by Euler steps. noise, source: (B, C, f, h, w); c: (B, T, D)."""
    x, at = noise, torch.ones_like(t)
    for k in range(steps):
        to = 1 + (t - 1) * (k + 1) / steps                                                 # (B,)
        x = x + (to - at).view(-1, 1, 1, 1, 1) * model.velocity(x, at, c, source)
        at = to
    return x


def refl_estimate(model, noise, t, c, source) -> torch.Tensor:
    """x0_hat of the model's own x_t, differentiable in its last step only. Shapes as `rollout`."""
    x_t = rollout(model, noise, t, c, source)
    return clean_estimate(x_t, model.velocity(x_t, t, c, source), t)


def stochastic_step(x: torch.Tensor, v: torch.Tensor, t: float, to: float) -> tuple[torch.Tensor, float]:
    """Mean and deviation of x at `to` < t, given x and v at t: the SDE with the marginals of the flow's ODE.

    Flow-GRPO's Eq. 9: dx = [v + s^2 / (2 t) (x + (1 - t) v)] dt + s dw, with s = NOISE sqrt(t / (1 - t)).
    """
    s2, dt = NOISE ** 2 * t / max(1 - t, .05), to - t
    return x + (v + s2 / (2 * t) * (x + (1 - t) * v)) * dt, math.sqrt(-s2 * dt)


def group_loss(model, c: torch.Tensor, source: torch.Tensor, reward, seed: int) -> tuple[torch.Tensor, torch.Tensor]:
    """The policy gradient of each row's group, and its mean reward: (B,), (B,).

    The loss is minus advantage times log-likelihood of what was drawn, mean over the rollout's steps and the group.
    c: (B, T, D), source: (B, C, f, h, w). reward(x0 (R, C, f, h, w), GROUP) -> (R,), rows of a group side by side.
    """
    c, source = c.repeat_interleave(GROUP, 0), source.repeat_interleave(GROUP, 0)
    g = torch.Generator().manual_seed(seed)
    draw = lambda: torch.randn(source.shape, generator=g).to(source)
    velocity = lambda x, t: model.velocity(x, x.new_full((len(x),), t), c, source)
    ts = shifted(torch.linspace(1, 0, STEPS + 1), model.preset.shift).tolist()
    x, path = draw(), []
    with torch.no_grad():
        for t, to in zip(ts[:-1], ts[1:]):
            v = velocity(x, t)
            mean, deviation = stochastic_step(x, v, t, to)
            step = mean + deviation * draw() if to else x + (to - t) * v                   # the last one has no noise
            path.append((x, t, to, step))
            x = step
        r = reward(x, GROUP).view(-1, GROUP)                                               # (B, GROUP)
        advantage = ((r - r.mean(1, keepdim=True)) / (r.std(1, keepdim=True) + 1e-4)).flatten()      # (R,)
    loss = 0
    for x, t, to, drawn in path[:-1]:
        mean, deviation = stochastic_step(x, velocity(x, t), t, to)
        log_p = -(drawn - mean).pow(2).mean((1, 2, 3, 4)) / (2 * deviation ** 2)           # up to a constant
        loss = loss - advantage * torch.exp(log_p - log_p.detach()) / (len(path) - 1)      # (R,); the ratio is 1
    return loss.view(-1, GROUP).mean(1), r.mean(1)
