"""mix.py: a model between two runs."""

import torch

from experiments import mix
from model import TRAINED, load_model


def trained(model):
    return {f"{part}.{name}": p for part in TRAINED
            for name, p in model.get_submodule(part).named_parameters()}


def test_a_model_between_two_runs(tiny_dir, tmp_path):
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
