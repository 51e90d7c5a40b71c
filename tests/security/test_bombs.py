"""Small files that would become large: put aside or refused, in little memory and time."""

import io
import os
import struct
import zipfile
import zlib
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from PIL import Image
from strangers import bounded

from pipeline.data.config import Columns, ImageConfig, NumpySource, ParquetSource
from pipeline.data.images import BadImage, decode
from pipeline.data.sources.numpy_arrays import open_numpy
from pipeline.data.sources.parquet import open_parquet
from pipeline.errors import UserError

SIDE = 20_000  # 400 million pixels, and as many bytes


def bomb(side: int = SIDE) -> bytes:
    """A whole PNG of black pixels, of which a thousand take a byte."""

    def chunk(kind: bytes, data: bytes) -> bytes:
        return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))

    packer, rows = zlib.compressobj(1), []
    row = bytes(side // 8 + 1)
    rows = [packer.compress(row * 100) for _ in range(side // 100)] + [packer.flush()]
    header = struct.pack(">IIBBBBB", side, side, 1, 0, 0, 0, 0)
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + chunk(b"IDAT", b"".join(rows)) + chunk(b"IEND", b"")


def ico(inner: bytes) -> bytes:
    """An icon that says 16 x 16."""
    return struct.pack("<HHH", 0, 1, 1) + struct.pack("<BBBBHHII", 16, 16, 0, 0, 1, 32, len(inner), 22) + inner


def icns(inner: bytes) -> bytes:
    """A Mac icon that says 128 x 128."""
    entry = b"ic07" + struct.pack(">I", len(inner) + 8) + inner
    return b"icns" + struct.pack(">I", len(entry) + 8) + entry


@pytest.mark.parametrize("wrap", [bytes, ico, icns])
def test_an_image_that_would_fill_the_memory_is_put_aside(wrap: Callable[[bytes], bytes]) -> None:
    data = wrap(bomb())
    assert len(data) < 1024**2
    with bounded(100, 5), pytest.raises(BadImage, match="expected at most 89,478,485 pixels, found 400,000,000") as bad:
        decode(data, ImageConfig())
    assert bad.value.error == "too_many_pixels"


def test_an_image_within_an_image_starts_no_program(home: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """IPTC holds a file of any format; EPS is what Pillow hands to Ghostscript."""
    (home / "gs").write_text(f"#!/bin/sh\ntouch {home}/started\n")
    (home / "gs").chmod(0o755)
    monkeypatch.setenv("PATH", f"{home}{os.pathsep}{os.environ['PATH']}")
    eps = b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 10 10\n%%EndComments\nshowpage\n%%EOF\n"

    def field(record: int, number: int, data: bytes) -> bytes:
        return struct.pack(">BBBH", 0x1C, record, number, len(data)) + data

    fields = [(3, 60, b"\1\0"), (3, 20, b"\0\x0a"), (3, 30, b"\0\x0a"), (3, 120, b"\0\5"), (8, 10, eps)]
    data = b"".join(field(*each) for each in fields)
    for content in (eps, data):
        with pytest.raises(BadImage) as bad:
            decode(content, ImageConfig())
        assert bad.value.error == "undecodable"
    assert not (home / "started").exists()


def test_a_text_in_an_image_is_not_inflated_without_end() -> None:
    file = io.BytesIO()
    Image.new("L", (4, 4)).save(file, "PNG")
    text = b"Comment\0\0" + zlib.compress(bytes(64 * 1024**2), 1)
    chunk = struct.pack(">I", len(text)) + b"zTXt" + text + struct.pack(">I", zlib.crc32(b"zTXt" + text))
    data = file.getvalue()[:33] + chunk + file.getvalue()[33:]
    with bounded(50, 5):
        with pytest.raises(BadImage, match="too large") as bad:
            decode(data, ImageConfig())
        assert bad.value.error == "undecodable"


def test_arrays_in_an_archive_are_unpacked_to_the_disk_and_not_into_the_memory(home: Path) -> None:
    header = io.BytesIO()
    np.lib.format.write_array_header_1_0(header, {"descr": "|u1", "fortran_order": False, "shape": (120, 1024, 1024)})
    with zipfile.ZipFile(home / "a.npz", "w", zipfile.ZIP_DEFLATED, compresslevel=1) as archive:
        with archive.open("images.npy", "w") as file:
            file.write(header.getvalue())
            for _ in range(120):
                file.write(bytes(1024**2))
        archive.writestr("lying.npy", header.getvalue())
    with bounded(60):
        source = open_numpy(NumpySource(kind="npz", path="a.npz"), None, home / "cache")
        assert source.rows == 120
        assert next(iter(source.partitions[0].batches())).num_rows == 16
    with pytest.raises(UserError, match="lying: truncated: its header promises 125,829,248 bytes, found 128"):
        open_numpy(NumpySource(kind="npz", path="a.npz", images="lying"), None, home / "cache")


@pytest.mark.parametrize("nested", [False, True])
def test_one_image_a_thousand_times_is_not_a_thousand_images_in_memory(home: Path, nested: bool) -> None:
    image = pa.array([bytes(4 * 1024**2)])
    rows = pa.DictionaryArray.from_arrays(pa.array(np.zeros(256, np.int32)), image)
    column = pa.StructArray.from_arrays([rows], ["bytes"]) if nested else rows
    pq.write_table(pa.table({"image": column}), "a.parquet", compression="zstd", store_schema=False)
    assert (home / "a.parquet").stat().st_size < 1024**2
    with bounded(100):
        source = open_parquet(ParquetSource(kind="parquet", path="a.parquet"), None)
        sizes = [batch.num_rows for part in source.partitions for batch in part.batches()]
    assert sum(sizes) == 256


def test_one_label_a_thousand_times_is_not_a_thousand_labels_in_memory(home: Path) -> None:
    label = pa.DictionaryArray.from_arrays(pa.array(np.zeros(300, np.int32)), pa.array(["x" * 4 * 1024**2]))
    table = pa.table({"image": pa.array([b""] * 300), "label": label})
    pq.write_table(table, "a.parquet", compression="zstd", store_schema=False)
    with bounded(100):
        source = open_parquet(ParquetSource(kind="parquet", path="a.parquet", columns=Columns(label="label")), None)
        assert len(source.classes) == 1
