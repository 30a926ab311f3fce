"""What does it take at the real size, on one GPU or many? Memory, shards, and checkpoints that outlive a crash.

    torchrun --nproc_per_node 8 train.py --preset wan1.3b --weights weights/revise --data triplets.jsonl --parallel fsdp

lean         run blocks again in the backward pass instead of keeping what is inside them (DiT, Llama, SigLIP, VAE)
shard        FSDP2: each rank keeps 1/N of G, of its optimizer state and of the frozen VLM
whole, like  a shard's tensor made whole, and back: one format of checkpoint, whatever number of ranks wrote it
save_state   seals a checkpoint with its SHA-256, and keeps the one before

Left out: pipeline and tensor parallelism (1.3B needs neither), and overlapping the gradients' all-reduce under `ddp` with the
backward pass: it is 5.7 GB a step, some hundredths of it between the GPUs of one machine.
"""

import hashlib
import io
import os
import sys
from contextlib import contextmanager
from datetime import timedelta
from pathlib import Path

import torch
import torch.distributed as dist
import torch.nn as nn
from torch.distributed.fsdp import fully_shard
from torch.distributed.tensor import DTensor, distribute_tensor
from torch.utils.checkpoint import checkpoint

from common.distributed import RANK, WORLD_SIZE
from common.files import BadInput, replacing
from model import TRAINED, UnifiedModel


def device() -> torch.device:
    """This rank's GPU, or the CPU."""
    return torch.device("cuda", int(os.environ.get("LOCAL_RANK", 0))) if torch.cuda.is_available() else torch.device("cpu")


@contextmanager
def on_device(model: UnifiedModel):
    """The model is on this rank's GPU in the block, and on the CPU after it."""
    model.to(device())
    yield
    model.cpu()


def start() -> None:
    """Join the other ranks of torchrun, if there are any. Nobody gives up on a rank that encodes for an hour."""
    if torch.cuda.is_available():
        torch.cuda.set_device(device())
    if WORLD_SIZE > 1:
        dist.init_process_group("cpu:gloo,cuda:nccl" if torch.cuda.is_available() else "gloo", timeout=timedelta(days=1))


# ---------------------------------------------------------------------------------------------------- less memory

def blocks(model: UnifiedModel) -> dict[str, nn.ModuleList]:
    """The layers that most of the work and of the memory is in."""
    return {"transformer": model.transformer.blocks, "vlm.llm": model.vlm.llm.model.layers,
            "vlm.vision_tower": model.vlm.vision_tower.encoder.layers}


def lean(model: UnifiedModel) -> None:
    """Keep only what goes into each block, and run it again in the backward pass: a third more FLOPs, much less memory.

    Not the libraries' switches: transformers' ignores the key-value cache that the critic's prefix is in, and diffusers
    has none for this VAE. Ours is one line that does for all of them; see also `UnifiedModel.decode_lean`.
    """
    def wrap(forward):
        return lambda *args, **named: (checkpoint(forward, *args, use_reentrant=False, **named)
                                       if torch.is_grad_enabled() else forward(*args, **named))
    for layers in blocks(model).values():
        for block in layers:
            block.forward = wrap(block.forward)
    model.lean = True


# ------------------------------------------------------------------------------------------------- many ranks

def average_gradients(params: list[nn.Parameter]) -> None:
    """Data parallelism in three lines: the mean of every gradient over all ranks (a missing one counts as zero)."""
    flat = torch.cat([(p.grad if p.grad is not None else torch.zeros_like(p)).flatten() for p in params])
    dist.all_reduce(flat)
    for p, g in zip(params, (flat / WORLD_SIZE).split([p.numel() for p in params])):
        p.grad = g.view_as(p)


def shard(model: UnifiedModel) -> None:
    """FSDP2: G, its adapter and the frozen VLM, block by block, so that one block at a time is whole.

    The VLM's word embeddings stay whole: they are read outside of its forward pass (Llama-3-8B: 2 of its 16 GB in bfloat16).
    SigLIP is sharded inside: FSDP gives a module another class, under which transformers returns no hidden states.
    """
    for layers in blocks(model).values():
        for block in layers:
            fully_shard(block)
    llm = model.vlm.llm
    fully_shard(llm, ignored_params={llm.get_input_embeddings().weight, llm.lm_head.weight})
    for part in (model.vlm.vision_tower.encoder, *(getattr(model, name) for name in TRAINED)):
        fully_shard(part)


def whole(x: torch.Tensor) -> torch.Tensor:
    """A tensor as if it had never been sharded. All ranks must ask."""
    return x.full_tensor() if isinstance(x, DTensor) else x


def on_first_rank(x: torch.Tensor) -> torch.Tensor | None:
    """As `whole`, one tensor after the other: on the CPU of rank 0 and nowhere else. All ranks must ask."""
    x = whole(x)
    return x.cpu() if RANK == 0 else None


def like(x: torch.Tensor, p: torch.Tensor) -> torch.Tensor:
    """A whole tensor, sharded as p is."""
    return distribute_tensor(x.to(p.device), p.device_mesh, p.placements) if isinstance(p, DTensor) else x


def gathered(model: UnifiedModel) -> UnifiedModel:
    """A model with the trained parts whole and nothing else, to be saved. All ranks must ask."""
    with torch.device("meta"):
        plain = UnifiedModel(model.preset)
    for name in TRAINED:
        plain.get_submodule(name).load_state_dict(
            {k: whole(v).cpu() for k, v in getattr(model, name).state_dict().items()}, assign=True)
    return plain


# -------------------------------------------------------------------------------------------------- checkpoints

def seal(content: bytes) -> bytes:
    """A torch file (a zip) with the SHA-256 of all before it as its comment, which is what a zip may end with."""
    content = content[:-2] + (64).to_bytes(2, "little")                                    # the comment's length
    return content + hashlib.sha256(content).hexdigest().encode()


def save_state(path: Path, state: dict) -> None:
    """Write a checkpoint; what was there becomes `<name>.old`, and a kill at any moment leaves one of the two whole."""
    buffer = io.BytesIO()
    torch.save(state, buffer)
    with replacing(path) as temporary:
        temporary.write_bytes(seal(buffer.getvalue()))
        if path.exists():
            os.replace(path, f"{path}.old")
    for left in path.parent.glob(f"{path.stem}.tmp*{path.suffix}"):                        # by a run that was killed
        left.unlink(missing_ok=True)


def load_state(path: Path) -> dict | None:
    """The newest checkpoint that is whole, on the CPU; None where there is none. A broken one is named on stderr.

    Raises BadInput where all there are are broken.
    """
    files = [file for file in (path, Path(f"{path}.old")) if file.exists()]
    for file in files:
        content = file.read_bytes()
        if hashlib.sha256(content[:-64]).hexdigest().encode() == content[-64:]:
            return torch.load(io.BytesIO(content), map_location="cpu", weights_only=True)
        print(f"{file}: is broken, cut short or changed since it was written", file=sys.stderr)
    if files:
        raise BadInput(f"{path}: is broken, and there is no whole one before it; delete it to start this run again")
    return None
