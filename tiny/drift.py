"""What does a data generator's own hand look like?

The targets of the paper's data (Ditto-1M) were made by a model: they do the edit and re-render the
rest, always in the same direction. Random misses average out in training; such a drift does not: a
generator that imitates the data learns it. `train.py --drift 0.6` trains on it.

Here every drifted target is warmer, of lower contrast and softer in its detail. The oracle gives it
PC 5.4, EA 6.2 and GR 8.4 on average: the edit can be seen, the rest is not kept.

Axis letters: F frames, H height, W width.
"""

import torch
import torch.nn.functional as F

CONTRAST = .75                                   # of the original, around grey
TINT = (.25, -.05, -.25)                         # added to red, green and blue
SOFTNESS = .5                                    # share of the mean of the 3x3 neighbours


def drifted(video: torch.Tensor) -> torch.Tensor:
    """The clip as the data generator re-renders it. video: (F, 3, H, W) in [-1, 1]."""
    mean = F.avg_pool2d(video, 3, stride=1, padding=1, count_include_pad=False)
    softer = (1 - SOFTNESS) * video + SOFTNESS * mean
    tint = torch.tensor(TINT).view(3, 1, 1)
    return (CONTRAST * softer + tint).clamp(-1, 1)

