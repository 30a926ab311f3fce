"""What is a benchmark? Samples: source, instruction and target. Methods: a video of every sample.

A manifest has one JSON object on each line: data.py's record with an `id`, and a `subset` for the
tables:

    {"id": "7", "subset": "rave", "source_video_path": "a.mp4", "target_video_path": "b.mp4",
     "instruction": "it is getting dark", "type": "Temporal Reasoning"}

A method is a folder of <id>.mp4. Two methods need no folder, `--references`: "do nothing", whose
video is the source, and "reference", whose video is the target.
"""

import json
import re
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

from common.files import BadInput
from common.manifest import FIELDS, SUBSET_OF, manifest_lines, manifest_record

SCORES = ("EA", "PC", "GN", "GR")
QUALITY = ("TF", "SC", "BC", "OC", "ViCLIP-T", "MS")     # VBench's measures: quality.py
REFERENCES = {"do nothing": "source", "reference": "target"}      # which of a sample's videos it is
FILE_NAME = re.compile(r"[^./\\\0][^/\\\0]{0,199}")      # what an id must look like


@dataclass(frozen=True)
class Sample:
    """A line of the manifest. subset: a name for the tables; its type decides about PC."""
    id: str
    subset: str
    type: str
    instruction: str
    source: Path
    target: Path
    index: int = 0                                       # its place in the whole manifest

    @property
    def scores(self) -> tuple[str, ...]:
        """Which scores it has: in-context generation has no PC."""
        return SCORES if SUBSET_OF[self.type] == "rave" else ("EA", "GN", "GR")


def read_manifest(path: str | Path, subset: str | None = None) -> list[Sample]:
    """The samples of a benchmark, or of one subset of it, in order.

    `subset` is "rave" or "icvg", after the type, where a line has none. Raises BadInput, naming
    file:line, for the first line that is wrong, an id that is there twice or cannot be a file's
    name, or a video that is not there.
    """
    path, samples = Path(path), {}
    for number, line in manifest_lines(path):
        try:
            sample = _sample(line, path.parent, len(samples))
            if sample.id in samples:
                raise BadInput(f"the id {sample.id[:80]!r} is there twice; give each line its own")
        except BadInput as error:
            raise BadInput(f"{path}:{number}: {error}") from error
        samples[sample.id] = sample
    if not samples:
        raise BadInput(f"{path}: holds no sample; write one JSON object on each line")
    found = [sample for sample in samples.values() if subset in (None, sample.subset)]
    if not found:
        subsets = dict.fromkeys(sample.subset for sample in samples.values())
        raise BadInput(f"--subset {subset[:80]}: {path} has none of it; "
                       f"choose one of {', '.join(subsets)}")
    return found


def _sample(line: str, folder: Path, index: int) -> Sample:
    record = manifest_record(line)
    name = record.get("id")
    if not isinstance(name, str) or not FILE_NAME.fullmatch(name):
        raise BadInput(f"the id is {json.dumps(name)[:80]}; give a text that can be a file's name")
    subset = record.get("subset", SUBSET_OF[record["type"]])
    if not isinstance(subset, str) or not subset.strip():
        raise BadInput(f"the subset is {json.dumps(subset)[:80]}; give a text, or leave it out")
    source, target = [folder / record[field] for field in FIELDS[:2]]
    for video in (source, target):
        if not video.exists():
            raise BadInput(f"{video}: there is no such video; correct the path")
    return Sample(name, subset, record["type"], record["instruction"], source, target, index)


def read_methods(flags: list[str]) -> dict[str, Path]:
    """{name: folder} of --videos NAME=DIR. Raises BadInput."""
    methods = {}
    for flag in flags:
        name, _, folder = flag.partition("=")
        if not (name.strip() and folder) or "/" in name or name.startswith("."):
            raise BadInput(f"--videos {flag}: must be NAME=DIR, such as ours=out/ours")
        if name in {*methods, *REFERENCES}:              # of --references
            raise BadInput(f"--videos {flag}: another method is named {name}; rename this one")
        if not Path(folder).is_dir():
            raise BadInput(f"--videos {flag}: there is no such folder; correct the path")
        methods[name] = Path(folder)
    return methods


class Edit(NamedTuple):
    """What is scored: the video of one method of one sample."""
    sample: Sample
    method: str
    path: Path


def all_edits(samples: list[Sample], methods: dict[str, Path], references: bool) -> list[Edit]:
    """Every method's video of every sample, there or not; with REFERENCES if asked for."""
    edits = []
    for sample in samples:
        for name, folder in methods.items():
            edits.append(Edit(sample, name, folder / f"{sample.id}.mp4"))
        if references:
            for name, field in REFERENCES.items():
                edits.append(Edit(sample, name, getattr(sample, field)))
    return edits
