"""Pairs: sources with instructions, and no target. What own edits are made of.

The paper's training data are triplets, and their targets are what they cost. `own_edit_step` needs
no more than sources and instructions: here they are, in step with the triplets.
"""

from dataclasses import dataclass, replace
from pathlib import Path
from typing import Iterator

from common.distributed import is_first_rank
from data import Batch, Batches, Item, Latents, hash_of, reflect, world_items
from train import read_items

NEW_PAIRS = 2_000_000            # the tiny world's clips from here on are in no triplet or lesson
SEED = 7                         # beyond the triplets': other noise, another order


@dataclass
class WithPairs(Batch):
    """Triplets, and as many pairs: a Batch whose `target` is None."""
    pairs: Batch | None = None


class TripletsAndPairs:
    """The batches of both: `of(step)` yields this rank's micro-batches, each a WithPairs."""

    def __init__(self, triplets: Batches, pairs: Batches):
        self.triplets, self.pairs = triplets, pairs

    def of(self, step: int) -> Iterator[WithPairs]:
        for triplets, pairs in zip(self.triplets.of(step), self.pairs.of(step)):
            yield WithPairs(**vars(triplets), pairs=pairs)


def batches_of_pairs(model, critic, pairs: int | str, args, said: Path,
                     with_m0: bool = False) -> Batches:
    """So many pairs of the tiny world, or those of a manifest without targets, through the frozen
    encoders, with what the critic thinks of their sources.

    args: those of train.py. said: folder for the critic's thoughts. with_m0: as in the paper;
    without, every m_0 is 0: a critic says such a clear No to an unedited source that against it any
    edit is far ahead. Raises BadInput where a line or a video cannot be used.
    """
    if isinstance(pairs, int):
        items = [without_target(item) for item in world_items(n=pairs, first=NEW_PAIRS)]
    else:
        items = read_items(model, pairs, args.skip_bad, targets=False)
    latents = Latents(items, model, args.cache, progress=is_first_rank())
    with model.precision():
        reflections = reflect(critic, latents, said)
    if not with_m0:
        reflections = [(thought, 0.) for thought, _ in reflections]
    return Batches(latents, model, reflections, batch=args.batch, tau=args.tau, drop=0.,
                   seed=args.seed + SEED, accumulate=args.accumulate)


def without_target(item: Item) -> Item:
    """The same source and instruction; nobody looks at the target."""
    def load():
        source, _ = item.load()
        return source, None
    return replace(item, key=hash_of(item.key, "no target"), load=load)
