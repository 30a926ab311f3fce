"""data.py: manifests, the latent cache and the order of the samples."""

import json
import shutil
from types import SimpleNamespace
from unittest.mock import patch

import pytest
import torch

import data
import model
from clips import numbered, numbers
from common.files import BadInput
from common.manifest import SUBSET_OF
from common.video import write_video
from critic import Critic
from pretrain import lessons
from tiny import drift, world

TINY = model.PRESETS["tiny"]
# what data.py needs of a preset
SMALL = SimpleNamespace(frames=5, height=16, width=24, frame_stride=None)
TYPE = "Temporal Reasoning"


# ----------------------------------------------------------------------------------------- triplets

def keys(items):
    return [item.key for item in items]


def test_world_items_take_the_subsets_in_turn():
    for k, item in enumerate(data.world_items(n=4)):
        subset, index = ("rave", "icvg")[k % 2], data.NEW_CLIPS + k // 2
        triplet = world.make_triplet(index, subset, "train")
        assert item.instruction == triplet.instruction
        assert all(torch.equal(a, b) for a, b in zip(item.load(), (triplet.source, triplet.target)))


def test_no_lesson_is_a_clip_to_fine_tune_on():
    """Lesson k of VAE, VLM or base is of a triplet up to index k, and k is below NEW_CLIPS."""
    for lesson in (lessons.vae_lesson, lessons.base_lesson, lessons.vlm_lesson):
        with patch.object(world, "make_triplet", side_effect=world.make_triplet) as make:
            lesson(30)
        assert all(call.args[0] <= 30 for call in make.call_args_list) and make.called
        with pytest.raises(BadInput, match="--items 1000001: .* fine-tuned on"):
            lessons.render_lessons(lesson, data.NEW_CLIPS + 1)
    with patch.object(world, "make_triplet", side_effect=world.make_triplet) as make:
        data.world_items(n=6)
    assert min(call.args[0] for call in make.call_args_list) == data.NEW_CLIPS


@pytest.mark.parametrize("fault", ["wrong", "drift"])
def test_a_fault_is_in_a_share_of_the_targets_and_in_nothing_else(fault):
    right, some = data.world_items(n=40), data.world_items(n=40, **{fault: .3})
    spoilt = [k for k in range(40) if right[k].key != some[k].key]
    assert 5 <= len(spoilt) <= 20                                  # 12 of 40 are expected
    for k in (0, 1, *spoilt[:2]):
        (source, target), (same, perhaps_spoilt) = right[k].load(), some[k].load()
        assert torch.equal(source, same)
        assert torch.equal(target, perhaps_spoilt) == (k not in spoilt)
    if fault == "drift":
        assert torch.equal(perhaps_spoilt, drift.drifted(target))


