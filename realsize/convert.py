"""The authors' released directory (and Omni-Video's, of the same layout) as a model folder of ours.

    python -m realsize.check --weights revise_ckpt/                     # will it fit? in seconds
    python -m realsize.convert --from revise_ckpt/ --to weights/revise/
    python sample.py --preset wan1.3b --weights weights/revise/ --video my.mp4 \
        --instruction "..." --out edited.mp4

Every key of every file is accounted for: it becomes a tensor of ours of the same shape, or is known
to be unused. What is unmatched, missing or of another shape is an error that lists them all. Values
and dtypes stay as they are. What is left out (the epoch, the optimizer's state), and what differs
between releases, is printed.

release.py says what lies where and what it is called; tensors.py reads files without running their
code.
"""

from pathlib import Path

from accelerate import init_empty_weights
from transformers.initialization import no_init_weights

from common.files import BadInput, Parser, run_script
from model import PARTS, UnifiedModel
from presets import PRESETS, Preset
from realsize.release import Release, all_problems, fitted_preset, read_release


def empty_model(preset: Preset) -> UnifiedModel:
    """The modules, parameters on "meta". Buffers are real: those of positions are in no file."""
    with init_empty_weights(), no_init_weights():
        return UnifiedModel(preset)


def build(release: Release, preset: Preset) -> UnifiedModel:
    """The model of what was read. Raises BadInput that lists every key that does not fit."""
    model = empty_model(fitted_preset(release, preset))
    if release.unreadable:
        raise BadInput("; ".join(release.unreadable.values()))
    problems = all_problems(release, model)
    if problems:
        raise BadInput(f"{release.folder} does not fit preset {preset.name!r}: "
                       f"{len(problems)} keys: {'; '.join(problems)}")
    for part in PARTS:
        expected = model.get_submodule(part).state_dict()
        tensors = {key: value for key, value in release.parts[part].items() if key in expected}
        if part == "boundary":
            model.set_boundary(tensors)
        else:
            model.get_submodule(part).load_state_dict(tensors, assign=True)
    unconditional = release.unconditional
    model.released_unconditional = {
        "vlm": unconditional["vlm_last_hidden_states"].flatten(0, -2),      # (T, D)
        "text": unconditional["text_emb"].flatten(0, -2)}
    model.vlm.tokenizer = release.tokenizers["vlm"]
    model.text_tokenizer = release.tokenizers["text"]
    return model


def read_released(folder: str | Path, preset: str = "wan1.3b") -> UnifiedModel:
    """The model in the authors' directory, dtypes as in the files. Raises as `build` does."""
    return build(read_release(folder), PRESETS[preset])


def main(argv=None) -> None:
    parser = Parser(prog="realsize.convert",
                    description="Make a model folder of the authors' released directory.")
    parser.add_argument("--from", dest="source", type=Path, required=True,
                        help="the released directory, revise_ckpt/")
    parser.add_argument("--to", type=Path, required=True, help="the model folder to write")
    parser.add_argument("--preset", choices=PRESETS, default="wan1.3b", help="its size")
    args = parser.parse_args(argv)
    if not args.source.is_dir():
        raise BadInput(f"--from {args.source}: there is no such directory")
    if args.to.exists() and not (args.to / "model.json").is_file():
        raise BadInput(f"--to {args.to}: is there already, and no model folder; choose another")
    release = read_release(args.source)
    model = build(release, PRESETS[args.preset])
    model.save_pretrained(args.to, dtype=None)
    for note in release.notes:
        print(note)
    total = sum(p.numel() for p in model.parameters())
    print(f"wrote {args.to}: {total:,d} parameters, every key accounted for")


if __name__ == "__main__":
    run_script(main, "stopped; nothing was written")
