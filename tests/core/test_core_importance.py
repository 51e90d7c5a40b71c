"""The importance-weighted likelihood: exact where p(x) is known, an upper bound elsewhere, the same for any chunk."""

import math
from typing import cast

import pytest
import torch
from core_models import FAMILIES, digits, digits_model, noise_for, noise_of
from linear_gaussian import DATA, UNUSED, exact_neg_elbo, exact_nll, linear_iwae, linear_vae, pixels
from torch import Tensor, distributions

from vae_core.config import DataSpec, MLPConfig, VAEConfig
from vae_core.likelihoods import observe
from vae_core.metrics.likelihood import (
    DRAWS,
    LikelihoodEstimate,
    LikelihoodSummary,
    bits_per_dimension,
    default_chunk,
    importance_weighted,
)
from vae_core.models import Model, build_model
from vae_core.models.base import HasLikelihood, Inputs
from vae_core.models.gaussian import GaussianModel
from vae_core.models.iwae import IWAE
from vae_core.noise import Noise
from vae_core.objectives import objective
from vae_core.training import eval_step


def estimate(
    model: GaussianModel, x: Tensor, samples: int, *, chunk: int | None = None, seed: int = 0
) -> LikelihoodEstimate:
    return importance_weighted(model, x, None, noise=noise_for(len(x), seed=seed), samples=samples, chunk=chunk)


def nll(model: GaussianModel, x: Tensor, samples: int, *, chunk: int | None = None, seed: int = 0) -> Tensor:
    return estimate(model, x, samples, chunk=chunk, seed=seed).nll


class Recording:
    """A model that remembers the noise it was given, [S, B, L] each."""

    def __init__(self, model: GaussianModel) -> None:
        self.model, self.seen = model, list[Tensor]()
        self.encode, self.importance_noise = model.encode, model.importance_noise

    def log_weight(self, x: Tensor, c: Tensor | None, q: object, epsilon: Tensor) -> Tensor:
        self.seen.append(epsilon)
        return self.model.log_weight(x, c, q, epsilon)  # type: ignore[arg-type]


@pytest.mark.parametrize("samples", [1, 2, 25])
def test_with_the_exact_posterior_any_number_of_samples_gives_the_exact_likelihood(samples: int) -> None:
    x = pixels(50)
    found = estimate(linear_iwae(), x, samples)
    torch.testing.assert_close(found.nll, exact_nll(x), rtol=1e-5, atol=1e-5)
    torch.testing.assert_close(found.effective_samples, torch.full((50,), float(samples)).double())


def test_with_another_posterior_it_converges_to_the_exact_likelihood() -> None:
    model, x = linear_iwae(shift=0.3, widen=0.5), pixels(200)
    error = nll(model, x, 2000) - exact_nll(x)
    assert error.abs().mean() < 0.05
    assert abs(error.mean()) < 0.005


def test_one_sample_estimates_the_negative_elbo() -> None:
    model, x = linear_iwae(shift=0.3, widen=0.5), pixels(1).expand(40_000, -1, -1, -1)
    found = nll(model, x, 1)
    error = found.std() / math.sqrt(len(found))
    exact = exact_neg_elbo(model, x[:1]).item()
    assert abs(found.mean() - exact) < 5 * error
    assert exact > exact_nll(x[:1]) + 10 * error


def test_more_samples_tighten_the_bound_and_never_pass_the_likelihood() -> None:
    """ELBO <= IWAE-5 <= IWAE-50 <= log p(x) (Burda et al., theorem 1)."""
    model, x = linear_iwae(shift=0.4, widen=0.5), pixels(4000)
    means = [exact_neg_elbo(model, x).mean().item(), *(nll(model, x, k).mean().item() for k in (5, 50, 500))]
    exact = exact_nll(x).mean().item()
    assert means == sorted(means, reverse=True)
    assert means[0] - exact > 4 * (means[1] - exact) > 16 * (means[2] - exact)
    assert -0.005 < means[3] - exact < 0.05


