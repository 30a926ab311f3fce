"""Which clips are in which film? The first stage of icvg.py, and what the others read of the films.

A movie is a line of shots.jsonl, {id, fps, frames, shots: [[first, past the last], ...]}; a clip is
{id, movie, index of its shot, clip: [first, past the last], fps}.
"""

from argparse import Namespace
from pathlib import Path
from typing import Iterator

from common.files import BadInput
from common.video import is_hidden
from rvedata.film import find_shots, read_clips
from rvedata.stages import my_shard, read_accepted, run_stage

MOVIES = (".mp4", ".mkv", ".mov", ".avi", ".webm", ".m4v", ".mpg", ".mpeg", ".ts")


def movie_names(folder: Path) -> list[str]:
    """Films of a folder and its subfolders, as paths relative to it. Raises BadInput if none."""
    names = []
    for path in folder.rglob("*"):
        is_film = path.suffix.lower() in MOVIES and path.is_file()
        if is_film and not is_hidden(path.name):
            names.append(path.relative_to(folder).as_posix())
    if not names:
        raise BadInput(f"--movies {folder}: holds no film ({', '.join(MOVIES)}); "
                       f"give the folder of your films")
    return sorted(names)


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


def read_movies(args: Namespace) -> Iterator[dict]:
    """The lines of shots.jsonl that belong to this shard."""
    for movie in read_accepted(args.out / "shots.jsonl"):
        if my_shard(movie["id"], args.shard):
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
