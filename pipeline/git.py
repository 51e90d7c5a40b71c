"""Git's commands on a repository at any path, as its plumbing: without questions, and with nobody's surroundings."""

import os
import re
import subprocess
from pathlib import Path

from pipeline.errors import UserError

LOCATING = ("GIT_DIR", "GIT_WORK_TREE", "GIT_INDEX_FILE", "GIT_OBJECT_DIRECTORY", "GIT_COMMON_DIR", "GIT_PREFIX")
LIMIT_S = 120.0  # for a remote repository to answer
PUSH_LIMIT_S = 600.0  # with the objects of commits, and what hooks of the user's do
_REFUSED = re.compile(r"\[remote rejected\] \((?!atomic)(.+)\)")
_QUIET = {"GIT_OPTIONAL_LOCKS": "0", "GIT_TERMINAL_PROMPT": "0", "LC_ALL": "C"}  # nobody would see a question


class GitFailed(UserError):
    """A command of Git's failed; the message is its first line of complaint, `said` all that it printed."""

    def __init__(self, command: str, said: str) -> None:
        self.said = said
        lines = [line for line in said.splitlines() if line.startswith(("fatal: ", "error: "))] or said.splitlines()
        reason = lines[0].removeprefix("fatal: ").removeprefix("error: ") if lines else "failed"
        super().__init__(f"`git {command}`: {reason}")


class Rejected(GitFailed):
    """A remote repository took nothing of a push.

    Attributes:
        newer: it has there what is not here; else it does not allow it (a protected branch, a hook).
    """

    def __init__(self, said: str) -> None:
        refused = _REFUSED.search(said)
        super().__init__("push", f"error: {refused[1]}\n{said}" if refused else said)
        self.newer = "[rejected]" in said


def git(root: Path, *command: str, given: str = "", env: dict[str, str] | None = None, limit_s: float = LIMIT_S) -> str:
    """Standard output, without the end of line.

    It runs in a session of its own: a signal to all of ours must not end it while it holds a lock of Git's, and SSH
    has no terminal to ask at.

    Raises:
        UserError: there is no Git, or no such folder.
        GitFailed: it ended with an error, or took longer than `limit_s` seconds.
    """
    return git_bytes(root, *command, given=given, env=env, limit_s=limit_s).decode(errors="replace").rstrip("\n")


def git_lines(root: Path, *command: str) -> list[str]:
    """The lines of standard output. `str.splitlines` also ends them at what names and messages may hold."""
    return [line for line in git(root, *command).split("\n") if line]


def git_bytes(
    root: Path, *command: str, given: str = "", env: dict[str, str] | None = None, limit_s: float = LIMIT_S
) -> bytes:
    """The same, as it came."""
    clean = {name: value for name, value in os.environ.items() if name not in LOCATING}
    try:
        done = subprocess.run(
            ["git", "-c", "core.fsmonitor=false", "-c", "user.useConfigOnly=true", *command],
            cwd=root,
            env=clean | _QUIET | (env or {}),
            input=given.encode(),
            capture_output=True,
            start_new_session=True,
            check=False,
            timeout=limit_s,
        )
    except FileNotFoundError:
        raise UserError("there is no program `git` here" if root.is_dir() else f"{root}: no such folder") from None
    except subprocess.TimeoutExpired:
        raise GitFailed(command[0], f"no answer in {limit_s:g} s") from None
    if done.returncode:
        raise GitFailed(command[0], (done.stderr + done.stdout).decode(errors="replace").strip())
    return done.stdout


def push(root: Path, remote: str, *refs: str) -> None:
    """Push all of the refs or none.

    Raises:
        Rejected: the remote repository does not take them.
        GitFailed: it cannot be asked.
    """
    try:
        git(root, "push", "--atomic", "--porcelain", "--no-follow-tags", remote, *refs, limit_s=PUSH_LIMIT_S)
    except GitFailed as error:
        if "rejected]" in error.said:
            raise Rejected(error.said) from None
        raise


def commit_of(root: Path, revision: str) -> str:
    """The commit that a revision names.

    Raises:
        UserError: there is none.
    """
    try:
        return git(root, "rev-parse", "--verify", "--quiet", "--end-of-options", f"{revision}^{{commit}}")
    except GitFailed:
        raise UserError(f"{revision}: no commit of this repository; `git fetch` it, or name another") from None


def text_at(root: Path, commit: str, path: str) -> str | None:
    """A file's text in a commit; None where it has no such file."""
    try:
        return git(root, "cat-file", "blob", f"{commit}:{path}")
    except GitFailed:
        return None
