"""RVE-Dataset: from Ditto-1M and raw movies to reason-informed triplets (Sec. 3.1, 3.2).

    python curate.py rave --ditto training_metadata/*.json --videos DIR --out rave/       # rewrite literal instructions
    python curate.py icvg --movies DIR --out icvg/                      # shots, captions, clusters, pairs, instructions
    python curate.py bench --from rave/ icvg/ --out bench/                 # hold out a test split, for people to verify
    python curate.py bench --from rave/ icvg/ --out bench/ --decisions decisions.json      # what verify.html downloaded
    python curate.py icvg --movies DIR --out part0/ --shard 0/2            # one machine, and 1/2 on another; join them,
    python curate.py merge --from part0/ part1/ --out icvg/                # and the icvg command goes on in icvg/
    python curate.py demo --out demo/                  # all of it on tiny-world films, no network, two minutes

A stage is a function and a file of JSON lines (see lines.py) that the next one reads; triplets.jsonl, and in bench/
train.jsonl and test.jsonl, are manifests of train.py and evaluate.py. The same command goes on after a stop; to do a
stage again, delete its file and those after it. What costs (shots, captions, embeddings, instructions, rewrites) adds
line after line; what is cheap (clusters, pairs, filter, triplets) is written anew from all the lines there are, sorted:
neither the order of the work nor the number of machines matters.

Chosen where the paper is silent: the threshold lies in the valley between the two groups of cosines within windows
(see `valley`), which do not overlap; of a shot the middle 80 % are used, five seconds at most. Left out: nothing of the
two sections.

Axis letters: N clips, D width of an embedding.
"""

import argparse
import json
import math
import os
import re
import shutil
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from functools import lru_cache
from itertools import groupby
from pathlib import Path
from threading import Lock
from typing import Callable, Iterable, Iterator

import numpy as np
import torch
from safetensors.numpy import load_file, save
from scipy.sparse import csr_matrix
from scipy.sparse.csgraph import connected_components

from rvedata import pages as curate_pages
from tiny import world
from rvebench.ask import Client, Missing, Question, parse_json
from critic import load_model, write
from data import FIELDS
from common.files import BadInput, Parser, atomic_write, run_script
from common.video import from_bytes
from rvedata.film import clip_vectors, embedder, find_cuts, read_frames, words, write_clip
from rvedata.holdout import bench, moved
from rvedata.lines import Rejected, Stop, good, grouped, mine, scan, sha, stage, write_lines
from model import PRESETS, chat

VERSION = 1                                              # of the prompts, with which replies are kept
CHUNK = 64                                               # shots of a movie whose embeddings share a file
BINS = np.linspace(-1, 1, 401)                           # of the histogram of cosines
MOVIES = (".mp4", ".mkv", ".mov", ".avi", ".webm", ".m4v", ".mpg", ".mpeg", ".ts")


# --------------------------------------------------------------------------------- what the VLM is asked, and the check

CAPTION = """You see frames of one shot of a film, in order. Describe in one or two plain sentences who and what is
there, the place, the light, what happens, and how the camera sees it. Answer as JSON."""
PROMPT = {
    "rave": """You see frames of a source video, frames of its edited version, and the literal instruction that led from
one to the other. Infer why, in the real world, the scene would come to look like that, and rewrite the instruction as
a cue from which one can reason out the edit: name the cause, the time, the place or the meaning, and withhold the
operation and its visible result. It must fit both videos. Answer as JSON: type, rationale (one sentence),
instruction.""",
    "icvg": """You see frames of an earlier clip of a film, frames of a later clip of the same scene, and captions.
Infer an event, a feeling, a piece of common sense or a change of perspective that leads from one to the other, and
write an instruction from which one can reason out the later clip; do not describe that clip. Answer as JSON: type,
rationale (one sentence), instruction."""}


def schema(**fields) -> dict:
    """A JSON schema of an object with these texts: {} for any, or {"enum": [...]}."""
    return {"type": "object", "properties": {name: {"type": "string", **field} for name, field in fields.items()},
            "required": list(fields), "additionalProperties": False}


