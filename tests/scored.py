"""Rows and videos of a small benchmark, for the tests of pages: two methods, three samples, hostile texts."""

import pytest
import torch

from common.video import write_video
from rvebench import quality

HOSTILE = "</script><script>window.hacked=1</script><img src=x onerror=window.hacked=1>&amp; dusk"
NASTY = "a#1?b%20c é"                                   # what a file's name can be


def row(id, method, score, type="Temporal Reasoning", failed=None, **more):
    return {"id": id, "subset": "rave", "type": type, "instruction": f"dusk {id}", "method": method,
            "source": "videos/source.mp4", "target": "videos/target.mp4", "video": f"videos/{method}.mp4",
            "failed": failed, "EA": score, "PC": score, "GN": 5, "GR": 5, "Overall": score, "Geometric mean": score,
            "Yes": None, "missing": [], "repeats": [], "reasons": [f"because {id}"], "quality": {"TF": .987654}, **more}


ABOUT = {"methods": ["ours", "theirs"], "head": "bench.jsonl, judged by nobody: means", "judge": "openai", "repeat": 1,
         "labels": {c: c for c in quality.COLUMNS}, "why": {}}


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    out = tmp_path_factory.mktemp("results")
    for name, frames in (("source", 9), ("target", 9), ("ours", 9), ("theirs", 17), (NASTY, 9)):
        ramp = torch.linspace(-1, 1, frames).view(-1, 1, 1, 1).expand(-1, 3, 32, 32)
        write_video(out / f"videos/{name}.mp4", ramp, fps=4)
    return out


@pytest.fixture(scope="module")
def rows():
    """Three samples: methods agree on b, disagree on c; theirs has failed on a, which holds hostile texts."""
    hostile = dict(instruction=HOSTILE, reasons=[HOSTILE], video=f"videos/{NASTY}.mp4")
    return [row("a", "ours", 6., **hostile), row("a", "theirs", None, failed=HOSTILE, **hostile, quality={}),
            row("b", "ours", 9., "Spatial Reasoning"), row("b", "theirs", 8., "Spatial Reasoning"),
            row("c", "ours", 1.), row("c", "theirs", 7.)]
