"""Rows that are one value high, such as sound, as pictures: a curve shows what a strip of gray pixels would not."""

import numpy as np
from numpy.typing import NDArray

from pipeline.data.shape import Shape, things

Pixels = NDArray[np.uint8]

HEIGHT, WIDTH = 64, 128  # pixels
PAPER, AXIS, PALE, INK = (255, 255, 255), (225, 225, 225), (190, 208, 226), (31, 78, 121)


def waveform(row: Pixels, height: int = HEIGHT, width: int = WIDTH) -> Pixels:
    """The curve of a row of values, uint8 [1, W, C] -> uint8 [height, width, 3]: 0 at the bottom, 255 at the top.

    Each column of the picture reaches from the lowest to the highest of its values, so that no peak is lost however
    long the row is, and is darker where more of them are. The curves of all channels are drawn in one.
    """
    levels = (255 - row[0].astype(np.int64)) * (height - 1) // 255  # [W, C], counted from the top
    picture = np.full((height, width, 3), PAPER, np.float64)
    picture[height // 2] = AXIS
    picture[_reached(levels, height, width)] = PALE if len(levels) > width else INK
    columns = np.arange(len(levels)) * width // len(levels)
    places = (levels * width + columns[:, None]).reshape(-1)
    counts = np.bincount(places, minlength=height * width).reshape(height, width)
    shares = np.sqrt(counts / counts.max(axis=0).clip(1))[..., None]
    inked: NDArray[np.float64] = picture + shares * (np.array(INK) - picture)
    return np.rint(inked).astype(np.uint8)


def _reached(levels: NDArray[np.int64], height: int, width: int) -> NDArray[np.bool_]:
    """The pixels between the extremes of each column [height, width]; a column begins with the value before it."""
    starts = np.arange(width) * len(levels) // width
    stops = np.maximum(starts + 1, np.append(starts[1:], len(levels)))
    lines, out = np.arange(height)[:, None], np.zeros((height, width), bool)
    for column, (start, stop) in enumerate(zip(starts.tolist(), stops.tolist(), strict=True)):
        part = levels[max(0, start - 1) : stop]
        out[:, column] = ((lines >= part.min(axis=0)) & (lines <= part.max(axis=0))).any(axis=1)
    return out


def pictures(images: Pixels) -> Pixels:
    """Images [n, H, W, C] as they are; rows that are one value high as curves [n, height, width, 3]."""
    if things(Shape(*images.shape[1:])) == "images":
        return images
    return np.array([waveform(row) for row in images], np.uint8).reshape(len(images), HEIGHT, WIDTH, 3)
