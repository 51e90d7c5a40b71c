"""The uncommitted changes of a work tree, as a patch."""

import os
import shutil
import tempfile
from pathlib import Path

from pipeline.errors import UserError
from pipeline.git import git, git_bytes
from pipeline.secret import is_secret_file, secret_in

NAMED = 3  # files in a message
_PLAIN = ("--no-color", "--no-ext-diff", "--no-renames", "--src-prefix=a/", "--dst-prefix=b/")


def changed_files(top: Path) -> list[str]:
    """Tracked files that differ from the commit, and files that are not tracked and not ignored."""
    listed = git(top, "status", "--porcelain", "-z", "--no-renames", "--untracked-files=all")
    return [entry[3:] for entry in listed.split("\0") if entry]


def named(files: list[str]) -> str:
    """The first of them."""
    more = f" and {len(files) - NAMED} more" if len(files) > NAMED else ""
    return ", ".join(files[:NAMED]) + more


def patch_of(top: Path, commit: str) -> bytes:
    """All of it against `commit`. Index and object store of the repository stay as they are.

    Raises:
        UserError: it holds what looks like a secret.
    """
    index = Path(git(top, "rev-parse", "--git-path", "index"))
    objects = Path(git(top, "rev-parse", "--git-path", "objects"))
    with tempfile.TemporaryDirectory() as folder:
        own, store = Path(folder) / "index", Path(folder) / "objects"
        store.mkdir()
        shutil.copyfile(top / index, own)
        alternates = os.environ.get("GIT_ALTERNATE_OBJECT_DIRECTORIES")
        env = {
            "GIT_INDEX_FILE": str(own),
            "GIT_OBJECT_DIRECTORY": str(store),
            "GIT_ALTERNATE_OBJECT_DIRECTORIES": os.pathsep.join(filter(None, (str(top / objects), alternates))),
        }
        git(top, "add", "--all", env=env)
        names = git(top, "diff", "--cached", "--name-only", "-z", *_PLAIN, commit, env=env)
        patch = git_bytes(top, "diff", "--cached", "--binary", "--full-index", *_PLAIN, commit, env=env)
    _refuse_secrets([name for name in names.split("\0") if name], patch)
    return patch


def _refuse_secrets(names: list[str], patch: bytes) -> None:
    remedy = "take it out, or list the file in .gitignore"
    for name in names:
        if is_secret_file(name):
            raise UserError(f"--dirty: {name} is a file for secrets, which must not leave this machine; {remedy}")
    for part in patch.decode(errors="replace").split("\ndiff --git "):
        kind = secret_in(part)
        if kind is not None:
            name = part.removeprefix("diff --git ").split("\n")[0].rpartition(" b/")[2]
            raise UserError(
                f"--dirty: {name} holds what looks like {kind}, which must not leave this machine; {remedy}"
            )
