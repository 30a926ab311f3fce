"""Is the released directory complete, and does it fit? Reads headers, no tensor, in seconds.

    python -m realsize.check --weights revise_ckpt/

Prints a table part | found | expected | memory | fits, what is missing or does not fit, and how
large the whole is in memory. Exit code 2 where `python -m realsize.convert` would stop.
"""

import time
from pathlib import Path

import torch

from common.files import BadInput, Parser, markdown, run_script
from model import PARTS, UnifiedModel
from presets import PRESETS
from realsize.release import (
    Release,
    fitted_preset,
    part_problems,
    read_release,
    tokenizer_problems,
    unconditional_problems,
    unplaced_problems,
)

SHOWN_PROBLEMS = 5                              # of each part; `convert` lists them all
GB = 1e9


def describe(tensors: list[torch.Tensor]) -> str:
    """How many tensors, with how many numbers, of which dtypes."""
    if not tensors:
        return "nothing"
    numbers = sum(tensor.numel() for tensor in tensors)
    dtypes = sorted({str(tensor.dtype).removeprefix("torch.") for tensor in tensors})
    return f"{len(tensors)} tensors, {numbers:,d}, {' and '.join(dtypes)}"


def memory(model: UnifiedModel, part: str) -> int:
    """Bytes of a part as it is loaded: frozen parts in bfloat16 where the preset says so."""
    numbers = sum(p.numel() for p in model.get_submodule(part).parameters())
    return numbers * model.dtype_of(part).itemsize


def part_row(release: Release, model: UnifiedModel, part: str, problems: list[str]) -> list[str]:
    expected = model.get_submodule(part).state_dict()
    found = [value for key, value in release.parts.get(part, {}).items() if key in expected]
    return [
        part,
        "not read" if part in release.unreadable else describe(found),
        f"{len(expected)} tensors, {sum(value.numel() for value in expected.values()):,d}",
        f"{memory(model, part) / GB:.2f} GB",
        "NO" if problems else "yes"]


def unconditional_row(release: Release, problems: list[str]) -> list[str]:
    shapes = [f"{key} {tuple(value.shape)}" for key, value in release.unconditional.items()]
    found = ", ".join(shapes) or "not read"
    expected = "vlm_last_hidden_states, text_emb"
    return ["unconditional", found, expected, "", "NO" if problems else "yes"]


def tokenizer_row(release: Release, problems: list[str]) -> list[str]:
    sizes = [f"{name} {len(tokenizer):,d}" for name, tokenizer in release.tokenizers.items()]
    found = ", ".join(sizes) or "not read"
    expected = "vlm, text; [GEN_VID], Yes and No one token each"
    return ["tokenizers", found, expected, "", "NO" if problems else "yes"]


def report(release: Release, model: UnifiedModel) -> tuple[str, list[str]]:
    """The table, and every problem."""
    rows, problems = [["part", "found", "expected", "memory", "fits"]], []
    for part in PARTS:
        of_part = part_problems(release, model, part)
        rows.append(part_row(release, model, part, of_part))
        problems.append(of_part)
    problems.append(unplaced_problems(release))
    problems.append(unconditional_problems(release, model.preset))
    rows.append(unconditional_row(release, problems[-1]))
    problems.append(tokenizer_problems(release))
    rows.append(tokenizer_row(release, problems[-1]))
    lines = []
    for of_part in problems:
        lines += of_part[:SHOWN_PROBLEMS]
        if len(of_part) > SHOWN_PROBLEMS:
            lines.append(f"... and {len(of_part) - SHOWN_PROBLEMS} more like these")
    return markdown(rows), lines


def main(argv=None) -> None:
    parser = Parser(prog="realsize.check",
                    description="Is the released directory complete, and does it fit?")
    parser.add_argument("--weights", type=Path, required=True,
                        help="the released directory, revise_ckpt/")
    parser.add_argument("--preset", choices=PRESETS, default="wan1.3b", help="its size")
    args = parser.parse_args(argv)
    if (args.weights / "model.json").is_file():
        raise BadInput(f"--weights {args.weights}: is a model folder, converted already; "
                       f"give the released directory")
    if not args.weights.is_dir():
        raise BadInput(f"--weights {args.weights}: there is no such directory")
    began = time.perf_counter()
    release = read_release(args.weights, device="meta")
    with torch.device("meta"):
        model = UnifiedModel(fitted_preset(release, PRESETS[args.preset]))
    table, problems = report(release, model)
    print(table)
    for note in release.notes:
        print(note)
    total = sum(memory(model, part) for part in PARTS)
    print(f"in memory: {total / GB:.1f} GB in all; read in {time.perf_counter() - began:.1f} s")
    for problem in problems:
        print(f"does not fit: {problem}")
    if problems:
        raise BadInput(f"{args.weights} does not fit preset {args.preset!r}, see above; "
                       f"convert would stop")


if __name__ == "__main__":
    run_script(main)
