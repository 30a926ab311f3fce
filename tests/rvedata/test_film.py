"""Cuts, frames and clips of films."""

from pathlib import Path

import cv2
import numpy as np
import pytest
import torch

from clips import N, ffmpeg, read_paint
from common import video
from common.files import BadInput
from curation import go, read
from rvedata import film, tiny_films
from tiny import world

RNG = np.random.default_rng(0)
PICTURE, OTHER = [cv2.resize(RNG.integers(0, 256, (6, 8, 3), np.uint8), (96, 72)) for _ in range(2)]
BLACK, WHITE = np.zeros_like(PICTURE), np.full_like(PICTURE, 255)


def write_film(path, *parts):
    """A film of pictures that stand still: (picture, for how many frames), ..."""
    video.write_pixels(path, np.stack([picture for picture, n in parts for _ in range(n)]), 24)
    return path


def test_cuts_are_found_within_a_frame(movies, tmp_path):
    true = hits = found = 0
    known = {movies.folder / name: movie.cuts for name, movie in movies.truth.items()}
    made = tiny_films.make_movies(tmp_path, 1, 8, tiny_films.TinyWorldVLM())
    known |= {tmp_path / name: cuts for name, cuts in made.items()}
    for path, wanted in known.items():
        shots, frames, fps = film.find_shots(path)
        assert frames == 27 * (len(wanted) + 1) and fps == 24
        assert [past for _, past in shots[:-1]] == [first for first, _ in shots[1:]]
        cuts = [first for first, _ in shots[1:]]
        true, found = true + len(wanted), found + len(cuts)
        hits += sum(min(abs(cut - c) for c in cuts) <= 1 for cut in wanted)
    assert hits / true >= .95 and hits / found >= .95


def test_black_is_no_shot_and_a_flash_is_no_cut(tmp_path):
    path = write_film(tmp_path / "black.mp4", (BLACK, 30), (PICTURE, 40), (BLACK, 96), (OTHER, 40))
    assert film.find_shots(path) == ([(30, 70), (166, 206)], 206, 24)
    path = write_film(tmp_path / "flash.mp4", (PICTURE, 30), (WHITE, 1), (PICTURE, 30), (WHITE, 2),
                      (PICTURE, 30), (BLACK, 1), (PICTURE, 30), (OTHER, 40))
    assert film.find_shots(path)[0] == [(0, 124), (124, 164)]


def test_films_that_are_skipped(tmp_path, capsys):
    """None at all, one without cuts, one with too many; the run goes on with the good one."""
    shots = [(PICTURE, 20), (OTHER, 20)]
    write_film(tmp_path / "good.mp4", *shots, *shots)
    write_film(tmp_path / "flickers.mp4", *shots * 3)
    write_film(tmp_path / "stands.mp4", (PICTURE, 40))
    (tmp_path / "empty.mp4").write_bytes(b"")
    flags = ["--movies", tmp_path, "--least", 9, "--max-shots", 5, "--threshold", .8]
    with pytest.raises(BadInput, match=r"empty.mp4: cannot be read .* \(or pass --skip-bad\)"):
        go("icvg", tmp_path / "out", *flags)
    go("icvg", tmp_path / "out", *flags, "--skip-bad")
    out, err = capsys.readouterr()
    page = (tmp_path / "out/report.html").read_text()
    for words in ("cannot be read to its end", "stands.mp4: is a movie without cuts",
                  "flickers.mp4: has 6 shots, more than --max-shots 5"):
        assert words in err and words in page
    assert "shots: 1 done, 3 failed" in out
    assert {r["movie"] for r in read(tmp_path / "out/captions.jsonl")} == {"good.mp4"}


# ------------------------------------------------------------- films whose frames show their number

