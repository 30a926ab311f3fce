"""Evaluate as evaluate.py does, and keep what two critics say of the finished edits.

    python -m experiments.evaluate --subset rave --split val --checkpoint out/uso

A row of scores.jsonl gets two margins more, which are in none of the scores: that of the model's
own VLM and that of the hardened one. A generator that has learnt to please the critic that judged
it, and not to edit, has the other one and the oracle against it.
"""

import math

import torch

import evaluate
from common.distributed import device
from common.files import run_script
from common.weights import hash_of_weights, read_vlm
from critic import Critic
from experiments.runs import HARDENED
from model import load_model


def margins(critics: dict[str, Critic], triplets: list, edits: torch.Tensor) -> list[dict]:
    """What each critic says of the edits (B, F, 3, H, W), by its name; None: it is no number."""
    source = torch.stack([triplet.source for triplet in triplets])
    words, rows = [triplet.instruction for triplet in triplets], [{} for _ in triplets]
    for name, critic in critics.items():
        at = critic.model.device
        with torch.no_grad():
            found = critic.margin(source.to(at), edits.to(at), words).tolist()
        for row, margin in zip(rows, found):
            row[name] = margin if math.isfinite(margin) else None
    return rows


def main(argv=None) -> None:
    args = evaluate.parse(argv)
    model = load_model(args.checkpoint).to(device())
    critics = {"margin, own": Critic(model),
               "margin, hardened": Critic(model, vlm=read_vlm(model, HARDENED))}
    evaluate.score(model, args, hash_of_weights(HARDENED),
                   lambda triplets, edits: margins(critics, triplets, edits))


if __name__ == "__main__":
    run_script(main)
