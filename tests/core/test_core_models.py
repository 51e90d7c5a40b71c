"""Models as objects: built from a seed, copied, pickled and sent to other processes without sharing anything."""

import copy
import pickle
from typing import Any

import pytest
import torch
from core_models import (
    DIGITS,
    EVERY_KIND,
    FAMILIES,
    assert_same_state,
    digits,
    digits_model,
    noise_of,
    sgd,
    snapshot,
    step_once,
    vae,
    vqvae,
)
from torch import Tensor

from vae_core.config import ConvConfig, DataSpec, ModelConfig
from vae_core.likelihoods import observe
from vae_core.models import Model, build_model
from vae_core.models.vae import VAE, Posterior
from vae_core.models.vqvae import VQVAE
from vae_core.training import eval_step

every_kind = pytest.mark.parametrize("config", EVERY_KIND.values(), ids=EVERY_KIND.keys())


def figures(model: Model) -> dict[str, Tensor]:
    batch = digits(6)
    return eval_step(model, batch, noise_of(batch))


@every_kind
def test_the_seed_decides_the_initial_weights(config: ModelConfig) -> None:
    assert_same_state(digits_model(config, seed=1).state_dict(), digits_model(config, seed=1).state_dict())
    first, second = digits_model(config, seed=1), digits_model(config, seed=2)
    weights = [name for name, parameter in first.named_parameters() if parameter.ndim > 1]
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
    x = observe(batch.images, config.likelihood, noise_of(batch))
    with torch.no_grad():
        output = model(x, batch.labels, noise_of(batch))
    back = pickle.loads(pickle.dumps(output))
    assert torch.equal(back.pixels.mean, output.pixels.mean)


@every_kind
def test_a_batch_and_its_noise_survive_pickle(config: ModelConfig) -> None:
    model, batch = digits_model(config), digits(4)
    sent, noise = pickle.loads(pickle.dumps((batch, noise_of(batch))))
    expected, found = eval_step(model, batch, noise_of(batch)), eval_step(model, sent, noise)
    assert all(torch.equal(expected[name], found[name]) for name in expected)


@every_kind
def test_every_parameter_takes_part_in_a_training_step(config: ModelConfig) -> None:
    model = digits_model(config)
    step_once(model, digits(32), sgd(model), learning_rate=1e-4)
    assert [name for name, p in model.named_parameters() if p.grad is None or not p.grad.any()] == []


@pytest.mark.parametrize("channels", [1, 3])
def test_models_fit_images_that_are_not_square(channels: int) -> None:
    data = DataSpec(channels=channels, height=8, width=12, num_classes=3)
    x = torch.rand(2, channels, 8, 12)
    for config in EVERY_KIND.values():
        model = build_model(config, data)
        labels = torch.tensor([0, 2])
        encoded = model.encode(x) if isinstance(model, VQVAE) else model.encode(x, labels)
        if isinstance(encoded, Posterior):
            assert isinstance(model, VAE)
            assert encoded.mean.shape == encoded.log_var.shape == (2, model.config.latent_dim)
            assert model.decode(encoded.mean, labels).mean.shape == x.shape
        else:
            assert isinstance(model, VQVAE)
            assert encoded.shape == (2, model.config.code_dim, 2, 3)
            assert model.positions == 6
            assert model.decode(model.quantizer.nearest(encoded)).mean.shape == x.shape


def test_a_draw_from_the_posterior_is_reparameterised() -> None:
    mean, log_var = torch.tensor([[1.0, -2.0]], requires_grad=True), torch.tensor([[0.0, 2.0]], requires_grad=True)
    epsilon = torch.tensor([[0.5, -1.0]])
    z = Posterior(mean, log_var).draw(epsilon)
    torch.testing.assert_close(z, torch.tensor([[1.5, -2 - torch.e]]))
    z.sum().backward()
    torch.testing.assert_close(mean.grad, torch.ones(1, 2))
    torch.testing.assert_close(log_var.grad, 0.5 * epsilon * torch.exp(0.5 * log_var.detach()))


def test_the_latent_of_a_forward_pass_is_a_draw_with_the_noise_of_the_step() -> None:
    model, batch = digits_model(vae()), digits(5)
    noise = noise_of(batch, step=4)
    output = model(batch.images / 255, None, noise)
    torch.testing.assert_close(output.latent, output.posterior.draw(noise.normal("posterior", 4)))
    assert not torch.equal(output.latent, model(batch.images / 255, None, noise_of(batch, step=5)).latent)


def test_encoder_and_decoder_both_see_the_label() -> None:
    for network in (EVERY_KIND["vae-mlp-bernoulli-label"], EVERY_KIND["vae-conv-bernoulli-label"]):
        model = digits_model(network)
        assert isinstance(model, VAE)
        x, z = torch.rand(1, 1, 8, 8).expand(10, -1, -1, -1), torch.randn(1, 4).expand(10, -1)
        labels = torch.arange(10)
        assert len(model.encode(x, labels).mean.unique(dim=0)) == 10
        assert len(model.decode(z, labels).mean.unique(dim=0)) == 10


def test_a_conditional_model_called_without_labels_says_so() -> None:
    model = digits_model(FAMILIES["cvae"])
    assert isinstance(model, VAE)
    for call in (lambda: model.encode(torch.rand(2, 1, 8, 8)), lambda: model.decode(torch.zeros(2, 4))):
        with pytest.raises(ValueError, match="called without labels"):
            call()


def test_a_model_without_a_condition_ignores_labels() -> None:
    for config in (FAMILIES["vae"], FAMILIES["vqvae"]):
        model, batch = digits_model(config), digits(4)
        x = batch.images / 255
        first, second = (model(x, labels, noise_of(batch)).pixels.mean for labels in (None, batch.labels))
        assert torch.equal(first, second)


@pytest.mark.parametrize("classes", [0, 1])
def test_a_condition_needs_classes(classes: int) -> None:
    with pytest.raises(ValueError, match="at least two classes"):
        build_model(FAMILIES["cvae"], DataSpec(channels=1, height=8, width=8, num_classes=classes))


@pytest.mark.parametrize("make", [vae, vqvae])
def test_a_size_that_does_not_halve_is_refused_with_the_numbers(make: Any) -> None:
    deep = ConvConfig(kind="conv", channels=2, downsamples=4)
    with pytest.raises(ValueError, match=r"network.downsamples: 4 halvings .* divisible by 16; the images are 8 x 8"):
        build_model(make(network=deep), DIGITS)


def test_half_precision_autocast_gives_finite_float32_terms() -> None:
    for config in EVERY_KIND.values():
        model, batch = digits_model(config), digits(4)
        with torch.autocast("cpu", dtype=torch.bfloat16):
            found = eval_step(model, batch, noise_of(batch))
        exact = eval_step(model, batch, noise_of(batch))
        for name, value in found.items():
            assert value.dtype == torch.float32
            torch.testing.assert_close(value, exact[name], rtol=0.1, atol=0.5)
