"""How much of the difference between trials each swept key explains: functional ANOVA over a forest of trees.

Source: Hutter, Hoos & Leyton-Brown, ICML 2014, as Optuna computes it, with a fixed seed.
"""

from collections.abc import Mapping, Sequence
from typing import Any

from pipeline.tune.config import Range, Scalar
from pipeline.tune.objectives import Direction
from pipeline.tune.space import Overrides, Space
from pipeline.tune.suggest import OPTUNAS, distributions, quiet
from pipeline.tune.trials import Sweep, Trial

FEWEST = 10  # trials; and for each key so many besides
FEWEST_A_KEY = 3


def importance(sweep: Sweep, trials: Sequence[Trial]) -> dict[str, Any]:
    """The share of the variance of each objective that each key explains, between trials of the same age.

    Returns:
        `after_epochs`, the last epoch that every trial reached, `trials`, their number, and `objectives`: name -> key
        -> share; instead of the last, `why` there is none.
    """
    alive = [trial for trial in trials if trial.status != "failed"]
    epochs = min((len(trial.epochs) for trial in alive), default=0)
    found: dict[str, Any] = {"method": "fANOVA", "after_epochs": epochs, "trials": len(alive)}
    needed = max(FEWEST, FEWEST_A_KEY * len(sweep.space))
    if len(alive) < needed:
        return {**found, "why": f"too few trials: {len(alive)}, at least {needed} are needed"}
    shares = {name: _shares(sweep.space, alive, epochs, name, direction)
              for name, direction in zip(sweep.objectives.names, sweep.objectives.directions, strict=True)}  # fmt: skip
    return {**found, "objectives": shares}


def _shares(
    space: Space, trials: Sequence[Trial], epochs: int, name: str, direction: Direction
) -> dict[str, float] | None:
    """Key -> share, greatest first; None where there is nothing to explain."""
    import optuna
    from optuna.distributions import IntDistribution

    seen = [(trial.overrides, trial.epochs[epochs - 1].get(name)) for trial in trials]
    told = [(overrides, value) for overrides, value in seen if value is not None]
    if len({value for _, value in told}) < 2:
        return None
    # Of k categories Optuna would look at 2^k combinations; the places in a list are numbers, which it only splits.
    lists = {key: values for key, values in space.items() if not isinstance(values, Range)}
    places = {key: IntDistribution(0, len(values) - 1) for key, values in lists.items()}
    swept = distributions(space) | places
    with quiet():
        study = optuna.create_study(direction=OPTUNAS[direction])
        study.add_trials(
            [
                optuna.trial.create_trial(params=_places(lists, overrides), distributions=swept, value=value)
                for overrides, value in told
            ]
        )
        evaluator = optuna.importance.FanovaImportanceEvaluator(seed=0)
        shares = optuna.importance.get_param_importances(study, evaluator=evaluator)
    return {key: round(float(share), 6) for key, share in shares.items()}


def _places(lists: Mapping[str, Sequence[Scalar]], overrides: Overrides) -> Overrides:
    """The values of a trial, of each list the place in it."""
    return {key: lists[key].index(value) if key in lists else value for key, value in overrides.items()}
