"""What every quantizer gives."""

from abc import ABC, abstractmethod
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from vae_core.noise import Noise


@dataclass(frozen=True, slots=True)
class Quantized:
    """One grid of codes, with the vectors on both sides of the choice; all float32.

    Attributes:
        encoded: [B, D, h, w] what was compared with the codes: the encoder's output, where the quantizer says so
            scaled to length 1 or bounded.
        codes: int64 [B, h, w].
        vectors: [B, D, h, w] those codes' vectors; of codebook `loss` with a gradient for the codebook.
    """

    encoded: Tensor
    codes: Tensor
    vectors: Tensor

    def straight_through(self) -> Tensor:
        """`vectors` to the bit; the gradient reaches `encoded` unchanged, and no codebook.

        Source: van den Oord et al., arXiv:1711.00937, section 3.2.
        """
        return (self.encoded - self.encoded.detach()) + self.vectors.detach()  # in this order: in encoded's layout


class Quantizer(nn.Module, ABC):
    """Reading never changes it; `update` does."""

    num_codes: int

    def forward(self, z: Tensor) -> Quantized:
        """Quantise encoder outputs [B, D, h, w]; in float32 whatever the precision of the networks."""
        with torch.autocast(z.device.type, enabled=False):
            return self.quantize(z.float())

    def nearest(self, z: Tensor) -> Tensor:
        """[B, D, h, w] -> int64 [B, h, w]: the codes chosen for encoder outputs."""
        return self.forward(z).codes

    @abstractmethod
    def quantize(self, z: Tensor) -> Quantized:
        """`forward` for float32."""

    @abstractmethod
    def assign(self, vectors: Tensor) -> Tensor:
        """[B, D, h, w] -> int64 [B, h, w]: the nearest code of each vector in the space of the codes."""

    @abstractmethod
    def lookup(self, codes: Tensor) -> Tensor:
        """int64 [B, h, w] -> [B, D, h, w]: what the decoder sees of these codes."""

    def between(self, start: Tensor, end: Tensor, fraction: float) -> Tensor:
        """int64 [B, h, w]: the codes nearest to the point at `fraction` of the line from codes `start` to `end`."""
        return self.assign(torch.lerp(self.lookup(start), self.lookup(end), fraction))

    def update(
        self, encoded: Tensor, codes: Tensor, weight: Tensor, noise: Noise, taken: Tensor, purpose: str = "codes"
    ) -> None:
        """Follow the encoder after a training step; every rank calls it. A fixed grid has nothing to do.

        Args:
            encoded, codes: what `forward` gave for this rank's rows.
            weight: [B]; rows of weight 0 (padding) do not count and may hold anything.
            noise: of the step; picks the encoder outputs, by place in the global batch, at which codes start.
            taken: bool, 0-dim: whether the step was taken; if not, nothing changes.
            purpose: sets the draws of several quantizers in a model apart.
        """
        return
