"""What is the VLM asked, and when can its answer be used? (Sec. 3.1.1, 3.1.2)

A VLM is here a function ask(system, parts, schema) -> dict: `parts` are texts and frames (H, W, 3),
`schema` is the JSON schema of the answer. See vlm.py for the two that there are.
"""

import json
import re
from pathlib import Path
from typing import Callable

from common.files import BadInput
from rvedata.stages import Rejected
from rvedata.text import content_words
from tiny import world

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


def text_schema(**fields: dict) -> dict:
    """The JSON schema of an object of texts. Each field: {} for any text, or {"enum": [...]}."""
    properties = {name: {"type": "string", **limits} for name, limits in fields.items()}
    return {"type": "object", "properties": properties, "required": list(fields),
            "additionalProperties": False}


def read_examples(path: Path) -> dict:
    """{"rave": [...], "icvg": [...], "forbidden": [...]}: few-shot examples and forbidden verbs.

    Raises BadInput if a type has no example or a verb is not a single word.
    """
    try:
        examples = json.loads(path.read_text())
        for subset, types in world.TYPES.items():
            present = {example["type"] for example in examples[subset]}
            for name in types:
                if name not in present:
                    raise ValueError(f"no example of {name}")
        if not all(verb.isalpha() for verb in examples["forbidden"]):
            raise ValueError("a forbidden verb is no single word")
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
        reason = f"{type(error).__name__}: {error}"
        raise BadInput(f"--examples {path}: {reason}; see rvedata/examples.json") from error
    return examples


def why_unusable(answer: dict, literal: str, types: list[str], forbidden: list[str],
                 overlap: float = .5) -> str:
    """Why an answer cannot be used, or "".

    Its type must be one of `types`, its instruction must have 3 to 60 words, none of the
    `forbidden` verbs, and at most `overlap` of the content words of the `literal` text.
    """
    text = answer.get("instruction")
    if answer.get("type") not in types:
        return f"the type must be one of {', '.join(types)}"
    has_words = isinstance(text, str) and 3 <= len(text.split()) <= 60
    if not has_words or not str(answer.get("rationale") or "").strip():
        return "the instruction must have 3 to 60 words, and the rationale some"
    for verb in forbidden:
        if uses_verb(text, verb):
            return f"it states an operation: {verb}"
    said, shown = content_words(literal), content_words(text)
    shared = said & shown
    if len(shared) > overlap * min(len(said), len(shown)):
        return f"it repeats the literal words: {', '.join(sorted(shared))}"
    return ""


def uses_verb(text: str, verb: str) -> bool:
    """Whether a form of the verb is in the text: add, adds, adding; swap, swapped; replacing."""
    stem, last = verb.removesuffix("e"), verb[-1]
    return bool(re.search(rf"\b{stem}{last}?(e|es|ed|s|ing)?\b", text.lower()))


def write_instruction(ask: Callable, parts: list, literal: str, subset: str, examples: dict,
                      overlap: float) -> dict:
    """Type, rationale and implicit instruction of a pair of videos, as the VLM writes them.

    An unusable answer is sent back once, with the reason. Raises Rejected if the second is, too.
    """
    types = world.TYPES[subset]
    system = "\n".join([
        " ".join(PROMPT[subset].split()),
        f"The types: {', '.join(types)}.",
        f"Never use the verbs {', '.join(examples['forbidden'])}.",
        "Examples:",
        *[json.dumps(example) for example in examples[subset]]])
    schema = text_schema(type={"enum": types}, rationale={}, instruction={})
    for _ in range(2):
        answer = ask(system, parts, schema)
        reason = why_unusable(answer, literal, types, examples["forbidden"], overlap)
        if not reason:
            return {key: answer[key].strip() for key in ("type", "rationale", "instruction")}
        parts = [*parts, f"Your answer was {json.dumps(answer)}. "
                         f"It cannot be used: {reason}. Write another one."]
    raise Rejected(f"{reason} ({str(answer.get('instruction'))[:200]!r})")
