"""The scores by hand, the intervals by hand, and the command: runs, goes on after a stop, says what is wrong."""

import json
import math
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch

import evaluate
from tiny import world
from critic import Critic
from evaluate import generate_and_judge, table
from common.intervals import COLUMNS, geometric_mean, interval, overall, paired_difference

SCRIPT = Path(evaluate.__file__)


# --------------------------------------------------------------------------------------------------------- scores

def test_overall_by_hand():
    assert overall(9, 4, 4, 9) == 4                      # sqrt(min(9, 4) * min(4, 9))
    assert overall(10, 2, 8, 10) == 4
    assert overall(4, None, 9, 10) == 6                  # ICVG: SC = EA
    assert overall(10, 10, 10, 10) == 10
    assert overall(0, 10, 10, 10) == overall(10, 10, 0, 10) == 0
    np.testing.assert_allclose(overall(*np.array([[9., 1.], [4., 9.], [4., 4.], [9., 9.]])), [4, 2])


def test_geometric_mean_by_hand():
    assert geometric_mean(1, 2, 4, 8) == pytest.approx(64 ** .25)
    assert geometric_mean(2, None, 4, 8) == pytest.approx(4)                               # of three on ICVG
    assert geometric_mean(0, 10, 10, 10) == 0


@pytest.mark.parametrize("score", [overall, geometric_mean])
def test_a_better_score_never_lowers_the_sum(score):
    rng = np.random.default_rng(0)
    for low in rng.uniform(0, 10, (200, 4)):
        for k in range(4):
            high = low.copy()
            high[k] = rng.uniform(low[k], 10)
            assert score(*high) >= score(*low) and 0 <= score(*high) <= 10
    assert score(3, None, 5, 6) <= score(4, None, 5, 6)


def test_interval_by_hand():
    # mean 3, deviation sqrt(2.5): Student's t of four degrees of freedom is 2.776
    assert interval([1, 2, 3, 4, 5]) == pytest.approx((3, 3 - 2.776 * .5 ** .5, 3 + 2.776 * .5 ** .5), abs=1e-3)
    mean, low, high = interval([0] * 50 + [10] * 50)     # the mean is Binomial(100, 1/2) / 10: quantiles 40 and 60
    assert mean == 5 and low == pytest.approx(4, abs=.11) and high == pytest.approx(6, abs=.11)
    assert interval([0, 3, 10, 4] * 8) == interval([0, 3, 10, 4] * 8)


def test_interval_of_little():
    assert interval([7] * 5) == interval([7] * 40) == (7, 7, 7)
    for n in (1, 2, 3, 4):                               # so few say nothing of their spread
        mean, low, high = interval([7] * n)
        assert mean == 7 and math.isnan(low) and math.isnan(high)
    assert all(math.isnan(x) for x in interval([]))


def test_paired_difference():
    b = np.random.default_rng(0).uniform(0, 9, 30)
    assert paired_difference(b + 1, b) == pytest.approx((1, 1, 1))                     # pairing takes the spread out
    assert paired_difference([5, None, 7, 1] * 3, [4, 3, None, 0] * 3) == (1, 1, 1)
    mean, low, high = paired_difference([0, 10] * 20, [10, 0] * 20)
    assert mean == 0 and low == pytest.approx(-3, abs=.6) and high == pytest.approx(3, abs=.6)
    with pytest.raises(ValueError):
        paired_difference([1, 2], [1])


