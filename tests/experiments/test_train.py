"""python -m experiments.train: its flags, what it leaves, and that a stopped run goes on."""

import json
import math
import os
import signal

import pytest
import torch

from common.files import BadInput
from common.video import write_video
from experiments import train
from experiments.critic_probe import load_with_vlm
from model import load_model
from presets import VLM_PARTS
from runs import read_log, weights
from tiny import world


@pytest.fixture(scope="module")
def run(tiny_dir, tmp_path_factory):
    """run(out, *flags): a training of one step on two samples, all gated; returns its folder."""
    cache = tmp_path_factory.mktemp("cache")
    common = ["--weights", tiny_dir, "--cache", cache, "--items", 2, "--batch", 2, "--lr", 1e-3,
              "--tau", 1, "--eval-items", 0]

    def trained(out, *flags, steps=1):
        train.main([*map(str, [*common, "--steps", steps, "--out", out]), *flags])
        return out
    return trained


@pytest.fixture(scope="module")
def uso(run, tmp_path_factory):
    return run(tmp_path_factory.mktemp("runs") / "uso")


@pytest.mark.parametrize("objective", ["rwr", "refl"])
def test_each_objective_runs(run, uso, tmp_path, objective):
    folder = run(tmp_path / objective, "--objective", objective)
    row, first = read_log(folder)[0], read_log(uso)[0]
    assert all(map(math.isfinite, row.values())) and row["trigger_rate"] == 1
    if objective == "rwr":
        assert row["p_yes"] == pytest.approx(first["p_yes"], abs=1e-5)
        assert row["loss"] == row["flow_loss"] != first["flow_loss"]
    else:
        assert row["flow_loss"] == first["flow_loss"]
    assert json.loads((folder / "run.json").read_text())["settings"]["objective"] == objective


@pytest.mark.parametrize("flags", [[], ["--pairs", "3"]])
def test_with_m_0_and_without(run, tmp_path, flags):
    with_m_0, without = (read_log(run(tmp_path / m_0, *flags, "--m0", m_0))[0]
                         for m_0 in ("source", "none"))
    assert with_m_0["p_yes"] == without["p_yes"]
    assert with_m_0["reason_loss"] != without["reason_loss"]
    assert without["reason_loss"] >= -math.log(without["p_yes"]) - 1e-5        # Jensen: m_0 = 0


def test_own_edits_go_on_bit_for_bit_after_a_stop(run, tmp_path, monkeypatch):
    flags = "--pairs", "3"
    straight = run(tmp_path / "straight", *flags, steps=2)
    step = train.STEPS["own-edits"]

    def stopping(*args, **named):
        os.kill(os.getpid(), signal.SIGINT)              # the step ends, and the run is saved
        return step(*args, **named)
    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
        patch.setitem(train.STEPS, "own-edits", stopping)
        run(tmp_path / "stopped", *flags, steps=2)
    assert len(torch.load(tmp_path / "stopped" / "state.pt")["log"]) == 1
    train.main(["--resume", str(tmp_path / "stopped")])
    assert weights(tmp_path / "stopped") == weights(straight)
    assert read_log(tmp_path / "stopped") == read_log(straight)


@pytest.fixture
def manifest(tmp_path):
    """Two pairs of the user's own, and between them a line that has no instruction."""
    source = world.make_triplet(0, "rave", "val").source
    write_video(tmp_path / "a.gif", source + torch.linspace(0, .2, len(source)).view(-1, 1, 1, 1))
    pair = {"source_video_path": "a.gif", "instruction": "at night", "type": "Temporal Reasoning"}
    bad = pair | {"instruction": " "}
    file = tmp_path / "pairs.jsonl"
    file.write_text("".join(f"{json.dumps(line)}\n" for line in (pair, bad, pair)))
    return file


def test_own_edits_of_own_videos(run, manifest, tmp_path, capsys):
    flags = "--pairs", str(manifest)
    with pytest.raises(BadInput, match="pairs.jsonl:2: the field 'instruction' is .*--skip-bad"):
        run(tmp_path / "out", *flags)
    row, = read_log(run(tmp_path / "out", *flags, "--skip-bad"))
    assert math.isfinite(row["reason_loss"]) and row["trigger_rate"] == 1
    assert "skipped 1 bad lines, 2 are left" in capsys.readouterr().err
    manifest.write_text(manifest.read_text() + "\n")     # another manifest: another run
    with pytest.raises(BadInput, match="holds a run with another --pairs"):
        run(tmp_path / "out", *flags, "--skip-bad")


def test_another_critic_judges(run, uso, tiny_dir, tmp_path):
    """Its own copy says the same; a VLM of other weights does not; a resumed run keeps it."""
    same = run(tmp_path / "same", "--critic", str(tiny_dir))
    assert read_log(same) == read_log(uso)
    other = load_model(tiny_dir)
    with torch.no_grad():
        for parameter in other.vlm.llm.parameters():
            parameter.add_(torch.randn_like(parameter), alpha=.3)
    other.save_pretrained(tmp_path / "other", parts=VLM_PARTS)
    probed = load_with_vlm(tmp_path / "other").vlm       # beside it weights/tiny's other parts
    assert torch.equal(probed.llm.lm_head.weight, other.vlm.llm.lm_head.weight)
    judged = run(tmp_path / "judged", "--critic", str(tmp_path / "other"))
    row, first = read_log(judged)[0], read_log(uso)[0]
    assert row["flow_loss"] == first["flow_loss"] and row["p_yes"] != first["p_yes"]
    train.main(["--resume", str(judged), "--steps", "2"])
    _, how = train.parse(["--resume", str(judged), "--steps", "2"])
    assert how.critic == str(tmp_path / "other") and len(read_log(judged)) == 2
