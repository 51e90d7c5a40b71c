"""A challenger takes the champion's place: the commit, the tags, the branch, here and at origin.

Until a journal is written nothing has changed that anybody looks at. From then on all that is left can be done again
from the journal alone, as often as it takes: whatever ends the process, the next retraining finishes it first.
"""

import json
from dataclasses import asdict, dataclass
from pathlib import Path

from pipeline import files
from pipeline.errors import UserError
from pipeline.git import GitFailed, Rejected, git, git_lines, push
from pipeline.progress import say
from pipeline.registry.artifact import artifact_in
from pipeline.registry.promotion import keep
from pipeline.registry.promotion import promote as register
from pipeline.registry.tags import create_tags
from pipeline.retrain import child
from pipeline.retrain.champions import champion_of
from pipeline.retrain.clone import PLACE, Clone
from pipeline.retrain.origin import ORIGIN, in_the_way, listed
from pipeline.retrain.report import Report

JOURNAL = PLACE / "promotion.json"
KEPT = "refs/retrain"  # what the journal names is held here until it is in its place


@dataclass(frozen=True)
class Journal:
    """What is to be done.

    Attributes:
        head: the commit before.
        branch: the one that is checked out; None: none is.
        tags: name -> object, both of Git's.
        push: whether origin gets branch and tags first.
    """

    name: str
    head: str
    commit: str
    branch: str | None
    tags: dict[str, str]
    push: bool


def commit_results(clone: Clone, report: Report, experiment: str) -> str:
    """Commit the tree of the experiment on the commit before; the same again for the same results."""
    date = clone.git("show", "--no-patch", "--format=%cI", experiment)
    families = ", ".join(verdict.family for verdict in report.promoted)
    message = "\n".join((f"Retrained on new data: {families} promoted", "", *report.summary()))
    dates = {"GIT_AUTHOR_DATE": date, "GIT_COMMITTER_DATE": date}
    command = ("commit-tree", "--no-gpg-sign", "-p", clone.head, "-m", message, f"{experiment}^{{tree}}")
    return git(clone.root, *command, env=dates)


def promote(clone: Clone, report: Report, commit: str, *, branch: str | None, push: bool) -> str:
    """Bring the promoted families' models into the registry, and the commit onto the branch. What was done.

    Raises:
        UserError: it cannot be done, as when the registry has another champion by now; nothing has changed.
        StorageFailed: the DVC remote does not take the files; likewise.
    """
    if push:
        for family in _unregistered(report):
            keep(clone.root, artifact_in(clone.root, family, clone.head), push=True)
    tags = _tag(clone, report, commit)
    kept = [f"+refs/tags/{tag}:{KEPT}/tags/{tag}" for tag in tags]
    _fetch(clone, f"+{commit}:{KEPT}/commit", *kept)
    objects = {tag: git(clone.home, "rev-parse", f"{KEPT}/tags/{tag}") for tag in tags}
    journal = Journal(report.name, clone.head, commit, branch, objects, push)
    files.write_json(clone.home / JOURNAL, asdict(journal))
    done = finish(clone.home)
    assert done is not None, "the journal that was just written is gone"
    return done


def propose(clone: Clone, commit: str, branch: str) -> None:
    """Push the commit as a branch of its own at origin; no tag is made.

    Raises:
        UserError: origin does not take it.
    """
    _fetch(clone, f"+{commit}:{KEPT}/commit")
    try:
        push(clone.home, ORIGIN, f"{commit}:refs/heads/{branch}")
    except GitFailed as error:
        if isinstance(error, Rejected) and error.newer:
            raise UserError(in_the_way(branch)) from None
        raise UserError(f"cannot push {branch} to {ORIGIN} ({error}); the same command goes on from here") from None
    finally:
        _tidy(clone.home)


def finish(home: Path) -> str | None:
    """Do what the journal says, as far as it is not done. What was done; None: there is no journal.

    Raises:
        GivenUp: that cannot be done any more, and the journal is gone.
        UserError: origin does not answer; it is tried again the next time.
    """
    path = home / JOURNAL
    if not path.exists():
        _tidy(home)
        return None
    journal = Journal(**json.loads(path.read_text(encoding="utf-8")))
    try:
        _check_tags(home, journal)
        if journal.push:
            _push(home, journal)
    except GivenUp:
        path.unlink()
        _tidy(home)
        raise
    _make_tags(home, journal)
    said = _advance(home, journal)
    path.unlink()
    _tidy(home)
    others = "pushed to origin" if journal.push else "others see it after `git push` of both and `dvc push`"
    return f"{journal.name}: {', '.join(journal.tags) or 'no new tags'}; {said}, {others}"


class GivenUp(UserError):
    """A promotion that origin or this repository does not take."""


def _unregistered(report: Report) -> list[str]:
    """The families whose champion is no version yet."""
    found = [verdict.champion for verdict in report.verdicts]
    return [champion.family for champion in found if champion is not None and champion.version is None]


