"""What a model shows: means or draws of pixels, of the right shape, the same for the same seed, and paths of them."""

import math

import pytest
import torch
from core_models import (
    EVERY_KIND,
    FAMILIES,
    autoencoder,
    categorical,
    digits,
    digits_model,
    hierarchical,
    iwae,
    make_trained,
    vae,
    vqvae,
    vqvae2,
)
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from vae_core.config import ModelConfig
from vae_core.likelihoods import Bernoulli
from vae_core.models import CodeModel, ContinuousModel, HasPrior, Model
from vae_core.models.base import Codes
from vae_core.models.gaussian import GaussianModel
from vae_core.models.vqvae import VQVAE
from vae_core.sampling import can_sample, interpolate, reconstruct, sample, slerp, transfer_style, traverse

every_kind = pytest.mark.parametrize("config", EVERY_KIND.values(), ids=EVERY_KIND.keys())
every_family = pytest.mark.parametrize("config", FAMILIES.values(), ids=FAMILIES.keys())
CONTINUOUS = {name: config for name, config in FAMILIES.items() if config.kind in ("vae", "iwae", "hierarchical")}
OWN_PRIOR = {**CONTINUOUS, "categorical": categorical(), "learned": vae(condition="label", prior="learned")}
every_prior = pytest.mark.parametrize("config", OWN_PRIOR.values(), ids=OWN_PRIOR.keys())
CONDITIONAL = [make(condition="label") for make in (autoencoder, vae, iwae, vqvae, vqvae2, categorical, hierarchical)]
every_conditional = pytest.mark.parametrize("config", CONDITIONAL, ids=lambda config: config.kind)


def given_to(model: Model, rows: int = 5, start: int = 0) -> tuple[Tensor, Tensor | None]:
    """Pixels and condition of some digits."""
    batch = digits(rows, start)
    return batch.images / 255, model.condition(batch)


def gaussian(config: ModelConfig) -> GaussianModel:
    model = digits_model(config)
    assert isinstance(model, GaussianModel)
    return model


class Uniform:
    """A prior over the codes of a model that draws each alike, and remembers what it was asked for."""

    def __init__(self, model: CodeModel) -> None:
        self.model, self.temperature, self.drawn = model, 0.0, torch.empty(0)

    def sample(self, count: int, c: Tensor | None, *, generator: torch.Generator, temperature: float = 1.0) -> Codes:
        self.temperature = temperature
        whole = [torch.rand((count, *grid), generator=generator) for grid in self.model.grids]
        self.drawn = whole[0]
        return tuple((level * self.model.num_codes).long() for level in whole)


# reconstructions


@every_kind
def test_reconstructions_are_images_of_means_and_draw_nothing(config: ModelConfig) -> None:
    model = make_trained(config, steps=1)
    x, c = given_to(model)
    found = reconstruct(model, x, c)
    assert found.shape == x.shape
    assert 0 <= found.min() <= found.max() <= 1
    assert not found.requires_grad
    assert len(found.unique()) > 10
    assert torch.equal(found, reconstruct(model, x, c, seed=5))
    alone = reconstruct(model, x[2:3], None if c is None else c[2:3])
    torch.testing.assert_close(alone, found[2:3], rtol=1e-4, atol=1e-6)


def test_a_vae_reconstructs_from_the_posterior_mean() -> None:
    model = gaussian(FAMILIES["cvae"])
    x, c = given_to(model)
    assert torch.equal(reconstruct(model, x, c), model.decode(model.encode(x, c).mean, c).mean)


def test_a_vqvae_reconstructs_from_the_nearest_codes() -> None:
    model = make_trained(FAMILIES["vqvae"], steps=1)
    assert isinstance(model, VQVAE)
    x, _ = given_to(model)
    codes = model.quantize(x, None).codes
    torch.testing.assert_close(reconstruct(model, x), model.decode((codes,), None).mean)


@pytest.mark.parametrize("likelihood", ["bernoulli", "discretised_logistic"])
def test_pixels_can_be_drawn_instead_and_follow_the_seed(likelihood: str) -> None:
    model = digits_model(vae(likelihood=likelihood))
    x, _ = given_to(model, rows=200)
    mean, drawn = reconstruct(model, x), reconstruct(model, x, pixels="draw", seed=1)
    assert torch.equal(drawn, reconstruct(model, x, pixels="draw", seed=1))
    assert not torch.equal(drawn, reconstruct(model, x, pixels="draw", seed=2))
    levels = drawn * (1 if likelihood == "bernoulli" else 255)
    torch.testing.assert_close(levels, levels.round(), rtol=0, atol=1e-4)
    assert drawn.mean().item() == pytest.approx(mean.mean().item(), abs=0.02)


