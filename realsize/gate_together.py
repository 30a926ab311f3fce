"""Noise levels for many ranks: all ask the critic in the same steps, so that none waits."""

import torch

from model import shifted


def sample_timesteps_together(n: int, ranks: int, tau: float, shift: float = 3.0,
                              generator: torch.Generator | None = None) -> torch.Tensor:
    """As `model.sample_timesteps`, (n,), but `ranks` samples in a row are below tau together.

    They share one coin that shows "below" with P(t < tau); then each draws its own t of that part.
    So each sample's t is distributed as before, and no rank asks the critic, which costs, while the
    others wait. Raises ValueError for tau outside (0, 1].
    """
    if not 0 < tau <= 1:
        raise ValueError(f"tau must be in (0, 1], not {tau}")
    p = tau / (shift - (shift - 1) * tau)                                    # P(t < tau)
    coins = torch.rand(-(-n // ranks), generator=generator) < p
    below = coins.repeat_interleave(ranks)[:n]
    u = 1 - torch.rand(n, generator=generator)                               # in (0, 1]
    t = shifted(torch.where(below, p * u, p + (1 - p) * u), shift)
    # rounding must not carry a sample over to the other side of tau
    edge = torch.tensor(float(tau))
    just_below = edge.nextafter(torch.tensor(0.))
    return torch.where(below, t.minimum(just_below), t.maximum(edge))
