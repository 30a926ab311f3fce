"""train.py at the real size: blocks run again in the backward pass, shards, and no rank that waits.

    python -m realsize.train --preset wan1.3b --weights weights/revise --data triplets.jsonl \\
        --batch 8 --accumulate 8 --lr 3e-6 --clip 0.1 --drop 0.2                  # one GPU
    torchrun --nproc_per_node 8 -m realsize.train --parallel fsdp --gate-together 8 \\
        --preset wan1.3b --weights weights/revise --data triplets.jsonl \\
        --batch 8 --lr 3e-6 --clip 0.1 --drop 0.2                                 # eight

All other flags are train.py's; `python train.py --help` has them. To resume, give the same flags
with --resume RUN. A checkpoint is of one format, whatever number of ranks wrote it.

Left out: pipeline and tensor parallelism (1.3B needs neither), and overlapping the gradients'
all-reduce under "ddp" with the backward pass: it is 5.7 GB a step, some hundredths of a step
between the GPUs of one machine.
"""

import argparse
from functools import partial

import torch
import torch.nn as nn
from torch.distributed.fsdp import fully_shard
from torch.utils.checkpoint import checkpoint

import train
from common.distributed import WORLD_SIZE, whole
from common.files import BadInput, Parser, positive, run_script
from common.run import claim_folder
from model import TRAINED, UnifiedModel, shifted


# ------------------------------------------------------------------------------------ less memory

def blocks(model: UnifiedModel) -> list[nn.Module]:
    """The layers that most of the work and of the memory is in."""
    vlm = model.vlm
    return [*model.transformer.blocks, *vlm.llm.model.layers, *vlm.vision_tower.encoder.layers]


def recompute_activations(model: UnifiedModel) -> None:
    """Keep only what goes into each block, and run it again: a third more FLOPs, less memory.

    Not the libraries' switches: transformers' ignores the key-value cache that the critic's prefix
    is in, and diffusers has none for this VAE.
    """
    for block in blocks(model):
        block.forward = partial(checkpoint, block.forward, use_reentrant=False)
    model.run_decoder = partial(decode_recomputed, model.vae)


def decode_recomputed(vae, z: torch.Tensor) -> torch.Tensor:
    """vae.decode with memory for one latent frame: (B, C, f, h, w) -> (B, 3, F, H, W).

    The library's own loop, but its cache of earlier frames, instead of being changed in place, goes
    into each frame's decoding and comes out of it. So a frame can be run again in the backward
    pass.
    """
    if not (torch.is_grad_enabled() and z.requires_grad):
        return vae.decode(z).sample

    def decode(first, x, *cache):
        cache = list(cache)
        frame = vae.decoder(x, feat_cache=cache, feat_idx=[0], first_chunk=first)
        return frame, *cache
    z = vae.post_quant_conv(z)
    cache, frames = [None] * vae._cached_conv_counts["decoder"], []
    for i in range(z.shape[2]):
        frame, *cache = checkpoint(decode, i == 0, z[:, :, i:i + 1], *cache, use_reentrant=False)
        frames.append(frame)
    return torch.cat(frames, 2).clamp(-1, 1)


# ------------------------------------------------------------------------------------- many ranks

def shard(model: UnifiedModel) -> None:
    """FSDP2: each rank keeps 1/N of G, its adapter, its optimizer's state and the frozen VLM.

    Block by block, so that one block at a time is whole. The VLM's word embeddings stay whole: they
    are read outside of its forward pass (Llama-3-8B: 2 of its 16 GB in half precision). SigLIP is
    sharded inside: FSDP gives a module another class, under which transformers returns no hidden
    states.
    """
    for block in blocks(model):
        fully_shard(block)
    llm = model.vlm.llm
    embeddings = {llm.get_input_embeddings().weight, llm.lm_head.weight}
    fully_shard(llm, ignored_params=embeddings)
    fully_shard(model.vlm.vision_tower.encoder)
    for name in TRAINED:
        fully_shard(getattr(model, name))


