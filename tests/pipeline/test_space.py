"""What a sweep tries: distinct combinations within the space, the same for the same seed, however many are drawn."""

import itertools
import math
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from pipeline.train.config import TrainConfig
from pipeline.tune.config import Range
from pipeline.tune.space import current, draw, listed, value_at
from vae_core.config import MLPConfig, OneCycleConfig, VAEConfig

SPACE = {"beta": (0.5, 1.0, 2.0), "latent_dim": (2, 4, 8, 16), "network.activation": ("relu", "tanh")}
MODEL = VAEConfig(kind="vae", latent_dim=4, network=MLPConfig(kind="mlp", hidden=(8,)))
TRAIN = TrainConfig(seed=0, epochs=2, global_batch_size=8, max_grad_norm=1.0, window_shards=1,
                    learning_rate=OneCycleConfig(kind="one_cycle", peak=0.002))  # fmt: skip

lists = st.lists(st.integers(0, 9), min_size=1, max_size=5, unique=True).map(tuple)
words = st.lists(st.sampled_from(["relu", "tanh", "silu"]), min_size=1, max_size=3, unique=True).map(tuple)
whole = st.builds(
    lambda low, width, step: Range(low=low, high=low + width, step=step),
    st.integers(-5, 5), st.integers(1, 20), st.none() | st.integers(1, 4))  # fmt: skip
real = st.builds(
    lambda low, width, log: Range(low=low, high=low * (1 + width), log=log),
    st.floats(1e-5, 10), st.floats(0.01, 100), st.booleans())  # fmt: skip
stepped = st.builds(
    lambda low, step, count: Range(low=low, high=low + step * count, step=step),
    st.floats(-5, 5), st.floats(0.1, 1), st.integers(1, 6))  # fmt: skip
whole_log = st.builds(
    lambda low, width: Range(low=low, high=low + width, log=True), st.integers(1, 9), st.integers(1, 99)
)
countable = st.dictionaries(st.sampled_from("abcd"), lists | words | whole | stepped, max_size=3)
spaces = st.dictionaries(st.sampled_from("abcd"), lists | words | whole | real | stepped | whole_log, max_size=4)
kinds = st.sampled_from(["random", "sobol"])
seeds = st.integers(0, 2**32)


def within(values: Any, value: Any) -> bool:
    if not isinstance(values, Range):
        return value in values
    if isinstance(value, int) is not values.integer:
        return False
    every = values.values
    return values.low <= value <= values.high and (
        every is None or any(math.isclose(value, e, rel_tol=1e-9, abs_tol=1e-9) for e in every)
    )


@given(spaces, kinds, st.integers(0, 40), seeds)
def test_draws_are_distinct_and_within_the_space(space: Any, kind: Any, count: int, seed: int) -> None:
    drawn = draw(space, kind, count=count, seed=seed)
    assert all(list(combination) == list(space) for combination in drawn)
    assert all(within(space[key], value) for combination in drawn for key, value in combination.items())
    assert len({tuple(combination.values()) for combination in drawn}) == len(drawn) <= count


@given(spaces, kinds, st.integers(0, 20), st.integers(0, 20), seeds)
def test_more_trials_begin_with_the_same_ones(space: Any, kind: Any, count: int, more: int, seed: int) -> None:
    few, many = (draw(space, kind, count=n, seed=seed) for n in (count, count + more))
    assert many[: len(few)] == few


@given(countable, st.integers(0, 40), st.integers(0, 20))
def test_a_grid_has_every_combination_once_in_order(space: Any, count: int, more: int) -> None:
    few, many = (draw(space, "grid", count=n, seed=0) for n in (count, count + more))
    every = [listed(values) for values in space.values()]
    expected = [dict(zip(space, row, strict=True)) for row in itertools.product(*every)] if space else []
    assert few == expected[:count]
    assert many[: len(few)] == few


@settings(max_examples=50)
@given(countable, kinds, seeds)
def test_all_there_is_can_be_drawn(space: Any, kind: Any, seed: int) -> None:
    every = math.prod(len(listed(values)) for values in space.values()) if space else 0
    drawn = draw(space, kind, count=every + 5, seed=seed)
    assert len(drawn) == every if kind == "random" else len(drawn) <= every


def test_steps_are_drawn_without_the_dust_of_adding_them_up() -> None:
    drawn = draw({"beta": Range(low=0.1, high=0.7, step=0.1)}, "grid", count=9, seed=0)
    assert [each["beta"] for each in drawn] == [0.1, 0.2, 0.3, 0.4, 0.5, 0.6, 0.7]


@pytest.mark.parametrize("kind", ["random", "sobol"])
def test_draws_depend_on_the_seed(kind: Any) -> None:
    space = {**SPACE, "train.learning_rate.peak": Range(low=1e-4, high=1e-2, log=True)}
    drawn = [draw(space, kind, count=6, seed=seed) for seed in (0, 0, 1)]
    assert drawn[0] == drawn[1] != drawn[2]


def test_a_large_space_of_lists_is_not_listed() -> None:
    space = {name: tuple(range(100)) for name in "abcdefgh"}
    drawn = draw(space, "random", count=10, seed=0)
    assert len({tuple(each.values()) for each in drawn}) == 10


def test_an_empty_space_has_nothing_to_draw() -> None:
    assert [draw({}, kind, count=5, seed=0) for kind in ("grid", "random", "sobol")] == [[], [], []]


def test_sobol_points_cover_a_range_more_evenly_than_random_ones() -> None:
    space = {"a": Range(low=0.0, high=1.0), "b": Range(low=0.0, high=1.0)}
    for seed in range(5):
        cells = {kind: len({(int(8 * c["a"]), int(8 * c["b"])) for c in draw(space, kind, count=64, seed=seed)})
                 for kind in ("sobol", "random")}  # fmt: skip
        assert cells["sobol"] > 60 > cells["random"]


def test_a_logarithmic_range_is_drawn_evenly_in_its_logarithm() -> None:
    drawn = draw({"a": Range(low=1e-4, high=1e-2, log=True)}, "random", count=400, seed=0)
    assert 0.45 < sum(each["a"] < 1e-3 for each in drawn) / 400 < 0.55


@given(whole | real | stepped | whole_log, st.floats(0, 1, exclude_max=True), st.floats(0, 1, exclude_max=True))
def test_places_rise_with_values(values: Range, one: float, other: float) -> None:
    low, high = sorted((one, other))
    assert value_at(values, low) <= value_at(values, high)  # type: ignore[operator]


def test_the_ends_of_an_integer_range_are_as_likely_as_the_others() -> None:
    found = [value_at(Range(low=1, high=4), (i + 0.5) / 400) for i in range(400)]
    assert [found.count(value) for value in (1, 2, 3, 4)] == [100] * 4


def test_the_baseline_has_values_for_the_swept_keys_of_model_and_training() -> None:
    space = {**SPACE, "train.learning_rate.peak": (0.1,), "train.global_batch_size": (1, 2)}
    assert current(MODEL, TRAIN, space) == {
        "beta": 1.0, "latent_dim": 4, "network.activation": "relu", "train.learning_rate.peak": 0.002,
        "train.global_batch_size": 8}  # fmt: skip
