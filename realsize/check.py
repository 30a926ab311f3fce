"""Is the released directory complete, and does it fit? Reads headers, no tensor, in seconds.

    python -m realsize.check --weights revise_ckpt/

Prints a table part | found | expected | memory | fits, what is missing or does not fit, and how
large the whole is in memory. Exit code 2 where `python -m realsize.convert` would stop.
"""

import math
import time
from pathlib import Path

import torch

from common.files import BadInput, Parser, markdown, run_script
from model import PARTS, UnifiedModel
from presets import PRESETS, Preset
from realsize.flops import part_bytes
from realsize.release import (Release, all_problems, expected_shapes, fitted_preset, left_out,
                              read_release)

SHOWN = 5                                       # problems of each part, names that are left out
GB = 1e9


def describe(tensors: list[torch.Tensor]) -> str:
    """How many tensors, with how many numbers, of which dtypes."""
    if not tensors:
        return "nothing"
    numbers = sum(tensor.numel() for tensor in tensors)
    dtypes = sorted({str(tensor.dtype).removeprefix("torch.") for tensor in tensors})
    return f"{len(tensors)} tensors, {numbers:,d}, {' and '.join(dtypes)}"


def used_tensors(release: Release, model: UnifiedModel, part: str) -> list[torch.Tensor]:
    """Those of a part that `convert` writes."""
    expected = expected_shapes(model, part)
    return [value for key, value in release.parts[part].items() if key in expected]


def table(release: Release, model: UnifiedModel, problems: dict[str, list[str]]) -> str:
    rows = [["part", "found", "expected", "memory"]]
    for part in (*PARTS, "unconditional"):
        shapes = expected_shapes(model, part).values()
        found = describe(used_tensors(release, model, part))
        memory = f"{part_bytes(model, part) / GB:.2f} GB" if part in PARTS else ""
        rows.append([part, "not read" if part in release.unreadable else found,
                     f"{len(shapes)} tensors, {sum(map(math.prod, shapes)):,d}", memory])
    sizes = [f"{name} {len(tokenizer):,d}" for name, tokenizer in release.tokenizers.items()]
    rows.append(["tokenizers", ", ".join(sizes) or "not read",
                 "vlm, text; [GEN_VID], Yes and No one token each", ""])
    fits = ["NO" if problems[row[0]] else "yes" for row in rows[1:]]
    return markdown([[*row, fit] for row, fit in zip(rows, ["fits", *fits])])


def examine(folder: Path, preset: Preset) -> int:
    """Print the table, what is special, and what does not fit; the bytes that `convert` writes.

    Raises BadInput where it would stop.
    """
    release = read_release(folder, device="meta")
    with torch.device("meta"):
        model = UnifiedModel(fitted_preset(release, preset))
    problems = all_problems(release, model)
    print(table(release, model, problems))
    for note in release.notes:
        print(note)
    names = left_out(release, model)
    if names:
        more = f" and {len(names) - SHOWN} more" if len(names) > SHOWN else ""
        print(f"left out, for the model has no place for it: {', '.join(names[:SHOWN])}{more}")
    print(f"in memory: {sum(part_bytes(model, part) for part in PARTS) / GB:.1f} GB in all")
    for of_part in problems.values():
        for problem in of_part[:SHOWN]:
            print(f"does not fit: {problem}")
        if len(of_part) > SHOWN:
            print(f"does not fit: {len(of_part) - SHOWN} more like these")
    if any(problems.values()):
        raise BadInput(f"{folder} does not fit preset {preset.name!r}, see above; "
                       f"it cannot be converted")
    used = [tensor for part in PARTS for tensor in used_tensors(release, model, part)]
    return sum({id(tensor): tensor.nbytes for tensor in used}.values())


def main(argv=None) -> None:
    parser = Parser(description="Is the released directory complete, and does it fit?")
    parser.add_argument("--weights", type=Path, required=True,
                        help="the released directory, revise_ckpt/")
    parser.add_argument("--preset", choices=PRESETS, default="wan1.3b", help="its size")
    args = parser.parse_args(argv)
    began = time.perf_counter()
    examine(args.weights, PRESETS[args.preset])
    print(f"read in {time.perf_counter() - began:.1f} s")


if __name__ == "__main__":
    run_script(main)
