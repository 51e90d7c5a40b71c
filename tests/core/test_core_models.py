"""Models as objects: built from a seed, copied, pickled and sent to other processes without sharing anything."""

import copy
import pickle
from dataclasses import replace
from typing import Any

import pytest
import torch
from core_models import (
    DIGITS,
    EVERY_KIND,
    assert_same_state,
    autoencoder,
    categorical,
    digits,
    digits_model,
    hierarchical,
    inputs_of,
    iwae,
    noise_of,
    sgd,
    snapshot,
    step_once,
    vae,
    vqvae,
    vqvae2,
)
from torch import Tensor

from vae_core import training
from vae_core.conditioning import Known
from vae_core.config import ConvConfig, ModelConfig, RangeError
from vae_core.models import CodeModel, ContinuousModel, Model, build_model
from vae_core.models.gaussian import GaussianModel
from vae_core.normal import DiagonalNormal
from vae_core.objectives import objective
from vae_core.training import eval_step

every_kind = pytest.mark.parametrize("config", EVERY_KIND.values(), ids=EVERY_KIND.keys())


def figures(model: Model) -> dict[str, Tensor]:
    batch = digits(6)
    return eval_step(model, batch, noise_of(batch))


@every_kind
def test_the_seed_decides_the_initial_weights(config: ModelConfig) -> None:
    assert_same_state(digits_model(config, seed=1).state_dict(), digits_model(config, seed=1).state_dict())
    first, second = digits_model(config, seed=1), digits_model(config, seed=2)
    weights = [name for name, parameter in first.named_parameters() if parameter.ndim > 1 and parameter.any()]
    weights = [name for name in weights if "codebook" not in name]  # which starts at the first batch
    assert weights
    assert not [name for name in weights if torch.equal(first.state_dict()[name], second.state_dict()[name])]


@every_kind
def test_a_model_survives_pickle(config: ModelConfig) -> None:
    model = digits_model(config)
    step_once(model, digits(16), sgd(model), learning_rate=1e-3, max_grad_norm=10.0)
    back = pickle.loads(pickle.dumps(model))
    assert_same_state(model.state_dict(), back.state_dict())
    assert back.config == config
    expected, found = figures(model), figures(back)
    assert all(torch.equal(expected[name], found[name]) for name in expected)


@every_kind
def test_a_deepcopy_computes_with_its_own_weights(config: ModelConfig) -> None:
    model = digits_model(config)
    step_once(model, digits(16), sgd(model), learning_rate=1e-3, max_grad_norm=10.0)
    expected, state = figures(model), snapshot(model)
    twin = copy.deepcopy(model)
    with torch.no_grad():
        for tensor in (*model.parameters(), *model.buffers()):
            tensor.zero_()
    assert_same_state(state, twin.state_dict())
    found = figures(twin)
    assert all(torch.equal(expected[name], found[name]) for name in expected)


@every_kind
def test_training_a_deepcopy_leaves_its_original_alone(config: ModelConfig) -> None:
    model = digits_model(config)
    state, twin = snapshot(model), copy.deepcopy(model)
    step_once(twin, digits(16), sgd(twin), learning_rate=1e-2)
    assert_same_state(state, model.state_dict())
    assert [name for name, tensor in twin.state_dict().items() if not torch.equal(tensor, state[name])]


@every_kind
def test_outputs_of_a_model_survive_pickle(config: ModelConfig) -> None:
    model, batch = digits_model(config), digits(3)
    with torch.no_grad():
        output, terms = training.forward(model, inputs_of(model, batch))
    back = objective(config, pickle.loads(pickle.dumps(output)), inputs_of(model, batch))
    assert torch.equal(back.loss, terms.loss)


@every_kind
def test_a_batch_and_its_noise_survive_pickle(config: ModelConfig) -> None:
    model, batch = digits_model(config), digits(4)
    sent, noise = pickle.loads(pickle.dumps((batch, noise_of(batch))))
    expected, found = eval_step(model, batch, noise_of(batch)), eval_step(model, sent, noise)
    assert all(torch.equal(expected[name], found[name]) for name in expected)


@every_kind
def test_every_parameter_takes_part_in_a_training_step(config: ModelConfig) -> None:
    model = digits_model(config)
    for step in range(3):  # some layers start at zero, and let no gradient through to those before them
        step_once(model, digits(32), sgd(model), step=step, learning_rate=1e-4)
    assert [name for name, p in model.named_parameters() if p.grad is None or not p.grad.any()] == []


@pytest.mark.parametrize(("height", "width", "channels"), [(8, 12, 1), (8, 8, 3), (1, 32, 1)])
@every_kind
def test_a_model_fits_images_of_any_shape_and_signals(
    config: ModelConfig, height: int, width: int, channels: int
) -> None:
    data = replace(DIGITS, channels=channels, height=height, width=width)
    model, x = build_model(config, data).eval(), torch.rand(2, channels, height, width)
    c = model.condition(digits(2))
    latent = model.represent(x, c)
    if isinstance(model, ContinuousModel):
        assert isinstance(latent, Tensor)
        assert latent.shape == (2, model.latent_dim)
    else:
        assert isinstance(model, CodeModel)
        assert [tuple(level.shape[1:]) for level in latent] == list(model.grids)
        assert all(0 <= int(level.min()) <= int(level.max()) < model.num_codes for level in latent)
        assert model.vectors(latent).shape[0] == 2
    assert model.decode(latent, c).mean.shape == x.shape


