"""Cuts, frames and clips of films."""

import cv2
import numpy as np
import pytest

from clips import N, ffmpeg, read_paint
from common import video
from common.files import BadInput
from rvedata import film

RNG = np.random.default_rng(0)
PICTURE, OTHER = [cv2.resize(RNG.integers(0, 256, (6, 8, 3), np.uint8), (96, 72)) for _ in range(2)]


def test_cuts_are_found_within_a_frame(movies):
    for k in range(3):
        shots, frames, fps = film.find_shots(movies.folder / f"m{k}.mp4")
        assert frames == 6 * 27 and fps == 24
        assert [past for _, past in shots[:-1]] == [first for first, _ in shots[1:]]
        assert np.abs(np.subtract(shots, [(i, i + 27) for i in range(0, 162, 27)])).max() <= 1


def test_a_fade_is_cut_in_its_black(tmp_path):
    light = np.linspace(1, 0, 20)[:, None, None, None]
    fade = np.concatenate([[PICTURE] * 30, PICTURE * light, OTHER * light[::-1], [OTHER] * 30])
    video.write_pixels(tmp_path / "fade.mp4", fade.astype(np.uint8), 24)
    (_, cut), (first, end) = film.find_shots(tmp_path / "fade.mp4")[0]
    assert cut == first and 48 <= cut <= 52 and end == 100


def test_the_vlm_and_the_clip_show_the_same_frames(painted, tmp_path):
    """Half of the frames from the sixtieth on are missing, so that times and numbers differ."""
    path = tmp_path / "dropped.mkv"
    ffmpeg("-i", painted, "-vf", "select='lt(n,60)+not(mod(n,2))'", "-fps_mode", "vfr",
           "-c:v", "libx264", "-crf", "16", "-g", "12", "-pix_fmt", "yuv420p", path)
    held = [k for k in range(N) if k < 60 or k % 2 == 0]
    shots, frames, fps = film.find_shots(path)
    assert frames == len(held)                           # (blocks that turn may be a cut, too)
    assert 50 in [held[first] for first, _ in shots]
    clips, outs = [(3, 40), (53, len(held) - 4)], [tmp_path / "0.mp4", tmp_path / "1.mp4"]
    film.write_clips(path, clips, fps, outs)
    for (a, b), seen, out in zip(clips, film.read_clips(path, clips, k=5), outs, strict=True):
        assert read_paint(video.frames(out)) == held[a:b]     # the clip has its frames, all of them
        shown = read_paint(seen)                         # and the VLM sees some of the same
        assert shown == [held[a:b][(2 * i + 1) * (b - a) // 10] for i in range(5)]
        assert read_paint(film.read_frames(out, k=5, side=64)) == shown
    with pytest.raises(BadInput, match="dropped.mkv: ends before frame 200"):
        film.write_clips(path, [(200, 210)], fps, [tmp_path / "2.mp4"])
    assert not (tmp_path / "2.mp4").exists()
