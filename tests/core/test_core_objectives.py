"""Objectives: each term equals its equation, is one number a sample in nats, and is weighted only in the loss."""

import math
from dataclasses import replace
from typing import Any

import pytest
import torch
from core_models import (
    EVERY_KIND,
    autoencoder,
    categorical,
    digits,
    digits_model,
    hierarchical,
    inputs_of,
    iwae,
    take,
    vae,
    vqvae,
    vqvae2,
)
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, distributions

from vae_core.config import ModelConfig, RampConfig
from vae_core.likelihoods import Bernoulli, Gaussian
from vae_core.models import Model
from vae_core.models.autoencoder import AutoencoderOutput
from vae_core.models.base import Inputs
from vae_core.models.gaussian import GaussianModel, GaussianOutput
from vae_core.normal import DiagonalNormal, kl, kl_each, standard_log_prob
from vae_core.objectives import Terms, objective, part_names
from vae_core.objectives.free_bits import free_bits, mean_over_rows
from vae_core.objectives.total_correlation import decomposition

every_kind = pytest.mark.parametrize("config", EVERY_KIND.values(), ids=EVERY_KIND.keys())
PRIORLESS = {"autoencoder"}


def run(config: ModelConfig, rows: int = 6, progress: float = 0.0) -> tuple[Any, Inputs, Terms]:
    """Output, inputs and terms of one training step on some digits."""
    model = digits_model(config)
    inputs = inputs_of(model, digits(rows), progress=progress)
    output = model(inputs)
    return output, inputs, objective(config, output, inputs)


def terms_of(config: ModelConfig, **options: Any) -> Terms:
    return run(config, **options)[2]


def parts_of(config: ModelConfig) -> dict[str, list[float]]:
    return {name: part.tolist() for name, part in terms_of(config).parts.items()}


def assert_gradients(model: Model, expected: dict[str, Tensor]) -> None:
    assert expected
    for name, parameter in model.named_parameters():
        if name in expected:
            torch.testing.assert_close(parameter.grad, expected[name], rtol=1e-4, atol=1e-5)


def made(means: Tensor, log_vars: Tensor, *, weight: Tensor | None = None, seed: int = 0, **fields: Any) -> Any:
    """Output and inputs of a VAE with these posteriors, [B, L], for pixels that it gets exactly right."""
    rows, generator = len(means), torch.Generator().manual_seed(seed)
    q = DiagonalNormal(means, log_vars)
    x = torch.rand(rows, 1, 2, 2, generator=generator)
    z = q.draw(torch.randn(1, *means.shape, generator=generator))
    weight = torch.ones(rows) if weight is None else weight
    one = {name: torch.tensor(value) for name, value in fields.items()}
    inputs = Inputs(x, None, {}, {"beta": torch.tensor(1.0), **one}, torch.tensor(0.0), weight, int(weight.sum()))
    return GaussianOutput(q, None, z, Gaussian(x, torch.tensor(0.0))), inputs


def posteriors(rows: int, dim: int, seed: int) -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(rows, dim, generator=generator), torch.randn(rows, dim, generator=generator) - 1


# every family


@every_kind
def test_every_term_is_one_float32_a_sample(config: ModelConfig) -> None:
    terms = terms_of(config, rows=5)
    for values in (terms.loss, *terms.parts.values()):
        assert values.shape == (5,)
        assert values.dtype == torch.float32
        assert torch.isfinite(values).all()


@every_kind
def test_negative_elbo_is_distortion_plus_rate(config: ModelConfig) -> None:
    parts = terms_of(config).parts
    if config.kind in PRIORLESS:
        assert set(parts) == {"distortion_nats"}
    else:
        assert torch.equal(parts["neg_elbo_nats"], parts["distortion_nats"] + parts["rate_nats"])


