"""The members of a foreign tar, in order: found by walking its headers, read by WebDataset.

WebDataset says nothing of what it does not find: a tar that was cut off between two members, or has one damaged header,
is for it a shorter tar. So the headers are walked here first, to the mark of the end, and WebDataset must then find the
members that they announced. The contents of members have no checksum in a tar (in a .tar.gz they have).
"""

import gzip
import re
import sys
import tarfile
import zlib
from collections import deque
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO, Literal, NamedTuple, TypeAlias

from pipeline.data.tar import BLOCK
from pipeline.errors import UserError

_EXTENDED_BYTES = 1024**2  # of a header about the next member
_NAME_LENGTH = 4096  # as long as a path can be; what takes a name apart takes the square of that
_CHUNK = 1024**2
_MEMBERS = 8 * 1024**2  # which are all kept in memory at once
Stream: TypeAlias = BinaryIO | gzip.GzipFile
_ABOUT_THE_NEXT = {tarfile.GNUTYPE_LONGNAME, tarfile.GNUTYPE_LONGLINK, tarfile.XHDTYPE, tarfile.SOLARIS_XHDTYPE}


class Damaged(Exception):
    """From byte `at` on, a tar is not what it should be."""

    def __init__(self, at: int, what: str) -> None:
        super().__init__(f"from byte {at:,} on it cannot be read: {what}; fetch it again, or pack its files again")


class Member(NamedTuple):
    """A member of a tar: its name, where its header is, how long its content is."""

    name: str
    at: int
    size: int
    kind: Literal["file", "link", "device"]

    @property
    def parts(self) -> tuple[str | None, str]:
        """Key and extension as WebDataset splits a name, at the first dot after the folders; without a dot no key."""
        match = re.match(r"^((?:.*/|)[^.]+)[.]([^/]*)$", self.name)
        return (match.group(1), match.group(2).lower()) if match else (None, "")

    @property
    def is_note(self) -> bool:
        """Whether it is one of WebDataset's own, which belong to no sample."""
        return self.name.startswith("__") and self.name.endswith("__") and "/" not in self.name


@dataclass(frozen=True, slots=True)
class Tar:
    """A tar.

    Attributes:
        name: below the folder of the source.
        path: absolute, because another process reads it.
        where: its path as the user gave it, for messages.
    """

    name: str
    path: Path
    where: str

    @contextmanager
    def opened(self) -> Iterator[Stream]:
        """The bytes of the archive, inflated where packed; damage found inside the block becomes a UserError."""
        try:
            with self.path.open("rb") as file:
                packed = file.read(2) == b"\x1f\x8b"
                file.seek(0)
                if not packed:
                    yield file
                    return
                with gzip.GzipFile(fileobj=file) as inflated:
                    yield inflated
        except Damaged as error:
            raise UserError(f"{self.where}: {error}") from None
        except tarfile.TarError as error:
            raise UserError(f"{self.where}: not a whole tar ({error}); fetch it again") from None
        except (EOFError, gzip.BadGzipFile, zlib.error) as error:
            raise UserError(f"{self.where}: damaged gzip data ({error}); fetch it again") from None
        except OSError as error:
            raise UserError(f"{self.where}: cannot be read: {error.strerror or error}") from None


def walk(stream: Stream) -> Iterator[Member]:
    """Every member but folders, from the headers alone; the stream then stands at its content, which may be read.

    Raises:
        Damaged: the tar does not go on to the mark of its end, or goes on behind it.
    """
    at = found = 0
    known: dict[str, str] = {}
    while (header := _header(stream, at)) is not None:
        has_content = header.isreg() or header.type not in tarfile.SUPPORTED_TYPES
        if header.type in _ABOUT_THE_NEXT:
            facts = _facts_of_the_next(stream, header, at)
            if facts.keys() & known.keys():
                raise Damaged(at, "a second header about one member, as where the member between them is missing")
            known |= facts
        elif header.type != tarfile.XGLTYPE:
            if header.type == tarfile.GNUTYPE_SPARSE or any(key.startswith("GNU.sparse") for key in known):
                raise Damaged(at, f"{known.get('path', header.name)[:200]!r} is stored as a sparse file")
            header.size = _size(known.get("size", header.size), at)
            kind: Any = "file" if header.isreg() else "link" if header.issym() or header.islnk() else "device"
            name = known.get("path", header.name)
            if len(name) > _NAME_LENGTH:
                raise Damaged(at, f"a name of {len(name):,} characters")
            if (found := found + 1) > _MEMBERS:
                raise Damaged(at, f"more than {_MEMBERS:,} members; pack them into several tars")
            if not header.isdir():
                yield Member(name, at, header.size, kind)
            known = {}
        at = _skip(stream, at + BLOCK, header.size if has_content or header.type in _ABOUT_THE_NEXT else 0)
    _check_end(stream, at)


