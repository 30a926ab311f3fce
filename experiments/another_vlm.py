"""A model with another VLM: weights/hardened is a VLM alone, that of weights/tiny after its fifth
lesson (pretrain/harden.py).
"""

import copy
from pathlib import Path

from model import UnifiedModel, load_model

VLM_PARTS = ("vlm.llm", "vlm.vision_tower", "vlm.mm_projector")


def with_vlm_of(model: UnifiedModel, folder: str | Path) -> UnifiedModel:
    """A frozen copy of the model that sees and judges with the VLM of `folder`.

    Raises FileNotFoundError or ValueError, naming what is missing or does not fit.
    """
    other = copy.deepcopy(model)
    for part in VLM_PARTS:
        other.load_part(part, Path(folder))
    return other.cast().requires_grad_(False).to(model.device)


def load_with_vlm(folder: str | Path | None) -> UnifiedModel:
    """`load_model(folder)`; of a folder that has a VLM alone, weights/tiny with that VLM."""
    if folder and has_vlm_alone(Path(folder)):
        return with_vlm_of(load_model(None), folder)
    return load_model(folder)


def has_vlm_alone(folder: Path) -> bool:
    """Whether `save_pretrained(parts=VLM_PARTS)` wrote it."""
    return (folder / "vlm.llm").is_dir() and not (folder / "transformer").exists()
