"""Triplets (source, target, instruction), and where they come from: the tiny world or the user's own videos (Sec. 3).

    python train.py --data triplets.jsonl        # JSON lines, paths relative to the file; eight types, see world.TYPES:
    {"source_video_path": "a.mp4", "target_video_path": "b.gif", "instruction": "...", "type": "Temporal Reasoning"}

Whatever they come from, triplets become `Item`s, and `Latents` encodes each of them once, to a cache on disk: of the
whole model, training then runs only the generator (and the critic). `batch_indices` says which of them come next.

Curation (scene cuts, similarity filters, a VLM's instructions) is curate.py's; what it writes is such a manifest.

Axis letters: F frames, C channels, H W pixels, f h w latent frames and sides, T tokens, D width, K frames that U sees.
A video is (F, 3, H, W), float32 in [-1, 1].
"""

import hashlib
import json
from dataclasses import dataclass
from pathlib import Path
from typing import Callable

import numpy as np
import torch
import torch.distributed as dist
from safetensors import SafetensorError, safe_open
from safetensors.torch import load_file, save
from tqdm import tqdm

from common.distributed import RANK, WORLD_SIZE
from common.files import BadInput, atomic_write
from common.video import _pictures, count_frames, from_bytes, read_video, to_bytes
from tiny import world


# ------------------------------------------------------------------------------------------------------ triplets

@dataclass(frozen=True)
class Item:
    """A triplet that is not in memory yet: `load()` reads it, (source, target). `key` is a hash of its content.

    subset, index: its place in the tiny world (`world.make_triplet`); or what its type belongs to, and its line.
    """
    key: str
    instruction: str
    type: str
    subset: str
    load: Callable[[], tuple[torch.Tensor, torch.Tensor]]
    index: int


def _sha(*parts) -> str:
    return hashlib.sha256(json.dumps(parts).encode()).hexdigest()


