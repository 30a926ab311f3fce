"""The demo runs from end to end; what a folder must hold; a missing package is one line."""

import os
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace

import pytest

import train
from common.files import BadInput
from curation import no_leak, read
from data import manifest_items
from presets import PRESETS
from rvedata import demo, merge, pages, split

ROOT = Path(__file__).parents[2]


def test_what_a_folder_must_hold(tmp_path):
    flags = ["--from", str(tmp_path), "--out", str(tmp_path / "out")]
    with pytest.raises(BadInput, match="--from .*: no triplets.jsonl whose videos are there"):
        split.main([*flags, "--siglip", "pixels"])
    with pytest.raises(BadInput, match=r"--from .*: holds no \*.jsonl of rave or icvg"):
        merge.main(flags)


def test_a_report_about_a_folder_in_another_encoding(tmp_path):
    folder = tmp_path / os.fsdecode(b"caf\xe9")          # Latin-1; or a name under LC_ALL=C
    folder.mkdir()
    pages.report(folder)
    assert "RVE-Dataset: caf\ufffd" in (folder / "report.html").read_text("utf-8")


def test_a_missing_package_is_one_line():
    code = """
import importlib.util, runpy
find = importlib.util.find_spec
importlib.util.find_spec = lambda name: None if name == "scenedetect" else find(name)
runpy.run_module("rvedata.rave", run_name="__main__")"""
    run = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, cwd=ROOT)
    line = "rvedata needs scenedetect: pip install -r requirements-dev.txt\n"
    assert (run.returncode, run.stderr) == (2, line)


def test_the_demo(tmp_path, monkeypatch, capsys):
    """One short film; the training at its end is only started: a command that train.py takes."""
    commands = []

    def start(command):
        commands.append(command)
        return SimpleNamespace(returncode=0)
    monkeypatch.setattr(demo, "subprocess", SimpleNamespace(run=start))
    monkeypatch.setattr(demo, "TRIPLETS_A_MOVIE", 6)
    out = tmp_path / "demo"
    demo.main(["--out", str(out), "--movies", "1", "--steps", "1"])
    _, training = no_leak(out / "bench")
    (python, script, *flags), = commands
    args = train.parse(flags)
    assert (python, script) == (sys.executable, str(ROOT / "train.py")) and args.steps == 1
    assert len(manifest_items(args.data, PRESETS["tiny"])[0]) == len(training)
    assert {r["type"] for r in read(out / "icvg/triplets.jsonl")}
    for page in ("rave/report.html", "icvg/report.html", "bench/report.html", "bench/verify.html"):
        assert (out / page).is_file()
