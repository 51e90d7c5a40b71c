"""Secrets that a user's machine holds while the pipeline runs, each of which nothing else would ever say."""

import secrets
import shutil
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

SECRETS = {
    name: f"planted-{name.lower()}-{secrets.token_hex(8)}"
    for name in (
        "AWS_SECRET_ACCESS_KEY",
        "AWS_SESSION_TOKEN",
        "AWS_ACCESS_KEY_ID",
        "GITHUB_TOKEN",
        "DATABASE_PASSWORD",
    )
}
TOKEN = secrets.token_hex(32)  # of Ray
REMOTE, DOTENV = (f"planted-{where}-{secrets.token_hex(8)}" for where in ("remote", "dotenv"))
EVERY = (*SECRETS.values(), TOKEN, REMOTE, DOTENV)
HOLDERS = (".env", ".dvc/config.local")  # where they belong


@contextmanager
def ray_folder() -> Iterator[Path]:
    """Where Ray keeps its sessions; short, because sockets have short names."""
    folder = Path(tempfile.mkdtemp(prefix="ray-", dir="/tmp"))
    try:
        yield folder
    finally:
        shutil.rmtree(folder, ignore_errors=True)


def environment(ray: Path) -> dict[str, str]:
    """The variables of a user who has logged in everywhere."""
    return {**SECRETS, "RAY_AUTH_MODE": "token", "RAY_AUTH_TOKEN": TOKEN, "RAY_TMPDIR": str(ray)}


def plant(project: Path) -> None:
    """Write the files of a checkout that hold secrets, and that Git ignores."""
    (project / ".env").write_text(f"API_KEY={DOTENV}\n")
    (project / ".dvc" / "config.local").write_text(
        f"['remote \"private\"']\n    url = https://user:{REMOTE}@dvc.invalid/store\n    password = {REMOTE}\n"
    )