@pytest.mark.parametrize("chunk", [1, 7, 33, 60, 120, 100_000])
@pytest.mark.parametrize("samples", [1, 9, 23, 40])
def test_every_chunk_uses_the_same_draws_and_exactly_as_many_as_asked(chunk: int, samples: int) -> None:
    model, x = Recording(linear_iwae(shift=0.4, widen=0.5)), pixels(6)
    likelihood = cast(HasLikelihood, model)
    found = importance_weighted(likelihood, x, None, noise=noise_for(6), samples=samples, chunk=chunk)
    assert sum(seen.shape[0] * seen.shape[1] for seen in model.seen) == 6 * samples
    assert max(seen.shape[0] * seen.shape[1] for seen in model.seen) <= chunk
    torch.testing.assert_close(found.nll, nll(model.model, x, samples), rtol=1e-6, atol=1e-6)


def test_it_is_the_direct_sum() -> None:
    model, x = linear_iwae(shift=0.4, widen=0.5), pixels(6)
    noise = noise_for(6)
    epsilon = torch.cat([model.importance_noise(noise, f"importance/{first}", DRAWS) for first in (0, 10)])[:12]
    q = model.encode(x, None)
    posterior = distributions.Normal(q.mean.double(), (0.5 * q.log_var.double()).exp())
    z = posterior.loc + posterior.scale * epsilon.double()
    likelihood = torch.stack([-model.decode(each.float(), None).nll(x).double() for each in z])
    log_weight = likelihood + distributions.Normal(0.0, 1.0).log_prob(z).sum(2) - posterior.log_prob(z).sum(2)
    found, weight = estimate(model, x, 12), log_weight.exp()
    torch.testing.assert_close(found.nll, -weight.mean(0).log(), rtol=1e-5, atol=1e-5)
    effective = weight.sum(0).square() / weight.square().sum(0)
    torch.testing.assert_close(found.effective_samples, effective, rtol=1e-4, atol=1e-4)
    assert found.samples == 12


def test_an_image_has_the_same_estimate_in_any_company() -> None:
    """The same place in the noise, other rows beside it, other rows a pass."""
    model, x = linear_iwae(shift=0.4, widen=0.5), pixels(9)
    whole = estimate(model, x, 25)
    for rows in (torch.tensor([4]), torch.tensor([0, 4, 7]), torch.tensor([8, 4])):
        noise = Noise(seed=0, scope="test", step=0, position=rows, rows=9)
        some = importance_weighted(model, x[rows], None, noise=noise, samples=25, chunk=20)
        torch.testing.assert_close(some.nll, whole.nll[rows], rtol=1e-6, atol=1e-6)
        torch.testing.assert_close(some.effective_samples, whole.effective_samples[rows], rtol=1e-5, atol=1e-5)


def test_every_sample_is_a_new_draw() -> None:
    model = Recording(linear_iwae())
    importance_weighted(cast(HasLikelihood, model), pixels(3), None, noise=noise_for(3), samples=31, chunk=12)
    draws = torch.cat([seen.flatten(0, 1) for seen in model.seen])
    assert len(draws.unique(dim=0)) == 93


def test_the_estimate_is_reproducible_and_follows_the_seed() -> None:
    model, x = linear_iwae(shift=0.4), pixels(5)
    assert torch.equal(nll(model, x, 7, seed=1), nll(model, x, 7, seed=1))
    assert not torch.equal(nll(model, x, 7, seed=1), nll(model, x, 7, seed=2))


def test_it_stays_finite_where_the_probabilities_underflow() -> None:
    model, x = linear_iwae(), pixels(3) * 1e3
    found = estimate(model, x, 30)
    torch.testing.assert_close(found.nll, exact_nll(x), rtol=1e-4, atol=0)
    assert ((found.effective_samples >= 1) & (found.effective_samples <= 30)).all()


def test_no_samples_are_refused() -> None:
    with pytest.raises(ValueError, match="samples: expected at least 1, got 0"):
        estimate(linear_iwae(), pixels(2), 0)


