"""report.html in a real Chromium: it plays in step, filters, sorts, escapes, and stays usable with 1,000 samples."""

import csv
import json
import re
import shutil
import subprocess
from pathlib import Path

import imageio_ffmpeg
import pytest
import torch

from browser import check_readable, downloaded, errors, press, screen, until
from common.files import BadInput
from common.video import count_frames, write_video
from rvebench import page, playable, report, results
from scored import ABOUT, HOSTILE, folder, row, rows

OLDER = Path(__file__).parent / "older_results"
BLOCKS = ["## rave", [["method", "EA"], [HOSTILE, "1.00 [0.50, 1.50]"]], f"text {HOSTILE}"]


def shown(browser):
    return browser.execute_script("return [...document.querySelectorAll('article')].map(a => a.dataset.id)")


def scroll(browser, id):
    browser.execute_script("document.querySelector(`article[data-id=${arguments[0]}]`).scrollIntoView()", id)


def choose(browser, id, value):
    browser.execute_script("const e = document.getElementById(arguments[0]); e.value = arguments[1]; e.onchange()", id,
                           value)


def test_the_page_plays_filters_sorts_and_escapes(browser, folder, rows):
    human = {"EA": {("b", "ours"): 2., ("c", "ours"): 1.5}}
    report.write_report(folder, rows, ABOUT, BLOCKS, human)
    text = (folder / "report.html").read_text()
    assert not re.search(r'(src|href)="?https?:', text) and "@import" not in text
    browser.get((folder / "report.html").as_uri())
    video = "document.querySelectorAll('article[data-id=c] video')"
    scroll(browser, "c")
    until(browser, f"{video}.length == 4 && [...{video}].every(v => v.currentTime > .2)")  # source, target, two methods
    fractions = browser.execute_script(f"return [...{video}].map(v => v.currentTime / v.duration)")
    assert max(fractions) - min(fractions) < .2          # though one is twice as long
    rates = browser.execute_script(f"return [...{video}].map(v => v.playbackRate * 17 / 9)")
    assert rates == pytest.approx([1, 1, 1, 17 / 9], abs=.1)
    until(browser, f"(window.before ??= {video}[3].currentTime) && {video}[3].currentTime < window.before")  # again
    browser.execute_script("document.querySelector('article[data-id=c] button').click()")
    assert until(browser, f"[...{video}].every(v => v.paused)")

    assert browser.execute_script("return window.hacked") is None                          # shown, and not run
    scroll(browser, "a")
    until(browser, "document.querySelectorAll('article[data-id=a] video').length == 3")    # none of what failed
    article = browser.find_element("css selector", "article[data-id=a]")
    assert article.find_element("tag name", "h3").text == HOSTILE and HOSTILE in article.text
    browser.find_element("css selector", "#tables summary").click()
    until(browser, "document.querySelectorAll('#tables table').length")
    assert HOSTILE in browser.find_element("id", "tables").text and "because c" in browser.page_source
    until(browser, "document.querySelectorAll('article[data-id=a] video')[2].currentTime > 0")     # the nasty name
    assert "TF 0.988" in article.text and "Overall 6.0" in article.text
    assert browser.execute_script("return document.querySelectorAll('#ranking svg rect').length") == 2

    assert shown(browser) == ["a", "b", "c"]
    choose(browser, "type", "Spatial Reasoning")
    assert shown(browser) == ["b"] and "1 of 3" in browser.find_element("id", "count").text
    choose(browser, "type", "")
    choose(browser, "column", "Overall")
    for how, order in (("low", "cab"), ("high", "bca"), ("methods", "cba"), ("order", "abc")):     # a has one score only
        choose(browser, "sort", how)
        assert "".join(shown(browser)) == order, how
    choose(browser, "column", "EA")
    choose(browser, "sort", "people")
    assert shown(browser) == ["b", "c", "a"]             # 9 and 2, 1 and 1.5, none
    browser.find_element("id", "failed").click()
    assert shown(browser) == ["a"]
    browser.find_element("css selector", "#methods input[value=theirs]").click()      # theirs was the one that failed
    assert shown(browser) == []
    browser.find_element("id", "failed").click()
    scroll(browser, "b")
    until(browser, "document.querySelectorAll('article[data-id=b] video').length == 3")
    assert browser.execute_script("return window.hacked") is None and not errors(browser)


