"""From the prepared table to WebDataset tars: permute once, cut, write in parallel, index, manifest.

The same rows and the same `shard` section give the same bytes, whatever the number of writers.
"""

import errno
import math
import os
import shutil
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any, TypeAlias, TypeVar

from pipeline import files, progress, runtime
from pipeline.data import index_rows
from pipeline.data.companions import write_lists
from pipeline.data.config import ShardConfig
from pipeline.data.external_shuffle import Shuffle, runs
from pipeline.data.index import INDEX, Manifest, ShardEntry, write_manifest
from pipeline.data.shard_plan import Plan, ShardPlan, plan
from pipeline.data.shard_writer import Group, ShardWriter
from pipeline.data.split import SPLITS
from pipeline.data.tar import Layout
from pipeline.errors import UserError
from pipeline.train.config import ComputeConfig

GROUP_BYTES = 32 * 1024**2, 128 * 1024**2  # of raw tars, which a task holds in memory: least and most
RUN_BYTES = 256 * 1024**2  # of pixels that a task sorts

Task = TypeVar("Task")
Result = TypeVar("Result")
Run: TypeAlias = Callable[[Callable[[Any], Any], Sequence[Any]], Iterator[Any]]


def write_shards(data: Path, config: ShardConfig, compute: ComputeConfig) -> None:
    """Replace `data`/shards by shards of `data`/prepared, written by one Ray task a core of this machine.

    Raises:
        UserError: the prepared table is missing, damaged, or not the one that `data`/dataset.json describes, or its
            images cannot be encoded as `config` says.
    """
    planned = plan(data, config)
    with runtime.cluster(replace(compute, address=None)):
        execute(planned, runtime.cores(), _on_ray)


def write_here(data: Path, config: ShardConfig, *, writers: int = 1, group_bytes: int | None = None) -> Path:
    """What `write_shards` does, in this process, as `writers` would do it one after the other.

    Returns:
        The folder of shards.
    """
    return execute(plan(data, config), writers, _one_by_one, group_bytes)


def execute(plan: Plan, writers: int, run: Run, group_bytes: int | None = None) -> Path:
    """Write the shards of a plan; `run` calls a function with each of some tasks, in any process.

    Returns:
        The folder of shards.
    """
    target, layout = plan.data / "shards", plan.layout
    groups = deal(plan.shards, layout, writers, group_bytes)
    wanted = min(RUN_BYTES // layout.shape.size, math.ceil(len(plan.places) / writers))
    parts = runs(plan.parts, max(1, wanted))
    with (
        _full_disk(target, layout.file_bytes(len(plan.places))),
        files.new_directory(target) as new,
        _scratch(target) as own,
    ):
        folder, scratch = new.resolve(), own.resolve()
        make_folders(folder)
        shuffle = Shuffle(scratch, (*(group.shards[0].start for group in groups), len(plan.places)))
        shuffle.start(plan.places)
        for _ in progress.track(run(shuffle.scatter, parts), total=len(parts), what="sort", unit="parts"):
            pass
        found = run(ShardWriter(shuffle, folder, layout, plan.config).write, groups)
        tars = (written for group in found for written in group)
        written = list(progress.track(tars, total=len(plan.shards), what="shard", unit="tars"))
        finish(folder, scratch, plan, written)
    return target


def deal(shards: Sequence[ShardPlan], layout: Layout, writers: int, group_bytes: int | None = None) -> list[Group]:
    """Groups of shards that follow each other: at least one a writer where that can be, at most `group_bytes` each.

    Small groups stay in the processor's caches; large ones keep the number of scratch pieces down where data are many.
    """
    total = sum(shard.rows for shard in shards) * layout.stride
    least, most = GROUP_BYTES
    size = min(group_bytes or min(most, max(least, total // 256)), math.ceil(total / writers))
    groups: list[list[ShardPlan]] = []
    room = 0
    for shard in shards:
        needed = shard.rows * layout.stride
        if needed > room or not groups:
            groups.append([])
            room = size
        groups[-1].append(shard)
        room -= needed
    return [Group(number, tuple(group)) for number, group in enumerate(groups)]


def make_folders(folder: Path) -> None:
    for split in SPLITS:
        (folder / split).mkdir()


def finish(folder: Path, scratch: Path, plan: Plan, written: Sequence[ShardEntry]) -> None:
    """Write index.parquet, the files for other readers and, last, manifest.json for the shards in `folder`."""
    dataset, layout = plan.dataset, plan.layout
    index_rows.write_index(folder / INDEX, scratch, layout, [shard.name for shard in plan.shards])
    mean, std = (tuple(value / 255 for value in dataset["statistics"][name]) for name in ("mean", "std"))
    manifest = Manifest(
        shape=layout.shape,
        classes=tuple(dataset["classes"]),
        attributes=layout.attributes,
        embedding=layout.embedding,
        encoding=plan.config.encoding,
        counts=dataset["counts"],
        shards=tuple(written),
        index=files.sha256(folder / INDEX),
        mean=mean,
        std=std,
        dataset=dataset["digest"],
        source=dataset["name"],
        files=dataset["files"],
    )
    write_lists(folder, manifest)
    write_manifest(folder, manifest)


@contextmanager
def _scratch(target: Path) -> Iterator[Path]:
    """A folder that vanishes; its name is one that `files.new_directory(target)` clears away after a kill."""
    path = target.with_name(f".{target.name}.scratch.{os.getpid()}.tmp")
    path.mkdir()
    try:
        yield path
    finally:
        shutil.rmtree(path, ignore_errors=True)


@contextmanager
def _full_disk(target: Path, size: int) -> Iterator[None]:
    """Say so where the disk has no room for tars of `size` bytes."""
    try:
        yield
    except OSError as error:
        cause = getattr(error, "cause", error)  # Ray wraps what a task raised
        if getattr(cause, "errno", None) not in (errno.ENOSPC, errno.EDQUOT):
            raise
        raise UserError(
            f"{target}: the disk is full: the shards take up to {size / 1e9:,.1f} GB, and up to as much again while "
            "they are written; make room and start again"
        ) from None


def _one_by_one(function: Callable[[Task], Result], tasks: Sequence[Task]) -> Iterator[Result]:
    return map(function, tasks)


def _on_ray(function: Callable[[Task], Result], tasks: Sequence[Task]) -> Iterator[Result]:
    """One Ray task for each task; the first error ends them all."""
    import ray

    remote: Any = ray.remote(num_cpus=1)(_call)
    references = [remote.remote(function, task) for task in tasks]
    try:
        yield from runtime.results(references)
    except BaseException:
        for reference in references:
            ray.cancel(reference, force=True)
        ray.wait(references, num_returns=len(references))
        raise


def _call(function: Callable[[Task], Result], task: Task) -> Result:
    return function(task)
