"""The quantizer in its model: straight-through gradients, and a codebook that only a training step moves."""

from typing import cast

import torch
from core_models import digits, digits_model, noise_of, sgd, snapshot, step_once, vqvae
from torch import Tensor

from vae_core.likelihoods import observe
from vae_core.models.vqvae import VQVAE, VQVAEOutput
from vae_core.objectives import objective
from vae_core.training import eval_step


def model_and_output() -> tuple[VQVAE, VQVAEOutput, Tensor]:
    """A model whose codes lie far from what its encoder gives, its output for a batch, and the pixels of that batch."""
    model = cast(VQVAE, digits_model(vqvae()))
    model.quantizer.codebook.copy_(torch.randn(8, 3, generator=torch.Generator().manual_seed(5)))
    batch = digits(8, start=50)
    x = observe(batch.images, model.config.likelihood, noise_of(batch))
    model.quantizer.codebook.requires_grad_()
    output = model(x, None, noise_of(batch))
    output.encoded.retain_grad()
    return model, output, x


def test_the_gradient_of_the_pixels_reaches_the_encoder_unchanged() -> None:
    model, output, x = model_and_output()
    output.pixels.nll(x).sum().backward()
    straight = output.quantized.detach().requires_grad_()
    model.head(model.decoder(straight)).nll(x).sum().backward()
    torch.testing.assert_close(output.encoded.grad, straight.grad, rtol=1e-4, atol=1e-5)
    assert straight.grad.abs().sum() > 0


def test_the_decoder_sees_the_codes_and_not_the_encoder_output() -> None:
    model, output, _ = model_and_output()
    torch.testing.assert_close(output.pixels.mean, model.decode(output.codes).mean, rtol=1e-5, atol=1e-6)
    assert torch.equal(output.quantized, model.quantizer.lookup(output.codes))
    assert (model.head(model.decoder(output.encoded)).mean - output.pixels.mean).abs().max() > 1e-3


def test_no_term_of_the_loss_has_a_gradient_for_the_codebook() -> None:
    model, output, x = model_and_output()
    objective(model.config, output, x).loss.sum().backward()
    assert model.quantizer.codebook.grad is None
    assert output.encoded.grad.abs().sum() > 0


def test_the_codebook_is_state_and_no_parameter() -> None:
    model = digits_model(vqvae())
    assert not [name for name, _ in model.named_parameters() if name.startswith("quantizer")]
    assert {name for name in model.state_dict() if name.startswith("quantizer")} == {
        "quantizer.codebook",
        "quantizer.counts",
        "quantizer.started",
    }


def test_reading_never_changes_the_codebook() -> None:
    model, batch = cast(VQVAE, digits_model(vqvae())), digits(16)
    before = snapshot(model)
    x = observe(batch.images, model.config.likelihood, noise_of(batch))
    for mode in (True, False):
        model.train(mode)
        model(x, None, noise_of(batch))
        model.decode(model.quantizer.nearest(model.encode(x)))
        eval_step(model, batch, noise_of(batch))
    after = snapshot(model)
    assert all(torch.equal(before[name], after[name]) for name in before)


def test_a_training_step_moves_the_codebook() -> None:
    model = cast(VQVAE, digits_model(vqvae()))
    for step in range(2):
        before = model.quantizer.codebook.clone()
        step_once(model, digits(16), sgd(model), step=step, learning_rate=1e-4)
        assert not torch.equal(before, model.quantizer.codebook)
