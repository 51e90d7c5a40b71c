"""What a stage raises when the user can mend it: one line saying what, where and the remedy."""

import difflib
from collections.abc import Iterable


class UserError(Exception):
    """A mistake the user can correct. `python -m pipeline` prints the message alone and exits with 1."""


def did_you_mean(name: str, known: Iterable[str]) -> str:
    """`; did you mean 'x'?` for the nearest known name, else the list of known names."""
    known = sorted(known)
    near = difflib.get_close_matches(name, known, n=1, cutoff=0.5)
    if near:
        return f"; did you mean {near[0]!r}?"
    return f"; known: {', '.join(known)}" if known else ""
