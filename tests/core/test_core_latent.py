"""What the rate is spent on: closed forms of a linear-Gaussian model, identities, any batches and padding."""

import math
from itertools import pairwise

import numpy as np
import pytest
import torch
from core_models import noise_for
from hypothesis import given, settings
from hypothesis import strategies as st
from linear_gaussian import linear_vae, pixels
from torch import Tensor, distributions

from vae_core.metrics.latent import (
    ActiveUnits,
    AggregateFigures,
    AggregatePosterior,
    MarginalMoments,
    RateDistortionPoint,
    RatePerDimension,
    log_mixture,
)
from vae_core.noise import Noise
from vae_core.normal import DiagonalNormal, kl, kl_each


def posteriors(rows: int, dim: int = 3, seed: int = 0) -> DiagonalNormal:
    generator = torch.Generator().manual_seed(seed)
    return DiagonalNormal(
        torch.randn(rows, dim, generator=generator), 0.5 * torch.randn(rows, dim, generator=generator)
    )


def some(q: DiagonalNormal, rows: Tensor | slice) -> DiagonalNormal:
    return DiagonalNormal(q.mean[rows], q.log_var[rows])


def aggregate(q: DiagonalNormal, limit: int = 10_000, *, prior: DiagonalNormal | None = None) -> AggregateFigures:
    rows, dim = q.mean.shape
    whole = AggregatePosterior(dim, limit)
    whole.add(q, prior, torch.ones(rows), noise_for(rows))
    return whole.compute()


# Rate of each dimension


def test_rates_are_means_over_the_rows_of_any_batches_without_padding() -> None:
    q, prior = posteriors(20), posteriors(20, seed=1)
    weight = torch.ones(20)
    weight[[3, 19]] = 0
    q.mean[3], q.log_var[19] = math.nan, math.inf
    rates = RatePerDimension(3)
    for start, stop in pairwise((0, 1, 8, 20)):
        rows = slice(start, stop)
        rates.add(some(q, rows), some(prior, rows), weight[rows])
    torch.testing.assert_close(rates.compute(), kl_each(q, prior).double()[weight > 0].mean(0))
    assert torch.equal(rates.compute(), rates.compute())


def test_rates_of_the_dimensions_sum_to_the_rate() -> None:
    q = posteriors(50)
    rates = RatePerDimension(3)
    rates.add(q, None, torch.ones(50))
    torch.testing.assert_close(rates.compute().sum(), kl(q).double().mean())


# Moments of the aggregate posterior


def test_a_standard_normal_aggregate_has_no_mismatch() -> None:
    mean = torch.randn(200_000, 2, generator=torch.Generator().manual_seed(0)) * 0.6
    mismatch = MarginalMoments(2)
    mismatch.add(DiagonalNormal(mean, torch.full_like(mean, math.log(1 - 0.36))), torch.ones(len(mean)))
    assert mismatch.each().abs().max() < 1e-4


def test_the_mismatch_is_the_kl_of_the_moments_without_padding() -> None:
    q = posteriors(30)
    weight = torch.ones(30)
    weight[4] = 0
    q.log_var[4] = math.nan
    mismatch = MarginalMoments(3)
    for rows in (slice(0, 7), slice(7, 30)):
        mismatch.add(some(q, rows), weight[rows])
    mean, variance = q.mean[weight > 0].double(), q.log_var[weight > 0].double().exp()
    moments = distributions.Normal(mean.mean(0), (variance.mean(0) + mean.var(0, correction=0)).sqrt())
    expected = distributions.kl_divergence(moments, distributions.Normal(torch.zeros(3).double(), 1.0))
    torch.testing.assert_close(mismatch.each(), expected)
    assert mismatch.compute() == {"marginal_mismatch_nats": pytest.approx(expected.sum().item())}


# Aggregate posterior


def test_the_mixture_is_the_mean_of_the_densities() -> None:
    q, z = posteriors(40), torch.randn(7, 3, generator=torch.Generator().manual_seed(2)).double()
    normal = distributions.Normal(q.mean.double(), (0.5 * q.log_var.double()).exp())
    expected = normal.log_prob(z[:, None]).sum(2).logsumexp(1) - math.log(40)
    torch.testing.assert_close(log_mixture(z, q), expected)


def test_the_mixture_keeps_its_digits_for_narrow_posteriors_far_away() -> None:
    q = DiagonalNormal(torch.tensor([[1000.0], [1000.5]]).double(), torch.full((2, 1), -12.0).double())
    found = log_mixture(torch.tensor([[1000.001]]).double(), q)
    expected = distributions.Normal(1000.0, math.exp(-6)).log_prob(torch.tensor([1000.001]).double()) - math.log(2)
    torch.testing.assert_close(found, expected.double(), rtol=1e-5, atol=1e-5)


@settings(max_examples=25)
@given(st.integers(1, 30), st.integers(1, 4), st.integers(1, 40), st.integers(0, 2**31))
def test_information_and_aggregate_kl_sum_to_the_rate(rows: int, dim: int, limit: int, seed: int) -> None:
    found = aggregate(posteriors(rows, dim, seed), limit)
    assert found.mutual_information + found.aggregate_kl == pytest.approx(found.rate, abs=1e-9)
    assert found.rows == min(rows, limit)
    assert found.mutual_information <= math.log(found.rows) + 1e-9


