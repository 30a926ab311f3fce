"""paper_results.json, typed in, against what the paper's text says of its tables."""

import json
from pathlib import Path

import pytest

PAPER = json.loads((Path(__file__).parents[2] / "rvebench/paper_results.json").read_text())
RAVE, ICVG, DITTO, OBJECTIVE, TAU = (PAPER[name] for name in (
    "Table 1 rave", "Table 1 icvg", "Table 3 Ditto-1M", "Table 4 objective", "Table 6 tau"))


def gain(table, column, over="Omni-Video", of="ReViSE"):
    return 100 * (table[of][column] / table[over][column] - 1)


def test_gains_that_the_text_states():
    assert [gain(RAVE, c) for c in ("Overall", "EA", "PC")] == pytest.approx([49, 27, 82], abs=.5)
    assert gain(ICVG, "EA") == pytest.approx(13, abs=.5)
    assert gain(DITTO, "Overall", "InsV2V") == pytest.approx(36.7, abs=.05)
    assert gain(OBJECTIVE, "Overall", "SFT", "USO") == pytest.approx(10, abs=.5)
    assert [gain(OBJECTIVE, "EA", of=m) for m in ("USO", "RWR")] == pytest.approx([27, 11], abs=.5)


def test_table_6():
    rates = [row["trigger rate"] for row in TAU.values()]
    expected = [tau / (3 - 2 * tau) for tau in map(float, TAU)]          # P(t < tau), flow shift 3
    assert rates == pytest.approx(expected, abs=.001)
    assert TAU["0.5"]["Pearson"] / .934 == pytest.approx(.483, abs=.001)         # of the bound
