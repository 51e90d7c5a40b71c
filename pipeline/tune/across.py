"""A trial of several workers: a Ray Train run inside the trial, which itself does no work."""

import tempfile
from pathlib import Path

from pipeline.train import failures
from pipeline.train.config import ComputeConfig
from pipeline.train.worker import Work, trainer
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
    from pipeline.train.attempts import COUNT, Attempts

    work = Work(job.run, job.folder, job.threads, job.checkpoint_every_steps, job.max_rows, epochs=stop)
    scaling = {
        "num_workers": compute.trial_workers,
        "use_gpu": gpus > 0,
        "resources_per_worker": {"CPU": compute.trial_cpus, **({"GPU": gpus} if gpus else {})},
    }
    attempts = Attempts(job.folder, job.name, compute.max_failures, scratch / COUNT)
    trainer(work, scaling, compute, attempts, scratch, max_failures=compute.max_failures).fit()
