"""What is in a film? Shots and clips, frames of these for a VLM, and these as files (Sec. 3.1.2).

A frame is named by its number among all that ffmpeg decodes, so that shots, the frames that a VLM
sees and the clips that are written agree. The price is that a film is decoded from its start once
for each of the three; a seek would be faster, and wrong in some files.

Axis letters: H W pixels. A frame is (H, W, 3) uint8. A clip (a, b) has the frames a to b - 1.
"""

import logging
from itertools import islice
from pathlib import Path
from typing import Iterator

import cv2
import numpy as np
from scenedetect import ContentDetector, FrameTimecode, ThresholdDetector

from common import video
from common.files import BadInput

logging.getLogger("pyscenedetect").setLevel(logging.CRITICAL)

MOVIES = (".mp4", ".mkv", ".mov", ".avi", ".webm", ".m4v", ".mpg", ".mpeg", ".ts")
SHORTEST = 15                                            # frames of a shot: PySceneDetect's own
DETECTION_SIDE = 256                                     # pixels of what the detectors see


# -------------------------------------------------------------------------------------------- shots

def movie_names(folder: Path) -> list[str]:
    """Films of a folder and its subfolders, as paths relative to it. Raises BadInput if none."""
    names = []
    for path in folder.rglob("*"):
        is_film = path.suffix.lower() in MOVIES and path.is_file()
        if is_film and not path.name.startswith("."):    # a Mac's "._film.mp4" is none
            names.append(path.relative_to(folder).as_posix())
    if not names:
        raise BadInput(f"--movies {folder}: holds no film ({', '.join(MOVIES)}); "
                       f"give the folder of your films")
    return sorted(names)


def find_shots(path: Path) -> tuple[list[tuple[int, int]], int, float]:
    """(shots, frames, frames per second) of a film. A shot is a clip; each begins where one ends.

    It is cut where the picture changes, and in the middle of the black that it fades to. Raises
    BadInput if the film cannot be read to its end.
    """
    fps = video.frame_rate(path)
    detectors = ContentDetector(27.0, SHORTEST), ThresholdDetector(12, SHORTEST)
    found, frames = set(), 0
    for frame in video.frames(path, DETECTION_SIDE):
        now, picture = FrameTimecode(frames, fps), cv2.cvtColor(frame, cv2.COLOR_RGB2BGR)
        for detector in detectors:
            found.update(cut.frame_num for cut in detector.process_frame(now, picture))
        frames += 1
    cuts = [0]
    for cut in sorted(found):
        if cut - cuts[-1] >= SHORTEST:                   # both may have seen it
            cuts.append(cut)
    return list(zip(cuts, [*cuts[1:], frames])), frames, fps


def clips_of(movie: dict, seconds: float, least: int) -> Iterator[dict]:
    """Of each shot the middle 80 %, so that no fade shows, and at most `seconds` of them.

    Yields {id, movie, index, clip: [first, past the last], fps}; shots with fewer than `least`
    usable frames have no clip.
    """
    for index, (first, past) in enumerate(movie["shots"]):
        margin = (past - first) // 10
        frames = min(past - first - 2 * margin, round(seconds * movie["fps"]))
        begin = first + (past - first - frames) // 2
        if frames >= least:
            yield {"id": f"{movie['id']}#{index:05d}", "movie": movie["id"], "index": index,
                   "clip": [begin, begin + frames], "fps": movie["fps"]}


# ------------------------------------------------------------------------------------------- frames

def read_clips(path: Path, clips: list[tuple[int, int]], k: int = 4,
               side: int = 512) -> Iterator[list[np.ndarray]]:
    """k frames of each clip, at most `side` pixels wide and high, in one pass.

    They are in the middles of k equal parts; a short clip has some of them twice. The clips must be
    in temporal order and must not overlap. Raises BadInput if a frame is missing.
    """
    numbers = (a + (2 * i + 1) * (b - a) // (2 * k) for a, b in clips for i in range(k))
    frames = video.frames_at(path, numbers, side)
    for _ in clips:
        yield list(islice(frames, k))


def read_frames(path: Path, k: int = 4, side: int = 512) -> list[np.ndarray]:
    """k frames of a whole video, as read_clips gives them."""
    return next(read_clips(path, [(0, video.count_frames(path))], k, side))


# -------------------------------------------------------------------------------------------- clips

def write_clips(path: Path, clips: list[tuple[int, int]], fps: float, outs: list[Path]) -> None:
    """Write clips as mp4 files of `fps` frames per second, without sound, in one pass.

    The clips must be in temporal order and must not overlap. They are encoded anew, for a copy
    could only begin at a key frame. Raises BadInput if a frame is missing or a file has not all.
    """
    frames = video.frames_at(path, (number for clip in clips for number in range(*clip)))
    for (a, b), out in zip(clips, outs):
        video.write_pixels(out, islice(frames, b - a), fps)