def test_the_rate_of_the_draws_is_the_analytic_one_on_average() -> None:
    q = posteriors(4000)
    assert aggregate(q).rate == pytest.approx(kl(q).mean().item(), abs=0.06)


def test_a_linear_gaussian_model_has_its_closed_forms() -> None:
    """q(z | x) = N(x, s^2) of x ~ N(0, t^2): I(x; z) = log(1 + t^2 / s^2) / 2, and q(z) = N(0, s^2 + t^2)."""
    s, t = 0.8, 1.5
    mean = t * torch.randn(4000, 1, generator=torch.Generator().manual_seed(0))
    found = aggregate(DiagonalNormal(mean, torch.full_like(mean, 2 * math.log(s))))
    assert found.mutual_information == pytest.approx(0.5 * math.log(1 + (t / s) ** 2), abs=0.04)
    variance = s**2 + t**2
    assert found.aggregate_kl == pytest.approx(0.5 * (variance - 1 - math.log(variance)), abs=0.05)
    assert 0 < found.standard_error < 0.03


def test_the_exact_posterior_of_the_models_own_data_aggregates_to_the_prior() -> None:
    model = linear_vae()
    z = torch.randn(4000, 2, generator=torch.Generator().manual_seed(1))
    noise = 0.6 * torch.randn(4000, 4, generator=torch.Generator().manual_seed(2))
    x = model.decode(z, None).mean + noise.view(-1, 1, 2, 2)
    assert abs(aggregate(model.encode(x.detach(), None)).aggregate_kl) < 0.04


def test_a_posterior_that_is_the_prior_tells_nothing() -> None:
    found = aggregate(DiagonalNormal(torch.zeros(500, 4), torch.zeros(500, 4)))
    assert found.mutual_information == pytest.approx(0.0, abs=1e-9)
    assert found.aggregate_kl == pytest.approx(0.0, abs=1e-6)


def test_posteriors_far_apart_tell_the_rows_apart() -> None:
    mean = 100 * torch.arange(64.0)[:, None]
    found = aggregate(DiagonalNormal(mean, torch.zeros(64, 1)))
    assert found.mutual_information == pytest.approx(math.log(64), abs=1e-6)
    assert found.figures()["mutual_information_limit_nats"] == pytest.approx(math.log(64))


def test_the_rows_kept_do_not_depend_on_batches_or_padding() -> None:
    q, noise = posteriors(60), noise_for(60)
    whole, pieces = AggregatePosterior(3, 25), AggregatePosterior(3, 25)
    whole.add(q, None, torch.ones(60), noise)
    for start, stop in pairwise((0, 10, 11, 60)):
        rows = torch.arange(start, stop)
        padded = torch.cat((rows, torch.tensor([0])))
        at = Noise(seed=0, scope="test", step=0, position=padded, rows=60)
        known = some(q, padded)
        known.mean[-1] = math.nan
        weight = torch.ones(len(padded))
        weight[-1] = 0
        pieces.add(known, None, weight, at)
        assert len(pieces.kept) <= 25
    assert whole.compute() == pieces.compute()


def test_the_rows_kept_are_spread_over_the_split() -> None:
    """And not its first, which may all be of one class."""
    whole = AggregatePosterior(1, 100)
    for step in range(10):
        q = DiagonalNormal(torch.full((100, 1), float(step)), torch.zeros(100, 1))
        whole.add(q, None, torch.ones(100), noise_for(100, step=step))
    assert sorted(whole.kept[:, 1].unique().tolist()) == list(range(10))


def test_a_learned_prior_takes_the_place_of_the_standard_one() -> None:
    q = posteriors(2000)
    found = aggregate(q, prior=q)
    assert found.rate == pytest.approx(0.0, abs=1e-6)


def test_nothing_has_no_aggregate() -> None:
    with pytest.raises(ValueError, match="no rows"):
        AggregatePosterior(2).compute()


# Active units and rate-distortion


def test_padding_that_is_not_finite_does_not_poison_the_active_units() -> None:
    units = ActiveUnits(2)
    units.add(torch.tensor([[0.0, 1.0], [0.0, 2.0], [math.nan, math.inf]]), torch.tensor([1.0, 1.0, 0.0]))
    np.testing.assert_allclose(units.variances().numpy(), [0.0, 0.25])


def test_a_rate_distortion_point_is_read_from_the_figures() -> None:
    point = RateDistortionPoint.of({"rate_nats": 25.0, "distortion_nats": 75.0, "mse": 0.1})
    assert point.neg_elbo_nats == 100.0
    assert point.dominates(RateDistortionPoint(25.0, 76.0))
    assert not point.dominates(point)
    assert not point.dominates(RateDistortionPoint(24.0, 80.0))


def test_a_linear_model_with_a_better_posterior_has_a_lower_sum() -> None:
    x = pixels(100)
    good, bad = (kl(linear_vae(shift=shift).encode(x, None)).mean().item() for shift in (0.0, 1.0))
    assert good < bad
