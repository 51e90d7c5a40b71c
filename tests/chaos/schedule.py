"""Which part of a run is killed when: decided by a seed before anything starts."""

import random
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import cycle, islice

from processes import PARTS

LATEST = 0.8  # of a stage's steps; a stage that ends sooner than its kill would lose it
HASTY = 0.2  # of the kills come while the run still recovers from the one before


@dataclass(frozen=True)
class Planned:
    """One kill.

    Attributes:
        victim: one of the parts of `processes.PARTS`.
        at: share of the stage's steps that must be done first; None: soon after the kill before it.
        delay_s: from then on.
    """

    stage: str
    family: str
    victim: str
    at: float | None
    delay_s: float


def plan(kills: int, seed: int, families: Sequence[str]) -> list[Planned]:
    """`kills` of them over train and tune of each family; every part of a stage in turn before one comes again."""
    generator = random.Random(seed)
    stages = [(stage, family) for family in families for stage in ("train", "tune")]
    extra = set(generator.sample(range(len(stages)), kills % len(stages)))
    turns = {stage: cycle(generator.sample(parts, len(parts))) for stage, parts in PARTS.items()}
    planned: list[Planned] = []
    for index, (stage, family) in enumerate(stages):
        count = kills // len(stages) + (index in extra)
        shares = sorted(generator.uniform(0, LATEST) for _ in range(count))
        for number, (share, victim) in enumerate(zip(shares, islice(turns[stage], count), strict=True)):
            hasty = number > 0 and generator.random() < HASTY
            delay_s = generator.uniform(0, 8 if hasty else 1)
            planned.append(Planned(stage, family, victim, None if hasty else share, delay_s))
    return planned
