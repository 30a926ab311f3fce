"""Which of its own edits should a generator learn? Those that a frozen VLM says Yes to.

    python -m experiments.choose out/half --pairs 2800 --critic weights/hardened
    python -m experiments.train --objective sft --items 100 --steps 800 --ema 0.99 \\
        --chosen out/chosen

`train.own_edit_step` sends the critic's gradient into the generator, which learns to edit, and to
smear. Here no gradient passes through the critic: a run edits sources that have no target, from
noise to the end, and an edit with a margin above 0 becomes a target (rejection sampling; RAFT, Dong
et al. 2023). What is chosen smears less than what is not.

The edits of each GROUP of pairs are a file of --out: the same command goes on after a stop.

Axis letters: B pairs of a group, M chosen ones, F frames, H W pixels, C f h w latents.
"""

import argparse
import sys
from pathlib import Path

import torch
from safetensors.torch import load_file, save
from tqdm import tqdm

import train
from common.distributed import device
from common.files import (BadInput, Parser, at_least_0, atomic_write, check_writable, hash_of_file,
                          run_script)
from common.plots import optional_picture
from common.run import check_run, claim_folder, read_run
from common.weights import hash_of_weights
from critic import Critic
from data import Batches, Item, Latents
from model import load_model
from tiny.contact_sheet import contact_sheet

GROUP = 16
SHOWN = 12                                       # of the contact sheet


@torch.no_grad()
def choose(model, critic: Critic, items: list[Item], seed: int) -> dict[str, torch.Tensor]:
    """Edit the sources of B items. Returns "margin" (B,) and, of those with one above 0, "row"
    (M,), their places in the group, and "target" (M, C, f, h, w)."""
    source = torch.stack([item.load()[0] for item in items]).to(model.device)    # (B, F, 3, H, W)
    instructions = [item.instruction for item in items]
    x0 = model.sample(source, instructions, seed=seed, decode=False)
    with model.precision():
        margin = critic.margin(source, critic.decode(x0), instructions)
    row = (margin > 0).nonzero()[:, 0]
    return {"margin": margin.cpu(), "row": row.cpu(), "target": x0[row].cpu().contiguous()}


class Chosen(Latents):
    """Encoded triplets whose targets are chosen edits, (M, C, f, h, w)."""

    def __init__(self, items: list[Item], targets: torch.Tensor, model, folder: Path):
        super().__init__(items, model, folder)
        self.targets = targets

    def __getitem__(self, i: int) -> dict[str, torch.Tensor]:
        return super().__getitem__(i) | {"target": self.targets[i]}


def hash_of_chosen(folder: Path) -> str:
    """Of the edits in a folder. Raises BadInput where they are not there, or not yet, or where the
    manifest of their pairs is another now."""
    file = folder / "chosen.safetensors"
    if not file.is_file():
        raise BadInput(f"--chosen {folder}: holds no chosen.safetensors; python -m "
                       f"experiments.choose writes it once all pairs are edited")
    how = parse(read_run(folder)["argv"])
    check_run(folder, train.settings_of(how))
    return hash_of_file(file)


def chosen_batches(model, folder: Path, args) -> Batches:
    """The batches of a folder's chosen edits, in step with the triplets'."""
    how, chosen = parse(read_run(folder)["argv"]), load_file(folder / "chosen.safetensors")
    items = train.pair_items(model, how)
    items = [items[i] for i in chosen["number"].tolist()]
    latents = Chosen(items, chosen["target"], model, args.cache)
    return Batches(latents, model, None, batch=args.batch, tau=args.tau, drop=args.drop,
                   seed=args.seed + train.SEED_OF_PAIRS, accumulate=args.accumulate)


# ------------------------------------------------------------------------------------- the command

def parse(argv=None):
    parser = Parser(description=__doc__.split("\n\n")[0])
    add = parser.add_argument
    add("run", type=Path, help="a run of train.py, whose edits are judged")
    add("--pairs", type=train.number_or_file, metavar="N|FILE", default=4000,
        help="how many sources of the tiny world, or a manifest that needs no targets")
    add("--skip-bad", action="store_true", help="go on without the manifest's bad pairs")
    add("--critic", metavar="FOLDER", help="another VLM that judges (without it: the model's own)")
    add("--seed", type=at_least_0, default=0, help="of the noise")
    add("--out", type=Path, default=Path("out/chosen"), help="folder of the chosen edits")
    parser.set_defaults(data=None, lam=1., think="expect", decode=None)      # train.py's, fixed
    argv = sys.argv[1:] if argv is None else list(argv)
    args = parser.parse_args(argv, argparse.Namespace(argv=argv))
    train.check_critic(args)
    return args


def main(argv=None) -> None:
    args = parse(argv)
    model = load_model(args.run).to(device())
    settings = train.settings_of(args) | {"weights": hash_of_weights(args.run)}
    check_run(args.out, settings)
    check_writable(args.out / "chosen.safetensors")
    critic, items = train.make_critic(model, args), train.pair_items(model, args)
    claim_folder(args.out, args.argv, settings)
    numbers, targets, margins = [], [], []
    for first in tqdm(range(0, len(items), GROUP), desc="edits", unit="group"):
        file = args.out / "groups" / f"{first:06d}.safetensors"
        if not file.exists():
            seed = (args.seed + 1) * 1_000_003 + first
            found = choose(model, critic, items[first:first + GROUP], seed)
            atomic_write(file, save(found))
        found = load_file(file)
        numbers.append(first + found["row"])
        targets.append(found["target"])
        margins.append(found["margin"])
    number, target = torch.cat(numbers), torch.cat(targets)
    if not len(number):
        raise BadInput(f"{args.run}: the critic says Yes to none of {len(items)} edits; "
                       f"give more pairs, or train the run for longer")
    atomic_write(args.out / "chosen.safetensors", save({"number": number, "target": target}))
    print(f"chose {len(number)} of {len(items)} edits, mean P(Yes) "
          f"{torch.cat(margins).sigmoid().mean():.2f}; wrote them into {args.out}")
    with optional_picture(args.out / "chosen.png"):
        shown = [items[i] for i in number[:SHOWN]]
        with torch.no_grad():
            edits = model.decode_video(target[:SHOWN].to(model.device))
        contact_sheet(shown, {"source": [item.load()[0] for item in shown], "chosen": edits},
                      args.out / "chosen.png")


if __name__ == "__main__":
    run_script(main, "stopped; the same command goes on from here")
