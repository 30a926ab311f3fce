"""How good is any method, on any benchmark? Videos, the judge, the tables (Sec. 5); the flags are evaluate.py's.

    python evaluate.py --manifest bench.jsonl --videos ours=out/ours --judge oracle --out results

Writes scores.jsonl (one row a sample and method), table.md, report.html, about.json and what needs no second time:
replies.jsonl (ask.py), kept.jsonl. A video that is missing, unreadable or too short is listed and counted, never scored.

Axis letters: F frames, H W pixels.
"""

import json
import os
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import torch
from tqdm import tqdm

from rvebench import judge
from rvebench import quality
from rvebench import report
from tiny import world
from rvebench.ask import Client, Missing
from critic import load_model
from common.files import BadInput, atomic_write
from data import fingerprint, hash_video
from common.video import read_pixels, read_video, write_video
from model import FROZEN, TRAINED
from common.intervals import COLUMNS, geometric_mean, overall
from rvebench.scores import as_markdown, run_name
from rvebench.tables import judge_variance, read_human, study_table, tables
from common.files import is_of, start_afresh


def generate(model, samples: list, folder: Path, steps: int, guidance: float, seed: int, batch: int) -> dict[str, str]:
    """Edit the samples of a benchmark into folder/<id>.mp4, those that are not there yet; {id: why} where that fails.

    The noise of a sample comes from seed + its place in the manifest. Other settings or weights start afresh. Raises
    BadInput for an instruction that the model cannot take; a source that cannot be read fails alone.
    """
    settings = {"checkpoint": fingerprint(model, (*FROZEN, *TRAINED)), "steps": steps, "guidance": guidance,
                "seed": seed}
    if not is_of(folder, settings):
        start_afresh(folder, settings, "*.mp4")
    failed = {}
    todo = [s for s in samples if not (folder / f"{s.id}.mp4").exists()]
    size = model.preset.frames, model.preset.height, model.preset.width
    with tqdm(total=len(samples), initial=len(samples) - len(todo), desc="generate", unit="sample") as bar:
        while todo:
            now = [s for k, s in enumerate(todo[:batch]) if s.index == todo[0].index + k]  # row k has the noise seed + k
            todo, sources = todo[len(now):], []
            for s in now:
                try:
                    sources.append(read_video(s.source, *size))
                except BadInput as error:
                    failed[s.id] = f"no source: {error}"
                    sources.append(torch.zeros(size[0], 3, *size[1:]))             # so that the others keep their noise
            try:
                edits = model.sample(torch.stack(sources).to(model.device), [s.instruction for s in now], steps,
                                     guidance, seed + now[0].index).float().cpu()
            except ValueError as error:
                raise BadInput(f"the manifest: {error}") from error
            for s, video in zip(now, edits):
                if s.id not in failed and not video.isfinite().all():
                    failed[s.id] = "the model's video is not finite"
                if s.id not in failed:
                    write_video(folder / f"{s.id}.mp4", video)
            bar.update(len(now))
    return failed


def look(jobs: list, measures, kept, workers: int) -> list[tuple[str | None, dict]]:
    """(why it cannot be scored, {column: value}) of each job, (sample, method, video): every video, to its end.

    One clip is in memory for each of the workers; what was measured before is `kept`.
    """
    def one(job):
        sample, _, path = job
        try:
            if not path.is_file():                       # what was seen once may be gone
                raise BadInput(f"{path}: there is no such video; correct the path")
            return None, kept(["quality", measures.stamp, sample.instruction, hash_video(path)], lambda: measures(
                torch.from_numpy(np.ascontiguousarray(read_pixels(path, 2).transpose(0, 3, 1, 2))), sample.instruction))
        except ValueError as error:                      # BadInput, or features that are not finite
            return str(error), {}
    with ThreadPoolExecutor(workers) as pool:
        return list(tqdm(pool.map(one, jobs), total=len(jobs), desc="look", unit="video"))


