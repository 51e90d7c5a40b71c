"""The .npy format, and .npz archives of it: headers first, then mapped into memory; nothing is ever unpickled."""

import io
import lzma
import math
import os
import shutil
import struct
import zipfile
import zlib
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple
from urllib.parse import quote

import numpy as np
from numpy.typing import NDArray

from pipeline import files
from pipeline.errors import UserError, did_you_mean

_HEADER_BYTES = 16_384  # numpy reads none longer than 10,000
_COPY_BYTES = 1024**2


class NpyHeader(NamedTuple):
    """What an .npy says of itself.

    Attributes:
        data_at: bytes before the values.
    """

    shape: tuple[int, ...]
    dtype: np.dtype[Any]
    fortran: bool
    data_at: int

    def check(self, file_bytes: int) -> None:
        """Raises ValueError: the file is not as long as the header says."""
        promised = self.data_at + math.prod(self.shape) * self.dtype.itemsize
        if file_bytes != promised:
            kind = "truncated" if file_bytes < promised else "too long"
            raise ValueError(f"{kind}: its header promises {promised:,} bytes, found {file_bytes:,}")


def read_header(start: bytes) -> NpyHeader:
    """The header of the .npy that starts with these bytes; nothing in it is executed or unpickled.

    Raises:
        ValueError: it is no .npy, or holds Python objects.
    """
    stream = io.BytesIO(start[:_HEADER_BYTES])
    try:
        version = np.lib.format.read_magic(stream)
        if version not in ((1, 0), (2, 0)):
            raise ValueError(f"version {version} of the format, which only tables have")
        first = version == (1, 0)
        read = np.lib.format.read_array_header_1_0 if first else np.lib.format.read_array_header_2_0
        shape, fortran, dtype = read(stream)
    except Exception as error:  # numpy raises whatever its parser stumbles over
        reason = (str(error).splitlines() or [type(error).__name__])[0][:120]
        raise ValueError(f"not an .npy file ({reason})") from None
    if dtype.hasobject:
        raise ValueError("holds Python objects, which are never loaded; save it as numbers or as text of fixed length")
    if any(length < 0 for length in shape):
        raise ValueError(f"not an .npy file (its header says shape {list(shape)})")
    return NpyHeader(shape, dtype, fortran, stream.tell())


def parse_npy(data: bytes) -> NDArray[Any]:
    """The array of a whole .npy, sharing its memory.

    Raises:
        ValueError: it is no .npy, holds Python objects, or is longer or shorter than its header says.
    """
    header = read_header(data)
    header.check(len(data))
    flat = np.frombuffer(data, header.dtype, offset=header.data_at)
    return flat.reshape(header.shape, order="F" if header.fortran else "C")


@dataclass(frozen=True, slots=True)
class Array:
    """An .npy file that has been looked at; any process can map it.

    Attributes:
        where: what a message calls it.
    """

    where: str
    path: Path
    header: NpyHeader

    @property
    def shape(self) -> tuple[int, ...]:
        return self.header.shape

    @property
    def dtype(self) -> np.dtype[Any]:
        return self.header.dtype

    def map(self) -> NDArray[Any]:
        """The array, of which only what is used is read from disk."""
        if open_array(self.where, self.path).header != self.header:
            raise UserError(f"{self.where} changed while it was read; start the stage again")
        order = "F" if self.header.fortran else "C"
        return np.memmap(self.path, self.dtype, "r", self.header.data_at, self.shape, order)  # type: ignore[call-overload, no-any-return]


def open_array(where: str, path: Path) -> Array:
    """Look at an .npy file.

    Raises:
        UserError: it cannot be read, or is not a whole .npy of numbers or text.
    """
    try:
        with path.open("rb") as file:
            start = file.read(_HEADER_BYTES)
            if start.startswith(b"PK\x03\x04"):
                raise ValueError("an .npz archive where an .npy file is expected; set data.source.kind to npz")
            header = read_header(start)
            header.check(os.fstat(file.fileno()).st_size)
    except OSError as error:
        raise UserError(f"{where}: cannot be read: {error.strerror}") from None
    except ValueError as error:
        raise UserError(f"{where}: {error}") from None
    return Array(where, path.absolute(), header)


def unpack_npz(path: Path, wanted: Mapping[str, str], downloads: Path) -> tuple[str, dict[str, Array]]:
    """sha256 of an .npz, and those of its arrays that are `wanted`: key in params.yaml -> name.

    They are unpacked once, below `downloads`/unpacked/SHA256, because what is compressed cannot be mapped.

    Raises:
        UserError: the archive is damaged, lacks an array, or holds one that is not as long as its header says.
    """
    try:
        digest = files.sha256(path)
        with zipfile.ZipFile(path) as archive:
            names = {name.removesuffix(".npy") for name in archive.namelist() if name.endswith(".npy")}
            for key, name in wanted.items():
                if name not in names:
                    raise UserError(f"{key}: {path} has no array {name!r}{did_you_mean(name, names)}")
            folder = downloads / "unpacked" / digest
            return digest, {
                key: _unpack(archive, name, folder, f"{key}: {path}: {name}") for key, name in wanted.items()
            }
    except OSError as error:
        raise UserError(f"data.source.path: {path}: cannot be read: {error.strerror or error}") from None
    except (
        zipfile.BadZipFile, zlib.error, lzma.LZMAError, struct.error, EOFError, NotImplementedError, RuntimeError,
        ValueError,
    ) as error:  # fmt: skip
        raise UserError(
            f"data.source.path: {path}: not a whole .npz archive ({error}); fetch or save it again"
        ) from None


def _unpack(archive: zipfile.ZipFile, name: str, folder: Path, where: str) -> Array:
    member = archive.getinfo(f"{name}.npy")
    path = folder / f"{quote(name, safe='')}.npy"
    if path.is_file() and path.stat().st_size == member.file_size:
        return open_array(where, path)
    with archive.open(member) as packed:
        start = packed.read(_HEADER_BYTES)
    try:
        read_header(start).check(member.file_size)
    except ValueError as error:
        raise UserError(f"{where}: {error}") from None
    folder.mkdir(parents=True, exist_ok=True)
    _check_space(folder, member.file_size, where)
    temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    try:
        with archive.open(member) as packed, temporary.open("wb") as file:
            shutil.copyfileobj(packed, file, _COPY_BYTES)  # gives at most file_size bytes, then compares their CRC
        temporary.replace(path)
    finally:
        temporary.unlink(missing_ok=True)
    return open_array(where, path)


def _check_space(folder: Path, needed: int, where: str) -> None:
    free = shutil.disk_usage(folder).free
    if needed > free:
        raise UserError(
            f"{where}: {needed:,} bytes unpacked, but {folder} has {free:,} left; free some, or set compute.downloads "
            "to a folder on a larger disk"
        )
