"""ask.py against an endpoint of the tests' own: good, late and broken answers, money, and a crash in the middle."""

import base64
import io
import json
import os
import re
import signal
import subprocess
import sys
import textwrap
import threading
import time
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from rvebench import ask
from rvebench.ask import Client, Missing, Question, image_tokens, parse_json
from common.files import BadInput
from endpoint import Endpoint

ROOT = Path(ask.__file__).parents[1]


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


def question(text, **more):
    return Question("test-1", "You count.", [text], {"type": "object"}, number, **more)


def text_of(body):
    return next(part["text"] for part in body["messages"][1]["content"] if part["type"] == "text")


def rows(path):
    return [json.loads(line) for line in path.read_text().splitlines()]


# ------------------------------------------------------------------------------------------------- what is sent

def test_what_the_endpoint_gets(tmp_path, monkeypatch):
    monkeypatch.setenv("OPENAI_API_KEY", "secret-of-the-test")
    small, large = (np.random.default_rng(0).integers(0, 256, size, np.uint8) for size in ((4, 6, 3), (40, 200, 3)))
    schema = {"type": "object", "properties": {"n": {"type": "integer"}}}
    with Endpoint(lambda body, n: '{"n": 3}') as server:
        client = Client(tmp_path / "new" / "replies.jsonl", "some-model", server.url)
        assert client.ask([Question("p-7", "You count.", ["first", small, "then", large], schema, number, label="x")]) == [3]
    body, = server.requests
    assert body["model"] == "some-model" and server.headers[0]["Authorization"] == "Bearer secret-of-the-test"
    assert body["response_format"]["type"] == "json_schema"
    assert body["response_format"]["json_schema"]["schema"] == schema
    system, user = body["messages"]
    assert system["role"] == "system" and system["content"].startswith("You count.\n")
    assert json.dumps(schema) in system["content"]       # not every endpoint enforces a schema
    kinds = [part["type"] for part in user["content"]]
    assert kinds == ["text", "image_url", "text", "image_url"]
    heads, pictures = zip(*(user["content"][k]["image_url"]["url"].split(",") for k in (1, 3)))
    assert heads == ("data:image/png;base64", "data:image/jpeg;base64")
    first, second = (np.asarray(Image.open(io.BytesIO(base64.b64decode(p)))) for p in pictures)
    assert np.array_equal(first, small) and second.shape == large.shape
    row, = rows(tmp_path / "new" / "replies.jsonl")
    assert row["reply"] == '{"n": 3}' and row["prompt"] == "p-7" and row["label"] == "x" and row["tokens"] == [1000, 100]
    assert "secret-of-the-test" not in (tmp_path / "new" / "replies.jsonl").read_text()


def test_the_key_of_a_question_is_all_that_the_answer_depends_on():
    picture = np.zeros((2, 3, 3), np.uint8)
    make = lambda prompt="p", system="s", parts=("a", picture), schema=None, repeat=0, model="m", endpoint="e": Question(
        prompt, system, list(parts), schema, number, repeat=repeat).key(model, endpoint)
    others = [make("q"), make(system="t"), make(parts=("b", picture)), make(parts=("a", picture + 1)),
              make(parts=(picture, "a")), make(parts=("a", picture.reshape(3, 2, 3))), make(schema={}), make(repeat=1),
              make(model="n"), make(parts=("a",)), make(endpoint="f")]
    assert len({make(), *others}) == len(others) + 1
    assert make() == make(parts=("a", picture.copy()))


# ------------------------------------------------------------------------------------------------ good and broken

