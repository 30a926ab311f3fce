"""ICVG: pairs of clips of raw films, with an instruction from one to the other (Sec. 3.1.2).

    python -m rvedata.icvg --movies DIR --out icvg/
    python -m rvedata.icvg --movies DIR --out part0/ --shard 0/2      # one machine, 1/2 on another;
    python -m rvedata.merge --from part0/ part1/ --out icvg/          # then the first command again

Stages, each a function and a file of JSON lines that the next one reads:

    shots -> captions -> embeddings -> clusters -> pairs -> instructions -> triplets

The same command goes on after a stop; to do a stage again, delete its file and those after it. What
costs (shots, captions, embeddings, instructions) is added line by line. What is cheap (clusters,
pairs, triplets) is written anew from all lines there are, sorted, so neither the order of
the work nor the number of machines matters.
"""

import math
from argparse import Namespace
from contextlib import ExitStack, closing
from itertools import islice
from pathlib import Path
from typing import Callable, Iterator

import numpy as np
from safetensors.numpy import save

from common.files import (BadInput, Parser, atomic_write, between, check_writable, positive,
                          remove_leftovers, run_script)
from rvebench.ask import Client
from rvedata import pages
from rvedata.clusters import find_clusters, select_pairs
from rvedata.embed import add_siglip_flag, embed_clips, load_embedder
from rvedata.film import clips_of, find_shots, movie_names, read_clips, read_frames, write_clips
from rvedata.instructions import (CAPTION, add_vlm_flags, asking, read_examples, text_schema,
                                  write_instruction)
from rvedata.stages import (VIDEO_FIELDS, Rejected, add_work_flags, finished_ids, my_shard,
                            read_accepted, read_grouped, run_stage, short_hash, write_triplets)

CHUNK = 64                                               # clips that are embedded at a time


# ----------------------------------------------------------------- shots, captions and embeddings

def find_all_shots(args: Namespace) -> None:
    """shots.jsonl: a line a movie, {id, fps, frames, shots: [[first, past the last], ...]}."""
    def work(item: dict) -> dict:
        shots, frames, fps = find_shots(args.movies / item["id"])
        if len(shots) < 2:
            raise BadInput(f"{item['id']}: is a movie without cuts, of which no pair can be made; "
                           f"take it away")
        return {"fps": fps, "frames": frames, "shots": shots}

    items = [{"id": name} for name in movie_names(args.movies) if my_shard(name, args.shard)]
    run_stage(args.out / "shots.jsonl", items, work, args.skip_bad, total=len(items))


def caption_shots(args: Namespace, ask: Callable) -> None:
    """captions.jsonl: a line a shot, {id, movie, index, clip, fps, caption}."""
    path = args.out / "captions.jsonl"

    def work(item: dict) -> dict:
        answer = ask(" ".join(CAPTION.split()), item["frames"], text_schema(caption={}))
        caption = answer.get("caption")
        if not isinstance(caption, str) or not caption.strip():
            raise Rejected("no caption came back")
        return {**item["clip"], "caption": caption.strip()}

    movies = [movie for movie in read_accepted(args.out / "shots.jsonl")
              if my_shard(movie["id"], args.shard)]
    clips = [list(clips_of(movie, args.seconds, args.least)) for movie in movies]

    def items() -> Iterator[dict]:
        finished = finished_ids(path)
        for some in clips:
            yield from with_frames(args, [clip for clip in some if clip["id"] not in finished])

    run_stage(path, items(), work, args.skip_bad, args.workers, sum(map(len, clips)))


def with_frames(args: Namespace, clips: list[dict]) -> Iterator[dict]:
    """An item of each clip of a movie, {id, clip, frames}, in one pass through the movie.

    Where the movie cannot be read, what is left of them has the error instead of frames.
    """
    left = list(clips)
    try:
        if left:
            movie = args.movies / left[0]["movie"]
            for frames in read_clips(movie, [clip["clip"] for clip in clips]):
                clip = left.pop(0)
                yield {"id": clip["id"], "clip": clip, "frames": frames}
    except (BadInput, OSError) as error:
        for clip in left:
            yield {"id": clip["id"], "error": error}


def embed_shots(args: Namespace, embed: tuple[Callable, Callable]) -> None:
    """embeddings.jsonl: a line a movie, {id, movie, members: its clips that have a caption}.

    embeddings/<id>.safetensors: their image (N, D) and text (N, D').
    """
    embed_images, embed_texts = embed

    def work(item: dict) -> dict:
        clips, image, text = item["members"], [], []
        frames = read_clips(args.movies / item["movie"], [clip["clip"] for clip in clips])
        for first in range(0, len(clips), CHUNK):
            some = clips[first:first + CHUNK]
            image.append(embed_clips(embed_images, list(islice(frames, len(some)))))
            text.append(embed_texts([clip["caption"] for clip in some]))
        vectors = {"image": np.concatenate(image), "text": np.concatenate(text)}
        atomic_write(args.out / "embeddings" / f"{item['id']}.safetensors", save(vectors))
        return {"movie": item["movie"], "members": clips}

    by_movie = read_grouped(args.out / "captions.jsonl", lambda clip: clip["movie"])
    items = [{"id": short_hash(clips), "movie": movie, "members": clips}
             for movie, clips in by_movie if my_shard(movie, args.shard)]
    run_stage(args.out / "embeddings.jsonl", items, work, args.skip_bad, total=len(items))


# ------------------------------------------------------------------------ instructions and triplets

