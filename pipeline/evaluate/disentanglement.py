"""Every disentanglement score of a representation whose factors are known; the classifiers are fitted here."""

import numpy as np
from numpy.typing import NDArray
from sklearn.ensemble import GradientBoostingClassifier
from sklearn.linear_model import LogisticRegression
from sklearn.svm import LinearSVC

from vae_core.metrics.disentanglement.information import (
    discretise,
    entropies,
    modularity,
    mutual_information,
    mutual_information_gap,
    value_numbers,
)
from vae_core.metrics.disentanglement.learned import (
    dci_completeness,
    dci_disentanglement,
    one_versus_rest_auc,
    separated_attribute_predictability,
)
from vae_core.metrics.disentanglement.pairs import beta_vae_points, factor_vae_score

Floats = NDArray[np.float64]
Integers = NDArray[np.int64]

# Rows, groups and pairs of disentanglement_lib's study, arXiv:1811.12359
TRAIN_ROWS, TEST_ROWS, GROUP_ROWS = 10_000, 5_000, 64

SCORES = (
    "mig",
    "modularity",
    "dci_disentanglement",
    "dci_completeness",
    "dci_informativeness",
    "sap",
    "explicitness",
    "factor_vae",
    "beta_vae",
)
_MAX_ITERATIONS = 10_000  # enough to converge; where scikit-learn's default of 100 does too, the answer is the same


def disentanglement_scores(
    codes: NDArray[np.floating],
    factors: NDArray[np.integer],
    *,
    seed: int,
    train_rows: int = TRAIN_ROWS,
    test_rows: int = TEST_ROWS,
    group_rows: int = GROUP_ROWS,
) -> dict[str, float]:
    """All of SCORES, each 0 to 1 and better when greater; a function of rows and seed.

    MIG, modularity, DCI, SAP and explicitness take `train_rows` rows drawn without replacement, and judge classifiers
    on `test_rows` others; FactorVAE and beta-VAE make as many points of groups of `group_rows` rows of all. Where
    there are fewer rows, the same share of them is drawn.

    Args:
        codes: [N, L], two codes or more.
        factors: [N, F] integers, two factors or more, each with two values or more in the drawn rows.

    Raises:
        ValueError: naming what the scores cannot be computed from.
    """
    values = value_numbers(factors)
    wide: Floats = np.asarray(codes, dtype=np.float64)
    rng = np.random.default_rng(seed)
    train, test = _draw(len(wide), train_rows, test_rows, rng)
    x, x_test = wide[train], wide[test]
    y, y_test = value_numbers(values[train]), _as_in(values[train], values[test])
    information = mutual_information(discretise(x), y)
    votes = factor_vae_score(wide, values, rng, train_points=train_rows, points=test_rows, group_rows=group_rows)
    return {
        "mig": mutual_information_gap(information, entropies(y)),
        "modularity": modularity(information),
        **dci(x, y, x_test, y_test, seed=seed),
        "sap": separated_attribute_predictability(linear_scores(x, y, x_test, y_test, seed=seed)),
        "explicitness": explicitness(x, y, x_test, y_test),
        "factor_vae": votes.accuracy,
        "beta_vae": beta_vae_accuracy(wide, values, rng, train_rows, test_rows, group_rows),
    }


def dci(x: Floats, y: Integers, x_test: Floats, y_test: Integers, *, seed: int) -> dict[str, float]:
    """DCI's three scores with gradient-boosted trees, scikit-learn's defaults; informativeness is test accuracy.

    Source: disentanglement_lib, dci.py, `compute_importance_gbt`.
    """
    importance, accuracies = np.zeros((x.shape[1], y.shape[1])), []
    for number, (factor, truth) in enumerate(zip(y.T, y_test.T, strict=True)):
        trees = GradientBoostingClassifier(random_state=seed).fit(x, factor)
        importance[:, number] = np.abs(trees.feature_importances_)
        accuracies.append(float(np.mean(trees.predict(x_test) == truth)))
    return {
        "dci_disentanglement": dci_disentanglement(importance),
        "dci_completeness": dci_completeness(importance),
        "dci_informativeness": float(np.mean(accuracies)),
    }


def linear_scores(x: Floats, y: Integers, x_test: Floats, y_test: Integers, *, seed: int) -> Floats:
    """[L, F] test accuracy of a linear SVM that tells a factor from one code alone (C = 0.01, balanced classes).

    Source: disentanglement_lib, sap_score.py, `_compute_score_matrix` with discrete factors.
    """
    scores = np.zeros((x.shape[1], y.shape[1]))
    for code, factor in np.ndindex(*scores.shape):
        machine = LinearSVC(C=0.01, class_weight="balanced", random_state=seed, max_iter=_MAX_ITERATIONS)
        machine.fit(x[:, [code]], y[:, factor])
        scores[code, factor] = np.mean(machine.predict(x_test[:, [code]]) == y_test[:, factor])
    return scores


def explicitness(x: Floats, y: Integers, x_test: Floats, y_test: Integers) -> float:
    """Mean over the factors of the ROC area of a logistic regression on standardised codes; a constant code stays 0.

    Source: disentanglement_lib, modularity_explicitness.py.
    """
    mean, deviation = x.mean(axis=0), x.std(axis=0)
    scale = np.where(deviation > 0, deviation, 1)
    x, x_test = (x - mean) / scale, (x_test - mean) / scale
    areas = []
    for factor, truth in zip(y.T, y_test.T, strict=True):
        model = LogisticRegression(max_iter=_MAX_ITERATIONS).fit(x, factor)
        areas.append(one_versus_rest_auc(model.predict_proba(x_test), truth))
    return float(np.mean(areas))


def beta_vae_accuracy(
    codes: Floats, values: Integers, rng: np.random.Generator, train_points: int, points: int, pairs: int
) -> float:
    """Accuracy of a logistic regression that tells from the mean difference of pairs which factor they share.

    Source: disentanglement_lib, beta_vae.py.
    """
    train, label = beta_vae_points(codes, values, rng, points=train_points, pairs=pairs)
    test, truth = beta_vae_points(codes, values, rng, points=points, pairs=pairs)
    model = LogisticRegression(max_iter=_MAX_ITERATIONS).fit(train, label)
    return float(np.mean(model.predict(test) == truth))


def _draw(rows: int, train_rows: int, test_rows: int, rng: np.random.Generator) -> tuple[Integers, Integers]:
    share = min(1.0, rows / (train_rows + test_rows))
    order = rng.permutation(rows)
    train = int(train_rows * share)
    return order[:train], order[train : train + int(test_rows * share)]


def _as_in(train: Integers, test: Integers) -> Integers:
    """Test values under the numbers that `value_numbers(train)` gives them; -1 for a value that it does not have."""
    numbered = np.full_like(test, -1)
    for column in range(train.shape[1]):
        for number, value in enumerate(np.unique(train[:, column])):
            numbered[test[:, column] == value, column] = number
    return numbered
