"""The processes of a run, by the part that they play in it. Linux only.

A process that calls `adopt_orphans` becomes the parent of whatever its descendants leave behind, so that all that was
started on its behalf stays below it, whoever died in between, and nothing else on the machine is ever below it.
"""

import ctypes
import os
import re
import time
from collections.abc import Callable, Iterable
from contextlib import suppress

import psutil

PR_SET_CHILD_SUBREAPER = 36
STAGE = re.compile(r"-m\0pipeline\0(\w+)\0--family\0(\w+)")

VICTIMS = {  # part -> a word in its command line
    "rank": "ray::RayTrainWorker",
    "trial": "ray::ImplicitFunc",
    "node": "/raylet/raylet",
    "gcs": "/gcs/gcs_server",
}
PARTS = {
    "train": ("rank", "group", "driver", "node", "gcs", "dvc"),  # the driver is Ray Train's controller, too
    "tune": ("trial", "driver", "node", "gcs", "dvc"),
}


def adopt_orphans() -> None:
    """Become the parent of every process that loses its own below this one."""
    if ctypes.CDLL(None, use_errno=True).prctl(PR_SET_CHILD_SUBREAPER, 1, 0, 0, 0):
        raise OSError(ctypes.get_errno(), "prctl(PR_SET_CHILD_SUBREAPER)")


def ours() -> list[psutil.Process]:
    """Every living process below this one; the dead that it adopted are buried."""
    living = []
    for child in psutil.Process().children(recursive=True):
        with suppress(psutil.NoSuchProcess):
            if child.status() != psutil.STATUS_ZOMBIE:
                living.append(child)
    return living


def bury(spared: Iterable[int]) -> None:
    """Collect dead children but for those of `spared`, whom somebody else waits for."""
    for child in psutil.Process().children():
        with suppress(psutil.NoSuchProcess, ChildProcessError):
            if child.pid not in spared and child.status() == psutil.STATUS_ZOMBIE:
                os.waitpid(child.pid, os.WNOHANG)


def command(process: psutil.Process) -> str:
    """Its command line, the words apart by NUL; empty where it is gone."""
    try:
        return "\0".join(process.cmdline())
    except psutil.Error:
        return ""


def end_all() -> None:
    """Kill every process below this one."""
    for process in ours():
        with suppress(psutil.NoSuchProcess):
            process.kill()


def stage(running: Iterable[psutil.Process]) -> tuple[str, str, psutil.Process] | None:
    """Stage, family and process of the driver that was started last."""
    found = []
    for process in running:
        match = STAGE.search(command(process))
        if match and process.is_running():
            found.append((process.create_time(), process.pid, match[1], match[2], process))
    return max(found)[2:] if found else None


def victims(part: str, running: Iterable[psutil.Process], driver: psutil.Process, dvc: int) -> list[psutil.Process]:
    """The processes that play `part` below `driver`; of several ranks or trials the caller takes one."""
    if part == "driver":
        return [driver]
    if part == "dvc":
        return [process for process in running if process.pid == dvc]
    word = VICTIMS["rank" if part == "group" else part]
    return [process for process in running if word in command(process) and driver in process.parents()]


def wait(condition: Callable[[], object], seconds: float, every: float = 0.1) -> bool:
    """Whether it came true in time."""
    end = time.monotonic() + seconds
    while not condition():
        if time.monotonic() > end:
            return False
        time.sleep(every)
    return True
