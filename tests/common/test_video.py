"""common/video.py: reading and writing videos."""

import os
import resource

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from PIL import Image

from clips import N, ffmpeg, numbered, paint, read_paint
from common.files import BadInput, atomic_write
from common.video import (count_frames, frame_numbers, frame_rate, frames, from_bytes, pick_frames,
                          read_pixels, read_video, to_bytes, write_pixels, write_video)
from tiny import scene

X264 = ("-c:v", "libx264", "-pix_fmt", "yuv420p")


def to_pixels(video):
    return to_bytes(video).permute(0, 2, 3, 1).numpy()


def psnr(a, b):
    return 10 * torch.log10(4 / (a - b).pow(2).mean()).item()


@pytest.fixture
def clip(sources):
    return sources[0]


# ------------------------------------------------------------------------- written and read again

@pytest.mark.parametrize("name, least", [("clip.mp4", 29), ("clip.gif", 40)])
def test_what_is_written_is_read_again(tmp_path, clip, name, least):
    write_video(tmp_path / name, clip)
    again = read_video(tmp_path / name, 9, scene.SIZE, scene.SIZE)
    assert again.shape == clip.shape and again.dtype == torch.float32 and again.is_contiguous()
    assert psnr(again, clip) > least
    assert os.listdir(tmp_path) == [name]                # no temporary file


def test_all_pixels_enlarged_by_nearest_neighbour(tmp_path, clip):
    path = tmp_path / "a.mp4"
    write_video(path, clip, fps=5, scale=4)
    video = from_bytes(torch.from_numpy(read_pixels(path, 9)).permute(0, 3, 1, 2))
    assert psnr(video, F.interpolate(clip, scale_factor=4.)) > 33      # default mode: nearest
    assert torch.equal(video, read_video(path, 9, *video.shape[2:]))


def test_odd_sizes_and_rates(painted, tmp_path):
    pixels = np.stack([paint(k)[:47, :95] for k in range(12)])
    write_pixels(tmp_path / "a.mp4", pixels, 24000 / 1001)
    assert read_paint(frames(tmp_path / "a.mp4")) == list(range(12))
    assert frame_rate(tmp_path / "a.mp4") == pytest.approx(24000 / 1001, abs=.01)
    assert frame_rate(painted) == 25 and frame_rate(tmp_path) == 8


def test_a_failed_write_keeps_the_old_file(tmp_path, clip, monkeypatch):
    record, video = tmp_path / "a.json", tmp_path / "a.mp4"
    atomic_write(record, "old")
    write_video(video, clip)
    old = video.read_bytes()

    def full(*args):
        raise OSError(28, "No space left on device")

    with monkeypatch.context() as patch:
        patch.setattr("os.replace", full)
        with pytest.raises(BadInput, match="No space left on device"):
            atomic_write(record, b"new")
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (len(old) // 2, before[1]))      # ffmpeg's full disk
    try:
        with pytest.raises(BadInput, match="did not finish"):
            write_video(video, clip)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)
    assert record.read_text() == "old" and video.read_bytes() == old
    assert sorted(os.listdir(tmp_path)) == ["a.json", "a.mp4"]


# ------------------------------------------------------------------ videos as they are in the world

SOUND = ("-f", "lavfi", "-i", "sine=duration=12")        # longer than the picture
OPEN_GOP = (*X264, "-x264-params", "open-gop=1:keyint=25:bframes=3:scenecut=0")
FASTER = ("-vf", "setpts='if(lt(N,100),N,100+(N-100)/4)/25/TB'", "-fps_mode", "passthrough",
          "-enc_time_base", "1/1000")                    # 25, then 100 frames a second
FRAGMENTS = ("-movflags", "frag_keyframe+empty_moov")

# file: what ffmpeg is given before the film is read again, and after
KINDS = {
    "faster.mp4": ((), (*FASTER, *X264)),
    "ac3.ts": (SOUND, ("-c:v", "mpeg2video", "-bf", "2", "-c:a", "ac3")),
    "xvid.avi": ((), ("-c:v", "mpeg4", "-vtag", "XVID", "-bf", "2", "-g", "50")),
    "Alien: Romulus.mp4": ((), X264)}


@pytest.mark.parametrize("name", KINDS)
def test_every_frame_is_decoded_and_known_by_its_number(painted, tmp_path, monkeypatch, name):
    monkeypatch.chdir(tmp_path)                          # "Alien: Romulus.mp4" is no protocol
    before, after = KINDS[name]
    ffmpeg(*before, "-i", painted, *after, tmp_path / name)
    assert count_frames(name) == N and read_paint(frames(name)) == list(range(N))
    assert read_paint(pick_frames(name, [101, 0, 99, 199, 0])) == [101, 0, 99, 199, 0]
    clip = read_video(name, 5, 48, 96, stride=2, start=98)
    assert read_paint(to_pixels(clip)) == [98, 100, 102, 104, 106]


def test_a_clip_cut_without_encoding_is_whole(painted, tmp_path):
    """`-c copy` leaves frames that refer to what is not there any more: ffmpeg remarks on it."""
    ffmpeg("-i", painted, *OPEN_GOP, tmp_path / "whole.mp4")
    ffmpeg("-ss", 3, "-i", tmp_path / "whole.mp4", "-c", "copy", tmp_path / "cut.mp4")
    shown = read_paint(frames(tmp_path / "cut.mp4"))
    assert len(shown) == count_frames(tmp_path / "cut.mp4") >= 120
    assert shown == sorted(set(shown)) and shown[-50:] == list(range(150, 200))


