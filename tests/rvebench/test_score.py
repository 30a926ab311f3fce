"""rvebench.score: the arithmetic by hand; the command with each judge, and after a stop."""

import json
import math
import re
from dataclasses import replace
from functools import partial

import pytest
import torch

from common.files import BadInput
from common.video import write_video
from endpoint import Endpoint
from rvebench import judge, score
from rvebench.benchmark import read_manifest
from rvebench.export_world import main as export_main
from rvebench.report import judged_columns, read_human, tables
from rvebench.scores import as_markdown, summarise, win_rates
from scored import ABOUT, row
from tiny import world


def cells(text, first):
    """The cells of the table lines that begin with `first`."""
    lines = [line for line in text.splitlines() if re.match(rf"\| *{first} *\|", line)]
    return [[cell.strip() for cell in line.split("|")[1:-1]] for line in lines]


# ---------------------------------------------------------------------------------- the arithmetic

def test_ratings_of_people(tmp_path):
    file = tmp_path / "r.csv"
    file.write_text("id,method,EA,who\na,m,3,x\na,m,5,y\nb,m,,x\n")
    assert read_human(file) == {"EA": {("a", "m"): 4}}
    for text, words in (("id,EA\na,1\n", "needs the columns"),
                        ("id,method,EA\na,m,1\nb,m,nan\n", ":3: .*nan")):
        file.write_text(text)
        with pytest.raises(BadInput, match=f"--human .*r.csv.*{words}"):
            read_human(file)


def table_of(rows, human=None, methods=("ours", "theirs")):
    about = ABOUT | {"methods": list(methods)}
    parts = summarise(rows, about["methods"], judged_columns(about))
    return as_markdown(tables(rows, about, parts, human or {}))


def test_tables_by_hand():
    spatial = "Spatial Reasoning"
    rows = [row("1", "ours", 6, quality={"TF": .5}), row("2", "ours", 8, quality={"TF": .7}),
            row("1", "theirs", 5), row("2", "theirs", None, failed="gone <x>"),
            row("3", "ours", 1, spatial, quality={}), row("3", "theirs", 3, spatial, quality={})]
    human = {"EA": {("1", "ours"): 3, ("2", "ours"): 4, ("3", "ours"): 1, ("9", "ours"): 1}}
    text = table_of(rows, human)
    assert [c[1:5] for c in cells(text, "ours")][:3] == [
        ["Temporal Reasoning", "2", "0", "7.00"], [spatial, "1", "0", "1.00"],
        ["all", "3", "0", "5.00"]]
    assert [c[1:5] for c in cells(text, "theirs")][2] == ["all", "2", "1", "4.00"]
    assert cells(text, "ours - theirs")[0][:3] == ["ours - theirs", "2", "-0.50"]    # of both
    assert cells(text, "ours")[3] == ["ours", "2", "0.600"]              # quality: TF alone
    assert "theirs: 1 of 3 failed and are not scored:\n\n- 2: gone <x>\n" in text
    assert cells(text, "EA") == [["EA", "3", "1.00 [1.00, 1.00]"]]       # judge and people
    assert cells(text, "ReViSE")[0][:3] == ["ReViSE", "6.1605", "5.4086"]
    assert "--references" in text                        # of nothing changed
    other = table_of([r | {"subset": "mine", "video": r["source"]} for r in rows])
    assert "| ReViSE" not in other and "--references" not in other
    late = row("1", "ours", None, failed="judge: error 503") | {"missing": ["503"], "unanswered": 1}
    text = table_of([late, row("2", "ours", 5) | {"missing": ["quality: truncated"]}])
    assert re.search("1 judgements are missing: refused, cut off.*--judge-tokens", text)
    assert "1 judgements are missing, for the endpoint did not answer" in text


