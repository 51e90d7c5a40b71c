"""Distances between two sets of images, taken between features of them: what the features are, decides the meaning."""

from dataclasses import dataclass

import torch
from torch import Tensor

from vae_core.distributed import all_reduce_sum


@dataclass(frozen=True, slots=True)
class Moments:
    """Mean [D] and covariance [D, D] (divided by rows - 1) of features, float64, and of how many rows."""

    mean: Tensor
    covariance: Tensor
    rows: float


class FeatureMoments:
    """Sums of features and of their products over a split, in float64. Memory grows with D^2, not with the rows."""

    def __init__(self, dim: int) -> None:
        self.weight = torch.zeros((), dtype=torch.float64)
        self.sum = torch.zeros(dim, dtype=torch.float64)
        self.products = torch.zeros(dim, dim, dtype=torch.float64)

    @torch.no_grad()
    def add(self, features: Tensor, weight: Tensor) -> None:
        """features: [B, D]; weight: [B], 1 for a row of the data, 0 for padding.

        Raises:
            ValueError: a shape is another.
        """
        if features.shape != (len(weight), len(self.sum)):
            raise ValueError(f"features: expected {(len(weight), len(self.sum))}, got {tuple(features.shape)}")
        wide, each = features.double(), weight.double()[:, None]
        weighted = torch.where(each > 0, wide, 0) * each
        self.weight = self.weight.to(wide.device) + each.sum()
        self.sum = self.sum.to(wide.device) + weighted.sum(0)
        self.products = self.products.to(wide.device) + weighted.T @ torch.where(each > 0, wide, 0)

    def compute(self) -> Moments:
        """The moments of the rows of all ranks, on the CPU; every rank must call it.

        Sums are added over the ranks: the mean of the ranks' covariances would lack what lies between their means.

        Raises:
            ValueError: fewer than two rows were added.
        """
        dim = len(self.sum)
        flat = all_reduce_sum(torch.cat((self.weight[None], self.sum, self.products.flatten()))).cpu()
        rows, mean = float(flat[0]), flat[1 : dim + 1] / flat[0]
        if rows < 2:
            raise ValueError(f"moments: a covariance needs two rows or more, got {rows:g}")
        covariance = (flat[dim + 1 :].view(dim, dim) - rows * torch.outer(mean, mean)) / (rows - 1)
        return Moments(mean, covariance, rows)


def frechet_distance(one: Moments, other: Moments) -> float:
    """Frechet distance of two normal distributions, at least 0, in squared units of the features.

    |m1 - m2|^2 + tr(C1 + C2 - 2 (C1 C2)^(1/2)). The trace of the root is the sum of the roots of the eigenvalues of
    C1^(1/2) C2 C1^(1/2), which is symmetric, so nothing complex or ill-conditioned arises where a covariance is
    singular (fewer rows than features). The estimate is too great with few rows: compare equal numbers of rows only.

    Raises:
        ValueError: the features differ in number.

    Source: Heusel et al., arXiv:1706.08500 (there of Inception features: FID).
    """
    if one.mean.shape != other.mean.shape:
        raise ValueError(f"moments: expected as many features in both, got {len(one.mean)} and {len(other.mean)}")
    values, vectors = torch.linalg.eigh(one.covariance)
    root = (vectors * values.clamp(min=0).sqrt()) @ vectors.T
    product = root @ other.covariance @ root
    shared = torch.linalg.eigvalsh((product + product.T) / 2).clamp(min=0).sqrt().sum()
    apart = (one.mean - other.mean).square().sum()
    return max(0.0, float(apart + one.covariance.trace() + other.covariance.trace() - 2 * shared))


@dataclass(frozen=True, slots=True)
class KernelDistance:
    """Mean over subsets of the squared kernel distance, and its standard deviation between them."""

    mean: float
    deviation: float


def kernel_distance(
    one: Tensor, other: Tensor, *, seed: int, subsets: int = 100, subset_rows: int = 1000
) -> KernelDistance:
    """Squared maximum mean discrepancy, averaged over subsets; unbiased, so that it may fall below 0.

    Args:
        one: [N, D] features.
        other: [M, D].
        seed: decides the subsets, each drawn without replacement.
        subset_rows: rows of a subset, from each side.

    Raises:
        ValueError: a side has fewer rows than a subset, or the features differ in number.

    Source: Binkowski et al., arXiv:1801.01401 (there of Inception features: KID).
    """
    if not 2 <= subset_rows <= min(len(one), len(other)):
        raise ValueError(f"subset_rows: expected 2 to {min(len(one), len(other))}, the rows given, got {subset_rows}")
    generator = torch.Generator().manual_seed(seed)
    drawn = []
    for _ in range(subsets):
        rows, others = (torch.randperm(len(side), generator=generator)[:subset_rows] for side in (one, other))
        drawn.append(polynomial_mmd(one[rows.to(one.device)], other[others.to(other.device)]))
    values = torch.stack(drawn)
    return KernelDistance(float(values.mean()), float(values.std(correction=0)))


def polynomial_mmd(one: Tensor, other: Tensor) -> Tensor:
    """Unbiased squared maximum mean discrepancy under the kernel (x.y / D + 1)^3, 0-dim float64.

    Args:
        one: [N, D].
        other: [M, D].

    Raises:
        ValueError: fewer than two rows on a side, or the features differ in number.

    Source: Gretton et al., "A kernel two-sample test", 2012 (the unbiased estimate); the kernel of arXiv:1801.01401.
    """
    if min(len(one), len(other)) < 2 or one.shape[1:] != other.shape[1:]:
        raise ValueError(f"features: expected [2 or more, D] twice, got {tuple(one.shape)} and {tuple(other.shape)}")
    x, y = one.double(), other.double()
    return _mean_off_diagonal(_kernel(x, x)) + _mean_off_diagonal(_kernel(y, y)) - 2 * _kernel(x, y).mean()


def _kernel(x: Tensor, y: Tensor) -> Tensor:
    return (x @ y.T / x.shape[1] + 1) ** 3


def _mean_off_diagonal(kernel: Tensor) -> Tensor:
    return (kernel.sum() - kernel.trace()) / (len(kernel) * (len(kernel) - 1))
