"""The project: its Git repository, its DVC project, its cluster file."""

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from pipeline.doctor.finding import Finding, broken, ok, warning
from pipeline.git import GitFailed, git

ORIGIN_S = 8.0
CHANGES_SHOWN = 3
PLACEHOLDER = "REPLACE_ME"


def repository(root: Path) -> Iterator[Finding]:
    """Whether Git could commit here, and whether all is committed."""
    try:
        git(root, "rev-parse", "--is-inside-work-tree")
        head = git(root, "rev-parse", "--verify", "--quiet", "--short", "HEAD")
    except GitFailed as error:
        remedy = "clone the project with Git, or `git init` and commit: DVC, experiments and the registry live in it"
        yield broken("Git", f"no repository with a commit ({error})", remedy)
        return
    changed = git(root, "status", "--porcelain").splitlines()
    if changed:
        names = ", ".join(line[3:] for line in changed[:CHANGES_SHOWN])
        more = f" and {len(changed) - CHANGES_SHOWN} more" if len(changed) > CHANGES_SHOWN else ""
        yield warning(
            "Git",
            f"at {head}, changed since: {names}{more}",
            "commit or stash it: `submit` and `registry promote` take only what is committed",
        )
    else:
        yield ok("Git", f"at {head}, nothing changed since")
    if git(root, "rev-parse", "--is-shallow-repository") == "true":
        yield warning("Git history", "a shallow clone", "`git fetch --unshallow --tags`: the registry is in its tags")


def identity(root: Path) -> Iterator[Finding]:
    try:
        who = git(root, "var", "GIT_COMMITTER_IDENT").rpartition(">")[0] + ">"
    except GitFailed:
        yield broken(
            "Git identity",
            "Git does not know who you are",
            "`git config user.name NAME`, `git config user.email ADDRESS`: trials are commits",
        )
    else:
        yield ok("Git identity", who)


def origin(root: Path) -> Iterator[Finding]:
    """Whether the repository that jobs clone from answers."""
    try:
        url = git(root, "remote", "get-url", "origin")
    except GitFailed:
        yield warning(
            "Git origin", "none", "`git remote add origin URL`: jobs clone from there, schedules push to there"
        )
        return
    try:
        git(root, "ls-remote", "--heads", "origin", limit_s=ORIGIN_S)
    except GitFailed as error:
        yield broken("Git origin", f"{url}: {error}", "check `git remote -v`, the network and your key")
    else:
        yield ok("Git origin", f"{url} answers")


def dvc_project(root: Path) -> Iterator[Finding]:
    """Whether DVC is set up, and how it links files."""
    if not (root / ".dvc" / "config").is_file():
        yield broken("DVC", "no project here", "run from the project's folder, or `dvc init` and commit .dvc")
        return
    from dvc.info import _get_linktype_support_info
    from dvc.repo import Repo

    with Repo(str(root)) as repo:
        if repo.config["core"].get("no_scm"):
            yield broken("DVC", "core.no_scm is set, so it knows no commits", "`dvc config --unset core.no_scm`")
        cache = repo.cache.local
        if Path(cache.path).exists():
            links = _get_linktype_support_info(repo)
            kinds = ", ".join(cache.cache_types)
            yield ok("DVC cache", f"{cache.path}; links that work: {links or 'none'}; used: {kinds}")
        else:
            yield ok("DVC cache", f"{cache.path}, empty as yet")
    if (root / "dvc.lock").is_file():
        yield ok("dvc.lock", "there")
    else:
        yield warning(
            "dvc.lock", "not there", "`dvc repro` writes it; commit it, it says which data and models a commit has"
        )


def dvc_locks(root: Path) -> Iterator[Finding]:
    """Locks of DVC commands: of those at work, and of those that were killed."""
    path = root / ".dvc" / "tmp" / "rwlock"
    remedy = f"once no DVC command runs here: `rm {path}`"
    try:
        held = list(_holders(json.loads(path.read_text(encoding="utf-8"))))
    except FileNotFoundError:
        held = []
    except (ValueError, AttributeError, KeyError, TypeError):
        yield broken("DVC locks", f"{path} is damaged, and every DVC command will stop at it", remedy)
        return
    import psutil

    alive = sorted({(pid, command) for pid, command in held if psutil.pid_exists(pid)})
    dead = sorted({pid for pid, _ in held if not psutil.pid_exists(pid)})
    for pid, command in alive:
        yield warning("DVC locks", f"process {pid} is at work here (`{command}`)", "wait for it, or stop it")
    if dead:
        yield warning("DVC locks", f"left by dead processes {', '.join(map(str, dead))}", remedy)
    if not held:
        yield ok("DVC locks", "none")


def _holders(locks: dict[str, Any]) -> Iterator[tuple[int, str]]:
    for each in locks.get("write", {}).values():
        yield each["pid"], each["cmd"]
    for several in locks.get("read", {}).values():
        yield from ((each["pid"], each["cmd"]) for each in several)


def cluster_file(root: Path) -> Iterator[Finding]:
    """Whether somebody has filled in what only they know."""
    path = root / "cluster.yaml"
    if not path.is_file():
        return
    lines = [
        n
        for n, line in enumerate(path.read_text(encoding="utf-8").splitlines(), 1)
        if PLACEHOLDER in line and not line.lstrip().startswith("#")
    ]
    if lines:
        places = ", ".join(map(str, lines))
        yield warning(
            "cluster.yaml",
            f"{PLACEHOLDER} on line{'s' * (len(lines) > 1)} {places}",
            "fill them in before `ray up`; nothing else needs them",
        )
    else:
        yield ok("cluster.yaml", "filled in")
