"""The stages of pretraining, three steps of each: what they train, resume, bad flags."""

import csv
import math
from pathlib import Path

import pretrain.base
import pretrain.harden
import pretrain.vae
import pretrain.vlm
import pytest
import torch
from safetensors.torch import load_file

from common.files import BadInput
from model import TRAINED, load_model
from presets import PRESETS
from pretrain import draft, stage
from pretrain.vae import decode_unclamped

TINY = PRESETS["tiny"]
SMALL = {"vae": ["--items", "4", "--batch", "2"],
         "vlm": ["--items", "8", "--batch", "8", "--draft-items", "2", "--draft-steps", "1"],
         "base": ["--items", "8", "--batch", "2"],
         "harden": ["--items", "4", "--batch", "8"]}
MAIN = {"vae": pretrain.vae.main, "vlm": pretrain.vlm.main, "base": pretrain.base.main,
        "harden": pretrain.harden.main}


def run_stage(name: str, out: Path, *flags: str) -> Path:
    """Three steps; returns the model's folder."""
    MAIN[name]([*SMALL[name], "--steps", "3", "--out", str(out), *flags])
    return out / "model"


def read_log(run: Path) -> list[dict[str, float]]:
    rows = csv.DictReader((run / "log.csv").open())
    return [{k: float(v) for k, v in row.items()} for row in rows]


def weights(folder: Path) -> dict[str, bytes]:
    files = sorted(folder.rglob("*.safetensors"))
    return {str(file.relative_to(folder)): file.read_bytes() for file in files}


def moved_parts(before, after) -> set[str]:
    """The parts of a model of which some parameter is another."""
    return {k.split(".")[0] for k, p in after.named_parameters()
            if not torch.equal(p, before.get_parameter(k))}


def test_stages_follow_each_other(small_world, tmp_path, monkeypatch):
    """What they are good for only hours can show; here it is that each trains its own part."""
    vae = run_stage("vae", tmp_path / "vae")
    vlm = run_stage("vlm", tmp_path / "vlm", "--weights", str(vae))
    base = run_stage("base", tmp_path / "base", "--weights", str(vlm))
    for name in ("vae", "vlm", "base"):
        assert all(math.isfinite(row["loss"]) for row in read_log(tmp_path / name))
    vae_weights = load_file(vae / "vae" / "diffusion_pytorch_model.safetensors")
    before, end = load_model(vlm), load_model(base)
    learned = {*TRAINED, "ar_head", "adapter", "boundary", "text_encoder"}
    assert moved_parts(before, end) == learned
    assert all(torch.equal(p, vae_weights[k].float()) for k, p in end.vae.named_parameters())
    std = end.vae.config.latents_std
    assert min(std) > 0 and std != TINY.vae["latents_std"]
    grey = torch.zeros(1, TINY.frames, 3, TINY.height, TINY.width)
    assert end.sample(grey, ["wait"], steps=1).isfinite().all()

    monkeypatch.setattr(pretrain.harden, "HEAD_STEPS", 1)
    hardened = run_stage("harden", tmp_path / "harden", "--weights", str(base))
    adapted = run_stage("base", tmp_path / "adapt", "--weights", str(hardened), "--adapt")
    after, again = load_model(hardened), load_model(adapted)
    assert moved_parts(end, after) == {"vlm"} and moved_parts(after, again) == learned
    far = max((p - after.get_parameter(k)).abs().max() for k, p in again.named_parameters())
    assert 0 < far < .05                    # three steps from where it was, not from random weights
    assert all(math.isfinite(row["loss"]) for row in read_log(tmp_path / "harden"))


def stop_at(monkeypatch, script, name: str, call: int):
    """Ctrl-C at the `call`-th call of a function of the script."""
    function, calls = getattr(script, name), []

    def stopping(*args, **named):
        calls.append(1)
        if len(calls) == call:
            raise KeyboardInterrupt
        return function(*args, **named)
    monkeypatch.setattr(script, name, stopping)


def test_a_stopped_vae_goes_on_bit_for_bit(small_world, tmp_path, monkeypatch):
    straight = run_stage("vae", tmp_path / "straight", "--save-every", "1")
    with monkeypatch.context() as patch:
        stop_at(patch, pretrain.vae, "vae_step", 3)
        with pytest.raises(KeyboardInterrupt):
            run_stage("vae", tmp_path / "stopped", "--save-every", "1")
    assert not (tmp_path / "stopped" / "model").exists()
    assert weights(run_stage("vae", tmp_path / "stopped", "--save-every", "1")) == weights(straight)


def test_the_draft_is_made_once(small_world, tmp_path, tiny_dir, monkeypatch):
    flags = ["--weights", str(tiny_dir), "--save-every", "1"]
    straight = run_stage("vlm", tmp_path / "straight", *flags)
    with monkeypatch.context() as patch:
        stop_at(patch, pretrain.vlm, "vlm_step", 2)
        with pytest.raises(KeyboardInterrupt):
            run_stage("vlm", tmp_path / "stopped", *flags)
    monkeypatch.setattr(draft, "train_draft", lambda *args: pytest.fail("it is there"))
    assert weights(run_stage("vlm", tmp_path / "stopped", *flags)) == weights(straight)


# ------------------------------------------------------------------------------------------- pieces

def test_decode_unclamped(tiny):
    """Clamped, it is what the library decodes."""
    z = torch.randn(2, *TINY.latent_shape, generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        want, got = tiny.vae.decode(300 * z).sample, decode_unclamped(tiny.vae, 300 * z)
    assert got.abs().max() > 1 and torch.equal(got.clamp(-1, 1), want)


def test_muon_gets_the_matrices_between_embeddings_and_heads(tiny):
    params = dict(tiny.vlm.named_parameters())
    matrices = stage.hidden_matrices(params)
    assert all(params[name].ndim == 2 for name in matrices)
    assert "llm.model.layers.0.self_attn.q_proj.weight" in matrices
    assert "llm.model.embed_tokens.weight" not in matrices
    assert "vision_tower.embeddings.position_embedding.weight" not in matrices
    adamw, muon = stage.optimizers(params, 1e-3, .01, matrices)
    both = [p for optimizer in (adamw, muon) for p in optimizer.param_groups[0]["params"]]
    assert len(both) == len(params) and len(muon.param_groups[0]["params"]) == len(matrices)


def test_a_folder_with_another_run_is_refused(small_world, tmp_path):
    run_stage("vae", tmp_path / "run")
    before = {path: path.read_bytes() for path in tmp_path.rglob("*") if path.is_file()}
    with pytest.raises(BadInput, match="another --seed"):
        run_stage("vae", tmp_path / "run", "--seed", "1")
    assert before == {path: path.read_bytes() for path in tmp_path.rglob("*") if path.is_file()}
