"""Which files this node has found to be as they were written, so that it reads a shard's bytes once to check them.

A stamp names a file, its length, its time, its inode and the sha256 that it was found to have. Whatever writes to the
file or exchanges it changes one of these. Stamps that cannot be kept cost only the reading again.
"""

import fcntl
import hashlib
import json
import os
import threading
import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager, suppress
from pathlib import Path
from typing import Literal

from pipeline import files

Mode = Literal["once", "always", "never"]
Identity = tuple[str, int, int, int, int, str]

RACY_NS = 100_000_000  # a file written so shortly ago can change once more without getting another time


class Verified:
    """Checks files against their sha256.

    Args:
        folder: where the stamps are kept; made when needed.
        mode: once: a stamp of an earlier process counts; always: only what this object saw; never: lengths alone.
    """

    def __init__(self, folder: Path, mode: Mode) -> None:
        self._folder, self._mode = folder, mode
        self._seen: set[Identity] = set()

    def problem(self, path: Path, size: int | None, sha256: str) -> str | None:
        """What is wrong with a file that should have `size` bytes (None: any number) and `sha256`; None: nothing."""
        try:
            found = path.stat()
            if size is not None and found.st_size != size:
                return f"{path}: expected {size:,} bytes, found {found.st_size:,}"
            identity = _identity(path, found, sha256)
            if self._known(identity):
                return None
            digest = files.sha256(path)
        except FileNotFoundError:
            return f"{path}: no such file, and the manifest names it"
        except OSError as error:
            return f"{path}: cannot be read ({error.strerror})"
        if digest != sha256:
            return f"{path}: damaged or exchanged: expected sha256 {sha256}, found {digest}"
        self._remember(identity, lasting=abs(time.time_ns() - found.st_mtime_ns) > RACY_NS)
        return None

    def known(self, path: Path, sha256: str) -> bool:
        """Whether `problem` would not have to read the file."""
        try:
            return self._known(_identity(path, path.stat(), sha256))
        except OSError:
            return True  # it is not there to be read

    def accept(self, path: Path, sha256: str) -> None:
        """Stamp a file that the caller has checked, and that nothing else writes to."""
        self._remember(_identity(path, path.stat(), sha256), lasting=True)

    def forget(self, path: Path) -> None:
        with suppress(OSError):
            self._stamp(str(path.absolute())).unlink(missing_ok=True)

    @contextmanager
    def alone(self) -> Iterator[None]:
        """Let one process of the node check a set of files, so that the others find its stamps."""
        with ExitStack() as held:
            if self._mode == "once":
                with suppress(OSError):
                    held.enter_context(locked(self._folder / "lock"))
            yield

    def _known(self, identity: Identity) -> bool:
        if self._mode == "never" or identity in self._seen:
            return True
        if self._mode == "always":
            return False
        try:
            return bool(json.loads(self._stamp(identity[0]).read_bytes()) == list(identity))
        except (OSError, ValueError):
            return False

    def _remember(self, identity: Identity, *, lasting: bool) -> None:
        self._seen.add(identity)
        if not lasting:
            return
        stamp = self._stamp(identity[0])
        temporary = stamp.with_name(f".{stamp.name}.{os.getpid()}.{threading.get_ident()}.tmp")
        with suppress(OSError):  # not synced: a stamp lost in a power cut is a check made again
            stamp.parent.mkdir(parents=True, exist_ok=True)
            temporary.write_text(json.dumps(identity))
            temporary.replace(stamp)

    def _stamp(self, path: str) -> Path:
        return self._folder / f"{hashlib.sha256(os.fsencode(path)).hexdigest()[:32]}.json"


@contextmanager
def locked(path: Path) -> Iterator[None]:
    """Hold the lock file `path` against all other processes and threads of this node; the end of a process frees it.

    Raises:
        OSError: the file cannot be made.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open("a") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        yield


def _identity(path: Path, found: os.stat_result, sha256: str) -> Identity:
    return str(path.absolute()), found.st_size, found.st_mtime_ns, found.st_ino, found.st_dev, sha256