def test_win_rates_by_hand():
    ranks = [dict(a=1, b=2, c=3), dict(a=1, b=3, c=2), dict(a=2, b=1), dict(a=1, b=1, c=3)]
    rates = win_rates(ranks)
    assert rates["a", "b"][0] == (1 + 1 + 0 + .5) / 4 == 1 - rates["b", "a"][0]
    assert rates["b", "c"][0] == pytest.approx(2 / 3) and rates["a", "c"][0] == 1
    assert len(rates) == 6 and math.isnan(rates["a", "c"][1])            # of three
    # Two people who agree with themselves on 8 samples say as little as two judgements.
    ranks, clusters = [], []
    for rater, said in (("x", dict(a=1, b=2)), ("y", dict(a=2, b=1))):
        ranks += [said] * 8
        clusters += [(rater, f"s{k}") for k in range(8)]
    assert win_rates(ranks, clusters)["a", "b"] == (.5, 0, 1)            # one of them, or both


# ------------------------------------------------------------------------------------- the command

@pytest.fixture(scope="module")
def bench(tmp_path_factory):
    """Four samples of the tiny world; a method with a missing, a broken, a short, a good video."""
    folder = tmp_path_factory.mktemp("world")
    export_main(["--n", "4", "--out", str(folder)])
    flawed = folder / "flawed"
    flawed.mkdir()
    for name, cut in (("rave-test-0", None), ("icvg-test-0", -300)):
        whole = (folder / f"source/{name}.mp4").read_bytes()
        (flawed / f"{name}.mp4").write_bytes(whole[:cut])
    write_video(flawed / "rave-test-1.mp4", torch.zeros(1, 3, 32, 32))
    return folder


def run(bench, out, *flags):
    """The rows and the tables of a command."""
    score.main(["--manifest", f"{bench}/bench.jsonl", "--out", str(out), *map(str, flags)])
    rows = [json.loads(line) for line in (out / "scores.jsonl").read_text().splitlines()]
    return rows, (out / "table.md").read_text()


def videos(bench, *names):
    return [word for name in names for word in ("--videos", f"{name}={bench / name}")]


def test_the_oracle_judges_three_methods(bench, tmp_path, monkeypatch):
    flags = *videos(bench, "target", "source", "flawed"), "--judge", "oracle"
    rows, text = run(bench, tmp_path, *flags)
    by = {(r["method"], r["id"]): r for r in rows}
    assert len(rows) == len(by) == 12
    assert by["target", "rave-test-0"]["Overall"] > 7 > 3 > by["source", "rave-test-0"]["Overall"]
    assert by["flawed", "rave-test-0"]["EA"] == by["source", "rave-test-0"]["EA"]
    for name, why in (("icvg-test-0", "to its end"), ("rave-test-1", "has 1 frames"),
                      ("icvg-test-1", "no such video")):
        lost = by["flawed", name]
        assert why in lost["failed"] and lost["EA"] is None and lost["quality"] == {}
    video = by["target", "icvg-test-1"]["video"]
    assert (tmp_path / video).resolve() == bench / "target/icvg-test-1.mp4"
    counts = [c[2:4] for c in cells(text, "flawed") if c[1] == "all"]
    assert counts == [["1", "1"], ["0", "2"]] and "flawed: 3 of 4 failed" in text

    monkeypatch.setattr(judge, "read_video", None)       # a rerun looks at nothing again
    measured = [{"video_path": f"{bench}/target/{name}.mp4", "video_results": .9}
                for name in ("rave-test-0", "rave-test-1")]
    said = tmp_path / "vbench/x_eval_results.json"
    said.parent.mkdir()
    said.write_text(json.dumps({"motion_smoothness": [.9, measured]}))
    _, vbench = run(bench, tmp_path, *flags, "--vbench-results", said.parent)
    assert cells(vbench, "target")[3][-1] == "0.900"
    with pytest.raises(BadInput, match="measures none of these videos"):
        run(bench, tmp_path / "new", *videos(bench, "source"), "--vbench-results", said.parent)
    assert run(bench, tmp_path, *flags) == (rows, text)
    with pytest.raises(SystemExit, match="nothing was scored: .*there is no such video"):
        run(bench, tmp_path / "none", "--videos", f"empty={said.parent}")


