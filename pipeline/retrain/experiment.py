"""The DVC experiment of a retraining: made in the clone, kept in the project, and at origin for other checkouts.

By it a night that kept the champion is known again, so that the same data are not trained on every night.
"""

from collections.abc import Mapping
from pathlib import Path

from pipeline.errors import UserError
from pipeline.git import GitFailed, Rejected, git, push
from pipeline.progress import say
from pipeline.retrain.clone import Clone
from pipeline.retrain.origin import ORIGIN, listed

_FETCH = ("fetch", "--quiet", "--no-tags", "--no-write-fetch-head", "--no-auto-maintenance")


def reference(head: str, name: str) -> str:
    """The ref of an experiment that began with the commit `head`."""
    return f"refs/exps/{head[:2]}/{head[2:]}/{name}"


def commit(home: Path, ref: str) -> str | None:
    """The commit of an experiment; None where the project has it not."""
    try:
        return git(home, "rev-parse", "--verify", "--quiet", ref)
    except GitFailed:
        return None


def show(clone: Clone) -> None:
    """Let the project have the experiments of the clone, those of a sweep too, for `dvc exp show`."""
    pattern = reference(clone.head, "*")
    git(clone.home, *_FETCH, str(clone.root), f"+{pattern}:{pattern}")


def publish(clone: Clone, name: str) -> None:
    """Push the experiment, and its files: what the clone has checked out.

    Raises:
        ChildFailed: the DVC remote does not take the files.
        UserError: origin does not answer.
    """
    clone.dvc("push", "--quiet")
    ref = reference(clone.head, name)
    if ref in listed(clone.home):
        return
    try:
        push(clone.home, ORIGIN, f"{ref}:{ref}")
    except Rejected as error:
        say(f"{ORIGIN} does not take the experiment {name} ({error}); another checkout would train it again")
    except GitFailed as error:
        raise UserError(f"cannot push to {ORIGIN} ({error}); the same command goes on from here") from None


def fetch(home: Path, there: Mapping[str, str], head: str, name: str) -> None:
    """Get the experiment, where origin has it (`there`: all its refs) and the project has not."""
    ref = reference(head, name)
    if ref in there and commit(home, ref) is None:
        git(home, *_FETCH, ORIGIN, f"{ref}:{ref}")
