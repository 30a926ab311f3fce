"""Cuts, frames and clips of films."""

import re
import subprocess

import imageio.v3 as iio
import imageio_ffmpeg
import numpy as np
import pytest
import torch

from common.files import BadInput
from common.video import count_frames, write_video
from curation import go, read
from rvedata import film, tiny_films


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
