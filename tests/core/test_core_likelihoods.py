"""Likelihoods: equal to torch.distributions, proper (they sum to one), finite at extreme inputs, additive."""

import itertools
import math

import pytest
import torch
from core_models import noise_for
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, distributions

from vae_core.config import Likelihood, ModelBase
from vae_core.likelihoods import (
    OF_LIKELIHOOD,
    Bernoulli,
    ContinuousBernoulli,
    DiscretisedLogistic,
    Gaussian,
    PixelHead,
    observe,
)
from vae_core.numerics import smooth_bound

SHAPES = st.tuples(st.integers(1, 4), st.integers(1, 3), st.integers(1, 5), st.integers(1, 5))
LOGITS = [-500.0, -60.0, -3.0, -1.0, -0.99, -0.2, -1e-2, -1e-4, 0.0, 1e-6, 1e-3, 0.5, 0.99, 1.0, 1.01, 2.5, 30.0, 500.0]
HEADS = [
    ModelBase(likelihood="bernoulli"),
    ModelBase(likelihood="continuous_bernoulli"),
    ModelBase(likelihood="gaussian", sigma=0.1),
    ModelBase(likelihood="gaussian", sigma="learned"),
    ModelBase(likelihood="gaussian", sigma="per_pixel"),
    ModelBase(likelihood="discretised_logistic"),
]
quick = settings(max_examples=30)
heads = pytest.mark.parametrize("config", HEADS, ids=lambda config: f"{config.likelihood}-{config.sigma}")


def draw(shape: tuple[int, ...], seed: int, scale: float = 3.0) -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(seed)
    return scale * torch.randn(shape, generator=generator), torch.rand(shape, generator=generator)


def observed(likelihood: Likelihood, shape: tuple[int, ...], seed: int = 0) -> Tensor:
    """Pixels that the likelihood allows, the extremes among them."""
    _, uniform = draw(shape, seed)
    return (uniform > 0.5).float() if likelihood == "bernoulli" else (uniform * 255).round() / 255


def raw_for(head: PixelHead, rows: int = 3, seed: int = 0, size: tuple[int, int] = (4, 4)) -> Tensor:
    return draw((rows, head.raw_channels, *size), seed)[0]


def uniform_grid(count: int) -> Tensor:
    return ((torch.arange(count) + 0.5) / count).view(-1, 1, 1, 1)


def pixel(value: float, count: int = 1) -> Tensor:
    return torch.full((count, 1, 1, 1), value)


@quick
@given(SHAPES, st.integers(0, 2**31))
def test_bernoulli_nll_equals_torch_distributions(shape: tuple[int, ...], seed: int) -> None:
    logits, uniform = draw(shape, seed)
    x = (uniform > 0.5).float()
    expected = -distributions.Bernoulli(logits=logits.double()).log_prob(x.double()).flatten(1).sum(1)
    torch.testing.assert_close(Bernoulli(logits).nll(x).double(), expected, rtol=1e-6, atol=1e-6)


@quick
@given(SHAPES, st.integers(0, 2**31))
def test_continuous_bernoulli_nll_equals_torch_distributions(shape: tuple[int, ...], seed: int) -> None:
    logits, x = draw(shape, seed)
    reference = distributions.ContinuousBernoulli(logits=logits.double())
    expected = -reference.log_prob(x.double()).flatten(1).sum(1)
    found = ContinuousBernoulli(logits)
    torch.testing.assert_close(found.nll(x).double(), expected, rtol=2e-6, atol=1e-5)
    torch.testing.assert_close(found.mean.double(), reference.mean, rtol=2e-6, atol=2e-7)


@pytest.mark.parametrize("logit", LOGITS)
@pytest.mark.parametrize("x", [0.0, 0.3, 1.0])
def test_continuous_bernoulli_normaliser_and_its_gradient_are_exact_everywhere(logit: float, x: float) -> None:
    logits = torch.tensor(logit).view(1, 1, 1, 1).requires_grad_()
    nll = ContinuousBernoulli(logits).nll(pixel(x))
    nll.sum().backward()
    size = abs(float(torch.tensor(logit)))
    normaliser = size / 2 + math.log(-math.expm1(-size) / size) if size > 1e-2 else size**2 / 24
    mean = -1 / math.expm1(-size) - 1 / size if size > 1e-2 else 0.5 + size / 12
    mean = mean if logit > 0 else 1 - mean
    assert nll.item() == pytest.approx(logit * (0.5 - x) + normaliser, rel=1e-6, abs=1e-7)
    assert logits.grad is not None
    assert logits.grad.item() == pytest.approx(mean - x, rel=1e-5, abs=1e-6)
    assert ContinuousBernoulli(logits.detach()).mean.item() == pytest.approx(mean, rel=1e-6, abs=1e-7)


