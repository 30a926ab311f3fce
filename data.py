"""What is a batch, and what is a triplet (source, target, instruction)? (Sec. 3)

    python train.py --data triplets.jsonl        # JSON lines, paths relative to the file
    {"source_video_path": "a.mp4", "target_video_path": "b.gif",
     "instruction": "...", "type": "Temporal Reasoning",
     "start": 40, "stride": 2}                   # frames 40, 42, ... of both; or "stride": "spread"

`Batches` says what is in step number n. A triplet is an `Item` until it is read. `Latents` runs the
frozen encoders once for each, into a cache on disk, and `reflect` asks the critic once about each:
training then needs only the generator and the critic.

Left out: curation (scene cuts, similarity filters, a VLM's instructions). That is rvedata/, which
writes manifests.

Axis letters: B batch, F frames, C channels, H W pixels, f h w latent frames and sides, T tokens, D
width, K frames that U sees. A video is (F, 3, H, W), float32 in [-1, 1].
"""

import hashlib
import json
from contextlib import suppress
from dataclasses import dataclass, fields, replace
from itertools import repeat
from pathlib import Path
from typing import Callable

import numpy as np
import torch
from safetensors.torch import load_file, save
from tqdm import tqdm

from common.distributed import (RANK, WORLD_SIZE, gather_rows, is_first_rank, my_shard,
                                wait_for_all)
from common.files import BadInput, atomic_write
from common.manifest import FIELDS, manifest_lines, manifest_record
from common.video import (clip_numbers, crop, from_bytes, hash_video, pick_frames, to_bytes,
                          to_video)
from common.weights import hash_of_tensors
from model import sample_timesteps
from presets import FROZEN
from tiny import world
from tiny.drift import CONTRAST, SOFTNESS, TINT, drifted


# --------------------------------------------------------------------------------- what is a batch?

@dataclass
class Batch:
    """What one step needs, for this rank: row i of everything is the same triplet."""
    source: torch.Tensor       # (B, C, f, h, w) latents
    target: torch.Tensor | None         # (B, C, f, h, w); None where the items have none
    bridged: torch.Tensor      # (B, T, D) Adapter(ARHead(U(V_src, I))), or the unconditional
    text: list                 # B x (T, D) T5(I)
    frames: torch.Tensor       # (B, K, 3, H, W) what U sees of the source
    instructions: list         # B texts
    thoughts: list | None      # B texts that U wrote about source and instruction; None: not yet
    baseline: torch.Tensor     # (B,) m_0
    t: torch.Tensor            # (B,) noise levels
    noise: torch.Tensor        # (B, C, f, h, w)
    near: torch.Tensor         # (B,) bool: t < tau, the critic is asked about these
    n_near: float              # their number, on average over this step's micro-batches and ranks
    pairs: "Batch | None" = None        # without targets, for own edits

    def select(self, rows: torch.Tensor) -> "Batch":
        """The samples where `rows` (B,) is true; n_near and pairs stay the step's."""
        numbers = rows.nonzero()[:, 0].tolist()
        picked = {}
        for field in fields(self):
            value = getattr(self, field.name)
            if isinstance(value, torch.Tensor):
                value = value[rows]
            elif isinstance(value, list):
                value = [value[i] for i in numbers]
            picked[field.name] = value
        return type(self)(**picked)


def gate(t: torch.Tensor, tau: float) -> torch.Tensor:
    """Which samples the critic is asked about (Sec. 4.2.1): t < tau. t: (B,) -> bool (B,)."""
    return t < tau


