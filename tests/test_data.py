"""data.py: reading and writing videos, manifests, the latent cache and the order of the samples."""

import json
import os
from collections import Counter
from types import SimpleNamespace

import imageio.v3 as iio
import numpy as np
import pytest
import torch
import torch.nn.functional as F
from PIL import Image
from safetensors.torch import save_file

import data
import model
from tiny import drift
from tiny import scene
from tiny import world
from common.files import BadInput

TINY = model.PRESETS["tiny"]
SIZE = (9, scene.SIZE, scene.SIZE)
SMALL = SimpleNamespace(frames=5, height=16, width=24)             # a preset of which data.py needs three numbers
TYPE = "Temporal Reasoning"


def psnr(a, b):
    return 10 * torch.log10(4 / (a - b).pow(2).mean()).item()


def numbered(n, height=48, width=80):
    """n flat frames whose brightness is their number: 10 k + 5 of 255. (n, 3, H, W)"""
    return torch.stack([torch.full((3, height, width), (10 * k + 5) / 127.5 - 1) for k in range(n)])


def numbers(video):
    return ((video.mean((1, 2, 3)) + 1) * 127.5 - 5).div(10).round().int().tolist()


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
    data.write_video(tmp_path / name, clip)
    again = data.read_video(tmp_path / name, *SIZE)
    assert again.shape == clip.shape and again.dtype == torch.float32 and again.is_contiguous()
    assert psnr(again, clip) > least
    assert os.listdir(tmp_path) == [name]                                                      # no temporary file


def test_write_video_enlarges_by_nearest_neighbour(tmp_path, clip):
    data.write_video(tmp_path / "a.mp4", clip, fps=5, scale=4)
    meta = iio.immeta(tmp_path / "a.mp4", plugin="FFMPEG")
    assert meta["size"] == (4 * scene.SIZE, 4 * scene.SIZE) and meta["fps"] == 5
    frames = torch.from_numpy(iio.imread(tmp_path / "a.mp4", plugin="FFMPEG")).permute(0, 3, 1, 2) / 127.5 - 1
    assert psnr(frames, F.interpolate(clip, scale_factor=4.)) > 33                             # default mode: nearest


@pytest.mark.parametrize("n", [9, 10, 14, 25])
@pytest.mark.parametrize("kind", ["mp4", "gif", "webm", "folder"])
def test_frames_are_uniform_with_both_ends(tmp_path, n, kind):
    pixels = data.to_bytes(numbered(n)).permute(0, 2, 3, 1).numpy()
    path = tmp_path / f"a.{kind}"
    if kind == "folder":
        path.mkdir()
        for k in range(n):
            Image.fromarray(pixels[k]).save(path / f"frame{k}.png")                            # frame10 after frame9
        (path / "notes.txt").write_text("no frame")
    else:
        iio.imwrite(path, pixels, **({"plugin": "pillow", "duration": 100} if kind == "gif" else
                                     {"plugin": "FFMPEG", "fps": 10, "codec": {"mp4": "libx264", "webm": "vp9"}[kind]}))
    got = numbers(data.read_video(path, 9, 32, 32))
    assert got[0] == 0 and got[-1] == n - 1
    assert all(abs(g - k * (n - 1) / 8) <= .5 for k, g in enumerate(got))


def test_a_gif_that_stands_still_keeps_its_time(tmp_path):
    """gif writers merge equal frames into one that lasts longer; the clip must not get shorter by that."""
    still = numbered(3).repeat_interleave(3, 0)                                                # 0 0 0 1 1 1 2 2 2
    data.write_video(tmp_path / "still.gif", still)
    assert Image.open(tmp_path / "still.gif").n_frames == 3
    assert numbers(data.read_video(tmp_path / "still.gif", 9, 32, 32)) == [0, 0, 0, 1, 1, 1, 2, 2, 2]


