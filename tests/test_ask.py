"""ask.py against a small endpoint of our own that answers well, late, with errors, garbage and refusals."""

import json
import os
import signal
import subprocess
import sys
import threading
import time
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import numpy as np
import pytest

import ask
from ask import Client, Missing, Question
from data import BadInput

SCHEMA = {"type": "object", "properties": {"score": {"type": "integer"}}, "required": ["score"],
          "additionalProperties": False}


def reply(text, finish="stop", refusal=None):
    return 200, {"choices": [{"index": 0, "finish_reason": finish,
                              "message": {"role": "assistant", "content": text, "refusal": refusal}}],
                 "usage": {"prompt_tokens": 1000, "completion_tokens": 100, "total_tokens": 1100},
                 "id": "x", "object": "chat.completion", "created": 0, "model": "m"}


def failure(code):
    return code, {"error": {"message": f"code {code}", "type": "x", "code": None}}


@pytest.fixture
def endpoint(monkeypatch):
    """A server on the loopback; `answers[text of the question]` is the list of what it says, one after another."""
    class Handler(BaseHTTPRequestHandler):
        def do_POST(self):
            body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
            server.seen.append((body, self.headers))
            text = next(p["text"] for p in body["messages"][1]["content"] if p["type"] == "text")
            with lock:
                said = server.answers.get(text) or [reply('{"score": 7}')]
                code, content = said.pop(0) if len(said) > 1 else said[0]
            if content == "late":
                time.sleep(1.5)
                code, content = reply('{"score": 1}')
            data = json.dumps(content).encode()
            try:
                self.send_response(code)
                self.send_header("Content-Type", "application/json")
                self.send_header("Content-Length", str(len(data)))
                self.send_header("retry-after-ms", "10")
                self.end_headers()
                self.wfile.write(data)
            except BrokenPipeError:
                pass

        def log_message(self, *_):
            pass
    lock = threading.Lock()
    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    server.answers, server.seen, server.url = {}, [], f"http://127.0.0.1:{server.server_port}/v1"
    thread = threading.Thread(target=server.serve_forever, daemon=True)
    thread.start()
    monkeypatch.delenv("OPENAI_API_KEY", raising=False)
    yield server
    server.shutdown()
    server.server_close()


def score(answer):
    value = answer["score"]
    if not isinstance(value, (int, float)) or isinstance(value, bool) or not 0 <= value <= 10:
        raise ValueError(f"score {value!r} is not in 0..10")
    return value


def question(text, **more):
    return Question("v1", "Be fair .", (text, np.zeros((4, 6, 3), np.uint8)), SCHEMA, **more)


def client(endpoint, tmp_path, **more):
    return Client("m", endpoint.url, tmp_path / "asked.jsonl", **{"timeout": 5, "tries": 3, **more})


def test_what_is_sent_and_what_comes_back(endpoint, tmp_path, monkeypatch):
    monkeypatch.setenv("OPENAI_API_KEY", "secret")
    asking = client(endpoint, tmp_path, price_in=2., price_out=10.)
    assert asking.ask([question("a")], score) == [7]
    body, headers = endpoint.seen[0]
    assert headers["Authorization"] == "Bearer secret" and body["model"] == "m" and body["temperature"] == 0
    assert body["response_format"]["json_schema"]["schema"] == SCHEMA
    system, user = body["messages"]
    assert system["content"] == "Be fair ." and user["content"][0] == {"type": "text", "text": "a"}
    assert user["content"][1]["image_url"]["url"].startswith("data:image/png;base64,iVBOR")
    assert asking.spent == pytest.approx((1000 * 2 + 100 * 10) / 1e6) and asking.calls == 1
    assert "secret" not in (tmp_path / "asked.jsonl").read_text()


def test_nothing_is_asked_twice(endpoint, tmp_path):
    several = [question(x) for x in "abcdefgh"]
    assert client(endpoint, tmp_path).ask(several, score) == [7] * 8
    assert len(endpoint.seen) == 8
    again = client(endpoint, tmp_path)
    assert again.ask(several, score) == [7] * 8 and again.calls == 0 and len(endpoint.seen) == 8
    others = [question("a", repeat=1), Question("v2", "Be fair .", question("a").parts, SCHEMA),
              Question("v1", "Be fair .", ("a", np.ones((4, 6, 3), np.uint8)), SCHEMA)]
    assert again.estimate(several + others).calls == 3
    assert again.ask(others, score) == [7] * 3 and len(endpoint.seen) == 11


@pytest.mark.parametrize("bad, why", [
    (reply("I cannot judge"), "no JSON"), (reply('{"score": 3', "length"), "not finished (length)"),
    (reply('{"score": 3'), "no JSON"), (reply(None, refusal="I will not"), "refused: I will not"),
    (reply('{"score": 11}'), "score 11 is not in 0..10"), (reply('{"score": "seven"}'), "score 'seven' is not in"),
    (reply("[3]"), "no JSON object"), (reply('{"points": 3}'), "score"), (reply(None), "no JSON")])
