"""Exponential moving average of a model's weights, which often evaluates better than the last step's."""

from copy import deepcopy

import torch

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
        self.updates = 0

    @torch.no_grad()
    def update(self, model: Model) -> None:
        """Follow `model` by one step."""
        decay = min(self.decay, (1 + self.updates) / (10 + self.updates))
        self.updates += 1
        for own, other in zip(self.model.parameters(), model.parameters(), strict=True):
            own.lerp_(other, 1 - decay)
        for kept, buffer in zip(self.model.buffers(), model.buffers(), strict=True):
            kept.copy_(buffer)
