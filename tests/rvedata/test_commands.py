"""The commands: bad flags are one line, the demo runs from end to end."""

import runpy
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch

import train
from curation import no_leak
from rvedata import demo

ROOT = Path(__file__).parents[2]


@pytest.mark.parametrize("flags, words", [
    (["rave"], "the following arguments are required"),
    (["rave", "--ditto", "x.json"], "the following arguments are required: --videos"),
    (["rave", "--ditto", "none.json", "--videos", "."], "none.json: no list of"),
    (["rave", "--ditto", "none.json", "--videos", "nowhere"], "nowhere: there is no such folder"),
    (["icvg", "--movies", "nowhere", "--siglip", "pixels"], "--movies nowhere: holds no film"),
    (["icvg", "--movies", ".", "--shard", "2/2"], "argument --shard: must be i/n"),
    (["icvg", "--movies", ".", "--window", "0"], "argument --window: must be at least 1"),
    (["icvg", "--movies", ".", "--threshold", "2"], "argument --threshold: must be in [0, 1]"),
    (["icvg", "--movies", ".", "--examples", "none"], "--examples none: FileNotFoundError"),
    (["split", "--from", ".", "--siglip", "pixels"], "--from .: no triplets.jsonl there"),
    (["split", "--from", "nowhere"], "nowhere: there is no such folder"),
    (["merge", "--from", ".", "--out", "x"], "--from .: holds no *.jsonl of rave or icvg"),
    (["merge", "--from", ".", "--out", "."], "--out .: is one of --from; name another folder"),
])
def test_bad_flags(flags, words, tmp_path, monkeypatch, capsys):
    command, *others = flags
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "argv", [f"{command}.py", *others])
    with pytest.raises(SystemExit) as end:
        runpy.run_path(str(ROOT / "rvedata" / f"{command}.py"), run_name="__main__")
    error = capsys.readouterr().err
    assert end.value.code == 2
    assert error.count("\n") == 1 and error.startswith(f"{command}.py: ") and words in error, error


def test_a_missing_package_is_one_line():
    code = """
import importlib.util, runpy
find = importlib.util.find_spec
importlib.util.find_spec = lambda name: None if name == "scenedetect" else find(name)
runpy.run_module("rvedata.rave", run_name="__main__")"""
    run = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, cwd=ROOT)
    line = "rvedata needs scenedetect: pip install -r requirements-dev.txt\n"
    assert (run.returncode, run.stderr) == (2, line)


def test_the_demo(tiny_dir, tmp_path, monkeypatch, capfd):
    """One short film, in this process; so does train.py, whose command is what a user would type."""
    def in_this_process(command):
        assert command[:2] == [sys.executable, str(ROOT / "train.py")]
        train.main(command[2:])
        return SimpleNamespace(returncode=0)
    monkeypatch.setattr(demo, "subprocess", SimpleNamespace(run=in_this_process))
    threads = torch.get_num_threads()
    out = tmp_path / "demo"
    demo.main(["--out", str(out), "--movies", "1", "--steps", "1", "--weights", str(tiny_dir)])
    torch.set_num_threads(threads)                       # train.py sets them
    no_leak(out / "bench")
    for page in ("rave/report.html", "icvg/report.html", "bench/report.html", "bench/verify.html"):
        assert page.split("/")[0] in (out / page).read_text().lower() or "verify" in page
    assert (out / "train/model/model.json").is_file() and "1/1" in capfd.readouterr().err
