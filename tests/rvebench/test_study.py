"""The user study: the page hides who is who, a person ranks in a real Chromium, and what counts of what they sent."""

import json

import pytest

from browser import check_readable, downloaded, errors, press, screen, until
from common.files import BadInput
from rvebench import report, study
from scored import ABOUT, folder, row, rows

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
    study.write_study(folder, rows, ABOUT["methods"], 2, seed=19)                               # the same once more
    with pytest.raises(BadInput, match="study_key.json: is the key of another study"):
        study.write_study(folder, rows, ABOUT["methods"], 2, seed=18)
    with pytest.raises(BadInput, match="--n 3: 2 samples have videos of all 2 methods"):
        study.write_study(folder, rows, ABOUT["methods"], 3)


def read_key(folder, rows, seed):
    (folder / "study_key.json").unlink(missing_ok=True)
    study.write_study(folder, rows, ABOUT["methods"], 2, seed)
    return json.loads((folder / "study_key.json").read_text())


def test_a_person_ranks_in_the_browser(browser, folder, rows):
    key = read_key(folder, rows, 3)
    browser.get((folder / "study/study.html").as_uri())
    videos = "[...document.querySelectorAll('#videos video')]"
    until(browser, f"{videos}.filter(v => v.currentTime > 0).length == 3")
    assert browser.execute_script(f"return {videos}.map(v => v.playbackRate)") == [1, 1, 1]        # no one slows another
    better, worse = sorted("AB", key=lambda letter: key["samples"][0][letter] != "ours")
    for _ in study.CRITERIA:                             # ours is better in each way, on the first sample
        press(browser, better, worse)
    until(browser, "document.querySelectorAll('.criterion.done').length == 3")
    press(browser, "\ue007")                             # Enter: the next sample
    assert browser.find_element("id", "where").text == "sample 2 of 2"
    press(browser, "a")
    browser.refresh()                                    # what was chosen outlives it; it goes on where it was
    assert browser.find_element("id", "count").text == "1 of 2 samples ranked"
    assert browser.find_element("id", "where").text == "sample 2 of 2"
    press(browser, "b", "\ue003", "=", "b")              # taken back with Backspace, then a tie
    browser.find_element("id", "save").click()
    file = downloaded(browser, "ratings.json")
    ratings = study.read_ratings(folder, [file])
    expected = {"Edit Accuracy": [{"ours": 1, "theirs": 2}, {"ours": 1, "theirs": 1}],
                "Content Preservation": [{"ours": 1, "theirs": 2}], "Visual Quality": [{"ours": 1, "theirs": 2}]}
    assert study.by_criterion(ratings) == expected
    assert study.read_ratings(folder, [file, file]) == ratings                             # sent twice, counts once
    browser.execute_script("localStorage.clear()")
    browser.refresh()
    assert browser.find_element("id", "count").text == "0 of 2 samples ranked"
    browser.find_element("id", "load").send_keys(str(file))                                # on another machine
    until(browser, "document.getElementById('count').textContent == '1 of 2 samples ranked'")
    browser.find_element("id", "save").click()
    assert study.read_ratings(folder, [downloaded(browser, "ratings.json")]) == ratings    # and is the same person
    (folder / "other.json").write_text('{"study": "x"}')
    browser.find_element("id", "load").send_keys(str(folder / "other.json"))
    until(browser, "document.getElementById('message').textContent.includes('another study')")
    assert not errors(browser)


def test_letters_are_dragged_clicked_and_copied(browser, folder, rows):
    read_key(folder, rows, 4)
    browser.get((folder / "study/study.html").as_uri())
    browser.execute_script("localStorage.clear()")
    browser.refresh()
    drop = """const [letter, place] = arguments, data = new DataTransfer();
        const box = document.querySelector('.criterion');
        [...box.querySelectorAll('.letter')].find(x => x.innerText == letter)
            .dispatchEvent(new DragEvent('dragstart', { dataTransfer: data }));
        box.querySelectorAll('.place')[place].dispatchEvent(new DragEvent('drop', { dataTransfer: data }))"""
    ranks = "return state.ranks[0]['Edit Accuracy']"
    browser.execute_script(drop, "A", 2)
    browser.execute_script(drop, "B", 1)
    assert browser.execute_script(ranks) == {"A": 2, "B": 1}
    browser.execute_script(drop, "A", 1)
    assert browser.execute_script(ranks) == {"A": 1, "B": 1}
    browser.execute_script("[...document.querySelectorAll('.criterion .letter')].find(x => x.innerText == 'B').click()")
    assert browser.execute_script(ranks) == {"A": 1}
    browser.execute_script("[...document.querySelectorAll('.criterion .letter')].find(x => x.innerText == 'B').click()")
    assert browser.execute_script(ranks) == {"A": 1, "B": 2}
    press(browser, "C")                                  # the ranking before, for the second question
    assert browser.execute_script("return state.ranks[0]['Content Preservation']") == {"A": 1, "B": 2}