def test_a_thousand_samples_stay_usable(browser, folder):
    many = [row(f"s{k}", m, (7 * k) % 101 / 10) for k in range(1000) for m in ABOUT["methods"]]
    report.write_report(folder, many, ABOUT, [])
    assert (folder / "report.html").stat().st_size < 2e6
    browser.get((folder / "report.html").as_uri())
    assert len(shown(browser)) == 1000
    loaded = "[...document.querySelectorAll('video')].length"
    until(browser, f"{loaded} > 0")
    assert browser.execute_script(f"return {loaded}") < 60                                 # the others when scrolled to
    choose(browser, "sort", "low")
    assert shown(browser)[:3] == ["s0", "s101", "s202"]
    browser.execute_script("document.querySelector('article:last-child').scrollIntoView()")
    until(browser, "[...document.querySelectorAll('article:last-child video')].some(v => v.currentTime > 0)")
    until(browser, "!document.querySelector('article video')?.closest('article').matches(':first-child')")
    assert browser.execute_script(f"return {loaded}") < 60                                 # and the first are let go


def test_a_video_that_cannot_be_played_says_so(browser, folder, rows):
    (folder / "videos/broken.mp4").write_bytes(b"no video")
    report.write_report(folder, [{**r, "video": "videos/broken.mp4"} for r in rows[2:4]], ABOUT, [])
    browser.get((folder / "report.html").as_uri())
    until(browser, "document.querySelectorAll('article small').length == 3")               # its id, and two of them
    until(browser, "[...document.querySelectorAll('video')].filter(v => v.currentTime > 0).length == 2")


def test_what_is_embedded_is_the_same_and_ends_no_script():
    value = {"x": HOSTILE, "y": "<!-- \u2028", "z": [1.5, None]}
    text = page.embed(value)
    assert json.loads(text) == value and not re.search("[<>&\u2028]", text)


def test_bars_by_hand(browser, folder, rows):
    report.write_report(folder, rows, ABOUT, [])
    browser.get((folder / "report.html").as_uri())
    browser.execute_script("""
        window.chart = barChart([['a', [5, 2.5, 7.5]], ['b', [null, null, null]], ['c', [1, null, null]]], 10, 't');
        document.body.append(window.chart)""")
    bars = browser.execute_script("return [...window.chart.querySelectorAll('.bar')].map(x => +x.getAttribute('width'))")
    errors = browser.execute_script("return [...window.chart.querySelectorAll('.error')].map(x => x.getAttribute('d'))")
    assert bars == [100, 20] and len(errors) == 1 and "M260.0" in errors[0] and "H360.0" in errors[0]


# --------------------------------------------------------------------------------- who is better

def test_ranking_and_verdict_by_hand():
    scores = {"good": [8, 7, 9, 8, 8, 9], "fair": [5, 5, 6, 5, 5, 6], "twin": [8, 8, 8, 9, 8, 8]}
    rows = [row(f"s{k}", method, score) for method, some in scores.items() for k, score in enumerate(some)]
    rows += [row(f"s{k}", "copy", 1, video="videos/source.mp4") for k in range(6)]
    rows += [row(f"s{k}", "truth", 9.5, video="videos/target.mp4") for k in range(6)]
    methods = ["fair", "copy", "good", "truth", "twin"]
    assert [results.role(rows, m) for m in methods] == [None, results.NOTHING, None, results.REFERENCE, None]
    order = report.ranking(rows, methods, ["Overall", "GN"], "Overall")
    assert [entry["method"] for entry in order] == ["truth", "good", "twin", "fair", "copy"]
    assert order[3]["scores"]["Overall"][0] == pytest.approx(32 / 6) and order[3]["scored"] == 6
    pairs = {(p["a"], p["b"]): p for p in report.differences(rows, methods, "Overall")}
    assert pairs["fair", "good"]["difference"][0] == pytest.approx(-17 / 6) and pairs["fair", "good"]["real"]
    assert not pairs["good", "twin"]["real"] and len(pairs) == 10
    words = report.summaries(rows, methods, ["Overall"], "Overall")[0]["verdict"]
    assert words == ("good has the highest Overall 8.17; it is ahead of fair, doing nothing; these samples do not settle "
                     "whether it is better than twin.")


