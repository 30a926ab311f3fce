"""The pages, as people use them in a real Chromium: the report, and who is ahead, by hand; the
study, which hides who is who, and what counts of it."""

import json
import math
import re

import pytest
import torch

from browser import click, downloaded, press, text, texts, until
from clips import ffmpeg
from common.files import BadInput
from common.video import count_frames, write_video
from rvebench import page, report, scores, study
from rvebench.scores import summarise
from scored import ABOUT, row

HOSTILE = "</script><script>window.hacked=1</script><img src=x onerror=window.hacked=1>&amp; dusk"
NASTY = "a#1?b%20c é"                                   # what a file's name can be
METHODS = ABOUT["methods"]
ROWS = [row("a", "ours", 6.), row("a", "theirs", None, failed="gone", quality={}),
        row("b", "ours", 9.), row("b", "theirs", 8.), row("c", "ours", 1.), row("c", "theirs", 7.)]


def write_results(folder, rows, **about):
    """scores.jsonl and about.json, as rvebench.score leaves them."""
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


# --------------------------------------------------------------------------------------- the report

@pytest.fixture
def opened(folder, monkeypatch):
    """30 samples in two subsets, two methods, source and reference; hostile texts and names."""
    rows = []
    for k in range(30):
        more = dict(type=["Temporal Reasoning", "Spatial Reasoning", "Story Progression"][k % 3],
                    subset=["rave", "rave", "icvg"][k % 3],
                    reasons=[f"{HOSTILE} of {k}", "smooth"])
        if k == 0:
            more |= {"replies": [{"consistency": f"reply {HOSTILE}", "quality": ""}]}
        ours = more | {"video": f"videos/{NASTY}.mp4"} if k == 1 else more
        theirs = more | {"failed": HOSTILE, "quality": {}} if k == 2 else more
        rows += [row(f"s{k}", "ours", 5 + k % 4, **ours),
                 row(f"s{k}", "theirs", None if k == 2 else 6., **theirs),
                 row(f"s{k}", "source", 1., **more | {"video": "videos/source.mp4"}),
                 row(f"s{k}", "target", 9., **more | {"video": "videos/target.mp4"})]
    asked = {"frames": 4, "prompts": {"Temporal Reasoning": {"consistency": "See {instruction}"}}}
    write_results(folder, rows, methods=["source", "ours", "theirs", "target"], asked=asked,
                  head="bench.jsonl, judged by gpt, 4 frames, prompt judge-0: means")
    rate = {"criterion": "Visual Quality", "a": "ours", "b": "theirs", "rate": (.75, .5, 1.)}
    ranked = {"words": "two people", "rates": [rate], "table": [["wins over"], [HOSTILE]]}
    monkeypatch.setattr(study, "results", lambda folder: ranked)
    report.build(folder)
    return (folder / "report.html").as_uri()


def shown(browser):
    return browser.execute_script(
        "return [...document.querySelectorAll('article')].map(a => a.dataset.id)")


def scroll(browser, id):
    browser.execute_script(f"document.querySelector('article[data-id={id}]').scrollIntoView()")
    until(browser, f"document.querySelector('article[data-id={id}] video')")


def choose(browser, id, value):
    browser.execute_script("const e = document.getElementById(arguments[0]);"
                           "e.value = arguments[1]; e.onchange()", id, value)


def fresh(browser, url):
    browser.get("about:blank")
    browser.get(url)


