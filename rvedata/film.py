"""What is in a film? Its shots, frames of its clips for a VLM, and the clips as files (Sec. 3.1.2).

A frame is named by its number among all that ffmpeg decodes, so that shots, the frames that a VLM
sees and the clips that are written agree. The price is that a film is decoded from its start once
for each of the three; a seek would be faster, and wrong in some files.

Axis letters: H W pixels. A frame is (H, W, 3) uint8. A clip (a, b) has the frames a to b - 1.
"""

import logging
from collections import deque
from itertools import chain, groupby, islice
from pathlib import Path
from typing import Iterable, Iterator

import cv2
import imageio_ffmpeg
import numpy as np
from scenedetect import ContentDetector, FrameTimecode

from common import video
from common.files import replacing

logging.getLogger("pyscenedetect").setLevel(logging.CRITICAL)

SHORTEST = 15                                            # frames of a shot: PySceneDetect's own
DETECTION_SIDE = 256                                     # pixels of what the detectors see
BLACK = 12                                               # levels; a darker frame is black
FLASH = 12                                               # levels by which it changes, at least


# -------------------------------------------------------------------------------------------- shots

def find_shots(path: Path) -> tuple[list[tuple[int, int]], int, float]:
    """(shots, frames, frames per second) of a film. A shot is a clip; between two is a transition.

    A hard cut has no frames of its own. A fade is cut in the middle of its black; longer black, and
    the frames of a dissolve, are in no shot. Raises BadInput if the film cannot be read to its end.
    """
    fps = video.frame_rate(path)
    hard, dissolve = ContentDetector(27.0, SHORTEST), DissolveDetector(fps)
    cuts, black, frames = [], [], 0
    for frame in without_flashes(video.frames(path, DETECTION_SIDE)):
        now = FrameTimecode(frames, fps)
        found = hard.process_frame(now, cv2.cvtColor(frame, cv2.COLOR_RGB2BGR))
        cuts += [cut.frame_num for cut in found]
        if frame.mean() < BLACK:
            black.append(frames)
        dissolve.add(frame)
        frames += 1
    return _shots_between(cuts, fades_in(black), dissolve.transitions(), frames), frames, fps


def without_flashes(frames: Iterable[np.ndarray]) -> Iterator[np.ndarray]:
    """The frames (H, W, 3), but instead of a flash of one or two the frame before it."""
    window = deque()                                     # (frame, thumbnail) of five
    for frame in frames:
        window.append((frame, thumbnail(frame)))
        if len(window) == 5:
            if is_flash(*[small for _, small in window]):
                window[2] = window[1]
            yield window.popleft()[0]
    for frame, _ in window:
        yield frame


def thumbnail(picture: np.ndarray) -> np.ndarray:
    """A picture (H, W, 3) or (H, W) at 32 x 18, float32."""
    return cv2.resize(picture, (32, 18), interpolation=cv2.INTER_AREA).astype(np.float32)


def is_flash(two_before: np.ndarray, before: np.ndarray, now: np.ndarray,
             *coming: np.ndarray) -> bool:
    """Whether a picture that stood still is suddenly another one, and soon as it was."""
    change = np.abs(now - before).mean()
    if change < FLASH:
        return False
    same = [np.abs(other - before).mean() < change / 4 for other in (two_before, *coming)]
    return same[0] and any(same[1:])


def fades_in(black: list[int]) -> list[tuple[int, int]]:
    """The transitions [a, b) of a film whose frames `black` are black, as `find_shots` has them."""
    fades = []
    for _, run in groupby(enumerate(black), lambda numbered: numbered[1] - numbered[0]):
        frames = [frame for _, frame in run]
        middle = frames[0] + round(len(frames) / 2)
        is_fade = len(frames) < SHORTEST
        fades.append((middle, middle) if is_fade else (frames[0], frames[-1] + 1))
    return fades


