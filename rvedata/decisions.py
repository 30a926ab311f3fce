"""What did people decide in verify.html, and how far do they agree?

verify.html saves a file for each person:

    {"annotator": "anna", "decisions": {
        "an id": {"decision": "accept", "instruction": "as it was changed", "type": "another type"},
        "another": {"decision": "reject", "reason": "says the edit outright"}}}

`instruction` and `type` are there only where the person has changed them. The folder of the
benchmark keeps a list of these in decisions.json.
"""

import json
import math
from itertools import combinations
from pathlib import Path

from common.files import BadInput
from common.manifest import SUBSET_OF

KEPT = "decisions.json"


def read_decisions(path: Path, triplets: dict[str, dict]) -> dict[str, dict[str, dict]]:
    """{who decided: {id: decision}} of a person's file, or of the list in decisions.json.

    Raises BadInput where it is none of these triplets.
    """
    try:
        said = json.loads(path.read_text("utf-8"))
        people = said if isinstance(said, list) else [said]
        return dict(check_person(each, triplets, path.stem) for each in people)
    except BadInput as error:
        raise BadInput(f"{path}: {error}") from error
    except (OSError, ValueError, AttributeError, TypeError, KeyError) as error:
        raise BadInput(f"{path}: cannot be read ({error!r:.80}); "
                       f"give what verify.html saved") from error


def check_person(said: dict, triplets: dict[str, dict], name: str) -> tuple[str, dict[str, dict]]:
    """(who decided, {id: decision}). name: of who does not say. Raises BadInput and the like.

    Some may be about triplets that are no longer here: those of a film that is gone.
    """
    decisions = said["decisions"]
    if decisions and decisions.keys().isdisjoint(triplets):
        raise BadInput(f"{', '.join(decisions)[:80]!r}: is no triplet here; whose decisions are "
                       f"these?")
    for key, decision in decisions.items():
        if decision["decision"] not in ("accept", "reject"):
            raise BadInput(f"{key[:80]!r} is neither accepted nor rejected; decide again")
        kind, text = decision.get("type"), decision.get("instruction", "unchanged")
        if kind and key in triplets and SUBSET_OF.get(kind) != SUBSET_OF[triplets[key]["type"]]:
            raise BadInput(f"{key[:80]!r} would get the type {kind!r:.80}; choose one of its "
                           f"subset")
        if not isinstance(text, str) or not text.strip():
            raise BadInput(f"{key[:80]!r} would have no instruction; write one")
    return str(said.get("annotator") or name), decisions


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

    kappa is Cohen's: 1 is agreement, 0 what chance gives. Where both say one word alone, chance
    agrees as well, and kappa is undefined: NaN.
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
            said = f"{kappa:.2f}" if kappa == kappa else "undefined, as they say one word alone"
            lines.append(f"{a} and {b} decide alike on {share:.0%} of {n}, Cohen's kappa {said}")
    return lines