def ask_local(jobs: list, ask, stamp: str, kept) -> list:
    """The verdicts of a local judge(sample, video), a list of one for each job: scores or Missing."""
    verdicts = []
    for sample, _, path in tqdm(jobs, desc="judge", unit="video"):
        try:
            name = ["judge", stamp, sample.id, sample.instruction, hash_video(sample.source), hash_video(path)]
            verdicts.append([kept(name, lambda: ask(sample, path))])
        except ValueError as error:
            verdicts.append([Missing(str(error))])
    return verdicts


def score_row(verdicts: list) -> dict:
    """What the verdicts (scores or Missing, one a repeat) of one edit come to: for a row of scores.jsonl.

    Each column is the mean over the repeats that have it; `repeats` holds those, `missing` why the others do not.
    failed: why, where no repeat is left.
    """
    missing, repeats, reasons = [v.reason for v in verdicts if isinstance(v, Missing)], [], []
    for v in verdicts:
        if not isinstance(v, Missing):
            scores = {column: v[column] for column in (*judge.SCORES, "Yes") if column in v}
            if "EA" in v:
                four = v["EA"], v.get("PC"), v["GN"], v["GR"]
                scores |= {"Overall": float(overall(*four)), "Geometric mean": float(geometric_mean(*four))}
            repeats.append(scores)
            reasons += v.get("reasons", [])
    means = {column: float(np.mean([r[column] for r in repeats])) for column in (repeats[0] if repeats else ())}
    return {"failed": None if repeats or not verdicts else f"judge: {missing[-1]}",
            **{column: means.get(column) for column in (*COLUMNS, "Yes")},
            "missing": missing, "repeats": repeats, "reasons": reasons}


