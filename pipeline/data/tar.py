"""Tars whose members all have one size, so that the file is also an array with a fixed stride.

A sample is KEY.cls (the label in decimal digits, where there are labels), KEY.json (its attributes, where there are
some), KEY.embedding.npy (where there is one) and KEY.npy (its image): ordinary USTAR, which tar, tarfile and
WebDataset read. Because header, payload and padding have the same length in each sample, a million samples are read
or written by a few numpy operations on strided views of the file.
"""

import io
import json
import tarfile
import zlib
from dataclasses import dataclass
from functools import cache
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from pipeline.data.shape import Shape

BLOCK = 512
RECORD = 20 * BLOCK  # tar pads a file to whole records
KEY_DIGITS = 8
_SIZE_AT, _SIZE_DIGITS = 124, 11
_CHECKSUM_AT, _CHECKSUM_DIGITS = 148, 6
_NUMBER = "% .8e"  # 9 significant digits: the nearest float32 is the number itself
_NUMBER_WIDTH = len(_NUMBER % 0.0)
_MANTISSA, _EXPONENT = [1, *range(3, 11)], [13, 14]  # places of the digits in a number

Bytes = NDArray[np.uint8]


def key(split: str, row: int) -> str:
    """Name of a sample, unique over the data set: its split and its place in the split's shards."""
    return f"{split}-{row:0{KEY_DIGITS}d}"


class Content(NamedTuple):
    """A tar in memory.

    Attributes:
        data: all of its bytes but the zeros at its end.
        starts: int64 [N + 1], where each sample starts, and where the last one ends.
        sizes: int64 [N], bytes of each image member.
        crc32: uint32 [N], of each image member.
    """

    data: bytes | memoryview
    starts: NDArray[np.int64]
    sizes: NDArray[np.int64]
    crc32: NDArray[np.uint32]


class Member(NamedTuple):
    """A file of every sample, in bytes from the start of the sample.

    Attributes:
        at: of its header; the content follows BLOCK bytes later.
        size: of its content.
    """

    at: int
    size: int

    @property
    def content(self) -> slice:
        return slice(self.at + BLOCK, self.at + BLOCK + self.size)


