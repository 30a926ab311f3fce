"""common/video.py: reading and writing videos."""

import os
import subprocess

import imageio.v3 as iio
import imageio_ffmpeg
import numpy as np
import pytest
import torch
import torch.nn.functional as F
from PIL import Image

from clips import numbered, numbers
from common.files import BadInput, atomic_write
from common.video import (count_frames, frame_numbers, frame_rate, frames, from_bytes, hash_video,
                          list_videos, pick_frames, read_pixels, read_video, shrink, to_bytes,
                          write_pixels, write_video)
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
    iio.imwrite(tmp_path / "end.mp4", noise, plugin="FFMPEG", fps=8)  # index at the end,
    iio.imwrite(tmp_path / "start.mp4", noise, plugin="FFMPEG", fps=8,
                output_params=["-movflags", "+faststart"])
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
    names = ("end.mp4", "start.mp4", "noise.gif", "text.mp4", "empty.mp4", "nothing", "frames",
             "missing.mp4")
    return {name: tmp_path / name for name in names}


# ----------------------------------------------------------------------------------- reading videos

@pytest.mark.parametrize("name, least", [("clip.mp4", 29), ("clip.MP4", 29), ("clip.gif", 40)])
def test_what_is_written_is_read_again(tmp_path, clip, name, least):
    write_video(tmp_path / name, clip)
    again = read_video(tmp_path / name, *SIZE)
    assert again.shape == clip.shape and again.dtype == torch.float32 and again.is_contiguous()
    assert psnr(again, clip) > least
    assert os.listdir(tmp_path) == [name]  # no temporary file


def test_write_video_enlarges_by_nearest_neighbour(tmp_path, clip):
    write_video(tmp_path / "a.mp4", clip, fps=5, scale=4)
    meta = iio.immeta(tmp_path / "a.mp4", plugin="FFMPEG")
    assert meta["size"] == (4 * scene.SIZE, 4 * scene.SIZE) and meta["fps"] == 5
    pixels = torch.from_numpy(iio.imread(tmp_path / "a.mp4", plugin="FFMPEG"))
    frames = pixels.permute(0, 3, 1, 2) / 127.5 - 1
    assert psnr(frames, F.interpolate(clip, scale_factor=4.)) > 33  # default mode: nearest


@pytest.mark.parametrize("kind", ["mp4", "gif", "webm", "folder"])
def test_frames_are_uniform_with_both_ends(tmp_path, kind):
    writers = {"gif": {"plugin": "pillow", "duration": 100},
               "mp4": {"plugin": "FFMPEG", "fps": 10, "codec": "libx264"},
               "webm": {"plugin": "FFMPEG", "fps": 10, "codec": "vp9"}}
    for n in (9, 10, 14):
        pixels = to_bytes(numbered(n)).permute(0, 2, 3, 1).numpy()
        path = tmp_path / f"{n}.{kind}"
        if kind == "folder":
            path.mkdir()
            for k in range(n):
                Image.fromarray(pixels[k]).save(path / f"frame{k}.png")  # frame10 after frame9
            (path / "notes.txt").write_text("no frame")
        else:
            iio.imwrite(path, pixels, **writers[kind])
        got = numbers(read_video(path, 9, 32, 32))
        assert got[0] == 0 and got[-1] == n - 1
        assert all(abs(g - k * (n - 1) / 8) <= .5 for k, g in enumerate(got))


def test_a_gif_that_stands_still_keeps_its_time(tmp_path):
    """gif writers merge equal frames into one that lasts longer; the clip must keep its length."""
    still = numbered(3).repeat_interleave(3, 0)  # 0 0 0 1 1 1 2 2 2
    write_video(tmp_path / "still.gif", still)
    assert Image.open(tmp_path / "still.gif").n_frames == 3
    assert numbers(read_video(tmp_path / "still.gif", 9, 32, 32)) == [0, 0, 0, 1, 1, 1, 2, 2, 2]


