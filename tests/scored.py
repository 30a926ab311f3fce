"""Rows and videos of a small benchmark, for the tests of pages: two methods, hostile texts."""

import json

import pytest
import torch

from common.video import write_video

HOSTILE = "</script><script>window.hacked=1</script><img src=x onerror=window.hacked=1>&amp; dusk"
NASTY = "a#1?b%20c é"                                   # what a file's name can be


def row(id, method, score, type="Temporal Reasoning", failed=None, **more):
    """A row of scores.jsonl; its Overall is EA and PC."""
    videos = {name: f"videos/{name}.mp4" for name in ("source", "target")}
    scores = {"EA": score, "PC": score, "GN": 5, "GR": 5, "Overall": score,
              "Geometric mean": score}
    return {"id": id, "subset": "rave", "type": type, "instruction": f"dusk {id}",
            "method": method, **videos, "video": f"videos/{method}.mp4", "failed": failed, **scores,
            "missing": [], "unanswered": 0, "reasons": [f"because {id}"],
            "replies": [], "quality": {"TF": .987654}, "frames": 9, **more}


ABOUT = {"methods": ["ours", "theirs"], "head": "bench.jsonl, judged by nobody: means",
         "judge": "openai"}


def write_results(folder, rows, **about):
    """scores.jsonl and about.json, as rvebench.score leaves them."""
    folder.mkdir(exist_ok=True)
    (folder / "scores.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    (folder / "about.json").write_text(json.dumps(ABOUT | about))


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """Videos of 9 frames at 4 a second; those of `theirs` take twice as long."""
    out = tmp_path_factory.mktemp("results")
    for name in ("source", "target", "ours", "theirs", NASTY):
        frames = 17 if name == "theirs" else 9
        ramp = torch.linspace(-1, 1, frames).view(-1, 1, 1, 1).expand(-1, 3, 32, 32)
        write_video(out / f"videos/{name}.mp4", ramp, fps=4)
    return out


@pytest.fixture(scope="module")
def rows():
    """Methods agree on b, disagree on c; theirs has failed on a, which holds hostile texts."""
    hostile = dict(instruction=HOSTILE, reasons=[HOSTILE], video=f"videos/{NASTY}.mp4")
    spatial = "Spatial Reasoning"
    return [row("a", "ours", 6., **hostile),
            row("a", "theirs", None, failed=HOSTILE, **hostile | {"quality": {}}),
            row("b", "ours", 9., spatial), row("b", "theirs", 8., spatial),
            row("c", "ours", 1.), row("c", "theirs", 7.)]
