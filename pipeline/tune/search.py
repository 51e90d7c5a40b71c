"""The sweep: Ray Tune runs the trials, rung by rung; between rungs the worse half is dropped.

Synchronous successive halving (Jamieson & Talwalkar, arXiv:1502.07943): every trial reaches a rung before any is
dropped, so the outcome does not depend on which trial was faster. A trial keeps its own checkpoints, so one that goes
on to the next rung, or that was killed, continues where it stood.
"""

import logging
import math
import shutil
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, Literal

from pipeline import files, progress, runtime
from pipeline.config import ComputeConfig, Scalar, SearchConfig, with_overrides
from pipeline.errors import UserError
from pipeline.train.run import TrainRun
from pipeline.train.tracking import SAID, MetricLog, follow_sweep
from pipeline.train.worker import FAILURE, served
from pipeline.tune.space import Overrides, current, draw
from vae_core.metrics.primary import primary


@dataclass
class Trial:
    """One combination, its run, and how far it came."""

    name: str
    overrides: Overrides
    run: TrainRun
    directory: Path
    status: Literal["running", "completed", "stopped", "failed"] = "running"
    epochs: list[dict[str, float]] = field(default_factory=list)

    @property
    def score(self) -> float:
        """The primary figure on the validation split after the last epoch; lower is better."""
        if not self.epochs or self.status == "failed":
            return math.inf
        return self.epochs[-1][primary(self.epochs[-1])]


def plan(baseline: TrainRun, config: SearchConfig, space: Mapping[str, Sequence[Scalar]], storage: Path) -> list[Trial]:
    """The trials of a sweep around `baseline`, each with its directory under `storage`."""
    combinations = draw(space, count=config.trials, seed=config.seed, known=current(baseline.model, space))
    trials = []
    for index, overrides in enumerate(combinations):
        run = replace(baseline, model=with_overrides(baseline.model, overrides))
        trials.append(Trial(f"trial-{index:03d}", overrides, run, storage / f"{index:03d}-{run.name}"))
    return trials


def search(trials: Sequence[Trial], config: SearchConfig, compute: ComputeConfig, *, storage: Path, what: str) -> None:
    """Train the trials, dropping the worse half at each rung; sets their status and figures.

    Raises:
        UserError: every trial failed by a mistake of the user's, or Ray Tune failed.
    """
    if not trials:
        return
    last = trials[0].run.train.epochs
    rungs = [*(config.rungs if config.scheduler == "halving" else ()), last]
    alive = list(trials)
    with runtime.cluster(compute):
        for rung in rungs:
            with follow_sweep([t.directory for t in alive], what=f"{what} to epoch {rung}", epochs=rung):
                _run_to(alive, rung, compute, storage / "ray")
            for trial in alive:
                trial.epochs = MetricLog(trial.directory).epochs()
                if (trial.directory / FAILURE).exists():
                    trial.status = "failed"
                    progress.say(f"{what}: {trial.name} failed: {_reason(trial)}")
            alive = [trial for trial in alive if trial.status == "running"]
            if not alive:
                break
            ranked = sorted(alive, key=lambda trial: (trial.score, trial.name))
            alive = ranked[: math.ceil(len(ranked) / 2)] if rung < last else ranked
            for trial in ranked[len(alive) :]:
                trial.status = "stopped"
    for trial in alive:
        trial.status = "completed"
    if all(trial.status == "failed" for trial in trials):
        raise UserError(f"every trial failed; {trials[0].name}: {_reason(trials[0])}")


def _reason(trial: Trial) -> str:
    """What the training loop said of a failed trial."""
    return str(files.read_json(trial.directory / FAILURE)["error"])


def _run_to(trials: Sequence[Trial], epochs: int, compute: ComputeConfig, ray_storage: Path) -> None:
    """One Ray Tune experiment: every trial trains inside its own trial process up to `epochs`."""
    from ray import tune

    shutil.rmtree(ray_storage, ignore_errors=True)  # Ray's own state; ours is in the trials' directories
    logging.getLogger("ray.tune").setLevel(logging.ERROR)  # it looks for logs that ours replace
    with served(trials[0].run.reading) as reading:  # the same for all
        results = tune.Tuner(
            tune.with_resources(_trial, _resources(len(trials))),
            param_space={
                "trial": tune.grid_search([(replace(trial.run, reading=reading), trial.directory) for trial in trials]),
                "epochs": epochs,
                "checkpoint_every_steps": compute.checkpoint_every_steps,
            },
            tune_config=tune.TuneConfig(reuse_actors=True),
            run_config=tune.RunConfig(
                name=f"epoch-{epochs}",
                storage_path=str(ray_storage),
                verbose=0,
                failure_config=tune.FailureConfig(max_failures=compute.max_failures),
            ),
        ).fit()
    shutil.rmtree(ray_storage, ignore_errors=True)
    if results.num_errors:
        reason = str(results.errors[0]).strip().splitlines()[-1]
        raise UserError(
            f"{results.num_errors} of {len(trials)} trials died: {reason}; run the same command to continue"
        )


def _trial(config: dict[str, Any]) -> None:
    """What Ray Tune runs: the same loop as everywhere, reporting to Tune."""
    from ray import tune

    from pipeline.train.loop import train

    run, directory = config["trial"]

    def report(epoch: int, figures: dict[str, float]) -> None:
        tune.report({"epoch": epoch, **figures})

    (directory / FAILURE).unlink(missing_ok=True)
    try:
        with progress.copied(directory / SAID):
            train(
                run,
                directory,
                on_epoch=report,
                checkpoint_every_steps=config["checkpoint_every_steps"],
                epochs=config["epochs"],
            )
    except UserError as error:
        files.write_json(directory / FAILURE, {"error": str(error)})


def _resources(trials: int) -> dict[str, float]:
    """A GPU a trial where there are any; else the cores, dealt out so that none is idle."""
    import ray

    available = ray.cluster_resources()
    return {"CPU": 1, "GPU": 1} if available.get("GPU") else {"CPU": max(1, int(available["CPU"]) // trials)}
