"""What a model must know of its data."""

from dataclasses import dataclass

from vae_core.config.base import Strict


@dataclass(frozen=True, kw_only=True, slots=True)
class DataSpec(Strict):
    """Shape [C, H, W] of a sample and, where the data have them: classes, attributes, numbers of an embedding.

    Height 1 is a signal of `width` steps (audio).
    """

    channels: int
    height: int
    width: int
    num_classes: int = 0
    attributes: int = 0
    embedding: int = 0

    @property
    def shape(self) -> tuple[int, int, int]:
        return self.channels, self.height, self.width

    @property
    def pixels(self) -> int:
        """Numbers a sample: C x H x W."""
        return self.channels * self.height * self.width
