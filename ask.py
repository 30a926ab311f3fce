"""Asking a large vision-language model over the network: the judge of evaluate.py and the writer of curate.py.

    client = Client("gpt-4o", cache="out/asked.jsonl", price_in=2.5, price_out=10)
    scores = client.ask([Question("judge-1", SYSTEM, (text, frame, frame), SCHEMA), ...], validate)

Any OpenAI-compatible endpoint will do (`base_url`). The key is OPENAI_API_KEY of the environment, and nothing else.

Every reply is appended to a file of JSON lines the moment it comes, under a hash of model, prompt version and all that was
shown. Asked again, after a crash or in a rerun, it is read from there and costs nothing. A reply that is no good (refused,
cut off, no JSON, or not what `validate` takes) is asked again, up to `tries` times; then the answer is `Missing`, with the
reason, for good. What never became a reply (time-outs, 429, 5xx: the library retries them with backoff) is not written:
the next run asks again.
"""

import base64
import hashlib
import io
import json
import math
import os
import re
import threading
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Callable, NamedTuple

import numpy as np
import openai
from PIL import Image
from tqdm import tqdm

from data import BadInput

EXPECTED = 200                                           # tokens of an answer, for the estimate of what it will cost


@dataclass(frozen=True)
class Question:
    """What is shown to the model: texts and frames (H, W, 3) uint8 in order, and the JSON schema of its answer.

    version names the prompt: change it with the wording. repeat tells apart the times that the same is asked.
    """
    version: str
    system: str
    parts: tuple
    schema: dict
    repeat: int = 0


class Missing(NamedTuple):
    """No answer, and why; never a number."""
    why: str


class Estimate(NamedTuple):
    """What questions will cost at the most: those already answered cost nothing."""
    calls: int
    tokens_in: int
    tokens_out: int
    cost: float


