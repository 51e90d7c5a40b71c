"""Population-based training: at each rung the worst quarter goes on with the weights of the best, values varied.

Synchronous, and every choice is drawn by seed, so it repeats exactly. What a member did between two rungs is a run
folder of its own, named by the values it had and the segment before it: a kill or a repeat finds the same ones.

Source: Jaderberg et al., arXiv:1711.09846.
"""

from collections.abc import Sequence
from dataclasses import replace

import numpy as np
import torch

from pipeline.config import apply_overrides
from pipeline.errors import UserError
from pipeline.tune.config import Range, Scalar, Values
from pipeline.tune.space import Overrides, listed, neat, value_at
from pipeline.tune.trial import Job, Trainer
from pipeline.tune.trials import Segment, Sweep, Trial, begin, changed, folder_of, judge, name_of, reached
from vae_core.models import build_model

RESAMPLED = 0.25  # chance that a value is drawn anew rather than moved
FACTORS = (0.8, 1.2)
TRAINED_ON = ("train.learning_rate", "train.max_grad_norm")  # the keys of `train` that may change on the way


def check_population(sweep: Sweep) -> None:
    """Raise UserError unless any member can take over the weights of any other."""
    for key, values in sweep.space.items():
        if _changes_shapes(sweep, key, values):
            raise UserError(
                f"params.yaml: tune.spaces.{sweep.family}.{key}: with scheduler: pbt weights go from one trial to "
                "another, and this key changes their shapes or the order of the data; leave it out, or set "
                "tune.search.scheduler to halving"
            )


def evolve(sweep: Sweep, trials: Sequence[Trial], trainer: Trainer) -> None:
    """Train a population to its end; sets values, status and figures of each member."""
    for begun, stop in zip((0, *sweep.stops), sweep.stops, strict=False):
        sources = _sources(sweep, trials, stop) if begun else {}
        jobs = [_segment(sweep, trial, stop, sources.get(trial.name)) for trial in trials]
        begin(sweep, trials)
        missing = [job for job, trial in zip(jobs, trials, strict=True) if not reached(sweep, trial, stop)]
        trainer.advance(missing, what=f"tune {sweep.family} to epoch {stop}")
        for trial in trials:
            trial.status = "running"
            judge(trial, stop)
        if all(trial.status == "failed" for trial in trials):
            return
    for trial in trials:
        if trial.status == "running":
            trial.status = "completed"


def _sources(sweep: Sweep, trials: Sequence[Trial], stop: int) -> dict[str, Trial]:
    """Whose weights each of the worst members goes on with: one of the best, as that stands now."""
    alive = {trial.name: replace(trial) for trial in trials if trial.status != "failed"}
    order = sweep.objectives.ranked({name: trial.figures for name, trial in alive.items()})
    if not order:
        return {}
    quarter = max(1, len(order) // 4)
    best = order[:quarter]
    failed = [trial.name for trial in trials if trial.name not in alive]
    worst = [name for name in order[-quarter:] if name not in best] + failed
    return {name: alive[best[int(_generator(sweep, stop, name, 0).integers(len(best)))]] for name in worst}


def _segment(sweep: Sweep, trial: Trial, stop: int, source: Trial | None) -> Job:
    """The member's work up to `stop`, in a folder of its own; what it was before is in `trial` and changed here."""
    before = (source or trial).folder if trial.segments else None
    if source is not None:
        trial.overrides = _varied(sweep, source.overrides, stop, trial.name)
        trial.run = changed(sweep, trial.overrides, trial.name)
    trial.folder = folder_of(sweep, trial.run, "segment", name_of(before) if before else "", stop)
    trial.segments.append(Segment(stop, trial.overrides, trial.folder, source.name if source else None))
    return Job.of(sweep, trial, stop, begun_from=before)


def _varied(sweep: Sweep, overrides: Overrides, stop: int, name: str) -> Overrides:
    generator = _generator(sweep, stop, name, 1)
    return {key: moved(sweep.space[key], value, generator) for key, value in overrides.items()}


def moved(values: Values, value: Scalar, generator: np.random.Generator) -> Scalar:
    """A neighbour in the list, or the value times a factor; now and then any value of the space."""
    anywhere, place, up = generator.random() < RESAMPLED, generator.random(), generator.random() < 0.5
    if anywhere:
        return value_at(values, place)
    every = listed(values)
    if every:
        return every[min(max(every.index(value) + (1 if up else -1), 0), len(every) - 1)]
    assert isinstance(values, Range)
    assert not isinstance(value, str)
    new = value * FACTORS[up]
    return min(max(round(new) if values.integer else neat(new), values.low), values.high)


def _generator(sweep: Sweep, stop: int, name: str, purpose: int) -> np.random.Generator:
    """One for each member and rung, so that no choice depends on how many others there are."""
    seeds = np.random.SeedSequence([sweep.config.seed, stop, int(name.removeprefix("trial-")), purpose])
    return np.random.Generator(np.random.Philox(seeds))


def _changes_shapes(sweep: Sweep, key: str, values: Values) -> bool:
    if key.startswith("train."):
        return not key.startswith(TRAINED_ON)
    ends = (values.low, values.high) if isinstance(values, Range) else values
    return any(_shapes(sweep, {key: value}) != _shapes(sweep, {}) for value in ends)


def _shapes(sweep: Sweep, overrides: Overrides) -> dict[str, torch.Size]:
    model, train = apply_overrides(sweep.baseline.model, sweep.baseline.train, overrides)
    return {name: value.shape for name, value in build_model(model, sweep.data, seed=train.seed).state_dict().items()}
