"""The check of what the VLM writes, and what is sent back; Ditto-like edits; an endpoint."""

import json
import re
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest

from common.files import BadInput
from curation import answer, go, knows, read
from data import manifest_items
from endpoint import Endpoint
from presets import PRESETS
from rvebench.ask import Missing
from rvedata.instructions import (EXAMPLES, asking, read_examples, second_question, why_unusable,
                                  write_instruction)
from rvedata.stages import Rejected, StopRun
from tiny import world


@pytest.mark.parametrize("given, reason", [
    (answer("an hour after sunset everyone left"), ""),
    (answer("the red ball rolled under the green tent"), "words: ball, green"),
    (answer("a red ball"), "words: ball, red"),          # of few words most
    (answer("later"), "3 to 60 words"), (answer("so " * 61), "3 to 60 words"),
    (answer(7), "3 to 60 words"), (answer("an hour later", rationale=" "), "the rationale"),
    (answer("an hour later", type="Camera Reasoning"), "the type must be one of Temporal"),
    ({}, "the type must be")])
def test_the_check(given, reason):
    found = why_unusable(given, "put the red ball under a green tent", world.TYPES["rave"])
    assert (reason in found) if reason else found == ""


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
    parts = [*np.zeros((8, 4, 4, 3), np.uint8), "Literal: hide the animal"]
    question = parts, "hide the animal", "rave", examples
    assert write_instruction(ask, *question) == answer("it has run after a cat")
    assert heard[0] is parts and "it states the operation: it is so" in heard[1][-1]
    with pytest.raises(Rejected, match="it states the operation: .*erase that dog now"):
        write_instruction(ask, *question)
    assert len(heard) == 4


@pytest.mark.parametrize("states, fits, reason", [
    ("no", "yes", ""), ("yes", "yes", "the second question: it states the operation"),
    ("no", "no", "the second question: it does not fit both videos: because"),
    (None, "perhaps", "no verdict came back")])
def test_the_second_question(states, fits, reason):
    frames = [np.full((4, 4, 3), k, np.uint8) for k in range(8)]
    parts = ["Source:", *frames[:4], "Edited:", *frames[4:], "Literal: add a hat"]
    asked = []

    def ask(system, shown, schema):
        asked.append(shown)
        return {"states_operation": states, "fits": fits, "reason": "because"}
    found = second_question(ask, parts, "The noon sun beats down", "add a hat")
    assert (reason in found) if reason else found == ""
    (source, target, *texts), = asked                    # one frame of each video: it is cheap
    assert source is frames[2] and target is frames[6]
    assert "add a hat" in texts[0] and "The noon sun" in texts[1]


def test_rave(rave):
    lines, rows = read(rave.out / "rewrites.jsonl"), read(rave.out / "triplets.jsonl")
    refused = [r for r in lines if "rejected" in r]
    assert len(rows) == 16 - len(refused) > 12
    assert all(re.search("states|repeats", r["rejected"]) for r in refused)
    for r in rows:
        t = world.make_triplet(int(Path(r["source_video_path"]).stem), "rave", "train")
        assert r["literal"] == t.literal
        assert (r["instruction"], r["type"], r["rationale"]) == (t.instruction, t.type, t.thought)
    items, _ = manifest_items(rave.out / "triplets.jsonl", PRESETS["tiny"])
    assert [item.instruction for item in items] == [r["instruction"] for r in rows]


def test_a_rejected_target_leaves_its_source_and_instruction(rave, tmp_path):
    """The VLM's second question finds that every second target does not fit."""
    records = json.loads(rave.metadata.read_text())[:5]
    (tmp_path / "meta.json").write_text(json.dumps(records))
    flags = ["--ditto", tmp_path / "meta.json", "--videos", rave.folder]
    unfit = [f"The plain description: {record['instruction']}" for record in records[1::2]]

    def ask(system, parts, schema):
        is_unfit = any(isinstance(part, str) and part in unfit for part in parts)
        return knows(system, parts, schema) | ({"fits": "no"} if is_unfit else {})
    out = tmp_path / "out"
    go("rave", out, *flags, ask=ask)
    pairs = read(out / "pairs.jsonl")
    assert sorted((out / r["source_video_path"]).resolve() for r in pairs) \
        == sorted(rave.folder / record["source_path"] for record in records[1::2])
    for r in pairs:
        assert r.keys() == {"id", "subset", "source_video_path", "instruction", "type", "rationale"}
        assert r["instruction"].startswith("hours go by") and r["type"] in world.TYPES["rave"]
    assert not {r["id"] for r in pairs} & {r["id"] for r in read(out / "triplets.jsonl")}


# -------------------------------------------------------------------------------- an endpoint

def serve(body, n):
    """What the two models of an endpoint say: `seer` describes, `m` writes and checks."""
    schema = body["response_format"]["json_schema"]["schema"]
    texts = [part["text"] for part in body["messages"][1]["content"] if part["type"] == "text"]
    is_caption = "caption" in schema["properties"]
    assert body["model"] == ("seer" if is_caption else "m")
    return json.dumps({"caption": "a place"} if is_caption else knows("", texts, schema))


def test_a_service_over_http(movies, begun, monkeypatch):
    monkeypatch.setenv("OPENAI_API_KEY", "secret-key")
    with Endpoint(serve) as server:
        flags = [*movies.flags, "--model", "m", "--base-url", server.url, "--caption-model", "seer"]
        go("icvg", begun, *flags, ask=None)
        paid = len(server.requests)
        for name in ("captions", "instructions"):
            (begun / f"{name}.jsonl").unlink()
        go("icvg", begun, *flags, ask=None)
        assert len(server.requests) == paid              # all of it is in the file
    triplets = read(begun / "triplets.jsonl")
    assert len(triplets) > 3 and len(read(begun / "replies-captions.jsonl")) == 18
    assert len(read(begun / "replies.jsonl")) == 2 * len(triplets)
    files = [path for path in begun.rglob("*") if path.is_file()]
    assert not any(b"secret-key" in path.read_bytes() for path in files)


def test_what_is_no_answer():
    def fails(question):
        raise BadInput("a wrong key")
    for ask, error in ((lambda question: Missing("refused: no"), Rejected),
                       (lambda question: Missing("late", unanswered=True), BadInput),
                       (fails, StopRun)):
        with pytest.raises(error) as raised:
            asking(SimpleNamespace(ask=ask))("system", ["text"], {})
        assert type(raised.value) is error
