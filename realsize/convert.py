"""The authors' released directory (and Omni-Video's, of the same layout) as a model folder of ours.

    python -m realsize.check --weights revise_ckpt/                     # will it fit? in seconds
    python -m realsize.convert --from revise_ckpt/ --to weights/revise/
    python sample.py --preset wan1.3b --weights weights/revise/ --video my.mp4 \
        --instruction "..." --out edited.mp4

First it does what `check` does, and stops where that would. So every key of every file is accounted
for: it becomes a tensor of ours of the same shape, or is named as left out. Values and dtypes stay
as they are.

release.py says what lies where and what it is called; tensors.py reads files without running their
code.
"""

from pathlib import Path

from accelerate import init_empty_weights
from transformers.initialization import no_init_weights

from common.files import BadInput, Parser, check_writable, run_script
from model import PARTS, UnifiedModel
from presets import PRESETS, Preset
from realsize.check import examine
from realsize.release import Release, expected_shapes, fitted_preset, read_release


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
    parser.add_argument("--to", type=Path, required=True, help="the model folder to write")
    args = parser.parse_args(argv)
    if args.to.exists() and not (args.to / "model.json").is_file():
        raise BadInput(f"--to {args.to}: is there already, and no model folder; choose another")
    check_writable(args.to / "model.json")
    preset = PRESETS["wan1.3b"]
    examine(args.source, preset)
    model = build(read_release(args.source), preset)
    model.save_pretrained(args.to, dtype=None)
    total = sum(p.numel() for p in model.parameters())
    print(f"wrote {args.to}: {total:,d} parameters, every key accounted for")


if __name__ == "__main__":
    run_script(main, "stopped; nothing was written")
