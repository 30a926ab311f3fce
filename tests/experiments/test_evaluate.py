"""experiments/evaluate.py: the margins of two critics beside evaluate.py's scores."""

import json

import pytest
import torch

from common.weights import read_vlm
from critic import Critic
from experiments import evaluate
from model import load_model
from presets import VLM_PARTS
from tiny import world


def test_both_critics_see_the_finished_edits(tiny_dir, tmp_path, monkeypatch):
    model = load_model(tiny_dir)
    with torch.no_grad():
        for parameter in model.vlm.parameters():
            parameter.add_(.01 * torch.randn(parameter.shape))
    model.save_pretrained(tmp_path / "hardened", parts=VLM_PARTS)
    monkeypatch.setattr(evaluate, "HARDENED", str(tmp_path / "hardened"))
    evaluate.main(["--split", "val", "--checkpoint", str(tiny_dir), "--n", "1", "--steps", "1",
                   "--out", str(tmp_path / "eval")])
    file, = (tmp_path / "eval").glob("*/scores.jsonl")
    row = json.loads(file.read_text())

    model, triplet = load_model(tiny_dir), world.make_triplet(0, "rave", "val")
    source, words = triplet.source[None], [triplet.instruction]
    edit = model.sample(source, words, 1, 1.0, 0)
    for name, vlm in (("own", None), ("hardened", read_vlm(model, tmp_path / "hardened"))):
        with torch.no_grad():
            margin = Critic(model, vlm=vlm).margin(source, edit, words)
        assert row[f"margin, {name}"] == pytest.approx(margin.item(), abs=1e-4)
    assert row["margin, own"] != row["margin, hardened"]
