"""Model folders: what is written is read again, and what does not fit is named."""

import json
import shutil
import socket
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

from common.files import BadInput
from model import TRAINED, UnifiedModel, load_model
from tiny import world


@pytest.fixture
def folder(tiny_dir, tmp_path):
    """A copy of `tiny_dir` that a test may change."""
    return shutil.copytree(tiny_dir, tmp_path / "model")


def same(model, other) -> bool:
    want, got = model.state_dict(), other.state_dict()
    return want.keys() == got.keys() and all(torch.equal(want[k], got[k]) for k in want)


# --------------------------------------------------------------------------------------- round trip

def test_round_trip_in_float32_is_exact(tiny, tiny_dir):
    again = UnifiedModel.from_pretrained(tiny_dir)
    assert same(tiny, again) and again.preset == tiny.preset and not again.training
    assert again.vae.config.latents_std == tiny.vae.config.latents_std
    assert again.vlm.tokenizer.get_vocab() == tiny.vlm.tokenizer.get_vocab()
    clip = world.make_triplet(0, "rave", "val").source[None]
    assert torch.equal(again.sample(clip, ["wait"], 1), tiny.sample(clip, ["wait"], 1))
    record = json.loads((tiny_dir / "model.json").read_text())
    assert record == {"preset": "tiny", "frozen": None, "vlm_frames": 3}


def test_a_run_keeps_only_the_trained_parts(folder, tmp_path):
    model = UnifiedModel.from_pretrained(folder)
    for name in TRAINED:
        for p in model.get_submodule(name).parameters():
            p.data += .01
    run = tmp_path / "out" / "run" / "model"
    model.save_pretrained(run, frozen=folder)
    names = ["model.json", "transformer", "visual_context_adapter.safetensors"]
    assert sorted(path.name for path in run.iterdir()) == names
    assert [path.name for path in run.parent.iterdir()] == ["model"]    # no temporary left
    assert same(model, UnifiedModel.from_pretrained(run))
    folder.rename(tmp_path / "elsewhere")
    with pytest.raises(FileNotFoundError, match="model/.* is missing"):         # what it stands on
        UnifiedModel.from_pretrained(run)


def test_other_frames_are_kept(tiny_dir, tmp_path, sources):
    model = UnifiedModel.from_pretrained(tiny_dir)
    model.set_vlm_frames(5)
    model.save_pretrained(tmp_path / "m", frozen=tiny_dir)
    again = UnifiedModel.from_pretrained(tmp_path / "m")
    assert again.preset == model.preset and again.vlm.pick(sources).shape[1] == 5
    for wrong in (10, -1):
        with pytest.raises(ValueError, match="the VLM can look at 1 to 9 frames"):
            model.set_vlm_frames(wrong)


def test_saving_replaces_what_was_there_and_names_no_path(tiny_dir, folder):
    (folder / "old.txt").write_text("of the last time")
    UnifiedModel.from_pretrained(tiny_dir).save_pretrained(folder)
    assert not (folder / "old.txt").exists()
    texts = [file.read_text() for file in folder.rglob("*.json")]
    assert texts and not any(str(tiny_dir) in text for text in texts)


# -------------------------------------------------------------------------------- what is not right

def test_load_model(tiny, tiny_dir, tmp_path):
    tiny.save_pretrained(tmp_path / "run" / "model", frozen=tiny_dir)
    assert same(load_model(str(tiny_dir)), tiny) and same(load_model(tmp_path / "run"), tiny)
    with pytest.raises(BadInput, match="cannot load nowhere: nowhere/model.json is missing"):
        load_model("nowhere")
    with pytest.raises(BadInput, match="holds preset 'tiny', not 'wan1.3b': pass --preset tiny"):
        load_model(tiny_dir, "wan1.3b")
    with pytest.raises(FileNotFoundError, match="huge/model.json is missing"):
        UnifiedModel.from_preset("huge")
    for text in ('{"preset": "huge", "frozen": null}', "[]", '{"preset": "ti'):
        (tmp_path / "model.json").write_text(text)
        with pytest.raises(BadInput, match="json is broken, or of none of the presets tiny, wan"):
            load_model(tmp_path)


@pytest.mark.parametrize("gone", ["ar_head.safetensors", "tokenizer", "vlm.llm/model.safetensors"])
def test_a_missing_part_is_named_and_not_looked_for_on_the_hub(folder, monkeypatch, gone):
    """`model/tokenizer` could be a name on the hub, too."""
    asked = []
    monkeypatch.setattr(socket, "getaddrinfo", lambda host, *_, **__: asked.append(host) or [])
    monkeypatch.chdir(folder.parent)
    (folder / gone).rename(folder.parent / "gone")
    no_file = "no file named .* in directory model/vlm.llm"
    with pytest.raises(BadInput, match=f"model/{gone}|{no_file}"):
        load_model(Path("model"))
    assert asked == []


@pytest.mark.parametrize("part", ["boundary", "transformer/diffusion_pytorch_model"])
@pytest.mark.parametrize("change", [
    lambda tensors, name: tensors.pop(name),
    lambda tensors, name: tensors.update(stranger=torch.zeros(3)),
    lambda tensors, name: tensors.update({name: torch.zeros(3, 5, 7)})])
def test_foreign_weights_are_refused(folder, part, change):
    """Every key and every shape is accounted for; an error names what is not."""
    file = folder / f"{part}.safetensors"
    tensors = load_file(file)
    name = min(tensors)
    change(tensors, name)
    save_file(tensors, file, {"format": "pt"})
    with pytest.raises(BadInput, match=f"{name.split('.')[-1]}|stranger"):
        load_model(folder)
