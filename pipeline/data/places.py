"""Where the bytes of shards come from: a local folder, any address that fsspec opens, or the driver's node."""

import errno
import os
import shutil
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any, Protocol, TypeVar

import fsspec
from fsspec.core import url_to_fs

from pipeline import progress
from pipeline.addresses import without_credentials
from pipeline.data.index import MANIFEST
from pipeline.errors import UserError

FIRST_WAIT_S, LONGEST_WAIT_S = 0.5, 8.0
CONNECT_TIMEOUT_S, READ_TIMEOUT_S = 5.0, 20.0

_PACKAGES = {"s3": "s3fs", "s3a": "s3fs", "gs": "gcsfs", "gcs": "gcsfs", "az": "adlfs", "abfs": "adlfs"}
_DISK = {errno.ENOSPC, errno.EDQUOT, errno.EROFS}  # of the file that is written here
_REFUSED = {errno.EINVAL, errno.ENAMETOOLONG, errno.ENOSYS, errno.EPERM, errno.EREMCHG}  # an answer, and a lasting one
_CREDENTIALS = "credential", "token", "profile"

Result = TypeVar("Result")


class NoSuchObject(UserError):
    """A place answers that it has no file of this name."""


class Place(Protocol):
    """Files by their names within a folder of shards, wherever it is."""

    @property
    def location(self) -> str:
        """The folder, for messages."""

    def read(self, name: str) -> bytes:
        """A small file. Raises UserError: it is not there, or the place does not answer."""

    def fetch(self, name: str, to: Path) -> None:
        """Write a file to `to`. Raises UserError likewise, and OSError: `to` cannot be written."""

    def names(self) -> list[str]:
        """Every file that is there, sorted."""


def open_place(shards: str | Path, timeout_s: float, peer: str | None = None) -> Place:
    """The place of a folder of shards.

    Args:
        shards: a folder, or an address with "://".
        peer: name of the Ray actor that serves the driver's folder. It is asked where this node has no such folder,
            or one with other shards, such as those of an older checkout.

    Raises:
        UserError: fsspec does not know this kind of address, or its package is not installed.
    """
    if "://" in str(shards):
        return RemoteFolder(str(shards), timeout_s)
    local = LocalFolder(Path(shards))
    if peer is None:
        return local
    from pipeline.data.peer import PeerFolder

    driver = PeerFolder(peer)
    return local if local.has(MANIFEST) and local.read(MANIFEST) == driver.read(MANIFEST) else driver


