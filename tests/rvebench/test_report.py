"""The report page, as a person uses it in a real Chromium; who is ahead, by hand; its files."""

import json
import math
import re
import subprocess

import imageio_ffmpeg
import pytest
import torch

from browser import click, phone, text, texts, until
from common.video import count_frames, write_video
from rvebench import page, report, scores
from rvebench.scores import summarise
from scored import ABOUT, HOSTILE, NASTY, folder, row


# ---------------------------------------------------------------------------- what a person does

@pytest.fixture(scope="module")
def opened(folder):
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
    about = ABOUT | {"methods": ["source", "ours", "theirs", "target"], "asked": asked,
                     "head": "bench.jsonl, judged by gpt, 4 frames, prompt judge-0: means"}
    rate = {"criterion": "Visual Quality", "a": "ours", "b": "theirs", "rate": (.75, .5, 1.)}
    ranked = {"words": "two people", "rates": [rate], "table": [["wins over"], [HOSTILE]]}
    report.write_report(folder, rows, about, ranked=ranked)
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
    with phone(browser):
        scroll(browser, "s3")


def test_what_is_embedded_is_the_same_and_ends_no_script():
    value = {"x": HOSTILE, "y": "<!-- \u2028", "z": [1.5, None]}
    embedded = page.embed(value)
    assert json.loads(embedded) == value and not re.search("[<>&\u2028]", embedded)
    assert page.embed([math.nan, {"a": (1., math.inf)}]) == '[null, {"a": [1.0, null]}]'


# ------------------------------------------------------------------------------- who is better

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
    ffmpeg = [imageio_ffmpeg.get_ffmpeg_exe(), "-v", "error", "-f", "lavfi",
              "-i", "testsrc=size=32x32:rate=8:duration=1"]
    for name, codec in (("mp4v.mp4", "mpeg4"), ("x.webm", "libvpx")):
        subprocess.run([*ffmpeg, "-c:v", codec, videos / name], check=True)
    names = ["ours.mp4", "x.webm", "mp4v.mp4"]
    assert [page.plays(videos / name) for name in names] == [True, True, False]
    rows = [row(f"s{k}", "m", 5., video=f"videos/{name}", source=f"videos/{name}",
                target="videos/none.mp4") for k, name in enumerate(names)]
    found = page.make_playable(rows, tmp_path)
    shown = [tmp_path / r["video"] for r in found]
    assert shown[:2] == [videos / "ours.mp4", videos / "x.webm"] and all(map(page.plays, shown))
    assert found[0]["target"] == "videos/none.mp4"
    assert [count_frames(path) for path in shown] == [5, 8, 8]
