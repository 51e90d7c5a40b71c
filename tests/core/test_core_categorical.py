"""Categorical latents: each estimator's gradient and figures equal the exact ones, found by enumerating the latents."""

import math
from dataclasses import replace
from itertools import product
from typing import Any

import pytest
import torch
from torch import Tensor, distributions, nn

from vae_core import estimators, training
from vae_core.batch import Batch
from vae_core.conditioning import Known
from vae_core.config import CategoricalConfig, DataSpec, MLPConfig, RangeError
from vae_core.models import categorical
from vae_core.models.base import CodeModel, HasLikelihood, Inputs
from vae_core.models.categorical import Categorical, CategoricalOutput
from vae_core.noise import Noise
from vae_core.objectives.categorical import categorical_kl, categorical_terms
from vae_core.objectives.terms import Terms

ESTIMATORS = ("gumbel", "straight_through", "reinforce", "rloo", "vimco", "wake_sleep")
TINY = DataSpec(channels=1, height=2, width=2, num_classes=3)
EVERY_CODE = torch.tensor(list(product(range(3), repeat=2)))  # [9, V]
EVERY_IMAGE = torch.tensor(list(product((0.0, 1.0), repeat=4))).view(16, 1, 2, 2)
X = torch.tensor([[[[1.0, 0.0], [1.0, 1.0]]]])

each_estimator = pytest.mark.parametrize("estimator", ESTIMATORS)


def config_of(estimator: Any, **fields: Any) -> CategoricalConfig:
    draws = {"rloo": 3, "vimco": 3}.get(estimator, 1)
    network = MLPConfig(kind="mlp", hidden=(6,), activation="tanh")
    shape = {"variables": 2, "categories": 3, "samples": draws, "network": network}
    return CategoricalConfig(kind="categorical", estimator=estimator, **{**shape, **fields})


