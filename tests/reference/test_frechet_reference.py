"""Frechet and kernel distances against torchmetrics', on features of our own network."""

import pytest
import torch
from torch import Tensor, nn
from torchmetrics.image.fid import FrechetInceptionDistance
from torchmetrics.image.kid import KernelInceptionDistance

from vae_core.config import DataSpec
from vae_core.metrics.features import FEATURES, FeatureClassifier
from vae_core.metrics.frechet import FeatureMoments, frechet_distance, kernel_distance

DATA = DataSpec(channels=3, height=16, width=16, num_classes=4)


class Features(nn.Module):
    """Bytes to features, as torchmetrics feeds a network."""

    num_features = FEATURES

    def __init__(self) -> None:
        super().__init__()
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(0)
            self.model = FeatureClassifier(DATA)

    @torch.no_grad()
    def forward(self, images: Tensor) -> Tensor:
        return self.model.features(images.float() / 255)


def images(rows: int, least: int, seed: int) -> Tensor:
    generator = torch.Generator().manual_seed(seed)
    return torch.randint(least, 256, (rows, 3, 16, 16), dtype=torch.uint8, generator=generator)


@pytest.mark.parametrize("rows", [40, 300])  # fewer than features, so that the covariances are singular, and more
@pytest.mark.parametrize("least", [0, 20, 150])
def test_the_frechet_distance_equals_that_of_torchmetrics(rows: int, least: int) -> None:
    network = Features()
    theirs = FrechetInceptionDistance(feature=network)
    sides = images(rows, 0, seed=1), images(rows, least, seed=2)
    ours = FeatureMoments(FEATURES), FeatureMoments(FEATURES)
    for side, real, sums in zip(sides, (True, False), ours, strict=True):
        for batch in side.split(17):
            theirs.update(batch, real=real)
            sums.add(network(batch), torch.ones(len(batch)))
    expected = float(theirs.compute())
    assert expected > 0
    # With singular covariances theirs takes roots of eigenvalues that rounding made of zeros.
    found = frechet_distance(ours[0].compute(), ours[1].compute())
    assert found == pytest.approx(expected, rel=1e-4, abs=1e-6)


@pytest.mark.filterwarnings("ignore:Metric `Kernel Inception Distance` will save all extracted features:UserWarning")
@pytest.mark.parametrize("least", [0, 150])
def test_the_kernel_distance_equals_that_of_torchmetrics(least: int) -> None:
    network = Features()
    theirs = KernelInceptionDistance(feature=network, subsets=1, subset_size=50)
    sides = images(50, 0, seed=1), images(50, least, seed=2)
    for side, real in zip(sides, (True, False), strict=True):
        theirs.update(side, real=real)
    ours = kernel_distance(network(sides[0]), network(sides[1]), seed=0, subsets=1, subset_rows=50)
    assert ours.mean == pytest.approx(float(theirs.compute()[0]), rel=1e-3, abs=1e-6)  # theirs is in float32
