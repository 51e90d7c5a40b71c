"""How near a reconstruction is to its image, one number an image."""

import torch
from torch import Tensor
from torch.nn import functional as F

SSIM_WINDOW = 11  # with its Gaussian weights of deviation 1.5, of Wang et al.
_SIGMA = 1.5


def psnr(x: Tensor, y: Tensor, *, peak: float = 1.0) -> Tensor:
    """Peak signal-to-noise ratio of each image, in dB: 10 log10(peak^2 / mean squared error); infinite where equal.

    Args:
        x: [B, C, H, W] numbers from 0 to `peak`.
        y: same shape.
        peak: the greatest value that a pixel can have.

    Returns:
        [B] float32.

    Raises:
        ValueError: the shapes differ.
    """
    _check_same_shape(x, y)
    error = (x.double() - y.double()).square().flatten(1).mean(1)
    return (10 * torch.log10(peak**2 / error)).float()


def ssim(x: Tensor, y: Tensor, *, peak: float = 1.0, window: int = SSIM_WINDOW) -> Tensor:
    """Mean structural similarity of each image, at most 1; the mean over the channels where there are several.

    Each window is weighted by a Gaussian of deviation 1.5, variances are those of the window's population, and only
    windows that lie within the image count. That is scikit-image's `structural_similarity` with gaussian_weights=True,
    sigma=1.5, use_sample_covariance=False, not its default of a flat window of 7.

    Args:
        x: [B, C, H, W] numbers from 0 to `peak`.
        y: same shape.
        window: side of the window in pixels, odd; figures of different windows cannot be compared.

    Returns:
        [B] float32.

    Raises:
        ValueError: the shapes differ, or the window is even or does not fit into the image.

    Source: Wang et al., "Image quality assessment: from error visibility to structural similarity", 2004, equation 13
    with K1 = 0.01 and K2 = 0.03.
    """
    _check_same_shape(x, y)
    _check_window(window, side=min(x.shape[-2:]))
    batch, channels = x.shape[:2]
    planes = torch.stack((x.double(), y.double())).flatten(1, 2)  # [2, B * C, H, W]
    one, other = planes
    products = torch.stack((one, other, one * one, other * other, one * other)).flatten(0, 1)[:, None]
    weight = _gaussian(window, x.device)
    means = F.conv2d(F.conv2d(products, weight.view(1, 1, -1, 1)), weight.view(1, 1, 1, -1))
    mean_x, mean_y, square_x, square_y, product = means[:, 0].unflatten(0, (5, batch * channels))
    c1, c2 = (0.01 * peak) ** 2, (0.03 * peak) ** 2
    likeness = (2 * mean_x * mean_y + c1) * (2 * (product - mean_x * mean_y) + c2)
    scale = (mean_x**2 + mean_y**2 + c1) * (square_x - mean_x**2 + square_y - mean_y**2 + c2)
    similarity: Tensor = (likeness / scale).unflatten(0, (batch, channels)).flatten(1).mean(1)
    return similarity.float()


def _gaussian(window: int, device: torch.device) -> Tensor:
    """[window] weights that sum to 1."""
    place = torch.arange(window, dtype=torch.float64, device=device) - window // 2
    weight = torch.exp(-place.square() / (2 * _SIGMA**2))
    return weight / weight.sum()


def _check_same_shape(x: Tensor, y: Tensor) -> None:
    if x.dim() != 4 or x.shape != y.shape:
        raise ValueError(f"images: expected two of one shape [B, C, H, W], got {tuple(x.shape)} and {tuple(y.shape)}")


def _check_window(window: int, side: int) -> None:
    if window < 1 or window % 2 == 0:
        raise ValueError(f"window: expected an odd number of pixels, got {window}")
    if window > side:
        raise ValueError(
            f"window: {window} pixels do not fit into an image whose smaller side is {side}; the greatest that does is "
            f"{side - (side + 1) % 2}"
        )
