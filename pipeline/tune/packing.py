"""Ray Tune around trials: as many side by side as the cluster has room for, each in a process of its own.

A trial of one worker trains inside its Tune process; one of several drives a Ray Train run that holds its resources.
"""

import logging
import math
import tempfile
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import replace
from functools import partial
from typing import Any

import torch

from pipeline import runtime
from pipeline.errors import ClusterFailed, UserError
from pipeline.train import failures
from pipeline.train.config import ComputeConfig
from pipeline.train.folders import store_of
from pipeline.train.following import follow_sweep
from pipeline.train.placing import check_shared, grow
from pipeline.train.run import Reading
from pipeline.train.worker import served
from pipeline.tune.across import train_across
from pipeline.tune.objectives import Figures
from pipeline.tune.trial import Job, carry_out

RACED = "raced"  # what ASHA takes for time: 2 ** n at the n-th stop, so that its rungs are ours


class Packed:
    """The trainer of a sweep. Ray starts when there is something to train, and stays until the sweep is over."""

    def __init__(self, compute: ComputeConfig, stack: ExitStack) -> None:
        self._compute, self._stack = compute, stack
        self._reading: Reading | None = None

    def advance(self, jobs: Sequence[Job], *, what: str) -> None:
        self._run(jobs, what)

    def race(self, jobs: Sequence[Job], *, figure: str, mode: str, what: str) -> dict[str, int]:
        from ray.tune.schedulers import ASHAScheduler

        stops = max((job.stops for job in jobs), key=len)
        scheduler = ASHAScheduler(
            time_attr=RACED, metric=figure, mode=mode, grace_period=1, reduction_factor=2, max_t=2 ** (len(stops) - 1)
        )
        return self._run(jobs, what, scheduler, figure)

    def _run(self, jobs: Sequence[Job], what: str, scheduler: Any = None, figure: str = "") -> dict[str, int]:
        """One experiment of Ray Tune. Returns the last stop of each trial."""
        if not jobs:
            return {}
        self._start(jobs[0].run.reading)
        assert self._reading is not None
        jobs = [replace(job, run=replace(job.run, reading=self._reading)) for job in jobs]
        with follow_sweep([job.folder for job in jobs], what=what, epochs=[job.stops[-1] for job in jobs]):
            results = _experiment(jobs, self._compute, scheduler, figure)
        return _collected(results, jobs, self._compute)

    def _start(self, reading: Reading) -> None:
        if self._reading is None:
            self._stack.enter_context(runtime.cluster(self._compute, runtime.TORCH, environments=True))
            self._reading = self._stack.enter_context(served(reading, self._compute))
            grow(self._compute, self._compute.trial_workers)
            check_shared(store_of(self._compute))


@contextmanager
def packed(compute: ComputeConfig) -> Iterator[Packed]:
    with ExitStack() as stack:
        yield Packed(compute, stack)


def _experiment(jobs: Sequence[Job], compute: ComputeConfig, scheduler: Any, figure: str) -> Any:
    import ray
    from ray import tune

    logging.getLogger("ray.tune").setLevel(logging.CRITICAL)  # a trial that died is told of in one line, by us
    keep_secrets()
    gpus, several = _gpus(compute), compute.trial_workers > 1
    with tempfile.TemporaryDirectory(prefix="vae-tune-") as ray_storage:  # Ray's own state, which nobody reads
        tuner = tune.Tuner(
            tune.with_resources(_trial, _resources(compute, gpus)),
            param_space={"job": tune.grid_search(list(jobs)), "compute": compute, "gpus": gpus, "figure": figure},
            tune_config=tune.TuneConfig(
                reuse_actors=not several,
                scheduler=scheduler,
                max_concurrent_trials=_room(compute, gpus),
            ),
            run_config=tune.RunConfig(
                name="trials",
                storage_path=ray_storage,
                verbose=0,
                failure_config=tune.FailureConfig(max_failures=compute.max_failures),
            ),
        )
        try:
            return tuner.fit()
        except (ray.exceptions.RayError, tune.TuneError) as error:
            failure = failures.of_run(error)
            raise ClusterFailed(f"Ray Tune ended: {failure.what}; {_kept(compute)}; {failures.AGAIN}") from error


