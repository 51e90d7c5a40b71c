"""Scores from groups of rows that share the value of one factor.

disentanglement_lib renders a new image for each combination that it draws. Here the rows of a data set are grouped
instead: the others that share a row's value of a factor are drawn evenly, with replacement, from the rows that have
it. On a full grid of factors both draw from the same distribution.
"""

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

Floats = NDArray[np.float64]
Integers = NDArray[np.int64]

_AT_ONCE = 2**22  # numbers gathered at a time: 32 MiB


@dataclass(frozen=True, slots=True)
class FactorVAEScore:
    """Accuracies, 0 to 1, of the majority vote: on the votes that it was made of, and on fresh ones.

    Attributes:
        train_accuracy: of the votes that the majority was taken of.
        accuracy: the score: of votes drawn afterwards.
        active_codes: codes that took part.
    """

    train_accuracy: float
    accuracy: float
    active_codes: int


def factor_vae_score(
    codes: NDArray[np.floating],
    values: Integers,
    rng: np.random.Generator,
    *,
    train_points: int = 10_000,
    points: int = 5_000,
    group_rows: int = 64,
    least_deviation: float = 0.05,
) -> FactorVAEScore:
    """The FactorVAE metric: can the code that varies least tell which factor was held fixed?

    Args:
        codes: [N, L].
        values: [N, F] integers; factors.
        rng: the one source of randomness.
        train_points: groups that the majority vote is made of.
        points: groups that it is tried on.
        group_rows: rows of a group.
        least_deviation: a code whose standard deviation over all rows is below it takes no part. With none left the
            score is 0.

    Raises:
        ValueError: no two rows share a value of some factor.

    Source: Kim & Mnih, arXiv:1802.05983, section 4; disentanglement_lib, factor_vae.py, with the settings of its study
    (`prune_dims.threshold` 0.05, which it compares with the standard deviation).
    """
    variance = codes.var(axis=0, ddof=1, dtype=np.float64)
    active = np.sqrt(variance) >= least_deviation
    if not active.any():
        return FactorVAEScore(0.0, 0.0, 0)
    scaled = codes[:, active] / np.sqrt(np.where(variance > 0, variance, 1)[active])
    train = _votes(scaled, values, rng, train_points, group_rows)
    fresh = _votes(scaled, values, rng, points, group_rows)
    winner = train.argmax(axis=0)
    each = np.arange(train.shape[1])
    return FactorVAEScore(
        float(train[winner, each].sum() / train.sum()),
        float(fresh[winner, each].sum() / fresh.sum()),
        int(active.sum()),
    )


def beta_vae_points(
    codes: NDArray[np.floating], values: Integers, rng: np.random.Generator, *, points: int, pairs: int = 64
) -> tuple[Floats, Integers]:
    """Training points of the beta-VAE metric: mean differences of codes within pairs that share one factor.

    The score is the accuracy of a linear classifier that tells the factor from the point.

    Args:
        codes: [N, L].
        values: [N, F] integers; factors.
        points: how many to make.
        pairs: averaged for one point.

    Returns:
        Mean absolute differences [points, L], and which factor the pairs shared [points].

    Raises:
        ValueError: no two rows share a value of some factor.

    Source: Higgins et al., ICLR 2017 (openreview Sy2fzU9gl), section 3; disentanglement_lib, beta_vae.py.
    """
    factor = rng.integers(values.shape[1], size=points)
    differences = np.empty((points, codes.shape[1]))
    for shared in range(values.shape[1]):
        which = np.flatnonzero(factor == shared)
        one = rng.choice(shareable(values[:, shared]), size=(len(which), pairs))
        other = partners(values[:, shared], one, rng)
        for part in _parts(which, pairs * codes.shape[1]):
            differences[which[part]] = np.abs(codes[one[part]] - codes[other[part]]).mean(axis=1, dtype=np.float64)
    return differences, factor


def shareable(values: Integers) -> Integers:
    """The rows whose value of a factor another row has too.

    Args:
        values: [N].

    Raises:
        ValueError: there are none.
    """
    _, group, count = np.unique(values, return_inverse=True, return_counts=True)
    rows = np.flatnonzero(count[group] > 1)
    if not len(rows):
        raise ValueError("factors: expected rows that share a value, got one of which every row has its own")
    return rows


def partners(values: Integers, rows: Integers, rng: np.random.Generator) -> Integers:
    """For each row one that has the same value, evenly from all that do, itself among them.

    Args:
        values: [N] a factor.
        rows: any shape.

    Returns:
        Rows, in the shape of `rows`.
    """
    _, group, count = np.unique(values, return_inverse=True, return_counts=True)
    grouped = np.argsort(group, kind="stable")
    first = np.cumsum(count) - count
    wanted = group[rows]
    drawn: Integers = grouped[first[wanted] + rng.integers(count[wanted])]
    return drawn


def _votes(
    scaled: NDArray[np.floating], values: Integers, rng: np.random.Generator, points: int, rows: int
) -> Integers:
    """[F, L]: how often code l varied least in a group that shared factor f."""
    votes = np.zeros((values.shape[1], scaled.shape[1]), dtype=np.int64)
    for shared, count in enumerate(rng.multinomial(points, np.full(len(votes), 1 / len(votes)))):
        seeds = rng.choice(shareable(values[:, shared]), size=(count, 1))
        group = partners(values[:, shared], np.broadcast_to(seeds, (count, rows)), rng)
        for part in _parts(group, rows * scaled.shape[1]):
            least = scaled[group[part]].var(axis=1, ddof=1, dtype=np.float64).argmin(axis=1)
            votes[shared] += np.bincount(least, minlength=votes.shape[1])
    return votes


def _parts(rows: NDArray[np.generic], numbers_a_row: int) -> list[slice]:
    step = max(1, _AT_ONCE // numbers_a_row)
    return [slice(first, first + step) for first in range(0, len(rows), step)]
