"""What a commit's dvc.lock says of a family's artifact: which it is, whether it is current, and where its files are."""

import json
import re
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

from ruamel.yaml import YAML

from pipeline.closure import PACKAGES
from pipeline.errors import StorageFailed, UserError
from pipeline.git import git, text_at
from pipeline.registry.names import artifact_path

SHARDS = "data/shards"
_STAGE = re.compile(r"^  (?=\S)", re.MULTILINE)  # DVC indents the name of a stage by two


@dataclass(frozen=True)
class Artifact:
    """A family's artifact in a commit.

    Attributes:
        stage: of DVC's, which wrote it.
        digest: DVC's, of the folder.
        data: DVC's digest of the shards that it was made from; None where the stage does not say.
    """

    family: str
    commit: str
    stage: str
    digest: str
    bytes: int
    files: int
    data: str | None

    @property
    def path(self) -> str:
        return artifact_path(self.family)


@dataclass(frozen=True)
class Stored:
    """Where all of an artifact's files are; `remote` is None where the project has no remote."""

    cached: bool
    remote: bool | None


def artifact_in(root: Path, family: str, commit: str) -> Artifact:
    """The family's artifact as the commit's dvc.lock has it.

    Raises:
        UserError: it has none.
    """
    path = artifact_path(family)
    for part in _STAGE.split(text_at(root, commit, "dvc.lock") or ""):  # to parse all of it takes seconds
        if f" path: {path}\n" not in part:
            continue
        ((stage, entry),) = YAML(typ="safe").load(part).items()
        for out in entry.get("outs", ()):
            if out["path"] == path:
                data = next((dep["md5"] for dep in entry.get("deps", ()) if dep["path"] == SHARDS), None)
                return Artifact(family, commit, stage, out["md5"], out.get("size", 0), out.get("nfiles", 1), data)
    if inside := git(root, "rev-parse", "--show-prefix"):
        raise UserError(f"the project is in {inside} of its repository; the registry needs it at the top")
    raise UserError(
        f"{family}: {commit[:10]} holds no {path} in its dvc.lock; `dvc repro export@{family}`, commit "
        "dvc.lock, and name that commit"
    )


def check_current(root: Path, artifact: Artifact) -> None:
    """That a clean checkout of the commit would run nothing anew for this artifact.

    Every stage that leads to it is compared with dvc.lock: its command, parameters and code as the commit has them,
    and each input's digest with that of the stage that made it. No file outside Git is read.

    Raises:
        UserError: a stage would run; the message names it and what changed.
    """
    from dvc.exceptions import DvcException

    with _opened(root, artifact.commit) as repo:
        try:
            stages = repo.stage.collect(artifact.stage, with_deps=True)
        except DvcException as error:
            raise UserError(f"{artifact.commit[:10]}: dvc.yaml: {error}; mend it, and name another commit") from None
        made = {out.fs_path: out.hash_info for stage in stages for out in stage.outs}
        for stage in stages:
            changed = "its command" if stage.changed_stage() else next(_changes(stage, made), None)
            name = getattr(stage, "name", stage.addressing)
            if changed is not None:
                raise UserError(
                    f"{artifact.family}: dvc.lock of {artifact.commit[:10]} is not that of its code and parameters "
                    f"(stage {name}: {changed}); `dvc repro {artifact.stage}`, commit dvc.lock, and name "
                    "that commit"
                )


def _changes(stage: Any, made: Mapping[str, Any]) -> Iterator[str]:
    for dep in stage.deps:
        if dep.fs_path in made:
            if dep.hash_info != made[dep.fs_path]:
                yield str(dep)
        elif status := dep.status():
            (how,) = status.values()
            if isinstance(how, dict) or how != "deleted" or str(dep).split("/")[0] in PACKAGES:
                yield f"{dep}: {', '.join(how)}" if isinstance(how, dict) else str(dep)
    for out in stage.outs:
        if not out.use_cache and out.workspace_status():  # in Git, so that the commit has it
            yield str(out)


