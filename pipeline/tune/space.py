"""What a sweep tries: distinct combinations of the listed values, drawn by seed."""

import math
from collections.abc import Mapping, Sequence

import numpy as np

from pipeline.config import Scalar
from vae_core.config import ModelConfig, to_dict

Overrides = dict[str, Scalar]


def draw(space: Mapping[str, Sequence[Scalar]], *, count: int, seed: int, known: Overrides) -> list[Overrides]:
    """Up to `count` distinct combinations, other than `known`, in an order that depends on `seed` alone."""
    sizes = [len(values) for values in space.values()]
    total = math.prod(sizes) if sizes else 0
    if total == 0:
        return []
    generator = np.random.Generator(np.random.Philox(key=seed))
    picks = generator.choice(total, size=min(total, count + 1), replace=False)
    combinations = [_combination(space, int(pick)) for pick in picks]
    return [combination for combination in combinations if combination != known][:count]


def current(model: ModelConfig, space: Mapping[str, Sequence[Scalar]]) -> Overrides:
    """The values that the swept keys have in `model`."""
    return {key: _get(to_dict(model), key) for key in space}


def _combination(space: Mapping[str, Sequence[Scalar]], index: int) -> Overrides:
    chosen: Overrides = {}
    for key, values in space.items():
        index, place = divmod(index, len(values))
        chosen[key] = values[place]
    return chosen


def _get(values: Mapping[str, object], key: str) -> Scalar:
    node: object = values
    for part in key.split("."):
        assert isinstance(node, Mapping)  # checked when params.yaml was read
        node = node[part]
    assert isinstance(node, int | float | str)
    return node