def world_items(subsets: tuple[str, ...] = ("rave", "icvg"), split: str = "train", n: int = 1024,
                wrong: float = 0.) -> list[Item]:
    """`n` triplets of the tiny world, the subsets in turn. Raises ValueError for an unknown subset or split.

    wrong: this share of the targets are near misses (world.MISSES, each as often), as in data that a model has made and
    that nobody looked through. The same items are wrong, in the same way, for whoever asks.
    """

    def item(index, subset):
        t = world.make_triplet(index, subset, split)
        rng = np.random.default_rng([world.SUBSETS.index(subset), index, 11])
        miss = world.MISSES[int(rng.integers(len(world.MISSES)))] if rng.random() < wrong else ""

        def load():
            again = world.make_triplet(index, subset, split)
            return again.source, world.near_miss(again, miss, np.random.default_rng(index))[0] if miss else again.target
        return Item(_sha(world.VERSION, split, subset, index, *[miss] * bool(miss)), t.instruction, t.type, subset, load, index)
    return [item(k // len(subsets), subsets[k % len(subsets)]) for k in range(n)]


FIELDS = ("source_video_path", "target_video_path", "instruction", "type")
SUBSET_OF = {type: subset for subset, types in world.TYPES.items() for type in types}


def hash_video(path: Path) -> list[str]:
    """sha256 of a file, or of each image of a folder."""
    return [hashlib.sha256(file.read_bytes()).hexdigest() for file in (_pictures(path) if path.is_dir() else [path])]


def manifest_record(line: str) -> dict:
    """A line of a manifest: an object with the FIELDS, of a known type. Raises BadInput."""
    try:
        record = json.loads(line)
    except (ValueError, RecursionError) as error:
        raise BadInput(f"is not JSON ({error}); write one object on each line") from error
    if not isinstance(record, dict):
        raise BadInput(f"is no JSON object; write {{\"{FIELDS[0]}\": ..., ...}}")
    for field in FIELDS:
        if not isinstance(record.get(field), str) or not record[field].strip():
            value = json.dumps(record[field])[:40] if field in record else "missing"
            raise BadInput(f"the field {field!r} is {value}; each line needs texts for {', '.join(FIELDS)}")
    if record["type"] not in SUBSET_OF:
        raise BadInput(f"unknown type {record['type']!r}; choose one of {', '.join(SUBSET_OF)}")
    return record


def manifest_lines(path: Path) -> list[tuple[int, str]]:
    """(number, line) of a manifest's lines that are not empty. Raises BadInput where it cannot be read."""
    try:
        lines = path.read_text("utf-8-sig").split("\n")
    except (OSError, UnicodeDecodeError) as error:
        raise BadInput(f"{path}: cannot be read ({getattr(error, 'strerror', None) or error}); "
                       f"give a manifest of JSON lines, in UTF-8") from error
    return [(number, line) for number, line in enumerate(lines, 1) if line.strip()]


def _manifest_item(line: str, number: int, folder: Path, preset, check_text) -> Item:
    record = manifest_record(line)
    try:
        check_text(record["instruction"])
    except ValueError as error:
        raise BadInput(str(error)) from error
    videos, size = [folder / record[field] for field in FIELDS[:2]], (preset.frames, preset.height, preset.width)
    for video in videos:
        count_frames(video, preset.frames)
    key = _sha(*map(hash_video, videos), record["instruction"], size)
    return Item(key, record["instruction"], record["type"], SUBSET_OF[record["type"]],
                lambda: tuple(read_video(video, *size) for video in videos), number)


def manifest_items(path: str | Path, preset, skip_bad: bool = False,
                   check_text: Callable[[str], object] = lambda text: None) -> tuple[list[Item], list[str]]:
    """The triplets of a manifest, every line and every video of it checked; and one line for each that was skipped.

    preset: something with frames, height and width. check_text: raises ValueError for an instruction that the model
    cannot take. Raises BadInput, naming file:line, for the first bad line; with `skip_bad` only where none is good.
    """
    path, items, skipped = Path(path), [], []
    lines = manifest_lines(path)
    for number, line in tqdm(lines, desc="check videos", leave=False, disable=None):       # no bar in a pipe
        try:
            items.append(_manifest_item(line, number, path.parent, preset, check_text))
        except BadInput as error:
            skipped.append(f"{path}:{number}: {error}")
            if not skip_bad:
                raise BadInput(skipped[0] + " (or pass --skip-bad)") from error
    if not items:
        raise BadInput(skipped[0] + " (and no other line is better)" if skipped else
                       f"{path}: holds no triplet; write one JSON object on each line")
    return items, skipped


# --------------------------------------------------------------------------------------------- the latent cache

FROZEN = ("vlm", "text_encoder", "vae", "ar_head", "adapter", "boundary")                  # as in model.py
TENSORS = {"source", "target", "bridged", "text", "frames"}
BATCH = 8                                                # clips encoded at a time
MEMORY = 4 * 2 ** 30                                     # bytes of encoded clips that are kept in memory


def fingerprint(model, parts: tuple[str, ...] = FROZEN) -> str:
    """sha256 of all that encoding depends on: the frozen weights (or other `parts`), tokenizers, VAE's scale, preset."""
    sha = hashlib.sha256(repr((model.preset, model.vae.config.latents_mean, model.vae.config.latents_std)).encode())
    for tokenizer in (model.vlm.tokenizer, model.text_tokenizer):
        sha.update(repr(sorted(tokenizer.get_vocab().items())).encode())
    for part in parts:
        for name, tensor in sorted(getattr(model, part).state_dict().items()):
            sha.update(f"{part}.{name} {tuple(tensor.shape)} {tensor.dtype}".encode())
            sha.update(tensor.detach().cpu().contiguous().flatten().view(torch.uint8).numpy())
    return sha.hexdigest()


@torch.no_grad()
def encode(model, items: list[Item]) -> list[dict[str, torch.Tensor]]:
    """What training needs of each triplet, made by the frozen parts. Raises BadInput for a too long instruction."""
    source, target = (torch.stack(clips).to(model.device) for clips in zip(*(item.load() for item in items)))
    instructions = [item.instruction for item in items]
    try:
        with model.precision():
            text = model.encode_text(instructions)
    except ValueError as error:
        raise BadInput(str(error)) from error
    with model.precision():
        bridged = model.bridge(model.encode_vlm(source, instructions))
        columns = {"source": model.encode_video(source), "target": model.encode_video(target), "text": text,
                   "bridged": bridged.to(model.dtype_of("adapter")), "frames": to_bytes(model.vlm.pick(source))}
    return [{name: column[i].cpu().contiguous() for name, column in columns.items()} for i in range(len(items))]


class Latents:
    """A sequence of encoded triplets: ds[i] is a dict, all float32, of

        source, target (C, f, h, w)   latents           frames (K, 3, H, W)   what U sees of the source, in [-1, 1]
        bridged (T, D)                Adapter(ARHead(U(V_src, I)))            text (T, D)   T5(I)

    and ds.items[i] its Item. Each is encoded once, to `folder`/<hash of its key and `fingerprint(model)`>.safetensors:
    a run that was stopped goes on where it was, and a broken file is made again. Raises BadInput where a clip cannot
    be read or the folder cannot be written.
    """

    def __init__(self, items: list[Item], model, folder: str | Path, progress: bool = True):
        self.items, self._memory = list(items), {}                                         # of the files, while it is small
        stamp = fingerprint(model)
        self.key = _sha(stamp, *(item.key for item in self.items))[:16]                    # of the whole set
        self.files = [Path(folder) / f"{_sha(item.key, stamp)}.safetensors" for item in self.items]
        missing = {i for i in range(len(self)) if i // BATCH % WORLD_SIZE == RANK and not self._is_whole(i)}   # each rank's share
        with tqdm(total=len(missing), desc="encode", unit="clip", disable=not (progress and missing)) as bar:
            for start in range(0, len(self), BATCH):     # fixed groups: the last bits of an item depend on its company
                rows = range(start, min(start + BATCH, len(self)))
                if missing.isdisjoint(rows):
                    continue
                for i, tensors in zip(rows, encode(model, [self.items[i] for i in rows])):
                    if i in missing:
                        atomic_write(self.files[i], save(tensors))
                        bar.update()
        if WORLD_SIZE > 1:
            dist.barrier()

    def _is_whole(self, i: int) -> bool:
        try:
            with safe_open(self.files[i], "pt") as file:                                   # checks header and length
                return set(file.keys()) == TENSORS
        except (OSError, SafetensorError):
            return False

    def __len__(self) -> int:
        return len(self.items)

    def __getitem__(self, i: int) -> dict[str, torch.Tensor]:
        row = self._memory.get(i)
        if row is None:
            row = load_file(self.files[i])
            if len(self._memory) * self.files[i].stat().st_size < MEMORY:
                self._memory[i] = row
        return {name: from_bytes(x) if name == "frames" else x.float() for name, x in row.items()}


def batch_indices(n: int, batch: int, step: int, seed: int) -> list[int]:
    """Which of `n` samples make up batch number `step` (from 0): each epoch is a permutation, from (seed, epoch).

    A pure function, so that a resumed run needs no stored position. A batch may reach over the end of an epoch.
    """
    places = range(step * batch, (step + 1) * batch)
    epochs = {epoch: np.random.default_rng([seed, epoch]).permutation(n) for epoch in {p // n for p in places}}
    return [int(epochs[p // n][p % n]) for p in places]
