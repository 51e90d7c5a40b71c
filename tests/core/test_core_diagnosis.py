"""Each disorder is named from its figures, with its remedy; a healthy model is left in peace."""

import math
from typing import Any

import pytest
import torch
from core_models import CONV, MLP, autoencoder, categorical, hierarchical, iwae, vae, vqvae

from vae_core.config import CategoricalConfig, IWAEConfig, ModelConfig, RampConfig, VQVAE2Config
from vae_core.metrics.diagnosis import Sharpness, diagnose, laplacian_variance

# What a VAE of 50 dimensions on MNIST comes to, and a VQ-VAE.
HEALTHY = {
    "neg_elbo_nats": 100.0, "distortion_nats": 75.0, "rate_nats": 25.0, "active_units": 20, "mse": 0.012,
    "marginal_mismatch_nats": 0.4, "mutual_information_nats": 9.2, "mutual_information_limit_nats": math.log(10_000),
    "aggregate_kl_nats": 15.8, "amortisation_gap_nats": 0.8, "few_effective_samples_fraction": 0.02,
    "sharpness_ratio": 0.8, "nll_nats": 96.0,
}  # fmt: skip
QUANTIZED = {"codebook_used_fraction": 0.98, "codebook_perplexity": 300.0, "mse": 0.004, "sharpness_ratio": 0.8}
MODEL = vae(latent_dim=50)
CODES = vqvae(num_codes=512)


def names(config: ModelConfig = MODEL, healthy: dict[str, Any] = HEALTHY, **changed: float) -> list[str]:
    return [finding.name for finding in diagnose({**healthy, **changed}, config)]


@pytest.mark.parametrize(
    "config",
    [
        MODEL,
        IWAEConfig(kind="iwae", latent_dim=50, network=MLP),
        CategoricalConfig(kind="categorical", variables=20, categories=10, network=MLP),
    ],
)
def test_a_healthy_model_has_no_findings(config: ModelConfig) -> None:
    assert names(config) == []


@pytest.mark.parametrize("config", [CODES, VQVAE2Config(kind="vqvae2", num_codes=512, code_dim=8, network=CONV)])
def test_a_healthy_codebook_has_no_findings(config: ModelConfig) -> None:
    assert names(config, QUANTIZED) == []


def test_what_is_not_known_is_not_judged() -> None:
    assert diagnose({}, MODEL) == []
    assert diagnose({}, CODES) == []


@pytest.mark.parametrize(
    ("changed", "expected"),
    [
        ({"rate_nats": 0.01, "active_units": 0}, "collapsed_posterior"),
        ({"rate_nats": 8.0, "active_units": 3}, "few_active_units"),
        ({"marginal_mismatch_nats": 30.0}, "under_regularised"),
        ({"rate_nats": 4.0, "mutual_information_nats": 1.0, "aggregate_kl_nats": 3.0}, "under_regularised"),
        ({"sharpness_ratio": 0.2}, "blurred"),
        ({"amortisation_gap_nats": 6.0}, "amortisation_gap"),
        ({"few_effective_samples_fraction": 0.6}, "unreliable_likelihood"),
        ({"neg_elbo_nats": math.nan}, "not_finite"),
    ],
)
def test_each_disorder_is_the_one_finding(changed: dict[str, float], expected: str) -> None:
    assert names(**changed) == [expected]


@pytest.mark.parametrize(
    ("changed", "expected"),
    [
        ({"codebook_used_fraction": 0.1, "codebook_perplexity": 20.0}, "dead_codes"),
        ({"codebook_perplexity": 9.0}, "uneven_codes"),
        ({"sharpness_ratio": 0.3}, "blurred"),
    ],
)
def test_each_disorder_of_a_codebook_is_the_one_finding(changed: dict[str, float], expected: str) -> None:
    assert names(CODES, QUANTIZED, **changed) == [expected]


def test_an_aggregate_that_many_more_rows_would_fill_is_no_finding() -> None:
    """The information has reached log(rows): what is left of the rate is not the prior's."""
    assert names(aggregate_kl_nats=15.8, mutual_information_nats=9.2) == []


@pytest.mark.parametrize("beta", [4.0, RampConfig(kind="linear", start=0.0, end=4.0, until=0.5)])
def test_beta_above_one_at_the_end_is_blamed_for_dimensions_that_are_switched_off(beta: Any) -> None:
    assert names(vae(latent_dim=50, beta=beta), active_units=10) == ["over_regularised"]
    assert names(vae(latent_dim=50, beta=beta), active_units=40) == []