def tiny(estimator: str, *, seed: int = 0, data: DataSpec = TINY, **fields: Any) -> Categorical:
    """A model whose posterior and pixels depend on what they are given more than initial weights make them."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        model = Categorical(config_of(estimator, **fields), data)
        for parameter in model.parameters():
            nn.init.normal_(parameter, std=0.7)
    if model.baseline is not None:
        model.baseline.started.fill_(1.0)
    return model


def noise_for(rows: int, step: int = 0) -> Noise:
    return Noise(seed=0, scope="test", step=step, position=torch.arange(rows), rows=rows)


def inputs_of(model: Categorical, x: Tensor, *, beta: float = 1.0, temperature: float = 1.0, step: int = 0) -> Inputs:
    return Inputs(
        x=x,
        condition=model.condition(Known(labels=torch.arange(len(x)) % 3)),
        draws=model.draws(noise_for(len(x), step)),
        weights={"beta": torch.tensor(beta), "temperature": torch.tensor(temperature)},
        progress=torch.tensor(0.0),
        row_weight=torch.ones(len(x)),
        global_rows=len(x),
    )


def terms_of(model: Categorical, inputs: Inputs) -> Terms:
    return categorical_terms(model.config, model(inputs), inputs)


def images(rows: int, seed: int = 0) -> Tensor:
    return (torch.rand(rows, 1, 2, 2, generator=torch.Generator().manual_seed(seed)) < 0.5).float()


# What is exact


def joint(model: Categorical, x: Tensor) -> tuple[Tensor, Tensor]:
    """log p(x, z) and log q(z | x) of one image and every z, [9] each."""
    log_q = estimators.log_prob(model.encode(x, None), EVERY_CODE[:, None])[:, 0]
    pixels = model.decode((EVERY_CODE[:, None],), None)
    return -pixels.nll(x.expand(9, -1, -1, -1)) - math.log(9), log_q


def neg_elbo(model: Categorical, beta: float = 1.0) -> Tensor:
    log_p, log_q = joint(model, X)
    return (log_q.exp() * (-(log_p + math.log(9)) + beta * (log_q + math.log(9)))).sum()


def neg_bound(model: Categorical, draws: int) -> Tensor:
    log_p, log_q = joint(model, X)
    chosen = torch.tensor(list(product(range(9), repeat=draws))).T
    bound = estimators.importance_bound((log_p - log_q)[chosen])
    return -(log_q[chosen].sum(0).exp() * bound).sum()


def wake_and_sleep(model: Categorical) -> Tensor:
    """E_q of -log p(x, z) with q held, and E_p of -log q(z | x) over all images and latents with p held."""
    log_p, log_q = joint(model, X)
    both = [joint(model, x[None]) for x in EVERY_IMAGE]
    sleep = -torch.stack([(p.detach().exp() * q).sum() for p, q in both]).sum()
    return -(log_q.detach().exp() * log_p).sum() + sleep


def gradient(model: Categorical, loss: Tensor) -> Tensor:
    """Of encoder and decoder, as one vector."""
    model.zero_grad()
    loss.backward()
    named = [(name, p) for name, p in model.named_parameters() if not name.startswith("baseline")]
    return torch.cat([torch.zeros_like(p).flatten() if p.grad is None else p.grad.flatten() for _, p in named])


def estimates(model: Categorical, *, steps: int = 150, rows: int = 400, beta: float = 1.0) -> Tensor:
    """[steps, parameters] independent estimates of the gradient at image X."""
    x = X.expand(rows, -1, -1, -1)
    return torch.stack(
        [gradient(model, terms_of(model, inputs_of(model, x, beta=beta, step=i)).loss.mean()) for i in range(steps)]
    )


def deviations(each: Tensor, exact: Tensor) -> Tensor:
    """How many standard errors the mean lies from `exact`: for each parameter, and last along the exact gradient."""
    along = (each @ exact) / exact.square().sum()
    assert along.std() / math.sqrt(len(each)) < 0.03, "too few rows to tell anything"
    apart = torch.cat((each - exact, along[:, None] - 1), 1)
    return apart.mean(0) * math.sqrt(len(each)) / apart.std(0).clamp_min(1e-6)


def assert_unbiased(each: Tensor, exact: Tensor) -> None:
    apart = deviations(each, exact)
    assert abs(apart[-1]) < 3
    assert apart.abs().max() < 4  # the largest of some 100


# Gradients


@pytest.mark.parametrize("beta", [1.0, 0.3])
def test_reinforce_is_unbiased(beta: float) -> None:
    model = tiny("reinforce")
    assert model.baseline is not None
    nn.init.zeros_(model.baseline.out.weight)
    nn.init.zeros_(model.baseline.out.bias)
    assert_unbiased(estimates(model, beta=beta), gradient(model, neg_elbo(model, beta)))


def test_reinforce_with_a_trained_baseline_is_unbiased_up_to_one_scale_of_the_encoder() -> None:
    model = tiny("reinforce")
    assert model.baseline is not None
    model.baseline.mean.fill_(2.5)
    model.baseline.variance.fill_(4.0)
    exact = gradient(model, neg_elbo(model))
    sizes = {name: p.numel() for name, p in model.named_parameters() if not name.startswith("baseline")}
    scale = torch.cat([torch.full((n,), 1.0 if "decoder" in name else 0.5) for name, n in sizes.items()])
    assert_unbiased(estimates(model), scale * exact)


def test_rloo_is_unbiased() -> None:
    model = tiny("rloo")
    assert_unbiased(estimates(model, beta=0.3), gradient(model, neg_elbo(model, 0.3)))


def test_vimco_is_unbiased_for_the_importance_bound() -> None:
    model = tiny("vimco")
    assert_unbiased(estimates(model), gradient(model, neg_bound(model, 3)))


def test_wake_trains_the_decoder_and_sleep_the_encoder_without_bias() -> None:
    model = tiny("wake_sleep")
    assert_unbiased(estimates(model), gradient(model, wake_and_sleep(model)))


@pytest.mark.parametrize("estimator", ["gumbel", "straight_through"])
def test_the_bias_of_relaxed_gradients_falls_with_the_temperature(estimator: str) -> None:
    model, x = tiny(estimator), X.expand(20_000, -1, -1, -1)
    exact = gradient(model, neg_elbo(model))

    def bias(temperature: float) -> Tensor:
        terms = [terms_of(model, inputs_of(model, x, temperature=temperature, step=i)).loss.mean() for i in range(2)]
        return (gradient(model, (terms[0] + terms[1]) / 2) - exact).norm() / exact.norm()

    assert bias(3.0) > 2 * bias(0.1)
    assert bias(0.1) < 0.1


def test_rloo_varies_less_than_plain_reinforce_with_as_many_draws() -> None:
    plain = tiny("reinforce", samples=4)
    assert plain.baseline is not None
    nn.init.zeros_(plain.baseline.out.weight)
    nn.init.zeros_(plain.baseline.out.bias)
    spread = [estimates(m, steps=60, rows=50).var(0).sum() for m in (plain, tiny("rloo", samples=4))]
    assert spread[1] < 0.5 * spread[0]


def test_the_baseline_follows_its_squared_error() -> None:
    model = tiny("reinforce", samples=2)
    assert model.baseline is not None
    model.baseline.variance.fill_(9.0)
    inputs = inputs_of(model, images(5))
    model.zero_grad()
    terms_of(model, inputs).loss.sum().backward()
    got = [p.grad.clone() for p in model.baseline.parameters() if p.grad is not None]
    output = model(inputs)
    model.zero_grad()
    (0.5 * (output.cost(1.0).detach() - output.expected.cost).square().mean(0).sum() / 3).backward()
    expected = [p.grad for p in model.baseline.parameters()]
    assert len(got) == len(expected)
    for left, right in zip(got, expected, strict=True):
        torch.testing.assert_close(left, right)


def test_the_first_step_of_reinforce_only_measures() -> None:
    model = tiny("reinforce")
    assert model.baseline is not None
    model.baseline.started.fill_(0.0)
    terms_of(model, inputs_of(model, images(5))).loss.sum().backward()
    moved = {n for n, p in model.named_parameters() if p.grad is not None and p.grad.abs().sum() > 0}
    assert {name.split(".")[0] for name in moved} == {"decoder"}


# Running statistics of the learning signal


def follow(model: Categorical, missed: Tensor, weight: Tensor) -> list[float]:
    assert model.baseline is not None
    model.baseline.follow(missed, weight, torch.tensor(True))
    return [model.baseline.mean.item(), model.baseline.variance.item()]


def test_the_running_statistics_begin_at_the_first_batch_and_then_decay() -> None:
    model = tiny("reinforce")
    assert model.baseline is not None
    model.baseline.started.fill_(0.0)
    first, second = torch.tensor([[500.0, 510.0], [520.0, 530.0]]), torch.tensor([[1.0, -3.0]])
    assert follow(model, first, torch.ones(2)) == pytest.approx([515.0, 125.0])
    assert follow(model, second, torch.ones(2)) == pytest.approx([515 - 0.2, 0.8 * 125 + 0.2 * 4])


def update(model: Categorical, output: CategoricalOutput, inputs: Inputs) -> None:
    model.update(model.followed(output, inputs), inputs.row_weight, noise_for(len(inputs.x)), torch.tensor(True))


def test_the_running_mean_settles_at_the_mean_cost() -> None:
    model, x = tiny("reinforce"), X.expand(3000, -1, -1, -1)
    assert model.baseline is not None
    for step in range(20):
        inputs = inputs_of(model, x, step=step)
        update(model, model(inputs), inputs)
    output = model(inputs)
    assert output.expected.cost.mean().item() == pytest.approx(neg_elbo(model).item(), abs=0.1)
    assert 1 / output.expected.scale.item() == pytest.approx(max(1.0, output.cost(1.0).std().item()), rel=0.1)


def test_the_ranks_share_one_set_of_statistics(monkeypatch: pytest.MonkeyPatch) -> None:
    missed = 90 + 8 * torch.randn(2, 6, generator=torch.Generator().manual_seed(0))
    alone = follow(tiny("reinforce"), missed, torch.ones(6))
    padded = torch.cat((missed[:, 4:], torch.full((2, 2), math.nan)), 1)  # padding may hold anything
    ranks = [(missed[:, :4], torch.ones(4)), (padded, torch.tensor([1.0, 1.0, 0.0, 0.0]))]
    sums: list[Tensor] = []
    monkeypatch.setattr(categorical, "all_reduce_sum", lambda tensor: sums.append(tensor.clone()) or tensor)
    for rank in ranks:
        follow(tiny("reinforce"), *rank)
    monkeypatch.setattr(categorical, "all_reduce_sum", lambda tensor: sums[0] + sums[1])
    for rank in ranks:
        assert follow(tiny("reinforce"), *rank) == pytest.approx(alone, rel=1e-6)


def test_evaluation_leaves_the_statistics_alone() -> None:
    model = tiny("reinforce").eval()
    before = {name: buffer.clone() for name, buffer in model.named_buffers()}
    terms_of(model, inputs_of(model, images(4)))
    assert all(torch.equal(before[name], buffer) for name, buffer in model.named_buffers())
    assert set(before) == {"baseline.mean", "baseline.variance", "baseline.started"}


# Figures


@each_estimator
@torch.no_grad()
def test_evaluation_reports_the_elbo_of_the_discrete_model(estimator: str) -> None:
    model, x = tiny(estimator).eval(), X.expand(20_000, -1, -1, -1)
    parts = terms_of(model, inputs_of(model, x, beta=7.0, temperature=5.0)).parts
    error = parts["neg_elbo_nats"].std() / math.sqrt(len(x))
    assert abs(parts["neg_elbo_nats"].mean() - neg_elbo(model)) < 3 * error
    assert torch.equal(parts["neg_elbo_nats"], parts["distortion_nats"] + parts["rate_nats"])


@torch.no_grad()
def test_relaxed_draws_would_report_another_elbo() -> None:
    model, x = tiny("gumbel"), X.expand(20_000, -1, -1, -1)
    parts = terms_of(model, inputs_of(model, x, temperature=5.0)).parts
    assert abs(parts["neg_elbo_nats"].mean() - neg_elbo(model)) > 0.05


@torch.no_grad()
def test_vimco_and_wake_sleep_report_their_own_figures() -> None:
    x = X.expand(20_000, -1, -1, -1)
    for estimator, name, exact in (
        ("vimco", "neg_iwae_bound_nats", lambda m: neg_bound(m, 3)),
        ("wake_sleep", "sleep_nats", lambda m: wake_and_sleep(m) - wake(m)),
    ):
        model = tiny(estimator).eval()
        part = terms_of(model, inputs_of(model, x)).parts[name]
        assert abs(part.mean() - exact(model)) < 3 * part.std() / math.sqrt(len(x))


def wake(model: Categorical) -> Tensor:
    log_p, log_q = joint(model, X)
    return -(log_q.exp() * log_p).sum()


@torch.no_grad()
def test_importance_weights_average_to_the_likelihood_of_the_image() -> None:
    model, samples = tiny("rloo"), 20_000
    assert isinstance(model, HasLikelihood)
    epsilon = model.importance_noise(noise_for(2), "likelihood", samples)
    x = images(2)
    weights = model.log_weight(x, None, model.encode(x, None), epsilon)
    assert weights.shape == (samples, 2)
    for i in range(2):
        exact = joint(model, x[i : i + 1])[0].logsumexp(0).exp()
        mean, error = weights[:, i].exp().mean(), weights[:, i].exp().std() / math.sqrt(samples)
        assert abs(mean - exact) < 3 * error
        assert error < 0.02 * exact


@torch.no_grad()
def test_importance_weights_do_not_depend_on_the_chunks_they_are_computed_in() -> None:
    model, x = tiny("gumbel"), images(3)
    q, epsilon = model.encode(x, None), model.importance_noise(noise_for(3), "likelihood", 10)
    whole = model.log_weight(x, None, q, epsilon)
    chunks = [model.log_weight(x, None, q, part) for part in epsilon.split(4)]
    torch.testing.assert_close(torch.cat(chunks), whole)


def test_kl_equals_torch_distributions() -> None:
    log_probs = 2 * torch.randn(4, 5, 6, generator=torch.Generator().manual_seed(1))
    q = distributions.Categorical(logits=log_probs.double())
    p = distributions.Categorical(logits=torch.zeros_like(q.logits))
    expected = distributions.kl_divergence(q, p).sum(1)
    torch.testing.assert_close(categorical_kl(log_probs.log_softmax(-1)).double(), expected, rtol=1e-5, atol=1e-5)
    assert categorical_kl(torch.full((2, 3, 4), -math.log(4.0))).abs().max() < 1e-6


@each_estimator
def test_terms_of_a_batch_equal_those_of_its_samples(estimator: str) -> None:
    model = tiny(estimator, condition="label", samples=3)
    inputs = inputs_of(model, images(5))
    whole = terms_of(model, inputs)
    for i in range(5):
        own = replace(
            inputs,
            x=inputs.x[i : i + 1],
            condition=None if inputs.condition is None else inputs.condition[i : i + 1],
            draws={name: draw[i : i + 1] for name, draw in inputs.draws.items()},
        )
        alone = terms_of(model, own)
        torch.testing.assert_close(alone.loss[0], whole.loss[i])
        for name, part in whole.parts.items():
            assert part.shape == (5,)
            torch.testing.assert_close(alone.parts[name][0], part[i])


@each_estimator
def test_weights_enter_the_loss_and_no_part(estimator: str) -> None:
    model = tiny(estimator)
    low, high = (terms_of(model, inputs_of(model, images(6), beta=beta)) for beta in (0.5, 2.0))
    assert all(torch.equal(low.parts[name], high.parts[name]) for name in low.parts)
    weighs = estimator not in ("vimco", "wake_sleep")
    torch.testing.assert_close(high.loss - low.loss, 1.5 * weighs * low.parts["rate_nats"])


@pytest.mark.parametrize("estimator", ["vimco", "wake_sleep"])
def test_a_beta_that_an_objective_has_no_place_for_is_refused(estimator: str) -> None:
    with pytest.raises(RangeError, match=f"beta: expected 1 for {estimator}"):
        tiny(estimator, beta=0.5)


# Numerics, randomness, interfaces


@each_estimator
@pytest.mark.parametrize("training", [True, False])
def test_value_and_gradient_are_finite_whatever_the_networks_put_out(estimator: str, training: bool) -> None:
    model = tiny(estimator).train(training)
    with torch.no_grad():
        model.to_posterior.weight.mul_(1e4)
        model.decoder.out.weight.mul_(500)
    terms = terms_of(model, inputs_of(model, images(20), temperature=0.01))
    terms.loss.sum().backward()
    assert terms.loss.isfinite().all()
    assert all(part.isfinite().all() for part in terms.parts.values())
    assert all(p.grad is None or p.grad.isfinite().all() for p in model.parameters())


@each_estimator
def test_probabilities_are_float32_under_autocast(estimator: str) -> None:
    model = tiny(estimator)
    inputs = inputs_of(model, images(7))
    with torch.autocast("cpu", torch.bfloat16):
        output: CategoricalOutput = model(inputs)
        terms = categorical_terms(model.config, output, inputs)
    tensors = [output.posterior, output.distortion, output.log_q, output.dream_log_q, terms.loss, *terms.parts.values()]
    assert {tensor.dtype for tensor in tensors if tensor is not None} == {torch.float32}
    torch.testing.assert_close(output.posterior.exp().sum(-1), torch.ones(7, 2), rtol=0, atol=1e-6)


@each_estimator
def test_all_randomness_comes_in_through_the_draws(estimator: str) -> None:
    model, state = tiny(estimator), torch.get_rng_state()
    first, again, other = (terms_of(model, inputs_of(model, images(9), step=step)).loss for step in (0, 0, 1))
    assert torch.equal(first, again)
    assert not torch.equal(first, other)
    assert torch.equal(torch.get_rng_state(), state)


@each_estimator
def test_a_step_compiles_without_a_graph_break(estimator: str) -> None:
    torch.compiler.reset()
    images = torch.randint(256, (4, 1, 2, 2), dtype=torch.uint8, generator=torch.Generator().manual_seed(0))
    batch = Batch(images, torch.arange(4) % 3, weight=torch.ones(4), position=torch.arange(4), global_rows=4)
    compiled: Any = torch.compile(training.forward, fullgraph=True, backend="aot_eager")
    states = []
    for forward in (training.forward, compiled):
        model = tiny(estimator, condition="label")
        optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
        step: dict[str, Any] = {"noise": noise_for(4), "learning_rate": 0.1, "max_grad_norm": 1e9, "forward": forward}
        assert not training.train_step(model, batch, optimizer, **step).skipped
        states.append(model.state_dict())
    for name, eager in states[0].items():
        torch.testing.assert_close(states[1][name], eager)


def test_codes_are_the_most_probable_ones_and_decode() -> None:
    model, x = tiny("gumbel"), images(6)
    assert isinstance(model, CodeModel)
    codes = model.represent(x, None)
    assert (model.grids, model.num_codes) == (((1, 2),), 3)
    assert [(code.shape, code.dtype) for code in codes] == [((6, 1, 2), torch.int64)]
    log_q = estimators.log_prob(model.encode(x, None), EVERY_CODE[:, None].expand(-1, 6, -1))
    assert torch.equal(EVERY_CODE[log_q.argmax(0)], codes[0][:, 0])
    assert model.decode(codes, None).mean.shape == x.shape


def test_a_path_changes_one_variable_after_the_other() -> None:
    model = tiny("gumbel")
    start, end = torch.tensor([[[0, 1, 2, 1]], [[0, 0, 0, 0]]]), torch.tensor([[[2, 1, 0, 1]], [[1, 1, 1, 1]]])
    path = [model.between((start,), (end,), fraction)[0][:, 0].tolist() for fraction in (0.0, 0.5, 1.0)]
    assert path == [start[:, 0].tolist(), [[2, 1, 2, 1], [1, 1, 0, 0]], end[:, 0].tolist()]


def test_the_prior_draws_every_code_alike() -> None:
    model = tiny("gumbel")
    (codes,) = model.prior_codes(torch.rand(9000, 2, generator=torch.Generator().manual_seed(0)))
    assert codes.shape == (9000, 1, 2)
    counts = torch.bincount(codes[:, 0] @ torch.tensor([3, 1]), minlength=9)
    assert ((counts - 1000).abs() < 5 * math.sqrt(1000)).all()


def test_encoder_decoder_and_baseline_see_the_condition() -> None:
    model, x = tiny("reinforce", condition="label"), X.expand(3, -1, -1, -1)
    assert model.baseline is not None
    c = inputs_of(model, x).condition
    assert model.encode(x, c).std(0).max() > 0.01
    assert model.decode((torch.zeros(3, 1, 2, dtype=torch.int64),), c).mean.std(0).max() > 0.01
    assert model.baseline(x, c).cost.std() > 0.01


@pytest.mark.parametrize("likelihood", ["bernoulli", "continuous_bernoulli", "gaussian", "discretised_logistic"])
def test_dreams_of_every_likelihood_train_the_encoder_alone(likelihood: str) -> None:
    model = tiny("wake_sleep", likelihood=likelihood, samples=2)
    sleep = terms_of(model, inputs_of(model, images(4))).parts["sleep_nats"]
    assert sleep.shape == (4,)
    assert sleep.isfinite().all()
    sleep.sum().backward()
    moved = {name.split(".")[0] for name, p in model.named_parameters() if p.grad is not None and p.grad.any()}
    assert moved == {"encoder", "to_posterior"}


@each_estimator
def test_training_lowers_the_exact_elbo(estimator: str) -> None:
    model, x = tiny(estimator), torch.cat((X, 1 - X)).repeat(16, 1, 1, 1)
    optimizer = torch.optim.Adam(model.parameters(), lr=0.02)
    before = neg_elbo(model).item()
    for step in range(150):
        inputs = inputs_of(model, x, temperature=0.5, step=step)
        output = model(inputs)
        optimizer.zero_grad()
        categorical_terms(model.config, output, inputs).loss.mean().backward()
        optimizer.step()
        update(model, output, inputs)
    assert neg_elbo(model) < min(before, 1.5)  # 4 bits are 2.8 nats; two images need one bit, 0.7