@dataclass(frozen=True, slots=True)
class Layout:
    """Where the parts of a sample are, in bytes from the start of the sample.

    Attributes:
        shape: of each image.
        classes: number of classes; 0: samples have no label.
        attributes: name of each attribute; empty: samples have none.
        embedding: length of the embedding vectors; 0: samples have none.
    """

    shape: Shape
    classes: int
    attributes: tuple[str, ...] = ()
    embedding: int = 0

    @property
    def label_digits(self) -> int:
        return len(str(self.classes - 1)) if self.classes else 0

    @property
    def npy_header(self) -> bytes:
        return _npy_header("|u1", tuple(self.shape))

    @property
    def payload(self) -> int:
        """Bytes of KEY.npy."""
        return len(self.npy_header) + self.shape.size

    @property
    def prefix(self) -> int:
        """Bytes of a sample before the header of its image."""
        return _members(self)["npy"].at

    @property
    def payload_at(self) -> int:
        """Start of the content of the image member."""
        return self.prefix + BLOCK

    @property
    def image_at(self) -> int:
        """Start of the pixels."""
        return self.payload_at + len(self.npy_header)

    @property
    def stride(self) -> int:
        """Bytes of a sample."""
        return self.payload_at + padded(self.payload)

    def file_bytes(self, rows: int) -> int:
        """Length of a tar of `rows` samples, with the zeros at its end."""
        return rows * self.stride + end_zeros(rows * self.stride)

    def samples(self, tar: Bytes, rows: int) -> Bytes:
        """A view [rows, stride] of the bytes of a tar."""
        return tar[: rows * self.stride].reshape(rows, self.stride)

    def images(self, samples: Bytes) -> Bytes:
        """A view [rows, H * W * C] of the pixels."""
        return samples[:, self.image_at : self.image_at + self.shape.size]

    def labels(self, samples: Bytes) -> NDArray[np.int64]:
        """Labels [rows], read from the digits."""
        digits = samples[:, _members(self)["cls"].content].astype(np.int64) - ord("0")
        return digits @ _powers(self.label_digits)

    def attribute_values(self, samples: Bytes) -> NDArray[np.float32]:
        """Attributes [rows, A], read from the digits."""
        numbers = [_parse(samples[:, place]) for place in _number_places(self)]
        return np.stack(numbers, 1) if numbers else np.empty((len(samples), 0), np.float32)

    def embeddings(self, samples: Bytes) -> NDArray[np.float32]:
        """A view [rows, E] of the embedding vectors."""
        content = _members(self)["embedding.npy"].content
        return samples[:, content.stop - 4 * self.embedding : content.stop].view("<f4")

    def write_frame(self, samples: Bytes, split: str, first: int) -> None:
        """Fill in all but pixels, labels, numbers and vectors of zeroed samples, whose keys count up from `first`."""
        numbers = np.arange(first, first + len(samples), dtype=np.int64)
        for kind, member in _members(self).items():
            write_headers(samples[:, member.at : member.at + BLOCK], split, numbers, kind, member.size)
            start = np.frombuffer(_constants(self).get(kind, b""), np.uint8)
            samples[:, member.at + BLOCK : member.at + BLOCK + len(start)] = start

    def write_labels(self, samples: Bytes, rows: NDArray[np.int64], labels: NDArray[np.int64]) -> None:
        """Write labels [N] into the samples at `rows` [N]."""
        samples[rows, _members(self)["cls"].content] = _digits(labels, self.label_digits)

    def write_attributes(self, samples: Bytes, rows: NDArray[np.int64], values: NDArray[np.float32]) -> None:
        """Write finite attributes [N, A] into the samples at `rows` [N]."""
        for column, place in enumerate(_number_places(self)):
            samples[rows, place] = _format(values[:, column])

    def content(self, samples: Bytes) -> Content:
        """The tar of these samples, contiguous in memory and complete."""
        head = zlib.crc32(self.npy_header)
        crc32 = np.fromiter((zlib.crc32(image, head) for image in self.images(samples)), np.uint32, len(samples))
        starts = np.arange(len(samples) + 1, dtype=np.int64) * self.stride
        return Content(samples.reshape(-1).data, starts, np.full(len(samples), self.payload, np.int64), crc32)


@cache
def _members(layout: Layout) -> dict[str, Member]:
    """The files of a sample in their order, the image last."""
    sizes = {kind: len(text) for kind, text in _constants(layout).items()}
    if layout.classes:
        sizes = {"cls": layout.label_digits, **sizes}
    if layout.embedding:
        sizes["embedding.npy"] += 4 * layout.embedding
    sizes["npy"] += layout.shape.size
    members, at = {}, 0
    for kind, size in sizes.items():
        members[kind] = Member(at, size)
        at += BLOCK + padded(size)
    return members


@cache
def _constants(layout: Layout) -> dict[str, bytes]:
    """What is the same at the start of each sample's file of a kind."""
    constants = {}
    if layout.attributes:
        constants["json"] = _json(layout.attributes)[0]
    if layout.embedding:
        constants["embedding.npy"] = _npy_header("<f4", (layout.embedding,))
    return {**constants, "npy": layout.npy_header}


@cache
def _npy_header(kind: str, shape: tuple[int, ...]) -> bytes:
    stream = io.BytesIO()
    np.lib.format.write_array_header_1_0(stream, {"descr": kind, "fortran_order": False, "shape": shape})
    return stream.getvalue()


def _json(names: tuple[str, ...]) -> tuple[bytes, list[int]]:
    """KEY.json with zeros, and where each number starts in it."""
    text = b"{"
    places: list[int] = []
    for name in names:
        text += (b", " if places else b"") + json.dumps(name).encode() + b":"
        places.append(len(text))
        text += (_NUMBER % 0.0).encode()
    return text + b"}", places