def _header(stream: Stream, at: int) -> tarfile.TarInfo | None:
    """The header at this place; None: a block of zeros."""
    block = stream.read(BLOCK)
    if not block:
        raise Damaged(at, "it ends without the mark of its end, two blocks of zeros, so members may be missing")
    if len(block) < BLOCK:
        raise Damaged(at, f"it ends inside a header, after {len(block)} of {BLOCK} bytes")
    if not any(block):
        return None
    try:
        header = tarfile.TarInfo.frombuf(block, "utf-8", "surrogateescape")
    except tarfile.HeaderError as error:
        raise Damaged(at, f"expected the header of a member, found other or damaged bytes ({error})") from None
    _size(header.size, at)
    return header


def _size(value: int | str, at: int) -> int:
    if not str(value).isdecimal() or int(value) > sys.maxsize // 2:
        raise Damaged(at, f"expected the size of a member, found {str(value)[:40]!r}")
    return int(value)


def _facts_of_the_next(stream: Stream, header: tarfile.TarInfo, at: int) -> dict[str, str]:
    """Name and size of the next member, where they do not fit its own header."""
    if header.size > _EXTENDED_BYTES:
        raise Damaged(at, f"a name of {header.size:,} bytes")
    data = stream.read(header.size)
    if header.type == tarfile.GNUTYPE_LONGNAME:
        return {"path": data.split(b"\0")[0].decode("utf-8", "surrogateescape")}
    found = {}
    while header.type != tarfile.GNUTYPE_LONGLINK and data:
        record = re.match(rb"(\d{1,7}) ([^=]+)=", data)
        length = int(record[1]) if record else 0
        if record is None or not record.end() < length <= len(data):
            raise Damaged(at, "a PAX header with a record of wrong length")
        found[record[2].decode("utf-8", "replace")] = data[record.end() : length - 1].decode("utf-8", "surrogateescape")
        data = data[length:]
    return {key: value for key, value in found.items() if key in ("path", "size") or key.startswith("GNU.sparse")}


def _skip(stream: Stream, start: int, size: int) -> int:
    """Go to the end of a content, of which a part may have been read, and of its padding."""
    end = start + -(-size // BLOCK) * BLOCK
    if stream.tell() < end:
        stream.seek(end - 1)
        if not stream.read(1):
            raise Damaged(start, f"it ends inside a member of {size:,} bytes")
    return end


def _check_end(stream: Stream, at: int) -> None:
    if len(stream.read(BLOCK).strip(b"\0")) or stream.tell() < at + 2 * BLOCK:
        raise Damaged(at, "one block of zeros where the mark of the end has two")
    while chunk := stream.read(_CHUNK):
        if any(chunk):
            raise Damaged(at, "more bytes after the mark of its end, as in two tars joined to one")


def contents(stream: Stream, members: Iterable[Member], wanted: set[Member]) -> Iterator[tuple[Member, bytes]]:
    """The contents of the `wanted` members, read by WebDataset, which must meet the members in the order given."""
    from webdataset.tariterators import tar_file_iterator  # imports torch

    announced = deque(member for member in members if member.kind == "file" and not member.is_note)
    current: Member | None = None

    def select(name: str) -> bool:
        nonlocal current
        current = announced.popleft() if announced else None
        return current in wanted and current is not None and current.name == name

    for item in tar_file_iterator(stream, skip_meta=None, select_files=select):
        assert current is not None
        yield current, item["data"]
    if announced:
        raise Damaged(announced[0].at, "WebDataset does not read the members from here on")