# samples


@every_prior
def test_samples_are_images_of_means_and_follow_the_seed(config: ModelConfig) -> None:
    model = make_trained(config, steps=1)
    _, c = given_to(model, rows=6)
    found = sample(model, 6, c, seed=1)
    assert found.shape == (6, 1, 8, 8)
    assert 0 <= found.min() <= found.max() <= 1
    assert not found.requires_grad
    assert torch.equal(found, sample(model, 6, c, seed=1))
    assert not torch.equal(found, sample(model, 6, c, seed=2))
    assert len(found.unique(dim=0)) == 6


@every_prior
def test_samples_can_be_draws_of_the_pixels(config: ModelConfig) -> None:
    model = digits_model(config)
    _, c = given_to(model, rows=6)
    assert set(sample(model, 6, c, seed=1, pixels="draw").flatten().tolist()) == {0.0, 1.0}


@pytest.mark.parametrize("temperature", [0.0, 0.5, 1.0, 2.0])
def test_samples_come_from_a_normal_whose_deviation_is_the_temperature(temperature: float) -> None:
    model = gaussian(FAMILIES["vae"])
    seen: list[Tensor] = []
    model.decoder.register_forward_pre_hook(lambda _, arguments: seen.append(arguments[0]))
    sample(model, 20_000, seed=3, temperature=temperature)
    assert seen[0].shape == (20_000, 4)
    assert seen[0].mean(0).tolist() == pytest.approx([0] * 4, abs=0.03 * temperature)
    assert seen[0].std(0).tolist() == pytest.approx([temperature] * 4, rel=0.03)


def test_samples_of_a_learned_prior_lie_around_its_mean() -> None:
    model = gaussian(OWN_PRIOR["learned"])
    assert model.prior_network is not None
    with torch.no_grad():
        model.prior_network[-1].bias.copy_(torch.tensor([3.0, -1.0, 0.0, 9.0, 0.0, 0.0, 0.0, 0.0]))
    _, c = given_to(model, rows=7)
    seen: list[Tensor] = []
    model.decoder.register_forward_pre_hook(lambda _, arguments: seen.append(arguments[0]))
    sample(model, 7, c, seed=3, temperature=0.0)
    torch.testing.assert_close(seen[0], torch.tensor([3.0, -1.0, 0.0, 9.0]).expand(7, 4), atol=1e-2, rtol=0)


def test_a_conditional_model_draws_another_image_for_each_label() -> None:
    model, labels = digits_model(FAMILIES["cvae"]), torch.eye(10)
    found = torch.cat([sample(model, 1, c[None], seed=0) for c in labels])
    assert len(found.unique(dim=0)) == 10


@pytest.mark.parametrize("make", [vqvae, vqvae2])
def test_a_model_of_codes_samples_with_the_prior_it_is_given(make: type) -> None:
    model = make_trained(make(likelihood="bernoulli"), steps=1)
    assert isinstance(model, CodeModel)
    prior = Uniform(model)
    found = sample(model, 6, seed=1, prior=prior, temperature=0.7)
    assert prior.temperature == 0.7
    assert found.shape == (6, 1, 8, 8)
    assert torch.equal(found, sample(model, 6, seed=1, prior=prior))
    assert not torch.equal(found, sample(model, 6, seed=2, prior=prior))


def test_pixels_are_not_drawn_with_the_numbers_that_drew_the_codes(monkeypatch: pytest.MonkeyPatch) -> None:
    """Else pixels and codes would depend on one another beyond p(x | z)."""
    model = make_trained(vqvae(likelihood="bernoulli"), steps=1)
    assert isinstance(model, CodeModel)
    prior, seen = Uniform(model), list[Tensor]()
    draw = Bernoulli.draw

    def recorded(self: Bernoulli, uniform: Tensor) -> Tensor:
        seen.append(uniform)
        return draw(self, uniform)

    monkeypatch.setattr(Bernoulli, "draw", recorded)
    sample(model, 4, seed=1, prior=prior, pixels="draw")
    assert not set(prior.drawn.flatten().tolist()) & set(seen[0].flatten().tolist())


@pytest.mark.parametrize("kind", ["vqvae", "vqvae2"])
def test_a_model_of_codes_without_a_prior_is_refused(kind: str) -> None:
    with pytest.raises(ValueError, match=f"samples of a model of kind {kind} need a prior over its codes"):
        sample(digits_model(FAMILIES[kind]), 2, seed=0)


