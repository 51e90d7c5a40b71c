"""The training loop as Ray Train workers, started, watched and restarted from here."""

import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

from pipeline import files, runtime
from pipeline.config import ComputeConfig
from pipeline.data import peer
from pipeline.data.loader import open_split
from pipeline.errors import UserError
from pipeline.train.run import Reading, TrainRun
from pipeline.train.tracking import follow

FAILURE = "failure.json"


def fit(run: TrainRun, directory: Path, compute: ComputeConfig, *, what: str, total_steps: int) -> None:
    """Train `run` to the end with Ray Train, resuming from what `directory` holds.

    Raises:
        UserError: the loop reported a mistake of the user's, or the workers died more often than allowed.
    """
    _check(run.reading)
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
        (directory / FAILURE).unlink(missing_ok=True)
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
            raise UserError(
                f"training failed {compute.max_failures + 1} times, checkpoints are kept in {directory}: "
                f"{_last_line(error)}; run the same command to continue"
            ) from error
        finally:
            shutil.rmtree(attempt, ignore_errors=True)
    if (directory / FAILURE).exists():
        raise UserError(files.read_json(directory / FAILURE)["error"])


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
    """What each Ray Train worker runs. A mistake of the user's ends it well: trying again would not help."""
    import ray.train
    import ray.train.torch

    from pipeline.train.loop import train

    def report(epoch: int, figures: dict[str, float]) -> None:
        ray.train.report({"epoch": epoch, **figures})

    directory: Path = config["directory"]
    try:
        train(
            config["run"],
            directory,
            on_epoch=report,
            checkpoint_every_steps=config["checkpoint_every_steps"],
            device=ray.train.torch.get_device(),
        )
    except UserError as error:
        files.write_json(directory / FAILURE, {"error": str(error)})


def _check(reading: Reading) -> None:
    """Say what is wrong with shards in a folder before Ray starts.

    Raises:
        UserError: a shard is missing, damaged or exchanged.
    """
    if isinstance(reading.shards, Path):
        for split in ("train", "val"):
            open_split(reading.shards, split, reading.read)


def _last_line(error: BaseException) -> str:
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    return lines[-1] if lines else type(error).__name__
