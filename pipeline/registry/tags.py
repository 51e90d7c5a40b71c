"""Writes tags: all of them or none, here and in a remote repository."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from pipeline.errors import UserError
from pipeline.git import GitFailed, Rejected, git, push


@dataclass(frozen=True)
class NewTag:
    """An annotated tag that is to be."""

    name: str
    commit: str
    message: str


def write(root: Path, tags: Sequence[NewTag], seconds: int, *, push_to: str | None) -> None:
    """Make the tags at once.

    With `push_to` they are made in that remote repository first, so that no tag is here which is not there.

    Args:
        seconds: the date that they get, in seconds of the epoch.
        push_to: name or address of a remote repository; None: none.

    Raises:
        UserError: Git does not know who tags, a tag is there already, or the remote repository did not take them; then
            nothing has changed, neither here nor there.
    """
    who = _identity(root, seconds)
    objects = {tag.name: _object(root, tag, who) for tag in tags}
    if push_to is not None:
        _push(root, push_to, [f"{sha}:refs/tags/{name}" for name, sha in objects.items()])
    try:
        create_tags(root, objects)
    except GitFailed as error:
        if push_to is not None:
            raise UserError(
                f"{push_to} has the tags, but this repository took them not ({error}); `git fetch --tags {push_to}`"
            ) from None
        names = " and ".join(objects)
        raise UserError(f"cannot make {names} ({error}); nothing was changed, run the same command again") from None


def create_tags(root: Path, objects: Mapping[str, str]) -> None:
    """Let tags of these names be these objects, all or none.

    Raises:
        GitFailed: one is there already.
    """
    lines = ["start", *(f"create refs/tags/{name} {sha}" for name, sha in objects.items()), "prepare", "commit"]
    git(root, "update-ref", "--stdin", given="\n".join(lines) + "\n")


def _object(root: Path, tag: NewTag, who: str) -> str:
    text = f"object {tag.commit}\ntype commit\ntag {tag.name}\ntagger {who}\n\n{tag.message.strip()}\n"
    return git(root, "mktag", given=text)


def _identity(root: Path, seconds: int) -> str:
    try:
        return git(root, "var", "GIT_COMMITTER_IDENT", env={"GIT_COMMITTER_DATE": f"@{seconds} +0000"})
    except GitFailed:
        raise UserError("Git does not know who you are; set user.name and user.email (`git config`)") from None


def _push(root: Path, remote: str, refs: Sequence[str]) -> None:
    try:
        push(root, remote, *refs)
    except GitFailed as error:
        if isinstance(error, Rejected) and error.newer:
            raise UserError(
                f"{remote} has newer tags; `git fetch --tags {remote}`, look at them, and run the same "
                "command again; nothing was changed"
            ) from None
        raise UserError(
            f"cannot push to {remote} ({error}); check `git remote -v` and your rights there; nothing was changed"
        ) from None