def test_a_person_reads_the_report(browser, opened, folder):
    assert not re.search(r'(src|href)="?https?:', (folder / "report.html").read_text())
    fresh(browser, opened)
    # Who is ahead?
    assert texts(browser, "#ranking td.name") \
        == ["ours", "theirs", "reference", "do nothing (the source)"]
    assert "it is ahead of" in text(browser, "#verdict")
    assert "judged by gpt" in text(browser, "#about")
    gap = browser.execute_script("return byId('ranking').rows[2].cells[4].innerText")
    assert re.fullmatch(r"-0\.\d\d \[.*\] (real|not settled)", gap)
    click(browser, "#subsets button:nth-child(3)")                       # icvg
    assert len(shown(browser)) == 10 and "10 samples" in text(browser, "#ranking-note")
    click(browser, "#subsets button:nth-child(1)")
    click(browser, "#tables summary")
    until(browser, "document.querySelectorAll('#tables table').length")
    assert HOSTILE in text(browser, "#tables") and "two people" in text(browser, "#study")
    # Who beats whom? The count leads to its samples, and the address holds the choice.
    click(browser, "#pairs button[title^='ours beats theirs']")
    won = [f"s{k}" for k in range(30) if k != 2 and 5 + k % 4 > 6]
    assert shown(browser) == won and f"on {len(won)} of 29" in text(browser, "#pair")
    fresh(browser, browser.current_url)
    assert shown(browser) == won
    click(browser, "#unpair")
    # Filters, orders, a link.
    choose(browser, "type", "Spatial Reasoning")
    assert "10 of 30" in text(browser, "#count")
    choose(browser, "type", "")
    for how, first in (("low", "s0"), ("high", "s3"), ("methods", "s3")):
        choose(browser, "sort", how)
        assert shown(browser)[0] == first, how
    choose(browser, "sort", "order")
    click(browser, "#failed")
    assert shown(browser) == ["s2"]
    click(browser, "#methods input[value=theirs]")                       # theirs had failed
    assert shown(browser) == []
    click(browser, "#failed"), click(browser, "#methods input[value=theirs]")
    browser.find_element("id", "search").send_keys("dusk s7")
    click(browser, "article header a")
    assert "sample=s7" in browser.current_url
    fresh(browser, browser.current_url)
    assert shown(browser) == ["s7"]
    # A card: all play in step, scores and reasons stand under each video, nothing is run.
    fresh(browser, opened)
    assert browser.execute_script("return document.querySelectorAll('video').length") < 60
    scroll(browser, "s3")
    videos = "[...document.querySelectorAll('article[data-id=s3] video')]"
    until(browser, f"{videos}.length == 4 && {videos}.every(v => v.currentTime > .2)")
    rates = browser.execute_script(f"return {videos}.map(v => v.playbackRate * 17 / 9)")
    assert rates == pytest.approx([1, 1, 1, 17 / 9], abs=.1)             # one is twice as long
    figures = texts(browser, "article[data-id=s3] figure")
    titles = [figure.split("\n")[0] for figure in figures]
    assert titles == ["source", "reference", "ours", "theirs"]
    assert "Overall 8.0" in figures[2] and f"{HOSTILE} of 3" in figures[2]
    click(browser, "article[data-id=s3] button")
    until(browser, f"{videos}.every(v => v.paused)")
    scroll(browser, "s1")
    until(browser, "document.querySelectorAll('article[data-id=s1] video')[2].currentTime > 0")
    scroll(browser, "s2")
    until(browser, "document.querySelectorAll('article[data-id=s2] video').length == 3")  # failed
    assert browser.execute_script("return window.hacked") is None
    # What the judge saw: four frames of each video, the prompt, its replies.
    scroll(browser, "s0")
    click(browser, "article[data-id=s0] .saw summary")
    until(browser, "document.querySelectorAll('article[data-id=s0] .saw canvas').length == 12")
    saw = text(browser, "article[data-id=s0] .saw")
    assert "See dusk s0" in saw and saw.count(f"reply {HOSTILE}") == 4


def test_what_is_embedded_is_the_same_and_ends_no_script():
    value = {"x": HOSTILE, "y": "<!-- \u2028", "z": [1.5, None]}
    embedded = page.embed(value)
    assert json.loads(embedded) == value and not re.search("[<>&\u2028]", embedded)
    assert page.embed([math.nan, {"a": (1., math.inf)}]) == '[null, {"a": [1.0, null]}]'


