"""What is the VLM asked, and when can its answer be used? (Sec. 3.1.1, 3.1.2)

A VLM is here a function ask(system, parts, schema) -> dict: `parts` are texts and frames (H, W, 3),
`schema` is the JSON schema of the answer. See vlm.py for the two that there are.
"""

import json
import re
from itertools import groupby
from pathlib import Path
from typing import Callable

import numpy as np

from common.files import BadInput
from rvedata.stages import Rejected, read_records
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
CHECK = """You see one frame of a source video and one of the video that it should become, a
plain description of that change or of the second video, and an instruction. Two questions, each
to be answered with yes or no. states_operation: does the instruction say which edit to make, or
what is to be seen afterwards, in whatever words, instead of a cause from which one has to
reason it out? fits: can one reason from the first video and the instruction to the second, and
does nothing in them contradict it? Answer as JSON, with a reason of one sentence."""

STATES, REPEATS = "it states an operation", "it repeats the literal words"
ASKED = "the second question"                            # how its reasons begin
UNFIT = f"{ASKED}: it does not fit both videos"


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
        examples = json.loads(path.read_text("utf-8"))
        for subset, types in world.TYPES.items():
            missing = set(types) - {example["type"] for example in examples[subset]}
            if missing:
                raise ValueError(f"no example of {', '.join(sorted(missing))}")
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
            return f"{STATES}: {verb}"
    said, shown = content_words(literal), content_words(text)
    shared = said & shown
    if len(shared) > overlap * min(len(said), len(shown)):
        return f"{REPEATS}: {', '.join(sorted(shared))}"
    return ""


def uses_verb(text: str, verb: str) -> bool:
    """Whether a form of the verb is in the text: add, adds, adding; swap, swapped; replacing."""
    stem, last = verb.removesuffix("e"), verb[-1]
    return bool(re.search(rf"\b{stem}{last}?(e|es|ed|s|ing)?\b", text.lower()))


def write_instruction(ask: Callable, parts: list, literal: str, subset: str, examples: dict,
                      overlap: float) -> dict:
    """Type, rationale and implicit instruction of a pair of videos, as the VLM writes them.

    An unusable answer is sent back once, with the reason, which is then in "sent_back". Raises
    Rejected if the second is unusable, too; where it is good but does not fit both videos, its
    texts go with the error.
    """
    types, forbidden = world.TYPES[subset], examples["forbidden"]
    system = "\n".join([
        " ".join(PROMPT[subset].split()),
        f"The types: {', '.join(types)}.",
        f"Never use the verbs {', '.join(forbidden)}.",
        "Examples:",
        *[json.dumps(example) for example in examples[subset]]])
    schema = text_schema(type={"enum": types}, rationale={}, instruction={})
    sent_back = {}
    question = parts
    for _ in range(2):
        answer = ask(system, question, schema)
        reason = why_refused(ask, parts, answer, literal, types, forbidden, overlap)
        if not reason:
            return texts_of(answer) | sent_back
        sent_back = {"sent_back": reason}
        question = [*parts, f"Your answer was {json.dumps(answer)}. "
                            f"It cannot be used: {reason}. Write another one."]
    about = texts_of(answer) if reason.startswith(UNFIT) else {}
    raise Rejected(f"{reason} ({str(answer.get('instruction'))[:200]!r})", **about)


def texts_of(answer: dict) -> dict:
    """What is kept of an answer that can be used."""
    return {key: answer[key].strip() for key in ("type", "rationale", "instruction")}


def why_refused(ask: Callable, parts: list, answer: dict, literal: str, types: list[str],
                forbidden: list[str], overlap: float) -> str:
    """Why an answer is refused, or "": by form and words, then by a second question to the VLM.

    A forbidden verb is only a suspicion ("the weather is about to change"): the VLM decides.
    """
    reason = why_unusable(answer, literal, types, forbidden, overlap)
    suspected = reason.startswith(STATES) and not why_unusable(answer, literal, types, [], overlap)
    if reason and not suspected:
        return reason
    return second_question(ask, parts, answer["instruction"], literal, reason)


def second_question(ask: Callable, parts: list, instruction: str, literal: str,
                    suspicion: str = "") -> str:
    """What the VLM has against an instruction, or "": it states the operation, or does not fit.

    It is cheap: of each video only the middle frame is shown.
    """
    schema = text_schema(states_operation={"enum": ["yes", "no"]}, fits={"enum": ["yes", "no"]},
                         reason={})
    texts = [f"The plain description: {literal}", f"The instruction: {instruction}"]
    answer = ask(" ".join(CHECK.split()), [*middle_frames(parts), *texts], schema)
    reason = str(answer.get("reason"))[:200]
    if answer.get("states_operation") == "yes":
        return suspicion or f"{ASKED}: it states the operation: {reason}"
    if answer.get("fits") == "no":
        return f"{UNFIT}: {reason}"
    if answer.get("states_operation") != "no" or answer.get("fits") != "yes":
        return f"{ASKED}: no verdict came back"
    return ""


def middle_frames(parts: list) -> list[np.ndarray]:
    """Of each row of frames the middle one."""
    rows = [list(row) for is_frame, row in groupby(parts, lambda part: isinstance(part, np.ndarray))
            if is_frame]
    return [row[len(row) // 2] for row in rows]


def print_check_counts(path: Path) -> None:
    """One line: how many answers in a stage's file were sent back, by words and by the VLM."""
    words = asked = 0
    for record in read_records(path):
        reason = record.get("sent_back") or record.get("rejected") or ""
        if reason.startswith(ASKED):
            asked += 1
        elif reason.startswith((STATES, REPEATS)):
            words += 1
    print(f"{path.stem}: too explicit or unfit: {words} by their words, "
          f"{asked} by the second question")
