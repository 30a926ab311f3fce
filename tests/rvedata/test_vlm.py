"""The model's own VLM, and an endpoint over HTTP."""

import json
import re

import numpy as np
import pytest
import torch

from common.files import BadInput
from curation import go, read, with_shots
from endpoint import Endpoint
from rvedata import vlm
from rvedata.stages import Rejected
from rvedata.vlm import LocalVLM
from tiny import world


def test_the_local_vlm(tiny, monkeypatch):
    ask, rows = LocalVLM(tiny, 8), []
    frames = [np.zeros((32, 32, 3), np.uint8)] * 4
    with pytest.raises(Rejected, match="the VLM's answer is not JSON"):
        ask("system", [*frames, "which?"], {})           # its weights are random

    def write(model, given, limit):
        rows.append(given[0])
        return ['Here it is: {"caption": "grey {and} black"} .']
    monkeypatch.setattr(vlm, "write", write)
    parts = ["Earlier:", *frames, "one", "Later:", *frames, "two"]
    assert ask("be brief", parts, {}) == {"caption": "grey {and} black"}
    head, earlier, a, between, b, later, question, tail = rows[0]
    assert "be brief" in head and (earlier, between, later) == ("Earlier:\n", "one\nLater:\n", "two\n")
    tokens = tiny.vlm.see(torch.full((1, 4, 3, 32, 32), -1.))[0]
    torch.testing.assert_close(a, tokens)
    torch.testing.assert_close(b, tokens)
    assert "JSON" in question and "assistant" in tail


def test_a_service_over_http(icvg, movies, tmp_path, monkeypatch, capsys):
    monkeypatch.setenv("OPENAI_API_KEY", "secret-key")
    ill, first = [True], []

    def answer(body, n):
        schema, content = body["response_format"]["json_schema"]["schema"], body["messages"][1]["content"]
        pictures = [c["image_url"]["url"] for c in content if c["type"] == "image_url"]
        texts = [c["text"] for c in content if c["type"] == "text"]
        if "fits" in schema["properties"]:
            assert len(pictures) == 2 and body["model"] == "m"
            states = "yes" if "remove the ball" in texts[-1] else "no"
            return json.dumps({"states_operation": states, "fits": "yes", "reason": "so it is"})
        assert len(pictures) == (4 if "caption" in schema["properties"] else 8)
        assert body["model"] == ("seer" if "caption" in schema["properties"] else "m")
        if "caption" in schema["properties"]:
            if ill[0] and len(server.requests) > 12:
                return 503, {"error": {"message": "overloaded"}}
            first[:] = first or pictures
            if pictures == first:                        # this one is never answered
                return {"message": {"role": "assistant", "content": None, "refusal": "not such a film"}}
            return "no JSON at all" if n == 0 and len(server.requests) % 5 == 0 else json.dumps({"caption": "a place"})
        sent_back = texts[-1].startswith("Your answer was")
        return json.dumps(answer_of(body) | ({} if sent_back else {"instruction": "please remove the ball"}))

    def answer_of(body):
        types = body["response_format"]["json_schema"]["schema"]["properties"]["type"]["enum"]
        assert types == world.TYPES["icvg"] and "Never use the verbs add, alter" in body["messages"][0]["content"]
        return {"type": types[0], "rationale": "so it is", "instruction": "its hour has come at last"}
    with_shots(icvg, tmp_path)
    with Endpoint(answer) as server:
        flags = ["--movies", movies.folder, "--least", 9, "--workers", 2, "--base-url", server.url, "--model", "m",
                 "--price-in", 10, "--price-out", 100, "--caption-model", "seer"]
        with pytest.raises(BadInput, match="captions: the VLM gave no answer: error 503"):
            go("icvg", tmp_path, *flags, ask=None)
        ill[0] = False
        go("icvg", tmp_path, *flags, ask=None)
        paid = len(server.requests)
        go("icvg", tmp_path, *flags, ask=None)
        assert len(server.requests) == paid              # all of it is in the file
    replies = read(tmp_path / "replies.jsonl") + read(tmp_path / "replies-captions.jsonl")
    good = [r["key"] for r in replies if r["reply"] and r["reply"].startswith("{")]
    assert len(good) == len(set(good)) == 17 + 4 * len(read(tmp_path / "triplets.jsonl"))  # and nothing was paid twice
    captions = read(tmp_path / "captions.jsonl")
    assert [r["rejected"] for r in captions if "rejected" in r] == ["the VLM gave no answer: refused: not such a film"]
    assert len(captions) == 18
    assert {r["instruction"] for r in read(tmp_path / "triplets.jsonl")} == {"its hour has come at last"}
    out = capsys.readouterr().out                        # 1000 tokens in and 100 out are two cents
    assert re.search(r"instructions: \$0\.\d\d00 spent on \d+ calls", out)
    assert not any(b"secret-key" in p.read_bytes() for p in tmp_path.rglob("*") if p.is_file())


def test_a_service_that_is_not_there(icvg, movies, tmp_path, monkeypatch):
    monkeypatch.delenv("OPENAI_API_KEY", raising=False)
    monkeypatch.delenv("OPENAI_BASE_URL", raising=False)
    with_shots(icvg, tmp_path)
    flags = ["--movies", movies.folder, "--least", 9, "--skip-bad"]                        # which does not help
    with pytest.raises(BadInput, match="captions: OPENAI_API_KEY: is not set; [^(]*$"):
        go("icvg", tmp_path, *flags, ask=None)
    with pytest.raises(BadInput, match="captions: http://127.0.0.1:9/v1: cannot be reached"):
        go("icvg", tmp_path, *flags, "--base-url", "http://127.0.0.1:9/v1", ask=None)
    assert read(tmp_path / "captions.jsonl") == []