FAULTS = {                                               # what comes, and what the reason must say
    "429": ((429, {"error": {"message": "slow down"}}), "429.*slow down"),
    "500": ((500, {"error": {"message": "oh"}}), "500.*oh"),
    "400": ((400, {"error": {"message": "too many pictures"}}), "400.*too many pictures"),
    "garbage": (b"<html>not an API</html>", "no chat completion"),
    "no choices": (b'{"id": "x", "object": "chat.completion", "choices": []}', "no chat completion"),
    "prose": ("I would say seven.", "not JSON"),
    "a list": ("[7]", "no JSON object"),
    "refusal": ({"message": {"role": "assistant", "content": None, "refusal": "I cannot help"}}, "refused.*cannot help"),
    "filter": ({"finish_reason": "content_filter"}, "refused by the content filter"),
    "truncated": ({"finish_reason": "length", "message": {"role": "assistant", "content": '{"n": 7}'}}, "truncated"),
    "empty": ("", "empty"),
    "11": ('{"n": 11}', "n is 11"),
    "seven": ('{"n": "seven"}', "n is 'seven'"),
    "nan": ('{"n": NaN}', "n is nan"),
}
UNANSWERED = ("429", "500", "400", "garbage", "no choices")              # nothing came that could be kept


@pytest.mark.parametrize("fault", FAULTS)
def test_what_is_broken_is_asked_again_and_then_missing(fault, tmp_path):
    said, reason = FAULTS[fault]
    cache = tmp_path / "replies.jsonl"
    with Endpoint(lambda body, n: said if text_of(body) == "bad" or text_of(body) == "once" and n == 0
                  else '{"n": 7}') as server:
        client = Client(cache, "m", server.url, tries=3, workers=1, pause=.001)
        good, bad, once = client.ask([question("good"), question("bad"), question("once")])
        count = lambda text: sum(text_of(body) == text for body in server.requests)
        assert good == 7 and isinstance(bad, Missing)
        assert re.search(reason, bad.reason), bad.reason
        if fault == "400":
            assert isinstance(once, Missing) and count("bad") == count("once") == 1
        else:
            assert once == 7 and count("once") == 2 and count("bad") == 3
        assert count("good") == 1
        client.close()
        before, again = len(server.requests), Client(cache, "m", server.url, tries=3, pause=.001)
        values = again.ask([question("good"), question("bad"), question("once")])
        if fault in UNANSWERED:                          # there is none in the file, so it is asked for
            assert values[0] == 7 and values[1] == bad and bad.unanswered
            assert len(rows(cache)) == 2 and len(server.requests) > before
        else:                                            # three replies were paid for: that is enough
            assert values == [good, bad, once] and len(server.requests) == before and not bad.unanswered


def test_late_answers(tmp_path):
    freed = threading.Event()

    def answer(body, n):
        if text_of(body) == "late" or n == 0 and text_of(body) == "late once":
            freed.wait(20)
        return '{"n": 1}'
    with Endpoint(answer) as server:
        values = Client(tmp_path / "r.jsonl", "m", server.url, tries=2, timeout=1).ask(
            [question("late"), question("late once"), question("soon")])
        assert values == [Missing("no answer within 1 s, 2 times", unanswered=True), 1, 1]
        assert [text_of(body) for body in server.requests].count("late") == 2
        freed.set()


@pytest.mark.parametrize("status, error", [(401, {"message": "bad key"}), (404, {"message": "no model m"}),
                                           (429, {"message": "pay first", "code": "insufficient_quota"})])
def test_what_no_retry_mends_ends_the_run(status, error, tmp_path):
    with Endpoint(lambda body, n: (status, {"error": error})) as server:
        with pytest.raises(BadInput, match=f"{status}.*{error['message']}") as caught:
            Client(tmp_path / "r.jsonl", "m", server.url, workers=1, tries=2).ask([question(str(i)) for i in range(50)])
        assert "\n" not in str(caught.value) and len(server.requests) <= 8


def test_nobody_there(tmp_path):
    with Endpoint(lambda body, n: "") as server:
        pass
    with pytest.raises(BadInput, match="127.0.0.1.*cannot be reached"):
        Client(tmp_path / "r.jsonl", "m", server.url, tries=1).ask([question("a")])


