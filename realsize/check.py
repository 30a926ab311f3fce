"""Is the released directory complete, and does it fit? Reads headers, no tensor, in seconds.

    python -m realsize.check --weights revise_ckpt/

Prints a table part | found | expected | fits, and what is missing or does not fit. Exit code 2
where `python -m realsize.convert` would stop.
"""

import math
from pathlib import Path

import torch

from common.files import BadInput, Parser, markdown, run_script
from model import PARTS, UnifiedModel
from presets import PRESETS, Preset
from realsize.release import (Release, all_problems, expected_shapes, fitted_preset, left_out,
                              read_release)

SHOWN = 5                                       # problems of each part, names that are left out


def describe(tensors: list[torch.Tensor]) -> str:
    """How many tensors, with how many numbers, of which dtypes."""
    if not tensors:
        return "nothing"
    numbers = sum(tensor.numel() for tensor in tensors)
    dtypes = sorted({str(tensor.dtype).removeprefix("torch.") for tensor in tensors})
    return f"{len(tensors)} tensors, {numbers:,d}, {' and '.join(dtypes)}"


def table(release: Release, model: UnifiedModel, problems: dict[str, list[str]]) -> str:
    rows = [["part", "found", "expected", "fits"]]
    for part in (*PARTS, "unconditional"):
        expected = expected_shapes(model, part)
        used = [value for key, value in release.parts[part].items() if key in expected]
        numbers = sum(map(math.prod, expected.values()))
        rows.append([part, "not read" if part in release.unreadable else describe(used),
                     f"{len(expected)} tensors, {numbers:,d}", "NO" if problems[part] else "yes"])
    sizes = [f"{name} {len(tokenizer):,d}" for name, tokenizer in release.tokenizers.items()]
    rows.append(["tokenizers", ", ".join(sizes) or "not read",
                 "vlm, text; [GEN_VID], Yes and No one token each",
                 "NO" if problems["tokenizers"] else "yes"])
    return markdown(rows)


def examine(folder: Path, preset: Preset) -> None:
    """Print the table, what is special, and what does not fit.

    Raises BadInput where `convert` would stop.
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
    for of_part in problems.values():
        for problem in of_part[:SHOWN]:
            print(f"does not fit: {problem}")
        if len(of_part) > SHOWN:
            print(f"does not fit: {len(of_part) - SHOWN} more like these")
    if any(problems.values()):
        raise BadInput(f"{folder} does not fit preset {preset.name!r}, see above; "
                       f"it cannot be converted")


def main(argv=None) -> None:
    parser = Parser(description="Is the released directory complete, and does it fit?")
    parser.add_argument("--weights", type=Path, required=True,
                        help="the released directory, revise_ckpt/")
    examine(parser.parse_args(argv).weights, PRESETS["wan1.3b"])


if __name__ == "__main__":
    run_script(main)
