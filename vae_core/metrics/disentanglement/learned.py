"""Scores from what fitted classifiers say of the factors: an importance, an accuracy or a probability."""

import numpy as np
from numpy.typing import NDArray

Floats = NDArray[np.float64]
Integers = NDArray[np.int64]

_TINY = 1e-11  # added to importances, so that a row of zeros is uniform; of disentanglement_lib


def dci_disentanglement(importance: Floats) -> float:
    """DCI disentanglement, 0 to 1: 1 where each code matters for one factor; codes weighted by their importance.

    Args:
        importance: [L, F], none negative; how much each code matters in predicting each factor.

    Raises:
        ValueError: one factor alone, or a negative or non-finite importance.

    Source: Eastwood & Williams, ICLR 2018 (openreview By-7dz-AZ), section 2; disentanglement_lib, dci.py.
    """
    return _concentration(importance, "factors")


def dci_completeness(importance: Floats) -> float:
    """DCI completeness, 0 to 1: 1 where each factor needs one code; factors weighted by their importance.

    Args:
        importance: [L, F], none negative.

    Raises:
        ValueError: one code alone, or a negative or non-finite importance.

    Source: as `dci_disentanglement`.
    """
    return _concentration(importance.T, "codes")


def separated_attribute_predictability(scores: Floats) -> float:
    """SAP, 0 to 1: how far the code that predicts a factor best leads the next, as a mean over the factors.

    Args:
        scores: [L, F]; how well code l alone predicts factor f: an accuracy, or `squared_correlations`.

    Raises:
        ValueError: there is one code alone, so no gap.

    Source: Kumar et al., ICLR 2018 (openreview H1kG7GZAW), section 3; disentanglement_lib, sap_score.py,
    `_compute_avg_diff_top_two`.
    """
    if len(scores) < 2:
        raise ValueError(f"codes: the gap between the best two needs two or more, got {len(scores)}")
    ordered = np.sort(scores, axis=0)
    return float(np.mean(ordered[-1] - ordered[-2]))


def squared_correlations(codes: NDArray[np.floating], factors: NDArray[np.generic]) -> Floats:
    """Squared linear correlation of each code with each factor, for SAP on factors that are quantities.

    Args:
        codes: [N, L]; a code whose variance is at most 1e-12 scores 0.
        factors: [N, F] numbers.

    Returns:
        [L, F].

    Source: disentanglement_lib, sap_score.py, `_compute_score_matrix` with continuous factors.
    """
    x = codes.astype(np.float64) - codes.mean(axis=0, dtype=np.float64)
    y = factors.astype(np.float64)
    y = y - y.mean(axis=0)
    x_variance, y_variance = np.square(x).sum(axis=0), np.square(y).sum(axis=0)
    varied = x_variance / (len(x) - 1) > 1e-12
    squares: Floats = np.square(x.T @ y) / np.outer(np.where(varied, x_variance, np.inf), y_variance)
    return squares


def one_versus_rest_auc(probability: Floats, truth: Integers) -> float:
    """Mean over the classes of the area under the ROC curve of "this class or another", 0.5 by chance, 1 at best.

    Args:
        probability: [N, K], or any score that grows with the belief in class k.
        truth: [N] classes from 0; a class of which there is no row, or no other row, is left out of the mean.

    Raises:
        ValueError: all rows are of one class.

    Source: explicitness, Ridgeway & Mozer, arXiv:1802.05312; disentanglement_lib, modularity_explicitness.py,
    `explicitness_per_factor`.
    """
    areas = []
    for number, score in enumerate(probability.T):
        positive = truth == number
        if 0 < positive.sum() < len(truth):
            areas.append(_area_under_roc(score, positive))
    if not areas:
        raise ValueError("explicitness: expected rows of two classes or more, got one")
    return float(np.mean(areas))


def _concentration(importance: Floats, others: str) -> float:
    """Mean over the rows, weighted by their sums, of 1 - entropy of the row to the base of its length."""
    if importance.shape[1] < 2:
        raise ValueError(f"{others}: DCI needs two or more, got {importance.shape[1]}")
    if not (np.isfinite(importance).all() and (importance >= 0).all()):
        raise ValueError("importance: expected finite numbers of at least 0")
    frequency = importance + _TINY
    frequency = frequency / frequency.sum(axis=1, keepdims=True)
    each = 1 + np.sum(frequency * np.log(frequency), axis=1) / np.log(importance.shape[1])
    weight = importance.sum(axis=1) if importance.sum() > 0 else np.ones(len(importance))
    return float(np.average(each, weights=weight))


def _area_under_roc(score: Floats, positive: NDArray[np.bool_]) -> float:
    """The share of pairs (positive, negative) in the right order; equal scores count a half (Mann-Whitney's U)."""
    _, place, count = np.unique(score, return_inverse=True, return_counts=True)
    rank = (np.cumsum(count) - (count - 1) / 2)[place]
    positives = int(positive.sum())
    above = rank[positive].sum() - positives * (positives + 1) / 2
    return float(above / (positives * (len(score) - positives)))