def test_no_key(tmp_path):
    with pytest.raises(BadInput, match="^OPENAI_API_KEY: is not set"):
        Client(tmp_path / "r.jsonl").ask([question("a")])
    assert not list(tmp_path.iterdir())


# ------------------------------------------------------------------------------------------------ order, money, load

def test_order_twins_and_concurrency(tmp_path):
    together, most, lock, two = 0, 0, threading.Lock(), threading.Event()

    def answer(body, n):
        nonlocal together, most
        with lock:
            together += 1
            most = max(most, together)
            if together >= 2:
                two.set()
        two.wait(20)                                     # nobody is answered before two ask at a time
        with lock:
            together -= 1
        return json.dumps({"n": int(text_of(body)) % 11})
    texts = [str(i) for i in range(20)] + ["3", "4"]
    with Endpoint(answer) as server:
        values = Client(tmp_path / "r.jsonl", "m", server.url, workers=3).ask(map(question, texts), total=22)
    assert values == [int(t) % 11 for t in texts] and len(server.requests) == 20 and 2 <= most <= 3


def test_only_some_questions_are_in_memory(tmp_path):
    drawn, ahead = 0, []

    def generate():
        nonlocal drawn
        for i in range(60):
            drawn += 1
            yield question(str(i))
    client = Client(tmp_path / "r.jsonl", "m", workers=2)
    with Endpoint(lambda body, n: ahead.append(drawn - len(ahead)) or '{"n": 0}') as server:
        client.base_url = server.url
        assert client.ask(generate()) == [0] * 60
    assert max(ahead) <= 2 * client.workers + 2


def test_money(tmp_path, capsys):
    with Endpoint(lambda body, n: '{"n": 11}' if n == 0 else '{"n": 1}') as server:
        client = Client(tmp_path / "r.jsonl", "m", server.url, price_in=2.5, price_out=10, workers=1)
        client.ask([question("a"), question("b")], total=2)
    assert client.calls == 4                             # the useless replies cost as much
    assert client.spent == pytest.approx(4 * (1000 * 2.5e-6 + 100 * 10e-6))
    assert "$0.0140 spent, about $0.0000 to go" in capsys.readouterr().err


def test_the_dry_run(tmp_path):
    picture = np.zeros((352, 640, 3), np.uint8)
    ask_for = lambda text: Question("p", "s" * 40, [text * 40, picture, picture], None, number, expected=50)
    cache = tmp_path / "r.jsonl"
    with Endpoint(lambda body, n: '{"n": 1}') as server:
        client = Client(cache, "m", server.url)
        client.ask([ask_for("a")])
        client.close()
    told = Client(cache, "m", server.url, price_in=1000, price_out=2000).count([ask_for("a"), ask_for("b"), ask_for("c"), ask_for("c")])
    each = (40 + 40) // 4 + 2 * (85 + 170 * 2)           # 2 tiles a picture
    assert told == {"questions": 4, "calls": 2, "same": 1, "answered": 1, "tokens_in": 2 * each, "tokens_out": 100,
                    "cost": pytest.approx(2 * each * 1e-3 + 100 * 2e-3)}
    assert len(rows(cache)) == 1


def test_image_tokens_by_hand():
    assert image_tokens(512, 512) == 255                 # one tile
    assert image_tokens(1024, 1024) == 765               # the published example: 768 x 768 is four tiles
    assert image_tokens(4096, 2048) == 1105              # and the other: 2048 x 1024, then 1536 x 768: six tiles


def test_parse_json():
    assert parse_json('{"a": 1}') == parse_json('```json\n{"a": 1}\n```') == parse_json('\n```\n{"a": 1}```') == {"a": 1}
    for wrong in ("", "seven", "[1]", '{"a": 1', '{"a": 1} {"b": 2}', "7", "[" * 100_000):
        with pytest.raises(ValueError):
            parse_json(wrong)


# ------------------------------------------------------------------------------------------------------- the file

