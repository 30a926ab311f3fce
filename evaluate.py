"""How good is it? Edit the tiny world's held-out clips, let its oracle judge each edit, and say how
sure one can be.

    python evaluate.py --subset rave                        # the base; also icvg, literal, cross
    python evaluate.py --subset rave --checkpoint out/uso   # a run of train.py
    python evaluate.py --subset icvg --split val --n 50 --seed 1

The subsets: rave, reason-informed edits; icvg, the next segment of a clip; literal, RAVE's edits
told in plain words; cross, phrasings and places never trained with (Sec. 3.2, Tables 2 to 4).

It writes scores.jsonl (one row a sample), table.md and strips.png (source, edit, target of the
first dozen) into out/eval/<checkpoint>-<subset>-<split>/; other --steps, --guidance or --seed
than the usual ones are in the folder's name, too. The same command goes on after a stop. Any other
benchmark, judge or method: rvebench/.

Axis letters: B batch, F frames, H W pixels.
"""

import json
import math
from pathlib import Path
from typing import Callable, Iterator

import numpy as np
import torch
from tqdm import tqdm

from common.distributed import device
from common.files import (BadInput, Parser, at_least_0, atomic_write, between, check_writable,
                          is_of, markdown, positive, run_script, start_afresh)
from common.intervals import COLUMNS, format_interval, geometric_mean, interval, overall
from common.jsonl import Store
from common.plots import optional_picture
from data import fingerprint, vlm_view
from model import PARTS, load_model
from tiny import world

STRIPS = 12                                              # how many samples strips.png shows
USUAL = {"steps": 12, "guidance": 1.0, "seed": 0}        # what the name of a folder does not say


def generate(model, triplets: list, steps: int = 12, guidance: float = 1.0, seed: int = 0,
             batch: int = 20, label: str = "") -> Iterator[tuple[list, torch.Tensor]]:
    """Edits of triplets: yields (some triplets, their edits (B, F, 3, H, W)), `batch` at a time.

    The noise of triplet k comes from seed + k, whatever the batch.
    """
    with tqdm(total=len(triplets), desc=f"evaluate {label}", unit="sample") as bar:
        for first in range(0, len(triplets), batch):
            now = triplets[first:first + batch]
            source = torch.stack([triplet.source for triplet in now])        # (B, F, 3, H, W)
            edits = model.sample(source.to(model.device), [t.instruction for t in now],
                                 steps, guidance, seed + first)
            yield now, edits.cpu()
            bar.update(len(now))


def judge(triplet, video: torch.Tensor) -> dict:
    """The oracle's scores of a video (F, 3, H, W): COLUMNS, 0 to 10, and `failed`, None or why.

    PC is None on ICVG, and every score where the video is not finite: that is counted, not scored.
    """
    if not video.isfinite().all():
        return {"failed": "the video is not finite", **dict.fromkeys(COLUMNS)}
    scores = world.judge(triplet, video)
    four = scores["EA"], scores.get("PC"), scores["GN"], scores["GR"]
    means = float(overall(*four)), float(geometric_mean(*four))
    return {"failed": None, **dict(zip(COLUMNS, (*four, *means)))}


def table(rows: list[dict]) -> str:
    """A Markdown table, a line a reasoning type and one for all: mean [95 % interval]."""
    lines = [["type", "N scored", "N failed", *COLUMNS]]
    for name in [*dict.fromkeys(row["type"] for row in rows), "all"]:
        group = rows if name == "all" else [row for row in rows if row["type"] == name]
        scored = [row for row in group if not row["failed"]]
        cells = []
        for column in COLUMNS:
            values = [row[column] for row in scored if row[column] is not None]
            cells.append(format_interval(interval(values, scale=(0, 10))))
        lines.append([name, str(len(scored)), str(len(group) - len(scored)), *cells])
    return markdown(lines)


# -------------------------------------------------------------------------------------- the command

def run_name(folder: str) -> str:
    """What a run is called: out/run/model is "run", and out/run/model-300 its copy of step 300."""
    path = Path(folder).resolve()
    if path.name.startswith("model"):
        return path.parent.name + path.name.removeprefix("model")
    return path.name


def results_folder(args, name: str) -> Path:
    """<name>-<subset>-<split>, and each setting that is not the usual one."""
    folder = f"{name}-{args.subset}-{args.split}"
    for setting, usual in USUAL.items():
        value = getattr(args, setting)
        if value != usual:
            folder += f"-{setting}-{value:g}"
    return args.out / folder


