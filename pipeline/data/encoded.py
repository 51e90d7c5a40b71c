"""Shards whose images are PNG or JPEG files: written from raw samples, and made into raw samples again to be read."""

import io
import os
import re
import threading
import zlib
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Literal

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from pipeline.data.shape import Shape, things
from pipeline.data.tar import BLOCK, KEY_DIGITS, Bytes, Content, Layout, padded, write_headers
from pipeline.errors import UserError

Codec = Literal["png", "jpeg"]

_MODES = {1: "L", 2: "LA", 3: "RGB", 4: "RGBA"}
_CHANNELS: dict[Codec, tuple[int, ...]] = {"png": (1, 2, 3, 4), "jpeg": (1, 3)}
_EXTENSIONS: dict[Codec, str] = {"png": "png", "jpeg": "jpg"}
_PNG_LEVEL = 6
_DECODED_AT_ONCE = 64


def check_channels(encoding: str, shape: Shape) -> None:
    """Whether rows of this shape can be encoded so.

    Raises:
        UserError: they cannot.
    """
    if encoding == "jpeg" and things(shape) == "sequences":  # 8 x 8 pixels at a time, and none wider than 65,500
        raise UserError("params.yaml: shard.encoding: jpeg is for pictures, found sequences; set it to raw or png")
    for codec, channels in _CHANNELS.items():
        if codec == encoding and shape.channels not in channels:
            allowed = ", ".join(map(str, channels))
            raise UserError(
                f"params.yaml: shard.encoding: {encoding} holds images of {allowed} channels, found {shape.channels}; "
                "set it to raw"
            )


def encode(image: Bytes, shape: Shape, codec: Codec, quality: int) -> bytes:
    """The file of one image [H * W * C]."""
    picture = Image.frombytes(_MODES[shape.channels], (shape.width, shape.height), image.tobytes())
    stream = io.BytesIO()
    if codec == "png":
        picture.save(stream, "PNG", compress_level=_PNG_LEVEL)
    else:
        picture.save(stream, "JPEG", quality=quality, subsampling="4:4:4", optimize=False)
    return stream.getvalue()


def decode(data: bytes, shape: Shape) -> Bytes:
    """The pixels [H * W * C] of a file that `encode` wrote.

    Raises:
        ValueError: it is no such file, or has another shape.
        OSError, SyntaxError: it is damaged.
    """
    with Image.open(io.BytesIO(data), formats=["PNG", "JPEG"]) as picture:
        expected = (_MODES[shape.channels], (shape.width, shape.height))
        if (picture.mode, picture.size) != expected:
            raise ValueError(f"expected mode and size {expected}, found {(picture.mode, picture.size)}")
        return np.frombuffer(picture.tobytes(), np.uint8)


def encoded(samples: Bytes, layout: Layout, split: str, first: int, codec: Codec, quality: int) -> Content:
    """The tar of raw samples [rows, stride], the images as files; all other members are as in the raw tar."""
    images = [encode(image, layout.shape, codec, quality) for image in layout.images(samples)]
    sizes = np.fromiter(map(len, images), np.int64, len(images))
    headers = np.empty((len(samples), BLOCK), np.uint8)
    write_headers(headers, split, np.arange(first, first + len(samples)), _EXTENSIONS[codec], sizes)
    frames = np.concatenate([samples[:, : layout.prefix], headers], 1)
    parts: list[bytes] = []
    for frame, image in zip(frames, images, strict=True):
        parts += frame.tobytes(), image, bytes(padded(len(image)) - len(image))
    lengths = layout.payload_at + -(-sizes // BLOCK) * BLOCK
    starts = np.concatenate([np.zeros(1, np.int64), np.cumsum(lengths)])
    crc32 = np.fromiter(map(zlib.crc32, images), np.uint32, len(images))
    return Content(b"".join(parts), starts, sizes, crc32)


def transcode(tar: Path, layout: Layout, offsets: NDArray[np.int64], sizes: NDArray[np.int64], to: Path) -> None:
    """Write to `to` the raw tar of the samples of an encoded one; it appears there when it is whole.

    Args:
        offsets, sizes: int64 [N], where the image members' contents are, as the index tells them.

    Raises:
        UserError: an image is not what the layout tells.
    """
    data = tar.read_bytes()
    if int(np.maximum(offsets, sizes).max(initial=0)) > len(data) or int((offsets + sizes).max(initial=0)) > len(data):
        raise UserError(f"{tar}: cut off after {len(data):,} bytes; write the shards again with `dvc repro -f shard`")
    if len(offsets) and (int(offsets.min()) < layout.payload_at or int(sizes.min()) < 0):
        raise UserError(f"{tar}: the index names places before its start; write the shards again with "
                        "`dvc repro -f shard`")  # fmt: skip
    raw = np.zeros(layout.file_bytes(len(offsets)), np.uint8)
    samples = layout.samples(raw, len(offsets))
    if len(offsets):
        first = re.fullmatch(rf"([a-z]+)-([0-9]{{{KEY_DIGITS}}})\.\w+", _name(data, int(offsets[0])))
        if first is None or int(first[2]) + len(offsets) > 10**KEY_DIGITS:
            raise UserError(f"{tar}: its first image is not where the index names it; write the shards again with "
                            "`dvc repro -f shard`")  # fmt: skip
        layout.write_frame(samples, first[1], int(first[2]))
    _decode_all(tar, data, layout, offsets.tolist(), sizes.tolist(), samples)
    temporary = to.with_name(f".{to.name}.{os.getpid()}.{threading.get_ident()}.tmp")
    try:
        with temporary.open("wb") as file:
            file.write(raw.data)
            os.fsync(file.fileno())
        temporary.replace(to)
    finally:
        temporary.unlink(missing_ok=True)


def _decode_all(
    tar: Path, data: bytes, layout: Layout, offsets: Sequence[int], sizes: Sequence[int], samples: Bytes
) -> None:
    """Fill in what the frame of the samples lacks."""
    images = layout.images(samples)

    def fill(start: int, stop: int) -> None:
        for row in range(start, stop):
            at, size = offsets[row], sizes[row]
            before = at - layout.payload_at
            samples[row, : layout.prefix] = np.frombuffer(data[before : before + layout.prefix], np.uint8)
            try:
                images[row] = decode(data[at : at + size], layout.shape)
            except (ValueError, OSError, SyntaxError) as error:
                raise UserError(
                    f"{tar}: {_name(data, at)}: not the image that was written ({error}); "
                    "write the shards again with `dvc repro -f shard`"
                ) from None

    borders = [*range(0, len(offsets), _DECODED_AT_ONCE), len(offsets)]
    with ThreadPoolExecutor(os.cpu_count()) as threads:
        for _ in threads.map(fill, borders[:-1], borders[1:]):
            pass


def _name(data: bytes, offset: int) -> str:
    """Name of the member whose content is at `offset`."""
    return data[offset - BLOCK : offset].partition(b"\0")[0].decode("ascii", "replace")
