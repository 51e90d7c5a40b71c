"""Frechet and kernel distances: closed forms, sums over batches and ranks, and what is refused."""

import math
from itertools import pairwise

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from vae_core.metrics import frechet
from vae_core.metrics.frechet import FeatureMoments, Moments, frechet_distance, kernel_distance, polynomial_mmd


def normal(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed))


def moments(features: Tensor) -> Moments:
    sums = FeatureMoments(features.shape[1])
    sums.add(features, torch.ones(len(features)))
    return sums.compute()


@settings(max_examples=40)
@given(st.integers(2, 40), st.integers(1, 6), st.integers(0, 2**31), st.floats(-50, 50))
def test_moments_equal_numpy_for_any_batches_and_padding(rows: int, dim: int, seed: int, at: float) -> None:
    rng = np.random.default_rng(seed)
    features = (at + rng.normal(size=(rows, dim)) @ rng.normal(size=(dim, dim))).astype(np.float32)
    weight = rng.integers(0, 2, rows).astype(np.float32)
    weight[:2] = 1
    padded = np.where(weight[:, None] > 0, features, np.nan).astype(np.float32)
    sums = FeatureMoments(dim)
    for start, stop in pairwise(sorted({0, *rng.integers(1, rows, 3).tolist(), rows})):
        sums.add(torch.from_numpy(padded[start:stop]), torch.from_numpy(weight[start:stop]))
    kept = features[weight > 0].astype(np.float64)
    found = sums.compute()
    assert found.rows == len(kept)
    np.testing.assert_allclose(found.mean, kept.mean(0), rtol=1e-9, atol=1e-9)
    np.testing.assert_allclose(found.covariance, np.cov(kept, rowvar=False).reshape(dim, dim), rtol=1e-6, atol=1e-8)


def test_moments_over_ranks_are_those_of_the_joined_rows(monkeypatch: pytest.MonkeyPatch) -> None:
    """Covariances averaged over the ranks would lack the part between their means."""
    features = torch.cat((normal(30, 3) + 10, normal(7, 3, seed=1) - 10))
    ranks = FeatureMoments(3), FeatureMoments(3)
    for rank, rows in zip(ranks, features.split((30, 7)), strict=True):
        rank.add(rows, torch.ones(len(rows)))
    sent: list[Tensor] = []
    monkeypatch.setattr(frechet, "all_reduce_sum", lambda tensor: sent.append(tensor) or tensor)
    for rank in ranks:
        rank.compute()
    monkeypatch.setattr(frechet, "all_reduce_sum", lambda tensor: sum(sent, torch.zeros_like(tensor)))
    for rank in ranks:
        found = rank.compute()
        torch.testing.assert_close(found.mean, features.double().mean(0))
        torch.testing.assert_close(found.covariance, torch.cov(features.double().T))


def test_asking_for_the_moments_twice_gives_the_same() -> None:
    sums = FeatureMoments(2)
    sums.add(normal(5, 2), torch.ones(5))
    torch.testing.assert_close(sums.compute().covariance, sums.compute().covariance)


def test_moments_are_summed_in_float64() -> None:
    features = normal(2000, 3).double() * 0.1 + 3000.0
    torch.testing.assert_close(moments(features).covariance, torch.cov(features.T), rtol=1e-4, atol=1e-6)


def test_the_distance_of_normals_on_the_axes_is_that_of_means_and_deviations() -> None:
    one = Moments(torch.tensor([0.0, 1.0]).double(), torch.diag(torch.tensor([4.0, 9.0])).double(), 10)
    other = Moments(torch.tensor([3.0, 1.0]).double(), torch.diag(torch.tensor([1.0, 25.0])).double(), 10)
    assert frechet_distance(one, other) == pytest.approx(9 + (2 - 1) ** 2 + (3 - 5) ** 2)


