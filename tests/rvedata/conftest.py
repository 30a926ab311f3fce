"""Fixtures of rvedata/: three films, and what curation makes of films and of Ditto-like edits."""

import dataclasses
import shutil
from types import SimpleNamespace

import numpy as np
import pytest
import torch

from common.video import write_video
from curation import PLACES, PLAN, go
from rvedata import demo
from tiny import world


@pytest.fixture(scope="session")
def movies(tmp_path_factory):
    """A folder of films m0.mp4 to m2.mp4 after PLAN, each shot of 27 frames; icvg's flags."""
    folder, rng = tmp_path_factory.mktemp("movies"), np.random.default_rng(3)
    for number, plan in enumerate(PLAN):
        shots = []
        for letter in plan:                              # the same place, with other things in it
            place, time, ground = PLACES[letter]
            scene = dataclasses.replace(world.random_scene(rng, place), time=time, ground=ground,
                                        light=1, ridge=1.)
            shots.append(demo.film_shot(scene))
        write_video(folder / f"m{number}.mp4", torch.cat(shots), 24, 4)
    return SimpleNamespace(folder=folder, flags=["--movies", folder, "--least", 9])


@pytest.fixture(scope="session")
def icvg(movies, tmp_path_factory):
    out = tmp_path_factory.mktemp("curated") / "icvg"
    go("icvg", out, *movies.flags)
    return out


@pytest.fixture
def begun(icvg, tmp_path):
    """A folder of icvg's in which the shots of the films are found already."""
    shutil.copy(icvg / "shots.jsonl", tmp_path)
    return tmp_path


@pytest.fixture(scope="session")
def rave(tmp_path_factory):
    folder, vlm = tmp_path_factory.mktemp("rave"), demo.TinyWorldVLM()
    metadata = demo.make_ditto(folder / "ditto", 16, vlm)
    go("rave", folder / "rave", "--ditto", metadata, "--videos", folder / "ditto", ask=vlm)
    return SimpleNamespace(out=folder / "rave", folder=folder / "ditto", metadata=metadata, vlm=vlm)
