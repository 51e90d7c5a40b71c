"""Git at home."""

import os
import shutil
import subprocess
from pathlib import Path

from pipeline.errors import UserError
from pipeline.tune.git import LOCATING


class GitFailed(UserError):
    """A command of Git's failed; the message is the first line of what it said."""


def git(folder: Path, *command: str, env: dict[str, str] | None = None) -> str:
    """Standard output, without the ends of lines.

    Raises:
        GitFailed: it ended with another code than 0.
    """
    return git_bytes(folder, *command, env=env).decode(errors="replace").rstrip("\n")


def git_bytes(folder: Path, *command: str, env: dict[str, str] | None = None) -> bytes:
    """The same, as it came."""
    if shutil.which("git") is None:
        raise UserError("there is no program `git` here; install Git")
    clean = {name: value for name, value in os.environ.items() if name not in LOCATING}
    done = subprocess.run(
        ["git", "-c", "core.fsmonitor=false", *command], cwd=folder,
        env=clean | {"GIT_OPTIONAL_LOCKS": "0", "LC_ALL": "C"} | (env or {}),
        stdin=subprocess.DEVNULL, capture_output=True, check=False,
    )  # fmt: skip
    if done.returncode:
        lines = done.stderr.decode(errors="replace").strip().splitlines()
        told = [line for line in lines if line.startswith(("fatal: ", "error: "))] or lines or ["failed"]
        raise GitFailed(told[0].removeprefix("fatal: ").removeprefix("error: "))
    return done.stdout
