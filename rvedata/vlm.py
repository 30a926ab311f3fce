"""Who answers? A VLM behind an OpenAI-compatible endpoint.

It is called as ask(system, parts, schema) -> dict. `parts` are texts and frames (H, W, 3) uint8, in
the order in which the VLM sees them; `schema` is the JSON schema of the answer.
"""

from pathlib import Path

from common.files import BadInput
from rvebench.ask import Client, Missing, Question, parse_json
from rvedata.stages import Rejected, StopRun

VERSION = 2                                              # of the prompts: part of a reply's key


class EndpointVLM:
    """ask() by a model of an endpoint; each reply is kept in `file`, and paid for once.

    base_url: see rvebench/ask.py.
    """

    def __init__(self, file: Path, model: str, base_url: str | None):
        self.client = Client(file, model, base_url)

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

    def close(self) -> None:
        self.client.close()
