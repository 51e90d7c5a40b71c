"""A copy of the project's commit to work in: it shares Git's objects, DVC's cache and the store of checkpoints.

The project's own work tree, index, branches and tags stay as they are, whatever happens here.
"""

import json
import os
import shutil
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from pipeline.config import COMPUTE, Params
from pipeline.errors import UserError
from pipeline.git import git
from pipeline.progress import say
from pipeline.retrain import child
from pipeline.retrain.sources import INGEST, LOCK, Sources
from pipeline.tune.lock import Lock

PLACE = Path(".dvc/tmp/retrain")  # in the project
SITE = "site"  # below it: what DVC remembers of files, kept for the next time


@dataclass(frozen=True)
class Clone:
    """The copy.

    Attributes:
        root: its folder.
        home: the project that it was made from.
        head: the commit that it began with.
        env: the environment of DVC in it.
        remote: whether the project has a DVC remote.
    """

    root: Path
    home: Path
    head: str
    env: Mapping[str, str]
    remote: bool

    def dvc(self, *arguments: str) -> list[str]:
        """Run DVC here. Its lines. Raises ChildFailed."""
        return child.dvc(self.root, *arguments, env=self.env)

    def git(self, *arguments: str) -> str:
        return git(self.root, *arguments)

    @property
    def pulling(self) -> list[str]:
        """The option by which DVC fetches what the cache has not, where there is a place to fetch from."""
        return ["--pull"] if self.remote else []

    @property
    def lock(self) -> Lock:
        return Lock.read(self.root / LOCK)

    def go_to(self, commit: str) -> None:
        """Check a commit out, and what DVC keeps of it."""
        self.git("checkout", "--quiet", "--force", "--detach", commit)
        self.dvc("pull" if self.remote else "checkout", "--quiet", "--force", "--allow-missing")

    def check_data(self, sources: Sources) -> None:
        """That what ingest read is what was looked at.

        Raises:
            UserError: a source changed meanwhile.
        """
        read = {dep["path"]: dep.get("md5") for dep in self.lock.entries[INGEST]["deps"]}
        if changed := [path for path, digest in sources.now.items() if read.get(path) != digest]:
            raise UserError(f"{', '.join(changed)}: changed while it was read; run the same command again")


@contextmanager
def cloned(home: Path, head: str, params: Params, sources: Sources) -> Iterator[Clone]:
    """A clone at the commit `head` for the length of the block. What a killed process left of one is removed.

    Raises:
        UserError: the project's Git or DVC does not allow it.
    """
    place = home / PLACE
    folder = place / "clone"
    child.end_those_in(folder)
    shutil.rmtree(folder, ignore_errors=True)
    depth = max((_ups(path) for path in sources.now), default=0)
    root = folder.joinpath(*["up"] * depth, "project")
    try:
        root.parent.mkdir(parents=True)
        git(home, "clone", "--quiet", "--shared", "--no-checkout", str(home), str(root))
        git(root, "checkout", "--quiet", "--detach", head)
        _copy_identity(home, root)
        remote = _share(home, root, place / SITE)
        clone = Clone(root, home, head, child.environment(**{COMPUTE: _compute(home, params)}), remote)
        _bring(clone, sources)
        yield clone
    finally:
        shutil.rmtree(folder, ignore_errors=True)


def _ups(path: str) -> int:
    """How many folders above the project a relative path begins."""
    return sum(part == ".." for part in Path(path).parts)


def _copy_identity(home: Path, root: Path) -> None:
    """Who commits; it may be set in the project alone."""
    for key in ("user.name", "user.email"):
        if value := git(home, "config", "--default", "", key):
            git(root, "config", key, value)


def _share(home: Path, root: Path, site: Path) -> bool:
    """Let DVC in `root` use the cache and the remotes of `home`. Whether there is a default remote."""
    from dvc.config import Config
    from dvc.repo import Repo

    with Repo(str(home)) as repo:
        cache = {**repo.config["cache"], "dir": repo.cache.local_cache_dir}
        remotes = {name: dict(remote) for name, remote in repo.config["remote"].items()}
        default = repo.config["core"].get("remote")
    local = root / ".dvc" / "config.local"
    local.touch(mode=0o600)  # it may hold what opens a remote
    with Config(str(root / ".dvc")).edit("local") as config:
        config["cache"] = cache
        config["remote"] = remotes
        config["core"] = {"site_cache_dir": str(site), **({"remote": default} if default else {})}
    return default is not None


def _compute(home: Path, params: Params) -> str:
    """PIPELINE_COMPUTE of the clone: as here, but with the project's own folders, where a killed run goes on.

    Shards are read where they are written: what lies at `compute.shards` is of the data before.
    """
    places = {name: getattr(params.compute, name) for name in ("storage", "downloads", "cache")}
    own = {name: value if "://" in value else str((home / value).resolve()) for name, value in places.items()}
    return json.dumps({**json.loads(os.environ.get(COMPUTE) or "{}"), **own, "shards": None})


def _bring(clone: Clone, sources: Sources) -> None:
    """Put every source where the clone looks for it."""
    for path in sources.now:
        target = clone.root / path
        if path in sources.tracked:
            clone.dvc("pull" if clone.remote else "checkout", "--quiet", path)
        elif not Path(path).is_absolute() and not target.exists():
            target.parent.mkdir(parents=True, exist_ok=True)
            target.symlink_to((clone.home / path).resolve())
            with (clone.root / ".git/info/exclude").open("a") as file:
                file.write(f"/{path}\n")
    if sources.now:
        say(f"data: {', '.join(sources.now)}")
