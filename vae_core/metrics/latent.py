"""What the latent space holds: how many dimensions vary, the rate of each, and what the rate is spent on.

rate = E KL(q(z | x) || p(z)) = mutual information of x and z under q + KL of the aggregate posterior to the prior
(Hoffman & Johnson, ELBO surgery, NIPS workshop 2016). The first part is what the code says about the image; the second
is how far codes of images are from what the prior draws, and so what samples from the prior lose.
"""

import math
from collections.abc import Mapping
from dataclasses import dataclass

import torch
from torch import Tensor

from vae_core.distributed import all_gather_rows, all_reduce_sum, world_size
from vae_core.noise import Noise
from vae_core.normal import LOG_2PI, DiagonalNormal, kl_each, standard_log_prob

BLOCK_NUMBERS = 2**22  # densities that are evaluated at once


class ActiveUnits:
    """Counts the latent dimensions whose posterior mean varies over the data: Var_x(E[z | x]) above `threshold`.

    Source: Burda et al., arXiv:1509.00519, section 5.1 (threshold 0.01).
    """

    def __init__(self, latent_dim: int, threshold: float = 0.01) -> None:
        self.threshold = threshold
        self.moments = torch.zeros(3, latent_dim, dtype=torch.float64)  # weight, sum, sum of squares

    def add(self, mean: Tensor, weight: Tensor) -> None:
        """mean: [B, latent_dim] posterior means; weight: [B]."""
        weight = weight.double()[:, None]
        mean = torch.where(weight > 0, mean.double(), 0.0)  # padding may hold anything
        rows = torch.stack((weight.expand_as(mean).sum(0), (weight * mean).sum(0), (weight * mean.square()).sum(0)))
        self.moments = self.moments.to(rows.device) + rows

    def variances(self) -> Tensor:
        """[latent_dim], over all ranks."""
        weight, total, squares = all_reduce_sum(self.moments.clone())
        variances: Tensor = squares / weight - (total / weight).square()
        return variances

    def compute(self) -> int:
        return int((self.variances() > self.threshold).sum())


class RatePerDimension:
    """Mean over the split of each dimension's KL to the prior, in nats; their sum is the rate."""

    def __init__(self, latent_dim: int) -> None:
        self.sums = torch.zeros(latent_dim + 1, dtype=torch.float64)  # rates, then the weight

    def add(self, q: DiagonalNormal, prior: DiagonalNormal | None, weight: Tensor) -> None:
        """q, prior: of the rows [B, L], prior None: N(0, I); weight: [B]."""
        wide = weight.double()[:, None]
        rates = torch.where(wide > 0, kl_each(q, prior).double(), 0.0) * wide
        total = torch.cat((rates.sum(0), wide.sum(0)))
        self.sums = self.sums.to(total.device) + total

    def compute(self) -> Tensor:
        """float64 [L], over all ranks; every rank must call it."""
        sums = all_reduce_sum(self.sums.clone())
        rates: Tensor = sums[:-1] / sums[-1]
        return rates


class MarginalMoments:
    """How far each dimension of the aggregate posterior q(z) is from N(0, 1) in mean and variance, in nats.

    KL(N(m, v) || N(0, 1)) of the moments m and v of q(z): no estimate of a density, so, unlike `AggregatePosterior`,
    it is sound at any rate and number of rows.
    """

    def __init__(self, latent_dim: int) -> None:
        self.sums = torch.zeros(3, latent_dim, dtype=torch.float64)  # weight, mean, second moment

    def add(self, q: DiagonalNormal, weight: Tensor) -> None:
        """q: of the rows [B, L]; weight: [B], 0 for rows that do not count."""
        wide = weight.double()[:, None]
        mean, variance = q.mean.double(), q.log_var.double().exp()
        moments = torch.stack((torch.ones_like(mean), mean, mean.square() + variance))
        total = (torch.where(wide > 0, moments, 0.0) * wide).sum(1)
        self.sums = self.sums.to(total.device) + total

    def each(self) -> Tensor:
        """float64 [L], over all ranks; every rank must call it."""
        weight, mean, second = all_reduce_sum(self.sums.clone())
        mean = mean / weight
        variance = second / weight - mean.square()
        mismatch: Tensor = 0.5 * (mean.square() + variance - 1 - variance.log())
        return mismatch

    def compute(self) -> dict[str, float]:
        """marginal_mismatch_nats: the sum over the dimensions; every rank must call it."""
        return {"marginal_mismatch_nats": float(self.each().sum())}


@dataclass(frozen=True, slots=True)
class AggregateFigures:
    """Split of the rate over `rows` rows, in nats. The two parts sum to `rate`, the estimate from the same draws.

    Attributes:
        mutual_information: of the row and its code; at most log(rows), which it nears where every row has a code of
            its own: then only more rows tell how much more there is.
        aggregate_kl: KL(q(z) || p(z)) of q(z), the mean of the posteriors of the rows.
        standard_error: of the mutual information, from the draws.
    """

    mutual_information: float
    aggregate_kl: float
    rate: float
    standard_error: float
    rows: int

    def figures(self) -> dict[str, float]:
        return {
            "mutual_information_nats": self.mutual_information,
            "mutual_information_standard_error_nats": self.standard_error,
            "mutual_information_limit_nats": math.log(self.rows),
            "aggregate_kl_nats": self.aggregate_kl,
            "aggregate_rows": self.rows,
        }


