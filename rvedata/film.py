"""What is in a film? Cuts, frames, clips, and the embeddings that say what looks and reads alike; for curate.py.

PySceneDetect finds the cuts, OpenCV reads the frames, ffmpeg writes the clips, SigLIP 2 embeds (Sec. 3.1.2). Left out:
dissolves are not found as cuts (fades through black are); frames are counted, so a film of varying frame rate is cut at
the right frames only where OpenCV finds them.

Axis letters: N clips or texts, D width of an embedding, H W pixels. A frame is (H, W, 3) uint8.
"""

import logging
import os
import re
import subprocess
import zlib
from pathlib import Path
from typing import Callable

os.environ.setdefault("OPENCV_FFMPEG_LOGLEVEL", "-8")    # what cannot be read is said by us, once

import cv2
import imageio_ffmpeg
import numpy as np
import torch
from PIL import Image
from scenedetect import ContentDetector, FrameTimecode, ThresholdDetector, open_video
from scenedetect.scene_manager import compute_downscale_factor
from scenedetect.video_stream import VideoOpenFailure

from common.files import BadInput, replacing
from common.video import count_frames

logging.getLogger("pyscenedetect").setLevel(logging.CRITICAL)

SHORTEST = 15                                            # frames of a shot: PySceneDetect's min_scene_len


# ------------------------------------------------------------------------------------------------- cuts and frames

def find_cuts(path: Path) -> tuple[list[int], int, float]:
    """(cuts, frames, frames per second) of a film: a cut is a new shot's first frame, or the middle of a fade's black.

    ContentDetector finds hard cuts, ThresholdDetector fades through black; what both see counts once, as the latter.
    Raises BadInput where the film cannot be read to its end.
    """
    hard, fade = ContentDetector(27.0, SHORTEST), ThresholdDetector(min_scene_len=SHORTEST)
    cuts, fades, frames = [], [], 0
    try:
        film = open_video(str(path))
        promised = film.duration.frame_num if film.duration else 0
        small = 1 / max(1, compute_downscale_factor(max(film.frame_size)))
        while (frame := film.read()) is not False:
            if small < 1:
                frame = cv2.resize(frame, None, fx=small, fy=small, interpolation=cv2.INTER_LINEAR)
            now = FrameTimecode(frames, film.frame_rate)
            cuts += [cut.frame_num for cut in hard.process_frame(now, frame)]
            fades += [cut.frame_num for cut in fade.process_frame(now, frame)]
            frames += 1
    except (VideoOpenFailure, OSError, ValueError, ZeroDivisionError, cv2.error) as error:
        raise BadInput(f"{path}: cannot be read as a film ({' '.join(str(error).split())[:80]}); mend it, or take it "
                       f"away") from error
    if not frames or frames < .98 * promised:
        raise BadInput(f"{path}: ends at frame {frames} of {promised}; is it cut off? copy it again")
    found = [0]
    for at in sorted(fades + [at for at in cuts if all(abs(at - f) > SHORTEST for f in fades)]):
        if at - found[-1] >= SHORTEST:
            found.append(at)
    return found[1:], frames, float(film.frame_rate)


def read_frames(path: Path, clip: tuple[int, int] | None = None, k: int = 4, side: int = 512) -> list[np.ndarray]:
    """k frames from the middles of k equal parts of the frames [a, b) of a film, or of all of it.

    At most `side` pixels wide and high. Raises BadInput where it cannot be read.
    """
    film = cv2.VideoCapture(str(path))
    a, b = clip or (0, int(film.get(cv2.CAP_PROP_FRAME_COUNT)))
    at, frames = a + (b - a) // (2 * k), []
    film.set(cv2.CAP_PROP_POS_FRAMES, at)
    for wanted in (a + (2 * i + 1) * (b - a) // (2 * k) for i in range(k)):
        if wanted >= at:                                 # else there are fewer than k frames: the last once more
            there, frame = film.read() if all(film.grab() for _ in range(wanted - at)) else (False, None)
            if not there:
                raise BadInput(f"{path}: frame {wanted} cannot be read; is it missing, cut off, or no video?")
            at, (h, w) = wanted + 1, frame.shape[:2]
            scale = min(1, side / max(h, w))
            frame = cv2.resize(frame, (round(w * scale), round(h * scale)), interpolation=cv2.INTER_AREA)[..., ::-1]
        frames.append(np.ascontiguousarray(frame))
    film.release()
    return frames


def write_clip(path: Path, clip: tuple[int, int], fps: float, out: Path) -> None:
    """Cut frames [a, b) out of a film, without sound; encoded anew, for a copy could only begin at a key frame."""
    (a, b), start = clip, max(0, (clip[0] - .5) / fps)
    with replacing(out) as temporary:
        done = subprocess.run(
            [imageio_ffmpeg.get_ffmpeg_exe(), "-nostdin", "-v", "error", "-ss", f"{start:.6f}", "-i",
             os.path.abspath(path), "-frames:v", str(b - a), "-an", "-fps_mode", "passthrough", "-vf",
             "scale=trunc(iw/2)*2:trunc(ih/2)*2",
             "-c:v", "libx264", "-crf", "18", "-pix_fmt", "yuv420p", os.path.abspath(temporary)], capture_output=True)
        if done.returncode:
            raise BadInput(f"{path}: frames {a} to {b} cannot be cut out ({done.stderr.decode()[-75:].strip()})")
        count_frames(temporary, b - a)
