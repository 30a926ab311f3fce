"""What does a data generator's own hand look like?

    python -m tiny.drift                       # source, target and drifted target, in out/drift.png

The targets of the paper's data (Ditto-1M) were made by a model: they do the edit and re-render the
rest, always in the same direction. Random misses average out in training; such a drift does not: a
generator that imitates the data learns it. `train.py --drift 0.6` trains on it.

Here every drifted target is warmer, of lower contrast and softer in its detail. The oracle gives it
PC 5.4, EA 6.2 and GR 8.4 on average: the edit can be seen, the rest is not kept.

Axis letters: F frames, H height, W width.
"""

from pathlib import Path

import torch
import torch.nn.functional as F

from common.files import Parser, check_writable, run_script

CONTRAST = .75                                   # of the original, around grey
TINT = (.25, -.05, -.25)                         # added to red, green and blue
SOFTNESS = .5                                    # share of the mean of the 3x3 neighbours


def drifted(video: torch.Tensor) -> torch.Tensor:
    """The clip as the data generator re-renders it. video: (F, 3, H, W) in [-1, 1]."""
    mean = F.avg_pool2d(video, 3, stride=1, padding=1, count_include_pad=False)
    softer = (1 - SOFTNESS) * video + SOFTNESS * mean
    tint = torch.tensor(TINT).view(3, 1, 1)
    return (CONTRAST * softer + tint).clamp(-1, 1)


def main(argv=None) -> None:
    from tiny.world import contact_sheet, make_triplet
    parser = Parser(description="Draw drifted targets of the tiny world.")
    parser.add_argument("--out", type=Path, default=Path("out/drift.png"), help="picture to write")
    args = parser.parse_args(argv)
    check_writable(args.out, ".png")
    triplets = [make_triplet(index, "rave", "train") for index in range(8)]
    columns = {"source": [triplet.source for triplet in triplets],
               "target": [triplet.target for triplet in triplets],
               "drifted target": [drifted(triplet.target) for triplet in triplets]}
    contact_sheet(triplets, columns, args.out)
    print(f"wrote {args.out}")


if __name__ == "__main__":
    run_script(main)
