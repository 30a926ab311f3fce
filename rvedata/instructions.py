"""What is the VLM asked, and when can its answer be used? (Sec. 3.1.1, 3.1.2)

A VLM is here a function ask(system, parts, schema) -> dict: `parts` are texts and frames (H, W, 3)
uint8, in the order in which it sees them, `schema` is the JSON schema of the answer. It is a model
behind an OpenAI-compatible endpoint, asked by rvebench/ask.py, or the stand-in of demo.py.
"""

import argparse
import json
from pathlib import Path
from typing import Callable

import numpy as np

from common.files import BadInput
from rvebench.ask import Client, Missing, Question, parse_json
from rvedata.embed import content_words
from rvedata.stages import Rejected, StopRun, shard
from tiny import world

VERSION = 2                                              # of the prompts: part of a reply's key
EXAMPLES = Path(__file__).parent / "examples.json"       # few-shot examples and forbidden verbs

CAPTION = """You see frames of one shot of a film, in order. Describe in one or two plain
sentences who and what is there, the place, the light, what happens, and how the camera sees it.
Answer as JSON."""
REWRITE = """You see frames of a source video, frames of its edited version, and the literal
instruction that led from one to the other. Infer why, in the real world, the scene would come
to look like that, and rewrite the instruction as a cue from which one can reason out the edit:
name the cause, the time, the place or the meaning, and withhold the operation and its visible
result. It must fit both videos. Answer as JSON: type, rationale (one sentence), instruction."""
SYNTHESIZE = """You see frames of an earlier clip of a film, frames of a later clip of the same
scene, and captions. Infer an event, a feeling, a piece of common sense or a change of
perspective that leads from one to the other, and write an instruction from which one can reason
out the later clip; do not describe that clip. Answer as JSON: type, rationale (one sentence),
instruction."""
PROMPT = {"rave": REWRITE, "icvg": SYNTHESIZE}
CHECK = """You see one frame of a source video and one of the video that it should become, a
plain description of that change or of the second video, and an instruction. Two questions, each
to be answered with yes or no. states_operation: does the instruction say which edit to make, or
what is to be seen afterwards, in whatever words, instead of a cause from which one has to
reason it out? fits: can one reason from the first video and the instruction to the second, and
does nothing in them contradict it? Answer as JSON, with a reason of one sentence."""

UNFIT = "the second question: it does not fit both videos"


def add_vlm_flags(parser: argparse.ArgumentParser) -> None:
    """Of the commands that ask a VLM."""
    add = parser.add_argument
    add("--shard", type=shard, default=(0, 1), metavar="i/n", help="do only this part")
    add("--examples", type=Path, default=EXAMPLES, help="few-shot examples and forbidden verbs")
    add("--model", default="gpt-4o", help="its name")
    add("--base-url", help="the endpoint; OPENAI_BASE_URL or OpenAI's if not given")


def asking(client: Client) -> Callable:
    """ask(system, parts, schema), by the model of an endpoint; each reply is paid for once."""

    def ask(system: str, parts: list, schema: dict) -> dict:
        """Raises StopRun if nothing can be asked, BadInput without a reply, Rejected if in vain."""
        try:
            value = client.ask(Question(f"curate-{VERSION}", system, parts, schema, parse_json))
        except BadInput as error:
            raise StopRun(str(error)) from error
        if not isinstance(value, Missing):
            return value
        kind = BadInput if value.unanswered else Rejected  # a reply is final
        raise kind(f"the VLM gave no answer: {value.reason}")
    return ask


def text_schema(**fields: dict) -> dict:
    """The JSON schema of an object of texts. Each field: {} for any text, or {"enum": [...]}."""
    properties = {name: {"type": "string", **limits} for name, limits in fields.items()}
    return {"type": "object", "properties": properties, "required": list(fields),
            "additionalProperties": False}


def read_examples(path: Path) -> dict:
    """{"rave": [...], "icvg": [...], "forbidden": [...]}: few-shot examples and forbidden verbs.
    Raises BadInput if a type has no example."""
    try:
        examples = json.loads(path.read_text("utf-8"))
        for subset, types in world.TYPES.items():
            missing = set(types) - {example["type"] for example in examples[subset]}
            if missing:
                raise ValueError(f"no example of {', '.join(sorted(missing))}")
        examples["forbidden"][0]
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
        reason = f"{type(error).__name__}: {error}"
        raise BadInput(f"--examples {path}: {reason}; see rvedata/examples.json") from error
    return examples


def why_unusable(answer: dict, literal: str, types: list[str]) -> str:
    """Why an answer cannot be used, or "".

    Its type must be one of `types`, its instruction must have 3 to 60 words, and at most half of
    the content words of the `literal` text.
    """
    text = answer.get("instruction")
    if answer.get("type") not in types:
        return f"the type must be one of {', '.join(types)}"
    has_words = isinstance(text, str) and 3 <= len(text.split()) <= 60
    if not has_words or not str(answer.get("rationale") or "").strip():
        return "the instruction must have 3 to 60 words, and the rationale some"
    said, shown = content_words(literal), content_words(text)
    shared = said & shown
    if len(shared) > min(len(said), len(shown)) / 2:
        return f"it repeats the literal words: {', '.join(sorted(shared))}"
    return ""


def write_instruction(ask: Callable, parts: list, literal: str, subset: str,
                      examples: dict) -> dict:
    """Type, rationale and implicit instruction of a pair of videos, as the VLM writes them.

    An answer that is unusable, or that a second question to the VLM refuses, is sent back once,
    with the reason. Raises Rejected if the second is unusable, too; where it is good but does not
    fit both videos, its texts go with the error.
    """
    types, forbidden = world.TYPES[subset], ", ".join(examples["forbidden"])
    system = "\n".join([
        " ".join(PROMPT[subset].split()),
        f"The types: {', '.join(types)}.",
        f"Never use the verbs {forbidden}.",
        "Examples:",
        *[json.dumps(example) for example in examples[subset]]])
    schema = text_schema(type={"enum": types}, rationale={}, instruction={})
    question = parts
    for _ in range(2):
        answer = ask(system, question, schema)
        reason = (why_unusable(answer, literal, types)
                  or second_question(ask, parts, answer["instruction"], literal))
        texts = {key: answer.get(key) for key in schema["properties"]}
        if not reason:
            return texts
        question = [*parts, f"Your answer was {json.dumps(answer)}. "
                            f"It cannot be used: {reason}. Write another one."]
    about = texts if reason.startswith(UNFIT) else {}
    raise Rejected(f"{reason} ({str(answer.get('instruction'))[:200]!r})", **about)


def second_question(ask: Callable, parts: list, instruction: str, literal: str) -> str:
    """What the VLM has against an instruction, or "": it states the operation, or does not fit.

    It is cheap: of each video, which has half of the frames, only the middle one is shown.
    """
    frames = [part for part in parts if isinstance(part, np.ndarray)]
    middles = [frames[len(frames) // 4], frames[3 * len(frames) // 4]]
    schema = text_schema(states_operation={"enum": ["yes", "no"]}, fits={"enum": ["yes", "no"]},
                         reason={})
    texts = [f"The plain description: {literal}", f"The instruction: {instruction}"]
    answer = ask(" ".join(CHECK.split()), [*middles, *texts], schema)
    reason = str(answer.get("reason"))[:200]
    if answer.get("states_operation") == "yes":
        return f"the second question: it states the operation: {reason}"
    if answer.get("fits") == "no":
        return f"{UNFIT}: {reason}"
    if answer.get("states_operation") != "no" or answer.get("fits") != "yes":
        return "the second question: no verdict came back"
    return ""
