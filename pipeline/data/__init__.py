"""From a source of images to verified, ordered batches: sources, prepared table, shards, index, order, loader.

`open_split` and `Loader` are found on first use: `pipeline.data.loader` needs torch, and the stages that only write
data must start without it. Modules of this project import from `pipeline.data.loader`, which shows the dependency.
"""

import importlib
from typing import Any

__all__ = ["Loader", "Split", "open_split"]


def __getattr__(name: str) -> Any:
    if name not in __all__:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(importlib.import_module("pipeline.data.loader"), name)
