"""model.UnifiedModel in a folder: which part lies where (the format is common/weights.py's).

A run keeps only what is trained, and points to the folder with the frozen parts.
"""

import copy
import os
from pathlib import Path

import torch

from common.fast_vae import fold_first_frame
from common.weights import (frozen_folder, model_folder, read_part, read_record, read_tensors,
                            read_tokenizer, write_folder)
from presets import PARTS, PRESETS, TRAINED, VLM_PARTS, Preset


def read_preset(folder: str | Path) -> Preset:
    """The preset of a model folder, or of a run's model. Raises FileNotFoundError, ValueError."""
    folder = model_folder(folder)
    name = read_record(folder).get("preset")
    if name not in PRESETS:
        raise ValueError(f"{folder}/model.json names none of the presets {', '.join(PRESETS)}")
    return PRESETS[name]


def read_parts(model, folder: str | Path) -> None:
    """Replace all parts of a model, which may be on "meta", by those of a folder.

    Raises FileNotFoundError or ValueError, naming what is missing or does not fit.
    """
    folder, frozen = model_folder(folder), frozen_folder(folder)
    record = read_record(folder)
    model.set_vlm_frames(record.get("vlm_frames"))
    model.vlm.tokenizer = read_tokenizer(frozen / "tokenizer")
    model.text_tokenizer = read_tokenizer(frozen / "text_tokenizer")
    for name in PARTS:
        home = folder if name in TRAINED else frozen
        if name == "boundary":                           # of as many rows as the file has
            model.set_boundary(read_tensors(home / name))
            continue
        part = read_part(home / name, model.get_submodule(name), model.dtype_of(name))
        model.set_submodule(name, part)
    model.vae.decoder.apply(fold_first_frame)
    if (frozen / "unconditional.safetensors").is_file():
        model.released_unconditional = read_tensors(frozen / "unconditional")


def read_vlm(model, folder: str | Path):
    """Another frozen VLM of the same sizes, beside the model's own, from a model's folder or from
    one that holds VLM_PARTS alone (weights/hardened). Raises as `read_parts` does."""
    vlm, dtype = copy.deepcopy(model.vlm), model.dtype_of("vlm")
    for name in VLM_PARTS:
        part = name.removeprefix("vlm.")
        vlm.set_submodule(part, read_part(Path(folder) / name, vlm.get_submodule(part), dtype))
    return vlm.requires_grad_(False).to(model.device, dtype)


def write_parts(model, folder: Path, frozen: str | Path | None, dtype: torch.dtype | None,
                parts: tuple[str, ...] | None) -> None:
    """`UnifiedModel.save_pretrained`."""
    names = parts or (TRAINED if frozen else PARTS)
    contents = {name: model.get_submodule(name) for name in names}
    if frozen:
        frozen = os.path.relpath(Path(frozen).resolve(), folder.resolve())
    elif not parts:
        contents |= {"tokenizer": model.vlm.tokenizer, "text_tokenizer": model.text_tokenizer}
        if model.released_unconditional:
            contents["unconditional"] = model.released_unconditional
    p = model.preset
    record = {"preset": p.name, "frozen": frozen, "vlm_frames": p.vlm_frames}
    write_folder(folder, contents, record, dtype)