def test_a_cut_last_line(tmp_path):
    cache = tmp_path / "r.jsonl"
    with Endpoint(lambda body, n: '{"n": 5}') as server:
        client = Client(cache, "m", server.url)
        client.ask([question("a"), question("b")])
        client.close()
        whole = cache.read_bytes()
        cache.write_bytes(whole[:-20])
        client = Client(cache, "m", server.url, workers=1)
        assert client.ask([question("a"), question("b")]) == [5, 5] and len(server.requests) == 3
        client.close()
    assert sorted(cache.read_bytes().splitlines()) == sorted(whole.splitlines())           # cut, and written once more


def test_a_broken_line_is_named(tmp_path):
    cache = tmp_path / "r.jsonl"
    cache.write_text('{"key": "x", "problem": null, "reply": "1"}\nnot ours\n')
    with pytest.raises(BadInput, match=r"r\.jsonl:2: is no reply of ours"):
        Client(cache)


def test_one_run_at_a_time(tmp_path):
    with Endpoint(lambda body, n: '{"n": 5}') as server:
        first = Client(tmp_path / "r.jsonl", "m", server.url)
        first.ask([question("a")])
        second = Client(tmp_path / "r.jsonl", "m", server.url)
        assert second.ask([question("a")]) == [5]        # to read is free
        with pytest.raises(BadInput, match="another run is writing it"):
            second.ask([question("b")])
        first.ask([question("c")])
        first.close()
        assert second.ask([question("c"), question("b")]) == [5, 5] and len(server.requests) == 3
    assert len(rows(tmp_path / "r.jsonl")) == 3


def test_kill_9_in_the_middle(tmp_path):
    """Killed when 7 of 30 are answered and others are under way: no answer is fetched twice, none is lost."""
    cache, open_again, answered, lock = tmp_path / "r.jsonl", threading.Event(), [], threading.Lock()

    def answer(body, n):
        with lock:
            mine = len(answered) < 7 or open_again.is_set()
            if mine:
                answered.append(text_of(body))
        if not mine:
            open_again.wait(60)
        return json.dumps({"n": int(text_of(body)) % 11})
    script = textwrap.dedent("""
        import sys
        from rvebench.ask import *
        from test_ask import question
        print(Client(sys.argv[1], "m", sys.argv[2], workers=4).ask([question(str(i)) for i in range(30)]))""")
    with Endpoint(answer) as server:
        start = lambda: subprocess.Popen([sys.executable, "-c", script, str(cache), server.url], text=True,
                                         stdout=subprocess.PIPE, stderr=subprocess.DEVNULL,
                                         env={**os.environ, "PYTHONPATH": f"{ROOT}:{ROOT / 'tests'}:{ROOT / 'tests/rvebench'}"})
        first, end = start(), time.monotonic() + 120
        while not (cache.exists() and len(rows(cache)) == 7 and len(server.requests) == 11):
            assert time.monotonic() < end and first.poll() is None
            time.sleep(.02)
        first.send_signal(signal.SIGKILL)
        first.wait()
        kept = rows(cache)
        before = len(server.requests)
        open_again.set()
        again = start()
        out, _ = again.communicate(timeout=120)
        assert again.returncode == 0 and json.loads(out) == [i % 11 for i in range(30)]
        assert len(server.requests) - before == 23 and rows(cache)[:7] == kept and len(rows(cache)) == 30
        assert len({row["key"] for row in rows(cache)}) == 30


# ------------------------------------------------------------------------------------- endpoints as they are

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
        assert client.ask([question(str(i)) for i in range(12)]) == [3] * 12
        good = server.requests[-10:]                     # found once, then remembered
        assert all(dialect[0] in body and form_of(body) == dialect[1] for body in good)
        assert len(server.requests) <= 12 + 6 and all("temperature" not in body for body in server.requests)
        assert "schema" in good[0]["messages"][0]["content"]             # the prompt itself asks for JSON


