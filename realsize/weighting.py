"""Omni-Video's weight of the flow loss: a bell over the noise level t, near 0 at both ends.

The paper has no weight (Eq. 2). `python -m realsize.train --flow-weight bell` trains as the base
model was.
"""

import math

import torch

from critic import critic_loss
from model import add_noise, flow_loss, shifted, velocity_target

LEVELS = 1000                                            # noise levels that the mean is taken over


def bell(t: torch.Tensor) -> torch.Tensor:
    """exp(-2 (t - 1/2)^2) above its value at the ends; t of any shape in [0, 1]."""
    return torch.exp(-2 * (t - .5) ** 2) - math.exp(-.5)


def bell_weight(t: torch.Tensor, shift: float = 3.0) -> torch.Tensor:
    """The bell, of mean 1 over the noise levels of training: 1.80 at t = 0.5, 0.28 at 0.05."""
    u = torch.linspace(1, 0, LEVELS + 1, device=t.device)[:-1]
    return bell(t) / bell(shifted(u, shift)).mean()


def bell_step(model, critic, batch, lam: float) -> tuple[torch.Tensor, dict]:
    """`train.uso_step`, but for the bell on each sample's flow loss."""
    x_t = add_noise(batch.target, batch.noise, batch.t)                          # Eq. 2
    c = model.context(batch.source, batch.bridged, batch.text)                   # Eq. 1
    v = model.velocity(x_t, batch.t, c, batch.source)                            # (B, C, f, h, w)
    flow = flow_loss(v, velocity_target(batch.target, batch.noise))              # (B,)
    loss = (bell_weight(batch.t) * flow).mean()
    log = {"flow_loss": loss.item(), "trigger_rate": batch.near.float().mean().item()}
    if lam > 0 and batch.near.any():
        reason, margin = critic_loss(critic, x_t, v, batch)                      # (G,), (G,)
        loss = loss + lam * reason.sum() / batch.n_near                          # Eq. 5
        log["reason_loss"] = reason.sum().item() / batch.n_near
        log["p_yes"] = margin.sigmoid().sum().item() / batch.n_near
    return loss, log
