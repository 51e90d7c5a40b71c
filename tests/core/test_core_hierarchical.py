"""The deep hierarchical VAE: its bound is one, its groups are drawn in order, none of its rows sees another."""

import itertools
import math
from dataclasses import replace
from typing import Any

import pytest
import torch
from core_models import digits
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, distributions, nn

from vae_core.config import ConvConfig, DataSpec, HierarchicalConfig
from vae_core.models.base import Inputs
from vae_core.models.hierarchical import Hierarchical, HierarchicalOutput
from vae_core.normal import DiagonalNormal
from vae_core.objectives.hierarchical import balance, group_rates, hierarchical_terms

NETWORK = ConvConfig(kind="conv", channels=4, downsamples=2, residual_blocks=1, activation="silu")
DIGITS = DataSpec(channels=1, height=8, width=8, num_classes=10)


def config(**fields: Any) -> HierarchicalConfig:
    return HierarchicalConfig(kind="hierarchical", **{"network": NETWORK, "latent_channels": 2, **fields})


def build(settings_: HierarchicalConfig, data: DataSpec = DIGITS, *, started: bool = False) -> Hierarchical:
    """A model; not `started`: its priors and what they see are moved, so that none is N(0, I) any more."""
    torch.manual_seed(0)
    model = Hierarchical(settings_, data)
    if not started:
        for parameter in (model.top, *(p for group in model.groups for p in group.to_prior[-1].parameters())):
            nn.init.normal_(parameter, std=0.5)
    return model


def binary(rows: int, data: DataSpec = DIGITS) -> Tensor:
    return (torch.rand(rows, *data.shape, generator=torch.Generator().manual_seed(1)) > 0.5).float()


def noise(model: Hierarchical, *rows: int, seed: int = 2) -> Tensor:
    return torch.randn(*rows, model.latent_dim, generator=torch.Generator().manual_seed(seed))


def inputs(model: Hierarchical, x: Tensor, c: Tensor | None = None, **fields: Any) -> Inputs:
    values: dict[str, Any] = {
        "x": x,
        "condition": c,
        "draws": {"posterior": noise(model, len(x))},
        "weights": {"beta": torch.tensor(1.0)},
        "progress": torch.tensor(0.5),
        "row_weight": torch.ones(len(x)),
        "global_rows": len(x),
        **fields,
    }
    return Inputs(**values)


def output_with(rates: list[float], sizes: list[int], rows: int = 2) -> HierarchicalOutput:
    """An output whose groups have these rates in every row: the posteriors are moved, not narrowed."""
    posteriors, priors, latents = [], [], []
    for rate, size in zip(rates, sizes, strict=True):
        zeros = torch.zeros(rows, 1, 1, size)
        mean = torch.full_like(zeros, math.sqrt(2 * rate / size)).requires_grad_()
        posteriors.append(DiagonalNormal(mean, zeros))
        priors.append(DiagonalNormal(zeros, zeros))
        latents.append(zeros)
    pixels = Hierarchical(config(), DIGITS).head(torch.zeros(rows, 1, 8, 8))
    return HierarchicalOutput(tuple(posteriors), tuple(priors), tuple(latents), pixels)


@pytest.mark.parametrize("kind", ["conv", "residual"])
@pytest.mark.parametrize(
    ("shape", "downsamples", "groups", "grids"),
    [
        ((1, 8, 8), None, 2, [(4, 4)] * 2),
        ((3, 16, 8), 2, 1, [(4, 2), (8, 4)]),
        ((1, 28, 28), None, 2, [(7, 7)] * 2 + [(14, 14)] * 2),
        ((2, 1, 128), None, 1, [(1, 32), (1, 64)]),
    ],
)
def test_groups_lie_on_every_scale_from_the_coarsest_on(
    kind: str, shape: tuple[int, int, int], downsamples: int | None, groups: int, grids: list[tuple[int, int]]
) -> None:
    network = replace(NETWORK, kind=kind, downsamples=downsamples)
    data = DataSpec(channels=shape[0], height=shape[1], width=shape[2])
    model = build(config(network=network, groups=groups, likelihood="discretised_logistic"), data)
    output = model(inputs(model, torch.rand(3, *shape)))
    assert model.grids == [(2, *grid) for grid in grids]
    assert [tuple(z.shape[1:]) for z in output.latents] == model.grids
    assert model.latent_dim == sum(2 * h * w for h, w in grids)
    assert output.pixels.mean.shape == (3, *shape)
    assert model.decode(model.represent(torch.rand(3, *shape), None), None).mean.shape == (3, *shape)


