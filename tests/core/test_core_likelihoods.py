"""Likelihoods: equal to torch.distributions, proper (they sum to one), finite at extreme inputs, additive."""

import itertools
import math
from typing import cast

import pytest
import torch
from core_models import noise_for
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, distributions

from vae_core.likelihoods import Bernoulli, Gaussian, PixelHead, observe
from vae_core.noise import Noise

SHAPES = st.tuples(st.integers(1, 4), st.integers(1, 3), st.integers(1, 5), st.integers(1, 5))


def draw(shape: tuple[int, ...], seed: int, scale: float = 3.0) -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(seed)
    return scale * torch.randn(shape, generator=generator), torch.rand(shape, generator=generator)


@settings(deadline=None, max_examples=30)
@given(SHAPES, st.integers(0, 2**31))
def test_bernoulli_nll_equals_torch_distributions(shape: tuple[int, ...], seed: int) -> None:
    logits, uniform = draw(shape, seed)
    x = (uniform > 0.5).float()
    expected = -distributions.Bernoulli(logits=logits.double()).log_prob(x.double()).flatten(1).sum(1)
    torch.testing.assert_close(Bernoulli(logits).nll(x).double(), expected, rtol=1e-5, atol=1e-5)


@settings(deadline=None, max_examples=30)
@given(SHAPES, st.integers(0, 2**31), st.floats(-4, 2))
def test_gaussian_nll_equals_torch_distributions(shape: tuple[int, ...], seed: int, log_sigma: float) -> None:
    mean, x = draw(shape, seed, scale=1.0)
    normal = distributions.Normal(mean.double(), math.exp(log_sigma))
    expected = -normal.log_prob(x.double()).flatten(1).sum(1)
    found = Gaussian(mean, torch.tensor(log_sigma)).nll(x)
    torch.testing.assert_close(found.double(), expected, rtol=2e-5, atol=1e-4)


def test_bernoulli_probabilities_of_all_binary_images_sum_to_one() -> None:
    logits, _ = draw((1, 1, 2, 3), seed=1)
    images = torch.tensor(list(itertools.product((0.0, 1.0), repeat=6))).view(-1, 1, 2, 3)
    total = torch.exp(-Bernoulli(logits.expand(64, -1, -1, -1)).nll(images).double()).sum()
    assert total.item() == pytest.approx(1.0, abs=1e-6)


def test_gaussian_density_of_a_pixel_integrates_to_one() -> None:
    grid = torch.linspace(-4, 5, 9001)
    mean = torch.full((9001, 1, 1, 1), 0.3)
    density = torch.exp(-Gaussian(mean, torch.tensor(-1.0)).nll(grid.view(-1, 1, 1, 1)).double())
    assert torch.trapezoid(density, grid.double()).item() == pytest.approx(1.0, abs=1e-5)


@pytest.mark.parametrize("logit", [-500.0, 500.0])
@pytest.mark.parametrize("pixel", [0.0, 1.0])
def test_bernoulli_is_exact_with_a_finite_gradient_at_extreme_logits(logit: float, pixel: float) -> None:
    logits = torch.full((2, 1, 2, 2), logit, requires_grad=True)
    nll = Bernoulli(logits).nll(torch.full((2, 1, 2, 2), pixel))
    nll.sum().backward()
    wrong = (logit > 0) != (pixel == 1)
    assert nll.tolist() == [4 * 500.0 * wrong] * 2
    assert logits.grad is not None
    assert logits.grad.flatten().tolist() == [math.copysign(1.0, logit) * wrong] * 8


@pytest.mark.parametrize("raw", [-500.0, 500.0])
def test_gaussian_head_is_finite_with_a_finite_gradient_at_extreme_outputs(raw: float) -> None:
    head, decoded = PixelHead("gaussian"), torch.full((2, 1, 2, 2), raw, requires_grad=True)
    nll = head(decoded).nll(torch.full((2, 1, 2, 2), 0.5))
    nll.sum().backward()
    assert decoded.grad is not None
    assert torch.isfinite(nll).all()
    assert torch.isfinite(decoded.grad).all()
    assert torch.isfinite(head.log_sigma.grad).all()