@every_kind
def test_every_part_falls_as_the_model_gets_better(config: ModelConfig) -> None:
    """Rates and what is no density are costs above zero, so no sign is lost on the way."""
    parts = terms_of(config).parts
    if config.likelihood in ("bernoulli", "discretised_logistic"):
        assert parts["distortion_nats"].min() > 0
    for name in ("rate_nats", "commitment_squared_distance", "sleep_nats"):
        assert parts.get(name, torch.zeros(1)).min() >= 0
    if "neg_iwae_bound_nats" in parts:
        assert parts["neg_iwae_bound_nats"].min() > 0


@every_kind
def test_terms_of_a_batch_are_the_terms_of_its_samples_one_by_one(config: ModelConfig) -> None:
    """But for the decomposition of the rate, which is an estimate from the batch."""
    model, batch = digits_model(config), digits(6)
    inputs = inputs_of(model, batch, progress=1.0)
    together = objective(config, model(inputs), inputs)
    of_batch = ("mutual_information_nats", "total_correlation_nats", "dimension_kl_nats")
    for row in range(6):
        own = inputs_of(model, take(batch, torch.tensor([row])), progress=1.0)
        alone = objective(config, model(own), own)
        if "total_correlation_nats" not in alone.parts:
            torch.testing.assert_close(alone.loss, together.loss[row : row + 1], rtol=1e-4, atol=1e-4)
        for name, value in alone.parts.items():
            if name not in of_batch:
                torch.testing.assert_close(value, together.parts[name][row : row + 1], rtol=1e-4, atol=1e-4)


WEIGHTED: list[tuple[Any, str, str]] = [
    (vae, "beta", "rate_nats"),
    (hierarchical, "beta", "rate_nats"),
    (categorical, "beta", "rate_nats"),
    (vqvae, "commitment_weight", "commitment_squared_distance"),
    (vqvae2, "commitment_weight", "commitment_squared_distance"),
]


@pytest.mark.parametrize("weight", [0.0, 0.25, 4.0])
@pytest.mark.parametrize(("make", "field", "part"), WEIGHTED)
def test_a_weight_multiplies_its_part_in_the_loss_and_nothing_else(
    make: Any, field: str, part: str, weight: float
) -> None:
    config = make(**{field: weight})
    assert parts_of(config) == parts_of(make(**{field: 1.0}))
    terms = terms_of(config, progress=1.0)  # when a hierarchical model no longer balances its groups
    expected = terms.parts["distortion_nats"] + weight * terms.parts[part]
    torch.testing.assert_close(terms.loss, expected, rtol=1e-6, atol=1e-5)


def test_no_variant_of_the_rate_changes_a_part() -> None:
    plain = parts_of(vae())
    for variant in ({"beta": 7.0}, {"capacity": 3.0}, {"free_bits": 0.5}, {"total_correlation": 6.0}):
        found = parts_of(vae(**variant))
        assert {name: found[name] for name in plain} == plain


def test_a_scheduled_weight_is_that_of_the_progress() -> None:
    config = vae(beta=RampConfig(kind="linear", start=1.0, end=3.0), capacity=RampConfig(kind="linear", start=0, end=8))
    terms = terms_of(config, progress=0.25)
    expected = terms.parts["distortion_nats"] + 1.5 * (terms.parts["rate_nats"] - 2).abs()
    torch.testing.assert_close(terms.loss, expected)


def test_twice_the_image_costs_twice_the_distortion_and_the_same_rate() -> None:
    """Terms are sums, so that distortion and rate keep their proportion whatever the size of the image."""
    inputs = inputs_of(digits_model(vae()), digits(3))
    q, logits = DiagonalNormal(*posteriors(3, 4, 0)), torch.randn(3, 1, 8, 8)
    found = []
    for pixels, x in ((logits, inputs.x), (torch.cat((logits, logits), 3), torch.cat((inputs.x, inputs.x), 3))):
        whole = replace(inputs, x=x)
        found.append(objective(vae(), GaussianOutput(q, None, q.mean[None], Bernoulli(pixels)), whole).parts)
        found[-1]["plain"] = objective(autoencoder(), AutoencoderOutput(q.mean, Bernoulli(pixels)), whole).loss
    torch.testing.assert_close(found[1]["distortion_nats"], 2 * found[0]["distortion_nats"])
    torch.testing.assert_close(found[1]["plain"], 2 * found[0]["plain"])
    assert torch.equal(found[1]["rate_nats"], found[0]["rate_nats"])


