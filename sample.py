"""Edit your own video.

    python sample.py --video my.mp4 --instruction "a hard frost came overnight" --out edited.mp4
    python sample.py --video frames/ --instruction "..." --out edited.gif --checkpoint out/uso
    python sample.py --video my.mp4 --instruction "..." --out edited.mp4 --stride 1 --start 40

Writes the edited clip, and source | edited, enlarged so that a person can see it, as
edited_side_by_side.mp4. The video is anything that ffmpeg can read, or a folder of pictures. As
many frames of it as the preset has are resized and cropped to the preset's size; which ones is
printed. The tiny preset has seen nothing but the tiny world: on real films it keeps the colours at
best.

Left out: longer clips than the preset's, in pieces; sound.
"""

import argparse
import os
from pathlib import Path

import torch
import torch.nn.functional as F
from tqdm import tqdm

from common.distributed import device
from common.files import (BadInput, Parser, at_least_0, between, check_writable, positive,
                          run_script)
from common.video import clip_numbers, crop, pick_frames, to_video, write_video
from model import load_model
from presets import PRESETS


def parse(argv=None) -> argparse.Namespace:
    parser = Parser(description="Edit a video as an instruction says.")
    add = parser.add_argument
    add("--video", type=Path, required=True, help="the source: mp4, gif, mkv ... or a folder")
    add("--instruction", required=True, help="what happened, or what to do")
    add("--out", type=Path, required=True, help="the edited clip, .mp4 or .gif")
    add("--checkpoint", "--weights", help="a run, or a model's folder (else weights/<preset>)")
    add("--preset", choices=PRESETS, default="tiny", help="size of the model")
    add("--stride", type=stride, help="every n-th frame, or spread: over all (the preset's)")
    add("--start", type=at_least_0, default=0, help="the first frame, counted from 0")
    add("--steps", type=positive, help="from noise to clip (the preset's)")
    add("--guidance", type=between(0, 100), help="g in v + g (v - v_uncond) (the preset's)")
    add("--seed", type=at_least_0, default=0, help="of the noise")
    args = parser.parse_args(argv)
    if not args.instruction.strip():
        raise BadInput("--instruction: is empty; say what happened, or what to do")
    args.side_by_side = args.out.with_name(f"{args.out.stem}_side_by_side{args.out.suffix}")
    for path in (args.out, args.side_by_side):           # now, not after the sampling
        if os.path.realpath(path) == os.path.realpath(args.video):
            raise BadInput(f"--out {args.out}: would overwrite the source; choose another name")
        try:
            check_writable(path, ".mp4", ".gif")
        except BadInput as error:
            raise BadInput(f"--out {error}") from error
    return args


def stride(text: str) -> int | str:
    """The value of --stride: a whole number from 1 on, or "spread"."""
    return text if text == "spread" else positive(text)


def read_source(args) -> tuple[torch.Tensor, torch.Tensor]:
    """The source clip (F, 3, H, W) of the preset's size, and the same frames as they are."""
    preset = PRESETS[args.preset]
    step = args.stride or preset.frame_stride
    numbers, n = clip_numbers(args.video, preset.frames, None if step == "spread" else step,
                              args.start)
    if len(numbers) < n:
        print(f"{args.video} has {n} frames; edited are {', '.join(map(str, numbers))}")
    whole = pick_frames(args.video, numbers)
    return crop(whole, preset.height, preset.width), to_video(whole)


def main(argv=None) -> None:
    args = parse(argv)
    source, whole = read_source(args)                    # (F, 3, H, W)
    model = load_model(args.checkpoint, args.preset).to(device())
    view = None
    if model.preset.whole_view:
        view = model.vlm.resize(whole)[None].to(model.device)

    def progress(steps):
        return tqdm(steps, desc="sample", unit="step")
    try:
        edited = model.sample(source[None].to(model.device), [args.instruction],
                              steps=args.steps, guidance=args.guidance, seed=args.seed,
                              progress=progress, view=view)[0].cpu()
    except ValueError as error:                          # too long, or not valid Unicode
        raise BadInput(f"--instruction: {error}") from error
    if not edited.isfinite().all():
        raise BadInput(f"--checkpoint {args.checkpoint}: the edited video is not finite; "
                       f"check the weights, or lower --guidance")
    write_video(args.out, edited)
    pair = torch.cat([F.pad(source, (0, 2), value=1.), edited], -1)      # a white line between
    write_video(args.side_by_side, pair, scale=max(1, 256 // model.preset.height))
    print(f"wrote {args.out} and {args.side_by_side}")


if __name__ == "__main__":
    run_script(main, "stopped; nothing was written")
