"""What the tiny parts are pretrained on: triplets of the tiny world, rendered once, on all cores.

Axis letters: F frames, K the three frames that the VLM sees, H W pixels. Clips are kept as uint8.
"""

import math
import os
from concurrent.futures import ProcessPoolExecutor
from multiprocessing import get_context
from typing import Callable, NamedTuple

import numpy as np
import torch
from tqdm import tqdm

from common.distributed import WORLD_SIZE, gather_rows, is_first_rank, my_shard
from common.files import BadInput
from common.intervals import overall
from common.video import from_bytes, to_bytes
from data import NEW_CLIPS
from tiny import draw, scene, world

MISS_SHARE = {"nothing": .10, "half": .08, "wrong object": .26, "wrong effect": .28,
              "over-done": .16, "noise": .06, "flicker": .06}            # mostly the hard ones
VLM_STRIDE = 4                                           # the VLM sees frames 0, 4 and 8


class Answer(NamedTuple):
    """An edit that the VLM learns to judge."""
    frames: np.ndarray                                   # (K, 3, H, W), uint8
    seen: str                                 # what has been done, in plain words; "" where unknown
    grade: float                                     # the soft label: how much of a Yes it deserves


# ----------------------------------------------------------------------- one triplet, for each part

def training_triplet(index: int) -> world.Triplet:
    """Triplet number `index` of the training split, the subsets in turn."""
    return world.make_triplet(index // 2, ("rave", "icvg")[index % 2], "train")


def vae_lesson(index: int) -> np.ndarray:
    """For the VAE, clips alone: source and target, (2, F, 3, H, W)."""
    triplet = world.make_triplet(index, ("rave", "icvg")[index % 2], "train")
    return as_bytes(torch.stack([triplet.source, triplet.target]))


def base_lesson(index: int) -> tuple[np.ndarray, str]:
    """For the base generator: source and target (2, F, 3, H, W), and the edit in plain words.

    Every eighth lesson is plain generation: from an empty clip, by the caption.
    """
    triplet = training_triplet(index)
    clips, text = [triplet.source, triplet.target], triplet.literal
    if index % 8 == 7:
        clips = [torch.zeros_like(triplet.source), triplet.source]
        text = scene.caption(triplet.before)
    return as_bytes(torch.stack(clips)), text


def vlm_lesson(index: int) -> dict:
    """For the VLM: clips, texts, what covers each patch, and three wrong answers, graded."""
    triplet = training_triplet(index)
    rng = np.random.default_rng([7, index])
    before, after = patch_labels(triplet.before), patch_labels(triplet.after)
    misses = []
    shares = [MISS_SHARE[kind] for kind in world.MISSES]
    for kind in rng.choice(world.MISSES, 3, replace=False, p=shares):
        video, seen = world.near_miss(triplet, str(kind), rng)
        misses.append(Answer(as_bytes(video[::VLM_STRIDE]), seen, grade(triplet, video)))
    return {"index": index,
            "instruction": triplet.instruction,
            "literal": triplet.literal,
            "thought": triplet.thought,
            "caption": scene.caption(triplet.before),
            "labels": before,                            # (K, 16, 16): what covers the source,
            "wanted": after,                             # and the target
            "source": as_bytes(triplet.source),          # (F, 3, H, W)
            "target": as_bytes(triplet.target),
            "misses": misses,                            # three answers
            "wrong": as_bytes(video)}                    # the last of them, whole


def patch_labels(shown: scene.Scene) -> np.ndarray:
    """What covers every second pixel of the frames that the VLM sees: (K, 16, 16)."""
    _, labels = draw.paint(shown)
    return labels[::VLM_STRIDE, 1::2, 1::2].astype(np.uint8)


def grade(triplet: world.Triplet, video: torch.Tensor) -> float:
    """The soft label of a verdict: the share of Yes whose margin is the oracle's Overall minus 7.

    It is .95 at 10, .5 at 7 and .12 at 5.
    """
    scores = world.judge(triplet, video)
    value = overall(scores["EA"], scores.get("PC"), scores["GN"], scores["GR"])
    return 1 / (1 + math.exp(7 - value))


def as_bytes(video: torch.Tensor) -> np.ndarray:
    return to_bytes(video).numpy()


def as_video(clip: np.ndarray) -> torch.Tensor:
    """A clip of a lesson, in [-1, 1]."""
    return from_bytes(torch.from_numpy(clip))


def vlm_frames(clip: np.ndarray) -> torch.Tensor:
    """The three frames of a lesson's clip that the VLM sees: (K, 3, H, W) in [-1, 1]."""
    return as_video(clip[::VLM_STRIDE])


# -------------------------------------------------------------------------------------- all of them

def render_lessons(lesson: Callable, n: int) -> list:
    """The lessons 0 to n - 1, made on all cores of all ranks; all ranks get all of them. Raises
    BadInput where they would reach the clips that are kept for fine-tuning."""
    if n > NEW_CLIPS:
        raise BadInput(f"--items {n}: clips from {NEW_CLIPS} on are fine-tuned on; pass fewer")
    numbers = my_shard(range(n))
    workers = max(1, len(os.sched_getaffinity(0)) // WORLD_SIZE)
    spawn = get_context("spawn")
    with ProcessPoolExecutor(workers, spawn, torch.set_num_threads, (1,)) as pool:
        lessons = pool.map(lesson, numbers, chunksize=16)
        bar = tqdm(lessons, total=len(numbers), desc="rendering lessons",
                   disable=not is_first_rank())
        return gather_rows(list(bar))