def test_a_failed_row_has_no_score_and_counts():
    rows = [row("a", "m", 6.), row("b", "m", None, failed="refused")]
    entry, = report.ranking(rows, ["m"], ["Overall", "TF"], "Overall")
    assert (entry["scored"], entry["failed"]) == (1, 1) and entry["scores"]["Overall"][0] == 6
    assert report.by_type(rows, ["m"], "Overall")["Temporal Reasoning"]["m"][0] == 1
    assert report.verdict([], [], "Overall", {}) == "No method was scored."
    assert report.is_real((1., float("nan"), float("nan"))) is None


# ------------------------------------------------------------------------------ what one can do with it

@pytest.fixture(scope="module")
def opened(folder):
    """A page of 30 samples with two methods, a source and a reference, a hostile judge, in two subsets."""
    rows = []
    for k in range(30):
        more = dict(type=["Temporal Reasoning", "Spatial Reasoning", "Story Progression"][k % 3],
                    subset=["rave", "rave", "icvg"][k % 3], repeats=[{"EA": 1., "Overall": 2.}],
                    reasons=[f"{HOSTILE} of {k}", "smooth"], frames=9)
        if k == 0:
            more["replies"] = [{"consistency": f"reply {HOSTILE}", "quality": ""}]
        rows += [row(f"s{k}", "ours", 5 + k % 4, **more), row(f"s{k}", "theirs", 6., **more),
                 row(f"s{k}", "source", 1., **more | {"video": "videos/source.mp4"}),
                 row(f"s{k}", "target", 9., **more | {"video": "videos/target.mp4"})]
    about = ABOUT | {"methods": ["source", "ours", "theirs", "target"],
                     "head": "bench.jsonl, judged by gpt, 4 frames, prompt judge-0: means",
                     "asked": {"frames": 4, "prompts": {"Temporal Reasoning": {"consistency": "Look: {instruction}"}}}}
    report.write_report(folder, rows, about, [])
    return (folder / "report.html").as_uri()


def fresh(browser, url):
    browser.get("about:blank")
    browser.get(url)


def test_the_head_says_who_is_ahead(browser, opened):
    fresh(browser, opened)
    order = browser.execute_script("return [...document.querySelectorAll('#ranking td.name')].map(x => x.innerText)")
    assert order == ["ours", "theirs", "reference", "do nothing (the source)"]
    gap = browser.execute_script("return document.querySelectorAll('#ranking tr')[2].cells[4].innerText")
    assert gap.startswith("-0.43 [") and gap.endswith("] real") or gap.endswith("not settled")
    assert "judged by gpt, 4 frames" in browser.find_element("id", "about").text
    assert "it is ahead of theirs, doing nothing." in browser.find_element("id", "verdict").text
    assert browser.execute_script("return document.getElementById('list').offsetTop") < 1000
    browser.find_element("css selector", "#subsets button:nth-child(3)").click()               # icvg
    assert len(shown(browser)) == 10 and "10 samples" in browser.find_element("id", "ranking-note").text


