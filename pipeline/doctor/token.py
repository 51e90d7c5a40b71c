"""The token that a cluster asks for: whether it is on, there, and for its owner's eyes alone."""

import os
from collections.abc import Iterator

from pipeline import token
from pipeline.doctor.finding import Finding, broken, failed, ok

WHAT = "token"


def look(cluster: bool) -> Iterator[Finding]:
    """What there is to say of it.

    Args:
        cluster: whether one is to be contacted; alone on this machine, every Ray makes a token of its own.
    """
    mode = os.environ.get("RAY_AUTH_MODE", "token").lower()
    if mode != "token":
        told = f"RAY_AUTH_MODE is {mode}: whoever reaches Ray's ports can run programs as you"
        yield broken(WHAT, told, "`export RAY_AUTH_MODE=token`")
        return
    try:
        token.find_token()
    except token.NoToken as problem:
        if cluster or token.place().exists() or os.environ.get(token.PATH_VARIABLE):
            yield failed(WHAT, problem)
        else:
            yield ok(WHAT, "none needed: Ray on this machine alone makes its own")
    else:
        given = os.environ.get(token.VARIABLE)
        yield ok(WHAT, f"in {token.VARIABLE}" if given else f"in {token.place()}, for you alone")
