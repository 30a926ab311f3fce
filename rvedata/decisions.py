"""What did people decide in verify.html, and how far do they agree?

verify.html saves a file for each person:

    {"annotator": "anna", "decisions": {
        "an id": {"decision": "accept", "instruction": "as it was changed", "type": "another type"},
        "another": {"decision": "reject", "reason": "says the edit outright"}}}

`instruction` and `type` are there only where the person has changed them. `{"an id": "accept"}`, as
earlier versions saved it, is read as well.
"""

import json
import math
from itertools import combinations
from pathlib import Path

from common.files import BadInput
from common.manifest import SUBSET_OF

KEPT = "decisions.json"                                  # in the folder of the benchmark


def read_decisions(path: Path, triplets: dict[str, dict]) -> tuple[str, dict[str, dict]]:
    """(who decided, {id: decision}) of a file. Raises BadInput if it is none of these triplets."""
    try:
        return check_person(json.loads(path.read_text("utf-8")), triplets, path.stem)
    except BadInput as error:
        raise BadInput(f"--decisions {path}: {error}") from error
    except (OSError, ValueError, AttributeError, TypeError, KeyError) as error:
        raise BadInput(f"--decisions {path}: cannot be read ({error!r:.80}); "
                       f"give what verify.html saved") from error


def check_person(said: dict, triplets: dict[str, dict], name: str) -> tuple[str, dict[str, dict]]:
    """(who decided, {id: decision}). name: of who does not say. Raises BadInput and the like."""
    if "decisions" not in said:
        said = {"decisions": {key: {"decision": each} for key, each in said.items()}}
    decisions = said["decisions"]
    for key, decision in decisions.items():
        if key not in triplets or decision["decision"] not in ("accept", "reject"):
            raise BadInput(f"{key[:80]!r} is no triplet here, or neither accept nor reject; "
                           f"whose is it?")
        kind, text = decision.get("type"), decision.get("instruction", "unchanged")
        if kind and SUBSET_OF.get(kind) != SUBSET_OF[triplets[key]["type"]]:
            raise BadInput(f"{key[:80]!r} would get the type {kind!r:.80}; choose one of its "
                           f"subset")
        if not isinstance(text, str) or not text.strip():
            raise BadInput(f"{key[:80]!r} would have no instruction; write one")
    return str(said.get("annotator") or name), decisions


def read_kept(folder: Path, triplets: dict[str, dict]) -> dict[str, dict[str, dict]]:
    """{who decided: {id: decision}} of earlier runs, kept in the folder. Raises BadInput."""
    path = folder / KEPT
    if not path.exists():
        return {}
    try:
        kept = json.loads(path.read_text("utf-8"))
        if isinstance(kept, list):
            return dict(check_person(said, triplets, "") for said in kept)
        return dict([check_person(kept, triplets, path.stem)])           # of an earlier version
    except (ValueError, AttributeError, TypeError, KeyError) as error:
        raise BadInput(f"{path}: {error}; take it away, and pass --decisions again") from error


def to_keep(people: dict[str, dict[str, dict]]) -> list[dict]:
    """What `read_kept` reads."""
    return [{"annotator": name, "decisions": decisions} for name, decisions in people.items()]


def settle(people: dict[str, dict[str, dict]]) -> dict[str, dict]:
    """{id: one decision}: a triplet that anybody rejects is rejected; the last change counts."""
    settled = {}
    for decisions in people.values():
        for key, decision in decisions.items():
            before = settled.get(key, {})
            settled[key] = before | decision
            if before.get("decision") == "reject":
                settled[key]["decision"] = "reject"
    return settled


def changed(triplet: dict, decision: dict | None, fields: tuple[str, ...]) -> dict:
    """The triplet with those of these fields that a person has changed."""
    return triplet | {field: decision[field] for field in fields if decision and field in decision}


def agreement(one: dict[str, dict], other: dict[str, dict]) -> tuple[int, float, float]:
    """(N, share, kappa): how often two people decide alike, of N that both decided.

    kappa is Cohen's: 1 is agreement, 0 what chance gives; NaN where both always say the same word.
    """
    both = [(one[key]["decision"], other[key]["decision"]) for key in one if key in other]
    if not both:
        return 0, math.nan, math.nan
    n = len(both)
    share = sum(a == b for a, b in both) / n
    chance = 0.
    for word in ("accept", "reject"):
        chance += sum(a == word for a, _ in both) / n * sum(b == word for _, b in both) / n
    kappa = (share - chance) / (1 - chance) if chance < 1 else math.nan
    return n, share, kappa


def agreement_lines(people: dict[str, dict[str, dict]]) -> list[str]:
    """A line for each two people who decided some of the same triplets."""
    lines = []
    for a, b in combinations(people, 2):
        n, share, kappa = agreement(people[a], people[b])
        if n:
            lines.append(f"{a} and {b} decide alike on {share:.0%} of {n}, Cohen's kappa "
                         f"{kappa:.2f}")
    return lines
