"""report.html in a real Chromium: it plays in step, filters, sorts, escapes, and stays usable with 1,000 samples."""

import json
import re
import shutil
import time

import pytest
import torch

from rvebench import report
from common.files import BadInput
from common.video import write_video

HOSTILE = "</script><script>window.hacked=1</script><img src=x onerror=window.hacked=1>&amp; dusk"
NASTY = "a#1?b%20c é"                                   # what a file's name can be


@pytest.fixture(scope="module")
def browser(tmp_path_factory):
    webdriver = pytest.importorskip("selenium.webdriver")
    chromium, driver = shutil.which("chromium") or shutil.which("google-chrome"), shutil.which("chromedriver")
    if not (chromium and driver):
        pytest.skip("there is no Chromium with its driver here")
    options = webdriver.ChromeOptions()
    options.binary_location = chromium
    for flag in ("--headless=new", "--no-sandbox", "--disable-gpu", "--disable-dev-shm-usage", "--window-size=1300,900"):
        options.add_argument(flag)
    down = tmp_path_factory.mktemp("down")
    options.add_experimental_option("prefs", {"download.default_directory": str(down)})
    options.set_capability("goog:loggingPrefs", {"browser": "ALL"})
    browser = webdriver.Chrome(options=options, service=webdriver.ChromeService(driver))
    browser.down = down
    yield browser
    browser.quit()


def until(browser, script, seconds=60):
    """The value of a script once it is true."""
    from selenium.webdriver.support.ui import WebDriverWait
    return WebDriverWait(browser, seconds).until(lambda b: b.execute_script(f"return {script}"))


def row(id, method, score, type="Temporal Reasoning", failed=None, **more):
    return {"id": id, "subset": "rave", "type": type, "instruction": f"dusk {id}", "method": method,
            "source": "videos/source.mp4", "target": "videos/target.mp4", "video": f"videos/{method}.mp4",
            "failed": failed, "EA": score, "PC": score, "GN": 5, "GR": 5, "Overall": score, "Geometric mean": score,
            "Yes": None, "missing": [], "repeats": [], "reasons": [f"because {id}"], "quality": {"TF": .987654}, **more}


ABOUT = {"methods": ["ours", "theirs"], "head": "bench.jsonl, judged by nobody: means"}


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


BLOCKS = ["## rave", [["method", "EA"], [HOSTILE, "1.00 [0.50, 1.50]"]], f"text {HOSTILE}"]
CHART = report.bars([("Temporal <b>", [("ours", 5., 4., 6.), ("theirs", 7., 6.5, 7.5)])], "rave: Overall", 10)


def shown(browser):
    return browser.execute_script("return [...document.querySelectorAll('article')].map(a => a.dataset.id)")


def scroll(browser, id):
    browser.execute_script("document.querySelector(`article[data-id=${arguments[0]}]`).scrollIntoView()", id)


def choose(browser, id, value):
    browser.execute_script("const e = document.getElementById(arguments[0]); e.value = arguments[1]; e.onchange()", id,
                           value)


def test_the_page_plays_filters_sorts_and_escapes(browser, folder, rows):
    human = {"EA": {("b", "ours"): 2., ("c", "ours"): 1.5}}
    report.report(folder, rows, ABOUT, BLOCKS, [CHART], human)
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
    assert HOSTILE in browser.find_element("tag name", "section").text and "because c" in browser.page_source
    until(browser, "document.querySelectorAll('article[data-id=a] video')[2].currentTime > 0")     # the nasty name
    assert "TF 0.988" in article.text and "Overall 6.0" in article.text
    assert browser.execute_script("return document.querySelectorAll('svg.bars rect').length") == 4

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
    errors = [x for x in browser.get_log("browser") if x["level"] == "SEVERE"]
    assert not errors, errors


def test_a_thousand_samples_stay_usable(browser, folder):
    many = [row(f"s{k}", m, (7 * k) % 101 / 10) for k in range(1000) for m in ABOUT["methods"]]
    report.report(folder, many, ABOUT, [], [])
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
    report.report(folder, [{**r, "video": "videos/broken.mp4"} for r in rows[2:4]], ABOUT, [], [])
    browser.get((folder / "report.html").as_uri())
    until(browser, "document.querySelectorAll('article small').length == 3")               # its id, and two of them
    until(browser, "[...document.querySelectorAll('video')].filter(v => v.currentTime > 0).length == 2")


def test_what_is_embedded_is_the_same_and_ends_no_script():
    value = {"x": HOSTILE, "y": "<!-- \u2028", "z": [1.5, None]}
    text = report.embed(value)
    assert json.loads(text) == value and not re.search("[<>&\u2028]", text)