def kept_scores(folder: Path, settings: dict) -> Store:
    """scores.jsonl, with the rows that an earlier run with the same settings left.

    Raises BadInput where the scores are of other weights, or rows are missing.
    """
    file = folder / "scores.jsonl"
    if not file.exists():
        start_afresh(folder, settings, "table.md", "strips.png")
    elif not is_of(folder, settings):
        raise BadInput(f"{folder} holds the scores of other weights, or other columns: "
                       f"choose another --out, or delete it")
    store = Store(file, "id", "score", ("index", "type", *COLUMNS))
    if [row["index"] for row in store] != list(range(len(store))):
        raise BadInput(f"{file}: lacks rows; delete it to score anew")
    return store


def draw_strips(path: Path, triplets: list, edits: list[torch.Tensor]) -> None:
    """Source, edit and target of the first samples."""
    rows = {"source": [triplet.source for triplet in triplets], "edit": edits,
            "target": [triplet.target for triplet in triplets]}
    with optional_picture(path):
        world.contact_sheet(triplets, rows, path)


def parse(argv=None):
    parser = Parser(description="Score a model on the tiny world.",
                    epilog="The scores, 0 to 10: EA edit accuracy, PC preservation consistency, GN "
                           "naturalness of motion, GR realism. rave: reason-informed edits; icvg: "
                           "in-context video generation, the next segment of a clip.")
    add = parser.add_argument
    add("--subset", choices=world.SUBSETS, default="rave", help="of the tiny world")
    add("--split", choices=world.SPLITS, default="test", help="train, val or test")
    add("--checkpoint", "--weights", help="a run's or model's folder (without it: weights/tiny)")
    add("--n", type=positive, default=200, help="how many samples")
    add("--steps", type=positive, default=USUAL["steps"], help="Euler steps from noise to clip")
    add("--guidance", type=between(0, 1000), default=USUAL["guidance"],
        help="g in v + g (v - v_uncond); 0 is none")
    add("--batch", type=positive, default=20, help="clips generated at a time")
    add("--seed", type=at_least_0, default=USUAL["seed"], help="of the noise")
    add("--out", type=Path, default=Path("out/eval"), help="where the results' folder goes")
    args = parser.parse_args(argv)
    if (args.subset, args.split) == ("cross", "train"):
        raise BadInput("--subset cross --split train: cross is never trained on; "
                       "choose val or test")
    check_writable(args.out / "table.md")
    return args


def main(argv=None) -> None:
    args = parse(argv)
    score(load_model(args.checkpoint).to(device()), args)


def score(model, args, columns: str | bool = False, more: Callable | None = None) -> None:
    """Score the model on `args.n` samples, and say how good it is.

    more(triplets, edits) -> a dict a sample, what else is kept in its row. columns: what `more`
    adds; rows with other columns are not gone on with. Both are experiments/'s.
    """
    name = run_name(args.checkpoint) if args.checkpoint else model.preset.name
    folder = results_folder(args, name)
    how = {setting: getattr(args, setting) for setting in USUAL}
    settings = {"subset": args.subset, "split": args.split, **how,
                "checkpoint": fingerprint(model, PARTS),
                "world": world.VERSION, "margin": columns}
    store = kept_scores(folder, settings)
    triplets = [world.make_triplet(i, args.subset, args.split) for i in range(args.n)]
    first, clips = len(store), []
    with store:
        for now, edits in generate(model, triplets[first:], args.steps, args.guidance,
                                   args.seed + first, args.batch, args.subset):
            others = more(now, edits) if more else [{}] * len(now)
            for triplet, video, other in zip(now, edits, others):
                index = len(store)
                store.append({"id": f"{args.subset}-{args.split}-{index}", "index": index,
                              "subset": args.subset, "type": triplet.type, "rule": triplet.rule,
                              "instruction": triplet.instruction, **judge(triplet, video),
                              **other})
            clips += edits[:STRIPS - len(clips)]
    shown = triplets[:STRIPS]
    if first < len(shown) or not (folder / "strips.png").exists():
        if first > 0:  # before a stop only scores were kept: the clips once more
            clips = [video for _, edits in generate(model, shown, **how, label="strips")
                     for video in edits]
        draw_strips(folder / "strips.png", shown, clips)
    tell(list(store)[:args.n], folder, args, args.checkpoint or f"weights/{model.preset.name}")


