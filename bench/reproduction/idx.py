"""MNIST from its four IDX files, or from an .npz with the same four arrays."""

import gzip
import hashlib
import struct
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

Bytes = NDArray[np.uint8]

FILES = (
    "train-images-idx3-ubyte",
    "train-labels-idx1-ubyte",
    "t10k-images-idx3-ubyte",
    "t10k-labels-idx1-ubyte",
)
ARRAYS = (("x_train", "y_train", "x_test", "y_test"), ("train_images", "train_labels", "test_images", "test_labels"))
MIRROR = "https://ossci-datasets.s3.amazonaws.com/mnist/"
MNIST_SHA256 = (
    "ba891046e6505d7aadcbbe25680a0738ad16aec93bde7f9b65e87a2fc25776db",
    "65a50cbbf4e906d70832878ad85ccda5333a97f0f4c3dd2ef09a8a9eef7101c5",
    "0fa7898d509279e482958e8ce81c8e77db3f2f8254e26661ceb7762c4d494ce7",
    "ff7bcfd416de33731a308c3f266cc351222c34898ecbeaf847f06e48f7ec33f2",
)


@dataclass(frozen=True, slots=True)
class Digits:
    """uint8 images [N, H, W] and labels [N] of both splits, and whether they are the published MNIST."""

    train_images: Bytes
    train_labels: Bytes
    test_images: Bytes
    test_labels: Bytes
    published: bool


def read_digits(place: Path) -> Digits:
    """What lies at `place`: a folder of the four IDX files, each plain or `.gz`, or an `.npz` of four arrays.

    Raises:
        FileNotFoundError: naming the file that is missing and where it can be had.
        ValueError: a file is damaged, or images and labels do not fit together.
    """
    arrays = _npz(place) if place.suffix == ".npz" else [parse(_content(place, name), name) for name in FILES]
    for images, labels in (arrays[:2], arrays[2:]):
        if images.ndim != 3 or labels.shape != images.shape[:1]:
            raise ValueError(
                f"{place}: expected images [N, H, W] and labels [N], got {images.shape} and {labels.shape}"
            )
    digests = tuple(hashlib.sha256(unparse(array)).hexdigest() for array in arrays)
    train_images, train_labels, test_images, test_labels = arrays
    return Digits(train_images, train_labels, test_images, test_labels, digests == MNIST_SHA256)


def parse(content: bytes, name: str) -> Bytes:
    """The array of an IDX file of bytes.

    Raises:
        ValueError: it is none, or its length is not what its header says.

    Format: http://yann.lecun.com/exdb/mnist/
    """
    if len(content) < 4 or content[:3] != b"\0\0\x08":
        raise ValueError(f"{name}: not an IDX file of bytes")
    axes = content[3]
    shape = struct.unpack(f">{axes}I", content[4 : 4 + 4 * axes])
    pixels = np.frombuffer(content, np.uint8, offset=4 + 4 * axes)
    if len(pixels) != np.prod(shape):
        raise ValueError(f"{name}: expected {np.prod(shape):,} bytes after the header, got {len(pixels):,}")
    return pixels.reshape(shape)


def unparse(array: Bytes) -> bytes:
    """The IDX file of an array: the inverse of `parse`."""
    return struct.pack(f">BBBB{array.ndim}I", 0, 0, 8, array.ndim, *array.shape) + array.tobytes()


def _content(folder: Path, name: str) -> bytes:
    for path in (folder / name, folder / f"{name}.gz"):
        if path.is_file():
            content = path.read_bytes()
            return gzip.decompress(content) if path.suffix == ".gz" else content
    raise FileNotFoundError(
        f"{folder / name}: no such file, nor {name}.gz; --data names a folder with the four IDX files of MNIST: "
        f"download {MIRROR}{name}.gz and the other three, or name the download folder of a pipeline that has "
        f"ingested MNIST (.cache/downloads/mnist)"
    )


def _npz(path: Path) -> list[Bytes]:
    with np.load(path, allow_pickle=False) as stored:
        for names in ARRAYS:
            if all(name in stored for name in names):
                return [np.asarray(stored[name]).astype(np.uint8) for name in names]
    raise ValueError(f"{path}: expected the arrays {' '.join(ARRAYS[0])} (or {' '.join(ARRAYS[1])})")