@pytest.mark.parametrize("height, width", [(90, 160), (160, 90), (64, 64), (40, 60)])
def test_resize_and_crop(tmp_path, height, width):
    """Against torch's antialiased bilinear of the short side, and the centre of that."""
    rng = np.random.default_rng(1)
    rough = torch.from_numpy(rng.random((1, 3, 12, 16), np.float32))
    picture = (F.interpolate(rough, (height, width), mode="bicubic").clamp(0, 1) * 255).round()
    Image.fromarray(picture[0].byte().permute(1, 2, 0).numpy()).save(tmp_path / "0.png")
    got = read_video(tmp_path, 1, 64, 64)
    scale = 64 / min(height, width)
    resized = F.interpolate(picture, (round(height * scale), round(width * scale)),
                            mode="bilinear", antialias=True)
    top, left = (resized.shape[2] - 64) // 2, (resized.shape[3] - 64) // 2
    want = resized[..., top:top + 64, left:left + 64].clamp(0, 255) / 127.5 - 1
    assert (got - want).abs().mean() < .01  # one pixel off would be .07 and more
    if height == width:
        assert torch.equal(got, picture / 127.5 - 1)


def test_fine_stripes_become_grey(tmp_path):
    """Without antialiasing, stripes of one pixel would alias to black or white."""
    stripes = np.zeros((256, 256, 3), np.uint8)
    stripes[:, ::2] = 255
    Image.fromarray(stripes).save(tmp_path / "0.png")
    assert read_video(tmp_path, 1, 32, 32)[..., 4:-4].abs().max() < .05


@pytest.mark.parametrize("name, words", [
    ("end.mp4", "cut off"), ("start.mp4", "cut off"), ("noise.gif", "cut off"),
    ("text.mp4", "no video"), ("empty.mp4", "no video"),
    ("nothing", "has 0 frames and 9 are needed"), ("frames", "4.png"),
    ("missing.mp4", "there is no such video")])
def test_bad_videos_are_named(broken, name, words):
    with pytest.raises(BadInput) as error:
        read_video(broken[name], *SIZE)
    said = str(error.value)
    assert str(broken[name]) in said and words in said and "\n" not in said


def test_too_few_frames(tmp_path):
    write_video(tmp_path / "short.mp4", numbered(8))
    with pytest.raises(BadInput, match="short.mp4: has 8 frames and 9 are needed; give a longer"):
        read_video(tmp_path / "short.mp4", *SIZE)
    assert read_video(tmp_path / "short.mp4", 8, 64, 64).shape == (8, 3, 64, 64)


def test_all_pixels_of_a_video(tmp_path):
    video = torch.linspace(-1, 1, 5 * 3 * 12 * 16).view(5, 3, 12, 16)
    write_video(tmp_path / "a.mp4", video)
    pixels = read_pixels(tmp_path / "a.mp4", 5)
    assert pixels.shape == (5, 12, 16, 3) and pixels.dtype == np.uint8
    again = from_bytes(torch.from_numpy(pixels.copy()).permute(0, 3, 1, 2))
    # another way to read the same
    torch.testing.assert_close(again, read_video(tmp_path / "a.mp4", 5, 12, 16))
    (tmp_path / "cut.mp4").write_bytes((tmp_path / "a.mp4").read_bytes()[:-200])
    (tmp_path / "mixed").mkdir()
    for k, side in enumerate((4, 6)):
        Image.new("RGB", (side, 4)).save(tmp_path / f"mixed/{k}.png")
    for name, least, words in (
            ("a.mp4", 6, "has 5 frames and 6 are needed"), ("none.mp4", 1, "no such video"),
            ("cut.mp4", 1, "cannot be read to its end"), ("mixed", 1, "differ in size")):
        with pytest.raises(BadInput, match=words):
            read_pixels(tmp_path / name, least)


# ------------------------------------------------------------------------------------ writing files

def test_unwritable_places_leave_nothing(tmp_path, clip):
    (tmp_path / "file").touch()
    (tmp_path / "taken.mp4").mkdir()
    for path in (tmp_path / "file" / "a.mp4", tmp_path / "taken.mp4", tmp_path / "file" / "a.gif"):
        with pytest.raises(BadInput, match="cannot be written") as error:
            write_video(path, clip)
        assert str(path) in str(error.value) and "\n" not in str(error.value)
    with pytest.raises(BadInput, match="a.avi: videos are written as .mp4 or .gif"):
        write_video(tmp_path / "a.avi", clip)
    assert sorted(os.listdir(tmp_path)) == ["file", "taken.mp4"]
    assert not os.listdir(tmp_path / "taken.mp4")


