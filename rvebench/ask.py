"""Ask a vision-language model behind an OpenAI-compatible endpoint, many times, paying for each answer once.

    client = Client("out/replies.jsonl", model="gpt-4o", price_in=2.5, price_out=10)
    question = Question("caption-1", "You describe videos.", ["What changes?", frame, frame], SCHEMA, validate)
    values = client.ask([question, ...])         # a value of validate() for each, in order, or Missing(reason)
    client.count([question, ...])                # the dry run: calls, tokens and money, without a call

Every reply goes as it came into an append-only file of JSON lines, under a hash of (model, prompt version, texts,
images, schema), before anything is made of it. So a rerun, or a run after a crash, calls nobody for what is there.
Questions may come from a generator: they are drawn as they are asked, and only some of them are in memory.

What goes wrong is *missing*, with its reason, and never a made-up value:
    429, 5xx, time-outs                      retried with backoff by the openai package, `tries` calls in all
    refusals, truncated or malformed replies, and those that validate() refuses with ValueError: asked again, until
                                             `tries` replies are in the file
What would go wrong for each question (a refused key, an unknown model, no money, no endpoint) ends the run: BadInput.

The key comes from the environment variable OPENAI_API_KEY and nowhere else.
"""

import base64
import fcntl
import hashlib
import io
import json
import os
import re
from concurrent.futures import FIRST_COMPLETED, ThreadPoolExecutor, wait
from dataclasses import dataclass
from pathlib import Path
from threading import Lock
from typing import Any, Callable, Iterable

import numpy as np
import openai
from PIL import Image
from tqdm import tqdm

from common.files import BadInput


