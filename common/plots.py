"""Pictures: the one place that loads matplotlib, which draws into files and never on a screen."""

import os
import sys
from contextlib import contextmanager
from pathlib import Path

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
