"""benchmark.py and judge.py: the manifest, what a service is asked and what is taken of its answers, local judges."""

import json
import re

import numpy as np
import pytest
import torch

from rvebench import judge
from tiny import world
from rvebench.ask import Client, Missing
from critic import Critic
from common.files import BadInput
from common.video import from_bytes, read_pixels, read_video, write_video
from endpoint import Endpoint
from rvebench.benchmark import Sample, read_manifest, read_methods
from rvebench.export_world import export_world
from rvebench.export_world import main as export_main
from rvebench.judge import ServiceJudge, consistency_question, pick_frames, quality_question

EDIT, CONTEXT = "Temporal Reasoning", "Causal Reasoning"


def grey(path, n=6, height=24, width=40, start=20):
    """n flat frames, each 20 brighter than the one before."""
    write_video(path, from_bytes(torch.stack([torch.full((3, height, width), start + 20 * k) for k in range(n)])))


@pytest.fixture
def bench(tmp_path):
    """Two samples, and a method's folder that has the first of them."""
    for name in ("a", "b", "t"):
        grey(tmp_path / f"{name}.mp4")
    row = lambda source, **more: dict(source_video_path=source, target_video_path="t.mp4", **more)
    rows = [row("a.mp4", id="one", subset="x", instruction="dusk", type=EDIT),
            row("b.mp4", id="two", instruction="so?", type=CONTEXT)]
    (tmp_path / "bench.jsonl").write_text("".join(json.dumps(r) + "\n\n" for r in rows))
    grey(tmp_path / "ours/one.mp4", start=40)
    return tmp_path


# -------------------------------------------------------------------------------------------------- the benchmark

def test_the_manifest(bench):
    one, two = read_manifest(bench / "bench.jsonl")
    assert (one.id, one.subset, one.source, one.target) == ("one", "x", bench / "a.mp4", bench / "t.mp4")
    assert two.subset == "icvg" and one.scores == ("EA", "PC", "GN", "GR") and two.scores == ("EA", "GN", "GR")
    assert read_manifest(bench / "bench.jsonl", "icvg") == [two]
    with pytest.raises(BadInput, match="--subset y: .* choose one of x, icvg"):
        read_manifest(bench / "bench.jsonl", "y")


@pytest.mark.parametrize("change, words", [
    ({"id": None}, "the id is null"), ({"id": "a/b"}, "the id is"), ({"id": ".x"}, "the id is"), ({"id": 3}, "is 3"),
    ({"id": "two"}, "'two' is there twice"), ({"subset": 4}, "the subset is 4"), ({"type": "Magic"}, "unknown type"),
    ({"instruction": " "}, "the field 'instruction'"), ({"target_video_path": "none.mp4"}, "none.mp4: there is no")])
def test_a_bad_line_of_the_manifest(bench, change, words):
    file = bench / "bench.jsonl"
    first = json.loads(file.read_text().splitlines()[0])
    file.write_text(file.read_text() + json.dumps({**first, "id": "three", **change}) + "\n")
    with pytest.raises(BadInput, match=f"bench.jsonl:5: .*{re.escape(words)}"):
        read_manifest(file)


def test_the_methods(bench):
    assert read_methods([f"ours={bench}/ours", f"a=b={bench}"][:1]) == {"ours": bench / "ours"}
    for named, words in ((["ours"], "NAME=DIR"), ([f"={bench}"], "NAME=DIR"), (["x=nowhere"], "no such folder"),
                         ([f"x={bench}", f"x={bench}"], "two methods named x"), ([f"a/b={bench}"], "NAME=DIR")):
        with pytest.raises(BadInput, match=words):
            read_methods(named)


# ------------------------------------------------------------------------------------------------- what is shown

def test_frames_are_spaced_uniformly(bench):
    means = lambda n: [round(float(x.mean())) for x in pick_frames(bench / "a.mp4", n)]
    assert means(6) == pytest.approx([20, 40, 60, 80, 100, 120], abs=3)
    assert means(2) == pytest.approx([20, 120], abs=3) and means(3) == pytest.approx([20, 60, 120], abs=3)
    with pytest.raises(BadInput, match="has 6 frames and 7 are needed"):
        pick_frames(bench / "a.mp4", 7)
    grey(bench / "wide.mp4", 2, 64, 1024)
    assert pick_frames(bench / "wide.mp4", 2)[0].shape == (32, 512, 3)


