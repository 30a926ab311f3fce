"""rvebench.score: the arithmetic by hand, and the command with each judge, after stops, on what is missing."""

import json
import math
import os
import re
import runpy
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
import scipy.stats
import torch

from rvebench import judge, score
from rvebench.ask import Missing
from rvebench.export_world import export_world
from rvebench.score import score_row
from rvebench.tables import judge_variance, judged_columns, read_human, study_table, tables
from common.files import BadInput
from common.video import read_pixels, write_video
from endpoint import Endpoint
from rvebench.quality import temporal_flickering
from common.intervals import COLUMNS, interval
from rvebench.scores import (as_markdown, correlation, judge_and_people, summarise,
                             win_rates)

SCRIPT = Path(score.__file__)
ROOT = SCRIPT.parents[1]
ENV = {**os.environ, "OMP_NUM_THREADS": "1"}


def rows_of(folder):
    return [json.loads(line) for line in (folder / "scores.jsonl").read_text().splitlines()]


def cells(text, first):
    """The cells of the table lines that begin with `first`."""
    lines = [line for line in text.splitlines() if re.match(rf"\| *{first} *\|", line)]
    return [[c.strip() for c in line.split("|")[1:-1]] for line in lines]


# ------------------------------------------------------------------------------------------------- the arithmetic

def test_score_row_by_hand():
    one = {"EA": 9., "PC": 4., "GN": 4., "GR": 9., "reasons": ["a", "b"]}
    row = score_row([one, {**one, "EA": 1.}, Missing("refused")])
    assert row["failed"] is None and row["missing"] == ["refused"] and row["reasons"] == ["a", "b"] * 2
    assert [row[c] for c in ("EA", "PC", "GN", "GR")] == [5, 4, 4, 9]
    assert row["Overall"] == (4 + 2) / 2                 # sqrt(4 * 4) and sqrt(1 * 4): of each time, then the mean
    assert row["Geometric mean"] == pytest.approx((1296 ** .25 + 144 ** .25) / 2)
    context = score_row([{"EA": 4., "GN": 9., "GR": 10., "reasons": []}])
    assert context["PC"] is None and context["Overall"] == 6
    half = score_row([{"GN": 4., "GR": 9., "reasons": ["b"], "missing": ["consistency: late"], "unanswered": True},
                      one])
    assert half["GN"] == 4 and half["EA"] == 9 and half["Overall"] == 4 and half["missing"] == ["consistency: late"]
    assert half["unanswered"] == 1 and half["failed"] is None
    lost = score_row([Missing("late", unanswered=True), Missing("cut")])
    assert lost["unanswered"] == 1
    assert lost["failed"] == "judge: cut" and lost["EA"] is lost["Overall"] is None and lost["repeats"] == []
    assert score_row([{"Yes": 7.}])["Yes"] == 7 and score_row([{"Yes": 7.}])["EA"] is None
    assert score_row([])["failed"] is None               # no judge was asked


def test_judge_variance_by_hand():
    row = lambda *values: {"repeats": [{"EA": v} for v in values]}
    assert judge_variance([row(1, 3), row(5, 5), row(7)], "EA") == 1                       # 2 and 0; the third was once
    assert math.isnan(judge_variance([row(1), row()], "EA"))


def test_correlation():
    a = np.arange(30.)
    assert correlation(a, a ** 3) == pytest.approx((1, 1, 1)) and correlation(a, -a)[0] == pytest.approx(-1)
    rho, low, high = correlation([1, 2, 3, 4], [1, 3, 2, 4])
    assert rho == pytest.approx(1 - 6 * 2 / 60) and low <= rho <= high                   # 1 - 6 sum d^2 / (n (n^2 - 1))
    for few in (([1, 2], [1, 2]), ([1, 1, 1], [1, 2, 3])):
        assert all(map(math.isnan, correlation(*few)))


