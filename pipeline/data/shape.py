"""The size of an image, and what to call it."""

from typing import NamedTuple


class Shape(NamedTuple):
    """Rows of pixels, columns of pixels, values a pixel."""

    height: int
    width: int
    channels: int

    @property
    def size(self) -> int:
        """Bytes of one image."""
        return self.height * self.width * self.channels


def things(shape: Shape) -> str:
    """What rows of this shape are called: images, or sequences where they are one value high."""
    return "sequences" if shape.height == 1 < shape.width else "images"


def described(shape: Shape) -> str:
    """The size in words: 28 x 28 gray, 16,000 values."""
    height, width, channels = shape
    if things(shape) == "sequences":
        return f"{width:,} values" if channels == 1 else f"{width:,} values, {channels} channels"
    colours = {1: "gray", 3: "RGB"}.get(channels, f"{channels} channels")
    return f"{height} x {width} {colours}"
