"""Files of tensors that know whether they are whole: safetensors with their own sha256."""

import hashlib
from pathlib import Path
from typing import Iterable

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save

from common.files import BadInput, atomic_write


def hash_of_tensors(tensors: Iterable[tuple[str, torch.Tensor]], head: str = "") -> str:
    """sha256 of a text, and of the names, shapes, types and all bytes of tensors."""
    sha = hashlib.sha256(head.encode())
    for name, tensor in tensors:
        sha.update(f"{name} {tuple(tensor.shape)} {tensor.dtype}".encode())
        sha.update(tensor.detach().cpu().contiguous().flatten().view(torch.uint8).numpy())
    return sha.hexdigest()


def write_stamped(path: Path, tensors: dict[str, torch.Tensor]) -> None:
    """Write tensors with their hash. Raises BadInput where the folder cannot be written."""
    stamp = {"sha256": hash_of_tensors(sorted(tensors.items()))}
    atomic_write(path, save(tensors, stamp))


def is_whole(path: Path) -> bool:
    """Whether a stamped file is there, to its end; its bytes are not read."""
    try:
        with safe_open(path, "pt") as file:              # checks header and length
            return "sha256" in (file.metadata() or {})
    except (OSError, SafetensorError):
        return False


def read_stamped(path: Path) -> dict[str, torch.Tensor]:
    """The tensors of a stamped file. One that has changed is deleted, and BadInput raised."""
    with safe_open(path, "pt") as file:
        tensors = {name: file.get_tensor(name) for name in file.keys()}
        stamp = file.metadata()["sha256"]
    if hash_of_tensors(sorted(tensors.items())) != stamp:
        path.unlink()
        raise BadInput(f"{path}: had changed since it was written, and is deleted; "
                       f"the same command makes it anew and goes on")
    return tensors
