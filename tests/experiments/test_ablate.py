"""ablate.py: its statistics by hand, what it plans, and one table from training to Markdown."""

import json
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from experiments import ablate
from experiments.ablate import BASE, NEEDS, RUNS, Score, interval, plan
from common.files import BadInput


def arguments(tmp_path, *flags):
    a = ablate.parse([*flags, "--out", str(tmp_path / "out"), "--results", str(tmp_path / "results")])
    a.root = a.out / "base"
    return a


def pretend(a, score, seed, overall, margin=None):
    """Leave the rows that evaluate.py would have left."""
    folder = score.folder(a, seed)
    folder.mkdir(parents=True)
    rows = [{"type": "Temporal Reasoning", "Overall": x, "EA": x, "PC": x, "GN": x, "GR": x, "margin": m}
            for x, m in zip(overall, margin or overall)]
    (folder / "scores.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    (folder / "table.md").write_text("done")


# ----------------------------------------------------------------------------------------------------- statistics

def test_interval_draws_seeds_and_samples():
    x = np.random.default_rng(0).normal(5, 1, (1, 400))
    mean, low, high = interval(x)                        # one seed: the normal theory of 400 samples
    assert mean == pytest.approx(x.mean()) and (high - low) / 2 == pytest.approx(1.96 / 20, rel=.15)
    between = np.array([[0.], [1.], [2.]]) + np.zeros((3, 400))                # seeds differ, samples do not
    mean, low, high = interval(between)
    assert (mean, low, high) == (1, 0, 2)
    assert interval(np.full((3, 5), 7.)) == (7, 7, 7)
    assert interval(np.array([[1., np.nan, 3.]]))[0] == 2                                  # a failed sample is left out


def test_scores_are_paired_by_seed_and_sample(tmp_path):
    a = arguments(tmp_path, "--table", "4", "--n", "3", "--seeds", "2")
    for seed in (0, 1):
        pretend(a, Score("sft", "rave"), seed, [1, 2, 9])
        pretend(a, Score("uso", "rave"), seed, [2, 3, 10])
    pretend(a, Score(BASE, "rave"), 0, [0, None, 1])
    assert ablate.scores(a, Score("uso", "rave")).shape == (2, 3)
    text = ablate.compare(a, [BASE, "sft", "uso"], "rave", "sft")
    base, sft, uso = [line.split("|") for line in text.splitlines()[2:]]
    assert uso[-2].split() == ["+1.00", "[+1.00,", "+1.00]"]                   # though samples differ by 8
    assert not sft[-2].strip() and base[2].split()[0] == "0.50"
    assert ablate.cell(np.full((2, 3), np.nan)) == "-"


def test_figure_4_is_a_rank_correlation(tmp_path):
    a = arguments(tmp_path, "--figure", "4", "--n", "4", "--seeds", "1")
    for run in (BASE, "sft", "rwr", "uso"):              # the margin has the order of EA, the word only half of it
        pretend(a, Score(run, "rave"), 0, [1, 2, 3, 4], [-2, -1, 1, 2])
    text = ablate.figure_4(a)
    soft, hard = [float(line.split("|")[2].split()[0]) for line in text.splitlines()[4:6]]
    assert soft == pytest.approx(1) and hard == pytest.approx(.894, abs=.001)  # of ranks 1 2 3 4 with 0 0 1 1
    assert (a.results / "figure-4.png").stat().st_size > 1000


# ------------------------------------------------------------------------------------------------------------ plan

def test_every_table_has_runs_and_a_function(tmp_path):
    a = arguments(tmp_path, "--all")
    for item in NEEDS:
        assert callable(getattr(ablate, item.replace(" ", "_")))
        for score in NEEDS[item](a) if callable(NEEDS[item]) else NEEDS[item]:
            assert score.run.partition(", equal ")[0] in {*RUNS, BASE}
    assert plan(a, ["figure gradient"]) == []


def test_what_is_done_is_not_done_again(tmp_path):
    a = arguments(tmp_path, "--table", "3", "--seeds", "3")
    jobs = [job.name for jobs in plan(a, ["table 3"]) for job in jobs]
    assert len(jobs) == 1 + 2 * 3 * 2 and "train sft, seed 2" in jobs and "literal test base, seed 0" in jobs
    assert not any("sft" in name and "lambda" in name for name in jobs)
    pretend(a, Score("sft", "literal"), 1, [1])
    left = [job.name for jobs in plan(a, ["table 3"]) for job in jobs]
    assert set(jobs) - set(left) == {"literal test sft, seed 1"}


def test_equal_time_waits_for_the_times(tmp_path):
    a = arguments(tmp_path, "--figure", "compute", "--seeds", "1", "--steps", "100")
    assert not any("equal" in job.name for jobs in plan(a, ["figure compute"]) for job in jobs)
    a.root.mkdir(parents=True)
    times = {"train uso, seed 0": 50., "train refl, seed 0": 100., "train grpo, seed 0": 500.}
    (a.root / "times.json").write_text(json.dumps(times))
    jobs = [job for jobs in plan(a, ["figure compute"]) for job in jobs if job.name.startswith("train")]
    steps = {job.name: job.command[job.command.index("--steps") + 1] for job in jobs}
    assert steps["train refl, equal time, seed 0"] == "50" and steps["train grpo, equal time, seed 0"] == "10"
    assert steps["train refl, seed 0"] == "100"


def test_all_runs_share_the_data_but_those_of_figure_data(tmp_path):
    a = arguments(tmp_path, "--all", "--seeds", "1")
    for jobs in plan(a, a.items):
        for job in jobs:
            if job.name.startswith("train"):             # the last of a flag that is given twice counts
                share = float(job.command[len(job.command) - job.command[::-1].index("--wrong")])
                assert share == (float(job.name.split()[-4]) if "wrong" in job.name else .3), job.name


@pytest.mark.parametrize("flags, says", [
    ([], "nothing to do: pass --all, --table or --figure"), (["--table", "9"], "invalid choice"),
    (["--all", "--seeds", "0"], "--seeds 0: must be at least 1"), (["--all", "--steps", "-1"], "--steps -1: must be")])
def test_bad_flags(flags, says):
    with pytest.raises(BadInput, match=says):
        ablate.parse(flags)


# ----------------------------------------------------------------------------------------------------- from end to end

def test_a_table_from_training_to_markdown(tiny_dir, tmp_path):
    def run(*flags):
        return subprocess.run([sys.executable, ablate.__file__, "--weights", str(tiny_dir), "--seeds", "1", "--n", "2",
                               "--steps", "1", "--more", "--items 2 --batch 2", "--out", str(tmp_path / "out"),
                               "--results", str(tmp_path / "results"), *flags], capture_output=True, text=True)
    done = run("--table", "3")
    assert done.returncode == 0, done.stderr
    text = (tmp_path / "results" / "table-3.md").read_text()
    assert "python ablate.py --table 3" in text and "training seeds 0, 1 steps;" in text
    ours, theirs = text.split("The paper's Table 3")
    names = lambda table: [line.split()[1] for line in table.splitlines() if line.startswith("| ")][2:]
    assert names(ours) == ["base", "sft", "uso"] and names(theirs)[-1] == "ReViSE"
    again = run("--table", "3")
    assert "nothing is left to run" in again.stdout and (tmp_path / "results" / "table-3.md").read_text() == text
    listed = run("--table", "4", "--list")
    assert "train rwr, seed 0" in listed.stdout and "train sft" not in listed.stdout
    broken = run("--table", "5", "--more", "--batch 0")
    assert broken.returncode == 2 and "failed" in broken.stderr and "Traceback" not in broken.stderr


def test_figure_gradient(tiny_dir, tmp_path):
    ablate.main(["--figure", "gradient", "--weights", str(tiny_dir), "--n", "7", "--out", str(tmp_path / "out"),
                 "--results", str(tmp_path / "results")])
    found = json.loads(next((tmp_path / "out").glob("*/measured/gradient.json")).read_text())
    levels, rows = found.pop("levels"), {name: np.array(x) for name, x in found.items()}
    assert all(x.shape == ((7,) if name == "area" else (len(levels), 7)) for name, x in rows.items())
    assert all(((0 <= rows[name]) & (rows[name] <= 1)).all() for name in ("area", *ablate.THINK))
    for which in ("right", "wrong"):                     # there is a gradient, whatever this critic knows
        assert (rows[f"size, {which}"] > 0).all() and (abs(rows[f"aim, {which}"]) <= 1).all()
    lines = (tmp_path / "results" / "figure-gradient.md").read_text().splitlines()
    assert [line.split()[1] for line in lines if line.startswith("| 0")] == [str(t) for t in levels]
    assert (tmp_path / "results" / "gradient.png").stat().st_size > 10_000