def test_a_draw_from_a_normal_is_reparameterised() -> None:
    mean, log_var = torch.tensor([[1.0, -2.0]], requires_grad=True), torch.tensor([[0.0, 2.0]], requires_grad=True)
    epsilon = torch.tensor([[0.5, -1.0]])
    z = DiagonalNormal(mean, log_var).draw(epsilon)
    torch.testing.assert_close(z, torch.tensor([[1.5, -2 - torch.e]]))
    z.sum().backward()
    torch.testing.assert_close(mean.grad, torch.ones(1, 2))
    torch.testing.assert_close(log_var.grad, 0.5 * epsilon * torch.exp(0.5 * log_var.detach()))


def test_the_latents_of_a_forward_pass_are_draws_with_the_noise_of_the_step() -> None:
    model, batch = digits_model(vae(samples=3)), digits(5)
    output = model(inputs_of(model, batch, step=4))
    epsilon = noise_of(batch, step=4).normal("posterior", 3, 4).movedim(1, 0)
    torch.testing.assert_close(output.latent, output.posterior.draw(epsilon))
    assert not torch.equal(output.latent, model(inputs_of(model, batch, step=5)).latent)


def test_more_draws_estimate_the_same_distortion_with_less_noise() -> None:
    one, many = (digits_model(vae(likelihood="gaussian", samples=samples)) for samples in (1, 50))
    batch = digits(1)
    spread = [
        torch.stack([eval_step(model, batch, noise_of(batch, step=step))["distortion_nats"][0] for step in range(40)])
        for model in (one, many)
    ]
    assert spread[1].std() < 0.5 * spread[0].std()


CONDITIONS = {"label": "labels", "attributes": "attributes", "embedding": "embedding"}


@pytest.mark.parametrize("condition", CONDITIONS)
@pytest.mark.parametrize("family", [autoencoder, vae, iwae, vqvae, vqvae2, categorical, hierarchical])
def test_encoder_and_decoder_of_every_family_see_the_condition(family: Any, condition: str) -> None:
    """Perturbed weights, since a fresh network may hide what it is given behind zeros."""
    model = digits_model(family(condition=condition))
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(0.1 * torch.randn(parameter.shape, generator=torch.Generator().manual_seed(1)))
    batch = digits(10)
    c, x = model.condition(batch), torch.rand(1, 1, 8, 8).expand(10, -1, -1, -1).contiguous()
    assert c is not None
    latent = model.represent(x[:1], c[:1])
    same = latent.expand(10, -1) if isinstance(latent, Tensor) else tuple(level.expand(10, -1, -1) for level in latent)
    assert len(model.decode(same, c).mean.flatten(1).unique(dim=0)) == 10
    if isinstance(model, ContinuousModel):
        assert len(model.represent(x, c).unique(dim=0)) == 10


def test_a_learned_prior_depends_on_the_condition_and_starts_at_the_standard_one() -> None:
    model = digits_model(vae(condition="label", prior="learned"))
    assert isinstance(model, GaussianModel)
    c = model.condition(digits(10))
    prior = model.prior(c)
    assert prior is not None
    torch.testing.assert_close(prior.mean, torch.zeros(10, 4))
    torch.testing.assert_close(prior.log_var, torch.zeros(10, 4), atol=1e-3, rtol=0)
    optimizer = torch.optim.Adam(model.parameters())
    for step in range(20):
        step_once(model, digits(64, start=64 * step), optimizer, step=step, learning_rate=1e-2)
    trained = model.prior(c)
    assert trained is not None
    assert len(trained.mean.unique(dim=0)) == 10


def test_a_learned_prior_without_a_condition_is_refused() -> None:
    with pytest.raises(RangeError, match="prior: expected standard where condition is none, got 'learned'"):
        vae(prior="learned")


@pytest.mark.parametrize(("condition", "column"), CONDITIONS.items())
def test_a_conditional_model_without_its_column_says_so(condition: str, column: str) -> None:
    model, batch = digits_model(vae(condition=condition)), digits(2)
    with pytest.raises(ValueError, match=f"conditioned on {condition} was called without"):
        model.condition(replace(batch, **{column: None}))


def test_a_condition_of_another_width_is_refused() -> None:
    model = digits_model(vae(condition="attributes"))
    with pytest.raises(ValueError, match="attributes: expected 2 numbers a row, got 5"):
        model.condition(Known(attributes=torch.zeros(3, 5)))


LACKING = [("label", {"num_classes": 0}), ("label", {"num_classes": 1}), ("attributes", {"attributes": 0})]


@pytest.mark.parametrize(("condition", "without"), [*LACKING, ("embedding", {"embedding": 0})])
def test_a_condition_that_the_data_lack_is_refused(condition: str, without: dict[str, int]) -> None:
    with pytest.raises(ValueError, match=f"condition: {condition} needs data with .+; these have none"):
        build_model(vae(condition=condition), replace(DIGITS, **without))


@pytest.mark.parametrize("make", [vae, vqvae])
def test_a_size_that_does_not_halve_is_refused_with_the_numbers(make: Any) -> None:
    deep = ConvConfig(kind="conv", channels=2, downsamples=4)
    with pytest.raises(ValueError, match=r"network.downsamples: 4 halvings .* divisible by 16; the images are 8 x 8"):
        build_model(make(network=deep), DIGITS)