def _tag(clone: Clone, report: Report, commit: str) -> list[str]:
    """Make the tags in the clone. A champion that had none gets its own first: one can go back to it.

    Somebody may have promoted or rolled back here while it was trained, so the tags of before are those of now.
    """
    clone.git("fetch", "--quiet", "--prune", "--no-write-fetch-head", str(clone.home), "+refs/tags/*:refs/tags/*")
    for verdict in report.verdicts:
        now = champion_of(clone.root, verdict.family, clone.head)
        if now != verdict.champion:
            raise UserError(
                f"the champion of {verdict.family} is {now or 'none'} now, and was {verdict.champion or 'none'} when "
                "the new model was compared with it; nothing was changed; run the same command again"
            )
    made: list[str] = []
    for family in _unregistered(report):
        made += register(clone.root, family, clone.head, message=f"the model before {report.name}").tags
    for verdict in report.promoted:
        message = f"{report.name}: {verdict.decision.metric} {verdict.decision.challenger:.4f}"
        made += register(clone.root, verdict.family, commit, message=message).tags
    return made


def _fetch(clone: Clone, *refs: str) -> None:
    quiet = ("--quiet", "--atomic", "--no-tags", "--no-write-fetch-head", "--no-auto-maintenance")
    git(clone.home, "fetch", *quiet, str(clone.root), *refs)


def _check_tags(home: Path, journal: Journal) -> None:
    """That no tag of these names is another."""
    here = _tags(home)
    taken = next((tag for tag, sha in journal.tags.items() if here.get(tag, sha) != sha), None)
    if taken is None:
        return
    if journal.push and _is_at_origin(home, journal):
        raise GivenUp(
            f"{ORIGIN} has the promotion {journal.name}, but here {taken} is another tag; "
            f"`git fetch --tags --force {ORIGIN}`, and `git pull`"
        )
    raise GivenUp(f"{taken} was made here meanwhile; nothing was changed; run the same command again")


def _push(home: Path, journal: Journal) -> None:
    """Branch and tags in one step, unless that is done."""
    if _is_at_origin(home, journal):
        return
    refs = [f"{journal.commit}:refs/heads/{journal.branch}"]
    try:
        push(home, ORIGIN, *refs, *(f"{sha}:refs/tags/{tag}" for tag, sha in journal.tags.items()))
    except Rejected as error:
        if error.newer:
            raise GivenUp(
                f"{ORIGIN} has newer commits or tags; nothing was changed; `git pull`, and run the same command again"
            ) from None
        raise GivenUp(
            f"{ORIGIN} does not take branch and tags ({error}); nothing was changed; propose a branch with --branch"
        ) from None
    except GitFailed as error:
        raise UserError(f"cannot push to {ORIGIN} ({error}); the same command goes on from here") from None


def _is_at_origin(home: Path, journal: Journal) -> bool:
    """Whether the push was done before: a tag of ours is there."""
    there = listed(home)
    return bool(journal.tags) and all(there.get(f"refs/tags/{tag}") == sha for tag, sha in journal.tags.items())


def _tags(home: Path) -> dict[str, str]:
    """Name of each tag here -> its object."""
    lines = git_lines(home, "for-each-ref", "--format=%(refname:strip=2) %(objectname)", "refs/tags")
    return {tag: sha for tag, sha in (line.split(" ") for line in lines)}


def _make_tags(home: Path, journal: Journal) -> None:
    """All that are missing at once."""
    here = _tags(home)
    create_tags(home, {tag: sha for tag, sha in journal.tags.items() if tag not in here})


def _advance(home: Path, journal: Journal) -> str:
    """Fast-forward what is checked out, where it is as it was; else keep the commit on a branch of its own."""
    if git(home, "rev-parse", "HEAD") != journal.commit and not _forwarded(home, journal):
        branch = f"retrain/{journal.name}"
        git(home, "update-ref", f"refs/heads/{branch}", journal.commit)
        return f"the checkout has changed meanwhile, so commit {journal.commit[:10]} is on the branch {branch}"
    try:
        child.dvc(home, "checkout", "--quiet", "--allow-missing", env=child.environment())
    except child.ChildFailed as error:
        say(f"{error}; `dvc checkout` brings the files of the new commit")
    return f"{journal.branch} is at commit {journal.commit[:10]}"


def _forwarded(home: Path, journal: Journal) -> bool:
    if checked_out(home) != journal.branch or journal.branch is None or git(home, "rev-parse", "HEAD") != journal.head:
        return False
    if changes(home):
        return False
    try:
        git(home, "merge", "--quiet", "--ff-only", journal.commit)
    except GitFailed:  # a file of the user's is where the commit has one
        return False
    return True


def changes(home: Path) -> list[str]:
    """The tracked files that are not as HEAD has them."""
    return [line[3:] for line in git(home, "status", "--porcelain", "--untracked-files=no").splitlines()]


def checked_out(home: Path) -> str | None:
    """The branch that HEAD is on."""
    try:
        return git(home, "symbolic-ref", "--quiet", "--short", "HEAD")
    except GitFailed:
        return None


def _tidy(home: Path) -> None:
    kept = git(home, "for-each-ref", "--format=delete %(refname)", KEPT)
    if kept:
        git(home, "update-ref", "--stdin", given=kept + "\n")
