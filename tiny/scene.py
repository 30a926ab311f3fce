"""The tiny world's scenes: what can be in one, how it is drawn, and what can be done to it.

A scene is a place (sky, skyline, ground) with two or three things in it. An `Edit` is one literal operation on it
("remove the red ball"); why one should be made is the business of world.py's rules.

Axis letters: F frames, H height, W width. Pixels are in [-1, 1]; positions in widths of the picture.
"""

from dataclasses import dataclass, replace
from typing import Any, Callable, NamedTuple

import numpy as np
import torch

SIZE, FRAMES = 32, 9
COLOURS = {"red": (.90, .10, .12), "green": (.05, .68, .20), "blue": (.12, .25, .90), "yellow": (.98, .86, .10),
           "purple": (.60, .15, .75)}
SKIES = {"day": (.55, .80, 1.0), "dusk": (1.0, .60, .35), "night": (.06, .07, .25)}
GROUNDS = {"grass": (.45, .65, .28), "water": (.15, .45, .62), "sand": (.88, .78, .52), "stone": (.55, .54, .54),
           "snow": (.96, .97, .98), "ice": (.68, .90, .95)}
PALETTE = {**COLOURS, **SKIES, **GROUNDS, "black": (.05, .05, .05)}
COLOUR_WORDS = {"day": "pale blue", "dusk": "orange", "night": "navy", "grass": "grass green", "water": "water blue",
                "sand": "sandy", "stone": "grey", "snow": "white", "ice": "icy"}
PLACES = {"meadow": "grass", "lake": "water", "desert": "sand", "city": "stone"}
SHAPES = ("ball", "box", "tent")
SIZES = (.10, .135, .175)
SLOTS = (.18, .5, .82)                                   # left, middle, right
SIDES = ("left", "middle", "right")
FLOOR = .70                                              # where things stand, as the centre's height
LABELS = [f"sky {s}" for s in SKIES] + ["light", "skyline"] + list(GROUNDS) \
    + [f"{c} {s}" for c in PALETTE for s in SHAPES]      # what can cover a pixel, for the vision tower's first lessons


@dataclass(frozen=True)
class Thing:
    """One object: its looks, its centre (x, y) at frame 0, its velocity per frame, and what it does in ICVG."""
    shape: str
    colour: str
    size: float
    x: float
    y: float
    vx: float = 0.0
    act: str = ""                                        # "", "jump", "fall"

    @property
    def name(self) -> str:
        return f"{COLOUR_WORDS.get(self.colour, self.colour)} {self.shape}"

    @property
    def floor(self) -> float:
        """Height of the centre when standing on the ground (small things stand a little farther away)."""
        return FLOOR + .1 - self.size * .2

    @property
    def flies(self) -> bool:
        return self.y < .4

    @property
    def slot(self) -> int:
        return min(range(3), key=lambda k: abs(SLOTS[k] - self.x))


@dataclass(frozen=True)
class Scene:
    """What one clip shows. `camera` is (x0, zoom0, x1, zoom1): where it looks in the first and in the last frame."""
    place: str
    time: str
    ground: str
    light: int                                           # sun or moon: -1 left, +1 right
    ridge: float                                         # phase of the skyline
    things: tuple[Thing, ...]
    camera: tuple[float, float, float, float] = (.5, 1., .5, 1.)

    def later(self) -> "Scene":
        """The scene one clip later: where the next segment of ICVG begins."""
        return replace(self, things=tuple(replace(t, x=t.x + FRAMES * t.vx) for t in self.things))

    def find(self, wanted: Callable[[Thing], bool]) -> int | None:
        hits = [i for i, t in enumerate(self.things) if wanted(t)]
        return hits[0] if len(hits) == 1 else None

    @property
    def mover(self): return self.find(lambda t: t.vx != 0)

    @property
    def flyer(self): return self.find(lambda t: t.flies and t.vx == 0)

    @property
    def largest(self): return max(range(len(self.things)), key=lambda i: self.things[i].size)

    @property
    def smallest(self): return min(range(len(self.things)), key=lambda i: self.things[i].size)


