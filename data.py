"""Triplets (source, target, instruction), and where they come from: the tiny world or the user's own videos (Sec. 3).

    python train.py --data triplets.jsonl        # JSON lines, paths relative to the file; eight types, see world.TYPES:
    {"source_video_path": "a.mp4", "target_video_path": "b.gif", "instruction": "...", "type": "Temporal Reasoning"}

Whatever they come from, triplets become `Item`s, and `Latents` encodes each of them once, to a cache on disk: of the
whole model, training then runs only the generator (and the critic). `batch_indices` says which of them come next.

Curation (scene cuts, similarity filters, a VLM's instructions) is curate.py's; what it writes is such a manifest.

Axis letters: F frames, C channels, H W pixels, f h w latent frames and sides, T tokens, D width, K frames that U sees.
A video is (F, 3, H, W), float32 in [-1, 1].
"""

import argparse
import hashlib
import json
import os
import re
import subprocess
import sys
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Callable, Iterator

import imageio.v3 as iio
import imageio_ffmpeg
import numpy as np
import torch
import torch.distributed as dist
from PIL import Image, ImageOps
from safetensors import SafetensorError, safe_open
from safetensors.torch import load_file, save
from tqdm import tqdm

import world


RANK, WORLD = int(os.environ.get("RANK", 0)), int(os.environ.get("WORLD_SIZE", 1))         # set by torchrun


class BadInput(ValueError):
    """What the user gave cannot be used. One line: the file, line or flag, what is wrong, and how to mend it."""


def run_script(main: Callable[[], None], stopped: str = "stopped; the same command goes on from here") -> None:
    """Run a script's `main`: what the user can mend becomes one line and exit code 2, Ctrl-C exit code 130."""
    name = Path(sys.argv[0]).name
    try:
        main()
    except (BadInput, OSError, SafetensorError) as error:
        print(f"{name}: {error}", file=sys.stderr)
        sys.exit(2)
    except KeyboardInterrupt:
        print(f"\n{name}: {stopped}", file=sys.stderr)
        sys.exit(130)


class Parser(argparse.ArgumentParser):
    """argparse, with defaults in the help, and errors as one line instead of the whole usage."""

    def __init__(self, **settings):
        super().__init__(formatter_class=argparse.ArgumentDefaultsHelpFormatter, **settings)

    def error(self, message):
        raise BadInput(message)


def to_bytes(video: torch.Tensor) -> torch.Tensor:
    """[-1, 1] to 0..255, uint8. Any shape."""
    return ((video.detach().float() + 1) * 127.5).round().clamp(0, 255).to(torch.uint8)


def from_bytes(video: torch.Tensor) -> torch.Tensor:
    """0..255 to [-1, 1], float32. Any shape."""
    return video.float() / 127.5 - 1


# ------------------------------------------------------------------------------------------------- writing files

@contextmanager
def replacing(path: str | Path) -> Iterator[Path]:
    """A temporary name beside `path`, with its suffix, to be written in the block; renamed when the block ends well.

    Raises BadInput, and leaves nothing behind, where that cannot be done.
    """
    path = Path(path)
    temporary = path.with_name(f"{path.stem}.tmp{os.getpid()}{path.suffix}")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        yield temporary
        os.replace(temporary, path)
    except OSError as error:
        reason = error.strerror or str(error).partition("\n")[0]
        raise BadInput(f"{path}: cannot be written ({reason}); choose a place that is writable and has room") from error
    finally:
        with suppress(OSError):
            temporary.unlink()


def markdown(lines: list[list[str]]) -> str:
    """A Markdown table with aligned columns, numbers to the right; the first line is its head."""
    widths = [max(map(len, column)) for column in zip(*lines)]
    lines = [lines[0], ["-" * widths[0]] + ["-" * (w - 1) + ":" for w in widths[1:]], *lines[1:]]
    cells = [[f"{cell:{'>' if k else '<'}{w}}" for k, (cell, w) in enumerate(zip(line, widths))] for line in lines]
    return "".join(f"| {' | '.join(line)} |\n" for line in cells)


