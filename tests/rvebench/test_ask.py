"""ask.py against an endpoint of the tests' own: good, late and broken answers, money."""

import base64
import io
import json
import re
import threading

import numpy as np
import pytest
from PIL import Image

from common.files import BadInput
from endpoint import Endpoint
from rvebench import ask
from rvebench.ask import Client, Missing, Question, image_tokens, parse_json


@pytest.fixture(autouse=True)
def no_key(monkeypatch):
    monkeypatch.delenv("OPENAI_API_KEY", raising=False)
    monkeypatch.delenv("OPENAI_BASE_URL", raising=False)


def number(reply):
    """A validator: {"n": 0..10}."""
    n = parse_json(reply).get("n")
    if isinstance(n, bool) or not isinstance(n, int) or not 0 <= n <= 10:
        raise ValueError(f"n is {n!r}, not a whole number from 0 to 10")
    return n


def question(*parts, **more):
    return Question("test-1", "You count.", list(parts), {"type": "object"}, number, **more)


def questions(n):
    return [question(str(k)) for k in range(n)]


def text_of(body):
    return next(part["text"] for part in body["messages"][1]["content"] if part["type"] == "text")


def rows(path):
    return [json.loads(line) for line in path.read_text().splitlines()]


def says(content, **choice):
    """An answer with this message's content, as a choice of an endpoint."""
    return {"message": {"role": "assistant", "content": content}} | choice


# ------------------------------------------------------------------------------------ what is sent

def test_what_the_endpoint_gets(tmp_path, monkeypatch):
    monkeypatch.setenv("OPENAI_API_KEY", "secret-of-the-test")
    rng = np.random.default_rng(0)
    small, large = (rng.integers(0, 256, size, np.uint8) for size in ((4, 6, 3), (40, 200, 3)))
    schema = {"type": "object", "properties": {"n": {"type": "integer"}}}
    cache = tmp_path / "new" / "replies.jsonl"
    asked = Question("p-7", "You count.", ["first", small, "then", large], schema, number,
                     label="x")
    with Endpoint(lambda body, n: '{"n": 3}') as server:
        assert Client(cache, "some-model", server.url).ask([asked]) == [3]
    body, = server.requests
    assert body["model"] == "some-model" and "temperature" not in body
    assert server.headers[0]["Authorization"] == "Bearer secret-of-the-test"
    assert body["response_format"]["json_schema"]["schema"] == schema
    system, user = body["messages"]
    assert json.dumps(schema) in system["content"]       # not every endpoint enforces a schema
    assert [part["type"] for part in user["content"]] == ["text", "image_url"] * 2
    urls = [user["content"][k]["image_url"]["url"].split(",") for k in (1, 3)]
    assert [head for head, _ in urls] == ["data:image/png;base64", "data:image/jpeg;base64"]
    first, second = (np.asarray(Image.open(io.BytesIO(base64.b64decode(p)))) for _, p in urls)
    assert np.array_equal(first, small) and second.shape == large.shape
    row, = rows(cache)
    assert [row[k] for k in ("reply", "prompt", "label")] == ['{"n": 3}', "p-7", "x"]
    assert row["tokens"] == [1000, 100] and "secret-of-the-test" not in cache.read_text()


def test_the_key_of_a_question_is_all_that_the_answer_depends_on():
    picture = np.zeros((2, 3, 3), np.uint8)

    def key(prompt="p", system="s", parts=("a", picture), schema={}, repeat=0, model="m",
            endpoint="e"):
        asked = Question(prompt, system, list(parts), schema, number, repeat=repeat)
        return asked.key(model, endpoint)
    others = [key("q"), key(system="t"), key(parts=("b", picture)), key(parts=("a", picture + 1)),
              key(parts=(picture, "a")), key(parts=("a", picture.reshape(3, 2, 3))),
              key(schema={"x": 1}), key(repeat=1), key(model="n"), key(endpoint="f")]
    assert len({key(), *others}) == len(others) + 1
    assert key() == key(parts=("a", picture.copy()))


# --------------------------------------------------------------------------------- good and broken

