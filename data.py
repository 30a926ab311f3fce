"""Triplets (source, target, instruction): where they come from, what a batch is (Sec. 3).

    python train.py --data triplets.jsonl        # JSON lines, paths relative to the file
    {"source_video_path": "a.mp4", "target_video_path": "b.gif",
     "instruction": "...", "type": "Temporal Reasoning",
     "start": 40, "stride": 2}                   # frames 40, 42, ... of both; or "stride": "spread"

A triplet is an `Item` until it is read. `Latents` runs the frozen encoders once for each, into a
cache on disk; training then needs only the generator and the critic. `Batches` says what is in step
number n.

Left out: curation (scene cuts, similarity filters, a VLM's instructions). That is rvedata/, which
writes manifests.

Axis letters: B batch, F frames, C channels, H W pixels, f h w latent frames and sides, T tokens, D
width, K frames that U sees. A video is (F, 3, H, W), float32 in [-1, 1].
"""

import hashlib
import json
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Callable

import numpy as np
import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save
from tqdm import tqdm

from common.distributed import RANK, WORLD_SIZE, wait_for_all
from common.files import BadInput, atomic_write
from common.video import (clip_numbers, crop, from_bytes, hash_video, pick_frames, to_bytes,
                          to_video)
from model import FROZEN, sample_timesteps
from tiny import world
from tiny.drift import CONTRAST, SOFTNESS, TINT, drifted


# ----------------------------------------------------------------------------------------- triplets

@dataclass(frozen=True)
class Item:
    """A triplet that is not in memory yet: `load()` reads (source, target); `key`: its hash.

    subset, index: its place in the tiny world (`world.make_triplet`); of a manifest, its type's
    subset and line. view() reads the source's frames before they are cropped, (F, 3, H, W); None:
    they are not. part: which frames make the clip, where the videos have more.
    """
    key: str
    instruction: str
    type: str
    subset: str
    load: Callable[[], tuple[torch.Tensor, torch.Tensor]]
    index: int
    view: Callable[[], torch.Tensor] | None = None
    part: str = ""


def hash_of(*parts) -> str:
    """sha256 of what JSON can hold."""
    return hashlib.sha256(json.dumps(parts).encode()).hexdigest()


NEW_CLIPS = 1_000_000    # the training split's triplets before it were lessons of VAE, VLM or base


