"""The section `tune` of params.yaml: what a sweep varies, how it searches, and what it calls best."""

import math
from dataclasses import dataclass
from typing import Literal, TypeAlias

from vae_core.config import Strict, check, check_at_least

Scalar: TypeAlias = int | float | str


@dataclass(frozen=True, kw_only=True, slots=True)
class Range(Strict):
    """The numbers from `low` to `high`, both included; integers where `low`, `high` and `step` are.

    Attributes:
        log: equal ratios are equally likely, instead of equal differences.
        step: only low, low + step, low + 2 step, ...
    """

    low: int | float
    high: int | float
    log: bool = False
    step: int | float | None = None

    def __post_init__(self) -> None:
        check(self, "high", self.low < self.high, "a number above low")
        check(self, "low", not self.log or self.low > 0, "a number above 0, where log is true")
        check(self, "step", self.step is None or self.step > 0, "a number above 0")
        check(self, "step", self.step is None or not self.log, "no step, where log is true")

    @property
    def integer(self) -> bool:
        return all(isinstance(value, int) for value in (self.low, self.high, self.step or 0))

    @property
    def values(self) -> tuple[int | float, ...] | None:
        """All of them, where they can be counted."""
        step = self.step or (1 if self.integer and not self.log else None)
        if step is None:
            return tuple(range(int(self.low), int(self.high) + 1)) if self.integer else None
        count = math.floor((self.high - self.low) / step + 1e-9) + 1
        return tuple(self.low + i * step if self.integer else round(self.low + i * step, 12) for i in range(count))


Values: TypeAlias = tuple[Scalar, ...] | Range


@dataclass(frozen=True, kw_only=True, slots=True)
class SearchConfig(Strict):
    """How combinations are chosen, and which of them go on.

    Attributes:
        trials: combinations besides the baseline, which is always a candidate.
        batch: combinations that `tpe` suggests before it sees what they gave.
        rungs: epochs after which trials are compared.
    """

    trials: int
    seed: int
    kind: Literal["grid", "random", "sobol", "tpe"] = "random"
    batch: int = 4
    scheduler: Literal["halving", "none", "asha", "pbt"]
    rungs: tuple[int, ...]

    def __post_init__(self) -> None:
        check_at_least(self, 0, "trials", "seed")
        check_at_least(self, 1, "batch")
        rising = all(a < b for a, b in zip((0, *self.rungs), self.rungs, strict=False))
        check(self, "rungs", rising, "epochs of at least 1, each above the one before")
        check(self, "kind", self.kind != "tpe" or self.scheduler != "pbt", "grid, random or sobol with scheduler: pbt")


@dataclass(frozen=True, kw_only=True, slots=True)
class TuneConfig(Strict):
    """The whole section.

    Attributes:
        metric: the validation figure that decides; several: the trials that no other beats in all of them are kept,
            and the first decides which is best. None: the family's primary figure.
        publish: finished trials that become DVC experiments; the rest on request.
        spaces: for each family, keys and the values to draw from.
    """

    search: SearchConfig
    spaces: dict[str, dict[str, Values]]
    metric: str | tuple[str, ...] | None = None
    publish: int = 3

    def __post_init__(self) -> None:
        check_at_least(self, 0, "publish")
        check(self, "metric", len(set(self.metrics)) == len(self.metrics), "each figure once")

    @property
    def metrics(self) -> tuple[str, ...]:
        """The figures of `metric`; none for the family's primary one."""
        return () if self.metric is None else (self.metric,) if isinstance(self.metric, str) else self.metric
