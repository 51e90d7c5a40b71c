"""Metrics: sums and counts, so that uneven batches and padding do not bias them."""

import json
import math
import weakref
from itertools import pairwise

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp
from numpy.typing import NDArray

from vae_core.metrics.codebook import CodebookUsage
from vae_core.metrics.latent import ActiveUnits
from vae_core.metrics.means import Means

Values = NDArray[np.float32]
values_and_weights = st.integers(1, 30).flatmap(
    lambda rows: st.tuples(
        hnp.arrays(np.float32, rows, elements=st.floats(-1e4, 1e4, width=32)),
        hnp.arrays(np.float32, rows, elements=st.sampled_from([0.0, 0.25, 1.0, 2.0])),
        st.lists(st.integers(1, rows), max_size=4),
    )
)


def batches(cuts: list[int], *arrays: Values) -> list[tuple[torch.Tensor, ...]]:
    """The arrays cut into uneven batches."""
    edges = sorted({0, *cuts, len(arrays[0])})
    return [tuple(torch.from_numpy(array[start:stop].copy()) for array in arrays) for start, stop in pairwise(edges)]


@settings(max_examples=60)
@given(values_and_weights)
def test_means_are_weighted_means_for_uneven_batches_and_padding(rows: tuple[Values, Values, list[int]]) -> None:
    values, weight, cuts = rows
    means = Means()
    for value, w in batches(cuts, values, weight):
        means.add({"a_nats": value, "b_nats": 3 * value + 1}, w)
    if weight.sum() == 0:
        return
    expected = np.average(values.astype(np.float64), weights=weight.astype(np.float64))
    found = means.compute()
    assert found["a_nats"] == pytest.approx(expected, rel=1e-9, abs=1e-9)
    assert found["b_nats"] == pytest.approx(3 * expected + 1, rel=1e-5, abs=1e-2)


def test_means_count_rows_and_not_batches() -> None:
    means = Means()
    means.add({"x": torch.zeros(3)}, torch.ones(3))
    means.add({"x": torch.ones(1)}, torch.ones(1))
    assert means.compute() == {"x": 0.25}


@pytest.mark.parametrize("shape", [(), (1,), (4, 1), (3,), (4, 4)])
def test_means_refuse_what_is_not_one_number_a_sample(shape: tuple[int, ...]) -> None:
    with pytest.raises(ValueError, match=r"loss: expected one number a sample \(4,\), got"):
        Means().add({"loss": torch.zeros(shape)}, torch.ones(4))


@pytest.mark.parametrize("bad", [math.nan, math.inf, -math.inf])
def test_what_stands_in_a_padding_row_does_not_poison_a_mean(bad: float) -> None:
    means = Means()
    means.add({"x": torch.tensor([1.0, 3.0, bad])}, torch.tensor([1.0, 1.0, 0.0]))
    assert means.compute() == {"x": 2.0}


def test_what_is_not_finite_in_a_row_of_the_data_shows() -> None:
    means = Means()
    means.add({"x": torch.tensor([1.0, math.nan])}, torch.ones(2))
    assert math.isnan(means.compute()["x"])


def test_means_are_summed_in_float64() -> None:
    means = Means()
    means.add({"x": torch.full((1,), 2.0**24)}, torch.ones(1))
    for _ in range(4):
        means.add({"x": torch.ones(1)}, torch.ones(1))
    assert means.compute()["x"] == (2.0**24 + 4) / 5


def test_weights_are_summed_in_float64() -> None:
    means = Means()
    for weight in (2.0**24, 1.0, 1.0):
        means.add({"x": torch.ones(1)}, torch.tensor([weight]))
    assert means.state_dict() == {"weight": 2.0**24 + 2, "x": 2.0**24 + 2}


def test_means_of_nothing_are_empty() -> None:
    assert Means().compute() == {}
    assert Means().state_dict() == {}


def test_means_hold_no_graph() -> None:
    means, figure = Means(), torch.ones(2, requires_grad=True) * 2
    held = weakref.ref(figure)
    means.add({"x": figure}, torch.ones(2))
    del figure
    assert held() is None


@settings(max_examples=40)
@given(values_and_weights, st.integers(0, 4))
def test_means_go_on_exactly_from_their_state_as_text(rows: tuple[Values, Values, list[int]], stop: int) -> None:
    values, weight, cuts = rows
    straight, resumed = Means(), Means()
    for number, (value, w) in enumerate(batches(cuts, values, weight)):
        if number == stop:
            state = json.loads(json.dumps(resumed.state_dict()))
            resumed = Means()
            resumed.load_state_dict(state)
        for means in (straight, resumed):
            means.add({"x": value, "y": value.square()}, w)
    assert resumed.state_dict() == straight.state_dict()


def test_the_state_of_means_is_a_copy() -> None:
    means = Means()
    means.add({"x": torch.ones(2)}, torch.ones(2))
    state = means.state_dict()
    assert state == {"weight": 2.0, "x": 2.0}
    assert means.compute() == means.compute() == {"x": 1.0}
    means.add({"x": torch.ones(2)}, torch.ones(2))
    assert state == {"weight": 2.0, "x": 2.0}


def test_loading_an_empty_state_forgets_everything() -> None:
    means = Means()
    means.add({"x": torch.ones(2)}, torch.ones(2))
    means.load_state_dict({})
    assert means.compute() == {}