@every_kind
def test_the_names_of_the_parts_are_known_beforehand(config: ModelConfig) -> None:
    assert list(part_names(config)) == list(terms_of(config).parts)


def test_an_output_of_another_family_is_refused() -> None:
    output, inputs, _ = run(vqvae())
    for config in (autoencoder(), vae(), iwae(), categorical(), hierarchical()):
        with pytest.raises(TypeError, match=rf"^output: a model of kind {config.kind} gives \w+, this is VQOutput$"):
            objective(config, output, inputs)


# the ELBO and its variants


def test_elbo_terms_equal_torch_distributions() -> None:
    output, inputs, terms = run(vae(beta=3.0))
    q = distributions.Normal(output.posterior.mean, (0.5 * output.posterior.log_var).exp())
    rate = distributions.kl_divergence(q, distributions.Normal(0.0, 1.0)).sum(1)
    distortion = -distributions.Bernoulli(logits=output.pixels.logits).log_prob(inputs.x).flatten(1).sum(1)
    torch.testing.assert_close(terms.parts["rate_nats"], rate, rtol=1e-5, atol=1e-5)
    torch.testing.assert_close(terms.parts["distortion_nats"], distortion, rtol=1e-5, atol=1e-5)
    torch.testing.assert_close(terms.loss, distortion + 3 * rate, rtol=1e-5, atol=1e-5)


def test_the_distortion_of_several_draws_is_their_mean_and_meets_their_own_image() -> None:
    output, inputs, terms = run(vae(samples=3, likelihood="gaussian"))
    each = torch.stack([Gaussian(mean, output.pixels.log_sigma).nll(inputs.x) for mean in output.pixels.mean.chunk(3)])
    torch.testing.assert_close(terms.parts["distortion_nats"], each.mean(0))


def test_a_learned_prior_takes_the_place_of_the_standard_one_in_the_rate() -> None:
    config = vae(condition="label", prior="learned")
    model = digits_model(config)
    assert isinstance(model, GaussianModel)
    assert model.prior_network is not None
    torch.nn.init.normal_(model.prior_network[-1].weight)
    inputs = inputs_of(model, digits(6))
    output = model(inputs)
    rate = objective(config, output, inputs).parts["rate_nats"]
    torch.testing.assert_close(rate, kl(output.posterior, model.prior(inputs.condition)))
    assert (rate - kl(output.posterior)).abs().min() > 0.01


@pytest.mark.parametrize("capacity", [0.0, 2.0, 1000.0])
def test_capacity_is_what_the_rate_of_each_sample_is_held_to(capacity: float) -> None:
    output, inputs = made(*posteriors(6, 4, 0), beta=5.0, capacity=capacity)
    terms = objective(vae(beta=5.0, capacity=capacity), output, inputs)
    rate, distortion = kl(output.posterior), terms.parts["distortion_nats"]
    torch.testing.assert_close(terms.loss, distortion + 5 * (rate - capacity).abs())
    q = DiagonalNormal(output.posterior.mean.requires_grad_(), output.posterior.log_var)
    objective(vae(beta=5.0, capacity=capacity), replace(output, posterior=q), inputs).loss.sum().backward()
    sign = torch.where(rate > capacity, 1.0, -1.0)[:, None]  # below it, the rate is pushed up
    torch.testing.assert_close(q.mean.grad, 5 * sign * q.mean.detach())


