"""What every objective returns."""

from collections.abc import Mapping
from dataclasses import dataclass

from torch import Tensor

ELBO = ("neg_elbo_nats", "distortion_nats", "rate_nats")


@dataclass(frozen=True, slots=True)
class Terms:
    """The loss [B] that is minimised, and its parts [B], without their weights, by names that end in the unit.

    Every family with a prior has `distortion_nats`, `rate_nats` and `neg_elbo_nats`, their sum: the negative ELBO at
    beta 1. Where the gradient is an estimator's, `loss` is the surrogate that has this gradient; parts never are.
    """

    loss: Tensor
    parts: Mapping[str, Tensor]


def elbo_parts(distortion: Tensor, rate: Tensor) -> dict[str, Tensor]:
    """The parts of every family with a prior."""
    return {"neg_elbo_nats": distortion + rate, "distortion_nats": distortion, "rate_nats": rate}
