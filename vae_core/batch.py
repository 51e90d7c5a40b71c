"""What a training or evaluation step receives."""

from dataclasses import dataclass, replace

import torch
from torch import Tensor


@dataclass(frozen=True, slots=True)
class Batch:
    """One rank's rows of a global batch.

    Attributes:
        images: uint8 [B, C, H, W].
        labels: int64 [B], or None where the data have none.
        weight: float32 [B]; 1 for a row of the data, 0 for padding.
        position: int64 [B]; place of each row in the global batch, from 0.
        global_rows: rows of the data in the global batch, over all ranks.
    """

    images: Tensor
    labels: Tensor | None
    weight: Tensor
    position: Tensor
    global_rows: int

    def to(self, device: torch.device) -> "Batch":
        if device.type == self.images.device.type:
            return self
        return replace(
            self,
            images=self.images.to(device, non_blocking=True),
            labels=None if self.labels is None else self.labels.to(device, non_blocking=True),
            weight=self.weight.to(device, non_blocking=True),
            position=self.position.to(device, non_blocking=True),
        )
