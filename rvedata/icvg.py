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
from contextlib import closing
from itertools import groupby, islice
from pathlib import Path
from typing import Callable, Iterator

from safetensors.numpy import save

from common.files import (BadInput, Parser, atomic_write, between, check_writable, positive,
                          remove_leftovers, run_script)
from rvedata import pages
from rvedata.clusters import find_clusters
from rvedata.embed import embed_clips, load_embedder
from rvedata.film import read_frames, write_clips
from rvedata.flags import add_siglip_flag, add_vlm_flags, add_work_flags, ratio
from rvedata.instructions import CAPTION, read_examples, text_schema, write_instruction
from rvedata.manifest import VIDEO_FIELDS, write_triplets
from rvedata.pairs import select_pairs
from rvedata.shots import (clips_of, find_all_shots, movie_names, raise_if_error, read_movies,
                           with_frames)
from rvedata.stages import (Rejected, finished_ids, my_shard, read_accepted, read_grouped,
                            run_stage, short_hash)
from rvedata.vlm import EndpointVLM

CHUNK = 64                                               # shots whose embeddings share a file


# ------------------------------------------------------------------------- captions and embeddings

def caption_shots(args: Namespace, ask: Callable) -> None:
    """captions.jsonl: a line a shot, {id, movie, index, clip, fps, caption}."""
    path = args.out / "captions.jsonl"

    def work(item: dict) -> dict:
        frames = raise_if_error(item["frames"])
        answer = ask(" ".join(CAPTION.split()), frames, text_schema(caption={}))
        caption = answer.get("caption")
        if not isinstance(caption, str) or not caption.strip():
            raise Rejected("no caption came back")
        return {**item["clip"], "caption": caption.strip()}

    def items() -> Iterator[dict]:
        finished = finished_ids(path)
        for movie in read_movies(args):
            clips = clips_of(movie, args.seconds, args.least)
            wanted = [clip for clip in clips if clip["id"] not in finished]
            for clip, frames in with_frames(args, wanted):
                yield {"id": clip["id"], "clip": clip, "frames": frames}

    total = sum(1 for movie in read_movies(args) for _ in clips_of(movie, args.seconds, args.least))
    run_stage(path, items(), work, args.skip_bad, args.workers, total)


def embed_shots(args: Namespace, embed: tuple[Callable, Callable]) -> None:
    """embeddings.jsonl: a line a chunk of at most CHUNK shots, {id, movie, chunk, members}.

    embeddings/<id>.safetensors: its image (N, D) and text (N, D').
    """
    embed_images, embed_texts = embed
    path = args.out / "embeddings.jsonl"

    def work(item: dict) -> dict:
        chunk = item["content"]
        frames = [raise_if_error(some) for some in item["frames"]]
        vectors = {"image": embed_clips(embed_images, frames),
                   "text": embed_texts([clip["caption"] for clip in chunk["members"]])}
        atomic_write(args.out / "embeddings" / f"{item['id']}.safetensors", save(vectors))
        return chunk

    def items() -> Iterator[dict]:
        finished = finished_ids(path)
        for chunks in chunks_of_movies(args):
            wanted = [chunk for chunk in chunks if chunk["id"] not in finished]
            clips = [clip for chunk in wanted for clip in chunk["members"]]
            reader = with_frames(args, clips)
            for chunk in wanted:
                frames = [some for _, some in islice(reader, len(chunk["members"]))]
                yield {"id": chunk["id"], "content": chunk, "frames": frames}

    total = sum(len(chunks) for chunks in chunks_of_movies(args))
    run_stage(path, items(), work, args.skip_bad, total=total)