def atomic_write(path: str | Path, content: bytes | str) -> None:
    """Write the whole file or nothing. Raises BadInput where it cannot be written."""
    with replacing(path) as temporary:
        temporary.write_bytes(content.encode() if isinstance(content, str) else content)


def video_plugin(path: str | Path) -> str:
    """imageio's writer for a file name. Raises BadInput for other formats than mp4 and gif."""
    suffix = Path(path).suffix.lower()
    if suffix not in (".mp4", ".gif"):
        raise BadInput(f"{path}: videos are written as .mp4 or .gif; choose one of these suffixes")
    return "FFMPEG" if suffix == ".mp4" else "pillow"


def write_video(path: str | Path, video: torch.Tensor, fps: float = 8, scale: int = 1) -> None:
    """Write (F, 3, H, W) in [-1, 1] as mp4 or gif, each pixel as `scale` x `scale`. Raises BadInput where it cannot."""
    plugin = video_plugin(path)
    pixels = to_bytes(video).permute(0, 2, 3, 1).cpu().numpy()                             # (F, H, W, 3)
    pixels = pixels.repeat(scale, 1).repeat(scale, 2)
    with replacing(path) as temporary:
        if plugin == "pillow":
            temporary.write_bytes(iio.imwrite("<bytes>", pixels, plugin=plugin, extension=".gif",
                                              duration=1000 / fps, loop=0))
        else:
            iio.imwrite(temporary, pixels, plugin=plugin, fps=fps, quality=9, macro_block_size=2,
                        ffmpeg_log_level="quiet")
            try:                                         # imageio does not notice when ffmpeg fails, as on a full disk
                count_frames(temporary, len(pixels))
            except BadInput as error:
                raise OSError("ffmpeg did not finish it") from error


# ------------------------------------------------------------------------------------------------ reading videos

def _pictures(folder: Path) -> list[Path]:
    """The images of a folder in the order of the numbers in their names: 2.png before 10.png."""
    files = [p for p in folder.iterdir() if not p.name.startswith(".")
             and p.suffix.lower() in (".png", ".jpg", ".jpeg", ".bmp", ".webp", ".tif", ".tiff")]
    return sorted(files, key=lambda p: [int(s) if s.isdecimal() else s for s in re.split(r"([0-9]+)", p.name)])


def _picture(path: Path) -> np.ndarray:
    try:
        return iio.imread(path, plugin="pillow", mode="RGB", index=0)                      # (H, W, 3)
    except Exception as error:                           # imageio and pillow raise half a dozen kinds
        raise BadInput(f"{path}: cannot be read as an image; replace it or take it away") from error


def _timing(path: Path) -> list[str]:
    """ffmpeg's options for what counts as a frame. A gif holds a still moment once, with a duration: repeat it."""
    return ["-map", "0:v:0", "-fps_mode", "cfr" if path.suffix.lower() == ".gif" else "passthrough"]


def _ffmpeg(path: Path, *output: str) -> bytes:
    """What ffmpeg writes of a video, decoded to its end, for only that finds a broken one. Raises BadInput."""
    if not path.is_file():
        raise BadInput(f"{path}: there is no such video or folder of images; correct the path")
    done = subprocess.run([imageio_ffmpeg.get_ffmpeg_exe(), "-nostdin", "-v", "error", "-i", os.path.abspath(path),
                           *_timing(path), *output], capture_output=True)
    if done.returncode or done.stderr:                   # a file that is cut off ends with code 0 and a complaint
        lines = done.stderr.decode(errors="replace").strip().splitlines() or ["ffmpeg failed"]
        reason = re.sub(r"^(\[.*?\] )+", "", lines[-1 if done.returncode else 0])
        raise BadInput(f"{path}: cannot be read to its end as a video ({reason}); is it cut off, or no video? "
                       f"copy it again or re-encode it")
    return done.stdout