def caption(scene: Scene) -> str:
    """One line that says all that can be seen; the text of plain generation and of the VLM's first lessons."""
    parts = [f"a {scene.place} of {scene.ground} at {scene.time} . light {'left' if scene.light < 0 else 'right'} ."]
    for t in sorted(scene.things, key=lambda t: t.x):
        size = ("small", "medium", "large")[min(range(3), key=lambda k: abs(SIZES[k] - t.size))]
        motion = "" if t.vx == 0 else f" moving {'left' if t.vx < 0 else 'right'}"
        parts.append(f"{size} {t.name} {SIDES[t.slot]}{' in the air' if t.flies else ''}{motion} .")
    return " ".join(parts)


# ---------------------------------------------------------------------------------------------------- the renderer

def paint(scene: Scene) -> tuple[np.ndarray, np.ndarray]:
    """Draw `scene`; returns video (F, H, W, 3) float32 in [0, 1] and labels (F, H, W), indices into LABELS.

    Shapes are signed distances in pixels, clipped to 1.6 pixels of coverage: smooth edges without supersampling.
    """
    f = np.arange(FRAMES, dtype=np.float32)[:, None, None]
    grid = (np.arange(SIZE, dtype=np.float32) + .5) / SIZE
    px, py = grid[None, None, :], grid[None, :, None]
    x0, z0, x1, z1 = scene.camera
    a = f / (FRAMES - 1)
    zoom, centre = z0 + a * (z1 - z0), x0 + a * (x1 - x0)
    wx = centre + (px - .5) / zoom                                                         # (F, 1, W)
    wy = .75 + (py - .75) / zoom                                                             # (F, H, 1)
    pixels = SIZE * zoom

    def over(video, labels, distance, colour, label):
        cover = np.clip(.5 - distance * pixels / 1.6, 0, 1)[..., None]
        return video * (1 - cover) + cover * colour, np.where(cover[..., 0] > .5, label, labels)

    shade = {"day": 1., "dusk": .8, "night": .42}[scene.time]
    sky = np.array(SKIES[scene.time], np.float32)
    video = np.broadcast_to((sky * (.75 + .5 * np.clip(wy, 0, 1)[..., None])).clip(0, 1), (FRAMES, SIZE, SIZE, 3))
    labels = np.full((FRAMES, SIZE, SIZE), list(SKIES).index(scene.time))
    glow = {"day": (1., .95, .5), "dusk": (.95, .25, .15), "night": (.92, .92, .85)}[scene.time]
    video, labels = over(video, labels, np.hypot(wx - .5 - .36 * scene.light, wy - .13) - .07, np.array(glow), 3)
    p = scene.ridge
    height = {"meadow": lambda x: .05 + .03 * np.sin(8 * x + p),
              "lake": lambda x: .02 + .12 * np.abs((2 * x + p) % 1 - .5),
              "desert": lambda x: .04 + .03 * np.abs(np.sin(5 * x + p)),
              "city": lambda x: .03 + .10 * np.abs(np.sin(np.floor(8 * x) * 2.4 + p))}[scene.place](wx)
    ridge = np.array({"meadow": (.25, .45, .25), "lake": (.45, .45, .55), "desert": (.72, .55, .35),
                      "city": (.38, .38, .45)}[scene.place])
    video, labels = over(video, labels, .45 - height - wy, ridge * shade, 4)
    ground = np.array(GROUNDS[scene.ground]) * shade
    video, labels = over(video, labels, .45 - wy + 0 * wx, ground, 5 + list(GROUNDS).index(scene.ground))

    for t in sorted(scene.things, key=lambda t: t.y):
        y = t.y + 0 * f
        if t.act == "jump":
            y = t.y - .25 * np.sin(np.pi * f / 8)
        if t.act == "fall":
            y = np.minimum(t.floor, t.y + .02 * f ** 2)
        dx, dy, r = wx - t.x - t.vx * f, wy - y, t.size
        d = {"ball": lambda: np.hypot(dx, dy) - r,
             "box": lambda: np.maximum(np.abs(dx), np.abs(dy)) - .88 * r,
             "tent": lambda: np.maximum(.866 * np.abs(dx) - .5 * dy - .6 * r, dy - .7 * r)}[t.shape]()
        colour = np.array(PALETTE[t.colour])
        label = LABELS.index(f"{t.colour} {t.shape}")
        video, labels = over(video, labels, d, colour * .5, label)                         # a dark rim,
        video, _ = over(video, labels, d + 1 / SIZE, colour, label)                      # the thing inside it
    return video.astype(np.float32), labels


