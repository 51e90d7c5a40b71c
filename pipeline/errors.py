"""What a stage raises when the user can mend it: one line saying what, where and the remedy; a class an exit code."""

import difflib
from collections.abc import Iterable


class UserError(Exception):
    """A mistake the user can correct. `python -m pipeline` prints the message alone and exits with `code`."""

    code = 1


class Diverged(UserError):
    """Loss or gradient was not finite more often than allowed."""

    code = 3


class WorkersFailed(UserError):
    """Ranks or trials died more often than allowed, for want of memory too."""

    code = 4


class StorageFailed(UserError):
    """A disk is full or read-only, or the store of checkpoints does not answer."""

    code = 5


class ClusterFailed(UserError):
    """Ray does not answer or cannot start, or lost a node or its controller more often than allowed."""

    code = 6


class Busy(UserError):
    """Another process, still alive, works on the same run."""

    code = 7


def printable(text: str) -> str:
    """The same lines, with nothing in them that a terminal would take for a command."""
    return "".join(c if c.isprintable() or c == "\n" else c.encode("unicode_escape").decode() for c in text)


def did_you_mean(name: str, known: Iterable[str]) -> str:
    """`; did you mean 'x'?` for the nearest known name, else the list of known names."""
    known = sorted(known)
    near = difflib.get_close_matches(name, known, n=1, cutoff=0.5)
    if near:
        return f"; did you mean {near[0]!r}?"
    return f"; known: {', '.join(known)}" if known else ""
