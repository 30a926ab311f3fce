"""common/jsonl.py: whole rows, whatever happens while they are written."""

import json
import math

import pytest

from common.files import BadInput
from common.jsonl import BLOCK, Cache, JsonLines, from_json, read_rows, to_json, write_rows


def rows(path):
    return [row for _, row in read_rows(path)]


def test_rows_come_back_with_their_places(tmp_path):
    path = tmp_path / "new" / "a.jsonl"
    wanted = [{"a": 1}, {"b": "two\nlines, é"}, {}]
    with JsonLines(path) as file:
        for row in wanted:
            file.append(row)
    assert rows(path) == wanted and rows(tmp_path / "none.jsonl") == []
    content = path.read_bytes()
    for offset, row in read_rows(path):
        assert json.loads(content[offset:].splitlines()[0]) == row


@pytest.mark.parametrize("length", [0, 5, BLOCK - 3, 2 * BLOCK + 1])
def test_half_a_line_is_cut_off_and_no_other(tmp_path, length):
    path = tmp_path / "a.jsonl"
    path.write_bytes(b'{"a": 1}\n{"b": 2}\n' + b"x" * length)
    assert rows(path) == [{"a": 1}, {"b": 2}]
    with JsonLines(path) as file:
        assert path.read_bytes() == b'{"a": 1}\n{"b": 2}\n'
        file.append({"c": 3})
    assert rows(path) == [{"a": 1}, {"b": 2}, {"c": 3}]
    only_half = tmp_path / "b.jsonl"
    only_half.write_bytes(b"{" * length)
    JsonLines(only_half).close()
    assert only_half.read_bytes() == b""


def test_one_run_at_a_time(tmp_path):
    with JsonLines(tmp_path / "a.jsonl"):
        with pytest.raises(BadInput, match="a.jsonl: another run is writing it"):
            JsonLines(tmp_path / "a.jsonl")
    JsonLines(tmp_path / "a.jsonl").close()
    with pytest.raises(BadInput, match="cannot be written"):
        JsonLines(tmp_path)


@pytest.mark.parametrize("line, words", [
    ("not JSON", "no reply of ours"), ("[1]", "no reply of ours"), ('{"a": 1}', "fields a, b"),
    ('{"a": 1, "b": NaN}', "NaN is no JSON"), ("[" * 100_000, "nested too deeply")])
def test_a_line_that_is_not_ours_is_named(tmp_path, line, words):
    path = tmp_path / "a.jsonl"
    path.write_text('{"a": 1, "b": 2}\n' + line + "\n")
    with pytest.raises(BadInput, match=rf"a\.jsonl:2: is no reply of ours .*; delete this line") as error:
        list(read_rows(path, "reply", ("a", "b")))
    assert words in str(error.value)


@pytest.mark.parametrize("value", [math.nan, math.inf, -math.inf])
def test_there_is_no_nan(tmp_path, value):
    with pytest.raises(ValueError):
        to_json({"a": [value]})
    with pytest.raises(ValueError):
        from_json(json.dumps(value))
    with JsonLines(tmp_path / "a.jsonl") as file:
        with pytest.raises(ValueError):
            file.append({"a": value})
    assert rows(tmp_path / "a.jsonl") == []
    write_rows(tmp_path / "b.jsonl", [{"a": 1}])
    with pytest.raises(ValueError):
        write_rows(tmp_path / "b.jsonl", [{"a": 2}, {"a": value}])
    assert rows(tmp_path / "b.jsonl") == [{"a": 1}]      # the whole file or nothing


def test_the_cache_finds_out_once(tmp_path):
    found, path = [], tmp_path / "a/kept.jsonl"

    def find():
        found.append(1)
        return {"x": len(found)}

    def fail():
        raise ZeroDivisionError
    first = Cache(path)
    assert first.get(["a", 1], find) == {"x": 1}
    first.close()
    again = Cache(path)
    assert again.get(["a", 1], find) == {"x": 1} and again.get(["a", 2], find) == {"x": 2} and len(found) == 2
    again.close()
    path.write_bytes(path.read_bytes()[:-3])             # a crash
    third = Cache(path)
    assert third.get(["a", 1], find) == {"x": 1} and third.get(["a", 2], find) == {"x": 3}
    with pytest.raises(ZeroDivisionError):
        third.get(["b"], fail)
    third.close()
    assert len(rows(path)) == 2
    path.write_text("{}\n")
    with pytest.raises(BadInput, match="kept.jsonl:1: is no line of ours"):
        Cache(path)