def wrong(answer: dict, literal: str, types: list[str], forbidden: list[str], overlap: float = .5) -> str:
    """Why an answer cannot be used, or "": another type, empty, too long, a forbidden verb, the literal words again."""
    text = answer.get("instruction")
    if answer.get("type") not in types:
        return f"the type must be one of {', '.join(types)}"
    if not isinstance(text, str) or not 3 <= len(text.split()) <= 60 or not str(answer.get("rationale") or "").strip():
        return "the instruction must have 3 to 60 words, and the rationale some"
    for verb in forbidden:                               # add, adds, added, adding; swap, swapped; replace, replacing
        if re.search(rf"\b{verb.removesuffix('e')}{verb[-1]}?(e|es|ed|s|ing)?\b", text.lower()):
            return f"it states an operation: {verb}"
    shared = words(literal) & words(text)
    if len(shared) > overlap * min(len(words(literal)), len(words(text))):
        return f"it repeats the literal words: {', '.join(sorted(shared))}"
    return ""


def implicit(ask: Callable, parts: list, literal: str, subset: str, examples: dict, overlap: float) -> dict:
    """Type, rationale and implicit instruction. What is `wrong` with an answer is sent back once.

    ask(system, parts, schema) -> dict; parts: texts and frames (H, W, 3). Raises Rejected where the second is wrong.
    """
    types = world.TYPES[subset]
    system = "\n".join([" ".join(PROMPT[subset].split()), f"The types: {', '.join(types)}.",
                        f"Never use the verbs {', '.join(examples['forbidden'])}.", "Examples:",
                        *map(json.dumps, examples[subset])])
    for _ in range(2):
        answer = ask(system, parts, schema(type={"enum": types}, rationale={}, instruction={}))
        reason = wrong(answer, literal, types, examples["forbidden"], overlap)
        if not reason:
            return {key: answer[key].strip() for key in ("type", "rationale", "instruction")}
        parts = [*parts, f"Your answer was {json.dumps(answer)}. It cannot be used: {reason}. Write another one."]
    raise Rejected(f"{reason} ({str(answer.get('instruction'))[:200]!r})")


def local_vlm(model, limit: int = 256) -> Callable:
    """ask() by the model's own VLM, greedily, a question at a time; frames in a row are seen as a clip.

    It would write the same again: an answer without a JSON object is Rejected at once.
    """
    lock = Lock()

    def ask(system, parts, schema):
        user = []
        for still, run in groupby(parts, lambda part: isinstance(part, np.ndarray)):
            if still:
                clip = from_bytes(torch.from_numpy(np.stack(list(run)))).permute(0, 3, 1, 2)       # (F, 3, H, W)
                with lock, torch.no_grad():
                    user.append(model.vlm.see(clip[None].to(model.device))[0])                     # (T, D)
            else:
                user.append("\n".join(run) + "\n")
        user.append(f"Answer with a JSON object of this schema: {json.dumps(schema)}")
        with lock:
            text, = write(model.vlm, [chat(system, user)], limit)
        try:
            answer = json.loads(text[text.index("{"):text.rindex("}") + 1])
        except ValueError:
            raise Rejected(f"the VLM's answer is not JSON: {text[:200]!r}") from None
        return answer if isinstance(answer, dict) else {}
    return ask


def service(client: Client) -> Callable:
    """ask() by an OpenAI-compatible endpoint.

    Raises Stop where it cannot be asked, BadInput where it did not answer (5xx, time-outs), Rejected where in vain.
    """
    def ask(system, parts, schema):
        question = Question(f"curate-{VERSION}", system, parts, schema, parse_json)
        try:
            value = client.one(question)
        except BadInput as error:
            raise Stop(str(error)) from error
        if isinstance(value, Missing):                   # what is in the file is final, and else there was no reply
            final = client.recall(question, question.key(client.model))
            raise (Rejected if final else BadInput)(f"the VLM gave no answer: {value.reason}")
        return value

    def note(done, left):
        more = f", about ${client.spent / max(1, done) * left:.2f} to go" if left is not None else ""
        return f"${client.spent:.4f} spent on {client.calls} calls{more}"
    ask.note, ask.close = note, client.close
    return ask


