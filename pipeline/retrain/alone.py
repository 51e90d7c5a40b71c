"""One retraining of a project at a time. A lock of the kernel: it ends with its process, whatever ends that.

The lock of training runs is of the same kind, but it comes with all of torch, and most nights there is nothing to do.
"""

import fcntl
import os
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from pipeline.errors import Busy

RETRY_S = 0.5


@contextmanager
def alone(path: Path, *, wait_s: float) -> Iterator[None]:
    """Hold the lock in the file `path`, for which another process is waited for `wait_s` seconds.

    Raises:
        Busy: that was not enough.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    deadline = time.monotonic() + wait_s
    with path.open("a+") as file:
        while not _locked(file.fileno()):
            if time.monotonic() >= deadline:
                file.seek(0)
                holder = file.read().strip() or "another process"
                raise Busy(f"{holder} is retraining here; wait for it (--wait SECONDS), or stop it")
            time.sleep(RETRY_S)
        file.truncate(0)
        file.write(f"process {os.getpid()}")
        file.flush()
        yield


def _locked(descriptor: int) -> bool:
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    return True
