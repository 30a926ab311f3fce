"""paper_results.json against what the paper's text says of its tables, and against the formulas."""

import json
from pathlib import Path

import pytest

from bench import trigger_rate
from common.intervals import overall

PAPER = json.loads((Path(__file__).parents[2] / "rvebench/paper_results.json").read_text())
RAVE, ICVG, DITTO, OBJECTIVE, LAMBDA, TAU = (PAPER[k] for k in (
    "Table 1 rave", "Table 1 icvg", "Table 3 Ditto-1M", "Table 4 objective", "Table 5 lambda", "Table 6 tau"))


def gain(table, column, over="Omni-Video", of="ReViSE"):
    return 100 * (table[of][column] / table[over][column] - 1)


def test_gains_that_the_text_states():
    assert [gain(RAVE, c) for c in ("Overall", "EA", "PC")] == pytest.approx([49, 27, 82], abs=.5)
    assert [gain(ICVG, c) for c in ("EA",)] == pytest.approx([13], abs=.5)
    assert gain(DITTO, "Overall", "InsV2V") == pytest.approx(36.7, abs=.05)
    assert gain(OBJECTIVE, "Overall", "SFT", "USO") == pytest.approx(10, abs=.5)
    assert [gain(OBJECTIVE, "EA", of=m) for m in ("USO", "RWR")] == pytest.approx([27, 11], abs=.5)


def test_the_same_model_has_the_same_numbers_in_each_table():
    for row in (OBJECTIVE["USO"], LAMBDA["0.25"]):
        assert row == {c: RAVE["ReViSE"][c] for c in row}
    assert OBJECTIVE["Omni-Video"] == {c: RAVE["Omni-Video"][c] for c in OBJECTIVE["Omni-Video"]}


def test_the_best_as_the_text_says():
    best = lambda table, column: max(table, key=lambda m: table[m][column])
    assert all(best(t, "Overall") == best(t, "EA") == "ReViSE" for t in (RAVE, ICVG, DITTO))
    assert best(RAVE, "PC") == "InsV2V" and best(LAMBDA, "Overall") == "0.25"
    assert all(row["PC"] is None for row in ICVG.values()) and len(RAVE) == len(ICVG) == len(DITTO) == 5


def test_no_overall_is_above_what_its_columns_allow():
    """The mean of sqrt(SC PQ) is at most sqrt(mean SC * mean PQ), and a mean of minima at most the minimum of means."""
    for table in (RAVE, ICVG, DITTO, OBJECTIVE, LAMBDA):
        for row in table.values():
            assert row["Overall"] <= overall(*(row[c] for c in ("EA", "PC", "GN", "GR")))


def test_table_6():
    assert [row["trigger rate"] for row in TAU.values()] == pytest.approx([trigger_rate(float(t)) for t in TAU], abs=.001)
    pearson = [row["Pearson"] for row in TAU.values()]
    assert pearson == sorted(pearson, reverse=True) and pearson[2] / .934 == pytest.approx(.483, abs=.001)
