"""The chats that the VLM is taught with, and the loss of what it should write in them.

A row is a list of parts: (text or vision tokens (T, D), role). The roles:
    "given"     it is read
    "learn"     it is to be written
    "verdict"   the one token Yes or No, which has a soft label
    "compare"   tokens of source and edit in turn, of which the dense questions are asked (heads.py)

Axis letters: B rows, T tokens, D width, K frames.
"""

from dataclasses import dataclass

import torch
import torch.nn.functional as F

from critic import EDITED, SOURCE, SYSTEM, VERDICT, interleave, opening
from presets import GENERATE, PRESETS
from tiny import world
from tiny.tokenizer import make_tokenizer
from vlm import ASSISTANT_TURN, USER_TURN, VILA, chat

DESCRIBE = "Describe the video ."
STOP = "<|eot_id|>"


def world_tokenizer():
    """The tokenizer of all that the tiny world and its chats can say."""
    roles = "system\n\nuser\n\nassistant\n\n"
    chats = [SYSTEM, GENERATE, SOURCE, EDITED, VERDICT, DESCRIBE, roles]
    return make_tokenizer(world.all_texts() + 50 * chats, PRESETS["tiny"].t5["vocab_size"])


# ----------------------------------------------------------------------------------------- the rows

def caption_row(source: torch.Tensor, caption: str) -> list[tuple]:
    """Describe the source, of which these are the tokens (T, D)."""
    return [*given(chat(SYSTEM, [source, DESCRIBE])), (f"{caption}{STOP}", "learn")]


def thought_row(source: torch.Tensor, instruction: str, thought: str) -> list[tuple]:
    """From what the source shows and the instruction says, write what must happen."""
    return [*given(opening(source, instruction)), (f"{thought} .{STOP}", "learn")]


def verdict_row(think: str, source: torch.Tensor, edited: torch.Tensor, instruction: str,
                thought: str, seen: str, yes: float) -> list[tuple]:
    """Judge an edit, in the form that `critic.Critic` with this `think` asks in.

    source, edited: (T, D). yes: the soft label. seen: what has been done, ""
    where that is not known. It is to be written, too: in "full" before the verdict; in the others
    after it, where the verdict cannot read it, but the eyes learn from it.
    """
    *question, assistant_turn = opening(source, instruction)
    shown = interleave(source, edited)
    verdict = [("Yes" if yes > .5 else "No", "verdict")]
    if think == "full" and seen:
        return [*given([*question, EDITED, shown, ASSISTANT_TURN]),
                (f"{thought} . {seen} . ", "learn"), (VERDICT, "learn"), *verdict]
    if seen:
        verdict.append((f" , {seen}{STOP}", "learn"))
    if think == "expect":
        after_thought = USER_TURN.removeprefix(STOP) + EDITED
        return [*given([*question, assistant_turn]), (f"{thought} .{STOP}", "learn"),
                (after_thought, "given"), (shown, "compare"),
                (ASSISTANT_TURN + VERDICT, "given"), *verdict]
    return [*given([*question, EDITED, shown, ASSISTANT_TURN + VERDICT]), *verdict]


def given(parts: list) -> list[tuple]:
    return [(part, "given") for part in parts]


# ---------------------------------------------------------------------------------- what they teach

@dataclass
class Taught:
    """What reading the rows gave. B' are the rows with a "compare" part of T' pairs of tokens."""
    text_loss: torch.Tensor          # of the tokens to be written
    verdict_loss: torch.Tensor       # cross-entropy of Yes and No with the soft labels
    margin: torch.Tensor             # (B,)          z_yes - z_no
    there: torch.Tensor | None       # (B', T', D)   at the source's tokens, after the first layer
    expected: torch.Tensor | None    # (B', T', D)   at these, three layers below the last
    found: torch.Tensor | None       # (B', T', D)   at the edit's tokens, one layer below the last


def teach(vlm: VILA, rows: list[list[tuple]], yes: torch.Tensor | None = None) -> Taught:
    """Read the rows. yes: (B,) soft labels of the verdicts, where the rows have one.

    Between `expected` and `found` are two layers, to compare; the verdict, in the last one, can
    read the result.
    """
    embeddings, mask = vlm.join([[part for part, _ in row] for row in rows])
    labels, verdict_at, compared = find_parts(vlm, rows, mask.shape[1])
    out = vlm.read(embeddings, mask, hidden=True)
    text_loss = F.cross_entropy(out.logits[:, :-1].flatten(0, 1), labels[:, 1:].flatten(),
                                ignore_index=-100)
    said = out.logits[torch.arange(len(rows)), verdict_at].log_softmax(-1)       # (B, vocabulary)
    yes_id, no_id = vlm.tokenizer.convert_tokens_to_ids(["Yes", "No"])
    said_yes, said_no = said[:, yes_id], said[:, no_id]
    verdict_loss = torch.zeros(())
    if yes is not None:
        verdict_loss = -(yes * said_yes + (1 - yes) * said_no).sum() / len(rows)

    margin = said_yes - said_no
    there = states_at(out.hidden_states[1], compared, first=0)
    expected = states_at(out.hidden_states[-4], compared, first=0)
    found = states_at(out.hidden_states[-2], compared, first=1)
    return Taught(text_loss, verdict_loss, margin, there, expected, found)


def states_at(states: torch.Tensor, compared: list, first: int) -> torch.Tensor | None:
    """States (B, T, D) at every second compared token, (B', T', D). first: 0 source, 1 edit."""
    if not compared:
        return None
    return torch.stack([states[r, start + first:end:2] for r, start, end in compared])


def find_parts(vlm: VILA, rows: list[list[tuple]],
               length: int) -> tuple[torch.Tensor, torch.Tensor, list]:
    """Where things are in the joined rows, which are padded on the left to `length`.

    Returns labels (B, length) for the cross-entropy, -100 where nothing is to be written; the
    position (B,) whose logits say the verdict; and (row, start, end) of each "compare" part.
    """
    labels = torch.full((len(rows), length), -100)
    verdict_at = torch.full((len(rows),), -1)
    compared = []
    for r, row in enumerate(rows):
        start = length - sum(len(token_ids(vlm, part)) for part, _ in row)
        for part, role in row:
            ids = token_ids(vlm, part)
            end = start + len(ids)
            if role == "learn":
                labels[r, start:end] = torch.tensor(ids)
            if role == "verdict":
                verdict_at[r] = start - 1                # a position says the token after it
            if role == "compare":
                compared.append((r, start, end))
            start = end
    return labels, verdict_at, compared


def token_ids(vlm: VILA, part: str | torch.Tensor) -> list[int]:
    """Of a text; vision tokens have none, but count as many."""
    if isinstance(part, str):
        return vlm.tokenizer(part, add_special_tokens=False).input_ids
    return [0] * len(part)
