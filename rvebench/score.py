"""How good is any method, on any benchmark? A judge's scores, VBench's measures, tables (Sec. 5).

    python -m rvebench.score --manifest bench.jsonl --videos ours=out/ours --references \\
        --judge openai --out results
    ... --judge openai --base-url http://localhost:8000/v1 --judge-model Qwen/Qwen3-VL-8B-Instruct
    ... --dino facebook/dino-vitb16 --clip openai/clip-vit-base-patch32     # VBench's features
    ... --checkpoint out/uso --judge oracle                         # makes a model's videos first

Writes scores.jsonl (one row a sample and method), about.json, table.md, report.html, and what needs
no second time: replies.jsonl (ask.py) and kept.jsonl. The same command goes on after a stop.
Methods that an earlier run with the same judge has scored into --out stay. A video that is missing,
unreadable or too short is listed and counted, never scored. Exit code 1 where nothing was scored.

Axis letters: B batch, F frames, H W pixels.
"""

import argparse
import os
import sys
from functools import partial
from pathlib import Path
from typing import Iterator

import numpy as np
import torch
from tqdm import tqdm

from common.distributed import device
from common.files import (BadInput, Parser, at_least_0, atomic_write, between, check_writable,
                          is_of, positive, remove_leftovers, run_script, start_afresh)
from common.jsonl import Store, in_threads, to_json, write_rows
from common.video import (clip_numbers, crop, hash_video, pick_frames, read_pixels, to_video,
                          write_video)
from data import fingerprint
from evaluate import run_name
from model import PARTS, load_model
from rvebench import judge, quality, report
from rvebench.ask import Client
from rvebench.benchmark import Edit, Sample, all_edits, read_manifest, read_methods
from rvebench.scores import read_results
from tiny import world

WORKERS = 8                               # videos at a time: each in memory, and asked about


# ---------------------------------------------------------------------------- a model as a method

def make_videos(args: argparse.Namespace, samples: list[Sample], methods: dict) -> dict:
    """The videos of --checkpoint, one more of `methods`; {(id, method): why} of what failed."""
    name = run_name(args.checkpoint)
    if name in methods:
        raise BadInput(f"--videos {name}=...: the checkpoint is called so, too; rename the one")
    model = load_model(args.checkpoint).to(device())
    methods[name] = args.out / "videos" / name
    reasons = generate(model, samples, methods[name], args.steps, args.guidance, args.seed,
                       args.batch)
    return {(id, name): reason for id, reason in reasons.items()}


def generate(model, samples: list[Sample], folder: Path, steps: int | None,
             guidance: float | None, seed: int, batch: int) -> dict[str, str]:
    """Edit the samples into folder/<id>.mp4, those that are not there; {id: why} where that fails.

    steps, guidance: None is the preset's. The noise of a sample comes from seed + its place in the
    manifest. Other settings or weights start afresh. Raises BadInput for an instruction that the
    model cannot take; a source that cannot be read fails alone.
    """
    p = model.preset
    settings = {"checkpoint": fingerprint(model, PARTS), "steps": steps or p.sample_steps,
                "guidance": p.guidance if guidance is None else guidance, "seed": seed}
    if not is_of(folder, settings):
        start_afresh(folder, settings, "*.mp4")
    remove_leftovers(folder)
    missing = [sample for sample in samples if not (folder / f"{sample.id}.mp4").exists()]
    failed = {}
    with tqdm(total=len(missing), desc="generate", unit="sample") as bar:
        for run in runs_of(missing, model, batch, failed):
            now, sources, views = zip(*run)
            sources = torch.stack(sources).to(model.device)              # (B, F, 3, H, W)
            views = torch.stack(views).to(model.device) if p.whole_view else None
            try:                                         # row k has the noise of its index
                edits = model.sample(sources, [sample.instruction for sample in now], steps,
                                     guidance, seed + now[0].index, view=views)
            except ValueError as error:
                raise BadInput(f"the manifest: {error}") from error
            for sample, video in zip(now, edits.float().cpu()):
                if video.isfinite().all():
                    write_video(folder / f"{sample.id}.mp4", video)
                else:
                    failed[sample.id] = "the model's video is not finite"
            bar.update(len(now))
    return failed


def runs_of(samples: list[Sample], model, most: int, failed: dict) -> Iterator[list[tuple]]:
    """Neighbours in the manifest, at most so many at a time: (sample, source (F, 3, H, W), view).

    view: the same frames uncropped, in the VLM's size, where the preset has `whole_view`. A source
    that cannot be read goes into `failed`.
    """
    p, run = model.preset, []
    for sample in samples:
        try:
            numbers, _ = clip_numbers(sample.source, p.frames, p.frame_stride)
            frames = pick_frames(sample.source, numbers)
        except BadInput as error:
            failed[sample.id] = f"no source: {error}"
            continue
        if run and (len(run) == most or run[-1][0].index != sample.index - 1):
            yield run
            run = []
        view = model.vlm.resize(to_video(frames)) if p.whole_view else None
        run.append((sample, crop(frames, p.height, p.width), view))
    if run:
        yield run