class Batches:
    """A training's batches: `of(step)` yields this rank's micro-batches, which depend on (seed,
    step) alone.

    latents: the encoded triplets. reflections: (thought, m_0) of each, from `reflect`; None for
    SFT. batch: samples a step, over all ranks and micro-batches. drop: the share of samples whose
    VLM and T5 states are replaced by those of an empty instruction; the source latents stay. pairs:
    of as many sources without a target, in step with these.
    """

    def __init__(self, latents: "Latents", model, reflections: list[tuple[str, float]] | None, *,
                 batch: int, tau: float, drop: float, seed: int, accumulate: int = 1,
                 pairs: "Batches | None" = None):
        self.latents, self.device, self.shape = latents, model.device, model.preset.latent_shape
        self.reflections = reflections or [("", 0.)] * len(latents)
        self.batch, self.accumulate, self.seed = batch, accumulate, seed
        self.tau, self.drop, self.pairs = tau, drop, pairs
        self.timesteps = sample_timesteps
        with torch.no_grad(), model.precision():
            h, text = model.unconditional()
            self.unconditional = model.bridge([h])[0].float(), text.float()  # (T, D), (T', D)

    def of(self, step: int):
        """Yields `accumulate` batches: this rank's share of the step's samples, in equal parts."""
        indices = batch_indices(len(self.latents), self.batch, step, self.seed)
        t, noise, u = draws(step, self.seed, self.batch, self.shape, self.timesteps)
        near, dropped = gate(t, self.tau), (u < self.drop).tolist()
        parts = WORLD_SIZE * self.accumulate
        n_near = near.sum().item() / parts
        pairs_of_step = self.pairs.of(step) if self.pairs else repeat(None)
        for part, pairs in zip(range(self.accumulate), pairs_of_step):
            # sample k is in micro-batch k // WORLD_SIZE % accumulate of rank k % WORLD_SIZE
            rows = slice(RANK + part * WORLD_SIZE, None, parts)
            encoded = self._encoded(indices[rows], dropped[rows])
            yield Batch(**encoded, t=t[rows].to(self.device), noise=noise[rows].to(self.device),
                        near=near[rows].to(self.device), n_near=n_near, pairs=pairs)

    def _encoded(self, indices: list[int], dropped: list[bool]) -> dict:
        """The rows of a batch; one that is dropped has the VLM and T5 states of no instruction."""
        rows = [{name: x.to(self.device) for name, x in self.latents[i].items()}
                for i in indices]
        for row, drop in zip(rows, dropped):
            if drop:
                row["bridged"], row["text"] = self.unconditional
        thoughts, baselines = zip(*(self.reflections[i] for i in indices))

        def column(name):
            return torch.stack([row[name] for row in rows])
        return {"source": column("source"),
                "target": column("target") if "target" in rows[0] else None,
                "bridged": column("bridged"),
                "text": [row["text"] for row in rows],
                "frames": column("frames"),
                "instructions": [self.latents.items[i].instruction for i in indices],
                "thoughts": None if None in thoughts else list(thoughts),
                "baseline": torch.tensor(baselines, device=self.device)}


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


# ------------------------------------------------------------------------------- what is a triplet?

@dataclass(frozen=True)
class Item:
    """A triplet that is not in memory yet: `load()` reads (source, target); `key`: its hash.

    The target is None where nobody made one. view() reads the source's frames before they are
    cropped, (F, 3, H, W); None: they are not. longer: the videos have more frames than the clip.
    """
    key: str
    instruction: str
    load: Callable[[], tuple[torch.Tensor, torch.Tensor | None]]
    view: Callable[[], torch.Tensor] | None = None
    longer: bool = False


def hash_of(*parts) -> str:
    """sha256 of what JSON can hold."""
    return hashlib.sha256(json.dumps(parts).encode()).hexdigest()


NEW_CLIPS = 1_000_000    # the training split's triplets before it were lessons of VAE, VLM or base
NEW_PAIRS = 2_000_000    # own edits take sources from here on, which no triplet has
MISS_STREAM, DRIFT_STREAM = 11, 13          # seeds: which targets are wrong, and which drift


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


def world_pairs(n: int) -> list[Item]:
    """`n` sources of the tiny world with instructions; nobody looks at their targets."""
    def without_target(item):
        key = hash_of(item.key, "no target")
        return replace(item, key=key, load=lambda: (item.load()[0], None))
    return [without_target(item) for item in world_items(n=n, first=NEW_PAIRS)]


