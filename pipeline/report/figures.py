"""Charts as inline SVG that follows the page's colours, and pictures as data: URIs."""

import base64
import io
import re
from collections.abc import Sequence

import matplotlib as mpl
import numpy as np
import numpy.typing as npt
from markupsafe import Markup
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator
from PIL import Image

from pipeline.data.waveform import pictures
from pipeline.report.inputs import Picture

# Stand-ins that matplotlib draws with. In the page they become CSS variables, so a chart is right in light and dark.
INK, RULE, TRAIN, VALIDATION = "#000001", "#000002", "#000003", "#000004"
VARIABLES = {INK: "var(--muted)", RULE: "var(--line)", TRAIN: "var(--train)", VALIDATION: "var(--validation)"}

MARKED_EPOCHS = 3  # with fewer points than this a line alone can hardly be seen


def curve_chart(epochs: Sequence[int], train: Sequence[float], validation: Sequence[float], *, name: str) -> Markup:
    """Training and validation of one quantity over the epochs. `name` is unique in the page."""
    with mpl.rc_context():
        mpl.rcdefaults()  # the user's own matplotlibrc must not reach the page
        mpl.rcParams.update({"svg.fonttype": "none", "svg.hashsalt": name, "font.size": 11})
        figure = Figure(figsize=(4.8, 2.7), layout="constrained")
        axes = figure.add_subplot()
        marker = "o" if len(epochs) < MARKED_EPOCHS else ""
        axes.plot(epochs, train, color=TRAIN, linewidth=1.6, marker=marker, markersize=4)
        axes.plot(epochs, validation, color=VALIDATION, linewidth=2.2, marker=marker, markersize=5)
        axes.plot(epochs[-1:], validation[-1:], color=VALIDATION, marker="o", markersize=5.5)
        axes.xaxis.set_major_locator(MaxNLocator(nbins=6, integer=True, min_n_ticks=1))
        axes.yaxis.set_major_locator(MaxNLocator(nbins=5))
        axes.ticklabel_format(axis="y", useOffset=False)
        axes.grid(axis="y", color=RULE, linewidth=1)
        axes.set_axisbelow(True)
        axes.spines[["top", "left", "right"]].set_visible(False)
        axes.spines["bottom"].set_color(RULE)
        axes.set_xlabel("epoch", loc="right", color=INK, labelpad=2)
        axes.tick_params(length=0, colors=INK, pad=5)
        return _inline_svg(figure, name)


def _inline_svg(figure: Figure, name: str) -> Markup:
    """The figure's <svg> alone: no prolog, no metadata, ids of its own, colours from the page."""
    buffer = io.StringIO()
    figure.savefig(
        buffer, format="svg", transparent=True, metadata=dict.fromkeys(("Creator", "Date", "Format", "Type"))
    )
    text = buffer.getvalue()
    text = text[text.index("<svg") :]
    text = re.sub(r"<metadata>.*?</metadata>|<!--.*?-->", "", text, flags=re.DOTALL)
    text = re.sub(r'<svg [^>]*?(viewBox="[^"]+")[^>]*>', r'<svg \1 aria-hidden="true">', text, count=1)
    text = re.sub(r'<g id="[^"]*"', "<g", text)  # matplotlib names every group; only what is referred to needs an id
    text = re.sub(r'(\bid="|url\(#|href="#)', rf"\g<1>{name}-", text)
    for stand_in, variable in VARIABLES.items():
        text = text.replace(stand_in, variable)
    return Markup(re.sub(r"\s*\n\s*", "\n", text).strip())


def data_uri(picture: Picture) -> str:
    return "data:image/png;base64," + base64.b64encode(picture.data).decode()


def image_grid(rows: Sequence[npt.NDArray[np.uint8]], gap: int = 1) -> Picture:
    """One PNG of images [n, H, W, C], a row for each element, sequences as curves; short rows end in transparency."""
    rows = [pictures(row) for row in rows]
    height, width, _ = rows[0].shape[1:]
    columns = max(len(row) for row in rows)
    canvas = np.zeros((len(rows) * (height + gap) - gap, columns * (width + gap) - gap, 4), np.uint8)
    for i, row in enumerate(rows):
        for j, image in enumerate(row):
            top, left = i * (height + gap), j * (width + gap)
            canvas[top : top + height, left : left + width] = _rgba(image)
    buffer = io.BytesIO()
    Image.fromarray(canvas).save(buffer, format="PNG", optimize=True)
    return Picture(buffer.getvalue(), canvas.shape[1], canvas.shape[0])


def _rgba(image: npt.NDArray[np.uint8]) -> npt.NDArray[np.uint8]:
    """[H, W, C] of one, two (grey and alpha), three or four channels -> [H, W, 4]."""
    colours, alpha = (image, None) if image.shape[-1] in (1, 3) else (image[..., :-1], image[..., -1:])
    if colours.shape[-1] == 1:
        colours = np.repeat(colours, 3, axis=-1)
    return np.concatenate([colours, np.full_like(colours[..., :1], 255) if alpha is None else alpha], axis=-1)
