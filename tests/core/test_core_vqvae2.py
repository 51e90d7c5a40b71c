"""Several grids of codes: their sizes, the way from the top down, and the terms of every level."""

from dataclasses import replace
from typing import cast

import pytest
import torch
from core_models import CONV, digits, digits_model, follow, inputs_of, noise_for, sgd, snapshot, step_once, vqvae2
from torch import Tensor

from vae_core.config import ConvConfig, DataSpec
from vae_core.models import build_model
from vae_core.models.vqvae2 import VQVAE2
from vae_core.noise import Noise
from vae_core.objectives import objective
from vae_core.quantize import Codebook

every_kind = pytest.mark.parametrize("kind", ["ema", "loss", "fsq"])
ONE_HALVING = ConvConfig(kind="residual", channels=4, downsamples=1, residual_blocks=1, activation="silu")


def model_of(kind: str = "ema", **fields: object) -> VQVAE2:
    return cast(VQVAE2, digits_model(vqvae2(codebook=kind, num_codes=27, **fields)))


def started(model: VQVAE2) -> VQVAE2:
    """With codebooks at encoder outputs."""
    step_once(model, digits(32), sgd(model), learning_rate=1e-4)
    return model


@pytest.mark.parametrize(
    ("shape", "levels", "grids"),
    [
        ((1, 16, 16), 2, ((4, 4), (8, 8))),
        ((3, 16, 24), 3, ((2, 3), (4, 6), (8, 12))),
        ((1, 28, 28), 4, ((2, 2), (4, 4), (7, 7), (14, 14))),
        ((2, 1, 64), 3, ((1, 8), (1, 16), (1, 32))),
        ((1, 1, 36), 3, ((1, 5), (1, 9), (1, 18))),
    ],
)
def test_each_grid_is_half_the_one_below_it(shape: tuple[int, ...], levels: int, grids: tuple[tuple[int, int]]) -> None:
    channels, height, width = shape
    data = DataSpec(channels=channels, height=height, width=width)
    model = cast(VQVAE2, build_model(vqvae2(levels=levels, network=ONE_HALVING), data))
    codes = model.represent(torch.rand(2, *shape), None)
    assert model.grids == grids
    assert tuple(tuple(level.shape[1:]) for level in codes) == grids
    assert all(level.dtype == torch.int64 for level in codes)
    assert model.decode(codes, None).mean.shape == (2, *shape)


def test_a_grid_too_small_for_the_levels_is_refused() -> None:
    assert digits_model(vqvae2(levels=3, network=ONE_HALVING))
    with pytest.raises(ValueError, match="levels: 4 grids need a lowest one of at least 5 a side; it is 4 x 4"):
        digits_model(vqvae2(levels=4, network=ONE_HALVING))
    with pytest.raises(ValueError, match="levels: 3 grids"):
        digits_model(vqvae2(levels=3, network=CONV))


@every_kind
def test_what_is_decoded_from_the_codes_is_what_training_sees(kind: str) -> None:
    model = started(model_of(kind))
    inputs = inputs_of(model, digits(6))
    output = model(inputs)
    codes = model.represent(inputs.x, None)
    assert all(torch.equal(one, level.codes) for one, level in zip(codes, output.levels, strict=True))
    torch.testing.assert_close(model.decode(codes, None).mean, output.pixels.mean, rtol=1e-5, atol=1e-6)


@every_kind
@pytest.mark.parametrize("level", [0, 1, 2])
def test_the_decoder_sees_the_codes_of_every_level(kind: str, level: int) -> None:
    model = started(model_of(kind, levels=3))
    codes = model.represent(inputs_of(model, digits(6)).x, None)
    changed = [*codes]
    changed[level] = (codes[level] + 13) % 27
    assert not torch.equal(model.decode(tuple(changed), None).mean, model.decode(codes, None).mean)


def test_a_lower_level_is_quantised_given_the_vectors_above_it() -> None:
    model = started(model_of())
    x, top = inputs_of(model, digits(6)).x, cast(Codebook, model.quantizers[0])
    before = model.quantize(x, None)
    top.codebook.copy_(top.codebook.roll(1, dims=0))  # the same vectors under other numbers
    renumbered = model.quantize(x, None)
    assert not torch.equal(renumbered[0].codes, before[0].codes)
    torch.testing.assert_close(renumbered[1].encoded, before[1].encoded)
    top.codebook.mul_(2)
    moved = model.quantize(x, None)
    assert torch.equal(moved[0].encoded, before[0].encoded)
    assert (moved[1].encoded - before[1].encoded).abs().max() > 1e-4