def test_rates_are_the_divergences_of_each_group_and_sum_to_the_rate() -> None:
    model, x = build(config()), binary(3)
    step = inputs(model, x)
    output = model(step)
    expected = []
    for q, p in zip(output.posteriors, output.priors, strict=True):
        normals = [distributions.Normal(n.mean.double(), (0.5 * n.log_var.double()).exp()) for n in (q, p)]
        expected.append(distributions.kl_divergence(*normals).flatten(1).sum(1))
    torch.testing.assert_close(group_rates(output).double(), torch.stack(expected, 1), rtol=1e-5, atol=1e-5)
    terms = hierarchical_terms(model.config, output, step)
    torch.testing.assert_close(terms.parts["rate_nats"].double(), torch.stack(expected).sum(0), rtol=1e-5, atol=1e-5)
    torch.testing.assert_close(terms.loss, terms.parts["neg_elbo_nats"])
    torch.testing.assert_close(terms.parts["neg_elbo_nats"], terms.parts["distortion_nats"] + terms.parts["rate_nats"])


def test_posteriors_are_relative_to_the_prior() -> None:
    """Equation 2 of arXiv:2007.03898: the rate is a function of the deltas and of the prior's sigma."""
    model, x = build(config()), binary(3)
    output = model(inputs(model, x))
    for i, (q, p) in enumerate(zip(output.posteriors, output.priors, strict=True)):
        delta, ratio = q.mean - p.mean, (q.log_var - p.log_var).exp()
        closed = 0.5 * (delta.square() / p.log_var.exp() + ratio - ratio.log() - 1)
        torch.testing.assert_close(group_rates(output)[:, i], closed.flatten(1).sum(1), rtol=1e-4, atol=1e-4)
    state = model._start(3, None)
    head, prior = model.groups[0].to_posterior[-1], model.groups[0].prior(state)
    nn.init.zeros_(head.weight)
    with torch.no_grad():
        head.bias.copy_(torch.tensor([0.5, 0.5, 2.0, 2.0]))
    moved = model.groups[0].posterior(state, torch.zeros_like(state), prior)
    torch.testing.assert_close(moved.mean, prior.mean + 0.5)
    torch.testing.assert_close(moved.log_var, prior.log_var + 2)


def test_a_delta_of_zero_gives_the_prior_and_no_rate() -> None:
    model, x = build(config()), binary(3)
    for group in model.groups:
        for parameter in group.to_posterior[-1].parameters():
            nn.init.zeros_(parameter)
    output = model(inputs(model, x))
    assert group_rates(output).abs().max() == 0
    drawn = torch.cat([z.flatten(1) for z in output.latents], dim=1)
    torch.testing.assert_close(drawn, model.from_prior(noise(model, 3), None))


@pytest.mark.parametrize("condition", ["none", "label"])
def test_log_weight_is_the_log_ratio_of_joint_and_posterior(condition: str) -> None:
    model, x = build(config(condition=condition)), binary(3)
    c = torch.eye(10)[:3] if condition == "label" else None
    epsilon = noise(model, 5, 3)
    found = model.log_weight(x, c, model.encode(x, c), epsilon)
    assert found.shape == (5, 3)
    assert found.dtype == torch.float32
    for sample in range(5):
        output = model.infer(model.encode(x, c), c, epsilon[sample])
        expected = distributions.Bernoulli(logits=output.pixels.logits).log_prob(x).flatten(1).sum(1)
        for q, p, z in zip(output.posteriors, output.priors, output.latents, strict=True):
            for sign, normal in ((-1, q), (1, p)):
                density = distributions.Normal(normal.mean, (0.5 * normal.log_var).exp()).log_prob(z)
                expected = expected + sign * density.flatten(1).sum(1)
        torch.testing.assert_close(found[sample], expected, rtol=1e-4, atol=1e-3)


