"""MosaicML streaming, where it is installed."""

import importlib.util
import sys
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
import torch
from PIL import Image
from torch import Tensor
from torch.utils.data import DataLoader, default_collate

from bench.data.sets import Encoding, Images


def _load() -> tuple[Any, str]:
    """Its part `streaming.base`, or None; and why that cannot be had."""
    found = importlib.util.find_spec("streaming")
    if found is None or found.submodule_search_locations is None:
        return None, "not installed"
    # Its own __init__ imports ready-made data sets and through them torchvision, which nothing here needs.
    package = ModuleType("streaming")
    package.__path__ = list(found.submodule_search_locations)
    sys.modules["streaming"] = package
    try:
        import streaming.base
        import streaming.base.util
    except ImportError as error:
        return None, f"not installed whole: {error}"
    return streaming.base, ""


BASE, MISSING = _load()


def write(images: Images, folder: Path, encoding: Encoding, shard_rows: int) -> Path:
    """Shards in the order of the rows."""
    height, width, channels = images.pixels.shape[1:]
    shape = (height, width, channels) if channels > 1 else (height, width)
    raw = f"ndarray:uint8:{','.join(map(str, shape))}"
    columns = {"image": raw if encoding == "raw" else "png", "label": "int"}
    limit = shard_rows * (height * width * channels + 8 + 8)  # of the pixels, the label and the places of a row
    with BASE.MDSWriter(columns=columns, out=str(folder), size_limit=limit, exist_ok=True) as sink:
        for image, label in images.samples():
            sink.write({"image": image if encoding == "raw" else Image.fromarray(image), "label": label})
    return folder


class Streaming:
    """A StreamingDataset with the shuffle `py1e`, its default, read by a DataLoader without workers."""

    def __init__(self, folder: Path, batch_size: int) -> None:
        BASE.util.clean_stale_shared_memory()  # of a reader that was not read to its end
        self._data = BASE.StreamingDataset(local=str(folder), shuffle=True, shuffle_algo="py1e", batch_size=batch_size)
        self._loader = DataLoader(self._data, batch_size=batch_size, collate_fn=_collate)

    def epoch(self, number: int) -> Iterator[tuple[Tensor, Tensor]]:
        for batch in self._loader:
            images = batch["image"]
            yield (images.unsqueeze(1) if images.ndim == 3 else images.permute(0, 3, 1, 2)), batch["label"]

    def close(self) -> None:
        if hasattr(self._data, "_iterator"):
            self._data._iterator.non_blocking_exit()  # else its threads go on after an epoch that was broken off


def _collate(samples: list[dict[str, Any]]) -> dict[str, Tensor]:
    for sample in samples:
        if isinstance(sample["image"], Image.Image):
            sample["image"] = torch.from_numpy(np.array(sample["image"]))
    batch: dict[str, Tensor] = default_collate(samples)
    return batch
