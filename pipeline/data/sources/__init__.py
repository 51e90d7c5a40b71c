"""Where the images come from: one adapter a file, one dispatch."""

from pathlib import Path
from typing import assert_never

from pipeline.config import SourceConfig
from pipeline.data.sources.base import Source
from pipeline.data.sources.digits import open_digits
from pipeline.data.sources.mnist import FASHION_MNIST, MNIST, open_idx_set


def open_source(config: SourceConfig, downloads: Path) -> Source:
    """The source that `config` names, its files verified; never another in its place.

    Args:
        downloads: folder that keeps fetched files between runs.

    Raises:
        UserError: its files cannot be had, or are not the published ones.
    """
    match config.kind:
        case "mnist":
            return open_idx_set(MNIST, config.path, downloads)
        case "fashion_mnist":
            return open_idx_set(FASHION_MNIST, config.path, downloads)
        case "digits":
            return open_digits(config.path)
        case kind:
            assert_never(kind)