def _world_item(index: int, subset: str, split: str, wrong: float, drift: float) -> Item:
    # for its texts: load() makes the clips anew, so that an Item is small
    triplet = world.make_triplet(index, subset, split)
    place = [world.SUBSETS.index(subset), index]
    rng = np.random.default_rng([*place, MISS_STREAM])
    is_wrong = rng.random() < wrong
    miss = world.MISSES[int(rng.integers(len(world.MISSES)))]
    drifts = np.random.default_rng([*place, DRIFT_STREAM]).random() < drift
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
    return Item(hash_of(*key), triplet.instruction, load)


def manifest_items(path: str | Path, preset, skip_bad: bool = False,
                   check_text: Callable = lambda text: None,
                   targets: bool = True) -> tuple[list[Item], list[str]]:
    """The triplets of a manifest, each line and video checked; and a line for each one skipped.

    preset: has frames, frame_stride, height and width. check_text: raises ValueError for an
    instruction that the model cannot take. targets: False where only sources and instructions are
    read. Raises BadInput, naming file:line, for the first bad line; with `skip_bad` only where none
    is good.
    """
    path, items, skipped = Path(path), [], []
    lines = manifest_lines(path)
    # no bar in a pipe
    for number, line in tqdm(lines, desc="check videos", leave=False, disable=None):
        try:
            items.append(_manifest_item(line, path.parent, preset, check_text, targets))
        except BadInput as error:
            skipped.append(f"{path}:{number}: {error}")
            if not skip_bad:
                raise BadInput(f"{skipped[0]} (or pass --skip-bad)") from error
    if not items and skipped:
        raise BadInput(f"{skipped[0]} (and no other line is better)")
    if not items:
        raise BadInput(f"{path}: holds no triplet; write one JSON object on each line")
    return items, skipped


def _manifest_item(line: str, folder: Path, preset, check_text, targets) -> Item:
    needed = FIELDS if targets else tuple(name for name in FIELDS if name != "target_video_path")
    record = manifest_record(line, needed)
    try:
        check_text(record["instruction"])
    except ValueError as error:
        raise BadInput(str(error)) from error
    videos = [folder / record[name] for name in needed if name.endswith("_video_path")]
    start, stride = record.get("start", 0), record.get("stride", preset.frame_stride)
    stride = None if stride == "spread" else stride
    found = [clip_numbers(video, preset.frames, stride, start) for video in videos]
    numbers = [of_clip for of_clip, _ in found]
    longer = any(n > preset.frames for _, n in found)
    size = (preset.height, preset.width)

    def load():
        clips = [crop(pick_frames(video, of_clip), *size)
                 for video, of_clip in zip(videos, numbers)]
        return clips[0], clips[1] if targets else None

    def view():
        return to_video(pick_frames(videos[0], numbers[0]))
    key = hash_of(*map(hash_video, videos), record["instruction"], size, numbers)
    return Item(key, record["instruction"], load, view, longer)


# --------------------------------------------------------------------------------- the latent cache

BATCH = 8                                                # clips encoded at a time
MEMORY = 4 * 2 ** 30                                     # bytes of clips kept in memory


def fingerprint(model, parts: tuple[str, ...] = FROZEN) -> str:
    """sha256 of all that encoding depends on: weights of `parts`, tokenizers, VAE scale, preset."""
    head = repr((model.preset, model.vae.config.latents_mean, model.vae.config.latents_std))
    for tokenizer in (model.vlm.tokenizer, model.text_tokenizer):
        head += repr(sorted(tokenizer.get_vocab().items()))
    tensors = [(f"{part}.{name}", tensor) for part in parts
               for name, tensor in sorted(model.get_submodule(part).state_dict().items())]
    return hash_of_tensors(tensors, head)


