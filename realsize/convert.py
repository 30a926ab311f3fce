"""The authors' released directory (and Omni-Video's, of the same layout) as a model folder of ours.

    python -m realsize.convert --from revise_ckpt/                      # will it fit? in seconds
    python -m realsize.convert --from revise_ckpt/ --to weights/revise/
    python sample.py --preset wan1.3b --weights weights/revise/ --video my.mp4 \
        --instruction "..." --out edited.mp4

It prints a table part | found | expected | fits, from headers alone, and what is missing or does
not fit; where anything is, it stops there with exit code 2. So every key of every file is accounted
for: it becomes a tensor of ours of the same shape, or is named as left out. Values and dtypes stay
as they are.

release.py says what lies where and what it is called; tensors.py reads files without running their
code.
"""

import math
from pathlib import Path

import torch
from accelerate import init_empty_weights
from transformers.initialization import no_init_weights

from common.files import BadInput, Parser, check_writable, markdown, run_script
from model import PARTS, UnifiedModel
from presets import PRESETS, Preset
from realsize.release import (Release, all_problems, expected_shapes, fitted_preset, left_out,
                              read_release)

SHOWN = 5                                       # problems of each part, names that are left out


# ------------------------------------------------------------------------------------ does it fit?

def describe(shapes: dict[str, tuple[int, ...]]) -> str:
    """How many tensors, with how many numbers."""
    return f"{len(shapes)} tensors, {sum(map(math.prod, shapes.values())):,d}"


def table(release: Release, model: UnifiedModel, problems: dict[str, list[str]]) -> str:
    """A line a part: what was found, what is expected, and whether it fits."""
    rows = [["part", "found", "expected", "fits"]]
    for part in (*PARTS, "unconditional"):
        expected = expected_shapes(model, part)
        used = {key: value.shape for key, value in release.parts[part].items() if key in expected}
        rows.append([part, "not read" if part in release.unreadable else describe(used),
                     describe(expected), "NO" if problems[part] else "yes"])
    sizes = [f"{name} {len(tokenizer):,d}" for name, tokenizer in release.tokenizers.items()]
    rows.append(["tokenizers", ", ".join(sizes) or "not read",
                 "vlm, text; [GEN_VID], Yes and No one token each",
                 "NO" if problems["tokenizers"] else "yes"])
    return markdown(rows)


def examine(folder: Path, preset: Preset) -> None:
    """Print the table, what is special, and what does not fit. Raises BadInput where `convert`
    would stop."""
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


# ------------------------------------------------------------------------------------- the model

def build(release: Release, preset: Preset) -> UnifiedModel:
    """The model of what was read, dtypes as in the files; `examine` found it to fit."""
    with init_empty_weights(), no_init_weights():        # buffers are real: they are in no file
        model = UnifiedModel(fitted_preset(release, preset))
    for part in PARTS:
        expected = expected_shapes(model, part)
        tensors = {key: value for key, value in release.parts[part].items() if key in expected}
        if part == "boundary":
            model.set_boundary(tensors)
        else:
            model.get_submodule(part).load_state_dict(tensors, assign=True)
    empty = release.parts["unconditional"]
    vlm, text = empty["vlm_last_hidden_states"], empty["text_emb"]
    model.released_unconditional = {"vlm": vlm.reshape(-1, vlm.shape[-1]),       # (T, D)
                                    "text": text.reshape(-1, text.shape[-1])}
    model.vlm.tokenizer = release.tokenizers["vlm"]
    model.text_tokenizer = release.tokenizers["text"]
    return model


def main(argv=None) -> None:
    parser = Parser(description="Make a model folder of the authors' released directory.")
    parser.add_argument("--from", dest="source", type=Path, required=True,
                        help="the released directory, revise_ckpt/")
    parser.add_argument("--to", type=Path,
                        help="the model folder to write (without it: say whether it would fit)")
    args = parser.parse_args(argv)
    if args.to:
        if args.to.exists() and not (args.to / "model.json").is_file():
            raise BadInput(f"--to {args.to}: is there already, and no model folder; choose another")
        check_writable(args.to / "model.json")
    preset = PRESETS["wan1.3b"]
    examine(args.source, preset)
    if args.to:
        model = build(read_release(args.source), preset)
        model.save_pretrained(args.to, dtype=None)
        total = sum(p.numel() for p in model.parameters())
        print(f"wrote {args.to}: {total:,d} parameters, every key accounted for")


if __name__ == "__main__":
    run_script(main, "stopped; nothing was written")
