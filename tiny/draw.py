"""The tiny world's renderer: a scene becomes a clip of nine frames of 32 x 32 pixels.

Every shape is a signed distance, clipped to 1.6 pixels of coverage: smooth edges without
supersampling.

Axis letters: F frames, H height, W width. Pixels are in [0, 1] while they are painted, in [-1, 1]
in a clip.
"""

import numpy as np
import torch

from tiny.scene import FRAMES, GROUNDS, PALETTE, SHAPES, SIZE, SKIES, Scene, Thing

HORIZON = .45                                            # y of the ground's far edge
SHADE = {"day": 1., "dusk": .8, "night": .42}            # how bright ground and skyline are
LIGHTS = {"day": (1., .95, .5), "dusk": (.95, .25, .15), "night": (.92, .92, .85)}    # sun and moon
RIDGES = {"meadow": (.25, .45, .25), "lake": (.45, .45, .55), "desert": (.72, .55, .35),
          "city": (.38, .38, .45)}
LABELS = [f"sky {time}" for time in SKIES] + ["light", "skyline"] + list(GROUNDS) \
    + [f"{colour} {shape}" for colour in PALETTE for shape in SHAPES]    # what can cover a pixel


def render(scene: Scene) -> torch.Tensor:
    """The clip of `scene`: (F, 3, H, W), float32 in [-1, 1]."""
    video, _ = paint(scene)
    return torch.from_numpy(video).permute(0, 3, 1, 2).contiguous() * 2 - 1


def paint(scene: Scene) -> tuple[np.ndarray, np.ndarray]:
    """Video (F, H, W, 3) in [0, 1], and what covers each pixel (F, H, W), indices into LABELS.

    The VLM's first lessons are about these labels.
    """
    frame = np.arange(FRAMES, dtype=np.float32)[:, None, None]                           # (F, 1, 1)
    x, y, zoom = camera_view(scene.camera, frame)
    canvas = Canvas(scene.time, y, zoom)
    shade = SHADE[scene.time]

    light = np.hypot(x - .5 - .36 * scene.light, y - .13) - .07
    canvas.fill(light, LIGHTS[scene.time], "light")
    ridge = np.array(RIDGES[scene.place]) * shade
    canvas.fill(HORIZON - ridge_height(scene.place, x, scene.ridge) - y, ridge, "skyline")
    canvas.fill(HORIZON - y, np.array(GROUNDS[scene.ground]) * shade, scene.ground)

    for thing in sorted(scene.things, key=lambda thing: thing.y):                 # far things first
        colour = np.array(PALETTE[thing.colour])
        label = f"{thing.colour} {thing.shape}"
        outline = distance_to(thing, x, y, frame)
        canvas.fill(outline, colour * .5, label)                                       # a dark rim,
        canvas.fill(outline + 1 / SIZE, colour, label)                               # and inside it
    return canvas.video.astype(np.float32), canvas.labels


class Canvas:
    """Video (F, H, W, 3) and labels (F, H, W), at first all sky, that shapes are painted over."""

    def __init__(self, time: str, y: np.ndarray, zoom: np.ndarray):
        shape = (FRAMES, SIZE, SIZE)
        brightness = .75 + .5 * np.clip(y, 0, 1)[..., None]                           # (F, H, 1, 1)
        sky = (np.array(SKIES[time], np.float32) * brightness).clip(0, 1)
        self.video = np.broadcast_to(sky, (*shape, 3))
        self.labels = np.full(shape, LABELS.index(f"sky {time}"))
        self.pixels = SIZE * zoom                        # in a width of the scene

    def fill(self, distance: np.ndarray, colour, label: str) -> None:
        """Paint where `distance` (F, H, W), in widths of the scene, is negative."""
        cover = np.clip(.5 - distance * self.pixels / 1.6, 0, 1)
        self.labels = np.where(cover > .5, LABELS.index(label), self.labels)
        cover = cover[..., None]
        self.video = self.video * (1 - cover) + cover * np.array(colour)


def camera_view(camera: tuple, frame: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """The scene's x (F, 1, W) and y (F, H, 1) at each pixel, and the zoom (F, 1, 1)."""
    x0, zoom0, x1, zoom1 = camera
    progress = frame / (FRAMES - 1)
    zoom = zoom0 + progress * (zoom1 - zoom0)
    centre = x0 + progress * (x1 - x0)
    grid = (np.arange(SIZE, dtype=np.float32) + .5) / SIZE
    x = centre + (grid[None, None, :] - .5) / zoom
    y = .75 + (grid[None, :, None] - .75) / zoom         # the ground stays where it is
    return x, y, zoom


def ridge_height(place: str, x: np.ndarray, phase: float) -> np.ndarray:
    """How far the skyline stands above the horizon, at each x."""
    match place:
        case "meadow":                                   # hills
            return .05 + .03 * np.sin(8 * x + phase)
        case "lake":                                     # mountains
            return .02 + .12 * np.abs((2 * x + phase) % 1 - .5)
        case "desert":                                   # dunes
            return .04 + .03 * np.abs(np.sin(5 * x + phase))
        case "city":                                     # roofs
            return .03 + .10 * np.abs(np.sin(np.floor(8 * x) * 2.4 + phase))
    raise ValueError(f"unknown place {place!r}")


def distance_to(thing: Thing, x: np.ndarray, y: np.ndarray, frame: np.ndarray) -> np.ndarray:
    """Signed distance to the outline, negative inside it: (F, H, W), in widths of the scene."""
    centre = thing.y + 0 * frame
    if thing.act == "jump":
        centre = thing.y - .25 * np.sin(np.pi * frame / 8)
    if thing.act == "fall":
        centre = np.minimum(thing.floor, thing.y + .02 * frame ** 2)
    dx = x - thing.x - thing.vx * frame
    dy = y - centre
    match thing.shape:
        case "ball":
            return np.hypot(dx, dy) - thing.size
        case "box":
            return np.maximum(np.abs(dx), np.abs(dy)) - .88 * thing.size
        case "tent":
            roof = .866 * np.abs(dx) - .5 * dy - .6 * thing.size
            return np.maximum(roof, dy - .7 * thing.size)
    raise ValueError(f"unknown shape {thing.shape!r}")
