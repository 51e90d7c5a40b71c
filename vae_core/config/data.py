"""What a model must know of its data."""

from dataclasses import dataclass

from vae_core.config.base import Strict, check_at_least


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

    def __post_init__(self) -> None:
        check_at_least(self, 1, "channels", "height", "width")
        check_at_least(self, 0, "num_classes", "attributes", "embedding")

    @property
    def shape(self) -> tuple[int, int, int]:
        return self.channels, self.height, self.width

    @property
    def pixels(self) -> int:
        """Numbers a sample: C x H x W."""
        return self.channels * self.height * self.width
