"""What people decided: read, settled, and how far they agree."""

import json

import pytest

from common.files import BadInput
from rvedata.decisions import agreement, agreement_lines, changed, read_decisions, settle

TRIPLETS = {name: {"id": name, "type": "Temporal Reasoning", "instruction": "dusk"}
            for name in "abcd"}


def decided(**words):
    return {name: {"decision": word} for name, word in words.items()}


def test_agreement_by_hand():
    one = decided(a="accept", b="accept", c="reject", d="reject")
    other = decided(a="accept", b="reject", c="reject", d="reject", e="accept")
    n, share, kappa = agreement(one, other)              # chance: .5 * .25 + .5 * .75 = .5
    assert (n, share, kappa) == (4, .75, .5)
    assert agreement(one, one)[1:] == (1, 1) and agreement(one, {})[0] == 0
    lines = agreement_lines({"anna": one, "ben": other, "cleo": decided(z="accept")})
    assert lines == ["anna and ben decide alike on 75% of 4, Cohen's kappa 0.50"]
    same = decided(a="accept", b="accept")
    line, = agreement_lines({"anna": same, "ben": same})
    assert line.endswith("100% of 2, Cohen's kappa undefined, as they say one word alone")


def test_who_rejects_has_the_last_word():
    anna = {"a": {"decision": "reject", "reason": "dark"},
            "b": {"decision": "accept", "instruction": "night"}}
    ben = {"a": {"decision": "accept"}, "b": {"decision": "accept", "type": "Spatial Reasoning"}}
    for people in ({"anna": anna, "ben": ben}, {"ben": ben, "anna": anna}):
        settled = settle(people)
        assert settled["a"] == {"decision": "reject", "reason": "dark"}
        assert changed(TRIPLETS["b"], settled["b"], ("instruction", "type")) \
            == {"id": "b", "type": "Spatial Reasoning", "instruction": "night"}
    assert changed(TRIPLETS["c"], None, ("type",)) == TRIPLETS["c"]


def test_files_of_decisions(tmp_path):
    file = tmp_path / "cleo.json"                        # one film is gone: her other word counts
    file.write_text(json.dumps({"decisions": decided(gone="accept", a="reject")}))
    assert read_decisions(file, TRIPLETS) == {"cleo": decided(gone="accept", a="reject")}
    people = {"anna": decided(a="accept"), "ben": decided(b="reject")}
    kept = [{"annotator": name, "decisions": said} for name, said in people.items()]
    file.write_text(json.dumps(kept))                    # a list, as split keeps it
    assert read_decisions(file, TRIPLETS) == people


@pytest.mark.parametrize("said, words", [
    ({"decisions": decided(other="accept")}, "'other': is no triplet here"),
    ({"decisions": decided(a="perhaps")}, "neither accepted nor rejected"),
    ({"decisions": {"a": {"decision": "accept", "type": "Causal Reasoning"}}},
     "choose one of its subset"),
    ({"decisions": {"a": {"decision": "accept", "instruction": " "}}}, "no instruction"),
    ([[]], "cannot be read"), ({"decisions": {"a": "accept"}}, "cannot be read")])
def test_what_is_no_file_of_decisions(tmp_path, said, words):
    (tmp_path / "x.json").write_text(json.dumps(said))
    with pytest.raises(BadInput, match=f"x.json: .*{words}"):
        read_decisions(tmp_path / "x.json", TRIPLETS)