def gathered(model: UnifiedModel) -> UnifiedModel:
    """A model with the trained parts whole, and nothing else, to save. All ranks must call it."""
    with torch.device("meta"):
        plain = UnifiedModel(model.preset)
    for name in TRAINED:
        tensors = getattr(model, name).state_dict()
        tensors = {key: whole(value).cpu() for key, value in tensors.items()}
        plain.get_submodule(name).load_state_dict(tensors, assign=True)
    return plain


def sample_timesteps_together(n: int, ranks: int, tau: float, shift: float = 3.0,
                              generator: torch.Generator | None = None) -> torch.Tensor:
    """As `model.sample_timesteps`, (n,), but `ranks` samples in a row are below tau together.

    They share one coin that shows "below" with P(t < tau); then each draws its own t of that part.
    So each sample's t is distributed as before, and no rank asks the critic, which costs, while the
    others wait. tau is in (0, 1].
    """
    p = tau / (shift - (shift - 1) * tau)                                    # P(t < tau)
    coins = torch.rand(-(-n // ranks), generator=generator) < p
    below = coins.repeat_interleave(ranks)[:n]
    u = 1 - torch.rand(n, generator=generator)                               # in (0, 1]
    t = shifted(torch.where(below, p * u, p + (1 - p) * u), shift)
    # rounding must not carry a sample over to the other side of tau
    edge = torch.tensor(float(tau))
    just_below = edge.nextafter(torch.tensor(0.))
    return torch.where(below, t.minimum(just_below), t.maximum(edge))


# ---------------------------------------------------------------------------------------- the flags

def parse(argv=None) -> tuple[argparse.Namespace, argparse.Namespace]:
    """This module's flags, and train.py's."""
    parser = Parser(description="Train at the real size; all other flags are those of train.py.")
    add = parser.add_argument
    add("--parallel", choices=("ddp", "fsdp"), default="ddp",
        help="under torchrun: whole copies, or shards of G and of the VLM")
    add("--gate-together", type=positive, metavar="N",
        help="N samples in a row are below tau together, or none is: with the number of ranks, all "
             "ask the critic in the same steps and none waits for it")
    args, rest = parser.parse_known_args(argv)
    theirs = train.parse(rest)
    together = (args.gate_together or 1) % WORLD_SIZE == 0 and theirs.think != "full"
    if args.parallel == "fsdp" and theirs.lam > 0 and not together:
        raise BadInput(f"--parallel fsdp: ranks that share the VLM must ask it together: pass "
                       f"--gate-together {WORLD_SIZE}, and not --think full, whose thoughts differ "
                       f"in length")
    if theirs.pairs and args.parallel == "fsdp":
        raise BadInput(f"--pairs {theirs.pairs}: own edits do not go with --parallel fsdp; "
                       f"drop one of the two")
    return args, theirs


def main(argv=None) -> None:
    ours, args = parse(argv)
    step = train.own_edit_step if args.pairs else train.uso_step
    settings = {**train.settings_of(args), "gate_together": ours.gate_together}
    train.begin(args, settings)
    model = train.load(args)
    latents = train.encode(model, args)
    critic = train.make_critic(model, args)
    batches = train.make_batches(model, critic, latents, args)
    if ours.gate_together:
        gated = batches.pairs or batches
        gated.timesteps = partial(sample_timesteps_together, ranks=ours.gate_together, tau=args.tau)
    recompute_activations(model)
    sharded = ours.parallel == "fsdp" and WORLD_SIZE > 1
    if sharded:                                          # before there is an optimizer
        shard(model)
    claim_folder(args.out, args.argv, settings, train.may_grow(args))
    run = train.train(model, critic, batches, args, step, args.objective)
    train.end(run, gathered(model) if sharded else model, latents, args, settings)


if __name__ == "__main__":
    run_script(main, "stopped and saved; the same command goes on from here")
