"""Estimators: their mean gradient equals the exact one, found by enumerating every latent, and draws follow q."""

import math
from collections.abc import Callable
from itertools import product

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, distributions

from vae_core import estimators

VARIABLES, CATEGORIES, ROWS = 2, 3, 40_000
EVERY_CODE = torch.tensor(list(product(range(CATEGORIES), repeat=VARIABLES)))  # [9, V]


def uniform(*shape: int, seed: int = 0) -> Tensor:
    return torch.rand(*shape, generator=torch.Generator().manual_seed(seed))


def logits() -> Tensor:
    """[V, K] of a posterior that favours no category by far."""
    return torch.randn(VARIABLES, CATEGORIES, generator=torch.Generator().manual_seed(3))


def costs() -> Tensor:
    """[K, K]: what each pair of codes costs, around 40 as a distortion may be."""
    return 40 + 2 * torch.randn(CATEGORIES, CATEGORIES, generator=torch.Generator().manual_seed(5))


def cost_of(codes: Tensor) -> Tensor:
    return costs()[codes[..., 0], codes[..., 1]]


def smooth_cost(vectors: Tensor) -> Tensor:
    """The same at one-hot vectors [..., V, K], and curved between them, as a decoder makes it."""
    pair = vectors[..., 0, :, None] * vectors[..., 1, None, :]
    return (pair * costs()).sum((-2, -1)) + 3 * vectors.square().sum((-2, -1))


def log_weight(codes: Tensor, log_q: Tensor) -> Tensor:
    return -cost_of(codes) - VARIABLES * math.log(CATEGORIES) - log_q


def each_gradient(surrogate: Callable[[Tensor], Tensor]) -> Tensor:
    """[ROWS, V, K] independent estimates: the gradient of each row's surrogate with respect to that row's logits."""
    rows = logits().expand(ROWS, -1, -1).clone().requires_grad_()
    surrogate(rows.log_softmax(-1)).sum().backward()
    assert rows.grad is not None
    return rows.grad


def exact_gradient(expectation: Callable[[Tensor], Tensor]) -> Tensor:
    """[V, K] for a function of log-probabilities [1, V, K]."""
    whole = logits().requires_grad_()
    expectation(whole.log_softmax(-1)[None]).backward()
    assert whole.grad is not None
    return whole.grad


def deviations(each: Tensor, exact: Tensor) -> Tensor:
    """How many standard errors the mean of `each` lies from `exact`, for each number and along the exact gradient."""
    along = (each * exact).sum((-2, -1)) / exact.square().sum()
    assert along.std() / math.sqrt(len(each)) < 0.05, "too few rows to tell anything"
    apart = torch.cat((each.flatten(1) - exact.flatten(), along[:, None] - 1), 1)
    return apart.mean(0) * math.sqrt(len(each)) / apart.std(0).clamp_min(1e-12)


def elbo_exactly(log_probs: Tensor) -> Tensor:
    """E_q of the cost."""
    log_q = estimators.log_prob(log_probs, EVERY_CODE[:, None])[:, 0]
    return (log_q.exp() * cost_of(EVERY_CODE)).sum()


def bound_exactly(draws: int) -> Callable[[Tensor], Tensor]:
    """Minus the importance-weighted bound in expectation over all combinations of draws."""

    def bound(log_probs: Tensor) -> Tensor:
        chosen = torch.tensor(list(product(range(len(EVERY_CODE)), repeat=draws))).T  # [S, 9 ** S]
        codes = EVERY_CODE[chosen]
        log_q = estimators.log_prob(log_probs, codes)
        value = estimators.importance_bound(log_weight(codes, log_q))
        return -(log_q.sum(0).exp() * value).sum()

    return bound


def drawn(log_probs: Tensor, draws: int) -> tuple[Tensor, Tensor]:
    codes = estimators.inverse_cdf(log_probs, uniform(draws, len(log_probs), VARIABLES))
    return codes, estimators.log_prob(log_probs, codes)


