"""The token that a cluster asks for: whether it is on, there, and for its owner's eyes alone."""

import os
import stat
from collections.abc import Iterator, Mapping
from pathlib import Path

from pipeline.doctor.finding import Finding, broken, ok

WHAT = "token"
MAKE = '`(umask 077 && python -c "import secrets; print(secrets.token_hex(32))" > ~/.ray/auth_token)`'


def token(cluster: bool, environment: Mapping[str, str] | None = None, home: Path | None = None) -> Iterator[Finding]:
    """Ray's order: RAY_AUTH_TOKEN, the file RAY_AUTH_TOKEN_PATH, ~/.ray/auth_token.

    Args:
        cluster: whether one is to be contacted; alone on this machine, every Ray makes a token of its own.
    """
    env = os.environ if environment is None else environment
    mode = env.get("RAY_AUTH_MODE", "token").lower()
    if mode != "token":
        yield broken(
            WHAT,
            f"RAY_AUTH_MODE is {mode}: whoever reaches Ray's ports can run programs as you",
            "`export RAY_AUTH_MODE=token`",
        )
    path = Path(env.get("RAY_AUTH_TOKEN_PATH") or (home or Path.home()) / ".ray" / "auth_token")
    there = path.is_file()
    if there and (mode_bits := stat.S_IMODE(path.stat().st_mode)) & 0o077:
        yield broken(
            WHAT,
            f"others can read {path} (mode {mode_bits:04o})",
            f"`chmod 600 {path}`, and make a new token if others use this machine",
        )
    elif there and not path.read_text(encoding="utf-8", errors="replace").strip():
        yield broken(WHAT, f"{path} is empty", MAKE)
    elif mode == "token" and env.get("RAY_AUTH_TOKEN"):
        yield ok(WHAT, "in RAY_AUTH_TOKEN")
    elif mode == "token" and there:
        yield ok(WHAT, f"in {path}, for you alone")
    elif env.get("RAY_AUTH_TOKEN_PATH"):
        yield broken(WHAT, f"RAY_AUTH_TOKEN_PATH: {path}: no such file", "correct it, or unset it")
    elif mode == "token" and cluster:
        yield broken(
            WHAT,
            f"none: neither RAY_AUTH_TOKEN nor {path}",
            "copy that of the cluster (`~/.ray/auth_token` of its head), or make one before `ray up`: " + MAKE,
        )
    elif mode == "token":
        yield ok(WHAT, "none needed: Ray on this machine alone makes its own")
