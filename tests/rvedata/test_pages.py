"""report.html and verify.html, in a real Chromium where there is one."""

import json
import os
import re

from browser import check_readable, downloaded, errors, press, screen, until
from curation import read
from rvedata import pages
from rvedata.split import read_decisions
from rvedata.stages import VIDEO_FIELDS

PLAYING = "[...document.querySelectorAll('{} video')].filter(v => v.currentTime > 0).length == {}"


def data_of(path):
    text = path.read_text()
    assert not re.search(r'(src|href)="?https?:', text) and text.count("</script>") == 2
    data = re.search('<script id="data" type="application/json">(.*?)</script>', text, re.S)[1]
    return json.loads(data)


def moved(rave, folder):
    """The first triplets of rave, as a manifest in `folder` has them."""
    return [{**r, **{k: os.path.relpath(rave.out / r[k], folder) for k in VIDEO_FIELDS}}
            for r in read(rave.out / "triplets.jsonl")[:4]]


def test_the_report_shows_what_came_out(browser, icvg):
    data = data_of(icvg / "report.html")
    assert ["captions", 18, 0, 0] in data["stages"] and data["threshold"]["clusters"] == 6
    assert len(data["clusters"]) == 6 and sum(len(sheet) for _, sheet in data["clusters"]) == 18
    for _, sheet in data["clusters"]:
        assert all(picture.startswith("data:image/") for picture, _ in sheet)
    browser.get((icvg / "report.html").as_uri())
    assert "captions 18 0 0" in browser.find_element("id", "parts").text
    assert browser.execute_script("return [...document.querySelectorAll('img')].every(x => x.alt)")
    assert browser.execute_script("return document.querySelectorAll('svg rect').length") > 3
    browser.execute_script("document.querySelector('article').scrollIntoView()")
    until(browser, PLAYING.format("article:first-of-type", 2))
    assert not errors(browser)
    with screen(browser, 390):
        browser.refresh()
        check_readable(browser, 390)


def test_verify_in_a_browser(browser, rave, tmp_path):
    rows = moved(rave, tmp_path)
    ids = [r["id"] for r in rows]
    pages.verify(tmp_path, rows, "key")
    browser.get((tmp_path / "verify.html").as_uri())
    shown = lambda name: browser.find_element("id", name).text
    instruction = lambda: browser.find_element("id", "instruction").get_attribute("value")
    assert instruction() == rows[0]["instruction"] and shown("where") == "1 of 4"
    assert rows[0]["rationale"] in shown("about")
    until(browser, PLAYING.format("#videos", 2))
    press(browser, "e", " and it snows", "\ue00c")       # the instruction is corrected; Esc leaves
    corrected = instruction()
    press(browser, "a")
    assert instruction() == rows[1]["instruction"] and "and it snows" in corrected
    press(browser, "2")                                  # rejected, with a reason
    press(browser, "r")
    press(browser, "too dark", "\ue007")                 # another reason, and Enter
    browser.refresh()                                    # it goes on with the first undecided
    assert instruction() == rows[3]["instruction"] and shown("count") == "3 of 4 done"
    press(browser, "\ue012")                             # the left arrow
    assert shown("decision") == "rejected: too dark"
    press(browser, "d")
    file = downloaded(browser, "decisions.json")
    said = {ids[0]: {"decision": "accept", "instruction": corrected},
            ids[1]: {"decision": "reject", "reason": "says the edit outright"},
            ids[2]: {"decision": "reject", "reason": "too dark"}}
    assert read_decisions([file], {r["id"]: r for r in rows}) == said
    browser.execute_script("localStorage.clear()")
    browser.refresh()
    assert shown("count") == "0 of 4 done"
    browser.find_element("id", "load").send_keys(str(file))                    # on another machine
    until(browser, "byId('count').textContent == '3 of 4 done'")
    assert browser.execute_script("return decisions()") == {"decisions": said}
    assert not errors(browser)
    with screen(browser, 390):
        browser.refresh()
        check_readable(browser, 390)
