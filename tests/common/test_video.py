"""common/video.py: reading and writing videos."""

import os

import imageio.v3 as iio
import numpy as np
import pytest
import torch
import torch.nn.functional as F
from PIL import Image

from clips import numbered, numbers
from common.files import BadInput, atomic_write
from common.video import from_bytes, read_pixels, read_video, to_bytes, write_video
from tiny import scene, world

SIZE = (9, scene.SIZE, scene.SIZE)


def psnr(a, b):
    return 10 * torch.log10(4 / (a - b).pow(2).mean()).item()


@pytest.fixture(scope="session")
def clip():
    return world.make_triplet(0, "rave", "train").source


@pytest.fixture
def broken(tmp_path):
    """Files that are no videos, or no longer: name -> path."""
    noise = np.random.default_rng(0).integers(0, 256, (20, 32, 32, 3), dtype=np.uint8)
    iio.imwrite(tmp_path / "end.mp4", noise, plugin="FFMPEG", fps=8)                           # index at the end,
    iio.imwrite(tmp_path / "start.mp4", noise, plugin="FFMPEG", fps=8, output_params=["-movflags", "+faststart"])
    iio.imwrite(tmp_path / "noise.gif", noise, plugin="pillow", duration=100)
    for name in ("end.mp4", "start.mp4", "noise.gif"):
        whole = (tmp_path / name).read_bytes()
        (tmp_path / name).write_bytes(whole[:len(whole) * 2 // 3])
    (tmp_path / "text.mp4").write_text("this is no video\n" * 50)
    (tmp_path / "empty.mp4").touch()
    (tmp_path / "nothing").mkdir()
    (tmp_path / "frames").mkdir()
    for k in range(9):
        Image.new("RGB", (64, 64), (k, k, k)).save(tmp_path / "frames" / f"{k}.png")
    (tmp_path / "frames" / "4.png").write_bytes((tmp_path / "frames" / "3.png").read_bytes()[:60])
    names = ("end.mp4", "start.mp4", "noise.gif", "text.mp4", "empty.mp4", "nothing", "frames", "missing.mp4")
    return {name: tmp_path / name for name in names}


# ------------------------------------------------------------------------------------------------ reading videos

@pytest.mark.parametrize("name, least", [("clip.mp4", 29), ("clip.MP4", 29), ("clip.gif", 40)])
def test_what_is_written_is_read_again(tmp_path, clip, name, least):
    write_video(tmp_path / name, clip)
    again = read_video(tmp_path / name, *SIZE)
    assert again.shape == clip.shape and again.dtype == torch.float32 and again.is_contiguous()
    assert psnr(again, clip) > least
    assert os.listdir(tmp_path) == [name]                                                      # no temporary file


def test_write_video_enlarges_by_nearest_neighbour(tmp_path, clip):
    write_video(tmp_path / "a.mp4", clip, fps=5, scale=4)
    meta = iio.immeta(tmp_path / "a.mp4", plugin="FFMPEG")
    assert meta["size"] == (4 * scene.SIZE, 4 * scene.SIZE) and meta["fps"] == 5
    frames = torch.from_numpy(iio.imread(tmp_path / "a.mp4", plugin="FFMPEG")).permute(0, 3, 1, 2) / 127.5 - 1
    assert psnr(frames, F.interpolate(clip, scale_factor=4.)) > 33                             # default mode: nearest


@pytest.mark.parametrize("n", [9, 10, 14, 25])
@pytest.mark.parametrize("kind", ["mp4", "gif", "webm", "folder"])
def test_frames_are_uniform_with_both_ends(tmp_path, n, kind):
    pixels = to_bytes(numbered(n)).permute(0, 2, 3, 1).numpy()
    path = tmp_path / f"a.{kind}"
    if kind == "folder":
        path.mkdir()
        for k in range(n):
            Image.fromarray(pixels[k]).save(path / f"frame{k}.png")                            # frame10 after frame9
        (path / "notes.txt").write_text("no frame")
    else:
        iio.imwrite(path, pixels, **({"plugin": "pillow", "duration": 100} if kind == "gif" else
                                     {"plugin": "FFMPEG", "fps": 10, "codec": {"mp4": "libx264", "webm": "vp9"}[kind]}))
    got = numbers(read_video(path, 9, 32, 32))
    assert got[0] == 0 and got[-1] == n - 1
    assert all(abs(g - k * (n - 1) / 8) <= .5 for k, g in enumerate(got))


def test_a_gif_that_stands_still_keeps_its_time(tmp_path):
    """gif writers merge equal frames into one that lasts longer; the clip must not get shorter by that."""
    still = numbered(3).repeat_interleave(3, 0)                                                # 0 0 0 1 1 1 2 2 2
    write_video(tmp_path / "still.gif", still)
    assert Image.open(tmp_path / "still.gif").n_frames == 3
    assert numbers(read_video(tmp_path / "still.gif", 9, 32, 32)) == [0, 0, 0, 1, 1, 1, 2, 2, 2]


@pytest.mark.parametrize("height, width", [(90, 160), (160, 90), (64, 64), (40, 60)])
def test_resize_and_crop(tmp_path, height, width):
    """Against torch's antialiased bicubic of the short side, and the centre of that."""
    rng = np.random.default_rng(1)
    rough = torch.from_numpy(rng.random((1, 3, 12, 16), np.float32))
    picture = (F.interpolate(rough, (height, width), mode="bicubic").clamp(0, 1) * 255).round()
    Image.fromarray(picture[0].byte().permute(1, 2, 0).numpy()).save(tmp_path / "0.png")
    got = read_video(tmp_path, 1, 64, 64)
    scale = 64 / min(height, width)
    resized = F.interpolate(picture, (round(height * scale), round(width * scale)), mode="bicubic", antialias=True)
    top, left = (resized.shape[2] - 64) // 2, (resized.shape[3] - 64) // 2
    want = resized[..., top:top + 64, left:left + 64].clamp(0, 255) / 127.5 - 1
    assert (got - want).abs().mean() < .01                         # one pixel off would be .07 and more
    if height == width:
        assert torch.equal(got, picture / 127.5 - 1)


def test_fine_stripes_become_grey(tmp_path):
    """Without antialiasing, stripes of one pixel would alias to black or white."""
    stripes = np.zeros((256, 256, 3), np.uint8)
    stripes[:, ::2] = 255
    Image.fromarray(stripes).save(tmp_path / "0.png")
    assert read_video(tmp_path, 1, 32, 32)[..., 4:-4].abs().max() < .05


@pytest.mark.parametrize("name, words", [
    ("end.mp4", "cut off"), ("start.mp4", "cut off"), ("noise.gif", "cut off"), ("text.mp4", "no video"),
    ("empty.mp4", "no video"), ("nothing", "has 0 frames and 9 are needed"), ("frames", "4.png"),
    ("missing.mp4", "there is no such video")])
def test_bad_videos_are_named(broken, name, words):
    with pytest.raises(BadInput) as error:
        read_video(broken[name], *SIZE)
    assert str(broken[name]) in str(error.value) and words in str(error.value) and "\n" not in str(error.value)


def test_too_few_frames(tmp_path):
    write_video(tmp_path / "short.mp4", numbered(8))
    with pytest.raises(BadInput, match="short.mp4: has 8 frames and 9 are needed; give a longer clip"):
        read_video(tmp_path / "short.mp4", *SIZE)
    assert read_video(tmp_path / "short.mp4", 8, 64, 64).shape == (8, 3, 64, 64)


def test_all_pixels_of_a_video(tmp_path):
    video = torch.linspace(-1, 1, 5 * 3 * 12 * 16).view(5, 3, 12, 16)
    write_video(tmp_path / "a.mp4", video)
    pixels = read_pixels(tmp_path / "a.mp4", 5)
    assert pixels.shape == (5, 12, 16, 3) and pixels.dtype == np.uint8
    again = from_bytes(torch.from_numpy(pixels.copy()).permute(0, 3, 1, 2))
    torch.testing.assert_close(again, read_video(tmp_path / "a.mp4", 5, 12, 16))           # another way to read the same
    (tmp_path / "cut.mp4").write_bytes((tmp_path / "a.mp4").read_bytes()[:-200])
    (tmp_path / "mixed").mkdir()
    for k, side in enumerate((4, 6)):
        Image.new("RGB", (side, 4)).save(tmp_path / f"mixed/{k}.png")
    for name, least, words in (("a.mp4", 6, "has 5 frames and 6 are needed"), ("none.mp4", 1, "no such video"),
                               ("cut.mp4", 1, "cannot be read to its end"), ("mixed", 1, "differ in size")):
        with pytest.raises(BadInput, match=words):
            read_pixels(tmp_path / name, least)


# ------------------------------------------------------------------------------------------------- writing files

def test_unwritable_places_leave_nothing(tmp_path, clip):
    (tmp_path / "file").touch()
    (tmp_path / "taken.mp4").mkdir()
    for path in (tmp_path / "file" / "a.mp4", tmp_path / "taken.mp4", tmp_path / "file" / "a.gif"):
        with pytest.raises(BadInput, match="cannot be written") as error:
            write_video(path, clip)
        assert str(path) in str(error.value) and "\n" not in str(error.value)
    with pytest.raises(BadInput, match="a.avi: videos are written as .mp4 or .gif"):
        write_video(tmp_path / "a.avi", clip)
    assert sorted(os.listdir(tmp_path)) == ["file", "taken.mp4"] and not os.listdir(tmp_path / "taken.mp4")


def test_a_failed_write_keeps_the_old_file(tmp_path, clip, monkeypatch):
    atomic_write(tmp_path / "new" / "a.json", "old")
    write_video(tmp_path / "new" / "a.mp4", clip)
    old = (tmp_path / "new" / "a.mp4").read_bytes()
    monkeypatch.setattr("os.replace", lambda *args: (_ for _ in ()).throw(OSError(28, "No space left on device")))
    with pytest.raises(BadInput, match="No space left on device"):
        atomic_write(tmp_path / "new" / "a.json", b"new")
    monkeypatch.undo()
    monkeypatch.setattr(iio, "imwrite", lambda path, *args, **kw: path.write_bytes(old[:len(old) // 2]))
    with pytest.raises(BadInput, match="did not finish"):                                      # ffmpeg on a full disk
        write_video(tmp_path / "new" / "a.mp4", clip)
    assert (tmp_path / "new" / "a.json").read_text() == "old" and (tmp_path / "new" / "a.mp4").read_bytes() == old
    assert sorted(os.listdir(tmp_path / "new")) == ["a.json", "a.mp4"]
