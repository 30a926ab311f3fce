"""The tiny world: scenes that move, edits with a reason, and an oracle that knows the answer.

    python world.py --subset rave --out out/world.png        # a contact sheet of triplets, to look at

A scene is a place (sky, skyline, ground) with two or three things in it. A *rule* is a cause ("a hard frost came
overnight"); what it does depends on what the source shows (water turns to ice, grass to snow). From rules come the
triplets (source, target, instruction) of RVE-Bench's two subsets (paper Sec. 3.1): RAVE edits the source, ICVG
continues it with a new segment. Everything is a pure function of (split, subset, index).

Left out of the paper: GPT-4o (the rules write the instructions, the oracle judges) and real films.

Axis letters: F frames, H height, W width, C classes. Pixels are in [-1, 1]; positions in widths of the picture.
"""

import argparse
import hashlib
import math
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Callable, NamedTuple

import numpy as np
import torch
import torch.nn.functional as F

from tiny import scene
from tiny.scene import (COLOURS, COLOUR_WORDS, Edit, FRAMES, GROUNDS, PALETTE, PLACES, SHAPES,
                        SIDES, SIZES, SKIES, SLOTS, Scene, Thing, apply, caption, literal, render)

# another code, another world: whoever keeps clips or scores of it compares this
VERSION = hashlib.sha256(b"".join(Path(file).read_bytes() for file in (scene.__file__, __file__))).hexdigest()


# --------------------------------------------------------------------------------------------------------- rules

GROUND_NEXT = {"grass": "snow", "snow": "grass", "water": "ice", "ice": "water"}
FROST = {"grass": "snow", "water": "ice", "stone": "ice", "sand": "snow"}
HEAT = {"snow": "grass", "ice": "water", "grass": "sand"}
TIME_NEXT = {"day": "dusk", "dusk": "night", "night": "day"}


class Rule(NamedTuple):
    """A cause. `resolve(scene, rng)` looks at the scene and returns (edit, named thing or None, thought), or None
    where the rule does not apply. `phrases`: four to train on, the last one only for the `cross` subset, as is
    `away`, a place that the rule is never trained in."""
    name: str
    type: str
    away: str
    resolve: Callable
    phrases: tuple[str, ...]


def _departed(s, rng):
    m = s.mover
    return m is not None and (Edit("remove", m), None, f"the {s.things[m].name} is moving away , so it must be gone")

def _hours(s, rng):
    return Edit("time", value=TIME_NEXT[s.time]), None, f"it is {s.time} , so later it is {TIME_NEXT[s.time]}"

def _ground(table, why):
    def resolve(s, rng):
        new = table.get(s.ground)
        return new and (Edit("ground", value=new), None, f"the ground is {s.ground} , {why} it turns to {new}")
    return resolve

def _still(s, rng, but=()):
    """A standing thing to speak of by name."""
    return next((int(i) for i in rng.permutation(len(s.things))
                 if i not in but and s.things[i].vx == 0 and not s.things[i].flies), None)

def _free(s, slot):
    return all(t.slot != slot for t in s.things)

def _light(s, rng):
    i, slot = _still(s, rng), 1 + s.light
    return i is not None and _free(s, slot) and (
        Edit("move", i, slot), i, f"the light is {SIDES[slot]} , so it must be {SIDES[slot]}")

def _flee_place(s, rng):
    big = s.largest
    i = _still(s, rng, but=(big,))
    slot = 2 if s.things[big].x < .5 else 0
    return i is not None and s.things[big].slot != 1 and _free(s, slot) and (
        Edit("move", i, slot), i, f"the largest is {SIDES[s.things[big].slot]} , so it must be {SIDES[slot]}")

def _trade(s, rng):
    i, j = s.smallest, s.largest
    return all(s.things[k].vx == 0 and not s.things[k].flies for k in (i, j)) and (
        Edit("swap", i, j), None, f"the smallest is the {s.things[i].name} , the largest is the {s.things[j].name}")

def _string(op):
    def resolve(s, rng):
        i = s.flyer
        return i is not None and (Edit(op, i), None, f"the {s.things[i].name} is in the air , so it must be on the ground")
    return resolve

def _struck(s, rng):
    i = s.largest
    return Edit("paint", i, "black"), None, f"the largest is the {s.things[i].name} , so it must be black"