@every_kind
def test_every_parameter_has_a_gradient(kind: str) -> None:
    """Of all ranks' steps: a parameter without one would stop data-parallel training."""
    model = started(model_of(kind, levels=3, condition="label"))
    inputs = inputs_of(model, digits(32))
    objective(model.config, model(inputs), inputs).loss.sum().backward()
    assert [name for name, parameter in model.named_parameters() if parameter.grad is None] == []


@every_kind
def test_terms_sum_over_levels(kind: str) -> None:
    model = started(model_of(kind))
    inputs = replace(inputs_of(model, digits(6)), weights={"commitment_weight": torch.tensor(0.5)})
    output = model(inputs)
    terms = objective(model.config, output, inputs)
    distortion = output.pixels.nll(inputs.x)
    square = sum((level.encoded - level.vectors).square().sum((1, 2, 3)) for level in output.levels)
    torch.testing.assert_close(terms.loss, distortion + {"ema": 0.5, "loss": 1.5, "fsq": 0.0}[kind] * square)
    torch.testing.assert_close(terms.parts["rate_nats"], torch.full((6,), 20 * torch.tensor(27.0).log().item()))


def test_the_commitment_of_every_level_has_its_gradient() -> None:
    """It is lost where a level's vectors, not detached, are subtracted before the distance is taken."""
    model = started(model_of())
    inputs = inputs_of(model, digits(6))
    output = model(inputs)
    top, low = output.levels
    total = objective(model.config, output, inputs).parts["commitment_squared_distance"].sum()
    at_top, at_low = torch.autograd.grad(total, (top.encoded, low.encoded), retain_graph=True)
    torch.testing.assert_close(at_low, 2 * (low.encoded - low.vectors).detach())
    (through_low,) = torch.autograd.grad((low.encoded - low.vectors).square().sum(), top.encoded)
    torch.testing.assert_close(at_top, 2 * (top.encoded - top.vectors).detach() + through_low)


def test_a_training_step_moves_every_codebook_each_to_its_own_outputs() -> None:
    model = model_of()
    before = [quantizer.codebook.clone() for quantizer in model.quantizers]
    started(model)
    for quantizer, old in zip(model.quantizers, before, strict=True):
        assert quantizer.started
        assert not torch.equal(quantizer.codebook, old)
    assert not torch.equal(model.quantizers[0].codebook, model.quantizers[1].codebook)


def test_no_two_levels_start_or_restart_by_the_same_draws(monkeypatch: pytest.MonkeyPatch) -> None:
    generator, purposes = Noise.generator, []

    def recorded(self: Noise, purpose: str) -> torch.Generator:
        purposes.append(purpose)
        return generator(self, purpose)

    model, inputs = model_of(levels=3), inputs_of(model_of(levels=3), digits(6))
    monkeypatch.setattr(Noise, "generator", recorded)
    for _ in range(2):
        follow(model, model(inputs), inputs, noise_for(6))
    assert len(purposes) == len(set(purposes)) == 6


def test_reading_never_changes_a_codebook() -> None:
    model = started(model_of())
    before = snapshot(model)
    inputs = inputs_of(model, digits(16))
    model(inputs)
    model.decode(model.represent(inputs.x, None), None)
    assert all(torch.equal(before[name], value) for name, value in snapshot(model).items())


@every_kind
def test_training_lowers_the_distortion(kind: str) -> None:
    model = model_of(kind, likelihood="bernoulli")
    optimizer = torch.optim.Adam(model.parameters())
    seen: list[Tensor] = []
    for step in range(60):
        batch = digits(64, start=64 * (step % 20))
        seen.append(step_once(model, batch, optimizer, step=step, learning_rate=5e-3).parts["distortion_nats"].mean())
    assert seen[-1] < 0.8 * seen[0]


def test_the_condition_reaches_encoder_and_decoder() -> None:
    model = started(model_of(condition="label"))
    inputs = inputs_of(model, digits(6))
    assert inputs.condition is not None
    other = inputs.condition.roll(1, dims=1)
    codes = model.represent(inputs.x, inputs.condition)
    found, otherwise = model.quantize(inputs.x, inputs.condition), model.quantize(inputs.x, other)
    assert not torch.equal(found[0].encoded, otherwise[0].encoded)
    assert not torch.equal(model.decode(codes, other).mean, model.decode(codes, inputs.condition).mean)


def test_a_path_between_images_begins_and_ends_at_their_codes() -> None:
    model = started(model_of())
    x = inputs_of(model, digits(8)).x
    start, end = model.represent(x[:4], None), model.represent(x[4:], None)
    for fraction, codes in ((0.0, start), (1.0, end)):
        reached = model.between(start, end, fraction)
        assert all(torch.equal(one, two) for one, two in zip(reached, codes, strict=True))
