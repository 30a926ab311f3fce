"""Ask a VLM behind an OpenAI-compatible endpoint, many times, paying for each answer once.

    client = Client("out/replies.jsonl", model="gpt-4o")
    question = Question("caption-1", "You describe videos.", ["What changes?", frame], SCHEMA,
                        validate)
    value = client.ask(question)                    # a value of validate(), or Missing(reason)

Every reply goes as it came into an append-only file of JSON lines, before anything is made of it: a
rerun, or a run after a crash, calls nobody for what is there. What goes wrong is *missing*, with
its reason:

    refusals, truncated or malformed replies, and those that validate() refuses with ValueError
        asked again, until `tries` replies are in the file; that is final
    429, 5xx, time-outs, connections that break, a status 200 with an error or a web page in it
        `tries` calls with growing pauses; nothing is kept, so the next run asks again
    400 or 422 before anything was answered
        asked in plainer ways, DIALECTS, until one is understood; that one serves for the whole run

What would go wrong for each question (a refused key, an unknown model, no money, the first
questions all failing) ends the run: BadInput. No temperature is sent: newer models refuse it.
The key comes from the environment variable OPENAI_API_KEY and nowhere else.
"""

import base64
import hashlib
import io
import json
import os
import re
import time
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from threading import Lock
from typing import Any, Callable

import numpy as np
import openai
from PIL import Image

from common.files import BadInput
from common.jsonl import Store

TIMEOUT = 120                             # seconds a call
HANDFUL = 5                               # so many questions fail, and none is answered: stop

# How a request names the limit of tokens, and how it asks for JSON: the plainest is the last.
DIALECTS = [(limit, form) for form in ("json_schema", "json_object", "text")
            for limit in ("max_completion_tokens", "max_tokens")]


# ------------------------------------------------------------------------------ a question, a reply

@dataclass(frozen=True)
class Question:
    """One question.

    prompt: the name and version of its wording ("judge-sc-1"), for the reader of the file.
    parts: texts and pictures (uint8 (H, W, 3)) in the order in which the model sees them.
    schema: a JSON schema of the answer.
    validate(reply) -> the value, or ValueError saying what is wrong with the reply.
    label: whatever helps to find it there.
    max_tokens: a longer reply is cut, and then missing.
    """
    prompt: str
    system: str
    parts: list[str | np.ndarray]
    schema: dict
    validate: Callable[[str], Any]
    label: str = ""
    max_tokens: int = 2048

    @property
    def instructions(self) -> str:
        """The system prompt. It asks for the JSON itself: not every endpoint enforces a schema."""
        return (f"{self.system}\nAnswer with one JSON object that fits this schema, and nothing "
                f"else: {json.dumps(self.schema)}")

    def key(self, model: str, endpoint: str) -> str:
        """sha256 of all that the answer depends on."""
        head = [endpoint, model, self.prompt, self.instructions, self.schema, 0]     # 0: as ever
        sha = hashlib.sha256(json.dumps(head).encode())
        for part in self.parts:
            if isinstance(part, str):
                kind, body = "text", part.encode()
            else:
                kind, body = list(part.shape), part.tobytes()
            sha.update(json.dumps([kind, len(body)]).encode() + body)
        return sha.hexdigest()

    def messages(self) -> list[dict]:
        """The chat, as an endpoint wants it."""
        content = []
        for part in self.parts:
            if isinstance(part, str):
                content.append({"type": "text", "text": part})
            else:
                picture = {"url": data_url(part), "detail": "high"}
                content.append({"type": "image_url", "image_url": picture})
        return [{"role": "system", "content": self.instructions},
                {"role": "user", "content": content}]

    def arguments(self, limit: str, form: str) -> dict:
        """What one of DIALECTS adds to a request."""
        arguments = {limit: self.max_tokens}
        if form != "text":
            arguments["response_format"] = {"type": form}
        if form == "json_schema":
            schema = {"name": "answer", "strict": True, "schema": self.schema}
            arguments["response_format"]["json_schema"] = schema
        return arguments


@dataclass(frozen=True)
class Missing:
    """There is no value, and why. unanswered: no reply came, so another run asks again.

    reply: the last one, which could not be used; "" where there is none.
    """
    reason: str
    unanswered: bool = False
    reply: str = ""


