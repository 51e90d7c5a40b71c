"""The importance-weighted likelihood: exact where p(x) is known, an upper bound elsewhere, the same for any chunk."""

import math
from dataclasses import dataclass
from types import SimpleNamespace
from typing import Any, cast

import pytest
import torch
from core_models import EVERY_KIND, digits, digits_model, noise_for, noise_of
from torch import Tensor, distributions

from vae_core.config import VAEConfig
from vae_core.likelihoods import Gaussian, observe
from vae_core.metrics.likelihood import importance_weighted_nll
from vae_core.models.vae import VAE, Posterior
from vae_core.noise import Noise
from vae_core.training import eval_step

SIGMA = 0.6
# Orthogonal columns, so that the exact posterior of the latents has a diagonal covariance.
LOADING = torch.tensor([[1.0, 0.5], [0.5, -1.0], [1.0, 0.5], [-0.5, 1.0]], dtype=torch.float64)
OFFSET = torch.tensor([0.1, -0.2, 0.3, 0.4], dtype=torch.float64)


@dataclass
class LinearGaussian:
    """p(z) = N(0, I), p(x | z) = N(LOADING z + OFFSET, SIGMA^2): its p(x) has a closed form.

    The encoder gives the exact posterior, moved by `shift` and widened by `widen` (in log variance).
    """

    shift: float = 0.0
    widen: float = 0.0

    @property
    def config(self) -> Any:
        return SimpleNamespace(latent_dim=2)

    def encode(self, x: Tensor, labels: Tensor | None = None) -> Posterior:
        precision = 1 + LOADING.square().sum(0) / SIGMA**2
        mean = (x.flatten(1).double() - OFFSET) @ LOADING / SIGMA**2 / precision + self.shift
        return Posterior(mean.float(), (self.widen - precision.log()).float().expand(len(x), 2))

    def decode(self, z: Tensor, labels: Tensor | None = None) -> Gaussian:
        mean = z.double() @ LOADING.T + OFFSET
        return Gaussian(mean.view(-1, 1, 2, 2), torch.tensor(math.log(SIGMA)))

    def exact_nll(self, x: Tensor) -> Tensor:
        marginal = distributions.MultivariateNormal(OFFSET, LOADING @ LOADING.T + SIGMA**2 * torch.eye(4).double())
        return -marginal.log_prob(x.flatten(1).double())

    def exact_negative_elbo(self, x: Tensor) -> Tensor:
        """E_q[-log p(x | z)] + KL(q || p), in closed form."""
        posterior = self.encode(x)
        mean, variance = posterior.mean.double(), posterior.log_var.double().exp()
        error = (x.flatten(1).double() - OFFSET - mean @ LOADING.T).square().sum(1)
        spread = (variance * LOADING.square().sum(0)).sum(1)
        distortion = (error + spread) / (2 * SIGMA**2) + 4 * (math.log(SIGMA) + 0.5 * math.log(2 * math.pi))
        return distortion + 0.5 * (mean.square() + variance - 1 - variance.log()).sum(1)


def pixels(rows: int, seed: int = 0) -> Tensor:
    return torch.randn(rows, 1, 2, 2, generator=torch.Generator().manual_seed(seed))


def estimate(model: LinearGaussian, x: Tensor, samples: int, *, chunk: int = 10, seed: int = 0) -> Tensor:
    noise = noise_for(len(x), seed=seed)
    return importance_weighted_nll(cast(VAE, model), x, None, noise=noise, samples=samples, chunk=chunk)


class RecordingNoise:
    """Noise that remembers what it gave, [B, draws, latent_dim] each."""

    def __init__(self, noise: Noise) -> None:
        self.noise, self.drawn = noise, list[Tensor]()

    def normal(self, purpose: str, *shape: int) -> Tensor:
        self.drawn.append(self.noise.normal(purpose, *shape))
        return self.drawn[-1]


@pytest.mark.parametrize("samples", [1, 2, 25])
def test_with_the_exact_posterior_any_number_of_samples_gives_the_exact_likelihood(samples: int) -> None:
    model, x = LinearGaussian(), pixels(50)
    torch.testing.assert_close(estimate(model, x, samples), model.exact_nll(x), rtol=1e-5, atol=1e-5)


def test_with_another_posterior_it_converges_to_the_exact_likelihood() -> None:
    model, x = LinearGaussian(shift=0.3, widen=0.5), pixels(200)
    error = estimate(model, x, 2000, chunk=200) - model.exact_nll(x)
    assert error.abs().mean() < 0.03
    assert abs(error.mean()) < 0.005