def _paint_as(seen):
    def resolve(s, rng):
        i = _still(s, rng, but=(s.largest,))
        if i is None or seen(s) == s.things[i].colour: return None
        word = COLOUR_WORDS.get(seen(s), seen(s))
        return Edit("paint", i, seen(s)), i, f"what it takes the colour of is {word} , so it must be {word}"
    return resolve

def _signal(s, rng):
    i = s.find(lambda t: t.colour in ("red", "green"))
    if i is None: return None
    new = "green" if s.things[i].colour == "red" else "red"
    return Edit("paint", i, new), None, f"the signal is the {s.things[i].name} , so it must be {new}"

def _follow(s, rng):
    m = s.mover
    return m is not None and (Edit("pan", value=1 if s.things[m].vx > 0 else -1), None,
                              f"the {s.things[m].name} moves , so the camera pans with it")

def _closer(s, rng):
    i = s.smallest
    return not s.things[i].flies and (Edit("zoom", i), None,
                                      f"the smallest is the {s.things[i].name} , so the camera zooms in on it")

def _turn(s, rng):
    return Edit("pan", value=s.light), None, f"the light is {SIDES[1 + s.light]} , so the camera pans there"

def _gust(s, rng):
    i = s.smallest
    return s.things[i].vx == 0 and (Edit("go", i, -s.light), None,
                                    f"the light is {SIDES[1 + s.light]} , so the {s.things[i].name} is blown away from it")

def _push(s, rng):
    m = s.mover
    if m is None: return None
    way = 1 if s.things[m].vx > 0 else -1
    ahead = [i for i, t in enumerate(s.things) if i != m and (t.x - s.things[m].x) * way > 0
             and t.flies == s.things[m].flies]
    j = min(ahead, key=lambda i: abs(s.things[i].x - s.things[m].x), default=None)
    return j is not None and (Edit("push", m, j), None,
                              f"the {s.things[m].name} runs into the {s.things[j].name} , so that one moves on")

def _feel(toward, who):
    def resolve(s, rng):
        other = getattr(s, who)
        i = _still(s, rng, but=(other,))
        if i is None: return None
        way = (1 if s.things[other].x > s.things[i].x else -1) * toward
        return Edit("go", i, way), i, f"the {who} is the {s.things[other].name} , so it goes {SIDES[1 + way]}"
    return resolve

def _joy(s, rng):
    i = s.smallest
    return s.things[i].vx == 0 and not s.things[i].flies and (
        Edit("jump", i), None, f"the smallest is the {s.things[i].name} , so it jumps")

def _onward(s, rng):
    m = s.mover
    return m is not None and (Edit("go", m, 1 if s.things[m].vx > 0 else -1), None,
                              f"the {s.things[m].name} is moving , so it goes on the same way")

def _habit(s, rng):
    i, big = s.smallest, s.largest
    if s.things[i].vx or s.things[i].flies: return None
    if s.time == "day": return Edit("jump", i), None, f"it is day , so the {s.things[i].name} jumps"
    way = 1 if s.things[big].x > s.things[i].x else -1
    return Edit("go", i, way), None, f"it is {s.time} , so the {s.things[i].name} goes {SIDES[1 + way]} to the largest"


