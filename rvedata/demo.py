"""All of it on films of the tiny world: no network, two minutes.

    python -m rvedata.demo --out demo/

Makes films and Ditto-like edits, runs rave, icvg and split on them, and trains a few steps on what
comes out. VLM and SigLIP are stand-ins (TinyWorldVLM below, embed.embed_pixels): the demo shows
what the stages do, not how well a VLM does it.

Axis letters: F frames, H W pixels. A clip is (F, 3, H, W), float32 in [-1, 1].
"""

import json
import subprocess
import sys
from dataclasses import replace
from itertools import count
from pathlib import Path

import numpy as np
import torch

from common.files import BadInput, Parser, atomic_write, check_writable, positive, run_script
from common.video import to_bytes, write_video
from rvedata import icvg, rave, split
from rvedata.embed import embed_pixels
from tiny import draw, scene, world
from tiny.scene import Scene

TRAIN = Path(__file__).parents[1] / "train.py"
FPS, SCALE, TRIPLETS_A_MOVIE = 24, 4, 8                  # of the films


# ------------------------------------------------------------------------------ its films, its VLM

def film_shot(start: Scene) -> torch.Tensor:
    """A scene that goes on for three segments of nine frames. (F, 3, H, W)

    What is done in the first segment is over in the others.
    """
    clips = []
    for _ in range(3):
        clips.append(draw.render(start))
        after = start.later()
        _, _, x, zoom = start.camera
        still = [replace(thing, act="", y=thing.floor if thing.act == "fall" else thing.y)
                 for thing in after.things]
        start = replace(after, camera=(x, zoom, x, zoom), things=tuple(still))
    return torch.cat(clips)


class TinyWorldVLM:
    """A stand-in for a VLM: ask(system, parts, schema) -> dict. No model.

    It recognises the shots that it was shown by their colours, and answers with what the tiny world
    knows of their scene. One in four instructions it first states literally, so that the check has
    something to send back.
    """

    def __init__(self):
        self.signatures, self.known = [], []

    def learn(self, clip: torch.Tensor, triplet: world.Triplet, side: str) -> None:
        """Remember a clip (F, 3, H, W) as the "source" or the "target" of a triplet."""
        frames = to_bytes(clip).permute(0, 2, 3, 1).numpy()
        self.signatures.append(embed_pixels(frames).mean(0))
        self.known.append((triplet, side))

    def recognise(self, frames: list[np.ndarray]) -> tuple[world.Triplet, str]:
        """The triplet and side of the known clip whose colours are nearest."""
        distance = np.square(np.array(self.signatures) - embed_pixels(frames).mean(0)).sum(1)
        return self.known[distance.argmin()]

    def __call__(self, system: str, parts: list, schema: dict) -> dict:
        frames = [part for part in parts if isinstance(part, np.ndarray)]
        if "caption" in schema["properties"]:
            triplet, side = self.recognise(frames)
            shown = triplet.before if side == "source" else triplet.after
            return {"caption": scene.caption(shown)}
        texts = [part for part in parts if isinstance(part, str)]
        half = len(frames) // 2
        (triplet, first), (other, second) = map(self.recognise, (frames[:half], frames[half:]))
        if (first, second) != ("source", "target") or other is not triplet:
            nothing = "no rule leads from the one to the other"
            return {"type": "", "rationale": "", "instruction": nothing}
        if "fits" in schema["properties"]:
            says = texts[-1].partition(": ")[2]
            return {"states_operation": "yes" if says == triplet.literal else "no",
                    "fits": "yes" if says in (triplet.literal, triplet.instruction) else "no",
                    "reason": "the tiny world says so"}
        sent_back = any(text.startswith("Your answer was") for text in texts)
        literally = len(triplet.literal) % 4 == 0 and not sent_back
        return {"type": triplet.type, "rationale": triplet.thought,
                "instruction": triplet.literal if literally else triplet.instruction}


def make_movies(folder: Path, movies: int, triplets: int, vlm: TinyWorldVLM) -> None:
    """Write films of ICVG triplets, the source one shot and the target another.

    A film cuts between two places and back, then goes on to two others.
    """
    index = count()
    for number in range(movies):
        chosen = {}                                      # {place: triplet}, so that none look alike
        while len(chosen) < triplets:
            triplet = world.make_triplet(next(index), "icvg", "train")
            chosen.setdefault((triplet.before.place, triplet.before.time), triplet)
        order = []
        chosen = list(chosen.values())
        for k in range(0, triplets, 2):
            for side in ("source", "target"):
                order += [(triplet, side) for triplet in chosen[k:k + 2]]
        shots = []
        for triplet, side in order:
            shots.append(film_shot(triplet.before if side == "source" else triplet.after))
            vlm.learn(shots[-1], triplet, side)
        write_video(folder / f"movie{number}.mp4", torch.cat(shots), FPS, SCALE)


def make_ditto(folder: Path, n: int, vlm: TinyWorldVLM) -> Path:
    """Write `n` RAVE triplets as Ditto-1M has them; returns the metadata file."""
    records = []
    for k in range(n):
        triplet = world.make_triplet(k, "rave", "train")
        for side in ("source", "target"):
            clip = getattr(triplet, side)
            write_video(folder / f"{side}/{k}.mp4", clip, FPS, SCALE)
            vlm.learn(clip, triplet, side)
        records.append({"source_path": f"source/{k}.mp4", "instruction": triplet.literal,
                        "edited_path": f"target/{k}.mp4"})
    metadata = folder / "training_metadata" / "tiny.json"
    atomic_write(metadata, json.dumps(records, indent=1))
    return metadata


# -------------------------------------------------------------------------------------- the command

def main(argv: list[str] | None = None) -> None:
    """Make the films, run all commands on them, train a few steps as a user would."""
    parser = Parser(description=__doc__.split("\n\n")[0])
    add = parser.add_argument
    add("--out", type=Path, default=Path("out/demo"), help="folder of the results")
    add("--movies", type=positive, default=8, help="how many films")
    add("--steps", type=positive, default=4, help="of training at the end")
    args = parser.parse_args(argv)
    check_writable(args.out / "a file")
    vlm, films, out = TinyWorldVLM(), args.out / "films", str(args.out)
    print(f"films and edits of the tiny world into {films}")
    make_movies(films / "movies", args.movies, TRIPLETS_A_MOVIE, vlm)
    metadata = make_ditto(films / "ditto", TRIPLETS_A_MOVIE * args.movies, vlm)
    rave.main(["--ditto", str(metadata), "--videos", f"{films}/ditto", "--out", f"{out}/rave"], vlm)
    icvg.main(["--movies", f"{films}/movies", "--out", f"{out}/icvg", "--least", "9",
               "--siglip", "pixels"], vlm)
    split.main(["--from", f"{out}/rave", f"{out}/icvg", "--out", f"{out}/bench", "--n", "16",
                "--siglip", "pixels"])
    command = [sys.executable, str(TRAIN), "--data", f"{out}/bench/train.jsonl",
               "--steps", str(args.steps), "--batch", "4", "--eval-items", "0",
               "--out", f"{out}/train", "--cache", f"{out}/cache"]
    code = subprocess.run(command).returncode
    if code:
        raise BadInput(f"the data are made, but train.py ended with code {code} on {out}/bench")
    print(f"look at {out}/icvg/report.html, {out}/rave/report.html and {out}/bench/verify.html")


if __name__ == "__main__":
    run_script(main)