def render(scene: Scene) -> torch.Tensor:
    """The clip of `scene`: (F, 3, H, W), float32 in [-1, 1]."""
    return torch.from_numpy(paint(scene)[0]).permute(0, 3, 1, 2).contiguous() * 2 - 1


# --------------------------------------------------------------------------------------------------------- edits

class Edit(NamedTuple):
    """One literal operation: what, on which thing (-1: the scene), with which value."""
    op: str
    i: int = -1
    value: Any = None


def apply(scene: Scene, e: Edit) -> Scene:
    """The scene after the edit."""
    def change(i, **kw):
        return replace(scene, things=tuple(replace(t, **kw) if k == i else t for k, t in enumerate(scene.things)))
    t = scene.things[e.i] if e.i >= 0 else None
    match e.op:
        case "remove": return replace(scene, things=tuple(u for k, u in enumerate(scene.things) if k != e.i))
        case "paint": return change(e.i, colour=e.value)
        case "move": return change(e.i, x=SLOTS[e.value])
        case "drop": return change(e.i, y=t.floor)
        case "swap":
            u = scene.things[e.value]
            scene = change(e.i, x=u.x)
            return change(e.value, x=t.x)
        case "time": return replace(scene, time=e.value)
        case "ground": return replace(scene, ground=e.value)
        case "pan": return replace(scene, camera=(.5, 1., .5 + .35 * e.value, 1.))
        case "zoom": return replace(scene, camera=(.5, 1., t.x + t.vx * FRAMES / 2, 1.8))
        case "go": return change(e.i, vx=.035 * e.value)
        case "jump" | "fall": return change(e.i, act=e.op)
        case "push":
            scene = replace(scene, things=tuple(replace(u, vx=0.) if k == e.i else u
                                                for k, u in enumerate(scene.things)))
            return apply(scene, Edit("go", e.value, 1 if t.vx > 0 else -1))
    raise ValueError(f"unknown edit {e.op!r}")


def literal(scene: Scene, e: Edit) -> str:
    """The edit in plain words, as conventional editing data has it (Ditto-1M; the paper's Table 3)."""
    name = f"the {scene.things[e.i].name}" if e.i >= 0 else ""
    way = {-1: "left", 1: "right"}.get(e.value, "") if isinstance(e.value, int) else ""
    match e.op:
        case "remove": return f"remove {name}"
        case "paint": return f"paint {name} {COLOUR_WORDS.get(e.value, e.value)}"
        case "move": return f"move {name} to the {SIDES[e.value]}"
        case "drop": return f"put {name} on the ground"
        case "swap": return f"swap {name} and the {scene.things[e.value].name}"
        case "time": return f"make it {e.value}"
        case "ground": return f"turn the ground to {e.value}"
        case "pan": return f"pan the camera to the {way}"
        case "zoom": return f"zoom in on {name}"
        case "go": return f"{name} moves to the {way}"
        case "jump": return f"{name} jumps"
        case "fall": return f"{name} falls down"
        case "push": return f"{name} stops and the {scene.things[e.value].name} moves on"
    raise ValueError(f"unknown edit {e.op!r}")
