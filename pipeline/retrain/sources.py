"""Whether there are new data: what the sources hold now, and what dvc.lock says that they held."""

import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from pipeline.config import Params, fingerprint
from pipeline.errors import UserError
from pipeline.operate.deps import source_paths
from pipeline.tune.lock import Lock

if TYPE_CHECKING:
    from dvc.repo import Repo

INGEST, SHARDS = "ingest", "data/shards"
LOCK = "dvc.lock"


@dataclass(frozen=True)
class Sources:
    """The files and folders that the data come from.

    Attributes:
        now: path of each, as params.yaml has it -> DVC's digest of what is there.
        before: likewise of what dvc.lock has.
        tracked: those that `dvc add` keeps, and that DVC brings back where they are needed.
        behind: families whose models were not trained on the shards that dvc.lock has.
    """

    now: Mapping[str, str]
    before: Mapping[str, str]
    tracked: frozenset[str]
    behind: tuple[str, ...]

    @property
    def changed(self) -> list[str]:
        return [path for path, digest in self.now.items() if self.before.get(path) != digest]

    @property
    def is_new(self) -> bool:
        return bool(self.changed or self.behind)

    @property
    def digest(self) -> str:
        """16 hex digits of what all of them hold."""
        return fingerprint(sorted(self.now.items()))

    def said(self) -> str:
        """What is new, or why nothing is, in one line."""
        if self.changed:
            return f"new data: {', '.join(self.changed)} changed since dvc.lock"
        if self.behind:
            return f"{', '.join(self.behind)}: not trained on the data that dvc.lock has"
        if not self.now:
            return "nothing new: the source is a published set without a path, which never changes"
        return f"nothing new: {', '.join(self.now)} as dvc.lock has it"


def look(root: Path, params: Params, families: Sequence[str]) -> Sources:
    """What the sources of the project hold, by DVC's digests.

    Raises:
        UserError: a source is missing or cannot be read, DVC does not watch it, or `dvc add` keeps another content.
    """
    from dvc.exceptions import DvcException
    from dvc.repo import Repo

    wanted = source_paths(params.data)
    lock = Lock.read(root / LOCK)
    before = {dep["path"]: dep.get("md5", "") for dep in lock.entries.get(INGEST, {}).get("deps", ())}
    try:
        with Repo(str(root)) as repo:
            deps = {dep.fs_path: dep for dep in repo.stage.load_one(str(root / "dvc.yaml"), INGEST).deps}
            found = {path: deps.get(os.path.normpath(root / path)) for path in wanted}
            if missing := [path for path, dep in found.items() if dep is None]:
                raise UserError(
                    f"dvc.yaml: the stage ingest does not depend on {', '.join(missing)}, so nobody would see new "
                    "data there; run `python -m pipeline deps`"
                )
            kept = {path: digest for path in wanted if (digest := _kept(repo, root / path))}
            now = {path: _digest(path, dep, kept.get(path)) for path, dep in found.items()}
    except (DvcException, OSError) as error:
        raise UserError(f"data.source: {str(error).strip().splitlines()[0]}") from None
    return Sources(now, before, frozenset(kept), tuple(f for f in families if _is_behind(lock, f)))


def _kept(repo: "Repo", path: Path) -> str:
    """DVC's digest of what `dvc add` keeps at a path; empty where it keeps nothing there."""
    from dvc.exceptions import OutputNotFoundError

    try:
        (out,) = repo.find_outs_by_path(str(path), strict=True)
    except OutputNotFoundError:
        return ""
    return str(out.hash_info.value or "")


def _digest(path: str, dep: Any, kept: str | None) -> str:
    """Of what is there; of what is not, but is kept by DVC, of that."""
    if not dep.exists:
        if kept:
            return kept
        raise UserError(f"data.source.path: {path}: no such file or folder; correct it in params.yaml")
    found = str(dep.get_hash().value)
    if kept and found != kept:
        raise UserError(f"{path}: not what {path}.dvc has; `dvc add {path}`, and commit {path}.dvc")
    return found


def _is_behind(lock: Lock, family: str) -> bool:
    """Whether a family's model was trained on other shards than those of dvc.lock, or never."""
    made = lock.made.get(SHARDS, {}).get("md5")
    used = {dep["path"]: dep.get("md5") for dep in lock.entries.get(f"train@{family}", {}).get("deps", ())}
    return made is None or used.get(SHARDS) != made
