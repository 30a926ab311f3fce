"""experiments/evaluate.py: the margins of two critics beside evaluate.py's scores."""

import json

import pytest
import torch

from critic import Critic
from experiments import evaluate
from experiments.another_vlm import VLM_PARTS, with_vlm_of
from model import load_model
from tiny import world


def test_both_critics_see_the_finished_edits(tiny_dir, tmp_path, monkeypatch):
    model = load_model(tiny_dir)
    with torch.no_grad():
        for parameter in model.vlm.parameters():
            parameter.add_(.01 * torch.randn(parameter.shape))
    model.save_pretrained(tmp_path / "hardened", parts=VLM_PARTS)
    monkeypatch.setattr(evaluate, "HARDENED", str(tmp_path / "hardened"))
    evaluate.main(["--split", "val", "--checkpoint", str(tiny_dir), "--n", "2", "--steps", "2",
                   "--out", str(tmp_path / "eval")])
    file, = (tmp_path / "eval").glob("*/scores.jsonl")
    rows = [json.loads(line) for line in file.read_text().splitlines()]

    model = load_model(tiny_dir)
    triplets = [world.make_triplet(i, "rave", "val") for i in range(2)]
    source, words = torch.stack([t.source for t in triplets]), [t.instruction for t in triplets]
    edits = model.sample(source, words, 2, 1.0, 0)
    for name, judge in (("own", model), ("hardened", with_vlm_of(model, tmp_path / "hardened"))):
        with torch.no_grad():
            margin = Critic(judge).margin(source, edits, words)
        assert [row[f"margin, {name}"] for row in rows] == pytest.approx(margin.tolist(), abs=1e-4)
    assert all(row["margin, own"] != row["margin, hardened"] for row in rows)
