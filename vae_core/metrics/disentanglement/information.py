"""Scores from the mutual information between each code and each factor."""

import numpy as np
from numpy.typing import NDArray

BINS = 20  # of disentanglement_lib's study, arXiv:1811.12359

Floats = NDArray[np.float64]
Integers = NDArray[np.int64]


def discretise(codes: NDArray[np.floating], bins: int = BINS) -> Integers:
    """The bin of each code, from 0: `bins` of equal width between the least and the greatest value of each column.

    Args:
        codes: [N, L].

    Returns:
        [N, L].

    Raises:
        ValueError: a code is not finite, or the array is not of two dimensions.

    Source: disentanglement_lib, utils.py, `_histogram_discretize`.
    """
    wide = np.asarray(codes, dtype=np.float64)
    if wide.ndim != 2:
        raise ValueError(f"codes: expected [rows, codes], got {wide.shape}")
    if not np.isfinite(wide).all():
        raise ValueError("codes: expected finite numbers, got NaN or infinity")
    inner = np.linspace(wide.min(axis=0), wide.max(axis=0), bins + 1)[1:-1]
    columns = [np.digitize(column, edges) for column, edges in zip(wide.T, inner.T, strict=True)]
    return np.stack(columns, axis=1).astype(np.int64)


def value_numbers(factors: NDArray[np.integer]) -> Integers:
    """Each factor's values numbered from 0 without gaps.

    Args:
        factors: [N, F] integers.

    Returns:
        [N, F].

    Raises:
        ValueError: they are not integers [N, F], or a factor has a single value, of which nothing can be learned.
    """
    if factors.ndim != 2 or not np.issubdtype(factors.dtype, np.integer):
        raise ValueError(f"factors: expected integers [rows, factors], got {factors.dtype} {factors.shape}")
    numbered = np.stack([np.unique(column, return_inverse=True)[1] for column in factors.T], axis=1)
    constant = np.flatnonzero(numbered.max(axis=0) == 0).tolist()
    if constant:
        raise ValueError(f"factors: each needs two values or more in these rows; columns {constant} have one")
    return numbered.astype(np.int64)


def mutual_information(bins: Integers, values: Integers) -> Floats:
    """Mutual information of each discrete code with each factor, in nats, from their joint frequencies.

    Args:
        bins: [N, L] integers from 0, as `discretise` gives them.
        values: [N, F] integers from 0.

    Returns:
        [L, F], none below 0.

    Raises:
        ValueError: the numbers of rows differ.
    """
    if len(bins) != len(values):
        raise ValueError(f"codes and factors: expected as many rows of each, got {len(bins)} and {len(values)}")
    return np.array([[_information(code, value) for value in values.T] for code in bins.T])


def entropies(values: Integers) -> Floats:
    """Entropy of each factor in these rows, in nats: [N, F] integers from 0 -> [F]."""
    return np.array([_information(value, value) for value in values.T])


def mutual_information_gap(information: Floats, entropy: Floats) -> float:
    """MIG, 0 to 1: how far the most informative code of a factor leads the next, as a share of the factor's entropy.

    Args:
        information: [L, F] nats.
        entropy: [F] nats, each above 0.

    Raises:
        ValueError: there is one code alone, so no gap.

    Source: Chen et al., arXiv:1802.04942, section 4; disentanglement_lib, mig.py, `compute_mig`.
    """
    if len(information) < 2:
        raise ValueError(f"codes: the gap between the best two needs two or more, got {len(information)}")
    ordered = np.sort(information, axis=0)
    return float(np.mean((ordered[-1] - ordered[-2]) / entropy))


def modularity(information: Floats) -> float:
    """Modularity, 0 to 1: 1 where each code tells of one factor alone; a code that tells nothing counts as 0.

    Args:
        information: [L, F] nats.

    Raises:
        ValueError: there is one factor alone, so none to confuse it with.

    Source: Ridgeway & Mozer, arXiv:1802.05312; disentanglement_lib, modularity_explicitness.py, `modularity`.
    """
    if information.shape[1] < 2:
        raise ValueError(f"factors: modularity needs two or more, got {information.shape[1]}")
    squares = np.square(information)
    best = squares.max(axis=1)
    telling = best > 0
    deviation = (squares.sum(axis=1) - best)[telling] / (best[telling] * (information.shape[1] - 1))
    return float(np.sum(1 - deviation) / len(information))


def _information(one: Integers, other: Integers) -> float:
    width = int(other.max()) + 1
    joint = np.bincount(one * width + other, minlength=(int(one.max()) + 1) * width).reshape(-1, width) / len(one)
    independent = joint.sum(axis=1, keepdims=True) * joint.sum(axis=0, keepdims=True)
    seen = joint > 0
    return max(0.0, float(np.sum(joint[seen] * np.log(joint[seen] / independent[seen]))))
