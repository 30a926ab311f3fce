"""The check of what the VLM writes, and what is sent back."""

import json
from collections import Counter

import numpy as np
import pytest

from curation import VERBS, answer, write
from rvedata.instructions import (EXAMPLES, print_check_counts, read_examples, why_refused,
                                  why_unusable, write_instruction)
from rvedata.stages import Rejected
from tiny import world


@pytest.mark.parametrize("given, reason", [
    (answer("an hour after sunset everyone left"), ""),
    (answer("an address by the editor"), ""),            # add, edit: within other words
    (answer("please remove the crowd"), "operation: remove"),
    (answer("the crowd was Removed an hour ago"), "operation: remove"),
    (answer("they are swapping their hats"), "operation: swap"),
    (answer("after replacing what was old"), "operation: replace"),
    (answer("the seasons changed over night"), "operation: change"),
    (answer("the red ball rolled under the green tent"), "words: ball, green"),
    (answer("a red ball"), "words: ball, red"),          # of few words most
    (answer("later"), "3 to 60 words"), (answer("so " * 61), "3 to 60 words"),
    (answer(7), "3 to 60 words"), (answer("an hour later", rationale=" "), "the rationale"),
    (answer("an hour later", type="Camera Reasoning"), "the type must be one of Temporal"),
    (answer("an hour later", type=None), "the type must be one of"), ({}, "the type must be"),
])
def test_the_check(given, reason):
    literal = "put the red ball under a green tent"
    found = why_unusable(given, literal, world.TYPES["rave"], VERBS)
    assert (reason in found) if reason else found == ""


def test_our_examples_pass_the_check():
    examples = read_examples(EXAMPLES)
    for subset, types in world.TYPES.items():
        assert Counter(e["type"] for e in examples[subset]) == dict.fromkeys(types, 2)
        for e in examples[subset]:
            assert why_unusable(e, e.get("original") or e["target"], types, VERBS) == "", e


def test_an_answer_is_sent_back_once_with_the_reason():
    examples = read_examples(EXAMPLES)
    replies, heard = iter([answer("remove the dog"), answer("it has run after a cat"),
                           answer("remove the dog"), answer("erase that dog now")]), []

    def ask(system, parts, schema):
        if "fits" in schema["properties"]:
            states = "yes" if "remove" in parts[-1] or "erase" in parts[-1] else "no"
            return {"states_operation": states, "fits": "yes", "reason": "it is so"}
        assert "Temporal Reasoning" in system
        assert all(json.dumps(e) in system for e in examples["rave"])
        heard.append(parts)
        return next(replies)
    question = ["Literal: erase the dog"], "erase the dog", "rave", examples, .5
    found = write_instruction(ask, *question)
    why = "it states an operation: remove"
    assert found == answer("it has run after a cat") | {"sent_back": why}
    assert heard[0] == question[0] and why in heard[1][-1]
    with pytest.raises(Rejected, match="it states an operation: erase .*erase that dog now"):
        write_instruction(ask, *question)
    assert len(heard) == 4


@pytest.mark.parametrize("literal, text, states, fits, reason", [
    ("Add a hat", "Put something on his head against the sun", "yes", "yes",
     "the second question: it states the operation"),
    ("Darken the sky", "The weather is about to change", "no", "yes", ""),
    ("Darken the sky", "Now change the heavens to black", "yes", "yes",
     "it states an operation: change"),
    ("Add a hat", "He has been fishing all night", "no", "no",
     "the second question: it does not fit both videos: because"),
    ("Add a hat", "The noon sun beats down", None, "perhaps", "no verdict came back"),
])
def test_the_second_question(literal, text, states, fits, reason):
    frames = [np.full((4, 4, 3), k, np.uint8) for k in range(8)]
    parts = ["Source:", *frames[:4], "Edited:", *frames[4:], f"Literal: {literal}"]
    asked = []

    def ask(system, shown, schema):
        asked.append(shown)
        return {"states_operation": states, "fits": fits, "reason": "because"}
    found = why_refused(ask, parts, answer(text), literal, world.TYPES["rave"], VERBS, .5)
    assert (reason in found) if reason else found == ""
    (source, target, *texts), = asked                    # one frame of each video: it is cheap
    assert source is frames[2] and target is frames[6] and literal in texts[0] and text in texts[1]


def test_both_checks_are_counted(tmp_path, capsys):
    lines = [{"id": "a", "sent_back": "it states an operation: remove"},
             {"id": "b", "rejected": "it repeats the literal words: dog ('...')"},
             {"id": "c", "rejected": "the second question: it states the operation: x ('...')"},
             {"id": "d", "sent_back": "the instruction must have 3 to 60 words"}, {"id": "e"}]
    write(tmp_path / "rewrites.jsonl", lines)
    print_check_counts(tmp_path / "rewrites.jsonl")
    assert "2 by their words, 1 by the second question" in capsys.readouterr().out