@pytest.mark.parametrize("height, width", [(90, 160), (160, 90), (64, 64), (40, 60)])
def test_resize_and_crop(tmp_path, height, width):
    """Against torch's antialiased bicubic of the short side, and the centre of that."""
    rng = np.random.default_rng(1)
    rough = torch.from_numpy(rng.random((1, 3, 12, 16), np.float32))
    picture = (F.interpolate(rough, (height, width), mode="bicubic").clamp(0, 1) * 255).round()
    Image.fromarray(picture[0].byte().permute(1, 2, 0).numpy()).save(tmp_path / "0.png")
    got = data.read_video(tmp_path, 1, 64, 64)
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
    assert data.read_video(tmp_path, 1, 32, 32)[..., 4:-4].abs().max() < .05


@pytest.mark.parametrize("name, words", [
    ("end.mp4", "cut off"), ("start.mp4", "cut off"), ("noise.gif", "cut off"), ("text.mp4", "no video"),
    ("empty.mp4", "no video"), ("nothing", "has 0 frames and 9 are needed"), ("frames", "4.png"),
    ("missing.mp4", "there is no such video")])
def test_bad_videos_are_named(broken, name, words):
    with pytest.raises(BadInput) as error:
        data.read_video(broken[name], *SIZE)
    assert str(broken[name]) in str(error.value) and words in str(error.value) and "\n" not in str(error.value)


def test_too_few_frames(tmp_path):
    data.write_video(tmp_path / "short.mp4", numbered(8))
    with pytest.raises(BadInput, match="short.mp4: has 8 frames and 9 are needed; give a longer clip"):
        data.read_video(tmp_path / "short.mp4", *SIZE)
    assert data.read_video(tmp_path / "short.mp4", 8, 64, 64).shape == (8, 3, 64, 64)


# ------------------------------------------------------------------------------------------------- writing files

def test_unwritable_places_leave_nothing(tmp_path, clip):
    (tmp_path / "file").touch()
    (tmp_path / "taken.mp4").mkdir()
    for path in (tmp_path / "file" / "a.mp4", tmp_path / "taken.mp4", tmp_path / "file" / "a.gif"):
        with pytest.raises(BadInput, match="cannot be written") as error:
            data.write_video(path, clip)
        assert str(path) in str(error.value) and "\n" not in str(error.value)
    with pytest.raises(BadInput, match="a.avi: videos are written as .mp4 or .gif"):
        data.write_video(tmp_path / "a.avi", clip)
    assert sorted(os.listdir(tmp_path)) == ["file", "taken.mp4"] and not os.listdir(tmp_path / "taken.mp4")


