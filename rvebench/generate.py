"""The videos of a checkpoint: a model as a method of a benchmark.

Axis letters: B batch, F frames, H W pixels.
"""

from pathlib import Path

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
    missing = {sample.index: sample for sample in samples
               if not (folder / f"{sample.id}.mp4").exists()}
    failed, there = {}, len(samples) - len(missing)
    with tqdm(total=len(samples), initial=there, desc="generate", unit="sample") as bar:
        for indices in consecutive(list(missing), batch):             # row k has the noise seed + k
            now = [missing[index] for index in indices]
            sources, views, unreadable = _read_sources(now, model)
            failed |= unreadable
            try:
                words = [sample.instruction for sample in now]
                edits = model.sample(sources, words, steps, guidance, seed + indices[0],
                                     view=views)
            except ValueError as error:
                raise BadInput(f"the manifest: {error}") from error
            for sample, video in zip(now, edits.float().cpu()):
                if sample.id in unreadable:
                    continue
                if video.isfinite().all():
                    write_video(folder / f"{sample.id}.mp4", video)
                else:
                    failed[sample.id] = "the model's video is not finite"
            bar.update(len(now))
    return failed


def consecutive(numbers: list[int], most: int) -> list[list[int]]:
    """Increasing numbers in runs of neighbours, each of at most `most`."""
    runs = []
    for i in numbers:
        if runs and len(runs[-1]) < most and runs[-1][-1] == i - 1:
            runs[-1].append(i)
        else:
            runs.append([i])
    return runs


def _read_sources(samples: list[Sample], model) -> tuple:
    """(B, F, 3, H, W) on the model's device; the same frames uncropped, in the VLM's size, or None
    where the preset has no `whole_view`; {id: why} of those that cannot be read: they are 0."""
    p, side = model.preset, model.vlm.size
    sources, failed = torch.zeros(len(samples), p.frames, 3, p.height, p.width), {}
    views = torch.zeros(len(samples), p.frames, 3, side, side) if p.whole_view else None
    for k, sample in enumerate(samples):
        try:
            numbers, _ = clip_numbers(sample.source, p.frames, p.frame_stride)
            frames = pick_frames(sample.source, numbers)
        except BadInput as error:
            failed[sample.id] = f"no source: {error}"
            continue
        sources[k] = crop(frames, p.height, p.width)
        if p.whole_view:
            views[k] = model.vlm.resize(to_video(frames))
    return sources.to(model.device), None if views is None else views.to(model.device), failed