def test_likelihoods_of_all_images_sum_to_one() -> None:
    """Importance sampling of p(x) for each of the 16 binary images of 2 x 2 pixels."""
    data = DataSpec(channels=1, height=2, width=2)
    model = build(config(network=replace(NETWORK, downsamples=1), latent_channels=1), data)
    x = torch.tensor(list(itertools.product((0.0, 1.0), repeat=4))).view(16, 1, 2, 2)
    with torch.no_grad():
        weights = model.log_weight(x, None, model.encode(x, None), noise(model, 4000, 16)).double()
    assert (weights.logsumexp(0) - math.log(4000)).exp().sum().item() == pytest.approx(1, abs=0.02)


def test_the_negative_elbo_is_the_mean_of_the_log_weights() -> None:
    model, x = build(config(network=replace(NETWORK, downsamples=1), latent_channels=1)), binary(1)
    count = 4000
    many = x.expand(count, -1, -1, -1)
    with torch.no_grad():
        step = inputs(model, many)
        found = hierarchical_terms(model.config, model(step), step).parts["neg_elbo_nats"]
        weights = model.log_weight(x, None, model.encode(x, None), noise(model, count, 1, seed=5))
    error = (found.var() / count + weights.var() / count).sqrt().item()
    assert found.mean().item() == pytest.approx(-weights.mean().item(), abs=5 * error)


def test_representation_is_the_means_from_the_top_down_and_draws_nothing() -> None:
    model, x = build(config()), binary(3)
    code = model.represent(x, None)
    assert torch.equal(code, model.represent(x, None))
    output = model.infer(model.encode(x, None), None, torch.zeros(3, model.latent_dim))
    assert torch.equal(code, torch.cat([q.mean.flatten(1) for q in output.posteriors], dim=1))
    torch.testing.assert_close(model.decode(code, None).mean, output.pixels.mean)


def test_decoding_the_draws_of_a_pass_gives_the_pixels_of_that_pass() -> None:
    model, x = build(config()), binary(3)
    output = model(inputs(model, x))
    latent = torch.cat([z.flatten(1) for z in output.latents], dim=1)
    torch.testing.assert_close(model.decode(latent, None).mean, output.pixels.mean)


def test_the_prior_is_standard_normal_at_the_start_and_learned_after() -> None:
    model = build(config(), started=True)
    epsilon = noise(model, 3)
    assert torch.equal(model.from_prior(epsilon, None), epsilon)
    assert not torch.allclose(build(config()).from_prior(epsilon, None), epsilon)


def test_a_group_depends_on_the_groups_above_it_and_on_none_below() -> None:
    model = build(config())
    epsilon = noise(model, 1)
    starts = [0, *itertools.accumulate(model.sizes)]
    before = model.from_prior(epsilon, None)
    for start, end in itertools.pairwise(starts):
        changed = epsilon.clone()
        changed[:, start:end] += 1
        moved = model.from_prior(changed, None) != before
        assert not moved[:, :start].any()
        assert moved[:, start:end].all()
        for below, stop in itertools.pairwise(starts):
            assert below < end or moved[:, below:stop].any()


def test_each_row_is_drawn_with_its_own_noise_and_sees_no_other_row() -> None:
    model, x = build(config()), binary(4)
    step = inputs(model, x)
    alone = inputs(model, x[2:3], draws={"posterior": step.draws["posterior"][2:3]})
    whole, one = (hierarchical_terms(model.config, model(s), s) for s in (step, alone))
    torch.testing.assert_close(whole.parts["neg_elbo_nats"][2:3], one.parts["neg_elbo_nats"])
    assert not any("Norm" in type(module).__name__ for module in model.modules())
    assert not list(model.buffers())