@quick
@given(SHAPES, st.integers(0, 2**31), st.floats(-4, 2))
def test_gaussian_nll_equals_torch_distributions(shape: tuple[int, ...], seed: int, log_sigma: float) -> None:
    mean, x = draw(shape, seed, scale=1.0)
    sigma = torch.tensor(log_sigma).double().exp()
    expected = -distributions.Normal(mean.double(), sigma).log_prob(x.double()).flatten(1).sum(1)
    found = Gaussian(mean, torch.tensor(log_sigma)).nll(x)
    torch.testing.assert_close(found.double(), expected, rtol=2e-6, atol=1e-4)


@quick
@given(st.integers(0, 2**31), st.floats(-1, 2), st.floats(-7, 3))
def test_discretised_logistic_nll_equals_differences_of_its_distribution(
    seed: int, location: float, log_scale: float
) -> None:
    x = observed("discretised_logistic", (1, 1, 1, 50), seed)
    found = DiscretisedLogistic(torch.full_like(x, location), torch.full_like(x, log_scale))
    level, scale = x.double() * 255, torch.tensor(log_scale).double().exp() * 255
    at = torch.tensor(location).double() * 255
    upper, lower = ((level + e - at) / scale for e in (0.5, -0.5))
    mass = upper.sigmoid() - torch.where(level < 0.5, 0.0, lower.sigmoid())
    mass = torch.where(level > 254.5, (-lower).sigmoid(), mass)
    held = mass > 1e-9  # below, the plain difference is rounding
    each = torch.stack(
        [
            DiscretisedLogistic(*at).nll(v)
            for v, *at in zip(*(t.view(-1, 1, 1, 1, 1) for t in (x, found.location, found.log_scale)), strict=True)
        ]
    ).view_as(x)
    torch.testing.assert_close(each[held].double(), -mass.log()[held], rtol=1e-4, atol=1e-5)
    assert torch.isfinite(each).all()


def test_bernoulli_probabilities_of_all_binary_images_sum_to_one() -> None:
    logits, _ = draw((1, 1, 2, 3), seed=1)
    images = torch.tensor(list(itertools.product((0.0, 1.0), repeat=6))).view(-1, 1, 2, 3)
    total = torch.exp(-Bernoulli(logits.expand(64, -1, -1, -1)).nll(images).double()).sum()
    assert total.item() == pytest.approx(1.0, abs=1e-6)


@pytest.mark.parametrize("logit", [-40.0, -2.0, 0.0, 1e-3, 0.7, 5.0])
def test_continuous_bernoulli_density_of_a_pixel_integrates_to_one(logit: float) -> None:
    grid = torch.linspace(0, 1, 20_001)
    density = torch.exp(-ContinuousBernoulli(pixel(logit, len(grid))).nll(grid.view(-1, 1, 1, 1)).double())
    assert torch.trapezoid(density, grid.double()).item() == pytest.approx(1.0, abs=1e-5)


@pytest.mark.parametrize("log_sigma", [-5.5, -1.0, 0.5])
def test_gaussian_density_of_a_pixel_integrates_to_one(log_sigma: float) -> None:
    grid = torch.linspace(-12, 13, 60_001)
    density = torch.exp(-Gaussian(pixel(0.3, len(grid)), torch.tensor(log_sigma)).nll(grid.view(-1, 1, 1, 1)).double())
    assert torch.trapezoid(density, grid.double()).item() == pytest.approx(1.0, abs=1e-4)


@quick
@given(st.floats(-3, 4), st.floats(-7, 6))
def test_discretised_logistic_probabilities_of_the_256_levels_sum_to_one(location: float, log_scale: float) -> None:
    levels = (torch.arange(256) / 255).view(-1, 1, 1, 1)
    nll = DiscretisedLogistic(pixel(location, 256), pixel(log_scale, 256)).nll(levels)
    assert torch.exp(-nll.double()).sum().item() == pytest.approx(1.0, abs=2e-5)


