"""The IDX format of the MNIST files: two zero bytes, type, number of axes, big-endian lengths, then the values.

Source: yann.lecun.com/exdb/mnist, "The IDX file format".
"""

import gzip
import math
import struct
import zlib
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

UNSIGNED_BYTE = 8


def inflate(path: Path, limit: int) -> bytes:
    """Content of a plain or gzip file of at most `limit` bytes; stops there, however much the file would give.

    Raises:
        ValueError: it is longer, or is not whole gzip data.
    """
    with path.open("rb") as file:
        packed = file.read(2) == b"\x1f\x8b"
    try:
        with gzip.open(path) if packed else path.open("rb") as stream:
            data = stream.read(limit + 1)
    except EOFError:
        raise ValueError("truncated: the gzip data end too early") from None
    except (gzip.BadGzipFile, zlib.error) as error:
        raise ValueError(f"damaged gzip data ({error})") from None
    if len(data) > limit:
        raise ValueError(f"too long: expected {limit:,} bytes, found more")
    return data


def parse(data: bytes, axes: int) -> NDArray[np.uint8]:
    """The array of an IDX file of unsigned bytes, sharing its memory (read-only).

    Args:
        axes: how many axes the array must have: 3 for images, 1 for labels.

    Raises:
        ValueError: wrong magic number, or another length than the header promises.
    """
    head = 4 + 4 * axes
    if len(data) < head:
        raise ValueError(f"truncated: expected a header of {head} bytes, found {len(data)} bytes")
    expected = struct.pack(">HBB", 0, UNSIGNED_BYTE, axes)
    if data[:4] != expected:
        raise ValueError(f"wrong magic number: expected 0x{expected.hex()}, found 0x{data[:4].hex()}")
    shape = struct.unpack(f">{axes}I", data[4:head])
    if len(data) - head != math.prod(shape):
        kind = "truncated" if len(data) - head < math.prod(shape) else "too long"
        raise ValueError(f"{kind}: the header promises {math.prod(shape):,} values, found {len(data) - head:,}")
    return np.frombuffer(data, np.uint8, offset=head).reshape(shape)
