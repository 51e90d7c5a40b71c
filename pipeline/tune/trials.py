"""A sweep and its trials: which runs they are, where these live, and what their folders say of them."""

import json
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property
from typing import Literal

from pipeline.config import apply_overrides, fingerprint
from pipeline.errors import UserError
from pipeline.train.config import ComputeConfig
from pipeline.train.folders import Folder, store_of
from pipeline.train.run import TrainRun
from pipeline.train.storage import finish, is_finished, read_json, record
from pipeline.train.tracking import MetricLog
from pipeline.tune.config import Range, SearchConfig
from pipeline.tune.measure import Measures
from pipeline.tune.objectives import Figures, Objectives
from pipeline.tune.space import Overrides, Space, current
from vae_core.config import DataSpec
from vae_core.models import build_model

FAILED, FIGURES = "failed.json", "figures.json"


@dataclass(frozen=True)
class Sweep:
    """Everything that decides which trials are trained, how far, and which of them is best.

    Attributes:
        known: the baseline's validation figures, which it is compared by; the objectives are among them.
        measures: objectives that the training loop does not report.
    """

    family: str
    baseline: TrainRun
    config: SearchConfig
    space: Space
    objectives: Objectives
    known: Figures
    compute: ComputeConfig
    measures: Measures | None = None

    @property
    def name(self) -> str:
        """That of its folder: the same for the same trials, judged alike."""
        decides = (self.config, self.space, self.objectives.names, self.measures and self.measures.identity)
        return f"{self.family}-sweep-{fingerprint((self.baseline.name, *decides, *self.bits))}"

    @property
    def folder(self) -> Folder:
        return self.storage.sub(self.name)

    @cached_property
    def storage(self) -> Folder:
        return store_of(self.compute)

    @property
    def threads(self) -> int:
        return threads_of(self.compute)

    @property
    def bits(self) -> tuple[int | None, ...]:
        """What a trial's last bits depend on besides its run."""
        return self.threads, self.compute.trial_workers, self.compute.max_rows

    @property
    def stops(self) -> tuple[int, ...]:
        """The epochs after which trials are compared; the last is the end of the longest."""
        rungs = () if self.config.scheduler == "none" else self.config.rungs
        return (*rungs, self._longest)

    @property
    def _longest(self) -> int:
        """The epochs of the longest trial."""
        values = self.space.get("train.epochs", ())
        swept = (values.high,) if isinstance(values, Range) else values
        return max(int(epochs) for epochs in (self.baseline.train.epochs, *swept))

    @cached_property
    def data(self) -> DataSpec:
        return self.baseline.reading.manifest().spec


def threads_of(compute: ComputeConfig) -> int:
    """torch threads of a trial, whatever runs beside it: the last bits of a sum depend on them."""
    return max(1, int(compute.trial_cpus))


@dataclass(frozen=True)
class Segment:
    """What a member of a population was trained with up to an epoch, and whose weights it began with."""

    epochs: int
    overrides: Overrides
    folder: Folder
    begun_from: str | None = None


@dataclass
class Trial:
    """One combination, its run, and how far this sweep took it.

    Attributes:
        folder: the run's; another sweep may have taken it further than this one counts.
        epochs: the validation figures after each epoch that this sweep counts.
        reason: why it failed.
        segments: where values changed on the way (`pbt`); `overrides` are those at the end.
    """

    name: str
    overrides: Overrides
    run: TrainRun
    folder: Folder
    status: Literal["running", "completed", "stopped", "failed"] = "running"
    epochs: list[dict[str, float]] = field(default_factory=list)
    reason: str = ""
    segments: list[Segment] = field(default_factory=list)

    @property
    def figures(self) -> dict[str, float]:
        """Those after the last epoch that counts."""
        return self.epochs[-1] if self.epochs else {}

    @property
    def folders(self) -> list[Folder]:
        """Of all its segments, or its one."""
        return [segment.folder for segment in self.segments] or [self.folder]

    @property
    def is_one_run(self) -> bool:
        """Whether training anew with its values gives the same model: they never changed on the way."""
        return all(segment.begun_from is None for segment in self.segments)


def make_trials(sweep: Sweep, first: int, batch: Sequence[Overrides]) -> list[Trial]:
    """The trials of some combinations, numbered from `first`; each is built once, here.

    Raises:
        UserError: naming the trial that cannot be built, its values and the reason.
    """
    trials = []
    for number, overrides in enumerate(batch, start=first):
        name = f"trial-{number:03d}"
        run = changed(sweep, overrides, name)
        trials.append(Trial(name, overrides, run, folder_of(sweep, run)))
    return trials


