"""Evaluate as evaluate.py does, and keep what two critics say of the finished edits.

    python -m experiments.evaluate --subset rave --split val --checkpoint out/uso

A row of scores.jsonl gets two margins more, which are in none of the scores: that of the model's
own VLM and that of the hardened one. A generator that has learnt to please the critic that judged
it, and not to edit, has the other one and the oracle against it.
"""

import evaluate
from common.files import run_script
from critic import Critic
from experiments.another_vlm import with_vlm_of
from experiments.runs import HARDENED
from experiments.train import hash_of_folder


def main(argv=None) -> None:
    def critics(model):
        return {"margin, own": Critic(model),
                "margin, hardened": Critic(with_vlm_of(model, HARDENED))}
    evaluate.main(argv, critics, settings={"margin": hash_of_folder(HARDENED)})


if __name__ == "__main__":
    run_script(main)
