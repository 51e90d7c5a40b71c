"""Exponential moving average of a model's weights, which often evaluates better than the last step's."""

from copy import deepcopy

import torch
from torch import Tensor

from vae_core.models import Model


class WeightAverage:
    """A copy of a model that follows it: average <- decay x average + (1 - decay) x weights.

    In the first steps the decay is (1 + n) / (10 + n) after n updates, so that the initial weights are soon forgotten.
    Buffers (codebooks) are copied as they are.

    Source: Polyak & Juditsky 1992; the warm-up is that of TensorFlow's ExponentialMovingAverage.
    """

    def __init__(self, model: Model, decay: float) -> None:
        self.model = deepcopy(model).requires_grad_(False).eval()
        self.decay = decay
        self._updates = torch.zeros((), dtype=torch.int64, device=next(model.parameters()).device)

    @property
    def updates(self) -> int:
        """How many there were; to read it is to wait for the device."""
        return int(self._updates)

    @updates.setter
    def updates(self, count: int) -> None:
        self._updates.fill_(count)

    @torch.no_grad()
    def update(self, model: Model, taken: Tensor | None = None) -> None:
        """Follow `model` by one step; where not `taken` (bool, 0-dim), its step was skipped and nothing changes."""
        count = self._updates.double()
        share = 1 - ((1 + count) / (10 + count)).clamp_max(self.decay)
        share = (share if taken is None else share * taken).float()
        self._updates += 1 if taken is None else taken
        for own, other in zip(self.model.parameters(), model.parameters(), strict=True):
            own.lerp_(other, share)
        for kept, buffer in zip(self.model.buffers(), model.buffers(), strict=True):
            kept.copy_(buffer)