RULES = {"rave": (
    Rule("departed", "Temporal Reasoning", "city", _departed, (
        "imagine the scene an hour after the traveller departed", "some time has passed since the one on its way left",
        "show the place once the wanderer has taken its leave", "whoever was passing through said goodbye long ago",
        "picture the spot long after the one in motion set off")),
    Rule("hours", "Temporal Reasoning", "lake", _hours, (
        "imagine the same place some hours later", "the clock has run on for a good while",
        "come back here after a few hours", "let a third of the day pass", "wait here until the hours have gone by")),
    Rule("season", "Temporal Reasoning", "lake", _ground(GROUND_NEXT, "half a year later"), (
        "imagine this place half a year later", "two seasons have gone by", "the year has turned to its other half",
        "see it again when the opposite season reigns", "six months have passed over this land")),
    Rule("light", "Spatial Reasoning", "desert", _light, (
        "{n} went to stand below the light in the sky", "{n} likes to be right under what shines above",
        "{n} has found the spot where the light stands overhead", "{n} wants to bask beneath the bright one up there",
        "{n} rests where the lamp of the sky hangs above it")),
    Rule("far", "Spatial Reasoning", "meadow", _flee_place, (
        "{n} keeps as far from the largest as it can", "{n} has sought the spot farthest from the biggest",
        "{n} wants all the room there is between it and the largest", "{n} now stands opposite the biggest one",
        "{n} could not be any farther from the giant")),
    Rule("trade", "Spatial Reasoning", "lake", _trade, (
        "the smallest and the largest have traded homes",
        "the biggest lives where the tiniest used to , and the other way round",
        "smallest and largest each took the other's spot", "the giant and the dwarf changed places",
        "what was the home of the largest is now that of the smallest")),
    Rule("frost", "Physical Causality", "desert", _ground(FROST, "in a frost"), (
        "a hard frost came overnight", "it has been freezing for days", "an icy cold took hold of the land",
        "winter struck this place", "the temperature fell far below zero")),
    Rule("heat", "Physical Causality", "lake", _ground(HEAT, "in the heat"), (
        "a heat wave came over the land", "it has been burning hot for days", "the warmest week of all has passed",
        "hot air settled on this place", "weeks of blazing heat have gone by")),
    Rule("string", "Physical Causality", "meadow", _string("drop"), (
        "what held it up in the air has given way", "the string that kept it aloft was cut",
        "nothing carries the hovering one any more", "gravity has won over the one above",
        "the one up high has lost its support")),
    Rule("struck", "Physical Causality", "lake", _struck, (
        "lightning struck the largest one", "a bolt from the sky has charred the biggest",
        "the giant caught fire and burned out", "the biggest one was scorched by a flash",
        "a flash of lightning found the tallest target")),
    Rule("mirror", "Semantic Inference", "desert", _paint_as(lambda s: s.time), (
        "{n} has been polished until it mirrors the sky", "the sky is reflected all over {n}",
        "{n} is now a mirror turned to the heavens", "{n} shines with the reflection of what is above",
        "{n} gleams like a looking glass under the heavens")),
    Rule("blend", "Semantic Inference", "meadow", _paint_as(lambda s: s.ground), (
        "{n} hides by blending into the ground", "{n} is camouflaged on what it stands on",
        "{n} has taken on the look of the soil below", "nobody can tell {n} from the floor it stands on",
        "{n} is a chameleon on the ground")),
    Rule("signal", "Semantic Inference", "city", _signal, (
        "the traffic signal has switched", "the signal now says the opposite", "the lamp of the crossing has changed over",
        "drivers see the other signal now", "the signal flipped to its counterpart")),
    Rule("team", "Semantic Inference", "lake", _paint_as(lambda s: s.things[s.largest].colour), (
        "{n} has joined the team of the largest", "{n} wears the uniform of the biggest one",
        "{n} now belongs to the club of the giant", "{n} plays on the side of the largest from today",
        "{n} is dressed like its big captain")),
), "icvg": (
    Rule("follow", "Camera Reasoning", "lake", _follow, (
        "the camera goes after the one that travels", "we keep watching the one on its way",
        "the operator cannot let go of the moving one", "our eyes stay on the traveller",
        "the shot chases the one in motion")),
    Rule("closer", "Camera Reasoning", "meadow", _closer, (
        "the camera wants a closer look at the smallest one", "show us what the tiniest is like",
        "the shot is now all about the smallest", "let us study the dwarf among them",
        "the lens is curious about the smallest")),
    Rule("turn", "Camera Reasoning", "desert", _turn, (
        "the camera looks to where the light comes from", "the shot searches for the source of the light",
        "our gaze is drawn by what shines", "the operator turns to the brightness",
        "the view seeks out the light")),
    Rule("gust", "Causal Reasoning", "city", _gust, (
        "a gust from the bright side catches the smallest", "wind rises where the light stands and takes the smallest along",
        "the smallest is blown off by a breeze from the light", "the tiniest cannot stand against the wind from the light",
        "air rushes in from the shining side onto the smallest")),
    Rule("push", "Causal Reasoning", "meadow", _push, (
        "what travels runs into what is in its path", "the moving one hands its speed to the next",
        "there is a collision ahead", "the traveller bumps into its neighbour",
        "the one on its way hits the one before it")),
    Rule("snap", "Causal Reasoning", "desert", _string("fall"), (
        "the rope that holds it up snaps now", "what keeps it in the air fails this moment",
        "watch the hovering one lose its hold", "gravity takes the one above right now",
        "this is the instant its support breaks")),
    Rule("fear", "Emotional Reasoning", "lake", _feel(-1, "largest"), (
        "{n} is afraid of the largest", "the biggest one frightens {n}", "{n} panics at the sight of the giant",
        "{n} feels threatened by the largest", "{n} dreads the biggest")),
    Rule("longing", "Emotional Reasoning", "city", _feel(1, "smallest"), (
        "{n} longs for the company of the smallest", "{n} misses the tiniest one", "{n} is fond of the smallest",
        "the smallest has won the heart of {n}", "{n} yearns for the dwarf")),
    Rule("joy", "Emotional Reasoning", "desert", _joy, (
        "the smallest cannot hide its joy", "the tiniest is beside itself with happiness",
        "good news reach the smallest one", "the smallest is overjoyed", "the dwarf is in the happiest mood")),
    Rule("onward", "Commonsense Reasoning", "meadow", _onward, (
        "what is on its way keeps going , faster and faster", "the traveller is in a hurry to get there",
        "nothing stops the one in motion", "the moving one is late and speeds up",
        "the one on its way presses on")),
    Rule("nightfall", "Commonsense Reasoning", "city", _hours, (
        "the day goes on as days do", "time passes in the usual order", "then comes the next part of the day",
        "the sun and the moon keep to their schedule", "the day takes its natural course")),
    Rule("habit", "Commonsense Reasoning", "lake", _habit, (
        "the smallest does what children do at this hour",
        "the little one plays by day and seeks its parent when it is dark",
        "the tiniest behaves as the hour asks of the young", "this is the time of day that tells the smallest what to do",
        "the little one follows the clock as the young do")),
)}
TYPES = {s: list(dict.fromkeys(r.type for r in rules)) for s, rules in RULES.items()}
SPLITS, SUBSETS = ("train", "val", "test"), ("rave", "icvg", "literal", "cross")


