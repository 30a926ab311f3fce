"""The tiny world: triplets with implicit instructions, and an oracle that knows the answer.

    python -m tiny.world                                # a contact sheet of triplets: out/world.png
    python -m tiny.world --subset icvg --number 20 --out out/icvg.png

    triplet = make_triplet(0, "rave", "test")            # source, target, instruction, ...
    judge(triplet, triplet.source)                 # {"EA": 0.0, "PC": 10.0, "GN": 10.0, "GR": 10.0}

From the rules of rules.py come the triplets (source, target, instruction) of RVE-Bench's two
subsets (paper Sec. 3.1): RAVE edits the source, ICVG continues it with a new segment. Everything is
a pure function of (split, subset, index): nothing is stored, and every machine has the same world.

Left out of the paper: GPT-4o (the rules write the instructions, the oracle judges) and real films.

Axis letters: F frames, H height, W width, h w blocks of 2 x 2 pixels. A video is (F, 3, H, W) in
[-1, 1].
"""

import hashlib
import math
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from tqdm import tqdm

from common.files import Parser, check_writable, positive, run_script
from tiny import draw, rules, scene
from tiny.contact_sheet import contact_sheet
from tiny.draw import render
from tiny.rules import NEXT_TIME, RULES, TYPES
from tiny.scene import (COLOUR_WORDS, FRAMES, GROUNDS, PALETTE, PLACES, SHAPES, SIDES, SKIES, Edit,
                        Scene, apply, caption, literal, random_scene)

SPLITS = ("train", "val", "test")
SUBSETS = ("rave", "icvg", "literal", "cross")


def _version() -> str:
    """A hash of the code: other code may make another world, so kept clips and scores have it."""
    files = [scene.__file__, draw.__file__, rules.__file__, __file__]
    return hashlib.sha256(b"".join(Path(file).read_bytes() for file in files)).hexdigest()


VERSION = _version()


# ----------------------------------------------------------------------------------------- triplets

@dataclass(frozen=True)
class Triplet:
    """One sample. subset: "rave" or "icvg" (which has no PC), whatever was asked for."""
    source: torch.Tensor                                                              # (F, 3, H, W)
    target: torch.Tensor                                                              # (F, 3, H, W)
    instruction: str
    literal: str                                         # the edit in plain words
    type: str                                            # of reasoning
    thought: str                                         # from what can be seen to what must happen
    subset: str
    rule: str
    before: Scene                                        # what the source shows
    edit: Edit

    @property
    def start(self) -> Scene:
        """The scene that is edited: the source's, in ICVG as it is one clip later."""
        return self.before if self.subset == "rave" else self.before.later()

    @property
    def after(self) -> Scene:
        """What the target shows."""
        return apply(self.start, self.edit)