class NoCompletion(Exception):
    """The endpoint answered with status 200, but with an error, a web page or something else."""


def data_url(picture: np.ndarray) -> str:
    """A uint8 (H, W, 3) picture as a data URL: JPEG, or PNG if it is small and would be smeared."""
    kind = "png" if max(picture.shape) <= 128 else "jpeg"
    buffer = io.BytesIO()
    Image.fromarray(picture).save(buffer, kind, quality=95)
    return f"data:image/{kind};base64,{base64.b64encode(buffer.getvalue()).decode()}"


def parse_json(reply: str) -> dict:
    """The JSON object of a reply: bare, in a ``` fence, or after a <think> block or other prose.
    Raises ValueError where there is none, or where there are several that differ."""
    said = re.sub(r"<think>.*?(</think>|\Z)", "", reply, flags=re.DOTALL)
    said = said.rpartition("</think>")[2]                # some templates leave <think> out
    decoder, found, start = json.JSONDecoder(), [], said.find("{")
    while start >= 0:
        try:
            value, end = decoder.raw_decode(said, start)
            found.append(value)
        except ValueError:
            end = start + 1                              # a brace of the prose
        except RecursionError as error:
            raise ValueError("the reply is not JSON: it is nested too deeply") from error
        start = said.find("{", end)
    if not found:
        raise ValueError("the reply is not JSON, or holds no JSON object")
    if any(other != found[0] for other in found[1:]):
        raise ValueError("the reply is not JSON, but holds several different objects")
    return found[0]


def read_completion(body: str, max_tokens: int) -> dict:
    """{"reply", "problem", "tokens"} of the body of an answer; "limit", too, if it was truncated.

    problem: what is wrong with the reply, or None. tokens: [in, out], None if it does not say.
    Raises NoCompletion.
    """
    try:
        answer = json.loads(body)
        choice = answer["choices"][0]
        message, finish = choice["message"], choice.get("finish_reason")
        reply, refusal = message.get("content"), message.get("refusal")
        usage = answer.get("usage")
        tokens = usage and [usage.get("prompt_tokens") or 0, usage.get("completion_tokens") or 0]
    except (ValueError, LookupError, TypeError, AttributeError, RecursionError) as error:
        raise NoCompletion(_on_a_line(body)) from error
    if finish == "error" or not isinstance(reply, str | None):
        raise NoCompletion(_on_a_line(body))
    row = {"reply": reply, "problem": None, "tokens": tokens}
    is_empty = reply is None or not reply.strip()
    if refusal:
        row["problem"] = f"refused: {str(refusal)[:200]}"
    elif finish == "content_filter":
        row["problem"] = "refused by the content filter"
    elif finish == "length":
        row["problem"] = f"truncated at {max_tokens} tokens"
        row["limit"] = max_tokens
        if is_empty:
            row["problem"] += " with nothing answered: a reasoning model needs a higher limit"
    elif is_empty:
        row["problem"] = "the reply is empty"
    return row


def _on_a_line(text: str) -> str:
    """What an error or a web page says, short enough for a line."""
    return " ".join(re.sub(r"<[^>]*>", " ", text).split())[:200]


# --------------------------------------------------------------------------------------- the client