def test_a_failed_write_keeps_the_old_file(tmp_path, clip, monkeypatch):
    data.atomic_write(tmp_path / "new" / "a.json", "old")
    data.write_video(tmp_path / "new" / "a.mp4", clip)
    old = (tmp_path / "new" / "a.mp4").read_bytes()
    monkeypatch.setattr("os.replace", lambda *args: (_ for _ in ()).throw(OSError(28, "No space left on device")))
    with pytest.raises(BadInput, match="No space left on device"):
        data.atomic_write(tmp_path / "new" / "a.json", b"new")
    monkeypatch.undo()
    monkeypatch.setattr(iio, "imwrite", lambda path, *args, **kw: path.write_bytes(old[:len(old) // 2]))
    with pytest.raises(BadInput, match="did not finish"):                                      # ffmpeg on a full disk
        data.write_video(tmp_path / "new" / "a.mp4", clip)
    assert (tmp_path / "new" / "a.json").read_text() == "old" and (tmp_path / "new" / "a.mp4").read_bytes() == old
    assert sorted(os.listdir(tmp_path / "new")) == ["a.json", "a.mp4"]


# ------------------------------------------------------------------------------------------------------ triplets

def test_world_items():
    items = data.world_items(n=6)
    for k, item in enumerate(items):
        triplet = world.make_triplet(k // 2, ("rave", "icvg")[k % 2], "train")
        assert (item.subset, item.index, item.type) == (("rave", "icvg")[k % 2], k // 2, triplet.type)
        assert item.instruction == triplet.instruction
        assert all(torch.equal(a, b) for a, b in zip(item.load(), (triplet.source, triplet.target)))
    keys = [i.key for i in items + data.world_items(split="val", n=6) + data.world_items(("icvg",), n=6)]
    assert len(set(keys)) == 15                                    # the three of ICVG, train, come twice
    assert [i.key for i in data.world_items(n=6)] == keys[:6]
    with pytest.raises(ValueError, match="unknown subset 'moon'"):
        data.world_items(("moon",), n=1)


def test_wrong_targets_are_a_share_of_the_items_and_of_nothing_else():
    right, some, again = (data.world_items(n=40, wrong=share) for share in (0., .3, .3))
    assert [i.key for i in some] == [i.key for i in again]
    other = [k for k in range(40) if right[k].key != some[k].key]
    assert 5 <= len(other) <= 20                                   # 12 of 40 are expected
    for k in range(8):
        (source, target), (same, wrong), (_, once_more) = right[k].load(), some[k].load(), again[k].load()
        assert torch.equal(source, same) and torch.equal(wrong, once_more)
        assert torch.equal(target, wrong) == (k not in other)
    assert {right[k].key for k in other}.isdisjoint(i.key for i in data.world_items(n=40, wrong=1.))
    assert [i.key for i in data.world_items(n=6, wrong=0.)] == [i.key for i in right[:6]]


def test_drift_is_the_same_hand_on_a_share_of_the_targets():
    plain, some, again, all_of_them = (data.world_items(n=40, drift=share) for share in (0., .5, .5, 1.))
    assert [item.key for item in some] == [item.key for item in again]
    assert [item.key for item in plain] == [item.key for item in data.world_items(n=40)]
    drifts = [k for k in range(40) if some[k].key != plain[k].key]
    assert 12 <= len(drifts) <= 28
    assert all(some[k].key == all_of_them[k].key for k in drifts)
    for k in (drifts[0], drifts[-1]):
        source, target = plain[k].load()
        same_source, drifted = some[k].load()
        assert torch.equal(source, same_source)
        inside = drifted.abs() < .999
        fit = np.polyfit(target[inside].numpy(), (drifted - torch.tensor(drift.TINT).view(3, 1, 1))[inside].numpy(), 1)
        assert fit[0] == pytest.approx(.75, abs=.1) and fit[1] == pytest.approx(0, abs=.05)


def test_drift_and_miss_may_meet_in_one_target():
    both, miss = (data.world_items(n=8, wrong=1., drift=share) for share in (1., 0.))
    for item, wrong in zip(both, miss):
        assert item.key != wrong.key
        assert torch.equal(item.load()[1], drift.drifted(wrong.load()[1]))


@pytest.fixture
def manifest(tmp_path):
    """Writes a manifest of these lines; a dict is completed to a good one, with videos in a subfolder."""
    folder = tmp_path / "videos"
    data.write_video(folder / "a.mp4", numbered(7))
    data.write_video(folder / "b.gif", numbered(6))

    def write(*lines):
        good = {"source_video_path": "videos/a.mp4", "target_video_path": "videos/b.gif",
                "instruction": "wait", "type": TYPE}
        rows = [line if isinstance(line, str) else
                json.dumps({k: v for k, v in {**good, **line}.items() if v != "leave out"}) for line in lines]
        (tmp_path / "triplets.jsonl").write_text("\n".join(rows) + "\n", "utf-8")
        return tmp_path / "triplets.jsonl"
    return write


def test_manifest(manifest, tmp_path, monkeypatch):
    monkeypatch.chdir("/")                                         # paths are relative to the manifest
    path = manifest({}, "", {"instruction": "Straße \u2028 冬", "type": "Camera Reasoning"}, {"instruction": "wait"})
    items, skipped = data.manifest_items(path, SMALL)
    assert skipped == [] and [(i.index, i.subset) for i in items] == [(1, "rave"), (3, "icvg"), (4, "rave")]
    assert items[1].instruction == "Straße \u2028 冬" and items[1].type == "Camera Reasoning"
    assert items[0].key == items[2].key != items[1].key
    source, target = items[0].load()
    assert source.shape == target.shape == (5, 3, 16, 24)
    assert numbers(source) == [0, 2, 3, 4, 6] and numbers(target)[::4] == [0, 5]
    larger = SimpleNamespace(frames=5, height=32, width=24)
    assert data.manifest_items(path, larger)[0][0].key != items[0].key
    data.write_video(tmp_path / "videos" / "b.gif", numbered(5))                               # same name, new content
    assert data.manifest_items(path, SMALL)[0][0].key != items[0].key


BAD_LINES = [("{\"instruction\": ", "is not JSON"), ("wait", "is not JSON"), ("[1, 2]", "is no JSON object"),
             ({"type": "leave out"}, "the field 'type' is missing"),
             ({"target_video_path": "leave out"}, "the field 'target_video_path' is missing"),
             ({"instruction": 7}, "the field 'instruction' is 7"),
             ({"instruction": "  "}, "the field 'instruction' is \"  \""),
             ({"source_video_path": ["a"]}, "the field 'source_video_path' is"),
             ({"type": "Moral Reasoning"}, "unknown type 'Moral Reasoning'"),
             ({"source_video_path": "videos/c.mp4"}, "videos/c.mp4: there is no such video"),
             ({"target_video_path": "cut.mp4"}, "cut.mp4: cannot be read"),
             ({"target_video_path": "short.gif"}, "short.gif: has 3 frames and 5 are needed"),
             ({"instruction": "far too long"}, "shorten 'far too long'")]


def check_text(text):
    if text == "far too long":
        raise ValueError(f"shorten {text!r}")


@pytest.fixture
def bad_videos(tmp_path):
    (tmp_path / "cut.mp4").write_bytes(b"\0\0\0\x20ftypisom")
    data.write_video(tmp_path / "short.gif", numbered(3))


@pytest.mark.parametrize("line, words", BAD_LINES)
def test_bad_manifest_lines_are_named(manifest, bad_videos, line, words):
    path = manifest({}, line, {})
    with pytest.raises(BadInput) as error:
        data.manifest_items(path, SMALL, check_text=check_text)
    assert str(error.value).startswith(f"{path}:2: ") and words in str(error.value) and "\n" not in str(error.value)


def test_skip_bad_lists_them_all(manifest, bad_videos):
    path = manifest({}, *(line for line, _ in BAD_LINES), {})
    items, skipped = data.manifest_items(path, SMALL, skip_bad=True, check_text=check_text)
    assert [i.index for i in items] == [1, len(BAD_LINES) + 2]
    assert len(skipped) == len(BAD_LINES)
    for k, (reason, (_, words)) in enumerate(zip(skipped, BAD_LINES), 2):
        assert reason.startswith(f"{path}:{k}: ") and words in reason and "\n" not in reason
    with pytest.raises(BadInput, match="triplets.jsonl:1: is not JSON"):
        data.manifest_items(manifest("{", "{"), SMALL, skip_bad=True)


def test_unknown_type_lists_the_eight(manifest):
    with pytest.raises(BadInput) as error:
        data.manifest_items(manifest({"type": "Moral Reasoning"}), SMALL)
    for kind in ("Temporal", "Spatial", "Camera", "Causal", "Emotional", "Commonsense"):
        assert f"{kind} Reasoning" in str(error.value)
    assert "Physical Causality" in str(error.value) and "Semantic Inference" in str(error.value)


def test_bad_manifests(tmp_path):
    (tmp_path / "empty.jsonl").write_text("\n\n")
    (tmp_path / "latin.jsonl").write_bytes(b"{\"instruction\": \"caf\xe9\"}")
    for name, words in (("empty.jsonl", "holds no triplet"), ("latin.jsonl", "UTF-8"), ("none.jsonl", "No such file")):
        with pytest.raises(BadInput, match=words) as error:
            data.manifest_items(tmp_path / name, SMALL)
        assert str(tmp_path / name) in str(error.value)


# --------------------------------------------------------------------------------------------- the latent cache

@pytest.fixture(scope="module")
def items():
    return data.world_items(n=11)                                  # two groups


@pytest.fixture(scope="module")
def latents(items, tiny, tmp_path_factory):
    return data.Latents(items, tiny, tmp_path_factory.mktemp("cache"), progress=False)


def test_latents_are_what_the_model_encodes(latents, items, tiny):
    """Against one call of the model for one triplet."""
    assert len(latents) == 11 and latents.items == items
    for i in (0, 9):
        row, (source, target) = latents[i], items[i].load()
        assert {k: tuple(v.shape) for k, v in row.items() if k != "text"} == {
            "source": TINY.latent_shape, "target": TINY.latent_shape,
            "bridged": (TINY.ar_queries * TINY.adapter_queries, TINY.dit["text_dim"]),
            "frames": (TINY.vlm_frames, *source.shape[1:])}
        assert all(v.dtype == torch.float32 and not v.requires_grad for v in row.values())
        with torch.no_grad():
            want = {"source": tiny.encode_video(source[None])[0], "target": tiny.encode_video(target[None])[0],
                    "bridged": tiny.bridge(tiny.encode_vlm(source[None], [items[i].instruction]))[0],
                    "text": tiny.encode_text([items[i].instruction])[0]}
        for name, tensor in want.items():
            torch.testing.assert_close(row[name], tensor, atol=1e-4, rtol=1e-4)
        assert (row["frames"] - source[[0, 4, 8]]).abs().max() <= 1 / 255 + 1e-6


def count_loads(items):
    """The items with a `load` that counts, and the counter."""
    loads = Counter()

    def counting(item):
        def load():
            loads[item.key] += 1
            return item.load()
        return data.Item(item.key, item.instruction, item.type, item.subset, load, item.index)
    return [counting(item) for item in items], loads


def test_cache_resumes_and_mends(latents, items, tiny, monkeypatch, tmp_path):
    counted, loads = count_loads(items)
    folder, write = tmp_path / "cache", data.atomic_write

    def stop_at_the_third(path, content):
        if path.parent.exists() and len(os.listdir(path.parent)) == 2:
            raise KeyboardInterrupt
        write(path, content)
    monkeypatch.setattr(data, "atomic_write", stop_at_the_third)
    with pytest.raises(KeyboardInterrupt):
        data.Latents(counted, tiny, folder, progress=False)
    assert len(os.listdir(folder)) == 2
    monkeypatch.undo()
    kept = {p.name: p.stat().st_mtime_ns for p in folder.iterdir()}
    ds = data.Latents(counted, tiny, folder, progress=False)
    assert all((folder / name).stat().st_mtime_ns == time for name, time in kept.items())      # not made again
    # bit for bit what an uninterrupted run wrote
    assert [f.read_bytes() for f in ds.files] == [f.read_bytes() for f in latents.files]
    loads.clear()
    data.Latents(counted, tiny, folder, progress=False)
    assert not loads                                                                           # all from the cache

    whole = ds.files[0].read_bytes()
    ds.files[0].write_bytes(whole[:len(whole) // 2])                                           # cut off
    ds.files[1].write_bytes(b"garbage")
    ds.files[2].write_bytes(b"")
    save_file({"source": torch.zeros(1)}, ds.files[3])                                         # of another time
    ds.files[9].unlink()
    again = data.Latents(counted, tiny, folder, progress=False)
    assert [f.read_bytes() for f in again.files] == [f.read_bytes() for f in latents.files]
    assert not [p for p in folder.iterdir() if p not in ds.files]


def test_latents_stay_in_memory(latents):
    first = latents[3]
    hidden = latents.files[3].rename(latents.files[3].with_suffix(".away"))
    try:
        assert torch.equal(latents[3]["source"], first["source"])
    finally:
        hidden.rename(latents.files[3])
    with pytest.raises(IndexError):
        latents[11]


def test_cached_names_depend_on_the_frozen_weights_alone(latents, items, tiny):
    assert data.FROZEN == model.FROZEN
    before = data.fingerprint(tiny)
    for part in (*model.TRAINED, *model.FROZEN):
        weight = next(getattr(tiny, part).parameters())
        old, weight.data = weight.data, weight.data.clone()
        assert data.fingerprint(tiny) == before                                                # content, not identity
        weight.data.view(-1)[0] += 1e-3
        after = data.fingerprint(tiny)
        weight.data = old
        assert (after == before) == (part in model.TRAINED), part


def test_fingerprint_survives_saving(tiny, tiny_dir):
    assert data.fingerprint(model.UnifiedModel.from_pretrained(tiny_dir)) == data.fingerprint(tiny)


def test_cache_says_what_is_bad(items, tiny, tmp_path):
    (tmp_path / "file").touch()
    with pytest.raises(BadInput, match="cannot be written"):
        data.Latents(items[:1], tiny, tmp_path / "file" / "cache", progress=False)
    long = data.Item("key", "wait " * 60, TYPE, "rave", items[0].load, 0)
    with pytest.raises(BadInput, match="tokens long, the limit is 48"):
        data.Latents([long], tiny, tmp_path / "cache", progress=False)
    assert not (tmp_path / "cache").exists()


# --------------------------------------------------------------------------------------------- the order of samples

@pytest.mark.parametrize("n, batch", [(10, 4), (7, 7), (3, 8), (1, 2), (100, 16)])
def test_each_epoch_is_a_permutation(n, batch):
    steps = 4 * n
    flat = [i for step in range(steps) for i in data.batch_indices(n, batch, step, seed=5)]
    assert len(flat) == steps * batch and all(isinstance(i, int) for i in flat)
    epochs = [flat[k:k + n] for k in range(0, len(flat), n)]
    assert all(sorted(epoch) == list(range(n)) for epoch in epochs)
    if n > 6:
        assert len({tuple(epoch) for epoch in epochs[:5]}) == 5                                # each in another order


def test_batch_indices_have_no_state():
    want = [data.batch_indices(50, 8, step, seed=1) for step in range(20)]
    shuffled = {step: data.batch_indices(50, 8, step, seed=1) for step in reversed(range(20))}
    assert [shuffled[step] for step in range(20)] == want
    assert want != [data.batch_indices(50, 8, step, seed=2) for step in range(20)]


def test_markdown_is_aligned():
    text = data.markdown([["", "ms"], ["SFT", "1"], ["USO", "100"]])
    assert text.splitlines() == ["|     |  ms |", "| --- | --: |", "| SFT |   1 |", "| USO | 100 |"]


def test_all_pixels_of_a_video(tmp_path):
    video = torch.linspace(-1, 1, 5 * 3 * 12 * 16).view(5, 3, 12, 16)
    data.write_video(tmp_path / "a.mp4", video)
    pixels = data.read_pixels(tmp_path / "a.mp4", 5)
    assert pixels.shape == (5, 12, 16, 3) and pixels.dtype == np.uint8
    again = data.from_bytes(torch.from_numpy(pixels.copy()).permute(0, 3, 1, 2))
    torch.testing.assert_close(again, data.read_video(tmp_path / "a.mp4", 5, 12, 16))           # another way to read the same
    (tmp_path / "cut.mp4").write_bytes((tmp_path / "a.mp4").read_bytes()[:-200])
    (tmp_path / "mixed").mkdir()
    for k, side in enumerate((4, 6)):
        Image.new("RGB", (side, 4)).save(tmp_path / f"mixed/{k}.png")
    for name, least, words in (("a.mp4", 6, "has 5 frames and 6 are needed"), ("none.mp4", 1, "no such video"),
                               ("cut.mp4", 1, "cannot be read to its end"), ("mixed", 1, "differ in size")):
        with pytest.raises(BadInput, match=words):
            data.read_pixels(tmp_path / name, least)