@settings(max_examples=30)
@given(st.integers(0, 2**31), st.integers(1, 12), st.integers(2, 30))
def test_the_distance_is_a_symmetric_one_even_where_covariances_are_singular(seed: int, dim: int, rows: int) -> None:
    one, other = moments(normal(rows, dim, seed=seed)), moments(normal(rows, dim, seed=seed + 1) * 2 + 1)
    assert frechet_distance(one, one) == pytest.approx(0, abs=1e-5)
    assert frechet_distance(one, other) >= 0
    assert frechet_distance(one, other) == pytest.approx(frechet_distance(other, one), rel=1e-6, abs=1e-5)


def test_a_rotation_of_the_features_changes_no_distance() -> None:
    turn = torch.linalg.qr(normal(6, 6, seed=9).double()).Q
    a, b = normal(50, 6).double() * torch.arange(1, 7), normal(50, 6, seed=1).double()
    turned = frechet_distance(moments(a @ turn), moments(b @ turn))
    assert turned == pytest.approx(frechet_distance(moments(a), moments(b)), rel=1e-9)


def test_what_is_not_finite_in_a_row_of_the_data_shows() -> None:
    features = normal(5, 2)
    features[0, 0] = math.nan
    assert torch.isnan(moments(features).mean[0])


def test_moments_refuse_another_width_and_too_few_rows() -> None:
    sums = FeatureMoments(3)
    with pytest.raises(ValueError, match=r"features: expected \(4, 3\), got \(4, 2\)"):
        sums.add(normal(4, 2), torch.ones(4))
    sums.add(normal(4, 3), torch.tensor([0.0, 1.0, 0.0, 0.0]))
    with pytest.raises(ValueError, match="a covariance needs two rows or more, got 1"):
        sums.compute()


def test_features_of_different_number_are_refused() -> None:
    with pytest.raises(ValueError, match="as many features in both, got 2 and 3"):
        frechet_distance(moments(normal(5, 2)), moments(normal(5, 3)))
    with pytest.raises(ValueError, match=r"features: expected .* got \(5, 2\) and \(5, 3\)"):
        polynomial_mmd(normal(5, 2), normal(5, 3))


def test_the_kernel_distance_equals_the_sums_over_pairs() -> None:
    x, y = normal(6, 3).double(), normal(5, 3, seed=1).double()

    def kernel(a: Tensor, b: Tensor) -> float:
        return float((a @ b / 3 + 1) ** 3)

    within_x = np.mean([kernel(x[i], x[j]) for i in range(6) for j in range(6) if i != j])
    within_y = np.mean([kernel(y[i], y[j]) for i in range(5) for j in range(5) if i != j])
    between = np.mean([kernel(a, b) for a in x for b in y])
    assert float(polynomial_mmd(x, y)) == pytest.approx(within_x + within_y - 2 * between)


def test_the_kernel_distance_is_unbiased_for_one_distribution() -> None:
    drawn = torch.stack([polynomial_mmd(normal(20, 4, seed=2 * s), normal(20, 4, seed=2 * s + 1)) for s in range(400)])
    assert abs(float(drawn.mean())) < 3 * float(drawn.std()) / 400**0.5
    assert (drawn < 0).any()


def test_subsets_depend_on_the_seed_alone() -> None:
    x, y = normal(60, 4), normal(80, 4, seed=1) + 0.5
    torch.manual_seed(5)
    one = kernel_distance(x, y, seed=3, subsets=5, subset_rows=20)
    state = torch.get_rng_state()
    torch.manual_seed(6)
    assert kernel_distance(x, y, seed=3, subsets=5, subset_rows=20) == one
    assert kernel_distance(x, y, seed=4, subsets=5, subset_rows=20) != one
    torch.manual_seed(5)
    assert torch.equal(torch.get_rng_state(), state)


def test_subsets_of_all_rows_have_no_spread() -> None:
    x, y = normal(30, 4), normal(30, 4, seed=1)
    whole = kernel_distance(x, y, seed=0, subsets=3, subset_rows=30)
    assert whole.mean == pytest.approx(float(polynomial_mmd(x, y)))
    assert whole.deviation == pytest.approx(0, abs=1e-9)


def test_a_subset_greater_than_a_side_is_refused() -> None:
    with pytest.raises(ValueError, match="subset_rows: expected 2 to 10, the rows given, got 1000"):
        kernel_distance(normal(10, 2), normal(50, 2), seed=0)
