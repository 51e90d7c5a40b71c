"""The token that a cluster asks for, found where Ray looks for it."""

import os
import stat
from pathlib import Path

from pipeline.errors import ClusterFailed

VARIABLE, PATH_VARIABLE = "RAY_AUTH_TOKEN", "RAY_AUTH_TOKEN_PATH"
DEFAULT = "~/.ray/auth_token"
COPY = f"copy that of the cluster to {DEFAULT} (mode 600), or name its file in {PATH_VARIABLE}"


class NoToken(ClusterFailed):
    """There is none, or it is not this user's alone."""


def find_token() -> str:
    """RAY_AUTH_TOKEN, or what the file holds that RAY_AUTH_TOKEN_PATH names, or ~/.ray/auth_token.

    Raises:
        NoToken: there is none, or others can read the file.
    """
    return os.environ.get(VARIABLE, "").strip() or _read(place())


def place() -> Path:
    """The file that is read where RAY_AUTH_TOKEN is not set."""
    return Path(os.environ.get(PATH_VARIABLE) or DEFAULT).expanduser()


def _read(path: Path) -> str:
    try:
        mode, token = stat.S_IMODE(path.stat().st_mode), path.read_text(encoding="utf-8").strip()
    except OSError as error:
        raise NoToken(f"{path}: no token for a cluster ({error.strerror}); {COPY}") from None
    if mode & 0o077:
        raise NoToken(
            f"{path}: others can read the token (mode {mode:04o}); "
            f"`chmod 600 {path}`, and make a new token if others use this machine"
        )
    if not token:
        raise NoToken(f"{path}: the token is empty; {COPY}")
    return token