@heads
@pytest.mark.parametrize("value", [-1e6, -500.0, 500.0, 1e6])
def test_nll_and_gradient_are_finite_at_extreme_outputs(config: ModelBase, value: float) -> None:
    head = PixelHead(config, 1)
    for x in (0.0, 1.0):
        raw = torch.full((2, head.raw_channels, 2, 2), value, requires_grad=True)
        pixels = head(raw)
        nll = pixels.nll(torch.full((2, 1, 2, 2), x))
        nll.sum().backward()
        assert raw.grad is not None
        for tensor in (nll, raw.grad, pixels.mean, pixels.draw(torch.rand(2, 1, 2, 2))):
            assert torch.isfinite(tensor).all()


@pytest.mark.parametrize("logit", [-500.0, 500.0])
@pytest.mark.parametrize("x", [0.0, 1.0])
def test_bernoulli_is_exact_at_extreme_logits(logit: float, x: float) -> None:
    logits = torch.full((2, 1, 2, 2), logit, requires_grad=True)
    nll = Bernoulli(logits).nll(torch.full((2, 1, 2, 2), x))
    nll.sum().backward()
    wrong = (logit > 0) != (x == 1)
    assert nll.tolist() == [4 * 500.0 * wrong] * 2
    assert logits.grad is not None
    assert logits.grad.flatten().tolist() == [math.copysign(1.0, logit) * wrong] * 8


@pytest.mark.parametrize("start", [-500.0, -50.0, 500.0])
def test_a_sigma_or_scale_that_strayed_far_is_finite_and_comes_back(start: float) -> None:
    learned = PixelHead(ModelBase(likelihood="gaussian"), 1)
    torch.nn.init.constant_(learned.log_sigma, start)
    perfect = torch.full((1, 1, 2, 2), 0.5 if start < 0 else 0.0)
    nll = learned(torch.full((1, 1, 2, 2), 0.3)).nll(perfect)
    nll.sum().backward()
    assert torch.isfinite(nll).all()
    assert learned.log_sigma.grad is not None
    assert learned.log_sigma.grad.item() * start > 0  # descent leads back to the middle
    for config in (HEADS[4], HEADS[5]):
        raw = torch.full((1, 2, 2, 2), start, requires_grad=True)
        PixelHead(config, 1)(raw).nll(torch.full((1, 1, 2, 2), 0.5)).sum().backward()
        assert raw.grad is not None
        assert (raw.grad[:, 1] != 0).all()


def test_a_perfect_reconstruction_cannot_drive_sigma_or_scale_to_zero() -> None:
    x = torch.full((1, 1, 2, 2), 0.5)
    for config in (HEADS[3], HEADS[4]):
        head = PixelHead(config, 1)
        if config.sigma == "learned":
            torch.nn.init.constant_(head.log_sigma, -1e9)
        raw = torch.cat((torch.zeros(1, 1, 2, 2), torch.full((1, head.raw_channels - 1, 2, 2), -1e9)), dim=1)
        assert head(raw).nll(x).item() == pytest.approx(4 * (-6 + 0.5 * math.log(2 * math.pi)), abs=1e-4)
    scale = PixelHead(HEADS[5], 1)(torch.full((1, 2, 1, 1), -1e9)).log_scale
    assert scale.item() == pytest.approx(-7, abs=1e-5)


def test_a_fixed_sigma_is_exact_and_no_parameter() -> None:
    head = PixelHead(ModelBase(likelihood="gaussian", sigma=1e-4), 1)
    assert head(torch.zeros(1, 1, 1, 1)).log_sigma.item() == pytest.approx(math.log(1e-4))
    assert list(head.parameters()) == []
    assert head.state_dict() == {}


@heads
def test_only_a_learned_sigma_is_a_parameter_and_raw_channels_fit_the_head(config: ModelBase) -> None:
    head = PixelHead(config, 3)
    two = config.sigma == "per_pixel" or config.likelihood == "discretised_logistic"
    assert [name for name, _ in head.named_parameters()] == (
        ["log_sigma"] if (config.likelihood, config.sigma) == ("gaussian", "learned") else []
    )
    assert head.raw_channels == (6 if two else 3)
    pixels = head(raw_for(head))
    assert pixels.mean.shape == (3, 3, 4, 4)
    assert pixels.is_density == (config.likelihood in ("gaussian", "continuous_bernoulli"))
    assert type(pixels) is OF_LIKELIHOOD[config.likelihood]


