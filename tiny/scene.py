"""The tiny world's scenes: what can be in one, how it is described, how it can be edited.

A scene is a place (sky, skyline, ground) with two or three things in it. An `Edit` is one literal
operation on it ("remove the red ball"). Why it should be made is the business of rules.py, what it
looks like of draw.py.

Positions and sizes are in widths of the picture: x from left to right, y from top to bottom.
"""

from dataclasses import dataclass, replace
from typing import Any, Callable, NamedTuple

import numpy as np

SIZE, FRAMES = 32, 9                                     # of a clip, in pixels and in frames

# ----------------------------------------------------------------------------------- the vocabulary

COLOURS = {
    "red": (.90, .10, .12), "green": (.05, .68, .20), "blue": (.12, .25, .90),
    "yellow": (.98, .86, .10), "purple": (.60, .15, .75)}
SKIES = {"day": (.55, .80, 1.0), "dusk": (1.0, .60, .35), "night": (.06, .07, .25)}
GROUNDS = {
    "grass": (.45, .65, .28), "water": (.15, .45, .62), "sand": (.88, .78, .52),
    "stone": (.55, .54, .54), "snow": (.96, .97, .98), "ice": (.68, .90, .95)}
PALETTE = {**COLOURS, **SKIES, **GROUNDS, "black": (.05, .05, .05)}    # what a thing can be painted
COLOUR_WORDS = {                                      # where the colour's name is not its adjective
    "day": "pale blue", "dusk": "orange", "night": "navy", "grass": "grass green",
    "water": "water blue", "sand": "sandy", "stone": "grey", "snow": "white", "ice": "icy"}
PLACES = {"meadow": "grass", "lake": "water", "desert": "sand", "city": "stone"}  # and their ground
OTHER_SEASON = {"grass": "snow", "snow": "grass", "water": "ice", "ice": "water"}
SHAPES = ("ball", "box", "tent")
SIZES = (.10, .135, .175)
SIZE_WORDS = ("small", "medium", "large")
SLOTS = (.18, .5, .82)                                # where things stand: x of left, middle, right
SIDES = ("left", "middle", "right")
FLOOR = .70                                              # y of a thing's centre, where it stands


# -------------------------------------------------------------------------------- things and scenes

@dataclass(frozen=True)
class Thing:
    """One object: looks, centre (x, y) in frame 0, speed in widths a frame, act in ICVG."""
    shape: str
    colour: str
    size: float
    x: float
    y: float
    vx: float = 0.0
    act: str = ""                                        # "", "jump" or "fall"

    @property
    def name(self) -> str:
        return f"{COLOUR_WORDS.get(self.colour, self.colour)} {self.shape}"

    @property
    def floor(self) -> float:
        """y of the centre when standing on the ground; small things stand a little farther away."""
        return FLOOR + .1 - self.size * .2

    @property
    def flies(self) -> bool:
        return self.y < .4

    @property
    def slot(self) -> int:
        """0, 1 or 2: the nearest of left, middle and right."""
        return min(range(3), key=lambda k: abs(SLOTS[k] - self.x))


@dataclass(frozen=True)
class Scene:
    """What one clip shows. Things are referred to by their index in `things`.

    camera: (x0, zoom0, x1, zoom1), where it looks in the first and in the last frame.
    """
    place: str
    time: str
    ground: str
    light: int                                           # sun or moon: -1 left, +1 right
    ridge: float                                         # phase of the skyline
    things: tuple[Thing, ...]
    camera: tuple[float, float, float, float] = (.5, 1., .5, 1.)

    def later(self) -> "Scene":
        """The scene one clip later, where ICVG's next segment begins: what moves has moved on."""
        return replace(self, things=tuple(replace(t, x=t.x + FRAMES * t.vx) for t in self.things))

    def find(self, wanted: Callable[[Thing], bool]) -> int | None:
        """The only thing that is `wanted`; None where there is none, or more than one."""
        hits = [i for i, thing in enumerate(self.things) if wanted(thing)]
        return hits[0] if len(hits) == 1 else None

    @property
    def mover(self) -> int | None:
        return self.find(lambda thing: thing.vx != 0)

    @property
    def flyer(self) -> int | None:
        return self.find(lambda thing: thing.flies and thing.vx == 0)

    @property
    def largest(self) -> int:
        return max(range(len(self.things)), key=lambda i: self.things[i].size)

    @property
    def smallest(self) -> int:
        return min(range(len(self.things)), key=lambda i: self.things[i].size)

    def is_free(self, slot: int) -> bool:
        return all(thing.slot != slot for thing in self.things)

    def change(self, i: int, **fields) -> "Scene":
        """The scene with other `fields` of thing i."""
        things = list(self.things)
        things[i] = replace(things[i], **fields)
        return replace(self, things=tuple(things))


