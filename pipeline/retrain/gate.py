"""The gate: whether a challenger takes the champion's place. A pure function of the figures of both."""

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Literal

from pipeline.errors import UserError, did_you_mean
from pipeline.evaluate.validation import direction as known_direction
from pipeline.retrain.config import LimitConfig, RetrainConfig
from vae_core.metrics.primary import primary

Figures = Mapping[str, float]

DECIMALS = 6


@dataclass(frozen=True)
class Check:
    """A hard limit, and what the challenger has.

    Attributes:
        value: None where its family does not report the figure.
    """

    name: str
    value: float | None
    limit: LimitConfig

    @property
    def holds(self) -> bool:
        if self.value is None:
            return not self.limit.required
        above = self.limit.min is None or self.value >= self.limit.min
        return math.isfinite(self.value) and above and (self.limit.max is None or self.value <= self.limit.max)

    @property
    def asked(self) -> str:
        """The limit in words."""
        ends = (("at least", self.limit.min), ("at most", self.limit.max))
        return " and ".join(f"{word} {end:g}" for word, end in ends if end is not None)


@dataclass(frozen=True)
class Decision:
    """Whether a challenger is promoted, and why.

    Attributes:
        metric: the figure that the two are compared by.
        direction: which way is better.
        champion, challenger: their values of it; None: there is no champion.
        gain: by how much the challenger is better, negative where it is worse; None: nothing to compare with.
        checks: of the hard limits that concern the family.
        reasons: each a sentence; of a challenger that is not promoted all that speak against it.
    """

    promoted: bool
    metric: str
    direction: Literal["min", "max"]
    champion: float | None
    challenger: float
    gain: float | None
    min_gain: float
    checks: tuple[Check, ...]
    reasons: tuple[str, ...]


def decide(champion: Figures | None, challenger: Figures, config: RetrainConfig) -> Decision:
    """Promote the challenger if it is better by `min_gain` and keeps to all limits.

    A tie goes to the champion, even where `min_gain` is 0. Where there is no champion, or its figure is not finite, the
    limits alone decide. A challenger whose figure is not finite is never promoted.

    Args:
        champion, challenger: figures of the same test split; None: there is no champion.

    Raises:
        UserError: one of the two has no such figure as `config.metric`.
    """
    metric = config.metric or primary(challenger)
    better = config.direction or known_direction(metric)
    new = _figure("challenger", challenger, metric)
    old = None if champion is None else _figure("champion", champion, metric)
    gain = None if old is None or not math.isfinite(old) else _gain(old, new, better)
    checks = tuple(
        check
        for name, limit in config.limits.items()
        if (check := Check(name, challenger.get(name), limit)).value is not None or limit.required
    )
    against = [*_against(metric, new, gain, config.min_gain), *_broken(checks)]
    reasons = against or [_for(metric, old, gain)]
    return Decision(not against, metric, better, old, new, gain, config.min_gain, checks, tuple(reasons))


def _figure(who: str, figures: Figures, metric: str) -> float:
    if metric not in figures:
        raise UserError(f"params.yaml: retrain.metric: the {who} reports no {metric}{did_you_mean(metric, figures)}")
    return figures[metric]


def _gain(old: float, new: float, better: Literal["min", "max"]) -> float:
    """Figures have six decimals, and their difference has no more."""
    return round(new - old if better == "max" else old - new, DECIMALS)


def _against(metric: str, new: float, gain: float | None, min_gain: float) -> list[str]:
    if not math.isfinite(new):
        return [f"its {metric} is not finite"]
    if gain is None:
        return []
    if gain <= 0:
        return [f"its {metric} is no better than the champion's"]
    return [f"its gain in {metric} is below retrain.min_gain ({min_gain:g})"] if gain < min_gain else []


def _broken(checks: tuple[Check, ...]) -> list[str]:
    return [
        f"it reports no {check.name}, which retrain.limits requires"
        if check.value is None
        else f"its {check.name} is {check.value:g}, and retrain.limits asks for {check.asked}"
        for check in checks
        if not check.holds
    ]


def _for(metric: str, old: float | None, gain: float | None) -> str:
    if old is None:
        return "there is no champion yet, and it keeps to every limit"
    if gain is None:
        return f"the champion's {metric} is not finite, and it keeps to every limit"
    return f"its {metric} is better than the champion's, and it keeps to every limit"
