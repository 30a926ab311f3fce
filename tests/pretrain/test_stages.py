"""The stages of pretraining, two steps of each: what they train, and that they go on."""

import importlib
import math
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

import pretrain.harden
import pretrain.vae
from model import TRAINED, load_model
from presets import PRESETS
from pretrain import stage
from pretrain.vae import decode_unclamped, vae_step
from runs import read_log

TINY = PRESETS["tiny"]
FLAGS = {"vae": ["--items", "4", "--batch", "2"],
         "vlm": ["--items", "4", "--batch", "4", "--draft-items", "2", "--draft-steps", "1"],
         "base": ["--items", "4", "--batch", "2"],
         "harden": ["--items", "4", "--batch", "8"]}


def run_stage(name: str, out: Path, *flags: str) -> Path:
    """Two steps; returns the model's folder."""
    module = importlib.import_module(f"pretrain.{name}")
    module.main([*FLAGS[name], "--steps", "2", "--save-every", "1", "--out", str(out), *flags])
    return out / "model"


@pytest.fixture(scope="module")
def stages(small_world, tmp_path_factory) -> dict[str, Path]:
    """The model's folder of each stage, which begins with what the one before wrote."""
    out, made = tmp_path_factory.mktemp("stages"), {}
    made["vae"] = run_stage("vae", out / "vae")
    made["vlm"] = run_stage("vlm", out / "vlm", "--weights", str(made["vae"]))
    made["base"] = run_stage("base", out / "base", "--weights", str(made["vlm"]))
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(pretrain.harden, "HEAD_STEPS", 1)
        made["harden"] = run_stage("harden", out / "harden", "--weights", str(made["base"]))
    return made


def moved_parts(before, after) -> set[str]:
    """The parts of a model of which some parameter is another."""
    return {k.split(".")[0] for k, p in after.named_parameters()
            if not torch.equal(p, before.get_parameter(k))}


def test_each_stage_trains_its_own_part(stages):
    """What they are good for only hours can show."""
    for folder in stages.values():
        assert all(math.isfinite(row["loss"]) for row in read_log(folder.parent))
    vae = load_file(stages["vae"] / "vae" / "diffusion_pytorch_model.safetensors")
    vlm, base, hardened = (load_model(stages[name]) for name in ("vlm", "base", "harden"))
    generator = {*TRAINED, "ar_head", "adapter", "boundary", "text_encoder"}
    assert moved_parts(vlm, base) == generator
    assert moved_parts(base, hardened) == {"vlm"}
    assert all(torch.equal(p, vae[k].float()) for k, p in base.vae.named_parameters())
    std = base.vae.config.latents_std
    assert min(std) > 0 and std != TINY.vae["latents_std"]
    grey = torch.zeros(1, TINY.frames, 3, TINY.height, TINY.width)
    assert base.sample(grey, ["wait"], steps=1).isfinite().all()


def test_a_stopped_vae_goes_on_bit_for_bit(stages, tmp_path, monkeypatch):
    def stop_at_step_1(vae, x, step, generator):
        if step == 1:
            raise KeyboardInterrupt
        return vae_step(vae, x, step, generator)
    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
        patch.setattr(pretrain.vae, "vae_step", stop_at_step_1)
        run_stage("vae", tmp_path)
    assert not (tmp_path / "model").exists()
    stopped = run_stage("vae", tmp_path) / "vae" / "diffusion_pytorch_model.safetensors"
    assert stopped.read_bytes() == (stages["vae"] / "vae" / stopped.name).read_bytes()


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
