"""Videos: read whatever ffmpeg can decode, or a folder of pictures; write mp4 and gif.

    read_video("my.mp4", 9, 32, 32)                  # (9, 3, 32, 32), spread over the whole clip
    read_video("my.mp4", 17, 352, 640, stride=1)     # 17 consecutive frames
    for frame in frames("film.mkv"): ...             # (H, W, 3) uint8, one at a time
    pick_frames("film.mkv", [10, 250])               # the frames with these numbers

This is the only reader, for training, benchmark and curation. A frame is known by its number in the
order of decoding, never by a time or by what the header says: headers and clocks of real files are
often wrong. So to count a video's frames means to decode it. Every frame comes as 8-bit RGB,
upright, with square pixels.

What ffmpeg remarks on the way is no error: a clip that was cut without encoding it again has
remarks, and all its frames. A video is refused where a packet of it cannot be decoded, where ffmpeg
had to make up a part of a frame, or where it says that the file ends early.

Left out: tone mapping of HDR, and transparency. Of a gif each picture is a frame, however long it
is shown.

Axis letters: F frames, H W pixels. A video is (F, 3, H, W), float32 in [-1, 1].
"""

import hashlib
import os
import re
import subprocess
import tempfile
from contextlib import closing, contextmanager
from pathlib import Path
from typing import BinaryIO, Iterable, Iterator

import imageio.v3 as iio
import imageio_ffmpeg
import numpy as np
import torch
from imageio.v2 import get_writer
from PIL import Image, ImageOps

from common.files import BadInput, replacing

PICTURES = (".png", ".jpg", ".jpeg", ".bmp", ".webp", ".tif", ".tiff")

# What ffmpeg says, with exit code 0, of a file that ends or breaks before its own table does, and
# where it makes up blocks out of their neighbours.
BROKEN = re.compile("ended prematurely|partial file|invalid as first byte of an EBML number"
                    "|LZW decode failed|error while decoding MB|Error at MB|damaged at [0-9]"
                    "|concealing [0-9]+ DC")

# To square pixels. Where they are square already, ffmpeg leaves the frame as it is.
SQUARE_PIXELS = "scale=w=round(iw*sar):h=ih,setsar=1"
SHRINK = (",scale=w='min(iw,{side})':h='min(ih,{side})'"
          ":force_original_aspect_ratio=decrease:flags=area")


def to_bytes(video: torch.Tensor) -> torch.Tensor:
    """[-1, 1] to 0..255, uint8. Any shape."""
    return ((video.detach().float() + 1) * 127.5).round().clamp(0, 255).to(torch.uint8)


def from_bytes(video: torch.Tensor) -> torch.Tensor:
    """0..255 to [-1, 1], float32. Any shape."""
    return video.float() / 127.5 - 1


# ------------------------------------------------------------------------------------------- frames

def frames(path: str | Path, side: int | None = None) -> Iterator[np.ndarray]:
    """The frames (H, W, 3), uint8, of a video or a folder of pictures, one after the other.

    side: neither side is longer; ffmpeg shrinks faster than `shrink`, which matters for films.
    Raises BadInput where it is missing or, at its end, broken. Whoever stops early need not decode
    the rest.
    """
    path = Path(path)
    if os.path.isdir(path):
        for frame in _frames_of_folder(path):
            yield frame if side is None else shrink(frame, side)
        return
    shrinking = "" if side is None else SHRINK.format(side=side)
    ppm = ["-vf", SQUARE_PIXELS + shrinking, "-pix_fmt", "rgb24", "-c:v", "ppm",
           "-f", "image2pipe", "-"]
    with _decoding(path, *ppm) as pipe:
        while pipe.readline():                           # "P6"
            width, height = map(int, pipe.readline().split())
            pipe.readline()                              # "255"
            pixels = np.frombuffer(pipe.read(height * width * 3), np.uint8)
            if pixels.size == height * width * 3:        # else ffmpeg failed, and _decoding says so
                yield pixels.reshape(height, width, 3)


def pick_frames(path: str | Path, numbers: Iterable[int]) -> list[np.ndarray]:
    """The frames (H, W, 3), uint8, with these numbers, in their order; a number may come twice.
    Raises BadInput where the video is missing or ends before the last of them."""
    numbers = list(numbers)
    wanted = sorted(set(numbers))
    with closing(frames_at(path, wanted)) as found:      # Ctrl-C in a collector's close is lost
        picked = dict(zip(wanted, found))
    return [picked[number] for number in numbers]


def frames_at(path: str | Path, numbers: Iterable[int],
              side: int | None = None) -> Iterator[np.ndarray]:
    """The frames with these numbers, which must not fall, one at a time; one may come again.

    side, and what is raised: see `frames` and `pick_frames`.
    """
    number = -1
    with closing(frames(path, side)) as clip:
        for wanted in numbers:
            while number < wanted:
                number, frame = number + 1, next(clip, None)
                if frame is None:
                    raise BadInput(f"{path}: ends before frame {wanted}; was it another file when "
                                   f"its frames were counted?")
            yield frame