@pytest.mark.parametrize("said, words", [
    ((400, {"error": {"message": "no pictures here"}}), "no pictures here"),
    ((422, {"error": {"message": "no pictures here"}}), "no pictures here"),
    (b"<html><h1>Welcome</h1> to a web page</html>", "Welcome to a web page"),
    ((400, {"error": "no such thing"}), "error 400: no such thing"),
    (b'{"error": {"message": "quota of the day"}}', "quota of the day")])
def test_the_first_questions_all_fail(said, words, tmp_path):
    with Endpoint(lambda body, n: said) as server:
        client = Client(tmp_path / "r.jsonl", "m", server.url, workers=1, tries=2, pause=.001)
        with pytest.raises(BadInput, match=f"first {ask.HANDFUL} questions all failed.*{words}.*--base-url"):
            client.ask([question(str(i)) for i in range(50)])
        assert len({text_of(body) for body in server.requests}) <= ask.HANDFUL + 1
    assert rows(tmp_path / "r.jsonl") == []              # an error is never kept


def test_the_limit_of_a_day_says_so(tmp_path):
    with Endpoint(lambda body, n: (429, {"error": {"message": "1000 a day"}})) as server:
        client = Client(tmp_path / "r.jsonl", "m", server.url, workers=1, tries=1)
        with pytest.raises(BadInput, match="1000 a day.*wait until the account's limit is renewed"):
            client.ask([question(str(i)) for i in range(9)])


@pytest.mark.parametrize("variable", ["ALL_PROXY", "https_proxy"])
def test_a_proxy_that_is_not_understood_is_named(variable, tmp_path, monkeypatch):
    monkeypatch.setenv(variable, "socks5h://localhost:9")
    monkeypatch.setenv("NO_PROXY", "127.0.0.1")
    with pytest.raises(BadInput, match=f"{variable}: cannot be used .*; give an http:// proxy"):
        Client(tmp_path / "r.jsonl", "m", "http://127.0.0.1:9/v1").ask([question("a")])


def test_an_answer_in_parts(tmp_path):
    parts = [{"type": "text", "text": '{"n":'}, {"type": "text", "text": " 3}"}]
    message = {"message": {"role": "assistant", "content": parts}}
    with Endpoint(lambda body, n: message) as server:
        assert Client(tmp_path / "r.jsonl", "m", server.url).ask([question("a")]) == [3]


def test_an_error_with_status_200_is_no_reply(tmp_path, monkeypatch):
    pauses, broken = [], True
    monkeypatch.setattr(ask.time, "sleep", pauses.append)

    def answer(body, n):
        return b'{"error": {"message": "overloaded"}}' if broken and text_of(body) == "bad" else '{"n": 4}'
    with Endpoint(answer) as server:
        cache = tmp_path / "r.jsonl"
        client = Client(cache, "m", server.url, workers=1)
        good, bad = client.ask([question("good"), question("bad")])
        client.close()
        assert good == 4 and bad.unanswered and "overloaded" in bad.reason and len(rows(cache)) == 1
        assert pauses == [.5, 1, 2] and len(server.requests) == 5        # four tries, not at once
        broken = False
        assert Client(cache, "m", server.url).ask([question("good"), question("bad")]) == [4, 4]
        assert len(server.requests) == 6                 # the mended endpoint is asked what it did not answer
        assert Client(cache, "m", f"{server.url}/other").recall(question("good"), "") is None


def test_the_endpoint_is_part_of_the_key(tmp_path):
    with Endpoint(lambda body, n: '{"n": 1}') as first, Endpoint(lambda body, n: '{"n": 2}') as second:
        for server, value in ((first, 1), (second, 2), (first, 1)):
            client = Client(tmp_path / "r.jsonl", "m", server.url)
            assert client.ask([question("a")]) == [value]
            client.close()
        assert len(first.requests) == len(second.requests) == 1


