"""The training loop as Ray Train workers, started, watched and restarted from here."""

import tempfile
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from pipeline import runtime
from pipeline.data import peer
from pipeline.progress import say
from pipeline.train import failures
from pipeline.train.computing import computing
from pipeline.train.config import ComputeConfig
from pipeline.train.folders import Folder, Place, open_folder
from pipeline.train.following import follow, speaking
from pipeline.train.placing import check_shared, place
from pipeline.train.run import Reading, TrainRun

GROUP_STARTS = 20  # how often a group of workers may fail to start in a run; each waits a minute for room


@dataclass(frozen=True)
class Work:
    """What a worker is given to do: to train, as far as `epochs` or to the end; can be pickled."""

    run: TrainRun
    folder: Folder
    threads: int
    checkpoint_every_steps: int
    max_rows: int | None
    epochs: int | None = None
    reclaimed: bool = False  # whether nodes may be taken back, so that it pays to ask


def fit(run: TrainRun, folder: Place, compute: ComputeConfig, *, what: str, total_steps: int) -> None:
    """Train `run` to the end with Ray Train, resuming from what `folder` holds.

    Ray starts workers that died anew. It does not do so after the death of its own controller, nor of a worker that is
    just starting: then all of Ray is started anew here. Both count against compute.max_failures.

    Raises:
        UserError: the loop reported a mistake of the user's; one that another attempt would find too.
        Diverged, StorageFailed: likewise.
        WorkersFailed: workers died more often than allowed, or a fault of the code came twice.
        ClusterFailed: a node or Ray itself was lost more often than allowed, or Ray has no room.
    """
    _check(run)
    folder = open_folder(folder)
    folder.remove(*folder.names("said"))
    with tempfile.TemporaryDirectory(prefix="vae-ray-") as scratch:
        with follow(folder, what=what, total_steps=total_steps):
            while not _attempt(run, folder, compute, what, Path(scratch)):
                continue


def _attempt(run: TrainRun, folder: Folder, compute: ComputeConfig, what: str, scratch: Path) -> bool:
    """Train with one controller of Ray Train. Returns whether the run is done; if not, another one may try.

    Args:
        scratch: for Ray's own files, of which only the count of failures is read again.
    """
    with runtime.cluster(compute, runtime.TORCH), served(run.reading, compute) as reading:
        from ray.exceptions import RayError
        from ray.train.v2._internal.exceptions import RayTrainError

        from pipeline.train.attempts import COUNT, Attempts

        count = scratch / COUNT
        used = count.stat().st_size if count.exists() else 0
        attempts = Attempts(folder, what, compute.max_failures, count)
        try:
            _fit(replace(run, reading=reading), folder, compute, what, attempts, scratch, compute.max_failures - used)
        except (RayTrainError, RayError, ConnectionError) as error:
            _again_or_raise(error, folder, compute, what, count)
            return False
    return True


def _fit(
    run: TrainRun, folder: Folder, compute: ComputeConfig, what: str, attempts: Any, scratch: Path, max_failures: int
) -> None:
    placing = place(compute)
    check_shared(folder)
    say(f"{what}: {placing}, {run.train.precision}; checkpoints in {folder.location}")
    work = Work(run, folder, placing.threads, compute.checkpoint_every_steps, compute.max_rows)
    trainer(work, placing.scaling, compute, attempts, scratch, max_failures=max_failures).fit()


def trainer(
    work: Work, scaling: Mapping[str, Any], compute: ComputeConfig, attempts: Any, scratch: Path, *, max_failures: int
) -> Any:
    """Ray's trainer of workers that do `work`.

    Args:
        scaling: arguments of Ray Train's ScalingConfig.
        attempts: an `Attempts`, which is told of failures.
        scratch: for Ray's own files. It resumes by name and compares nothing; ours resumes by fingerprint.
    """
    from ray.train import FailureConfig, RunConfig, ScalingConfig

    from pipeline.train.trainers import Meeting, PrivateTrainer, SharedTrainer

    private = compute.address is None
    return (PrivateTrainer if private else SharedTrainer)(
        worker,
        train_loop_config={"work": replace(work, reclaimed=not private)},
        torch_config=Meeting(scratch) if private else None,
        scaling_config=ScalingConfig(**scaling),
        run_config=RunConfig(
            name=work.run.name,
            storage_path=str(scratch / "ray"),
            callbacks=[attempts],
            failure_config=FailureConfig(  # type: ignore[call-arg]
                max_failures=max_failures,
                max_preemption_failures=compute.max_preemptions,
                controller_failure_limit=GROUP_STARTS,
            ),
        ),
    )


def _again_or_raise(error: Exception, folder: Folder, compute: ComputeConfig, what: str, count: Path) -> None:
    """Return where Ray would not try again, but a new start of it may help.

    Raises:
        UserError: nothing helps, or it failed more often than allowed.
    """
    from ray.train.v2.api.exceptions import PreemptionError

    from pipeline.train.attempts import counted, ended, lost_nodes, newest_step

    failure = failures.of_run(error)
    if failure.is_ours:
        raise failure.error(failure.what) from None
    if isinstance(error, PreemptionError):
        raise lost_nodes(failure, folder) from None
    failed = counted(count)
    if failed > compute.max_failures or not failures.is_transient(error):
        raise ended(failure, folder, attempts=failed, allowed=compute.max_failures) from error
    step, allowed = newest_step(folder), compute.max_failures + 1
    say(f"{what}: {failure.what}; Ray is started anew for attempt {failed + 1} of {allowed} from step {step:,}")


@contextmanager
def served(reading: Reading, compute: ComputeConfig) -> Iterator[Reading]:
    """`reading` for every node of a cluster, also those that come later: a folder of this one is served to them."""
    if isinstance(reading.shards, Path) and compute.address is not None:
        with peer.serve(reading.shards) as name:
            yield replace(reading, peer=name)
    else:
        yield reading


def worker(config: dict[str, Work]) -> None:
    """What each Ray Train worker runs. What it raises reaches the controller, which decides whether to try again."""
    import ray.train
    import ray.train.torch

    from pipeline.train.loop import train

    def report(epoch: int, figures: dict[str, float]) -> None:
        ray.train.report({"epoch": epoch, **figures})

    work, rank = config["work"], ray.train.get_context().get_world_rank()
    with computing(work.threads), speaking(work.folder, rank):
        train(
            work.run,
            work.folder,
            on_epoch=report,
            checkpoint_every_steps=work.checkpoint_every_steps,
            max_rows=work.max_rows,
            epochs=work.epochs,
            device=ray.train.torch.get_device(),
            leaving=_leaving if work.reclaimed else None,
        )


def _leaving() -> bool:
    """Whether the node of some rank is being reclaimed. A barrier: every rank asks it at the same steps."""
    import ray.train

    return ray.train.get_preemption_info() is not None


def _check(run: TrainRun) -> None:
    """Say what is wrong with the shards before Ray starts.

    Raises:
        UserError: a shard in a folder is missing, damaged or exchanged; others lie at an address, or none.
    """
    if isinstance(run.shards, Path):
        for split in ("train", "val"):
            run.open(split)
    else:
        run.expect(run.reading.manifest().digest)
