"""ICVG: pairs of clips of raw films, with an instruction from one to the other (Sec. 3.1.2).

    python -m rvedata.icvg --movies DIR --out icvg/
    python -m rvedata.icvg --movies DIR --out part0/ --shard 0/2      # one machine, 1/2 on another;
    python -m rvedata.merge --from part0/ part1/ --out icvg/          # then the first command again

Stages, each a function and a file of JSON lines that the next one reads:

    shots -> captions -> embeddings -> clusters -> pairs -> filter -> instructions -> triplets

The same command goes on after a stop; to do a stage again, delete its file and those after it. What
costs (shots, captions, embeddings, instructions) is added line by line. What is cheap (clusters,
pairs, filter, triplets) is written anew from all lines there are, sorted, so neither the order of
the work nor the number of machines matters.

Chosen where the paper is silent: of a shot the middle 80 % are used, five seconds at most; see also
clusters.py and pairs.py.
"""

from argparse import Namespace
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Callable, Iterator

from safetensors.numpy import save

from common.files import BadInput, Parser, atomic_write, run_script
from rvedata import pages
from rvedata.clusters import find_clusters
from rvedata.embed import embed_clips, load_embedder
from rvedata.film import find_cuts, read_frames, write_clip
from rvedata.flags import add_siglip_flag, add_vlm_flags, add_work_flags, count, number, ratio
from rvedata.instructions import CAPTION, read_examples, text_schema, write_instruction
from rvedata.manifest import VIDEO_FIELDS, write_triplets
from rvedata.pairs import filter_pairs, select_pairs
from rvedata.stages import (Rejected, my_shard, read_accepted, read_grouped, read_records,
                            run_stage, short_hash)
from rvedata.vlm import make_vlm

CHUNK = 64                                               # shots whose embeddings share a file
MOVIES = (".mp4", ".mkv", ".mov", ".avi", ".webm", ".m4v", ".mpg", ".mpeg", ".ts")


def movie_names(folder: Path) -> list[str]:
    """Films of a folder and its subfolders, as paths relative to it. Raises BadInput if none."""
    films = [path for path in folder.rglob("*") if path.suffix.lower() in MOVIES]
    if not films:
        raise BadInput(f"--movies {folder}: holds no film ({', '.join(MOVIES)}); "
                       f"give the folder of your films")
    return sorted(path.relative_to(folder).as_posix() for path in films)


# ---------------------------------------------------------------------------------- shots and clips

def find_shots(args: Namespace) -> None:
    """shots.jsonl: a line a movie, {id, fps, frames, shots: [[first, past the last], ...]}."""
    def work(item: dict) -> dict:
        name = item["id"]
        cuts, frames, fps = find_cuts(args.movies / name)
        if not cuts:
            raise BadInput(f"{name}: is a movie without cuts, of which no pair can be made; "
                           f"take it away")
        if len(cuts) >= args.max_shots:
            raise BadInput(f"{name}: has {len(cuts) + 1} shots, more than --max-shots "
                           f"{args.max_shots}: does it flicker? raise the flag, or take it away")
        return {"fps": fps, "frames": frames, "shots": list(zip([0, *cuts], [*cuts, frames]))}

    names = [name for name in movie_names(args.movies) if my_shard(name, args.shard)]
    items = [{"id": name} for name in names]
    run_stage(args.out / "shots.jsonl", items, work, args.skip_bad)


def clips_of(movie: dict, seconds: float, least: int) -> Iterator[dict]:
    """Of each shot the middle 80 %, so that no fade shows, and at most `seconds` of them.

    Yields {id, movie, index, clip: [first, past the last], fps}; shots with fewer than `least`
    usable frames have no clip.
    """
    for index, (first, past) in enumerate(movie["shots"]):
        margin = (past - first) // 10
        frames = min(past - first - 2 * margin, round(seconds * movie["fps"]))
        begin = first + (past - first - frames) // 2
        if frames >= least:
            yield {"id": f"{movie['id']}#{index:05d}", "movie": movie["id"], "index": index,
                   "clip": [begin, begin + frames], "fps": movie["fps"]}


# ------------------------------------------------------------------------- captions and embeddings

def caption_shots(args: Namespace, ask: Callable) -> None:
    """captions.jsonl: a line a shot, {id, movie, index, clip, fps, caption}."""
    def work(clip: dict) -> dict:
        frames = read_frames(args.movies / clip["movie"], clip["clip"])
        answer = ask(" ".join(CAPTION.split()), frames, text_schema(caption={}))
        caption = answer.get("caption")
        if not isinstance(caption, str) or not caption.strip():
            raise Rejected("no caption came back")
        return {**clip, "caption": caption.strip()}

    def clips() -> Iterator[dict]:
        for movie in read_accepted(args.out / "shots.jsonl"):
            if my_shard(movie["id"], args.shard):
                yield from clips_of(movie, args.seconds, args.least)

    total = sum(1 for _ in clips())
    run_stage(args.out / "captions.jsonl", clips(), work, args.skip_bad, args.workers, total,
              getattr(ask, "cost", None))


