"""Who answers? A VLM behind an OpenAI-compatible endpoint, or the model's own.

Both are called as ask(system, parts, schema) -> dict. `parts` are texts and frames (H, W, 3) uint8,
in the order in which the VLM sees them; `schema` is the JSON schema of the answer.
"""

import json
from argparse import Namespace
from itertools import groupby
from threading import Lock

import numpy as np
import torch

from common.files import BadInput
from common.video import from_bytes
from model import load_model
from rvebench.ask import Client, Missing, Question, parse_json
from rvedata.stages import Rejected, StopRun
from vlm import chat

VERSION = 2                                              # of the prompts: part of a reply's key


class EndpointVLM:
    """ask() by an OpenAI-compatible endpoint; each reply is kept and paid for once (see ask.py)."""

    def __init__(self, client: Client):
        self.client = client

    def __call__(self, system: str, parts: list, schema: dict) -> dict:
        """Raises StopRun if nothing can be asked, BadInput without a reply, Rejected if in vain."""
        question = Question(f"curate-{VERSION}", system, parts, schema, parse_json)
        try:
            value = self.client.one(question)
        except BadInput as error:
            raise StopRun(str(error)) from error
        if not isinstance(value, Missing):
            return value
        kind = BadInput if value.unanswered else Rejected  # a reply is final
        raise kind(f"the VLM gave no answer: {value.reason}")

    def cost(self, done: int, left: int | None) -> str:
        """Dollars so far and, if it is known how many items are left, about how many to go."""
        spent = f"${self.client.spent:.4f} spent on {self.client.calls} calls"
        if left is None:
            return spent
        return f"{spent}, about ${self.client.spent / max(1, done) * left:.2f} to go"

    def close(self) -> None:
        self.client.close()


class LocalVLM:
    """ask() by the model's own VLM: greedy, one question at a time; adjacent frames are a clip."""

    def __init__(self, model, max_tokens: int = 256):
        self.model, self.max_tokens = model, max_tokens
        self.lock = Lock()

    def __call__(self, system: str, parts: list, schema: dict) -> dict:
        """Raises Rejected if the answer has no JSON object: asked again it would be the same."""
        with self.lock:
            user = []
            for is_frame, run in groupby(parts, lambda part: isinstance(part, np.ndarray)):
                run = list(run)
                user.append(self._see(run) if is_frame else "\n".join(run) + "\n")
            user.append(f"Answer with a JSON object of this schema: {json.dumps(schema)}")
            text, = self.model.vlm.write([chat(system, user)], self.max_tokens)
        try:
            answer = json.loads(text[text.index("{"):text.rindex("}") + 1])
        except ValueError:
            raise Rejected(f"the VLM's answer is not JSON: {text[:200]!r}") from None
        return answer if isinstance(answer, dict) else {}

    @torch.no_grad()
    def _see(self, frames: list[np.ndarray]) -> torch.Tensor:
        """The VLM's tokens (T, D) of a clip."""
        clip = from_bytes(torch.from_numpy(np.stack(frames))).permute(0, 3, 1, 2)     # (F, 3, H, W)
        return self.model.vlm.see(clip[None].to(self.model.device))[0]

    def close(self) -> None:
        pass


def make_vlm(args: Namespace) -> EndpointVLM | LocalVLM:
    """The VLM that the flags name (see flags.add_vlm_flags)."""
    if args.vlm == "vila":
        model = load_model(args.weights, args.preset)
        return LocalVLM(model.cuda() if torch.cuda.is_available() else model)
    return EndpointVLM(Client(args.out / "replies.jsonl", args.model, args.base_url,
                              args.price_in, args.price_out))


def make_captioner(args: Namespace) -> EndpointVLM | None:
    """The VLM of --caption-model; None if the captions come from the one that make_vlm makes."""
    if args.caption_model is None:
        return None
    return EndpointVLM(Client(args.out / "replies-captions.jsonl", args.caption_model,
                              args.caption_base_url or args.base_url, *args.caption_prices))
