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

import common  # noqa: F401              before what takes seconds to load: Ctrl-C is a line
import torch
from tqdm import tqdm

from common.distributed import device
from common.files import (BadInput, Parser, at_least_0, atomic_write, between, check_writable,
                          is_of, markdown, positive, replacing, run_script, start_afresh)
from common.intervals import COLUMNS, format_interval, geometric_mean, interval, overall
from common.plots import optional_picture
from critic import Critic
from data import fingerprint
from model import PARTS, load_model
from tiny import world

STRIPS = 12                                              # how many samples strips.png shows
USUAL = {"steps": 12, "guidance": 1.0, "seed": 0}        # what the name of a folder does not say


def generate_and_judge(model, subset: str, split: str, n: int, steps: int = 12,
                       guidance: float = 1.0, seed: int = 0, batch: int = 20,
                       label: str | None = None, keep=None, done: dict | None = None,
                       critics: dict[str, Critic] | None = None) -> list[dict]:
    """Edit the first `n` triplets of the tiny world and judge each; a row a sample, in order.

    A row has id, index, subset, type, rule, instruction, failed (None or why) and the COLUMNS; PC
    is None on ICVG, and every score is None where the video is not finite: it is counted, never
    scored. Sample i's noise comes from seed + i, whatever the batch. critics: the margin of each is
    in the row, under its name, and in none of the scores. keep(row, video (F, 3, H, W)) is called
    for each new row; `done` holds rows by index that need not be made again.
    """
    rows = dict(done or {})
    missing = [i for i in range(n) if i not in rows]
    bar = tqdm(total=n, initial=n - len(missing), desc=f"evaluate {label or subset}", unit="sample")
    with bar:
        for now in consecutive(missing, batch):          # row k of a batch has the noise seed + k
            triplets = [world.make_triplet(i, subset, split) for i in now]
            words = [triplet.instruction for triplet in triplets]
            # (B, F, 3, H, W)
            source = torch.stack([triplet.source for triplet in triplets]).to(model.device)
            edits = model.sample(source, words, steps, guidance, seed + now[0]).cpu()
            margins = {}
            for name, critic in (critics or {}).items():
                with torch.no_grad():
                    margins[name] = critic.margin(source, edits.to(model.device), words).tolist()
            for k, (i, triplet, video) in enumerate(zip(now, triplets, edits)):
                rows[i] = {"id": f"{subset}-{split}-{i}", "index": i, "subset": subset,
                           "type": triplet.type, "rule": triplet.rule,
                           "instruction": triplet.instruction,
                           **oracle_scores(triplet, video)}
                for name, margin in margins.items():
                    rows[i][name] = margin[k] if math.isfinite(margin[k]) else None
                if keep:
                    keep(rows[i], video)
            bar.update(len(now))
    return [rows[i] for i in range(n)]


def consecutive(numbers: list[int], most: int) -> list[list[int]]:
    """Increasing numbers in runs of neighbours, each of at most `most`."""
    runs = []
    for i in numbers:
        if runs and len(runs[-1]) < most and runs[-1][-1] == i - 1:
            runs[-1].append(i)
        else:
            runs.append([i])
    return runs


def oracle_scores(triplet, video: torch.Tensor) -> dict:
    """The oracle's scores of a video (F, 3, H, W), 0 to 10, with Overall; or why there are none."""
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
        group = [row for row in rows if name in (row["type"], "all")]
        scored = [row for row in group if not row["failed"]]
        cells = []
        for column in COLUMNS:
            values = [row[column] for row in scored if row[column] is not None]
            mean, low, high = interval(values)
            cells.append(format_interval((mean, max(low, 0), min(high, 10))))  # no score is beyond
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


def resume(folder: Path, settings: dict) -> dict[int, dict]:
    """The rows, by index, that an earlier run with the same settings left.

    Raises BadInput where there are scores of other weights, or a file that cannot be read.
    """
    file = folder / "scores.jsonl"
    if not file.exists():
        start_afresh(folder, settings, "table.md", "strips.png")
        return {}
    if not is_of(folder, settings):
        raise BadInput(f"{folder} holds the scores of other weights, or made with --margin or "
                       f"without: choose another --out, or delete it")
    try:
        lines = file.read_text("utf-8").splitlines()
        return {row["index"]: row for row in map(json.loads, lines)}
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise BadInput(f"{file}: is broken ({error!r:.80}); delete it to score anew") from error