def embed_shots(args: Namespace, embed: tuple[Callable, Callable]) -> None:
    """embeddings.jsonl: a line a chunk of at most CHUNK shots, {id, movie, chunk, members}.

    embeddings/<id>.safetensors: its image (N, D) and text (N, D').
    """
    embed_images, embed_texts = embed

    def work(chunk: dict) -> dict:
        clips = chunk["members"]
        with ThreadPoolExecutor(args.workers) as pool:
            frames = list(pool.map(frames_of, clips))
        vectors = {"image": embed_clips(embed_images, frames),
                   "text": embed_texts([clip["caption"] for clip in clips])}
        atomic_write(args.out / "embeddings" / f"{chunk['id']}.safetensors", save(vectors))
        return chunk

    def frames_of(clip: dict) -> list:
        return read_frames(args.movies / clip["movie"], clip["clip"])

    def chunks() -> Iterator[dict]:
        def key(clip: dict) -> tuple[str, int]:
            return clip["movie"], clip["index"] // CHUNK
        for (movie, chunk), clips in read_grouped(args.out / "captions.jsonl", key):
            if my_shard(movie, args.shard):
                yield {"id": short_hash(clips), "movie": movie, "chunk": chunk, "members": clips}

    run_stage(args.out / "embeddings.jsonl", chunks(), work, args.skip_bad)


# ------------------------------------------------------------------------ instructions and triplets

def instruct_pairs(args: Namespace, ask: Callable) -> None:
    """instructions.jsonl: a line a pair, as in the manifest; clips/: its videos."""
    def work(pair: dict) -> dict:
        source, target = pair["source"], pair["target"]
        parts = ["Earlier:", *frames_of(source), source["caption"],
                 "Later:", *frames_of(target), target["caption"]]
        answer = write_instruction(ask, parts, target["caption"], "icvg", args.examples,
                                   args.overlap)
        paths = [cut_out(clip) for clip in (source, target)]
        return {"subset": "icvg", **dict(zip(VIDEO_FIELDS, paths)), **answer,
                "movie": source["movie"], "shots": [source["index"], target["index"]],
                "score": pair["score"]}

    def frames_of(clip: dict) -> list:
        return read_frames(args.movies / clip["movie"], clip["clip"])

    def cut_out(clip: dict) -> str:
        path = f"clips/{short_hash(clip['id'], clip['clip'])}.mp4"
        if not (args.out / path).exists():
            write_clip(args.movies / clip["movie"], clip["clip"], clip["fps"], args.out / path)
        return path

    def pairs() -> Iterator[dict]:
        for pair in read_accepted(args.out / "filter.jsonl"):
            if my_shard(pair["id"], args.shard):
                yield pair

    total = sum(1 for _ in pairs())
    run_stage(args.out / "instructions.jsonl", pairs(), work, args.skip_bad, args.workers, total,
              getattr(ask, "cost", None))


def curate(args: Namespace, ask: Callable, embed: tuple[Callable, Callable]) -> None:
    """All the stages. A shard ends before the clusters: their threshold needs all movies."""
    find_shots(args)
    caption_shots(args, ask)
    embed_shots(args, embed)
    done = {record["id"] for _, record in read_records(args.out / "shots.jsonl")}
    if set(movie_names(args.movies)) - done:
        index, n = args.shard
        print(f"shard {index}/{n} is done up to the embeddings; merge all shards, and go on there")
        return
    try:
        threshold = find_clusters(args.out, args.window, args.threshold)
        similarity, diversity = args.score
        select_pairs(args.out, similarity, diversity, args.per_cluster)
        low, high = args.bounds or (threshold, .995)
        filter_pairs(args.out, low, high)
        instruct_pairs(args, ask)
        write_triplets(args.out, wanted_instructions(args.out), args.near)
    finally:                                             # what went wrong can be seen there, too
        pages.report(args.out, read_frames, args.movies)


def wanted_instructions(out: Path) -> list[dict]:
    """The instructions of the pairs that pass the filter now; others may remain of earlier runs."""
    wanted = {pair["id"] for pair in read_accepted(out / "filter.jsonl")}
    return [record for record in read_accepted(out / "instructions.jsonl")
            if record["id"] in wanted]


def parse(argv: list[str] | None = None) -> Namespace:
    parser = Parser(prog="python -m rvedata.icvg", description=__doc__.split("\n\n")[0])
    add = parser.add_argument
    add("--movies", type=Path, required=True, help="folder of the films")
    add("--out", type=Path, default=Path("out/icvg"), help="folder of the results")
    add("--seconds", type=number(float, .1), default=5., help="longest clip of a shot")
    add("--least", type=count, default=17, help="fewest frames of a clip")
    add("--max-shots", type=count, default=4000, help="a movie with more of them is bad")
    add("--window", type=count, default=16,
        help="consecutive shots among which clusters are sought")
    add("--threshold", type=ratio,
        help="cosine that links two clips; the valley of those within windows if not given")
    add("--score", type=number(float, 0), nargs=2, default=(1., 1.),
        metavar=("SIMILARITY", "DIVERSITY"),
        help="weights of the captions' cosine and of 1 - the pictures'")
    add("--per-cluster", type=count, default=3, help="most pairs of a cluster")
    add("--bounds", type=ratio, nargs=2, metavar=("LOW", "HIGH"),
        help="of the cosine of a pair's pictures; the threshold and .995 if not given")
    add_work_flags(parser)
    add_siglip_flag(parser)
    add_vlm_flags(parser)
    args = parser.parse_args(argv)
    args.examples = read_examples(args.examples)
    movie_names(args.movies)
    return args


def main(argv: list[str] | None = None, ask: Callable | None = None) -> None:
    args = parse(argv)
    vlm = ask or make_vlm(args)
    try:
        curate(args, vlm, load_embedder(args.siglip))
    finally:
        if ask is None:
            vlm.close()


if __name__ == "__main__":
    run_script(main)
