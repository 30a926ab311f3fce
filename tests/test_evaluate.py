"""The scores and intervals by hand; the command: it runs, goes on after a stop, deletes nothing."""

import json
import math

import numpy as np
import pytest
import torch

import evaluate
from common.files import BadInput
from common.intervals import COLUMNS, geometric_mean, interval, overall, paired_difference
from evaluate import generate, judge, table
from tiny import world


# ----------------------------------------------------------------------------- scores and intervals

def test_overall_by_hand():
    assert overall(9, 4, 4, 9) == 4                      # sqrt(min(9, 4) * min(4, 9))
    assert overall(10, 2, 8, 10) == 4
    assert overall(4, None, 9, 10) == 6                  # ICVG: SC = EA
    assert overall(10, 10, 10, 10) == 10
    assert overall(0, 10, 10, 10) == overall(10, 10, 0, 10) == 0
    np.testing.assert_allclose(overall(*np.array([[9., 1.], [4., 9.], [4., 4.], [9., 9.]])), [4, 2])


def test_geometric_mean_by_hand():
    assert geometric_mean(1, 2, 4, 8) == pytest.approx(64 ** .25)
    assert geometric_mean(2, None, 4, 8) == pytest.approx(4)    # of three on ICVG
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
    half = 2.776 * .5 ** .5
    assert interval([1, 2, 3, 4, 5]) == pytest.approx((3, 3 - half, 3 + half), abs=1e-3)
    # the mean is Binomial(100, 1/2) / 10: quantiles 40 and 60
    mean, low, high = interval([0] * 50 + [10] * 50)
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
    assert paired_difference(b + 1, b) == pytest.approx((1, 1, 1))    # pairing takes the spread out
    assert paired_difference([5, None, 7, 1] * 3, [4, 3, None, 0] * 3) == (1, 1, 1)
    mean, low, high = paired_difference([0, 10] * 20, [10, 0] * 20)
    assert mean == 0 and low == pytest.approx(-3, abs=.6) and high == pytest.approx(3, abs=.6)
    with pytest.raises(ValueError):
        paired_difference([1, 2], [1])


def test_table_by_hand():
    def row(type, failed=None, **scores):
        return {"type": type, "failed": failed, **dict.fromkeys(COLUMNS), **scores}
    text = table([row("A", EA=4., GN=1., GR=2., Overall=3.),
                  row("A", EA=4., GN=1., GR=2., Overall=3.), row("A", "not finite"),
                  row("B", EA=8., Overall=9.), row("C", "not finite")])
    lines = [[cell.strip() for cell in line.split("|")[1:-1]] for line in text.splitlines()]
    cells = {line[0]: line[1:] for line in lines}
    assert cells["type"] == ["N scored", "N failed", *COLUMNS]
    assert cells["A"][:4] == ["2", "1", "4.00", "-"]
    assert cells["B"][:3] == ["1", "0", "8.00"] and cells["B"][6] == "9.00"
    assert cells["C"] == ["0", "1"] + ["-"] * 6
    assert cells["all"][:2] == ["3", "2"] and cells["all"][2] == "5.33"
    assert len({len(line) for line in text.splitlines()}) == 1


def test_no_interval_leaves_the_scale():
    rows = [{"type": "A", "failed": None, **dict.fromkeys(COLUMNS, value)}
            for value in (0, 0, 0, 0, 9)]
    assert "1.80 [0.00, 6.80]" in table(rows)            # Student's t goes down to -3.20


# ----------------------------------------------------------------------------- generate and judge

class Knows:
    """A stand-in for the model: sample 2 becomes NaN, odd ones the source, others the target."""
    device = "cpu"

    def __init__(self, triplets):
        self.triplets, self.asked = triplets, []

    def sample(self, source, instructions, steps, guidance, seed):
        self.asked.append((len(source), steps, guidance, seed))
        edits = []
        for clip, words in zip(source, instructions, strict=True):
            i, triplet = next((i, t) for i, t in enumerate(self.triplets)
                              if torch.equal(t.source, clip))
            assert words == triplet.instruction
            edit = triplet.source if i % 2 else triplet.target
            edits.append(edit * math.nan if i == 2 else edit)
        return torch.stack(edits)


