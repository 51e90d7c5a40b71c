"""How a command ends before it is done: on a signal, with the dvc that started it, and never without its children."""

import os
import signal
import sys
import threading
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from types import FrameType

import psutil

GRACE_S = 20.0  # to stop Ray and close files, before the process and all that it started are killed
POLL_S = 0.5
WATCH = "watch dvc"

_told: list[int] = []  # the signals that came


class Terminated(KeyboardInterrupt):
    """SIGTERM came. Whatever tidies up after Ctrl-C does so after this too."""


@contextmanager
def by_signal() -> Iterator[None]:
    """The first SIGINT or SIGTERM raises KeyboardInterrupt or Terminated in the block; a second one kills at once."""
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    before = {number: signal.signal(number, _stop) for number in (signal.SIGINT, signal.SIGTERM)}
    _told.clear()
    try:
        yield
    except KeyboardInterrupt as error:  # what Ray makes of either while it waits
        raise Terminated if _told[:1] == [signal.SIGTERM] else error from None
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


def _stop(number: int, frame: FrameType | None) -> None:
    if _told:
        end(128 + number)
    _told.append(number)
    raise Terminated if number == signal.SIGTERM else KeyboardInterrupt


def end(code: int) -> None:
    """End this process and all that it started at once."""
    for child in psutil.Process().children(recursive=True):
        try:
            child.kill()
        except psutil.NoSuchProcess:
            continue
    os._exit(code)


def end_with_dvc() -> None:
    """End this process when the `dvc` that started it ends: DVC leaves its stages running when it is killed."""
    if "DVC_STAGE" not in os.environ or any(thread.name == WATCH for thread in threading.enumerate()):
        return
    dvc = next((parent for parent in psutil.Process().parents() if is_dvc(_command(parent))), None)
    if dvc is not None or os.getppid() == 1:  # it was killed before this line
        threading.Thread(target=_watch, args=(dvc,), name=WATCH, daemon=True).start()


def is_dvc(command: Sequence[str]) -> bool:
    """Whether a command line runs DVC: `dvc …`, `python [options] …/dvc …`, or `python [options] -m dvc …`."""
    return dvc_at(command) is not None


def dvc_at(command: Sequence[str]) -> int | None:
    """Which word of a command line is DVC; None: it does not run DVC."""
    if not command:
        return None
    if _name(command[0]) == "dvc":
        return 0
    if not _name(command[0]).startswith("python"):
        return None
    arguments = iter(enumerate(command[1:], 1))
    for at, argument in arguments:
        if argument in {"-W", "-X"}:
            next(arguments, None)
        elif argument == "-m":
            at, module = next(arguments, (at, ""))
            return at if module.partition(".")[0] == "dvc" else None
        elif not argument.startswith("-") or argument == "-c":
            return at if _name(argument) == "dvc" else None
    return None


def _name(path: str) -> str:
    return Path(path).name.removesuffix(".exe")


def _command(process: psutil.Process) -> list[str]:
    try:
        return list(process.cmdline())
    except psutil.Error:
        return []


def _watch(dvc: psutil.Process | None) -> None:
    while dvc is not None and _is_alive(dvc):
        time.sleep(POLL_S)
    if not _told:
        os.kill(os.getpid(), signal.SIGTERM)
    time.sleep(GRACE_S)
    end(143)


def _is_alive(process: psutil.Process) -> bool:
    try:
        return bool(process.is_running() and process.status() != psutil.STATUS_ZOMBIE)
    except psutil.NoSuchProcess:
        return False


def say_interrupted(error: KeyboardInterrupt) -> int:
    """The line for a command that was told to end, and its exit code."""
    terminated = isinstance(error, Terminated)
    what = "terminated" if terminated else "interrupted"
    print(f"{what}; what was done is kept, run the same command again to continue", file=sys.stderr)
    return 143 if terminated else 130
