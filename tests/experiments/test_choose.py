"""choose.py: an edit becomes a target where the critic says Yes; and a run that learns these."""

import pytest
import torch
from safetensors.torch import load_file

import train
from common.files import BadInput
from critic import Critic
from data import NEW_PAIRS
from experiments import choose
from experiments import train as other_train
from model import load_model
from runs import read_log
from tiny import world

FLAGS = ["--pairs", "6", "--out"]


@pytest.fixture(scope="module")
def chosen(tiny_dir, tmp_path_factory):
    """The folder of six pairs' edits, in groups of four."""
    out = tmp_path_factory.mktemp("chosen")
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(choose, "GROUP", 4)
        choose.main([str(tiny_dir), *FLAGS, str(out)])
    return out


def test_what_the_critic_says_yes_to_is_chosen(chosen, tiny_dir):
    model, found = load_model(tiny_dir), load_file(chosen / "chosen.safetensors")
    margins = torch.cat([load_file(file)["margin"] for file in sorted(chosen.glob("groups/*"))])
    assert found["number"].tolist() == (margins > 0).nonzero()[:, 0].tolist()
    assert 0 < len(found["number"]) < 6
    for k, number in enumerate(found["number"].tolist()):
        pair = world.make_triplet(NEW_PAIRS + number // 2, ("rave", "icvg")[number % 2], "train")
        source, words = pair.source[None], [pair.instruction]
        x0 = model.sample(source, words, seed=1_000_003 + number, decode=False)
        with torch.no_grad():
            margin = Critic(model).margin(source, Critic(model).decode(x0), words)
        torch.testing.assert_close(found["target"][k:k + 1], x0, atol=1e-4, rtol=1e-4)
        assert margin.item() == pytest.approx(margins[number].item(), abs=1e-3)
    assert (chosen / "chosen.png").stat().st_size > 5_000


def test_a_stopped_choice_goes_on(chosen, tiny_dir, monkeypatch):
    monkeypatch.setattr(choose, "GROUP", 4)
    first, second = sorted(chosen.glob("groups/*"))
    whole, kept = (chosen / "chosen.safetensors").read_bytes(), first.stat().st_mtime_ns
    second.unlink()
    (chosen / "chosen.safetensors").unlink()
    choose.main([str(tiny_dir), *FLAGS, str(chosen)])
    assert first.stat().st_mtime_ns == kept
    assert (chosen / "chosen.safetensors").read_bytes() == whole


def test_chosen_edits_are_learnt_beside_the_triplets(chosen, tiny_dir, tmp_path):
    """L_FM of both; of the chosen ones it is that of their latents, with noise of their own."""
    common = ["--weights", str(tiny_dir), "--cache", str(tmp_path / "cache"), "--items", "2",
              "--batch", "2", "--steps", "1", "--eval-items", "0", "--objective", "sft"]
    other_train.main([*common, "--out", str(tmp_path / "plain")])
    other_train.main([*common, "--chosen", str(chosen), "--out", str(tmp_path / "both")])
    (plain,), (both,) = read_log(tmp_path / "plain"), read_log(tmp_path / "both")
    assert both["flow_loss"] == plain["flow_loss"]
    assert both["loss"] == pytest.approx(plain["loss"] + both["chosen_loss"], abs=1e-5)
    model = load_model(tiny_dir)
    batches = choose.chosen_batches(model, chosen, train.parse([*common, "--drop", "0"]))
    batch, targets = next(batches.of(0)), load_file(chosen / "chosen.safetensors")["target"]
    assert all(any(torch.equal(row, target) for target in targets) for row in batch.target)
    file = chosen / "run.json"
    file.write_text(file.read_text().replace('"pairs": 6', '"pairs": 7'))
    with pytest.raises(BadInput, match="holds a run with another --pairs"):
        other_train.main([*common, "--chosen", str(chosen), "--out", str(tmp_path / "other")])
