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
from presets import PRESETS, Preset
from realsize.release import Release, all_problems, fitted_preset, left_out, read_release

SHOWN = 5                                       # problems of each part, names that are left out
GB = 1e9


def describe(tensors: list[torch.Tensor]) -> str:
    """How many tensors, with how many numbers, of which dtypes."""
    if not tensors:
        return "nothing"
    numbers = sum(tensor.numel() for tensor in tensors)
    dtypes = sorted({str(tensor.dtype).removeprefix("torch.") for tensor in tensors})
    return f"{len(tensors)} tensors, {numbers:,d}, {' and '.join(dtypes)}"


def memory(model: UnifiedModel, part: str) -> int:
    """Bytes of a part as it is loaded: frozen parts in half precision where the preset says so."""
    numbers = sum(p.numel() for p in model.get_submodule(part).parameters())
    return numbers * model.dtype_of(part).itemsize


def used_tensors(release: Release, model: UnifiedModel, part: str) -> list[torch.Tensor]:
    """Those of a part that `convert` writes."""
    expected = model.get_submodule(part).state_dict()
    return [value for key, value in release.parts.get(part, {}).items() if key in expected]


def table(release: Release, model: UnifiedModel, problems: dict[str, list[str]]) -> str:
    rows = [["part", "found", "expected", "memory", "fits"]]
    for part in PARTS:
        expected = model.get_submodule(part).state_dict()
        found = describe(used_tensors(release, model, part))
        rows.append([part, "not read" if part in release.unreadable else found,
                     f"{len(expected)} tensors, {sum(x.numel() for x in expected.values()):,d}",
                     f"{memory(model, part) / GB:.2f} GB"])
    shapes = [f"{key} {tuple(value.shape)}" for key, value in release.unconditional.items()]
    rows.append(["unconditional", ", ".join(shapes) or "not read",
                 "vlm_last_hidden_states, text_emb", ""])
    sizes = [f"{name} {len(tokenizer):,d}" for name, tokenizer in release.tokenizers.items()]
    rows.append(["tokenizers", ", ".join(sizes) or "not read",
                 "vlm, text; [GEN_VID], Yes and No one token each", ""])
    for row in rows[1:]:
        row.append("NO" if problems[row[0]] else "yes")
    return markdown(rows)


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
    print(f"in memory: {sum(memory(model, part) for part in PARTS) / GB:.1f} GB in all")
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