def changed(sweep: Sweep, overrides: Overrides, name: str) -> TrainRun:
    """The baseline's run with other values.

    Raises:
        UserError: the model cannot be built with them.
    """
    try:
        model, train = apply_overrides(sweep.baseline.model, sweep.baseline.train, overrides)
        build_model(model, sweep.data, seed=train.seed)
    except (ValueError, RuntimeError) as error:  # the latter where no memory could hold it
        values = ", ".join(f"{key}: {value}" for key, value in overrides.items())
        raise UserError(
            f"params.yaml: tune.spaces.{sweep.family}: {name} ({values}) cannot be built: {error}; leave such values "
            "out of the space"
        ) from None
    return replace(sweep.baseline, model=model, train=train)


def folder_of(sweep: Sweep, run: TrainRun, *segment: str | int) -> Folder:
    """Where a trial lives: the same for the same run and the same share of a machine, in whatever sweep.

    Args:
        segment: what comes before it, for a part of a run.
    """
    judged = (
        (sweep.measures.identity, *sweep.stops) if sweep.measures else ()
    )  # such figures are taken while training passes a rung
    parts = (run.name, "trial", *sweep.bits, *judged, *segment)
    return sweep.storage.sub(f"{sweep.family}-trial-{fingerprint(parts)}")


def name_of(folder: Folder) -> str:
    return folder.location.rstrip("/").rpartition("/")[2]


def own_values(sweep: Sweep) -> Overrides:
    """The baseline's values of the swept keys."""
    return current(sweep.baseline.model, sweep.baseline.train, sweep.space)


def is_baseline(sweep: Sweep, trial: Trial) -> bool:
    return trial.run.name == sweep.baseline.name


def reached(sweep: Sweep, trial: Trial, epochs: int) -> bool:
    """Whether a trial needs no more training to be judged after `epochs`, or after all its own."""
    stop = min(epochs, trial.run.train.epochs)
    if read_json(trial.folder, FAILED) is not None:
        return True
    if not figures_at(trial.folder, stop) or (sweep.measures and stop not in measured_epochs(trial.folder)):
        return False
    is_end = trial.segments or stop == trial.run.train.epochs  # where its weights are needed too
    return not is_end or is_finished(trial.folder)


def judge(trial: Trial, epochs: int) -> None:
    """Set the figures up to `epochs`, and the status and reason where it failed before."""
    stop = min(epochs, trial.run.train.epochs)
    trial.epochs = _epochs(trial.folder)[:stop]
    failed = read_json(trial.folder, FAILED)
    if failed is not None and len(trial.epochs) < stop:
        trial.status, trial.reason = "failed", str(failed["error"])


def add_figures(folder: Folder, epochs: int, figures: Figures) -> None:
    """Keep figures that the loop does not report."""
    kept = read_json(folder, FIGURES) or {}
    data = json.dumps({**kept, str(epochs): dict(figures)}, indent=2, allow_nan=False)
    folder.write(FIGURES, data.encode())


def begin(sweep: Sweep, trials: Sequence[Trial]) -> None:
    """Say in the store what the sweep is, and which trials it needs."""
    names = list(dict.fromkeys(name_of(folder) for trial in trials for folder in trial.folders))
    record(sweep.folder, {"kind": "sweep", "family": sweep.family, "trials": names, **sweep.baseline.lineage})


def end(sweep: Sweep, best: str) -> None:
    """Say that the sweep is over: its folder, and its trials' with it, may go when many newer runs are finished."""
    finish(sweep.folder, {"best": best})


def measured_epochs(folder: Folder) -> set[int]:
    """The epochs after which figures were measured that the loop does not report."""
    return {int(epochs) for epochs in read_json(folder, FIGURES) or {}}


def figures_at(folder: Folder, epochs: int) -> dict[str, float]:
    """The figures of a run after so many epochs; none where it did not get there."""
    return dict(enumerate(_epochs(folder), start=1)).get(epochs, {})


def _epochs(folder: Folder) -> list[dict[str, float]]:
    extra = read_json(folder, FIGURES) or {}
    return [{**figures, **extra.get(str(epoch), {})} for epoch, figures in enumerate(MetricLog(folder).epochs(), 1)]
