"""The clone that a job works in, and what all jobs of a head share: copies of repositories, and DVC's cache."""

import contextlib
import fcntl
import hashlib
import shutil
import time
from collections.abc import Iterator
from pathlib import Path

from .job import Failed, Job, say
from .processes import git

PATCH = "changes.patch"


def cloned(job: Job, home: Path, folder: Path, env: dict[str, str]) -> Path:
    """A clone at the commit. One that an earlier attempt left keeps what Git ignores, such as models and `.runs`."""
    start, clone = time.monotonic(), folder / "clone"
    found = clone.exists()
    if not found:
        folder.mkdir(parents=True, exist_ok=True)
        new = folder / "clone.tmp"
        shutil.rmtree(new, ignore_errors=True)
        with mirror(job, home, env) as source:
            git(folder, "clone", "--quiet", "--no-checkout", str(source), str(new), env=env)
        git(new, "remote", "set-url", "origin", job.origin, env=env)
        new.rename(clone)
    for lock in (clone / ".git").glob("*.lock"):  # of a process that was killed
        lock.unlink()
    git(clone, "checkout", "--quiet", "--force", "--detach", job.commit, env=env)
    git(clone, "reset", "--quiet", "--hard", job.commit, env=env)
    git(clone, "clean", "--quiet", "-fd", env=env)
    for name, reference in experiments(clone, env, "refs/exps"):
        if name == job.experiment or reference.split("/")[2] in {"exec", "stash"}:
            git(clone, "update-ref", "-d", reference, env=env)
    identify(job, clone, env)
    say(f"{'goes on in' if found else 'cloned to'} {clone} ({time.monotonic() - start:.1f} s)")
    return clone


@contextlib.contextmanager
def mirror(job: Job, home: Path, env: dict[str, str]) -> Iterator[Path]:
    """A bare copy of origin that has the commit; nobody else touches it meanwhile."""
    folder = home / "mirrors" / f"{hashlib.sha256(job.origin.encode()).hexdigest()[:16]}.git"
    folder.parent.mkdir(parents=True, exist_ok=True)
    with folder.with_suffix(".lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        git(folder.parent, "init", "--quiet", "--bare", str(folder), env=env)
        if not _has(folder, job.commit, env):
            try:
                refs = ("+refs/heads/*:refs/heads/*", "+refs/tags/*:refs/tags/*")
                git(folder, "fetch", "--quiet", "--prune", job.origin, *refs, env=env)
            except Failed as error:
                raise Failed(
                    f"the head cannot read {job.origin} ({error}); give the head access to it, "
                    "or name another address with --origin"
                ) from None
        if not _has(folder, job.commit, env):
            raise Failed(f"{job.origin} has no commit {job.commit}; push it")
        yield folder


def _has(repository: Path, commit: str, env: dict[str, str]) -> bool:
    try:
        git(repository, "cat-file", "-e", f"{commit}^{{commit}}", env=env)
    except Failed:
        return False
    return True


def identify(job: Job, clone: Path, env: dict[str, str]) -> None:
    """Let commits be the submitter's where Git on the head knows nobody."""
    try:
        git(clone, "-c", "user.useConfigOnly=true", "var", "GIT_COMMITTER_IDENT", env=env)
    except Failed:
        git(clone, "config", "user.name", job.author, env=env)
        git(clone, "config", "user.email", job.email, env=env)


def apply_changes(job: Job, here: Path, clone: Path, folder: Path, env: dict[str, str]) -> None:
    """The uncommitted changes that the job was submitted with; they stay beside the clone."""
    shutil.copyfile(here / "job.json", folder / "job.json")
    if job.patch is None:
        return
    patch = folder / PATCH
    shutil.copyfile(here / PATCH, patch)
    if hashlib.sha256(patch.read_bytes()).hexdigest() != job.patch:
        raise Failed(f"{PATCH} is not what was submitted; submit again")
    git(clone, "apply", "--index", "--binary", "--whitespace=nowarn", str(patch), env=env)
    say(f"applied the changes {job.patch[:12]} ({PATCH}, {patch.stat().st_size:,} bytes)")


def share_cache(project: Path, cache: Path) -> None:
    """One cache of DVC's for all jobs of this head."""
    if not (project / ".dvc").is_dir():
        raise Failed(f"{project.name}: no DVC project at this commit; submit from the folder of one")
    cache.mkdir(parents=True, exist_ok=True)
    (project / ".dvc" / "config.local").write_text(f"[cache]\n    dir = {cache}\n", encoding="utf-8")


def experiments(project: Path, env: dict[str, str], below: str = "refs/exps/??/*/*") -> list[tuple[str, str]]:
    """Name and reference of each experiment in the clone."""
    listed = git(project, "for-each-ref", "--format=%(refname)", below, env=env)
    return [(reference.rsplit("/", 1)[1], reference) for reference in listed.splitlines()]
