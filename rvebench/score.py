"""How good is any method, on any benchmark? A judge's scores, VBench's measures, tables (Sec. 5).

    python -m rvebench.score --manifest bench.jsonl --videos ours=out/ours --references \\
        --judge openai --out results
    ... --judge openai --dry-run --price-in 2.5 --price-out 10      # what it costs; asks nothing
    ... --judge openai --base-url http://localhost:8000/v1 --judge-model Qwen/Qwen3-VL-8B-Instruct
    ... --dino facebook/dino-vitb16 --clip openai/clip-vit-base-patch32     # VBench's features
    ... --checkpoint out/uso --judge vila                           # makes a model's videos first

Writes scores.jsonl (one row a sample and method), about.json, table.md, report.html, and what needs
no second time: replies.jsonl (ask.py) and kept.jsonl. The same command goes on after a stop.
Methods that an earlier run with the same judge has scored into --out stay. A video that is missing,
unreadable or too short is listed and counted, never scored. Exit code 1 where nothing was scored.

Axis letters: F frames, H W pixels.
"""

import argparse
import os
import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import torch
from tqdm import tqdm

from common.distributed import device
from common.files import (BadInput, Parser, at_least_0, atomic_write, between, check_writable,
                          positive, run_script)
from common.intervals import COLUMNS, geometric_mean, overall
from common.jsonl import Store, to_json, write_rows
from common.video import hash_video, read_pixels
from data import fingerprint
from evaluate import run_name
from model import load_model
from rvebench import judge, quality, report
from rvebench.ask import Client
from rvebench.benchmark import Edit, Sample, all_edits, read_manifest, read_methods
from rvebench.generate import generate
from rvebench.results import read_results
from rvebench.tables import read_human
from tiny import world


# ------------------------------------------------------------------------------ measures and judges

def measure_videos(edits: list[Edit], measures: quality.Measures, cache: Store,
                   workers: int) -> list[tuple[str | None, dict]]:
    """(why it cannot be scored, {"frames": F, column: value}) of each edit.

    Videos are read to their ends; one clip is in memory for each of the workers.
    """

    def measure(edit: Edit) -> tuple[str | None, dict]:
        text = edit.sample.instruction

        def find():
            pixels = read_pixels(edit.path, least=2).transpose(0, 3, 1, 2)   # (F, 3, H, W)
            clip = torch.from_numpy(np.ascontiguousarray(pixels))
            return {"frames": len(clip), **measures(clip, text)}
        try:
            if not edit.path.exists():                   # what was seen once may be gone
                raise BadInput(f"{edit.path}: there is no such video; correct the path")
            return None, cache.find(["quality", measures.stamp, text, hash_video(edit.path)], find)
        except ValueError as error:                      # BadInput, or features that are not finite
            return str(error), {}
    with ThreadPoolExecutor(workers) as pool:
        found = pool.map(measure, edits)
        return list(tqdm(found, total=len(edits), desc="measure", unit="video"))


def ask_judge(edits: list[Edit], args: argparse.Namespace, client: Client | None, model,
              cache: Store) -> list:
    """The verdicts of --judge, a list for each edit: one, or --repeat many.

    Raises BadInput where the oracle knows no such sample.
    """
    if args.judge == "none":
        return [[] for _ in edits]
    if args.judge == "openai":
        jobs = [(edit.sample, edit.path) for edit in edits]
        service = judge.ServiceJudge(jobs, args.judge_frames, args.repeat, args.judge_tokens)
        answers = client.ask(service.questions(), service.most, "judge")
        client.close()
        return service.verdicts(answers)
    if args.judge == "oracle":
        for sample in dict.fromkeys(edit.sample for edit in edits):
            judge.world_triplet(sample)           # of another world: the command is wrong, no video
        ask, stamp = judge.oracle, f"oracle {world.VERSION}"
    else:
        ask, stamp = judge.vila(model), f"vila {fingerprint(model, ('vlm',))} {model.preset}"
    verdicts = []
    for sample, _, path in tqdm(edits, desc="judge", unit="video"):
        videos = [hash_video(sample.source), hash_video(path)]
        name = ["judge", stamp, sample.id, sample.instruction, *videos]
        try:
            verdicts.append([judge.Verdict(cache.find(name, lambda: ask(sample, path)))])
        except ValueError as error:
            verdicts.append([judge.Verdict({}, str(error))])
    return verdicts


