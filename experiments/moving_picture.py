"""The README's moving pictures: source, edits and target side by side, with the instruction.

    python -m experiments.moving_picture --checkpoint out/uso --out results/edits.gif
    python -m experiments.moving_picture --checkpoint out/sft-100 out/own-100 out/sft-chosen \
        --out results/own.gif

Which rows: of the first 40 test samples of RAVE, the two, of different types, on which the last run
gains most of the oracle's Overall over the first (one alone: over the base), and the one on which
its Overall is lowest. So it shows what the run can, and one thing that it cannot.
"""

from pathlib import Path

import imageio.v3 as iio
import numpy as np
import torch
from PIL import Image, ImageDraw

from common.files import Parser, atomic_write, check_writable, run_script
from common.video import to_bytes
from evaluate import generate, judge, run_name
from model import load_model
from tiny import world

SCALE, GAP, TEXT = 4, 6, 16      # dots: a pixel's side, between clips, a line of text


def choose(base: list[dict], run: list[dict]) -> list[int]:
    """Indices of the rows to show, from the scores and types of two models' edits."""
    gains = [after["Overall"] - before["Overall"] for before, after in zip(base, run)]
    best_first = sorted(range(len(run)), key=lambda i: -gains[i])
    first = best_first[0]
    second = next(i for i in best_first if run[i]["type"] != run[first]["type"])
    worst = min(range(len(run)), key=lambda i: run[i]["Overall"])
    return [first, second, worst]


def draw(rows: list[tuple[str, list[torch.Tensor]]], names: list[str]) -> np.ndarray:
    """Frames (F, height, width, 3), uint8: rows of (text, clips (F, 3, H, W)) under the names."""
    frames, _, h, w = rows[0][1][0].shape
    width = len(names) * (SCALE * w + GAP) + GAP
    line = SCALE * h + TEXT + GAP
    pages = []
    for f in range(frames):
        page = Image.new("RGB", (width, TEXT + line * len(rows)), "white")
        pen = ImageDraw.Draw(page)
        for r, (text, clips) in enumerate(rows):
            top = TEXT + r * line
            pen.text((GAP, top + 1), text, fill="black")
            for c, (name, clip) in enumerate(zip(names, clips)):
                left = GAP + c * (SCALE * w + GAP)
                if r == 0:
                    pen.text((left, 1), name, fill="grey")
                picture = Image.fromarray(to_bytes(clip[f]).permute(1, 2, 0).numpy())
                picture = picture.resize((SCALE * w, SCALE * h), Image.Resampling.NEAREST)
                page.paste(picture, (left, top + TEXT))
        pages.append(np.asarray(page))
    return np.stack(pages)


def main(argv=None) -> None:
    parser = Parser(description="Draw the README's moving pictures.")
    add = parser.add_argument
    add("--checkpoint", nargs="+", required=True, metavar="RUN",
        help="runs of train.py: one, beside the base, or several, the last beside the first")
    add("--out", type=Path, default=Path("out/edits.gif"), help="the picture to write")
    args = parser.parse_args(argv)
    check_writable(args.out, ".gif")
    models = {} if len(args.checkpoint) > 1 else {"base": load_model(None)}
    models |= {run_name(folder): load_model(folder) for folder in args.checkpoint}
    first, *_, last = models
    triplets = [world.make_triplet(i, "rave", "test") for i in range(40)]
    scores, clips = {}, {}
    for name, model in models.items():
        clips[name] = [edit for _, edits in generate(model, triplets, label=name)
                       for edit in edits]
        scores[name] = [{"type": triplet.type, **judge(triplet, edit)}
                        for triplet, edit in zip(triplets, clips[name])]
    rows = []
    for i in choose(scores[first], scores[last]):
        triplet = triplets[i]
        edits = [clips[name][i] for name in models]
        rows.append((triplet.instruction, [triplet.source, *edits, triplet.target]))
    pages = draw(rows, ["source", *models, "target"])
    gif = iio.imwrite("<bytes>", pages, plugin="pillow", extension=".gif", duration=180, loop=0)
    atomic_write(args.out, gif)
    print(f"wrote {args.out}, {len(gif) // 1024} KiB")


if __name__ == "__main__":
    run_script(main, "stopped; nothing was written")
