"""Model folders: a record, and safetensors for each part; written whole or not at all.

    model.json              the record
    <part>/                 a part of a library's class, or a tokenizer, as the library saves it
    <part>.safetensors      a part of ours, or plain tensors

What is loaded is accounted for to the last key and shape; nothing is looked for on the hub.
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


# loading and saving are silent; what goes wrong is raised
transformers.utils.logging.disable_progress_bar()
transformers.utils.logging.set_verbosity_error()
diffusers.utils.logging.set_verbosity_error()
diffusers.utils.logging.disable_progress_bar()
# nn.Transformer says so of norm_first
warnings.filterwarnings("ignore", message="enable_nested_tensor is True")



# ------------------------------------------------------------------------------------------ writing

def write_folder(folder: Path, contents: dict, record: dict, dtype: torch.dtype | None) -> None:
    """Write a model folder in place of what was there; a kill leaves the old one or the new.

    contents: by name, modules and tokenizers of a library, modules of ours, dicts of tensors.
    dtype: of the modules; None leaves each as it is.
    """
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
        replace_folder(temporary, folder)
    finally:
        shutil.rmtree(temporary, ignore_errors=True)


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


def replace_folder(new: Path, folder: Path) -> None:
    """Rename `new` to `folder`, in place of what was there."""
    if folder.exists():
        folder.rename(f"{folder}.old{os.getpid()}")
    new.rename(folder)
    for old in folder.parent.glob(f"{folder.name}.old*"):               # also of a killed run
        shutil.rmtree(old, ignore_errors=True)


# ------------------------------------------------------------------------------------------ reading

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
    except ValueError as error:
        raise ValueError(f"{file} is no JSON ({error}): copy the folder again") from error
    if not isinstance(record, dict) or not isinstance(record.get("frozen"), str | None):
        raise ValueError(f"{file} is no record of a model: it needs \"preset\", and \"frozen\", "
                         f"a path or null")
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


def require(path: Path) -> Path:
    """The file or folder. Raises FileNotFoundError: libraries would ask the hub."""
    if not path.exists():
        raise FileNotFoundError(f"{path} is missing: the model cannot be used without it")
    return path


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


def read_tokenizer(path: Path):
    return AutoTokenizer.from_pretrained(require(path))


def read_tensors(path: Path) -> dict[str, torch.Tensor]:
    """path.safetensors."""
    return load_file(require(Path(f"{path}.safetensors")))


def read_part(path: Path, part: nn.Module, dtype: torch.dtype) -> nn.Module:
    """What `write_part` wrote of a module like `part`, which may be on "meta".

    Raises FileNotFoundError, ValueError or RuntimeError, naming what is missing or does not fit.
    """
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