def make_triplet(index: int, subset: str = "rave", split: str = "test") -> Triplet:
    """Triplet number `index` of a subset and split, the types in turn (Sec. 3.1, 3.2).

    subset: "rave" (edits), "icvg" (the next segment), "literal" (RAVE with the literal instruction;
    Table 3) or "cross" (RAVE in a phrase and at a place that its rule was never trained with; Table
    2; no train split). Raises ValueError for an unknown subset or split, and for the train split of
    "cross".
    """
    _check_names(subset, split)
    kind = "icvg" if subset == "icvg" else "rave"
    types = TYPES[kind]
    of_type = [rule for rule in RULES[kind] if rule.type == types[index % len(types)]]
    rule = of_type[index // len(types) % len(of_type)]
    places = [place for place in PLACES if place != rule.away]
    if subset == "cross":
        places = [rule.away]
    rng = np.random.default_rng([SPLITS.index(split), SUBSETS.index(subset), index])
    while True:                                   # until a scene comes up to which the rule applies
        before = random_scene(rng, str(rng.choice(places)))
        start = before if kind == "rave" else before.later()
        effect = rule.resolve(start, rng)
        if effect is None:
            continue
        source, target = render(before), render(apply(start, effect.edit))
        if _differ(source, target):
            break
    plain = literal(before, effect.edit)
    instruction = plain
    if subset != "literal":
        phrase = rule.phrases[4] if subset == "cross" else rule.phrases[int(rng.integers(4))]
        name = "" if effect.named is None else f"the {before.things[effect.named].name}"
        instruction = phrase.format(n=name)
    return Triplet(source, target, instruction, plain, rule.type, effect.thought, kind, rule.name,
                   before, effect.edit)


def _check_names(subset: str, split: str) -> None:
    if subset not in SUBSETS:
        raise ValueError(f"unknown subset {subset!r}: choose one of {', '.join(SUBSETS)}")
    if split not in SPLITS:
        raise ValueError(f"no split {split!r} of subset {subset!r}: "
                         f"choose one of {', '.join(SPLITS)}")
    if (subset, split) == ("cross", "train"):
        raise ValueError("no split 'train' of subset 'cross', which is never trained on: "
                         "choose val or test")


def _differ(source: torch.Tensor, target: torch.Tensor) -> bool:
    """Whether the edit can be seen: some block is another in at least three frames."""
    change = (blocks(source) - blocks(target)).abs().amax((1, 2, 3))                       # (F,)
    return (change > .2).sum().item() >= 3


# ------------------------------------------------------------------------------------ wrong answers

MISSES = ("nothing", "half", "wrong object", "wrong effect", "over-done", "noise", "flicker")


def near_miss(triplet: Triplet, kind: str, rng: np.random.Generator) -> tuple[torch.Tensor, str]:
    """A wrong answer: video (F, 3, H, W) in [-1, 1], and in plain words what was done in it.

    kind: one of MISSES. A critic that has never seen such answers cannot tell them from the target.
    Raises ValueError for another kind.
    """
    source, target, plain = triplet.source, triplet.target, triplet.literal
    match kind:
        case "nothing":
            return source.clone(), "nothing has changed"
        case "half":
            share = float(rng.uniform(.25, .75))
            return source * (1 - share) + target * share, f"half of : {plain}"
        case "wrong object" | "wrong effect":
            edit = _wrong_edit(triplet, kind, rng)
            return render(apply(triplet.start, edit)), literal(triplet.start, edit)
        case "over-done":
            return _over_done(triplet, rng)
        case "noise":
            noise = rng.normal(0, rng.uniform(.05, .5), target.shape).astype(np.float32)
            return (target + torch.from_numpy(noise)).clamp(-1, 1), f"{plain} , and there is noise"
        case "flicker":
            light = torch.from_numpy(rng.uniform(-.5, .5, (FRAMES, 1, 1, 1)).astype(np.float32))
            return (target + light - light.mean()).clamp(-1, 1), f"{plain} , and it flickers"
    raise ValueError(f"unknown miss {kind!r}: choose one of {', '.join(MISSES)}")


def _wrong_edit(triplet: Triplet, kind: str, rng) -> Edit:
    """The right operation on another thing or with another value; if there is none, another."""
    start, edit = triplet.start, triplet.edit
    if kind == "wrong object" and edit.i >= 0 and edit.op not in ("swap", "push"):
        others = [i for i in range(len(start.things)) if i != edit.i]
        return edit._replace(i=_pick(others, rng))
    if kind == "wrong effect" and edit.op in ("pan", "go"):
        return edit._replace(value=-edit.value)
    if kind == "wrong effect" and edit.op in ("paint", "move", "time", "ground"):
        return edit._replace(value=_pick(_other_values(start, edit), rng))
    edits = [other for other in _edits_of(triplet, rng) if other[:2] != edit[:2]]
    return _pick(edits, rng)


def _other_values(start: Scene, edit: Edit) -> list:
    """What else the edit could set: neither the right value nor the present one."""
    match edit.op:
        case "paint":
            values, present = PALETTE, start.things[edit.i].colour
        case "move":
            values, present = range(3), start.things[edit.i].slot
        case "time":
            values, present = SKIES, start.time
        case "ground":
            values, present = GROUNDS, start.ground
    return [value for value in values if value not in (edit.value, present)]


def _edits_of(triplet: Triplet, rng) -> list[Edit]:
    """One edit of every kind, on every thing, as the triplet's subset has them."""
    start = triplet.start
    things = range(len(start.things))
    edits = [Edit("remove", i) for i in things]
    edits += [Edit("move", i, slot) for i in things for slot in range(3) if start.is_free(slot)]
    for i in things:
        colours = [colour for colour in PALETTE if colour != start.things[i].colour]
        edits.append(Edit("paint", i, _pick(colours, rng)))
    edits.append(Edit("time", value=NEXT_TIME[start.time]))
    grounds = [ground for ground in GROUNDS if ground != start.ground]
    edits.append(Edit("ground", value=_pick(grounds, rng)))
    if triplet.subset == "icvg":
        for i in things:
            edits += [Edit("jump", i), Edit("zoom", i)]
        edits += [Edit("pan", value=-1), Edit("pan", value=1)]
        for i in things:
            edits += [Edit("go", i, -1), Edit("go", i, 1)]
    return edits


def _over_done(triplet: Triplet, rng) -> tuple[torch.Tensor, str]:
    """The right edit and, elsewhere, another one."""
    start, edit = triplet.start, triplet.edit
    edits = [other for other in _edits_of(triplet, rng)
             if other[:2] != edit[:2] and other.i != edit.i]
    extra = _pick(edits, rng)
    if extra.op == "remove" and edit.op in ("swap", "push"):          # they need their second thing
        extra = Edit("time", value=NEXT_TIME[start.time])
    after = apply(start, extra)
    if extra.op == "remove" and extra.i < edit.i:        # removing renumbers the things behind
        edit = edit._replace(i=edit.i - 1)
    return render(apply(after, edit)), f"{triplet.literal} , and {literal(start, extra)}"


def _pick(options: list, rng):
    return options[int(rng.integers(len(options)))]


# --------------------------------------------------------------------------------------- the oracle

def judge(triplet: Triplet, video: torch.Tensor) -> dict[str, float]:
    """The oracle's scores, 0..10, of `video` (F, 3, H, W) as an answer to `triplet` (Sec. 3.2).

    EA (Edit Accuracy), PC (Preservation Consistency; not for ICVG), GN (Generation Naturalness), GR
    (Generation Realism): see the four functions below. It compares blocks of 2 x 2 pixels, blind to
    soft edges, and knows what the source shows and what the target should.

    Flicker (a brightness per frame that averages to zero) is taken out of the distances of EA and
    PC: it counts in GN alone. Every distance is convex in the video and none at the target: on a
    blend towards it no score ever falls. Raises ValueError when the video's shape is not that of
    the target, or it is not finite.
    """
    source, target, video = triplet.source, triplet.target, video.detach().float().cpu()
    if video.shape != target.shape:
        raise ValueError(f"the video is {tuple(video.shape)}, "
                         f"the oracle needs {tuple(target.shape)}")
    if not video.isfinite().all():
        raise ValueError("the video is not finite: the oracle does not score it")
    scores = {"EA": edit_accuracy(blocks(source), blocks(target), blocks(video))}
    if triplet.subset == "rave":
        scores["PC"] = preservation(blocks(source), blocks(target), blocks(video))
    scores["GN"] = naturalness(blocks(source), blocks(target), blocks(video))
    scores["GR"] = realism(source, target, video)
    return {name: 10 * min(1., max(0., score)) for name, score in scores.items()}


def blocks(video: torch.Tensor) -> torch.Tensor:
    """Means over 2 x 2 pixels, blind to grain and soft edges. (F, 3, H, W) -> (F, 3, h, w)."""
    return F.avg_pool2d(video, 2)


def edit_accuracy(source: torch.Tensor, target: torch.Tensor, video: torch.Tensor) -> float:
    """1 - the distance of the video to the target, as a share of the source's. All are blocks.

    Each block is weighted by how much source and target differ there: 1 is the target, 0 the
    source.
    """
    weight = (source - target).abs().amax(1, keepdim=True)                            # (F, 1, h, w)
    everywhere = torch.ones_like(weight, dtype=torch.bool)
    far = (without_flicker(video - target, everywhere).abs() * weight).sum().item()
    farthest = (without_flicker(source - target, everywhere).abs() * weight).sum().item()
    return 1 - far / farthest


def preservation(source: torch.Tensor, target: torch.Tensor, video: torch.Tensor) -> float:
    """1 - the RMS distance to the source, where source and target agree. All are blocks.

    0 is a distance of 0.5 (a quarter of the range of values) or more.
    """
    rest = (source - target).abs().amax(1, keepdim=True) <= 1e-6                      # (F, 1, h, w)
    if not rest.any():
        return 1.
    change = without_flicker(video - source, rest)[rest.expand_as(source)]
    return 1 - change.pow(2).mean().sqrt().item() / .5


def without_flicker(difference: torch.Tensor, where: torch.Tensor) -> torch.Tensor:
    """Differences (F, 3, h, w) without their flicker: the median of the blocks `where`."""
    light = difference.mean(1, keepdim=True).masked_fill(~where, math.nan)            # (F, 1, h, w)
    light = light.flatten(1).nanmedian(1).values.nan_to_num()                              # (F,)
    return difference - (light - light.mean())[:, None, None, None]


def naturalness(source: torch.Tensor, target: torch.Tensor, video: torch.Tensor) -> float:
    """1 - how much jerkier the video is than the jerkier of source and target, 0.5 or more is 0.
    All are blocks.
    """
    allowed = max(jerkiness(source), jerkiness(target))
    return 1 - max(0., jerkiness(video) - allowed) / .5


def jerkiness(video: torch.Tensor) -> float:
    """The mean second difference in time."""
    return (video[2:] - 2 * video[1:-1] + video[:-2]).abs().mean().item()


def realism(source: torch.Tensor, target: torch.Tensor, video: torch.Tensor) -> float:
    """1 - the RMS distance of the fine detail from anything between source's and target's.

    Pixel by pixel; 0.3 or more is 0. It finds noise, blur and ghosts.
    """
    a, b, c = fine_detail(source), fine_detail(target), fine_detail(video)
    way = (b - a).pow(2).sum(1, keepdim=True).clamp_min(1e-9)                         # (F, 1, H, W)
    share = (((c - a) * (b - a)).sum(1, keepdim=True) / way).clamp(0, 1)
    return 1 - (c - a - share * (b - a)).pow(2).mean().sqrt().item() / .3


def fine_detail(video: torch.Tensor) -> torch.Tensor:
    """Each pixel minus the mean of its 5 x 5 neighbours. Shape as given."""
    return video - F.avg_pool2d(video, 5, 1, 2, count_include_pad=False)


# ---------------------------------------------------------------------------------------- its texts

def all_texts() -> list[str]:
    """A corpus of everything the world can say, for the tokenizer."""
    texts = []
    for subset in ("rave", "icvg"):
        for rule in RULES[subset]:
            texts += [phrase.format(n="the red ball") for phrase in rule.phrases]
        for index in range(400):
            triplet = make_triplet(index, subset, "train")
            texts += [triplet.instruction, triplet.literal, triplet.thought,
                      caption(triplet.before)]
    words = [*PALETTE, *COLOUR_WORDS.values(), *SHAPES, *SIDES, *PLACES, *GROUNDS, *SKIES]
    rng = np.random.default_rng(0)
    misses = [near_miss(make_triplet(0, "rave", "train"), kind, rng)[1] for kind in MISSES]
    return texts + 50 * words + 50 * misses


# --------------------------------------------------------------------------------------- look at it

def main(argv=None) -> None:
    parser = Parser(description="Draw a contact sheet of the tiny world's test triplets.")
    add = parser.add_argument
    add("--subset", choices=SUBSETS, default="rave", help="which subset")
    add("--number", type=positive, default=14, help="how many triplets")
    add("--out", type=Path, default=Path("out/world.png"), help="the picture to write")
    args = parser.parse_args(argv)
    check_writable(args.out)
    numbers = tqdm(range(args.number), desc="drawing scenes")
    triplets = [make_triplet(i, args.subset) for i in numbers]
    videos = {"source": [t.source for t in triplets], "target": [t.target for t in triplets]}
    contact_sheet(triplets, videos, args.out)
    print(f"wrote {args.out}")


if __name__ == "__main__":
    run_script(main)
