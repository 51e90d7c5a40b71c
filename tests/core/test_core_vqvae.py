"""The quantizer in its model: gradients of every term, and a codebook that only a training step moves."""

import math
from dataclasses import replace
from typing import cast

import pytest
import torch
from core_models import digits, digits_model, inputs_of, noise_of, sgd, snapshot, step_once, vqvae
from torch import Tensor

from vae_core.config import DataSpec
from vae_core.models import build_model
from vae_core.models.base import Inputs
from vae_core.models.vqvae import VQVAE, VQOutput
from vae_core.objectives import objective
from vae_core.quantize import Codebook
from vae_core.training import eval_step

every_kind = pytest.mark.parametrize("kind", ["ema", "loss", "fsq"])


def model_of(kind: str = "ema", **fields: object) -> VQVAE:
    """A model whose codes, where they are free, lie far from what its encoder gives."""
    model = cast(VQVAE, digits_model(vqvae(codebook=kind, **fields)))
    if isinstance(model.quantizer, Codebook):
        with torch.no_grad():
            model.quantizer.codebook.copy_(torch.randn(8, 3, generator=torch.Generator().manual_seed(5)))
    return model


def output_of(model: VQVAE) -> tuple[VQOutput, Inputs]:
    """Its output for a batch of digits, with the gradient of what it encoded kept."""
    inputs = inputs_of(model, digits(8, start=50))
    output = model(inputs)
    output.levels[0].encoded.retain_grad()
    return output, inputs


def gradient_of_pixels(model: VQVAE, output: VQOutput, inputs: Inputs) -> Tensor:
    """That of the distortion at the codes' vectors, as the decoder alone has it."""
    vectors = output.levels[0].vectors.detach().requires_grad_()
    model.head(model.decoder(vectors)).nll(inputs.x).sum().backward()
    assert vectors.grad is not None
    return vectors.grad


@every_kind
def test_the_gradient_of_the_pixels_reaches_the_encoder_unchanged(kind: str) -> None:
    model = model_of(kind)
    output, inputs = output_of(model)
    output.pixels.nll(inputs.x).sum().backward()
    straight = gradient_of_pixels(model, output, inputs)
    torch.testing.assert_close(output.levels[0].encoded.grad, straight, rtol=1e-4, atol=1e-5)
    assert straight.abs().sum() > 0


@every_kind
def test_the_decoder_sees_the_codes_and_not_the_encoder_output(kind: str) -> None:
    model = model_of(kind)
    output, _ = output_of(model)
    found = output.levels[0]
    torch.testing.assert_close(output.pixels.mean, model.decode((found.codes,), None).mean, rtol=1e-5, atol=1e-6)
    assert torch.equal(found.vectors, model.quantizer.lookup(found.codes))
    assert (model.head(model.decoder(found.encoded)).mean - output.pixels.mean).abs().max() > 1e-4


@every_kind
@pytest.mark.parametrize("distance", ["euclidean", "cosine"])
def test_every_term_has_the_gradient_of_equation_3(kind: str, distance: str) -> None:
    """Beta weighs the commitment, whose gradient is the encoder's alone; the codebook term is the codebook's alone."""
    model = model_of(kind, distance=distance)
    output, inputs = output_of(model)
    inputs = replace(inputs, weights={"commitment_weight": torch.tensor(0.7)})
    output.levels[0].vectors.requires_grad_() if kind != "loss" else output.levels[0].vectors.retain_grad()
    objective(model.config, output, inputs).loss.sum().backward()
    found, pixels = output.levels[0], gradient_of_pixels(model, output, inputs)
    apart = 2 * (found.encoded - found.vectors).detach()
    towards = 0.7 * apart if kind != "fsq" else torch.zeros_like(apart)
    torch.testing.assert_close(found.encoded.grad, pixels + towards, rtol=1e-4, atol=1e-5)
    if kind == "loss":
        torch.testing.assert_close(found.vectors.grad, -apart)
        assert cast(Codebook, model.quantizer).codebook.grad is not None
    else:
        assert found.vectors.grad is None


@every_kind
def test_terms_are_sums_over_positions_and_dimensions_of_each_sample(kind: str) -> None:
    model = model_of(kind)
    output, inputs = output_of(model)
    terms, found = objective(model.config, output, inputs), output.levels[0]
    distortion = output.pixels.nll(inputs.x)
    square = (found.encoded - found.vectors).square().sum((1, 2, 3))
    weight = {"ema": 0.25, "loss": 1.25, "fsq": 0.0}[kind]
    torch.testing.assert_close(terms.loss, distortion + weight * square)
    torch.testing.assert_close(terms.parts["rate_nats"], torch.full((8,), 4 * math.log(8)))
    torch.testing.assert_close(terms.parts["neg_elbo_nats"], distortion + terms.parts["rate_nats"])
    if kind != "fsq":
        torch.testing.assert_close(terms.parts["commitment_squared_distance"], square)


