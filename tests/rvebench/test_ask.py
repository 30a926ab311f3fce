"""ask.py against an endpoint of the tests' own: good, late and broken answers, money."""

import base64
import io
import json
import re
from contextlib import ExitStack
from functools import partial

import numpy as np
import pytest
from PIL import Image

from common.files import BadInput
from common.jsonl import in_threads
from endpoint import Endpoint
from rvebench import ask
from rvebench.ask import Client, Question, parse_json

PAID = "65a756857c82dfaa056a95cdc07d3bca4adb184e7fc61b0c004a8831c1604dda"


@pytest.fixture
def serve(monkeypatch, tmp_path):
    """serve(answer, ...) -> an endpoint, and what makes a client that asks it."""
    monkeypatch.delenv("OPENAI_API_KEY", raising=False)
    monkeypatch.delenv("OPENAI_BASE_URL", raising=False)
    with ExitStack() as stack:
        def start(answer, **more):
            server = stack.enter_context(Endpoint(answer))
            return server, partial(Client, tmp_path / "replies.jsonl", "m", server.url, pause=.001,
                                   **more)
        yield start


def number(reply):
    """A validator: {"n": 0..10}."""
    n = parse_json(reply).get("n")
    if not 0 <= n <= 10:
        raise ValueError(f"n is {n!r}, not a number from 0 to 10")
    return n


def question(*parts, **more):
    return Question("test-1", "You count.", list(parts), {"type": "object"}, number, **more)


def text_of(body):
    return next(part["text"] for part in body["messages"][1]["content"] if part["type"] == "text")


def says(content, **choice):
    """An answer with this message's content, as a choice of an endpoint."""
    return {"message": {"role": "assistant", "content": content}} | choice


# ------------------------------------------------------------------------------------ what is sent

def test_what_the_endpoint_gets(serve, tmp_path, monkeypatch):
    server, connect = serve(lambda body, n: '{"n": 3}')
    monkeypatch.setenv("OPENAI_API_KEY", "secret-of-the-test")
    rng = np.random.default_rng(0)
    small, large = (rng.integers(0, 256, size, np.uint8) for size in ((4, 6, 3), (40, 200, 3)))
    schema = {"type": "object", "properties": {"n": {"type": "integer"}}}
    parts = ["first", small, "then", large]
    client, asked = connect(), Question("p-7", "You count.", parts, schema, number)
    assert [value for _, value in in_threads(client.ask, [asked] * 3, 3)] == [3] * 3
    body, = server.requests
    assert body["model"] == "m" and "temperature" not in body
    assert server.headers[0]["Authorization"] == "Bearer secret-of-the-test"
    assert body["response_format"]["json_schema"]["schema"] == schema
    system, user = body["messages"]
    assert json.dumps(schema) in system["content"]       # not every endpoint enforces a schema
    assert [part["type"] for part in user["content"]] == ["text", "image_url"] * 2
    urls = [user["content"][k]["image_url"]["url"].split(",") for k in (1, 3)]
    assert [head for head, _ in urls] == ["data:image/png;base64", "data:image/jpeg;base64"]
    first, second = (np.asarray(Image.open(io.BytesIO(base64.b64decode(p)))) for _, p in urls)
    assert np.array_equal(first, small) and second.shape == large.shape
    assert "secret-of-the-test" not in (tmp_path / "replies.jsonl").read_text()


def test_the_key_of_a_question_is_all_that_the_answer_depends_on():
    picture = np.zeros((2, 3, 3), np.uint8)

    def key(prompt="p", system="s", parts=("a", picture), schema={}, model="m", endpoint="e"):
        return Question(prompt, system, list(parts), schema, number).key(model, endpoint)
    others = [key("q"), key(system="t"), key(parts=("b", picture)), key(parts=("a", picture + 1)),
              key(parts=(picture, "a")), key(parts=("a", picture.reshape(3, 2, 3))),
              key(schema={"x": 1}), key(model="n"), key(endpoint="f")]
    assert len({key(), *others}) == len(others) + 1
    assert key() == PAID                                 # of a file that has been paid for


# --------------------------------------------------------------------------------- good and broken

FAULTS = {                                               # what comes, what the reason says, kept?
    "500": ((500, {"error": {"message": "oh"}}), "500.*oh", False),
    "a web page": (b"<html>not an API</html>", "no chat completion: not an API", False),
    "a broken connection": (ConnectionResetError, "no answer came, 3 times", False),
    "an error": (b'{"error": {"message": "overloaded"}}', "overloaded", False),
    "refusal": ({"message": {"refusal": "I cannot"}}, "refused.*cannot", True),
    "truncated": (says('{"n": 7}', finish_reason="length"), "truncated", True),
    "empty": ("", "empty", True),
    "11": ('{"n": 11}', "n is 11", True)}


