"""The model's own VLM, and an endpoint over HTTP."""

import json
import re

import numpy as np
import pytest
import torch

from common.files import BadInput
from curation import go, read
from endpoint import Endpoint
from rvedata.stages import Rejected
from rvedata.vlm import LocalVLM
from tiny import world


def test_the_local_vlm(tiny, monkeypatch):
    ask, rows = LocalVLM(tiny, 8), []
    frames = [np.zeros((32, 32, 3), np.uint8)] * 4
    with pytest.raises(Rejected, match="the VLM's answer is not JSON"):
        ask("system", [*frames, "which?"], {})           # its weights are random

    def write(given, limit):
        rows.append(given[0])
        return ['Here it is: {"caption": "grey {and} black"} .']
    monkeypatch.setattr(tiny.vlm, "write", write)
    parts = ["Earlier:", *frames, "one", "Later:", *frames, "two"]
    assert ask("be brief", parts, {}) == {"caption": "grey {and} black"}
    head, earlier, a, between, b, later, question, tail = rows[0]
    assert (earlier, between, later) == ("Earlier:\n", "one\nLater:\n", "two\n")
    tokens = tiny.vlm.see(torch.full((1, 4, 3, 32, 32), -1.))[0]
    torch.testing.assert_close(a, tokens)
    torch.testing.assert_close(b, tokens)
    assert "be brief" in head and "JSON" in question and "assistant" in tail


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


def test_a_service_over_http(movies, begun, monkeypatch, capsys):
    monkeypatch.setenv("OPENAI_API_KEY", "secret-key")
    with Endpoint(serve) as server:
        flags = [*movies.flags, "--workers", 1, "--model", "m", "--base-url", server.url,
                 "--price-in", 10, "--price-out", 100, "--caption-model", "seer"]
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
    out = capsys.readouterr().out                # 1000 tokens in and 100 out are two cents
    assert re.search(r"instructions: \$0\.\d\d00 spent on \d+ calls", out)
    files = [path for path in begun.rglob("*") if path.is_file()]
    assert not any(b"secret-key" in path.read_bytes() for path in files)


@pytest.mark.parametrize("flags, words", [
    ([], "OPENAI_API_KEY: is not set; [^(]*$"),
    (["--base-url", "http://127.0.0.1:9/v1"], "http://127.0.0.1:9/v1: cannot be reached")])
def test_a_service_that_is_not_there(movies, begun, monkeypatch, flags, words):
    monkeypatch.delenv("OPENAI_API_KEY", raising=False)
    monkeypatch.delenv("OPENAI_BASE_URL", raising=False)
    with pytest.raises(BadInput, match=f"captions: {words}"):           # --skip-bad does not help
        go("icvg", begun, *movies.flags, "--skip-bad", *flags, ask=None)
    assert read(begun / "captions.jsonl") == []
