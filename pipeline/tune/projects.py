"""A small DVC project in which the stages train@F and tune@F of one family are committed as if they had run there.

It has the code of the project around it and shares its cache. Data are not copied: what other stages made is known
from dvc.lock. What follows the two stages is not made there, and dvc.lock says so by empty outputs that do not depend
on any of it: DVC refuses to apply an experiment in which an output has no entry.
"""

import os
import shutil
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import psutil
from ruamel.yaml import YAML

from pipeline.errors import UserError
from pipeline.tune.lock import Lock

if TYPE_CHECKING:
    from dvc.output import Output
    from dvc.repo import Repo
    from dvc.stage import PipelineStage

STAGES = ("train", "tune")
DVC_YAML, DVC_LOCK = "dvc.yaml", "dvc.lock"
FAMILY = "${item.family}"  # in dvc.yaml
PREFIX = "trials-"  # of folders in .dvc/tmp; the number of the process follows
EMPTY_FILE = {"hash": "md5", "md5": "d41d8cd98f00b204e9800998ecf8427e", "size": 0}
EMPTY_FOLDER = {"hash": "md5", "md5": "d751713988987e9331980363e24189ce.dir", "size": 0, "nfiles": 0}
NO_FIGURES = "{}\n"


@dataclass(frozen=True)
class Surroundings:
    """What the whole project has around the two stages.

    Attributes:
        lock: its dvc.lock.
        unmade: the entries of stages that have not run, or follow the two.
        unmeasured: the metrics of those.
        cache: where DVC's cache is, and how it is linked.
        temporary: a folder of DVC's for what is not kept.
    """

    lock: Lock
    unmade: Mapping[str, Any]
    unmeasured: tuple[str, ...]
    cache: Mapping[str, Any]
    temporary: Path


@dataclass(frozen=True)
class Project:
    """The small one.

    Attributes:
        folder: a folder for as long as the project is there.
        root: the project in it; outputs are written to the places that they have in the whole project.
        files: the outputs that are kept in Git.
        cached: those that are kept in DVC's cache.
        metrics: those of `files` that are metrics.
    """

    folder: Path
    root: Path
    around: Surroundings
    stages: tuple["PipelineStage", ...]
    files: tuple[str, ...]
    cached: tuple[str, ...]
    metrics: tuple[str, ...]

    @classmethod
    def of(cls, repo: "Repo", folder: Path, around: Surroundings) -> "Project":
        stages = tuple(repo.index.stages)
        outs: list[Output] = [out for stage in stages for out in stage.outs]
        files = tuple(out.def_path for out in outs if not out.use_cache)
        cached = tuple(out.def_path for out in outs if out.use_cache)
        metrics = tuple(out.def_path for out in outs if out.is_metric)
        return cls(folder, Path(repo.root_dir), around, stages, files, cached, metrics)

    def clear(self) -> None:
        """Remove the outputs."""
        for name in (*self.files, *self.cached):
            path = self.root / name
            if path.is_dir():
                shutil.rmtree(path)
            else:
                path.unlink(missing_ok=True)

    def commit(self) -> dict[str, Any]:
        """Put the outputs into the cache, as `dvc commit` does; the two entries of dvc.lock."""
        from dvc.stage.serialize import to_lockfile

        if missing := [name for name in (*self.files, *self.cached) if not (self.root / name).exists()]:
            raise RuntimeError(f"dvc.yaml has outputs that no trial writes: {', '.join(missing)}")
        entries: dict[str, Any] = {}
        for stage in self.stages:
            stage.save(allow_missing=True, run_cache=False)
            stage.commit(relink=False)
            entries |= to_lockfile(stage)
        return entries

    def write_lock(self, entries: Mapping[str, Any]) -> None:
        """Write dvc.lock of the whole project, with `entries` for the two stages, and nothing made after them.

        A new entry of the two comes first, where DVC will add it: so the file is the same after the stage.
        """
        unmade = {name: entry for name, entry in self.around.unmade.items() if name not in entries}
        self.around.lock.write(self.root / DVC_LOCK, {**entries, **unmade})


@contextmanager
def project(family: str, *, prefix: Path, running: bool) -> Iterator[Project]:
    """The small project of a family of the project in the working directory, in a folder that goes with the block.

    Args:
        prefix: where below that folder the small project is to lie.
        running: the stage tune@F is running, so dvc.lock does not have it yet.

    Raises:
        UserError: this is no DVC project, it keeps nothing in Git, or its stages are not as dvc.lock has them.
    """
    from dvc.exceptions import NotDvcRepoError
    from dvc.repo import Repo

    try:
        with Repo(os.curdir) as whole:
            _check(whole, [f"{stage}@{family}" for stage in (STAGES[:1] if running else STAGES)])
            around = _surroundings(whole, family)
    except NotDvcRepoError:
        raise UserError(f"{Path.cwd()}: no DVC project") from None
    _sweep(around.temporary)
    folder = around.temporary / f"{PREFIX}{os.getpid()}"
    core = {"no_scm": True, "site_cache_dir": str(folder / "site")}
    try:
        _furnish(folder / prefix, family, around.lock)
        with Repo(str(folder / prefix), config={"core": core, "cache": dict(around.cache)}) as repo, repo.lock:
            yield Project.of(repo, folder, around)
    finally:
        shutil.rmtree(folder, ignore_errors=True)


