"""IDX files: what is read, and what each kind of damage is called."""

import gzip
import struct
from pathlib import Path

import numpy as np
import pytest

from pipeline.data.sources.idx import inflate, parse


def idx(values: np.ndarray, magic: bytes | None = None) -> bytes:
    head = magic or struct.pack(">HBB", 0, 8, values.ndim)
    return head + struct.pack(f">{values.ndim}I", *values.shape) + values.tobytes()


IMAGES = np.arange(2 * 3 * 4, dtype=np.uint8).reshape(2, 3, 4)


def test_images_and_labels_are_read_as_written() -> None:
    np.testing.assert_array_equal(parse(idx(IMAGES), 3), IMAGES)
    np.testing.assert_array_equal(parse(idx(IMAGES[0, 0]), 1), IMAGES[0, 0])


@pytest.mark.parametrize(
    ("data", "message"),
    [
        (idx(IMAGES)[:-1], "truncated: the header promises 24 values, found 23"),
        (idx(IMAGES) + b"x", "too long: the header promises 24 values, found 25"),
        (idx(IMAGES)[:10], "truncated: expected a header of 16 bytes, found 10 bytes"),
        (idx(IMAGES, b"\x00\x00\x0d\x03"), "wrong magic number: expected 0x00000803, found 0x00000d03"),
        (b"", "truncated"),
        (b"<html>not here</html>", "wrong magic number: expected 0x00000803, found 0x3c68746d"),
    ],
)
def test_damage_is_named(data: bytes, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        parse(data, 3)


def test_labels_given_as_images_are_refused() -> None:
    with pytest.raises(ValueError, match="wrong magic number: expected 0x00000803, found 0x00000801"):
        parse(idx(np.zeros(100, np.uint8)), 3)


@pytest.mark.parametrize("packed", [False, True])
def test_plain_and_gzip_files_give_the_same_bytes(tmp_path: Path, packed: bool) -> None:
    data = idx(IMAGES)
    (tmp_path / "file").write_bytes(gzip.compress(data) if packed else data)
    assert inflate(tmp_path / "file", len(data)) == data


def test_a_gzip_bomb_is_not_inflated(tmp_path: Path) -> None:
    (tmp_path / "bomb").write_bytes(gzip.compress(bytes(10_000_000)))
    with pytest.raises(ValueError, match="too long: expected 1,000 bytes, found more"):
        inflate(tmp_path / "bomb", 1000)


def test_truncated_and_damaged_gzip_files_are_named(tmp_path: Path) -> None:
    data = gzip.compress(np.random.default_rng(0).bytes(5000))
    (tmp_path / "cut").write_bytes(data[:-100])
    (tmp_path / "flipped").write_bytes(data[:-6] + bytes([data[-6] ^ 1]) + data[-5:])
    with pytest.raises(ValueError, match="truncated: the gzip data end too early"):
        inflate(tmp_path / "cut", 5000)
    with pytest.raises(ValueError, match="damaged gzip data"):
        inflate(tmp_path / "flipped", 5000)