X264 = ("-c:v", "libx264", "-crf", "16", "-g", "12", "-pix_fmt", "yuv420p")
FILMS = {                                                # what ffmpeg is given beside the film
    "Alien: Romulus.mp4": ("-vf", "settb=1/1000,setpts='if(lt(N,50),N*40,1500+N*10)'",
                           "-fps_mode", "passthrough", *X264),             # slow, then fast
    "dropped.mkv": ("-vf", "select='lt(n,60)+not(mod(n,2))'", "-fps_mode", "vfr", *X264),
    "sound is longer.ts": ("-f", "lavfi", "-i", "sine=d=12", *X264, "-c:a", "ac3")}


@pytest.mark.parametrize("name", FILMS)
def test_the_vlm_and_the_clip_show_the_same_frames(name, painted, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    ffmpeg("-i", painted, *FILMS[name], tmp_path / name)
    path = Path(name)
    held = read_paint(video.frames(path))
    assert held == [k for k in range(N) if k < 60 or k % 2 == 0 or name != "dropped.mkv"]
    shots, frames, fps = film.find_shots(path)
    assert frames == len(held)                           # (blocks that turn may be a cut, too)
    assert 50 in [held[first] for first, _ in shots]
    clips = [(3, 40), (53, len(held) - 4)]
    outs = [Path("0.mp4"), Path("1.mp4")]
    film.write_clips(path, clips, fps, outs)
    for (a, b), seen, out in zip(clips, film.read_clips(path, clips, k=5), outs, strict=True):
        assert read_paint(video.frames(out)) == held[a:b]     # the clip has its frames, all of them
        shown = read_paint(seen)                         # and the VLM sees some of the same
        assert shown == [held[a:b][(2 * i + 1) * (b - a) // 10] for i in range(5)]
        assert read_paint(film.read_frames(out, k=5, side=64)) == shown
    with pytest.raises(BadInput, match=f"{name}: ends before frame 2..; was it another file"):
        film.write_clips(path, [(200, 210)], fps, [Path("2.mp4")])
    assert not Path("2.mp4").exists()


# --------------------------------------------------------------------------------------- dissolves

def blend(a, b, n):
    """Two shots (F, 3, H, W), the last n frames of one blended into the first n of the other."""
    weight = torch.linspace(0, 1, n + 2)[1:-1].view(-1, 1, 1, 1)
    return torch.cat([a[:-n], a[-n:] * (1 - weight) + b[:n] * weight, b[n:]])


@pytest.mark.parametrize("n", [6, 18])
def test_dissolves_are_found(n, tmp_path):
    triplets = [world.make_triplet(index, "icvg", "train") for index in range(2, 6)]
    a, b, c, d = [tiny_films.film_shot(triplet.before, 5) for triplet in triplets]
    clip = torch.cat([blend(a, b, n), blend(c, d, n)])   # and a hard cut between the two
    video.write_video(tmp_path / "film.mp4", clip, 24, 4)
    shots, frames, _ = film.find_shots(tmp_path / "film.mp4")
    assert frames == len(clip) and len(shots) == 4
    half = len(clip) // 2
    for at, ((_, past), (first, _)) in zip((45 - n / 2, half, half + 45 - n / 2),
                                           zip(shots, shots[1:])):
        assert past - 1 <= at <= first + 1, (shots, at)
        assert (past < at - n / 2 + 1 and first > at + n / 2 - 1) or at == half


def test_motion_and_light_are_no_dissolves():
    picture = cv2.resize(RNG.integers(0, 256, (9, 40, 3), np.uint8), (1280, 288))
    pans = [[picture[:, x:x + 512] for x in range(0, 768, step)] for step in (6, 12, 24)]
    dark = [np.clip(picture[:, :512] * (.3 + .02 * k), 0, 255).astype(np.uint8) for k in range(60)]
    cut = [picture[:, :512]] * 40 + [picture[:, 700:1212]] * 40
    for frames in (*pans, dark, cut):
        detector = film.DissolveDetector(25)
        for frame in frames:
            detector.add(frame)
        assert detector.transitions() == []