def read_examples(path: Path) -> dict:
    """The few-shot examples and the forbidden verbs. Raises BadInput where they are not of the form of ours."""
    try:
        examples = json.loads(path.read_text())
        lacking = [t for subset, types in world.TYPES.items() for t in types
                   if t not in {example["type"] for example in examples[subset]}]
        if lacking or not all(verb.isalpha() for verb in examples["forbidden"]):
            raise ValueError(f"no example of {lacking[0]}" if lacking else "a forbidden verb is no single word")
        return examples
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
        raise BadInput(f"--examples {path}: {type(error).__name__}: {error}; see curate_examples.json") from error


# ------------------------------------------------------------------------------------------------ RAVE (Sec. 3.1.1)

def alike(a: frozenset, b: frozenset, near: float) -> bool:
    """Whether two texts share at least `near` of all the content words that they have."""
    return len(a & b) >= near * len(a | b)


def twin(said: dict[str, frozenset], name: str, text: str, near: float) -> str | None:
    """Whose text is near the same among those `said`; where there is none, this one is put there."""
    other = next((k for k, theirs in said.items() if alike(words(text), theirs, near)), None)
    if other is None:
        said[name] = words(text)
    return other


def ditto_items(files: list[Path], shard: tuple[int, int], near: float) -> Iterator[dict]:
    """The triplets of Ditto-1M's training_metadata, sorted by source; `twin` names a near-same text of the same source.

    A shard takes whole sources, so that twins meet. Raises BadInput where a file is no such list.
    """
    sources = {}
    for file in files:
        try:
            for record in json.loads(file.read_text()):
                row = [record[key].strip() for key in ("source_path", "edited_path", "instruction")]
                sources.setdefault(row[0], {})[f"rave-{sha(*row)}"] = row
        except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
            raise BadInput(f"{file}: no list of source_path, instruction and edited_path ({type(error).__name__}: "
                           f"{error}); give files of Ditto-1M's training_metadata") from error
    for source in sorted(s for s in sources if mine(s, shard)):
        said = {}
        for name, (_, target, text) in sorted(sources[source].items()):
            yield {"id": name, "source": source, "target": target, "literal": text,
                   "twin": twin(said, name, text, near)}


def rave(args, ask: Callable) -> None:
    """rewrites.jsonl, triplets.jsonl and report.html: Ditto-1M with its instructions made implicit."""
    def work(item):
        source, target = videos = args.videos / item["source"], args.videos / item["target"]
        for video in videos:
            if not video.is_file():
                raise BadInput(f"{video}: the metadata names it, and it is missing; correct --videos")
        if item["twin"]:
            raise Rejected(f"says near the same as {item['twin']} of the same source")
        parts = ["Source:", *read_frames(source), "Edited:", *read_frames(target), f"Literal: {item['literal']}"]
        answer = implicit(ask, parts, item["literal"], "rave", args.examples, args.overlap)
        paths = {field: os.path.relpath(video, args.out) for field, video in zip(FIELDS, videos)}
        return {"subset": "rave", **paths, **answer, "literal": item["literal"]}
    lines = args.out / "rewrites.jsonl"
    items = list(ditto_items(args.ditto, args.shard, args.near))
    stage(lines, items, work, args.skip_bad, args.workers, len(items), ask)
    triplets(args.out, good(lines), args.near)
    curate_pages.report(args.out, read_frames)


def triplets(out: Path, records: Iterable[dict], near: float) -> None:
    """triplets.jsonl, the manifest, sorted by id; duplicates.jsonl, what says near the same of the same source."""
    said, rows, copies = {}, [], []
    for r in sorted(records, key=lambda r: r["id"]):
        other = twin(said.setdefault(r[FIELDS[0]], {}), r["id"], r["instruction"], near)
        if other is None:
            rows.append(r)
        elif other != r["id"]:                           # else it is the same item's second line, as after a merge
            copies.append({"id": r["id"], "rejected": f"says near the same as {other}"})
    write_lines(out / "duplicates.jsonl", copies)
    write_lines(out / "triplets.jsonl", rows)


# ------------------------------------------------------------------------------------ ICVG, its stages (Sec. 3.1.2)

