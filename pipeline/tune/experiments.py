"""Trials as DVC experiments: each is shown with its parameters, metrics and plots, and can be applied without training.

The experiment of a trial that was trained to its end is the project as it would be if the trial's values had been the
baseline's from the start: params.yaml, the outputs of train@F and tune@F, and the entries of dvc.lock that belong to
them. What follows tune@F is not made yet. Any other trial gives its parameters alone.
"""

from collections.abc import Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path

from pipeline.errors import UserError
from pipeline.progress import say
from pipeline.stages import MODELS, RESULTS
from pipeline.train.publish import publish_history, publish_model
from pipeline.tune.publish import publish_sweep
from pipeline.tune.snapshots import Experiment, publish
from pipeline.tune.trials import Sweep, Trial

SHOW = "dvc exp show --only-changed --drop '.*(/|test)'"  # without hashes of files, and figures of the test split


def publish_experiments(sweep: Sweep, trials: Sequence[Trial], *, count: int | None, running: bool = True) -> None:
    """Publish the best `count` of the trials that were trained to their end; None: these, and those stopped early.

    Where that cannot be done, it says why, and the sweep goes on.

    Args:
        running: inside the stage tune@F, whose outputs are there, but not in dvc.lock.
    """
    try:
        said = published(sweep, trials, count=count, running=running)
    except UserError as error:
        said = f"trials not published as DVC experiments: {error}"
    if said:
        say(f"tune {sweep.family}: {said}")


def published(sweep: Sweep, trials: Sequence[Trial], *, count: int | None, running: bool) -> str:
    """The same; what was done, in one line.

    Raises:
        UserError: it cannot be done.
    """
    experiments = [experiment_of(sweep, trials, trial) for trial in chosen(sweep, trials, count)]
    if not experiments:
        return ""
    new = publish(sweep.family, experiments, running=running)
    bare = sum(experiment.write is None for experiment in experiments)
    return (
        f"{_counted(len(experiments))}, {len(new)} new{_bare(bare)}; compare: {SHOW}; "
        f"adopt one without training: dvc exp apply {experiments[0].name}"
    )


def chosen(sweep: Sweep, trials: Sequence[Trial], count: int | None) -> list[Trial]:
    """The trials to publish, best first."""
    completed = _ranked(sweep, [trial for trial in trials if trial.status == "completed"])
    if count is not None:
        return completed[:count]
    return completed + _ranked(sweep, [trial for trial in trials if trial.status == "stopped"])


def _ranked(sweep: Sweep, trials: Sequence[Trial]) -> list[Trial]:
    named = {trial.name: trial for trial in trials}
    return [named[name] for name in sweep.objectives.ranked({trial.name: trial.figures for trial in trials})]


def experiment_of(sweep: Sweep, trials: Sequence[Trial], trial: Trial) -> Experiment:
    """The experiment of one of the trials of a sweep."""
    why = _why_bare(trial)
    values = {f"models.{sweep.family}.{k}" if not k.startswith("train.") else k: v for k, v in trial.overrides.items()}
    told = ", ".join(f"{key}={value}" for key, value in trial.overrides.items())
    return Experiment(
        name=f"{sweep.family}-{sweep.name.rpartition('-')[2][:6]}-{trial.name}",
        values=values,
        message=f"{trial.name} of {sweep.name}: {told}" + (f"\n\nParameters only: {why}." if why else ""),
        write=None if why else partial(_write_outputs, sweep, trials, trial),
    )


def _why_bare(trial: Trial) -> str:
    """Why a trial gives no model that train@F would give."""
    if trial.status != "completed":
        return f"stopped after {len(trial.epochs)} of {trial.run.train.epochs} epochs"
    return "" if trial.is_one_run else "its values changed while it was trained"


def _counted(count: int) -> str:
    return "1 trial is a DVC experiment" if count == 1 else f"{count} trials are DVC experiments"


def _bare(count: int) -> str:
    return f" ({count} with parameters only: stopped early, or changed on the way)" if count else ""


def _write_outputs(sweep: Sweep, trials: Sequence[Trial], trial: Trial, root: Path) -> None:
    """The outputs of train@F with the trial's values, and of tune@F with that as its baseline."""
    family = sweep.family
    baseline, results = root / MODELS / family / "baseline", root / RESULTS
    publish_model(trial.run, trial.folder, baseline)
    publish_history(trial.folder, family, results / "train" / family)
    others = [other for other in trials if other is not trial]
    around = replace(sweep, baseline=trial.run, known=trial.figures)
    publish_sweep(around, others, baseline, root / MODELS / family / "best", results / "tune" / family)
