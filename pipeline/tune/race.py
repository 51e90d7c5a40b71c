"""Asynchronous successive halving: a trial goes on or stops as soon as it reaches a rung. Fast, and never twice alike.

Which trials stop depends on which came first, so the outcome is kept in the sweep's folder: repeating a finished sweep
gives that one, while one that was killed on the way races again, with the epochs that were trained at hand.

Source: Li et al., arXiv:1810.05934.
"""

from collections.abc import Sequence

from pipeline.train.storage import read_json, write_json
from pipeline.tune.trial import Job, Trainer
from pipeline.tune.trials import Sweep, Trial, judge

OUTCOME = "outcome.json"


def race(sweep: Sweep, trials: Sequence[Trial], trainer: Trainer) -> None:
    """Train a batch; sets status and figures of each. The first objective decides which goes on."""
    known: dict[str, int] = read_json(sweep.folder, OUTCOME) or {}
    if any(trial.name not in known for trial in trials):
        jobs = [Job.of(sweep, trial, *sweep.stops) for trial in trials]
        (figure, *_), (direction, *_) = sweep.objectives.names, sweep.objectives.directions
        known = {**known, **trainer.race(jobs, figure=figure, mode=direction, what=f"tune {sweep.family}")}
        write_json(sweep.folder, OUTCOME, known)
    for trial in trials:
        judge(trial, known[trial.name])
        if trial.status != "failed":
            ended = known[trial.name] >= trial.run.train.epochs
            trial.status = "completed" if ended else "stopped"