@pytest.mark.parametrize("fault", FAULTS)
def test_what_is_broken_is_asked_again_and_then_missing(fault, serve):
    said, reason, kept = FAULTS[fault]
    asked = [question("good"), question("bad"), question("once"), question("good")]

    def answer(body, n):
        if not (text_of(body) == "bad" or text_of(body) == "once" and n == 0):
            return '{"n": 7}'
        if said is ConnectionResetError:                 # it is closed without a word
            raise said
        return said
    server, connect = serve(answer, tries=3)
    client = connect()
    good, bad, once, twin = map(client.ask, asked)
    texts = [text_of(body) for body in server.requests]
    assert [texts.count(text) for text in ("good", "bad", "once")] == [1, 3, 2]
    assert good == once == twin == 7
    assert re.search(reason, bad.reason) and bad.unanswered is not kept
    client.close()
    again = list(map(connect().ask, asked))
    if kept:                                             # three replies were paid for: enough
        assert again == [good, bad, once, twin] and len(server.requests) == len(texts)
    else:                                                # none is in the file, so it is asked for
        assert len(client.replies) == 2 and len(server.requests) == len(texts) + 3


@pytest.mark.parametrize("said, words", [
    ((401, {"error": {"message": "bad key"}}), "refuses: 401: .*bad key.*; check OPENAI_API_KEY"),
    ((429, {"error": {"message": "pay", "code": "insufficient_quota"}}), "refuses: 429: .*pay"),
    ((400, {"error": "no pictures"}), "first 5 questions all failed.*no pictures.*--base-url")])
def test_what_no_retry_mends_ends_the_run(said, words, serve):
    server, connect = serve(lambda body, n: said, tries=1)
    client = connect()
    with pytest.raises(BadInput, match=words):
        for k in range(50):
            client.ask(question(str(k)))
    assert len({text_of(body) for body in server.requests}) <= ask.HANDFUL
    assert not len(client.replies)                       # an error is never kept


def test_without_a_key_or_a_proxy(serve, tmp_path, monkeypatch):
    with pytest.raises(BadInput, match="^OPENAI_API_KEY: is not set"):
        Client(tmp_path / "r.jsonl", "m")
    monkeypatch.setenv("https_proxy", "socks5h://localhost:9")
    with pytest.raises(BadInput, match="cannot be used .*; give an http:// proxy"):
        Client(tmp_path / "r.jsonl", "m", "http://127.0.0.1:9/v1")
    assert not (tmp_path / "r.jsonl").exists()


# --------------------------------------------------------------------------- endpoints as they are

@pytest.mark.parametrize("refuses, status, dialect", [
    ({"json_schema"}, 422, ("max_completion_tokens", "json_object")),
    ({"max_completion_tokens", "json_schema", "json_object"}, 400, ("max_tokens", None))])
def test_an_endpoint_that_knows_less_is_asked_more_plainly(refuses, status, dialect, serve):
    def form_of(body):
        return body.get("response_format", {}).get("type")

    def answer(body, n):
        if refuses & {*body, form_of(body)}:
            return status, {"error": {"message": "unsupported"}}
        return '{"n": 3}'
    server, connect = serve(answer)
    client = connect()
    assert [client.ask(question(str(k))) for k in range(5)] == [3] * 5
    good = server.requests[-5:]                          # found once, then remembered
    assert all(dialect[0] in body and form_of(body) == dialect[1] for body in good)


def test_a_reasoning_model_that_uses_up_its_tokens(serve):
    def answer(body, n):
        if body["max_completion_tokens"] < 5000:
            return says("", finish_reason="length")
        return '<think>two and two {"n": 5}</think> {"n": 4}'
    client = serve(answer)[1]()
    reason = client.ask(question("a")).reason
    assert re.search("truncated at 2048 tokens with nothing answered.*higher", reason)
    assert client.ask(question("a", max_tokens=8000)) == 4 and client.calls == 5


@pytest.mark.parametrize("reply", [
    'Sure!\n```\n{"a": 1}\n```\nHope it helps {smile}.', '<think>{"a": 2}</think>{"a": 1}',
    'no {"a": 2} yet</think>\n\n{"a": 1}', 'The scores: {"a": 1} and again {"a": 1}'])
def test_the_json_is_found(reply):
    assert parse_json(reply) == {"a": 1}


@pytest.mark.parametrize("reply", [
    '{"a": 1', '{"a": 1} or {"a": 2}', '<think>{"a": 1}', '{"a":' * 50_000, "[1]"])
def test_what_has_no_json(reply):
    with pytest.raises(ValueError, match="not JSON"):
        parse_json(reply)
