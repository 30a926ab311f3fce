"""report.html and verify.html, in a real Chromium where there is one."""

import re

from browser import downloaded, press, until
from curation import read
from rvedata import pages
from rvedata.split import read_decisions
from rvedata.stages import rebase_paths

PLAYING = "[...document.querySelectorAll('{} video')].filter(v => v.currentTime > 0).length == {}"


def test_the_report_shows_what_came_out(browser, icvg):
    page = (icvg / "report.html").read_text()
    assert not re.search(r'(src|href)="?https?:', page) and page.count("</script>") == 2
    browser.get((icvg / "report.html").as_uri())
    data = browser.execute_script("return data")
    assert ["captions", 18, 0, 0] in data["stages"] and data["threshold"]["clusters"] == 6
    assert len(data["clusters"]) == 6 and sum(len(sheet) for _, sheet in data["clusters"]) == 18
    for _, sheet in data["clusters"]:
        assert all(picture.startswith("data:image/") for picture, _ in sheet)
    assert "captions 18 0 0" in browser.find_element("id", "parts").text
    assert browser.execute_script("return [...document.querySelectorAll('img')].every(x => x.alt)")
    assert browser.execute_script("return document.querySelectorAll('svg rect').length") > 3
    browser.execute_script("document.querySelector('article').scrollIntoView()")
    until(browser, PLAYING.format("article:first-of-type", 2))


def test_verify_in_a_browser(browser, rave, tmp_path):
    rows = [rebase_paths(r, rave.out, tmp_path) for r in read(rave.out / "triplets.jsonl")[:4]]
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