def test_a_ramp_that_ends_at_one_is_not_blamed() -> None:
    ramp = RampConfig(kind="linear", start=5.0, end=1.0, until=0.5)
    assert names(vae(latent_dim=50, beta=ramp), active_units=20) == []


@pytest.mark.parametrize(("sigma", "found"), [(1.0, True), (0.11, False), (0.01, True), ("learned", False)])
def test_a_fixed_sigma_far_from_the_error_is_found(sigma: Any, found: bool) -> None:
    config = vae(latent_dim=50, likelihood="gaussian", sigma=sigma)
    assert names(config) == ["sigma_mismatch"] * found


def test_a_sigma_that_is_not_used_is_not_judged() -> None:
    assert names(vae(latent_dim=50, likelihood="bernoulli", sigma=10.0)) == []


def test_the_remedy_fits_the_codebook() -> None:
    figures = {**QUANTIZED, "codebook_used_fraction": 0.1}
    (moving,) = diagnose(figures, CODES)
    (fixed,) = diagnose(figures, vqvae(num_codes=27, codebook="fsq"))
    assert "restart_below" in moving.remedy
    assert "restart_below" not in fixed.remedy
    assert str(moving).startswith("Only 10% of the 512 codes occur. Lower num_codes")


@pytest.mark.parametrize(
    "config", [vae(latent_dim=50), iwae(latent_dim=50), categorical(), hierarchical(), autoencoder()]
)
@pytest.mark.parametrize(
    "changed", [{"rate_nats": 0.0}, {"active_units": 1}, {"marginal_mismatch_nats": 30.0}, {"sharpness_ratio": 0.1}]
)
def test_a_remedy_names_only_what_the_family_has(config: ModelConfig, changed: dict[str, float]) -> None:
    for finding in diagnose({**HEALTHY, **changed}, config):
        for field in ("beta", "free_bits", "latent_dim"):
            assert field not in finding.remedy or hasattr(config, field), finding


# Sharpness


def test_the_laplacian_is_the_sum_of_the_neighbours_less_four_times_the_pixel() -> None:
    image = torch.rand(2, 3, 5, 6)
    inner = (
        image[:, :, :-2, 1:-1] + image[:, :, 2:, 1:-1] + image[:, :, 1:-1, :-2] + image[:, :, 1:-1, 2:]
        - 4 * image[:, :, 1:-1, 1:-1]
    )  # fmt: skip
    torch.testing.assert_close(laplacian_variance(image), inner.flatten(1).var(1, correction=0))


def test_of_a_signal_it_is_the_second_difference() -> None:
    signal = torch.rand(2, 1, 1, 20)
    second = signal.diff(n=2).flatten(1)
    torch.testing.assert_close(laplacian_variance(signal), second.var(1, correction=0))


def test_a_ramp_of_light_has_no_detail() -> None:
    ramp = torch.arange(8.0).expand(1, 1, 8, 8)
    torch.testing.assert_close(laplacian_variance(ramp), torch.zeros(1), rtol=0, atol=1e-6)


def test_blur_lowers_the_ratio_and_equal_images_have_one() -> None:
    images = torch.rand(10, 1, 12, 12)
    blurred = torch.nn.functional.avg_pool2d(images, 3, stride=1, padding=1)
    same, soft = Sharpness(), Sharpness()
    same.add(images, images, torch.ones(10))
    soft.add(images, blurred, torch.ones(10))
    assert same.compute() == {"sharpness_ratio": 1.0}
    assert soft.compute()["sharpness_ratio"] < 0.2


def test_the_ratio_is_of_sums_over_rows_without_padding() -> None:
    images, made = torch.rand(6, 1, 8, 8), torch.rand(6, 1, 8, 8)
    weight = torch.ones(6)
    weight[0], weight[5], made[5] = 2, 0, math.nan
    whole, pieces, twice = Sharpness(), Sharpness(), [0, 0, 1, 2, 3, 4]
    whole.add(images[twice], made[twice], torch.ones(6))
    for rows in (slice(0, 2), slice(2, 6)):
        pieces.add(images[rows], made[rows], weight[rows])
    assert whole.compute() == pytest.approx(pieces.compute())


def test_images_without_detail_have_no_ratio() -> None:
    flat = Sharpness()
    flat.add(torch.ones(2, 1, 8, 8), torch.rand(2, 1, 8, 8), torch.ones(2))
    assert flat.compute() == {}