def count_frames(path: str | Path, least: int = 1) -> int:
    """Number of frames of a video or a folder of pictures, each of them decoded. Raises BadInput
    where it is missing, broken, or shorter than `least`."""
    path = Path(path)
    if os.path.isdir(path):
        n = sum(1 for frame in frames(path))
    else:
        with _decoding(path, "-f", "null", "-", "-progress", "pipe:1") as pipe:
            *_, n = re.findall(rb"frame=\s*(\d+)", pipe.read()) or [0]
    return _check_length(path, int(n), least)


def frame_rate(path: str | Path) -> float:
    """Frames per second, as a video's header says, for who plays it; 8 of a folder of pictures."""
    if Path(path).is_dir():
        return 8.
    with closing(imageio_ffmpeg.read_frames(os.path.abspath(path))) as reader:
        return next(reader)["fps"]                       # the header comes before the frames


def _check_length(path: Path, n: int, least: int) -> int:
    if n < least:
        raise BadInput(f"{path}: has {n} frames and {least} are needed; give a longer clip")
    return n


# ---------------------------------------------------------------------------------- clips of a size

def frame_numbers(n: int, frames: int, stride: int | None = None, start: int = 0) -> list[int]:
    """Which `frames` of `n` frames make a clip, counted from 0.

    stride None: spread uniformly from `start` to the last, both among them. Else every stride-th
    from `start` on. Raises ValueError where there are too few.
    """
    needed = start + (stride or 1) * (frames - 1) + 1
    if n < needed:
        raise ValueError(f"has {n} frames and {needed} are needed "
                         f"(start {start}, stride {stride or 1})")
    if stride is None:
        return torch.linspace(start, n - 1, frames, dtype=torch.float64).round().long().tolist()
    return list(range(start, needed, stride))


def read_video(path: str | Path, frames: int, height: int, width: int,
               stride: int | None = None, start: int = 0) -> torch.Tensor:
    """A clip (frames, 3, height, width) in [-1, 1] of a video or a folder of pictures.

    Its frames are those of `frame_numbers`, each made to `fit`. Raises BadInput where it is
    missing, broken or too short.
    """
    numbers, _ = clip_numbers(path, frames, stride, start)
    return crop(pick_frames(path, numbers), height, width)


def clip_numbers(path: str | Path, frames: int, stride: int | None = None,
                 start: int = 0) -> tuple[list[int], int]:
    """`frame_numbers` of a video or a folder of pictures, and how many frames it has. Raises
    BadInput where it is missing, broken or too short."""
    n = count_frames(path, least=0)
    try:
        return frame_numbers(n, frames, stride, start), n
    except ValueError as error:
        raise BadInput(f"{path}: {error}; give a longer clip, or a smaller start or "
                       f"stride") from error


def crop(frames: list[np.ndarray], height: int, width: int) -> torch.Tensor:
    """Frames (H, W, 3), uint8, each made to `fit`, as a video (F, 3, height, width) in [-1, 1]."""
    return to_video([fit(frame, height, width) for frame in frames])


def to_video(frames: list[np.ndarray]) -> torch.Tensor:
    """Frames (H, W, 3), uint8, of one size as a video (F, 3, H, W) in [-1, 1]."""
    pixels = torch.from_numpy(np.stack(frames))                          # (F, H, W, 3)
    return from_bytes(pixels.permute(0, 3, 1, 2).contiguous())


def read_pixels(path: str | Path, least: int = 1) -> np.ndarray:
    """All frames (F, H, W, 3), uint8, of a video or a folder of pictures, all in memory. Raises
    BadInput where it is missing, broken, or shorter than `least`."""
    clip = list(frames(path))
    _check_length(Path(path), len(clip), max(1, least))
    return np.stack(clip)


def fit(frame: np.ndarray, height: int, width: int) -> np.ndarray:
    """A frame (H, W, 3), cropped at its centre to the shape of (height, width) and resized.

    Whole pixels are cut away, then it is bilinear and antialiased: the authors' code to the byte.
    """
    h, w = frame.shape[:2]
    ratio = width / height
    if w < h * ratio:
        crop_h, crop_w = max(1, int(w / ratio)), w
    else:
        crop_h, crop_w = h, max(1, int(h * ratio))
    top, left = round((h - crop_h) / 2), round((w - crop_w) / 2)
    image = Image.fromarray(frame[top:top + crop_h, left:left + crop_w])
    return np.asarray(image.resize((width, height), Image.Resampling.BILINEAR))


