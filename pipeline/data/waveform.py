"""Rows that are one value high, such as sound, as pictures: a curve shows what a strip of gray pixels would not."""

import numpy as np
from numpy.typing import NDArray

from pipeline.data.shape import Shape, things

Pixels = NDArray[np.uint8]

HEIGHT, WIDTH = 64, 128  # pixels
PAPER, INK, AXIS = 255, (31, 78, 121), 225


def waveform(row: Pixels, height: int = HEIGHT, width: int = WIDTH) -> Pixels:
    """The curve of a row of values, uint8 [1, W, C] -> uint8 [height, width, 3]: 0 at the bottom, 255 at the top.

    Each column of the picture is inked from the lowest to the highest of its values, so that no peak is lost however
    long the row is; the curves of all channels are drawn in one.
    """
    picture = np.full((height, width, 3), PAPER, np.uint8)
    picture[height // 2] = AXIS
    levels = (255 - row[0].astype(np.int64)) * (height - 1) // 255  # [W, C], counted from the top
    starts = np.arange(width) * len(levels) // width
    stops = np.maximum(starts + 1, np.append(starts[1:], len(levels)))
    starts = np.maximum(0, starts - 1)  # from the value before, so that the curve is not torn
    lines = np.arange(height)
    for column, (start, stop) in enumerate(zip(starts.tolist(), stops.tolist(), strict=True)):
        part = levels[start:stop]
        top, bottom = part.min(axis=0), part.max(axis=0)
        inked = ((lines[:, None] >= top) & (lines[:, None] <= bottom)).any(axis=1)
        picture[inked, column] = INK
    return picture


def pictures(images: Pixels) -> Pixels:
    """Images [n, H, W, C] as they are; rows that are one value high as curves [n, height, width, 3]."""
    if things(Shape(*images.shape[1:])) == "images":
        return images
    return np.array([waveform(row) for row in images], np.uint8).reshape(len(images), HEIGHT, WIDTH, 3)