@pytest.mark.parametrize("beta", [1.0, 3.0])
def test_free_bits_are_a_floor_under_the_mean_rate_of_each_dimension(beta: float) -> None:
    mean = torch.tensor([[2.0, 0.1, 0.9], [0.0, 0.2, 0.7]]).repeat(3, 1)
    output, inputs = made(mean.requires_grad_(), torch.zeros(6, 3), beta=beta)
    terms = objective(vae(beta=beta, free_bits=0.3), output, inputs)
    means = kl_each(output.posterior).mean(0)
    assert (means > 0.3).tolist() == [True, False, True]  # though half of the first dimension's rates lie below
    expected = terms.parts["distortion_nats"].mean() + beta * means.clamp_min(0.3).sum()
    torch.testing.assert_close(terms.loss.mean(), expected)
    torch.testing.assert_close(terms.parts["rate_nats"], kl(output.posterior))
    terms.loss.sum().backward()
    torch.testing.assert_close(mean.grad, beta * mean.detach() * torch.tensor([1.0, 0.0, 1.0]))


@settings(max_examples=30)
@given(st.integers(1, 8), st.integers(1, 4), st.floats(0.01, 3), st.integers(0, 2**31))
def test_free_bits_never_cost_less_than_the_floor_or_the_rates(rows: int, groups: int, nats: float, seed: int) -> None:
    rates = 2 * torch.rand(rows, groups, generator=torch.Generator().manual_seed(seed))
    cost = free_bits(rates, rates.mean(0), nats).mean(0)
    torch.testing.assert_close(cost, rates.mean(0).clamp_min(nats))


def test_means_over_rows_count_no_padding_and_divide_by_the_rows_of_the_global_batch() -> None:
    _, inputs = made(*posteriors(4, 2, 0), weight=torch.tensor([1.0, 1, 0, 0]))
    rates = torch.tensor([[1.0, 2.0], [3.0, 6.0], [100.0, 100.0], [float("nan"), float("inf")]], requires_grad=True)
    found = mean_over_rows(rates, inputs)
    assert found.tolist() == [2.0, 4.0]
    assert not found.requires_grad
    assert mean_over_rows(rates, replace(inputs, global_rows=8)).tolist() == [0.5, 1.0]


@pytest.mark.parametrize("padding", [0.0, 50.0])
@pytest.mark.parametrize("variant", [{"free_bits": 0.4}, {"total_correlation": 3.0}])
def test_padding_rows_change_nothing_of_the_others(variant: dict[str, float], padding: float) -> None:
    means, log_vars = posteriors(6, 3, 1)
    weight = torch.tensor([1.0, 1, 1, 1, 0, 0])
    spoilt = torch.where(weight[:, None] > 0, means, padding)
    config = vae(**variant)
    whole, inputs = made(spoilt, log_vars, weight=weight, **variant)
    kept = GaussianOutput(
        DiagonalNormal(means[:4], log_vars[:4]), None, whole.latent[:, :4], Gaussian(inputs.x[:4], torch.tensor(0.0))
    )
    alone = objective(config, kept, replace(inputs, x=inputs.x[:4], row_weight=weight[:4]))
    torch.testing.assert_close(objective(config, whole, inputs).loss[:4], alone.loss)


# the decomposition of the rate

WEIGHTS = {"beta": torch.tensor(2.0), "total_correlation": torch.tensor(4.0)}


def by_hand(q: DiagonalNormal, z: Tensor) -> dict[str, list[Tensor]]:
    """Mutual information, total correlation and dimension-wise KL of each row, by loops in float64."""
    normal = distributions.Normal(q.mean.double(), (0.5 * q.log_var.double()).exp())
    names = ("mutual_information_nats", "total_correlation_nats", "dimension_kl_nats")
    rows, found = len(z), {name: list[Tensor]() for name in names}
    for i in range(rows):
        under_all = torch.stack([normal.log_prob(z[i].double())[j] for j in range(rows)])  # [M, L]
        log_q = torch.log(under_all.sum(1).exp().mean())
        log_q_each = torch.stack([torch.log(column.exp().mean()) for column in under_all.T]).sum()
        log_p = distributions.Normal(0.0, 1.0).log_prob(z[i].double()).sum()
        for name, value in zip(
            names, (under_all[i].sum() - log_q, log_q - log_q_each, log_q_each - log_p), strict=True
        ):
            found[name].append(value)
    return found


