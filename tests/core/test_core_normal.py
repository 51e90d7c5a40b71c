"""Diagonal normals: densities and divergences equal torch.distributions, in float32 whatever they are given."""

import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, distributions

from vae_core.normal import DiagonalNormal, kl, kl_each, standard_log_prob

shapes = st.lists(st.integers(1, 5), min_size=2, max_size=4).map(tuple)
seeds = st.integers(0, 2**31)


def normal(shape: tuple[int, ...], seed: int) -> DiagonalNormal:
    generator = torch.Generator().manual_seed(seed)
    return DiagonalNormal(
        2 * torch.randn(shape, generator=generator), 1.5 * torch.randn(shape, generator=generator).clamp(-3, 3)
    )


def reference(q: DiagonalNormal) -> distributions.Normal:
    return distributions.Normal(q.mean.double(), (0.5 * q.log_var.double()).exp())


def standard(like: Tensor) -> DiagonalNormal:
    return DiagonalNormal(torch.zeros_like(like), torch.zeros_like(like))


@settings(max_examples=30)
@given(shapes, seeds)
def test_kl_equals_torch_distributions(shape: tuple[int, ...], seed: int) -> None:
    q, p = normal(shape, seed), normal(shape, seed + 1)
    for prior, other in ((None, standard(q.mean)), (p, p)):
        expected = distributions.kl_divergence(reference(q), reference(other))
        torch.testing.assert_close(kl_each(q, prior).double(), expected, rtol=1e-5, atol=1e-6)
        torch.testing.assert_close(kl(q, prior).double(), expected.flatten(1).sum(1), rtol=1e-5, atol=1e-5)


@settings(max_examples=30)
@given(shapes, seeds, st.integers(1, 4))
def test_log_densities_equal_torch_distributions(shape: tuple[int, ...], seed: int, draws: int) -> None:
    q = normal(shape, seed)
    z = q.draw(torch.randn(draws, *shape, generator=torch.Generator().manual_seed(seed)))
    expected = reference(q).log_prob(z.double())
    torch.testing.assert_close(q.log_prob_each(z).double(), expected, rtol=1e-5, atol=1e-5)
    torch.testing.assert_close(q.log_prob(z).double(), expected.sum(-1), rtol=1e-5, atol=1e-5)
    of_standard = reference(standard(q.mean)).log_prob(z.double()).sum(-1)
    torch.testing.assert_close(standard_log_prob(z).double(), of_standard, rtol=1e-5, atol=1e-5)


def test_figures_are_exact_where_float32_can_be() -> None:
    q = DiagonalNormal(torch.tensor([[1.0, -2.0]]), torch.tensor([[0.0, math.log(4)]]))
    p = DiagonalNormal(torch.tensor([[0.0, -1.0]]), torch.tensor([[math.log(2), 0.0]]))
    assert kl_each(q).tolist()[0] == pytest.approx([0.5, 0.5 * (4 + 4 - 1 - math.log(4))], rel=1e-6)
    expected = [0.5 * (1 / 2 + 1 / 2 - 1 + math.log(2)), 0.5 * (1 + 4 - 1 - math.log(4))]
    assert kl_each(q, p).tolist()[0] == pytest.approx(expected, rel=1e-6)
    at_mean = -0.5 * (2 * math.log(2 * math.pi) + math.log(4))
    assert q.log_prob(q.mean).item() == pytest.approx(at_mean, rel=1e-6)
    assert standard_log_prob(torch.tensor([3.0, 4.0])).item() == pytest.approx(-12.5 - math.log(2 * math.pi), rel=1e-6)


@pytest.mark.parametrize("learned", [False, True])
def test_kl_lies_within_a_monte_carlo_bound(learned: bool) -> None:
    q, p = normal((1, 3), 4), normal((1, 3), 5)
    draws = q.draw(torch.randn(200_000, 1, 3, generator=torch.Generator().manual_seed(0)))
    log_p = p.log_prob(draws) if learned else standard_log_prob(draws)
    ratio = (q.log_prob(draws) - log_p).double()
    error = ratio.std() / math.sqrt(len(ratio))
    assert abs(ratio.mean() - kl(q, p if learned else None)[0]) < 5 * error


