"""Contact sheets: many clips in one picture, a few frames of each, the instruction above them."""

import unicodedata
from pathlib import Path

import torch

from common.files import check_writable
from common.plots import pyplot, save_figure

GAP, LABEL, TOP = 12, 28, 22              # dots: between columns, for an instruction, for the heads
LETTER = 6.4                                    # dots, the mean width of a letter of an instruction
FRAMES = (0, 4, 8)                              # of a clip, those that are shown


def contact_sheet(items: list, videos: dict[str, list[torch.Tensor]], path: str | Path) -> None:
    """Write a PNG: a line for each item, which has an `instruction`, a column for each of `videos`.

    videos: {"source": [video, ...], ...}, (F, 3, H, W) in [-1, 1], as many as there are items.
    Raises BadInput where it cannot be written, or is no .png.
    """
    check_writable(path, ".png")
    plt = pyplot()
    h, w = next(iter(videos.values()))[0].shape[-2:]
    scale = max(1, round(100 / h))              # whole dots for a pixel, about 100 dots for a frame
    strip, line = (scale * w + 2) * len(FRAMES), scale * h + LABEL
    width = (strip + GAP) * len(videos) + GAP
    height = line * len(items) + TOP
    figure = plt.figure(figsize=(width / 100, height / 100), dpi=100)

    def write(x, y, text, **style):
        figure.text(x / width, 1 - y / height, text, parse_math=False, **style)
    sheet = torch.ones(3, height, width)
    for c, (name, clips) in enumerate(videos.items()):
        left = GAP + c * (strip + GAP)
        write(left + strip / 2, TOP - 8, name, size=10, weight="bold", ha="center")
        for r, video in enumerate(clips[:len(items)]):
            picture = filmstrip(video, scale)
            upper = TOP + r * line + 22
            sheet[:, upper:upper + picture.shape[1], left:left + strip] = picture
    for r, item in enumerate(items):
        text, fonts = drawable(item.instruction)
        text = shorten(text, int((width - 2 * GAP) / LETTER))
        write(GAP, TOP + r * line + 16, text, size=9, family=fonts)
    figure.figimage(sheet.permute(1, 2, 0).numpy(), zorder=-1)
    save_figure(figure, path)


def filmstrip(video: torch.Tensor, scale: int) -> torch.Tensor:
    """FRAMES of (F, 3, H, W) side by side, two white dots after each: (3, H', W') in [0, 1]."""
    pictures = []
    for k in FRAMES:
        frame = video[min(k, len(video) - 1)].detach().float().cpu().nan_to_num()
        frame = ((frame + 1) / 2).clamp(0, 1)
        frame = frame.repeat_interleave(scale, 1).repeat_interleave(scale, 2)
        pictures += [frame, torch.ones(3, frame.shape[1], 2)]
    return torch.cat(pictures, 2)


def shorten(text: str, letters: int) -> str:
    """`text`, cut at the end where it is too long. A Chinese letter is as wide as two."""
    widths = [2 if unicodedata.east_asian_width(letter) in "WF" else 1 for letter in text]
    if sum(widths) <= letters:
        return text
    while sum(widths) > letters - 3:
        widths.pop()
    return text[:len(widths)] + "..."


def drawable(text: str) -> tuple[str, list[str]]:
    """The text, and its fonts: matplotlib's own, and installed ones for letters that it lacks.

    A letter that no font has would be an empty box: it is written as its code, as in Python's
    "\\u6c34".
    """
    from matplotlib.font_manager import findfont, fontManager, get_font
    files = {"DejaVu Sans": findfont("DejaVu Sans")}
    for font in fontManager.ttflist:
        if "mpl-data" not in font.fname:                 # the others of matplotlib: mathematics
            files.setdefault(font.name, font.fname)
    fonts, missing = [], set(text)
    for name, file in files.items():
        letters = set(map(chr, get_font(file).get_charmap())) if missing else set()
        if letters & missing:
            fonts.append(name)
            missing -= letters
    return "".join(ascii(letter)[1:-1] if letter in missing else letter for letter in text), fonts
