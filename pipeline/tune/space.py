"""What a sweep tries: distinct combinations, a function of the space, the kind of search and the seed alone.

More combinations of the same space and seed begin with the same ones, so a sweep can be extended.
"""

import itertools
import math
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Literal, TypeAlias

import numpy as np
import torch

from pipeline.train.config import TrainConfig
from pipeline.tune.config import Range, Scalar, Values
from vae_core.config import ModelConfig, to_dict

Overrides: TypeAlias = dict[str, Scalar]
Space: TypeAlias = Mapping[str, Values]

LISTED = 1_000_000  # up to so many combinations are shuffled as a whole, beyond they are drawn one by one
REPEATS = 1000  # draws in a row that bring nothing new, before a space counts as exhausted
DIGITS, LISTED_DIGITS = 6, 12  # significant ones of a drawn number: readable, and the same on every machine


def draw(space: Space, kind: Literal["grid", "random", "sobol"], *, count: int, seed: int) -> list[Overrides]:
    """Up to `count` distinct combinations, fewer where there are no more.

    grid: all of them, the last key changing fastest. random: in an order that depends on `seed`. sobol: points of a
    Sobol sequence scrambled by `seed`, which cover the space evenly.
    """
    if not space or count == 0:
        return []
    if kind == "grid":
        return [dict(zip(space, row, strict=True)) for row in itertools.islice(_grid(space), count)]
    if kind == "sobol":
        return _distinct(space, _sobol(len(space), seed), count)
    lists = [listed(values) for values in space.values()]
    if all(lists) and math.prod(map(len, lists)) <= LISTED:
        return _shuffled(dict(zip(space, lists, strict=True)), seed)[:count]
    return _distinct(space, _uniform(len(space), seed), count)


def current(model: ModelConfig, train: TrainConfig, space: Space) -> Overrides:
    """The values that the swept keys have now."""
    values = {**to_dict(model), "train": to_dict(train)}
    return {key: _get(values, key) for key in space}


def listed(values: Values) -> Sequence[Scalar]:
    """The values that are equally likely; none where they cannot be listed so."""
    if not isinstance(values, Range):
        return values
    return () if values.log else counted(values)


def counted(values: Range) -> Sequence[Scalar]:
    """The numbers of a range with steps, without the dust of adding these up; none of others."""
    return [min(max(neat(value, LISTED_DIGITS), values.low), values.high) for value in values.values or ()]


def value_at(values: Values, place: float) -> Scalar:
    """The value at `place` in [0, 1) of the whole list or range."""
    if every := listed(values):
        return every[int(place * len(every))]
    assert isinstance(values, Range)  # a list is never empty
    low, high = (values.low - 0.5, values.high + 0.5) if values.integer else (values.low, values.high)
    drawn = low * (high / low) ** place if values.log else low + place * (high - low)
    return min(max(neat(round(drawn) if values.integer else drawn), values.low), values.high)


def neat(value: int | float, digits: int = DIGITS) -> int | float:
    """A number as it is written in tables."""
    return value if isinstance(value, int) else float(f"{value:.{digits}g}")


def _grid(space: Space) -> Iterator[tuple[Scalar, ...]]:
    lists: list[Sequence[Scalar]] = []
    for values in space.values():
        every = counted(values) if isinstance(values, Range) else values
        assert every  # checked when params.yaml was read
        lists.append(every)
    return itertools.product(*lists)


def _shuffled(lists: Mapping[str, Sequence[Scalar]], seed: int) -> list[Overrides]:
    """Every combination once; all are shuffled however few are wanted, so that more of them begin alike."""
    order = np.random.Generator(np.random.Philox(key=seed)).permutation(math.prod(map(len, lists.values())))
    return [_combination(lists, int(index)) for index in order]


def _combination(lists: Mapping[str, Sequence[Scalar]], index: int) -> Overrides:
    chosen: Overrides = {}
    for key, values in lists.items():
        index, place = divmod(index, len(values))
        chosen[key] = values[place]
    return chosen


def _distinct(space: Space, points: Iterable[Sequence[float]], count: int) -> list[Overrides]:
    """The first `count` different combinations at `points` of the unit cube."""
    found: dict[tuple[Scalar, ...], Overrides] = {}
    repeats = 0
    for point in points:
        if len(found) == count or repeats == REPEATS:
            break
        values = tuple(value_at(values, place) for values, place in zip(space.values(), point, strict=True))
        repeats = repeats + 1 if values in found else 0
        found.setdefault(values, dict(zip(space, values, strict=True)))
    return list(found.values())


def _uniform(dimensions: int, seed: int) -> Iterator[Sequence[float]]:
    generator = np.random.Generator(np.random.Philox(key=seed))
    while True:
        yield generator.random(dimensions).tolist()


def _sobol(dimensions: int, seed: int) -> Iterator[Sequence[float]]:
    engine = torch.quasirandom.SobolEngine(dimensions, scramble=True, seed=seed)
    while True:
        yield from engine.draw(64, dtype=torch.float64).tolist()


def _get(values: Mapping[str, object], key: str) -> Scalar:
    node: object = values
    for part in key.split("."):
        assert isinstance(node, Mapping)  # checked when params.yaml was read
        node = node[part]
    assert isinstance(node, int | float | str)
    return node