def test_the_two_questions(bench):
    one, two = read_manifest(bench / "bench.jsonl")
    source, edited = pick_frames(one.source, 2), pick_frames(bench / "ours/one.mp4", 2)
    consistency, quality = consistency_question(one, source, edited), quality_question(one, edited)
    pictures = lambda q: [p for p in q.parts if not isinstance(p, str)]
    assert all(map(np.array_equal, pictures(consistency), source + edited)) and len(pictures(consistency)) == 4
    assert all(map(np.array_equal, pictures(quality), edited)) and len(pictures(quality)) == 2
    said = lambda q: " ".join(p for p in q.parts if isinstance(p, str))
    assert "dusk" in said(consistency) and "dusk" not in said(quality)                     # quality is judged by sight
    assert list(consistency.schema["properties"]) == ["reason", "EA", "PC"] == consistency.schema["required"]
    assert list(quality.schema["properties"]) == ["reason", "GN", "GR"]
    context = consistency_question(two, source, edited)
    assert list(context.schema["properties"]) == ["reason", "EA"] and "PC" not in said(context)
    assert context.key("m") != consistency.key("m") != consistency_question(one, source, edited, 1).key("m")


@pytest.mark.parametrize("reply, words", [
    ('{"reason": "r", "EA": 11, "PC": 3}', "EA is 11"), ('{"reason": "r", "EA": -0.5, "PC": 3}', "EA is -0.5"),
    ('{"reason": "r", "EA": "seven", "PC": 3}', 'EA is "seven"'), ('{"reason": "r", "EA": "11", "PC": 3}', "EA is 11"),
    ('{"reason": "r", "EA": true, "PC": 3}', "EA is true"),
    ('{"reason": "r", "EA": NaN, "PC": 3}', "EA is NaN"), ('{"reason": "r", "EA": 3}', "PC is null"),
    ('{"EA": 3, "PC": 3}', "no reason"), ("7", "no JSON object"), ("seven", "not JSON")])
def test_what_is_no_score(reply, words):
    with pytest.raises(ValueError, match=words):
        judge.validator(("EA", "PC"))(reply)
    good = '{"reason": "r", "EA": 0, "PC": 10}'
    assert judge.validator(("EA",))('{"reason": "r", "EA": "7.5"}')["EA"] == 7.5
    assert judge.validator(("EA", "PC"))(good) == {"EA": 0, "PC": 10, "reason": "r", "reply": good}


def test_verdicts(bench):
    """Good, half refused and unreadable, in the order of the jobs; the same quality question is one call."""
    one, two = read_manifest(bench / "bench.jsonl")
    (bench / "ours/broken.mp4").write_bytes(b"no video")
    jobs = [(one, bench / "ours/one.mp4"), (one, bench / "ours/broken.mp4"), (two, bench / "ours/one.mp4"),
            (one, bench / "missing.mp4")]

    def answer(body, n):
        names = list(body["response_format"]["json_schema"]["schema"]["properties"])[1:]
        if names == ["EA"]:
            return {"message": {"role": "assistant", "content": None, "refusal": "no"}}
        return json.dumps({"reason": ",".join(names), **{name: 3 + k for k, name in enumerate(names)}})

    with Endpoint(answer) as server:
        client = Client(bench / "replies.jsonl", "m", server.url, tries=2)
        service = ServiceJudge(jobs, 3)
        good, broken, half, missing = [only for only, in service.verdicts(client.ask(service.questions()))]
        said = {"consistency": '{"reason": "EA,PC", "EA": 3, "PC": 4}', "quality": '{"reason": "GN,GR", "GN": 3, "GR": 4}'}
        assert good == {"EA": 3, "PC": 4, "GN": 3, "GR": 4, "reasons": ["EA,PC", "GN,GR"], "replies": said}
        assert isinstance(broken, Missing) and "cannot be read to its end" in broken.reason
        assert half == {"GN": 3, "GR": 4, "reasons": ["GN,GR"], "missing": ["consistency: refused: no"],
                        "unanswered": False, "replies": said | {"consistency": ""}}
        assert "no such video" in missing.reason
        assert len(server.requests) == 2 + 2             # one of quality for both jobs, the refused one is asked twice
        client.close()
        service = ServiceJudge(jobs[:1], 3, repeat=2)
        first, second = service.verdicts(Client(bench / "replies.jsonl", "m", server.url).ask(service.questions()))[0]
        assert first == second == good and len(server.requests) == 4 + 2
        client = Client(bench / "replies.jsonl", "m", server.url, 2.5, 10)
        counted = client.count(ServiceJudge(jobs[:1], 3, repeat=3).questions())
    assert counted["questions"] == 6 and counted["calls"] == 2 and counted["cost"] > 0