@pytest.mark.parametrize("baseline", [0.0, 40.0], ids=["no-baseline", "baseline"])
def test_the_score_function_is_unbiased(baseline: float) -> None:
    def surrogate(log_probs: Tensor) -> Tensor:
        codes, log_q = drawn(log_probs, 1)
        return estimators.score(cost_of(codes) - baseline, log_q)

    each = each_gradient(surrogate)
    if not baseline:  # the noise is that of a cost of 40: the direction is not asked for
        apart = each.mean(0) - exact_gradient(elbo_exactly)
        assert (apart.abs() < 4 * each.std(0) / math.sqrt(ROWS)).all()
    else:
        assert deviations(each, exact_gradient(elbo_exactly)).abs().max() < 3


def rloo(log_probs: Tensor) -> Tensor:
    codes, log_q = drawn(log_probs, 4)
    cost = cost_of(codes)
    return estimators.score(cost - estimators.leave_one_out_mean(cost), log_q)


def test_leave_one_out_is_unbiased() -> None:
    assert deviations(each_gradient(rloo), exact_gradient(elbo_exactly)).abs().max() < 3


def test_leave_one_out_varies_less_than_plain_draws() -> None:
    def plain(log_probs: Tensor) -> Tensor:
        codes, log_q = drawn(log_probs, 4)
        return estimators.score(cost_of(codes), log_q)

    assert each_gradient(rloo).var(0).sum() < 0.05 * each_gradient(plain).var(0).sum()


def test_a_mean_that_includes_the_draw_itself_would_be_seen() -> None:
    def flawed(log_probs: Tensor) -> Tensor:
        codes, log_q = drawn(log_probs, 4)
        cost = cost_of(codes)
        return estimators.score(cost - cost.mean(0), log_q)

    assert deviations(each_gradient(flawed), exact_gradient(elbo_exactly)).abs().max() > 5


@pytest.mark.parametrize("mean", ["geometric", "arithmetic"])
@pytest.mark.parametrize("draws", [2, 3])
def test_vimco_is_unbiased_for_the_importance_bound(mean: str, draws: int) -> None:
    def surrogate(log_probs: Tensor) -> Tensor:
        codes, log_q = drawn(log_probs, draws)
        return estimators.vimco(log_weight(codes, log_q), log_q, mean)

    assert deviations(each_gradient(surrogate), exact_gradient(bound_exactly(draws))).abs().max() < 3


def test_vimco_without_the_weights_own_gradient_would_be_seen() -> None:
    def flawed(log_probs: Tensor) -> Tensor:
        codes, log_q = drawn(log_probs, 2)
        return estimators.vimco(log_weight(codes, log_q.detach()), log_q)

    assert deviations(each_gradient(flawed), exact_gradient(bound_exactly(2))).abs().max() > 5


def relaxed_gradient(temperature: float, estimator: Callable[[Tensor], Tensor]) -> Tensor:
    def surrogate(log_probs: Tensor) -> Tensor:
        noise = estimators.standard_gumbel(uniform(1, ROWS, VARIABLES, CATEGORIES))
        return smooth_cost(estimator(estimators.gumbel_softmax(log_probs, noise, temperature))).mean(0)

    return each_gradient(surrogate).mean(0)


@pytest.mark.parametrize("estimator", [lambda draw: draw, estimators.straight_through], ids=["relaxed", "hard"])
def test_the_bias_of_relaxed_gradients_falls_with_the_temperature(estimator: Callable[[Tensor], Tensor]) -> None:
    exact = exact_gradient(elbo_exactly)
    biases = [(relaxed_gradient(t, estimator) - exact).norm() / exact.norm() for t in (1.0, 0.2, 0.05)]
    assert biases[0] > 1.5 * biases[1] > 3 * biases[2]
    assert biases[2] < 0.15


