"""DVC as a child process: it works in a folder of its own, and ends with the process that started it."""

import os
import re
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterable, Mapping
from contextlib import suppress
from pathlib import Path

import psutil

from pipeline.errors import UserError
from pipeline.git import LOCATING
from pipeline.progress import say

GRACE_S = 30.0  # for a stage to stop Ray and close its files
_EXITED = re.compile(r"exited with (\d+)")


class ChildFailed(UserError):
    """A stage, or DVC itself, failed; `code` is the stage's exit code, `complaints` are what it said of a mistake."""

    def __init__(self, what: str, code: int, complaints: tuple[str, ...], dvc: tuple[str, ...]) -> None:
        self.code, self.complaints = code, complaints
        told = (*dvc[:1], *complaints[-1:])
        reason = told[-1] if told else "what it printed above says why"
        super().__init__(f"`{what}` failed: {reason}; the same command goes on from here")


def environment(**more: str) -> dict[str, str]:
    """For DVC in another folder: nothing of this process's own DVC or Git, this Python first on PATH, and `more`."""
    dropped = (*LOCATING, "DVC_ROOT", "DVC_STAGE", "DVC_EXP_NAME", "DVC_EXP_BASELINE_REV")
    kept = {name: value for name, value in os.environ.items() if name not in dropped}
    path = f"{Path(sys.executable).parent}{os.pathsep}{os.environ.get('PATH', os.defpath)}"
    return kept | {"PATH": path, "DVC_NO_ANALYTICS": "1"} | more


def dvc(folder: Path, *arguments: str, env: Mapping[str, str]) -> list[str]:
    """Run DVC in `folder`, and show what it prints. Its lines.

    Raises:
        ChildFailed: it ended with an error.
    """
    command = [sys.executable, "-m", "dvc", *arguments]
    process = subprocess.Popen(
        command, cwd=folder, env=dict(env), stdin=subprocess.DEVNULL, stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT, text=True, encoding="utf-8", errors="replace", preexec_fn=_end_with_parent(),
    )  # fmt: skip
    assert process.stdout is not None
    lines = []
    with process.stdout:
        try:
            for line in process.stdout:
                lines.append(line.rstrip("\n"))
                say(lines[-1])
            process.wait()
        except BaseException:
            end(process.pid)
            raise
    if process.returncode:
        raise _failed(" ".join(("dvc", *arguments)), lines)
    return lines


def _failed(what: str, lines: list[str]) -> ChildFailed:
    """DVC ends with 1 or 255 whatever a stage ended with, and says which it was."""
    codes = [int(found[1]) for line in lines if (found := _EXITED.search(line))]
    of_stage, of_dvc = (
        tuple(line.removeprefix(start) for line in lines if line.startswith(start)) for start in ("error: ", "ERROR: ")
    )
    return ChildFailed(what, codes[-1] if codes else 1, of_stage, of_dvc)


def _end_with_parent() -> Callable[[], None] | None:
    """Called in the child: Linux sends it SIGTERM when this process is gone, whatever ended that."""
    if not sys.platform.startswith("linux"):
        return None
    import ctypes

    prctl = ctypes.CDLL(None).prctl
    return lambda: prctl(1, signal.SIGTERM)  # PR_SET_PDEATHSIG


def end(pid: int) -> None:
    """End DVC; its stage ends with it, in order, and what is left after a while by force."""
    try:
        dvc = psutil.Process(pid)
        there = [dvc, *dvc.children(recursive=True)]
    except psutil.NoSuchProcess:
        return
    _send([dvc], psutil.Process.terminate)
    _, left = psutil.wait_procs(there, timeout=GRACE_S)
    _send(left, psutil.Process.kill)


def end_those_in(folder: Path) -> None:
    """End the processes that work in a folder: what a killed process left there must not go on.

    They were told by the end of that process, and may be about to end.
    """
    told: set[psutil.Process] = set()
    deadline = time.monotonic() + GRACE_S
    while left := _those_in(folder):
        if time.monotonic() < deadline:
            _send(left - told, psutil.Process.terminate)  # a second signal would end a stage at once
            told |= left
        else:
            _send(left, psutil.Process.kill)
        psutil.wait_procs(left, timeout=0.5)


def _those_in(folder: Path) -> set[psutil.Process]:
    found = set()
    for process in psutil.process_iter(["cwd"]):
        place = process.info["cwd"]  # None of a process of somebody else's
        if place and Path(place).is_relative_to(folder) and process.pid != os.getpid():
            found.add(process)
    return found


def _send(processes: Iterable[psutil.Process], signal_of: Callable[[psutil.Process], None]) -> None:
    for process in processes:
        with suppress(psutil.NoSuchProcess):
            signal_of(process)