def test_table_by_hand():
    row = lambda type, failed=None, **scores: {"type": type, "failed": failed, **dict.fromkeys(COLUMNS), **scores}
    text = table([row("A", EA=4., PC=None, GN=1., GR=2., Overall=3.), row("A", EA=4., GN=1., GR=2., Overall=3.),
                  row("A", "not finite"), row("B", EA=8., Overall=9.), row("C", "not finite")])
    cells = {line[0]: line[1:] for line in ([c.strip() for c in line.split("|")[1:-1]] for line in text.splitlines())}
    assert cells["type"] == ["N scored", "N failed", *COLUMNS]
    assert cells["A"][:4] == ["2", "1", "4.00", "-"]
    assert cells["B"][:3] == ["1", "0", "8.00"] and cells["B"][6] == "9.00"
    assert cells["C"] == ["0", "1"] + ["-"] * 6
    assert cells["all"][:2] == ["3", "2"] and cells["all"][2] == "5.33"
    assert len({len(line) for line in text.splitlines()}) == 1


def test_no_interval_leaves_the_scale():
    rows = [{"type": "A", "failed": None, **dict.fromkeys(COLUMNS, score)} for score in (0, 0, 0, 0, 9)]
    assert "1.80 [0.00, 6.80]" in table(rows)            # Student's t goes down to -3.20


# ------------------------------------------------------------------------------------------- generate and judge

class Knows:
    """A stand-in for the model: answers sample 2 with NaN, odd ones with the source and the others with the target."""
    device = "cpu"

    def __init__(self, subset="rave"):
        self.triplets, self.asked = [world.make_triplet(i, subset, "val") for i in range(5)], []

    def sample(self, source, instructions, steps, guidance, seed):
        self.asked.append((len(source), steps, guidance, seed))
        index = [next(i for i, t in enumerate(self.triplets) if torch.equal(t.source, s)) for s in source]
        assert instructions == [self.triplets[i].instruction for i in index]
        return torch.stack([self.triplets[i].target * float("nan") if i == 2 else
                            self.triplets[i].source if i % 2 else self.triplets[i].target for i in index])


@pytest.mark.parametrize("subset", ["rave", "icvg"])
def test_generate_and_judge(subset):
    model, kept = Knows(subset), []
    rows = generate_and_judge(model, subset, "val", 5, 7, 0.5, seed=100, batch=2,
                              keep=lambda row, video: kept.append((row["index"], video.shape)))
    assert model.asked == [(2, 7, .5, 100), (2, 7, .5, 102), (1, 7, .5, 104)]              # noise goes by the sample
    assert kept == [(i, model.triplets[0].source.shape) for i in range(5)]
    assert [r["id"] for r in rows] == [f"{subset}-val-{i}" for i in range(5)]
    assert [r["type"] for r in rows] == [t.type for t in model.triplets]
    for i, row in enumerate(rows):
        assert set(row) == {"id", "index", "subset", "type", "rule", "instruction", "failed", *COLUMNS}
        if i == 2:
            assert "finite" in row["failed"] and all(row[c] is None for c in COLUMNS)
        else:
            assert row["failed"] is None and (row["PC"] is None) == (subset == "icvg")
            assert [row["EA"], row["Overall"]] == pytest.approx([0, 0] if i % 2 else [10, 10], abs=.01)
    json.dumps(rows, allow_nan=False)
    again = Knows(subset)
    assert generate_and_judge(again, subset, "val", 5, 7, 0.5, seed=100,
                              done={i: rows[i] for i in (0, 3)}) == rows
    assert [call[0] for call in again.asked] == [2, 1] and [call[3] for call in again.asked] == [101, 104]


# ---------------------------------------------------------------------------------------------------- the command

def test_the_margin_is_told_and_not_scored(tiny):
    critic = Critic(tiny)
    videos = []
    plain = generate_and_judge(tiny, "rave", "val", 2, 2, 0, keep=lambda row, video: videos.append(video))
    rows = generate_and_judge(tiny, "rave", "val", 2, 2, 0, critics={"margin": critic})
    assert [{k: v for k, v in row.items() if k != "margin"} for row in rows] == plain
    triplets = [world.make_triplet(i, "rave", "val") for i in range(2)]
    with torch.no_grad():
        margin = critic.margin(torch.stack([t.source for t in triplets]), torch.stack(videos),
                               [t.instruction for t in triplets])
    assert [row["margin"] for row in rows] == pytest.approx(margin.tolist(), abs=1e-4)