FAULTS = {                                               # what comes, what the reason says, kept?
    "500": ((500, {"error": {"message": "oh"}}), "500.*oh", False),
    "garbage": (b"<html>not an API</html>", "no chat completion", False),
    "no choices": (b'{"id": "x", "choices": []}', "no chat completion", False),
    "an error": (b'{"error": {"message": "overloaded"}}', "overloaded", False),
    "prose": ("I would say seven.", "not JSON", True),
    "refusal": (says(None) | {"message": {"refusal": "I cannot"}}, "refused.*cannot", True),
    "filter": ({"finish_reason": "content_filter"}, "refused by the content filter", True),
    "truncated": (says('{"n": 7}', finish_reason="length"), "truncated", True),
    "empty": ("", "empty", True),
    "11": ('{"n": 11}', "n is 11", True),
    "nan": ('{"n": NaN}', "n is nan", True),
}


@pytest.mark.parametrize("fault", FAULTS)
def test_what_is_broken_is_asked_again_and_then_missing(fault, tmp_path):
    said, reason, kept = FAULTS[fault]
    cache = tmp_path / "replies.jsonl"
    three = [question("good"), question("bad"), question("once")]

    def answer(body, n):
        is_bad = text_of(body) == "bad" or text_of(body) == "once" and n == 0
        return said if is_bad else '{"n": 7}'
    with Endpoint(answer) as server:
        client = Client(cache, "m", server.url, tries=3, workers=1, pause=.001)
        good, bad, once = client.ask(three)
        client.close()
        asked = [text_of(body) for body in server.requests]
        assert [asked.count(text) for text in ("good", "bad", "once")] == [1, 3, 2]
        assert good == once == 7 and re.search(reason, bad.reason) and bad.unanswered is not kept
        again = Client(cache, "m", server.url, tries=3, pause=.001).ask(three)
        if kept:                                         # three replies were paid for: enough
            assert again == [good, bad, once] and len(server.requests) == len(asked)
        else:                                            # none is in the file, so it is asked for
            assert len(rows(cache)) == 2 and len(server.requests) == len(asked) + 3


def test_late_answers(tmp_path):
    freed = threading.Event()

    def answer(body, n):
        if text_of(body) == "late" or n == 0 and text_of(body) == "late once":
            freed.wait(20)
        return '{"n": 1}'
    with Endpoint(answer) as server:
        client = Client(tmp_path / "r.jsonl", "m", server.url, tries=2, timeout=1)
        values = client.ask([question("late"), question("late once"), question("soon")])
        assert values == [Missing("no answer within 1 s, 2 times", unanswered=True), 1, 1]
        freed.set()


@pytest.mark.parametrize("said, words", [
    ((401, {"error": {"message": "bad key"}}), "refuses: 401: bad key; check OPENAI_API_KEY"),
    ((404, {"error": {"message": "no model m"}}), "refuses: 404: no model m"),
    ((429, {"error": {"message": "pay", "code": "insufficient_quota"}}), "refuses: 429: pay"),
    ((429, {"error": {"message": "1000 a day"}}),
     "first 5 questions all failed.*1000 a day.*wait until the account's limit is renewed"),
    ((400, {"error": "no pictures"}), "first 5 questions all failed.*no pictures.*--base-url"),
    ((422, {"error": {"message": "no pictures"}}), "first 5 questions all failed.*no pictures"),
    (b"<html><h1>Welcome</h1> here</html>", "first 5 questions all failed.*Welcome here")])
def test_what_no_retry_mends_ends_the_run(said, words, tmp_path):
    with Endpoint(lambda body, n: said) as server:
        client = Client(tmp_path / "r.jsonl", "m", server.url, workers=1, tries=1, pause=.001)
        with pytest.raises(BadInput, match=words) as caught:
            client.ask(questions(50))
        assert "\n" not in str(caught.value)
        assert len({text_of(body) for body in server.requests}) <= ask.HANDFUL + 1
    assert rows(tmp_path / "r.jsonl") == []              # an error is never kept