def _check(repo: "Repo", stages: list[str]) -> None:
    if repo.config["core"].get("no_scm"):
        raise UserError("core.no_scm is set in .dvc/config, and DVC keeps experiments in Git")
    if changed := sorted(repo.status(stages)):
        raise UserError(f"{changed[0]} is not as dvc.lock has it; run `dvc repro {stages[-1]}`")


def _surroundings(repo: "Repo", family: str) -> Surroundings:
    lock = Lock.read(Path(DVC_LOCK))
    stages = {stage.name: stage for stage in repo.index.stages if getattr(stage, "name", None)}
    changing = _following(stages, f"train@{family}")
    paths = [out.def_path for name in changing for out in stages[name].outs]
    unmade = [stages[name] for name in stages if name in changing[1:] or name not in lock.entries]
    for content, entry in ((b"", EMPTY_FILE), (b"[]", EMPTY_FOLDER)):
        if not repo.cache.local.exists(entry["md5"]):
            repo.cache.local.add_bytes(entry["md5"], content)
    return Surroundings(
        lock=lock,
        unmade={stage.name: _unmade(stage, lock.entries.get(stage.name, {}), paths) for stage in unmade},
        unmeasured=tuple(out.def_path for stage in unmade for out in stage.outs if out.is_metric),
        cache={**repo.config["cache"], "dir": repo.cache.local_cache_dir},
        temporary=Path(repo.tmp_dir),
    )


def _following(stages: Mapping[str, "PipelineStage"], first: str) -> list[str]:
    """A stage, and all that depend on what it makes, each after one that it depends on."""
    found = [first]
    for name in found:  # which grows meanwhile
        paths = [out.def_path for out in stages[name].outs]
        for other, stage in stages.items():
            if other not in found and any(_overlap(dep.def_path, path) for dep in stage.deps for path in paths):
                found.append(other)
    return found


def _unmade(stage: "PipelineStage", entry: Mapping[str, Any], changing: list[str]) -> dict[str, Any]:
    """The entry of a stage that is to run: without outputs, and without what it has from paths that change.

    The rest stays, so that `dvc exp show` finds no differences in code.
    """
    paths = [out.def_path for out in stage.outs if out.use_cache]
    outs = [{"path": path, **(EMPTY_FILE if Path(path).suffix else EMPTY_FOLDER)} for path in paths]
    deps = [dep for dep in entry.get("deps", ()) if not any(_overlap(dep["path"], path) for path in changing)]
    return {**entry, "cmd": stage.cmd, "deps": deps, "outs": outs}


def _overlap(one: str, other: str) -> bool:
    return Path(one).is_relative_to(other) or Path(other).is_relative_to(one)


def _furnish(root: Path, family: str, lock: Lock) -> None:
    """dvc.yaml and dvc.lock with the family's two stages alone, and links to the code that they depend on."""
    (root / ".dvc").mkdir(parents=True)
    (root / ".dvc" / "config").touch()
    here = Path.cwd()
    if (here / ".dvcignore").exists():
        shutil.copy(here / ".dvcignore", root)
    content = YAML(typ="safe").load(here / DVC_YAML)
    stages = {name: {**content["stages"][name], "matrix": {"family": [family]}} for name in STAGES}
    YAML(typ="safe").dump({"stages": stages}, root / DVC_YAML)
    made, entries = lock.made, {}
    for name, stage in stages.items():
        deps = [dep.replace(FAMILY, family) for dep in stage["deps"]]
        _link([dep for dep in deps if dep not in made], here, root)
        cmd = stage["cmd"].replace(FAMILY, family)
        entries[f"{name}@{family}"] = {"cmd": cmd, "deps": [made[dep] for dep in deps if dep in made]}
    Lock({"schema": "2.0"}, entries).write(root / DVC_LOCK)


def _link(paths: list[str], here: Path, root: Path) -> None:
    for path in paths:
        if not (root / path).is_symlink():
            (root / path).parent.mkdir(parents=True, exist_ok=True)
            (root / path).symlink_to(here / path)


def _sweep(temporary: Path) -> None:
    """Remove what processes left that were killed."""
    for left in temporary.glob(f"{PREFIX}*"):
        owner = left.name.removeprefix(PREFIX)
        if owner.isdigit() and (int(owner) == os.getpid() or not psutil.pid_exists(int(owner))):
            shutil.rmtree(left, ignore_errors=True)
