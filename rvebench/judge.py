"""What does a judge see, and what does it say? (Sec. 3.2)

    python judge.py --n 40 --out out/world       # write 40 samples of the tiny world as a benchmark: manifest, videos
    python evaluate.py --manifest out/world/bench.jsonl --videos source=out/world/source --judge oracle

A benchmark is a manifest, data.py's record with an `id` and a `subset`; a method is a folder of <id>.mp4. Three judges:

    openai   any OpenAI-compatible endpoint (ask.py), asked as VIEScore asks: once with frames of source and edit about
             semantic consistency (EA, PC), once with frames of the edit alone about perceptual quality (GN, GR)
    oracle   for samples of the tiny world, whose right answer it renders again; it needs no model
    vila     a local VLM's verdict. One question has one answer, so there is one score, "Yes" = 10 sigmoid(z_yes - z_no),
             and none of EA, PC, GN, GR: four numbers made out of one margin would be invented

Types of in-context generation have no PC. What a judge does not say is `Missing` with the reason, and never a number.

Axis letters: F frames, H W pixels. A clip is (F, H, W, 3), uint8, as data.read_pixels gives it.
"""

import hashlib
import json
import os
import re
from dataclasses import dataclass
from pathlib import Path
from threading import Lock
from typing import Callable, Iterable, Iterator

import numpy as np
import torch
from PIL import Image

from tiny import world
from rvebench.ask import Missing, Question, parse_json, read_rows
from critic import Critic
from data import FIELDS, SUBSET_OF, manifest_lines, manifest_record
from common.files import BadInput, Parser, atomic_write, run_script
from common.video import read_pixels, read_video, write_video

SCORES = ("EA", "PC", "GN", "GR")
SIDE = 512                                               # frames are shown to a service at most this wide and high
PROMPT = "judge-1"                                       # goes into the cache's keys: change it with the wording


# -------------------------------------------------------------------------------------------------- the benchmark

@dataclass(frozen=True)
class Sample:
    """A line of the manifest. subset: a name for the tables; whether there is a PC goes by the type."""
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
        return tuple(name for name in SCORES if name != "PC" or SUBSET_OF[self.type] == "rave")


def read_manifest(path: str | Path, subset: str | None = None) -> list[Sample]:
    """The samples of a benchmark, or of one subset of it, in order.

    `subset` is "rave" or "icvg", after the type, where a line has none. Raises BadInput, naming file:line, for the
    first line that is wrong, an id that is there twice or no file name, or a video that is not there.
    """
    path, samples = Path(path), {}
    for number, line in manifest_lines(path):
        try:
            record = manifest_record(line)
            name, group = record.get("id"), record.get("subset", SUBSET_OF[record["type"]])
            if not isinstance(name, str) or not re.fullmatch(r"[^/\\\0]+", name) or name.startswith("."):
                raise BadInput(f"the id is {json.dumps(name)[:40]}; give a text that can be a file's name")
            if name in samples:
                raise BadInput(f"the id {name!r} is there twice; give each line its own")
            if not isinstance(group, str) or not group.strip():
                raise BadInput(f"the subset is {json.dumps(group)[:40]}; give a text, or leave it out")
            videos = [path.parent / record[field] for field in FIELDS[:2]]
            for video in videos:
                if not video.exists():
                    raise BadInput(f"{video}: there is no such video; correct the path")
        except BadInput as error:
            raise BadInput(f"{path}:{number}: {error}") from error
        samples[name] = Sample(name, group, record["type"], record["instruction"], *videos, len(samples))
    found = [s for s in samples.values() if subset in (None, s.subset)]
    if not found:
        there = ", ".join(dict.fromkeys(s.subset for s in samples.values()))
        raise BadInput(f"--subset {subset}: {path} has none of it; choose one of {there}" if samples else
                       f"{path}: holds no sample; write one JSON object on each line")
    return found


def methods(named: list[str]) -> dict[str, Path]:
    """{name: folder} of --videos NAME=DIR. Raises BadInput."""
    found = {}
    for text in named:
        name, _, folder = text.partition("=")
        if not (name.strip() and folder) or "/" in name or name.startswith("."):
            raise BadInput(f"--videos {text}: must be NAME=DIR, such as ours=out/ours")
        if name in found:
            raise BadInput(f"--videos {text}: there are two methods named {name}; rename one")
        if not Path(folder).is_dir():
            raise BadInput(f"--videos {text}: there is no such folder; correct the path")
        found[name] = Path(folder)
    return found


# -------------------------------------------------------------------------------------------- what a service is asked

SYSTEM = ("You are a strict and fair judge of edited videos. You see a few frames, evenly spaced and in order of time. "
          "Judge only what can be seen. Give each score as a number from 0 to 10, and first the reason for it.")
