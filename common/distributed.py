"""Ranks: who am I, of how many, and how do we agree? With one process, all of this does nothing.

    torchrun --nproc_per_node 2 train.py                 # sets RANK, LOCAL_RANK and WORLD_SIZE
"""

import os
from datetime import timedelta
from typing import Iterable

import torch
import torch.distributed as dist
import torch.nn as nn
from torch.distributed.tensor import DTensor, distribute_tensor

RANK = int(os.environ.get("RANK", 0))
WORLD_SIZE = int(os.environ.get("WORLD_SIZE", 1))


def device() -> torch.device:
    """This rank's GPU, or the CPU."""
    if not torch.cuda.is_available():
        return torch.device("cpu")
    return torch.device("cuda", int(os.environ.get("LOCAL_RANK", 0)))


def start() -> None:
    """Join the other ranks of torchrun, if there are any, and share the cores among them."""
    torch.set_num_threads(max(1, len(os.sched_getaffinity(0)) // WORLD_SIZE))
    if torch.cuda.is_available():
        torch.cuda.set_device(device())
    if WORLD_SIZE > 1:
        backend = "cpu:gloo,cuda:nccl" if torch.cuda.is_available() else "gloo"
        dist.init_process_group(backend, timeout=timedelta(days=1))  # a rank may encode for hours


def stop() -> None:
    """Leave the other ranks, once all of them are done."""
    wait_for_all()
    if WORLD_SIZE > 1:
        dist.destroy_process_group()


# -------------------------------------------------------------------------------- dividing the work

def is_first_rank() -> bool:
    """Whether this rank is the one that writes files and shows progress bars."""
    return RANK == 0


def my_shard(rows):
    """This rank's share of a list or tensor: every WORLD_SIZE-th row, from RANK on."""
    return rows[RANK::WORLD_SIZE]


def gather_rows(shard: list) -> list:
    """The inverse of `my_shard`: all ranks' rows, in their order. All ranks must call it."""
    if WORLD_SIZE == 1:
        return shard
    shards = [None] * WORLD_SIZE
    dist.all_gather_object(shards, shard)
    n = sum(map(len, shards))
    return [shards[k % WORLD_SIZE][k // WORLD_SIZE] for k in range(n)]


def wait_for_all() -> None:
    """Nobody goes on before everybody has come here."""
    if WORLD_SIZE > 1:
        dist.barrier()


# ----------------------------------------------------------------------------------------- agreeing

def average_gradients(params: Iterable[nn.Parameter]) -> None:
    """Data parallelism in a few lines: the mean of every gradient over all ranks; a missing one is
    zero."""
    params = list(params)
    if WORLD_SIZE == 1 or isinstance(params[0], DTensor):            # FSDP has averaged its shards
        return
    grads = [torch.zeros_like(p) if p.grad is None else p.grad for p in params]
    flat = torch.cat([grad.flatten() for grad in grads])
    dist.all_reduce(flat)
    means = (flat / WORLD_SIZE).split([p.numel() for p in params])
    for p, mean in zip(params, means):
        p.grad = mean.view_as(p)


def all_true(flag: bool) -> bool:
    """Whether it is true on every rank."""
    if WORLD_SIZE == 1:
        return flag
    agreed = torch.tensor(float(flag))                   # in every step: no pickles
    dist.all_reduce(agreed, dist.ReduceOp.MIN)
    return bool(agreed)


def mean_log(logs: list[dict[str, float]]) -> dict[str, float]:
    """The mean of what was logged, over this step's micro-batches (`logs`) and over all ranks.

    A value that some did not log counts as zero there, as it does in their loss.
    """
    logs = gather_rows(logs)
    names = dict.fromkeys(name for log in logs for name in log)
    return {name: sum(log.get(name, 0.) for log in logs) / len(logs) for name in names}


# ------------------------------------------------------------------------- tensors in shards (FSDP)

def whole(x: torch.Tensor) -> torch.Tensor:
    """A tensor as if it had never been sharded. All ranks must call it."""
    return x.full_tensor() if isinstance(x, DTensor) else x


def whole_on_first_rank(x: torch.Tensor) -> torch.Tensor | None:
    """The whole tensor on the CPU of rank 0, None elsewhere. All ranks must call it."""
    x = whole(x)
    return x.cpu() if RANK == 0 else None


def shard_like(x: torch.Tensor, p: torch.Tensor) -> torch.Tensor:
    """A whole tensor, sharded as p is; as it is where p is not sharded."""
    if not isinstance(p, DTensor):
        return x
    return distribute_tensor(x.to(p.device), p.device_mesh, p.placements)