def where(root: Path, artifact: Artifact) -> Stored:
    """Whether the files are in the cache of `root` and in its DVC remote.

    Raises:
        StorageFailed: the remote does not answer.
    """
    with _opened(root, None) as repo:
        cached = _holds(repo.cache.local, artifact)
        if not _remote(repo):
            return Stored(cached, None)
        with _answering(repo):
            return Stored(cached, _holds(repo.cloud.get_remote_odb(), artifact))


def push(root: Path, artifact: Artifact) -> None:
    """Copy the files from the cache to the DVC remote.

    Raises:
        StorageFailed: the remote does not take them.
    """
    from dvc_data.hashfile.hash_info import HashInfo
    from dvc_data.hashfile.transfer import transfer

    with _opened(root, None) as repo, _answering(repo):
        wanted, there = {HashInfo("md5", artifact.digest)}, repo.cloud.get_remote_odb()
        result = transfer(repo.cache.local, there, wanted, cache_odb=repo.cache.local, shallow=False)
        if result.failed:
            raise StorageFailed(f"DVC remote {_remote(repo)}: {len(result.failed)} files were not taken; `dvc push`")


def config_of(root: Path, artifact: Artifact) -> dict[str, Any] | None:
    """The artifact's config.json, from the cache or the remote; None where neither has it.

    Raises:
        StorageFailed: the remote does not answer.
    """
    with _opened(root, None) as repo:
        found = _read(repo.cache.local, artifact, "config.json")
        if found is None and _remote(repo):
            with _answering(repo):
                found = _read(repo.cloud.get_remote_odb(), artifact, "config.json")
        return None if found is None else dict(json.loads(found))


def _holds(store: Any, artifact: Artifact) -> bool:
    """Whether a store of DVC's has every file."""
    listed = _listed(store, artifact)
    return listed is not None and all(store.exists(digest) for digest in listed.values())


def _read(store: Any, artifact: Artifact, name: str) -> bytes | None:
    """A file of the artifact; None where the store has not got it."""
    listed = _listed(store, artifact)
    if listed is None or name not in listed:
        return None
    try:
        return bytes(store.fs.cat_file(store.oid_to_path(listed[name])))
    except FileNotFoundError:
        return None


def _listed(store: Any, artifact: Artifact) -> dict[str, str] | None:
    """Name of each file -> its digest; None where the store does not know the folder."""
    try:
        listed = json.loads(store.fs.cat_file(store.oid_to_path(artifact.digest)))
    except FileNotFoundError:
        return None
    return {entry["relpath"]: entry["md5"] for entry in listed}


def _remote(repo: Any) -> str | None:
    name = repo.config["core"].get("remote")
    return str(name) if name else None


@contextmanager
def _answering(repo: Any) -> Iterator[None]:
    """Say in one line what the DVC remote failed with."""
    try:
        yield
    except UserError:
        raise
    except Exception as error:  # each kind of store has its own
        reason = (str(error).strip() or type(error).__name__).splitlines()[0]
        raise StorageFailed(
            f"DVC remote {_remote(repo)}: no answer ({reason}); check `dvc remote list` and the credentials"
        ) from error


@contextmanager
def _opened(root: Path, commit: str | None) -> Iterator[Any]:
    """DVC's project at a commit, read from Git alone; None: as it is now, with its cache, or of a bare one its HEAD."""
    from dvc.exceptions import NotDvcRepoError
    from dvc.repo import Repo

    bare = git(root, "rev-parse", "--is-bare-repository") == "true"
    with TemporaryDirectory(prefix="registry-") as empty:
        config = {"cache": {"dir": empty}} if bare else None
        try:
            repo = Repo(str(root), rev=commit or ("HEAD" if bare else None), config=config)
        except NotDvcRepoError:
            raise UserError(f"{root}: no DVC project; name the project's folder, the top of its repository") from None
        try:
            yield repo
        finally:
            repo.close()
