"""What a trial's process does: the same loop as everywhere, up to the epochs after which trials are compared."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Protocol, TypeAlias

from pipeline.errors import Diverged
from pipeline.train.checkpoints import step_of
from pipeline.train.computing import computing
from pipeline.train.folders import DiskFolder, Folder
from pipeline.train.following import speaking
from pipeline.train.lock import STALE_S, exclusive
from pipeline.train.loop import train
from pipeline.train.run import TrainRun
from pipeline.train.storage import finish, is_finished, read_json, record, write_json
from pipeline.train.tracking import LOG
from pipeline.tune.measure import Measures, measured
from pipeline.tune.objectives import Figures
from pipeline.tune.trials import FAILED, Sweep, Trial, add_figures, figures_at, measured_epochs, name_of

CHECKPOINTS = "checkpoints"
WAIT_S = 30.0  # for the end of a process whose sweep was killed
LEASE_S = 2 * STALE_S  # in a store of objects a process that died on another machine holds its folder so long

Report: TypeAlias = Callable[[int, Figures], None]
TrainTo: TypeAlias = Callable[["Job", int], None]


@dataclass(frozen=True)
class Job:
    """What a process is given to do; can be pickled.

    Attributes:
        stops: epochs after which the trial is compared, rising; those that it has passed are not trained again.
        measures: figures that are measured at each of them.
        ends: the epoch after which the folder is finished.
        begun_from: folder of the segment whose weights it begins with.
    """

    name: str
    run: TrainRun
    folder: Folder
    stops: tuple[int, ...]
    threads: int
    checkpoint_every_steps: int
    ends: int
    max_rows: int | None = None
    measures: Measures | None = None
    begun_from: Folder | None = None
    about: Mapping[str, Any] = field(default_factory=dict)

    @classmethod
    def of(cls, sweep: Sweep, trial: Trial, *stops: int, begun_from: Folder | None = None) -> "Job":
        """The work on a trial up to the last of `stops`, or to its own end where that is nearer."""
        return cls(
            name=trial.name,
            run=trial.run,
            folder=trial.folder,
            stops=tuple(dict.fromkeys(min(stop, trial.run.train.epochs) for stop in stops)),
            threads=sweep.threads,
            checkpoint_every_steps=sweep.compute.checkpoint_every_steps,
            max_rows=sweep.compute.max_rows,
            measures=sweep.measures,
            begun_from=begun_from,
            ends=stops[-1] if trial.segments else trial.run.train.epochs,
            about=_about(sweep, trial, begun_from),
        )


def _about(sweep: Sweep, trial: Trial, begun_from: Folder | None) -> dict[str, Any]:
    """What is shown of the folder."""
    about = {"kind": "trial", "family": sweep.family, **trial.run.described}
    return {**about, "begun_from": name_of(begun_from)} if begun_from else about


class Trainer(Protocol):
    """Where trials are trained."""

    def advance(self, jobs: Sequence[Job], *, what: str) -> None:
        """Do all of them; none starts nothing. A trial that diverged says so in its folder.

        Raises:
            UserError: one could not be done; what the others did is kept.
        """
        ...

    def race(self, jobs: Sequence[Job], *, figure: str, mode: str, what: str) -> dict[str, int]:
        """Stop some on the way, by `figure`, at times that depend on which is faster. Returns the last stop of each."""
        ...


def carry_out(job: Job, *, report: Report, train_to: TrainTo | None = None) -> bool:
    """Train and measure up to each stop, and report the figures there. Returns whether it got to the last one.

    Args:
        train_to: trains a job's run up to an epoch; in this process where it is None.

    Raises:
        UserError: the folder is in use, the disk is full, the shards are damaged: what another attempt would meet too.
    """
    wait_s = WAIT_S if isinstance(job.folder, DiskFolder) else LEASE_S
    with computing(job.threads), exclusive(job.folder, wait_s=wait_s):
        if read_json(job.folder, FAILED) is not None:
            return False
        if job.begun_from is not None:
            _take_over(job.begun_from, job.folder)
        record(job.folder, job.about)
        try:
            for stop in job.stops:
                figures = _figures_at(job, stop, train_to or _train_here)
                if stop == job.ends and not is_finished(job.folder):
                    finish(job.folder, {"epochs": stop, "figures": figures})
                report(stop, figures)  # which may not return: a race stops trials here
        except Diverged as error:
            write_json(job.folder, FAILED, {"error": str(error)})
            return False
        return True


def _train_here(job: Job, stop: int) -> None:
    with speaking(job.folder, 0):
        train(
            job.run,
            job.folder,
            on_epoch=lambda epoch, figures: None,
            checkpoint_every_steps=job.checkpoint_every_steps,
            epochs=stop,
            max_rows=job.max_rows,
        )


def _figures_at(job: Job, stop: int, train_to: TrainTo) -> dict[str, float]:
    """The loop's figures after `stop` epochs, and those that are measured besides; trained where they are not there."""
    known = figures_at(job.folder, stop)
    is_measured = job.measures is None or stop in measured_epochs(job.folder)
    if not known or not is_measured or (stop == job.ends and not is_finished(job.folder)):
        if not is_measured and figures_at(job.folder, stop + 1):  # its checkpoint has gone
            job.folder.remove(LOG, *job.folder.names(f"{CHECKPOINTS}/"))
        train_to(job, stop)
        if job.measures:
            add_figures(job.folder, stop, measured(job.run, job.folder, job.measures))
    return figures_at(job.folder, stop)


def _take_over(source: Folder, target: Folder) -> None:
    """Begin with the weights and the log of another run; the newest checkpoint comes last, and makes it so."""
    newest = max(map(step_of, source.sub(CHECKPOINTS).names()), default=0)
    if any(step_of(name) >= newest for name in target.sub(CHECKPOINTS).names()):
        return
    target.write(LOG, source.read(LOG))
    for name in source.sub(CHECKPOINTS).names():
        target.sub(CHECKPOINTS).write(name, source.sub(CHECKPOINTS).read(name))
