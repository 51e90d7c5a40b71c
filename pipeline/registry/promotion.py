"""Promote a commit's model of a family, and go back to the one before."""

from collections.abc import Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path

from pipeline.errors import UserError
from pipeline.git import commit_of, git
from pipeline.registry import artifact, tags
from pipeline.registry.names import STAGE
from pipeline.registry.versions import Bump, History, Version, known_stage


@dataclass(frozen=True)
class Promotion:
    """What was done, or with `dry_run` would be.

    Attributes:
        version: the one that is in the stage now.
        previous: the one that was; None: none.
        tags: those made; none where the version was in the stage already.
    """

    version: Version
    previous: Version | None
    tags: tuple[str, ...]


@dataclass(frozen=True)
class _How:
    """What `promote` and `rollback` were told."""

    stage: str
    message: str
    push_to: str | None
    dry_run: bool


def promote(
    root: Path,
    family: str,
    commit: str,
    *,
    message: str,
    bump: Bump = "minor",
    stage: str = STAGE,
    push_to: str | None = None,
    dry_run: bool = False,
) -> Promotion:
    """Give the commit's model of a family a version, where it has none yet, and bring it into a stage.

    The work tree and the index of `root` are neither read nor changed. Either all tags are made or none.

    Args:
        root: the top of the Git repository with the project, the cache of which, or the remote, has the model.
        commit: any revision; its dvc.lock says which model.
        message: of the tags; says why.
        push_to: a remote repository. The model's files go to the DVC remote first, then the tags to there, then they
            are made here.

    Raises:
        UserError: the commit's dvc.lock has no model of the family, or is not that of its code and parameters; nobody
            could get the model's files; the tags cannot be made. Nothing has changed then, but that files may be in
            the DVC remote.
        StorageFailed: the DVC remote does not answer or take the files.
    """
    commit = commit_of(root, commit)
    history = History.of(root, family)
    before, found = history.champion(known_stage(stage)), history.at(commit)
    if found is not None and found == before:
        return Promotion(found, before, ())
    made = artifact.artifact_in(root, family, commit)
    artifact.check_current(root, made)
    keep(root, made, push=push_to is not None, dry_run=dry_run)
    version = found or _planned(history, commit, bump, message)
    new = () if found is not None else (tags.NewTag(version.tag, commit, message),)
    return _assign(root, history, version, new, _How(stage, message, push_to, dry_run))


def rollback(
    root: Path,
    family: str,
    *,
    message: str,
    to: str | None = None,
    stage: str = STAGE,
    push_to: str | None = None,
    dry_run: bool = False,
) -> Promotion:
    """Bring an earlier version into the stage again, by a new tag.

    Args:
        to: a version that was in the stage; None: the one before that which is. After a rollback that is again the
            one before, not the one rolled back from.

    Raises:
        UserError: there is none to go back to, or nobody could get its files. Nothing has changed then.
        StorageFailed: the DVC remote does not answer or take the files.
    """
    history = History.of(root, family)
    current = history.champion(known_stage(stage))
    version = _earlier(history, stage) if to is None else _named(history, stage, to)
    if version == current:
        return Promotion(version, current, ())
    made = artifact.artifact_in(root, family, version.commit)
    keep(root, made, push=push_to is not None, dry_run=dry_run)
    return _assign(root, history, version, (), _How(stage, message, push_to, dry_run))


def check_clean(root: Path) -> None:
    """That the work tree has no changes that HEAD has not.

    Raises:
        UserError: it has.
    """
    changed = git(root, "status", "--porcelain", "--untracked-files=no").splitlines()
    if changed:
        more = f" and {len(changed) - 1} more" if len(changed) > 1 else ""
        raise UserError(f"{changed[0][3:]}{more}: changed since HEAD; commit or stash it, or name a commit with --rev")


def keep(root: Path, made: artifact.Artifact, *, push: bool, dry_run: bool = False) -> None:
    """See that the files can be had, and with `push` that the DVC remote has them.

    Raises:
        UserError: nobody could get them, or there is no DVC remote.
        StorageFailed: the DVC remote does not answer or take them.
    """
    stored = artifact.where(root, made)
    if not stored.cached and not stored.remote:
        where = "the cache" if stored.remote is None else "the cache or the DVC remote"
        raise UserError(
            f"{made.family}: the files of {made.path} in {made.commit[:10]} are not in {where}; get them "
            f"(`dvc fetch`), or make them again (`dvc repro {made.stage}`)"
        )
    if push and stored.remote is None:
        raise UserError("no DVC remote to push the model to; `dvc remote add -d NAME URL`, and commit .dvc/config")
    if push and not stored.remote and not dry_run:
        artifact.push(root, made)


def _planned(history: History, commit: str, bump: Bump, message: str) -> Version:
    date = datetime.fromtimestamp(history.next_date(), UTC)
    return Version(history.family, history.name, history.next_version(bump), commit, date, "", message)


def _assign(root: Path, history: History, version: Version, new: Sequence[tags.NewTag], how: _How) -> Promotion:
    assigned = tags.NewTag(f"{history.name}#{how.stage}#{history.next_counter}", version.commit, how.message)
    wanted, before = (*new, assigned), history.champion(how.stage)
    if not how.dry_run:
        tags.write(root, wanted, history.next_date(), push_to=how.push_to)
        version = History.of(root, history.family).at(version.commit) or version
    return Promotion(version, before, tuple(tag.name for tag in wanted))


def _earlier(history: History, stage: str) -> Version:
    current, earlier = history.champion(stage), history.earlier(stage)
    if current is None:
        raise UserError(
            f"{history.family}: no version is in {stage}; `python -m pipeline registry promote {history.family}`"
        )
    if not earlier:
        raise UserError(
            f"{history.family}: no version was in {stage} before {current.version}; "
            f"`python -m pipeline registry show {history.family}` lists all"
        )
    return earlier[-1]


def _named(history: History, stage: str, name: str) -> Version:
    was = {each.version.version: each.version for each in history.assignments(stage)}
    wanted = name if name.startswith("v") else f"v{name}"
    if wanted not in was:
        raise UserError(
            f"{history.family}: {wanted} was never in {stage}; there were {', '.join(was) or 'none'}; "
            f"`registry promote {history.family} --rev {history.name}@{wanted}` brings a version there"
        )
    return was[wanted]
