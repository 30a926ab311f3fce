"""Ask a VLM behind an OpenAI-compatible endpoint, many times, paying for each answer once.

    client = Client("out/replies.jsonl", model="gpt-4o")
    question = Question("caption-1", "You describe videos.", ["What changes?", frame], SCHEMA,
                        validate)
    values = client.ask([question, ...])     # a value of validate() for each, or Missing(reason)

Every reply goes as it came into an append-only file of JSON lines, before anything is made of it: a
rerun, or a run after a crash, calls nobody for what is there. Questions may come from a generator:
only some of them are in memory. What goes wrong is *missing*, with its reason:

    refusals, truncated or malformed replies, and those that validate() refuses with ValueError
        asked again, until `tries` replies are in the file; that is final
    429, 5xx, time-outs, connections that break, a status 200 with an error or a web page in it
        `tries` calls with growing pauses; nothing is kept, so the next run asks again
    400 or 422 before anything was answered
        asked in plainer ways, DIALECTS, until one is understood; that one serves for the whole run

What would go wrong for each question (a refused key, an unknown model, no money, no endpoint, the
first questions all failing) ends the run: BadInput. No temperature is sent: newer models refuse it.
The key comes from the environment variable OPENAI_API_KEY and nowhere else.
"""

import base64
import hashlib
import io
import json
import os
import re
import time
from collections import Counter
from dataclasses import dataclass
from pathlib import Path
from threading import Lock
from typing import Any, Callable, Iterable, Iterator

import numpy as np
import openai
from PIL import Image
from tqdm import tqdm

from common.files import BadInput
from common.jsonl import Store
from common.pool import in_threads

