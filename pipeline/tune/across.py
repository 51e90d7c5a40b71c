"""A trial of several workers: a Ray Train run inside the trial, which itself does no work."""

import tempfile
from pathlib import Path
from typing import Any

from pipeline.train import failures
from pipeline.train.computing import computing
from pipeline.train.config import ComputeConfig
from pipeline.train.following import speaking
from pipeline.train.loop import train
from pipeline.train.worker import GROUP_STARTS
from pipeline.tune.trial import Job


def train_across(job: Job, stop: int, *, compute: ComputeConfig, gpus: float) -> None:
    """Train a job's run up to `stop` on `compute.trial_workers` workers.

    Raises:
        Diverged: the loss is not finite.
        WorkersFailed: they died more often than allowed.
        UserError: what a rank found.
        RayError: Ray itself failed; another attempt at the trial may go well.
    """
    with tempfile.TemporaryDirectory(prefix="vae-trial-") as scratch:  # for Ray's own files; none is read back
        try:
            _fit(job, stop, compute, gpus, Path(scratch))
        except Exception as error:  # Ray's come in many classes, those of its core included
            if failures.is_transient(error):
                raise
            failure = failures.of_run(error)
            remedy = f"; {failure.remedy}" if failure.remedy else ""
            raise failure.error(f"{failure.what}{remedy}") from None


def _fit(job: Job, stop: int, compute: ComputeConfig, gpus: float, scratch: Path) -> None:
    from ray.train import FailureConfig, RunConfig, ScalingConfig
    from ray.train.torch import TorchTrainer

    from pipeline.train.attempts import COUNT, Attempts

    attempts: Any = Attempts(job.folder, job.name, compute.max_failures, scratch / COUNT)
    trainer = TorchTrainer(
        _rank,
        train_loop_config={"job": job, "stop": stop},
        scaling_config=ScalingConfig(
            num_workers=compute.trial_workers,
            use_gpu=gpus > 0,
            resources_per_worker={"CPU": compute.trial_cpus, **({"GPU": gpus} if gpus else {})},
        ),
        run_config=RunConfig(
            name=f"{job.name}-{stop}",
            storage_path=str(scratch / "ray"),
            callbacks=[attempts],
            failure_config=FailureConfig(  # type: ignore[call-arg]
                max_failures=compute.max_failures,
                max_preemption_failures=compute.max_preemptions,
                controller_failure_limit=GROUP_STARTS,
            ),
        ),
    )
    trainer.fit()


def _rank(config: dict[str, Any]) -> None:
    """What each worker runs. What it raises reaches the controller, which decides whether to try again."""
    import ray.train
    import ray.train.torch

    job: Job = config["job"]
    with computing(job.threads), speaking(job.folder, ray.train.get_context().get_world_rank()):
        train(
            job.run,
            job.folder,
            on_epoch=lambda epoch, figures: None,
            checkpoint_every_steps=job.checkpoint_every_steps,
            device=ray.train.torch.get_device(),
            epochs=config["stop"],
            max_rows=job.max_rows,
        )