def test_without_a_key_an_endpoint_or_a_proxy(tmp_path, monkeypatch):
    def fails(words, url=None):
        with pytest.raises(BadInput, match=words) as error:
            Client(tmp_path / "r.jsonl", "m", url, tries=1).ask([question("a")])
        assert "secret" not in str(error.value)
    fails("^OPENAI_API_KEY: is not set")
    with monkeypatch.context() as key:
        key.setenv("OPENAI_API_KEY", "secret\nof the test")
        fails("^OPENAI_API_KEY: holds characters")
    with monkeypatch.context() as proxy:
        proxy.setenv("https_proxy", "socks5h://localhost:9")
        fails("https_proxy: cannot be used .*; give an http://", "http://127.0.0.1:9/v1")
    assert not (tmp_path / "r.jsonl").exists()
    fails("127.0.0.1.*cannot be reached", "http://127.0.0.1:9/v1")


def test_one_connection_that_always_breaks(tmp_path):
    def answer(body, n):
        if text_of(body) == "evil":
            raise ConnectionResetError                   # the connection is closed without a word
        return '{"n": 1}'
    with Endpoint(answer) as server:
        client = Client(tmp_path / "r.jsonl", "m", server.url, workers=1, tries=2)
        evil, *others = client.ask([question("evil"), *questions(9)])
        assert others == [1] * 9 and evil.unanswered and "connection broke" in evil.reason


# --------------------------------------------------------------------------- endpoints as they are

@pytest.mark.parametrize("refuses, status, dialect", [
    ({"max_completion_tokens"}, 400, ("max_tokens", "json_schema")),
    ({"json_schema"}, 422, ("max_completion_tokens", "json_object")),
    ({"max_completion_tokens", "json_schema", "json_object"}, 400, ("max_tokens", None))])
def test_an_endpoint_that_knows_less_is_asked_more_plainly(refuses, status, dialect, tmp_path):
    def form_of(body):
        return body.get("response_format", {}).get("type")

    def answer(body, n):
        if refuses & {*body, form_of(body)}:
            return status, {"error": {"message": "unsupported"}}
        return '{"n": 3}'
    with Endpoint(answer) as server:
        client = Client(tmp_path / "r.jsonl", "m", server.url, workers=2)
        assert client.ask(questions(12)) == [3] * 12
        good = server.requests[-10:]                     # found once, then remembered
        assert all(dialect[0] in body and form_of(body) == dialect[1] for body in good)
        assert len(server.requests) <= 12 + 2 * 5        # each worker has looked for it, at most


def test_a_reasoning_model_that_uses_up_its_tokens(tmp_path):
    def answer(body, n):
        if body["max_completion_tokens"] < 5000:
            return says("", finish_reason="length")
        return '<think>two and two {"n": 5}</think> {"n": 4}'
    with Endpoint(answer) as server:
        client = Client(tmp_path / "r.jsonl", "m", server.url)
        value, = client.ask([question("a")])
        assert re.search("truncated at 2048 tokens with nothing answered.*higher", value.reason)
        assert not value.unanswered and client.calls == 2                # not paid for four times
        assert client.ask([question("a")]) == [value] and client.calls == 2
        assert client.ask([question("a", max_tokens=8000)]) == [4] and client.calls == 3


def test_an_answer_in_parts_and_one_without_usage(tmp_path):
    parts = [{"type": "text", "text": '{"n":'}, {"type": "text", "text": " 3}"}]
    body = json.dumps({"choices": [says(parts)]}).encode()
    with Endpoint(lambda _, n: body) as server:
        client = Client(tmp_path / "r.jsonl", "m", server.url, price_in=1e6, price_out=1e6)
        assert client.ask([question("a")]) == [3] and client.estimated == 1
        assert client.spent == client.worth() == sum(question("a").tokens()) > 0


@pytest.mark.parametrize("reply", [
    '{"a": 1}', '\n```json\n{"a": 1}\n```', 'Sure!\n```\n{"a": 1}\n```\nHope it helps {smile}.',
    '<think>{"a": 2}</think>{"a": 1}', 'no {"a": 2} yet</think>\n\n{"a": 1}',
    'The scores: {"a": 1} and again {"a": 1}'])
def test_the_json_is_found(reply):
    assert parse_json(reply) == {"a": 1}


