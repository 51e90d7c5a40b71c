"""The processes of a job: Git, the command, and the end of all of them."""

import contextlib
import json
import os
import re
import shutil
import signal
import subprocess
import sys
import threading
import time
from collections import deque
from collections.abc import Sequence
from importlib.util import find_spec
from pathlib import Path

from .job import Failed, masked

JOB_CONFIG = "RAY_JOB_CONFIG_JSON_ENV_VAR"
PATIENCE_S, GRACE_S = 20.0, 30.0  # for processes that were told to end: Ray tells all, anybody else this one alone
KEPT_LINES = 200  # of the command's output, to find out with which code a stage ended
EXITED = re.compile(r"failed to run: .*?, exited with (-?\d+)", re.DOTALL)


def environment() -> dict[str, str]:
    """For the command: this interpreter's programs first; nothing asks anybody; Ray's workers get no folder of ours.

    What the job was submitted with would reach every worker, and clash with what the command itself gives to Ray.
    """
    env = dict(os.environ)
    env["PATH"] = f"{Path(sys.executable).parent}{os.pathsep}{env.get('PATH', os.defpath)}"
    env["GIT_TERMINAL_PROMPT"] = "0"
    env.setdefault("GIT_SSH_COMMAND", "ssh -o BatchMode=yes")
    if JOB_CONFIG in env:
        env[JOB_CONFIG] = json.dumps({**json.loads(env[JOB_CONFIG]), "runtime_env": {}})
    return env


def check_tools(env: dict[str, str]) -> None:
    if shutil.which("git", path=env["PATH"]) is None:
        raise Failed("there is no program `git` on the head; install it in the cluster's set-up commands")
    if find_spec("dvc") is None:
        raise Failed(f"{sys.executable} on the head has no DVC; install the project's dependencies there")


def git(folder: Path, *command: str, env: dict[str, str]) -> str:
    """Standard output, without the end of line."""
    done = subprocess.run(
        ["git", *command], cwd=folder, env=env, stdin=subprocess.DEVNULL, capture_output=True, text=True, check=False
    )
    if done.returncode:
        lines = [line for line in done.stderr.splitlines() if line.startswith(("fatal:", "error:"))]
        reason = (lines or done.stderr.strip().splitlines() or ["failed"])[0]
        raise Failed(f"git {command[0]}: {reason}")
    return done.stdout.rstrip("\n")


def streamed(command: Sequence[str], project: Path, env: dict[str, str]) -> int:
    """Run it, its output line by line with ours. Its exit code, or the stage's where DVC says that one failed."""
    last: deque[str] = deque(maxlen=KEPT_LINES)
    try:
        process = subprocess.Popen(
            command, cwd=project, env=env, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=subprocess.STDOUT,
            text=True, errors="replace",
        )  # fmt: skip
    except OSError as error:
        raise Failed(f"{command[0]}: {error.strerror} on the head") from None

    def pump() -> None:
        for line in process.stdout or ():
            last.append(line)
            sys.stdout.write(masked(line))
            sys.stdout.flush()

    reader = threading.Thread(target=pump, daemon=True)
    reader.start()
    code = process.wait()
    reader.join(5)  # something that the command left behind may hold the pipe
    stages = EXITED.findall("".join(last)) if code and "dvc" in {Path(word).name for word in command[:3]} else []
    code = int(stages[-1]) if stages else code
    return 128 - code if code < 0 else code


def end_others() -> None:
    """Wait for the processes of this job, tell them to end where Ray has not, and kill what is left."""
    _wait(PATIENCE_S if JOB_CONFIG in os.environ else 0.0)
    if others():
        os.killpg(0, signal.SIGTERM)  # which this process ignores
        _wait(GRACE_S)
    for process in others():
        with contextlib.suppress(ProcessLookupError):
            os.kill(process, signal.SIGKILL)


def _wait(seconds: float) -> None:
    end = time.monotonic() + seconds
    while others() and time.monotonic() < end:
        time.sleep(0.1)


def others() -> list[int]:
    """The living processes of this one's group."""
    found = []
    for file in Path("/proc").glob("[0-9]*/stat"):
        try:
            state, _, group = file.read_text().rpartition(")")[2].split()[:3]
        except OSError:  # it has ended
            continue
        if state != "Z" and int(group) == os.getpgrp() and int(file.parent.name) != os.getpid():
            found.append(int(file.parent.name))
    return found
