"""report.html and verify.html."""

import json
import os
import re
import shutil

import pytest

from curation import read
from rvedata import bench, pages
from rvedata.manifest import VIDEO_FIELDS


def test_pages_are_escaped_and_whole(tmp_path):
    bad = "</script><script>alert(1)</script>"
    row = {"id": "x", "type": "Causal Reasoning", "rationale": bad, "instruction": f"run {bad}", "literal": bad,
           "source_video_path": "a #1?.mp4", "target_video_path": "b.mp4"}
    (tmp_path / "triplets.jsonl").write_text(json.dumps(row) + "\n")
    (tmp_path / "rewrites.jsonl").write_text(json.dumps({"id": bad, "rejected": bad}) + "\n")
    pages.report(tmp_path)
    pages.verify(tmp_path, [row], "key")
    report, verify = (tmp_path / "report.html").read_text(), (tmp_path / "verify.html").read_text()
    assert "<script" not in report and report.count("alert(1)") >= 4
    assert verify.count("</script>") == 2 and "alert(1)</script>" not in verify
    data = re.search(r'<script id=data type="application/json">(.*?)</script>', verify, re.S)[1]
    assert json.loads(data) == [row]


def test_the_report_counts(icvg):
    text = (icvg / "report.html").read_text()
    assert "<tr><td>captions</td><td class=n>18</td><td class=n>0</td><td class=n>0</td></tr>" in text
    assert "All" not in text and text.count("<img") >= 18 + 2 and "<svg" in text and "6 clusters" in text


def test_verify_in_a_browser(rave, tmp_path):
    webdriver = pytest.importorskip("selenium.webdriver")
    wait = pytest.importorskip("selenium.webdriver.support.ui").WebDriverWait
    chromium = shutil.which("chromium") or shutil.which("google-chrome")
    if not (chromium and shutil.which("chromedriver")):
        pytest.skip("there is no Chromium with its driver here")
    rows = [{**r, **{k: os.path.relpath(rave.out / r[k], tmp_path) for k in VIDEO_FIELDS}}
            for r in read(rave.out / "triplets.jsonl")[:3]]
    pages.verify(tmp_path, rows, "key")
    options = webdriver.ChromeOptions()
    options.binary_location = chromium
    for flag in ("--headless=new", "--no-sandbox", "--disable-gpu", "--disable-dev-shm-usage"):
        options.add_argument(flag)
    options.add_experimental_option("prefs", {"download.default_directory": str(tmp_path / "down")})
    browser = webdriver.Chrome(options=options, service=webdriver.ChromeService(shutil.which("chromedriver")))
    try:
        browser.get((tmp_path / "verify.html").as_uri())
        shown = lambda name: browser.find_element("id", name).text
        until = lambda script: wait(browser, 30).until(lambda b: b.execute_script(script))
        assert shown("text") == rows[0]["instruction"] and shown("where").startswith("1 of 3, 0 decided")
        until("return ['source', 'target'].every(k => document.getElementById(k).currentTime > 0)")        # both play
        press = lambda key: browser.find_element("tag name", "body").send_keys(key)
        press("a")
        assert shown("text") == rows[1]["instruction"]
        press("r")
        browser.refresh()                                # decisions outlive it; it goes on with the first undecided
        assert shown("text") == rows[2]["instruction"] and shown("where").startswith("3 of 3, 2 decided")
        press("\ue012")                                  # the left arrow
        assert "reject" in shown("where")
        press("d")
        wait(browser, 30).until(lambda b: (tmp_path / "down/decisions.json").exists())
    finally:
        browser.quit()
    decisions = bench.read_decisions(tmp_path / "down/decisions.json", {r["id"]: r for r in rows})
    assert decisions == {rows[0]["id"]: "accept", rows[1]["id"]: "reject"}