ASKED = {
    "EA": "EA, edit accuracy: does the edit show what the instruction asks for, with all that follows from it in the "
          "real world? 0: nothing of it, or something else. 10: all of it.",
    "PC": "PC, preservation consistency: is everything that the instruction gives no cause to change as it was in the "
          "source? 0: an unrelated scene. 10: nothing else has changed.",
    "GN": "GN, generation naturalness: do things move and change smoothly and as they would? 0: jumps, flicker or "
          "frozen nonsense. 10: like a filmed shot.",
    "GR": "GR, generation realism: is each frame free of artefacts, distortions and unnatural textures? 0: broken "
          "everywhere. 10: none."}
CONTEXT = {"rave": "The instruction only hints at the edit: infer what the scene should come to look like.",
           "icvg": "The instruction leads from the source to a later clip of the same story: infer what it should show."}


def answer_schema(names: Iterable[str]) -> dict:
    """The JSON schema of an answer: the reason first, so that a score is given after it."""
    number = {"type": "number", "minimum": 0, "maximum": 10}
    fields = {"reason": {"type": "string"}, **dict.fromkeys(names, number)}
    return {"type": "object", "properties": fields, "required": list(fields), "additionalProperties": False}


def validator(names: Iterable[str]) -> Callable[[str], dict]:
    """reply -> {name: score, "reason": text}. Raises ValueError for anything but numbers in 0..10 and a text."""
    def validate(reply):
        answer = parse_json(reply)
        for name in names:
            value = answer.get(name)
            if isinstance(value, bool) or not isinstance(value, (int, float)) or not 0 <= value <= 10:
                raise ValueError(f"{name} is {json.dumps(value)[:40]}, and no number from 0 to 10")
        if not isinstance(answer.get("reason"), str):
            raise ValueError("there is no reason")
        return {**{name: float(answer[name]) for name in names}, "reason": answer["reason"]}
    return validate


def shown(path: Path, frames: int) -> list[np.ndarray]:
    """`frames` frames (H, W, 3) of a clip, uniformly spaced, the first and the last among them, within SIDE pixels.

    Raises BadInput where it is missing, unreadable or shorter.
    """
    clip = read_pixels(path, frames)
    picked = clip[np.linspace(0, len(clip) - 1, frames).round().astype(int)]
    scale = min(1, SIDE / max(clip.shape[1:3]))
    if scale == 1:
        return list(picked.copy())                       # not a view: the clip itself is let go
    size = round(clip.shape[2] * scale), round(clip.shape[1] * scale)
    return [np.asarray(Image.fromarray(x).resize(size, Image.Resampling.BICUBIC)) for x in picked]


def questions(sample: Sample, source: list[np.ndarray], edited: list[np.ndarray], repeat: int = 0) -> list[Question]:
    """The two questions about an edit: semantic consistency (source and edit) and perceptual quality (edit alone)."""
    consistency = [name for name in sample.scores if name in ("EA", "PC")]
    head = f"{CONTEXT[SUBSET_OF[sample.type]]}\nInstruction: {sample.instruction}\nScore:\n"
    ask = lambda prompt, names, parts: Question(
        f"{PROMPT}-{prompt}", SYSTEM, parts, answer_schema(names), validator(names), repeat, sample.id)
    return [ask("consistency", consistency, [head + "\n".join(ASKED[name] for name in consistency),
                                             "Frames of the source:", *source, "Frames of the edit:", *edited]),
            ask("quality", ["GN", "GR"], [f"Score:\n{ASKED['GN']}\n{ASKED['GR']}", "Frames of the edit:", *edited])]


def service(jobs: list[tuple[Sample, Path]], frames: int, repeat: int = 1) -> tuple[Iterator[Question], Callable]:
    """(questions, verdicts) about edits, each a sample and a video: pass `questions` to Client.ask or Client.count.

    They are made as they are drawn, from one source and one edit at a time. verdicts(values) turns the answers, in
    order, into a list of `repeat` verdicts for each job: {"EA": ..., "reasons": [two texts]} or Missing.
    """
    unseen, slots = {}, []

    def draw():
        last = None, None
        for k, (sample, path) in enumerate(jobs):
            try:
                edited = shown(path, frames)
                if last[0] != sample.source:
                    last = sample.source, shown(sample.source, frames)
            except BadInput as error:
                unseen[k] = Missing(str(error))
                continue
            for r in range(repeat):
                for question in questions(sample, last[1], edited, r):
                    slots.append((k, r))
                    yield question

    def verdicts(values):
        parts = {}
        for slot, value in zip(slots, values, strict=True):
            parts.setdefault(slot, []).append(value)
        return [[unseen[k] if k in unseen else _both(*parts[k, r]) for r in range(repeat)] for k in range(len(jobs))]
    return draw(), verdicts


