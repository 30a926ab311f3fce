"""What does a judge see, and what does it say? (Sec. 3.2)

Two judges, chosen by `python -m rvebench.score --judge`:

    openai   any OpenAI-compatible endpoint (ask.py), asked as VIEScore asks: once with frames of
             source and edit about semantic consistency (EA, PC), once with frames of the edit
             alone about perceptual quality (GN, GR)
    oracle   for samples of the tiny world, whose right answer it renders again; it needs no model

In-context generation has no PC. A video in which nothing was changed has PC 10 by construction;
`--references` scores it as a method of its own, and shows what doing nothing gets. What a judge
does not say is missing, with the reason, and never a number.
"""

import json
import re
from pathlib import Path
from typing import Callable, Iterable

import numpy as np

from common.files import BadInput
from common.intervals import COLUMNS, geometric_mean, overall
from common.manifest import SUBSET_OF
from common.video import clip_numbers, pick_frames, read_video, shrink
from rvebench.ask import Client, Missing, Question, parse_json
from rvebench.benchmark import SCORES, Sample
from tiny import world

SIDE = 512                                # frames are shown to a service at most this wide and high
TOKENS = 2048                            # of a reply, at most; a reasoning model thinks within them
NUMBER = re.compile(r"\s*\d+(\.\d+)?\s*", re.ASCII)
PROMPT = "judge-2"                               # part of a reply's key: change it with the wording


def verdict(scores: dict[str, float], missing: str = "", unanswered: bool = False,
            reasons: tuple = (), replies: dict[str, str] = {}) -> dict:
    """What a judge says of an edit, for its row: COLUMNS, and `failed` where there is no score.

    scores: those that it gave, of EA, PC, GN, GR; Overall needs all of them. missing: why others
    are not there, "" if none are missing; unanswered: another run asks again. reasons, and replies
    {what it was asked about: text}: of a service.
    """
    found = dict(scores)
    if "EA" in scores and "GN" in scores:
        four = scores["EA"], scores.get("PC"), scores["GN"], scores["GR"]
        found["Overall"] = float(overall(*four))
        found["Geometric mean"] = float(geometric_mean(*four))
    return {"failed": f"judge: {missing}" if missing and not scores else None,
            **{column: found.get(column) for column in COLUMNS},
            "missing": [missing] if missing else [], "unanswered": int(unanswered),
            "reasons": list(reasons), "replies": [replies] if any(replies.values()) else []}


# -------------------------------------------------------------------------- what a service is asked

SYSTEM = (
    "You are a strict and fair judge of edited videos. You see a few frames, evenly spaced and in "
    "order of time. Judge only what can be seen. Give each score as a number from 0 to 10, and "
    "first the reason for it.")
CRITERIA = {
    "EA": "EA, edit accuracy: does the edit show what the instruction asks for, with all that "
          "follows from it in the real world? 0: nothing of it, or something else. 10: all of it.",
    "PC": "PC, preservation consistency: is everything that the instruction gives no cause to "
          "change as it was in the source? 0: an unrelated scene. 10: nothing else has changed.",
    "GN": "GN, generation naturalness: do things move and change smoothly and as they would? "
          "0: jumps, flicker or frozen nonsense. 10: like a filmed shot.",
    "GR": "GR, generation realism: is each frame free of artefacts, distortions and unnatural "
          "textures? 0: broken everywhere. 10: none."}
CONTEXT = {
    "rave": "The instruction only hints at the edit: infer what the scene should come to look "
            "like.",
    "icvg": "The instruction leads from the source to a later clip of the same story: infer what "
            "it should show."}
UNCHANGED = ("An edit can fail so that source and edit look the same. Compare them before you "
             "score: where nothing was done, EA is 0.")


def answer_schema(names: Iterable[str]) -> dict:
    """The JSON schema of an answer: the reason first, so that a score is given after it."""
    score = {"type": "number", "minimum": 0, "maximum": 10}
    fields = {"reason": {"type": "string"}, **dict.fromkeys(names, score)}
    return {"type": "object", "properties": fields, "required": list(fields),
            "additionalProperties": False}


