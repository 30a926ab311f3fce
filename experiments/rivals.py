"""How else could the same reward be used? Flow-GRPO, as functions on tensors.

USO asks the critic about the one-step estimate from a *noised training target*, ReFL and VADER
about the end of a rollout (`model.rollout`), and both send its gradient back. Flow-GRPO needs none:
whole rollouts with noise on the way, in groups; what is better than its group is made likelier.

steps.py makes a training step of it; everything else is shared with USO.

Left out of Flow-GRPO: ratio clipping (one update a group: the ratio is 1), the KL to the reference
(L_FM holds it), and groups of 24 (ours are of 4, in rollouts of 6 steps: what two cores can do).

Axis letters: B batch, C f h w latents, T tokens, D width, R rows = B * group.
"""

import math
from typing import Callable

import torch

from model import shifted

STEPS = 6                                        # of a rollout
GROUP = 4                                        # rollouts that are compared with each other
NOISE = 0.7                                      # how random a rollout is; Flow-GRPO's


def stochastic_step(x: torch.Tensor, v: torch.Tensor, t: float,
                    then: float) -> tuple[torch.Tensor, float]:
    """Mean and deviation of x at `then` < t, given x and v at t.

    It is Flow-GRPO's Eq. 9, an SDE with the marginals of the flow's ODE:
    dx = [v + s^2 / (2 t) (x + (1 - t) v)] dt + s dw, with s = NOISE sqrt(t / (1 - t)).
    """
    s2 = NOISE ** 2 * t / max(1 - t, .05)
    dt = then - t
    mean = x + (v + s2 / (2 * t) * (x + (1 - t) * v)) * dt
    return mean, math.sqrt(-s2 * dt)


def group_loss(model, c: torch.Tensor, source: torch.Tensor, reward: Callable, seed: int,
               group: int = GROUP, steps: int = STEPS) -> tuple[torch.Tensor, torch.Tensor]:
    """The policy-gradient loss of each row's group, and its mean reward: (B,), (B,).

    The loss is minus the advantage times the log-likelihood of what was drawn, averaged over the
    rollout's steps and the group. c: (B, T, D); source: (B, C, f, h, w).
    reward(x0 (R, C, f, h, w)) -> (R,); the rows of a group stand side by side.
    """
    c = c.repeat_interleave(group, 0)                                        # (R, T, D)
    source = source.repeat_interleave(group, 0)                              # (R, C, f, h, w)

    def velocity(x, t):
        return model.velocity(x, x.new_full((len(x),), t), c, source)

    levels = shifted(torch.linspace(1, 0, steps + 1), model.preset.shift).tolist()
    with torch.no_grad():
        x0, path = draw_rollout(velocity, levels, source, seed)
        rewards = reward(x0).view(-1, group)                                 # (B, group)
        mean, deviation = rewards.mean(1, keepdim=True), rewards.std(1, keepdim=True)
        advantage = ((rewards - mean) / (deviation + 1e-4)).flatten()        # (R,)
    loss = 0
    for x, t, then, drawn in path:
        mean, deviation = stochastic_step(x, velocity(x, t), t, then)
        distance = (drawn - mean).pow(2).mean((1, 2, 3, 4))                  # (R,)
        log_p = -distance / (2 * deviation ** 2)                             # up to a constant
        ratio = torch.exp(log_p - log_p.detach())                            # 1; its gradient is
        loss = loss - advantage * ratio / len(path)                          # that of log_p
    return loss.view(-1, group).mean(1), rewards.mean(1)


def draw_rollout(velocity: Callable, levels: list[float], like: torch.Tensor,
                 seed: int) -> tuple[torch.Tensor, list[tuple]]:
    """(x0 (R, C, f, h, w), path): a rollout with noise on the way; the last step, to 0, has none.

    path: (x, t, then, what was drawn for x at `then`) of each step with noise. like: as x0.
    """
    generator = torch.Generator().manual_seed(seed)

    def draw():
        return torch.randn(like.shape, generator=generator).to(like)

    x, path = draw(), []
    for t, then in zip(levels[:-2], levels[1:-1]):
        mean, deviation = stochastic_step(x, velocity(x, t), t, then)
        drawn = mean + deviation * draw()
        path.append((x, t, then, drawn))
        x = drawn
    last = levels[-2]
    return x + (levels[-1] - last) * velocity(x, last), path