@pytest.mark.parametrize("kind", ["bernoulli", "gaussian"])
def test_nll_is_the_sum_over_pixels_so_a_doubled_image_costs_double(kind: str) -> None:
    head = PixelHead(kind)
    raw, x = draw((3, 2, 4, 4), seed=5)
    x = (x > 0.5).float()
    once = head(raw).nll(x)
    twice = head(torch.cat((raw, raw), dim=3)).nll(torch.cat((x, x), dim=3))
    parts = head(raw[:, :, :1]).nll(x[:, :, :1]) + head(raw[:, :, 1:]).nll(x[:, :, 1:])
    torch.testing.assert_close(twice, 2 * once)
    torch.testing.assert_close(parts, once)
    assert once.shape == (3,)


def test_gaussian_density_may_exceed_one() -> None:
    x = torch.full((1, 1, 4, 4), 0.5)
    assert Gaussian(x, torch.tensor(-5.0)).nll(x).item() == pytest.approx(16 * (-5 + 0.5 * math.log(2 * math.pi)))


def test_nll_is_float32_whatever_the_decoder_computed_in() -> None:
    raw, x = draw((2, 1, 3, 3), seed=2)
    x = (x > 0.5).float()
    for half in (torch.float16, torch.bfloat16):
        narrow = raw.to(half)
        assert Bernoulli(narrow).nll(x).dtype == torch.float32
        assert Gaussian(narrow, torch.tensor(-1.0, dtype=half)).nll(x).dtype == torch.float32
        torch.testing.assert_close(Bernoulli(narrow).nll(x), Bernoulli(narrow.float()).nll(x))


def test_means_are_intensities() -> None:
    raw, _ = draw((2, 1, 3, 3), seed=3, scale=100.0)
    for kind in ("bernoulli", "gaussian"):
        mean = PixelHead(kind)(raw).mean
        torch.testing.assert_close(mean, torch.sigmoid(raw))
        assert mean.min() >= 0
        assert mean.max() <= 1


def test_only_the_gaussian_head_learns_a_sigma() -> None:
    assert [name for name, _ in PixelHead("gaussian").named_parameters()] == ["log_sigma"]
    assert list(PixelHead("bernoulli").parameters()) == []


def test_gaussian_observes_intensities_and_draws_nothing() -> None:
    images = torch.arange(256, dtype=torch.uint8).view(2, 1, 8, 16)
    found = observe(images, "gaussian", noise_for(2))
    assert torch.equal(found, observe(images, "gaussian", noise_for(2, step=9)))
    assert found.flatten().tolist() == pytest.approx([i / 255 for i in range(256)])


def test_bernoulli_observes_binary_pixels_whose_mean_is_the_intensity() -> None:
    images = torch.tensor([0, 51, 128, 204, 255], dtype=torch.uint8).view(1, 1, 1, 5).repeat(20_000, 1, 1, 1)
    found = observe(images, "bernoulli", noise_for(20_000))
    assert found.dtype == torch.float32
    assert set(found.unique().tolist()) == {0.0, 1.0}
    assert found.mean((0, 1, 2)).tolist() == pytest.approx([0, 51 / 255, 128 / 255, 204 / 255, 1], abs=0.02)


class ConstantNoise:
    def __init__(self, value: float) -> None:
        self.value = value

    def uniform(self, purpose: str, *shape: int) -> Tensor:
        return torch.full((1, *shape), self.value)


@pytest.mark.parametrize("uniform", [0.0, 0.5, 1 - 2**-24])
def test_black_and_white_pixels_are_never_flipped(uniform: float) -> None:
    images = torch.tensor([0, 255], dtype=torch.uint8).view(1, 1, 1, 2)
    found = observe(images, "bernoulli", cast(Noise, ConstantNoise(uniform)))
    assert found.flatten().tolist() == [0.0, 1.0]


def test_binarisation_is_anew_at_each_step_and_the_same_when_a_step_is_repeated() -> None:
    images = torch.full((4, 1, 8, 8), 128, dtype=torch.uint8)
    first = observe(images, "bernoulli", noise_for(4, step=1))
    assert torch.equal(first, observe(images, "bernoulli", noise_for(4, step=1)))
    assert not torch.equal(first, observe(images, "bernoulli", noise_for(4, step=2)))