def _enough(path: Path, n: int, least: int) -> int:
    if n < least:
        raise BadInput(f"{path}: has {n} frames and {least} are needed; give a longer clip")
    return n


def count_frames(path: str | Path, least: int = 1) -> int:
    """Number of frames of a video or folder of images, each of them decoded.

    Raises BadInput where it is missing, unreadable, cut off, or shorter than `least`.
    """
    path = Path(path)
    if path.is_dir():
        return _enough(path, len([_picture(file) for file in _pictures(path)]), least)
    told = _ffmpeg(path, "-f", "null", "-", "-progress", "pipe:1")
    return _enough(path, int(re.findall(rb"frame=\s*(\d+)", told)[-1]), least)


def read_pixels(path: str | Path, least: int = 1) -> np.ndarray:
    """All frames (F, H, W, 3), uint8, of a video or folder of images, as they are; the whole clip is in memory.

    Raises BadInput where it is missing, unreadable, cut off, or shorter than `least`.
    """
    path = Path(path)
    if path.is_dir():
        pictures = [_picture(file) for file in _pictures(path)]
        if len({x.shape for x in pictures}) > 1:
            raise BadInput(f"{path}: its images differ in size; make them the same")
        return np.stack(pictures[:_enough(path, len(pictures), max(1, least))])
    ppm = _ffmpeg(path, "-f", "image2pipe", "-c:v", "ppm", "-")                            # a head says each frame's size
    head = re.match(rb"P6\s(\d+)\s(\d+)\s255\s", ppm)
    size = head.end() + 3 * int(head[1]) * int(head[2]) if head else 1
    n = _enough(path, len(ppm) // size, max(1, least))
    return np.frombuffer(ppm, np.uint8).reshape(n, size)[:, head.end():].reshape(n, int(head[2]), int(head[1]), 3)


def read_video(path: str | Path, frames: int, height: int, width: int) -> torch.Tensor:
    """A clip (frames, 3, height, width) in [-1, 1] of a video that ffmpeg can read or of a folder of images.

    Frames are uniformly spaced, the first and the last among them; each is resized, antialiased, so that it covers the
    size, and cropped at its centre. Raises BadInput where it is missing, unreadable, cut off, or has too few frames.
    """
    path = Path(path)
    n = count_frames(path, frames)
    wanted = set(torch.linspace(0, n - 1, frames, dtype=torch.float64).round().long().tolist())
    if path.is_dir():
        pictures = (_picture(file) for k, file in enumerate(_pictures(path)) if k in wanted)
    else:
        stream = imageio_ffmpeg.read_frames(os.path.abspath(path), output_params=_timing(path))
        w, h = next(stream)["size"]
        pictures = (np.frombuffer(frame, np.uint8).reshape(h, w, 3) for k, frame in enumerate(stream) if k in wanted)
    fitted = [ImageOps.fit(Image.fromarray(x), (width, height), Image.Resampling.BICUBIC) for x in pictures]
    return from_bytes(torch.from_numpy(np.stack(fitted)).permute(0, 3, 1, 2).contiguous())


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


@contextmanager
def first_rank_first():
    """What fills a cache on disk: rank 0 does it, then the others find it done."""
    if RANK > 0:
        dist.barrier()
    yield
    if RANK == 0 and WORLD > 1:
        dist.barrier()


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
        missing = {i for i in range(len(self)) if i // BATCH % WORLD == RANK and not self._is_whole(i)}   # each rank's share
        with tqdm(total=len(missing), desc="encode", unit="clip", disable=not (progress and missing)) as bar:
            for start in range(0, len(self), BATCH):     # fixed groups: the last bits of an item depend on its company
                rows = range(start, min(start + BATCH, len(self)))
                if missing.isdisjoint(rows):
                    continue
                for i, tensors in zip(rows, encode(model, [self.items[i] for i in rows])):
                    if i in missing:
                        atomic_write(self.files[i], save(tensors))
                        bar.update()
        if WORLD > 1:
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
