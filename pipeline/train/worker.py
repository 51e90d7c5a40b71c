"""The training loop as Ray Train workers, started, watched and restarted from here."""

import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

from pipeline import files, progress, runtime
from pipeline.config import ComputeConfig
from pipeline.data import peer
from pipeline.errors import UserError
from pipeline.train.run import Reading, TrainRun
from pipeline.train.tracking import SAID, follow

FAILURE = "failure.json"


def fit(run: TrainRun, directory: Path, compute: ComputeConfig, *, what: str, total_steps: int) -> None:
    """Train `run` to the end with Ray Train, resuming from what `directory` holds.

    Raises:
        UserError: the loop reported a mistake of the user's, or the workers died more often than allowed.
    """
    _check(run)
    with (
        runtime.cluster(compute),
        served(run.reading) as reading,
        follow(directory, what=what, total_steps=total_steps),
    ):
        from ray.train import FailureConfig, RunConfig, ScalingConfig
        from ray.train.torch import TorchTrainer
        from ray.train.v2.api.exceptions import TrainingFailedError

        attempt = directory / "ray"  # Ray resumes by name and compares nothing; ours resumes by fingerprint
        shutil.rmtree(attempt, ignore_errors=True)
        failure = directory / FAILURE
        failure.unlink(missing_ok=True)
        trainer = TorchTrainer(
            worker,
            train_loop_config={
                "run": replace(run, reading=reading),
                "directory": directory,
                "checkpoint_every_steps": compute.checkpoint_every_steps,
            },
            scaling_config=ScalingConfig(**scaling(compute)),
            run_config=RunConfig(
                name=run.name,
                storage_path=str(attempt),
                failure_config=FailureConfig(max_failures=compute.max_failures, controller_failure_limit=3),  # type: ignore[call-arg]
            ),
        )
        try:
            trainer.fit()
        except TrainingFailedError as error:
            if not failure.exists():
                raise UserError(
                    f"training failed {compute.max_failures + 1} times, checkpoints are kept in {directory}: "
                    f"{_last_line(error)}; run the same command to continue"
                ) from error
        finally:
            shutil.rmtree(attempt, ignore_errors=True)
    if failure.exists():
        raise UserError(files.read_json(failure)["error"])


@contextmanager
def served(reading: Reading) -> Iterator[Reading]:
    """`reading` for every node of the cluster: a folder of this node is served to the others, if there are any."""
    import ray

    if isinstance(reading.shards, Path) and sum(node["Alive"] for node in ray.nodes()) > 1:
        with peer.serve(reading.shards) as name:
            yield replace(reading, peer=name)
    else:
        yield reading


def scaling(compute: ComputeConfig) -> dict[str, Any]:
    """Ray Train's scaling: by default one worker a GPU, or one worker with every core where there is no GPU."""
    import ray

    resources = ray.cluster_resources()
    gpus, cpus = int(resources.get("GPU", 0)), int(resources.get("CPU", 1))
    workers = compute.workers if compute.workers != "auto" else max(1, gpus)
    if gpus and workers > gpus:
        raise UserError(f"params.yaml: compute.workers: {workers} workers need as many GPUs, Ray has {gpus}")
    if workers > cpus:
        raise UserError(f"params.yaml: compute.workers: {workers} workers need as many cores, Ray has {cpus}")
    cores = {"CPU": 1} if gpus else {"CPU": cpus // workers}
    return {"num_workers": workers, "use_gpu": gpus > 0, "resources_per_worker": cores}


def worker(config: dict[str, Any]) -> None:
    """What each Ray Train worker runs. A mistake of the user's ends it well: trying again would not help.

    Where a single rank finds one, such as a node without credentials, the others would wait for it: it dies, Ray ends
    them all, and those that Ray starts anew end well.
    """
    import ray.train
    import ray.train.torch

    from pipeline.train.loop import train

    def report(epoch: int, figures: dict[str, float]) -> None:
        ray.train.report({"epoch": epoch, **figures})

    directory: Path = config["directory"]
    if (directory / FAILURE).exists():
        return
    try:
        with progress.copied(directory / SAID):
            train(
                config["run"],
                directory,
                on_epoch=report,
                checkpoint_every_steps=config["checkpoint_every_steps"],
                device=ray.train.torch.get_device(),
            )
    except UserError as error:
        files.write_json(directory / FAILURE, {"error": str(error)})
        if ray.train.get_context().get_world_size() > 1:
            raise


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


def _last_line(error: BaseException) -> str:
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    return lines[-1] if lines else type(error).__name__