def random_scene(rng: np.random.Generator, place: str) -> Scene:
    """Two or three things in `place`, of different sizes and colours; one may move, one may fly."""
    time = str(rng.choice(list(SKIES)))
    ground = PLACES[place]
    if ground in OTHER_SEASON and rng.random() < .35:
        ground = OTHER_SEASON[ground]
    n = int(rng.integers(2, 4))
    slots = rng.permutation(3)[:n]
    sizes = rng.permutation(SIZES)[:n]
    colours = rng.permutation(list(COLOURS))[:n]
    mover = int(rng.integers(n)) if rng.random() < .6 else -1
    flyer = int(rng.integers(n)) if rng.random() < .45 else -1
    things = []
    for k in range(n):
        shape = str(rng.choice(SHAPES))
        x = SLOTS[slots[k]] + rng.uniform(-.03, .03)
        thing = Thing(shape, str(colours[k]), float(sizes[k]), x, y=0.)
        y, vx = thing.floor, 0.
        if k == flyer and k != mover:
            y = rng.uniform(.24, .32)
        if k == mover:
            vx = _random_speed(rng, int(slots[k]))
        things.append(replace(thing, y=float(y), vx=vx))
    light = int(rng.choice([-1, 1]))
    return Scene(place, time, ground, light, float(rng.uniform(0, 6)), tuple(things))


def _random_speed(rng, slot: int) -> float:
    """In the middle either way, at a side mostly outwards."""
    if slot == 1 or rng.random() < .4:
        way = rng.choice([-1, 1])
    else:
        way = slot - 1
    return float(way) * rng.uniform(.012, .018)


def caption(scene: Scene) -> str:
    """One line that says all that can be seen: for plain generation, and for the VLM to write."""
    side = "left" if scene.light < 0 else "right"
    text = f"a {scene.place} of {scene.ground} at {scene.time} . light {side} ."
    for thing in sorted(scene.things, key=lambda thing: thing.x):
        nearest = min(range(3), key=lambda k: abs(SIZES[k] - thing.size))
        text += f" {SIZE_WORDS[nearest]} {thing.name} {SIDES[thing.slot]}"
        if thing.flies:
            text += " in the air"
        if thing.vx != 0:
            text += " moving left" if thing.vx < 0 else " moving right"
        text += " ."
    return text


# -------------------------------------------------------------------------------------------- edits

class Edit(NamedTuple):
    """One literal operation: what (see `apply`), on which thing (-1: the scene), which value."""
    op: str
    i: int = -1
    value: Any = None


def apply(scene: Scene, edit: Edit) -> Scene:
    """The scene after the edit. Raises ValueError for an unknown operation."""
    i, value = edit.i, edit.value
    thing = scene.things[i] if i >= 0 else None
    match edit.op:
        case "remove":
            return replace(scene, things=scene.things[:i] + scene.things[i + 1:])
        case "paint":                                    # value: a colour of PALETTE
            return scene.change(i, colour=value)
        case "move":                                     # value: a slot
            return scene.change(i, x=SLOTS[value])
        case "drop":
            return scene.change(i, y=thing.floor)
        case "swap":                                     # value: the other thing
            return scene.change(i, x=scene.things[value].x).change(value, x=thing.x)
        case "time":
            return replace(scene, time=value)
        case "ground":
            return replace(scene, ground=value)
        case "pan":                                      # value: -1 left, +1 right
            return replace(scene, camera=(.5, 1., .5 + .35 * value, 1.))
        case "zoom":
            return replace(scene, camera=(.5, 1., thing.x + thing.vx * FRAMES / 2, 1.8))
        case "go":                                       # value: -1 left, +1 right
            return scene.change(i, vx=.035 * value)
        case "jump" | "fall":
            return scene.change(i, act=edit.op)
        case "push":                                     # value: the thing that is pushed
            way = 1 if thing.vx > 0 else -1
            return scene.change(i, vx=0.).change(value, vx=.035 * way)
    raise ValueError(f"unknown edit {edit.op!r}")


def literal(scene: Scene, edit: Edit) -> str:
    """The edit in plain words, as conventional editing data has it (Ditto-1M; the paper's Table 3).

    Raises ValueError for an unknown operation.
    """
    value = edit.value
    name = f"the {scene.things[edit.i].name}" if edit.i >= 0 else ""
    match edit.op:
        case "remove":
            return f"remove {name}"
        case "paint":
            return f"paint {name} {COLOUR_WORDS.get(value, value)}"
        case "move":
            return f"move {name} to the {SIDES[value]}"
        case "drop":
            return f"put {name} on the ground"
        case "swap":
            return f"swap {name} and the {scene.things[value].name}"
        case "time":
            return f"make it {value}"
        case "ground":
            return f"turn the ground to {value}"
        case "pan":
            return f"pan the camera to the {SIDES[1 + value]}"
        case "zoom":
            return f"zoom in on {name}"
        case "go":
            return f"{name} moves to the {SIDES[1 + value]}"
        case "jump":
            return f"{name} jumps"
        case "fall":
            return f"{name} falls down"
        case "push":
            return f"{name} stops and the {scene.things[value].name} moves on"
    raise ValueError(f"unknown edit {edit.op!r}")