def test_ratings_of_people(tmp_path):
    file = tmp_path / "r.csv"
    file.write_text("id,method,EA,who\na,m,3,x\na,m,5,y\nb,m,,x\n")
    assert read_human(file) == {"EA": {("a", "m"): 4}}
    for text, words in (("id,EA\na,1\n", "needs the columns"), ("id,method\na,m\n", "needs the columns"), ("", "needs"),
                        ("id,method,EA\na,m,good\n", ":2: .*good"), ("id,method,EA\na,m,1\nb,m,nan\n", ":3: .*nan")):
        file.write_text(text)
        with pytest.raises(BadInput, match=f"--human .*r.csv.*{words}"):
            read_human(file)


def table_row(id, method, ea=None, failed=None, type="Temporal Reasoning", frames=9, **quality):
    """A row of scores.jsonl."""
    return {"id": id, "method": method, "subset": "rave", "type": type, "failed": failed, "missing": [],
            "repeats": [], "unanswered": 0, "source": f"source/{id}.mp4", "video": f"{method}/{id}.mp4", "quality": quality,
            "frames": frames, **dict.fromkeys((*COLUMNS, "Yes")), "EA": ea, "Overall": ea}


def tables_of(rows, about, human=None):
    parts = summarise(rows, about["methods"], judged_columns(about))
    return tables(rows, about, parts, judge_and_people(rows, human or {}))


ABOUT = {"head": "h", "judge": "openai", "repeat": 1, "methods": ["a", "b"], "why": {"MS": "give it"},
         "labels": {column: column for column in ("TF", "SC", "BC", "OC", "ViCLIP-T", "MS")}}


def test_tables_by_hand():
    rows = [table_row("1", "a", 6, TF=.5), table_row("2", "a", 8, TF=.7), table_row("1", "b", 5, TF=.1),
            table_row("2", "b", failed="gone <x>"), table_row("3", "a", 1, type="Spatial Reasoning"),
            table_row("3", "b", 3, type="Spatial Reasoning")]
    blocks = tables_of(rows, ABOUT, {"EA": {("1", "a"): 3, ("2", "a"): 4, ("3", "a"): 1, ("9", "a"): 1}})
    text = as_markdown(blocks)
    assert [c[1:5] for c in cells(text, "a")][:3] == [
        ["Temporal Reasoning", "2", "0", "7.00"], ["Spatial Reasoning", "1", "0", "1.00"], ["all", "3", "0", "5.00"]]
    assert [c[1:5] for c in cells(text, "b")][:3] == [
        ["Temporal Reasoning", "1", "1", "5.00"], ["Spatial Reasoning", "1", "0", "3.00"], ["all", "2", "1", "4.00"]]
    assert cells(text, "a - b")[0][:4] == ["a - b", "2", "-0.50", "-"]                     # over the samples of both
    assert cells(text, "a")[3] == ["a", "2", "0.600"] + ["-"] * 5                          # quality
    assert "none below 5" in text                        # why so few samples have no interval
    assert "Empty columns: MS: give it." in text and "b: 1 of 3 failed and are not scored:\n\n- 2: gone <x>\n" in text
    assert cells(text, "EA") == [["EA", "3", "1.00 [1.00, 1.00]"]]                         # judge and people
    assert cells(text, "ReViSE")[0][:6] == ["ReViSE", "6.1605", "5.4086", "6.6185", "7.3123", "4.6689"]
    assert "another judge" in text and "other data" in text
    other = as_markdown(tables_of([{**r, "subset": "mine"} for r in rows], ABOUT))
    assert "| ReViSE" not in other                       # the paper has no such subset


def test_intervals_of_few_samples():
    """Five to 29 samples: Student's t, as scipy's own; a 95 % interval covers the truth about 95 times of 100."""
    for n in (0, 1, 4):
        assert all(map(math.isnan, interval(range(n))[1:]))
    x = [3., 5, 4, 7, 9]
    low, high = scipy.stats.ttest_1samp(x, 0).confidence_interval(.95)
    assert interval(x) == pytest.approx((5.6, low, high))
    rng = np.random.default_rng(0)
    for n in (5, 10, 29, 30):
        covered = [low <= 1 <= high for _, low, high in (interval(rng.normal(1, 2, n)) for _ in range(400))]
        assert .92 <= np.mean(covered) <= .98, n
    rows = [table_row(str(k), "a", v) for k, v in enumerate(x)]
    line, = [c for c in cells(as_markdown(tables_of(rows, {**ABOUT, "methods": ["a"]})), "a") if c[1] == "all"]
    assert line[4] == f"5.60 [{low:.2f}, {high:.2f}]"


