"""benchmark.py and judge.py: the manifest, what a service is asked, what is taken of its words."""

import json
from types import SimpleNamespace

import numpy as np
import pytest
import torch

from common.files import BadInput
from common.video import from_bytes, write_video
from rvebench import judge
from rvebench.ask import Missing
from rvebench.benchmark import read_manifest
from rvebench.judge import ask_service, questions, show, verdict

EDIT, CONTEXT = "Temporal Reasoning", "Causal Reasoning"


def grey(path, n=6, height=24, width=40, start=20):
    """n flat frames, each 20 brighter than the one before."""
    frames = [torch.full((3, height, width), start + 20 * k) for k in range(n)]
    write_video(path, from_bytes(torch.stack(frames)))


@pytest.fixture
def bench(tmp_path):
    """Two samples, and a method's folder that has the first of them."""
    for name in ("a", "b", "t"):
        grey(tmp_path / f"{name}.mp4")
    rows = [dict(id="one", subset="x", source_video_path="a.mp4", instruction="dusk", type=EDIT),
            dict(id="two", source_video_path="b.mp4", instruction="so?", type=CONTEXT)]
    lines = [json.dumps(row | {"target_video_path": "t.mp4"}) + "\n\n" for row in rows]
    (tmp_path / "bench.jsonl").write_text("".join(lines))
    grey(tmp_path / "ours/one.mp4", start=40)
    return tmp_path


# ----------------------------------------------------------------------------------- the benchmark

def test_the_manifest(bench):
    one, two = read_manifest(bench / "bench.jsonl")
    assert (one.id, one.subset, one.source, one.target) \
        == ("one", "x", bench / "a.mp4", bench / "t.mp4")
    assert one.scores == ("EA", "PC", "GN", "GR") and two.scores == ("EA", "GN", "GR")
    assert two.subset == "icvg" and read_manifest(bench / "bench.jsonl", "icvg") == [two]
    with pytest.raises(BadInput, match="--subset y: .* choose one of x, icvg"):
        read_manifest(bench / "bench.jsonl", "y")
    good = (bench / "bench.jsonl").read_text()
    for change, words in (({"id": "a/b"}, "the id is"), ({"id": "two"}, "'two' is there twice"),
                          ({"target_video_path": "none.mp4"}, "none.mp4: there is no")):
        bad = {**json.loads(good.splitlines()[0]), "id": "three", **change}
        (bench / "bench.jsonl").write_text(good + json.dumps(bad) + "\n")
        with pytest.raises(BadInput, match=f"bench.jsonl:5: .*{words}"):
            read_manifest(bench / "bench.jsonl")


# ----------------------------------------------------------------------------------- what is shown

def test_what_is_shown(bench):
    assert [round(frame.mean()) for frame in show(bench / "a.mp4", 3)] \
        == pytest.approx([20, 60, 120], abs=3)           # of 20, 40, ... 120
    grey(bench / "wide.mp4", 2, 64, 1024)
    assert show(bench / "wide.mp4", 2)[0].shape == (32, 512, 3)


def test_the_two_questions(bench):
    one, two = read_manifest(bench / "bench.jsonl")
    source, edited = show(one.source, 2), show(bench / "ours/one.mp4", 2)
    consistency, quality = questions(one, source, edited).values()
    pictures = [part for part in consistency.parts if not isinstance(part, str)]
    assert all(map(np.array_equal, pictures, source + edited)) and len(quality.parts) == 2 + 2
    assert "dusk" in consistency.parts[0] and "dusk" not in quality.parts[0]     # judged by sight
    assert consistency.schema["required"] == ["reason", "EA", "PC"]
    assert quality.schema["required"] == ["reason", "GN", "GR"]
    context = questions(two, source, edited)["consistency"]
    assert context.schema["required"] == ["reason", "EA"] and "PC" not in context.parts[0]
    black = [np.zeros((4, 4, 3), np.uint8)]              # the keys of replies that are paid for
    keys = [question.key("m", "e")[:12] for question in questions(one, black, black).values()]
    assert keys == ["85ac69eda2e3", "9d88fedc976b"]


def test_what_is_a_score():
    validate = judge.validator(("EA", "PC"))
    good = '{"reason": "r", "EA": 0, "PC": "7.5"}'       # some models say it as a text
    assert validate(good) == {"EA": 0, "PC": 7.5, "reason": "r", "reply": good}
    for bad in ('"11"', "-0.5", '"seven"', "true", "NaN", "null"):
        with pytest.raises(ValueError, match="EA is .*no number from 0 to 10"):
            validate(f'{{"reason": "r", "EA": {bad}, "PC": 3}}')


def test_verdicts_by_hand():
    full = verdict({"EA": 9., "PC": 4., "GN": 4., "GR": 9.})
    assert full["Geometric mean"] == pytest.approx(1296 ** .25) and full["Overall"] == 4
    context = verdict({"EA": 4., "GN": 9., "GR": 10.})
    assert context["PC"] is None and context["Overall"] == 6
    assert verdict({})["failed"] is None                 # no judge was asked


def test_what_is_not_answered_and_what_cannot_be_asked(bench):
    one, _ = read_manifest(bench / "bench.jsonl")
    client = SimpleNamespace(ask=lambda question: Missing("late", unanswered=True))
    found = ask_service(client, one, bench / "ours/one.mp4", 3)
    assert found["unanswered"] == 1 and found["EA"] is None
    assert found["failed"] == "judge: consistency: late; quality: late"
    short = ask_service(None, one, bench / "ours/one.mp4", 99)           # nobody is asked
    assert "has 6 frames" in short["failed"] and not short["unanswered"]
