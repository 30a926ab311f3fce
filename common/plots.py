"""Pictures: the one place that loads matplotlib, which draws into files and never on a screen."""

import os
import sys
from contextlib import contextmanager
from pathlib import Path

import torch

from common.files import replacing


def pyplot():
    """matplotlib.pyplot. It is loaded by whoever draws, since that takes a second.

    A notebook hands its own backend on to the commands that it starts, where that backend may not
    be installed; so ours is named before matplotlib is loaded.
    """
    os.environ["MPLBACKEND"] = "agg"
    import matplotlib.pyplot as plt
    return plt


def save_figure(figure, path: str | Path, dpi: int = 100) -> None:
    """Write a figure as a PNG or as its suffix says. Raises BadInput where that fails."""
    with replacing(path) as temporary:
        figure.savefig(temporary, dpi=dpi)
    pyplot().close(figure)


@contextmanager
def optional_picture(path: str | Path):
    """For a picture beside results that are written already: where drawing it fails, that is a
    line, and not the end of the command."""
    try:
        yield
    except Exception as error:
        print(f"{path}: could not be drawn ({error!r:.200}); all else is written", file=sys.stderr)


def draw_reflection(found: dict, instruction: str, t: float, path: Path) -> None:
    """The picture of `python critic.py`: what the VLM sees, thinks and says, and where it points.

    One row a thing that is seen, K frames each; the words and the verdicts above them. found:
    of `critic.reflection`.
    """
    plt = pyplot()
    margins = torch.tensor([found["m"], found["m_moved"], found["m_0"]])
    p_yes, p_moved, p_source = margins.sigmoid().tolist()
    rows = {"source": f"source: P(Yes) {p_source:.2f}, m_0 = {found['m_0']:+.2f}",
            "x_t": f"x_t, t = {t:g}",
            "x0_hat": f"one-step estimate: P(Yes) {p_yes:.2f}, m = {found['m']:+.2f}",
            "heat": "|d m / d pixels|",
            "moved": f"after six steps uphill: P(Yes) {p_moved:.2f}, m = {found['m_moved']:+.2f}"}
    k = len(found["source"])
    figure, axes = plt.subplots(len(rows), k, figsize=(2 * k, 2.3 * len(rows) + .8), squeeze=False)
    for axs, (name, title) in zip(axes, rows.items()):
        for ax, frame in zip(axs, found[name]):
            ax.axis("off")
            if name == "heat":
                ax.imshow(frame, cmap="inferno", vmin=0, vmax=found["heat"].max())
            else:
                ax.imshow(((frame + 1) / 2).clamp(0, 1).permute(1, 2, 0))
        axs[0].set_title(title, loc="left", fontsize=9)
    words = f"I: {instruction}\nU thinks: {found['thought']}"
    figure.suptitle(words, fontsize=10, parse_math=False)
    figure.tight_layout()
    save_figure(figure, path)