def test_clips_of_different_lengths_are_weighted_as_vbench_does():
    """VBench's loop: it adds up the similarities of all clips' frames, and divides by their number."""
    clips = {"short": [0.9, 0.1], "long": [0.05] * 10}   # similarities of frames 1, 2, ... of each clip
    similarity, count = 0., 0
    for values in clips.values():
        for value in values:
            similarity, count = similarity + value, count + 1
    rows = [table_row(name, "a", 5, frames=len(values) + 1, SC=float(np.mean(values)), TF=1.)
            for name, values in clips.items()]
    text = as_markdown(tables_of(rows, {**ABOUT, "methods": ["a"]}))
    assert f"{similarity / count:.3f}" == "0.125" and ["a", "0.125"] in cells(text, "a")
    assert ["a", "2", "1.000", "0.275"] in [c[:4] for c in cells(text, "a")]               # each clip once
    same = as_markdown(tables_of([{**row, "frames": 9} for row in rows], {**ABOUT, "methods": ["a"]}))
    assert "weights them by frames" in text and "weights them by frames" not in same


def test_what_is_missing_is_told_apart():
    late = {**table_row("1", "a", failed="judge: error 503"), "missing": ["error 503", "error 503"], "unanswered": 2}
    cut = {**table_row("2", "a", 5), "missing": ["quality: truncated"], "unanswered": 0}
    text = as_markdown(tables_of([late, cut], ABOUT))
    assert re.search("1 judgements are missing: refused, cut off.*--judge-tokens", text)
    assert "2 judgements are missing, for the endpoint did not answer" in text
    assert "1 edits are judged in part" in text
    assert "--references" in text                        # PC of a video in which nothing was changed
    idle = as_markdown(tables_of([{**cut, "video": cut["source"]}], ABOUT))
    assert "by construction" not in idle


def test_win_rates_by_hand():
    ranks = [dict(a=1, b=2, c=3), dict(a=1, b=3, c=2), dict(a=2, b=1), dict(a=1, b=1, c=3)]
    rates = win_rates(ranks)
    assert rates["a", "b"][0] == (1 + 1 + 0 + .5) / 4 and rates["b", "a"][0] == 1 - rates["a", "b"][0]
    assert rates["b", "c"][0] == pytest.approx(2 / 3) and rates["a", "c"][0] == 1 and len(rates) == 6
    assert math.isnan(rates["a", "c"][1])                # of three
    mean, low, high = win_rates([dict(a=1, b=2)] * 50 + [dict(a=2, b=1)] * 50)["a", "b"]
    assert mean == .5 and low == pytest.approx(.4, abs=.011) and high == pytest.approx(.6, abs=.011)   # binomial
    assert win_rates([]) == {}
    lines = study_table({"X": ranks[:1], "Y": []}, {"X": win_rates(ranks[:1]), "Y": {}})
    assert lines[0] == ["wins over", "N", "X", "Y"] and ["c over a", "1", "0%", "-"] in lines


def test_rankings_of_the_same_people_and_samples_hang_together():
    """Ten people say the same of each of 20 samples: that is as sure as 20 rankings, not as 200."""
    first, second = dict(a=1, b=2), dict(a=2, b=1)
    rankings, clusters = [], []
    for sample in range(20):
        for rater in range(10):
            rankings.append(first if sample % 2 else second)
            clusters.append((f"r{rater}", f"s{sample}"))
    mean, low, high = win_rates(rankings, clusters)["a", "b"]
    half = 1.96 * (.25 / 20) ** .5                       # binomial, of 20
    assert mean == .5 and (low, high) == pytest.approx((.5 - half, .5 + half), abs=.04)
    naive = win_rates(rankings)["a", "b"]
    assert high - low > 2.5 * (naive[2] - naive[1])
    alike = [first if int(rater[1:]) % 2 else second for rater, _ in clusters]             # and people who differ
    mean, low, high = win_rates(alike, clusters)["a", "b"]
    half = 1.96 * (.25 / 10) ** .5
    assert mean == .5 and (low, high) == pytest.approx((.5 - half, .5 + half), abs=.05)
    few = win_rates(rankings[:40], clusters[:40])["a", "b"]
    assert few[0] == .5 and math.isnan(few[1])           # four samples
    lines = study_table({"X": rankings}, {"X": win_rates(rankings, clusters)})
    assert re.fullmatch(r"50% \[\d\d%, \d\d%\]", lines[1][2])


