"""What a model shows: means of pixels, of the right shape, the same for the same seed."""

import pytest
import torch
from core_models import EVERY_KIND, FAMILIES, digits, digits_model, make_trained
from hypothesis import given, settings
from hypothesis import strategies as st

from vae_core.config import ModelConfig, VAEConfig
from vae_core.models import Model
from vae_core.models.vae import VAE
from vae_core.models.vqvae import VQVAE
from vae_core.sampling import interpolate, reconstruct, sample_prior

every_kind = pytest.mark.parametrize("config", EVERY_KIND.values(), ids=EVERY_KIND.keys())
VAES = {name: config for name, config in EVERY_KIND.items() if isinstance(config, VAEConfig)}
every_vae = pytest.mark.parametrize("config", VAES.values(), ids=VAES.keys())


def inputs(rows: int = 5, start: int = 0) -> tuple[torch.Tensor, torch.Tensor]:
    batch = digits(rows, start)
    assert batch.labels is not None
    return batch.images / 255, batch.labels


def a_vae(config: ModelConfig) -> VAE:
    model = digits_model(config)
    assert isinstance(model, VAE)
    return model


@every_kind
def test_reconstructions_are_images_of_means(config: ModelConfig) -> None:
    x, labels = inputs()
    found = reconstruct(make_trained(config), x, labels)
    assert found.shape == x.shape
    assert found.min() >= 0
    assert found.max() <= 1
    assert not found.requires_grad
    assert len(found.unique()) > 10


@every_kind
def test_reconstructions_draw_nothing(config: ModelConfig) -> None:
    model: Model = make_trained(config)
    x, labels = inputs()
    whole = reconstruct(model, x, labels)
    assert torch.equal(whole, reconstruct(model, x, labels))
    torch.testing.assert_close(reconstruct(model, x[2:3], labels[2:3]), whole[2:3])


def test_a_vae_reconstructs_from_the_posterior_mean() -> None:
    model, (x, labels) = a_vae(FAMILIES["cvae"]), inputs()
    expected = model.decode(model.encode(x, labels).mean, labels).mean
    assert torch.equal(reconstruct(model, x, labels), expected)


def test_a_vqvae_reconstructs_from_the_nearest_codes() -> None:
    model = make_trained(FAMILIES["vqvae"])
    assert isinstance(model, VQVAE)
    x, _ = inputs()
    assert torch.equal(reconstruct(model, x), model.decode(model.quantizer.nearest(model.encode(x))).mean)


@every_vae
def test_samples_are_images_of_means_and_follow_the_seed(config: ModelConfig) -> None:
    model, labels = a_vae(config), torch.arange(6)
    found = sample_prior(model, 6, seed=1, labels=labels)
    assert found.shape == (6, 1, 8, 8)
    assert found.min() >= 0
    assert found.max() <= 1
    assert not found.requires_grad
    assert torch.equal(found, sample_prior(model, 6, seed=1, labels=labels))
    assert not torch.equal(found, sample_prior(model, 6, seed=2, labels=labels))


def test_samples_differ_from_one_another() -> None:
    assert len(sample_prior(a_vae(FAMILIES["vae"]), 20, seed=0).unique(dim=0)) == 20


def test_samples_come_from_a_standard_normal() -> None:
    model = a_vae(FAMILIES["vae"])
    seen = []
    model.decoder.register_forward_pre_hook(lambda _, arguments: seen.append(arguments[0]))
    sample_prior(model, 20_000, seed=3)
    assert seen[0].shape == (20_000, 4)
    assert seen[0].mean(0).tolist() == pytest.approx([0] * 4, abs=0.03)
    assert seen[0].std(0).tolist() == pytest.approx([1] * 4, abs=0.03)


def test_a_conditional_model_draws_another_image_for_each_label() -> None:
    model = a_vae(FAMILIES["cvae"])
    found = torch.stack([sample_prior(model, 1, seed=0, labels=torch.tensor([label]))[0] for label in range(10)])
    assert len(found.unique(dim=0)) == 10


def test_a_conditional_model_raises_without_labels() -> None:
    model, (x, _) = a_vae(FAMILIES["cvae"]), inputs()
    for show in (
        lambda: sample_prior(model, 2, seed=0),
        lambda: reconstruct(model, x),
        lambda: interpolate(model, x, x, 3),
    ):
        with pytest.raises(ValueError, match="called without labels"):
            show()


@every_kind
def test_interpolations_end_at_the_reconstructions(config: ModelConfig) -> None:
    model = make_trained(config)
    (start, labels), (end, _) = inputs(), inputs(start=20)
    line = interpolate(model, start, end, 7, labels)
    assert line.shape == (5, 7, 1, 8, 8)
    assert line.min() >= 0
    assert line.max() <= 1
    assert not line.requires_grad
    torch.testing.assert_close(line[:, 0], reconstruct(model, start, labels))
    torch.testing.assert_close(line[:, -1], reconstruct(model, end, labels))


@every_kind
def test_an_interpolation_backwards_is_the_same_line(config: ModelConfig) -> None:
    if not isinstance(config, VAEConfig):
        config = FAMILIES["vae"]  # quantised points may fall on either side of a tie
    model = digits_model(config)
    (start, labels), (end, _) = inputs(), inputs(start=20)
    there, back = interpolate(model, start, end, 4, labels), interpolate(model, end, start, 4, labels)
    torch.testing.assert_close(there, back.flip(1), rtol=1e-4, atol=1e-6)


def test_the_middle_of_a_line_is_decoded_from_the_middle_of_the_means() -> None:
    model = a_vae(FAMILIES["vae"])
    (start, _), (end, _) = inputs(), inputs(start=20)
    middle = (model.encode(start).mean + model.encode(end).mean) / 2
    torch.testing.assert_close(interpolate(model, start, end, 3)[:, 1], model.decode(middle).mean)


@settings(deadline=None, max_examples=15)
@given(st.integers(1, 4), st.integers(2, 6))
def test_a_line_has_as_many_points_as_asked_for(rows: int, steps: int) -> None:
    x, labels = inputs(rows)
    for config in FAMILIES.values():
        assert interpolate(digits_model(config), x, x, steps, labels).shape == (rows, steps, 1, 8, 8)
