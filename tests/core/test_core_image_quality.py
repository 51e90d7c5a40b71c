"""PSNR and SSIM of each image: their definitions, what an image of a batch does not depend on, and what is refused."""

import math
from collections.abc import Callable

import numpy as np
import pytest
import torch
from torch import Tensor

from vae_core.metrics.image import psnr, ssim

Metric = Callable[[Tensor, Tensor], Tensor]


def images(*shape: int, seed: int = 0) -> Tensor:
    return torch.rand(shape, generator=torch.Generator().manual_seed(seed))


def ssim_by_loops(x: np.ndarray, y: np.ndarray, window: int) -> float:
    """One channel, window by window."""
    place = np.arange(window) - window // 2
    weight = np.exp(-(place[:, None] ** 2 + place[None] ** 2) / (2 * 1.5**2))
    weight /= weight.sum()
    values = []
    for row in range(x.shape[0] - window + 1):
        for column in range(x.shape[1] - window + 1):
            a, b = (p[row : row + window, column : column + window] for p in (x, y))
            mean_a, mean_b = (weight * a).sum(), (weight * b).sum()
            var_a, var_b = (weight * (a - mean_a) ** 2).sum(), (weight * (b - mean_b) ** 2).sum()
            both = (weight * (a - mean_a) * (b - mean_b)).sum()
            values.append(
                (2 * mean_a * mean_b + 1e-4) * (2 * both + 9e-4)
                / ((mean_a**2 + mean_b**2 + 1e-4) * (var_a + var_b + 9e-4))
            )  # fmt: skip
    return float(np.mean(values))


def test_psnr_is_ten_times_the_log_of_peak_squared_over_the_mean_squared_error() -> None:
    x = torch.zeros(3, 1, 4, 4)
    y = torch.full((3, 1, 4, 4), 0.1) * torch.tensor([1.0, 10.0, 0.0])[:, None, None, None]
    torch.testing.assert_close(psnr(x, y), torch.tensor([20.0, 0.0, math.inf]))


def test_psnr_of_bytes_takes_their_peak() -> None:
    x = torch.randint(0, 256, (2, 3, 5, 5), dtype=torch.uint8, generator=torch.Generator().manual_seed(0))
    y = (255 - x.int()).to(torch.uint8)
    torch.testing.assert_close(psnr(x, y, peak=255), psnr(x / 255, y / 255))


@pytest.mark.parametrize("window", [3, 7, 11])
def test_ssim_equals_the_formula_window_by_window(window: int) -> None:
    x, y = images(1, 1, 13, 12), images(1, 1, 13, 12, seed=1)
    expected = ssim_by_loops(x[0, 0].double().numpy(), y[0, 0].double().numpy(), window)
    assert ssim(x, y, window=window).item() == pytest.approx(expected, abs=1e-6)


def test_ssim_of_equal_images_is_one_and_of_a_negative_below_zero() -> None:
    x = images(2, 3, 16, 16)
    torch.testing.assert_close(ssim(x, x), torch.ones(2))
    assert (ssim(x, 1 - x) < 0).all()


def test_ssim_of_colour_is_the_mean_over_the_channels() -> None:
    x, y = images(2, 3, 12, 14), images(2, 3, 12, 14, seed=1)
    each = torch.stack([ssim(x[:, [c]], y[:, [c]]) for c in range(3)])
    torch.testing.assert_close(ssim(x, y), each.mean(0))


def test_ssim_takes_the_peak_into_its_constants() -> None:
    x, y = images(2, 1, 12, 12), images(2, 1, 12, 12, seed=1)
    torch.testing.assert_close(ssim(x * 255, y * 255, peak=255), ssim(x, y))


@pytest.mark.parametrize("metric", [psnr, ssim])
def test_an_image_does_not_depend_on_its_batch(metric: Metric) -> None:
    x, y = images(4, 3, 12, 12), images(4, 3, 12, 12, seed=1)
    alone = torch.cat([metric(x[i : i + 1], y[i : i + 1]) for i in range(4)])
    torch.testing.assert_close(metric(x, y), alone)
    assert metric(x, y).dtype == torch.float32
    torch.testing.assert_close(metric(x, y), metric(y, x))


def test_flat_bright_images_do_not_suffer_from_cancellation() -> None:
    x = torch.full((1, 1, 16, 16), 0.999)
    assert ssim(x, x.clone()).item() == pytest.approx(1.0, abs=1e-6)
    assert ssim(x, x - 1e-4).item() == pytest.approx(1.0, abs=1e-6)


@pytest.mark.parametrize(("side", "greatest"), [(8, 7), (10, 9), (1, 1)])
def test_an_image_smaller_than_the_window_is_refused_with_the_greatest_that_fits(side: int, greatest: int) -> None:
    x = images(2, 1, side, 32)
    with pytest.raises(
        ValueError, match=f"window: 11 pixels do not fit .* smaller side is {side}; .* that does is {greatest}$"
    ):
        ssim(x, x)
    assert ssim(x, x, window=greatest).tolist() == pytest.approx([1.0, 1.0])


@pytest.mark.parametrize("window", [0, 2, 10, -1])
def test_a_window_without_a_middle_is_refused(window: int) -> None:
    with pytest.raises(ValueError, match=f"window: expected an odd number of pixels, got {window}"):
        ssim(images(1, 1, 12, 12), images(1, 1, 12, 12), window=window)


@pytest.mark.parametrize("metric", [psnr, ssim])
def test_images_of_different_shapes_are_refused_and_not_broadcast(metric: Metric) -> None:
    with pytest.raises(ValueError, match=r"images: expected two of one shape .* got \(2, 1, 12, 12\) and \(1, 1, 12"):
        metric(images(2, 1, 12, 12), images(1, 1, 12, 12))