class LocalFolder:
    """A folder of this node."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder

    @property
    def location(self) -> str:
        return str(self.folder)

    def has(self, name: str) -> bool:
        return (self.folder / name).is_file()

    def read(self, name: str) -> bytes:
        return (self.folder / name).read_bytes()

    def fetch(self, name: str, to: Path) -> None:
        shutil.copyfile(self.folder / name, to)

    def names(self) -> list[str]:
        return sorted(path.relative_to(self.folder).as_posix() for path in self.folder.rglob("*") if path.is_file())


class RemoteFolder:
    """A folder at an address that fsspec opens. May be used by many threads, and after a fork.

    What fails for want of an answer is tried again until `timeout_s` have passed without any; what the place refuses
    is an error at once.
    """

    def __init__(self, url: str, timeout_s: float) -> None:
        self._url, self._timeout_s = url.rstrip("/"), timeout_s
        self._lock, self._silent = threading.Lock(), False
        self._open()

    @property
    def location(self) -> str:
        return without_credentials(self._url)

    def read(self, name: str) -> bytes:
        return bytes(self._try(name, lambda files, path, heard: files.cat_file(path)))

    def fetch(self, name: str, to: Path) -> None:
        self._try(name, lambda files, path, heard: files.get_file(path, str(to), callback=heard))

    def store(self, source: Path, name: str) -> None:
        """Write the local file `source` there as `name`."""

        def put(files: Any, path: str, heard: "_Heard") -> None:
            if not self._has_objects:  # a store of objects would make a bucket
                files.makedirs(path.rsplit("/", 1)[0], exist_ok=True)
            files.put_file(str(source), path, callback=heard)

        self._try(name, put)

    def write(self, name: str, data: bytes) -> None:
        """Write `data` there as `name`, whole or not at all."""

        def put(files: Any, path: str, heard: "_Heard") -> None:
            if self._has_objects:
                files.pipe_file(path, data)
                return
            folder, _, last = path.rpartition("/")
            temporary = f"{folder}/.{last}.{os.getpid()}.tmp"
            files.makedirs(folder, exist_ok=True)
            files.pipe_file(temporary, data)
            files.mv(temporary, path)

        self._try(name, put)

    def remove(self, name: str) -> None:
        self._try(name, lambda files, path, heard: files.rm_file(path))

    def names(self) -> list[str]:
        return sorted(self.details())

    def details(self, folder: str = "") -> dict[str, dict[str, Any]]:
        """What the place says of each file, or of those below `folder`: at least `size`, in bytes."""
        found = self._try(folder, lambda files, path, heard: files.find(path, detail=True, refresh=True))
        start = len(self._root) + 1
        return {path[start:]: detail for path, detail in found.items()}

    @property
    def _has_objects(self) -> bool:
        """Whether a put replaces an object as a whole, and there are no folders to make."""
        return self._url.partition("://")[0] in _PACKAGES

    def _open(self) -> None:
        protocol = self._url.partition("://")[0]
        try:
            options = {**_options(protocol, self._timeout_s), "skip_instance_cache": True, "use_listings_cache": False}
            self._files, root = url_to_fs(self._url, **options)
        except ImportError as error:
            package = _PACKAGES.get(protocol)
            extra = ", or this project with its extra `s3`" if package == "s3fs" else ""
            advice = f"install it with `pip install '{package}'`{extra}" if package else str(error)
            raise UserError(f"{self.location}: the package for {protocol}:// is missing; {advice}") from None
        except ValueError as error:
            raise UserError(f"{self.location}: not a folder, and no address that fsspec opens ({error})") from None
        self._root, self._pid = root.rstrip("/"), os.getpid()
        self._files.retries = 1  # attempts of s3fs, which would multiply those made here

    def _try(self, name: str, attempt: Callable[[Any, str, "_Heard"], Result]) -> Result:
        heard, wait = _Heard(), FIRST_WAIT_S
        where = f"{self.location}/{name}".rstrip("/")
        while True:
            with self._lock:
                if self._pid != os.getpid():  # a connection does not survive a fork
                    self._open()
            try:
                result = attempt(self._files, f"{self._root}/{name}".rstrip("/"), heard)
            except Exception as error:
                _raise_lasting(where, error)
                left = heard.at + self._timeout_s - time.monotonic()
                if left <= 0:
                    raise UserError(
                        f"{where}: no answer for {self._timeout_s:g} s ({_reason(error)}); check the address and the "
                        "network, or set compute.remote_timeout_s to wait longer"
                    ) from None
                self._say_once(error)
                time.sleep(min(wait, left))
                wait = min(2 * wait, LONGEST_WAIT_S)
                heard.begin()
            else:
                self._answered()
                return result

    def _say_once(self, error: Exception) -> None:
        with self._lock:
            told, self._silent = self._silent, True
        if not told:
            progress.say(
                f"{self.location} does not answer ({_reason(error)}); trying again for up to {self._timeout_s:g} s"
            )

    def _answered(self) -> None:
        with self._lock:
            told, self._silent = self._silent, False
        if told:
            progress.say(f"{self.location} answers again")


class _Heard(fsspec.Callback):  # type: ignore[misc]
    """When more of a file came than ever before, in seconds of the monotonic clock."""

    def __init__(self) -> None:
        super().__init__()
        self.at = time.monotonic()
        self._most = self._now = 0

    def begin(self) -> None:
        """A new attempt, from the start of the file."""
        self._now = 0

    def relative_update(self, inc: int = 1) -> None:
        self._now += inc
        if self._now > self._most:
            self._most, self.at = self._now, time.monotonic()


def _options(protocol: str, timeout_s: float) -> dict[str, Any]:
    """What makes the libraries below fsspec notice a silence early, and leave the trying again to this module."""
    connect, read = min(CONNECT_TIMEOUT_S, timeout_s), min(READ_TIMEOUT_S, timeout_s)
    if protocol in ("http", "https"):
        import aiohttp

        return {"client_kwargs": {"timeout": aiohttp.ClientTimeout(sock_connect=connect, sock_read=read)}}
    if protocol not in ("s3", "s3a"):
        return {}
    retries = {"total_max_attempts": 1}
    return {
        "endpoint_url": os.environ.get("AWS_ENDPOINT_URL_S3") or os.environ.get("AWS_ENDPOINT_URL"),
        "max_concurrency": 1,  # one request an object; several shards are fetched at a time
        "config_kwargs": {"connect_timeout": connect, "read_timeout": read, "retries": retries},
    }


def _raise_lasting(where: str, error: Exception) -> None:
    """Raise for what trying again does not mend; return for the rest.

    Raises:
        NoSuchObject: there is no such object.
        UserError: the place refuses.
        OSError: the local disk.
        Exception: a defect.
    """
    number = error.errno if isinstance(error, OSError) else None
    if number in _DISK:
        raise error
    if isinstance(error, FileNotFoundError):
        raise NoSuchObject(f"{where}: no such object ({_reason(error)}); check the address, or upload it") from None
    name = type(error).__name__.lower()
    if isinstance(error, PermissionError) or any(word in name for word in _CREDENTIALS):
        raise UserError(
            f"{where}: access refused ({_reason(error)}); for s3:// set AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY, "
            "or AWS_PROFILE, and AWS_ENDPOINT_URL where the store is not Amazon's"
        ) from None
    if number in _REFUSED or "validation" in name:
        raise UserError(f"{where}: refused ({_reason(error)}); check the address and its region") from None
    if type(error).__module__ == "builtins" and not isinstance(error, OSError | EOFError):
        raise error


def _reason(error: Exception) -> str:
    text = str(error).strip().splitlines()
    if text:
        return text[0].rstrip(".")
    return "it timed out" if isinstance(error, TimeoutError) else type(error).__name__
