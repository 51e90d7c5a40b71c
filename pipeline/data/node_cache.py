"""A folder of files that every process of a node shares: each is made once, and the longest unused leave.

The name of an entry begins with the sha256 that it is known by, so an entry never goes out of date. Recency is the
time of access, set by hand; the time of change stays, because the stamps of `verified` name it.
"""

import errno
import fcntl
import os
import re
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import NamedTuple

from pipeline import files, progress
from pipeline.data.verified import Verified, locked
from pipeline.errors import UserError

GRACE_S = 5.0  # an entry handed out this short a time ago may not have been opened yet, and stays

_ENTRY = re.compile(r"[0-9a-f]{64}(\.raw)?\.(tar|parquet)")  # nothing else in the folder is ever removed
_TEMPORARY = re.compile(rf"\.+({_ENTRY.pattern})\.(.*\.)?tmp")


class Content(NamedTuple):
    """What a file must be. `bytes` is None where only the digest is known."""

    bytes: int | None
    sha256: str


class Made(NamedTuple):
    """What a file is."""

    bytes: int
    sha256: str


class Damaged(Exception):
    """An entry was made twice, and was not what it should be either time."""


class NodeCache:
    """Files by name, made on demand.

    Args:
        folder: made when needed; it may be shared by all processes of this node.
        limit_bytes: of all entries together. One that is larger is kept alone.
        verified: checks entries before they are handed out.
    """

    def __init__(self, folder: Path, limit_bytes: int, verified: Verified) -> None:
        self.folder, self._limit, self._verified = folder, limit_bytes, verified

    def get(self, name: str, make: Callable[[Path], None], content: Content | None = None) -> Path:
        """The entry `name`, made by `make(path)` if it is not there or no longer what it was.

        An entry that leaves the cache while it is mapped stays readable; its disk space is free when it is unmapped.

        Args:
            content: what `make` must produce; None: whatever it does produce, which is written down.

        Raises:
            Damaged: `make` has produced something else twice.
            UserError: the folder cannot be written, or its disk is full.
        """
        assert _ENTRY.fullmatch(name), name
        path = self.folder / name
        if self._use(path, content):
            return path
        with self._writable():
            with locked(self._lock(name)):
                if not self._use(path, content):
                    self._make(path, make, content)
        return path

    def _use(self, path: Path, content: Content | None) -> bool:
        """Whether the entry is there and good; then it counts as used now."""
        expected = content or _written_down(path)
        if expected is None:
            return False
        with suppress(OSError):  # a cache that cannot be written can still be read
            os.utime(path, ns=(time.time_ns(), path.stat().st_mtime_ns))
        return self._verified.problem(path, *expected) is None

    def _make(self, path: Path, make: Callable[[Path], None], content: Content | None) -> None:
        temporary = path.with_name(f".{path.name}.tmp")  # the lock's holder alone has it
        try:
            made = self._made(temporary, make, content)
            with locked(self._lock("room")):
                self._make_room(made.bytes, path)
                temporary.replace(path)
            if content is None:
                _sidecar(path).write_text(f"{made.bytes} {made.sha256}\n")
            self._verified.accept(path, made.sha256)
        finally:
            temporary.unlink(missing_ok=True)

    def _made(self, temporary: Path, make: Callable[[Path], None], content: Content | None) -> Made:
        for _ in range(2):
            temporary.unlink(missing_ok=True)
            make(temporary)
            made = Made(temporary.stat().st_size, files.sha256(temporary))
            if content is None or made.sha256 == content.sha256:
                _sync(temporary)
                return made
        assert content is not None
        raise Damaged(f"expected sha256 {content.sha256}, found {made.sha256} in {made.bytes:,} bytes, twice")

    def _make_room(self, size: int, path: Path) -> None:
        """Remove the longest unused entries until `size` more bytes fit."""
        if size > self._limit:
            progress.say(f"{path}: {size:,} bytes, more than all of compute.cache_bytes ({self._limit:,}); kept alone")
        self._sweep()
        entries = sorted((found.st_atime, entry, found.st_size) for entry, found in self._entries() if entry != path)
        total = size + sum(length for _, _, length in entries)
        for used, entry, length in entries:
            if total <= self._limit or used > time.time() - GRACE_S:
                return
            entry.unlink(missing_ok=True)
            _sidecar(entry).unlink(missing_ok=True)
            self._verified.forget(entry)
            total -= length

    def _entries(self) -> Iterator[tuple[Path, os.stat_result]]:
        for path in self.folder.iterdir():
            if _ENTRY.fullmatch(path.name):
                with suppress(FileNotFoundError):
                    yield path, path.stat()

    def _sweep(self) -> None:
        """Remove what processes that are gone were making: nobody holds its lock."""
        for path in self.folder.glob(".*.tmp"):
            name = _TEMPORARY.fullmatch(path.name)
            if name is None:
                continue
            with self._lock(name[1]).open("a") as file, suppress(BlockingIOError):
                fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
                path.unlink(missing_ok=True)

    def _lock(self, name: str) -> Path:
        return self.folder / "locks" / name

    @contextmanager
    def _writable(self) -> Iterator[None]:
        try:
            yield
        except OSError as error:
            full = error.errno in (errno.ENOSPC, errno.EDQUOT)
            advice = (
                f"free some space, lower compute.cache_bytes ({self._limit:,})"
                if full
                else "make it a folder that this user may write"
            )
            raise UserError(
                f"compute.cache: {self.folder}: {'the disk is full' if full else error.strerror or error}; "
                f"{advice}, or set compute.cache to a folder on another disk of this node"
            ) from error


def _sidecar(path: Path) -> Path:
    return path.with_name(f"{path.name}.sha256")


def _written_down(path: Path) -> Content | None:
    """What an entry was when it was made."""
    try:
        size, sha256 = _sidecar(path).read_text().split()
        return Content(int(size), sha256)
    except (OSError, ValueError):
        return None


def _sync(path: Path) -> None:
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