# ----------------------------------------------------------------------------------------- the rows

def measure(edit: Edit, measures: quality.Measures, cache: Store) -> dict:
    """{"frames": F, column: value} of an edit's video, read to its end. Raises ValueError where it
    cannot be scored: BadInput, or features that are not finite."""
    text = edit.sample.instruction

    def find():
        pixels = read_pixels(edit.path, least=2).transpose(0, 3, 1, 2)       # (F, 3, H, W)
        clip = torch.from_numpy(np.ascontiguousarray(pixels))
        return {"frames": len(clip), **measures(clip, text)}
    if not edit.path.exists():                           # what was seen once may be gone
        raise BadInput(f"{edit.path}: there is no such video; correct the path")
    return cache.find(["quality", measures.stamp, text, hash_video(edit.path)], find)


def ask_judge(edit: Edit, args: argparse.Namespace, client: Client | None, cache: Store) -> dict:
    """What --judge says of an edit: of judge.verdict."""
    sample, _, path = edit
    if args.judge == "none":
        return judge.verdict({})
    if args.judge == "openai":
        return judge.ask_service(client, sample, path, args.judge_frames, args.judge_tokens)
    videos = [hash_video(sample.source), hash_video(path)]
    name = ["judge", f"oracle {world.VERSION}", sample.id, sample.instruction, *videos]
    try:
        return judge.verdict(cache.find(name, lambda: judge.oracle(sample, path)))
    except ValueError as error:
        return judge.verdict({}, str(error))


def score_edit(edit: Edit, args: argparse.Namespace, measures: quality.Measures,
               client: Client | None, cache: Store, vbench: dict) -> dict:
    """The row of scores.jsonl of an edit, with paths relative to --out.

    vbench: of `vbench_results`.
    """
    sample, method, path = edit
    row = {"id": sample.id, "subset": sample.subset, "type": sample.type,
           "instruction": sample.instruction, "method": method}
    for name, video in (("source", sample.source), ("target", sample.target), ("video", path)):
        row[name] = os.path.relpath(video, args.out)
    try:
        values = measure(edit, measures, cache)
    except ValueError as error:
        return {**row, **judge.verdict({}), "failed": str(error), "quality": {}, "frames": None}
    frames = values.pop("frames")
    values |= vbench.get(path.resolve(), {})
    return {**row, **ask_judge(edit, args, client, cache), "quality": values, "frames": frames}


def describe(args: argparse.Namespace, client: Client | None, methods: list[str]) -> dict:
    """about.json: what the tables and the page say of the whole."""
    judges = {
        "none": "no judge",
        "oracle": "the tiny world's oracle",
        "openai": f"{args.judge_model}, {args.judge_frames} frames, prompt {judge.PROMPT}"}
    subset = f", subset {args.subset}" if args.subset else ""
    head = (f"{args.manifest.name}{subset}, judged by {judges[args.judge]}: "
            f"means [95 % interval].")
    about = {"head": head, "judge": args.judge, "methods": methods}
    if client:
        about["asked"] = {"frames": args.judge_frames, "prompts": judge.prompts(args.judge_frames)}
    return about


def keep_other_methods(out: Path, about: dict) -> list[dict]:
    """The rows that an earlier run has left of methods that are not in `about`, which gets them.

    Raises BadInput where their scores cannot stand in one table with the new ones: nothing is lost.
    """
    if not (out / "scores.jsonl").exists():
        return []
    rows, before = read_results(out)
    others = [row for row in rows if row["method"] not in about["methods"]]
    if others and before["head"] != about["head"]:
        names = ", ".join(dict.fromkeys(row["method"] for row in others))[:80]
        raise BadInput(f"{out}: holds scores of {names} by another command ({before['head']}); "
                       f"give those methods too, or another --out")
    if others:
        about["methods"] = list(dict.fromkeys([*before["methods"], *about["methods"]]))
    return others


def in_order(rows: list[dict], methods: list[str], samples: list[Sample]) -> list[dict]:
    """Rows by sample, in the manifest's order, then by method."""
    ids = dict.fromkeys([sample.id for sample in samples] + [row["id"] for row in rows])
    place_of = {name: place for place, name in enumerate(ids)}
    return sorted(rows, key=lambda row: (place_of[row["id"]], methods.index(row["method"])))


