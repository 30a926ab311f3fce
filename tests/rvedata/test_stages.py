"""Files of JSON lines: any order, interrupted writes, streams."""

import json

import pytest

from common.files import BadInput
from curation import read
from rvedata.stages import read_accepted, read_grouped, run_stage


def test_grouped_reads_any_order(tmp_path):
    lines = [{"id": "b", "k": 2}, {"id": "c", "k": 1}, {"id": "a", "k": 2}, {"id": "d", "failed": "x"},
             {"id": "e", "rejected": "y"}]
    (tmp_path / "x.jsonl").write_text("".join(json.dumps(r) + "\n" for r in lines) + '{"id": "f", "k"')
    found = [(k, [r["id"] for r in rows]) for k, rows in read_grouped(tmp_path / "x.jsonl", lambda r: r["k"])]
    assert found == [(1, ["c"]), (2, ["a", "b"])]
    assert list(read_grouped(tmp_path / "none.jsonl", lambda r: r["k"])) == []
    (tmp_path / "x.jsonl").write_text('{"id": "1"}\n{"broken\n')
    with pytest.raises(BadInput, match="x.jsonl:2: is no record of ours"):
        list(read_grouped(tmp_path / "x.jsonl", lambda r: r["id"]))


def test_stage_streams(tmp_path):
    taken, done = [], []

    def items():
        for k in range(200):
            taken.append(k)
            assert len(taken) - len(done) <= 9           # it never runs ahead: two for each of the workers
            yield {"id": k}
    run_stage(tmp_path / "x.jsonl", items(), lambda item: done.append(item["id"]) or {"square": item["id"] ** 2}, workers=4)
    assert sorted(r["square"] for r in read(tmp_path / "x.jsonl")) == [k * k for k in range(200)]


@pytest.mark.parametrize("line, words", [
    ("[1]", "x.jsonl:1: is no record of ours"), ('{"shots": []}', "x.jsonl:1: is no record of ours"),
    ('{"id": 7}', "has no id of type str"), ('{"id": "a"}', "has no shots of type list"),
    ('{"id": "a", "shots": "all", "fps": 24}', "has no shots of type list"),
    ('{"id": "a", "shots": [], "fps": "fast"}', "has no fps of type float"),
    ('{"id": "a", "shots": [], "fps": NaN}', "x.jsonl:1: is no record of ours"),
])
def test_what_is_read_back_is_checked(line, words, tmp_path):
    (tmp_path / "x.jsonl").write_text(line + "\n")
    with pytest.raises(BadInput, match=words):
        list(read_accepted(tmp_path / "x.jsonl", shots=list, fps=float))


def test_one_run_at_a_time(tmp_path):
    def items():
        with pytest.raises(BadInput, match="another run is writing it"):
            run_stage(tmp_path / "x.jsonl", [{"id": "b"}], dict)
        yield {"id": "a"}
    run_stage(tmp_path / "x.jsonl", items(), dict)
    assert read(tmp_path / "x.jsonl") == [{"id": "a"}]
