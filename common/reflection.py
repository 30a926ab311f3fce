"""The picture of `python critic.py`: what the VLM sees, thinks and says, and where it points."""

from pathlib import Path

import torch

from common.plots import pyplot, save_figure


def draw_reflection(found: dict, instruction: str, t: float, path: Path) -> None:
    """One row a thing that is seen, K frames each; the words and the verdicts above them.

    found: of `critic.reflection`.
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