class Client:
    """A model behind an OpenAI-compatible endpoint. Threads may share it.

    cache: the file of replies. price_in, price_out: money for a million tokens. workers: how many questions are asked at a
    time. tries: replies that are no good before an answer is missing, and failed connections before a question is left.
    timeout: seconds. Raises BadInput where there is no key for the public endpoint, or the cache cannot be read.
    """

    def __init__(self, model: str = "gpt-4o", base_url: str | None = None, cache: str | Path = "out/asked.jsonl",
                 price_in: float = 0., price_out: float = 0., workers: int = 8, tries: int = 4, timeout: float = 60.):
        key = os.environ.get("OPENAI_API_KEY")
        if not (key or base_url):
            raise BadInput("OPENAI_API_KEY is not set: export it, or name an endpoint of your own with --base-url")
        self.model, self.cache, self.workers, self.tries = model, Path(cache), workers, tries
        self.prices, self.spent, self.calls = (price_in, price_out), 0., 0
        self._api = openai.OpenAI(api_key=key or "none", base_url=base_url, max_retries=tries - 1, timeout=timeout)
        self._lock, self._replies = threading.Lock(), {}
        self._read()

    def _read(self) -> None:
        """Take in the cache; a last line that a crash has cut off is cut away."""
        try:
            self.cache.parent.mkdir(parents=True, exist_ok=True)
            held = self.cache.read_bytes() if self.cache.exists() else b""
            whole = held[:held.rfind(b"\n") + 1]
            if whole != held:
                os.truncate(self.cache, len(whole))
            for number, line in enumerate(whole.splitlines(), 1):
                row = json.loads(line)
                self._replies.setdefault(row["key"], []).append(row)
        except OSError as error:
            raise BadInput(f"{self.cache}: cannot be used ({error.strerror}); choose another place") from error
        except (ValueError, KeyError, TypeError) as error:
            raise BadInput(f"{self.cache}:{number}: is no reply ({error}); take the line away, or the file") from error

    def key(self, question: Question) -> str:
        """The hash of the model and of all that it is shown."""
        head = self.model, question.version, question.repeat, question.system, question.schema
        sha = hashlib.sha256(json.dumps(head, sort_keys=True).encode())
        for part in question.parts:
            sha.update(part.encode() if isinstance(part, str) else repr(part.shape).encode() + part.tobytes())
            sha.update(b"\0")
        return sha.hexdigest()

    def answer(self, question: Question, validate: Callable[[dict], Any]) -> Any:
        """validate(the reply's JSON object), or Missing. validate raises ValueError for what it does not take.

        Raises BadInput where the endpoint turns all questions away: a wrong key, model or address.
        """
        key = self.key(question)
        with self._lock:
            replies = list(self._replies.get(key, []))
        why = ""
        for k in range(self.tries):
            if k == len(replies):
                try:
                    replies.append(self._call(question, key))
                except (openai.AuthenticationError, openai.PermissionDeniedError, openai.NotFoundError) as error:
                    raise BadInput(f"the endpoint refuses model {self.model!r} ({error.status_code}: {_short(error)}); "
                                   f"check OPENAI_API_KEY, --base-url and the model's name") from error
                except openai.OpenAIError as error:
                    return Missing(f"{type(error).__name__}: {_short(error)}")
            try:
                return validate(_object(replies[k]))
            except (ValueError, KeyError, TypeError) as error:
                why = _short(error)
        return Missing(why)

    def ask(self, questions: list[Question], validate: Callable[[dict], Any], title: str = "asking") -> list:
        """The answers to `questions`, in order, several asked at a time; a progress bar tells of the money."""
        paid, calls = self.spent, self.calls
        with tqdm(total=len(questions), desc=title, unit="question") as bar, ThreadPoolExecutor(self.workers) as pool:
            def one(question):
                answer = self.answer(question, validate)
                with self._lock:
                    bar.update()
                    if any(self.prices):
                        each = (self.spent - paid) / max(1, bar.n)
                        bar.set_postfix_str(f"spent {self.spent:.2f}, left about {each * (bar.total - bar.n):.2f}")
                return answer
            asked = [pool.submit(one, question) for question in questions]
            try:
                return [future.result() for future in asked]
            except BaseException:                        # one refusal of all, or Ctrl-C: what is on its way is kept
                pool.shutdown(wait=True, cancel_futures=True)
                raise

    def estimate(self, questions: list[Question]) -> Estimate:
        """About what the questions will cost that have no reply yet. A token is four letters; a picture as gpt-4o's."""
        new = [question for question in questions if self.key(question) not in self._replies]
        tokens_in = sum(_tokens(question) for question in new)
        tokens_out = EXPECTED * len(new)
        cost = (tokens_in * self.prices[0] + tokens_out * self.prices[1]) / 1e6
        return Estimate(len(new), tokens_in, tokens_out, cost)

    def _call(self, question: Question, key: str) -> dict:
        """One request; its reply is in the cache before anything else is done with it."""
        content = [{"type": "text", "text": part} if isinstance(part, str) else
                   {"type": "image_url", "image_url": {"url": _data_url(part)}} for part in question.parts]
        done = self._api.chat.completions.create(
            model=self.model, temperature=0 if question.repeat == 0 else 1,
            messages=[{"role": "system", "content": question.system}, {"role": "user", "content": content}],
            response_format={"type": "json_schema",
                             "json_schema": {"name": "answer", "strict": True, "schema": question.schema}})
        choice, used = done.choices[0] if done.choices else None, done.usage
        row = {"key": key, "model": self.model, "version": question.version,
               "reply": choice and choice.message.content, "refusal": choice and getattr(choice.message, "refusal", None),
               "finish": choice and choice.finish_reason, "tokens": [used.prompt_tokens, used.completion_tokens] if used
               else [0, 0]}
        with self._lock:
            with self.cache.open("ab") as file:
                file.write(json.dumps(row).encode() + b"\n")
            self._replies.setdefault(key, []).append(row)
            self.calls += 1
            self.spent += sum(n * price for n, price in zip(row["tokens"], self.prices)) / 1e6
        return row


def _object(row: dict) -> dict:
    """The JSON object of a reply. Raises ValueError where it is refused, cut off, or something else."""
    if row["refusal"]:
        raise ValueError(f"refused: {row['refusal']}")
    if row["finish"] not in ("stop", None):
        raise ValueError(f"not finished ({row['finish']})")
    text = re.sub(r"^\s*```(?:json)?\s*|\s*```\s*$", "", row["reply"] or "")               # some fence it
    try:
        answer = json.loads(text)
    except ValueError as error:
        raise ValueError(f"no JSON: {text[:60]!r}") from error
    if not isinstance(answer, dict):
        raise ValueError(f"no JSON object: {text[:60]!r}")
    return answer


def _data_url(frame: np.ndarray) -> str:
    file = io.BytesIO()
    Image.fromarray(frame).save(file, "PNG")
    return "data:image/png;base64," + base64.b64encode(file.getvalue()).decode()


def _tokens(question: Question) -> int:
    total = len(question.system) / 4 + len(json.dumps(question.schema)) / 4
    for part in question.parts:
        if isinstance(part, str):
            total += len(part) / 4
        else:                                            # 85, and 170 for each tile of 512 x 512
            total += 85 + 170 * math.prod(-(-side // 512) for side in part.shape[:2])
    return round(total)


def _short(error: Exception) -> str:
    return " ".join(str(error).split())[:200]
