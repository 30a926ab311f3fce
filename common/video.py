"""Videos: read any that ffmpeg can, or a folder of pictures; write mp4 and gif. (F, 3, H, W), float32 in [-1, 1]."""

import hashlib
import os
import re
import subprocess
from pathlib import Path

import imageio.v3 as iio
import imageio_ffmpeg
import numpy as np
import torch
from PIL import Image, ImageOps

from common.files import BadInput, replacing


def to_bytes(video: torch.Tensor) -> torch.Tensor:
    """[-1, 1] to 0..255, uint8. Any shape."""
    return ((video.detach().float() + 1) * 127.5).round().clamp(0, 255).to(torch.uint8)


def from_bytes(video: torch.Tensor) -> torch.Tensor:
    """0..255 to [-1, 1], float32. Any shape."""
    return video.float() / 127.5 - 1


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


def hash_video(path: Path) -> list[str]:
    """sha256 of a file, or of each image of a folder."""
    files = _pictures(path) if path.is_dir() else [path]
    return [hashlib.sha256(file.read_bytes()).hexdigest() for file in files]