def test_the_same_targets_are_wrong_as_in_the_runs_of_results():
    wrong = {1: "over-done", 5: "nothing", 8: "wrong effect", 12: "wrong object", 19: "flicker",
             22: "flicker", 36: "noise"}
    for k, item in enumerate(data.world_items(n=40, wrong=.3, first=0)):
        subset = ("rave", "icvg")[k % 2]
        kind = [wrong[k]] if k in wrong else []
        assert item.key == data.hash_of(world.VERSION, "train", subset, k // 2, *kind), k


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


def test_manifest(manifest, monkeypatch):
    monkeypatch.chdir("/")    # paths are relative to the manifest
    path = manifest({}, "", {"instruction": "Straße \u2028 冬", "type": "Camera Reasoning"},
                    {"instruction": "wait"})
    items, skipped = data.manifest_items(path, SMALL)
    assert skipped == [] and len(items) == 3
    assert items[1].instruction == "Straße \u2028 冬"
    source, target = items[0].load()
    assert source.shape == target.shape == (5, 3, 16, 24)
    assert numbers(source) == [0, 2, 3, 4, 6] and numbers(target)[::4] == [0, 5]


def test_a_new_video_under_an_old_name_is_another_item(manifest, tmp_path):
    """Or it would be trained on with the latents that are cached of the old one."""
    (old,), _ = data.manifest_items(manifest({}), SMALL)
    write_video(tmp_path / "videos" / "b.gif", numbered(5))
    (new,), _ = data.manifest_items(manifest({}), SMALL)
    assert old.key != new.key


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
        assert all(item.longer for item in items)


BAD_LINES = [
    ("{\"instruction\": ", "is not JSON"),
    ({"type": "leave out"}, "the field 'type' is missing"),
    ({"instruction": 7}, "the field 'instruction' is 7"),
    ({"instruction": "  "}, "the field 'instruction' is \"  \""),
    ({"type": "Moral Reasoning"}, "unknown type 'Moral Reasoning'; choose one of Temporal"),
    ({"source_video_path": "videos/c.mp4"}, "videos/c.mp4: there is no such video"),
    ({"target_video_path": "cut.mp4"}, "cut.mp4: cannot be read"),
    ({"target_video_path": "short.gif"}, "short.gif: has 3 frames and 5 are needed"),
    ({"start": -1}, "the field 'start' is -1"),
    ({"stride": "fast"}, "'stride' is \"fast\"; give a whole number from 1 on, or \"spread\""),
    ({"start": 3, "stride": 1}, "videos/a.mp4: has 7 frames and 8 are needed (start 3, stride 1); "
                                "give a longer clip, or a smaller start"),
    ({"instruction": "far too long"}, "shorten 'far too long'")]


def check_text(text):
    if text == "far too long":
        raise ValueError(f"shorten {text!r}")


@pytest.fixture
def bad_videos(tmp_path):
    (tmp_path / "cut.mp4").write_bytes(b"\0\0\0\x20ftypisom")
    write_video(tmp_path / "short.gif", numbered(3))


def test_skip_bad_lists_them_all(manifest, bad_videos):
    path = manifest({}, *(line for line, _ in BAD_LINES), {})
    items, skipped = data.manifest_items(path, SMALL, skip_bad=True, check_text=check_text)
    assert len(items) == 2
    for k, (reason, (_, words)) in enumerate(zip(skipped, BAD_LINES, strict=True), 2):
        assert reason.startswith(f"{path}:{k}: ") and words in reason and "\n" not in reason


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


@pytest.mark.parametrize("content, words", [
    (b"\n\n", "holds no triplet"), (b"{\n{", ":1: is not JSON .*no other line is better"),
    (b'{"instruction": "caf\xe9"}', "UTF-8")])
def test_a_manifest_that_cannot_be_used_is_named(tmp_path, content, words):
    file = tmp_path / "bad.jsonl"
    file.write_bytes(content)
    with pytest.raises(BadInput, match=f"{file}.*{words}"):
        data.manifest_items(file, SMALL, skip_bad=True)


# --------------------------------------------------------------------------------- the latent cache

@pytest.fixture(scope="module")
def items():
    return data.world_items(n=11)                                  # two groups


@pytest.fixture(scope="module")
def latents(items, tiny, tmp_path_factory):
    return data.Latents(items, tiny, tmp_path_factory.mktemp("cache"), progress=False)


@torch.no_grad()
def test_latents_are_what_the_model_encodes(latents, items, tiny):
    """Against one call of the model for one triplet."""
    assert len(latents) == 11 and latents.items == items
    for i in (0, 9):
        row, (source, target) = latents[i], items[i].load()
        words = [items[i].instruction]
        want = {"source": tiny.encode_video(source[None])[0],
                "target": tiny.encode_video(target[None])[0],
                "bridged": tiny.bridge(tiny.encode_vlm(source[None], words))[0],
                "text": tiny.encode_text(words)[0], "frames": source[[0, 4, 8]]}
        assert row.keys() == want.keys()
        for name, tensor in want.items():
            in_bytes = 1 / 255 if name == "frames" else 0
            torch.testing.assert_close(row[name], tensor, atol=1e-4 + in_bytes, rtol=1e-4)


def test_a_stopped_cache_goes_on(latents, items, tiny, tmp_path):
    copy = shutil.copytree(latents.files[0].parent, tmp_path / "cache")
    kept, gone = (copy / latents.files[i].name for i in (1, 9))
    gone.unlink()
    before = kept.stat().st_mtime_ns
    mended = data.Latents(items, tiny, copy, progress=False)
    assert kept.stat().st_mtime_ns == before             # is not made again
    assert [f.read_bytes() for f in mended.files] == [f.read_bytes() for f in latents.files]


def test_cached_names_depend_on_the_frozen_weights_alone(tiny):
    before = data.fingerprint(tiny)
    for part in model.PARTS:
        weight = next(tiny.get_submodule(part).parameters())
        old, weight.data = weight.data, weight.data.clone()
        assert data.fingerprint(tiny) == before          # content, not identity
        weight.data.view(-1)[0] += 1e-3
        after = data.fingerprint(tiny)
        weight.data = old
        assert (after == before) == (part in model.TRAINED), part


# ------------------------------------------------------------------ what the critic says of sources

def test_reflections_are_asked_once_and_kept(latents, tiny, tmp_path, monkeypatch):
    critic = Critic(tiny)
    first = data.reflect(critic, latents, tmp_path, batch=4)
    for i in (0, 9):
        seen, words = latents[i]["frames"][None], [latents.items[i].instruction]
        thought, m_0 = first[i]
        assert critic.thoughts(seen, words) == [thought]
        assert critic.baseline(seen, words, [thought]).item() == pytest.approx(m_0, abs=1e-4)
    monkeypatch.setattr(Critic, "thoughts", lambda *args: pytest.fail("asked again"))
    assert data.reflect(critic, latents, tmp_path) == first
    with pytest.raises(pytest.fail.Exception):           # another way to think is another file
        data.reflect(Critic(tiny, "full"), latents, tmp_path)


# ----------------------------------------------------------------------------- the order of samples

@pytest.mark.parametrize("n, batch", [(10, 4), (3, 8)])
def test_each_epoch_is_a_permutation(n, batch):
    flat = [i for step in range(4 * n) for i in data.batch_indices(n, batch, step, seed=5)]
    epochs = [flat[k:k + n] for k in range(0, len(flat), n)]
    assert all(sorted(epoch) == list(range(n)) for epoch in epochs)
    if n > 6:
        assert len({tuple(epoch) for epoch in epochs[:5]}) == 5    # each in another order