# -------------------------------------------------------------------------------------- the command

def parse(argv: list[str] | None = None) -> argparse.Namespace:
    parser = Parser(description="Score methods on a benchmark.")
    add = parser.add_argument_group("what is scored").add_argument
    add("--manifest", type=Path, required=True, help="the benchmark: see rvebench/benchmark.py")
    add("--videos", action="append", default=[], metavar="NAME=DIR",
        help="a method's folder of <id>.mp4; repeat it")
    add("--references", action="store_true",
        help="score the sources ('do nothing') and the targets, too")
    add("--subset", help="only this subset of the manifest")
    add("--n", type=positive, help="only the first N samples")
    add("--out", type=Path, help="folder of the results (without it: out/eval/<manifest>)")
    add = parser.add_argument_group("a model as a method").add_argument
    add("--checkpoint", help="a run's or model's folder: makes its videos first")
    add("--steps", type=positive, help="from noise to clip (the preset's)")
    add("--guidance", type=between(0, 1000), help="c + g (c - uncond); 0 is none (the preset's)")
    add("--batch", type=positive, default=20, help="clips generated at a time")
    add("--seed", type=at_least_0, default=0, help="of the noise")
    add = parser.add_argument_group("the judge").add_argument
    add("--judge", default="none", choices=("none", "oracle", "openai"),
        help="who gives the scores")
    add("--judge-model", default="gpt-4o", help="openai: its name")
    add("--judge-frames", type=positive, default=8,
        help="openai: frames of source and edit that are shown")
    add("--judge-tokens", type=positive, default=judge.TOKENS,
        help="openai: a reply's tokens at most; a reasoning model needs more than its answer has")
    add("--base-url", help="openai: another endpoint that speaks its language")
    add = parser.add_argument_group("VBench's measures").add_argument
    add("--dino", help="subject consistency: facebook/dino-vitb16, or a folder")
    add("--clip", help="background consistency: openai/clip-vit-base-patch32, or a folder")
    add("--viclip",
        help="overall consistency and ViCLIP-T: OpenGVLab/ViCLIP-L-14-hf, or a folder")
    add("--trust-remote-code", action="store_true", help="run the code that comes with ViCLIP")
    add("--vbench-results", type=Path,
        help="folder of what the vbench package wrote: motion smoothness, and the rest")
    args = parser.parse_args(argv)
    args.out = args.out or Path("out/eval") / args.manifest.stem
    if not (args.videos or args.checkpoint or args.references):
        raise BadInput("--manifest: needs a method; give --videos NAME=DIR, or --checkpoint")
    return args


def main(argv: list[str] | None = None) -> None:
    args = parse(argv)
    out = args.out
    samples = read_manifest(args.manifest, args.subset)[:args.n]
    methods = read_methods(args.videos)
    vbench = quality.vbench_results(args.vbench_results) if args.vbench_results else {}
    check_writable(out / "scores.jsonl")
    measures = quality.Measures(args.dino, args.clip, args.viclip, args.trust_remote_code)

    # From here on no other run may use --out.
    cache = Store(out / "kept.jsonl", what="line", fields=("value",)).open()
    client = None
    if args.judge == "openai":
        client = Client(out / "replies.jsonl", args.judge_model, args.base_url)
    failed = make_videos(args, samples, methods) if args.checkpoint else {}
    edits = all_edits(samples, methods, args.references)
    names = list(dict.fromkeys(edit.method for edit in edits))
    about = describe(args, client, names)
    others = keep_other_methods(out, about)
    if vbench and not any(edit.path.resolve() in vbench for edit in edits):
        raise BadInput(f"--vbench-results {args.vbench_results}: measures none of these videos; "
                       f"give vbench the folders of --videos")

    if args.judge == "oracle":                           # of another world: no video can be judged
        for sample in samples:
            judge.world_triplet(sample)
    rows = []
    with tqdm(total=len(edits), desc="score", unit="video") as bar:
        work = partial(score_edit, args=args, measures=measures, client=client, cache=cache,
                       vbench=vbench)
        for _, row in in_threads(work, edits, WORKERS):
            row["failed"] = failed.get((row["id"], row["method"])) or row["failed"]
            rows.append(row)
            bar.update()
    cache.close()
    if client:
        client.close()

    write_rows(out / "scores.jsonl", in_order(rows + others, about["methods"], samples))
    atomic_write(out / "about.json", to_json(about) + "\n")
    report.build(out)
    if all(row["failed"] for row in rows):
        sys.exit(f"rvebench.score: nothing was scored: {rows[0]['failed']}")


if __name__ == "__main__":
    run_script(main)
