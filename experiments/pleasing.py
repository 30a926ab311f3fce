"""What does pleasing the critic buy? Critics side by side.

    python -m experiments.pleasing                                       # weights/tiny
    python -m experiments.pleasing --critic weights/tiny --critic weights/hardened --split val

A wrong answer to a held-out triplet is moved in latent space so that the critic's margin rises: six
normalised steps, with an RMS of 0.3 or 0.6 of a latent's deviation in all. The oracle scores it
before and after. A critic whose gradient is an edit gains as much of the oracle as of itself; one
that can be pleased cheaply gains only its own margin. All critics get the same wrong answers.

Prints a table and keeps it, with a contact sheet of what the ascent does, in out/pleasing.

Axis letters: N triplets, B batch, C f h w latents.
"""

import json
from pathlib import Path

import numpy as np
import torch
from tqdm import tqdm

from common.files import (Parser, atomic_write, check_writable, markdown, replacing,
                          run_script)
from common.intervals import format_interval, interval, overall
from critic import Critic, follow
from experiments.critic_probe import (HeldOut, add_held_out_flags, batches, hold_out,
                                      load_with_vlm)
from tiny import world

SIZES = (.3, .6)               # RMS of the whole way, in deviations of a latent
COLUMNS = ("Overall", "EA", "PC", "GR")
ROWS = 12                      # of the contact sheet
STRIDE = 7                     # so that its rows show each kind of miss: there are seven, in turn


def oracle(triplet, video: torch.Tensor) -> list[float]:
    """The oracle's COLUMNS for a video (F, 3, H, W), 0 to 10; PC is NaN on ICVG, which has none."""
    scores = world.judge(triplet, video)
    four = scores["EA"], scores.get("PC"), scores["GN"], scores["GR"]
    return [overall(*four), scores["EA"], scores.get("PC", np.nan), scores["GR"]]


def climb(model, held: HeldOut, size: float, progress: str) -> dict:
    """Move the wrong answers up the margin, by an RMS of `size` in all.

    Returns videos, the moved answers, N of (F, 3, H, W); margin (N,), what the critic's margin
    gained; and oracle (N, 4), what the COLUMNS gained. Before and after are both decoded latents,
    so that the VAE's own blur counts on neither side.
    """
    critic = Critic(model)
    videos, margin_gains, oracle_gains = [], [], []
    for rows in tqdm(batches(len(held)), desc=progress):
        source, instructions = held.source[rows], held.instructions[rows]
        thoughts = critic.thoughts(source, instructions)

        def margin_of(frames):
            return critic.margin(source, frames, instructions, thoughts)

        with torch.no_grad():
            latents = model.encode_video(held.wrong[rows])                   # (B, C, f, h, w)
        moved = follow(critic, latents, margin_of, size=size)
        with torch.no_grad():
            before, after = model.decode_video(latents), model.decode_video(moved)
            gain = margin_of(critic.decode(moved)) - margin_of(critic.decode(latents))
        margin_gains += gain.tolist()
        for triplet, then, now in zip(held.triplets[rows], before, after):
            oracle_gains.append(np.subtract(oracle(triplet, now), oracle(triplet, then)))
        videos += after
    return {"videos": videos, "margin": np.array(margin_gains), "oracle": np.array(oracle_gains)}


def describe(found: dict[str, dict[float, dict]]) -> str:
    """The Markdown table of `climb`s by critic and size, with 95 % intervals over triplets."""
    lines = [["critic", "RMS", "margin gained", *(f"{column} gained" for column in COLUMNS),
              "Overall a unit of margin"]]
    for name, sizes in found.items():
        for size, climbed in sizes.items():
            gains = [format_interval(interval(column[~np.isnan(column)]), "+.2f")
                     for column in climbed["oracle"].T]
            share = climbed["oracle"][:, 0].mean() / climbed["margin"].mean()
            lines.append([name, str(size), f"{climbed['margin'].mean():+.2f}", *gains,
                          f"{share:.2f}"])
    return markdown(lines)


def draw(held: HeldOut, found: dict[str, dict[float, dict]], path: Path) -> None:
    """A contact sheet: source, wrong answer, the answer that pleases each critic, target."""
    shown = [k * (STRIDE + 1) % len(held) for k in range(min(ROWS, len(held)))]
    columns = {"source": held.source, "wrong answer": held.wrong}
    for name, sizes in found.items():
        columns[f"moved to please {name}"] = sizes[SIZES[-1]]["videos"]
    columns["target"] = held.right
    picked = {name: [videos[k] for k in shown] for name, videos in columns.items()}
    with replacing(path) as temporary:
        world.contact_sheet([held.triplets[k] for k in shown], picked, temporary)


def parse(argv=None):
    parser = Parser(description="What does pleasing a critic buy, by the oracle?")
    parser.add_argument("--critic", action="append", metavar="FOLDER",
                        help="a folder with a VLM; repeat it to compare (default: weights/tiny)")
    add_held_out_flags(parser)
    parser.add_argument("--out", type=Path, default=Path("out/pleasing"), help="results' folder")
    args = parser.parse_args(argv)
    check_writable(args.out / "pleasing.json")
    args.critic = args.critic or ["weights/tiny"]
    return args


def main(argv=None) -> None:
    args = parse(argv)
    models = {folder: load_with_vlm(folder).requires_grad_(False) for folder in args.critic}
    held = hold_out(args.n, args.split, args.seed)
    found = {}
    for name, model in models.items():
        found[name] = {size: climb(model, held, size, f"{name}, RMS {size}") for size in SIZES}
    table = describe(found)
    numbers = {name: {str(size): {"margin": climbed["margin"].tolist(),
                                  "oracle": climbed["oracle"].tolist()}
                      for size, climbed in sizes.items()} for name, sizes in found.items()}
    head = f"{args.n} wrong answers of the {args.split} split, moved by six steps up the margin"
    atomic_write(args.out / "pleasing.json", json.dumps(numbers) + "\n")
    atomic_write(args.out / "pleasing.md", f"{head}\n\n{table}")
    draw(held, found, args.out / "pleasing.png")
    print(f"{head}\n\n{table}\nwrote pleasing.md, .json and .png into {args.out}")


if __name__ == "__main__":
    run_script(main)