@cache
def _number_places(layout: Layout) -> list[slice]:
    """Where each attribute's number is in a sample."""
    if not layout.attributes:
        return []
    at = _members(layout)["json"].at + BLOCK
    return [slice(at + start, at + start + _NUMBER_WIDTH) for start in _json(layout.attributes)[1]]


def write_headers(
    headers: Bytes, split: str, numbers: NDArray[np.int64], kind: str, sizes: int | NDArray[np.int64]
) -> None:
    """Fill USTAR headers [rows, 512] of the files SPLIT-NUMBER.KIND of `sizes` bytes."""
    zero = tarfile.TarInfo(f"{key(split, 0)}.{kind}")  # mode 0644; time, user and group 0
    template = np.frombuffer(zero.tobuf(tarfile.USTAR_FORMAT), np.uint8)
    assert numbers.max(initial=0) < 10**KEY_DIGITS, "more rows than keys"
    headers[:] = template
    checksum = np.full(len(numbers), int(template[_CHECKSUM_AT : _CHECKSUM_AT + _CHECKSUM_DIGITS].tobytes(), 8))
    lengths = np.atleast_1d(np.asarray(sizes, np.int64))
    for at, digits in (
        (len(split) + 1, _digits(numbers, KEY_DIGITS)),
        (_SIZE_AT, _digits(lengths, _SIZE_DIGITS, base=8)),
    ):
        headers[:, at : at + digits.shape[1]] = digits
        checksum += (digits - np.uint8(ord("0"))).sum(1, dtype=np.int64)
    headers[:, _CHECKSUM_AT : _CHECKSUM_AT + _CHECKSUM_DIGITS] = _digits(checksum, _CHECKSUM_DIGITS, base=8)


def keys(split: str, first: int, count: int) -> Bytes:
    """The keys of `count` samples from number `first` on, ASCII [count, length]."""
    name = np.frombuffer(f"{split}-".encode(), np.uint8)
    digits = _digits(np.arange(first, first + count, dtype=np.int64), KEY_DIGITS)
    return np.concatenate([np.broadcast_to(name, (count, len(name))), digits], 1)


def padded(size: int, to: int = BLOCK) -> int:
    return -(-size // to) * to


def end_zeros(size: int) -> int:
    """Zeros after `size` bytes of members: two blocks, and up to a whole record."""
    return padded(size + 2 * BLOCK, RECORD) - size


def _powers(count: int, base: int = 10) -> NDArray[np.int64]:
    return np.power(base, np.arange(count - 1, -1, -1, dtype=np.int64))


def _digits(numbers: NDArray[np.int64], count: int, base: int = 10) -> Bytes:
    """ASCII digits [N, count] of non-negative numbers [N]."""
    return (numbers[:, None] // _powers(count, base) % base + ord("0")).astype(np.uint8)


def _format(values: NDArray[np.float32]) -> Bytes:
    """ASCII numbers [N, width] of values [N]; each distinct value is printed once."""
    assert np.isfinite(values).all(), "JSON has no such number"
    bits, places = np.unique(np.ascontiguousarray(values, np.float32).view(np.uint32), return_inverse=True)
    text = _NUMBER * len(bits) % tuple(bits.view(np.float32).tolist())
    return np.frombuffer(text.encode(), np.uint8).reshape(-1, _NUMBER_WIDTH)[places]


def _parse(text: Bytes) -> NDArray[np.float32]:
    """Values [N] of numbers [N, width] that `_format` printed."""
    digits = text.astype(np.int64) - ord("0")
    exponent = digits[:, _EXPONENT] @ _powers(2)
    exponent = np.where(text[:, _EXPONENT[0] - 1] == ord("-"), -exponent, exponent)
    size = (digits[:, _MANTISSA] @ _powers(9)) * 10.0 ** (exponent - 8.0)
    return np.where(text[:, 0] == ord("-"), -size, size).astype(np.float32)