def test_a_failed_write_keeps_the_old_file(tmp_path, clip, monkeypatch):
    atomic_write(tmp_path / "new" / "a.json", "old")
    write_video(tmp_path / "new" / "a.mp4", clip)
    old = (tmp_path / "new" / "a.mp4").read_bytes()

    def full(*args):
        raise OSError(28, "No space left on device")
    monkeypatch.setattr("os.replace", full)
    with pytest.raises(BadInput, match="No space left on device"):
        atomic_write(tmp_path / "new" / "a.json", b"new")
    monkeypatch.undo()

    def half(path, *args, **named):                      # ffmpeg on a full disk
        path.write_bytes(old[:len(old) // 2])
    monkeypatch.setattr(iio, "imwrite", half)
    with pytest.raises(BadInput, match="did not finish"):
        write_video(tmp_path / "new" / "a.mp4", clip)
    assert (tmp_path / "new" / "a.json").read_text() == "old"
    assert (tmp_path / "new" / "a.mp4").read_bytes() == old
    assert sorted(os.listdir(tmp_path / "new")) == ["a.json", "a.mp4"]


# ------------------------------------------------------------------ videos as they are in the world

N = 200  # frames of the film below


def paint(number: int) -> np.ndarray:
    """A frame (48, 96, 3) that shows its number as eight black or white blocks, low bit first."""
    bits = [(number >> k) % 2 * 255 for k in range(8)]
    row = np.repeat(np.uint8(bits), 12)  # (96,)
    return np.broadcast_to(row[None, :, None], (48, 96, 3))


def read_paint(frame: np.ndarray) -> int:
    """The number that a painted frame shows, at whatever size."""
    middles = ((np.arange(8) + .5) * frame.shape[1] / 8).astype(int)
    bits = frame[frame.shape[0] // 2, middles, 1] > 127
    return sum(1 << k for k, bit in enumerate(bits) if bit)


def ffmpeg(*arguments):
    command = [imageio_ffmpeg.get_ffmpeg_exe(), "-nostdin", "-v", "error", "-y"]
    subprocess.run([*command, *map(str, arguments)], check=True)


@pytest.fixture(scope="session")
def film(tmp_path_factory):
    """200 painted frames, lossless, 25 a second: 8 s."""
    path = tmp_path_factory.mktemp("film") / "film.mkv"
    raw = path.with_suffix(".rgb")
    raw.write_bytes(b"".join(paint(k).tobytes() for k in range(N)))
    ffmpeg("-f", "rawvideo", "-pix_fmt", "rgb24", "-s", "96x48", "-r", 25, "-i", raw,
           "-c:v", "ffv1", path)
    return path


SOUND = ("-f", "lavfi", "-i", "sine=duration=12")        # longer than the picture
X264 = ("-c:v", "libx264", "-pix_fmt", "yuv420p")
OPEN_GOP = (*X264, "-x264-params", "open-gop=1:keyint=25:bframes=3:scenecut=0")
FASTER = ("-vf", "setpts='if(lt(N,100),N,100+(N-100)/4)/25/TB'", "-fps_mode", "passthrough",
          "-enc_time_base", "1/1000")  # 25, then 100 frames a second
DROPPED = ("-vf", "select='lt(n,80)+not(mod(n,2))'", "-fps_mode", "passthrough")
EVERY_FRAME = list(range(N))
FIRST_80 = EVERY_FRAME[:80] + EVERY_FRAME[80::2]

KINDS = {  # file: what ffmpeg is given; the frames that it holds
    "hevc10.mp4": (("-c:v", "libx265", "-x265-params", "log-level=none",
                    "-pix_fmt", "yuv420p10le"), EVERY_FRAME),
    "prores.mov": (("-c:v", "prores_ks"), EVERY_FRAME),
    "ffv1_16.mkv": (("-c:v", "ffv1", "-pix_fmt", "rgb48le"), EVERY_FRAME),
    "23.976.mkv": (("-r", "24000/1001", *X264), EVERY_FRAME),
    "30.webm": (("-r", "30", "-c:v", "libvpx"), EVERY_FRAME),
    "faster.mp4": ((*FASTER, *X264), EVERY_FRAME),
    "dropped.mkv": ((*DROPPED, *X264), FIRST_80),
    "late.mp4": (("-output_ts_offset", "7.3", *X264), EVERY_FRAME),
    "late.ts": (("-output_ts_offset", "7.3", *X264), EVERY_FRAME),
    "sound.mp4": ((*SOUND, *X264, "-c:a", "aac"), EVERY_FRAME),
    "sound.webm": ((*SOUND, "-c:v", "libvpx", "-c:a", "libopus"), EVERY_FRAME),
    "ac3.ts": ((*SOUND, "-c:v", "mpeg2video", "-bf", "2", "-c:a", "ac3"), EVERY_FRAME),
    "xvid.avi": (("-c:v", "mpeg4", "-vtag", "XVID", "-bf", "2", "-g", "50"), EVERY_FRAME),
    "fragments.mp4": ((*X264, "-movflags", "frag_keyframe+empty_moov"), EVERY_FRAME),
    "Alien: Romulus.mp4": (X264, EVERY_FRAME)}


def make(film, path, options):
    """Encode the film anew. A rate ("-r") is a new clock for the same frames: before the input."""
    rate, options = (options[:2], options[2:]) if options[0] == "-r" else ((), options)
    sound = SOUND if options[:len(SOUND)] == SOUND else ()              # a second input
    ffmpeg(*rate, "-i", film, *sound, *options[len(sound):], path.absolute())


@pytest.mark.parametrize("name", KINDS)
def test_every_frame_is_decoded_and_known_by_its_number(film, tmp_path, monkeypatch, name):
    monkeypatch.chdir(tmp_path)  # relative: "Alien: Romulus.mp4" is no protocol
    options, held = KINDS[name]
    path = tmp_path / name
    make(film, path, options)
    assert count_frames(name) == len(held)
    assert [read_paint(frame) for frame in frames(name)] == held
    numbers = [0, 1, 77, 79, 80, 81, 99, 101, len(held) - 1]
    assert [read_paint(frame) for frame in pick_frames(name, numbers)] == [held[k] for k in numbers]
    clip = read_video(name, 5, 48, 96, stride=2, start=78)
    pixels = to_bytes(clip).permute(0, 2, 3, 1).numpy()
    assert [read_paint(frame) for frame in pixels] == [held[k] for k in (78, 80, 82, 84, 86)]


@pytest.mark.parametrize("suffix", ["mp4", "mkv"])
@pytest.mark.parametrize("codec", [
    OPEN_GOP, ("-c:v", "libx265", "-x265-params", "log-level=none:open-gop=1:keyint=25")])
def test_a_clip_cut_without_encoding_is_whole(film, tmp_path, suffix, codec):
    """`-c copy` leaves frames that refer to what is not there any more: ffmpeg remarks on it."""
    whole, cut, part = (tmp_path / f"{name}.{suffix}" for name in ("whole", "cut", "part"))
    ffmpeg("-i", film, *codec, whole)
    ffmpeg("-ss", 3, "-i", whole, "-c", "copy", cut)
    ffmpeg("-ss", 2.5, "-t", 4, "-i", whole, "-c", "copy", part)
    for path, least in ((cut, 120), (part, 95)):
        shown = [read_paint(frame) for frame in frames(path)]
        assert len(shown) == count_frames(path) >= least
        assert shown == sorted(set(shown))
        whole = shown[-50:-5]  # past the first key frame, before the cut
        assert whole == list(range(whole[0], whole[0] + 45))


def test_remarks_are_no_errors(film, tmp_path):
    """A stream that begins between key frames: those frames are gone, the others are right."""
    ffmpeg("-i", film, *X264, "-g", 25, tmp_path / "whole.ts")
    packets = (tmp_path / "whole.ts").read_bytes()
    (tmp_path / "tail.ts").write_bytes(packets[len(packets) // 2 // 188 * 188:])
    command = [imageio_ffmpeg.get_ffmpeg_exe(), "-v", "error", "-i", tmp_path / "tail.ts"]
    remarks = subprocess.run([*command, "-f", "null", "-"], capture_output=True).stderr
    assert remarks
    shown = [read_paint(frame) for frame in frames(tmp_path / "tail.ts")]
    assert len(shown) > 80 and shown == list(range(N - len(shown), N))


@pytest.mark.parametrize("name", ["faststart.mp4", "end.mp4", "fragments.mp4", "a.mkv", "a.webm",
                                  "a.avi", "a.gif"])
def test_what_is_cut_off_is_named(film, tmp_path, name):
    codec = {"a.webm": ("-c:v", "libvpx"), "a.avi": ("-c:v", "mpeg4"), "a.gif": ()}.get(name, X264)
    flags = {"faststart.mp4": ("-movflags", "+faststart"),
             "fragments.mp4": ("-movflags", "frag_keyframe+empty_moov")}
    path = tmp_path / name
    ffmpeg("-i", film, *codec, *flags.get(name, ()), path)
    assert count_frames(path) == N
    whole = path.read_bytes()
    for share, read in ((.1, count_frames), (.6, read_pixels), (.97, count_frames)):
        path.write_bytes(whole[:int(len(whole) * share)])
        with pytest.raises(BadInput, match="cannot be read to its end as a video") as error:
            read(path)
        assert str(path) in str(error.value) and "\n" not in str(error.value)


def test_a_hole_in_a_video_is_found(film, tmp_path):
    """As a download leaves it that reserved the room first."""
    path = tmp_path / "a.mp4"
    ffmpeg("-i", film, *X264, "-movflags", "+faststart", path)
    whole = path.read_bytes()
    path.write_bytes(whole[:len(whole) // 2] + bytes(len(whole) - len(whole) // 2))
    with pytest.raises(BadInput, match="a.mp4: cannot be read to its end"):
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
    with pytest.raises(BadInput, match=r"a.mp4: has \d+ damaged places.*; copy it again"):
        count_frames(tmp_path / "a.mp4")


def test_a_name_too_long_for_any_file():
    with pytest.raises(BadInput, match="there is no such video"):
        count_frames("x" * 300)


def test_films_are_listed_without_the_systems_own(tmp_path):
    names = ["b.MP4", "in/a.mkv", "._b.mp4", "__MACOSX/b.mp4", ".cache/b.mp4", "notes.txt"]
    for name in names:
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).touch()
    found = list_videos(tmp_path, (".mp4", ".mkv"))
    assert [str(path.relative_to(tmp_path)) for path in found] == names[:2]


@pytest.mark.parametrize("codec", [
    ("-c:v", "libx265", "-x265-params", "log-level=none:lossless=1", "-pix_fmt", "yuv420p10le"),
    ("-c:v", "prores_ks", "-profile:v", "3", "-qscale:v", "2"),
    ("-c:v", "ffv1", "-pix_fmt", "rgb48le"), ("-c:v", "ffv1", "-pix_fmt", "gray10le")])
def test_more_than_eight_bits_are_right_to_two_grey_levels(tmp_path, codec):
    levels = [0, 1, 17, 100, 128, 201, 254, 255]
    write_raw = b"".join(np.full((64, 64, 3), level, np.uint8).tobytes() for level in levels)
    (tmp_path / "raw").write_bytes(write_raw)
    path = tmp_path / ("a.mov" if "prores_ks" in codec else "a.mkv")
    ffmpeg("-f", "rawvideo", "-pix_fmt", "rgb24", "-s", "64x64", "-i", tmp_path / "raw", *codec,
           path)
    pixels = read_pixels(path)
    assert pixels.dtype == np.uint8
    assert np.abs(pixels.astype(int) - np.array(levels)[:, None, None, None]).max() <= 2


def test_pixels_become_square_and_upright(film, tmp_path):
    ffmpeg("-i", film, *X264, "-vf", "setsar=4/3", "-frames:v", 5, tmp_path / "wide.mp4")
    ffmpeg("-display_rotation", 90, "-i", film, *X264, "-frames:v", 5, tmp_path / "turned.mp4")
    ffmpeg("-i", tmp_path / "wide.mp4", "-c", "copy", tmp_path / "copy.mp4")
    assert [frame.shape for frame in frames(tmp_path / "wide.mp4")] == [(48, 128, 3)] * 5
    assert [read_paint(frame) for frame in frames(tmp_path / "wide.mp4")] == [0, 1, 2, 3, 4]
    ffmpeg("-display_rotation", 90, "-i", tmp_path / "copy.mp4", "-c", "copy",
           tmp_path / "phone.mp4")
    turned = list(frames(tmp_path / "phone.mp4"))
    height, width = turned[0].shape[:2]
    assert height / width == pytest.approx(128 / 48, rel=.02)
    upright = [np.rot90(frame, -1) for frame in turned]
    assert [read_paint(frame) for frame in upright] == [0, 1, 2, 3, 4]


def test_a_size_that_changes_midway_is_the_first_one(film, tmp_path):
    ffmpeg("-i", film, *X264, "-frames:v", 10, tmp_path / "a.ts")
    ffmpeg("-i", film, *X264, "-frames:v", 10, "-vf", "scale=192:96", tmp_path / "b.ts")
    both = (tmp_path / "a.ts").read_bytes() + (tmp_path / "b.ts").read_bytes()
    (tmp_path / "ab.ts").write_bytes(both)
    shapes = {frame.shape for frame in frames(tmp_path / "ab.ts")}
    assert shapes == {(48, 96, 3)} and count_frames(tmp_path / "ab.ts") == 20


def test_a_cover_is_no_video(tmp_path):
    """The picture of an album comes as a stream of one frame."""
    Image.new("RGB", (32, 32)).save(tmp_path / "cover.png")
    ffmpeg("-f", "lavfi", "-i", "sine=duration=1", "-i", tmp_path / "cover.png",
           "-map", 0, "-map", 1, "-disposition:v", "attached_pic", "-c:a", "aac", "-c:v", "copy",
           tmp_path / "song.mp4")
    with pytest.raises(BadInput, match="song.mp4: cannot be read to its end as a video"):
        count_frames(tmp_path / "song.mp4")


@pytest.mark.parametrize("duration", [0, 40, 500])
def test_a_gif_of_one_frame_has_one_frame(tmp_path, duration):
    Image.new("RGB", (32, 32), "red").save(tmp_path / "one.gif", duration=duration)
    assert count_frames(tmp_path / "one.gif") == 1 and len(read_pixels(tmp_path / "one.gif")) == 1
    with pytest.raises(BadInput, match="one.gif: has 1 frames and 2 are needed"):
        read_video(tmp_path / "one.gif", 2, 16, 16)


def test_a_gif_that_never_moves_is_refused_with_the_reason(tmp_path):
    """Its writer has made nine equal frames into one, of which nobody knows how many it was."""
    write_video(tmp_path / "still.gif", torch.zeros(9, 3, 32, 32))
    write_video(tmp_path / "still.mp4", torch.zeros(9, 3, 32, 32))
    for read in (lambda path: read_video(path, 9, 32, 32), lambda path: count_frames(path, 9)):
        with pytest.raises(BadInput, match="has 1 frames and 9 are needed.* mp4: .* equal frames"):
            read(tmp_path / "still.gif")
    assert count_frames(tmp_path / "still.mp4", 9) == 9


def test_frame_rates(film, tmp_path):
    ffmpeg("-r", "24000/1001", "-i", film, *X264, tmp_path / "a.mkv")
    assert frame_rate(tmp_path / "a.mkv") == pytest.approx(24000 / 1001, abs=.01)
    assert frame_rate(film) == 25 and frame_rate(tmp_path) == 8


# ----------------------------------------------------------------------------- pictures as they are

def test_pictures_of_many_kinds(tmp_path):
    """16-bit grey is scaled, a turned jpg is turned back, what is transparent lies on white."""
    wide = Image.new("RGB", (40, 20))
    wide.paste("red", (0, 0, 20, 20))  # red on the left
    exif = Image.Exif()
    exif[0x0112] = 6  # "turn by 90 degrees, clockwise"
    wide.transpose(Image.Transpose.ROTATE_90).save(tmp_path / "turned.jpg", exif=exif, quality=95)
    Image.fromarray(np.full((20, 40), 30000, np.uint16)).save(tmp_path / "deep.png")
    hidden = np.zeros((20, 40, 4), np.uint8)
    hidden[..., 0] = 255  # red, but transparent
    hidden[:, 20:, 3] = 255
    hidden[:10, 30:, 3] = 128
    Image.fromarray(hidden).save(tmp_path / "glass.png")
    Image.fromarray(hidden).save(tmp_path / "glass.webp", lossless=True)

    def picture(name):
        folder = tmp_path / f"folder of {name}"
        folder.mkdir()
        (tmp_path / name).rename(folder / name)
        return next(frames(folder)).astype(int)
    turned = picture("turned.jpg")
    assert turned.shape == (20, 40, 3)
    assert turned[10, 5, 0] > 200 and turned[10, 35].max() < 50
    deep = picture("deep.png")
    assert deep.shape == (20, 40, 3) and (deep == round(30000 / 65535 * 255)).all()
    for name in ("glass.png", "glass.webp"):
        glass = picture(name)
        assert (glass[:, :20] == 255).all() and (glass[10:, 20:] == [255, 0, 0]).all()
        assert np.abs(glass[:10, 30:] - [255, 127, 127]).max() <= 1


def test_palettes_greys_and_cmyk_become_rgb(tmp_path):
    colour = Image.new("RGB", (8, 8), (200, 30, 60))
    colour.convert("P", palette=Image.Palette.ADAPTIVE).save(tmp_path / "1.png")
    colour.convert("CMYK").save(tmp_path / "2.jpg", quality=100)
    colour.convert("L").save(tmp_path / "3.png")
    one, two, three = frames(tmp_path)
    assert np.abs(one.astype(int) - [200, 30, 60]).max() <= 2
    assert np.abs(two.astype(int) - [200, 30, 60]).max() <= 6
    assert (three == three[0, 0, 0]).all()


@pytest.mark.parametrize("suffix", [".heic", ".HEIC", ".avif"])
def test_formats_that_are_not_read_are_named(tmp_path, suffix):
    (tmp_path / f"photo{suffix}").write_bytes(b"\0\0\0\x18ftypheic")
    for path in (tmp_path, tmp_path / f"photo{suffix}"):       # a folder of them; one of them
        with pytest.raises(BadInput, match=f"photo{suffix}: {suffix} is a format that is not read"):
            count_frames(path)


# ------------------------------------------------------------------------- which frames make a clip

def test_frame_numbers():
    assert frame_numbers(100, 5) == [0, 25, 50, 74, 99]
    assert frame_numbers(100, 5, start=60) == [60, 70, 80, 89, 99]
    assert frame_numbers(100, 5, stride=1) == [0, 1, 2, 3, 4]
    assert frame_numbers(100, 5, stride=3, start=87) == [87, 90, 93, 96, 99]
    with pytest.raises(ValueError, match="101 are needed for 5 frames with start 88 and stride 3"):
        frame_numbers(100, 5, stride=3, start=88)
    with pytest.raises(ValueError, match="has 4 frames and 5 are needed$"):
        frame_numbers(4, 5)


def test_stride_and_start(film):
    for stride, start in ((1, 0), (2, 10), (None, 100)):
        clip = to_bytes(read_video(film, 9, 48, 96, stride, start)).permute(0, 2, 3, 1).numpy()
        assert [read_paint(frame) for frame in clip] == frame_numbers(N, 9, stride, start)
    with pytest.raises(BadInput, match="film.mkv: has 200 frames and 209 are needed"):
        read_video(film, 9, 48, 96, stride=1, start=200)
    with pytest.raises(BadInput, match="film.mkv: ends before frame 200"):
        pick_frames(film, [3, 200])
    assert [read_paint(frame) for frame in pick_frames(film, [7, 3, 7])] == [7, 3, 7]


def test_reading_stops_with_the_reader(film):
    """No ffmpeg is left behind by who wants only the first frames."""
    reader = frames(film)
    assert read_paint(next(reader)) == 0
    reader.close()
    children = subprocess.run(["ps", "--ppid", str(os.getpid()), "-o", "comm="],
                              capture_output=True, text=True)
    assert "ffmpeg" not in children.stdout


def test_shrink():
    frame = np.full((90, 160, 3), 7, np.uint8)
    assert shrink(frame, 80).shape == (45, 80, 3) and shrink(frame, 160) is frame
    assert shrink(frame.transpose(1, 0, 2), 1).shape == (1, 1, 3)


def test_write_pixels_odd_sizes_and_rates(film, tmp_path):
    pixels = np.stack([paint(k)[:47, :95] for k in range(12)])
    write_pixels(tmp_path / "a.mp4", pixels, 24000 / 1001)
    assert [read_paint(frame) for frame in frames(tmp_path / "a.mp4")] == list(range(12))
    assert frame_rate(tmp_path / "a.mp4") == pytest.approx(24000 / 1001, abs=.01)
    assert len(hash_video(tmp_path / "a.mp4")) == 1