def test_bars_by_hand():
    nan = float("nan")
    svg = report.bars([("T", [("a", 5., 2.5, 7.5), ("b", nan, nan, nan), ("c", 1., nan, nan)])], "t", 10)
    widths = [float(w) for w in re.findall(r'width="([\d.]+)" height="13"', svg)]
    assert widths == [310, 62] and svg.count("<path") == 1 and "M365.0" in svg and "H675.0" in svg


# -------------------------------------------------------------------------------------------------------- the study

def test_the_study_hides_who_is_who(folder, rows):
    key, page = read_key(folder, rows, 3), folder / "study/study.html"
    text = page.read_text()
    assert "ours" not in text and "theirs" not in text and not {"a"} & {s["id"] for s in key["samples"]}   # a failed
    assert {p.name for p in page.parent.iterdir()} == {"study.html", *(f"{k}{x}.mp4" for k in (1, 2)
                                                                       for x in ("A", "B", "source"))}
    for k, s in enumerate(key["samples"], 1):
        assert {s["A"], s["B"]} == {"ours", "theirs"}
        assert (page.parent / f"{k}A.mp4").read_bytes() == (folder / f"videos/{s['A']}.mp4").read_bytes()
    assert json.loads((folder / "study_key.json").read_text()) == key
    first = [[s["A"] for s in read_key(folder, rows, seed)["samples"]] for seed in range(20)]
    assert {tuple(x) for x in first} == {(a, b) for a in ABOUT["methods"] for b in ABOUT["methods"]}       # shuffled
    report.study(folder, rows, ABOUT["methods"], 2, seed=19)                               # the same once more
    with pytest.raises(BadInput, match="study_key.json: is the key of another study"):
        report.study(folder, rows, ABOUT["methods"], 2, seed=18)
    with pytest.raises(BadInput, match="--study 3: 2 samples have videos of all 2 methods"):
        report.study(folder, rows, ABOUT["methods"], 3)


def read_key(folder, rows, seed):
    (folder / "study_key.json").unlink(missing_ok=True)
    report.study(folder, rows, ABOUT["methods"], 2, seed)
    return json.loads((folder / "study_key.json").read_text())


def test_a_person_ranks_in_the_browser(browser, folder, rows):
    key = read_key(folder, rows, 3)
    browser.get((folder / "study/study.html").as_uri())
    videos = "[...document.querySelectorAll('article:first-child video')]"
    until(browser, f"{videos}.filter(v => v.currentTime > 0).length == 3")
    rank = lambda name, value: browser.execute_script(
        "const e = document.getElementsByName(arguments[0])[0]; e.value = arguments[1]; e.onchange()", name, value)
    for c in report.CRITERIA:                            # ours is better in each way, on the first sample
        for letter in "AB":
            rank(f"0 {c} {letter}", 1 if key["samples"][0][letter] == "ours" else 2)
    rank("1 Edit Accuracy A", 1)
    browser.refresh()                                    # what was chosen outlives it
    assert browser.find_element("id", "count").text == "1 of 2 samples ranked"
    rank("1 Edit Accuracy B", 1)                         # a tie
    browser.find_element("id", "save").click()
    file = browser.down / "ratings.json"
    for _ in range(300):
        if file.exists():
            break
        time.sleep(.1)
    found = report.read_rankings(folder, [str(file)])
    assert found == {"Edit Accuracy": [{"ours": 1, "theirs": 2}, {"ours": 1, "theirs": 1}],
                     "Content Preservation": [{"ours": 1, "theirs": 2}], "Visual Quality": [{"ours": 1, "theirs": 2}]}


def test_ratings_that_are_none(folder, rows, tmp_path):
    key = read_key(folder, rows, 0)
    good = {"sample": 0, "criterion": "Visual Quality", "ranks": {"A": 1, "B": 2}}
    file = tmp_path / "r.json"
    for rated, words in (({"study": "x", "rankings": []}, "another study"), ([], "is no ratings.json"),
                         ({"study": key["study"], "rankings": [{**good, "sample": 9}]}, "is no ratings.json"),
                         ({"study": key["study"], "rankings": [{**good, "criterion": "Taste"}]}, "Taste"),
                         ({"study": key["study"], "rankings": [{**good, "ranks": {"A": 1}}]}, "ranks"),
                         ({"study": key["study"], "rankings": [{**good, "ranks": {"A": 1, "B": 3}}]}, "ranks")):
        file.write_text(json.dumps(rated))
        with pytest.raises(BadInput, match=words):
            report.read_rankings(folder, [str(file)])
    with pytest.raises(BadInput, match="--study first"):
        report.read_rankings(tmp_path, [])
