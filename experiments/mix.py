"""A model between two runs: the weighted mean of their weights.

    python -m experiments.mix out/sft out/own-edits --out out/half
    python -m experiments.mix out/sft out/own-edits --share 0.7 --out out/more

Two runs from the same base lie on one line of good models (Wortsman et al. 2022, "Robust
fine-tuning of zero-shot models"): a dial between what the two can, without training.
"""

from pathlib import Path

import torch

from common.files import BadInput, Parser, between, check_writable, run_script
from common.weights import frozen_folder
from data import fingerprint
from model import TRAINED, UnifiedModel, load_model


@torch.no_grad()
def mix(first: UnifiedModel, second: UnifiedModel, share: float) -> None:
    """Make `first`'s trained weights (1 - share) first + share second."""
    for name in TRAINED:
        ours, theirs = first.get_submodule(name), second.get_submodule(name)
        for p, q in zip(ours.parameters(), theirs.parameters(), strict=True):
            p.lerp_(q, share)


def main(argv=None) -> None:
    parser = Parser(description=__doc__.split("\n\n")[0])
    add = parser.add_argument
    add("first", type=Path, help="a run of train.py")
    add("second", type=Path, help="another, from the same base")
    add("--share", type=between(0, 1), default=.5, help="of the second")
    add("--out", type=Path, required=True, help="folder of the new model")
    args = parser.parse_args(argv)
    check_writable(args.out / "model" / "model.json")
    models = first, second = load_model(args.first), load_model(args.second)
    stamps = {fingerprint(model) for model in models}
    if len(stamps) > 1:
        raise BadInput(f"{args.first} and {args.second} are not of the same base, or do not see "
                       f"the same frames: only two runs from one base can be mixed")
    mix(first, second, args.share)
    first.save_pretrained(args.out / "model", frozen=frozen_folder(args.first))
    print(f"wrote the model into {args.out}")


if __name__ == "__main__":
    run_script(main, "stopped; nothing was written")