@dataclass(frozen=True)
class Question:
    """One question. prompt: the name and version of its wording ("judge-sc-1"), for the reader of the file.

    parts: texts and pictures (uint8 (H, W, 3)) in the order in which the model sees them. schema: a JSON schema of the
    answer, or None for free text. validate(reply) -> the value, or ValueError saying what is wrong with the reply.
    repeat: ask the same again (0, 1, ...): another entry in the file. label: whatever helps to find it there.
    max_tokens: a longer reply is cut, and then missing. expected: tokens of a usual reply, for `Client.count`.
    """
    prompt: str
    system: str
    parts: list[str | np.ndarray]
    schema: dict | None
    validate: Callable[[str], Any]
    repeat: int = 0
    label: str = ""
    max_tokens: int = 2048
    expected: int = 150

    def key(self, model: str) -> str:
        """sha256 of all that the answer depends on."""
        sha = hashlib.sha256(json.dumps([model, self.prompt, self.system, self.schema, self.repeat]).encode())
        for part in self.parts:
            head, body = ("text", part.encode()) if isinstance(part, str) else (list(part.shape), part.tobytes())
            sha.update(json.dumps([head, len(body)]).encode() + body)
        return sha.hexdigest()

    def tokens(self) -> tuple[int, int]:
        """(in, out), estimated: a token is four letters; a picture is what gpt-4o takes for it at high detail."""
        texts = [self.system, json.dumps(self.schema), *(p for p in self.parts if isinstance(p, str))]
        pictures = sum(image_tokens(*p.shape[:2]) for p in self.parts if not isinstance(p, str))
        return -(-sum(map(len, texts)) // 4) + pictures, self.expected


@dataclass(frozen=True)
class Missing:
    """There is no value, and why."""
    reason: str


def image_tokens(height: int, width: int) -> int:
    """gpt-4o's price of a picture: shrunk into 2048 x 2048, then to a short side of 768; 85 + 170 a tile of 512 x 512."""
    shrink = min(1, 2048 / max(height, width))
    shrink *= min(1, 768 / (shrink * min(height, width)))
    return 85 + 170 * int(np.ceil(height * shrink / 512) * np.ceil(width * shrink / 512))


def data_url(picture: np.ndarray) -> str:
    """A uint8 (H, W, 3) picture as a data URL: PNG when it is small, where JPEG would smear it, else JPEG."""
    kind, buffer = "png" if max(picture.shape) <= 128 else "jpeg", io.BytesIO()
    Image.fromarray(picture).save(buffer, kind, quality=95)
    return f"data:image/{kind};base64,{base64.b64encode(buffer.getvalue()).decode()}"


def parse_json(reply: str) -> dict:
    """The JSON object of a reply, bare or in a ``` fence. Raises ValueError where there is none."""
    fenced = re.fullmatch(r"\s*```(?:json)?\s*(.*?)\s*```\s*", reply, re.DOTALL)
    try:
        found = json.loads(fenced[1] if fenced else reply)
    except (ValueError, RecursionError) as error:
        raise ValueError("the reply is not JSON") from error
    if not isinstance(found, dict):
        raise ValueError("the reply is no JSON object")
    return found


def read_rows(path: Path, what: str, keep: Callable[[dict], object]) -> int:
    """keep() each row of an append-only file of JSON lines; returns the length of its whole lines: a crash may cut the
    last one off. Raises BadInput, naming file:line, for one that is not JSON or that keep() cannot take: no `what` of ours.
    """
    content = path.read_bytes() if path.exists() else b""
    whole = content.rfind(b"\n") + 1
    for number, line in enumerate(content[:whole].splitlines(), 1):
        try:
            keep(json.loads(line))
        except (ValueError, KeyError, TypeError) as error:
            raise BadInput(f"{path}:{number}: is no {what} of ours ({error}); take the line out") from error
    return whole


class Client:
    """Asks `model` at `base_url` (None: OpenAI's). cache: the file of replies, held by one run at a time.

    price_in, price_out: dollars a million tokens. workers: calls at a time. tries: see above. timeout: seconds a call.
    spent: dollars paid by this object; calls: replies it got.
    """

    def __init__(self, cache: str | Path, model: str = "gpt-4o", base_url: str | None = None, price_in: float = 0.,
                 price_out: float = 0., workers: int = 8, tries: int = 4, timeout: float = 120.):
        self.cache, self.model, self.base_url = Path(cache), model, base_url or os.environ.get("OPENAI_BASE_URL")
        self.prices, self.workers, self.tries, self.timeout = (price_in / 1e6, price_out / 1e6), workers, tries, timeout
        self.spent, self.calls, self._file, self._api, self._lock = 0., 0, None, None, Lock()
        self._opening = Lock()
        self.replies: dict[str, list[dict]] = {}         # by key, as they are in the file
        self._read()

    # ---- the file

    def _read(self) -> int:
        """Take in the file; returns the length of its whole lines."""
        self.replies = {}
        return read_rows(self.cache, "reply", lambda row: self.replies.setdefault(row["key"], []).append(row))

    def _open(self) -> None:
        """Make ready to call: open the file for appending, for this run alone, and the connection."""
        key = os.environ.get("OPENAI_API_KEY")
        if not key and not self.base_url:
            raise BadInput("OPENAI_API_KEY: is not set; export your key in it, or name a local endpoint with --base-url")
        try:
            self.cache.parent.mkdir(parents=True, exist_ok=True)
            file = open(self.cache, "ab")
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError as error:
            raise BadInput(f"{self.cache}: another run is writing it; wait for it, or choose another --out") from error
        except OSError as error:
            raise BadInput(f"{self.cache}: cannot be written ({error.strerror}); choose another --out") from error
        file.truncate(self._read())                      # another run may have written since
        self._file = file
        self._api = openai.OpenAI(api_key=key or "none", base_url=self.base_url, timeout=self.timeout,
                                  max_retries=self.tries - 1)

    def _keep(self, row: dict) -> None:
        """One write of one whole line: what is paid for is in the file before anyone looks at it."""
        with self._lock:
            self._file.write(json.dumps(row).encode() + b"\n")
            self._file.flush()
            self.replies.setdefault(row["key"], []).append(row)
            self.calls += 1
            self.spent += sum(price * n for price, n in zip(self.prices, row["tokens"]))

    def close(self) -> None:
        """Let go of the file."""
        if self._file:
            self._file.close()
            self._file = self._api = None

    # ---- asking

    def recall(self, question: Question, key: str) -> Any:
        """What the file says: the value, Missing when it was asked in vain `tries` times, or None: to be asked."""
        problems = []
        for row in self.replies.get(key, []):
            try:
                if row["problem"]:
                    raise ValueError(row["problem"])
                return question.validate(row["reply"])
            except ValueError as error:
                problems.append(str(error))
        return Missing(problems[-1]) if len(problems) >= self.tries else None

    def _call(self, question: Question, key: str) -> None:
        """One call; what comes back is put into the file. Raises openai's errors."""
        content = [{"type": "text", "text": part} if isinstance(part, str) else
                   {"type": "image_url", "image_url": {"url": data_url(part), "detail": "high"}} for part in question.parts]
        form = {} if question.schema is None else {"response_format": {
            "type": "json_schema", "json_schema": {"name": "answer", "strict": True, "schema": question.schema}}}
        row = {"key": key, "model": self.model, "prompt": question.prompt, "repeat": question.repeat,
               "label": question.label, "reply": None, "problem": None, "tokens": [0, 0]}
        try:
            answer = self._api.chat.completions.create(
                model=self.model, max_completion_tokens=question.max_tokens, **form,
                messages=[{"role": "system", "content": question.system}, {"role": "user", "content": content}])
        except (openai.APIResponseValidationError, json.JSONDecodeError):
            answer = None
        try:
            row["tokens"] = [answer.usage.prompt_tokens, answer.usage.completion_tokens] if answer.usage else [0, 0]
            choice = answer.choices[0]
            row["reply"] = choice.message.content
            row["problem"] = (f"refused: {choice.message.refusal}" if choice.message.refusal else
                              "refused by the content filter" if choice.finish_reason == "content_filter" else
                              f"truncated at {question.max_tokens} tokens" if choice.finish_reason == "length" else
                              None if isinstance(row["reply"], str) and row["reply"].strip() else "the reply is empty")
        except (AttributeError, TypeError, LookupError):
            row["problem"] = "the endpoint's answer is no chat completion"
        self._keep(row)

    def _answer(self, question: Question, key: str) -> Any:
        """Call until there is a value, or `tries` replies; runs in a thread. Raises BadInput for what no retry mends."""
        while (value := self.recall(question, key)) is None:
            try:
                self._call(question, key)
            except openai.APITimeoutError:
                return Missing(f"no answer within {self.timeout:g} s, {self.tries} times")
            except openai.APIConnectionError as error:
                raise BadInput(f"{self.base_url or 'api.openai.com'}: cannot be reached ({error.__cause__ or error}); "
                               f"check --base-url and the network, the same command goes on") from error
            except openai.APIStatusError as error:
                message = f"{error.status_code}: {' '.join(str(error.message).split())[:200]}"
                if error.status_code in (401, 403, 404) or getattr(error, "code", None) == "insufficient_quota":
                    raise BadInput(f"the endpoint refuses: {message}; check OPENAI_API_KEY, --base-url, the model's name "
                                   f"and the account, the same command goes on") from error
                return Missing(f"error {message}")
        return value

    def one(self, question: Question) -> Any:
        """`ask` of one question, from any thread and without a bar: for work whose next question depends on it."""
        key = question.key(self.model)
        value = self.recall(question, key)
        if value is None:
            with self._opening:
                if not self._file:
                    self._open()
            value = self._answer(question, key)
        return value

    def ask(self, questions: Iterable[Question], total: int | None = None, desc: str = "ask") -> list[Any]:
        """A value, or Missing, for each question, in order. total: how many there are, for the progress bar.

        The same question twice is one call. Raises BadInput where going on makes no sense; what was answered is kept.
        """
        keys, found, running = [], {}, {}                # running: future -> key

        def settle(least):
            while len(running) > least:
                for future in wait(running, return_when=FIRST_COMPLETED).done:
                    found[running.pop(future)] = future.result()
                    left = self.spent / max(1, self.calls) * ((total or len(keys)) - len(keys) + len(running))
                    bar.set_postfix_str(f"${self.spent:.4f} spent, about ${left:.4f} to go", refresh=False)
                    bar.update()
        with ThreadPoolExecutor(self.workers) as pool, tqdm(total=total, desc=desc, unit="question") as bar:
            try:
                for question in questions:
                    key = question.key(self.model)
                    keys.append(key)
                    if key in found or key in running.values():
                        bar.update()
                        continue
                    value = self.recall(question, key)
                    if value is None and not self._file:
                        self._open()
                        value = self.recall(question, key)
                    if value is not None:
                        found[key] = value
                        bar.update()
                        continue
                    running[pool.submit(self._answer, question, key)] = key
                    settle(2 * self.workers)             # those in memory
                settle(0)
            finally:
                pool.shutdown(cancel_futures=True)       # those under way are paid for: wait for them
        return [found[key] for key in keys]

    def count(self, questions: Iterable[Question]) -> dict:
        """The dry run: how many `questions`, of these `calls` not in the file yet, their `tokens_in`, `tokens_out`, `cost`.

        Tokens and dollars are estimates, see `Question.tokens`, for one reply to each call.
        """
        n, new, totals = 0, set(), [0, 0]
        for n, question in enumerate(questions, 1):
            key = question.key(self.model)
            if key not in new and self.recall(question, key) is None:
                new.add(key)
                totals = [a + b for a, b in zip(totals, question.tokens())]
        return {"questions": n, "calls": len(new), "tokens_in": totals[0], "tokens_out": totals[1],
                "cost": sum(price * tokens for price, tokens in zip(self.prices, totals))}
