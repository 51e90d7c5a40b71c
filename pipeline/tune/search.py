"""The sweep: combinations are suggested, trained side by side, compared after each rung; some of them go on.

Synchronous successive halving (Jamieson & Talwalkar, arXiv:1502.07943): every trial reaches a rung before any is
dropped, so the outcome does not depend on which trial was faster. Nothing of Ray's or Optuna's is read back: after a
kill the same plan is made again, and trials that got so far before answer from their folders, without Ray.
"""

import math
from collections.abc import Sequence

from pipeline.errors import Diverged
from pipeline.progress import say
from pipeline.tune.population import check_population, evolve
from pipeline.tune.race import race
from pipeline.tune.suggest import Answer, suggestions
from pipeline.tune.trial import Job, Trainer
from pipeline.tune.trials import Sweep, Trial, begin, is_baseline, judge, make_trials, reached


def search(sweep: Sweep, trainer: Trainer) -> list[Trial]:
    """The trials of a sweep, trained and compared; the baseline's own combination is no trial.

    Raises:
        UserError: a trial cannot be built.
        Diverged: every one of them did.
        WorkersFailed: a trial's process died more often than allowed.
    """
    if sweep.config.scheduler == "pbt":
        check_population(sweep)
    suggested = suggestions(sweep.space, sweep.config, sweep.objectives.directions)
    trials: list[Trial] = []
    count = 0
    while combinations := suggested.ask():
        batch = make_trials(sweep, count, combinations)
        count += len(batch)
        new = [trial for trial in batch if not is_baseline(sweep, trial)]
        trials += new
        begin(sweep, trials)
        if new:
            _schedule(sweep, new, trainer)
        suggested.tell([_answer(sweep, trial) for trial in batch])
    _check_some_survived(trials)
    return trials


def _schedule(sweep: Sweep, trials: Sequence[Trial], trainer: Trainer) -> None:
    """Train a batch; sets status and figures of each."""
    if sweep.config.scheduler == "pbt":
        evolve(sweep, trials, trainer)
    elif sweep.config.scheduler == "asha":
        race(sweep, trials, trainer)
    else:
        _halve(sweep, trials, trainer)
    for trial in trials:
        if trial.status == "failed":
            say(f"tune {sweep.family}: {trial.name} failed: {trial.reason}")


def _halve(sweep: Sweep, trials: Sequence[Trial], trainer: Trainer) -> None:
    """All to the next rung, half of those that got there to the one after, and so on; without rungs all to the end."""
    alive = list(trials)
    for rung in sweep.stops:
        jobs = [Job.of(sweep, trial, rung) for trial in alive if not reached(sweep, trial, rung)]
        trainer.advance(jobs, what=f"tune {sweep.family} to epoch {rung}")
        for trial in alive:
            judge(trial, rung)
        alive = [trial for trial in alive if trial.status == "running"]
        if rung < sweep.stops[-1]:
            alive = _better_half(sweep, alive)
    for trial in alive:
        trial.status = "completed"


def _better_half(sweep: Sweep, trials: Sequence[Trial]) -> list[Trial]:
    """Half of the trials, rounded up; the others are stopped."""
    order = sweep.objectives.ranked({trial.name: trial.figures for trial in trials})
    kept = order[: math.ceil(len(order) / 2)]
    for trial in trials:
        if trial.name not in kept:
            trial.status = "stopped"
    return [trial for trial in trials if trial.name in kept]


def _answer(sweep: Sweep, trial: Trial) -> Answer:
    """What Optuna is told of a trial."""
    if is_baseline(sweep, trial):
        return Answer("completed", sweep.objectives.values(sweep.known), sweep.baseline.train.epochs)
    values = sweep.objectives.values(trial.figures) if trial.status != "failed" else ()
    if trial.status not in ("completed", "stopped") or not all(map(math.isfinite, values)):
        return Answer("failed", (), len(trial.epochs))
    return Answer(trial.status, values, len(trial.epochs))


def _check_some_survived(trials: Sequence[Trial]) -> None:
    if trials and all(trial.status == "failed" for trial in trials):
        raise Diverged(f"every trial failed; {trials[0].name}: {trials[0].reason}")