def tell(rows: list[dict], folder: Path, args, weights: str) -> None:
    """Write and print table.md. Raises BadInput where not one sample has a score."""
    head = (f"{weights} on {args.subset}, {args.split} split: mean of 0..10 "
            f"[95 % interval], {args.steps} steps, guidance {args.guidance:g}, "
            f"seed {args.seed}.")
    text = f"{head}\n\n{table(rows)}"
    atomic_write(folder / "table.md", text)
    print(text)
    failed = sum(row["failed"] is not None for row in rows)
    if failed == args.n:
        raise BadInput(f"{weights}: not one of its {failed} videos is finite; check the weights, "
                       f"or lower --guidance")
    if failed:
        print(f"{failed} of {args.n} samples failed: not finite, not scored")
    print(f"wrote scores.jsonl, table.md and strips.png into {folder}")


# ---------------------------------------------------------------------- the report after a training

def report(log: list[dict], items: list, args, settings: dict) -> None:
    """Compare the base with a run of train.py: by the oracle in the tiny world, by PSNR on own
    videos. Writes summary.json and samples.png, and prints a line."""
    print(f"wrote model/, log.csv and curves.png into {args.out}")
    if not (args.data or args.eval_items):
        return
    base, tuned = load_model(args.weights, args.preset), load_model(args.out, args.preset)
    base.set_vlm_frames(args.vlm_frames)
    models = {"base's edit": base, "this run's edit": tuned}
    compare = report_on_manifest if args.data else report_on_world
    what, (before, after), items, shown = compare(models, items, args)
    rate = float(np.mean([row["trigger_rate"] for row in log]))
    record = {"before": before, "after": after, "steps": len(log), "trigger_rate": rate, **settings}
    atomic_write(args.out / "summary.json", json.dumps(record, indent=1))
    with optional_picture(args.out / "samples.png"):
        world.contact_sheet(items, shown, args.out / "samples.png")
    changes = [f"{name} {before[name]:.2f} -> {after[name]:.2f}" for name in before]
    print(f"{what}: {' '.join(changes)} | trigger rate {rate:.1%} | {args.out}")


def report_on_world(models: dict, _, args) -> tuple[str, list[dict], list, dict]:
    """The oracle's scores before and after, on val (never on the test split), and what to show."""
    triplets = [world.make_triplet(i, "rave", "val") for i in range(args.eval_items)]
    shown, scores = {"source": [triplet.source for triplet in triplets[:8]]}, []
    for name, model in models.items():
        model.to(device())  # one at a time: there may be no room for two
        rows, clips = [], []
        for now, edits in generate(model, triplets, seed=args.seed, label=name):
            rows += map(judge, now, edits)
            clips += edits[:8 - len(clips)]
        model.cpu()
        shown[name] = clips
        scored = [row for row in rows if not row["failed"]]
        scores.append({column: float(np.mean([row[column] for row in scored] or math.nan))
                       for column in ("EA", "PC", "GN", "GR", "Overall")})
    shown["target"] = [triplet.target for triplet in triplets[:8]]
    return f"oracle on {args.eval_items} val samples of RAVE", scores, triplets[:8], shown


def report_on_manifest(models: dict, items: list, args) -> tuple[str, list[dict], list, dict]:
    """No oracle for real videos: the distance to the targets of the first six, and these."""
    items, psnr = items[:6], []
    clips = [item.load() for item in items]
    source = torch.stack([source for source, _ in clips])                # (B, F, 3, H, W)
    target = torch.stack([target for _, target in clips])
    shown = {"source": source}
    for name, model in models.items():
        model.to(device())
        seen = source.to(model.device)
        edits = model.sample(seen, [item.instruction for item in items], seed=args.seed,
                             view=vlm_view(model, items, seen)).cpu()
        model.cpu()
        shown[name] = edits
        error = (edits - target).pow(2).mean().item()
        psnr.append({"PSNR": 10 * math.log10(2 ** 2 / error)})           # values from -1 to 1
    shown["target"] = target
    return f"PSNR to the target, in dB, on {len(items)} training clips", psnr, items, shown


if __name__ == "__main__":
    run_script(main)