def test_both_halves_missing_is_no_verdict():
    late, refused = Missing("error 503: busy", unanswered=True), Missing("refused: no", reply="I will not")
    assert judge.join_halves(late, refused) \
        == Missing("consistency: error 503: busy; quality: refused: no", True, "I will not")
    assert judge.join_halves(refused, refused) \
        == Missing("consistency: refused: no; quality: refused: no", False, "I will not\nI will not")
    quality = {"GN": 1., "GR": 2., "reason": "r", "reply": "{}"}
    assert judge.join_halves(late, quality) == {"GN": 1., "GR": 2., "reasons": ["r"], "unanswered": True,
                                                "replies": {"consistency": "", "quality": "{}"},
                                                "missing": ["consistency: error 503: busy"]}


def test_the_prompt_of_a_page_is_the_one_that_is_asked(bench):
    one, two = read_manifest(bench / "bench.jsonl")
    texts = judge.prompts(3)
    for sample in (one, two):
        about = texts[sample.type]
        asked = consistency_question(sample, ["[3 frames]"], ["[3 frames]"])
        assert about["consistency"].replace("{instruction}", sample.instruction) \
            == "\n".join([asked.messages()[0]["content"], "", *asked.parts])
        assert sample.instruction not in about["quality"] and "GN, generation naturalness" in about["quality"]


# ------------------------------------------------------------------------------------------------------ local judges

def test_the_world_as_a_benchmark_and_its_oracle(tmp_path):
    export_main(["--n", "4", "--out", str(tmp_path)])
    samples = read_manifest(tmp_path / "bench.jsonl")
    assert [s.id for s in samples] == ["rave-test-0", "icvg-test-0", "rave-test-1", "icvg-test-1"]
    for s in samples:
        triplet = world.make_triplet(int(s.id[-1]), s.subset, "test")
        assert s.instruction == triplet.instruction and read_pixels(s.source).shape == (9, 32, 32, 3)
        right, idle = judge.oracle(s, s.target), judge.oracle(s, s.source)
        assert set(right) == set(s.scores) and right["EA"] > 6 > 4 > idle["EA"]
        assert right == world.judge(triplet, read_video(s.target, 9, 32, 32))


def test_the_oracle_knows_only_its_world(bench):
    one, _ = read_manifest(bench / "bench.jsonl")
    other = Sample("rave-test-0", "rave", EDIT, "something else", one.source, one.target)
    for sample in (one, other):
        with pytest.raises(BadInput, match="choose another --judge"):
            judge.oracle(sample, one.target)


def test_a_local_vlm_says_yes_or_no(tiny, tmp_path):
    export_world(tmp_path, 2)
    sample = read_manifest(tmp_path / "bench.jsonl")[0]
    said = judge.vila(tiny)(sample, sample.target)
    source, target = (read_video(x, 9, 32, 32)[None] for x in (sample.source, sample.target))
    with torch.no_grad():
        margin = Critic(tiny).margin(source, target, [sample.instruction]).item()
    assert set(said) == {"Yes"} and said["Yes"] == pytest.approx(10 / (1 + np.exp(-margin)), rel=1e-5)