def test_ranking_and_verdict_by_hand():
    given = {"good": [8, 7, 9, 8, 8, 9], "fair": [5, 5, 6, 5, 5, 6], "twin": [8, 8, 8, 9, 8, 8]}
    rows = [row(f"s{k}", method, score)
            for method, some in given.items() for k, score in enumerate(some)]
    rows += [row(f"s{k}", "copy", 1, video="videos/source.mp4") for k in range(6)]
    rows += [row(f"s{k}", "truth", 9.5, video="videos/target.mp4") for k in range(6)]
    methods = ["fair", "copy", "good", "truth", "twin"]
    roles = {method: scores.role(rows, method) for method in methods}
    assert list(roles.values()) == [None, scores.NOTHING, None, scores.REFERENCE, None]
    _, part = summarise(rows, methods, ["Overall"])      # of all, and of the one subset
    order = report.ranking(part, "Overall")
    assert order == ["truth", "good", "twin", "fair", "copy"]
    assert part["groups"]["fair"]["all"]["scores"]["Overall"][0] == pytest.approx(32 / 6)
    gains = {(pair["a"], pair["b"]): pair["differences"]["Overall"] for pair in part["pairs"]}
    assert gains["fair", "good"][0] == pytest.approx(-17 / 6) and len(gains) == 10
    assert report.verdict(part, order, "Overall", roles) == (
        "good has the highest Overall 8.17; it is ahead of fair, doing nothing; these samples do "
        "not settle whether it is better than twin.")
    _, part = summarise([row("a", "m", None, failed="refused")], ["m"], ["Overall"])
    assert report.verdict(part, ["m"], "Overall", {"m": None}) == "No method was scored."


def test_copies_for_a_browser(tmp_path):
    videos = tmp_path / "videos"
    write_video(videos / "ours.mp4", torch.rand(5, 3, 33, 47) * 2 - 1)   # odd sides
    for name, codec in (("mp4v.mp4", "mpeg4"), ("x.webm", "libvpx")):
        ffmpeg("-f", "lavfi", "-i", "testsrc=size=32x32:rate=8:duration=1", "-c:v", codec,
               videos / name)
    names = ["ours.mp4", "x.webm", "mp4v.mp4"]
    assert [page.plays(videos / name) for name in names] == [True, True, False]
    rows = [row(f"s{k}", "m", 5., video=f"videos/{name}", source=f"videos/{name}",
                target="videos/none.mp4") for k, name in enumerate(names)]
    found = page.make_playable(rows, tmp_path)
    shown = [tmp_path / r["video"] for r in found]
    assert shown[:2] == [videos / "ours.mp4", videos / "x.webm"] and all(map(page.plays, shown))
    assert found[0]["target"] == "videos/none.mp4"
    assert [count_frames(path) for path in shown] == [5, 8, 8]


# -------------------------------------------------------------------------------------- the study

def make_study(folder, seed):
    """The key of a study of two samples."""
    (folder / "study_key.json").unlink(missing_ok=True)
    study.write_study(folder, ROWS, METHODS, 2, seed)
    return json.loads((folder / "study_key.json").read_text())


def test_the_study_hides_who_is_who(folder):
    key, page = make_study(folder, 3), folder / "study/study.html"
    html = page.read_text()
    assert "ours" not in html and "theirs" not in html
    assert {s["id"] for s in key["samples"]} == {"b", "c"}               # a has failed
    for k, s in enumerate(key["samples"], 1):
        assert {s["A"], s["B"]} == set(METHODS)
        video = folder / f"videos/{s['A']}.mp4"
        assert (page.parent / f"{k}A.mp4").read_bytes() == video.read_bytes()
    orders = {tuple(s["A"] for s in make_study(folder, seed)["samples"]) for seed in range(9)}
    assert len(orders) == 4                              # letters are shuffled, sample by sample
    study.write_study(folder, ROWS, METHODS, 2, seed=8)                  # the same once more
    with pytest.raises(BadInput, match="study_key.json: is the key of another study"):
        study.write_study(folder, ROWS, METHODS, 2, seed=7)
    with pytest.raises(BadInput, match="--n 3: 2 samples have videos of all 2 methods"):
        study.write_study(folder, ROWS, METHODS, 3)


