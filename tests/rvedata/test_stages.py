"""Files of JSON lines: any order, streams, what fails, and what is read back."""

import pytest

from common.files import BadInput
from curation import read, write
from rvedata.stages import Rejected, read_accepted, read_grouped, run_stage


def test_grouped_reads_any_order(tmp_path):
    lines = [{"id": "b", "k": 2}, {"id": "c", "k": 1}, {"id": "a", "k": 2},
             {"id": "d", "failed": "x"}, {"id": "e", "rejected": "y"}]
    path = tmp_path / "x.jsonl"
    write(path, lines)
    with path.open("a") as file:
        file.write('{"id": "f", "k"')                    # a crash
    found = [(k, [r["id"] for r in rows]) for k, rows in read_grouped(path, lambda r: r["k"])]
    assert found == [(1, ["c"]), (2, ["a", "b"])]
    assert list(read_grouped(tmp_path / "none.jsonl", lambda r: r["k"])) == []


def test_what_fails_is_skipped_and_tried_again(tmp_path):
    path, tried = tmp_path / "x.jsonl", []

    def work(item):
        tried.append(item["id"])
        if tried.count(item["id"]) == 1 and item["id"] in "ab":
            raise BadInput("status 500") if item["id"] == "a" else PermissionError("not yours")
        if item["id"] == "c":
            raise Rejected("dull", instruction="do more")
        return {}
    items = [{"id": name, "shown": {"video": name}} for name in "abcd"]
    for item, error in zip(items, ("status 500", "not yours")):
        with pytest.raises(BadInput, match=rf"x: {error} \(or pass --skip-bad\)"):
            run_stage(path, [item], work)
    tried.clear()
    assert run_stage(path, items, work, skip_bad=True) == {"failed": 2, "rejected": 1, "done": 1}
    assert run_stage(path, items, work, skip_bad=True) == {"done": 2}
    assert {"id": "c", "rejected": "dull", "video": "c", "instruction": "do more"} in read(path)
    assert [r["id"] for r in read_accepted(path)] == ["d", "a", "b"]