def score_row(verdicts: list[judge.Verdict]) -> dict:
    """What the verdicts on one edit, one a repeat, come to, for its row.

    Each column is the mean over the repeats that have it; `repeats` holds those, `missing` why
    others do not, `unanswered` how many of these another run asks again. Overall needs all of a
    verdict. failed: why, where no repeat is left.
    """
    repeats = [with_overall(verdict.scores) for verdict in verdicts if verdict.scores]
    missing = [verdict.missing for verdict in verdicts if verdict.missing]
    row = {"failed": f"judge: {missing[-1]}" if missing and not repeats else None}
    for column in (*COLUMNS, "Yes"):
        found = [scores[column] for scores in repeats if column in scores]
        row[column] = float(np.mean(found)) if found else None
    return {**row, "missing": missing, "repeats": repeats,
            "unanswered": sum(verdict.unanswered for verdict in verdicts),
            "reasons": [reason for verdict in verdicts for reason in verdict.reasons],
            "replies": [verdict.replies for verdict in verdicts if any(verdict.replies.values())]}


def with_overall(scores: dict[str, float]) -> dict[str, float]:
    """A verdict's scores, with Overall and the geometric mean where it has all that they need."""
    if "EA" not in scores or "GN" not in scores:
        return scores
    four = scores["EA"], scores.get("PC"), scores["GN"], scores["GR"]
    return scores | {"Overall": float(overall(*four)),
                     "Geometric mean": float(geometric_mean(*four))}


# ----------------------------------------------------------------------------------------- the rows

def make_rows(edits: list[Edit], measured: list, verdicts: dict[int, list], failed: dict,
              vbench: dict, out: Path) -> list[dict]:
    """The rows of scores.jsonl, one for each edit, with paths relative to `out`.

    verdicts: by place in `edits`. failed: {(id, method): why}. vbench: of `vbench_results`.
    """
    rows = []
    for k, (sample, method, path) in enumerate(edits):
        unreadable, values = measured[k]
        frames = values.pop("frames", None)
        if not unreadable:
            values |= vbench.get((method, sample.id), {})
        scores = score_row(verdicts.get(k, []))
        scores["failed"] = failed.get((sample.id, method)) or unreadable or scores["failed"]
        row = {"id": sample.id, "subset": sample.subset, "type": sample.type,
               "instruction": sample.instruction, "method": method}
        for name, video in (("source", sample.source), ("target", sample.target), ("video", path)):
            row[name] = os.path.relpath(video, out)
        rows.append({**row, **scores, "quality": values, "frames": frames})
    return rows


