"""FSDP2: each rank keeps 1/N of G, of its optimizer's state and of the frozen VLM."""

import torch
from torch.distributed.fsdp import fully_shard

from common.distributed import whole
from model import TRAINED, UnifiedModel
from realsize.recompute import blocks


def shard(model: UnifiedModel) -> None:
    """Shard G, its adapter and the VLM, block by block, so that one block at a time is whole.

    The VLM's word embeddings stay whole: they are read outside of its forward pass (Llama-3-8B: 2
    of its 16 GB in bfloat16). SigLIP is sharded inside: FSDP gives a module another class, under
    which transformers returns no hidden states.
    """
    for layers in blocks(model).values():
        for block in layers:
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