class Client:
    """Asks `model` at `base_url` (None: OPENAI_BASE_URL, or else OpenAI's), from any thread.

    file: of the replies, held by one run at a time. tries: see above. pause: seconds before the
    second try, doubled for each other. calls: how many replies it got. Raises BadInput where it
    cannot ask, and has no replies.
    """

    def __init__(self, file: str | Path, model: str = "gpt-4o", base_url: str | None = None,
                 tries: int = 4, pause: float = 0.5):
        self.model = model
        self.base_url = base_url or os.environ.get("OPENAI_BASE_URL")
        self.endpoint = (self.base_url or "https://api.openai.com/v1").rstrip("/")
        self.tries, self.pause = tries, pause
        self.calls, self._failures = 0, 0
        self._understood: int | None = None              # which of DIALECTS
        self._lock, self._asking = Lock(), {}            # of all, and {key: of one question}
        self.replies = Store(file, what="reply", fields=("reply", "problem"))
        if not len(self.replies):
            self._api                                    # what is wrong is found before any work
        self.replies.open()

    @cached_property
    def _api(self) -> openai.OpenAI:
        """The connection, without a call. Raises BadInput: no key, or a proxy of another kind."""
        key = os.environ.get("OPENAI_API_KEY", "").strip()
        if not key and not self.base_url:
            raise BadInput("OPENAI_API_KEY: is not set; export your key in it, or name a local "
                           "endpoint with --base-url")
        try:
            return openai.OpenAI(api_key=key or "none", base_url=self.base_url,
                                 timeout=TIMEOUT, max_retries=self.tries - 1)
        except (ImportError, ValueError) as error:       # also where NO_PROXY names the endpoint
            raise BadInput(f"{self.endpoint}: cannot be used ({error}); give an http:// proxy in "
                           f"https_proxy, or unset it") from error

    def close(self) -> None:
        """Let go of the file."""
        self.replies.close()

    def ask(self, question: Question) -> Any:
        """The value, or Missing. The same question twice, in two threads as well, is one call.
        Raises BadInput where going on makes no sense; what was answered is kept."""
        key, broken = question.key(self.model, self.endpoint), 0
        with self._asking.setdefault(key, Lock()):
            while (value := self.recall(question, key)) is None:
                try:
                    self._call(question, key)
                except openai.APIConnectionError as error:               # or it took too long
                    reason = str(error.__cause__ or error)[:200]
                    return self._fail(f"no answer came, {self.tries} times: {reason}")
                except openai.APIStatusError as error:
                    return self._fail_with_status(error)
                except NoCompletion as error:
                    broken += 1
                    if broken == self.tries:
                        return self._fail(f"the endpoint's answer is no chat completion: {error}")
                    time.sleep(self.pause * 2 ** (broken - 1))
            return value

    def recall(self, question: Question, key: str) -> Any:
        """What the file says: the value, Missing when asked in vain, or None: to be asked."""
        problems, reply = [], ""
        for row in self.replies.rows(key):
            problem = row["problem"]
            if problem is None:
                try:
                    return question.validate(row["reply"])
                except ValueError as error:
                    problem = str(error)
            if (row.get("limit") or question.max_tokens) < question.max_tokens:
                continue                                 # it was cut off, and now has more room
            problems.append(problem)
            reply = row["reply"] or reply
        if len(problems) >= self.tries:
            return Missing(problems[-1], reply=reply)
        return None

    def _call(self, question: Question, key: str) -> None:
        """One call, in the first of DIALECTS that the endpoint understands.

        What is paid for is in the file before anyone looks at it. Raises openai's errors and
        NoCompletion.
        """
        for k in range(self._understood or 0, len(DIALECTS)):
            try:
                answer = self._api.chat.completions.with_raw_response.create(
                    model=self.model, messages=question.messages(),
                    **question.arguments(*DIALECTS[k]))
                break
            except (openai.BadRequestError, openai.UnprocessableEntityError):
                is_own_fault = k == self._understood
                if is_own_fault or k == len(DIALECTS) - 1:
                    raise
        found = read_completion(answer.text, question.max_tokens)
        self._understood = k
        self.replies.append({"key": key, "model": self.model, "prompt": question.prompt,
                             "label": question.label, **found})
        with self._lock:
            self.calls += 1

    def _fail_with_status(self, error: openai.APIStatusError) -> Missing:
        message = f"{error.status_code}: {_on_a_line(error.response.text)}"
        is_out_of_money = getattr(error, "code", None) == "insufficient_quota"
        if error.status_code in (401, 403, 404) or is_out_of_money:
            raise BadInput(f"the endpoint refuses: {message}; check OPENAI_API_KEY, --base-url, "
                           f"the model's name and the account, the same command goes on") from error
        return self._fail(f"error {message}")

    def _fail(self, reason: str) -> Missing:
        """Missing; the end of the run where the first questions all fail."""
        with self._lock:
            self._failures += 1
            is_hopeless = not self.calls and self._failures >= HANDFUL
        if is_hopeless:
            raise BadInput(f"{self.endpoint}: the first {HANDFUL} questions all failed ({reason}); "
                           f"check --base-url, the network, the model's name and the account's "
                           f"limits, the same command goes on")
        return Missing(reason, unanswered=True)