def test_the_condition_reaches_posterior_prior_and_pixels() -> None:
    model, x = build(config(condition="label")), binary(2)
    first, other = torch.eye(10)[:2], torch.eye(10)[4:6]
    latent = noise(model, 2)
    assert not torch.allclose(model.encode(x, first)[0], model.encode(x, other)[0])
    assert not torch.allclose(model.from_prior(latent, first), model.from_prior(latent, other))
    assert not torch.allclose(model.decode(latent, first).mean, model.decode(latent, other).mean)
    assert not torch.allclose(model.represent(x, first), model.represent(x, other))


@pytest.mark.parametrize("kind", ["conv", "residual"])
@pytest.mark.parametrize("likelihood", ["bernoulli", "gaussian"])
def test_every_parameter_is_trained(kind: str, likelihood: str) -> None:
    network = replace(NETWORK, kind=kind)
    model = build(config(network=network, likelihood=likelihood, condition="label"))
    step = inputs(model, binary(4), torch.eye(10)[:4])
    hierarchical_terms(model.config, model(step), step).loss.sum().backward()
    assert [n for n, p in model.named_parameters() if p.grad is None or p.grad.abs().sum() == 0] == []


@pytest.mark.parametrize("scale", [1e-3, 30.0, 1e3])
def test_loss_and_gradients_are_finite_whatever_the_networks_put_out(scale: float) -> None:
    model = build(config())
    for group in model.groups:
        for head in (group.to_prior, group.to_posterior):
            head[-1].weight.data *= scale
    step = inputs(model, binary(4))
    terms = hierarchical_terms(model.config, model(step), step)
    terms.loss.sum().backward()
    assert torch.isfinite(terms.loss).all()
    assert all(p.grad is not None and torch.isfinite(p.grad).all() for p in model.parameters())


def test_terms_are_float32_and_near_the_same_under_bfloat16() -> None:
    model = build(config(), started=True)
    step = inputs(model, binary(4))
    exact = hierarchical_terms(model.config, model(step), step)
    with torch.autocast("cpu", torch.bfloat16):
        output = model(step)
        terms = hierarchical_terms(model.config, output, step)
        weights = model.log_weight(step.x, None, model.encode(step.x, None), noise(model, 3, 4))
    for tensor in (terms.loss, *terms.parts.values(), weights, group_rates(output)):
        assert tensor.dtype == torch.float32
    for normal in (*output.posteriors, *output.priors):
        assert normal.mean.dtype == normal.log_var.dtype == torch.float32
    torch.testing.assert_close(terms.loss, exact.loss, rtol=0.02, atol=0.5)


def test_forward_and_objective_compile_without_a_graph_break() -> None:
    shallow = replace(NETWORK, downsamples=1)
    model = build(config(network=shallow, condition="label", free_bits=0.5))

    def run(step: Inputs) -> Tensor:
        return hierarchical_terms(model.config, model(step), step).loss

    step = inputs(model, binary(4), torch.eye(10)[:4], progress=torch.tensor(0.1))
    with torch.no_grad():
        torch.testing.assert_close(torch.compile(run, fullgraph=True, backend="eager")(step), run(step))


@settings(max_examples=40)
@given(st.lists(st.tuples(st.floats(0, 1e4), st.integers(1, 4096)), min_size=1, max_size=8))
def test_balance_weights_have_mean_one_and_never_vanish(groups: list[tuple[float, int]]) -> None:
    rates, sizes = (torch.tensor(values, dtype=torch.float32) for values in zip(*groups, strict=True))
    weights = balance(rates, sizes)
    assert weights.mean().item() == pytest.approx(1, rel=1e-4)
    assert (weights > 0).all()
    each = rates / sizes
    assert weights[each.argmax()] == weights.max()


def test_balance_is_proportional_to_the_rate_of_a_latent_number() -> None:
    found = balance(torch.tensor([6.0, 2.0, 8.0]), torch.tensor([2.0, 2.0, 8.0]))
    assert found.tolist() == pytest.approx([3 / 5 * 3, 1 / 5 * 3, 1 / 5 * 3])
    assert balance(torch.zeros(3), torch.tensor([2.0, 4.0, 8.0])).tolist() == [1, 1, 1]