def test_a_person_ranks_in_the_browser(browser, folder):
    key = make_study(folder, 3)
    browser.get((folder / "study/study.html").as_uri())
    videos = "[...document.querySelectorAll('#videos video')]"
    until(browser, f"{videos}.filter(v => v.currentTime > 0).length == 3")
    assert browser.execute_script(f"return {videos}.map(v => v.playbackRate)") == [1, 1, 1]
    better, worse = sorted("AB", key=lambda letter: key["samples"][0][letter] != "ours")
    for _ in study.CRITERIA:                             # ours is better in each way, on the first
        press(browser, better, worse)
    until(browser, "document.querySelectorAll('.criterion.done').length == 3")
    press(browser, "\ue007")                             # Enter: the next sample
    assert text(browser, "#where") == "2 of 2"
    press(browser, "a")
    browser.refresh()                                    # what was chosen outlives it
    assert text(browser, "#count") == "1 of 2 done" and text(browser, "#where") == "2 of 2"
    press(browser, "=", "b")                             # a tie
    click(browser, "#save")
    file = downloaded(browser, "ratings.json")
    ratings = study.read_ratings(folder, [file, file])                   # sent twice, counts once
    first = {"ours": 1, "theirs": 2}
    assert [row["ranks"] for row in ratings] == [first] * 3 + [{"ours": 1, "theirs": 1}]
    browser.execute_script("localStorage.clear()")
    browser.refresh()
    assert text(browser, "#count") == "0 of 2 done"
    browser.find_element("id", "load").send_keys(str(file))              # on another machine
    until(browser, "document.getElementById('count').textContent == '1 of 2 done'")
    click(browser, "#save")
    assert study.read_ratings(folder, [downloaded(browser, "ratings.json")]) == ratings
    # By mouse: clicked away and back.
    pick = """[...document.querySelectorAll('.criterion .letter')]
        .find(x => x.innerText == arguments[0]).click()"""
    for letter, ranks in (("B", {"A": 1}), ("B", {"A": 1, "B": 2}), ("A", {"B": 2}),
                          ("A", {"A": 1, "B": 2})):
        browser.execute_script(pick, letter)
        assert browser.execute_script("return state.ranks[1]['Edit Accuracy']") == ranks


def test_what_people_said_is_kept_and_counted(folder, tmp_path, capsys):
    key = make_study(folder, 3)
    write_results(folder, ROWS)
    assert study.results(folder) is None
    letter = {name: letter for letter, name in key["samples"][0].items()}

    def said(rater, ours, theirs):
        ranks = {letter["ours"]: ours, letter["theirs"]: theirs}
        rankings = [{"sample": 0, "criterion": name, "ranks": ranks} for name in study.CRITERIA]
        file = tmp_path / f"{rater}.json"
        file.write_text(json.dumps({"study": key["study"], "rater": rater, "rankings": rankings}))
        return str(file)
    study.main([str(folder), "--ratings", said("x", 1, 2), said("y", 1, 2), said("z", 2, 1)])
    assert "ours over theirs" in capsys.readouterr().out
    found = study.results(folder)
    assert found["words"] == "People who ranked: 3. Samples: 1. Rankings: 9."
    assert [(r["a"], r["b"]) for r in found["rates"]] == [("ours", "theirs")] * 3
    assert [r["rate"][0] for r in found["rates"]] == pytest.approx([2 / 3] * 3)
    assert found["table"][1] == ["ours over theirs", "3", "67%", "67%", "67%"]
    report.main([str(folder)])                           # and stays, at each report
    assert "ours over theirs" in (folder / "table.md").read_text()
    assert "People who ranked: 3." in (folder / "report.html").read_text()


def test_what_is_no_ranking(folder, tmp_path):
    key, file = make_study(folder, 0), tmp_path / "r.json"
    good = {"sample": 0, "criterion": "Visual Quality", "ranks": {"A": 1, "B": 2}}
    for change in ({"sample": 9}, {"criterion": "Taste"}, {"ranks": {"A": 1}},
                   {"ranks": {"A": 1, "B": 3}}):
        file.write_text(json.dumps({"study": key["study"], "rankings": [good | change]}))
        with pytest.raises(BadInput, match="is no ratings.json"):
            study.read_ratings(folder, [file])
    file.write_text('{"study": "y", "rankings": []}')
    with pytest.raises(BadInput, match="another study"):
        study.read_ratings(folder, [file])
