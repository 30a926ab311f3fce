"""The user study: the page hides who is who, a person ranks in a real Chromium; what counts."""

import json

import pytest

from browser import click, downloaded, phone, press, text, until
from common.files import BadInput
from rvebench import report, study
from scored import ABOUT, folder, rows, write_results

METHODS = ABOUT["methods"]


def make_study(folder, rows, seed):
    """The key of a study of two samples."""
    (folder / "study_key.json").unlink(missing_ok=True)
    study.write_study(folder, rows, METHODS, 2, seed)
    return json.loads((folder / "study_key.json").read_text())


def test_the_study_hides_who_is_who(folder, rows):
    key, page = make_study(folder, rows, 3), folder / "study/study.html"
    html = page.read_text()
    assert "ours" not in html and "theirs" not in html
    assert {s["id"] for s in key["samples"]} == {"b", "c"}               # a has failed
    for k, s in enumerate(key["samples"], 1):
        assert {s["A"], s["B"]} == set(METHODS)
        video = folder / f"videos/{s['A']}.mp4"
        assert (page.parent / f"{k}A.mp4").read_bytes() == video.read_bytes()
    orders = {tuple(s["A"] for s in make_study(folder, rows, seed)["samples"]) for seed in range(9)}
    assert len(orders) == 4                              # letters are shuffled, sample by sample
    study.write_study(folder, rows, METHODS, 2, seed=8)                  # the same once more
    with pytest.raises(BadInput, match="study_key.json: is the key of another study"):
        study.write_study(folder, rows, METHODS, 2, seed=7)
    with pytest.raises(BadInput, match="--n 3: 2 samples have videos of all 2 methods"):
        study.write_study(folder, rows, METHODS, 3)


def test_a_person_ranks_in_the_browser(browser, folder, rows):
    key = make_study(folder, rows, 3)
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
    with phone(browser):
        click(browser, "#help summary")


def test_what_people_said_is_kept_and_counted(folder, rows, tmp_path, capsys):
    key = make_study(folder, rows, 3)
    write_results(folder, rows)
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


def test_what_is_no_ranking(folder, rows, tmp_path):
    key, file = make_study(folder, rows, 0), tmp_path / "r.json"
    good = {"sample": 0, "criterion": "Visual Quality", "ranks": {"A": 1, "B": 2}}
    for change in ({"sample": 9}, {"criterion": "Taste"}, {"ranks": {"A": 1}},
                   {"ranks": {"A": 1, "B": 3}}):
        file.write_text(json.dumps({"study": key["study"], "rankings": [good | change]}))
        with pytest.raises(BadInput, match="is no ratings.json"):
            study.read_ratings(folder, [file])
    file.write_text('{"study": "y", "rankings": []}')
    with pytest.raises(BadInput, match="another study"):
        study.read_ratings(folder, [file])