@torch.no_grad()
def encode(model, items: list[Item]) -> list[dict[str, torch.Tensor]]:
    """What training needs of each triplet, from the frozen parts. BadInput: a text is too long."""
    sources, targets = zip(*(item.load() for item in items))
    source = torch.stack(sources).to(model.device)                      # (B, F, 3, H, W)
    instructions = [item.instruction for item in items]
    with model.precision():
        try:
            text = model.encode_text(instructions)                      # B x (T, D)
            view = vlm_view(model, items, source)
            bridged = model.bridge(model.encode_vlm(view, instructions))  # (B, T, D)
        except ValueError as error:
            raise BadInput(str(error)) from error
        columns = {"source": model.encode_video(source),                # (B, C, f, h, w)
                   "text": text,
                   "bridged": bridged.to(model.dtype_of("adapter")),
                   "frames": to_bytes(model.vlm.pick(source))}          # (B, K, 3, H, W)
        if None not in targets:
            columns["target"] = model.encode_video(torch.stack(targets).to(model.device))
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
    """A sequence of encoded triplets. latents.items[i] is an Item, latents[i] a dict, in float32:

        source, target (C, f, h, w)   latents; no target where the item has none
        frames (K, 3, H, W)           what U sees of the source, in [-1, 1]
        bridged (T, D)                Adapter(ARHead(U(V_src, I)))
        text (T, D)                   T5(I)

    Each is encoded once, to `folder`/<hash of its key and of the frozen weights>.safetensors: a run
    that was stopped goes on where it was. Raises BadInput where a clip cannot be read or the folder
    cannot be written.
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
        """Encode the items that have no file, always in the same groups of BATCH, shared
        among the ranks: a clip's last bits depend on what it is encoded with."""
        starts = my_shard(range(0, len(self), BATCH))
        shard = [range(start, min(start + BATCH, len(self))) for start in starts]
        missing = {i for rows in shard for i in rows if not self.files[i].exists()}
        hidden = not (progress and missing)
        with tqdm(total=len(missing), desc="encode", unit="clip", disable=hidden) as bar:
            for rows in shard:
                if missing.isdisjoint(rows):
                    continue
                for i, tensors in zip(rows, encode(model, [self.items[i] for i in rows])):
                    if i in missing:
                        atomic_write(self.files[i], save(tensors))
                        bar.update()

    def __len__(self) -> int:
        return len(self.items)

    def __getitem__(self, i: int) -> dict[str, torch.Tensor]:
        row = self._memory.get(i)
        if row is None:
            row = load_file(self.files[i])
            if len(self._memory) * self.files[i].stat().st_size < MEMORY:
                self._memory[i] = row
        return {name: from_bytes(x) if name == "frames" else x.float() for name, x in row.items()}


# ------------------------------------------------------------------ what the critic says of sources

def reflect(critic, latents: Latents, folder: Path,
            batch: int = 16) -> list[tuple[str | None, float]]:
    """(thought, m_0) of every training sample (Sec. 4.2.3): asked once, in order, and kept."""
    file = Path(folder) / f"reflections-{critic.think}-{latents.key}.json"
    with suppress(OSError, TypeError, ValueError):       # it is not there, or broken: ask again
        kept = [(thought, float(m_0)) for thought, m_0 in json.loads(file.read_text("utf-8"))]
        if len(kept) == len(latents):
            return kept
    answers = []
    starts = my_shard(range(0, len(latents), batch))
    for start in tqdm(starts, desc="ask the critic about the sources", disable=not is_first_rank()):
        numbers = range(start, min(start + batch, len(latents)))
        source = torch.stack([latents[i]["frames"] for i in numbers]).to(critic.model.device)
        instructions = [latents.items[i].instruction for i in numbers]
        thoughts, baseline = critic.about_sources(source, instructions)
        answers.append(list(zip(thoughts, baseline.tolist())))
    answers = [row for part in gather_rows(answers) for row in part]
    if is_first_rank():
        atomic_write(file, json.dumps(answers))
    return answers