def instruct_pairs(args: Namespace, ask: Callable) -> None:
    """instructions.jsonl: a line a pair, as in the manifest; clips/: its videos.

    The VLM sees frames of the clips as they are written.
    """
    path = args.out / "instructions.jsonl"

    def work(item: dict) -> dict:
        source, target = item["source"], item["target"]
        earlier, later = [read_frames(args.out / clip_path(clip)) for clip in (source, target)]
        parts = ["Earlier:", *earlier, source["caption"], "Later:", *later, target["caption"]]
        answer = write_instruction(ask, parts, target["caption"], "icvg", args.examples)
        return {"subset": "icvg", **item["shown"], **answer,
                "movie": source["movie"], "shots": [source["index"], target["index"]],
                "score": item["score"]}

    by_movie = read_grouped(args.out / "pairs.jsonl", lambda pair: pair["source"]["movie"])
    movies = [pairs for _, pairs in by_movie]

    def items() -> Iterator[dict]:
        finished = finished_ids(path)
        for pairs in movies:
            wanted = [pair for pair in pairs if pair["id"] not in finished]
            error = cut_out(args, wanted)
            for pair in wanted:
                paths = [clip_path(pair[name]) for name in ("source", "target")]
                yield {**pair, "error": error, "shown": dict(zip(VIDEO_FIELDS, paths))}

    run_stage(path, items(), work, args.skip_bad, args.workers, sum(map(len, movies)))


def clip_path(clip: dict) -> str:
    """Where a clip is written, relative to --out."""
    return f"clips/{short_hash(clip['id'], clip['clip'])}.mp4"


def cut_out(args: Namespace, pairs: list[dict]) -> Exception | None:
    """Write the clips of these pairs of one movie, as far as they are not there, in one pass.

    Returns the error if the movie cannot be read.
    """
    clips = [clip for pair in pairs for clip in (pair["source"], pair["target"])]
    missing = [clip for clip in clips if not (args.out / clip_path(clip)).exists()]
    missing.sort(key=lambda clip: clip["clip"])
    if not missing:
        return None
    try:
        write_clips(args.movies / missing[0]["movie"], [clip["clip"] for clip in missing],
                    missing[0]["fps"], [args.out / clip_path(clip) for clip in missing])
    except (BadInput, OSError) as error:
        return error
    return None


def curate(args: Namespace, ask: Callable, caption: Callable,
           embed: tuple[Callable, Callable]) -> None:
    """All the stages. A shard ends before the clusters: their threshold needs all movies."""
    remove_leftovers(args.out)
    find_all_shots(args)
    caption_shots(args, caption)
    embed_shots(args, embed)
    index, n = args.shard
    if n > 1:
        print(f"shard {index}/{n} is done up to the embeddings; merge all shards, and go on there")
        return
    try:
        threshold = find_clusters(args.out, args.window, args.threshold)
        low, high = args.bounds or (threshold, .995)
        similarity, diversity = args.score
        select_pairs(args.out, similarity, diversity, args.per_cluster, low, high)
        instruct_pairs(args, ask)
        wanted = {pair["id"] for pair in read_accepted(args.out / "pairs.jsonl")}
        write_triplets(args.out, (record for record in read_accepted(
            args.out / "instructions.jsonl") if record["id"] in wanted))       # of this run's pairs
    finally:                                             # what went wrong can be seen there, too
        pages.report(args.out, args.movies)


def parse(argv: list[str] | None = None) -> Namespace:
    parser = Parser(description=__doc__.split("\n\n")[0])
    add = parser.add_argument
    add("--movies", type=Path, required=True, help="folder of the films")
    add("--out", type=Path, default=Path("out/icvg"), help="folder of the results")
    add("--seconds", type=between(.1, 3600), default=5., help="longest clip of a shot")
    add("--least", type=positive, default=17, help="fewest frames of a clip")
    add("--window", type=positive, default=16,
        help="consecutive shots among which clusters are sought")
    add("--threshold", type=between(0, 1),
        help="cosine that links two clips; the valley of those within windows if not given")
    add("--score", type=between(0, math.inf), nargs=2, default=(1., 1.),
        metavar=("SIMILARITY", "DIVERSITY"),
        help="weights of the captions' cosine and of 1 - the pictures'")
    add("--per-cluster", type=positive, default=3, help="most pairs of a cluster")
    add("--bounds", type=between(0, 1), nargs=2, metavar=("LOW", "HIGH"),
        help="of the cosine of a pair's pictures; the threshold and .995 if not given")
    add_work_flags(parser)
    add_siglip_flag(parser)
    add_vlm_flags(parser)
    add("--caption-model", help="writes the captions; --model if not given")
    add("--caption-base-url", help="its endpoint; --base-url if not given")
    args = parser.parse_args(argv)
    if args.bounds and args.bounds[0] > args.bounds[1]:
        low, high = args.bounds
        raise BadInput(f"--bounds {low:g} {high:g}: the first is above the second; swap them")
    args.examples = read_examples(args.examples)
    movie_names(args.movies)                             # there are some
    return args


def main(argv: list[str] | None = None, ask: Callable | None = None) -> None:
    args = parse(argv)
    check_writable(args.out / "report.html")
    embed = load_embedder(args.siglip)
    if ask:
        curate(args, ask, ask, embed)
        return
    with ExitStack() as clients:

        def connect(file, model, base_url):
            client = Client(args.out / file, model, base_url)
            return asking(clients.enter_context(closing(client)))
        ask = caption = connect("replies.jsonl", args.model, args.base_url)
        if args.caption_model:
            caption = connect("replies-captions.jsonl", args.caption_model,
                              args.caption_base_url or args.base_url)
        curate(args, ask, caption, embed)


if __name__ == "__main__":
    run_script(main)