def describe(args: argparse.Namespace, client: Client | None, methods: list[str],
             measures: quality.Measures, vbench: dict) -> dict:
    """about.json: what the tables and the page say of the whole."""
    labels, why = dict(measures.labels), dict(measures.why)
    for column in {column for values in vbench.values() for column in values}:
        labels[column] = f"{column} (vbench)"
        why.pop(column, None)
    judges = {
        "none": "no judge",
        "oracle": "the tiny world's oracle",
        "vila": f"the VLM of {args.judge_model or args.checkpoint or 'weights/tiny'}",
        "openai": f"{args.judge_model or 'gpt-4o'}, {args.judge_frames} frames, "
                  f"prompt {judge.PROMPT}"}
    subset = f", subset {args.subset}" if args.subset else ""
    times = f", {args.repeat} times" if args.repeat > 1 else ""
    head = (f"{args.manifest.name}{subset}, judged by {judges[args.judge]}{times}: "
            f"means [95 % interval].")
    about = {"head": head, "judge": args.judge, "repeat": args.repeat, "methods": methods,
             "labels": labels, "why": why}
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
    if not others:
        return []
    names = ", ".join(dict.fromkeys(row["method"] for row in others))[:80]
    if before["head"].partition(": means")[0] != about["head"].partition(": means")[0]:
        raise BadInput(f"{out}: holds scores of {names} by another command ({before['head']}); "
                       f"give those methods too, or another --out")
    for column in {column for row in others for column in row["quality"]}:
        old, new = before["labels"].get(column), about["labels"][column]
        if column in about["why"]:                       # not measured now
            about["labels"][column] = old
            del about["why"][column]
        elif old != new:
            raise BadInput(f"{out}: holds {old} of {names}, and this would be {new}; give those "
                           f"methods too, or another --out")
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
    add("--judge", default="none", choices=("none", "oracle", "vila", "openai"),
        help="who gives the scores")
    add("--judge-model",
        help="openai: a name (without it: gpt-4o); vila: a model's folder (weights/tiny)")
    add("--judge-frames", type=positive, default=8,
        help="openai: frames of source and edit that are shown")
    add("--judge-tokens", type=positive, default=judge.TOKENS,
        help="openai: a reply's tokens at most; a reasoning model needs more than its answer has")
    add("--base-url", help="openai: another endpoint that speaks its language")
    add("--price-in", type=between(0, 1e6), default=0.,
        help="openai: dollars a million tokens of questions")
    add("--price-out", type=between(0, 1e6), default=0.,
        help="openai: dollars a million tokens of answers")
    add("--repeat", type=positive, default=1,
        help="openai: judge so many times, for the judge's own variance")
    add("--dry-run", action="store_true",
        help="openai: print calls, tokens and dollars, and ask nothing")
    add("--ask-again", choices=("failed",),
        help="openai: ask anew what got no good answer in earlier runs")
    add("--human", type=Path,
        help="people's scores, CSV: id, method and columns; for the judge's correlation with them")
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
    if args.repeat > 1 and args.judge != "openai":
        raise BadInput(f"--repeat {args.repeat}: the judge {args.judge} always says the same; "
                       f"pass --judge openai")
    if args.dry_run and (args.judge != "openai" or args.checkpoint):
        raise BadInput("--dry-run: counts what --judge openai would be asked about --videos that "
                       "are there")
    return args


def make_client(args: argparse.Namespace) -> Client | None:
    """The endpoint of --judge openai. Raises BadInput if no answer is there or can be got."""
    if args.judge != "openai":
        return None
    client = Client(args.out / "replies.jsonl", args.judge_model or "gpt-4o", args.base_url,
                    args.price_in, args.price_out, ask_again=args.ask_again is not None)
    if not len(client.replies) and not args.dry_run:
        client.connect()
    return client


def print_estimate(edits: list[Edit], client: Client, args: argparse.Namespace) -> None:
    """The dry run: what the judge would cost."""
    there = [(edit.sample, edit.path) for edit in edits if edit.path.exists()]
    service = judge.ServiceJudge(there, args.judge_frames, args.repeat, args.judge_tokens)
    bar = tqdm(service.questions(), desc="count", unit="question", total=service.most)
    counts = client.count(bar)
    samples, names = {edit.sample.id for edit in edits}, {edit.method for edit in edits}
    hint = "" if args.price_in or args.price_out else " (pass --price-in and --price-out)"
    missing = len(edits) - len(there)
    print(f"{len(samples)} samples, {len(names)} methods, {missing} videos missing: "
          f"{counts['questions']} questions, {counts['calls']} of them not answered yet "
          f"({counts['answered']} are, {counts['same']} are the same as another): about "
          f"{counts['tokens_in']:,} tokens in, {counts['tokens_out']:,} out, "
          f"${counts['cost']:.2f}{hint}")


