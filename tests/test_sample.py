"""sample.py: from a file to an edited file, and one line for everything that can be wrong."""

import os
import shlex

import imageio.v3 as iio
import pytest
import torch

import sample
from clips import numbered, numbers
from common.files import BadInput
from common.video import read_video, write_video
from presets import PRESETS
from tiny import world

SIDE = PRESETS["tiny"].height


@pytest.fixture
def clip(tmp_path):
    write_video(tmp_path / "my.mp4", world.make_triplet(0, "rave", "val").source)
    return tmp_path / "my.mp4"


def run(flags: dict) -> None:
    sample.main([str(x) for pair in flags.items() for x in pair])


def light(video):
    """Luma, which neither of the formats spoils: mp4 halves the colours' size."""
    return (video * torch.tensor([.299, .587, .114]).view(3, 1, 1)).sum(1)


@pytest.mark.parametrize("suffix", [".mp4", ".gif"])
def test_what_is_written_is_what_the_model_makes(clip, tiny, tiny_dir, tmp_path, suffix):
    out, words = tmp_path / "new" / f"edited{suffix}", "a hard frost came overnight"
    run({"--video": clip, "--instruction": words, "--out": out, "--checkpoint": tiny_dir,
         "--steps": 2, "--seed": 3})
    source = read_video(clip, 9, SIDE, SIDE)
    want = tiny.sample(source[None], [words], steps=2, guidance=1., seed=3)[0]
    assert (light(read_video(out, 9, SIDE, SIDE)) - light(want)).abs().mean() < .05
    frames = iio.imread(out.with_stem("edited_side_by_side"))
    scale = 256 // SIDE
    assert frames.shape[1:] == (256, scale * (SIDE + 2 + SIDE), 3)
    both = torch.from_numpy(frames[:, 2::scale, 2::scale]).permute(0, 3, 1, 2) / 127.5 - 1
    left, line, right = both[0].split((SIDE, 2, SIDE), -1)
    assert (left - source[0]).abs().mean() < .1 and line.mean() > .9
    assert (right - want[0]).abs().mean() < .15


@pytest.mark.parametrize("flags, held", [
    ({"--stride": 1, "--start": 3}, range(3, 12)), ({}, range(0, 24, 3))])
def test_which_frames_are_edited(tiny_dir, tmp_path, capsys, flags, held):
    """--stride and --start choose them, and what is left out is said."""
    write_video(tmp_path / "long.mp4", numbered(24, SIDE, SIDE), scale=2)
    run({"--video": tmp_path / "long.mp4", "--instruction": "wait", "--out": tmp_path / "a.mp4",
         "--checkpoint": tiny_dir, "--steps": 1, **flags})
    both = read_video(tmp_path / "a_side_by_side.mp4", 9, 256, 256 * (2 * SIDE + 2) // SIDE)
    shown = numbers(both[..., :256])
    assert f"has 24 frames; edited are {', '.join(map(str, shown))}" in capsys.readouterr().out
    assert shown[0] == held[0] and (not flags or shown == list(held))


BAD = [("--video none.mp4", "none.mp4: there is no such video"),
       ("--out link.mp4", "--out link.mp4: would overwrite the source"),
       (f"--instruction '{'wait ' * 60}'", "--instruction: an instruction is"),
       ("--stride 2", "my.mp4: has 9 frames and 17 are needed")]


@pytest.fixture
def workplace(clip, tiny_dir, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    os.symlink(tiny_dir, "model")
    os.symlink("my.mp4", "link.mp4")


@pytest.mark.parametrize("flags, words", BAD)
def test_bad_input_is_one_line_and_nothing_is_half_written(workplace, flags, words):
    good = "--video my.mp4 --instruction wait --out edited.mp4 --checkpoint model --steps 1"
    before = sorted(os.listdir())
    with pytest.raises(BadInput) as error:
        sample.main(shlex.split(f"{good} {flags}"))
    line = str(error.value)
    assert words in line and len(line) < 500 and "\n" not in line
    assert sorted(os.listdir()) == before