@pytest.mark.parametrize("reply", [
    "", "seven", '{"a": 1', '{"a": 1} or {"a": 2}', '<think>{"a": 1}', "{a: 1}", "[" * 100_000,
    '{"a":' * 50_000, "[1]", "7"])
def test_what_has_no_json(reply):
    with pytest.raises(ValueError, match="not JSON"):
        parse_json(reply)


# -------------------------------------------------------------------------------------- many, money

def test_answers_come_in_order_and_twins_are_asked_once(tmp_path):
    texts = [str(i) for i in range(20)] + ["3", "4"]
    with Endpoint(lambda body, n: json.dumps({"n": int(text_of(body)) % 11})) as server:
        client = Client(tmp_path / "r.jsonl", "m", server.url, workers=3)
        assert client.ask(map(question, texts), total=99) == [int(text) % 11 for text in texts]
    assert len(server.requests) == 20


def test_money(tmp_path, capsys):
    with Endpoint(lambda body, n: '{"n": 11}' if n == 0 else '{"n": 1}') as server:
        client = Client(tmp_path / "r.jsonl", "m", server.url, 2.5, 10, workers=1)
        client.ask(questions(2), total=5)
        client.close()
    assert client.calls == 4                             # the useless replies cost as much
    assert client.spent == pytest.approx(4 * (1000 * 2.5e-6 + 100 * 10e-6))
    assert re.search(r"2/2 .*\$0.0140 spent, about \$0.0000 to go", capsys.readouterr().err)
    told = Client(tmp_path / "r.jsonl", "m", server.url, 1000, 2000)
    picture = np.zeros((352, 640, 3), np.uint8)
    new = question("a" * 40, picture, picture)
    each = -(-(len(new.instructions) + 40) // 4) + 2 * (85 + 170 * 2)    # 2 tiles a picture
    assert told.count([*questions(2), new, new]) == {
        "questions": 4, "calls": 1, "same": 1, "answered": 2, "tokens_in": each, "tokens_out": 150,
        "cost": pytest.approx(each * 1e-3 + 150 * 2e-3)}
    assert image_tokens(512, 512) == 255                 # one tile
    assert image_tokens(1024, 1024) == 765               # as published: 768 x 768 is four tiles
    assert image_tokens(4096, 2048) == 1105              # 2048 x 1024, then 1536 x 768: six


# ---------------------------------------------------------------------------------------- the file

def test_the_file_of_replies(tmp_path):
    cache = tmp_path / "r.jsonl"
    with Endpoint(lambda body, n: '{"n": 5}') as server, Endpoint(lambda b, n: '{"n": 2}') as other:
        first, second = (Client(cache, "m", server.url) for _ in range(2))
        assert first.ask([question("a")]) == [5]
        with pytest.raises(BadInput, match="another run is writing it"):
            second.ask([question("b")])
        first.close()
        assert second.ask([question("a"), question("b")]) == [5, 5]
        second.close()
        assert len(server.requests) == len(rows(cache)) == 2
        assert Client(cache, "m", other.url).ask([question("a")]) == [2]         # another endpoint
    cache.write_text('{"key": "x", "problem": null, "reply": "1"}\nnot ours\n')
    with pytest.raises(BadInput, match=r"r\.jsonl:2: is no reply of ours"):
        Client(cache)


def test_what_failed_is_asked_again_where_that_is_wanted(tmp_path):
    mended = False

    def answer(body, n):
        return '{"n": 4}' if mended or text_of(body) == "good" else "no"
    with Endpoint(answer) as server:
        def run(**more):
            client = Client(tmp_path / "r.jsonl", "m", server.url, tries=2, **more)
            values = client.ask([question("good"), question("bad")])
            client.close()
            return values, client.calls
        (good, bad), calls = run()
        assert good == 4 and "not JSON" in bad.reason and calls == 3
        assert run() == ([good, bad], 0) and run(ask_again=True) == ([good, bad], 2)
        mended = True
        assert run() == ([good, bad], 0) and run(ask_again=True) == ([4, 4], 1)
        assert run() == ([4, 4], 0)