# ---------------------------------------------------------------------------------------------------- the command

@pytest.fixture(scope="module")
def bench(tmp_path_factory):
    """Four samples of the tiny world, and a method with a missing, a broken and a short video beside a good one."""
    folder = tmp_path_factory.mktemp("world")
    export_world(folder, 4)
    flawed = folder / "flawed"
    flawed.mkdir()
    (flawed / "rave-test-0.mp4").write_bytes((folder / "source/rave-test-0.mp4").read_bytes())
    (flawed / "icvg-test-0.mp4").write_bytes((folder / "source/icvg-test-0.mp4").read_bytes()[:-300])
    write_video(flawed / "rave-test-1.mp4", torch.zeros(1, 3, 32, 32))
    return folder


def run(*args):
    score.main(["--manifest", *map(str, args)])


def test_the_oracle_judges_three_methods(bench, tmp_path, capsys, monkeypatch):
    methods = [f for name in ("target", "source", "flawed") for f in ("--videos", f"{name}={bench / name}")]
    run(bench / "bench.jsonl", *methods, "--judge", "oracle", "--out", tmp_path)
    rows, text = rows_of(tmp_path), (tmp_path / "table.md").read_text()
    printed = capsys.readouterr().out
    assert text in printed and len(rows) == 12
    commands = [line for line in printed.splitlines() if line.startswith("  vbench evaluate --mode=custom_input ")]
    assert [f"--videos_path {tmp_path}/vbench/{name} " in line
            for name, line in zip(("target", "source", "flawed"), commands, strict=True)] == [True] * 3
    by = {(r["method"], r["id"]): r for r in rows}
    assert by["target", "rave-test-0"]["Overall"] > 7 > 3 > by["source", "rave-test-0"]["Overall"]
    assert by["flawed", "rave-test-0"]["EA"] == by["source", "rave-test-0"]["EA"]
    whys = [by["flawed", k]["failed"] for k in ("icvg-test-0", "rave-test-1", "icvg-test-1")]
    assert [bool(re.search(w, x)) for w, x in zip(("to its end", "has 1 frames", "no such video"), whys)] == [True] * 3
    lost = [by["flawed", k] for k in ("icvg-test-0", "rave-test-1")]
    assert all(row["EA"] is None and row["quality"] == {} for row in lost)
    pixels = torch.from_numpy(read_pixels(bench / "target/icvg-test-1.mp4").copy()).permute(0, 3, 1, 2)
    assert by["target", "icvg-test-1"]["quality"] == {"TF": temporal_flickering(pixels)}
    assert (tmp_path / by["target", "icvg-test-1"]["video"]).resolve() == bench / "target/icvg-test-1.mp4"
    assert [c[1:4] for c in cells(text, "flawed") if c[1] == "all"] == [["all", "1", "1"], ["all", "0", "2"]]
    assert [c[1] for c in cells(text, "target - source")] == ["2", "2"]
    assert [c[1] for c in cells(text, "target - flawed")] == ["1", "0"] and "flawed: 3 of 4 failed" in text
    assert sorted(p.name for p in (tmp_path / "vbench/flawed").iterdir()) == ["rave-test-0.mp4"]

    said = {"motion_smoothness": [.9, [{"video_path": f"{tmp_path}/vbench/target/{k}.mp4", "video_results": .9}
                                       for k in ("rave-test-0", "rave-test-1")]]}
    (tmp_path / "vbench/results").mkdir()
    (tmp_path / "vbench/results/results_x_eval_results.json").write_text(json.dumps(said))
    run(bench / "bench.jsonl", *methods, "--judge", "oracle", "--out", tmp_path, "--vbench-results", tmp_path / "vbench")
    vbench = (tmp_path / "table.md").read_text()
    assert "MS (vbench)" in vbench and "MS: give" not in vbench and "MS: give --vbench-results" in text
    assert cells(vbench, "target")[3][-1] == "0.900"

    monkeypatch.setattr(judge, "read_video", None)       # a rerun looks at nothing again, and nor does --report
    monkeypatch.setattr(score, "load_model", None)
    run(bench / "bench.jsonl", *methods, "--judge", "oracle", "--out", tmp_path)
    assert rows_of(tmp_path) == rows and (tmp_path / "table.md").read_text() == text
    (tmp_path / "table.md").unlink()
    (tmp_path / "r.csv").write_text("id,method,EA\n" + "".join(f"{r['id']},{r['method']},{r['EA'] or 0}\n"
                                                               for r in rows))
    run(bench / "bench.jsonl", *methods, "--judge", "oracle", "--out", tmp_path, "--human", tmp_path / "r.csv")
    again = (tmp_path / "table.md").read_text()
    assert text.rstrip()[:200] == again[:200] and cells(again, "EA")[0][:2] == ["EA", "9"]
    run(bench / "bench.jsonl", *methods, "--judge", "oracle", "--out", tmp_path)           # the ratings are remembered
    assert (tmp_path / "table.md").read_text() == again


