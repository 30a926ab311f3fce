"""Small clips that say which frame is which."""

import subprocess

import imageio_ffmpeg
import numpy as np
import pytest
import torch

N = 200                                                  # frames of the film


def numbered(n, height=48, width=80):
    """n flat frames whose brightness is their number: 10 k + 5 of 255. (n, 3, H, W)"""
    return torch.stack([torch.full((3, height, width), (10 * k + 5) / 127.5 - 1) for k in range(n)])


def numbers(video):
    """The numbers of such frames, whatever was done to them."""
    return ((video.mean((1, 2, 3)) + 1) * 127.5 - 5).div(10).round().int().tolist()


def paint(number: int) -> np.ndarray:
    """A frame (48, 96, 3) that shows its number as eight black or white blocks, low bit first.

    The ground below them changes every fifty frames: a cut.
    """
    bits = [(number >> k) % 2 * 255 for k in range(8)]
    frame = np.empty((48, 96, 3), np.uint8)
    frame[:16] = np.repeat(bits, 12)[:, None]
    frame[16:] = (180, 60, 20) if number // 50 % 2 else 90
    return frame


def read_paint(pixels) -> list[int]:
    """The numbers that painted frames show, at whatever size."""
    shown = []
    for frame in pixels:
        middles = ((np.arange(8) + .5) * frame.shape[1] / 8).astype(int)
        bits = frame[frame.shape[0] // 6, middles, 1] > 127
        shown.append(sum(1 << k for k, bit in enumerate(bits) if bit))
    return shown


def ffmpeg(*arguments):
    command = [imageio_ffmpeg.get_ffmpeg_exe(), "-nostdin", "-v", "error", "-y"]
    subprocess.run([*command, *map(str, arguments)], check=True)


@pytest.fixture(scope="session")
def painted(tmp_path_factory):
    """200 painted frames, lossless, 25 a second: 8 s."""
    path = tmp_path_factory.mktemp("film") / "film.mkv"
    raw = path.with_suffix(".rgb")
    raw.write_bytes(b"".join(paint(k).tobytes() for k in range(N)))
    ffmpeg("-f", "rawvideo", "-pix_fmt", "rgb24", "-s", "96x48", "-r", 25, "-i", raw,
           "-c:v", "ffv1", path)
    return path
