"""The demo runs from end to end."""

import sys
from pathlib import Path
from types import SimpleNamespace

import train
from curation import no_leak, read
from data import manifest_items
from presets import PRESETS
from rvedata import demo

ROOT = Path(__file__).parents[2]


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
