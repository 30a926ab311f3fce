"""Files and rows: what can be written, what kills leave, and whole rows whatever happens."""

import math
import os
import resource
import subprocess
import threading

import pytest

from common.files import BadInput, check_writable, remove_leftovers
from common.jsonl import Store, in_threads, read_rows, write_rows


def test_what_can_be_written_is_tried_and_leaves_nothing(tmp_path):
    for path in (tmp_path / "new/folder/a.txt", tmp_path / "b.PNG"):
        check_writable(path, ".txt", ".png")
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (1000, before[1]))        # a full disk
    try:
        with pytest.raises(BadInput, match="a.txt: cannot be written .*; choose .* has room"):
            check_writable(tmp_path / "a.txt")
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)
    assert not list(tmp_path.iterdir())


def test_what_cannot_be_written_is_found_at_once(tmp_path):
    (tmp_path / "file").write_text("x")
    for path, words in ((tmp_path, "it is a folder"),
                        (tmp_path / "file" / "a", "file: Not a directory")):
        with pytest.raises(BadInput, match=f"cannot be written .*{words}"):
            check_writable(path)
    with pytest.raises(BadInput, match=r"r.txt: is written as .png; let its name end so"):
        check_writable(tmp_path / "r.txt", ".png")


def test_what_a_killed_run_left_is_removed(tmp_path):
    dead = subprocess.Popen(["true"])
    dead.wait()
    stale = tmp_path / f"clips/a.tmp{dead.pid}.mp4"
    others = [tmp_path / f"clips/a.tmp{os.getpid()}.mp4", tmp_path / "clips/a.tmpl.mp4"]
    folder = tmp_path / f"model.tmp{dead.pid}"
    for path in (stale, *others, folder / "model.json"):
        path.parent.mkdir(exist_ok=True)
        path.write_text("x")
    remove_leftovers(tmp_path)
    assert not stale.exists() and not folder.exists() and all(path.exists() for path in others)


# ------------------------------------------------------------------------------------------- rows

def test_rows_come_back_by_key_and_with_their_places(tmp_path):
    path = tmp_path / "new" / "a.jsonl"
    wanted = [{"id": "x", "a": 1}, {"id": "y", "b": "two\nlines, é"}, {"id": "x"},
              {"id": "z", "bad": 1}]
    with Store(path, "id", counts=lambda row: "bad" not in row) as store:
        for row in wanted:
            store.append(row)
        assert store.rows("x") == [wanted[0], wanted[2]] and store.rows("none") == []
    again = Store(path, "id", counts=lambda row: "bad" not in row)
    assert again.rows("x") == [wanted[0], wanted[2]] and "y" in again and "z" not in again
    assert list(again) == list(read_rows(path)) == wanted and len(again) == 2
    assert not list(read_rows(tmp_path / "none.jsonl")) and not len(Store(tmp_path / "none.jsonl"))


@pytest.mark.parametrize("length", [5, 2 ** 20])
def test_half_a_line_is_cut_off_and_no_other(tmp_path, length):
    path = tmp_path / "a.jsonl"
    whole = b'{"key": "a"}\n{"key": "b"}\n'
    path.write_bytes(whole + b"x" * length)
    with Store(path) as store:
        assert path.read_bytes() == whole
        store.append({"key": "c"})
        assert store.rows("c") == [{"key": "c"}]
    assert list(read_rows(path)) == [{"key": "a"}, {"key": "b"}, {"key": "c"}]


def test_one_run_at_a_time(tmp_path):
    early = Store(tmp_path / "a.jsonl")
    with Store(tmp_path / "a.jsonl") as store:
        with pytest.raises(BadInput, match="a.jsonl: another run is writing it"):
            Store(tmp_path / "a.jsonl").open()
        store.append({"key": "a"})
    with early:                                          # it has what was written meanwhile
        assert early.rows("a") == [{"key": "a"}]
    with pytest.raises(BadInput, match="cannot be written"):
        Store(tmp_path / "a.jsonl" / "b.jsonl").open()


@pytest.mark.parametrize("line, words", [
    ("not JSON", "no reply of ours"), ("[1]", "no reply of ours"), ('{"a": 1}', "fields a, b"),
    ('{"a": 1, "b": NaN}', "NaN is no JSON")])
def test_a_line_that_is_not_ours_is_named(tmp_path, line, words):
    path = tmp_path / "a.jsonl"
    path.write_text('{"a": 1, "b": 2}\n' + line + "\n")
    with pytest.raises(BadInput, match=rf"a\.jsonl:2: is no reply of ours .*;") as error:
        list(read_rows(path, "reply", ("a", "b")))
    assert words in str(error.value)


def test_there_is_no_nan(tmp_path):
    with Store(tmp_path / "a.jsonl") as store:
        with pytest.raises(ValueError):
            store.append({"key": "a", "a": math.nan})
    assert list(read_rows(tmp_path / "a.jsonl")) == []
    write_rows(tmp_path / "b.jsonl", [{"a": 1}])
    with pytest.raises(ValueError):
        write_rows(tmp_path / "b.jsonl", [{"a": 2}, {"a": [math.nan]}])
    assert list(read_rows(tmp_path / "b.jsonl")) == [{"a": 1}]      # the whole file or nothing


def test_what_was_found_out_is_not_found_out_again(tmp_path):
    path = tmp_path / "kept.jsonl"
    with Store(path) as store:
        assert store.find(["a", 1], lambda: {"x": 1}) == store.find(["a", 1], None) == {"x": 1}
        with pytest.raises(ZeroDivisionError):
            store.find(["b"], lambda: 1 / 0)
    with Store(path) as store:
        assert store.find(["a", 1], None) == {"x": 1}


def test_threads_draw_what_they_need_and_finish_what_they_have_begun():
    drawn, begun, ended, freed = [], [], [], threading.Event()

    def items():
        for k in range(50):
            drawn.append(k)
            assert len(drawn) - len(ended) <= 5          # two for each thread, and the next
            yield k

    def work(k):
        begun.append(k)
        if k == 7:
            freed.set()
            raise ValueError("seven")
        if k == 8:
            freed.wait(20)
        ended.append(k)
        return k * k
    assert sorted(in_threads(work, range(7), 2)) == [(k, k * k) for k in range(7)]
    ended.clear(), begun.clear()
    with pytest.raises(ValueError, match="seven"):
        list(in_threads(work, items(), 2))
    assert sorted([*ended, 7]) == sorted(begun) and len(begun) < 12