def validator(names: Iterable[str]) -> Callable[[str], dict]:
    """reply -> {name: score, "reason": text, "reply": reply}. Raises ValueError for a reply without
    JSON, and for all but numbers in 0..10 and a text."""

    def validate(reply: str) -> dict:
        answer = parse_json(reply)
        found = {}
        for name in names:
            score = answer.get(name)
            if isinstance(score, str) and NUMBER.fullmatch(score):       # "7", as some models say
                score = float(score)
            is_number = isinstance(score, (int, float)) and not isinstance(score, bool)
            if not is_number or not 0 <= score <= 10:
                raise ValueError(f"{name} is {json.dumps(score)[:80]}, and no number from 0 to 10")
            found[name] = float(score)
        if not isinstance(answer.get("reason"), str):
            raise ValueError("there is no reason")
        return {**found, "reason": answer["reason"], "reply": reply}
    return validate


def show(path: Path, frames: int) -> list[np.ndarray]:
    """`frames` frames (H, W, 3), uint8, of a clip, uniformly spaced, first and last among them.

    They are shrunk to within SIDE pixels. Raises BadInput where the clip is missing, unreadable or
    shorter.
    """
    numbers, _ = clip_numbers(path, frames)
    return [shrink(frame, SIDE) for frame in pick_frames(path, numbers)]


def questions(sample: Sample, source: list, edited: list,
              max_tokens: int = TOKENS) -> dict[str, Question]:
    """{what it is about: a question}, from frames (H, W, 3), uint8, of source and edit.

    consistency: does the edit do what the instruction asks, and keep the rest? quality: the edit
    alone, without the instruction.
    """
    task = [CONTEXT[SUBSET_OF[sample.type]], f"Instruction: {sample.instruction}", UNCHANGED]
    asked = {
        "consistency": (sample.scores[:-2], task, ["Frames of the source:", *source]),
        "quality": (sample.scores[-2:], [], [])}         # GN, GR
    found = {}
    for about, (names, texts, shown) in asked.items():
        text = "\n".join([*texts, "Score:", *[CRITERIA[name] for name in names]])
        parts = [text, *shown, "Frames of the edit:", *edited]
        found[about] = Question(f"{PROMPT}-{about}", SYSTEM, parts, answer_schema(names),
                                validator(names), sample.id, max_tokens)
    return found


def prompts(frames: int) -> dict[str, dict[str, str]]:
    """{type: {what a question is about: its text}}, with {instruction} for the sample's own."""
    pictures = [f"[{frames} frames]"]
    found = {}
    for kind in SUBSET_OF:
        sample = Sample("", "", kind, "{instruction}", Path(), Path())
        found[kind] = {about: "\n".join([question.instructions, "", *question.parts])
                       for about, question in questions(sample, pictures, pictures).items()}
    return found


def ask_service(client: Client, sample: Sample, path: Path, frames: int,
                max_tokens: int = TOKENS) -> dict:
    """`verdict` of both questions about an edit. Where one answer is missing, the other counts."""
    try:
        source, edited = show(sample.source, frames), show(path, frames)
    except BadInput as error:
        return verdict({}, str(error))
    scores, missing, unanswered, reasons, replies = {}, [], False, [], {}
    for name, question in questions(sample, source, edited, max_tokens).items():
        answer = client.ask(question)
        if isinstance(answer, Missing):
            missing.append(f"{name}: {answer.reason}")
            unanswered |= answer.unanswered
            replies[name] = answer.reply
        else:
            scores |= {key: answer[key] for key in SCORES if key in answer}
            reasons.append(answer["reason"])
            replies[name] = answer["reply"]
    return verdict(scores, "; ".join(missing), unanswered, reasons, replies)


# ------------------------------------------------------------------------------------- local judges

WORLD_ID = re.compile(rf"({'|'.join(world.SUBSETS)})-({'|'.join(world.SPLITS)})-(\d{{1,18}})")


def world_triplet(sample: Sample) -> world.Triplet:
    """The triplet that a sample of the tiny world is, by its id, "rave-test-7". Raises BadInput."""
    found = WORLD_ID.fullmatch(sample.id)
    if found:
        subset, split, index = found.groups()
        triplet = world.make_triplet(int(index), subset, split)
        if triplet.instruction == sample.instruction:
            return triplet
    raise BadInput(f"{sample.id[:80]}: is no sample of the tiny world, and the oracle knows no "
                   f"other; choose another --judge")


def oracle(sample: Sample, path: Path) -> dict:
    """The tiny world's own judge: EA, PC, GN, GR. Raises BadInput where it is no sample of that, or
    cannot be read. The video went through a codec: the target itself gets no full 10."""
    triplet = world_triplet(sample)
    frames, _, height, width = triplet.target.shape
    return world.judge(triplet, read_video(path, frames, height, width))
