"""What origin has, and whether a push to it could succeed: asked before anything is trained for hours."""

from collections.abc import Mapping
from pathlib import Path

from pipeline.errors import UserError
from pipeline.git import GitFailed, git, git_lines

ORIGIN = "origin"


def listed(home: Path) -> dict[str, str]:
    """Name of each ref at origin -> its object.

    Raises:
        UserError: origin does not answer.
    """
    try:
        lines = git_lines(home, "ls-remote", ORIGIN)
    except GitFailed as error:
        raise UserError(f"{ORIGIN}: no answer ({error}); check `git remote -v`, run the same command again") from None
    return {ref: sha for sha, ref in (line.split("\t") for line in lines)}


def check_push(home: Path, there: Mapping[str, str], branch: str | None, head: str) -> None:
    """That origin has no commit of the branch and no tag that is not here.

    Raises:
        UserError: it has, or no branch is checked out.
    """
    if branch is None:
        raise UserError("--push: no branch is checked out; `git checkout main`, or propose a branch with --branch")
    theirs = there.get(f"refs/heads/{branch}")
    if theirs is not None and not _is_ancestor(home, theirs, head):
        raise UserError(f"{ORIGIN}/{branch} has commits that are not here; `git pull --ff-only {ORIGIN} {branch}`")
    here = set(git_lines(home, "for-each-ref", "--format=%(refname)", "refs/tags"))
    if missing := sorted(ref for ref in there if ref.startswith("refs/tags/") and ref.removesuffix("^{}") not in here):
        raise UserError(f"{ORIGIN} has tags that are not here ({missing[0]}); `git fetch --tags {ORIGIN}`")


def check_branch(home: Path, there: Mapping[str, str], branch: str, head: str, experiment: str) -> None:
    """That a proposal on top of `head` can be pushed as the branch, or is there already: the tree of `experiment`.

    Raises:
        UserError: origin has other commits there.
    """
    theirs = there.get(f"refs/heads/{branch}")
    if theirs is None or _is_ancestor(home, theirs, head) or _same_tree(home, theirs, experiment):
        return
    raise UserError(in_the_way(branch))


def in_the_way(branch: str) -> str:
    return f"--branch: {branch} at {ORIGIN} has other commits; merge or delete it there, or name another branch"


def _is_ancestor(home: Path, commit: str, head: str) -> bool:
    try:
        git(home, "merge-base", "--is-ancestor", commit, head)
    except GitFailed:
        return False
    return True


def _same_tree(home: Path, *revisions: str) -> bool:
    """Whether all are here and have one tree."""
    try:
        return len({git(home, "rev-parse", "--verify", "--quiet", f"{each}^{{tree}}") for each in revisions}) == 1
    except GitFailed:
        return False
