"""jobs.py: what is planned, and what is done."""

import re
import sys

import pytest

from common.files import BadInput
from experiments import jobs
from experiments.jobs import Job, plan
from experiments.runs import BASE, NEEDED_SCORES, OWN_EDITS_ON_FEW, SFT_ON_FEW, Score


def names(chains):
    return [job.name for chain in chains for job in chain]


# ------------------------------------------------------------------------ the plan

def test_what_is_done_is_not_done_again(study, pretend):
    study = study(seeds=range(3))
    everything = names(plan(study, ["table 3"]))
    assert len(everything) == 1 + 2 * 3 * 2
    assert "train sft on wrong-30, 500 steps, seed 2" in everything
    assert "literal test base, seed 0, 200 samples" in everything
    pretend(study, Score("sft", "literal"), 1, [1])
    left = names(plan(study, ["table 3"]))
    assert set(everything) - set(left) == {
        "literal test sft on wrong-30, 500 steps, seed 1, 200 samples"}


def test_a_run_with_parents_waits_for_them(study):
    study = study(seeds=range(1))
    waiting = names(plan(study, ["figure chosen"]))
    assert not any("half" in name or "chosen" in name for name in waiting)
    for run in (SFT_ON_FEW, OWN_EDITS_ON_FEW):
        (study.run_folder(run, 0) / "model").mkdir(parents=True)
    mix, score = plan(study, ["figure chosen"])[-1]
    assert mix.command[2:5] == ["experiments.mix", str(study.run_folder(SFT_ON_FEW, 0)),
                                str(study.run_folder(OWN_EDITS_ON_FEW, 0))]
    assert str(mix.makes.parents[1]) in score.command
    mix.makes.parent.mkdir(parents=True)
    choose, train, _ = plan(study, ["figure chosen"])[-1]
    assert choose.command[2:4] == ["experiments.choose", str(mix.makes.parents[1])]
    assert train.command[train.command.index("--chosen") + 1] == str(choose.makes.parent)


def test_all_runs_share_the_data_but_those_on_other_targets(study):
    study = study(seeds=range(1), targets="drift-60")
    trainings = [job for chain in plan(study, list(NEEDED_SCORES)) for job in chain
                 if job.name.startswith("train")]
    assert len(trainings) > 25
    assert sum(" on drift-60," in job.name for job in trainings) > len(trainings) / 2
    flags = {"right": [], "wrong-30": ["--wrong 0.3"], "wrong-60": ["--wrong 0.6"],
             "drift-60": ["--drift 0.6"]}
    for job in trainings:
        own = job.name.partition(" on ")[2].split(",")[0]
        assert re.findall("--(?:wrong|drift) [.0-9]+", " ".join(job.command)) == flags[own]


def test_studies_share_the_runs_that_are_alike_in_both(study, pretend):
    short, long = study(steps=100), study(steps=500, targets="drift-60")
    pretend(short, Score("uso on drift-60, 5 x steps", "rave"), 0, [1])
    left = names(plan(long, ["table 5"]))
    assert "train uso on drift-60, 500 steps, seed 0" in left
    assert "rave test uso on drift-60, 500 steps, seed 0, 200 samples" not in left
    assert long.run_folder("uso", 0) == short.run_folder("uso on drift-60, 5 x steps", 0)
    apart = [short, study(steps=101), study(steps=100, targets="right"), study(steps=100, n=100)]
    assert len({Score("uso", "rave").folder(one, 0) for one in apart}) == len(apart)
    assert {Score(BASE, "rave").folder(one, 0) for one in (short, long)} == {
        short.folder / "eval-200" / "tiny-rave-test"}


# ------------------------------------------------------------------------ doing it

def python(code, makes, name="a job"):
    return Job(name, [sys.executable, "-c", code], makes)


def test_a_chain_is_done_in_order(study, tmp_path):
    first, second = tmp_path / "first", tmp_path / "second"
    chain = [python(f"open({str(first)!r}, 'w')", first),
             python(f"open({str(first)!r}); open({str(second)!r}, 'w')", second)]
    jobs.do_all(study(), [chain])
    assert second.exists()


def test_a_failed_job_is_named_with_its_last_line(study, tmp_path):
    code = "import sys; print('a line'); sys.exit('--batch 0: is wrong')"
    with pytest.raises(BadInput, match="train it failed, .*train-it.txt says: --batch 0: is wrong"):
        jobs.do_all(study(), [[python(code, tmp_path / "never", "train it")]])
