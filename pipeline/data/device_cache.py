"""A split kept on the device, so that a batch is a gather there and nothing is copied to it."""

from collections.abc import Iterable
from typing import Any, Literal

import numpy as np
import psutil
import torch
from numpy.typing import NDArray
from torch import Tensor

from pipeline.data.split_reader import Split
from pipeline.errors import UserError
from vae_core.batch import Batch

AUTO_FRACTION = 0.3  # of the free memory; the model, its gradients and activations want the rest


class DeviceCache:
    """All rows of a split on a device.

    Args:
        batches: the split's rows in order, on `device`.
        rows: how many they are.
    """

    def __init__(self, batches: Iterable[Batch], rows: int, device: torch.device) -> None:
        self._device = device
        self._parts: dict[str, Tensor] = {}
        start = 0
        for batch in batches:
            for name, part in _parts(batch).items():
                whole = self._parts.setdefault(name, part.new_empty((rows, *part.shape[1:])))
                whole[start : start + len(part)] = part
            start += batch.global_rows

    def gather(self, rows: NDArray[np.int64]) -> dict[str, Any]:
        """What `Split.gather` gives for `rows` [n], on the device."""
        places = torch.from_numpy(rows).to(self._device, non_blocking=True)
        found: dict[str, Any] = {name: whole.index_select(0, places) for name, whole in self._parts.items()}
        return {"labels": None, **found, "images": found["images"].permute(0, 3, 1, 2)}


def wanted(split: Split, device: torch.device, setting: bool | Literal["auto"]) -> bool:
    """Whether `split` is to be kept on `device`; auto: on a GPU, where it takes no more than 30 % of the free memory.

    Raises:
        UserError: it is to be, and it does not fit.
    """
    if setting is False or (setting == "auto" and device.type != "cuda"):
        return False
    needed, free = cache_bytes(split), _free_bytes(device)
    if setting == "auto":
        return needed <= AUTO_FRACTION * free
    if needed > free:
        raise UserError(
            f"params.yaml: compute.device_cache: the {split.name} split takes {needed:,} bytes and {device} has "
            f"{free:,} free; set it to auto or false"
        )
    return True


def cache_bytes(split: Split) -> int:
    """Memory that the rows of `split` take on a device, in bytes."""
    manifest = split.manifest
    row = manifest.shape.size + 4 * len(manifest.attributes) + 4 * manifest.embedding + (8 if manifest.classes else 0)
    return len(split) * row


def _free_bytes(device: torch.device) -> int:
    return torch.cuda.mem_get_info(device)[0] if device.type == "cuda" else psutil.virtual_memory().available


def _parts(batch: Batch) -> dict[str, Tensor]:
    """What a row has, whatever batch it is in; images as [B, H, W, C], for one gather a row."""
    parts = {name: tensor for name, tensor in batch.tensors() if name not in ("weight", "position")}
    return {**parts, "images": parts["images"].permute(0, 2, 3, 1)}
