"""The amortisation gap: known where the best Gaussian posterior is the exact one."""

import math

import pytest
import torch
from core_models import noise_for
from linear_gaussian import exact_neg_elbo, exact_nll, linear_vae, pixels

from vae_core.metrics.amortisation import Refinement, amortisation_gap
from vae_core.noise import Noise

FIT = Refinement(steps=150, evaluation_draws=200)


def test_a_wrong_encoder_costs_what_the_closed_form_says() -> None:
    """Refined, the posterior is the exact one, so that the bound is tight."""
    model, x = linear_vae(shift=0.4, widen=0.8, turn=0.2), pixels(40)
    found = amortisation_gap(model, x, None, noise=noise_for(40), fit=FIT)
    exact = exact_neg_elbo(model, x).detach().double() - exact_nll(x)
    assert exact.min() > 0.2
    assert (found.gap - exact).mean().abs() < 0.05
    torch.testing.assert_close(found.refined, exact_nll(x), rtol=0, atol=0.35)
    assert abs((found.refined - exact_nll(x)).mean()) < 0.03


def test_the_exact_encoder_has_no_gap() -> None:
    x = pixels(40)
    found = amortisation_gap(linear_vae(), x, None, noise=noise_for(40), fit=FIT)
    assert found.gap.abs().mean() < 0.01


def test_the_refined_bound_is_no_better_than_the_likelihood() -> None:
    """It would be, on average, if it were judged by the draws that it was fitted to."""
    x = pixels(300)
    fit = Refinement(steps=60, draws=1, evaluation_draws=20)
    found = amortisation_gap(linear_vae(shift=0.5), x, None, noise=noise_for(300), fit=fit)
    assert (found.refined - exact_nll(x)).mean() > -0.03


def test_no_steps_leave_the_encoders_posterior() -> None:
    fit = Refinement(steps=0, draws=3, evaluation_draws=10)
    found = amortisation_gap(linear_vae(shift=0.5), pixels(4), None, noise=noise_for(4), fit=fit)
    assert torch.equal(found.gap, torch.zeros(4).double())


@pytest.mark.parametrize("draws", [1, 7, 10, 25])
def test_the_elbo_is_that_of_all_evaluation_draws(draws: int) -> None:
    model, x = linear_vae(shift=0.5), pixels(1).expand(2000, -1, -1, -1)
    fit = Refinement(steps=0, draws=draws, evaluation_draws=10)
    found = amortisation_gap(model, x, None, noise=noise_for(2000), fit=fit).amortised
    exact = exact_neg_elbo(model, x[:1]).item()
    assert abs(found.mean().item() - exact) < 5 * found.std().item() / math.sqrt(2000)
    # The spread of the mean of 10: that of one draw's squared error, over 10.
    q = model.encode(x[:1], None)
    one = -model.decode(q.draw(torch.randn(4000, 2)), None).nll(x[:1].expand(4000, -1, -1, -1))
    assert found.std().item() == pytest.approx(one.std().item() / math.sqrt(10), rel=0.15)


def test_an_image_has_the_same_gap_in_any_company() -> None:
    model, x = linear_vae(shift=0.4), pixels(6)
    fit = Refinement(steps=20, evaluation_draws=8)
    whole = amortisation_gap(model, x, None, noise=noise_for(6), fit=fit)
    rows = torch.tensor([4, 1])
    at = Noise(seed=0, scope="test", step=0, position=rows, rows=6)
    some = amortisation_gap(model, x[rows], None, noise=at, fit=fit)
    torch.testing.assert_close(some.gap, whole.gap[rows], rtol=1e-4, atol=1e-4)


def test_the_model_is_left_as_it_was() -> None:
    model = linear_vae(shift=0.4)
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    with torch.no_grad():  # as in an evaluation
        amortisation_gap(model, pixels(3), None, noise=noise_for(3), fit=Refinement(steps=3, evaluation_draws=2))
    assert all(torch.equal(before[name], tensor) for name, tensor in model.state_dict().items())
    assert all(p.grad is None for p in model.parameters())