def test_pairs_lead_to_their_samples(browser, opened):
    fresh(browser, opened)
    buttons = browser.find_elements("css selector", "#pairs button")
    button = next(b for b in buttons if b.get_attribute("title").startswith("ours beats theirs"))
    k = [5 + k % 4 > 6 for k in range(30)]
    assert button.text == f"{sum(k)} of 30"
    button.click()
    assert shown(browser) == [f"s{i}" for i in range(30) if k[i]]
    text = browser.find_element("id", "pair").text
    equal = sum(5 + k % 4 == 6 for k in range(30))
    assert f"ours beats theirs on {sum(k)} of 30" in text and f"{equal} are equal" in text
    spatial = [5 + i % 4 for i in range(30) if i % 3 == 1]
    assert f"Spatial Reasoning {sum(x > 6 for x in spatial)} {sum(x < 6 for x in spatial)} {spatial.count(6)}" in text
    address = browser.current_url
    fresh(browser, address)                              # the address holds it
    assert shown(browser) == [f"s{i}" for i in range(30) if k[i]]
    browser.find_element("id", "unpair").click()
    assert len(shown(browser)) == 30


def test_search_link_sort_and_csv(browser, opened):
    fresh(browser, opened)
    browser.find_element("id", "search").send_keys("dusk s7")
    assert shown(browser) == ["s7"]
    link = browser.find_element("css selector", "article header a")
    link.click()
    assert "sample=s7" in browser.current_url and "search=dusk" in browser.current_url
    fresh(browser, browser.current_url)
    assert shown(browser) == ["s7"]
    browser.find_element("id", "csv").click()
    with downloaded(browser, "samples.csv").open(newline="") as file:
        lines = list(csv.DictReader(file))
    assert [x["method"] for x in lines] == ["ours", "theirs", "source", "target"] and lines[0]["Overall"] == "8"
    cells = browser.execute_script("return csv([['=1+1', 'a\"b', -1, null, 'x,y']])")
    assert cells == "'=1+1,\"a\"\"b\",-1,,\"x,y\"\r\n"                                     # no formula of others
    heads = browser.find_elements("css selector", "#types th button")
    heads[1].click()
    column = [x.text for x in browser.find_elements("css selector", "#types td:nth-child(2)")]
    assert column == sorted(column, reverse=True)
    heads[1].click()
    assert [x.text for x in browser.find_elements("css selector", "#types td:nth-child(2)")] == column[::-1]


def test_scores_stand_under_each_video_with_their_reason(browser, opened):
    fresh(browser, opened)
    scroll(browser, "s3")
    until(browser, "document.querySelectorAll('article[data-id=s3] figure').length == 4")
    figures = browser.find_elements("css selector", "article[data-id=s3] figure")
    assert [f.find_element("tag name", "figcaption").text for f in figures] == ["source", "reference", "ours", "theirs"]
    assert "Overall 8.0" in figures[2].text and HOSTILE + " of 3" in figures[2].text and "smooth" in figures[2].text
    best = browser.execute_script("return [...document.querySelectorAll('article[data-id=s3] tr.main .best')]"
                                  ".map(x => x.closest('figure').innerText.split('\\n')[0])")
    assert best == ["ours"] and browser.execute_script("return window.hacked") is None