class AggregatePosterior:
    """Mutual information I(x; z) and KL(q(z) || p(z)) with one draw from each of at most `limit` rows.

    The rows are a random sample of the split, the same for any batches and number of ranks that keep the noise: those
    with the smallest of random keys. Memory grows with `limit` x latent dimensions, time with `limit` squared.
    """

    def __init__(self, latent_dim: int, limit: int = 10_000) -> None:
        self.latent_dim, self.limit = latent_dim, limit
        self.kept = torch.empty(0, 3 * latent_dim + 2, dtype=torch.float64)  # key, mean, log_var, z, log p(z)

    @torch.no_grad()
    def add(self, q: DiagonalNormal, prior: DiagonalNormal | None, weight: Tensor, noise: Noise) -> None:
        """q, prior: of the rows [B, L], prior None: N(0, I); weight: [B], 0 for rows that do not count.

        Under a prior that depends on a condition, the mean over the rows of log p(z | c) stands for log p(z), and
        `aggregate_kl` may be negative.
        """
        z = q.draw(noise.normal("aggregate", self.latent_dim))
        log_prior = standard_log_prob(z) if prior is None else prior.log_prob(z)
        key = noise.uniform("aggregate_key", 1)
        rows = torch.cat((key.double(), q.mean, q.log_var, z, log_prior[:, None]), dim=1)[weight > 0]
        self.kept = self._smallest(torch.cat((self.kept.to(rows.device), rows)))

    @torch.no_grad()
    def compute(self) -> AggregateFigures:
        """Over all ranks; every rank must call it.

        Raises:
            ValueError: no rows were added.
        """
        kept = self._smallest(self._of_all_ranks())
        rows = len(kept)
        if rows == 0:
            raise ValueError("no rows were added")
        _, mean, log_var, z, log_prior = kept.split((1, *(self.latent_dim,) * 3, 1), dim=1)
        q = DiagonalNormal(mean, log_var)
        own = -0.5 * ((z - mean).square() * torch.exp(-log_var) + log_var + LOG_2PI).sum(1)
        information = own - log_mixture(z, q)
        rate = (own - log_prior[:, 0]).mean()
        error = information.std(correction=0) / math.sqrt(rows)
        mutual = information.mean()
        return AggregateFigures(float(mutual), float(rate - mutual), float(rate), float(error), rows)

    def _smallest(self, rows: Tensor) -> Tensor:
        return rows[rows[:, 0].argsort(stable=True)[: self.limit]]

    def _of_all_ranks(self) -> Tensor:
        """Every rank's rows; a rank with fewer than another fills up with rows of an infinite key, which go again."""
        if world_size() == 1:
            return self.kept
        absent = torch.full((self.limit - len(self.kept), self.kept.shape[1]), math.inf, dtype=torch.float64)
        gathered = all_gather_rows(torch.cat((self.kept, absent.to(self.kept.device))))
        return gathered[gathered[:, 0].isfinite()]


def log_mixture(z: Tensor, components: DiagonalNormal) -> Tensor:
    """log of the mean density of the components [N, L] at each z [M, L], in nats: float64 [M]."""
    mean, log_var = components.mean.double(), components.log_var.double()
    precision = torch.exp(-log_var)
    at_zero = (mean.square() * precision + log_var + LOG_2PI).sum(1)
    rows = max(1, BLOCK_NUMBERS // len(mean))
    blocks = [
        # (z - mean)^2 x precision, multiplied out into two products of matrices: no [M, N, L]
        (some @ (mean * precision).T - 0.5 * (some.square() @ precision.T + at_zero)).logsumexp(1)
        for some in z.double().split(rows)
    ]
    return torch.cat(blocks) - math.log(len(mean))


@dataclass(frozen=True, slots=True)
class RateDistortionPoint:
    """Where a model lies between saying nothing and saying all, in nats a sample.

    Models on one line of rate + distortion have the same ELBO and spend it differently (Alemi et al.,
    arXiv:1711.00464).
    """

    rate_nats: float
    distortion_nats: float

    @classmethod
    def of(cls, figures: Mapping[str, float]) -> "RateDistortionPoint":
        return cls(figures["rate_nats"], figures["distortion_nats"])

    @property
    def neg_elbo_nats(self) -> float:
        return self.rate_nats + self.distortion_nats

    def dominates(self, other: "RateDistortionPoint") -> bool:
        """No worse in either, and better in one."""
        no_worse = self.rate_nats <= other.rate_nats and self.distortion_nats <= other.distortion_nats
        return no_worse and self != other
