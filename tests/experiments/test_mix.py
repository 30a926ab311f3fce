"""mix.py: a model between two runs."""

import pytest
import torch

from common.files import BadInput
from experiments import mix
from model import TRAINED, load_model


def trained(model):
    return {f"{part}.{name}": p for part in TRAINED
            for name, p in model.get_submodule(part).named_parameters()}


def test_a_model_between_two_runs(tiny_dir, tmp_path, capsys):
    first, second = load_model(tiny_dir), load_model(tiny_dir)
    with torch.no_grad():
        for p in trained(second).values():
            p.add_(1)
    for name, model in (("a", first), ("b", second)):
        model.save_pretrained(tmp_path / name / "model", frozen=tiny_dir)
    mix.main([str(tmp_path / "a"), str(tmp_path / "b"), "--share", ".25",
              "--out", str(tmp_path / "out")])
    mixed = load_model(tmp_path / "out")
    for name, p in trained(first).items():
        torch.testing.assert_close(trained(mixed)[name], p + .25)

    first.set_vlm_frames(1)
    first.save_pretrained(tmp_path / "other" / "model", frozen=tiny_dir)
    with pytest.raises(BadInput, match="not of the same base"):
        mix.main([str(tmp_path / "a"), str(tmp_path / "other"), "--out", str(tmp_path / "no")])
    assert not (tmp_path / "no").exists()
