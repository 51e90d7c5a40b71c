"""The linear probe: its optimum, what it does not depend on, and what is refused."""

import math

import pytest
import torch
from core_models import digits
from torch import Tensor
from torch.nn import functional as F

from vae_core.metrics.probe import LinearProbe, fit_linear_probe


def pixels(rows: int, start: int = 0) -> tuple[Tensor, Tensor]:
    batch = digits(rows, start)
    assert batch.labels is not None
    return batch.images.flatten(1).float(), batch.labels


@pytest.fixture(scope="module")
def probe() -> LinearProbe:
    return fit_linear_probe(*pixels(1000), num_classes=10)


def test_it_reads_digits_from_their_pixels(probe: LinearProbe) -> None:
    assert probe.accuracy(*pixels(797, start=1000)) > 0.88
    assert probe.accuracy(*pixels(1000)) > 0.99


def test_the_gradient_of_the_penalised_loss_is_zero(probe: LinearProbe) -> None:
    features, labels = pixels(1000)
    weight, bias = probe.weight.clone().requires_grad_(), probe.bias.clone().requires_grad_()
    x = (features.double() - probe.mean) / probe.scale
    loss = F.cross_entropy(x @ weight.T + bias, labels, reduction="sum") + 0.5 * weight.square().sum()
    loss.backward()
    for parameter in (weight, bias):
        assert parameter.grad is not None
        assert parameter.grad.abs().max() / 1000 < 2e-5


def test_a_greater_penalty_gives_smaller_weights_and_leaves_the_bias() -> None:
    features, labels = pixels(300)
    keep = labels < 2
    features, labels = features[keep], labels[keep]
    loose, tight = (fit_linear_probe(features, labels, num_classes=2, l2=l2) for l2 in (0.1, 1e6))
    assert tight.weight.norm() < 1e-2 * loose.weight.norm()
    share = labels.double().mean()
    odds = tight.bias[1] - tight.bias[0]
    assert float(odds) == pytest.approx(float(torch.log(share / (1 - share))), abs=1e-3)


def test_the_same_rows_give_the_same_probe_whatever_the_global_generator() -> None:
    found = []
    for seed in (0, 1):
        torch.manual_seed(seed)
        found.append(fit_linear_probe(*pixels(200), num_classes=10))
    assert torch.equal(found[0].weight, found[1].weight)


def test_scale_and_offset_of_a_feature_do_not_matter() -> None:
    features, labels = pixels(300)
    held_out, truth = pixels(300, start=1000)
    scale, offset = torch.logspace(-3, 3, 64), torch.linspace(-10, 10, 64)
    plain = fit_linear_probe(features, labels, num_classes=10)
    other = fit_linear_probe(features.double() * scale + offset, labels, num_classes=10)
    torch.testing.assert_close(
        other.logits(held_out.double() * scale + offset), plain.logits(held_out), rtol=1e-2, atol=1e-2
    )
    assert other.accuracy(held_out.double() * scale + offset, truth) == plain.accuracy(held_out, truth)


def test_a_feature_that_does_not_vary_is_harmless() -> None:
    features, labels = pixels(200)
    constant = torch.full((200, 1), 0.1)
    probe = fit_linear_probe(torch.cat((features, constant), 1), labels, num_classes=10)
    assert torch.isfinite(probe.weight).all()
    assert probe.scale[-1] == 1
    assert probe.accuracy(torch.cat((features, constant + 5), 1), labels) > 0.99


def test_the_rounding_of_a_constant_is_not_taken_for_variation() -> None:
    constant = torch.full((200, 1), 1000.1, dtype=torch.float64)
    assert constant.std(0, correction=0) > 0  # 2e-13
    probe = fit_linear_probe(constant, torch.arange(200) % 2, num_classes=2)
    assert probe.scale.tolist() == [1.0]


def test_noise_tells_nothing() -> None:
    generator = torch.Generator().manual_seed(0)
    noise, labels = torch.randn(3000, 5, generator=generator), torch.randint(4, (3000,), generator=generator)
    probe = fit_linear_probe(noise[:2000], labels[:2000], num_classes=4)
    assert probe.accuracy(noise[2000:], labels[2000:]) == pytest.approx(0.25, abs=0.05)


def test_a_class_without_rows_is_never_chosen() -> None:
    features, labels = pixels(200)
    keep = labels != 3
    probe = fit_linear_probe(features[keep], labels[keep], num_classes=10)
    assert not (probe.logits(features).argmax(1) == 3).any()


def test_it_holds_no_graph_and_fits_where_gradients_are_off() -> None:
    features, labels = pixels(100)
    with torch.no_grad():
        probe = fit_linear_probe(features.requires_grad_(), labels, num_classes=10)
    assert not probe.weight.requires_grad
    assert probe.weight.abs().sum() > 0


def test_what_cannot_be_fitted_is_refused() -> None:
    features, labels = pixels(20)
    with pytest.raises(ValueError, match=r"expected \[N, D\] and labels \[N\], got \(20, 64\), \(19,\)"):
        fit_linear_probe(features, labels[1:], num_classes=10)
    with pytest.raises(ValueError, match="labels: expected 0 to 4, got 0 to 9"):
        fit_linear_probe(features, labels, num_classes=5)
    features[0, 0] = math.nan
    with pytest.raises(ValueError, match="features: expected finite numbers, got NaN"):
        fit_linear_probe(features, labels, num_classes=10)
