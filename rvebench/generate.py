"""The videos of a checkpoint: a model as a method of a benchmark.

Axis letters: B batch, F frames, H W pixels.
"""

from pathlib import Path

import torch
from tqdm import tqdm

from common.files import BadInput, is_of, start_afresh
from common.video import read_video, write_video
from data import fingerprint
from evaluate import consecutive
from model import FROZEN, TRAINED
from rvebench.benchmark import Sample


def generate(model, samples: list[Sample], folder: Path, steps: int, guidance: float, seed: int,
             batch: int) -> dict[str, str]:
    """Edit the samples into folder/<id>.mp4, those that are not there; {id: why} where that fails.

    The noise of a sample comes from seed + its place in the manifest. Other settings or weights
    start afresh. Raises BadInput for an instruction that the model cannot take; a source that
    cannot be read fails alone.
    """
    weights = fingerprint(model, (*FROZEN, *TRAINED))
    settings = {"checkpoint": weights, "steps": steps, "guidance": guidance, "seed": seed}
    if not is_of(folder, settings):
        start_afresh(folder, settings, "*.mp4")
    for old in folder.glob("*.tmp*.mp4"):                # what a kill left half written
        old.unlink()
    missing = {sample.index: sample for sample in samples
               if not (folder / f"{sample.id}.mp4").exists()}
    failed = {}
    there = len(samples) - len(missing)
    bar = tqdm(total=len(samples), initial=there, desc="generate", unit="sample")
    with bar:
        for indices in consecutive(list(missing), batch):             # row k has the noise seed + k
            now = [missing[index] for index in indices]
            sources, unreadable = _read_sources(now, model)
            failed |= unreadable
            try:
                words = [sample.instruction for sample in now]
                edits = model.sample(sources, words, steps, guidance, seed + indices[0])
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


def _read_sources(samples: list[Sample], model) -> tuple[torch.Tensor, dict[str, str]]:
    """(B, F, 3, H, W) on the model's device; {id: why} of those that cannot be read: they are 0."""
    size = model.preset.frames, model.preset.height, model.preset.width
    sources, failed = torch.zeros(len(samples), size[0], 3, *size[1:]), {}
    for k, sample in enumerate(samples):
        try:
            sources[k] = read_video(sample.source, *size)
        except BadInput as error:
            failed[sample.id] = f"no source: {error}"
    return sources.to(model.device), failed