def test_the_command(tiny_dir, tmp_path):
    run = subprocess.run([sys.executable, SCRIPT, "--subset", "icvg", "--checkpoint", tiny_dir, "--n", "4", "--steps", "2",
                          "--out", tmp_path], capture_output=True, text=True, env={**os.environ, "OMP_NUM_THREADS": "1"})
    assert run.returncode == 0, run.stderr
    folder = tmp_path / "tiny-icvg-test-steps-2"
    assert {p.name for p in folder.iterdir()} == {"settings.json", "scores.jsonl", "table.md", "strips.png"}
    rows = [json.loads(line) for line in (folder / "scores.jsonl").read_text().splitlines()]
    assert [r["index"] for r in rows] == [0, 1, 2, 3] and all(r["PC"] is None and r["failed"] is None for r in rows)
    text = (folder / "table.md").read_text()
    assert text in run.stdout and table(rows) in text and text.count("Reasoning") == 4
    assert (folder / "strips.png").read_bytes().startswith(b"\x89PNG")
    assert "4/4" in run.stderr                           # the bar


def test_a_stopped_run_goes_on(tiny, tmp_path, monkeypatch):
    asked, stop_at = [], None

    def sample(model, source, instructions, steps, guidance, seed):
        asked.append(seed)
        if seed == stop_at:
            raise KeyboardInterrupt
        return torch.stack([x * torch.rand(1, generator=torch.Generator().manual_seed(seed + i))
                            for i, x in enumerate(source)])
    monkeypatch.setattr(type(tiny), "sample", sample)
    monkeypatch.setattr(evaluate, "load_model", lambda folder: tiny)

    def run(out, seed=0):
        asked.clear()
        evaluate.main(["--n", "5", "--steps", "1", "--batch", "2", "--seed", str(seed), "--out", str(tmp_path / out)])
        return [json.loads(line) for line in (tmp_path / out / "tiny-rave-test-steps-1/scores.jsonl").read_text().splitlines()]

    whole = run("whole")
    assert asked == [0, 2, 4]
    stop_at = 2
    with pytest.raises(KeyboardInterrupt):
        run("stopped")
    folder = tmp_path / "stopped/tiny-rave-test-steps-1"
    assert {p.name for p in folder.iterdir()} == {"settings.json", "scores.jsonl"}
    stop_at = None
    assert run("stopped") == whole and asked[:2] == [2, 4]                                 # (then the strips' clips)
    assert (folder / "table.md").read_text() == (tmp_path / "whole/tiny-rave-test-steps-1/table.md").read_text()
    assert (folder / "strips.png").exists() and run("stopped") == whole and asked == []    # nothing is made twice
    run("stopped", seed=7)                               # other settings: beside them
    assert asked == [7, 9, 11] and (tmp_path / "stopped/tiny-rave-test-steps-1-seed-7/table.md").exists()
    assert run("stopped") == whole and asked == []
    other = json.loads((folder / "settings.json").read_text()) | {"checkpoint": "another"}
    (folder / "settings.json").write_text(json.dumps(other))
    with pytest.raises(evaluate.BadInput, match="holds the scores of other weights"):
        run("stopped")


def test_weights_that_make_nothing_finite_are_no_success(tiny, tmp_path, monkeypatch):
    monkeypatch.setattr(type(tiny), "sample", lambda self, source, *args: source * float("nan"))
    monkeypatch.setattr(evaluate, "load_model", lambda folder: tiny)
    with pytest.raises(evaluate.BadInput, match="weights/tiny: not one of its 2 videos is finite; check the weights"):
        evaluate.main(["--n", "2", "--steps", "1", "--out", str(tmp_path)])
    assert "| all " in (tmp_path / "tiny-rave-test-steps-1/table.md").read_text()