@pytest.mark.parametrize(("rows", "dim"), [(1, 3), (7, 1), (7, 4)])
def test_the_decomposition_equals_loops_in_float64(rows: int, dim: int) -> None:
    means, log_vars = posteriors(rows, dim, 2)
    output, inputs = made(means.requires_grad_(), log_vars.requires_grad_())
    terms = objective(vae(total_correlation=4.0, beta=2.0), output, replace(inputs, weights=WEIGHTS))
    loops = by_hand(output.posterior, output.latent[0])
    for name, values in loops.items():
        torch.testing.assert_close(terms.parts[name].double(), torch.stack(values), rtol=1e-5, atol=1e-5)
    weights = dict(zip(loops, (1.0, 4.0, 2.0), strict=True))
    expected = sum(weight * torch.stack(loops[name]) for name, weight in weights.items())
    torch.testing.assert_close(terms.loss - terms.parts["distortion_nats"], expected.float(), rtol=1e-5, atol=1e-4)
    gradient = torch.autograd.grad(expected.sum(), (means, log_vars), retain_graph=True)  # also through the other rows
    found = torch.autograd.grad((terms.loss - terms.parts["distortion_nats"]).sum(), (means, log_vars))
    torch.testing.assert_close(found, gradient, rtol=1e-4, atol=1e-4)


@settings(max_examples=30)
@given(st.integers(1, 9), st.integers(1, 5), st.integers(0, 2**31))
def test_the_parts_of_the_rate_sum_to_its_estimate_at_the_draw(rows: int, dim: int, seed: int) -> None:
    output, inputs = made(*posteriors(rows, dim, seed), seed=seed)
    split = decomposition(output, inputs)
    whole = output.posterior.log_prob(output.latent[0]) - standard_log_prob(output.latent[0])
    total = split.mutual_information + split.total_correlation + split.dimension_kl
    torch.testing.assert_close(total, whole, rtol=1e-4, atol=1e-4)
    assert split.mutual_information.max() <= math.log(rows) + 1e-4


def test_with_all_weights_one_the_total_correlation_objective_is_the_elbo_at_the_draw() -> None:
    output, _, terms = run(vae(total_correlation=1.0))
    rate = output.posterior.log_prob(output.latent[0]) - standard_log_prob(output.latent[0])
    torch.testing.assert_close(terms.loss, terms.parts["distortion_nats"] + rate, rtol=1e-4, atol=1e-4)


def test_the_total_correlation_is_that_of_the_aggregate() -> None:
    """Posteriors along a diagonal tell of one dimension by the other; on a grid they do not."""
    line, narrow = torch.linspace(-2, 2, 400), torch.full((400, 2), -6.0)
    grid = torch.cartesian_prod(torch.linspace(-2, 2, 20), torch.linspace(-2, 2, 20))
    on_line, on_grid = (
        decomposition(*made(means, narrow)).total_correlation.mean().item()
        for means in (torch.stack((line, line), 1), grid)
    )
    assert on_line > 2
    assert abs(on_grid) < 0.1


def test_a_learned_prior_takes_the_place_of_the_standard_one_in_the_decomposition() -> None:
    output, inputs = made(*posteriors(5, 3, 3))
    prior = DiagonalNormal(*posteriors(5, 3, 4))
    plain, learned = decomposition(output, inputs), decomposition(replace(output, prior=prior), inputs)
    z = output.latent[0]
    difference = standard_log_prob(z) - prior.log_prob(z)
    torch.testing.assert_close(learned.dimension_kl - plain.dimension_kl, difference, rtol=1e-4, atol=1e-4)
    assert torch.equal(learned.total_correlation, plain.total_correlation)


# the importance-weighted bound

GRADIENTS = ("iwae", "stl", "dreg")


def log_weights(config: ModelConfig, inputs: Inputs) -> Tensor:
    """[S, B] in float64 from the definition, log p(x | z) + log p(z) - log q(z | x)."""
    model = digits_model(config)
    assert isinstance(model, GaussianModel)
    q = model.encode(inputs.x, None)
    z = q.draw(inputs.draws["posterior"].movedim(1, 0))
    pixels = model.decode(z.flatten(0, 1), None)
    assert isinstance(pixels, Bernoulli)
    logits, z = pixels.logits.double().unflatten(0, z.shape[:2]), z.double()
    log_q = distributions.Normal(q.mean.double(), (0.5 * q.log_var.double()).exp()).log_prob(z).sum(2)
    log_p = distributions.Normal(0.0, 1.0).log_prob(z).sum(2)
    return distributions.Bernoulli(logits=logits).log_prob(inputs.x.double()).flatten(2).sum(2) + log_p - log_q