def test_what_the_judge_saw(browser, opened):
    fresh(browser, opened)
    scroll(browser, "s0")
    until(browser, "document.querySelector('article[data-id=s0] .saw summary')")
    browser.execute_script("""
        window.drawn = [];
        const draw = CanvasRenderingContext2D.prototype.drawImage;
        CanvasRenderingContext2D.prototype.drawImage = function (video, x, y) {
            window.drawn.push(video.currentTime / video.duration);
            draw.call(this, video, x, y);
        }""")
    browser.find_element("css selector", "article[data-id=s0] .saw summary").click()
    until(browser, "document.querySelectorAll('article[data-id=s0] .saw canvas').length == 12")    # 4 of 3 clips
    sizes = browser.execute_script("return [...document.querySelectorAll('.saw canvas')].map(x => x.width)")
    assert sizes == [32] * 12
    text = browser.find_element("css selector", ".saw").text
    assert "Look: dusk s0" in text and text.count(f"reply {HOSTILE}") == 4 and "reply about quality\nnone" in text
    assert browser.execute_script("return window.hacked") is None
    drawn = browser.execute_script("return window.drawn")
    frames = [.5 / 9, 3.5 / 9, 5.5 / 9, 8.5 / 9]         # the first, fourth, sixth and last of 9, as the judge gets them
    assert sum(place == pytest.approx(frames[k // 3], abs=.01) for k, place in enumerate(sorted(drawn))) >= 8
    assert page_of(browser, "s0").count("asked about consistency") == 1
    scroll(browser, "s1")                                # of another type, whose prompt was not kept
    until(browser, "document.querySelector('article[data-id=s1] .saw summary')")
    browser.find_element("css selector", "article[data-id=s1] .saw summary").click()
    assert "The prompt was not kept" in page_of(browser, "s1")
    asked = {"frames": 3, "prompts": {}}
    head = "x, judged by g, 3 frames, prompt judge-0: means"
    assert report.judge_sees(ABOUT | {"head": head}) == asked            # as older results have it


def page_of(browser, id):
    return browser.find_element("css selector", f"article[data-id={id}]").text


def test_look_closely(browser, opened):
    fresh(browser, opened)
    scroll(browser, "s1")
    until(browser, "document.querySelectorAll('article[data-id=s1] video').length == 4")
    browser.execute_script("document.querySelectorAll('article[data-id=s1] video')[3].click()")
    assert browser.execute_script("return document.getElementById('closeup').open")
    assert browser.find_element("id", "closeup-right").get_attribute("value") == "theirs"
    videos = "[...document.querySelectorAll('#stage video')]"
    until(browser, f"{videos}.every(v => v.currentTime > 0)")
    until(browser, "Math.abs(closeup.frame - .25) < .01")                                  # it is measured: 4 a second
    stage = browser.find_element("id", "stage")
    for key, view in (("2", "wipe"), ("3", "difference"), ("1", "side")):
        press(browser, key)
        assert view in stage.get_attribute("class").split()
    press(browser, " ")
    until(browser, f"{videos}.every(v => v.paused)")
    browser.execute_script("seek(0)")
    press(browser, "\ue014", "\ue014")                   # the right arrow, twice
    until(browser, f"{videos}.every(v => !v.seeking)")
    assert until(browser, "document.getElementById('closeup-frame').textContent == 'frame 3'")
    left, right = browser.execute_script(f"return {videos}.map(v => v.currentTime / v.duration)")
    assert left == pytest.approx(2.5 / 9, abs=.01) == right                                # theirs is twice as long
    press(browser, "\ue00c")                             # Esc
    until(browser, "!document.getElementById('closeup').open && !document.querySelector('#stage video')")
    assert not errors(browser)


def test_keys_and_alternative_texts(browser, opened):
    fresh(browser, opened)
    press(browser, "j")
    press(browser, "j")
    first = browser.execute_script("return document.activeElement.dataset.id")
    press(browser, "k")
    assert [browser.execute_script("return document.activeElement.dataset.id"), first] == ["s0", "s1"]
    press(browser, "/")
    assert browser.execute_script("return document.activeElement.id") == "search"
    assert browser.execute_script("return [...document.querySelectorAll('video, svg')]"
                                  ".every(x => x.getAttribute('aria-label'))")
    assert browser.execute_script("return [...document.querySelectorAll('button, select, input')]"
                                  ".filter(x => x.checkVisibility()).every(x => x.textContent || x.closest('label')?.textContent || x.ariaLabel)")


@pytest.mark.parametrize("scheme", ["light", "dark"])
@pytest.mark.parametrize("width", [390, 1280])
def test_contrast_and_width(browser, opened, scheme, width):
    with screen(browser, width, scheme):
        fresh(browser, opened)
        until(browser, "document.querySelectorAll('article figure').length")
        check_readable(browser, width)


# ------------------------------------------------------------------------------------- folders and files

def write_results(folder, rows, **about):
    folder.mkdir(exist_ok=True)
    (folder / "scores.jsonl").write_text("".join(json.dumps(r) + "\n" for r in rows))
    (folder / "about.json").write_text(json.dumps(ABOUT | about))


def test_two_folders_in_one_page(tmp_path):
    same = row("a", "source", 1.)
    write_results(tmp_path / "one", [same, row("a", "ours", 6.)], methods=["source", "ours"])
    write_results(tmp_path / "two", [same, row("a", "ours", 7.), row("a", "new", 8.)], methods=["source", "ours", "new"])
    for name in "one", "two":                            # a source that is there, and of one place
        (tmp_path / name / "videos").symlink_to(tmp_path)
    (tmp_path / "source.mp4").write_bytes(b"")
    report.main([str(tmp_path / "one"), str(tmp_path / "two"), "--out", str(tmp_path / "page")])
    text = (tmp_path / "page/report.html").read_text()
    data = json.loads(re.search('<script id="data" type="application/json">(.*?)</script>', text, re.S)[1])
    assert [m["name"] for m in data["methods"]][:3] == ["ours", "ours (two)", "new"]
    sample, = data["samples"]
    assert {m: x["scores"]["Overall"] for m, x in sample["methods"].items() if "source" not in m} \
        == {"ours": 6, "ours (two)": 7, "new": 8}
    assert sample["methods"]["new"]["video"] == "../two/videos/new.mp4" and sample["source"] == "../one/videos/source.mp4"
    assert "ours (two)" in (tmp_path / "page/table.md").read_text()


@pytest.mark.parametrize("change, words", [
    (dict(about={"head": "bench.jsonl, judged by other: means"}), "cannot be compared"),
    (dict(row={"instruction": "dawn"}), "sample a is another"),
    (dict(text="no json"), "holds no results"),
    (dict(text='{"id": "a"}'), "holds no results"),
])
def test_folders_that_do_not_fit(tmp_path, change, words):
    write_results(tmp_path / "one", [row("a", "ours", 6.)], methods=["ours"])
    write_results(tmp_path / "two", [row("a", "ours", 6.) | change.get("row", {})], methods=["ours"], **change.get("about", {}))
    if "text" in change:
        (tmp_path / "two/scores.jsonl").write_text(change["text"])
    with pytest.raises(BadInput, match=words):
        report.main([str(tmp_path / "one"), str(tmp_path / "two"), "--out", str(tmp_path / "page")])
    assert not (tmp_path / "page").exists()


def test_no_number_that_is_none_reaches_json():
    assert page.embed([float("nan"), {"a": (1., float("inf"))}]) == '[null, {"a": [1.0, null]}]'


def test_copies_for_a_browser_and_bundles(browser, tmp_path):
    clip = torch.rand(5, 3, 33, 47) * 2 - 1                # odd sides
    (tmp_path / "videos").mkdir()
    write_video(tmp_path / "videos/ours.mp4", clip)
    write_video(tmp_path / "videos/gif.gif", clip)
    ffmpeg = [imageio_ffmpeg.get_ffmpeg_exe(), "-v", "error", "-f", "lavfi", "-i", "testsrc=size=32x32:rate=8:duration=1"]
    for name, *flags in (("mp4v.mp4", "-c:v", "mpeg4"), ("deep.mp4", "-c:v", "libx264", "-pix_fmt", "yuv420p10le"),
                         ("x.webm", "-c:v", "libvpx"), ("png/%d.png",)):
        (tmp_path / "videos" / name).parent.mkdir(exist_ok=True)
        subprocess.run([*ffmpeg, *flags, tmp_path / "videos" / name], check=True)
    names = ["ours.mp4", "x.webm", "gif.gif", "mp4v.mp4", "deep.mp4", "png"]
    assert [playable.plays(tmp_path / "videos" / name) for name in names] == [True, True, False, False, False, False]
    rows = [row(f"s{k}", "m", 5., video=f"videos/{name}", source=f"videos/{name}", target="videos/none.mp4")
            for k, name in enumerate(names)]
    found = playable.make_playable(rows, tmp_path)
    assert [r["video"] for r in found[:2]] == ["videos/ours.mp4", "videos/x.webm"] and found[0]["target"] == "videos/none.mp4"
    assert all(r["video"] == r["source"] for r in found)
    assert [count_frames(tmp_path / r["video"]) for r in found] == [5, 8, 5, 8, 8, 8]
    times = [(tmp_path / r["video"]).stat().st_mtime_ns for r in found]
    assert playable.make_playable(rows, tmp_path) == found
    assert times == [(tmp_path / r["video"]).stat().st_mtime_ns for r in found]            # made once
    report.write_report(tmp_path, found, ABOUT | {"methods": ["m"]}, [])
    browser.get((tmp_path / "report.html").as_uri())
    for k in range(len(names)):
        scroll(browser, f"s{k}")
        until(browser, f"document.querySelector('article[data-id=s{k}] video')?.currentTime > 0")
    write_results(tmp_path, rows, methods=["m"])
    report.main([str(tmp_path), "--out", str(tmp_path / "sent"), "--bundle"])
    inside = {p.relative_to(tmp_path / "sent").as_posix() for p in (tmp_path / "sent").rglob("*.mp4")}
    assert len(inside) == 6 and (tmp_path / "sent/report.html").read_text().count("videos_of_the_page/") == 12
    encoded = next(p for p in (tmp_path / "sent").rglob("ours-*.mp4"))
    assert encoded.read_bytes() == (tmp_path / "videos/ours.mp4").read_bytes()


def test_the_users_ratings_are_drawn(browser, folder, rows):
    human = {"EA": {("b", "ours"): 2., ("c", "ours"): 1.5, ("c", "theirs"): 9.}}
    ranked = {"words": "two people", "rates": [{"criterion": "Visual Quality", "a": "ours", "b": "theirs",
                                                "rate": (.75, .5, 1.)}]}
    report.write_report(folder, rows, ABOUT, [], human, ranked)
    fresh(browser, (folder / "report.html").as_uri())
    text = browser.find_element("id", "charts").text
    assert "N = 3" in text and "two people" in text and "ours over theirs" in text
    assert browser.execute_script("return document.querySelectorAll('#charts .dot').length") == 3
    assert browser.execute_script("return +document.querySelector('#charts .bar').getAttribute('width')") == 150
    browser.execute_script("document.querySelectorAll('#charts .dot')[1].onclick()")
    assert browser.execute_script("return document.activeElement.dataset.id") == "c"


def test_results_of_an_older_version_still_open(browser, tmp_path):
    """Made by the first version of the benchmark, with a judge of prompt judge-1, before replies were kept in rows."""
    shutil.copytree(OLDER, tmp_path / "results")
    for line in (OLDER / "scores.jsonl").read_text().splitlines():
        for field in ("source", "target", "video"):
            write_video(tmp_path / "results" / json.loads(line)[field], torch.zeros(5, 3, 32, 32))
    report.main([str(tmp_path / "results")])
    browser.get((tmp_path / "results/report.html").as_uri())
    assert browser.find_element("id", "verdict").text == "No method was scored." \
        and "judged by gpt-4o, 3 frames" in browser.find_element("id", "about").text
    rows = browser.execute_script("return [...document.querySelectorAll('#ranking td.name')].map(x => x.innerText)")
    assert rows == ["reference", "do nothing (the source)"] and len(shown(browser)) == 4
    until(browser, "[...document.querySelectorAll('article video')].filter(v => v.currentTime > 0).length >= 4")
    browser.find_element("css selector", "article .saw summary").click()
    until(browser, "document.querySelectorAll('article .saw canvas').length == 3")             # of the source
    text = browser.find_element("css selector", "article").text
    assert "as EA and PC go" in text and "The prompt was not kept" in text
    assert not errors(browser)