def test_the_chunk_falls_with_the_size_of_the_image_and_is_at_least_one() -> None:
    small, large = torch.zeros(2, 1, 28, 28), torch.zeros(2, 3, 256, 256)
    assert default_chunk(small) * 784 == pytest.approx(default_chunk(large) * 3 * 256**2, rel=0.1)
    assert default_chunk(torch.zeros(1, 1, 1, 2**26)) == 1


@pytest.mark.parametrize("likelihood", ["bernoulli", "continuous_bernoulli", "gaussian", "discretised_logistic"])
def test_the_draws_of_a_pass_meet_their_own_image(likelihood: str) -> None:
    network = MLPConfig(kind="mlp", hidden=(8,), activation="tanh")
    config = VAEConfig(kind="vae", latent_dim=3, network=network, likelihood=likelihood)  # type: ignore[arg-type]
    model = cast(GaussianModel, build_model(config, DataSpec(channels=1, height=3, width=4))).eval()
    x = torch.rand(5, 1, 3, 4).round()
    z = torch.randn(4, 5, 3)
    found = model.log_joint(x, None, z)
    for draw, row in ((0, 0), (3, 1), (2, 4)):
        one = z[draw, row : row + 1]
        expected = -model.decode(one, None).nll(x[row : row + 1]) + distributions.Normal(0.0, 1.0).log_prob(one).sum(1)
        torch.testing.assert_close(found[draw, row], expected[0], rtol=1e-5, atol=1e-5)


def test_a_conditional_model_gives_each_condition_its_own_likelihood() -> None:
    config = VAEConfig(kind="vae", latent_dim=2, network=UNUSED, condition="label", prior="learned")
    data = DataSpec(channels=1, height=2, width=2, num_classes=3)
    model, x = cast(GaussianModel, build_model(config, data)).eval(), pixels(5).round()
    first, second = (
        importance_weighted(model, x, torch.eye(3)[[label] * 5], noise=noise_for(5), samples=3) for label in (1, 2)
    )
    assert (first.nll != second.nll).all()


LIKELIHOODS = [name for name, config in FAMILIES.items() if isinstance(digits_model(config), HasLikelihood)]


def test_all_families_with_a_joint_density_are_measured() -> None:
    assert LIKELIHOODS == ["vae", "cvae", "iwae", "categorical", "hierarchical"]


@pytest.mark.parametrize("name", LIKELIHOODS)
def test_every_family_has_an_estimate_below_its_negative_elbo_and_the_same_for_any_chunk(name: str) -> None:
    """On average over the images: the bound of many samples is tighter than that of one."""
    config, batch = FAMILIES[name], digits(60)
    model, noise = digits_model(config).eval(), noise_of(batch)
    x, c = observe(batch.images, config.likelihood, noise), model.condition(batch)
    likelihood = cast(HasLikelihood, model)
    found, small = (importance_weighted(likelihood, x, c, noise=noise, samples=25, chunk=chunk) for chunk in (None, 70))
    assert found.nll.shape == (60,)
    assert found.nll.dtype == torch.float64
    assert not found.nll.requires_grad
    assert found.nll.mean() < eval_step(model, batch, noise)["neg_elbo_nats"].mean()
    torch.testing.assert_close(found.nll, small.nll, rtol=1e-5, atol=1e-5)


# Summary


def test_the_summary_counts_rows_and_not_batches_and_ignores_padding() -> None:
    nlls, effective = torch.tensor([1.0, 2.0, 6.0, math.nan]).double(), torch.tensor([20.0, 4.0, 30.0, math.inf])
    weight = torch.tensor([1.0, 1.0, 1.0, 0.0])
    summary = LikelihoodSummary()
    for rows in (slice(0, 1), slice(1, 4)):
        summary.add(LikelihoodEstimate(nlls[rows], effective[rows].double(), 100), weight[rows])
    found = summary.compute()
    assert found == {
        "nll_nats": pytest.approx(3.0),
        "nll_standard_error_nats": pytest.approx(nlls[:3].std(correction=0).item() / math.sqrt(3)),
        "nll_samples": 100,
        "effective_samples": pytest.approx(18.0),
        "few_effective_samples_fraction": pytest.approx(1 / 3),
    }
    assert summary.compute() == found