def chunks_of_movies(args: Namespace) -> Iterator[list[dict]]:
    """Of each movie of this shard its captioned shots in chunks {id, movie, chunk, members}."""
    for movie, clips in read_grouped(args.out / "captions.jsonl", lambda clip: clip["movie"]):
        if not my_shard(movie, args.shard):
            continue
        chunks = []
        for number, members in groupby(clips, key=lambda clip: clip["index"] // CHUNK):
            members = list(members)
            chunks.append({"id": short_hash(members), "movie": movie, "chunk": number,
                           "members": members})
        yield chunks


# ------------------------------------------------------------------------ instructions and triplets

def instruct_pairs(args: Namespace, ask: Callable) -> None:
    """instructions.jsonl: a line a pair, as in the manifest; clips/: its videos.

    The VLM sees frames of the clips as they are written.
    """
    path = args.out / "instructions.jsonl"

    def work(item: dict) -> dict:
        source, target = item["source"], item["target"]
        if item["error"]:
            raise item["error"]
        earlier, later = [read_frames(args.out / clip_path(clip)) for clip in (source, target)]
        parts = ["Earlier:", *earlier, source["caption"], "Later:", *later, target["caption"]]
        answer = write_instruction(ask, parts, target["caption"], "icvg", args.examples)
        return {"subset": "icvg", **item["shown"], **answer,
                "movie": source["movie"], "shots": [source["index"], target["index"]],
                "score": item["score"]}

    def items() -> Iterator[dict]:
        finished = finished_ids(path)
        for pairs in pairs_of_movies(args):
            wanted = [pair for pair in pairs if pair["id"] not in finished]
            error = cut_out(args, wanted)
            for pair in wanted:
                paths = [clip_path(pair[name]) for name in ("source", "target")]
                yield {**pair, "error": error, "shown": dict(zip(VIDEO_FIELDS, paths))}

    total = sum(len(pairs) for pairs in pairs_of_movies(args))
    run_stage(path, items(), work, args.skip_bad, args.workers, total)


def pairs_of_movies(args: Namespace) -> Iterator[list[dict]]:
    """Of each movie its pairs that belong to this shard."""
    for _, some in read_grouped(args.out / "pairs.jsonl", lambda pair: pair["source"]["movie"]):
        yield [pair for pair in some if my_shard(pair["id"], args.shard)]


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
        write_triplets(args.out, wanted_instructions(args.out))
    finally:                                             # what went wrong can be seen there, too
        pages.report(args.out, args.movies)


def wanted_instructions(out: Path) -> list[dict]:
    """The instructions of the pairs that there are now; others may remain of earlier runs."""
    wanted = {pair["id"] for pair in read_accepted(out / "pairs.jsonl")}
    return [record for record in read_accepted(out / "instructions.jsonl")
            if record["id"] in wanted]


def parse(argv: list[str] | None = None) -> Namespace:
    parser = Parser(description=__doc__.split("\n\n")[0])
    add = parser.add_argument
    add("--movies", type=Path, required=True, help="folder of the films")
    add("--out", type=Path, default=Path("out/icvg"), help="folder of the results")
    add("--seconds", type=between(.1, 3600), default=5., help="longest clip of a shot")
    add("--least", type=positive, default=17, help="fewest frames of a clip")
    add("--window", type=positive, default=16,
        help="consecutive shots among which clusters are sought")
    add("--threshold", type=ratio,
        help="cosine that links two clips; the valley of those within windows if not given")
    add("--score", type=between(0, math.inf), nargs=2, default=(1., 1.),
        metavar=("SIMILARITY", "DIVERSITY"),
        help="weights of the captions' cosine and of 1 - the pictures'")
    add("--per-cluster", type=positive, default=3, help="most pairs of a cluster")
    add("--bounds", type=ratio, nargs=2, metavar=("LOW", "HIGH"),
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
    vlm = captioner = EndpointVLM(args.out / "replies.jsonl", args.model, args.base_url)
    if args.caption_model:
        captioner = EndpointVLM(args.out / "replies-captions.jsonl", args.caption_model,
                                args.caption_base_url or args.base_url)
    with closing(vlm), closing(captioner):
        curate(args, vlm, captioner, embed)


if __name__ == "__main__":
    run_script(main)
