"""How good is it? Generate, judge, and say how sure one can be (Sec. 3.2).

    python evaluate.py --subset rave                            # the base model; also icvg, literal, cross
    python evaluate.py --subset rave --checkpoint out/uso       # a run of train.py
    python evaluate.py --subset icvg --split val --n 50 --seed 1
    python evaluate.py --critic                                 # is the critic right? VAE, verdicts, gradients

Any method's videos of any benchmark (judge.py says what that is), by the paper's protocol:

    python evaluate.py --manifest bench.jsonl --videos ours=out/ours --videos vace=out/vace --judge openai --out results
    python evaluate.py --manifest bench.jsonl --checkpoint out/uso --subset icvg --judge vila   # makes its videos first
    python evaluate.py --report results                         # the tables again from what is there; no call, no model
    python evaluate.py --report results --study 50              # a page on which people rank the methods blindly
    python evaluate.py --report results --study-results *.json  # what they said

On the tiny world it writes scores.jsonl (one row a sample), table.md and strips.png (source, edit, target of the first
dozen) into out/eval/<checkpoint>-<subset>-<split>/. Stopped and started again with the same settings it goes on where it
was; other settings or other weights start afresh. The judge is the tiny world's oracle: it re-renders the right answer.

Axis letters: B batch, F frames, H W pixels.
"""

import argparse
import json
import math
from pathlib import Path

import numpy as np
import torch
from scipy.stats import spearmanr
from tqdm import tqdm

from tiny import world
from rvebench.score import benchmark, read_human, rebuild
from critic import THINK, Critic, decode_frames, load_model
from common.files import BadInput, Parser, atomic_write, markdown, replacing, run_script
from data import fingerprint
from model import FROZEN, TRAINED
from rvebench.quality import feature_consistency, motion_smoothness, temporal_flickering
from common.intervals import COLUMNS, format_interval, geometric_mean, interval, overall
from common.files import is_of, start_afresh
from rvebench.scores import run_name, win_rates

STRIPS = 12                                              # how many samples strips.png shows


# ------------------------------------------------------------------------------------------- generate and judge

def generate_and_judge(model, subset: str, split: str, n: int, steps: int = 12, guidance: float = 1.0, seed: int = 0,
                       batch: int = 20, progress: bool = True, keep=None, done: dict | None = None,
                       critic: Critic | None = None) -> list[dict]:
    """Edit the first `n` triplets of the tiny world and judge each; returns a row for each sample, in order.

    A row has id, index, subset, type, rule, instruction, failed (None or why) and the COLUMNS; PC is None on ICVG, and
    every score is None where the sample failed: a video that is not finite is counted, never scored. Sample i's noise
    comes from seed + i, whatever the batch. With a critic, its margin is in the row, too, beside the oracle's scores and
    in none of them. keep(row, video (F, 3, H, W)) is called for each new row; `done` holds rows by index that need not
    be made again.
    """
    rows = dict(done or {})
    todo = [i for i in range(n) if i not in rows]
    with tqdm(total=n, initial=n - len(todo), desc=f"evaluate {subset}", unit="sample", disable=not progress) as bar:
        while todo:
            now = [i for k, i in enumerate(todo[:batch]) if i == todo[0] + k]          # row k has the noise seed + k
            todo = todo[len(now):]
            triplets = [world.make_triplet(i, subset, split) for i in now]
            source = torch.stack([t.source for t in triplets]).to(model.device)            # (B, F, 3, H, W)
            edits = model.sample(source, [t.instruction for t in triplets], steps, guidance, seed + now[0]).cpu()
            told = [{}] * len(now)
            if critic:
                with torch.no_grad():
                    margin = critic.margin(source, edits, [t.instruction for t in triplets])
                told = [{"margin": m if math.isfinite(m) else None} for m in margin.tolist()]
            for i, triplet, video, more in zip(now, triplets, edits, told):
                rows[i] = {"id": f"{subset}-{split}-{i}", "index": i, "subset": subset, "type": triplet.type,
                           "rule": triplet.rule, "instruction": triplet.instruction, **_scores(triplet, video), **more}
                if keep:
                    keep(rows[i], video)
            bar.update(len(now))
    return [rows[i] for i in range(n)]


def _scores(triplet, video) -> dict:
    if not video.isfinite().all():
        return {"failed": "the video is not finite", **dict.fromkeys(COLUMNS)}
    s = world.judge(triplet, video)
    four = s["EA"], s.get("PC"), s["GN"], s["GR"]
    return {"failed": None, **dict(zip(COLUMNS, (*four, float(overall(*four)), float(geometric_mean(*four)))))}