@heads
def test_nll_is_the_sum_over_pixels_so_a_doubled_image_costs_double(config: ModelBase) -> None:
    head = PixelHead(config, 2)
    raw, x = raw_for(head), observed(config.likelihood, (3, 2, 4, 4))
    once = head(raw).nll(x)
    twice = head(torch.cat((raw, raw), dim=3)).nll(torch.cat((x, x), dim=3))
    parts = head(raw[:, :, :1]).nll(x[:, :, :1]) + head(raw[:, :, 1:]).nll(x[:, :, 1:])
    torch.testing.assert_close(twice, 2 * once)
    torch.testing.assert_close(parts, once)
    assert once.shape == (3,)


@heads
def test_rows_do_not_see_one_another(config: ModelBase) -> None:
    head = PixelHead(config, 1)
    raw, x = raw_for(head, rows=4), observed(config.likelihood, (4, 1, 4, 4))
    torch.testing.assert_close(head(raw).nll(x)[2:3], head(raw[2:3]).nll(x[2:3]))


@heads
def test_several_draws_of_all_rows_meet_their_own_image_which_is_not_copied(config: ModelBase) -> None:
    head = PixelHead(config, 2)
    pixels, x = head(raw_for(head, rows=6)), observed(config.likelihood, (2, 2, 4, 4))
    assert torch.equal(pixels.nll(x), pixels.nll(x.repeat(3, 1, 1, 1)))
    with pytest.raises(RuntimeError):  # no number of draws of four rows makes six
        pixels.nll(x.repeat(2, 1, 1, 1))


@heads
def test_nll_and_its_gradient_are_float32_whatever_the_decoder_computed_in(config: ModelBase) -> None:
    head = PixelHead(config, 1)
    raw, x = raw_for(head), observed(config.likelihood, (3, 1, 4, 4))
    narrow = raw.to(torch.bfloat16)
    with torch.autocast("cpu", torch.bfloat16):
        found = head(narrow).nll(x)
    assert found.dtype == torch.float32
    if config.likelihood != "gaussian":  # its mean is a bfloat16 sigmoid
        assert torch.equal(found, head(narrow.float()).nll(x))
    torch.testing.assert_close(found, head(narrow.float()).nll(x), rtol=1e-2, atol=1e-2)


@heads
def test_draws_have_the_mean_that_is_stated(config: ModelBase) -> None:
    head, count = PixelHead(config, 1), 20_000
    raw = torch.tensor([-4.0, -0.7, 0.0, 1e-4, 0.4, 3.0]).view(1, 1, 1, -1)
    raw = torch.cat((raw, raw.flip(3) - 2), dim=1)[:, : head.raw_channels]
    pixels = head(raw.expand(count, -1, -1, -1))
    draws = pixels.draw(uniform_grid(count).expand(count, 1, 1, 6))
    assert draws.dtype == torch.float32
    half_a_level = 0.5 / 255 if config.likelihood == "discretised_logistic" else 0.0
    torch.testing.assert_close(draws.mean(0), pixels.mean[0], rtol=0, atol=2e-3 + half_a_level)
    extremes = pixels.draw(torch.zeros(count, 1, 1, 6)), pixels.draw(torch.full((count, 1, 1, 6), 1 - 2**-24))
    assert all(torch.isfinite(tensor).all() for tensor in extremes)


@pytest.mark.parametrize("logit", [-30.0, -1.0, 1e-4, 0.6, 20.0])
def test_continuous_bernoulli_draws_invert_its_distribution_function(logit: float) -> None:
    uniform = uniform_grid(50)
    found = ContinuousBernoulli(pixel(logit, 50)).draw(uniform).double()
    reference = distributions.ContinuousBernoulli(logits=torch.tensor(logit).double())
    torch.testing.assert_close(found, reference.icdf(uniform.double()), rtol=1e-4, atol=1e-5)


def test_discretised_logistic_draws_each_level_with_its_probability() -> None:
    pixels = DiscretisedLogistic(pixel(0.02, 100_000), pixel(-4.0, 100_000))
    levels = (pixels.draw(uniform_grid(100_000)) * 255).round().long().flatten()
    found = torch.bincount(levels, minlength=256) / len(levels)
    every = (torch.arange(256) / 255).view(-1, 1, 1, 1)
    expected = torch.exp(-DiscretisedLogistic(pixel(0.02, 256), pixel(-4.0, 256)).nll(every))
    torch.testing.assert_close(found, expected, rtol=0, atol=5e-5)