def test_a_plain_autoencoder_has_nothing_to_draw_from() -> None:
    model = digits_model(FAMILIES["autoencoder"])
    assert not isinstance(model, HasPrior)
    with pytest.raises(ValueError, match="a model of kind autoencoder has no prior to draw from"):
        sample(model, 2, seed=0)


@every_family
def test_whether_there_is_a_prior_to_draw_from_is_known_beforehand(config: ModelConfig) -> None:
    model = digits_model(config)
    codes = model if isinstance(model, CodeModel) else digits_model(FAMILIES["vqvae"])
    assert isinstance(codes, CodeModel)
    for prior in (None, Uniform(codes)):
        try:
            sample(model, 1, given_to(model, 1)[1], seed=0, prior=prior)
        except ValueError:
            assert not can_sample(model, prior)
        else:
            assert can_sample(model, prior)


# paths between images


@every_kind
def test_interpolations_end_at_the_reconstructions(config: ModelConfig) -> None:
    model = make_trained(config, steps=1)
    (start, c), (end, _) = given_to(model), given_to(model, start=20)
    for path in ("linear", "spherical"):
        line = interpolate(model, start, end, 5, c, path=path)
        assert line.shape == (5, 5, 1, 8, 8)
        assert 0 <= line.min() <= line.max() <= 1
        assert not line.requires_grad
        torch.testing.assert_close(line[:, 0], reconstruct(model, start, c), rtol=1e-4, atol=1e-5)
        torch.testing.assert_close(line[:, -1], reconstruct(model, end, c), rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("path", ["linear", "spherical"])
@pytest.mark.parametrize("config", CONTINUOUS.values(), ids=CONTINUOUS.keys())
def test_an_interpolation_backwards_is_the_same_line(config: ModelConfig, path: str) -> None:
    """Of continuous codes; quantised points may fall on either side of a tie."""
    model = digits_model(config)
    (start, c), (end, _) = given_to(model), given_to(model, start=20)
    there, back = (interpolate(model, *ends, 4, c, path=path) for ends in ((start, end), (end, start)))
    torch.testing.assert_close(there, back.flip(1), rtol=1e-4, atol=1e-5)


def test_the_middle_of_a_path_is_decoded_from_the_middle_of_the_means() -> None:
    model = gaussian(FAMILIES["vae"])
    (start, _), (end, _) = given_to(model), given_to(model, start=20)
    one, two = model.encode(start, None).mean, model.encode(end, None).mean
    for path, middle in (("linear", (one + two) / 2), ("spherical", slerp(one, two, 0.5))):
        found = interpolate(model, start, end, 3, path=path)[:, 1]
        torch.testing.assert_close(found, model.decode(middle, None).mean)


@pytest.mark.parametrize(("kind", "steps"), [("vqvae", 1), ("vqvae2", 1), ("categorical", 5)])
def test_a_path_of_codes_leaves_the_start_and_ends_at_the_end(kind: str, steps: int) -> None:
    model = make_trained(FAMILIES[kind], steps)
    assert isinstance(model, CodeModel)
    start, end = (model.represent(*given_to(model, start=at)) for at in (0, 20))
    changed = []
    for fraction in (0.0, 0.25, 0.5, 0.75, 1.0):
        point = model.between(start, end, fraction)
        changed.append(sum(int((one != two).sum()) for one, two in zip(point, start, strict=True)))
    assert changed[0] == 0
    assert changed == sorted(changed)
    assert all(torch.equal(one, two) for one, two in zip(model.between(start, end, 1.0), end, strict=True))
    assert changed[-1] > 0


@settings(max_examples=6)
@given(st.integers(1, 4), st.integers(1, 6))
def test_a_line_has_as_many_points_as_asked_for(rows: int, steps: int) -> None:
    for config in FAMILIES.values():
        model = digits_model(config)
        x, c = given_to(model, rows)
        assert interpolate(model, x, x, steps, c).shape == (rows, steps, 1, 8, 8)


# traversals and style transfer


@pytest.mark.parametrize("config", [autoencoder(), *CONTINUOUS.values()], ids=lambda config: config.kind)
def test_a_traversal_sets_one_dimension_after_the_other(config: ModelConfig) -> None:
    model = make_trained(config, steps=1)
    assert isinstance(model, ContinuousModel)
    x, c = given_to(model, rows=1)
    z, values, dims = model.represent(x, c), torch.tensor([-2.0, 0.5, 3.0]), [3, 0]
    found = traverse(model, z, values, c, dims=dims)
    assert found.shape == (2, 3, 1, 8, 8)
    assert not found.requires_grad
    for row, dim in enumerate(dims):
        for column, value in enumerate(values):
            changed = z.clone()
            changed[0, dim] = value
            expected = model.decode(changed, c).mean[0]
            torch.testing.assert_close(found[row, column], expected, rtol=1e-4, atol=1e-5)


def test_a_traversal_goes_through_all_dimensions_unless_told_and_leaves_its_code_alone() -> None:
    model = gaussian(FAMILIES["vae"])
    z = torch.arange(4.0)[None]
    found = traverse(model, z, torch.tensor([-1.0, 1.0]))
    assert found.shape == (4, 2, 1, 8, 8)
    assert z.tolist() == [[0.0, 1.0, 2.0, 3.0]]
    at_itself = torch.stack([traverse(model, z, z[0, dim : dim + 1], dims=[dim])[0, 0] for dim in range(4)])
    torch.testing.assert_close(at_itself, model.decode(z, None).mean.expand(4, -1, -1, -1))


@every_conditional
def test_style_goes_from_one_condition_to_another(config: ModelConfig) -> None:
    model = make_trained(config, steps=1)
    x, c = given_to(model)
    assert c is not None
    other = torch.eye(10)[[3] * 5]
    found = transfer_style(model, x, c, other)
    assert found.shape == x.shape
    torch.testing.assert_close(found, model.decode(model.represent(x, c), other).mean)
    torch.testing.assert_close(transfer_style(model, x, c, c), reconstruct(model, x, c))
    assert not torch.equal(found, transfer_style(model, x, c, torch.eye(10)[[4] * 5]))


# slerp

seeds = st.integers(0, 2**31)
fractions = st.floats(0, 1)


def pair(seed: int, rows: int = 3, dim: int = 6) -> tuple[Tensor, Tensor]:
    return tuple(torch.randn(2, rows, dim, generator=torch.Generator().manual_seed(seed)))


@settings(max_examples=40)
@given(seeds)
def test_slerp_starts_and_ends_at_its_ends(seed: int) -> None:
    start, end = pair(seed)
    torch.testing.assert_close(slerp(start, end, 0.0), start, rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(slerp(start, end, 1.0), end, rtol=1e-4, atol=1e-5)


@settings(max_examples=40)
@given(seeds, fractions)
def test_slerp_interpolates_the_lengths_and_the_angle(seed: int, fraction: float) -> None:
    start, end = (tensor.double() for tensor in pair(seed))
    point = slerp(start, end, fraction)
    torch.testing.assert_close(point.norm(dim=1), torch.lerp(start.norm(dim=1), end.norm(dim=1), fraction))
    whole = torch.cosine_similarity(start, end).clamp(-1, 1).acos()
    part = torch.cosine_similarity(start, point).clamp(-1, 1).acos()
    torch.testing.assert_close(part, fraction * whole, rtol=1e-4, atol=1e-6)


@settings(max_examples=40)
@given(seeds, fractions)
def test_slerp_backwards_is_the_same_arc(seed: int, fraction: float) -> None:
    start, end = (tensor.double() for tensor in pair(seed))
    torch.testing.assert_close(slerp(start, end, fraction), slerp(end, start, 1 - fraction))


@pytest.mark.parametrize("fraction", [0.0, 0.3, 1.0])
@pytest.mark.parametrize("scale", [1.0, 2.0, 1 + 1e-7])
def test_slerp_of_parallel_vectors_is_the_line_between_them(fraction: float, scale: float) -> None:
    start, _ = pair(0)
    expected = torch.lerp(start, scale * start, fraction)
    torch.testing.assert_close(slerp(start, scale * start, fraction), expected, rtol=1e-4, atol=1e-5)


def test_slerp_keeps_to_the_shell_where_a_line_falls_through_it() -> None:
    start, end = pair(1, rows=200, dim=100)
    radius = math.sqrt(100)
    assert slerp(start, end, 0.5).norm(dim=1).mean().item() == pytest.approx(radius, rel=0.02)
    assert torch.lerp(start, end, 0.5).norm(dim=1).mean().item() == pytest.approx(radius / math.sqrt(2), rel=0.02)


@pytest.mark.parametrize("start", [[0.0, 0.0], [1.0, 0.0]])
@pytest.mark.parametrize("end", [[0.0, 0.0], [-1.0, 0.0]])
def test_slerp_is_finite_where_there_is_no_arc(start: list[float], end: list[float]) -> None:
    for fraction in (0.0, 0.5, 1.0):
        assert torch.isfinite(slerp(torch.tensor([start]), torch.tensor([end]), fraction)).all()
