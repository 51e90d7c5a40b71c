"""Weights, temperatures and learning rates that change over a run: a number, or how it moves with the step.

`until` and `warmup` are fractions of the run's steps, so that a schedule fits a run of any length.
"""

import math
from dataclasses import dataclass
from typing import Literal, TypeAlias

from vae_core.config.base import Strict, check


@dataclass(frozen=True, kw_only=True, slots=True)
class RampConfig(Strict):
    """From `start` to `end` over the first `until` of the run, then constant.

    linear: equal differences; cosine: half a cosine wave; exponential: equal ratios (both ends above 0).
    """

    kind: Literal["linear", "cosine", "exponential"]
    start: float
    end: float
    until: float = 1.0

    def __post_init__(self) -> None:
        _check_ends(self)
        check(self, "until", 0 < self.until <= 1, "a fraction of the run's steps, above 0 and up to 1")
        if self.kind == "exponential":
            for name in ("start", "end"):
                check(self, name, getattr(self, name) > 0, "a number above 0")


@dataclass(frozen=True, kw_only=True, slots=True)
class CyclicalConfig(Strict):
    """`cycles` times: linear from `start` to `end` over the first `rise` of the cycle, then constant to its end.

    Source: Fu et al., arXiv:1903.10145, equation 6.
    """

    kind: Literal["cyclical"]
    start: float
    end: float
    cycles: int = 4
    rise: float = 0.5

    def __post_init__(self) -> None:
        _check_ends(self)
        check(self, "cycles", self.cycles >= 1, "an integer of at least 1")
        check(self, "rise", 0 < self.rise <= 1, "a fraction of the cycle, above 0 and up to 1")


@dataclass(frozen=True, kw_only=True, slots=True)
class OneCycleConfig(Strict):
    """Linear from `peak` / 25 to `peak` over the first `warmup` of the run, then along a cosine to `peak` / 10,000.

    Source: Smith & Topin, arXiv:1708.07120.
    """

    kind: Literal["one_cycle"]
    peak: float
    warmup: float = 0.3

    def __post_init__(self) -> None:
        check(self, "peak", 0 < self.peak < math.inf, "a number above 0")
        check(self, "warmup", 0 <= self.warmup < 1, "a fraction of the run's steps, from 0 to below 1")


ScheduleConfig: TypeAlias = RampConfig | CyclicalConfig | OneCycleConfig
Scheduled: TypeAlias = float | ScheduleConfig


def least(value: Scheduled) -> float:
    """The smallest value that is taken."""
    match value:
        case RampConfig() | CyclicalConfig():
            return min(value.start, value.end)
        case OneCycleConfig():
            return value.peak / 10_000
        case _:
            return float(value)


def check_scheduled(config: object, field: str, *, above: float | None = None, at_least: float | None = None) -> None:
    """Raise RangeError unless every value that `field` takes over a run is `above` or `at_least` the bound."""
    lowest = least(getattr(config, field))
    if above is not None:
        check(config, field, lowest > above, f"a number above {above:g}, or a schedule of such")
    if at_least is not None:
        check(config, field, lowest >= at_least, f"a number of at least {at_least:g}, or a schedule of such")


def _check_ends(ramp: RampConfig | CyclicalConfig) -> None:
    """NaN would pass `check_scheduled`: the smaller of two numbers one of which is NaN may be the other."""
    for name in ("start", "end"):
        check(ramp, name, math.isfinite(getattr(ramp, name)), "a finite number")