def test_gaussian_density_may_exceed_one() -> None:
    x = torch.full((1, 1, 4, 4), 0.5)
    assert Gaussian(x, torch.tensor(-5.0)).nll(x).item() == pytest.approx(16 * (-5 + 0.5 * math.log(2 * math.pi)))


@heads
def test_means_are_intensities(config: ModelBase) -> None:
    head = PixelHead(config, 1)
    mean = head(100 * raw_for(head)).mean
    assert mean.min() >= 0
    assert mean.max() <= 1


def test_the_mean_of_a_continuous_bernoulli_is_not_the_sigmoid_of_its_logit() -> None:
    raw = torch.tensor([2.0]).view(1, 1, 1, 1)
    assert PixelHead(HEADS[1], 1)(raw).mean.item() == pytest.approx(1 / (1 - math.exp(-2)) - 0.5)
    assert PixelHead(HEADS[0], 1)(raw).mean.item() == pytest.approx(torch.sigmoid(raw).item())


@pytest.mark.parametrize("likelihood", ["gaussian", "continuous_bernoulli", "discretised_logistic"])
def test_grey_likelihoods_observe_intensities_and_draw_nothing(likelihood: Likelihood) -> None:
    images = torch.arange(256, dtype=torch.uint8).view(2, 1, 8, 16)
    found = observe(images, likelihood, noise_for(2))
    assert torch.equal(found, observe(images, likelihood, noise_for(2, step=9)))
    assert found.flatten().tolist() == pytest.approx([i / 255 for i in range(256)])


def test_bernoulli_observes_binary_pixels_whose_mean_is_the_intensity() -> None:
    images = torch.tensor([0, 51, 128, 204, 255], dtype=torch.uint8).view(1, 1, 1, 5).repeat(20_000, 1, 1, 1)
    found = observe(images, "bernoulli", noise_for(20_000))
    assert found.dtype == torch.float32
    assert set(found.unique().tolist()) == {0.0, 1.0}
    assert found.mean((0, 1, 2)).tolist() == pytest.approx([0, 51 / 255, 128 / 255, 204 / 255, 1], abs=0.02)


def test_black_and_white_pixels_are_never_flipped() -> None:
    """Of 16 bits each value comes up about 15 times here."""
    images = torch.tensor([0, 255], dtype=torch.uint8).expand(1, 1, 500_000, 2)
    found = observe(images, "bernoulli", noise_for(1))
    assert found.unique(dim=2).flatten().tolist() == [0.0, 1.0]


def test_every_level_is_a_probability() -> None:
    images = torch.arange(256, dtype=torch.uint8).expand(1, 1, 20_000, 256)
    share = observe(images, "bernoulli", noise_for(1)).mean(2).flatten()
    p = torch.arange(256) / 255
    assert ((share - p).abs() <= 5 * (p * (1 - p) / 20_000).sqrt()).all()


def test_binarisation_is_anew_at_each_step_and_the_same_when_a_step_is_repeated() -> None:
    images = torch.full((4, 1, 8, 8), 128, dtype=torch.uint8)
    first = observe(images, "bernoulli", noise_for(4, step=1))
    assert torch.equal(first, observe(images, "bernoulli", noise_for(4, step=1)))
    assert not torch.equal(first, observe(images, "bernoulli", noise_for(4, step=2)))


@given(st.floats(-10, 10, width=32))
def test_the_smooth_bound_is_the_identity_in_the_middle(value: float) -> None:
    assert smooth_bound(torch.tensor(value)).item() == value


@given(st.floats(-1e9, 1e9, width=32))
def test_the_smooth_bound_holds_rises_and_has_a_gradient_everywhere(value: float) -> None:
    x = torch.tensor(value, requires_grad=True)
    bounded = smooth_bound(x)
    bounded.backward()
    assert x.grad is not None
    assert -20 <= bounded.item() <= 20
    assert torch.isfinite(bounded.exp())
    assert 0 < x.grad.item() <= 1


def test_the_smooth_bound_has_no_corner() -> None:
    x = torch.linspace(-60, 60, 12_001, requires_grad=True)
    smooth_bound(x).sum().backward()
    assert x.grad is not None
    assert x.grad.diff().abs().max() < 2.1e-3  # 2 / span a unit, times the distance of the points
    assert smooth_bound(x.detach().to(torch.bfloat16)).dtype == torch.float32