@settings(max_examples=30)
@given(seeds)
def test_kl_is_never_negative_and_nothing_at_the_prior(seed: int) -> None:
    q, p = normal((8, 5), seed), normal((8, 5), seed + 1)
    assert kl(q).min() > 0
    assert kl(q, p).min() > 0
    assert kl(q, q).tolist() == [0.0] * 8
    assert kl(standard(q.mean)).tolist() == [0.0] * 8


def test_a_learned_prior_that_is_standard_changes_nothing() -> None:
    q = normal((8, 5), 3)
    torch.testing.assert_close(kl(q, standard(q.mean)), kl(q))


def test_kl_is_a_sum_over_dimensions_of_each_sample_alone() -> None:
    q = normal((4, 3), 7)
    twice = DiagonalNormal(torch.cat((q.mean, q.mean), 1), torch.cat((q.log_var, q.log_var), 1))
    torch.testing.assert_close(kl(twice), 2 * kl(q))
    torch.testing.assert_close(kl(q)[2:3], kl(DiagonalNormal(q.mean[2:3], q.log_var[2:3])))


def test_kl_and_densities_are_float32_for_half_precision() -> None:
    q = normal((4, 3), 8)
    half = DiagonalNormal(q.mean.bfloat16(), q.log_var.bfloat16())
    exact = DiagonalNormal(half.mean.float(), half.log_var.float())
    torch.testing.assert_close(kl(half), kl(exact))
    torch.testing.assert_close(kl(exact, half), kl(exact, exact))
    assert standard_log_prob(half.mean).dtype == torch.float32
    z = q.mean.bfloat16()
    torch.testing.assert_close(q.log_prob(z), q.log_prob(z.float()))


def test_value_and_gradient_of_kl_are_finite_over_the_range_of_log_variances() -> None:
    mean, log_var = torch.full((2, 1), 1e3).requires_grad_(), torch.tensor([[-20.0], [20.0]], requires_grad=True)
    rate = kl(DiagonalNormal(mean, log_var))
    rate.sum().backward()
    for tensor in (rate, mean.grad, log_var.grad):
        assert tensor is not None
        assert torch.isfinite(tensor).all()


MISMATCHED = [((2, 3), (2, 4)), ((2, 3), (1, 3)), ((2, 3), (3,)), ((2, 3), (2, 3, 1))]


@pytest.mark.parametrize(("mean", "log_var"), MISMATCHED)
def test_kl_refuses_shapes_that_differ(mean: tuple[int, ...], log_var: tuple[int, ...]) -> None:
    """Which torch would broadcast silently."""
    fits, other = DiagonalNormal(torch.zeros(mean), torch.zeros(mean)), torch.zeros(log_var)
    for q, p in (
        (DiagonalNormal(fits.mean, other), None),
        (fits, DiagonalNormal(other, other)),
        (fits, DiagonalNormal(fits.mean, other)),
    ):
        with pytest.raises(ValueError, match=r"expected the shape of the mean \(2, 3\), got"):
            kl(q, p)


def test_draws_have_the_moments_of_the_normal() -> None:
    q = DiagonalNormal(torch.tensor([[1.0, -2.0]]), torch.tensor([[0.0, math.log(9)]]))
    z = q.draw(torch.randn(100_000, 1, 2, generator=torch.Generator().manual_seed(1)))[:, 0]
    assert z.mean(0).tolist() == pytest.approx([1, -2], abs=0.05)
    assert z.std(0).tolist() == pytest.approx([1, 3], rel=0.02)


def test_a_detached_normal_is_the_same_and_passes_no_gradient() -> None:
    q = DiagonalNormal(torch.zeros(1, 2, requires_grad=True), torch.ones(1, 2, requires_grad=True))
    cut = q.detach()
    assert torch.equal(cut.mean, q.mean)
    assert torch.equal(cut.log_var, q.log_var)
    assert not cut.log_prob(torch.zeros(1, 2)).requires_grad
