"""Seconds of training at the end of each epoch."""

import time
from collections.abc import Callable
from typing import TypeAlias

Figure: TypeAlias = Callable[[], float]
Ended: TypeAlias = Callable[[Figure], None]  # called at the end of each epoch with what gives the validation -ELBO


class Enough(Exception):
    """A training has shown what was to be measured; the rest of it is not needed."""


class Clock:
    """An `Ended` that stands still while it evaluates, and ends the training.

    Args:
        epochs: at the end of which the training is ended.
        target: validation -ELBO at which it is ended before; None: it is not evaluated.

    Attributes:
        seconds: since the start, at the end of each epoch.
        figures: validation -ELBO there, in nats.
    """

    def __init__(self, epochs: int, target: float | None = None, now: Callable[[], float] = time.perf_counter) -> None:
        self._epochs, self._target, self._now = epochs, target, now
        self.seconds: list[float] = []
        self.figures: list[float] = []
        self._before, self._since = 0.0, self._now()

    def __call__(self, figure: Figure) -> None:
        """
        Raises:
            Enough: it was the last of the epochs, or the figure is at the target or below.
        """
        self._before += self._now() - self._since
        self.seconds.append(self._before)
        if self._target is not None:
            self.figures.append(figure())
            if self.figures[-1] <= self._target:
                raise Enough
        if len(self.seconds) == self._epochs:
            raise Enough
        self._since = self._now()


def crossing(seconds: list[float], figures: list[float], target: float) -> float | None:
    """When the figure fell to `target`, on the line between the ends of two epochs; None: it did not.

    Within the first epoch there is nothing to draw a line from, and its end counts.
    """
    for at, figure in enumerate(figures):
        if figure <= target:
            if at == 0:
                return seconds[0]
            share = (figures[at - 1] - target) / (figures[at - 1] - figure)
            return seconds[at - 1] + share * (seconds[at] - seconds[at - 1])
    return None
