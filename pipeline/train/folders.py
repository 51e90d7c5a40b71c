"""A run's folder, on a disk or in a store of objects: a file is whole or absent, a failure one readable line."""

import errno
import os
import shutil
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path
from typing import Any, Protocol, TypeAlias

from pipeline import files
from pipeline.data.places import NoSuchObject, RemoteFolder
from pipeline.errors import StorageFailed, UserError
from pipeline.train.config import ComputeConfig

_FULL = {errno.ENOSPC, errno.EDQUOT, errno.EFBIG}
_CLOSED = {errno.EROFS, errno.EACCES, errno.EPERM}
_NO_FOLDER = {errno.ENOTDIR, errno.EEXIST, errno.EISDIR}


@dataclass(frozen=True)
class File:
    """What a folder says of a file: its length, and when it was written, in seconds of the epoch."""

    bytes: int
    modified: float


class Folder(Protocol):
    """Files by their names, such as `checkpoints/a`. Can be pickled; StorageFailed where the disk or store fails."""

    @property
    def location(self) -> str:
        """The folder, for messages."""

    @property
    def appends(self) -> bool:
        """Whether `append` is cheap. If not, the whole object is put again, so callers gather lines before it."""

    def read(self, name: str, start: int = 0) -> bytes:
        """A file, from byte `start`; nothing where it ends before. Raises FileNotFoundError: it is not there."""

    def write(self, name: str, data: bytes) -> None:
        """The whole file or nothing of it, and it lasts."""

    def append(self, name: str, data: bytes) -> None:
        """Add to the end of a file that has one writer, or on a disk several that write whole lines."""

    def sync(self, name: str) -> None:
        """Let what was appended last."""

    def names(self, prefix: str = "") -> list[str]:
        """The files whose names start so, sorted, without those that a writer has not finished."""

    def details(self, prefix: str = "") -> dict[str, File]:
        """Likewise, each with its length and age, and with unfinished ones too."""

    def remove(self, *names: str) -> None:
        """Those that are there."""

    def sub(self, name: str) -> "Folder":
        """The folder of that name within this one."""

    def clear(self) -> None:
        """Remove the folder and all that is in it."""


Place: TypeAlias = Path | str | Folder


def open_folder(place: Place, timeout_s: float = 120.0) -> Folder:
    """The folder at a path or an address; a Folder is what it is.

    Args:
        timeout_s: how long a store at an address may be silent before that is an error.

    Raises:
        UserError: fsspec does not know this kind of address, or its package is not installed.
    """
    if not isinstance(place, Path | str):
        return place
    path = str(place)
    for local in ("file://", "local://"):
        path = path.removeprefix(local)
    return ObjectFolder(path, timeout_s) if "://" in path else DiskFolder(Path(path).expanduser().absolute())


def store_of(compute: ComputeConfig) -> Folder:
    """The folder that holds the folders of all runs: compute.storage, a path or an address."""
    return open_folder(compute.storage, compute.read.remote_timeout_s)


def is_temporary(name: str) -> bool:
    """Whether a name is that of a file which its writer has not finished."""
    last = name.rpartition("/")[2]
    return last.startswith(".") and last.endswith(".tmp")


@dataclass(frozen=True)
class DiskFolder:
    """A folder of a file system, which several nodes may share."""

    path: Path
    appends = True

    @property
    def location(self) -> str:
        return str(self.path)

    def read(self, name: str, start: int = 0) -> bytes:
        with explained(self.path / name), (self.path / name).open("rb") as file:
            file.seek(start)
            return file.read()

    def write(self, name: str, data: bytes) -> None:
        with explained(self.path / name):
            files.write_bytes(self.path / name, data)

    def append(self, name: str, data: bytes) -> None:
        path = self.path / name
        with explained(path):
            path.parent.mkdir(parents=True, exist_ok=True)
            with path.open("ab", buffering=0) as file:  # in one write, so that lines of several writers do not mix
                if file.write(data) != len(data):
                    raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    def sync(self, name: str) -> None:
        with suppress(FileNotFoundError), explained(self.path / name):
            files.sync(self.path / name)

    def names(self, prefix: str = "") -> list[str]:
        return sorted(name for name in self._walk(prefix) if not is_temporary(name))

    def details(self, prefix: str = "") -> dict[str, File]:
        found = {}
        for name in sorted(self._walk(prefix)):
            with suppress(FileNotFoundError), explained(self.path / name):  # removed meanwhile
                status = (self.path / name).stat()
                found[name] = File(status.st_size, status.st_mtime)
        return found

    def remove(self, *names: str) -> None:
        for name in names:
            with explained(self.path / name):
                (self.path / name).unlink(missing_ok=True)

    def sub(self, name: str) -> "DiskFolder":
        return DiskFolder(self.path / name)

    def clear(self) -> None:
        gone = self.path.with_name(f".{self.path.name}.{os.getpid()}.tmp")
        with suppress(FileNotFoundError), explained(self.path):
            self.path.rename(gone)  # at once: a kill leaves no half of a run
            shutil.rmtree(gone)

    def _walk(self, prefix: str) -> Iterator[str]:
        def fail(error: OSError) -> None:
            if not isinstance(error, FileNotFoundError):  # a folder may be removed meanwhile
                raise error

        with explained(self.path):
            for folder, _, found in os.walk(self.path / prefix.rpartition("/")[0], onerror=fail):
                names = ((Path(folder) / name).relative_to(self.path).as_posix() for name in found)
                yield from (name for name in names if name.startswith(prefix))


