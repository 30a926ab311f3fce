"""Tensors out of other people's files, without running their code.

.safetensors holds no code. .pt, .pth and .bin are read with torch's weights_only. A .pkl is read by
an unpickler that knows tensors, dicts, lists and plain values, and refuses everything else by name.

A checkpoint holds more than weights: the epoch, the optimizer's state. What is no tensor is left
out and named; whoever needs a tensor that is not there says so.
"""

import io
import pickle
import re
import zipfile
from collections import OrderedDict
from collections.abc import Iterator
from pathlib import Path

import torch
from safetensors import SafetensorError, safe_open

from common.files import BadInput

Tensors = dict[str, torch.Tensor]

# Entries of a checkpoint that training goes on from, and that are no part of the model.
TRAINING_STATE = {
    "optimizer", "optimizer_state_dict", "lr_scheduler", "scheduler", "scheduler_state_dict",
    "scaler", "rng_state", "frozen_param_fragments"}
# Of context.pkl: the authors' code reads entry 0 of these, whatever they are.
FIRST_IS_MEANT = {"text_emb", "text_emb_siglip2", "vlm_last_hidden_states"}
TORCH_SUFFIXES = (".bin", ".pt", ".pth")
# What lies beside the shards of a folder: hidden files, and the state of a training.
NO_SHARD = re.compile(r"\.|training_args|optimizer|scheduler|scaler|rng_state")
# What the readers raise for a file that is missing, cut short or something else, or names code.
BROKEN = (pickle.UnpicklingError, EOFError, OSError, RuntimeError, ValueError, TypeError, KeyError,
          SafetensorError)


def load_bytes(content: bytes) -> torch.Tensor:
    """A tensor in a pickle is a torch file of its own, and torch's reader of it would run code."""
    return torch.load(io.BytesIO(content), map_location="cpu", weights_only=True)


class TensorUnpickler(pickle.Unpickler):
    """Reads pickled tensors, dicts and plain values. Anything else is refused before it is run."""

    KNOWN = {
        ("collections", "OrderedDict"): OrderedDict,
        ("torch._utils", "_rebuild_tensor_v2"): torch._utils._rebuild_tensor_v2,
        ("torch._utils", "_rebuild_parameter"): torch._utils._rebuild_parameter,
        ("torch.storage", "_load_from_bytes"): load_bytes,
    }

    def find_class(self, module, name):
        if (module, name) not in self.KNOWN:
            raise pickle.UnpicklingError(f"GLOBAL {module}.{name}")
        return self.KNOWN[module, name]


# ------------------------------------------------------------------------------------ what is in it

def leaves(value, name: str = "") -> Iterator[tuple[str, object]]:
    """(dotted name, value) of all in nested dicts. The state of training is not looked into."""
    is_dict = isinstance(value, dict) and all(isinstance(key, str) for key in value)
    if not is_dict or name in TRAINING_STATE:
        yield name, value
        return
    for key, part in value.items():
        yield from leaves(part, f"{name}.{key}" if name else key)


def sort_out(content) -> tuple[Tensors, list[str]]:
    """The tensors of a loaded file, and notes on the rest. Raises ValueError where it has none."""
    tensors, left_out, notes = {}, [], []
    for name, value in leaves(content):
        # the VLM's states (T, D) of a single text are no list of several
        one_text = name == "vlm_last_hidden_states" and getattr(value, "ndim", 0) == 2
        if name in FIRST_IS_MEANT and len(value) > 0 and not one_text:
            if len(value) > 1:
                notes.append(f"the first entry is used: {name}, of {len(value)}")
            value = value[0]
        if isinstance(value, torch.Tensor) and name not in TRAINING_STATE:
            tensors[name] = value.detach()
        else:
            left_out.append(name)
    if not tensors:
        raise ValueError("it holds no tensor, and only tensors and dicts of them are read")
    if left_out:
        notes.append(f"left out {', '.join(sorted(left_out))}")
    return tensors, notes


# ------------------------------------------------------------------------------------ reading files

def read_file(path: Path, device: str) -> tuple[Tensors, list[str]]:
    """One file. A .pkl may be a torch file (a zip) under that name."""
    if path.suffix == ".safetensors":
        with safe_open(path, "pt") as file:              # mapped: on "meta", its header is read
            return {name: file.get_tensor(name).to(device) for name in file.keys()}, []
    is_zip = zipfile.is_zipfile(path)
    if path.suffix == ".pkl" and not is_zip:
        with path.open("rb") as file:
            return sort_out(TensorUnpickler(file).load())
    content = torch.load(path, map_location=device, weights_only=True, mmap=is_zip)
    return sort_out(content)


def files_of(path: Path) -> list[Path]:
    """The file itself, or the shards in a folder. Raises BadInput where a folder has none."""
    if not path.is_dir():
        return [path]
    files = sorted(file for file in path.iterdir() if not NO_SHARD.match(file.name))
    shards = [file for file in files if file.suffix == ".safetensors"]
    shards = shards or [file for file in files if file.suffix in TORCH_SUFFIXES]
    if not shards:
        raise BadInput(f"{path}: holds no .safetensors, .bin, .pt or .pth; "
                       f"is the directory complete?")
    return shards


def read_checkpoint(path: Path, device: str = "cpu") -> tuple[Tensors, list[str]]:
    """A .safetensors, .pt, .pth, .bin or .pkl file, or all such files of a folder (its shards).

    Returns the tensors, names of nested dicts joined by dots, and notes on what else is in it.
    device: "cpu", or "meta" for names, shapes and dtypes without numbers, in no time. Raises
    BadInput where a file is missing or broken, names code, or holds what is neither a tensor nor
    harmless.
    """
    tensors, notes = {}, []
    for file in files_of(path):
        try:
            of_file, more = read_file(file, device)
        except BROKEN as error:
            code = re.search(r"GLOBAL (\S+)", str(error))
            reason = " ".join(str(error).split())[:200]
            why = f"cannot be read as tensors ({reason}); download it again"
            if code:
                why = (f"names {code[1]}, which is no tensor and might run code; where you trust "
                       f"it, load it yourself and save its tensors alone")
            raise BadInput(f"{file}: {why}") from error
        tensors |= of_file
        notes += more
    return tensors, notes
