"""One process a run: a lock of the kernel on a disk, a lease with a heartbeat in a store at an address.

A lock on a disk ends with its process, whatever ends that. In a store of objects nothing does: a lease is renewed every
few seconds, and is taken over when it was not for a minute, or at once when its process is known to be dead.
"""

import os
import platform
import secrets
import signal
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import TextIO, TypeAlias

import psutil

from pipeline.errors import Busy, StorageFailed
from pipeline.progress import say
from pipeline.train.folders import DiskFolder, Folder, Place, explained, is_temporary, open_folder
from pipeline.train.storage import FINISHED, read_json, write_json

LetGo: TypeAlias = Callable[[], None]

LOCK, LEASE = "lock", "lock.json"
BEAT_S, STALE_S = 5.0, 60.0
CLOCK_S = 2.0  # the start of a process is told by a clock that may have been set since
RETRY_S = 0.5
SETTLE_S = 1.0  # between writing a lease and reading it again: another process may have found none at the same time


@dataclass(frozen=True)
class Owner:
    """The process that holds a run.

    Attributes:
        started: when the process began, in seconds of the epoch, since numbers of processes come again.
        beat: when the lease was renewed last, likewise, by the owner's clock; 0 on a disk.
        token: of this lease alone.
    """

    pid: int
    host: str
    started: float = 0.0
    beat: float = 0.0
    token: str = ""

    @classmethod
    def this(cls) -> "Owner":
        return cls(os.getpid(), platform.node(), psutil.Process().create_time(), time.time(), secrets.token_hex(16))

    def __str__(self) -> str:
        return f"process {self.pid}" + ("" if self.host == platform.node() else f" of {self.host}")

    @property
    def is_gone(self) -> bool:
        """Whether it ran on this machine and has ended."""
        if self.host != platform.node():
            return False
        try:
            return bool(abs(psutil.Process(self.pid).create_time() - self.started) > CLOCK_S)
        except psutil.NoSuchProcess:
            return True


@contextmanager
def exclusive(place: Place, *, wait_s: float = 0.0, lost: Callable[[str], None] | None = None) -> Iterator[None]:
    """Hold a run's folder for this process alone. What a killed writer left unfinished there is removed.

    Args:
        wait_s: how long to wait for another process to end.
        lost: told why, from another thread, when another process took over because this one was silent for too long;
            without it this process is terminated.

    Raises:
        Busy: another process that is still alive holds it.
        StorageFailed: the disk or the store.
    """
    folder = open_folder(place)
    let_go = _hold(folder, time.monotonic() + wait_s, lost or _terminate)
    try:
        folder.remove(*filter(is_temporary, folder.details()))
        yield
    finally:
        let_go()


def remove_run(place: Place) -> None:
    """Remove a run's folder and all that is in it.

    Raises:
        Busy: another process holds it.
        StorageFailed: the disk or the store.
    """
    folder = open_folder(place)
    let_go = _hold(folder, 0.0, _terminate)
    try:
        if isinstance(folder, DiskFolder):
            folder.clear()
        else:  # first what says that it is finished: a kill leaves a run that goes on
            names = sorted(folder.details(), key=lambda name: name != FINISHED)
            folder.remove(*(name for name in names if name != LEASE))
    finally:
        let_go()


def owner(place: Place) -> Owner | None:
    """Who holds a run's folder now."""
    folder = open_folder(place)
    if not isinstance(folder, DiskFolder):
        found = _leased(folder)
        return found if found and not found.is_gone and time.time() - found.beat <= STALE_S else None
    with suppress(FileNotFoundError), explained(folder.path), (folder.path / LOCK).open() as file:
        found = _written(file)
        alive = found is None or found.host != platform.node() or psutil.pid_exists(found.pid)
        if alive and not _flock(file, shared=True):
            return found or Owner(0, platform.node())
    return None


def _hold(folder: Folder, until: float, lost: Callable[[str], None]) -> LetGo:
    """Take the lock or the lease, by the monotonic clock at the latest at `until`."""
    while True:
        try:
            return _lock(folder) if isinstance(folder, DiskFolder) else _lease(folder, lost)
        except Busy:
            if time.monotonic() >= until:
                raise
            time.sleep(RETRY_S)


def _busy(folder: Folder, holder: object) -> Busy:
    return Busy(f"{folder.location}: {holder} is working here; wait for it, or stop it")


def _lock(folder: DiskFolder) -> LetGo:
    with explained(folder.path):
        while True:
            folder.path.mkdir(parents=True, exist_ok=True)
            file = (folder.path / LOCK).open("a+")
            if not _flock(file):
                holder = _written(file)
                file.close()
                raise _busy(folder, holder or "a process")
            if _is(file, folder.path / LOCK):
                break
            file.close()  # the folder was removed meanwhile
    with suppress(OSError):  # the lock holds without it, and a full disk must not keep `runs rm` from making room
        file.truncate(0)
        os.write(file.fileno(), f"{os.getpid()} {platform.node()}".encode())
    return file.close


def _flock(file: TextIO, shared: bool = False) -> bool:
    import fcntl

    try:
        fcntl.flock(file, (fcntl.LOCK_SH if shared else fcntl.LOCK_EX) | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    return True


def _is(file: TextIO, path: Path) -> bool:
    try:
        return os.path.samestat(os.fstat(file.fileno()), path.stat())
    except FileNotFoundError:
        return False


def _written(file: TextIO) -> Owner | None:
    file.seek(0)
    pid, _, host = file.read().strip().partition(" ")
    return Owner(int(pid), host or platform.node()) if pid.isdigit() else None


def _lease(folder: Folder, lost: Callable[[str], None]) -> LetGo:
    own = Owner.this()
    holder = _leased(folder)
    if holder is not None and not _is_dead(folder, holder):
        raise _busy(folder, holder)
    write_json(folder, LEASE, asdict(own))
    time.sleep(SETTLE_S)
    holder = _leased(folder)
    if holder is None or holder.token != own.token:
        raise _busy(folder, holder or "another process")
    done = threading.Event()
    thread = threading.Thread(target=_renew, args=(folder, own, done, lost), daemon=True)
    thread.start()
    return lambda: _let_go(folder, own, done, thread)


def _is_dead(folder: Folder, holder: Owner) -> bool:
    """Whether a lease may be taken over. One that looks old is watched: the clocks of two machines differ."""
    if holder.is_gone:
        return True
    if holder.host == platform.node() or time.time() - holder.beat <= STALE_S:
        return False
    time.sleep(2 * BEAT_S)
    return _leased(folder) == holder


def _renew(folder: Folder, own: Owner, done: threading.Event, lost: Callable[[str], None]) -> None:
    while not done.wait(BEAT_S):
        with suppress(StorageFailed):  # it may answer the next time; what trains there decides how long to wait
            holder = _leased(folder)
            if done.is_set():
                return
            if holder is None or holder.token != own.token:
                lost(f"{folder.location}: taken over by {holder or 'another process'}; this one ends")
                return
            write_json(folder, LEASE, asdict(replace(own, beat=time.time())))


def _let_go(folder: Folder, own: Owner, done: threading.Event, thread: threading.Thread) -> None:
    done.set()
    thread.join()
    with suppress(StorageFailed):  # it will be found to be stale
        holder = _leased(folder)
        if holder and holder.token == own.token:
            folder.remove(LEASE)


def _leased(folder: Folder) -> Owner | None:
    found = read_json(folder, LEASE)
    try:
        return Owner(**found) if found else None
    except TypeError:  # of another version
        return None


def _terminate(why: str) -> None:
    say(why)
    os.kill(os.getpid(), signal.SIGTERM)
