"""Where the images come from: one adapter a file, one dispatch."""

from pathlib import Path
from typing import assert_never

from pipeline.data.config import (
    DspritesSource,
    FreyFaceSource,
    HuggingFaceSource,
    ImageFolderSource,
    NumpySource,
    ParquetSource,
    PublishedSource,
    SourceConfig,
    WavSource,
    WebDatasetSource,
)
from pipeline.data.sources.base import Source
from pipeline.data.sources.digits import open_digits
from pipeline.data.sources.dsprites import open_dsprites
from pipeline.data.sources.frey_face import open_frey_face
from pipeline.data.sources.huggingface import open_huggingface
from pipeline.data.sources.image_folder import open_image_folder
from pipeline.data.sources.mnist import FASHION_MNIST, MNIST, open_idx_set
from pipeline.data.sources.numpy_arrays import open_numpy
from pipeline.data.sources.parquet import open_parquet
from pipeline.data.sources.wav import open_wav
from pipeline.data.sources.webdataset_tars import open_webdataset
from pipeline.errors import UserError


def open_source(config: SourceConfig, classes: tuple[str, ...] | None, max_bytes: int, downloads: Path) -> Source:
    """The source that `config` names, its files verified; never another in its place.

    Args:
        classes: names of the classes where the user gives them; a published set has its own.
        max_bytes: an image file that is longer is not read.
        downloads: folder that keeps fetched and unpacked files between runs.

    Raises:
        UserError: its files cannot be had, or are not what `config` says.
    """
    try:
        return _open(config, classes, max_bytes, downloads)
    except OSError as error:  # such as a path through a folder that is not ours to search
        raise UserError(f"data.source: {error.filename}: {error.strerror or error}; allow it, or correct it") from None


def _open(config: SourceConfig, classes: tuple[str, ...] | None, max_bytes: int, downloads: Path) -> Source:
    match config:
        case PublishedSource(kind="mnist", path=path):
            return open_idx_set(MNIST, path, downloads)
        case PublishedSource(kind="fashion_mnist", path=path):
            return open_idx_set(FASHION_MNIST, path, downloads)
        case PublishedSource(path=path):
            return open_digits(path)
        case ImageFolderSource():
            return open_image_folder(config, classes, max_bytes)
        case ParquetSource():
            return open_parquet(config, classes)
        case HuggingFaceSource():
            return open_huggingface(config, classes)
        case NumpySource():
            return open_numpy(config, classes, downloads)
        case WebDatasetSource():
            return open_webdataset(config, classes, max_bytes)
        case FreyFaceSource():
            return open_frey_face(config)
        case DspritesSource():
            return open_dsprites(config, downloads)
        case WavSource():
            return open_wav(config, classes, max_bytes)
        case _:
            assert_never(config)
