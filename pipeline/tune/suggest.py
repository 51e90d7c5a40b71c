"""Which combinations a sweep tries, batch by batch: drawn at once, or suggested by Optuna from what earlier ones gave.

Optuna's study lives in memory alone. After a kill it is asked the same questions, told the same answers, which the
finished trials have at hand, and so makes the same suggestions.
"""

import warnings
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal, Protocol

from pipeline.tune.config import Range, SearchConfig, Values
from pipeline.tune.objectives import Direction
from pipeline.tune.space import REPEATS, Overrides, Space, counted, draw, neat

if TYPE_CHECKING:
    import optuna

OPTUNAS: Mapping[Direction, Literal["minimize", "maximize"]] = {"min": "minimize", "max": "maximize"}


@dataclass(frozen=True)
class Answer:
    """What a suggested combination gave.

    Attributes:
        values: of each objective, after the last epoch that it was trained for; none where it failed.
        epochs: how many those were.
    """

    status: Literal["completed", "stopped", "failed"]
    values: tuple[float, ...]
    epochs: int


class Suggestions(Protocol):
    def ask(self) -> list[Overrides]:
        """The next combinations to try, different from all before; none when the sweep is over."""
        ...

    def tell(self, answers: Sequence[Answer]) -> None:
        """What those combinations gave, in their order."""
        ...


def suggestions(space: Space, config: SearchConfig, directions: Sequence[Direction]) -> Suggestions:
    if config.kind == "tpe":
        return Modelled(space, config, directions)
    return Drawn(draw(space, config.kind, count=config.trials, seed=config.seed))


class Drawn:
    """One batch, whatever it gives."""

    def __init__(self, combinations: list[Overrides]) -> None:
        self._left = combinations

    def ask(self) -> list[Overrides]:
        batch, self._left = self._left, []
        return batch

    def tell(self, answers: Sequence[Answer]) -> None:
        pass


class Modelled:
    """Optuna's tree-structured Parzen estimator, of several objectives too.

    Source: Bergstra et al., NeurIPS 2011; Ozaki et al., GECCO 2020 for several objectives.
    """

    def __init__(self, space: Space, config: SearchConfig, directions: Sequence[Direction]) -> None:
        import optuna

        self._config = config
        self._space = distributions(space)
        self._seen: set[tuple[object, ...]] = set()
        self._asked: list[optuna.Trial] = []
        with quiet():
            sampler = optuna.samplers.TPESampler(
                seed=config.seed,
                multivariate=True,
                constant_liar=True,  # those asked for but not told yet count as bad: a batch spreads out
                n_startup_trials=max(config.batch, 2 * len(space)),
            )
            self._study = optuna.create_study(sampler=sampler, directions=[OPTUNAS[each] for each in directions])

    def ask(self) -> list[Overrides]:
        wanted = min(self._config.batch, self._config.trials - len(self._seen)) if self._space else 0
        self._asked = []
        batch: list[Overrides] = []
        with quiet():
            while len(batch) < wanted and (trial := self._new()) is not None:
                self._asked.append(trial)
                batch.append(_combination(trial))
        return batch

    def _new(self) -> "optuna.Trial | None":
        """A suggestion unlike all before; None where the space seems to have no more."""
        from optuna.trial import TrialState

        for _ in range(REPEATS):
            trial = self._study.ask(self._space)
            values = tuple(_combination(trial).values())
            if values not in self._seen:
                self._seen.add(values)
                return trial
            self._study.tell(trial, state=TrialState.FAIL)
        return None

    def tell(self, answers: Sequence[Answer]) -> None:
        with quiet():
            for trial, answer in zip(self._asked, answers, strict=True):
                self._tell(trial, answer)

    def _tell(self, trial: "optuna.Trial", answer: Answer) -> None:
        from optuna.trial import TrialState

        if answer.status == "failed":
            self._study.tell(trial, state=TrialState.FAIL)
        elif answer.status == "stopped" and len(answer.values) == 1:  # of several objectives it takes no early figures
            trial.report(answer.values[0], answer.epochs)
            self._study.tell(trial, state=TrialState.PRUNED)
        else:
            self._study.tell(trial, list(answer.values))


def _combination(trial: "optuna.Trial") -> Overrides:
    return {key: neat(value) if isinstance(value, float) else value for key, value in trial.params.items()}


@contextmanager
def quiet() -> Iterator[None]:
    """No log lines of Optuna's: what it does is told by ours; and no word of its interfaces being new."""
    import optuna

    verbosity = optuna.logging.get_verbosity()
    optuna.logging.set_verbosity(optuna.logging.ERROR)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", optuna.exceptions.ExperimentalWarning)
            yield
    finally:
        optuna.logging.set_verbosity(verbosity)


def distributions(space: Space) -> dict[str, Any]:
    """The space in Optuna's terms."""
    return {key: _distribution(values) for key, values in space.items()}


def _distribution(values: Values) -> Any:
    from optuna.distributions import CategoricalDistribution, FloatDistribution, IntDistribution

    if not isinstance(values, Range):
        return CategoricalDistribution(values)
    high = counted(values)[-1] if counted(values) else values.high  # a step may not reach `high`
    assert not isinstance(high, str)
    if values.integer:
        return IntDistribution(int(values.low), int(high), log=values.log, step=int(values.step or 1))
    return FloatDistribution(values.low, high, log=values.log, step=values.step)
