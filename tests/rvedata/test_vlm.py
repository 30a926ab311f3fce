"""A VLM behind an endpoint: over HTTP, and what becomes of its answers."""

import json
from types import SimpleNamespace

import pytest

from common.files import BadInput
from curation import go, knows, read
from endpoint import Endpoint
from rvebench.ask import Missing
from rvedata.instructions import asking
from rvedata.stages import Rejected, StopRun


def serve(body, n):
    """What the two models of an endpoint say: `seer` describes, `m` writes and checks."""
    schema = body["response_format"]["json_schema"]["schema"]
    texts = [part["text"] for part in body["messages"][1]["content"] if part["type"] == "text"]
    is_caption = "caption" in schema["properties"]
    assert body["model"] == ("seer" if is_caption else "m")
    return json.dumps({"caption": "a place"} if is_caption else knows("", texts, schema))


def test_a_service_over_http(movies, begun, monkeypatch):
    monkeypatch.setenv("OPENAI_API_KEY", "secret-key")
    with Endpoint(serve) as server:
        flags = [*movies.flags, "--model", "m", "--base-url", server.url, "--caption-model", "seer"]
        go("icvg", begun, *flags, ask=None)
        paid = len(server.requests)
        for name in ("captions", "instructions"):
            (begun / f"{name}.jsonl").unlink()
        go("icvg", begun, *flags, ask=None)
        assert len(server.requests) == paid              # all of it is in the file
    triplets = read(begun / "triplets.jsonl")
    assert len(triplets) > 3 and len(read(begun / "replies-captions.jsonl")) == 18
    assert len(read(begun / "replies.jsonl")) == 2 * len(triplets)
    files = [path for path in begun.rglob("*") if path.is_file()]
    assert not any(b"secret-key" in path.read_bytes() for path in files)


@pytest.mark.parametrize("answer, error", [
    (Missing("refused: no"), Rejected), (Missing("late", unanswered=True), BadInput),
    (BadInput("a wrong key"), StopRun)])
def test_what_is_no_answer(answer, error):
    def ask(question):
        if isinstance(answer, Exception):
            raise answer
        return answer
    with pytest.raises(error) as raised:
        asking(SimpleNamespace(ask=ask))("system", ["text"], {})
    assert type(raised.value) is error
