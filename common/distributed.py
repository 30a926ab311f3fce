"""Ranks: who am I, of how many, and how do they agree?"""

import os
from contextlib import contextmanager

import torch.distributed as dist

RANK, WORLD_SIZE = int(os.environ.get("RANK", 0)), int(os.environ.get("WORLD_SIZE", 1))         # set by torchrun


@contextmanager
def first_rank_first():
    """What fills a cache on disk: rank 0 does it, then the others find it done."""
    if RANK > 0:
        dist.barrier()
    yield
    if RANK == 0 and WORLD_SIZE > 1:
        dist.barrier()
