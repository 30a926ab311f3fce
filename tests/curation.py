"""What the tests of rvedata/ share: films with known cuts and places, a VLM without knowledge."""

import json
import shutil
from importlib import import_module

import numpy as np

from rvedata.embed import embed_pixels
from rvedata.film import read_frames
from rvedata.instructions import EXAMPLES
from rvedata.text import content_words

VERBS = json.loads(EXAMPLES.read_text())["forbidden"]
PLACES = {"A": ("meadow", "day", "grass"), "B": ("city", "night", "stone"),
          "C": ("desert", "dusk", "sand"), "D": ("lake", "day", "ice"),
          "E": ("lake", "night", "water"), "F": ("desert", "day", "sand")}
PLAN = ["ABABAB", "CDCDCD", "EFEFEF"]                    # of movie 0 the shots are in A, B, A, ...
FADES = {4}


def read(path):
    return [json.loads(line) for line in path.read_text().splitlines()]


def knows(system, parts, schema):
    """A VLM that knows nothing: it tells colours, and has an answer that the check lets pass."""
    if "caption" in schema["properties"]:
        return {"caption": f"a place of colour {' '.join(str(int(x) // 64) for x in parts[0].mean((0, 1)))}"}
    if "fits" in schema["properties"]:
        return {"states_operation": "no", "fits": "yes", "reason": "it seems so"}
    captions = [p for p in parts if isinstance(p, str)]
    number = sum(map(ord, "".join(captions)))
    types = schema["properties"]["type"]["enum"]
    return {"type": types[number % len(types)], "rationale": "it is so",
            "instruction": f"hours go by unnoticed {number}"}


def go(command, out, *flags, ask=knows):
    """Run a command of rvedata/ with a stand-in for the embedder and, where it asks, the VLM."""
    module = import_module(f"rvedata.{command}")
    siglip = [] if command == "rave" else ["--siglip", "pixels"]
    argv = ["--out", str(out), *siglip, *map(str, flags)]
    if command == "split":
        module.main(argv)
    else:
        module.main(argv, ask)


def with_shots(icvg, out):
    """`out`, a folder of icvg, in which the shots of the films are found already."""
    out.mkdir(exist_ok=True)
    shutil.copy(icvg / "shots.jsonl", out)
    return out


def answer(instruction, type="Temporal Reasoning", rationale="so it is"):
    return {"type": type, "rationale": rationale, "instruction": instruction}


def no_leak(out, same=.98, near=.8):
    """Recompute, pair by pair, that nothing of the test is in the training set."""
    test, train = read(out / "test.jsonl"), read(out / "train.jsonl")
    group = lambda r: r.get("movie") or r["source_video_path"]
    assert test and train and not {group(r) for r in test} & {group(r) for r in train}
    seen = {}

    def video(path):
        if path not in seen:
            x = embed_pixels(read_frames(out / path)).mean(0)
            seen[path] = (out / path).read_bytes(), x / np.linalg.norm(x)
        return seen[path]
    stop = lambda text: content_words(text)
    for a in test:
        for b in train:
            x, y = stop(a["instruction"]), stop(b["instruction"])
            assert len(x & y) / len(x | y) < near, (a, b)
            for p in ("source_video_path", "target_video_path"):
                for q in ("source_video_path", "target_video_path"):
                    (one, u), (other, v) = video(a[p]), video(b[q])
                    assert one != other and u @ v < same + 2e-3, (a[p], b[q])              # half precision is kept
    return test, train
