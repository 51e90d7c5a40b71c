"""Objectives: each term equals its equation, is one number a sample in nats, and is weighted only in the loss."""

import math
from dataclasses import replace

import pytest
import torch
from core_models import EVERY_KIND, digits, digits_model, noise_of, take, vae, vqvae
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, distributions

from vae_core.config import ModelConfig, VAEConfig
from vae_core.likelihoods import Gaussian, observe
from vae_core.models.vqvae import VQVAEOutput
from vae_core.objectives import Terms, elbo_terms, gaussian_kl, objective, vq_terms
from vae_core.training import eval_step

every_kind = pytest.mark.parametrize("config", EVERY_KIND.values(), ids=EVERY_KIND.keys())


def posterior(shape: tuple[int, ...], seed: int) -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(seed)
    return 2 * torch.randn(shape, generator=generator), 1.5 * torch.randn(shape, generator=generator)


def terms_of(config: ModelConfig, rows: int = 6) -> Terms:
    model, batch = digits_model(config), digits(rows)
    noise = noise_of(batch)
    x = observe(batch.images, config.likelihood, noise)
    return objective(config, model(x, batch.labels, noise), x)


@settings(deadline=None, max_examples=30)
@given(st.lists(st.integers(1, 5), min_size=2, max_size=4).map(tuple), st.integers(0, 2**31))
def test_kl_equals_torch_distributions(shape: tuple[int, ...], seed: int) -> None:
    mean, log_var = posterior(shape, seed)
    q = distributions.Normal(mean.double(), (0.5 * log_var.double()).exp())
    p = distributions.Normal(torch.zeros_like(q.loc), 1.0)
    expected = distributions.kl_divergence(q, p).flatten(1).sum(1)
    torch.testing.assert_close(gaussian_kl(mean, log_var).double(), expected, rtol=1e-5, atol=1e-5)


def test_kl_lies_within_a_monte_carlo_bound() -> None:
    mean, log_var = (tensor.double() for tensor in posterior((1, 3), seed=4))
    q, p = distributions.Normal(mean, (0.5 * log_var).exp()), distributions.Normal(0.0, 1.0)
    z = mean + (0.5 * log_var).exp() * torch.randn(200_000, 3, generator=torch.Generator().manual_seed(0)).double()
    ratio = (q.log_prob(z) - p.log_prob(z)).sum(1)
    error = ratio.std() / math.sqrt(len(ratio))
    assert abs(ratio.mean() - gaussian_kl(mean, log_var)[0]) < 5 * error


@settings(deadline=None, max_examples=30)
@given(st.integers(0, 2**31))
def test_kl_is_never_negative_and_nothing_at_the_prior(seed: int) -> None:
    mean, log_var = posterior((8, 5), seed)
    assert gaussian_kl(mean, log_var).min() > 0
    assert gaussian_kl(torch.zeros(8, 5), torch.zeros(8, 5)).tolist() == [0.0] * 8


def test_kl_is_a_sum_over_dimensions() -> None:
    mean, log_var = posterior((4, 3), seed=7)
    twice = gaussian_kl(torch.cat((mean, mean), 1), torch.cat((log_var, log_var), 1))
    torch.testing.assert_close(twice, 2 * gaussian_kl(mean, log_var))


def test_kl_is_float32_for_half_precision() -> None:
    mean, log_var = posterior((4, 3), seed=8)
    found = gaussian_kl(mean.bfloat16(), log_var.bfloat16())
    torch.testing.assert_close(found, gaussian_kl(mean.bfloat16().float(), log_var.bfloat16().float()))


@pytest.mark.parametrize(("mean", "log_var"), [((2, 3), (2, 4)), ((2, 3), (1, 3)), ((2, 3), (3,)), ((2, 3), (2, 3, 1))])
def test_kl_refuses_shapes_that_differ(mean: tuple[int, ...], log_var: tuple[int, ...]) -> None:
    with pytest.raises(ValueError, match=r"log_var: expected the shape of mean \(2, 3\), got"):
        gaussian_kl(torch.zeros(mean), torch.zeros(log_var))


@every_kind
def test_every_term_is_one_float32_a_sample(config: ModelConfig) -> None:
    terms = terms_of(config, rows=5)
    for values in (terms.loss, *terms.parts.values()):
        assert values.shape == (5,)
        assert values.dtype == torch.float32


@every_kind
def test_negative_elbo_is_distortion_plus_rate(config: ModelConfig) -> None:
    parts = terms_of(config).parts
    assert torch.equal(parts["neg_elbo_nats"], parts["distortion_nats"] + parts["rate_nats"])


