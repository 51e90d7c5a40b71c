"""A picture of a data set: a row of training images for each class, drawn pixel by pixel."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import matplotlib as mpl
import numpy as np
from matplotlib.figure import Figure
from matplotlib.font_manager import findfont, get_font
from numpy.typing import NDArray

from pipeline.data.inspection import Inspection
from pipeline.data.shape import described, things
from pipeline.data.waveform import pictures
from pipeline.figures import save_png

DPI = 120
FONT = "DejaVu Sans"  # it comes with matplotlib, so that every machine draws the same
TITLE, NAME, SMALL = 11, 9, 7.5  # points
INK, MUTED = "#1b1f24", "#5b6470"
PAPER, CELL = 247, 232  # gray values: the page, so that white images stand out, and where no image is
CELL_PIXELS = 64  # side that small images are enlarged to
GAP, MARGIN, HEAD, FOOT = 4, 20, 64, 28  # pixels
MIN_ROW, MIN_WIDTH, MAX_NAME = 36, 560, 220  # pixels: two lines of text fit, as does the title

Pixels = NDArray[np.uint8]


@dataclass(frozen=True, slots=True)
class Line:
    """Images [n, H, W, C] beside a name and a note."""

    images: Pixels
    name: str
    note: str


def save_contact_sheet(found: Inspection, path: Path, images: int) -> None:
    """Write the PNG: `images` columns, a row for each class shown; the same data give the same bytes."""
    with mpl.rc_context():
        mpl.rcdefaults()  # the user's own matplotlibrc must not change the picture
        mpl.rcParams["font.family"] = FONT
        save_png(_draw(found, images), path, dpi=DPI)


def drawable(text: str) -> str:
    """`text` with what the font cannot draw as escapes: \\u4e2d."""
    glyphs = get_font(findfont(FONT)).get_charmap()
    return "".join(
        letter if letter.isprintable() and ord(letter) in glyphs else letter.encode("unicode_escape").decode()
        for letter in text
    )


def fitted(text: str, points: float, pixels: float) -> str:
    """`text`, its end replaced by an ellipsis where it is wider than `pixels`."""
    if _width(text, points) <= pixels:
        return text
    while text and _width(f"{text}…", points) > pixels:
        text = text[:-1]
    return f"{text.rstrip()}…"


def _draw(found: Inspection, columns: int) -> Figure:
    lines = _lines(found, columns)
    names = [fitted(drawable(line.name), NAME, MAX_NAME) for line in lines]
    texts = max((max(_width(name, NAME), _width(line.note, SMALL)) for name, line in zip(names, lines, strict=True)))
    left = MARGIN + (int(texts) + 12 if texts else 0)
    canvas = _canvas([line.images for line in lines], columns)
    width = max(MIN_WIDTH, left + canvas.shape[1] + MARGIN)
    height = HEAD + canvas.shape[0] + (FOOT if _hidden(found) else MARGIN)
    figure = Figure(figsize=(width / DPI, height / DPI), dpi=DPI, facecolor=str(PAPER / 255))
    figure.figimage(canvas, left, height - HEAD - canvas.shape[0], origin="upper")

    def write(x: float, y: float, text: str, points: float, color: str, **where: Any) -> None:
        figure.text(x / width, 1 - y / height, text, fontsize=points, color=color, parse_math=False, **where)

    room = width - 2 * MARGIN
    write(MARGIN, 30, fitted(drawable(found.name), TITLE, room), TITLE, INK, weight="bold")
    write(MARGIN, 50, fitted(_subtitle(found), SMALL, room), SMALL, MUTED)
    pitch = (canvas.shape[0] + GAP) / len(lines)
    for number, (name, line) in enumerate(zip(names, lines, strict=True)):
        middle = HEAD + number * pitch + (pitch - GAP) / 2
        write(left - 12, middle - 1, name, NAME, INK, ha="right", va="bottom")
        write(left - 12, middle + 3, line.note, SMALL, MUTED, ha="right", va="top")
    if hidden := _hidden(found):
        write(MARGIN, height - 10, f"{hidden:,} more classes are not shown", SMALL, MUTED)
    return figure


def _lines(found: Inspection, columns: int) -> list[Line]:
    """One for each class; without classes the images row by row."""
    if found.classes:
        rows = found.labels[0].tolist()
        examples = map(pictures, found.examples)
        return [Line(*line) for line in zip(examples, found.classes, [f"{n:,}" for n in rows], strict=False)]
    images = pictures(found.examples[0])
    return [Line(images[start : start + columns], "", "") for start in range(0, max(1, len(images)), columns)]


def _subtitle(found: Inspection) -> str:
    of_each = " of each class, beside their number" if found.classes else ""
    size = described(found.shape).replace(" x ", " × ")
    return f"training {things(found.shape)}{of_each} · {size} · {found.counts['train']:,} rows · {found.digest[:12]}"


def _hidden(found: Inspection) -> int:
    return max(0, len(found.classes) - len(found.examples))


def _canvas(rows: Sequence[Pixels], columns: int) -> Pixels:
    """Images [n, H, W, C] of each row, enlarged by a whole number, uint8 [height, width, 3]."""
    height, width = max((row.shape[1:3] for row in rows), default=(1, 1))
    factor = max(1, round(CELL_PIXELS / max(height, width)))
    high, wide = height * factor, width * factor
    pitch = max(high, MIN_ROW) + GAP
    canvas = np.full((len(rows) * pitch - GAP, columns * (wide + GAP) - GAP, 3), PAPER, np.uint8)
    for number, row in enumerate(rows):
        top = number * pitch + (pitch - GAP - high) // 2
        for column in range(columns):
            image = _rgb(row[column]) if column < len(row) else np.full((height, width, 3), CELL, np.uint8)
            left = column * (wide + GAP)
            canvas[top : top + high, left : left + wide] = image.repeat(factor, 0).repeat(factor, 1)
    return canvas


def _rgb(image: Pixels) -> Pixels:
    """[H, W, C] -> [H, W, 3]: gray as gray, transparency on white; of other channels the first is shown as gray."""
    channels = image.shape[-1]
    colours = image[..., :3] if channels in (3, 4) else np.repeat(image[..., :1], 3, axis=-1)
    if channels not in (2, 4):
        return colours
    alpha = image[..., -1:].astype(np.float32) / 255
    return np.round(colours * alpha + 255 * (1 - alpha)).astype(np.uint8)


def _width(text: str, points: float) -> float:
    """Pixels that a line of drawable text takes."""
    font = get_font(findfont(FONT))
    font.set_size(points, DPI)
    font.set_text(text)
    return float(font.get_width_height()[0]) / 64