def movie_names(folder: Path) -> list[str]:
    names = sorted(p.relative_to(folder).as_posix() for p in folder.rglob("*") if p.suffix.lower() in MOVIES)
    if not names:
        raise BadInput(f"--movies {folder}: holds no film ({', '.join(MOVIES)}); give the folder of your films")
    return names


def shots(args) -> None:
    """shots.jsonl: a line a movie, {id, fps, frames, shots: [[first, past the last], ...]}."""
    def work(item):
        cuts, frames, fps = find_cuts(args.movies / item["id"])
        if not cuts:
            raise BadInput(f"{item['id']}: is a movie without cuts, of which no pair can be made; take it away")
        if len(cuts) >= args.max_shots:
            raise BadInput(f"{item['id']}: has {len(cuts) + 1} shots, more than --max-shots {args.max_shots}: does it "
                           f"flicker? raise the flag, or take it away")
        return {"fps": fps, "frames": frames, "shots": list(zip([0, *cuts], [*cuts, frames]))}
    names = [{"id": name} for name in movie_names(args.movies) if mine(name, args.shard)]
    stage(args.out / "shots.jsonl", names, work, args.skip_bad)


def clips(movie: dict, seconds: float, least: int) -> Iterator[dict]:
    """The middle 80 % of each shot, so that no fade shows, `seconds` at most; none of fewer than `least` frames."""
    for k, (a, b) in enumerate(movie["shots"]):
        n = min(b - a - 2 * ((b - a) // 10), round(seconds * movie["fps"]))
        first = a + (b - a - n) // 2
        if n >= least:
            yield {"id": f"{movie['id']}#{k:05d}", "movie": movie["id"], "index": k, "clip": [first, first + n],
                   "fps": movie["fps"]}


def captions(args, ask: Callable) -> None:
    """captions.jsonl: a line a shot, {id, movie, index, clip, fps, caption}."""
    def work(item):
        frames = read_frames(args.movies / item["movie"], item["clip"])
        caption = ask(" ".join(CAPTION.split()), frames, schema(caption={})).get("caption")
        if not isinstance(caption, str) or not caption.strip():
            raise Rejected("no caption came back")
        return {**item, "caption": caption.strip()}
    items = lambda: (clip for movie in good(args.out / "shots.jsonl") if mine(movie["id"], args.shard)
                     for clip in clips(movie, args.seconds, args.least))
    total = sum(1 for _ in items())
    stage(args.out / "captions.jsonl", items(), work, args.skip_bad, args.workers, total, ask)


def embeddings(args, embed: tuple[Callable, Callable]) -> None:
    """embeddings/<id>.safetensors: image (N, D), text (N, D') of at most CHUNK shots; embeddings.jsonl: of which."""
    image, text = embed

    def work(item):
        rows = item["members"]
        with ThreadPoolExecutor(args.workers) as pool:
            frames = list(pool.map(lambda r: read_frames(args.movies / r["movie"], r["clip"]), rows))
        tensors = {"image": clip_vectors(image, frames), "text": text([r["caption"] for r in rows])}
        atomic_write(args.out / "embeddings" / f"{item['id']}.safetensors", save(tensors))
        return item
    chunks = grouped(args.out / "captions.jsonl", lambda r: (r["movie"], r["index"] // CHUNK))
    items = ({"id": sha(rows), "movie": movie, "chunk": chunk, "members": rows} for (movie, chunk), rows in chunks
             if mine(movie, args.shard))
    stage(args.out / "embeddings.jsonl", items, work, args.skip_bad)


@lru_cache(maxsize=4)
def vectors(out: Path, name: str) -> dict[str, np.ndarray]:
    return load_file(out / "embeddings" / f"{name}.safetensors")


def windows(out: Path, size: int) -> Iterator[tuple[list[dict], np.ndarray]]:
    """(clips in the order of time, their image embeddings (N, D)) of each window of `size` consecutive shots."""
    for movie, lines in grouped(out / "embeddings.jsonl", lambda r: r["movie"]):
        newest = {line["chunk"]: line for line in sorted(lines, key=lambda line: len(line["members"]))}
        # a chunk has two lines where a caption came later: the longer one counts
        members = [{**r, "file": newest[chunk]["id"], "row": k} for chunk in sorted(newest)
                   for k, r in enumerate(newest[chunk]["members"])]
        image = np.concatenate([vectors(out, newest[chunk]["id"])["image"] for chunk in sorted(newest)])
        place = np.array([r["index"] for r in members]) // size
        for rows in np.split(np.arange(len(place)), np.flatnonzero(np.diff(place)) + 1):
            yield members[rows[0]:rows[-1] + 1], image[rows]


def valley(counts: np.ndarray, edges: np.ndarray = BINS) -> float:
    """The threshold between the two groups of a histogram, by minimum error (Kittler and Illingworth 1986).

    Each side is taken for a Gaussian of its own share p and variance v; J = sum of p ln v - 2 p ln p is least where
    the fewest would be on the wrong side. Unlike Otsu's it holds where few pairs are alike and most are not, in a broad
    group. counts: (K,), edges: (K + 1,). Raises ValueError where one side is left with 1 % or less: there is one group.
    """
    def side(counts, centres):                           # share and variance of all bins up to each but the last
        n = counts.cumsum()
        mean, square = ((counts * x).cumsum() / np.maximum(n, 1) for x in (centres, centres ** 2))
        return (n / max(1, n[-1]))[:-1], np.maximum(square - mean ** 2, (edges[1] - edges[0]) ** 2 / 12)[:-1]
    centres = (edges[1:] + edges[:-1]) / 2
    (p, v), (q, w) = side(counts, centres), side(counts[::-1], centres[::-1])
    q, w = q[::-1], w[::-1]
    both = np.flatnonzero(np.minimum(p, q) > .01)
    cost = [p[k] * np.log(v[k]) + q[k] * np.log(w[k]) - 2 * p[k] * np.log(p[k]) - 2 * q[k] * np.log(q[k]) for k in both]
    best = both[np.array(cost) <= min(cost, default=0) + 1e-9]                             # a gap has many
    if not len(best) or best[0] == both[0] or best[-1] == both[-1]:
        raise ValueError(f"the {counts.sum()} cosines within windows do not form two groups")
    return float(edges[1 + best].mean())


def components(image: np.ndarray, threshold: float) -> np.ndarray:
    """The clusters of a window, labels (N,): what cosines above the threshold link. image: (N, D), rows of length 1."""
    return connected_components(csr_matrix(image @ image.T > threshold), directed=False)[1]


def clusters(out: Path, size: int, threshold: float | None = None) -> float:
    """clusters.jsonl: a line for each cluster of at least two; clusters.json: the histogram. Returns the threshold.

    The movies are read twice, for the histogram of all cosines within windows, and to link. Raises BadInput where no
    threshold can be chosen.
    """
    counts, alone = np.zeros(len(BINS) - 1, int), 0
    for _, image in windows(out, size):
        cosines = (image @ image.T)[np.triu_indices(len(image), 1)]
        bins = ((cosines + 1) / (BINS[1] - BINS[0])).clip(0, len(counts) - 1).astype(int)
        counts += np.bincount(bins, minlength=len(counts))
    if not counts.any():
        raise BadInput(f"{out}: no movie has two clips in a window of {size} shots, so there is nothing to pair; what was "
                       f"rejected, and why, is in {out}/report.html")
    try:
        chosen = valley(counts) if threshold is None else threshold
    except ValueError as error:
        raise BadInput(f"{out}: no threshold can be chosen: {error}; give more movies, or --threshold") from error

    def found():
        nonlocal alone
        for members, image in windows(out, size):
            labels = components(image, chosen)
            for label, n in enumerate(np.bincount(labels).tolist()):
                alone += n == 1
                if n > 1:
                    these = [members[k] for k in np.flatnonzero(labels == label)]
                    yield {"id": these[0]["id"], "movie": these[0]["movie"], "members": these}
    n = write_lines(out / "clusters.jsonl", found())["done"]
    record = {"threshold": chosen, "chosen by": "minimum error" if threshold is None else "hand", "clusters": n,
              "alone": alone, "counts": counts.tolist()}
    atomic_write(out / "clusters.json", json.dumps(record) + "\n")
    return chosen


def pairs(out: Path, similarity: float, diversity: float, per_cluster: int) -> None:
    """pairs.jsonl: the best pairs of each cluster, the earlier clip as the source; no clip is in two of them.

    score = similarity * cosine of the captions + diversity * (1 - cosine of the pictures).
    """
    def found():
        for cluster in good(out / "clusters.jsonl"):
            clips, free = cluster["members"], set(range(len(cluster["members"])))
            seen, said = (x @ x.T for x in (np.stack([vectors(out, r["file"])[kind][r["row"]] for r in clips])
                                            for kind in ("image", "text")))
            score = similarity * said + diversity * (1 - seen)
            ranked = sorted((-score[i, j], i, j) for i in free for j in free if i < j)
            for _, i, j in ranked:
                if {i, j} <= free and len(clips) - len(free) < 2 * per_cluster:
                    free -= {i, j}
                    yield {"id": f"icvg-{sha(clips[i]['id'], clips[j]['id'])}", "source": clips[i], "target": clips[j],
                           "score": float(score[i, j]), "captions": float(said[i, j]), "pictures": float(seen[i, j])}
    write_lines(out / "pairs.jsonl", found())


def consistent(out: Path, low: float, high: float) -> None:
    """filter.jsonl: pairs with enough shared context, and enough difference to learn from: low <= cosine <= high.

    Two clips of a cluster may be linked by way of others only, and be far apart themselves.
    """
    write_lines(out / "filter.jsonl", (pair if low <= pair["pictures"] <= high else {
        "id": pair["id"], "rejected": f"cosine of the pictures {pair['pictures']:.3f}, not in {low:.3f} to {high:.3f}"}
        for pair in good(out / "pairs.jsonl")))


def instructions(args, ask: Callable) -> None:
    """instructions.jsonl: a line a pair, as in the manifest; clips/, its videos."""
    def work(pair):
        both = pair["source"], pair["target"]
        a, b = (read_frames(args.movies / r["movie"], r["clip"]) for r in both)
        parts = ["Earlier:", *a, both[0]["caption"], "Later:", *b, both[1]["caption"]]
        answer = implicit(ask, parts, both[1]["caption"], "icvg", args.examples, args.overlap)
        paths = {field: f"clips/{sha(r['id'], r['clip'])}.mp4" for field, r in zip(FIELDS, both)}
        for r, path in zip(both, paths.values()):
            if not (args.out / path).exists():
                write_clip(args.movies / r["movie"], r["clip"], r["fps"], args.out / path)
        return {"subset": "icvg", **paths, **answer, "movie": both[0]["movie"], "shots": [r["index"] for r in both],
                "score": pair["score"]}
    items = lambda: (pair for pair in good(args.out / "filter.jsonl") if mine(pair["id"], args.shard))
    total = sum(1 for _ in items())
    stage(args.out / "instructions.jsonl", items(), work, args.skip_bad, args.workers, total, ask)


def icvg(args, ask: Callable, embed: tuple[Callable, Callable]) -> None:
    """All the stages. A shard of the movies ends before the clusters: their threshold needs all movies."""
    shots(args)
    captions(args, ask)
    embeddings(args, embed)
    lacking = set(movie_names(args.movies)) - {r["id"] for _, r in scan(args.out / "shots.jsonl")}
    if lacking:
        print(f"shard {args.shard[0]}/{args.shard[1]} is done up to the embeddings; merge all shards, and go on there")
        return
    try:
        threshold = clusters(args.out, args.window, args.threshold)
        pairs(args.out, *args.score, args.per_cluster)
        consistent(args.out, *(args.bounds or (threshold, .995)))
        instructions(args, ask)
        wanted = {pair["id"] for pair in good(args.out / "filter.jsonl")}
        triplets(args.out, (r for r in good(args.out / "instructions.jsonl") if r["id"] in wanted), args.near)
    finally:                                             # what went wrong can be seen there, too
        curate_pages.report(args.out, read_frames, args.movies)


def merge(folders: list[Path], out: Path) -> None:
    """Join shards: the lines of files of the same name one after the other, each id once, and what they point to."""
    for name in sorted({path.name for folder in folders for path in folder.glob("*.jsonl")} - {"replies.jsonl"}):
        done = set()
        write_lines(out / name, (done.add(r["id"]) or moved(r, folder, out, ("clips/",)) for folder in folders
                                 for _, r in scan(folder / name) if "failed" not in r and r["id"] not in done))
    for folder in folders:
        for kind in ("embeddings", "clips"):
            if (folder / kind).is_dir():
                shutil.copytree(folder / kind, out / kind, dirs_exist_ok=True)


# ------------------------------------------------------------------------------------------------------ the commands

def demo(args) -> None:
    """The whole thing on tiny-world films. VLM and SigLIP are stand-ins: see curate_demo.py and film.pixels."""
    from rvedata import demo as curate_demo
    vlm, films, out = curate_demo.TinyWorldKnows(), args.out / "films", str(args.out)
    print(f"films and edits of the tiny world into {films}")
    curate_demo.make_movies(films / "movies", args.movies, 8, vlm)
    metadata = curate_demo.make_ditto(films / "ditto", 8 * args.movies, vlm)
    common = ["--siglip", "pixels"]
    main(["rave", "--ditto", str(metadata), "--videos", f"{films}/ditto", "--out", f"{out}/rave"], vlm)
    main(["icvg", "--movies", f"{films}/movies", "--out", f"{out}/icvg", "--least", "9", *common], vlm)
    main(["bench", "--from", f"{out}/rave", f"{out}/icvg", "--out", f"{out}/bench", "--n", "16", *common], vlm)
    weights = ["--weights", args.weights] if args.weights else []
    done = subprocess.run([sys.executable, Path(__file__).parents[1] / "train.py", "--data", f"{out}/bench/train.jsonl",
                           "--steps", str(args.steps), "--batch", "4", "--eval-items", "0", "--out", f"{out}/train",
                           "--cache", f"{out}/cache", *weights])
    if done.returncode:
        raise BadInput(f"the data are made, but train.py ended with code {done.returncode} on {out}/bench/train.jsonl")
    print(f"look at {out}/icvg/report.html, {out}/rave/report.html and {out}/bench/verify.html")


def make_ask(args) -> Callable:
    """ask() by --vlm."""
    if args.vlm == "vila":
        model = load_model(args.weights, args.preset)
        return local_vlm(model.cuda() if torch.cuda.is_available() else model)
    return service(Client(args.out / "replies.jsonl", args.model, args.base_url, args.price_in, args.price_out))


def shard(text: str) -> tuple[int, int]:
    i, _, n = text.partition("/")
    if not (i.isdecimal() and n.isdecimal() and int(i) < int(n)):
        raise argparse.ArgumentTypeError(f"must be i/n with 0 <= i < n, such as 0/4, not {text}")
    return int(i), int(n)


def number(kind: type, low: float, high: float = math.inf) -> Callable:
    def parse(text):
        value = kind(text)
        if not low <= value <= high:
            most = f", {high:g} at most" if high < math.inf else ""
            raise argparse.ArgumentTypeError(f"must be {low:g} or more{most}, not {text}")
        return value
    parse.__name__ = kind.__name__
    return parse


def parse(argv=None) -> argparse.Namespace:
    parser = Parser(description=__doc__.split("\n\n")[0])
    commands = parser.add_subparsers(dest="command", required=True, metavar="rave|icvg|bench|merge|demo")
    add = {name: commands.add_parser(name, help=text).add_argument for name, text in {
        "rave": "make the instructions of Ditto-1M implicit", "icvg": "make triplets of movies",
        "bench": "hold out the test split", "merge": "join shards", "demo": "all of it on tiny-world films"}.items()}
    count, ratio = number(int, 1), number(float, 0, 1)
    for name, a in add.items():
        a("--out", type=Path, default=Path("out") / name, help="folder of the results")
    for name in ("rave", "icvg", "bench"):
        add[name]("--skip-bad", action="store_true", help="go on without what cannot be read or asked, and count it")
        add[name]("--workers", type=count, default=8, help="items that are asked about at a time")
        add[name]("--near", type=ratio, default=.8, help="texts that share so much of their content words are the same")
    for name in ("icvg", "bench"):
        add[name]("--siglip", default="google/siglip2-base-patch16-224", help="id or folder; pixels: a stand-in")
    for name in ("rave", "icvg"):
        a = add[name]
        a("--shard", type=shard, default=(0, 1), metavar="i/n", help="do only this part (default: 0/1)")
        a("--examples", type=Path, default=Path(__file__).parent / "examples.json", help="few-shot examples")
        a("--vlm", choices=("openai", "vila"), default="openai", help="an OpenAI-compatible service, or the own VLM")
        a("--weights", help="vila: model folder (default: weights/<preset>)")
        a("--preset", choices=PRESETS, default="tiny", help="vila: size of the model")
        a("--model", default="gpt-4o", help="openai: name of the model")
        a("--base-url", help="openai: the endpoint (default: OpenAI's, or OPENAI_BASE_URL)")
        a("--price-in", type=number(float, 0), default=0., help="openai: dollars a million tokens of questions")
        a("--price-out", type=number(float, 0), default=0., help="openai: dollars a million tokens of answers")
        a("--overlap", type=ratio, default=.5, help="most of the literal content words that may be said again")
    add["rave"]("--ditto", type=Path, nargs="+", required=True, help="files of Ditto-1M's training_metadata")
    add["rave"]("--videos", type=Path, required=True, help="folder to which their paths are relative")
    a = add["icvg"]
    a("--movies", type=Path, required=True, help="folder of the films")
    a("--seconds", type=number(float, .1), default=5., help="longest clip that is used of a shot")
    a("--least", type=count, default=17, help="fewest frames of a clip")
    a("--max-shots", type=count, default=4000, help="a movie with more of them is bad")
    a("--window", type=count, default=16, help="consecutive shots among which clusters are sought")
    a("--threshold", type=ratio, help="cosine that links two clips (default: the valley of those within windows)")
    a("--score", type=number(float, 0), nargs=2, default=(1., 1.), metavar=("SIMILARITY", "DIVERSITY"),
      help="weights of the captions' cosine and of 1 - the pictures'")
    a("--per-cluster", type=count, default=3, help="most pairs of a cluster")
    a("--bounds", type=ratio, nargs=2, metavar=("LOW", "HIGH"), help="of a pair's cosine (default: threshold, .995)")
    a = add["bench"]
    a("--from", dest="source", type=Path, nargs="+", required=True, help="folders of rave and icvg")
    a("--n", type=count, default=1000, help="test triplets")
    a("--share", type=ratio, default=.2, help="most of a type's triplets that may go to the test")
    a("--same", type=ratio, default=.98, help="videos of such a cosine are the same")
    a("--decisions", type=Path, help="what verify.html downloaded")
    add["merge"]("--from", dest="source", type=Path, nargs="+", required=True, help="folders of the shards")
    a = add["demo"]
    a("--movies", type=count, default=8, help="how many films")
    a("--steps", type=count, default=4, help="of training at the end")
    a("--weights", help="model folder to train from (default: weights/tiny)")
    args = parser.parse_args(argv)
    for folder in [getattr(args, name, None) for name in ("videos",)] + (args.source if "source" in args else []):
        if folder is not None and not folder.is_dir():
            raise BadInput(f"{folder}: there is no such folder; correct the path")
    if "examples" in args:
        args.examples = read_examples(args.examples)
    if args.command == "icvg":
        movie_names(args.movies)
    return args


def main(argv=None, ask: Callable | None = None) -> None:
    args = parse(argv)
    match args.command:
        case "rave" | "icvg":
            ask = ask or make_ask(args)
            try:
                rave(args, ask) if args.command == "rave" else icvg(args, ask, embedder(args.siglip))
            finally:
                getattr(ask, "close", lambda: None)()
        case "bench": bench(args, embedder(args.siglip))
        case "merge": merge(args.source, args.out)
        case "demo": demo(args)


if __name__ == "__main__":
    run_script(main, "stopped; the same command goes on from here")