def test_the_summary_of_nothing_is_empty() -> None:
    assert LikelihoodSummary().compute() == {}


def test_the_standard_error_is_that_of_the_mean_over_images() -> None:
    """The spread of the mean over many sets of 50 images."""
    model, means, errors = linear_iwae(), [], []
    for seed in range(200):
        x = pixels(50, seed=seed)
        summary = LikelihoodSummary()
        summary.add(estimate(model, x, 1), torch.ones(50))
        means.append(summary.compute()["nll_nats"])
        errors.append(summary.compute()["nll_standard_error_nats"])
    assert torch.tensor(errors).mean().item() == pytest.approx(torch.tensor(means).std().item(), rel=0.2)


def test_eight_bits_of_uniform_noise_are_eight_bits_a_dimension() -> None:
    assert bits_per_dimension(12 * math.log(256), 12) == pytest.approx(8.0)


# Gradient estimators, against the exact gradients of a model with one latent


ROWS = 40_000


def mean_gradient(model: GaussianModel, x: Tensor, samples: int) -> dict[str, tuple[Tensor, Tensor]]:
    """Mean over ROWS draws, and its standard error, of the gradient of the loss of the image x, of each parameter."""
    many = x.expand(ROWS, -1, -1, -1)
    noise = noise_for(ROWS)
    inputs = Inputs(
        many, None, model.draws(noise), {"beta": torch.tensor(1.0)}, torch.tensor(1.0), torch.ones(ROWS), ROWS
    )
    groups, sums = 40, []
    loss = objective(model.config, model(inputs), inputs).loss
    for group in loss.unflatten(0, (groups, -1)).mean(1):
        sums.append(torch.autograd.grad(group, list(model.parameters()), retain_graph=True))
    found = {}
    for (name, _), each in zip(model.named_parameters(), zip(*sums, strict=True), strict=True):
        stacked = torch.stack(each)
        found[name] = (stacked.mean(0), stacked.std(0) / math.sqrt(groups))
    assert inputs.draws["posterior"].shape == (ROWS, samples, model.latent_dim)
    return found


def quadrature(points: int = 40) -> tuple[Tensor, Tensor]:
    """Nodes and weights of E[f(e)] for standard normal e, float64 (Golub & Welsch)."""
    off = torch.arange(1, points).double().sqrt()
    nodes, vectors = torch.linalg.eigh(torch.diag(off, 1) + torch.diag(off, -1))
    return nodes, vectors[0].square()


def exact_bound(model: IWAE, x: Tensor, samples: int, *, wrong: str = "") -> Tensor:
    """Minus the IWAE bound of one image by quadrature over the draws, float64; or the surrogate of `stl`."""
    parameters = {name: p.double() for name, p in model.named_parameters()}
    nodes, weights = quadrature()
    mean, log_var = (parameters["to_posterior.weight"] @ x.double().flatten() + parameters["to_posterior.bias"]).chunk(
        2
    )
    z = mean + (0.5 * log_var).exp() * nodes
    q = distributions.Normal(mean, (0.5 * log_var).exp())
    if wrong == "stl":
        q = distributions.Normal(mean.detach(), (0.5 * log_var).exp().detach())
    means = z[:, None] * parameters["decoder.loading.weight"][:, 0] + parameters["decoder.loading.bias"]
    log_joint = distributions.Normal(means, 0.6).log_prob(x.double().flatten()).sum(1)
    log_weight = log_joint + distributions.Normal(0.0, 1.0).log_prob(z) - q.log_prob(z)
    chosen = torch.cartesian_prod(*[torch.arange(len(nodes))] * samples).view(-1, samples)
    each = log_weight[chosen]
    if wrong == "stl":
        bound = (each.detach().softmax(1) * each).sum(1)
    else:
        bound = each.logsumexp(1) - math.log(samples)
    return -(weights[chosen].prod(1) * bound).sum()