def _shots_between(cuts: list[int], fades: list[tuple[int, int]],
                   dissolves: list[tuple[int, int]], frames: int) -> list[tuple[int, int]]:
    """The shots between transitions. What is seen twice counts once: as a fade, else a dissolve."""
    transitions = fades + _apart_from(fades, dissolves)
    transitions += _apart_from(transitions, [(cut, cut) for cut in cuts])
    shots, first = [], 0
    for a, b in sorted(transitions):
        if a - first >= SHORTEST:
            shots.append((first, a))
            first = b
        elif b > a:                                      # what is between two that touch goes
            first = b
    if first < frames:
        shots.append((first, frames))
    return shots


def _apart_from(known: list[tuple[int, int]],
                others: list[tuple[int, int]]) -> list[tuple[int, int]]:
    """The other transitions that are more than SHORTEST frames away from all known ones."""
    return [(a, b) for a, b in others
            if all(b < first - SHORTEST or a > past + SHORTEST for first, past in known)]


class DissolveDetector:
    """Finds where one shot is blended into the next.

    In a dissolve the frame in the middle of a window is the mean of those at its ends, which show
    different things. Motion breaks the first, a change of light the second.
    """
    CHANGE = 12.0                                        # grey levels between the ends, at least
    RESIDUAL = 0.2                                       # of the middle from their mean, in changes
    CORRELATION = 0.7                                    # between the ends, at most

    def __init__(self, fps: float):
        self.half = max(4, round(fps / 2))               # the window is a second long
        self.window = deque(maxlen=2 * self.half + 1)
        self.count = 0
        self.scores = {}                                 # middle frame -> residual / change

    def add(self, frame: np.ndarray) -> None:
        """The next frame (H, W, 3)."""
        self.window.append(thumbnail(cv2.cvtColor(frame, cv2.COLOR_RGB2GRAY)))
        self.count += 1
        if len(self.window) < self.window.maxlen:
            return
        first, middle, last = [self.window[k] for k in (0, self.half, -1)]
        change = np.abs(last - first).mean()
        with np.errstate(invalid="ignore"):              # a flat picture has none: NaN
            correlation = np.corrcoef(first.ravel(), last.ravel())[0, 1]
        if change < self.CHANGE or correlation > self.CORRELATION:
            return
        residual = np.abs(middle - (first + last) / 2).mean() / change
        if residual < self.RESIDUAL:
            self.scores[self.count - 1 - self.half] = residual

    def transitions(self) -> list[tuple[int, int]]:
        """The frames [a, b) of each dissolve: half a second on either side of its middle."""
        found = []
        for middle in sorted(self.scores, key=self.scores.get):
            if all(abs(middle - other) > 2 * self.half for other in found):
                found.append(middle)
        return [(middle - self.half, middle + self.half) for middle in sorted(found)]


# ------------------------------------------------------------------------------------------- frames

def middles(a: int, b: int, k: int) -> list[int]:
    """The frames in the middles of k equal parts of a clip; a short clip has some of them twice."""
    return [a + (2 * i + 1) * (b - a) // (2 * k) for i in range(k)]


def read_clips(path: Path, clips: list[tuple[int, int]], k: int = 4,
               side: int = 512) -> Iterator[list[np.ndarray]]:
    """k frames of each clip (see middles), at most `side` pixels wide and high, in one pass.

    The clips must be in temporal order and must not overlap. Raises BadInput if a frame is missing.
    """
    numbers = (number for a, b in clips for number in middles(a, b, k))
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
        with replacing(out) as temporary:
            first = next(frames)
            writer = _clip_writer(temporary, first, fps)
            for frame in chain([first], islice(frames, b - a - 1)):
                writer.send(frame)
            writer.close()
            video.count_frames(temporary, b - a)


def _clip_writer(path: Path, first: np.ndarray, fps: float) -> Iterator:
    """A generator to which frames as large as the first are sent; x264, even sides, BT.709."""
    height, width = first.shape[:2]
    bt709 = ["-colorspace", "bt709", "-color_primaries", "bt709", "-color_trc", "bt709"]
    writer = imageio_ffmpeg.write_frames(
        str(path.absolute()), (width, height), fps=fps, codec="libx264", quality=None,
        macro_block_size=1, ffmpeg_log_level="quiet",
        output_params=["-crf", "18", *bt709, "-vf", "scale=trunc(iw/2)*2:trunc(ih/2)*2"
                       ":out_color_matrix=bt709,format=yuv420p"])
    writer.send(None)
    return writer
