"""python -m experiments: its flags, and one table from training to Markdown."""

import importlib
from contextlib import nullcontext
from types import SimpleNamespace

import pytest

from common.files import BadInput
from experiments import __main__ as command
from experiments import jobs


@pytest.mark.parametrize("flags, says", [
    (["--more=--bogus"], "--more --bogus: unrecognized arguments: --bogus"),
    (["--more", "--steps 3"], "--more --steps 3: each training has --steps 500 from the study"),
    (["--more", "--lambda 2"], "drop --lambda from --more"),
    (["--runs", "/dev/null/x"], "cannot be written")])
def test_what_would_fail_later_is_refused_at_the_start(tiny_dir, tmp_path, flags, says):
    defaults = {"--weights": tiny_dir, "--out": tmp_path / "results", "--runs": tmp_path / "runs"}
    rest = [word for flag, value in defaults.items() if flag not in flags for word in (flag, value)]
    with pytest.raises(BadInput) as caught:
        command.main([*map(str, rest), "--all", *flags])
    assert says in str(caught.value)
    assert not (tmp_path / "runs").exists() and not (tmp_path / "results").exists()


class AtOnce(nullcontext):
    """Instead of a pool of threads: a training listens to signals, in the main thread alone."""

    def __init__(self, *args, **named):
        super().__init__(self)

    def submit(self, do, chain):
        do(chain)
        return SimpleNamespace(result=lambda: None)


@pytest.fixture
def in_this_process(monkeypatch):
    """The jobs' commands, one after the other, here: it takes longer to import torch than to do
    one. Returns the list of those that were done."""
    done = []

    def run(command, **how):
        module, flags = ("evaluate", command[2:])
        if command[1] == "-m":
            module, flags = command[2], command[3:]
        importlib.import_module(module).main(flags)
        done.append(module)
        return SimpleNamespace(returncode=0)
    monkeypatch.setattr(jobs.subprocess, "run", run)
    monkeypatch.setattr(jobs, "ThreadPoolExecutor", AtOnce)
    return done


def test_a_table_from_training_to_markdown(in_this_process, tiny_dir, tmp_path, capsys):
    def of_this_size(*flags):
        small = ["--weights", tiny_dir, "--seeds", 1, "--n", 1, "--steps", 1,
                 "--more", "--items 2 --batch 2", "--runs", tmp_path / "runs",
                 "--out", tmp_path / "results"]
        command.main([*map(str, small), *flags])
        return capsys.readouterr().out
    of_this_size("--table", "3")
    assert sorted(in_this_process) == ["evaluate"] * 3 + ["experiments.train"] * 2
    text = (tmp_path / "results" / "table-3.md").read_text()
    assert "python -m experiments --table 3" in text
    assert "training seeds 0, 1 steps, targets wrong-30, --items 2 --batch 2;" in text
    ours, theirs = text.split("The paper's Table 3")

    def first_column(table):
        return [line.split()[1] for line in table.splitlines() if line.startswith("| ")][2:]
    assert first_column(ours) == ["base", "sft", "uso"] and first_column(theirs)[-1] == "ReViSE"
    assert "0 jobs are left to run" in of_this_size("--table", "3")
    assert (tmp_path / "results" / "table-3.md").read_text() == text
    listed = of_this_size("--table", "4", "--list")
    assert "train rwr on wrong-30, 1 steps, seed 0" in listed and "train sft" not in listed