def shrink(frame: np.ndarray, side: int) -> np.ndarray:
    """A frame (H, W, 3), no side of it longer than `side` pixels; a smaller one stays as it is."""
    height, width = frame.shape[:2]
    scale = min(1, side / max(height, width))
    if scale == 1:
        return frame
    size = max(1, round(width * scale)), max(1, round(height * scale))
    return np.asarray(Image.fromarray(frame).resize(size, Image.Resampling.BICUBIC))


def hash_video(path: Path) -> list[str]:
    """sha256 of a file, or of each picture of a folder."""
    files = list_pictures(path) if path.is_dir() else [path]
    return [hashlib.sha256(file.read_bytes()).hexdigest() for file in files]


# ------------------------------------------------------------------------------------------- ffmpeg

@contextmanager
def _decoding(path: Path, *output: str) -> Iterator[BinaryIO]:
    """A pipe with what ffmpeg makes of a video, to be read in the block. Raises BadInput where the
    video is missing, or was read to its end and found broken."""
    if not os.path.isfile(path):                         # False, too, for a name of 300 letters
        raise BadInput(f"{path}: there is no such video or folder of images; correct the path")
    command = [imageio_ffmpeg.get_ffmpeg_exe(), "-nostdin", "-v", "error", "-max_error_rate", "0",
               "-i", os.path.abspath(path),              # "a: b.mp4" would be of the protocol "a"
               "-map", "0:V:0", "-fps_mode", "passthrough", *output]
    with tempfile.TemporaryFile() as log:
        process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=log)
        try:
            yield process.stdout
            process.wait()
        finally:                                         # also where the reader stops early
            process.kill()
            process.stdout.close()
            process.wait()
        log.seek(0)
        remarks = log.read().decode(errors="replace").strip().splitlines()
    broken = [line for line in remarks if BROKEN.search(line)]
    if process.returncode:
        broken = broken or remarks or [f"ffmpeg ended with {process.returncode}"]
    if broken:
        reason = re.sub(r"^(\[.*?\] )+", "", broken[0])
        raise BadInput(f"{path}: cannot be read to its end as a video ({reason}); "
                       f"is it cut off, or no video? copy it again or re-encode it")


# ----------------------------------------------------------------------------------------- pictures

def list_pictures(folder: Path) -> list[Path]:
    """The pictures of a folder in the order of the numbers in their names: 2.png before 10.png."""
    pictures = [file for file in folder.iterdir()
                if file.suffix.lower() in PICTURES and not file.name.startswith(".")]  # a Mac's

    def numbers_in_name(file):
        parts = re.split(r"([0-9]+)", file.name)
        return [int(part) if part.isdecimal() else part for part in parts]
    return sorted(pictures, key=numbers_in_name)


def _frames_of_folder(folder: Path) -> Iterator[np.ndarray]:
    first = None
    for file in list_pictures(folder):
        picture = read_picture(file)
        first = picture if first is None else first
        if picture.shape != first.shape:
            raise BadInput(f"{folder}: its images differ in size; make them the same")
        yield picture


def read_picture(path: Path) -> np.ndarray:
    """A picture (H, W, 3), uint8, upright. Raises BadInput."""
    try:
        with Image.open(path) as image:
            if image.mode.startswith(("I", "F")):
                raise ValueError("it has more than eight bits")
            return np.array(ImageOps.exif_transpose(image).convert("RGB"))
    except Exception as error:                           # pillow raises half a dozen kinds
        raise BadInput(f"{path}: cannot be read as an image; replace it or take it away") from error


# ----------------------------------------------------------------------------------- writing videos

def write_video(path: str | Path, video: torch.Tensor, fps: float = 8, scale: int = 1) -> None:
    """Write (F, 3, H, W) in [-1, 1] as mp4 or gif, each pixel as `scale` x `scale`. Raises BadInput
    where it cannot be written."""
    pixels = to_bytes(video).permute(0, 2, 3, 1).cpu().numpy()             # (F, H, W, 3)
    write_pixels(path, pixels.repeat(scale, 1).repeat(scale, 2), fps)


def write_pixels(path: str | Path, pixels: Iterable[np.ndarray], fps: float = 8) -> None:
    """Write frames (H, W, 3), uint8, as gif, or as mp4 one at a time. Raises BadInput where that
    fails."""
    with replacing(path) as temporary:
        if temporary.suffix.lower() == ".gif":
            iio.imwrite(temporary, np.stack(list(pixels)), plugin="pillow", duration=1000 / fps,
                        loop=0)
            return
        n = 0
        with get_writer(temporary.absolute(), fps=fps, quality=9, macro_block_size=2,
                        ffmpeg_log_level="quiet") as writer:
            for n, frame in enumerate(pixels, 1):
                writer.append_data(frame)
        try:                                             # imageio does not notice a full disk
            count_frames(temporary, n)
        except BadInput as error:
            raise OSError("ffmpeg did not finish it") from error