@dataclass(frozen=True)
class Triplet:
    """source and target: (F, 3, H, W) in [-1, 1]. `subset` is "rave" or "icvg" (no PC), whatever was asked for."""
    source: torch.Tensor
    target: torch.Tensor
    instruction: str
    literal: str
    type: str
    thought: str
    subset: str
    rule: str
    before: Scene
    edit: Edit

    @property
    def after(self) -> Scene:
        return apply(self.before if self.subset == "rave" else self.before.later(), self.edit)


def random_scene(rng: np.random.Generator, place: str) -> Scene:
    """A scene in `place`: two or three things of different sizes and colours, at most one moving, at most one aloft."""
    time = str(rng.choice(list(SKIES)))
    ground = PLACES[place]
    if ground in GROUND_NEXT and rng.random() < .35:
        ground = GROUND_NEXT[ground]
    n = int(rng.integers(2, 4))
    slots, sizes = rng.permutation(3)[:n], rng.permutation(SIZES)[:n]
    colours = rng.permutation(list(COLOURS))[:n]
    mover = int(rng.integers(n)) if rng.random() < .6 else -1
    flyer = int(rng.integers(n)) if rng.random() < .45 else -1
    things = []
    for k in range(n):
        t = Thing(str(rng.choice(SHAPES)), str(colours[k]), float(sizes[k]), SLOTS[slots[k]] + rng.uniform(-.03, .03), 0.)
        y = rng.uniform(.24, .32) if k == flyer and k != mover else t.floor
        vx = 0.
        if k == mover:                                   # in the middle it goes either way, at the side mostly outwards
            way = rng.choice([-1, 1]) if slots[k] == 1 or rng.random() < .4 else int(slots[k]) - 1
            vx = float(way) * rng.uniform(.012, .018)
        things.append(replace(t, y=float(y), vx=vx))
    return Scene(place, time, ground, int(rng.choice([-1, 1])), float(rng.uniform(0, 6)), tuple(things))