def _both(consistency, quality) -> dict | Missing:
    wrong = [f"{name}: {value.reason}" for name, value in (("consistency", consistency), ("quality", quality))
             if isinstance(value, Missing)]
    if wrong:
        return Missing("; ".join(wrong))
    return {**{name: x for value in (consistency, quality) for name, x in value.items() if name != "reason"},
            "reasons": [consistency["reason"], quality["reason"]]}


# ------------------------------------------------------------------------------------------------------ local judges

class Kept:
    """What took long to find out, in an append-only file of JSON lines, by key: a rerun does not find it out again."""

    def __init__(self, path: Path):
        self.path, self.values, self._lock = path, {}, Lock()
        whole = read_rows(path, "line", lambda row: self.values.update({row["key"]: row["value"]}))
        if path.exists() and path.stat().st_size > whole:                                  # a crash has cut the last line off
            os.truncate(path, whole)

    def __call__(self, parts: list, find: Callable[[], dict]) -> dict:
        """The value of what `parts` (for JSON) name: find() where it is not there; what that raises is not kept."""
        key = hashlib.sha256(json.dumps(parts).encode()).hexdigest()
        if key not in self.values:
            value = find()
            with self._lock:
                self.path.parent.mkdir(parents=True, exist_ok=True)
                with self.path.open("ab") as file:
                    file.write(json.dumps({"key": key, "value": value}).encode() + b"\n")
                self.values[key] = value
        return self.values[key]


WORLD_ID = re.compile(rf"({'|'.join(world.SUBSETS)})-({'|'.join(world.SPLITS)})-(\d+)")


def world_triplet(sample: Sample) -> world.Triplet:
    """The triplet that a sample of the tiny world is, by its id, "rave-test-7". Raises BadInput where it is none."""
    found = WORLD_ID.fullmatch(sample.id)
    triplet = found and world.make_triplet(int(found[3]), found[1], found[2])
    if not triplet or triplet.instruction != sample.instruction:
        raise BadInput(f"{sample.id}: is no sample of the tiny world, and the oracle knows no other; choose another "
                       f"--judge")
    return triplet


def oracle(sample: Sample, path: Path) -> dict:
    """The tiny world's own judge: EA, PC, GN, GR. Raises BadInput where it is no sample of that, or cannot be read.

    The video went through a codec: the target itself gets no full 10.
    """
    triplet = world_triplet(sample)
    return world.judge(triplet, read_video(path, *triplet.target.shape[::2], triplet.target.shape[3]))


def vila(model) -> Callable[[Sample, Path], dict]:
    """judge(sample, path) -> {"Yes": 10 sigmoid(z_yes - z_no)}: the verdict of the model's own VLM, asked as the critic.

    It raises BadInput where a video cannot be read, or the verdict is not finite.
    """
    critic, size = Critic(model), (model.preset.frames, model.preset.height, model.preset.width)

    def judge(sample, path):
        source, edited = (read_video(x, *size)[None].to(model.device) for x in (sample.source, path))
        with torch.no_grad(), model.precision():
            yes = 10 * float(critic.margin(source, edited, [sample.instruction]).double().sigmoid())
        if not 0 <= yes <= 10:
            raise BadInput(f"{path}: the verdict is not finite")
        return {"Yes": yes}
    return judge


# --------------------------------------------------------------------------------------- the tiny world as a benchmark

def export_world(out: Path, n: int = 40, split: str = "test") -> None:
    """Write `n` samples, of rave and icvg in turn, with videos in source/ and target/ and the manifest bench.jsonl."""
    rows = []
    for k in range(n):
        subset = ("rave", "icvg")[k % 2]
        triplet = world.make_triplet(k // 2, subset, split)
        name = f"{subset}-{split}-{k // 2}"
        paths = {}
        for field, video in zip(FIELDS, (triplet.source, triplet.target)):
            paths[field] = f"{field.split('_')[0]}/{name}.mp4"
            write_video(out / paths[field], video)
        rows.append({"id": name, "subset": subset, **paths, "instruction": triplet.instruction, "type": triplet.type})
    atomic_write(out / "bench.jsonl", "".join(json.dumps(row) + "\n" for row in rows))


def main(argv=None) -> None:
    parser = Parser(description="Write samples of the tiny world as a benchmark.")
    parser.add_argument("--n", type=int, default=40, help="how many samples, of rave and icvg in turn")
    parser.add_argument("--split", default="test", choices=world.SPLITS, help="of the tiny world")
    parser.add_argument("--out", type=Path, default=Path("out/world"), help="folder of the manifest and the videos")
    args = parser.parse_args(argv)
    if args.n < 1:
        raise BadInput(f"--n {args.n}: must be at least 1; 40 will do")
    export_world(args.out, args.n, args.split)
    print(f"wrote {args.out}/bench.jsonl and the videos of {args.n} samples")


if __name__ == "__main__":
    run_script(main)