@pytest.mark.parametrize(("progress", "balanced"), [(0.0, True), (0.29, True), (0.3, False), (1.0, False)])
def test_rates_are_balanced_in_the_first_30_percent_and_then_plain(progress: float, balanced: bool) -> None:
    output = output_with([6.0, 2.0], [2, 2])
    model = build(config())
    step = inputs(model, torch.zeros(2, 1, 8, 8), progress=torch.tensor(progress))
    terms = hierarchical_terms(config(), output, step)
    cost = (terms.loss - terms.parts["distortion_nats"]).tolist()
    assert cost == pytest.approx([1.5 * 6 + 0.5 * 2 if balanced else 8.0] * 2, rel=1e-4)
    assert terms.parts["rate_nats"].tolist() == pytest.approx([8.0, 8.0], rel=1e-5)
    terms.loss.sum().backward()
    weights = [1.5, 0.5] if balanced else [1.0, 1.0]
    for q, weight in zip(output.posteriors, weights, strict=True):
        assert q.mean.grad is not None  # d rate / d mean is the mean: the weights themselves have no gradient
        torch.testing.assert_close(q.mean.grad, weight * q.mean.detach())
    off = hierarchical_terms(config(balance=False), output, step)
    assert (off.loss - off.parts["distortion_nats"]).tolist() == pytest.approx([8.0, 8.0], rel=1e-5)


def test_free_bits_make_a_group_below_them_free_of_gradient_but_not_of_report() -> None:
    output = output_with([6.0, 2.0], [2, 2])
    step = inputs(build(config()), torch.zeros(2, 1, 8, 8))
    terms = hierarchical_terms(config(free_bits=3.0, balance=False), output, step)
    terms.loss.sum().backward()
    assert (terms.loss - terms.parts["distortion_nats"]).tolist() == pytest.approx([9.0, 9.0], rel=1e-5)
    assert terms.parts["rate_nats"].tolist() == pytest.approx([8.0, 8.0], rel=1e-5)
    first, second = output.posteriors
    assert first.mean.grad is not None
    assert first.mean.grad.abs().min() > 0
    assert second.mean.grad is None or second.mean.grad.abs().max() == 0


def test_beta_weighs_the_cost_and_no_part() -> None:
    model, x = build(config()), binary(3)
    step = inputs(model, x)
    twice = inputs(model, x, weights={"beta": torch.tensor(2.0)})
    once, doubled = (hierarchical_terms(model.config, model(s), s) for s in (step, twice))
    torch.testing.assert_close(doubled.loss, once.loss + once.parts["rate_nats"])
    for name, part in once.parts.items():
        assert torch.equal(part, doubled.parts[name])


def test_padding_rows_do_not_change_the_weights_of_the_groups() -> None:
    model, x = build(config(free_bits=0.5)), binary(4)
    epsilon = noise(model, 4)
    early = {"progress": torch.tensor(0.1)}
    plain = inputs(model, x[:3], draws={"posterior": epsilon[:3]}, **early)
    weight = torch.tensor([1.0, 1.0, 1.0, 0.0])
    padded = inputs(model, x, draws={"posterior": epsilon}, row_weight=weight, global_rows=3, **early)
    short, long = (hierarchical_terms(model.config, model(s), s).loss for s in (plain, padded))
    torch.testing.assert_close(long[:3], short)


def test_it_learns_digits() -> None:
    images = (digits(512).images > 127).float()
    model = build(config(network=replace(NETWORK, channels=8, downsamples=1)), started=True)
    optimizer = torch.optim.Adam(model.parameters(), lr=5e-3)
    found = []
    for i in range(60):
        rows = images[torch.arange(64) + 64 * (i % 8)]
        step = inputs(model, rows, draws={"posterior": noise(model, 64, seed=i)}, progress=torch.tensor(i / 60))
        terms = hierarchical_terms(model.config, model(step), step)
        optimizer.zero_grad()
        terms.loss.mean().backward()
        optimizer.step()
        found.append(terms.parts["neg_elbo_nats"].mean().item())
    assert found[0] > 43  # 64 pixels at one bit each are 44.4 nats
    assert sum(found[-8:]) / 8 < 27
