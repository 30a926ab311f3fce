"""The videos of a checkpoint: a model as a method of a benchmark.

Axis letters: B batch, F frames, H W pixels.
"""

from pathlib import Path
from typing import Iterator

import torch
from tqdm import tqdm

from common.files import BadInput, is_of, remove_leftovers, start_afresh
from common.video import clip_numbers, crop, pick_frames, to_video, write_video
from data import fingerprint
from model import PARTS
from rvebench.benchmark import Sample


def generate(model, samples: list[Sample], folder: Path, steps: int | None,
             guidance: float | None, seed: int, batch: int) -> dict[str, str]:
    """Edit the samples into folder/<id>.mp4, those that are not there; {id: why} where that fails.

    steps, guidance: None is the preset's. The noise of a sample comes from seed + its place in the
    manifest. Other settings or weights start afresh. Raises BadInput for an instruction that the
    model cannot take; a source that cannot be read fails alone.
    """
    steps = steps or model.preset.sample_steps
    if guidance is None:
        guidance = model.preset.guidance
    weights = fingerprint(model, PARTS)
    settings = {"checkpoint": weights, "steps": steps, "guidance": guidance, "seed": seed}
    if not is_of(folder, settings):
        start_afresh(folder, settings, "*.mp4")
    remove_leftovers(folder)
    missing = [sample for sample in samples if not (folder / f"{sample.id}.mp4").exists()]
    failed = {}
    with tqdm(total=len(missing), desc="generate", unit="sample") as bar:
        for run in runs_of(missing, model, batch, failed):
            now, sources, views = zip(*run)
            sources = torch.stack(sources).to(model.device)              # (B, F, 3, H, W)
            views = torch.stack(views).to(model.device) if model.preset.whole_view else None
            try:                                         # row k has the noise of its index
                edits = model.sample(sources, [sample.instruction for sample in now], steps,
                                     guidance, seed + now[0].index, view=views)
            except ValueError as error:
                raise BadInput(f"the manifest: {error}") from error
            for sample, video in zip(now, edits.float().cpu()):
                if video.isfinite().all():
                    write_video(folder / f"{sample.id}.mp4", video)
                else:
                    failed[sample.id] = "the model's video is not finite"
            bar.update(len(now))
    return failed


def runs_of(samples: list[Sample], model, most: int, failed: dict) -> Iterator[list[tuple]]:
    """Neighbours in the manifest, at most so many at a time: (sample, source (F, 3, H, W), view).

    view: the same frames uncropped, in the VLM's size, where the preset has `whole_view`. A source
    that cannot be read goes into `failed`.
    """
    p, run = model.preset, []
    for sample in samples:
        try:
            numbers, _ = clip_numbers(sample.source, p.frames, p.frame_stride)
            frames = pick_frames(sample.source, numbers)
        except BadInput as error:
            failed[sample.id] = f"no source: {error}"
            continue
        if run and (len(run) == most or run[-1][0].index != sample.index - 1):
            yield run
            run = []
        view = model.vlm.resize(to_video(frames)) if p.whole_view else None
        run.append((sample, crop(frames, p.height, p.width), view))
    if run:
        yield run
