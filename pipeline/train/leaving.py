"""Asking whether a node is about to go: at the same steps on every rank, seldom enough to cost nothing."""

import time
from collections.abc import Callable

from vae_core import distributed

EVERY_S = 5.0
EVERY_STEPS = 100


class Watch:
    """Asks after about EVERY_S seconds by the clock of rank 0, and at the latest after EVERY_STEPS steps.

    Args:
        leaving: whether this rank's node is about to go; None: never asked.
        step: at which the run stands.
    """

    def __init__(self, leaving: Callable[[], bool] | None, step: int) -> None:
        self._leaving = leaving
        self._asked, self._next, self._at = step, step + 1, time.monotonic()

    def is_leaving(self, step: int) -> bool:
        """Whether any rank's node is, if it is time to ask; every rank must call it after each step."""
        if self._leaving is None or step < self._next:
            return False
        ahead = self._steps_ahead(step) if distributed.rank() == 0 else 0
        answers, ahead = distributed.sums([self._leaving(), ahead])
        self._next = step + ahead
        return answers > 0

    def _steps_ahead(self, step: int) -> int:
        now = time.monotonic()
        steps_per_s = (step - self._asked) / max(now - self._at, 1e-9)
        self._asked, self._at = step, now
        return max(1, min(EVERY_STEPS, int(EVERY_S * steps_per_s)))
