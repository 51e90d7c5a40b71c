"""Where a run's time goes: a row an epoch, beside the run's figures and no part of any result."""

import json
import resource
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Literal, TypeAlias, TypeVar

import torch

from pipeline.train.folders import Folder
from vae_core.distributed import communication, world_size

SPEED = "speed.jsonl"
Wait: TypeAlias = Literal["data", "checkpoint", "evaluation"]
WAITS: tuple[Wait, ...] = ("data", "checkpoint", "evaluation")
Item = TypeVar("Item")


class Speed:
    """Seconds of this rank since the last row, by what they went to.

    `data`, `checkpoint` and `evaluation` are what this thread waits for; what others do beside it costs nothing.
    `communication` is when a collective was under way, also where the backward pass went on. `compute` is the rest.
    """

    def __init__(self, device: torch.device) -> None:
        self._device = device
        self._begin()

    @contextmanager
    def share(self, name: Wait) -> Iterator[None]:
        """Count the block as this share."""
        start, sent = time.perf_counter(), communication.seconds
        try:
            yield
        finally:
            self._seconds[name] += time.perf_counter() - start
            self._counted_twice += communication.seconds - sent

    def waiting(self, items: Iterator[Item]) -> Iterator[Item]:
        """Pass `items` on, and count the wait for each as `data`."""
        while True:
            with self.share("data"):
                item = next(items, None)
            if item is None:
                return
            yield item

    def write(self, folder: Folder, *, epoch: int, step: int, images: int) -> None:
        """Append a row, and begin the next: `images` a second of all ranks, shares of this rank's time, memory.

        Raises:
            StorageFailed: the disk or the store.
        """
        row = {"epoch": epoch, "step": step, "workers": world_size(), **self._row(images)}
        folder.append(SPEED, json.dumps(row, allow_nan=False).encode() + b"\n")
        self._begin()

    def _begin(self) -> None:
        self._seconds = dict.fromkeys(WAITS, 0.0)
        self._start, self._sent, self._counted_twice = time.perf_counter(), communication.seconds, 0.0

    def _row(self, images: int) -> dict[str, float]:
        whole = time.perf_counter() - self._start
        shares: dict[str, float] = {name: self._seconds[name] for name in WAITS}
        shares["communication"] = communication.seconds - self._sent - self._counted_twice
        shares["compute"] = max(0.0, whole - sum(shares.values()))
        training = shares["data"] + shares["communication"] + shares["compute"]
        return {
            "seconds": whole,
            "images_per_s": images / training,
            **{name: seconds / whole for name, seconds in sorted(shares.items())},
            "peak_memory_bytes": _peak_bytes(self._device),
        }


def _peak_bytes(device: torch.device) -> int:
    """Of the device where it has memory of its own, else of this process."""
    if device.type == "cuda":
        return torch.cuda.max_memory_allocated(device)
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak if sys.platform == "darwin" else 1024 * peak
