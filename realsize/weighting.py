"""Omni-Video's weight of the flow loss: a bell over the noise level t, near 0 at both ends.

The paper has no weight (Eq. 2). `python -m realsize.train --flow-weight bell` trains as the base
model was.
"""

import math

import torch

import train
from model import flow_loss, shifted, velocity_target

LEVELS = 1000                                            # noise levels that the mean is taken over


def bell(t: torch.Tensor) -> torch.Tensor:
    """exp(-2 (t - 1/2)^2) above its value at the ends; t of any shape in [0, 1]."""
    return torch.exp(-2 * (t - .5) ** 2) - math.exp(-.5)


def bell_weight(t: torch.Tensor, shift: float = 3.0) -> torch.Tensor:
    """The bell, of mean 1 over the noise levels of training: 1.80 at t = 0.5, 0.28 at 0.05."""
    u = torch.linspace(1, 0, LEVELS + 1, device=t.device)[:-1]
    return bell(t) / bell(shifted(u, shift)).mean()


class Remembering:
    """A model that keeps the last velocity it gave."""

    def __init__(self, model):
        self.model, self.v = model, None

    def __getattr__(self, name):
        return getattr(self.model, name)

    def velocity(self, *args) -> torch.Tensor:
        self.v = self.model.velocity(*args)
        return self.v


def bell_step(model, critic, batch, lam: float) -> tuple[torch.Tensor, dict]:
    """`train.uso_step`, and what the bell on each sample's flow loss changes in it."""
    model = Remembering(model)
    loss, log = train.uso_step(model, critic, batch, lam)
    flow = flow_loss(model.v, velocity_target(batch.target, batch.noise))        # (B,)
    change = ((bell_weight(batch.t) - 1) * flow).mean()
    log["flow_loss"] += change.item()
    return loss + change, log
