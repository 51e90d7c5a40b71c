"""What a row is: one published figure, and the configuration that is to reproduce it."""

from dataclasses import dataclass
from typing import Literal, TypeAlias

from bench.reproduction.data import DataName
from vae_core.config import ModelConfig, Scheduled

Measure: TypeAlias = Literal["nll", "neg_elbo", "mig", "seconds"]
SHORT = 0.2  # of the schedule, below which the short recipe of a row is used
UNITS: dict[Measure, str] = {"nll": "nats", "neg_elbo": "nats", "mig": "MIG", "seconds": "s"}


@dataclass(frozen=True, kw_only=True, slots=True)
class Target:
    """A published figure and the bounds, both included, within which ours counts as a reproduction of it.

    Attributes:
        source: where the figure was read.
    """

    published: str
    source: str
    at_least: float | None = None
    at_most: float | None = None

    @property
    def bound(self) -> str:
        if self.at_least is not None and self.at_most is not None:
            return f"{self.at_least:g} to {self.at_most:g}"
        if self.at_most is not None:
            return f"<= {self.at_most:g}"
        return "none" if self.at_least is None else f">= {self.at_least:g}"

    def met_by(self, figure: float) -> bool:
        above = self.at_least is None or figure >= self.at_least
        return above and (self.at_most is None or figure <= self.at_most)


@dataclass(frozen=True, kw_only=True, slots=True)
class Row:
    """One figure to reproduce.

    Attributes:
        batch, steps, learning_rate: of the full schedule.
        short_batch, short_learning_rate: of less than a fifth of it, where a fraction of the training images is seen in
            smaller batches, for as many steps as that takes; None: as the full schedule.
        samples: importance draws of `nll`, draws that `neg_elbo` is the mean over.
        protocol: what the figure depends on besides this configuration, in words; the binarisation always.
        comparable: False where the protocol is reduced so far that the published figure is no target.
        seeds: of the full row, one training each.
        missing: why the row cannot be run; empty where it can.
    """

    name: str
    data: DataName
    model: ModelConfig
    batch: int
    steps: int
    learning_rate: Scheduled
    target: Target
    protocol: str
    short_learning_rate: Scheduled | None = None
    short_batch: int | None = None
    adam_epsilon: float = 1e-8
    measure: Measure = "nll"
    samples: int = 5000
    comparable: bool = True
    seeds: tuple[int, ...] = (0,)
    output_bias: bool = False
    missing: str = ""

    def rate(self, fraction: float) -> Scheduled:
        """The learning rate of this fraction of the schedule."""
        return self.short_learning_rate if self.short_learning_rate and fraction < SHORT else self.learning_rate

    def batch_of(self, fraction: float) -> int:
        """Rows a step of this fraction of the schedule."""
        return self.short_batch if self.short_batch and fraction < SHORT else self.batch

    def steps_of(self, fraction: float) -> int:
        """Steps in which this fraction of the schedule's images is seen."""
        return max(1, round(self.steps * self.batch * fraction / self.batch_of(fraction)))