def make_triplet(index: int, subset: str = "rave", split: str = "test") -> Triplet:
    """Triplet number `index` of a subset and split: the same on every machine, types in turn (Sec. 3.1, 3.2).

    subset: "rave" (edits), "icvg" (the next segment), "literal" (RAVE with the literal instruction; Table 3) or
    "cross" (RAVE in a phrasing and at a place that its rule was never trained with; Table 2; no train split).
    Raises ValueError for an unknown subset or split, and for the train split of "cross".
    """
    if subset not in SUBSETS:
        raise ValueError(f"unknown subset {subset!r}: choose one of {', '.join(SUBSETS)}")
    if split not in SPLITS or (subset, split) == ("cross", "train"):
        raise ValueError(f"no split {split!r} of subset {subset!r}: choose one of {', '.join(SPLITS)}"
                         + (" (cross is never trained on)" if split == "train" else ""))
    kind = "icvg" if subset == "icvg" else "rave"
    types = TYPES[kind]
    rng = np.random.default_rng([SPLITS.index(split), SUBSETS.index(subset), index])
    same_type = [r for r in RULES[kind] if r.type == types[index % len(types)]]
    rule = same_type[index // len(types) % len(same_type)]
    places = [rule.away] if subset == "cross" else [p for p in PLACES if p != rule.away]
    while True:                                          # draw scenes until one is such that the rule applies
        before = random_scene(rng, str(rng.choice(places)))
        found = rule.resolve(before if kind == "rave" else before.later(), rng)
        if not found:
            continue
        edit, named, thought = found
        after = apply(before if kind == "rave" else before.later(), edit)
        source, target = render(before), render(after)
        if (_blocks(source) - _blocks(target)).abs().amax((1, 2, 3)).gt(.2).sum() >= 3:    # the edit can be seen
            break
    phrase = rule.phrases[4] if subset == "cross" else rule.phrases[int(rng.integers(4))]
    n = f"the {before.things[named].name}" if named is not None else ""
    plain = literal(before, edit)
    return Triplet(source, target, plain if subset == "literal" else phrase.format(n=n), plain, rule.type, thought,
                   kind, rule.name, before, edit)


MISSES = ("nothing", "half", "wrong object", "wrong effect", "over-done", "noise", "flicker")

def near_miss(triplet: Triplet, kind: str, rng: np.random.Generator) -> tuple[torch.Tensor, str]:
    """A wrong answer to `triplet`, and in plain words what was done to the source in it.

    kind is one of MISSES; the video is (F, 3, H, W) in [-1, 1]. What a critic must have seen to be worth asking.
    Raises ValueError for another kind.
    """
    start = triplet.before if triplet.subset == "rave" else triplet.before.later()
    e, n, things = triplet.edit, len(start.things), start.things
    pick = lambda options: options[int(rng.integers(len(options)))]
    other = {"paint": lambda: pick([c for c in PALETTE if c not in (e.value, things[e.i].colour)]),
             "move": lambda: pick([k for k in range(3) if k not in (e.value, things[e.i].slot)]),
             "time": lambda: pick([c for c in SKIES if c not in (e.value, start.time)]),
             "ground": lambda: pick([g for g in GROUNDS if g not in (e.value, start.ground)]),
             "pan": lambda: -e.value, "go": lambda: -e.value}.get(e.op)

    def another_edit():
        edits = [Edit("remove", i) for i in range(n)]
        edits += [Edit("move", i, k) for i in range(n) for k in range(3) if _free(start, k)]
        edits += [Edit("paint", i, pick([c for c in PALETTE if c != things[i].colour])) for i in range(n)]
        edits += [Edit("time", value=TIME_NEXT[start.time])]
        edits += [Edit("ground", value=pick([g for g in GROUNDS if g != start.ground]))]
        if triplet.subset == "icvg":
            edits += [Edit(op, i) for i in range(n) for op in ("jump", "zoom")] + [Edit("pan", value=w) for w in (-1, 1)]
            edits += [Edit("go", i, w) for i in range(n) for w in (-1, 1)]
        return pick([o for o in edits if o[:2] != e[:2] and (kind != "over-done" or o.i != e.i)])

    if kind == "nothing":
        return triplet.source.clone(), "nothing has changed"
    if kind == "half":
        a = float(rng.uniform(.25, .75))
        return triplet.source * (1 - a) + triplet.target * a, f"half of : {triplet.literal}"
    if kind == "noise":
        noise = torch.from_numpy(rng.normal(0, rng.uniform(.05, .5), triplet.target.shape).astype(np.float32))
        return (triplet.target + noise).clamp(-1, 1), f"{triplet.literal} , and there is noise"
    if kind == "flicker":
        light = torch.from_numpy(rng.uniform(-.5, .5, (FRAMES, 1, 1, 1)).astype(np.float32))
        return (triplet.target + light - light.mean()).clamp(-1, 1), f"{triplet.literal} , and it flickers"
    if kind == "over-done":
        extra = another_edit()
        if extra.op == "remove" and e.op in ("swap", "push"):                    # these would lose their second thing
            extra = Edit("time", value=TIME_NEXT[start.time])
        moved = int(extra.op == "remove" and 0 <= extra.i < e.i)                 # removing renumbers the things after
        both = apply(apply(start, extra), e._replace(i=e.i - moved) if e.i >= 0 else e)
        return render(both), f"{triplet.literal} , and {literal(start, extra)}"
    if kind == "wrong object" and e.i >= 0 and e.op not in ("swap", "push"):
        wrong = e._replace(i=pick([k for k in range(n) if k != e.i]))
    elif kind == "wrong effect" and other:
        wrong = e._replace(value=other())
    elif kind in ("wrong object", "wrong effect"):
        wrong = another_edit()
    else:
        raise ValueError(f"unknown miss {kind!r}: choose one of {', '.join(MISSES)}")
    return render(apply(start, wrong)), literal(start, wrong)


# --------------------------------------------------------------------------------------------------- the oracle

def _blocks(video):
    """Means over 2x2 pixels: what is where, blind to grain and to soft edges. (F, 3, H, W) -> (F, 3, H/2, W/2)"""
    return F.avg_pool2d(video, 2)


def judge(triplet: Triplet, video: torch.Tensor) -> dict[str, float]:
    """The oracle's scores of `video` (F, 3, H, W) in [-1, 1] as an answer to `triplet`, each in 0..10 (Sec. 3.2).

    EA: the distance of the video to the target, as a share of that of the source, over all 2x2-pixel blocks, each
        weighted by how much source and target differ there. 10 is the target, 0 the source or anything as far away.
    PC: over all blocks where source and target agree, the RMS distance of the video to the source. 10 is no distance,
        0 is 0.5 (a quarter of the range of values) or more; ICVG has no "PC".
    GN: the mean second difference in time of the blocks, in excess of that of the jerkier of source and target. 10 is
        no excess, 0 is 0.5 or more.
    GR: the RMS distance of the fine detail (pixel minus the mean of its 5x5 neighbours) from anything between the
        detail of the source and that of the target, pixel by pixel. 10 is none, 0 is 0.3 or more: noise, blur, ghosts.

    Flicker (a brightness per frame that averages to zero) is taken out of the distances of EA and PC: it counts in GN
    alone. Every distance is convex in the video and none at the target: on a blend towards it no score ever falls.
    Raises ValueError when the video's shape is not that of the target, or where it holds a NaN or an infinity.
    """
    S, T, V = triplet.source, triplet.target, video.detach().float().cpu()
    if V.shape != T.shape:
        raise ValueError(f"the video is {tuple(V.shape)}, the oracle needs {tuple(T.shape)}")
    if not V.isfinite().all():
        raise ValueError("the video is not finite: the oracle does not score it")
    s, t, v = _blocks(S), _blocks(T), _blocks(V)
    gap = (s - t).abs().amax(1, keepdim=True)                                             # (F, 1, h, w)
    rest = gap <= 1e-6

    def steady(d, where):
        """Differences d (F, 3, h, w) without their flicker, as the median over the blocks `where` shows it."""
        light = d.mean(1, keepdim=True).masked_fill(~where, math.nan).flatten(1).nanmedian(1).values.nan_to_num()
        return d - (light - light.mean())[:, None, None, None]

    far = lambda x: (steady(x - t, torch.ones_like(rest)).abs() * gap).sum().item()
    ea = 1 - far(v) / far(s)
    pc = 1 - steady(v - s, rest)[rest.expand_as(s)].pow(2).mean().sqrt().item() / .5 if rest.any() else 1.
    jerk = lambda x: (x[2:] - 2 * x[1:-1] + x[:-2]).abs().mean().item()
    gn = 1 - max(0., jerk(v) - max(jerk(s), jerk(t))) / .5
    fine = lambda x: x - F.avg_pool2d(x, 5, 1, 2, count_include_pad=False)
    a, b, c = fine(S), fine(T), fine(V)
    share = (((c - a) * (b - a)).sum(1, keepdim=True) / (b - a).pow(2).sum(1, keepdim=True).clamp_min(1e-9)).clamp(0, 1)
    gr = 1 - (c - a - share * (b - a)).pow(2).mean().sqrt().item() / .3
    scores = {"EA": ea, "PC": pc, "GN": gn, "GR": gr}
    if triplet.subset == "icvg":
        del scores["PC"]
    return {k: 10 * min(1., max(0., x)) for k, x in scores.items()}


def all_texts() -> list[str]:
    """A corpus of everything the world can say, for the tokenizer."""
    texts = []
    for subset in ("rave", "icvg"):
        for rule in RULES[subset]:
            texts += [p.format(n="the red ball") for p in rule.phrases]
        for index in range(400):
            t = make_triplet(index, subset, "train")
            texts += [t.instruction, t.literal, t.thought, caption(t.before)]
    words = [*PALETTE, *COLOUR_WORDS.values(), *SHAPES, *SIDES, *PLACES, *GROUNDS, *SKIES]
    rng = np.random.default_rng(0)
    notes = [near_miss(make_triplet(0, "rave", "train"), m, rng)[1] for m in MISSES]
    return texts + 50 * words + 50 * notes


def contact_sheet(triplets, rows, path, columns=(0, 4, 8)):
    """Write a PNG: one line a triplet, `rows` = {"source": [video, ...], ...}, frames `columns` of each video."""
    import matplotlib
    matplotlib.use("Agg")
    import matplotlib.pyplot as plt
    h, w = next(iter(rows.values()))[0].shape[-2:]
    scale = max(1, round(100 / h))                       # whole dots for a pixel, about 100 dots for a frame
    strip, row, top, gap = (scale * w + 2) * len(columns), scale * h + 28, 22, 12          # all in dots
    width, height = (strip + gap) * len(rows) + gap, row * len(triplets) + top
    sheet = torch.ones(3, height, width)
    figure = plt.figure(figsize=(width / 100, height / 100), dpi=100)
    write = lambda x, y, text, **kw: figure.text(x / width, 1 - y / height, text, parse_math=False, **kw)
    for c, (name, videos) in enumerate(rows.items()):
        x = gap + c * (strip + gap)
        write(x + strip / 2, top - 8, name, size=10, weight="bold", ha="center")
        for r, video in zip(range(len(triplets)), videos):
            for k, f in enumerate(columns):
                frame = video[min(f, len(video) - 1)].detach().float().cpu().nan_to_num()
                left, upper = x + k * (scale * w + 2), top + r * row + 22
                sheet[:, upper:upper + scale * h, left:left + scale * w] = \
                    ((frame + 1) / 2).clamp(0, 1).repeat_interleave(scale, 1).repeat_interleave(scale, 2)
    letters = (width - 2 * gap) * 10 // 64               # that fit into a line
    for r, triplet in enumerate(triplets):
        text = triplet.instruction
        write(gap, top + r * row + 16, text if len(text) <= letters else text[:letters - 3] + "...", size=9)
    figure.figimage(sheet.permute(1, 2, 0).numpy(), zorder=-1)
    figure.savefig(path, dpi=100, format="png")
    plt.close(figure)


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description="Draw a contact sheet of the tiny world.")
    parser.add_argument("--subset", choices=SUBSETS, default="rave", help="which subset (default: rave)")
    parser.add_argument("--out", default="out/world.png", help="the picture to write (default: out/world.png)")
    parser.add_argument("--number", type=int, default=14, help="how many triplets (default: 14)")
    args = parser.parse_args()
    triplets = [make_triplet(i, args.subset, "test") for i in range(args.number)]
    Path(args.out).parent.mkdir(parents=True, exist_ok=True)
    contact_sheet(triplets, {"source": [t.source for t in triplets], "target": [t.target for t in triplets]}, args.out)
    print(f"wrote {args.out}")