def draw_strips(path: Path, clips: dict[int, torch.Tensor], subset: str, split: str) -> None:
    """Source, edit and target of the first samples."""
    triplets = [world.make_triplet(i, subset, split) for i in sorted(clips)]
    rows = {"source": [triplet.source for triplet in triplets],
            "edit": [clips[i] for i in sorted(clips)],
            "target": [triplet.target for triplet in triplets]}
    with replacing(path) as temporary:
        world.contact_sheet(triplets, rows, temporary)


def parse(argv=None):
    parser = Parser(description="Score a model on the tiny world.",
                    epilog="The scores, 0 to 10: EA edit accuracy, PC preservation consistency, GN "
                           "naturalness of motion, GR realism. rave: reason-informed edits; icvg: "
                           "in-context video generation, the next segment of a clip.")
    add = parser.add_argument
    add("--subset", choices=world.SUBSETS, default="rave", help="of the tiny world")
    add("--split", choices=world.SPLITS, default="test", help="train, val or test")
    add("--checkpoint", "--weights", help="a run's or model's folder (without it: weights/tiny)")
    add("--margin", action="store_true", help="keep the critic's margin in scores.jsonl, too")
    add("--n", type=positive, default=200, help="how many samples")
    add("--steps", type=positive, default=USUAL["steps"], help="Euler steps from noise to clip")
    add("--guidance", type=between(0, 1000), default=USUAL["guidance"],
        help="c + g (c - uncond); 0 is none")
    add("--batch", type=positive, default=20, help="clips generated at a time")
    add("--seed", type=at_least_0, default=USUAL["seed"], help="of the noise")
    add("--out", type=Path, default=Path("out/eval"), help="where the results' folder goes")
    args = parser.parse_args(argv)
    if (args.subset, args.split) == ("cross", "train"):
        raise BadInput("--subset cross --split train: cross is never trained on; "
                       "choose val or test")
    check_writable(args.out / "table.md")
    return args


def main(argv=None, critics=None, settings=None) -> None:
    """Evaluate, and say how good the model is.

    critics(model) -> {name: Critic}: whose margins are kept, instead of --margin's. settings: what
    tells scores with these margins apart.
    """
    args = parse(argv)
    model = load_model(args.checkpoint).to(device())
    name = run_name(args.checkpoint) if args.checkpoint else model.preset.name
    folder = results_folder(args, name)
    how = {name: getattr(args, name) for name in ("subset", "split", "steps", "guidance", "seed")}
    settings = {**how, "checkpoint": fingerprint(model, PARTS),
                "world": world.VERSION, "margin": args.margin, **(settings or {})}
    rows, clips = resume(folder, settings), {}

    def keep(row, video):
        rows[row["index"]] = row
        lines = [json.dumps(rows[i]) + "\n" for i in sorted(rows)]
        atomic_write(folder / "scores.jsonl", "".join(lines))
        if row["index"] < STRIPS:
            clips[row["index"]] = video
    if critics:
        critics = critics(model)
    elif args.margin:
        critics = {"margin": Critic(model)}
    result = generate_and_judge(model, n=args.n, **how, batch=args.batch, keep=keep, done=rows,
                                critics=critics)

    strips, first = folder / "strips.png", min(args.n, STRIPS)
    if clips or not strips.exists():
        if len(clips) < first:  # before a stop only scores were kept: the clips once more
            generate_and_judge(model, n=first, **how, batch=args.batch, label="strips",
                               keep=lambda row, video: clips.update({row["index"]: video}))
        with optional_picture(strips):
            draw_strips(strips, clips, args.subset, args.split)
    weights = args.checkpoint or f"weights/{model.preset.name}"
    head = (f"{weights} on {args.subset}, {args.split} split: mean of 0..10 "
            f"[95 % interval], {args.steps} steps, guidance {args.guidance:g}, "
            f"seed {args.seed}.")
    text = f"{head}\n\n{table(result)}"
    atomic_write(folder / "table.md", text)
    print(text)
    failed = sum(row["failed"] is not None for row in result)
    if failed == args.n:
        raise BadInput(f"{weights}: not one of its {failed} videos is finite; check the weights, "
                       f"or lower --guidance")
    if failed:
        print(f"{failed} of {args.n} samples failed: not finite, not scored")
    print(f"wrote scores.jsonl, table.md and strips.png into {folder}")


if __name__ == "__main__":
    run_script(main)
