"""Cuts, frames and clips of films."""

import re
import subprocess
from pathlib import Path

import cv2
import imageio.v3 as iio
import imageio_ffmpeg
import numpy as np
import pytest
import torch

from common import video
from common.files import BadInput
from common.video import count_frames, write_video
from curation import go, read
from rvedata import film, tiny_films
from tiny import world


def test_cuts_are_found_within_a_frame(movies, tmp_path):
    true = hits = found = 0
    known = {movies.folder / name: movie.cuts for name, movie in movies.truth.items()}
    made = tiny_films.make_movies(tmp_path, 3, 8, tiny_films.TinyWorldVLM())
    known |= {tmp_path / name: cuts for name, cuts in made.items()}
    for path, wanted in known.items():
        shots, frames, fps = film.find_shots(path)
        assert frames == 27 * (len(wanted) + 1) and fps == 24
        assert [past for _, past in shots[:-1]] == [first for first, _ in shots[1:]]
        cuts = [first for first, _ in shots[1:]]
        true, found = true + len(wanted), found + len(cuts)
        hits += sum(min(abs(cut - c) for c in cuts) <= 1 for cut in wanted)
    assert hits / true >= .95 and hits / found >= .95


def test_frames_are_those_asked_for(movies):
    name, movie = next(iter(movies.truth.items()))
    path = movies.folder / name
    whole = iio.imread(path, plugin="FFMPEG")
    clips = [(0, 8), (30, 50), (77, 78), (100, len(whole))]
    for (a, b), frames in zip(clips, film.read_clips(path, clips, k=4), strict=True):
        places = [a + (2 * i + 1) * (b - a) // 8 for i in range(4)]
        for frame, place in zip(frames, places, strict=True):
            assert np.abs(frame.astype(int) - whole[place]).mean() < 2, (a, b, place)
    assert film.read_frames(path, side=64)[0].shape == (64, 64, 3)
    with pytest.raises(BadInput, match="frame 9.. cannot be read"):
        next(film.read_clips(path, [(900, 1000)]))


def test_a_clip_is_cut_at_the_frame(movies, tmp_path):
    name = next(iter(movies.truth))
    outs = [tmp_path / "clip.mp4", tmp_path / "other.mp4"]
    film.write_clips(movies.folder / name, [(31, 52), (60, 63)], 24, outs)
    assert [count_frames(out) for out in outs] == [21, 3]
    whole, clip = (iio.imread(p, plugin="FFMPEG").astype(int)
                   for p in (movies.folder / name, tmp_path / "clip.mp4"))
    distance = [[np.abs(clip[k] - whole[31 + k + d]).mean() for d in (-1, 0, 1)]
                for k in (0, 10, 20)]
    assert all(row[1] <= min(row) + .2 and row[1] < 3 for row in distance), distance


@pytest.mark.parametrize("make, words", [
    (lambda path, good: path.write_bytes(b""), "bad.mp4: cannot be read to its end as a video"),
    (lambda path, good: path.write_bytes(b"no film" * 999), "bad.mp4: cannot be read to its end as a video"),
    (lambda path, good: write_video(path, torch.zeros(40, 3, 32, 32)), "bad.mp4: is a movie without cuts"),
    (lambda path, good: path.write_bytes(good.read_bytes()), "bad.mp4: has 6 shots, more than --max-shots 5"),
], ids=["zero length", "no film", "without cuts", "too many cuts"])
def test_bad_films(make, words, movies, tmp_path, capsys):
    folder = tmp_path / "movies"
    folder.mkdir()
    write_video(folder / "good.mp4", movies.truth["m0.mp4"].clip[:108], 24, 4)             # four shots
    make(folder / "bad.mp4", movies.folder / "m0.mp4")
    flags = ["--movies", folder, "--least", 9, "--max-shots", 5, "--threshold", .8]
    with pytest.raises(BadInput, match=words):
        go("icvg", tmp_path / "out", *flags)
    go("icvg", tmp_path / "out", *flags, "--skip-bad")
    out, err = capsys.readouterr()
    assert re.search(words, err) and "1 failed" in out
    assert {r["movie"] for r in read(tmp_path / "out/captions.jsonl")} == {"good.mp4"}
    assert words.split(": ")[1] in (tmp_path / "out/report.html").read_text()


def test_a_film_that_is_cut_off(movies, tmp_path):
    data = (movies.folder / "m0.mp4").read_bytes()
    subprocess.run([imageio_ffmpeg.get_ffmpeg_exe(), "-v", "error", "-i", movies.folder / "m0.mp4", "-c", "copy",
                    "-movflags", "faststart", tmp_path / "whole.mp4"], check=True)         # its index comes first
    (tmp_path / "cut.mp4").write_bytes((tmp_path / "whole.mp4").read_bytes()[:len(data) // 2])
    with pytest.raises(BadInput, match="cut.mp4: cannot be read to its end"):
        film.find_shots(tmp_path / "cut.mp4")


# ------------------------------------------------------------- films whose frames show their number

N, BLOCK = 100, 16


def paint(number):
    """A frame with its number as 3 x 4 black and white blocks, the ground grey or coloured in turn."""
    frame = np.full((4 * BLOCK, 6 * BLOCK, 3), (90, 90, 90), np.uint8)
    if number // 50 % 2:
        frame[:] = (180, 60, 20)
    for bit in range(12):
        row, column = divmod(bit, 4)
        y, x = BLOCK * row + BLOCK // 2, BLOCK * column + BLOCK
        frame[y:y + BLOCK, x:x + BLOCK] = 255 * (number >> bit & 1)
    return frame


def number_of(frame):
    """The number that is painted in a frame of any size."""
    frame = cv2.resize(frame, (6 * BLOCK, 4 * BLOCK), interpolation=cv2.INTER_AREA).astype(int)
    middles = [(BLOCK * (bit // 4) + BLOCK, BLOCK * (bit % 4) + 3 * BLOCK // 2)
               for bit in range(12)]
    return sum((frame[y - 3:y + 3, x - 3:x + 3].mean() > 127) << bit
               for bit, (y, x) in enumerate(middles))


X264 = ["-c:v", "libx264", "-crf", "16", "-g", "12", "-pix_fmt", "yuv420p"]
SOUND = ["-f", "lavfi", "-i", "sine=d=6"]
FILMS = {
    "Alien: Romulus.mp4": ([], X264),
    "ntsc.mkv": ([], ["-vf", "settb=1/24000,setpts=N*1001", "-fps_mode", "passthrough", *X264]),
    "dropped.mkv": ([], ["-vf", "select='lt(n,60)+not(mod(n,2))'", "-fps_mode", "vfr", *X264]),
    "slow, then fast.mp4": ([], ["-vf", "settb=1/1000,setpts='if(lt(N,50),N*40,1500+N*10)'",
                                 "-fps_mode", "passthrough", *X264]),
    "late.mkv": ([], ["-output_ts_offset", "7.3", *X264]),
    "sound is longer.ts": (SOUND, [*X264, "-c:a", "ac3"]),
    "xvid.avi": ([], ["-c:v", "mpeg4", "-vtag", "XVID", "-bf", "2", "-q:v", "2"]),
    "film.mpg": (SOUND, ["-c:v", "mpeg2video", "-bf", "2", "-q:v", "2", "-c:a", "mp2"]),
    "ten bits.mkv": ([], ["-c:v", "libx265", "-x265-params", "log-level=none",
                          "-pix_fmt", "yuv420p10le"]),
}


@pytest.mark.parametrize("name", FILMS)
def test_the_vlm_and_the_clip_show_the_same_frames(name, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    path = Path(name)
    inputs, options = FILMS[name]
    pixels = np.stack([paint(k) for k in range(N)])
    subprocess.run([imageio_ffmpeg.get_ffmpeg_exe(), "-v", "error", "-f", "rawvideo", "-pix_fmt",
                    "rgb24", "-s", f"{6 * BLOCK}x{4 * BLOCK}", "-r", "25", "-i", "-", *inputs,
                    *options, tmp_path / name], input=pixels.tobytes(), check=True)
    painted = [number_of(frame) for frame in video.frames(path)]
    assert painted == [k for k in range(N) if k < 60 or k % 2 == 0 or name != "dropped.mkv"]
    shots, frames, fps = film.find_shots(path)
    assert frames == len(painted)                        # (blocks that turn may look like a cut, too)
    assert 50 in [painted[first] for first, _ in shots]
    clips = [(3, 40), (53, len(painted) - 4)]
    outs = [Path("0.mp4"), Path("1.mp4")]
    film.write_clips(path, clips, fps, outs)
    for (a, b), seen, out in zip(clips, film.read_clips(path, clips, k=5), outs):
        written = [number_of(frame) for frame in video.frames(out)]
        assert written == painted[a:b]                   # the clip has its frames, all of them
        shown = [number_of(frame) for frame in seen]     # and the VLM sees some of the same
        assert shown == [written[k] for k in film.middles(0, b - a, 5)]
        assert [number_of(frame) for frame in film.read_frames(out, k=5)] == shown


def test_a_film_that_is_another_one_now(movies, tmp_path):
    path = tmp_path / "short.mp4"
    write_video(path, torch.zeros(20, 3, 32, 32))
    with pytest.raises(BadInput, match="short.mp4: frame 40 cannot be read; is it the file whose"):
        film.write_clips(path, [(5, 10), (40, 50)], 24, [tmp_path / "a.mp4", tmp_path / "b.mp4"])
    assert sorted(p.name for p in tmp_path.iterdir()) == ["a.mp4", "short.mp4"]


# --------------------------------------------------------------------------------------- dissolves

def blend(a, b, n):
    """Two shots (F, 3, H, W), the last n frames of one blended into the first n of the other."""
    weight = torch.linspace(0, 1, n + 2)[1:-1].view(-1, 1, 1, 1)
    both = a[-n:] * (1 - weight) + b[:n] * weight
    return torch.cat([a[:-n], both, b[n:]])


@pytest.mark.parametrize("n", [6, 12, 18])
def test_dissolves_are_found(n, tmp_path):
    triplets = [world.make_triplet(index, "icvg", "train") for index in range(2, 6)]
    a, b, c, d = [tiny_films.film_shot(triplet.before, 5) for triplet in triplets]
    clip = torch.cat([blend(a, b, n), blend(c, d, n)])   # and a hard cut between the two
    write_video(tmp_path / "film.mp4", clip, 24, 4)
    shots, frames, _ = film.find_shots(tmp_path / "film.mp4")
    assert frames == len(clip) and len(shots) == 4
    half = len(clip) // 2
    for at, ((_, past), (first, _)) in zip((45 - n / 2, half, half + 45 - n / 2),
                                           zip(shots, shots[1:])):
        assert past - 1 <= at <= first + 1, (shots, at)
        assert (past < at - n / 2 + 1 and first > at + n / 2 - 1) or at == half


def test_black_is_no_shot_and_a_flash_is_no_cut(tmp_path):
    rng = np.random.default_rng(0)
    a, b = [cv2.resize(rng.integers(0, 256, (6, 8, 3), np.uint8), (96, 72)) for _ in range(2)]
    black, white = np.zeros_like(a), np.full_like(a, 255)
    film_of = lambda *parts: np.stack([frame for frame, n in parts for _ in range(n)])
    video.write_pixels(tmp_path / "black.mp4", film_of((black, 30), (a, 40), (black, 96), (b, 40)), 24)
    (first, second), frames, _ = film.find_shots(tmp_path / "black.mp4")
    assert frames == 206 and first == (30, 70) and second == (166, 206)
    video.write_pixels(tmp_path / "flash.mp4", film_of(
        (a, 30), (white, 1), (a, 30), (white, 2), (a, 30), (black, 1), (a, 30), (b, 40)), 24)
    assert film.find_shots(tmp_path / "flash.mp4")[0] == [(0, 124), (124, 164)]


def test_motion_and_light_are_no_dissolves():
    rng = np.random.default_rng(0)
    picture = cv2.resize(rng.integers(0, 256, (9, 40, 3), np.uint8), (1280, 288))
    pans = [[picture[:, x:x + 512] for x in range(0, 768, step)] for step in (6, 12, 24)]
    dark = [np.clip(picture[:, :512] * (.3 + .02 * k), 0, 255).astype(np.uint8) for k in range(60)]
    cut = [picture[:, :512]] * 40 + [picture[:, 700:1212]] * 40
    for frames in (*pans, dark, cut):
        detector = film.DissolveDetector(25)
        for frame in frames:
            detector.add(frame)
        assert detector.transitions() == []
