"""Films, Ditto-like edits and a stand-in for the VLM, all from the tiny world; for `python curate.py demo` and tests.

Nothing here is a model: `TinyWorldKnows` recognises a shot by its colours and answers with what the tiny world knows of
its scene. With it the demo shows what the stages do, and not how well a VLM does it.

Axis letters: F frames, H W pixels. A clip is (F, 3, H, W), float32 in [-1, 1].
"""

import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import torch
from PIL import Image

from tiny import scene
from tiny import world
from common.files import atomic_write
from common.video import to_bytes, write_video
from tiny.scene import Scene

FPS, SCALE, FADE = 24, 4, 6                              # of the films; frames that a fade takes on either side


def shot(s: Scene, segments: int = 3) -> torch.Tensor:
    """A scene that goes on for some segments of nine frames; what was done in the first is over then. (F, 3, H, W)"""
    clips = []
    for _ in range(segments):
        clips.append(scene.render(s))
        after, (_, _, x, zoom) = s.later(), s.camera
        still = tuple(replace(t, act="", y=t.floor if t.act == "fall" else t.y) for t in after.things)
        s = replace(after, camera=(x, zoom, x, zoom), things=still)
    return torch.cat(clips)


def join(shots: list[torch.Tensor], fades: set[int] = frozenset()) -> tuple[torch.Tensor, list[int]]:
    """A film of the shots, and its cuts, the first frame of each but the first. Shot k in `fades` begins in black."""
    shots, dark = [x.clone() for x in shots], torch.linspace(1, 0, FADE).view(-1, 1, 1, 1)
    for k in fades:
        shots[k - 1][-FADE:] = (shots[k - 1][-FADE:] + 1) * dark - 1
        shots[k][:FADE] = (shots[k][:FADE] + 1) * dark.flip(0) - 1
    return torch.cat(shots), np.cumsum([len(x) for x in shots])[:-1].tolist()


def look(frames: list[np.ndarray]) -> np.ndarray:
    """What a shot is recognised by: 8 x 8 colours, the mean over frames (H, W, 3) uint8. (192,)"""
    small = [Image.fromarray(frame).resize((8, 8), Image.Resampling.BOX) for frame in frames]
    return np.mean([np.asarray(x, float).ravel() for x in small], 0)


class TinyWorldKnows:
    """A stand-in for a VLM: ask(system, parts, schema) -> dict. Knows the clips that it was told of, and nothing else.

    One in four instructions it first states literally, so that the check has something to send back.
    """

    def __init__(self):
        self.looks, self.known = [], []

    def learn(self, clip: torch.Tensor, triplet: world.Triplet, side: str) -> None:
        self.looks.append(look(list(to_bytes(clip).permute(0, 2, 3, 1).numpy())))
        self.known.append((triplet, side))

    def __call__(self, system: str, parts: list, schema: dict) -> dict:
        frames = [part for part in parts if isinstance(part, np.ndarray)]
        half = len(frames) // (1 if "caption" in schema["properties"] else 2)
        sides = [frames[k:k + half] for k in range(0, len(frames), half)]
        seen = [self.known[np.square(np.array(self.looks) - look(side)).sum(1).argmin()] for side in sides]
        (triplet, side), last = seen[0], seen[-1]
        if len(seen) == 1:
            return {"caption": scene.caption(triplet.before if side == "source" else triplet.after)}
        if [s for _, s in seen] != ["source", "target"] or last[0] is not triplet:
            return {"type": "", "rationale": "", "instruction": "no rule leads from the one to the other"}
        sent_back = any(isinstance(part, str) and part.startswith("Your answer was") for part in parts)
        literally = len(triplet.literal) % 4 == 0 and not sent_back
        return {"type": triplet.type, "rationale": triplet.thought,
                "instruction": triplet.literal if literally else triplet.instruction}


def make_movies(folder: Path, movies: int, triplets: int, vlm: TinyWorldKnows) -> dict[str, list[int]]:
    """Write films: two places in turn, as a film cuts from one to the other and back, then two others; {name: cuts}.

    Of each ICVG triplet the source is one shot and the target another; every second change of places is a fade.
    """
    cuts, index = {}, 0
    for number in range(movies):
        chosen, places = [], set()
        while len(chosen) < triplets:                    # that do not look alike within a film
            t = world.make_triplet(index, "icvg", "train")
            index += 1
            if (t.before.place, t.before.time) not in places:
                places.add((t.before.place, t.before.time))
                chosen.append(t)
        order = [(t, side) for k in range(0, triplets, 2) for side in ("source", "target") for t in chosen[k:k + 2]]
        shots = [shot(t.before if side == "source" else t.after) for t, side in order]
        for (t, side), clip in zip(order, shots):
            vlm.learn(clip, t, side)
        film, cuts[f"movie{number}.mp4"] = join(shots, set(range(4, len(shots), 8)))
        write_video(folder / f"movie{number}.mp4", film, FPS, SCALE)
    return cuts


def make_ditto(folder: Path, n: int, vlm: TinyWorldKnows) -> Path:
    """Write `n` RAVE triplets as Ditto-1M has them, each tenth twice in near the same words; returns the metadata."""
    records = []
    for k in range(n):
        t = world.make_triplet(k, "rave", "train")
        paths = {}
        for side in ("source", "target"):
            paths[side] = f"{side}/{k}.mp4"
            write_video(folder / paths[side], getattr(t, side), FPS, SCALE)
            vlm.learn(getattr(t, side), t, side)
        texts = [t.literal, f"Now {t.literal}!"] if k % 10 == 0 else [t.literal]
        records += [{"source_path": paths["source"], "instruction": text, "edited_path": paths["target"]}
                    for text in texts]
    atomic_write(folder / "training_metadata" / "tiny.json", json.dumps(records, indent=1))
    return folder / "training_metadata" / "tiny.json"
