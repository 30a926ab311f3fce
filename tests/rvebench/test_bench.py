"""python -m rvebench.bench: what the browser measures of a small page, and one line where there is no browser."""

import re
import shutil

import pytest

from common.files import BadInput
from rvebench import bench


def test_it_measures_a_small_page(browser, tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(bench, "start_browser", lambda: browser)
    monkeypatch.setattr(browser, "quit", lambda: None)   # others need it
    bench.main(["--samples", "24", "--methods", "2", "--out", str(tmp_path)])
    text = capsys.readouterr().out
    assert text.startswith(f"24 samples, 2 methods: {tmp_path}/report.html")
    for name in ("built in", "first paint", "largest paint", "filter", "sort"):
        assert float(re.search(rf"{name} +([\d.]+) s", text)[1]) > 0, name
    before, after, videos = re.search(r"memory +([\d.]+) MB, ([\d.]+) after .* (\d+) videos", text).groups()
    assert 0 < float(after) < 3 * float(before) and 0 < int(videos) < 60
    assert browser.execute_script("return document.querySelectorAll('article').length") == 24
    assert browser.execute_script("return scrollY > 500")                                  # it has scrolled through


def test_without_a_browser_one_line(tmp_path, monkeypatch):
    monkeypatch.setattr(shutil, "which", lambda name: None)
    with pytest.raises(BadInput, match="^chromedriver: there is no Chromium with its driver here; install both"):
        bench.main(["--out", str(tmp_path / "out")])
    assert not (tmp_path / "out").exists()
