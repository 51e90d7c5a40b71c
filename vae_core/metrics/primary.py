"""The one figure by which models of a family are compared."""

from collections.abc import Iterable


def primary(figures: Iterable[str]) -> str:
    """Of the names of a model's figures: the negative ELBO at beta 1; without a prior, the distortion."""
    return "neg_elbo_nats" if "neg_elbo_nats" in figures else "distortion_nats"
