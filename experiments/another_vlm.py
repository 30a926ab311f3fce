"""A folder that holds a VLM alone: weights/hardened, weights/tiny's after its fifth lesson."""

from pathlib import Path

from common.checkpoint import read_vlm
from model import UnifiedModel, load_model


def load_with_vlm(folder: str | Path | None) -> UnifiedModel:
    """`load_model(folder)`; of a folder that has a VLM alone, weights/tiny with that VLM."""
    if folder and has_vlm_alone(Path(folder)):
        model = load_model(None)
        model.vlm = read_vlm(model, folder)
        return model
    return load_model(folder)


def has_vlm_alone(folder: Path) -> bool:
    """Whether `save_pretrained(parts=VLM_PARTS)` wrote it."""
    return (folder / "vlm.llm").is_dir() and not (folder / "transformer").exists()
