"""Edit your own video.

    python sample.py --video my.mp4 --instruction "a hard frost came overnight" --out edited.mp4
    python sample.py --video frames/ --instruction "..." --out edited.gif --checkpoint out/run     # what train.py made

Writes the edited clip, and source | edited, enlarged so that a person can see it, as edited_side_by_side.mp4. The video
is anything that ffmpeg can read, or a folder of images; uniformly spaced frames of it are resized and cropped to the
preset's size. The tiny preset has seen nothing but the tiny world: on real films expect it to keep the colours at best.

Left out: longer clips than the preset's, in pieces; sound.
"""

import argparse
import os
from pathlib import Path

import torch
import torch.nn.functional as F
from tqdm import tqdm

from critic import load_model
from common.files import BadInput, Parser, run_script
from common.video import read_video, check_video_name, write_video
from model import PRESETS


def parse(argv=None) -> argparse.Namespace:
    parser = Parser(description="Edit a video as an instruction says.")
    parser.add_argument("--video", required=True, help="the source: mp4, gif, webm ... or a folder of images")
    parser.add_argument("--instruction", required=True, help="what happened, or what to do")
    parser.add_argument("--out", required=True, help="the edited clip, .mp4 or .gif")
    parser.add_argument("--checkpoint", "--weights", help="a run's or model's folder, or the authors' (default: weights/<preset>)")
    parser.add_argument("--preset", choices=PRESETS, default="tiny", help="which size")
    parser.add_argument("--steps", type=int, default=12, help="Euler steps from noise to clip")
    parser.add_argument("--guidance", type=float, default=1.0, help="c + g (c - uncond); 0 is none")
    parser.add_argument("--seed", type=int, default=0, help="of the noise")
    args = parser.parse_args(argv)
    if args.steps < 1:
        raise BadInput(f"--steps {args.steps}: there must be at least one step; 12 will do")
    if not 0 <= args.guidance < float("inf"):
        raise BadInput(f"--guidance {args.guidance}: must be 0 or a positive number; 1 will do")
    if not args.instruction.strip():
        raise BadInput("--instruction: is empty; say what happened, or what to do")
    check_video_name(args.out)                               # what can go wrong at the end is found out at the start
    folder = next(p for p in Path(args.out).resolve().parents if p.exists())
    if not (folder.is_dir() and os.access(folder, os.W_OK)):
        raise BadInput(f"--out {args.out}: {folder} is no folder that can be written; choose another")
    if Path(args.out).resolve() == Path(args.video).resolve():
        raise BadInput(f"--out {args.out}: would overwrite the source; choose another name")
    return args


def main(argv=None) -> None:
    args = parse(argv)
    out = Path(args.out)
    side_by_side = out.with_stem(f"{out.stem}_side_by_side")
    preset = PRESETS[args.preset]
    source = read_video(args.video, preset.frames, preset.height, preset.width)            # (F, 3, H, W)
    model = load_model(args.checkpoint, args.preset)
    if torch.cuda.is_available():
        model.cuda()
    try:
        edited = model.sample(source[None].to(model.device), [args.instruction], args.steps, args.guidance, args.seed,
                              progress=lambda steps: tqdm(steps, desc="sample", unit="step"))[0].cpu()
    except ValueError as error:                          # the instruction is too long for the text encoder
        raise BadInput(f"--instruction: {error}") from error
    write_video(out, edited)
    pair = torch.cat([F.pad(source, (0, 2), value=1.), edited], -1)                        # a white line between
    write_video(side_by_side, pair, scale=max(1, 256 // preset.height))
    print(f"wrote {out} and {side_by_side}")


if __name__ == "__main__":
    run_script(main, "stopped; nothing was written")