def test_a_checkpoint_makes_its_videos_and_a_vlm_judges_them(bench, tiny_dir, tmp_path):
    flags = ["--checkpoint", tiny_dir, "--subset", "icvg", "--judge", "vila", "--steps", 1, "--guidance", 0, "--out",
             tmp_path]
    run(bench / "bench.jsonl", *flags)
    rows, text = rows_of(tmp_path), (tmp_path / "table.md").read_text()
    assert [r["id"] for r in rows] == ["icvg-test-0", "icvg-test-1"] and {r["method"] for r in rows} == {"tiny"}
    assert all(0 <= r["Yes"] <= 10 and r["EA"] is None and not r["failed"] for r in rows)
    assert all(set(r["quality"]) == {"TF", "SC"} for r in rows) and "own vision tower" in text
    videos = [tmp_path / r["video"] for r in rows]
    before = [v.stat().st_mtime_ns for v in videos]
    videos[1].unlink()
    content = videos[0].read_bytes()
    run(bench / "bench.jsonl", *flags)
    assert rows_of(tmp_path) == rows and videos[0].stat().st_mtime_ns == before[0]         # only what was gone is made
    run(bench / "bench.jsonl", *flags[:-2], "--seed", 5, "--out", tmp_path)
    assert videos[0].read_bytes() != content             # other settings: afresh


def answer_well(body, n):
    names = list(body["response_format"]["json_schema"]["schema"]["properties"])[1:]
    return json.dumps({"reason": "<b>" + ",".join(names), **{name: 5 + k for k, name in enumerate(names)}})


