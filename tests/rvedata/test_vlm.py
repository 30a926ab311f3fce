"""A VLM behind an endpoint, over HTTP."""

import json

import pytest

from common.files import BadInput
from curation import go, read
from endpoint import Endpoint
from tiny import world


first = []                                               # pictures of the first clip that came


def serve(body, n):
    """What an endpoint says to a request: `seer` captions, and always refuses the first clip."""
    content = body["messages"][1]["content"]
    fields = body["response_format"]["json_schema"]["schema"]["properties"]
    pictures = [c["image_url"]["url"] for c in content if c["type"] == "image_url"]
    text = [c["text"] for c in content if c["type"] == "text"][-1:]
    assert body["model"] == ("seer" if "caption" in fields else "m")
    if "caption" in fields:
        assert len(pictures) == 4
        refusal = {"role": "assistant", "content": None, "refusal": "not such a film"}
        first[:] = first or pictures
        return {"message": refusal} if pictures == first else json.dumps({"caption": "a place"})
    if "fits" in fields:
        assert len(pictures) == 2
        states = "yes" if "remove the ball" in text[0] else "no"
        return json.dumps({"states_operation": states, "fits": "yes", "reason": "so it is"})
    types = fields["type"]["enum"]
    assert len(pictures) == 8 and types == world.TYPES["icvg"]
    was_refused = text[0].startswith("Your answer was")
    says = "its hour has come at last" if was_refused else "please remove the ball"
    return json.dumps({"type": types[0], "rationale": "so it is", "instruction": says})


def test_a_service_over_http(movies, begun, monkeypatch):
    monkeypatch.setenv("OPENAI_API_KEY", "secret-key")
    with Endpoint(serve) as server:
        flags = [*movies.flags, "--workers", 1, "--model", "m", "--base-url", server.url,
                 "--caption-model", "seer"]
        go("icvg", begun, *flags, ask=None)
        paid = len(server.requests)
        go("icvg", begun, *flags, ask=None)
        assert len(server.requests) == paid              # all of it is in the file
    triplets, captions = read(begun / "triplets.jsonl"), read(begun / "captions.jsonl")
    replies = read(begun / "replies.jsonl") + read(begun / "replies-captions.jsonl")
    good = [r["key"] for r in replies if r["reply"]]
    assert len(good) == len(set(good)) == 17 + 4 * len(triplets)
    assert [r["rejected"] for r in captions if "rejected" in r] == [
        "the VLM gave no answer: refused: not such a film"]
    assert {r["instruction"] for r in triplets} == {"its hour has come at last"}
    files = [path for path in begun.rglob("*") if path.is_file()]
    assert not any(b"secret-key" in path.read_bytes() for path in files)


def test_no_key(movies, tmp_path, monkeypatch):
    monkeypatch.delenv("OPENAI_API_KEY", raising=False)
    monkeypatch.delenv("OPENAI_BASE_URL", raising=False)
    with pytest.raises(BadInput, match="^OPENAI_API_KEY: is not set"):
        go("icvg", tmp_path, *movies.flags, ask=None)
    assert not list(tmp_path.iterdir())                  # no work was done
