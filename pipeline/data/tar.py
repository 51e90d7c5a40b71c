"""Tars whose members all have one size, so that the file is also an array with a fixed stride.

A sample is KEY.npy (its image) and, where there are labels, KEY.cls (the label in decimal digits): ordinary USTAR,
which tar, tarfile and WebDataset read. Because header, payload and padding have the same length in each sample, a
million samples are read or written by a few numpy operations on strided views of the file.
"""

import io
import tarfile
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from pipeline.data.shape import Shape

BLOCK = 512
RECORD = 20 * BLOCK  # tar pads a file to whole records
KEY_DIGITS = 8
_CHECKSUM_AT, _CHECKSUM_DIGITS = 148, 6

Bytes = NDArray[np.uint8]


def key(split: str, row: int) -> str:
    """Name of a sample, unique over the data set: its split and its place in the split's shards."""
    return f"{split}-{row:0{KEY_DIGITS}d}"


@dataclass(frozen=True, slots=True)
class Layout:
    """Where the parts of a sample are, in bytes from the start of the sample.

    Attributes:
        shape: of each image.
        classes: number of classes; 0: samples have no label.
    """

    shape: Shape
    classes: int

    @property
    def label_digits(self) -> int:
        return len(str(self.classes - 1)) if self.classes else 0

    @property
    def npy_header(self) -> bytes:
        stream = io.BytesIO()
        np.lib.format.write_array_header_1_0(
            stream, {"descr": "|u1", "fortran_order": False, "shape": tuple(self.shape)}
        )
        return stream.getvalue()

    @property
    def payload(self) -> int:
        """Bytes of KEY.npy, which starts at BLOCK."""
        return len(self.npy_header) + self.shape.size

    @property
    def image_at(self) -> int:
        return BLOCK + len(self.npy_header)

    @property
    def label_at(self) -> int:
        """Start of the content of KEY.cls."""
        return 2 * BLOCK + _padded(self.payload)

    @property
    def stride(self) -> int:
        """Bytes of a sample."""
        return BLOCK + _padded(self.payload) + (2 * BLOCK if self.classes else 0)

    def file_bytes(self, rows: int) -> int:
        """Length of a tar of `rows` samples, with the two zero blocks at its end."""
        return _padded(rows * self.stride + 2 * BLOCK, RECORD)

    def samples(self, tar: Bytes, rows: int) -> Bytes:
        """A view [rows, stride] of the bytes of a tar."""
        return tar[: rows * self.stride].reshape(rows, self.stride)

    def images(self, samples: Bytes) -> Bytes:
        """A view [rows, H * W * C] of the pixels."""
        return samples[:, self.image_at : self.image_at + self.shape.size]

    def labels(self, samples: Bytes) -> NDArray[np.int64]:
        """Labels [rows], read from the digits."""
        digits = samples[:, self.label_at : self.label_at + self.label_digits].astype(np.int64) - ord("0")
        return digits @ _powers(self.label_digits)

    def write_frame(self, samples: Bytes, split: str, first: int) -> None:
        """Fill in all but pixels and labels of zeroed samples, whose keys count up from `first`."""
        numbers = np.arange(first, first + len(samples), dtype=np.int64)
        self._write_header(samples[:, :BLOCK], split, numbers, "npy", self.payload)
        samples[:, BLOCK : self.image_at] = np.frombuffer(self.npy_header, np.uint8)
        if self.classes:
            at = self.label_at - BLOCK
            self._write_header(samples[:, at : at + BLOCK], split, numbers, "cls", self.label_digits)

    def write_labels(self, samples: Bytes, rows: NDArray[np.int64], labels: NDArray[np.int64]) -> None:
        """Write labels [N] into the samples at `rows` [N]."""
        at = self.label_at
        samples[rows, at : at + self.label_digits] = _digits(labels, self.label_digits)

    def _write_header(self, headers: Bytes, split: str, numbers: NDArray[np.int64], kind: str, size: int) -> None:
        """USTAR headers [rows, 512] that differ in the digits of the key and so in the checksum."""
        zero = tarfile.TarInfo(f"{key(split, 0)}.{kind}")  # mode 0644; time, user and group 0
        zero.size = size
        template = np.frombuffer(zero.tobuf(tarfile.USTAR_FORMAT), np.uint8)
        assert numbers.max(initial=0) < 10**KEY_DIGITS, "more rows than keys"
        digits = _digits(numbers, KEY_DIGITS)
        headers[:] = template
        headers[:, len(split) + 1 : len(split) + 1 + KEY_DIGITS] = digits
        checksum = _checksum(template) + (digits - np.uint8(ord("0"))).sum(1, dtype=np.int64)
        headers[:, _CHECKSUM_AT : _CHECKSUM_AT + _CHECKSUM_DIGITS] = _digits(checksum, _CHECKSUM_DIGITS, base=8)


def _checksum(header: Bytes) -> int:
    """The checksum that a header holds, as a number."""
    return int(header[_CHECKSUM_AT : _CHECKSUM_AT + _CHECKSUM_DIGITS].tobytes(), 8)


def _padded(size: int, to: int = BLOCK) -> int:
    return -(-size // to) * to


def _powers(count: int, base: int = 10) -> NDArray[np.int64]:
    return np.power(base, np.arange(count - 1, -1, -1, dtype=np.int64))


def _digits(numbers: NDArray[np.int64], count: int, base: int = 10) -> Bytes:
    """ASCII digits [N, count] of non-negative numbers [N]."""
    return (numbers[:, None] // _powers(count, base) % base + ord("0")).astype(np.uint8)