def deviations(found: dict[str, tuple[Tensor, Tensor]], model: GaussianModel, exact: Tensor, part: str) -> Tensor:
    """How many standard errors the mean gradient of each number of the encoder or decoder is from the exact one."""
    names = [name for name, _ in model.named_parameters() if name.startswith(part)]
    assert names
    gradients = torch.autograd.grad(exact, [dict(model.named_parameters())[name] for name in names])
    pairs = zip(names, gradients, strict=True)
    return torch.cat([((found[n][0] - g) / (found[n][1] + 1e-6)).flatten() for n, g in pairs]).abs()


ENCODER, DECODER = "to_posterior", "decoder"
LIMIT = 4.5  # of the largest of about a dozen deviations: exceeded by chance once in ten thousand


def one_latent(samples: int, gradient: str) -> IWAE:
    return linear_iwae(samples=samples, gradient=gradient, latent_dim=1, shift=0.5, widen=0.7)


@pytest.mark.parametrize("samples", [1, 4])
def test_the_gradient_of_the_elbo_is_the_exact_one(samples: int) -> None:
    model, x = linear_vae(samples=samples, shift=0.5, widen=0.7), pixels(1)
    found = mean_gradient(model, x, samples)
    for part in (ENCODER, DECODER):
        assert deviations(found, model, exact_neg_elbo(model, x).sum(), part).max() < LIMIT


@pytest.mark.parametrize("gradient", ["iwae", "stl", "dreg"])
@pytest.mark.parametrize("samples", [1, 2])
def test_every_estimator_has_the_exact_gradient_of_the_decoder(samples: int, gradient: str) -> None:
    model, x = one_latent(samples, gradient), pixels(1)
    found = mean_gradient(model, x, samples)
    assert deviations(found, model, exact_bound(model, x, samples), DECODER).max() < LIMIT


@pytest.mark.parametrize(("samples", "gradient"), [(1, "iwae"), (1, "stl"), (1, "dreg"), (2, "iwae"), (2, "dreg")])
def test_the_estimators_have_the_exact_gradient_of_the_encoder(samples: int, gradient: str) -> None:
    """stl among them for one draw alone (Tucker et al., arXiv:1810.04152)."""
    model, x = one_latent(samples, gradient), pixels(1)
    found = mean_gradient(model, x, samples)
    assert deviations(found, model, exact_bound(model, x, samples), ENCODER).max() < LIMIT


def test_stl_of_several_draws_is_biased_as_theory_says() -> None:
    model, x = one_latent(2, "stl"), pixels(1)
    found = mean_gradient(model, x, 2)
    assert deviations(found, model, exact_bound(model, x, 2, wrong="stl"), ENCODER).max() < LIMIT
    assert deviations(found, model, exact_bound(model, x, 2), ENCODER).max() > 3 * LIMIT


def test_dreg_varies_less_than_the_plain_gradient_of_the_encoder() -> None:
    x = pixels(1)
    errors = {
        gradient: mean_gradient(one_latent(2, gradient), x, 2)["to_posterior.bias"][1].square().sum()
        for gradient in ("iwae", "dreg")
    }
    assert errors["dreg"] < errors["iwae"]


def test_one_draw_makes_the_importance_bound_the_elbo() -> None:
    model, x = one_latent(1, "iwae"), pixels(1)
    assert exact_bound(model, x, 1).item() == pytest.approx(exact_neg_elbo(model, x).item(), abs=1e-5)


def test_the_linear_models_are_those_of_the_families() -> None:
    assert isinstance(linear_iwae(), Model)
    assert linear_iwae().data == DATA
    x = pixels(3)
    torch.testing.assert_close(exact_neg_elbo(linear_vae(), x).double(), exact_nll(x), rtol=1e-5, atol=1e-5)
