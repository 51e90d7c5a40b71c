"""What makes one trial better than another: one figure, or several of which none may get worse."""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Literal, TypeAlias, TypeVar

Direction: TypeAlias = Literal["min", "max"]
Figures: TypeAlias = Mapping[str, float]
Item = TypeVar("Item")


@dataclass(frozen=True)
class Objectives:
    """Validation figures and whether less or more of each is better; the first decides which trial is best."""

    names: tuple[str, ...]
    directions: tuple[Direction, ...]

    def values(self, figures: Figures) -> tuple[float, ...]:
        """Each objective as it is reported; NaN where `figures` lack it."""
        return tuple(figures.get(name, math.nan) for name in self.names)

    def costs(self, figures: Figures) -> tuple[float, ...]:
        """Each objective so that less is better; infinite where `figures` lack it."""
        return tuple(
            (-1 if direction == "max" else 1) * figures[name]
            if math.isfinite(figures.get(name, math.nan))
            else math.inf
            for name, direction in zip(self.names, self.directions, strict=True)
        )

    def ranked(self, candidates: Mapping[str, Figures]) -> list[str]:
        """Names of the candidates, best first: those that none beats, then those that only these beat, and so on;
        within each by the first objective, then by name."""
        costs = {name: self.costs(figures) for name, figures in candidates.items()}
        order: list[str] = []
        while left := {name: cost for name, cost in costs.items() if name not in order}:
            order += sorted(undominated(left), key=lambda name: (costs[name][0], name))
        return order


def undominated(costs: Mapping[str, Sequence[float]]) -> list[str]:
    """The names of which no other is at least as good in everything and better in something."""
    return [name for name, cost in costs.items() if not any(_beats(other, cost) for other in costs.values())]


def _beats(one: Sequence[float], other: Sequence[float]) -> bool:
    return all(a <= b for a, b in zip(one, other, strict=True)) and any(a < b for a, b in zip(one, other, strict=True))