HANDFUL = 5                               # so many questions fail alike, and none is answered: stop

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

    Raises ValueError where there is none, or where there are several that differ.
    """
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
        raise NoCompletion(_excerpt(body)) from error
    if finish == "error" or not isinstance(reply, str | None):
        raise NoCompletion(_excerpt(body))
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


def _excerpt(body: str) -> str:
    """What an error or a web page says, short enough for a line."""
    try:
        error = json.loads(body)["error"]
        text = error["message"] if isinstance(error, dict) else error
    except (ValueError, LookupError, TypeError, RecursionError):
        text = re.sub(r"<[^>]*>", " ", body)
    return " ".join(str(text).split())[:200]


# --------------------------------------------------------------------------------------- the client

class Client:
    """Asks `model` at `base_url` (None: OPENAI_BASE_URL, or else OpenAI's).

    cache: the file of replies, held by one run at a time. workers: calls at a time. tries: see
    above. timeout: seconds a call. pause: seconds before the second try, doubled for each other.

    calls: how many replies it got.
    """

    def __init__(self, cache: str | Path, model: str = "gpt-4o", base_url: str | None = None,
                 workers: int = 8, tries: int = 4, timeout: float = 120., pause: float = 0.5):
        self.model = model
        self.base_url = base_url or os.environ.get("OPENAI_BASE_URL")
        self.workers, self.tries, self.timeout, self.pause = workers, tries, timeout, pause
        self.calls = 0
        self.replies = Store(cache, what="reply", fields=("reply", "problem"))
        self._api: openai.OpenAI | None = None
        self._understood: int | None = None              # which of DIALECTS
        self._failures = Counter()
        self._lock = Lock()

    @property
    def endpoint(self) -> str:
        """Where questions go."""
        return (self.base_url or "https://api.openai.com/v1").rstrip("/")

    def key(self, question: Question) -> str:
        """The key of a question's replies in the file."""
        return question.key(self.model, self.endpoint)

    def connect(self) -> openai.OpenAI:
        """The connection, without a call.

        Raises BadInput where none can be made: no key, or a proxy that is not understood.
        """
        key = os.environ.get("OPENAI_API_KEY", "").strip()
        if not key and not self.base_url:
            raise BadInput("OPENAI_API_KEY: is not set; export your key in it, or name a local "
                           "endpoint with --base-url")
        try:
            return openai.OpenAI(api_key=key or "none", base_url=self.base_url,
                                 timeout=self.timeout, max_retries=self.tries - 1)
        except (ImportError, ValueError) as error:       # also where NO_PROXY names the endpoint
            raise BadInput(f"{self.endpoint}: cannot be used ({error}); give an http:// proxy in "
                           f"https_proxy, or unset it") from error

    def _open(self) -> None:
        """Make ready to call: the connection, and the file for appending, for this run alone."""
        with self._lock:
            if not self._api:
                api = self.connect()
                self.replies.open()
                self._api = api

    def close(self) -> None:
        """Let go of the file."""
        self.replies.close()
        self._api = None

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

    def _answer(self, question: Question, key: str) -> Any:
        """Call until there is a value, or `tries` replies; runs in a thread.

        Raises BadInput for what no retry mends.
        """
        broken = 0
        while (value := self.recall(question, key)) is None:
            try:
                self._call(question, key)
            except openai.APITimeoutError:
                reason = f"no answer within {self.timeout:g} s, {self.tries} times"
                return self._fail("timeout", reason)
            except openai.APIConnectionError as error:
                reason = str(error.__cause__ or error)[:200]
                self._check_reachable(reason)
                reason = f"the connection broke, {self.tries} times: {reason}"
                return self._fail("connection", reason)
            except openai.APIStatusError as error:
                return self._fail_with_status(error)
            except NoCompletion as error:
                broken += 1
                if broken == self.tries:
                    reason = f"the endpoint's answer is no chat completion: {error}"
                    return self._fail("no completion", reason)
                time.sleep(self.pause * 2 ** (broken - 1))
        return value

    def _check_reachable(self, reason: str) -> None:
        """Raises BadInput where nobody is there: one question's broken connection is not that."""
        try:
            self._api.with_options(max_retries=0).models.list()
        except openai.APIConnectionError as error:
            raise BadInput(f"{self.endpoint}: cannot be reached ({reason}); check --base-url and "
                           f"the network, the same command goes on") from error
        except openai.OpenAIError:
            pass                                         # an error, too, is an answer

    def _fail_with_status(self, error: openai.APIStatusError) -> Missing:
        message = f"{error.status_code}: {_excerpt(error.response.text)}"
        is_out_of_money = getattr(error, "code", None) == "insufficient_quota"
        if error.status_code in (401, 403, 404) or is_out_of_money:
            raise BadInput(f"the endpoint refuses: {message}; check OPENAI_API_KEY, --base-url, "
                           f"the model's name and the account, the same command goes on") from error
        return self._fail(error.status_code, f"error {message}")

    def _fail(self, kind: str | int, reason: str) -> Missing:
        """Missing; the end of the run where the first questions all fail in the same way."""
        with self._lock:
            self._failures[kind] += 1
            is_hopeless = not self.calls and self._failures[kind] >= HANDFUL
        if is_hopeless:
            mend = "check --base-url and the model's name"
            if kind == 429:
                mend = "wait until the account's limit is renewed, or raise it"
            raise BadInput(f"{self.endpoint}: the first {HANDFUL} questions all failed ({reason}); "
                           f"{mend}, the same command goes on")
        return Missing(reason, unanswered=True)

    def one(self, question: Question) -> Any:
        """`ask` of one question, from any thread, without a bar: the next may depend on it."""
        return self._find(question, self.key(question))

    def _find(self, question: Question, key: str) -> Any:
        value = self.recall(question, key)
        if value is None:
            self._open()
            value = self._answer(question, key)
        return value

    def ask(self, questions: Iterable[Question], total: int | None = None,
            desc: str = "ask") -> list[Any]:
        """A value, or Missing, for each question, in order. total: how many at most, for the bar.

        The same question twice is one call. Raises BadInput where going on makes no sense; what was
        answered is kept.
        """
        keys, seen, found = [], set(), {}
        bar = tqdm(total=total, desc=desc, unit="question")

        def new() -> Iterator[tuple[Question, str]]:
            for question in questions:
                key = self.key(question)
                keys.append(key)
                if key in seen:
                    bar.update()
                else:
                    seen.add(key)
                    yield question, key
            bar.total = len(keys)

        with bar:
            for (_, key), value in in_threads(lambda asked: self._find(*asked), new(),
                                              self.workers):
                found[key] = value
                bar.update()
        return [found[key] for key in keys]