@pytest.mark.parametrize("gradient", GRADIENTS)
def test_the_importance_bound_is_the_log_of_the_mean_weight(gradient: Any) -> None:
    config = iwae(gradient=gradient, samples=7)
    _, inputs, terms = run(config)
    log_weight = log_weights(config, inputs)
    assert log_weight.shape == (7, 6)
    expected = -(log_weight - log_weight.max()).exp().mean(0).log() - log_weight.max()
    torch.testing.assert_close(terms.parts["neg_iwae_bound_nats"].double(), expected, rtol=1e-5, atol=1e-4)
    assert (terms.parts["neg_iwae_bound_nats"] < -log_weight.mean(0) + 1e-4).all()
    if gradient == "iwae":
        assert torch.equal(terms.loss, terms.parts["neg_iwae_bound_nats"])


def test_the_parts_do_not_depend_on_the_gradient() -> None:
    first, *others = [terms_of(iwae(gradient=gradient)).parts for gradient in GRADIENTS]
    for other in others:
        torch.testing.assert_close(dict(other), dict(first))


def test_one_draw_makes_the_bound_the_elbo_at_that_draw() -> None:
    config = iwae(samples=1, gradient="iwae")
    _, inputs, terms = run(config)
    torch.testing.assert_close(terms.loss.double(), -log_weights(config, inputs)[0], rtol=1e-5, atol=1e-4)


@pytest.mark.parametrize("gradient", ["stl", "dreg"])
def test_the_encoder_follows_the_paths_of_the_draws_with_the_weights_of_the_estimator(gradient: Any) -> None:
    """Normalised weights for stl, their squares for dreg; the decoder, normalised weights for both."""
    model = digits_model(iwae(gradient=gradient, samples=4))
    assert isinstance(model, GaussianModel)
    inputs = inputs_of(model, digits(5))
    objective(model.config, model(inputs), inputs).loss.sum().backward()
    q = model.encode(inputs.x, None)
    z = q.draw(inputs.draws["posterior"].movedim(1, 0))
    leaf = z.detach().requires_grad_()
    log_weight = model.log_joint(inputs.x, None, leaf) - q.detach().log_prob(leaf)
    weight = log_weight.detach().softmax(0)
    (path,) = torch.autograd.grad(log_weight.sum(), leaf, retain_graph=True)
    each = -(weight if gradient == "stl" else weight.square())[..., None] * path
    parameters = dict(model.named_parameters())
    of_encoder = {name: p for name, p in parameters.items() if name.startswith(("encoder", "to_posterior"))}
    of_decoder = {name: p for name, p in parameters.items() if name.startswith("decoder")}
    assert len(of_encoder) + len(of_decoder) == len(parameters)
    found = torch.autograd.grad(z, list(of_encoder.values()), grad_outputs=each)
    assert_gradients(model, dict(zip(of_encoder, found, strict=True)))
    found = torch.autograd.grad(-(weight * log_weight).sum(), list(of_decoder.values()))
    assert_gradients(model, dict(zip(of_decoder, found, strict=True)))


@pytest.mark.parametrize("gradient", GRADIENTS)
def test_the_bound_is_finite_where_the_weights_underflow(gradient: Any) -> None:
    output, inputs, _ = run(iwae(gradient=gradient))
    far = replace(output, log_weight=output.log_weight.detach() * 1e4)
    terms = objective(iwae(gradient=gradient), far, inputs)
    torch.testing.assert_close(terms.parts["neg_iwae_bound_nats"], math.log(3) - far.log_weight.max(0).values)
    assert torch.isfinite(terms.loss).all()