def keep_secrets() -> None:
    """Let Ray Tune send no password of this process to its trials: Ray writes it to a log there that all can read.

    Trials have the environment that Ray was started with, on a node as here.
    """
    from ray.tune.execution import class_cache

    names = {name for name in class_cache.ENV_VARS_TO_PROPAGATE if name.startswith("AWS_")}
    class_cache.ENV_VARS_TO_PROPAGATE.difference_update(names)


def _trial(config: dict[str, Any]) -> None:
    """What Ray Tune runs. A mistake of the user's ends it well: trying again would not help."""
    from ray import tune

    job: Job = config["job"]
    if 0 < config["gpus"] < 1:
        torch.cuda.set_per_process_memory_fraction(config["gpus"])
    across = partial(train_across, compute=config["compute"], gpus=config["gpus"])
    lost: dict[str, float] = {RACED: 2 ** (len(job.stops) - 1)}
    if config["figure"]:  # of a race, whose scheduler insists on one
        lost[config["figure"]] = math.nan

    def report(stop: int, figures: Figures) -> None:
        tune.report({"stop": stop, RACED: 2 ** job.stops.index(stop), **figures})

    try:
        if not carry_out(job, report=report, train_to=across if config["compute"].trial_workers > 1 else None):
            tune.report({"stop": job.stops[-1], **lost})
    except UserError as error:
        tune.report({"error": str(error), "code": error.code, **lost})


def _collected(results: Any, jobs: Sequence[Job], compute: ComputeConfig) -> dict[str, int]:
    """The last stop of each trial; those that were not stopped on the way got to their last one.

    Raises:
        WorkersFailed: a trial's process died more often than allowed.
        UserError: what a trial found, as the class that it was there.
    """
    ended = {}
    for job, result in zip(jobs, results, strict=True):  # one that died before its first report has no config
        name, metrics = job.name, result.metrics or {}
        if result.error is not None:
            failure = failures.of_rank(_cause(result.error))
            raise failure.error(
                f"{name}: {failure.what}, {_times(compute.max_failures + 1)} (compute.max_failures: "
                f"{compute.max_failures}); {_kept(compute)}; {failure.remedy}"
            )
        if "error" in metrics:
            kinds: list[type[UserError]] = [UserError, *UserError.__subclasses__()]
            raise next(kind for kind in kinds if kind.code == metrics["code"])(f"{name}: {metrics['error']}")
        ended[name] = int(metrics["stop"])
    return ended


def _cause(error: object) -> BaseException:
    """What a trial ended with. Where Ray killed it for want of memory, Ray Tune keeps the text alone."""
    if isinstance(error, BaseException):
        return error
    text = str(error).partition("\n")[2]
    return MemoryError(text) if "low on memory" in text else RuntimeError(text)


def _resources(compute: ComputeConfig, gpus: float) -> Any:
    """What a trial's own process holds: next to nothing where it only drives workers."""
    from ray import tune

    if compute.trial_workers > 1:
        return tune.PlacementGroupFactory([{"CPU": 0, "memory": 1024}])
    return {"CPU": compute.trial_cpus, **({"GPU": gpus} if gpus else {})}


def _gpus(compute: ComputeConfig) -> float:
    import ray

    there = ray.cluster_resources().get("GPU", 0)
    return min(1.0, there) if compute.trial_gpus == "auto" else compute.trial_gpus


def _room(compute: ComputeConfig, gpus: float) -> int:
    """How many trials the cluster holds at a time.

    Raises:
        UserError: none.
    """
    import ray

    there, workers = ray.cluster_resources(), compute.trial_workers
    room = math.floor(there.get("CPU", 0) / (workers * compute.trial_cpus))
    if gpus:
        room = min(room, math.floor(there.get("GPU", 0) / (workers * gpus)))
    if room < 1:
        needs = f"{workers * compute.trial_cpus:g} cores" + (f" and {workers * gpus:g} GPUs" if gpus else "")
        raise UserError(
            f"params.yaml: compute: a trial needs {needs}, Ray has {there.get('CPU', 0):g} cores and "
            f"{there.get('GPU', 0):g} GPUs; lower compute.trial_cpus, trial_gpus or trial_workers"
        )
    return int(room)


def _kept(compute: ComputeConfig) -> str:
    return f"what the trials reached is kept in {compute.storage}"


def _times(count: int) -> str:
    return {1: "once", 2: "twice"}.get(count, f"{count} times")