@pytest.mark.parametrize("width, scheme", [(390, "light"), (1280, "dark")])
def test_contrast_and_width(browser, folder, rows, width, scheme):
    read_key(folder, rows, 4)
    with screen(browser, width, scheme):
        browser.get((folder / "study/study.html").as_uri())
        browser.find_element("css selector", "#help summary").click()
        check_readable(browser, width)


def test_what_people_said_is_kept_and_counted(folder, rows, tmp_path, capsys):
    key = read_key(folder, rows, 3)
    report_rows = [r for r in rows]
    (folder / "scores.jsonl").write_text("".join(json.dumps(r) + "\n" for r in report_rows))
    (folder / "about.json").write_text(json.dumps(ABOUT))
    assert study.results(folder) is None
    letter = {name: x for x, name in key["samples"][0].items()}

    def said(rater, ours, theirs):
        ranks = {letter["ours"]: ours, letter["theirs"]: theirs}
        file = tmp_path / f"{rater}{ours}{theirs}.json"
        file.write_text(json.dumps({"study": key["study"], "rater": rater, "rankings": [
            {"sample": 0, "criterion": name, "ranks": ranks} for name in study.CRITERIA]}))
        return str(file)
    study.main([str(folder), "--ratings", said("x", 1, 2), said("y", 1, 2), said("z", 2, 1), said("x", 1, 2)])
    found = study.results(folder)
    assert found["raters"] == 3 and len(found["rankings"]["Visual Quality"]) == 3
    assert found["agreement"] == pytest.approx(1 / 3)    # of three pairs of people one agrees
    assert {(r["a"], r["b"]) for r in found["rates"]} == {("ours", "theirs")}
    assert [r["rate"][0] for r in found["rates"]] == pytest.approx([2 / 3] * 3)
    assert found["table"][1][:2] == ["ours over theirs", "3"] and found["table"][1][2].startswith("67%")
    assert "ours over theirs" in capsys.readouterr().out
    report.main([str(folder)])                           # and stays, at each report
    assert "ours over theirs" in (folder / "table.md").read_text()
    assert "People who ranked: 3." in (folder / "report.html").read_text()


def test_the_intervals_of_win_rates_are_clustered(tmp_path):
    """Two people who agree with themselves on 8 samples say as little as two, not as 16, independent judgements."""
    key = {"study": "x", "samples": [{"id": f"s{k}", "A": "ours", "B": "theirs"} for k in range(8)]}
    (tmp_path / "study_key.json").write_text(json.dumps(key))
    (tmp_path / "ratings").mkdir()
    for rater, ranks in (("x", {"A": 1, "B": 2}), ("y", {"A": 2, "B": 1})):
        rankings = [{"sample": k, "criterion": "Visual Quality", "ranks": ranks} for k in range(8)]
        (tmp_path / f"ratings/{rater}.json").write_text(
            json.dumps({"study": "x", "rater": rater, "rankings": rankings}))
    found = study.results(tmp_path)
    rate, = found["rates"]
    assert rate["rate"] == (.5, 0, 1)                    # as one of them, or both, are drawn
    assert found["table"][1][2:] == ["-", "-", "50% [0%, 100%]"]                           # the table has the same


def test_agreement_by_hand():
    def one(rater, **ranks):
        return {"rater": rater, "sample": "s", "criterion": "Visual Quality", "ranks": ranks}
    same = one("x", a=1, b=2, c=3), one("y", a=1, b=2, c=3)
    assert study.agreement(same) == (1, 3)
    assert study.agreement([same[0], one("y", a=3, b=2, c=1)]) == (0, 3)
    assert study.agreement([same[0], one("y", a=1, b=1, c=3)]) == (pytest.approx(2.5 / 3), 3)
    assert study.agreement([same[0]])[1] == 0


def test_ratings_that_are_none(folder, rows, tmp_path):
    key = read_key(folder, rows, 0)
    good = {"sample": 0, "criterion": "Visual Quality", "ranks": {"A": 1, "B": 2}}
    file = tmp_path / "r.json"
    for rated, words in (({"study": "x", "rankings": []}, "another study"), ([], "is no ratings.json"),
                         ({"study": key["study"], "rankings": [{**good, "sample": 9}]}, "is no ratings.json"),
                         ({"study": key["study"], "rankings": [{**good, "sample": -1}]}, "sample -1"),
                         ({"study": key["study"], "rankings": [{**good, "sample": True}]}, "sample True"),
                         ({"study": key["study"], "rankings": [{**good, "criterion": "Taste"}]}, "Taste"),
                         ({"study": key["study"], "rankings": [{**good, "ranks": {"A": 1}}]}, "ranks"),
                         ({"study": key["study"], "rankings": [{**good, "ranks": {"A": 1, "B": 3}}]}, "ranks")):
        file.write_text(json.dumps(rated))
        with pytest.raises(BadInput, match=words):
            study.read_ratings(folder, [str(file)])
    with pytest.raises(BadInput, match="--n first"):
        study.read_ratings(tmp_path, [])
