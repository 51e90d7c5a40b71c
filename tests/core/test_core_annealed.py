"""Annealed importance sampling: the exact likelihood of linear-Gaussian models, whatever the encoder says."""

import math
from itertools import pairwise

import pytest
import torch
from core_models import noise_for
from linear_gaussian import UNUSED, exact_nll, linear_iwae, linear_vae, pixels

from vae_core.config import DataSpec, VAEConfig
from vae_core.metrics.annealed import _anneal, _Target, annealed_importance, sigmoidal_schedule
from vae_core.metrics.likelihood import importance_weighted
from vae_core.models.vae import VAE
from vae_core.noise import Noise


@pytest.mark.parametrize("steps", [1, 2, 17, 100])
def test_the_schedule_rises_from_0_to_1_slowest_at_both_ends(steps: int) -> None:
    powers = sigmoidal_schedule(steps)
    assert (powers[0], powers[-1], len(powers)) == (0.0, 1.0, steps + 1)
    gaps = [b - a for a, b in pairwise(powers)]
    assert min(gaps) > 0
    assert gaps == pytest.approx(gaps[::-1])
    if steps > 2:
        assert gaps[0] == min(gaps)


def test_it_is_within_a_twentieth_of_a_nat_of_the_exact_likelihood() -> None:
    x = pixels(12)
    found = annealed_importance(linear_vae(), x, None, noise=noise_for(12), steps=100, chains=32)
    error = found.log_likelihood + exact_nll(x)
    assert abs(error.mean()) < 0.05
    assert (error.abs() < 5 * found.standard_error + 0.02).all()
    assert found.log_likelihood.dtype == torch.float64


def test_it_does_not_need_the_encoder_where_importance_sampling_fails() -> None:
    x = pixels(8)
    wrong = linear_vae(shift=4.0, widen=-3.0)
    annealed = annealed_importance(wrong, x, None, noise=noise_for(8), steps=100, chains=16)
    weighted = importance_weighted(wrong, x, None, noise=noise_for(8), samples=500)
    assert abs((annealed.log_likelihood + exact_nll(x)).mean()) < 0.1
    assert (weighted.nll - exact_nll(x)).mean() > 5
    assert weighted.effective_samples.mean() < 10


def test_importance_sampling_and_annealing_agree_with_a_fair_encoder() -> None:
    x = pixels(8)
    model = linear_iwae(shift=0.2, widen=0.3)
    annealed = annealed_importance(model, x, None, noise=noise_for(8), steps=100, chains=32)
    weighted = importance_weighted(model, x, None, noise=noise_for(8), samples=4000)
    assert abs((annealed.log_likelihood + weighted.nll).mean()) < 0.05


def test_it_is_a_lower_bound_that_more_steps_tighten() -> None:
    x = pixels(60)
    means = [
        (annealed_importance(linear_vae(), x, None, noise=noise_for(60), steps=steps, chains=2).log_likelihood)
        for steps in (2, 8, 40)
    ]
    gaps = [(-exact_nll(x) - found).mean().item() for found in means]
    assert gaps[0] > gaps[1] > gaps[2] > -0.05


def test_the_weights_are_unbiased_even_with_few_steps() -> None:
    """Where no proposal were refused, they would not be."""
    x = pixels(1, seed=3).expand(3000, -1, -1, -1)
    found = annealed_importance(linear_vae(), x, None, noise=noise_for(3000), steps=6, chains=4)
    ratio = torch.exp(found.log_likelihood + exact_nll(x[:1]))
    assert abs(ratio.mean().item() - 1) < 4 * ratio.std().item() / math.sqrt(3000)
    assert ratio.std() / math.sqrt(3000) < 0.02


def test_the_chains_that_count_keep_the_step_sizes_of_the_pilot() -> None:
    """Step sizes that follow the chains that are weighed would bias the weights, if little."""
    x = pixels(3)
    target, powers = _Target(linear_vae(), x, None, at_once=100), sigmoidal_schedule(12)
    _, found, _ = _anneal(target, noise_for(3), "pilot", powers, 4, torch.full((3,), 0.1))
    assert found.shape == (12, 3)
    assert len(found.unique()) > 3
    _, kept, _ = _anneal(target, noise_for(3), "ais", powers, 4, found)
    assert torch.equal(kept, found)


def test_the_standard_error_is_the_spread_of_the_estimates() -> None:
    x = pixels(1).expand(400, -1, -1, -1)
    found = annealed_importance(linear_vae(), x, None, noise=noise_for(400), steps=30, chains=16)
    assert found.standard_error.mean().item() == pytest.approx(found.log_likelihood.std().item(), rel=0.2)


def test_the_step_size_finds_its_acceptance() -> None:
    found = annealed_importance(linear_vae(), pixels(10), None, noise=noise_for(10), steps=80, chains=8)
    assert 0.4 < found.acceptance.mean() < 0.98


def test_an_image_has_the_same_estimate_in_any_company_and_chunk() -> None:
    x, model = pixels(5), linear_vae()
    whole = annealed_importance(model, x, None, noise=noise_for(5), steps=10, chains=4)
    rows = torch.tensor([3, 1])
    at = Noise(seed=0, scope="test", step=0, position=rows, rows=5)
    some = annealed_importance(model, x[rows], None, noise=at, steps=10, chains=4, chunk=3)
    torch.testing.assert_close(some.log_likelihood, whole.log_likelihood[rows], rtol=1e-4, atol=1e-4)


def test_a_conditional_model_is_annealed_from_its_own_prior() -> None:
    """With the prior of another condition the estimate is another; the model's weights have no gradient after."""
    config = VAEConfig(kind="vae", latent_dim=2, network=UNUSED, condition="label", prior="learned")
    model = VAE(config, DataSpec(channels=1, height=2, width=2, num_classes=2)).eval()
    torch.nn.init.normal_(model.prior_network[-1].weight)  # type: ignore[index, union-attr, arg-type]
    x = pixels(6).round().clamp(0, 1)
    first, second = (
        annealed_importance(model, x, torch.eye(2)[[label] * 6], noise=noise_for(6), steps=40, chains=16)
        for label in (0, 1)
    )
    c = torch.eye(2)[[0] * 6]
    with torch.no_grad():
        z = model.from_prior(torch.randn(5000, 6, 2), c)
        expected = (model.log_joint(x, c, z) - model.log_prior(z, c)).double().logsumexp(0) - math.log(5000)
    assert abs((first.log_likelihood - expected).mean()) < 0.05
    assert (first.log_likelihood != second.log_likelihood).all()
    assert all(p.grad is None for p in model.parameters())


@pytest.mark.parametrize(("steps", "chains"), [(0, 4), (5, 1)])
def test_too_few_steps_or_chains_are_refused(steps: int, chains: int) -> None:
    with pytest.raises(ValueError, match="at least 2 chains and 1 step"):
        annealed_importance(linear_vae(), pixels(2), None, noise=noise_for(2), steps=steps, chains=chains)