@every_kind
def test_the_terms_of_a_row_do_not_depend_on_the_rows_beside_it(kind: str) -> None:
    model, batch = model_of(kind), digits(4)
    many = batch.apply(lambda tensor: tensor.repeat(8, *(1 for _ in tensor.shape[1:])))
    inputs = inputs_of(model, batch)
    eight = replace(inputs, x=inputs.x.repeat(8, 1, 1, 1))
    assert len(many.images) == 32
    one, all_rows = (objective(model.config, model(given), given).loss for given in (inputs, eight))
    torch.testing.assert_close(all_rows, one.repeat(8))


def test_no_term_of_ema_has_a_gradient_for_the_codebook() -> None:
    model = model_of("ema")
    model.quantizer.codebook.requires_grad_()
    output, inputs = output_of(model)
    objective(model.config, output, inputs).loss.sum().backward()
    assert model.quantizer.codebook.grad is None
    assert output.levels[0].encoded.grad.abs().sum() > 0


def test_the_codebook_of_ema_is_state_and_that_of_the_loss_a_parameter() -> None:
    names = {"quantizer.codebook", "quantizer.counts", "quantizer.started"}
    for kind, parameters in (("ema", set()), ("loss", {"quantizer.codebook"}), ("fsq", set())):
        model = model_of(kind)
        assert {name for name, _ in model.named_parameters() if name.startswith("quantizer")} == parameters
        saved = {name for name in model.state_dict() if name.startswith("quantizer")}
        assert saved == (names if kind != "fsq" else set())


@every_kind
def test_reading_never_changes_the_codebook(kind: str) -> None:
    model, batch = model_of(kind), digits(16)
    before = snapshot(model)
    for mode in (True, False):
        model.train(mode)
        inputs = inputs_of(model, batch)
        model(inputs)
        model.decode(model.represent(inputs.x, None), None)
        eval_step(model, batch, noise_of(batch))
    after = snapshot(model)
    assert all(torch.equal(before[name], after[name]) for name in before)


@pytest.mark.parametrize("kind", ["ema", "loss"])
def test_a_training_step_moves_the_codebook(kind: str) -> None:
    model = model_of(kind)
    for step in range(2):
        before = model.quantizer.codebook.detach().clone()
        step_once(model, digits(16), sgd(model), step=step, learning_rate=1e-4)
        assert not torch.equal(before, model.quantizer.codebook)


@every_kind
def test_training_lowers_the_distortion(kind: str) -> None:
    model = cast(VQVAE, digits_model(vqvae(codebook=kind, num_codes=27, likelihood="bernoulli")))
    optimizer = torch.optim.Adam(model.parameters())
    seen = [
        step_once(model, digits(64, start=64 * (step % 20)), optimizer, step=step, learning_rate=5e-3)
        for step in range(60)
    ]
    before, after = (terms.parts["distortion_nats"].mean().item() for terms in (seen[0], seen[-1]))
    assert after < 0.8 * before


def test_the_condition_reaches_encoder_and_decoder() -> None:
    model, batch = model_of(condition="label"), digits(6)
    inputs = inputs_of(model, batch)
    assert inputs.condition is not None
    other = inputs.condition.roll(1, dims=1)
    codes = model.represent(inputs.x, inputs.condition)
    assert not torch.equal(model.quantize(inputs.x, other).encoded, model.quantize(inputs.x, inputs.condition).encoded)
    assert not torch.equal(model.decode(codes, other).mean, model.decode(codes, inputs.condition).mean)


@every_kind
def test_signals_have_grids_of_height_1(kind: str) -> None:
    data = DataSpec(channels=2, height=1, width=32)
    model = cast(VQVAE, build_model(vqvae(codebook=kind), data))
    codes = model.represent(torch.rand(3, 2, 1, 32), None)
    assert model.grids == ((1, 8),)
    assert codes[0].shape == (3, 1, 8)
    assert model.decode(codes, None).mean.shape == (3, 2, 1, 32)


def test_a_path_between_images_begins_and_ends_at_their_codes() -> None:
    model = model_of()
    x = inputs_of(model, digits(8)).x
    start, end = model.represent(x[:4], None), model.represent(x[4:], None)
    assert torch.equal(model.between(start, end, 0.0)[0], start[0])
    assert torch.equal(model.between(start, end, 1.0)[0], end[0])