@pytest.mark.parametrize("subset", ["rave", "icvg"])
def test_generate_and_judge(subset):
    triplets = [world.make_triplet(i, subset, "val") for i in range(5)]
    model, rows = Knows(triplets), []
    for now, edits in generate(model, triplets, 7, .5, seed=100, batch=2):
        rows += map(judge, now, edits)
    # noise goes by the sample
    assert model.asked == [(2, 7, .5, 100), (2, 7, .5, 102), (1, 7, .5, 104)]
    for i, row in enumerate(rows):
        assert set(row) == {"failed", *COLUMNS}
        if i == 2:
            assert "finite" in row["failed"] and all(row[c] is None for c in COLUMNS)
        else:
            assert row["failed"] is None and (row["PC"] is None) == (subset == "icvg")
            right = [0, 0] if i % 2 else [10, 10]
            assert [row["EA"], row["Overall"]] == pytest.approx(right, abs=.01)


# ------------------------------------------------------------------------------------ the command

def test_the_command(tiny_dir, tmp_path, capfd):
    evaluate.main(["--subset", "icvg", "--checkpoint", str(tiny_dir), "--n", "4", "--steps", "2",
                   "--out", str(tmp_path)])
    folder = tmp_path / "tiny-icvg-test-steps-2"
    assert {p.name for p in folder.iterdir()} == {"settings.json", "scores.jsonl", "table.md",
                                                  "strips.png"}
    rows = [json.loads(line) for line in (folder / "scores.jsonl").read_text().splitlines()]
    assert [r["index"] for r in rows] == [0, 1, 2, 3]
    assert [r["id"] for r in rows] == [f"icvg-test-{i}" for i in range(4)]
    assert all(r["PC"] is None and r["failed"] is None for r in rows)
    text, shown = (folder / "table.md").read_text(), capfd.readouterr()
    assert text in shown.out and table(rows) in text and text.count("Reasoning") == 4
    assert (folder / "strips.png").read_bytes().startswith(b"\x89PNG")
    assert "4/4" in shown.err                            # the bar


@pytest.fixture
def score(tiny, tmp_path, monkeypatch):
    """score(out, seed, stop_at=None): evaluate five samples with clips out of nowhere, stopped at
    a noise seed; returns (folder, the noise seeds that were asked for)."""
    asked, stops = [], []

    def sample(model, source, instructions, steps, guidance, seed):
        asked.append(seed)
        if seed in stops:
            raise KeyboardInterrupt
        noise = [torch.Generator().manual_seed(seed + i) for i in range(len(source))]
        return torch.stack([x * torch.rand(1, generator=g) for x, g in zip(source, noise)])
    monkeypatch.setattr(type(tiny), "sample", sample)
    monkeypatch.setattr(evaluate, "load_model", lambda folder: tiny)

    def run(out, seed=0, stop_at=None):
        asked.clear()
        stops[:] = [stop_at]
        flags = ["--n", "5", "--batch", "2", "--seed", str(seed), "--out", str(tmp_path / out)]
        evaluate.main(flags)
        return tmp_path / out / ("tiny-rave-test" if seed == 0 else f"tiny-rave-test-seed-{seed}")
    return run, asked


def test_a_stopped_evaluation_goes_on(score, tmp_path):
    run, asked = score
    whole = run("whole")
    assert asked == [0, 2, 4]
    with pytest.raises(KeyboardInterrupt):
        run("stopped", stop_at=2)
    folder = tmp_path / "stopped/tiny-rave-test"
    assert {p.name for p in folder.iterdir()} == {"settings.json", "scores.jsonl"}
    run("stopped")
    assert asked[:2] == [2, 4]                           # (then the strips' clips)
    for name in ("scores.jsonl", "table.md"):
        assert (folder / name).read_bytes() == (whole / name).read_bytes()
    assert (folder / "strips.png").exists()
    run("stopped")
    assert asked == []                                   # nothing is made twice


def test_scores_of_other_settings_are_kept(score):
    run, asked = score
    folder = run("out")
    before = {file: file.read_bytes() for file in folder.iterdir()}
    other = run("out", seed=7)                           # beside them
    assert asked == [7, 9, 11] and other != folder and (other / "table.md").exists()
    (folder / "settings.json").write_text('{"checkpoint": "another"}')
    with pytest.raises(BadInput, match="holds the scores of other weights"):
        run("out")
    for file, content in before.items():
        assert file.name == "settings.json" or file.read_bytes() == content


def test_weights_that_make_nothing_finite_are_no_success(tiny, tmp_path, monkeypatch):
    monkeypatch.setattr(type(tiny), "sample", lambda self, source, *args: source * math.nan)
    monkeypatch.setattr(evaluate, "load_model", lambda folder: tiny)
    with pytest.raises(BadInput, match="weights/tiny: not one of its 2 videos is finite"):
        evaluate.main(["--n", "2", "--out", str(tmp_path)])
    assert "| all " in (tmp_path / "tiny-rave-test/table.md").read_text()
