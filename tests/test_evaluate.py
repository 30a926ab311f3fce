"""The scores and intervals by hand; the command: it runs, goes on after a stop, deletes nothing."""

import json
import math

import numpy as np
import pytest

import evaluate
from common.files import BadInput
from common.intervals import COLUMNS, geometric_mean, interval, overall, paired_difference
from evaluate import table


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


def test_interval_by_hand():
    # mean 3, deviation sqrt(2.5): Student's t of four degrees of freedom is 2.776
    half = 2.776 * .5 ** .5
    assert interval([1, 2, 3, 4, 5]) == pytest.approx((3, 3 - half, 3 + half), abs=1e-3)
    # the mean is Binomial(100, 1/2) / 10: quantiles 40 and 60
    mean, low, high = interval([0] * 50 + [10] * 50)
    assert mean == 5 and low == pytest.approx(4, abs=.11) and high == pytest.approx(6, abs=.11)


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


def test_no_interval_leaves_the_scale():
    rows = [{"type": "A", "failed": None, **dict.fromkeys(COLUMNS, value)}
            for value in (0, 0, 0, 0, 9)]
    assert "1.80 [0.00, 6.80]" in table(rows)            # Student's t goes down to -3.20


# ------------------------------------------------------------------------------------ the command

def test_the_command(tiny_dir, tmp_path, capfd):
    evaluate.main(["--subset", "icvg", "--checkpoint", str(tiny_dir), "--n", "2", "--steps", "2",
                   "--out", str(tmp_path)])
    folder = tmp_path / "tiny-icvg-test-steps-2"
    assert {p.name for p in folder.iterdir()} == {"settings.json", "scores.jsonl", "table.md",
                                                  "strips.png"}
    rows = [json.loads(line) for line in (folder / "scores.jsonl").read_text().splitlines()]
    assert [row["id"] for row in rows] == ["icvg-test-0", "icvg-test-1"]
    assert all(row["PC"] is None and row["failed"] is None for row in rows)
    text, shown = (folder / "table.md").read_text(), capfd.readouterr()
    assert text in shown.out and table(rows) in text and "2/2" in shown.err
    assert (folder / "strips.png").read_bytes().startswith(b"\x89PNG")


@pytest.fixture
def asked(tiny, monkeypatch):
    """The noise seeds that evaluate.py asks a model for whose edits are their sources."""
    seeds = []

    def sample(model, source, instructions, steps, guidance, seed):
        seeds.append(seed)
        return source
    monkeypatch.setattr(type(tiny), "sample", sample)
    monkeypatch.setattr(evaluate, "load_model", lambda folder: tiny)
    return seeds


def score(out, *flags):
    """Score five samples, two at a time; returns the folder of the results."""
    evaluate.main(["--n", "5", "--batch", "2", "--out", str(out), *flags])
    return out / "tiny-rave-test"


def test_a_stopped_evaluation_goes_on_where_its_scores_end(asked, tmp_path):
    folder = score(tmp_path)
    assert asked == [0, 2, 4]
    whole = {name: (folder / name).read_bytes() for name in ("scores.jsonl", "table.md")}
    first, second, *_ = whole["scores.jsonl"].splitlines(keepends=True)
    (folder / "scores.jsonl").write_bytes(first + second)
    (folder / "strips.png").unlink()
    asked.clear()
    score(tmp_path)
    assert asked[:2] == [2, 4]                           # (then the strips' clips)
    assert {name: (folder / name).read_bytes() for name in whole} == whole
    assert (folder / "strips.png").exists()
    asked.clear()
    score(tmp_path)                                      # nothing is left to do
    assert asked == []
    score(tmp_path, "--seed", "7")
    assert asked == [7, 9, 11] and (tmp_path / "tiny-rave-test-seed-7" / "table.md").exists()


def test_scores_of_other_weights_are_kept(asked, tmp_path):
    file = score(tmp_path) / "scores.jsonl"
    before = file.read_bytes()
    file.with_name("settings.json").write_text('{"checkpoint": "another"}')
    with pytest.raises(BadInput, match="holds the scores of other weights"):
        score(tmp_path)
    assert file.read_bytes() == before


def test_weights_that_make_nothing_finite_are_no_success(tiny, tmp_path, monkeypatch):
    monkeypatch.setattr(type(tiny), "sample", lambda self, source, *args: source * math.nan)
    monkeypatch.setattr(evaluate, "load_model", lambda folder: tiny)
    with pytest.raises(BadInput, match="weights/tiny: not one of its 2 videos is finite"):
        evaluate.main(["--n", "2", "--out", str(tmp_path)])
    assert "| all " in (tmp_path / "tiny-rave-test/table.md").read_text()