# ActiveUnits


@settings(max_examples=40)
@given(st.integers(2, 40), st.integers(1, 6), st.integers(0, 2**31), st.floats(-50, 50))
def test_latent_variances_equal_numpy_for_any_batches_and_padding(rows: int, dim: int, seed: int, at: float) -> None:
    rng = np.random.default_rng(seed)
    means = (at + rng.normal(size=(rows, dim)) * rng.uniform(0, 2, dim)).astype(np.float32)
    weight = rng.integers(0, 2, rows).astype(np.float32)
    weight[0] = 1
    units = ActiveUnits(dim)
    for mean, w in batches(rng.integers(1, rows, 3).tolist(), means, weight):
        units.add(mean, w)
    expected = means[weight == 1].astype(np.float64).var(0)
    np.testing.assert_allclose(units.variances().numpy(), expected, rtol=1e-6, atol=1e-9)
    assert units.compute() == (units.variances().numpy() > 0.01).sum()


def test_a_unit_is_active_above_the_threshold() -> None:
    means = torch.tensor([-1.0, 1.0])[:, None] * torch.tensor([0.0, 0.09, 0.11, 1.0])  # variances: the squares
    units = ActiveUnits(4)
    units.add(means, torch.ones(2))
    assert units.compute() == 2
    strict = ActiveUnits(4, threshold=0.5)
    strict.add(means, torch.ones(2))
    assert strict.compute() == 1


def test_a_unit_that_is_constant_far_from_zero_is_not_active() -> None:
    units = ActiveUnits(2)
    for _ in range(50):
        units.add(torch.full((100, 2), 1000.1), torch.ones(100))
    assert units.compute() == 0


# CodebookUsage


@settings(max_examples=40)
@given(st.integers(2, 30), st.integers(1, 20), st.integers(1, 4), st.integers(0, 2**31))
def test_codebook_usage_equals_numpy_for_any_batches_and_padding(
    num_codes: int, rows: int, side: int, seed: int
) -> None:
    rng = np.random.default_rng(seed)
    codes = rng.integers(0, rng.integers(1, num_codes + 1), (rows, side, side))
    weight = rng.integers(0, 2, rows).astype(np.float32)
    weight[-1] = 1
    usage = CodebookUsage(num_codes)
    for batch, w in batches(rng.integers(1, rows + 1, 3).tolist(), codes, weight):
        usage.add(batch, w)
    counts = np.bincount(codes[weight == 1].ravel(), minlength=num_codes)
    share = counts[counts > 0] / counts.sum()
    found = usage.compute()
    assert found["codebook_used_fraction"] == pytest.approx((counts > 0).mean())
    assert found["codebook_perplexity"] == pytest.approx(np.exp(-(share * np.log(share)).sum()))


def test_perplexity_runs_from_one_code_to_all_of_them() -> None:
    one, every = CodebookUsage(16), CodebookUsage(16)
    one.add(torch.full((3, 2, 2), 5), torch.ones(3))
    every.add(torch.arange(16).view(4, 2, 2), torch.ones(4))
    assert one.compute() == {"codebook_used_fraction": 1 / 16, "codebook_perplexity": pytest.approx(1.0)}
    assert every.compute() == {"codebook_used_fraction": 1.0, "codebook_perplexity": pytest.approx(16.0)}


def test_usage_is_that_of_the_split_and_not_the_mean_over_batches() -> None:
    usage = CodebookUsage(4)
    for code in range(4):
        usage.add(torch.full((2, 3, 3), code), torch.ones(2))
    assert usage.compute()["codebook_perplexity"] == pytest.approx(4.0)


def test_each_level_has_its_own_usage_and_the_worst_is_the_headline() -> None:
    usage = CodebookUsage(8, levels=2)
    usage.add((torch.arange(4).view(4, 1, 1), torch.arange(8).repeat(2).view(4, 2, 2)), torch.ones(4))
    assert usage.compute() == {
        "codebook_used_fraction": 0.5,
        "codebook_perplexity": pytest.approx(4.0),
        "codebook_level0_used_fraction": 0.5,
        "codebook_level0_perplexity": pytest.approx(4.0),
        "codebook_level1_used_fraction": 1.0,
        "codebook_level1_perplexity": pytest.approx(8.0),
    }


def test_codes_of_padding_do_not_count_whatever_they_are() -> None:
    usage = CodebookUsage(4)
    usage.add((torch.tensor([[[1]], [[-7]], [[99]]]),), torch.tensor([1.0, 0.0, 0.0]))
    assert usage.compute() == {"codebook_used_fraction": 0.25, "codebook_perplexity": pytest.approx(1.0)}


def test_codes_of_another_number_of_levels_are_refused() -> None:
    with pytest.raises(ValueError, match="codes: expected 2 levels, got 1"):
        CodebookUsage(4, levels=2).add(torch.zeros(1, 2, 2, dtype=torch.int64), torch.ones(1))


def test_asking_twice_gives_the_same() -> None:
    usage, units = CodebookUsage(4), ActiveUnits(2)
    usage.add(torch.tensor([[[0, 1]]]), torch.ones(1))
    units.add(torch.tensor([[0.0, 1.0], [0.0, 2.0]]), torch.ones(2))
    assert usage.compute() == usage.compute()
    assert units.compute() == units.compute() == 1