class ObjectFolder:
    """A folder at an address that fsspec opens. An object is put as a whole, so it is never seen in part."""

    appends = False

    def __init__(self, url: str, timeout_s: float, within: str = "", place: RemoteFolder | None = None) -> None:
        self.url, self.timeout_s, self._within = url, timeout_s, within
        self._place = place or RemoteFolder(url, timeout_s)

    def __reduce__(self) -> tuple[Any, ...]:
        return ObjectFolder, (self.url, self.timeout_s, self._within)

    @property
    def location(self) -> str:
        return f"{self._place.location}/{self._within}".rstrip("/")

    def read(self, name: str, start: int = 0) -> bytes:
        with _answered():
            try:
                return self._place.read(self._within + name)[start:]  # not every store answers for a part well
            except NoSuchObject as error:
                raise FileNotFoundError(str(error)) from None

    def write(self, name: str, data: bytes) -> None:
        with _answered():
            self._place.write(self._within + name, data)

    def append(self, name: str, data: bytes) -> None:
        before = b""
        with suppress(FileNotFoundError):
            before = self.read(name)
        self.write(name, before + data)

    def sync(self, name: str) -> None:
        pass  # what was put lasts

    def names(self, prefix: str = "") -> list[str]:
        return [name for name in self.details(prefix) if not is_temporary(name)]

    def details(self, prefix: str = "") -> dict[str, File]:
        with _answered():
            try:
                found = self._place.details((self._within + prefix).rpartition("/")[0])
            except NoSuchObject:
                return {}
        names = {name.removeprefix(self._within): detail for name, detail in found.items()}
        return {
            name: File(detail["size"], _modified(detail))
            for name, detail in sorted(names.items())
            if name.startswith(prefix)
        }

    def remove(self, *names: str) -> None:
        with _answered():
            for name in names:
                with suppress(NoSuchObject):
                    self._place.remove(self._within + name)

    def sub(self, name: str) -> "ObjectFolder":
        return ObjectFolder(self.url, self.timeout_s, f"{self._within}{name}/", self._place)

    def clear(self) -> None:
        self.remove(*self.details())


@contextmanager
def explained(path: Path) -> Iterator[None]:
    """Let a missing file pass; say of every other failure of the disk what would mend it."""
    try:
        yield
    except FileNotFoundError:
        raise
    except OSError as error:
        raise StorageFailed(f"{path}: {error.strerror or error}; {_remedy(error)}") from error


def _remedy(error: OSError) -> str:
    if error.errno in _FULL:
        return "make room (`python -m pipeline runs rm --finished`), or set compute.storage to another disk; then go on"
    if error.errno in _CLOSED:
        return "let this user write there, or set compute.storage to a folder where it may"
    if error.errno in _NO_FOLDER:
        return "a file is where a folder is needed, or the reverse; move it away, or correct compute.storage"
    return "check the disk, or set compute.storage to another one; checkpoints that are there are kept"


@contextmanager
def _answered() -> Iterator[None]:
    """Give what a store at an address failed with its exit code."""
    try:
        yield
    except FileNotFoundError:
        raise
    except (UserError, OSError) as error:
        raise StorageFailed(str(error)) from error


def _modified(detail: dict[str, Any]) -> float:
    """When an object was written, in the words of the file systems below fsspec; 0 where it is not told."""
    told = next((detail[key] for key in ("LastModified", "mtime", "updated", "created") if key in detail), 0.0)
    if isinstance(told, str):
        told = datetime.fromisoformat(told)
    return told.timestamp() if isinstance(told, datetime) else float(told)