def table(rows: list[dict]) -> str:
    """Rows of samples -> a Markdown table: a line for each reasoning type and one for all; mean [95 % interval]."""
    lines = [["type", "N scored", "N failed", *COLUMNS]]
    types = list(dict.fromkeys(r["type"] for r in rows))
    for name in types + ["all"]:
        group = [r for r in rows if name in (r["type"], "all")]
        scored = [r for r in group if not r["failed"]]
        lines.append([name, str(len(scored)), str(len(group) - len(scored)),
                      *[format_interval(interval([r[column] for r in scored if r[column] is not None])) for column in COLUMNS]])
    return markdown(lines)


# ----------------------------------------------------------------------------- is the critic right? (Sec. 4.2.2)

def psnr(a: torch.Tensor, b: torch.Tensor) -> float:
    """Mean over clips of the peak signal-to-noise ratio in dB; a, b: (B, F, 3, H, W) in [-1, 1]."""
    return float((10 * torch.log10(4 / (a - b).pow(2).mean((1, 2, 3, 4)).clamp_min(1e-9))).mean())


def check_critic(model, n: int = 200, split: str = "test", seed: int = 0, batch: int = 20) -> dict:
    """Measure the frozen parts on `n` held-out triplets (RAVE and ICVG in turn) of the tiny world.

    psnr: the VAE on whole clips. alone_psnr: single latent frames decoded alone, against the same frames of the exact
    decode. For each chain of thought: right, the share of right verdicts on n edits (targets) and n near misses (with an
    oracle's Overall below 6); by_kind; spearman of margin and oracle's EA on n edits that the model generates;
    gradient, the mean norm of d margin / d pixels on those; inside, the share of its absolute value where source and
    target differ, beside `area`, the share of the picture that this is.
    """
    triplets = [world.make_triplet(k // 2, ("rave", "icvg")[k % 2], split) for k in range(n)]
    rng, misses, kinds = np.random.default_rng(seed), [], []
    for k, triplet in enumerate(triplets):
        while True:
            kind = world.MISSES[k % len(world.MISSES)]
            video, _ = world.near_miss(triplet, kind, rng)
            s = world.judge(triplet, video)
            if overall(s["EA"], s.get("PC"), s["GN"], s["GR"]) < 6:
                break
            k += 1                                       # too nearly right to be called wrong: another kind
        misses.append(video), kinds.append(kind)
    source, target = (torch.stack([getattr(t, name) for t in triplets]) for name in ("source", "target"))
    words, wrong = [t.instruction for t in triplets], torch.stack(misses)
    chunks = [slice(i, min(i + batch, n)) for i in range(0, n, batch)]
    edits = torch.cat([model.sample(source[c], words[c], seed=seed + c.start) for c in tqdm(chunks, desc="edits")])
    oracle = [world.judge(t, v)["EA"] for t, v in zip(triplets, edits)]
    with torch.no_grad():
        latents = torch.cat([model.encode_video(target[c]) for c in chunks])
        decoded = torch.cat([model.decode_video(latents[c]) for c in chunks])
        alone = torch.cat([decode_frames(model, latents[c], "alone") for c in chunks])
    result = {"n": n, "split": split, "psnr": psnr(decoded, target),
              "alone_psnr": [psnr(alone[:, k:k + 1], model.vlm.pick(decoded)[:, k:k + 1]) for k in range(alone.shape[1])]}
    region = (model.vlm.pick(source) - model.vlm.pick(target)).abs().amax(2, keepdim=True) > .02      # (B, K, 1, H, W)
    result["area"] = float(region.float().mean())
    for think in THINK:
        critic, margins = Critic(model, think), {}
        expected = [critic.thoughts(source[c], words[c]) if think == "expect" else None for c in chunks]
        for name, clips in (("edit", target), ("miss", wrong)):
            with torch.no_grad():
                margins[name] = torch.cat([critic.margin(source[c], clips[c], words[c], thought)
                                           for c, thought in zip(tqdm(chunks, desc=f"{think}: {name}"), expected)])
        generated, gradients = [], []
        for c, thought in zip(tqdm(chunks, desc=f"{think}: generated"), expected):
            frames = model.vlm.pick(edits[c]).requires_grad_()
            m = critic.margin(source[c], frames, words[c], thought)
            gradients.append(torch.autograd.grad(m.sum(), frames)[0])
            generated.append(m.detach())
        g = torch.cat(gradients)
        ok = {"edit": margins["edit"] > 0, "miss": margins["miss"] < 0}
        kind_of = {kind: [k == kind for k in kinds] for kind in dict.fromkeys(kinds)}
        result[think] = {
            "right": float(torch.cat(list(ok.values())).float().mean()),
            "by_kind": {"edit": float(ok["edit"].float().mean()),
                        **{kind: float(ok["miss"][these].float().mean()) for kind, these in kind_of.items()}},
            "spearman": float(spearmanr(torch.cat(generated), oracle).statistic),
            "gradient": float(g.flatten(1).norm(dim=1).mean()),
            "inside": float((g.abs() * region).flatten(1).sum(1).div(g.abs().flatten(1).sum(1)).mean())}
    return result


# ---------------------------------------------------------------------------------------------------- the command

def parse(argv=None) -> argparse.Namespace:
    parser = Parser(description="Score a model on the tiny world.")
    parser.add_argument("--critic", action="store_true", help="measure the frozen parts instead of the generator")
    parser.add_argument("--subset", help=f"one of {', '.join(world.SUBSETS)} (default: rave), or a manifest's (all)")
    parser.add_argument("--split", default="test", help=f"one of {', '.join(world.SPLITS)}")
    parser.add_argument("--checkpoint", "--weights", help="a run's or model's folder (default: weights/<preset>)")
    parser.add_argument("--margin", action="store_true", help="keep the critic's margin in scores.jsonl, too")
    parser.add_argument("--n", type=int, help="how many samples (default: 200 of the tiny world, all of a manifest)")
    parser.add_argument("--steps", type=int, default=12, help="Euler steps from noise to clip")
    parser.add_argument("--guidance", type=float, default=1.0, help="c + g (c - uncond); 0 is none")
    parser.add_argument("--batch", type=int, default=20, help="clips generated at a time")
    parser.add_argument("--seed", type=int, default=0, help="of the noise")
    parser.add_argument("--out", help="where the results' folder goes (default: out/eval); of a manifest, that folder")
    add = parser.add_argument_group("any method on any benchmark").add_argument
    add("--manifest", help="JSON lines: data.py's record with id and subset")
    add("--videos", action="append", default=[], metavar="NAME=DIR", help="a method's folder of <id>.mp4; repeat it")
    add("--judge", default="none", choices=("none", "oracle", "vila", "openai"), help="who gives the scores")
    add("--judge-model", help="openai: the model's name (default: gpt-4o); vila: a model folder (default: weights/tiny)")
    add("--judge-frames", type=int, default=8, help="frames of source and edit that a service is shown")
    add("--base-url", help="openai: another endpoint that speaks its language")
    add("--price-in", type=float, default=0., help="openai: dollars a million tokens of questions")
    add("--price-out", type=float, default=0., help="openai: dollars a million tokens of answers")
    add("--dry-run", action="store_true", help="openai: print calls, tokens and dollars, and ask nothing")
    add("--repeat", type=int, default=1, help="openai: judge so many times, for the judge's own variance")
    add("--human", help="ratings of people, CSV: id, method and scores; for the judge's correlation with them")
    add("--dino", help="subject consistency: facebook/dino-vitb16, or a folder")
    add("--clip", help="background consistency: openai/clip-vit-base-patch32, or a folder")
    add("--viclip", help="overall consistency and ViCLIP-T: OpenGVLab/ViCLIP-L-14-hf, or a folder")
    add("--trust-remote-code", action="store_true", help="run the code that comes with ViCLIP")
    add("--vbench-results", help="folder of what the vbench package wrote: motion smoothness, and what else is there")
    add("--study", type=int, metavar="N", help="write a page with N samples, on which people rank the methods blindly")
    add("--study-results", nargs="+", metavar="JSON", help="what they downloaded: win rates go into the tables")
    add("--report", metavar="DIR", help="rebuild the tables of such results; no call, no model")

    args = parser.parse_args(argv)
    for flag in ("n", "steps", "batch", "judge_frames", "repeat", "study"):
        value, name = getattr(args, flag), flag.replace("_", "-")
        if value is not None and value < 1:
            raise BadInput(f"--{name} {value}: must be at least 1; {parser.get_default(flag) or 50} will do")
    for flag in ("guidance", "price_in", "price_out"):
        value = getattr(args, flag)
        if not 0 <= value < math.inf:
            raise BadInput(f"--{flag.replace('_', '-')} {value}: must be 0 or a positive number; 1 will do")
    if args.human:
        read_human(args.human)                           # what can go wrong at the end is found out at the start
    if args.report:
        return args
    if args.manifest:
        if args.critic or args.margin:
            raise BadInput(f"--{'critic' if args.critic else 'margin'}: is of the tiny world; leave out --manifest")
        if not (args.videos or args.checkpoint):
            raise BadInput("--manifest: needs a method; give --videos NAME=DIR, or --checkpoint")
        if args.repeat > 1 and args.judge != "openai":
            raise BadInput(f"--repeat {args.repeat}: the judge {args.judge} always says the same; pass --judge openai")
        if args.dry_run and (args.judge != "openai" or args.checkpoint):
            raise BadInput("--dry-run: counts what --judge openai would be asked about --videos that are there")
        return args
    for flag, value in (("videos", args.videos), ("judge", args.judge != "none"), ("dry-run", args.dry_run),
                        ("study", args.study), ("study-results", args.study_results)):
        if value:
            raise BadInput(f"--{flag}: needs --manifest or --report; the tiny world has its own oracle")
    args.subset, args.n, args.out = args.subset or "rave", args.n or 200, args.out or "out/eval"
    try:
        world.make_triplet(0, args.subset, args.split)
    except ValueError as error:
        raise BadInput(f"--subset {args.subset} --split {args.split}: {error}") from error
    return args


def resume(folder: Path, settings: dict) -> dict[int, dict]:
    """The rows, by index, that an earlier run with the same settings left in `folder`; other ones are cleared away."""
    try:
        if is_of(folder, settings):
            return {r["index"]: r for r in map(json.loads, (folder / "scores.jsonl").read_text().splitlines())}
    except (OSError, ValueError, KeyError, TypeError):   # there is none, or not one of ours
        pass
    if (folder / "scores.jsonl").exists():
        print(f"{folder} holds the scores of other settings or weights: starting afresh")
    start_afresh(folder, settings, "scores.jsonl", "table.md", "strips.png")
    return {}


def main(argv=None) -> None:
    args = parse(argv)
    if args.report:
        return rebuild(Path(args.report), args)
    if args.manifest:
        return benchmark(args)
    model = load_model(args.checkpoint)
    if torch.cuda.is_available():
        model.cuda()
    if args.critic:
        result = check_critic(model, args.n, args.split, args.seed, args.batch)
        atomic_write(Path(args.out) / "critic.json", json.dumps(result, indent=1) + "\n")
        print(f"on {args.n} triplets of the {args.split} split: VAE {result['psnr']:.1f} dB; latent frames decoded alone, "
              f"against the exact decode: {', '.join(f'{x:.1f}' for x in result['alone_psnr'])} dB")
        for think in THINK:
            r = result[think]
            kinds = ", ".join(f"{kind} {right:.0%}" for kind, right in r["by_kind"].items())
            print(f"{think:7s} verdicts right {r['right']:.1%} ({kinds}); "
                  f"Spearman with EA {r['spearman']:.3f}; |d margin / d pixels| {r['gradient']:.3f}, "
                  f"{r['inside']:.0%} of it on the {result['area']:.0%} of pixels that should change")
        return
    name = run_name(args.checkpoint) if args.checkpoint else model.preset.name
    folder = Path(args.out) / f"{name}-{args.subset}-{args.split}"
    how = {k: getattr(args, k) for k in ("subset", "split", "steps", "guidance", "seed")}
    settings = {**how, "checkpoint": fingerprint(model, (*FROZEN, *TRAINED)), "world": world.VERSION,
                "margin": args.margin}
    rows, clips, strips = resume(folder, settings), {}, folder / "strips.png"

    def keep(row, video):
        rows[row["index"]] = row
        atomic_write(folder / "scores.jsonl", "".join(json.dumps(rows[i]) + "\n" for i in sorted(rows)))
        if row["index"] < STRIPS:
            clips[row["index"]] = video

    result = generate_and_judge(model, n=args.n, **how, batch=args.batch, keep=keep, done=rows,
                                critic=Critic(model) if args.margin else None)
    if clips or not strips.exists():
        first = range(min(args.n, STRIPS))
        if len(clips) < len(first):                      # before a stop only scores were kept: the same clips once more
            generate_and_judge(model, n=len(first), **how, batch=args.batch, progress=False,
                               keep=lambda row, video: clips.update({row["index"]: video}))
        triplets = [world.make_triplet(i, args.subset, args.split) for i in first]
        with replacing(strips) as temporary:
            world.contact_sheet(triplets, {"source": [t.source for t in triplets], "edit": [clips[i] for i in first],
                                           "target": [t.target for t in triplets]}, temporary)
    text = table(result)
    head = f"{args.checkpoint or 'weights/' + model.preset.name} on {args.subset}, {args.split} split: mean of 0..10 " \
           f"[95 % bootstrap interval], {args.steps} steps, guidance {args.guidance:g}, seed {args.seed}."
    atomic_write(folder / "table.md", f"{head}\n\n{text}")
    failed = sum(bool(r["failed"]) for r in result)
    print(f"{head}\n\n{text}" + (f"\n{failed} of {args.n} samples failed: not finite, not scored\n" if failed else "")
          + f"\nwrote scores.jsonl, table.md and strips.png into {folder}")


if __name__ == "__main__":
    run_script(main)
