"""Finite scalar quantisation: every dimension is bounded and rounded to one of a few levels.

Source: Mentzer et al., arXiv:2309.15505, section 3.1; the shift for even numbers of levels is that of its code.
"""

import math

import torch
from torch import Tensor

from vae_core.quantize.base import Quantized, Quantizer


class FiniteScalar(Quantizer):
    """The fixed grid of levels^code_dim codes between -1 and 1; it has no state and cannot collapse.

    A code is the number whose digits, in base `levels`, the least first, are the levels of its dimensions.
    """

    basis: Tensor

    def __init__(self, *, levels: int, code_dim: int) -> None:
        super().__init__()
        self.levels, self.middle, self.num_codes = levels, levels // 2, levels**code_dim
        margin = min(1e-3, 0.5 / (levels - 1))  # reaches the outermost levels, and rounds to none beyond them
        self.reach = (levels - 1) * (1 + margin) / 2
        self.offset = 0.5 if levels % 2 == 0 else 0.0  # an even number of levels cannot lie evenly around 0
        # Where 0 goes to a level. Of two levels that one would then take nearly all outputs: they part at 0.
        self.shift = math.atanh(self.offset / self.reach) if levels > 2 else 0.0
        basis = torch.tensor([levels**i for i in range(code_dim)])
        self.register_buffer("basis", basis.view(-1, 1, 1), persistent=False)

    def quantize(self, z: Tensor) -> Quantized:
        bounded = torch.tanh(z + self.shift) * self.reach - self.offset
        vectors = bounded.detach().round() / self.middle
        return Quantized(bounded / self.middle, self.assign(vectors), vectors)

    def assign(self, vectors: Tensor) -> Tensor:
        return (((vectors * self.middle).round() + self.middle).long() * self.basis).sum(1)

    def lookup(self, codes: Tensor) -> Tensor:
        digits = codes[:, None] // self.basis % self.levels
        return (digits - self.middle).float() / self.middle