@every_kind
def test_terms_of_a_batch_are_the_terms_of_its_samples_one_by_one(config: ModelConfig) -> None:
    model, batch = digits_model(config), digits(6)
    together = eval_step(model, batch, noise_of(batch))
    for row in range(6):
        alone = take(batch, torch.tensor([row]))
        for name, value in eval_step(model, alone, noise_of(alone)).items():
            torch.testing.assert_close(value, together[name][row : row + 1], rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("beta", [0.0, 1.0, 4.0])
def test_beta_multiplies_the_rate_in_the_loss_and_nothing_else(beta: float) -> None:
    plain, weighted = terms_of(vae(beta=1.0)), terms_of(vae(beta=beta))
    assert {name: value.tolist() for name, value in weighted.parts.items()} == {
        name: value.tolist() for name, value in plain.parts.items()
    }
    expected = plain.parts["distortion_nats"] + beta * plain.parts["rate_nats"]
    torch.testing.assert_close(weighted.loss, expected, rtol=1e-6, atol=0)


@pytest.mark.parametrize("weight", [0.0, 0.25, 2.0])
def test_commitment_weight_multiplies_the_commitment_in_the_loss_and_nothing_else(weight: float) -> None:
    plain, weighted = terms_of(vqvae(commitment_weight=1.0)), terms_of(vqvae(commitment_weight=weight))
    assert {name: value.tolist() for name, value in weighted.parts.items()} == {
        name: value.tolist() for name, value in plain.parts.items()
    }
    expected = plain.parts["distortion_nats"] + weight * plain.parts["commitment_squared_distance"]
    torch.testing.assert_close(weighted.loss, expected, rtol=1e-6, atol=0)


def test_elbo_terms_equal_torch_distributions() -> None:
    config = vae(likelihood="bernoulli", beta=3.0)
    model, batch = digits_model(config), digits(4)
    noise = noise_of(batch)
    x = observe(batch.images, "bernoulli", noise)
    output = model(x, None, noise)
    terms = elbo_terms(output, x, beta=3.0)
    q = distributions.Normal(output.posterior.mean, (0.5 * output.posterior.log_var).exp())
    rate = distributions.kl_divergence(q, distributions.Normal(0.0, 1.0)).sum(1)
    distortion = -distributions.Bernoulli(logits=output.pixels.logits).log_prob(x).flatten(1).sum(1)
    torch.testing.assert_close(terms.parts["rate_nats"], rate, rtol=1e-5, atol=1e-5)
    torch.testing.assert_close(terms.parts["distortion_nats"], distortion, rtol=1e-5, atol=1e-5)
    torch.testing.assert_close(terms.loss, distortion + 3 * rate, rtol=1e-5, atol=1e-5)


def vq_output(rows: int = 3, side: int = 2) -> tuple[VQVAEOutput, Tensor]:
    generator = torch.Generator().manual_seed(1)
    encoded = torch.randn(rows, 3, side, side, generator=generator)
    quantized = torch.randn(rows, 3, side, side, generator=generator)
    codes = torch.zeros(rows, side, side, dtype=torch.int64)
    x = torch.rand(rows, 1, 4, 4, generator=generator)
    return VQVAEOutput(encoded, codes, quantized, Gaussian(x, torch.tensor(0.0))), x


def test_vq_rate_is_that_of_a_uniform_prior() -> None:
    for side in (1, 2, 4):
        output, x = vq_output(side=side)
        rate = vq_terms(output, x, num_codes=8, commitment_weight=1.0).parts["rate_nats"]
        assert rate.tolist() == pytest.approx([side * side * math.log(8)] * 3)


def test_commitment_is_the_squared_distance_summed_over_positions_and_dimensions() -> None:
    output, x = vq_output()
    expected = ((output.encoded.double() - output.quantized.double()) ** 2).flatten(1).sum(1)
    found = vq_terms(output, x, num_codes=8, commitment_weight=1.0).parts["commitment_squared_distance"]
    torch.testing.assert_close(found.double(), expected, rtol=1e-6, atol=0)


def test_commitment_pulls_the_encoder_to_its_code_and_leaves_the_code_alone() -> None:
    output, x = vq_output()
    encoded, quantized = output.encoded.requires_grad_(), output.quantized.requires_grad_()
    terms = vq_terms(replace(output, encoded=encoded, quantized=quantized), x, num_codes=8, commitment_weight=0.25)
    terms.loss.sum().backward()
    torch.testing.assert_close(encoded.grad, 0.25 * 2 * (encoded - quantized).detach())
    assert quantized.grad is None
    nearer = (encoded - 0.1 * encoded.grad - quantized).square().sum()
    assert nearer < (encoded - quantized).square().sum()


def test_an_output_of_another_family_is_refused() -> None:
    output, x = vq_output()
    with pytest.raises(TypeError, match="VAEConfig does not describe the model of a VQVAEOutput"):
        objective(vae(), output, x)


@every_kind
def test_the_loss_carries_the_weights_of_the_configuration(config: ModelConfig) -> None:
    terms = terms_of(config)
    parts = terms.parts
    if isinstance(config, VAEConfig):
        expected = parts["distortion_nats"] + config.beta * parts["rate_nats"]
    else:
        expected = parts["distortion_nats"] + config.commitment_weight * parts["commitment_squared_distance"]
    torch.testing.assert_close(terms.loss, expected)