@pytest.mark.parametrize("temperature", [0.1, 1.0, 10.0])
def test_relaxed_draws_equal_their_equation(temperature: float) -> None:
    log_probs = logits().log_softmax(-1)[None]
    u = uniform(5, 1, VARIABLES, CATEGORIES)
    got = estimators.gumbel_softmax(log_probs, estimators.standard_gumbel(u), temperature)
    weight = (log_probs.double().exp() / -u.double().log()) ** (1 / temperature)
    torch.testing.assert_close(got.double(), weight / weight.sum(-1, keepdim=True), rtol=1e-4, atol=1e-6)


def test_relaxed_draws_harden_into_exact_ones() -> None:
    log_probs = logits().log_softmax(-1)[None]
    gumbel = estimators.standard_gumbel(uniform(500, 1, VARIABLES, CATEGORIES))
    hard = estimators.one_hot(estimators.gumbel_max(log_probs, gumbel), CATEGORIES)
    apart = [(estimators.gumbel_softmax(log_probs, gumbel, t) - hard).abs().mean() for t in (1.0, 0.1, 1e-4)]
    assert apart[0] > 4 * apart[1] > 16 * apart[2]
    assert apart[2] < 1e-3


def test_straight_through_is_one_hot_with_the_gradient_of_the_relaxed_draw() -> None:
    scores = torch.tensor([[0.3, -0.2, 1.1], [4.0, 3.9, -8.0]], requires_grad=True)
    weights = torch.tensor([1.0, 2.0, -3.0])
    hard = estimators.straight_through(scores.softmax(-1))
    assert hard.tolist() == [[0.0, 0.0, 1.0], [1.0, 0.0, 0.0]]
    (got,) = torch.autograd.grad((hard * weights).sum(), scores)
    (expected,) = torch.autograd.grad((scores.softmax(-1) * weights).sum(), scores)
    assert torch.equal(got, expected)


@pytest.mark.parametrize("way", ["inverse_cdf", "gumbel_max"])
def test_exact_draws_follow_q(way: str) -> None:
    log_probs, draws = logits().log_softmax(-1)[None], 100_000
    if way == "inverse_cdf":
        codes = estimators.inverse_cdf(log_probs, uniform(draws, 1, VARIABLES))
    else:
        noise = estimators.standard_gumbel(uniform(draws, 1, VARIABLES, CATEGORIES))
        codes = estimators.gumbel_max(log_probs, noise)
    share, p = estimators.one_hot(codes, CATEGORIES).mean((0, 1)), log_probs[0].exp()
    assert ((share - p).abs() < 4 * (p * (1 - p) / draws).sqrt()).all()


@settings(max_examples=60)
@given(st.lists(st.sampled_from([-500.0, -60.0, -17.0, -1.0, 0.0, 0.7]), min_size=2, max_size=40), st.integers(0, 99))
def test_no_draw_has_a_vanishing_probability(scores: list[float], seed: int) -> None:
    log_probs = torch.tensor(scores).log_softmax(-1)[None, None]
    edges = log_probs.exp().cumsum(-1).flatten().clamp_max(1 - 2**-24)
    u = torch.cat((torch.tensor([0.0, 2**-24, 0.5, 1 - 2**-24]), edges, edges.nextafter(torch.tensor(0.0))))
    codes = estimators.inverse_cdf(log_probs, torch.cat((u, uniform(50, seed=seed)))[:, None, None])
    assert estimators.log_prob(log_probs, codes).min() > -24 * math.log(2) - 1e-4


def test_draws_differ_between_samples_and_variables() -> None:
    log_probs = torch.zeros(4, 5, 50).log_softmax(-1)
    assert len(estimators.inverse_cdf(log_probs, uniform(3, 4, 5)).unique()) > 25
    same = torch.full((3, 4, 5), 0.5)
    shifted = torch.eye(50)[:20].view(4, 5, 50) * 100
    assert torch.equal(estimators.inverse_cdf(shifted.log_softmax(-1), same)[0], torch.arange(20).view(4, 5))


def test_uniform_codes_never_reach_beyond_the_last_category() -> None:
    assert estimators.uniform_codes(torch.tensor([0.0, 0.0999, 0.1, 1 - 2**-24]), 10).tolist() == [0, 0, 1, 9]
    last = [estimators.uniform_codes(torch.tensor(1 - 2**-24), categories).item() for categories in range(1, 3000)]
    assert last == list(range(2999))


