"""data.py: manifests, the latent cache and the order of the samples."""

import json
import os
from collections import Counter
from types import SimpleNamespace
from unittest.mock import patch

import numpy as np
import pytest
import torch
from safetensors.torch import save_file

import data
import model
from clips import numbered, numbers
from common.files import BadInput, markdown
from common.manifest import SUBSET_OF
from common.video import write_video
from critic import Critic
from pretrain import lessons
from tiny import drift, scene, world

TINY = model.PRESETS["tiny"]
SIZE = (9, scene.SIZE, scene.SIZE)
# what data.py needs of a preset
SMALL = SimpleNamespace(frames=5, height=16, width=24, frame_stride=None)
TYPE = "Temporal Reasoning"


# ----------------------------------------------------------------------------------------- triplets

def test_world_items():
    items = data.world_items(n=6)
    for k, item in enumerate(items):
        index = data.NEW_CLIPS + k // 2
        triplet = world.make_triplet(index, ("rave", "icvg")[k % 2], "train")
        place = ("rave", "icvg")[k % 2], index, triplet.type
        assert (item.subset, item.index, item.type) == place
        assert item.instruction == triplet.instruction
        assert all(torch.equal(a, b) for a, b in zip(item.load(), (triplet.source, triplet.target)))
    others = [*data.world_items(split="val", n=6), *data.world_items(("icvg",), n=6)]
    keys = [i.key for i in [*items, *others]]
    assert len(set(keys)) == 15    # the three of ICVG, train, come twice
    assert [i.key for i in data.world_items(n=6)] == keys[:6]
    with pytest.raises(ValueError, match="unknown subset 'moon'"):
        data.world_items(("moon",), n=1)


def test_no_lesson_is_a_clip_to_fine_tune_on():
    """Lesson k of VAE, VLM or base is of a triplet up to index k, and k is below NEW_CLIPS."""
    for lesson in (lessons.vae_lesson, lessons.base_lesson, lessons.vlm_lesson):
        with patch.object(world, "make_triplet", side_effect=world.make_triplet) as make:
            lesson(30)
        assert all(call.args[0] <= 30 for call in make.call_args_list) and make.called
        with pytest.raises(BadInput, match="--items 1000001: .* fine-tuned on"):
            lessons.render_lessons(lesson, data.NEW_CLIPS + 1)
    assert min(item.index for item in data.world_items(n=6)) == data.NEW_CLIPS


def test_wrong_targets_are_a_share_of_the_items_and_of_nothing_else():
    right, some, again = (data.world_items(n=40, wrong=share) for share in (0., .3, .3))
    assert [i.key for i in some] == [i.key for i in again]
    other = [k for k in range(40) if right[k].key != some[k].key]
    assert 5 <= len(other) <= 20                                   # 12 of 40 are expected
    for k in range(8):
        source, target = right[k].load()
        (same, wrong), (_, once_more) = some[k].load(), again[k].load()
        assert torch.equal(source, same) and torch.equal(wrong, once_more)
        assert torch.equal(target, wrong) == (k not in other)
    assert {right[k].key for k in other}.isdisjoint(i.key for i in data.world_items(n=40, wrong=1.))
    assert [i.key for i in data.world_items(n=6, wrong=0.)] == [i.key for i in right[:6]]