def test_pixels_become_square_and_upright(painted, tmp_path):
    wide, phone = tmp_path / "wide.mp4", tmp_path / "phone.mp4"
    ffmpeg("-i", painted, *X264, "-vf", "setsar=4/3", "-frames:v", 5, wide)
    ffmpeg("-display_rotation", 90, "-i", wide, "-c", "copy", phone)
    pixels = read_pixels(wide)
    assert pixels.shape == (5, 48, 128, 3) and read_paint(pixels) == [0, 1, 2, 3, 4]
    turned = read_pixels(phone)
    assert turned.shape[1] / turned.shape[2] == pytest.approx(128 / 48, rel=.02)
    assert read_paint(np.rot90(turned, -1, (1, 2))) == [0, 1, 2, 3, 4]


# --------------------------------------------------------------------------------- what is no video

def test_what_is_no_video_is_named(tmp_path):
    for name in ("nothing", "frames", "mixed"):
        (tmp_path / name).mkdir()
    write_video(tmp_path / "short.mp4", numbered(8))
    (tmp_path / "text.mp4").write_text("this is no video\n" * 50)
    for k in range(3):
        Image.new("RGB", (4 + k, 4)).save(tmp_path / f"mixed/{k}.png")
    (tmp_path / "frames/1.png").write_bytes((tmp_path / "mixed/0.png").read_bytes()[:30])
    for name, words in (("short.mp4", "has 8 frames and 9 are needed"),
                        ("text.mp4", "cannot be read to its end as a video"),
                        ("x" * 300, "there is no such video"),
                        ("nothing", "has 0 frames and 9 are needed"),
                        ("mixed", "its images differ in size"),
                        ("frames", "1.png: cannot be read as an image")):
        with pytest.raises(BadInput, match=f"^{tmp_path / name}[^\n]*{words}[^\n]*$"):
            read_video(tmp_path / name, 9, 64, 64)


@pytest.mark.parametrize("name, options", [
    ("faststart.mp4", (*X264, "-movflags", "+faststart")), ("end.mp4", X264),
    ("fragments.mp4", (*X264, *FRAGMENTS)), ("a.mkv", X264), ("a.gif", ())])
def test_what_is_cut_off_is_named(painted, tmp_path, name, options):
    path = tmp_path / name
    ffmpeg("-i", painted, *options, path)
    assert count_frames(path) == N
    whole = path.read_bytes()
    for share in (.1, .6, .97):
        path.write_bytes(whole[:int(len(whole) * share)])
        with pytest.raises(BadInput, match=f"^{path}: cannot be read to its end[^\n]*$"):
            count_frames(path)


def test_flipped_bytes_are_told(tmp_path):
    """ffmpeg fills the damaged blocks out of their neighbours, and ends with exit code 0."""
    rich = "testsrc2=size=320x240:rate=25:duration=4"    # blocks of many bytes
    ffmpeg("-f", "lavfi", "-i", rich, *X264, "-g", 50, tmp_path / "a.mp4")
    content = bytearray((tmp_path / "a.mp4").read_bytes())
    rng = np.random.default_rng(0)
    for place in rng.integers(len(content) // 10, len(content) * 8 // 10, 50):
        content[place] ^= 1 << rng.integers(8)
    (tmp_path / "a.mp4").write_bytes(content)
    with pytest.raises(BadInput, match="a.mp4: cannot be read to its end .*; .* copy it again"):
        count_frames(tmp_path / "a.mp4")


# ----------------------------------------------------------------------------- pictures as they are

def test_pictures_as_they_are(tmp_path):
    """In the order of their numbers; a turned jpg is turned back."""
    wide = Image.new("RGB", (40, 20))
    wide.paste("red", (0, 0, 20, 20))                    # red on the left
    exif = Image.Exif()
    exif[0x0112] = 6                                     # "turn by 90 degrees, clockwise"
    wide.transpose(Image.Transpose.ROTATE_90).save(tmp_path / "10.jpg", exif=exif, quality=95)
    Image.new("RGB", (40, 20), (200, 30, 60)).save(tmp_path / "2.png")
    (tmp_path / "._2.png").touch()                       # a Mac's
    flat, turned = read_pixels(tmp_path).astype(int)
    assert turned[10, 5, 0] > 200 and turned[10, 35].max() < 50
    assert (flat == [200, 30, 60]).all()
    assert [frame.shape[:2] for frame in frames(tmp_path, side=20)] == [(10, 20)] * 2


# ------------------------------------------------------------------------- which frames make a clip

def test_frame_numbers():
    assert frame_numbers(100, 5) == [0, 25, 50, 74, 99]
    assert frame_numbers(100, 5, start=60) == [60, 70, 80, 89, 99]
    assert frame_numbers(100, 5, stride=1) == [0, 1, 2, 3, 4]
    assert frame_numbers(100, 5, stride=3, start=87) == [87, 90, 93, 96, 99]
    with pytest.raises(ValueError, match="100 frames and 101 are needed .start 88, stride 3"):
        frame_numbers(100, 5, stride=3, start=88)


def test_what_is_beyond_the_end(painted):
    with pytest.raises(BadInput, match="film.mkv: has 200 frames and 209 are needed"):
        read_video(painted, 9, 48, 96, stride=1, start=200)
    with pytest.raises(BadInput, match="film.mkv: ends before frame 200"):
        pick_frames(painted, [3, 200])
