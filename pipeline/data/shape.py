"""The size of an image."""

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