def test_a_bad_reply_is_asked_again_and_then_missing(endpoint, tmp_path, bad, why):
    endpoint.answers = {"mends": [bad, reply('```json\n{"score": 4}\n```')], "never": [bad]}
    mends, never = client(endpoint, tmp_path).ask([question("mends"), question("never")], score)
    assert mends == 4 and isinstance(never, Missing) and why in never.why
    assert len(endpoint.seen) == 2 + 3
    again = client(endpoint, tmp_path)                   # for good: a rerun asks nothing
    assert again.ask([question("mends"), question("never")], score) == [4, never] and len(endpoint.seen) == 5


def test_errors_of_the_line_are_retried_and_not_written(endpoint, tmp_path):
    endpoint.answers = {"busy": [failure(429), failure(500), reply('{"score": 2}')], "down": [failure(503)]}
    busy, down = client(endpoint, tmp_path).ask([question("busy"), question("down")], score)
    assert busy == 2 and isinstance(down, Missing) and "503" in down.why
    endpoint.answers = {}
    assert client(endpoint, tmp_path).ask([question("down")], score) == [7]                # it was not for good


def test_late_is_missing(endpoint, tmp_path):
    endpoint.answers = {"slow": [(200, "late")]}
    answer, = client(endpoint, tmp_path, timeout=.3, tries=1).ask([question("slow")], score)
    assert isinstance(answer, Missing) and "Timeout" in answer.why


@pytest.mark.parametrize("code", [401, 403, 404])
def test_a_wrong_key_or_model_stops_everything(endpoint, tmp_path, code):
    endpoint.answers = {"a": [failure(code)]}
    with pytest.raises(BadInput, match=f"refuses model 'm' .{code}.*check OPENAI_API_KEY"):
        client(endpoint, tmp_path).ask([question("a")], score)


def test_no_key(monkeypatch, tmp_path):
    monkeypatch.delenv("OPENAI_API_KEY", raising=False)
    with pytest.raises(BadInput, match="OPENAI_API_KEY is not set"):
        Client("gpt-4o", cache=tmp_path / "x.jsonl")


def test_a_cut_line_is_forgotten_and_a_broken_one_is_named(endpoint, tmp_path):
    client(endpoint, tmp_path).ask([question("a"), question("b")], score)
    file = tmp_path / "asked.jsonl"
    file.write_bytes(file.read_bytes()[:-20])
    again = client(endpoint, tmp_path)
    assert again.ask([question("a"), question("b")], score) == [7, 7] and again.calls == 1
    assert len(file.read_text().splitlines()) == 2 and all(map(json.loads, file.read_text().splitlines()))
    file.write_text("{}\n")
    with pytest.raises(BadInput, match="asked.jsonl:1: is no reply"):
        client(endpoint, tmp_path)


def test_the_estimate_by_hand(endpoint, tmp_path):
    asked = Question("v1", "x" * 40, ("y" * 80, np.zeros((600, 512, 3), np.uint8)), {})
    estimate = client(endpoint, tmp_path, price_in=1., price_out=2.).estimate([asked])
    tokens = 10 + 20 + .5 + 85 + 2 * 170 + .5            # {} is half a token; round up
    assert estimate[:3] == (1, tokens, ask.EXPECTED)
    assert estimate.cost == pytest.approx((tokens + 2 * ask.EXPECTED) / 1e6)


def test_kill_minus_nine(endpoint, tmp_path):
    """Killed in the middle and started again: no question that has a reply is asked again, and none is lost."""
    script = tmp_path / "go.py"
    script.write_text(f"""
import sys; sys.path.insert(0, {str(Path(ask.__file__).parent)!r})
from ask import Client, Question
client = Client("m", {endpoint.url!r}, {str(tmp_path / "asked.jsonl")!r}, workers=2)
print(sum(client.ask([Question("v1", "s", (str(i),), {{}}) for i in range(300)], lambda a: a["score"])))
""")
    run = subprocess.Popen([sys.executable, str(script)], stdout=subprocess.PIPE, stderr=subprocess.DEVNULL)
    while len(endpoint.seen) < 20 and run.poll() is None:
        time.sleep(.01)
    os.kill(run.pid, signal.SIGKILL)
    run.wait()
    before = (tmp_path / "asked.jsonl").read_bytes()
    kept, seen = before.count(b"\n"), len(endpoint.seen)
    assert 0 < kept < 300
    done = subprocess.run([sys.executable, str(script)], capture_output=True, text=True)
    assert done.stdout.strip() == str(7 * 300), done.stderr
    assert len(endpoint.seen) - seen == 300 - kept
    keys = [json.loads(line)["key"] for line in (tmp_path / "asked.jsonl").read_text().splitlines()]
    assert len(keys) == len(set(keys)) == 300
