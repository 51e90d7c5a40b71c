"""Encoder and decoder bodies. Data of height 1 (audio) get 1-D convolutions, all others 2-D ones."""

from dataclasses import dataclass
from typing import Literal, TypeAlias

from vae_core.config.base import Strict, check, check_at_least

Activation: TypeAlias = Literal["relu", "tanh", "silu"]


@dataclass(frozen=True, kw_only=True, slots=True)
class MLPConfig(Strict):
    """Fully connected body; the decoder mirrors the encoder."""

    kind: Literal["mlp"]
    hidden: tuple[int, ...]
    activation: Activation = "relu"

    def __post_init__(self) -> None:
        check(self, "hidden", len(self.hidden) > 0 and min(self.hidden) > 0, "at least one width, each at least 1")


@dataclass(frozen=True, kw_only=True, slots=True)
class ConvConfig(Strict):
    """Convolutional body; each downsampling halves height and width and, but for the first, doubles the width.

    conv: strided convolutions, then `residual_blocks` residual blocks at the lowest resolution.
    residual: `residual_blocks` residual blocks at every resolution, with strided convolutions between them.

    Attributes:
        channels: width after the first downsampling.
        downsamples: None: as many as leave a side of 4 to 7 (of 1-D data: a length of 32 to 63).
    """

    kind: Literal["conv", "residual"]
    channels: int
    downsamples: int | None = None
    residual_blocks: int = 0
    activation: Activation = "relu"

    def __post_init__(self) -> None:
        check_at_least(self, 1, "channels")
        in_range = self.downsamples is None or 1 <= self.downsamples <= 10
        check(self, "downsamples", in_range, "an integer from 1 to 10, or null: by the size of the data")
        check_at_least(self, 0, "residual_blocks")


NetworkConfig: TypeAlias = MLPConfig | ConvConfig