def test_a_service_that_answers_as_they_do(bench, tmp_path, monkeypatch):
    """Late, 429, 500, garbage, a refusal, a cut reply, 11 and "seven": once they mend, for ever they are missing."""
    error = {"error": {"message": "not now"}}
    refusal = {"message": {"role": "assistant", "content": None, "refusal": "I will not"}}
    bad = {"rave-test-0": [(429, error), (500, error)], "icvg-test-0": [refusal, "what?"],
           "rave-test-1": [{"finish_reason": "length"}, json.dumps({"reason": "", "EA": 11, "PC": 1})],
           "icvg-test-1": ["late", json.dumps({"reason": "", "EA": "seven"})]}
    text_of = {json.loads(line)["id"]: json.loads(line)["instruction"] for line in (bench / "bench.jsonl").open()}
    forever = set()

    def answer(body, n):
        said = " ".join(p["text"] for p in body["messages"][1]["content"] if p["type"] == "text")
        for key, replies in bad.items():
            if text_of[key] in said and (n < 2 or key in forever):
                if replies[min(n, 1)] == "late":
                    time.sleep(.5)
                return answer_well(body, n) if replies[min(n, 1)] == "late" else replies[min(n, 1)]
        return answer_well(body, n)
    monkeypatch.delenv("OPENAI_API_KEY", raising=False)
    flags = [bench / "bench.jsonl", "--videos", f"m={bench / 'target'}", "--judge", "openai", "--judge-frames", 3]
    with Endpoint(answer) as server:
        run(*flags, "--base-url", server.url, "--out", tmp_path / "mends")
        rows = rows_of(tmp_path / "mends")
        assert [r["failed"] for r in rows] == [None] * 4 and [r["EA"] for r in rows] == [5] * 4
        assert [r["PC"] for r in rows] == [6, None, 6, None] and rows[0]["reasons"] == ["<b>EA,PC", "<b>GN,GR"]
        assert rows[0]["Overall"] == 5
        forever.update(("icvg-test-0", "rave-test-1"))
        run(*flags, "--base-url", server.url, "--out", tmp_path / "never")
        rows, text = rows_of(tmp_path / "never"), (tmp_path / "never/table.md").read_text()
        assert [len(r["missing"]) for r in rows] == [0, 1, 1, 0] and {r["failed"] for r in rows} == {None}
        assert "not JSON" in rows[1]["missing"][0] and "EA is 11" in rows[2]["missing"][0]
        assert rows[2]["EA"] is rows[2]["Overall"] is None and rows[2]["GN"] == 5          # the half that came counts
        assert rows[2]["quality"]["TF"] > 0              # the video itself is fine
        assert rows[1]["replies"] == [{"consistency": "what?", "quality": rows[0]["replies"][0]["quality"]}]
        asked = json.loads((tmp_path / "never/about.json").read_text())["asked"]
        assert asked["frames"] == 3 and "{instruction}" in asked["prompts"][rows[1]["type"]]["consistency"]
        assert "what?" in (tmp_path / "never/report.html").read_text()
        assert "2 judgements are missing" in text
        run(*flags, "--base-url", server.url, "--out", tmp_path / "thrice", "--repeat", 3, "--subset", "icvg", "--n", 1)
        one, = rows_of(tmp_path / "thrice")              # its consistency is garbage for ever
        assert [set(repeat) for repeat in one["repeats"]] == [{"GN", "GR"}] * 3 and len(one["missing"]) == 3
        run(*flags, "--base-url", server.url, "--out", tmp_path / "twice", "--repeat", 2, "--n", 1)
        assert "The judge's own variance, between 2 judgements" in (tmp_path / "twice/table.md").read_text()


def test_where_nothing_is_scored_one_line_says_why(bench, tmp_path):
    (tmp_path / "empty").mkdir()
    with pytest.raises(SystemExit, match="nothing was scored: .*there is no such video"):
        run(bench / "bench.jsonl", "--videos", f"a={tmp_path / 'empty'}", "--out", tmp_path / "out")
    assert "a: 4 of 4 failed" in (tmp_path / "out/table.md").read_text()


def test_the_dry_run_asks_nothing(bench, tmp_path, capsys, monkeypatch):
    monkeypatch.delenv("OPENAI_API_KEY", raising=False)
    run(bench / "bench.jsonl", "--videos", f"m={bench / 'target'}", "--videos", f"flawed={bench / 'flawed'}", "--judge",
        "openai", "--dry-run", "--price-in", 2.5, "--price-out", 10, "--out", tmp_path / "new")
    said = capsys.readouterr().out
    assert re.search(r"4 samples, 2 methods, 1 videos missing: 10 questions, 10 of them not answered yet", said), said
    assert re.search(r"\$0\.\d\d", said) and not (tmp_path / "new").exists()               # of 7, two cannot be read


