"""What a training or evaluation step receives."""

from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor


@dataclass(frozen=True, slots=True)
class Batch:
    """One rank's rows of a global batch.

    Attributes:
        images: uint8 [B, C, H, W]; in memory the channels of a pixel lie side by side (torch's channels_last).
        labels: int64 [B], or None where the data have none.
        weight: float32 [B]; 1 for a row of the data, 0 for padding.
        position: int64 [B]; place of each row in the global batch, from 0.
        global_rows: rows of the data in the global batch, over all ranks.
        attributes: float32 [B, A], or None where the data have none.
        embedding: float32 [B, E], or None where the data have none.
    """

    images: Tensor
    labels: Tensor | None
    weight: Tensor
    position: Tensor
    global_rows: int
    attributes: Tensor | None = None
    embedding: Tensor | None = None

    def to(self, device: torch.device) -> "Batch":
        if all(tensor.device.type == device.type for _, tensor in self.tensors()):
            return self
        return self.apply(lambda tensor: tensor.to(device, non_blocking=True))

    def apply(self, change: Callable[[Tensor], Tensor]) -> "Batch":
        """The same rows with `change` applied to each tensor."""
        changed: dict[str, Any] = {name: change(tensor) for name, tensor in self.tensors()}
        return replace(self, **changed)

    def tensors(self) -> Iterator[tuple[str, Tensor]]:
        """Name and value of each tensor that there is."""
        for name in ("images", "labels", "weight", "position", "attributes", "embedding"):
            tensor = getattr(self, name)
            if tensor is not None:
                yield name, tensor