def test_one_connection_that_always_breaks(tmp_path):
    def answer(body, n):
        if text_of(body) == "evil":
            raise ConnectionResetError                   # the connection is closed without a word
        return '{"n": 1}'
    with Endpoint(answer) as server:
        client = Client(tmp_path / "r.jsonl", "m", server.url, workers=1, tries=2)
        evil, *others = client.ask([question("evil"), *[question(str(i)) for i in range(9)]])
        assert others == [1] * 9 and evil.unanswered and "connection broke" in evil.reason


def test_a_reasoning_model_that_uses_up_its_tokens(tmp_path):
    def answer(body, n):
        if body["max_completion_tokens"] < 5000:
            return {"finish_reason": "length", "message": {"role": "assistant", "content": ""}}
        return '<think>two and two {"n": 5}</think> {"n": 4}'
    with Endpoint(answer) as server:
        client = Client(tmp_path / "r.jsonl", "m", server.url)
        value, = client.ask([question("a")])
        assert re.search("truncated at 2048 tokens with nothing answered.*higher limit", value.reason)
        assert not value.unanswered and client.calls == 2                # not paid for four times
        assert client.ask([question("a")]) == [value] and client.calls == 2
        assert client.ask([question("a", max_tokens=8000)]) == [4] and client.calls == 3


def test_what_failed_is_asked_again_where_that_is_wanted(tmp_path):
    mended = False
    with Endpoint(lambda body, n: '{"n": 4}' if mended or text_of(body) == "good" else "no") as server:
        def run(**more):
            client = Client(tmp_path / "r.jsonl", "m", server.url, tries=2, **more)
            values = client.ask([question("good"), question("bad")])
            client.close()
            return values, client.calls
        (good, bad), calls = run()
        assert good == 4 and "not JSON" in bad.reason and calls == 3
        assert run() == ([good, bad], 0) and run(ask_again=True) == ([good, bad], 2)
        mended = True
        assert run() == ([good, bad], 0) and run(ask_again=True) == ([4, 4], 1) and run() == ([4, 4], 0)


@pytest.mark.parametrize("reply", [
    'Sure! Here it is:\n```json\n{"a": {"b": 1}}\n```\nHope this helps {smile}.', '<think>{"a": 2}</think>{"a": {"b": 1}}',
    'no {"a": 2} yet</think>\n\n{"a": {"b": 1}}', 'The scores: {"a": {"b": 1}} and again {"a": {"b": 1}}'])
def test_the_json_is_found(reply):
    assert parse_json(reply) == {"a": {"b": 1}}


@pytest.mark.parametrize("reply", ['{"a": 1} or {"a": 2}', '<think>{"a": 1}', "{a: 1}", "<think>x</think>", '{"a":' * 50_000])
def test_what_has_no_json(reply):
    with pytest.raises(ValueError, match="not JSON"):
        parse_json(reply)


def test_an_endpoint_without_usage_is_paid_by_an_estimate(tmp_path):
    body = json.dumps({"choices": [{"message": {"content": '{"n": 1}'}, "finish_reason": "stop"}]}).encode()
    with Endpoint(lambda _, n: body) as server:
        client = Client(tmp_path / "r.jsonl", "m", server.url, price_in=1e6, price_out=1e6)
        assert client.ask([question("a")]) == [1] and client.estimated == 1
        assert client.spent == client.worth() == sum(question("a").tokens()) > 0


def test_the_bar_ends_where_the_questions_end(tmp_path, capsys):
    with Endpoint(lambda body, n: '{"n": 1}') as server:
        Client(tmp_path / "r.jsonl", "m", server.url).ask([question("a"), question("b")], total=5)
    assert "2/2" in capsys.readouterr().err


def test_a_key_that_cannot_be_sent_is_not_shown(tmp_path, monkeypatch):
    monkeypatch.setenv("OPENAI_API_KEY", "secret\nof the test")
    with pytest.raises(BadInput, match="^OPENAI_API_KEY: holds characters") as error:
        Client(tmp_path / "r.jsonl").ask([question("a")])
    assert "secret" not in str(error.value)
