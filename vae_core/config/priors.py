"""The learned prior over the codes of a quantised model."""

from dataclasses import dataclass
from typing import Literal

from vae_core.config.base import Strict, check, check_at_least


@dataclass(frozen=True, kw_only=True, slots=True)
class PixelCNNConfig(Strict):
    """Gated PixelCNN (arXiv:1606.05328) for each level of codes.

    Attributes:
        channels: width of every layer and of the embedded codes.
        layers: gated layers a level. They are dilated where the grid is larger than as many layers can see.
        dropout: share of a layer's channels that training hides from the next, the same ones at every position of a
            grid (arXiv:1411.4280).
    """

    kind: Literal["pixelcnn"] = "pixelcnn"
    channels: int = 64
    layers: int = 8
    dropout: float = 0.0

    def __post_init__(self) -> None:
        check_at_least(self, 1, "channels", "layers")
        check(self, "dropout", 0 <= self.dropout < 1, "a share from 0 to below 1")
