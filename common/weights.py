"""Model folders: a record, and safetensors for each part; written whole or not at all.

    model.json              the record
    <part>/                 a part of a library's class, or a tokenizer, as the library saves it
    <part>.safetensors      a part of ours, or plain tensors

A run keeps only what is trained, and points to the folder with the frozen parts. What is loaded is
accounted for to the last key and shape; nothing is looked for on the hub.
"""

import copy
import hashlib
import json
import os
import shutil
import warnings
from pathlib import Path
from typing import Iterable

import diffusers
import torch
import torch.nn as nn
import transformers
from safetensors.torch import load_file, save_file
from transformers import AutoTokenizer

from common.precision import fold_first_frame
from presets import PARTS, PRESETS, TRAINED, VLM_PARTS, Preset

# loading and saving are silent; what goes wrong is raised
transformers.utils.logging.disable_progress_bar()
transformers.utils.logging.set_verbosity_error()
diffusers.utils.logging.set_verbosity_error()
diffusers.utils.logging.disable_progress_bar()
# nn.Transformer says so of norm_first
warnings.filterwarnings("ignore", message="enable_nested_tensor is True")


# --------------------------------------------------------------------------------- a model's folder

def read_record(folder: Path) -> dict:
    """model.json of a model folder. Raises FileNotFoundError or ValueError with the mend."""
    file = folder / "model.json"
    if (folder / "ar_model").is_dir():
        raise ValueError(f"{folder} is the released directory as it was downloaded; convert it "
                         f"first: python -m realsize.convert --from {folder} --to weights/revise")
    if not file.is_file():
        raise FileNotFoundError(f"{file} is missing: {folder} is no model folder")
    try:
        record = json.loads(file.read_text("utf-8"))
        PRESETS[record["preset"]], record["frozen"]
    except (ValueError, LookupError, TypeError) as error:
        raise ValueError(f"{file} is broken, or of none of the presets {', '.join(PRESETS)} "
                         f"({error!r}): copy the folder again") from error
    return record


def model_folder(folder: str | Path) -> Path:
    """Where the model is: a run of train.py keeps it in run/model."""
    run = Path(folder) / "model"
    return run if run.is_dir() else Path(folder)


def frozen_folder(folder: str | Path) -> Path:
    """Where the frozen parts of a model folder, or of a run's model, are: a run keeps only G."""
    folder = model_folder(folder)
    frozen = read_record(folder)["frozen"]
    return folder / frozen if frozen else folder


def read_preset(folder: str | Path) -> Preset:
    """The preset of a model folder, or of a run's model. Raises FileNotFoundError, ValueError."""
    return PRESETS[read_record(model_folder(folder))["preset"]]


def read_parts(model, folder: str | Path) -> None:
    """Replace all parts of a model, which may be on "meta", by those of a folder. Raises
    FileNotFoundError or ValueError, naming what is missing or does not fit."""
    folder, frozen = model_folder(folder), frozen_folder(folder)
    record = read_record(folder)
    model.set_vlm_frames(record.get("vlm_frames"))
    model.vlm.tokenizer = AutoTokenizer.from_pretrained(require(frozen / "tokenizer"))
    model.text_tokenizer = AutoTokenizer.from_pretrained(require(frozen / "text_tokenizer"))
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
    """`UnifiedModel.save_pretrained`: in place of what was there; a kill leaves the old folder or
    the new."""
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
    for left in folder.parent.glob(f"{folder.name}.tmp*"):              # by a run that was killed
        shutil.rmtree(left, ignore_errors=True)
    temporary = Path(f"{folder}.tmp{os.getpid()}")
    try:
        temporary.mkdir(parents=True)
        (temporary / "model.json").write_text(json.dumps(record) + "\n", "utf-8")
        for name, part in contents.items():
            write_part(temporary / name, part, dtype)
        mode = (temporary / "model.json").stat().st_mode                # as the umask says
        for file in temporary.rglob("*.safetensors"):
            file.chmod(mode)                             # safetensors are for their owner alone
        if folder.exists():
            folder.rename(f"{folder}.old{os.getpid()}")
        temporary.rename(folder)
        for old in folder.parent.glob(f"{folder.name}.old*"):           # also of a killed run
            shutil.rmtree(old, ignore_errors=True)
    finally:
        shutil.rmtree(temporary, ignore_errors=True)


# ------------------------------------------------------------------------------------- a part of it

def write_part(path: Path, part, dtype: torch.dtype | None) -> None:
    """Write one of a folder's `contents` to path/ or path.safetensors."""
    if not hasattr(part, "save_pretrained"):
        is_ours = isinstance(part, nn.Module)
        tensors = part.state_dict() if is_ours else part
        save_file({key: value.to(dtype if is_ours and dtype else value.dtype).contiguous()
                   for key, value in tensors.items()}, f"{path}.safetensors")
        return
    if isinstance(part, nn.Module) and dtype not in (None, torch.float32):
        part = copy.deepcopy(part).to(dtype)
    part.save_pretrained(path)
    config = path / "config.json"
    if config.exists():
        kept = json.loads(config.read_text("utf-8"))
        kept.pop("_name_or_path", None)                  # a path of this machine
        config.write_text(json.dumps(kept, indent=2) + "\n", "utf-8")


def require(path: Path) -> Path:
    """The file or folder. Raises FileNotFoundError: libraries would ask the hub."""
    if not path.exists():
        raise FileNotFoundError(f"{path} is missing: the model cannot be used without it")
    return path


def read_tensors(path: Path) -> dict[str, torch.Tensor]:
    """path.safetensors."""
    return load_file(require(Path(f"{path}.safetensors")))


def read_part(path: Path, part: nn.Module, dtype: torch.dtype) -> nn.Module:
    """What `write_part` wrote of a module like `part`, which may be on "meta". Raises
    FileNotFoundError, ValueError or RuntimeError, naming what is missing or does not fit."""
    if not hasattr(part, "save_pretrained"):
        part.load_state_dict(read_tensors(path), assign=True)
        return part
    loaded, info = type(part).from_pretrained(
        require(path), torch_dtype=dtype, output_loading_info=True, ignore_mismatched_sizes=True,
        use_safetensors=True)
    wrong = {kind: [key if isinstance(key, str) else key[0] for key in keys][:5]
             for kind, keys in info.items() if keys}
    if wrong:
        raise ValueError(f"{path} does not fit: {wrong}")
    return loaded


# ------------------------------------------------------------------------------------- their names

def hash_of_weights(folder: str | Path, head: str = "") -> str:
    """Names a text and all weights in a folder, in sixteen letters. ValueError: there are none."""
    files = sorted(Path(folder).rglob("*.safetensors"))
    if not files:
        raise ValueError(f"{folder}: holds no weights")
    sha = hashlib.sha256(head.encode())
    for file in files:
        sha.update(file.read_bytes())
    return sha.hexdigest()[:16]


def hash_of_tensors(tensors: Iterable[tuple[str, torch.Tensor]], head: str = "") -> str:
    """sha256 of a text, and of the names, shapes, types and all bytes of tensors."""
    sha = hashlib.sha256(head.encode())
    for name, tensor in tensors:
        sha.update(f"{name} {tuple(tensor.shape)} {tensor.dtype}".encode())
        sha.update(tensor.detach().cpu().contiguous().flatten().view(torch.uint8).numpy())
    return sha.hexdigest()
