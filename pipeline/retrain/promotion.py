"""A challenger takes the champion's place: the commit, the tags, the branch, here and at origin.

Until a journal is written nothing has changed that anybody looks at. From then on all that is left can be done again
from the journal alone, as often as it takes: whatever ends the process, the next retraining finishes it first.
"""

import json
from dataclasses import asdict, dataclass
from pathlib import Path

from pipeline import files
from pipeline.errors import UserError
from pipeline.git import GitFailed, git
from pipeline.progress import say
from pipeline.registry.promotion import promote as register
from pipeline.retrain import child
from pipeline.retrain.clone import PLACE, Clone
from pipeline.retrain.report import Report

JOURNAL = PLACE / "promotion.json"
KEPT = "refs/retrain"  # what the journal names is held here until it is in its place
ORIGIN = "origin"
PUSH_LIMIT_S = 600.0


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
        UserError: it cannot be done; nothing has changed.
        StorageFailed: the DVC remote does not take the files; likewise.
    """
    tags = _tag(clone, report, commit)
    if clone.remote:
        clone.dvc("push", "--quiet")
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
    clone.dvc("push", "--quiet")
    _fetch(clone, f"+{commit}:{KEPT}/commit")
    try:
        _push(clone.home, f"{commit}:refs/heads/{branch}")
    finally:
        _tidy(clone.home)


def finish(home: Path) -> str | None:
    """Do what the journal says, as far as it is not done. What was done; None: there is no journal.

    Raises:
        UserError: origin has commits or tags that came meanwhile (then the promotion is given up, and nothing has
            changed), or does not answer.
    """
    path = home / JOURNAL
    if not path.exists():
        _tidy(home)
        return None
    journal = Journal(**json.loads(path.read_text(encoding="utf-8")))
    if journal.push and not _is_at_origin(home, journal):
        refs = [f"{journal.commit}:refs/heads/{journal.branch}"]
        try:
            _push(home, *refs, *(f"{sha}:refs/tags/{tag}" for tag, sha in journal.tags.items()))
        except Rejected:
            path.unlink()
            _tidy(home)
            raise
    _make_tags(home, journal)
    said = _advance(home, journal)
    path.unlink()
    _tidy(home)
    tags = ", ".join(journal.tags) or "no new tags"
    return f"{journal.name}: {tags}; {said}{', pushed to origin' if journal.push else ''}"


class Rejected(UserError):
    """Origin has what is not here."""


def check_origin(home: Path, branch: str | None, head: str) -> None:
    """That a push to origin could succeed: it has no commit and no tag that is not here.

    Raises:
        UserError: it has, or it does not answer, or no branch is checked out.
    """
    if branch is None:
        raise UserError("--push: no branch is checked out; `git checkout main`, or propose a branch with --branch")
    listed = [line.split("\t") for line in git(home, "ls-remote", ORIGIN).splitlines()]
    there = {ref: sha for sha, ref in listed}
    theirs = there.get(f"refs/heads/{branch}")
    if theirs is not None and not _is_ancestor(home, theirs, head):
        raise UserError(f"{ORIGIN}/{branch} has commits that are not here; `git pull --ff-only {ORIGIN} {branch}`")
    here = set(git(home, "for-each-ref", "--format=%(refname)", "refs/tags").splitlines())
    if missing := sorted(ref for ref in there if ref.startswith("refs/tags/") and ref.removesuffix("^{}") not in here):
        raise UserError(f"{ORIGIN} has tags that are not here ({missing[0]}); `git fetch --tags {ORIGIN}`")


def _tag(clone: Clone, report: Report, commit: str) -> list[str]:
    """Make the tags in the clone. A champion that had none gets its own first: one can go back to it."""
    made: list[str] = []
    for verdict in report.verdicts:
        if verdict.champion is not None and verdict.champion.version is None:
            message = f"the model before {report.name}"
            made += register(clone.root, verdict.family, clone.head, message=message).tags
    for verdict in report.promoted:
        message = f"{report.name}: {verdict.decision.metric} {verdict.decision.challenger:.4f}"
        made += register(clone.root, verdict.family, commit, message=message).tags
    return made


def _fetch(clone: Clone, *refs: str) -> None:
    quiet = ("--quiet", "--atomic", "--no-tags", "--no-write-fetch-head", "--no-auto-maintenance")
    git(clone.home, "fetch", *quiet, str(clone.root), *refs)


def _push(home: Path, *refs: str) -> None:
    try:
        git(home, "push", "--atomic", "--porcelain", "--no-follow-tags", ORIGIN, *refs, limit_s=PUSH_LIMIT_S)
    except GitFailed as error:
        if "[rejected]" in error.said:
            raise Rejected(
                f"{ORIGIN} has newer commits or tags; nothing was changed; `git pull`, and run the same command again"
            ) from None
        raise UserError(f"cannot push to {ORIGIN} ({error}); the same command goes on from here") from None


def _is_at_origin(home: Path, journal: Journal) -> bool:
    """Whether the push was done before: a tag of ours is there."""
    listed = git(home, "ls-remote", "--tags", ORIGIN).splitlines()
    there = {ref: sha for sha, ref in (line.split("\t") for line in listed)}
    return bool(journal.tags) and all(there.get(f"refs/tags/{tag}") == sha for tag, sha in journal.tags.items())


def _make_tags(home: Path, journal: Journal) -> None:
    """All that are missing at once."""
    listed = git(home, "for-each-ref", "--format=%(refname:strip=2) %(objectname)", "refs/tags").splitlines()
    here = dict(line.split(" ") for line in listed)
    wanted = {tag: sha for tag, sha in journal.tags.items() if here.get(tag) != sha}
    lines = ["start", *(f"create refs/tags/{tag} {sha}" for tag, sha in wanted.items()), "prepare", "commit"]
    git(home, "update-ref", "--stdin", given="\n".join(lines) + "\n")


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


def _is_ancestor(home: Path, commit: str, head: str) -> bool:
    try:
        git(home, "merge-base", "--is-ancestor", commit, head)
    except GitFailed:
        return False
    return True


def _tidy(home: Path) -> None:
    kept = git(home, "for-each-ref", "--format=delete %(refname)", KEPT)
    if kept:
        git(home, "update-ref", "--stdin", given=kept + "\n")
