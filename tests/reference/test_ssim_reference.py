"""SSIM and PSNR against scikit-image's."""

import numpy as np
import pytest
import torch
from skimage.metrics import peak_signal_noise_ratio, structural_similarity

from vae_core.metrics.image import psnr, ssim

SHAPES = [(1, 11, 11), (1, 28, 28), (3, 12, 40), (3, 32, 32), (4, 17, 13)]


def pair(shape: tuple[int, int, int], noise: float) -> tuple[torch.Tensor, torch.Tensor]:
    rng = np.random.default_rng(0)
    smooth = np.cumsum(rng.normal(size=(5, *shape)), axis=-1)
    x = (smooth - smooth.min()) / (smooth.max() - smooth.min())
    y = np.clip(x + noise * rng.normal(size=x.shape), 0, 1)
    return torch.from_numpy(x.astype(np.float32)), torch.from_numpy(y.astype(np.float32))


@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("noise", [0.01, 0.3])
def test_ssim_equals_scikit_image_with_the_settings_of_the_paper(shape: tuple[int, int, int], noise: float) -> None:
    x, y = pair(shape, noise)
    expected = [
        structural_similarity(
            a, b, channel_axis=0, data_range=1.0, gaussian_weights=True, sigma=1.5, use_sample_covariance=False
        )
        for a, b in zip(x.double().numpy(), y.double().numpy(), strict=True)
    ]
    np.testing.assert_allclose(ssim(x, y), expected, atol=1e-6)


@pytest.mark.parametrize("shape", SHAPES)
def test_psnr_equals_scikit_image(shape: tuple[int, int, int]) -> None:
    x, y = pair(shape, 0.1)
    pairs = zip(x.double().numpy(), y.double().numpy(), strict=True)
    expected = [peak_signal_noise_ratio(a, b, data_range=1.0) for a, b in pairs]
    np.testing.assert_allclose(psnr(x, y), expected, rtol=1e-6)