def test_the_same_targets_are_wrong_as_in_the_runs_of_results():
    wrong = {1: "over-done", 5: "nothing", 8: "wrong effect", 12: "wrong object", 19: "flicker",
             22: "flicker", 36: "noise"}
    for k, item in enumerate(data.world_items(n=40, wrong=.3, first=0)):
        subset = ("rave", "icvg")[k % 2]
        kind = [wrong[k]] if k in wrong else []
        assert item.key == data.hash_of(world.VERSION, "train", subset, k // 2, *kind), k


def test_drift_is_the_same_hand_on_a_share_of_the_targets():
    plain, some, again, all_of_them = (data.world_items(n=40, drift=share)
                                       for share in (0., .5, .5, 1.))
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
        untinted = drifted - torch.tensor(drift.TINT).view(3, 1, 1)
        fit = np.polyfit(target[inside].numpy(), untinted[inside].numpy(), 1)
        assert fit[0] == pytest.approx(.75, abs=.1) and fit[1] == pytest.approx(0, abs=.05)


def test_drift_and_miss_may_meet_in_one_target():
    both, miss = (data.world_items(n=8, wrong=1., drift=share) for share in (1., 0.))
    for item, wrong in zip(both, miss):
        assert item.key != wrong.key
        assert torch.equal(item.load()[1], drift.drifted(wrong.load()[1]))


@pytest.fixture
def manifest(tmp_path):
    """Writes a manifest of these lines; a dict is completed to a good one, a field that is to be
    left out is given as "leave out"."""
    folder = tmp_path / "videos"
    write_video(folder / "a.mp4", numbered(7))
    write_video(folder / "b.gif", numbered(6))

    def write(*lines):
        good = {"source_video_path": "videos/a.mp4", "target_video_path": "videos/b.gif",
                "instruction": "wait", "type": TYPE}
        rows = []
        for line in lines:
            if isinstance(line, dict):
                fields = {k: v for k, v in {**good, **line}.items() if v != "leave out"}
                line = json.dumps(fields)
            rows.append(line)
        (tmp_path / "triplets.jsonl").write_text("\n".join(rows) + "\n", "utf-8")
        return tmp_path / "triplets.jsonl"
    return write


def test_manifest(manifest, tmp_path, monkeypatch):
    monkeypatch.chdir("/")    # paths are relative to the manifest
    path = manifest({}, "", {"instruction": "Straße \u2028 冬", "type": "Camera Reasoning"},
                    {"instruction": "wait"})
    items, skipped = data.manifest_items(path, SMALL)
    places = [(item.index, item.subset) for item in items]
    assert skipped == [] and places == [(1, "rave"), (3, "icvg"), (4, "rave")]
    assert items[1].instruction == "Straße \u2028 冬" and items[1].type == "Camera Reasoning"
    assert items[0].key == items[2].key != items[1].key
    source, target = items[0].load()
    assert source.shape == target.shape == (5, 3, 16, 24)
    assert numbers(source) == [0, 2, 3, 4, 6] and numbers(target)[::4] == [0, 5]
    larger = SimpleNamespace(frames=5, height=32, width=24, frame_stride=None)
    assert data.manifest_items(path, larger)[0][0].key != items[0].key
    write_video(tmp_path / "videos" / "b.gif", numbered(5))    # same name, new content
    assert data.manifest_items(path, SMALL)[0][0].key != items[0].key


def test_start_and_stride_of_a_manifest(manifest):
    """The line's, else the preset's: frames from `start` on, every `stride`-th, of both videos."""
    lines = [{}, {"stride": 1}, {"start": 1, "stride": 1}, {"start": 1, "stride": "spread"}]
    consecutive = SimpleNamespace(**{**vars(SMALL), "frame_stride": 1})
    for preset, first in ((SMALL, [0, 2, 3, 4, 6]), (consecutive, [0, 1, 2, 3, 4])):
        items, _ = data.manifest_items(manifest(*lines), preset)
        got = [numbers(item.load()[0]) for item in items]
        assert got == [first, [0, 1, 2, 3, 4], [1, 2, 3, 4, 5], [1, 2, 4, 5, 6]]
        assert [numbers(item.view()) for item in items] == got
        assert items[0].view().shape == (5, 3, 48, 80)   # not cropped
        assert numbers(items[2].load()[1]) == [1, 2, 3, 4, 5]
        assert len({item.key for item in items}) == len(set(map(tuple, got)))
        assert [item.part for item in items[1:]] == [
            "frames 0 to 4", "frames 1 to 5", "5 frames spread from 1 to the last"]
    assert data.describe_part(17, 2, 40) == "frames 40 to 72 in steps of 2"
    five = SimpleNamespace(frames=6, height=16, width=24, frame_stride=1)
    (item,), _ = data.manifest_items(manifest({"source_video_path": "videos/b.gif"}), five)
    assert item.part == ""                               # all of its frames


BAD_LINES = [
    ("{\"instruction\": ", "is not JSON"),
    ("wait", "is not JSON"),
    ("[1, 2]", "is no JSON object"),
    ({"type": "leave out"}, "the field 'type' is missing"),
    ({"target_video_path": "leave out"}, "the field 'target_video_path' is missing"),
    ({"instruction": 7}, "the field 'instruction' is 7"),
    ({"instruction": "  "}, "the field 'instruction' is \"  \""),
    ({"instruction": "\ud800 gone"}, "is no Unicode text"),
    ({"id": "\udfff"}, "is no Unicode text"),
    ({"source_video_path": ["a"]}, "the field 'source_video_path' is"),
    ({"source_video_path": "x" * 300}, "there is no such video"),
    ({"type": "Moral Reasoning"}, "unknown type 'Moral Reasoning'; choose one of Temporal"),
    ({"source_video_path": "videos/c.mp4"}, "videos/c.mp4: there is no such video"),
    ({"target_video_path": "cut.mp4"}, "cut.mp4: cannot be read"),
    ({"target_video_path": "short.gif"}, "short.gif: has 3 frames and 5 are needed"),
    ({"start": -1}, "the field 'start' is -1"),
    ({"start": True}, "the field 'start' is true; give the number of a frame, 0 for the first"),
    ({"stride": 0}, "the field 'stride' is 0"),
    ({"stride": None}, "the field 'stride' is null"),
    ({"stride": "fast"}, "'stride' is \"fast\"; give a whole number from 1 on, or \"spread\""),
    ({"start": 10 ** 30}, "or a smaller start or stride"),
    ({"start": 3, "stride": 1}, "videos/a.mp4: has 7 frames and 8 are needed for 5 frames with "
                                "start 3 and stride 1; give a longer clip, or a smaller start"),
    ({"instruction": "far too long"}, "shorten 'far too long'")]


def check_text(text):
    if text == "far too long":
        raise ValueError(f"shorten {text!r}")


@pytest.fixture
def bad_videos(tmp_path):
    (tmp_path / "cut.mp4").write_bytes(b"\0\0\0\x20ftypisom")
    write_video(tmp_path / "short.gif", numbered(3))


def test_a_bad_manifest_line_is_named(manifest, bad_videos):
    path = manifest({}, *(line for line, _ in BAD_LINES[:1]), {})
    with pytest.raises(BadInput, match=f"{path}:2: is not JSON .*pass --skip-bad"):
        data.manifest_items(path, SMALL, check_text=check_text)


def test_skip_bad_lists_them_all(manifest, bad_videos):
    path = manifest({}, *(line for line, _ in BAD_LINES), {})
    items, skipped = data.manifest_items(path, SMALL, skip_bad=True, check_text=check_text)
    assert [i.index for i in items] == [1, len(BAD_LINES) + 2]
    assert len(skipped) == len(BAD_LINES)
    for k, (reason, (_, words)) in enumerate(zip(skipped, BAD_LINES), 2):
        assert reason.startswith(f"{path}:{k}: ") and words in reason and "\n" not in reason
    with pytest.raises(BadInput, match="triplets.jsonl:1: is not JSON"):
        data.manifest_items(manifest("{", "{"), SMALL, skip_bad=True)


def test_the_types_are_those_of_the_tiny_world():
    assert SUBSET_OF == {type: subset for subset, types in world.TYPES.items() for type in types}


def test_pairs_without_a_target(manifest, tiny, tmp_path):
    path = manifest({"target_video_path": "leave out"})
    with pytest.raises(BadInput, match="the field 'target_video_path' is missing"):
        data.manifest_items(path, TINY)
    preset = SimpleNamespace(frames=9, height=32, width=32, frame_stride=None)
    write_video(tmp_path / "videos" / "a.mp4", numbered(9))
    (item,), _ = data.manifest_items(path, preset, targets=False)
    assert item.load()[1] is None
    latents = data.Latents([item], tiny, tmp_path / "cache", progress=False)
    assert "target" not in latents[0]
    batch, = data.Batches(latents, tiny, None, batch=2, tau=.5, drop=0., seed=0).of(0)
    assert batch.target is None and len(batch.source) == 2


def test_bad_manifests(tmp_path):
    (tmp_path / "empty.jsonl").write_text("\n\n")
    (tmp_path / "latin.jsonl").write_bytes(b"{\"instruction\": \"caf\xe9\"}")
    for name, words in (("empty.jsonl", "holds no triplet"), ("latin.jsonl", "UTF-8"),
                        ("none.jsonl", "No such file")):
        with pytest.raises(BadInput, match=words) as error:
            data.manifest_items(tmp_path / name, SMALL)
        assert str(tmp_path / name) in str(error.value)


# --------------------------------------------------------------------------------- the latent cache

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
            words = [items[i].instruction]
            want = {"source": tiny.encode_video(source[None])[0],
                    "target": tiny.encode_video(target[None])[0],
                    "bridged": tiny.bridge(tiny.encode_vlm(source[None], words))[0],
                    "text": tiny.encode_text(words)[0]}
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
    # not made again
    times = {name: (folder / name).stat().st_mtime_ns for name in kept}
    assert times == kept
    # bit for bit what an uninterrupted run wrote
    assert [f.read_bytes() for f in ds.files] == [f.read_bytes() for f in latents.files]
    loads.clear()
    data.Latents(counted, tiny, folder, progress=False)
    assert not loads    # all from the cache

    whole = ds.files[0].read_bytes()
    ds.files[0].write_bytes(whole[:len(whole) // 2])    # cut off
    ds.files[1].write_bytes(b"garbage")
    ds.files[2].write_bytes(b"")
    save_file({"source": torch.zeros(1)}, ds.files[3])    # of another time
    ds.files[9].unlink()
    again = data.Latents(counted, tiny, folder, progress=False)
    assert [f.read_bytes() for f in again.files] == [f.read_bytes() for f in latents.files]
    assert not [p for p in folder.iterdir() if p not in ds.files]


def test_a_changed_byte_is_found_when_it_is_read(items, tiny, tmp_path):
    ds = data.Latents(items[:2], tiny, tmp_path, progress=False)
    whole = bytearray(ds.files[1].read_bytes())
    whole[-5] ^= 1                                       # of a tensor: the header is whole
    ds.files[1].write_bytes(whole)
    again = data.Latents(items[:2], tiny, tmp_path, progress=False)
    with pytest.raises(BadInput, match=f"{ds.files[1]}: had changed .*, and is deleted"):
        again[1]
    mended = data.Latents(items[:2], tiny, tmp_path, progress=False)
    assert torch.equal(mended[1]["target"], ds[1]["target"])
    assert torch.equal(again[0]["text"], mended[0]["text"])


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
    before = data.fingerprint(tiny)
    for part in (*model.TRAINED, *model.FROZEN):
        weight = next(tiny.get_submodule(part).parameters())
        old, weight.data = weight.data, weight.data.clone()
        assert data.fingerprint(tiny) == before    # content, not identity
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


# ------------------------------------------------------------------ what the critic says of sources

def test_reflections_are_asked_once_and_kept(latents, tiny, tmp_path, monkeypatch):
    critic = Critic(tiny)
    first = data.reflect(critic, latents, tmp_path, batch=4)
    for i in (0, 9):
        seen, words = latents[i]["frames"][None], [latents.items[i].instruction]
        thought, m_0 = first[i]
        assert critic.thoughts(seen, words) == [thought]
        assert critic.baseline(seen, words, [thought]).item() == pytest.approx(m_0, abs=1e-4)
    file, = tmp_path.iterdir()
    for broken in (file.read_text()[:-9], "null", "[[1, 2], [3, 4]]"):
        file.write_text(broken)                          # asked again
        assert data.reflect(critic, latents, tmp_path, batch=4) == first
    monkeypatch.setattr(Critic, "thoughts", lambda *args: pytest.fail("asked again"))
    assert data.reflect(critic, latents, tmp_path) == first
    with pytest.raises(pytest.fail.Exception):           # another way to think is another file
        data.reflect(Critic(tiny, "full"), latents, tmp_path)


# ----------------------------------------------------------------------------- the order of samples

@pytest.mark.parametrize("n, batch", [(10, 4), (7, 7), (3, 8), (1, 2), (100, 16)])
def test_each_epoch_is_a_permutation(n, batch):
    steps = 4 * n
    flat = [i for step in range(steps) for i in data.batch_indices(n, batch, step, seed=5)]
    assert len(flat) == steps * batch and all(isinstance(i, int) for i in flat)
    epochs = [flat[k:k + n] for k in range(0, len(flat), n)]
    assert all(sorted(epoch) == list(range(n)) for epoch in epochs)
    if n > 6:
        assert len({tuple(epoch) for epoch in epochs[:5]}) == 5    # each in another order


def test_batch_indices_have_no_state():
    want = [data.batch_indices(50, 8, step, seed=1) for step in range(20)]
    shuffled = {step: data.batch_indices(50, 8, step, seed=1) for step in reversed(range(20))}
    assert [shuffled[step] for step in range(20)] == want
    assert want != [data.batch_indices(50, 8, step, seed=2) for step in range(20)]


def test_markdown_is_aligned():
    text = markdown([["", "ms"], ["SFT", "1"], ["USO", "100"]])
    assert text.splitlines() == ["|     |  ms |", "| --- | --: |", "| SFT |   1 |", "| USO | 100 |"]