def test_kill_minus_nine(bench, tmp_path):
    """Killed in the middle and started again: no answer is asked for again, no row is lost, the same table."""
    def answer(body, n):
        time.sleep(.05)
        return answer_well(body, n)
    with Endpoint(answer) as server:
        flags = [bench / "bench.jsonl", "--videos", f"t={bench / 'target'}", "--videos", f"s={bench / 'source'}",
                 "--judge", "openai", "--base-url", server.url, "--repeat", "4", "--judge-frames", "2", "--out"]
        run(*flags, tmp_path / "whole")
        first = len(server.requests)
        assert first == 2 * 8 * 4
        killed = subprocess.Popen([sys.executable, "-m", "rvebench.score", "--manifest", *flags, tmp_path / "killed"],
                                  stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL, env=ENV, cwd=ROOT)
        replies = tmp_path / "killed/replies.jsonl"
        while killed.poll() is None and not (replies.exists() and replies.read_bytes().count(b"\n") > 8):
            time.sleep(.01)
        killed.send_signal(signal.SIGKILL)
        killed.wait()
        time.sleep(.3)                                   # what was under way reaches the server
        kept, seen = replies.read_bytes().count(b"\n"), len(server.requests)
        assert 8 < kept < first and not (tmp_path / "killed/scores.jsonl").exists()
        run(*flags, tmp_path / "killed")
        assert len(server.requests) - seen == first - kept
    assert rows_of(tmp_path / "killed") == rows_of(tmp_path / "whole") and len(rows_of(tmp_path / "whole")) == 8
    assert (tmp_path / "killed/table.md").read_text() == (tmp_path / "whole/table.md").read_text()


@pytest.mark.parametrize("flags, words", [
    (["--manifest", "none.jsonl", "--videos", "a=."], "none.jsonl: cannot be read"),
    (["--manifest", "m.jsonl"], "--manifest: needs a method"),
    (["--manifest", "m.jsonl", "--videos", "a=nowhere"], "--videos a=nowhere: there is no such folder"),
    (["--manifest", "m.jsonl", "--videos", "a=.", "--subset", "x"], "--subset x: .*choose one of rave"),
    (["--manifest", "m.jsonl", "--videos", "a=.", "--judge", "gpt"], "argument --judge: invalid choice"),
    (["--manifest", "m.jsonl", "--videos", "a=.", "--judge", "oracle", "--repeat", "2"], "always says the same"),
    (["--manifest", "m.jsonl", "--videos", "a=.", "--repeat", "0"], "--repeat: must be at least 1"),
    (["--manifest", "m.jsonl", "--videos", "a=.", "--judge-frames", "0"], "--judge-frames: must be at least 1"),
    (["--manifest", "m.jsonl", "--videos", "a=.", "--price-in", "-1"], "--price-in: must be in \\[0"),
    (["--manifest", "m.jsonl", "--videos", "a=.", "--dry-run"], "--dry-run: counts what --judge openai"),
    (["--manifest", "m.jsonl", "--videos", "a=.", "--judge", "openai"], "OPENAI_API_KEY: is not set"),
    (["--manifest", "m.jsonl", "--videos", "a=.", "--judge", "oracle"], "x: is no sample of the tiny world"),
    (["--manifest", "m.jsonl", "--videos", "a=.", "--viclip", "v"], "--viclip v: .*--trust-remote-code"),
    (["--manifest", "m.jsonl", "--videos", "a=.", "--human", "none.csv"], "--human none.csv: cannot be read"),
    (["--manifest", "m.jsonl", "--videos", "a=.", "--vbench-results", "."], "--vbench-results .: .*run vbench first"),
    (["--judge", "openai"], "required: --manifest"),
])
def test_bad_flags(flags, words, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    for name in ("OPENAI_API_KEY", "OPENAI_BASE_URL"):
        monkeypatch.delenv(name, raising=False)
    write_video("x.mp4", torch.zeros(9, 3, 32, 32))
    Path("m.jsonl").write_text(json.dumps(dict(id="x", source_video_path="x.mp4", target_video_path="x.mp4",
                                               instruction="dusk", type="Temporal Reasoning")) + "\n")
    monkeypatch.setattr(sys, "argv", ["score.py", *flags])
    with pytest.raises(SystemExit) as end:
        runpy.run_path(str(SCRIPT), run_name="__main__")
    error = capsys.readouterr().err.splitlines()[-1]     # the bars come before
    assert end.value.code == 2 and error.startswith("score.py: ") and re.search(words, error), error
    assert not Path("out/eval/m/scores.jsonl").exists()
