"""What a job is, and how it speaks."""

import re
from dataclasses import dataclass

USER_MISTAKE, STORAGE_FAILED, TERMINATED = 1, 5, 143
SECRET = re.compile(r"(\w+://)[^/@\s]+@")


@dataclass(frozen=True, kw_only=True)
class Job:
    """The content of job.json.

    Attributes:
        origin: address of the Git repository, as the head reaches it.
        folder: the DVC project in the repository, relative to its top.
        experiment: name under which the results are pushed.
        replace: whether an experiment of this name at origin is one of this job.
        save: whether the results are to be saved as an experiment: DVC itself does not.
        remote: DVC's; its default without one.
        patch: sha256 of the changes to the commit; None: there are none.
        author, email: for commits, where Git on the head knows nobody.
    """

    id: str
    commit: str
    origin: str
    folder: str
    command: list[str]
    experiment: str
    replace: bool
    save: bool
    remote: str | None
    patch: str | None
    author: str
    email: str


class Failed(Exception):
    """The job cannot go on; its message says why in one line, and what to do."""

    def __init__(self, message: str, code: int = USER_MISTAKE) -> None:
        super().__init__(message)
        self.code = code


class Stopped(BaseException):
    """SIGTERM or SIGINT came."""


def say(text: str) -> None:
    print(f"job: {masked(text)}", flush=True)


def masked(text: str) -> str:
    """Without the names and passwords that addresses can hold."""
    return SECRET.sub(r"\1***@", text)