def test_the_largest_uniform_number_draws_the_last_probable_category() -> None:
    scores = torch.randn(4000, 1, 12, generator=torch.Generator().manual_seed(0))  # sums that round either way from 1
    scores[..., -3:] = -100
    codes = estimators.inverse_cdf(scores.log_softmax(-1), torch.full((1, 4000, 1), 1 - 2**-24))
    assert codes.unique().tolist() == [8]


def test_log_prob_equals_torch_distributions() -> None:
    log_probs = torch.randn(4, 5, 6, generator=torch.Generator().manual_seed(1)).log_softmax(-1)
    codes = torch.randint(6, (3, 4, 5), generator=torch.Generator().manual_seed(2))
    expected = distributions.Categorical(logits=log_probs).log_prob(codes).sum(-1)
    torch.testing.assert_close(estimators.log_prob(log_probs, codes), expected)


@settings(max_examples=30)
@given(
    st.integers(2, 6), st.sampled_from([1.0, 30.0]), st.sampled_from(["geometric", "arithmetic"]), st.integers(0, 999)
)
def test_the_leave_one_out_bound_equals_its_definition(draws: int, spread: float, mean: str, seed: int) -> None:
    log_weights = spread * torch.randn(draws, 3, generator=torch.Generator().manual_seed(seed)).double() - 90
    got = estimators.leave_one_out_bound(log_weights, mean)
    for i in range(draws):
        others = log_weights[[j for j in range(draws) if j != i]]
        instead = others.mean(0) if mean == "geometric" else others.logsumexp(0) - math.log(draws - 1)
        expected = torch.cat((others, instead[None])).logsumexp(0) - math.log(draws)
        torch.testing.assert_close(got[i], expected)


@settings(max_examples=30)
@given(st.integers(1, 8), st.integers(0, 999))
def test_more_draws_never_loosen_the_bound_they_average(draws: int, seed: int) -> None:
    log_weights = 3 * torch.randn(draws, 5, generator=torch.Generator().manual_seed(seed))
    assert (estimators.importance_bound(log_weights) >= log_weights.mean(0) - 1e-5).all()


def test_with_gradient_of_keeps_the_value_to_the_bit() -> None:
    surrogate = torch.tensor([1e8, -3.0], requires_grad=True)
    value = torch.tensor([0.1, 7.3], requires_grad=True)
    got = estimators.with_gradient_of(value, 2 * surrogate)
    assert torch.equal(got.detach(), value.detach())
    got.sum().backward()
    assert surrogate.grad is not None
    assert surrogate.grad.tolist() == [2.0, 2.0]
    assert value.grad is None


@pytest.mark.parametrize("extreme", [500.0, 1e30])
def test_everything_is_finite_at_extreme_logits_and_noise(extreme: float) -> None:
    scores = torch.tensor([[[extreme, -extreme, 0.0], [0.0, 0.0, extreme]]], requires_grad=True)
    u = torch.tensor([0.0, 0.5, 1 - 2**-24])
    log_probs = scores.log_softmax(-1)
    codes = estimators.inverse_cdf(log_probs, u[:, None, None].expand(3, 1, 2))
    log_q = estimators.log_prob(log_probs, codes)
    noise = estimators.standard_gumbel(u.expand(1, 1, 2, 3))
    relaxed = estimators.gumbel_softmax(log_probs, noise, 0.01)
    weights = log_weight(codes, log_q)
    signal = log_q - estimators.leave_one_out_mean(log_q)
    total = estimators.score(signal, log_q) + estimators.vimco(weights, log_q) + smooth_cost(relaxed).sum()
    total = total + estimators.vimco(weights, log_q, "arithmetic") + estimators.straight_through(relaxed).sum()
    total.sum().backward()
    assert scores.grad is not None
    assert noise.isfinite().all()
    assert total.isfinite().all()
    assert scores.grad.isfinite().all()