def test_the_world_as_a_benchmark_and_its_oracle(bench):
    samples = read_manifest(bench / "bench.jsonl")
    assert [s.id for s in samples] == ["rave-test-0", "icvg-test-0", "rave-test-1", "icvg-test-1"]
    for s in samples:
        assert s.instruction == world.make_triplet(int(s.id[-1]), s.subset, "test").instruction
        right, idle = judge.oracle(s, s.target), judge.oracle(s, s.source)
        assert set(right) == set(s.scores) and right["EA"] > 6 > 4 > idle["EA"]
    with pytest.raises(BadInput, match="choose another --judge"):        # no sample of the world's
        judge.oracle(replace(s, instruction="other"), s.target)


def test_a_checkpoint_makes_its_videos(bench, tiny, tiny_dir, tmp_path):
    rows, _ = run(bench, tmp_path, "--checkpoint", tiny_dir, "--subset", "icvg", "--steps", 1,
                  "--guidance", 0)
    assert [(r["id"], r["method"], r["failed"], set(r["quality"])) for r in rows] == [
        (name, "tiny", None, {"TF"}) for name in ("icvg-test-0", "icvg-test-1")]
    kept, gone = [tmp_path / r["video"] for r in rows]
    before, contents = kept.stat().st_mtime_ns, [kept.read_bytes(), gone.read_bytes()]
    gone.unlink()
    samples = read_manifest(bench / "bench.jsonl", "icvg")
    again = partial(score.generate, tiny, samples, kept.parent, 1, 0)
    assert again(seed=0, batch=2) == {} and gone.read_bytes() == contents[1]
    assert kept.stat().st_mtime_ns == before             # only what was gone is made
    again(seed=5, batch=2)
    assert kept.read_bytes() != contents[0]              # other settings: afresh


def test_a_service_that_answers_as_they_do(bench, tmp_path, monkeypatch):
    """Garbage and 11 are missing, and the other half counts; a reply is paid for once."""
    monkeypatch.delenv("OPENAI_API_KEY", raising=False)
    lines = map(json.loads, (bench / "bench.jsonl").open())
    instruction_of = {line["id"]: line["instruction"] for line in lines}

    def answer(body, n):
        said = " ".join(part.get("text", "") for part in body["messages"][1]["content"])
        if instruction_of["icvg-test-0"] in said:
            return "what?"
        if instruction_of["rave-test-1"] in said:
            return '{"reason": "", "EA": 11, "PC": 1}'
        names = list(body["response_format"]["json_schema"]["schema"]["properties"])[1:]
        return json.dumps({"reason": "<b>" + ",".join(names),
                           **{name: 5 + k for k, name in enumerate(names)}})
    with Endpoint(answer) as server:
        flags = (*videos(bench, "target"), "--judge", "openai", "--judge-frames", 3,
                 "--base-url", server.url)
        rows, text = run(bench, tmp_path, *flags)
        paid = len(server.requests)
        assert run(bench, tmp_path, *flags) == (rows, text) and len(server.requests) == paid
        assert [len(r["missing"]) for r in rows] == [0, 1, 1, 0]
        assert [r["EA"] for r in rows] == [5, None, None, 5]
        assert [r["PC"] for r in rows] == [6, None, None, None] and rows[0]["Overall"] == 5
        assert rows[0]["reasons"] == ["<b>EA,PC", "<b>GN,GR"]
        assert "not JSON" in rows[1]["missing"][0] and "EA is 11" in rows[2]["missing"][0]
        assert rows[2]["Overall"] is None and rows[2]["GN"] == 5
        assert rows[1]["replies"][0]["consistency"] == "what?" and "2 judgements are" in text
        asked = json.loads((tmp_path / "about.json").read_text())["asked"]
        assert asked["frames"] == 3 and rows[1]["type"] in asked["prompts"]