def benchmark(args) -> None:
    """Score methods on a manifest: their videos, the judge, the tables."""
    samples = judge.read_manifest(args.manifest, args.subset)[:args.n]
    out, methods = Path(args.out or Path("out/eval") / Path(args.manifest).stem), judge.methods(args.videos)
    vbench = quality.vbench_results(args.vbench_results) if args.vbench_results else {}
    client = None
    if args.judge == "openai":
        client = Client(out / "replies.jsonl", args.judge_model or "gpt-4o", args.base_url, args.price_in,
                        args.price_out)
    if args.dry_run:
        jobs = [(s, folder / f"{s.id}.mp4") for s in samples for folder in methods.values()]
        there = [job for job in jobs if job[1].is_file()]
        told = client.count(tqdm(judge.service(there, args.judge_frames, args.repeat)[0], desc="count", unit="question",
                                 total=2 * args.repeat * len(there)))
        print(f"{len(samples)} samples, {len(methods)} methods, {len(jobs) - len(there)} videos missing: "
              f"{told['questions']} questions, {told['calls']} of them not answered yet: about "
              f"{told['tokens_in']:,} tokens in, {told['tokens_out']:,} out, ${told['cost']:.2f}"
              + ("" if args.price_in or args.price_out else " (pass --price-in and --price-out)"))
        return
    model, failed = None, {}
    if args.checkpoint or args.judge == "vila":
        model = load_model(args.judge_model if args.judge == "vila" and args.judge_model else args.checkpoint)
        if torch.cuda.is_available():
            model.cuda()
    measures = quality.Measures(args.dino, args.clip, args.viclip, args.trust_remote_code, model,
                                fingerprint(model, ("vlm",)) if model else "")
    if args.checkpoint:
        name = run_name(args.checkpoint)
        if name in methods:
            raise BadInput(f"--videos {name}=...: the checkpoint is called so, too; rename the one")
        maker = load_model(args.checkpoint) if args.judge_model and args.judge == "vila" else model
        methods[name] = out / "videos" / name
        made = generate(maker.to(model.device), samples, methods[name], args.steps, args.guidance, args.seed, args.batch)
        failed = {(key, name): why for key, why in made.items()}
    kept = judge.Kept(out / "kept.jsonl")
    jobs = [(s, name, folder / f"{s.id}.mp4") for s in samples for name, folder in methods.items()]
    seen = look(jobs, measures, kept, len(os.sched_getaffinity(0)))
    whole = [k for k, (why, _) in enumerate(seen) if not why]
    good, verdicts = [jobs[k] for k in whole], [[] for _ in whole]
    if args.judge == "openai":
        asked, gather = judge.service([(s, path) for s, _, path in good], args.judge_frames, args.repeat)
        verdicts = gather(client.ask(asked, 2 * args.repeat * len(good), "judge"))
        client.close()
    elif args.judge == "oracle":
        for s in dict.fromkeys(s for s, *_ in good):     # of another world: no one's fault but the command's
            judge.world_triplet(s)
        verdicts = ask_local(good, judge.oracle, f"oracle {world.VERSION}", kept)
    elif args.judge == "vila":
        verdicts = ask_local(good, judge.vila(model), f"vila {fingerprint(model, ('vlm',))} {model.preset}", kept)
    verdicts, rows, near = dict(zip(whole, verdicts)), [], lambda path: os.path.relpath(path, out)
    for k, (s, name, path) in enumerate(jobs):
        scores = score_row(verdicts.get(k, []))
        scores["failed"] = failed.get((s.id, name)) or seen[k][0] or scores["failed"]
        rows.append({"id": s.id, "subset": s.subset, "type": s.type, "instruction": s.instruction, "method": name,
                     "source": near(s.source), "target": near(s.target), "video": near(path), **scores,
                     "quality": seen[k][1] | vbench.get((name, s.id), {}) if not seen[k][0] else {}})
    labels, why = dict(measures.labels), dict(measures.why)
    for column in {c for values in vbench.values() for c in values}:
        labels[column] = f"{column} (vbench)"
        why.pop(column, None)
    by = {"none": "no judge", "oracle": "the tiny world's oracle",
          "vila": f"the VLM of {args.judge_model or args.checkpoint or 'weights/tiny'}",
          "openai": f"{client.model}, {args.judge_frames} frames, prompt {judge.PROMPT}" if client else ""}[args.judge]
    about = {"head": f"{Path(args.manifest).name}{f', subset {args.subset}' if args.subset else ''}, judged by {by}"
                     f"{f', {args.repeat} times' if args.repeat > 1 else ''}: means [95 % bootstrap interval].",
             "judge": args.judge, "repeat": args.repeat, "methods": list(methods), "labels": labels, "why": why}
    atomic_write(out / "scores.jsonl", "".join(json.dumps(row) + "\n" for row in rows))
    atomic_write(out / "about.json", json.dumps(about, indent=1) + "\n")
    texts = {s.id: s.instruction for s in samples}
    commands = [quality.vbench_folder(out / "vbench", name, {s.id: path for s, its, path in good if its == name}, texts)
                for name in methods]
    if "MS" in why:
        print("motion smoothness, from the vbench package in its own environment, and then --vbench-results "
              f"{out}/vbench/results:\n  " + "\n  ".join(commands))
    rebuild(out, args)


def rebuild(out: Path, args) -> None:
    """Write the tables and pages of what is in `out`, and print the tables; people's ratings are kept there, too.

    Raises BadInput where there are no results.
    """
    if args.human:
        atomic_write(out / "human.csv", Path(args.human).read_bytes())
    human = read_human(str(out / "human.csv")) if (out / "human.csv").exists() else None
    try:
        rows = [json.loads(line) for line in (out / "scores.jsonl").read_text().splitlines()]
        about = json.loads((out / "about.json").read_text())
        blocks, charts = tables(rows, about, human)
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise BadInput(f"--report {out}: holds no results of a benchmark ({error}); make them with --manifest") \
            from error
    if args.study_results:
        ranked = study_table(report.read_rankings(out, args.study_results))
        blocks += ["## user study\n", "Pairwise win rates of people's rankings [95 % bootstrap interval]:\n", ranked]
    text = as_markdown(blocks)
    atomic_write(out / "table.md", text)
    report.report(out, rows, about, blocks, [report.bars(*chart) for chart in charts], human)
    print(f"{text}\nwrote scores.jsonl, table.md and report.html into {out}")
    if args.study:
        print(f"wrote {report.study(out, rows, about['methods'], args.study, args.seed)}: hand out its folder; "
              f"{out}/study_key.json says which method is which")