def make_videos(args: argparse.Namespace, samples: list[Sample], methods: dict[str, Path],
                model) -> dict:
    """Make the videos of --checkpoint, one more of `methods`; {(id, method): why} of what failed.

    model: that of --checkpoint, or of --judge vila --judge-model.
    """
    if not args.checkpoint:
        return {}
    name = run_name(args.checkpoint)
    if name in methods:
        raise BadInput(f"--videos {name}=...: the checkpoint is called so, too; rename the one")
    if args.judge == "vila" and args.judge_model:
        model = load_model(args.checkpoint).to(device())
    methods[name] = args.out / "videos" / name
    reasons = generate(model, samples, methods[name], args.steps, args.guidance, args.seed,
                       args.batch)
    return {(id, name): reason for id, reason in reasons.items()}


def print_vbench_commands(out: Path, edits: list[Edit]) -> None:
    """Links and prompts for the vbench package, a folder a method, and the commands to run."""
    print(f"motion smoothness, from the vbench package in its own environment, and then "
          f"--vbench-results {out}/vbench/results:")
    for method in dict.fromkeys(edit.method for edit in edits):
        own = [edit for edit in edits if edit.method == method]
        print(f"  {quality.vbench_folder(out / 'vbench', method, own)}")


def main(argv: list[str] | None = None) -> None:
    args = parse(argv)
    out = args.out
    samples = read_manifest(args.manifest, args.subset)[:args.n]
    methods = read_methods(args.videos)
    vbench = quality.vbench_results(args.vbench_results) if args.vbench_results else {}
    if args.human:
        read_human(args.human)                           # what is wrong with it is said at once
    client = make_client(args)
    if args.dry_run:
        return print_estimate(all_edits(samples, methods, args.references), client, args)
    check_writable(out / "scores.jsonl")

    # What looks at the videos: the VLM of --judge vila or of --checkpoint, and the extractors.
    model = None
    if args.judge == "vila" or args.checkpoint:
        of_judge = args.judge_model if args.judge == "vila" else None
        model = load_model(of_judge or args.checkpoint).to(device())
    vision = fingerprint(model, ("vlm",)) if model else ""
    measures = quality.Measures(args.dino, args.clip, args.viclip, args.trust_remote_code, model,
                                vision)

    # From here on no other run may use --out.
    cache = Store(out / "kept.jsonl", what="line", fields=("value",)).open()
    failed = make_videos(args, samples, methods, model)
    edits = all_edits(samples, methods, args.references)
    names = list(dict.fromkeys(edit.method for edit in edits))
    about = describe(args, client, names, measures, vbench)
    others = keep_other_methods(out, about)
    if args.human:
        atomic_write(out / "human.csv", args.human.read_bytes())

    measured = measure_videos(edits, measures, cache, len(os.sched_getaffinity(0)))
    readable = [k for k, (unreadable, _) in enumerate(measured) if not unreadable]
    good = [edits[k] for k in readable]
    verdicts = dict(zip(readable, ask_judge(good, args, client, model, cache)))
    cache.close()

    rows = make_rows(edits, measured, verdicts, failed, vbench, out)
    if client:
        about["spent"] = client.worth()
    if "MS" in about["why"]:
        print_vbench_commands(out, good)
    write_rows(out / "scores.jsonl", in_order(rows + others, about["methods"], samples))
    atomic_write(out / "about.json", to_json(about) + "\n")
    report.build([out])
    if client and client.estimated:
        print(f"the endpoint reports no usage for {client.estimated} of {client.calls} replies: "
              f"their tokens and dollars are estimates")
    if all(row["failed"] for row in rows):
        sys.exit(f"rvebench.score: nothing was scored: {rows[0]['failed']}")


if __name__ == "__main__":
    run_script(main)
