"""Which clips are in which film? The first stage of icvg.py, and what the others read of the films.

A movie is a line of shots.jsonl, {id, fps, frames, shots: [[first, past the last], ...]}; a clip is
{id, movie, index of its shot, clip: [first, past the last], fps}.
"""

import re
from argparse import Namespace
from pathlib import Path
from typing import Iterator

from common.files import BadInput
from common.video import is_hidden
from rvedata.film import find_shots, read_clips
from rvedata.stages import my_shard, read_accepted, run_stage

MOVIES = (".mp4", ".mkv", ".mov", ".avi", ".webm", ".m4v", ".mpg", ".mpeg", ".ts")


def movie_names(folder: Path) -> set[str]:
    """Films of a folder and its subfolders, as paths relative to it. Raises BadInput if none.

    Hidden files, and clips that an earlier run has cut out of films, are none.
    """
    names = set()
    for path in folder.rglob("*"):
        name = path.relative_to(folder)
        is_film = path.suffix.lower() in MOVIES and path.is_file()
        if is_film and not any(map(is_hidden, name.parts)) and not is_cut_out(path):
            names.add(name.as_posix())
    if not names:
        raise BadInput(f"--movies {folder}: holds no film ({', '.join(MOVIES)}); "
                       f"give the folder of your films")
    return names


def is_cut_out(path: Path) -> bool:
    """Whether a film is one of our clips (see icvg.clip_path)."""
    return path.parent.name == "clips" and bool(re.fullmatch("[0-9a-f]{16}", path.stem))


def find_all_shots(args: Namespace) -> None:
    """shots.jsonl: a line a movie, {id, fps, frames, shots: [[first, past the last], ...]}."""
    def work(item: dict) -> dict:
        name = item["id"]
        shots, frames, fps = find_shots(args.movies / name)
        if len(shots) < 2:
            raise BadInput(f"{name}: is a movie without cuts, of which no pair can be made; "
                           f"take it away")
        if len(shots) > args.max_shots:
            raise BadInput(f"{name}: has {len(shots)} shots, more than --max-shots "
                           f"{args.max_shots}: does it flicker? raise the flag, or take it away")
        return {"fps": fps, "frames": frames, "shots": shots}

    items = [{"id": name} for name in sorted(args.films) if my_shard(name, args.shard)]
    path = args.out / "shots.jsonl"
    run_stage(path, items, work, args.skip_bad, total=len(items))
    gone = {movie["id"] for movie in read_accepted(path)} - args.films
    if gone:
        some = ", ".join(sorted(gone)[:9])
        print(f"{len(gone)} no longer in {args.movies}, and left out: {some}")


def read_movies(args: Namespace) -> Iterator[dict]:
    """The lines of shots.jsonl that belong to this shard, of films that are still there."""
    for movie in read_accepted(args.out / "shots.jsonl", fps=float, shots=list):
        if movie["id"] in args.films and my_shard(movie["id"], args.shard):
            yield movie


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


def with_frames(args: Namespace, clips: list[dict]) -> Iterator[tuple[dict, list | Exception]]:
    """(clip, its frames) of clips of one movie, in temporal order, in one pass through the movie.

    Where the movie cannot be read: the error, for the item that needs the frames to raise.
    """
    done = 0
    try:
        if clips:
            movie = args.movies / clips[0]["movie"]
            for frames in read_clips(movie, [clip["clip"] for clip in clips]):
                yield clips[done], frames
                done += 1
    except (BadInput, OSError) as error:
        for clip in clips[done:]:
            yield clip, error


def raise_if_error(frames: list | Exception) -> list:
    """The frames, unless they are the error that reading them ended with."""
    if isinstance(frames, Exception):
        raise frames
    return frames