def test_one_sample_estimates_the_negative_elbo() -> None:
    model = LinearGaussian(shift=0.3, widen=0.5)
    x = pixels(1).expand(40_000, -1, -1, -1)
    found = estimate(model, x, 1)
    error = found.std() / math.sqrt(len(found))
    assert abs(found.mean() - model.exact_negative_elbo(x[:1])[0]) < 5 * error
    assert model.exact_negative_elbo(x[:1]) > model.exact_nll(x[:1]) + 10 * error


def test_more_samples_tighten_the_bound_on_average_and_never_pass_the_likelihood() -> None:
    model, x = LinearGaussian(shift=0.4, widen=0.5), pixels(4000)
    means = [estimate(model, x, samples).mean().item() for samples in (1, 2, 5, 20, 100)]
    assert means == sorted(means, reverse=True)
    gaps = [mean - model.exact_nll(x).mean().item() for mean in means]
    assert gaps[0] > 4 * gaps[2] > 16 * gaps[4] / 4
    assert gaps[-1] > -0.005


@pytest.mark.parametrize("chunk", [1, 5, 7, 12, 100])
def test_the_running_sum_equals_the_direct_one_for_any_chunk(chunk: int) -> None:
    model, x = LinearGaussian(shift=0.4, widen=0.5), pixels(6)
    noise = RecordingNoise(noise_for(6))
    found = importance_weighted_nll(cast(VAE, model), x, None, noise=cast(Noise, noise), samples=12, chunk=chunk)
    epsilon = torch.cat(noise.drawn, dim=1)
    assert epsilon.shape == (6, 12, 2)
    posterior = model.encode(x)
    q = distributions.Normal(posterior.mean.double(), (0.5 * posterior.log_var.double()).exp())
    weights = []
    for e in epsilon.double().unbind(1):
        z = q.loc + q.scale * e
        log_joint = distributions.Normal(0.0, 1.0).log_prob(z).sum(1) - model.decode(z).nll(x)
        weights.append(log_joint - q.log_prob(z).sum(1))
    expected = math.log(12) - torch.logsumexp(torch.stack(weights), dim=0)
    torch.testing.assert_close(found, expected, rtol=1e-5, atol=1e-5)


def test_the_chunk_does_not_change_the_distribution_of_the_estimate() -> None:
    model, x = LinearGaussian(shift=0.4, widen=0.5), pixels(4000)
    small, large = estimate(model, x, 20, chunk=3), estimate(model, x, 20, chunk=20)
    assert not torch.equal(small, large)
    assert small.mean().item() == pytest.approx(large.mean().item(), abs=0.01)
    assert small.std().item() == pytest.approx(large.std().item(), rel=0.01)


def test_every_sample_is_a_new_draw() -> None:
    noise = RecordingNoise(noise_for(3))
    model = cast(VAE, LinearGaussian())
    importance_weighted_nll(model, pixels(3), None, noise=cast(Noise, noise), samples=11, chunk=4)
    draws = torch.cat(noise.drawn, dim=1).flatten(0, 1)
    assert len(draws.unique(dim=0)) == 33


def test_the_estimate_is_reproducible_and_follows_the_seed() -> None:
    model, x = LinearGaussian(shift=0.4), pixels(5)
    assert torch.equal(estimate(model, x, 7, seed=1), estimate(model, x, 7, seed=1))
    assert not torch.equal(estimate(model, x, 7, seed=1), estimate(model, x, 7, seed=2))


def test_it_stays_finite_where_the_probabilities_underflow() -> None:
    model, x = LinearGaussian(), pixels(3) * 1e3
    torch.testing.assert_close(estimate(model, x, 30), model.exact_nll(x), rtol=1e-4, atol=0)


VAES = {name: config for name, config in EVERY_KIND.items() if isinstance(config, VAEConfig)}


@pytest.mark.parametrize("config", VAES.values(), ids=VAES.keys())
def test_every_vae_has_an_estimate_below_its_negative_elbo(config: VAEConfig) -> None:
    """On average: the bound of many samples is tighter than that of one."""
    model, batch = cast(VAE, digits_model(config)).eval(), digits(200)
    noise = noise_of(batch)
    x = observe(batch.images, config.likelihood, noise)
    found = importance_weighted_nll(model, x, batch.labels, noise=noise, samples=20)
    assert found.shape == (200,)
    assert found.dtype == torch.float64
    assert not found.requires_grad
    assert found.mean() < eval_step(model, batch, noise)["neg_elbo_nats"].mean()


def test_a_conditional_model_gives_each_label_its_own_likelihood() -> None:
    model, batch = cast(VAE, digits_model(EVERY_KIND["vae-mlp-bernoulli-label"])), digits(5)
    x = observe(batch.images, "bernoulli", noise_of(batch))
    first, second = (
        importance_weighted_nll(model, x, torch.full((5,), label), noise=noise_of(batch), samples=3) for label in (1, 2)
    )
    assert (first != second).all()