def world_items(subsets: tuple[str, ...] = ("rave", "icvg"), split: str = "train", n: int = 1024,
                wrong: float = 0., drift: float = 0., first: int = NEW_CLIPS) -> list[Item]:
    """`n` triplets of the tiny world from index `first` on, the subsets in turn.

    wrong: this share of the targets are near misses (world.MISSES, each as often), as in data that
    a model made and nobody checked. drift: this share of the targets carry the data generator's own
    hand, see tiny/drift.py. Which ones, and how, depends on the triplet alone. ValueError: no such
    subset or split.
    """
    return [_world_item(first + k // len(subsets), subsets[k % len(subsets)], split, wrong, drift)
            for k in range(n)]


def _world_item(index: int, subset: str, split: str, wrong: float, drift: float) -> Item:
    triplet = world.make_triplet(index, subset, split)
    rng = np.random.default_rng([world.SUBSETS.index(subset), index, 11])
    is_wrong = rng.random() < wrong
    miss = world.MISSES[int(rng.integers(len(world.MISSES)))]
    drifts = np.random.default_rng([world.SUBSETS.index(subset), index, 13]).random() < drift
    key = [world.VERSION, split, subset, index]
    if is_wrong:
        key.append(miss)
    if drifts:
        key.append(["drifted", CONTRAST, TINT, SOFTNESS])

    def load():
        triplet = world.make_triplet(index, subset, split)
        target = triplet.target
        if is_wrong:
            target, _ = world.near_miss(triplet, miss, np.random.default_rng(index))
        if drifts:
            target = drifted(target)
        return triplet.source, target
    return Item(hash_of(*key), triplet.instruction, triplet.type, subset, load, index)


# -------------------------------------------------------------------------- the user's own triplets

FIELDS = ("source_video_path", "target_video_path", "instruction", "type")
SUBSET_OF = {type: subset for subset, types in world.TYPES.items() for type in types}


def manifest_record(line: str) -> dict:
    """A line of a manifest: an object with the FIELDS, of a known type, and perhaps with `start`
    and `stride`. Raises BadInput."""
    try:
        record = json.loads(line)
    except (ValueError, RecursionError) as error:
        raise BadInput(f"is not JSON ({error}); write one object on each line") from error
    try:
        json.dumps(record, ensure_ascii=False).encode()
    except UnicodeEncodeError as error:                  # "\ud800" stands for half of a character
        raise BadInput(f"is no Unicode text ({error.reason}); write it in UTF-8") from error
    if not isinstance(record, dict):
        raise BadInput(f"is no JSON object; write {{\"{FIELDS[0]}\": ..., ...}}")
    for field in FIELDS:
        value = record.get(field)
        if not isinstance(value, str) or not value.strip():
            found = json.dumps(value)[:40] if field in record else "missing"
            raise BadInput(f"the field {field!r} is {found}; "
                           f"each line needs texts for {', '.join(FIELDS)}")
    if record["type"] not in SUBSET_OF:
        raise BadInput(f"unknown type {record['type'][:80]!r}; "
                       f"choose one of {', '.join(SUBSET_OF)}")
    if not is_count(record.get("start", 0), 0):
        raise BadInput(f"the field 'start' is {json.dumps(record['start'])[:40]}; "
                       f"give the number of a frame, 0 for the first")
    if record.get("stride", "spread") != "spread" and not is_count(record["stride"], 1):
        raise BadInput(f"the field 'stride' is {json.dumps(record['stride'])[:40]}; "
                       f"give a whole number from 1 on, or \"spread\"")
    return record


def is_count(value, least: int) -> bool:
    """Whether a value out of JSON is a whole number from `least` on."""
    return isinstance(value, int) and not isinstance(value, bool) and value >= least


def manifest_lines(path: Path) -> list[tuple[int, str]]:
    """(number, line) of a manifest's lines that are not empty. BadInput: it cannot be read."""
    try:
        lines = path.read_text("utf-8-sig").split("\n")
    except (OSError, UnicodeDecodeError) as error:
        reason = getattr(error, "strerror", None) or error
        raise BadInput(f"{path}: cannot be read ({reason}); "
                       f"give a manifest of JSON lines, in UTF-8") from error
    return [(number, line) for number, line in enumerate(lines, 1) if line.strip()]


def manifest_items(path: str | Path, preset, skip_bad: bool = False,
                   check_text: Callable = lambda text: None) -> tuple[list[Item], list[str]]:
    """The triplets of a manifest, each line and video checked; and a line for each one skipped.

    preset: has frames, frame_stride, height and width. check_text: raises ValueError for an
    instruction that the model cannot take. Raises BadInput, naming file:line, for the first bad
    line; with `skip_bad` only where none is good.
    """
    path, items, skipped = Path(path), [], []
    lines = manifest_lines(path)
    # no bar in a pipe
    for number, line in tqdm(lines, desc="check videos", leave=False, disable=None):
        try:
            items.append(_manifest_item(line, number, path.parent, preset, check_text))
        except BadInput as error:
            skipped.append(f"{path}:{number}: {error}")
            if not skip_bad:
                raise BadInput(f"{skipped[0]} (or pass --skip-bad)") from error
    if not items and skipped:
        raise BadInput(f"{skipped[0]} (and no other line is better)")
    if not items:
        raise BadInput(f"{path}: holds no triplet; write one JSON object on each line")
    return items, skipped


def _manifest_item(line: str, number: int, folder: Path, preset, check_text) -> Item:
    record = manifest_record(line)
    try:
        check_text(record["instruction"])
    except ValueError as error:
        raise BadInput(str(error)) from error
    videos = [folder / record["source_video_path"], folder / record["target_video_path"]]
    start, stride = record.get("start", 0), record.get("stride", preset.frame_stride)
    stride = None if stride == "spread" else stride
    numbers, longer = [], False
    for video in videos:
        of_clip, n = clip_numbers(video, preset.frames, stride, start)
        numbers.append(of_clip)
        longer |= n > preset.frames
    size = (preset.height, preset.width)

    def load():
        source, target = [crop(pick_frames(video, of_clip), *size)
                          for video, of_clip in zip(videos, numbers)]
        return source, target

    def view():
        return to_video(pick_frames(videos[0], numbers[0]))
    key = hash_of(*map(hash_video, videos), record["instruction"], size, numbers)
    part = describe_part(preset.frames, stride, start) if longer else ""
    return Item(key, record["instruction"], record["type"], SUBSET_OF[record["type"]], load, number,
                view, part)


def describe_part(frames: int, stride: int | None, start: int) -> str:
    """The clip that `common.video.frame_numbers` makes of a longer video, in words."""
    if stride is None:
        return f"{frames} frames spread from {start} to the last"
    step = "" if stride == 1 else f" in steps of {stride}"
    return f"frames {start} to {start + stride * (frames - 1)}{step}"


# --------------------------------------------------------------------------------- the latent cache

TENSORS = {"source", "target", "bridged", "text", "frames"}
BATCH = 8                                                # clips encoded at a time
MEMORY = 4 * 2 ** 30                                     # bytes of clips kept in memory


def fingerprint(model, parts: tuple[str, ...] = FROZEN) -> str:
    """sha256 of all that encoding depends on: weights of `parts`, tokenizers, VAE scale, preset."""
    scale = model.vae.config.latents_mean, model.vae.config.latents_std
    sha = hashlib.sha256(repr((model.preset, *scale)).encode())
    for tokenizer in (model.vlm.tokenizer, model.text_tokenizer):
        sha.update(repr(sorted(tokenizer.get_vocab().items())).encode())
    for part in parts:
        add_tensors(sha, f"{part}.", getattr(model, part).state_dict())
    return sha.hexdigest()


def add_tensors(sha, prefix: str, tensors: dict[str, torch.Tensor]) -> None:
    """Hash the names, shapes, types and all bytes of tensors."""
    for name, tensor in sorted(tensors.items()):
        sha.update(f"{prefix}{name} {tuple(tensor.shape)} {tensor.dtype}".encode())
        sha.update(tensor.detach().cpu().contiguous().flatten().view(torch.uint8).numpy())


def hash_of_tensors(tensors: dict[str, torch.Tensor]) -> str:
    """sha256 of tensors and their names."""
    sha = hashlib.sha256()
    add_tensors(sha, "", tensors)
    return sha.hexdigest()


@torch.no_grad()
def encode(model, items: list[Item]) -> list[dict[str, torch.Tensor]]:
    """What training needs of each triplet, from the frozen parts. BadInput: a text is too long."""
    clips = [item.load() for item in items]
    source = torch.stack([source for source, _ in clips]).to(model.device)  # (B, F, 3, H, W)
    target = torch.stack([target for _, target in clips]).to(model.device)
    instructions = [item.instruction for item in items]
    try:
        with model.precision():
            text = model.encode_text(instructions)                      # B x (T, D)
            view = vlm_view(model, items, source)
            bridged = model.bridge(model.encode_vlm(view, instructions))  # (B, T, D)
    except ValueError as error:
        raise BadInput(str(error)) from error
    with model.precision():
        columns = {"source": model.encode_video(source),                # (B, C, f, h, w)
                   "target": model.encode_video(target),
                   "text": text,
                   "bridged": bridged.to(model.dtype_of("adapter")),
                   "frames": to_bytes(model.vlm.pick(source))}          # (B, K, 3, H, W)
    return [{name: column[i].cpu().contiguous() for name, column in columns.items()}
            for i in range(len(items))]


def vlm_view(model, items: list[Item], source: torch.Tensor) -> torch.Tensor:
    """What U is shown for Eq. 1: the source (B, F, 3, H, W), or, where the preset has `whole_view`,
    its frames before they were cropped, in U's own size."""
    if not model.preset.whole_view:
        return source
    views = [item.view() if item.view else clip for item, clip in zip(items, source)]
    return torch.stack([model.vlm.resize(view.to(source)) for view in views])


class Latents:
    """A sequence of encoded triplets: latents[i] is a dict, all float32, of

        source, target (C, f, h, w)   latents
        frames (K, 3, H, W)           what U sees of the source, in [-1, 1]
        bridged (T, D)                Adapter(ARHead(U(V_src, I)))
        text (T, D)                   T5(I)

    and latents.items[i] its Item. Each is encoded once, to `folder`/<hash of its key and of the
    frozen weights>.safetensors: a run that was stopped goes on where it was, and a broken file is
    made again. Raises BadInput where a clip cannot be read or the folder cannot be written, and for
    a file with a changed byte, once it is read.
    """

    def __init__(self, items: list[Item], model, folder: str | Path, progress: bool = True):
        self.items = list(items)
        self._memory = {}                                # of the files, while it is small
        stamp = fingerprint(model)
        self.key = hash_of(stamp, *(item.key for item in self.items))[:16]  # of the whole set
        self.files = [Path(folder) / f"{hash_of(item.key, stamp)}.safetensors"
                      for item in self.items]
        self._encode_missing(model, progress)
        wait_for_all()

    def _encode_missing(self, model, progress: bool) -> None:
        """In fixed groups, shared among ranks: the last bits depend on the company."""
        starts = range(0, len(self), BATCH)
        shard = [range(start, min(start + BATCH, len(self))) for start in starts][RANK::WORLD_SIZE]
        missing = {i for rows in shard for i in rows if not self._is_whole(i)}
        hidden = not (progress and missing)
        with tqdm(total=len(missing), desc="encode", unit="clip", disable=hidden) as bar:
            for rows in shard:
                if missing.isdisjoint(rows):
                    continue
                for i, tensors in zip(rows, encode(model, [self.items[i] for i in rows])):
                    if i in missing:
                        stamp = {"sha256": hash_of_tensors(tensors)}
                        atomic_write(self.files[i], save(tensors, stamp))
                        bar.update()

    def _is_whole(self, i: int) -> bool:
        try:
            with safe_open(self.files[i], "pt") as file:                # checks header and length
                return set(file.keys()) == TENSORS and "sha256" in (file.metadata() or {})
        except (OSError, SafetensorError):
            return False

    def __len__(self) -> int:
        return len(self.items)

    def __getitem__(self, i: int) -> dict[str, torch.Tensor]:
        row = self._memory.get(i)
        if row is None:
            row = self._read(self.files[i])
            if len(self._memory) * self.files[i].stat().st_size < MEMORY:
                self._memory[i] = row
        return {name: from_bytes(x) if name == "frames" else x.float() for name, x in row.items()}

    def _read(self, path: Path) -> dict[str, torch.Tensor]:
        with safe_open(path, "pt") as file:
            row = {name: file.get_tensor(name) for name in file.keys()}
            stamp = file.metadata()["sha256"]
        if hash_of_tensors(row) != stamp:
            path.unlink()
            raise BadInput(f"{path}: had changed since it was written, and is deleted; "
                           f"the same command encodes it anew and goes on")
        return row


# ------------------------------------------------------------------------------- what is in step n?

def batch_indices(n: int, batch: int, step: int, seed: int) -> list[int]:
    """Which of `n` samples are batch `step` (from 0): an epoch is a permutation by (seed, epoch).

    A pure function, so that a resumed run needs no stored position. A batch may reach over the end
    of an epoch.
    """
    places = range(step * batch, (step + 1) * batch)
    orders = {epoch: np.random.default_rng([seed, epoch]).permutation(n)
              for epoch in {place // n for place in places}}
    return [int(orders[place // n][place % n]) for place in places]


def draws(step: int, seed: int, batch: int, shape: tuple,
          timesteps: Callable = sample_timesteps) -> tuple:
    """What is random in a step, from (seed, step): t (B,), noise (B, *shape), dropout u (B,)."""
    generator = torch.Generator().manual_seed(seed * 1_000_003 + step)
    t = timesteps(batch, generator=generator)
    noise = torch.randn(batch, *shape, generator=generator)
    return t, noise, torch.rand(batch, generator=generator)


@dataclass
class Batch:
    """What one step needs, for this rank: row i of everything is the same triplet."""
    source: torch.Tensor       # (B, C, f, h, w) latents
    target: torch.Tensor       # (B, C, f, h, w)
    bridged: torch.Tensor      # (B, T, D) Adapter(ARHead(U(V_src, I))); where dropped, of nothing
    text: list                 # B x (T, D) T5(I)
    frames: torch.Tensor       # (B, K, 3, H, W) what U sees of the source
    instructions: list         # B texts
    thoughts: list | None      # B texts that U wrote about source and instruction; None: not yet
    baseline: torch.Tensor     # (B,) m_0
    t: torch.Tensor            # (B,) noise levels
    noise: torch.Tensor        # (B, C, f, h, w)
    near: torch.Tensor         # (B,) bool: t < tau, the critic is asked about these
    n_near: float              # their number, on average over this step's micro-batches and ranks
    seed: int                  # for what else a step draws

    def select(self, rows: torch.Tensor) -> "Batch":
        """The rows where `rows` (B,) is true."""
        numbers = rows.nonzero()[:, 0].tolist()
        picked = {}
        for field in fields(self):
            value = getattr(self, field.name)
            if isinstance(value, torch.Tensor):
                value = value[rows]
            elif isinstance(value, list):
                value = [value[i] for i in numbers]
            picked[field.name] = value
        return Batch(**picked)


class Batches:
    """A training's batches: `of(step)` yields this rank's micro-batches, by (seed, step) alone.

    latents: the encoded triplets. reflections: (thought, m_0) of each, from `critic.reflect`; None
    for SFT. batch: samples a step, over all ranks and micro-batches. drop: the share of samples
    whose VLM and T5 states are replaced by those of an empty instruction; the source latents stay.
    """

    def __init__(self, latents: Latents, model, reflections: list[tuple[str, float]] | None, *,
                 batch: int, tau: float, drop: float, seed: int, accumulate: int = 1):
        self.latents, self.device, self.shape = latents, model.device, model.preset.latent_shape
        self.reflections = reflections or [("", 0.)] * len(latents)
        self.batch, self.accumulate, self.seed = batch, accumulate, seed
        self.tau, self.drop = tau, drop
        self.timesteps = sample_timesteps
        with torch.no_grad(), model.precision():
            h, text = model.unconditional()
            self.unconditional = model.bridge([h])[0].float(), text.float()  # (T, D), (T', D)

    def of(self, step: int):
        """Yields `accumulate` batches: this rank's share of the step's samples, in equal parts."""
        indices = batch_indices(len(self.latents), self.batch, step, self.seed)
        t, noise, u = draws(step, self.seed, self.batch, self.shape, self.timesteps)
        near = t < self.tau
        parts = WORLD_SIZE * self.accumulate
        n_near = near.sum().item() / parts
        for part in range(self.accumulate):
            rows = slice(RANK + part * WORLD_SIZE, None, parts)
            seed = self.seed * 1_000_003 + (step * self.accumulate + part) * WORLD_SIZE + RANK
            yield self._batch(indices[rows], t[rows], noise[rows], u[rows], near[rows],
                              n_near, seed)

    def _batch(self, indices, t, noise, u, near, n_near, seed) -> Batch:
        encoded = [{name: x.to(self.device) for name, x in self.latents[i].items()}
                   for i in indices]
        empty_bridged, empty_text = self.unconditional
        bridged, text = [], []
        for row, dropped in zip(encoded, (u < self.drop).tolist()):
            bridged.append(empty_bridged if dropped else row["bridged"])
            text.append(empty_text if dropped else row["text"])
        source, target, frames = (torch.stack([row[name] for row in encoded])
                                  for name in ("source", "target", "frames"))
        thoughts, baselines = zip(*(self.reflections[i] for i in indices))
        return Batch(source, target, torch.stack(bridged), text, frames,
                     instructions=[self.latents.items[i].instruction for i in indices],
                     thoughts=None if None in thoughts else list(thoughts),
                     baseline=torch.tensor(baselines, device=self.device), t=t.to(self.device),
                     noise=noise.to(self.device), near=near.to(self.device),
                     n_near=n_near, seed=seed)
