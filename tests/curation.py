"""What the tests of rvedata/ share: films with known cuts and places, a VLM without knowledge."""

import json
from importlib import import_module

import numpy as np

PLACES = {"A": ("meadow", "day", "grass"), "B": ("city", "night", "stone"),
          "C": ("desert", "dusk", "sand"), "D": ("lake", "day", "ice"),
          "E": ("lake", "night", "water"), "F": ("desert", "day", "sand")}
PLAN = ["ABABAB", "CDCDCD", "EFEFEF"]                    # of movie 0 the shots are in A, B, A, ...


def read(path):
    return [json.loads(line) for line in path.read_text().splitlines()]


def write(path, rows):
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))


def knows(system, parts, schema):
    """A VLM that knows nothing: it tells colours, and has an answer that the check lets pass."""
    if "caption" in schema["properties"]:
        colour = " ".join(str(int(x) // 64) for x in parts[0].mean((0, 1)))
        return {"caption": f"a place of colour {colour}"}
    if "fits" in schema["properties"]:
        return {"states_operation": "no", "fits": "yes", "reason": "it seems so"}
    captions = [p for p in parts if isinstance(p, str)]
    number = sum(map(ord, "".join(captions)))
    types = schema["properties"]["type"]["enum"]
    return {"type": types[number % len(types)], "rationale": "it is so",
            "instruction": f"hours go by unnoticed {number}"}


def go(command, out, *flags, ask=knows):
    """Run a command of rvedata/ with a stand-in for the embedder and, where it asks, the VLM."""
    siglip = [] if command == "rave" else ["--siglip", "pixels"]
    argv = ["--out", str(out), *siglip, *map(str, flags)]
    import_module(f"rvedata.{command}").main(argv, *([] if command == "split" else [ask]))


def turn(*degrees):
    """Unit vectors (N, 2) at these angles."""
    angles = np.radians(degrees)
    return np.stack([np.cos(angles), np.sin(angles)], 1).astype(np.float32)


def answer(instruction, type="Temporal Reasoning", rationale="so it is"):
    return {"type": type, "rationale": rationale, "instruction": instruction}
