"""Disentanglement scores against the published algorithms, restated here with scikit-learn, SciPy and plain loops.

disentanglement_lib itself runs on TensorFlow 1 alone, so its algorithms are restated from what its files do:
disentanglement_lib/evaluation/metrics/ utils.py (`_histogram_discretize`, `discrete_mutual_info`), mig.py
(`compute_mig`), modularity_explicitness.py (`modularity`, `explicitness_per_factor`), dci.py
(`compute_importance_gbt`, `disentanglement`, `completeness`), sap_score.py (`_compute_score_matrix`), factor_vae.py
(`_generate_training_sample`, `_prune_dims`) and beta_vae.py (`_generate_training_sample`).
"""

from collections.abc import Callable
from itertools import product

import numpy as np
import pytest
import scipy.stats
from numpy.typing import NDArray
from sklearn.ensemble import GradientBoostingClassifier
from sklearn.linear_model import LogisticRegression
from sklearn.metrics import mutual_info_score, roc_auc_score
from sklearn.svm import LinearSVC

from pipeline.evaluate.disentanglement import beta_vae_accuracy, dci, explicitness, linear_scores
from vae_core.metrics.disentanglement.information import (
    discretise,
    entropies,
    modularity,
    mutual_information,
    mutual_information_gap,
    value_numbers,
)
from vae_core.metrics.disentanglement.learned import separated_attribute_predictability, squared_correlations
from vae_core.metrics.disentanglement.pairs import factor_vae_score

Floats = NDArray[np.float64]
Integers = NDArray[np.int64]
Data = tuple[Floats, Integers, Floats, Integers]

SIZES = (2, 3, 5)  # values of the factors


def mixed(factors: Integers, seed: int) -> Floats:
    """Five codes: of one factor, of one and a little of another, of two, of the square of one, of none."""
    rng = np.random.default_rng(seed)
    a, b, c = factors.T.astype(np.float64)
    codes = np.stack([a, b + 0.4 * c, a - c, np.square(c - 2), np.zeros(len(a))], axis=1)
    return codes + 0.2 * rng.normal(size=codes.shape)


@pytest.fixture(scope="module")
def data() -> Data:
    rng = np.random.default_rng(0)
    train, test = (rng.integers(SIZES, size=(rows, 3)) for rows in (300, 300))
    return mixed(train, 1), train, mixed(test, 2), test


def reference_information(codes: Floats, factors: Integers) -> Floats:
    binned = [np.digitize(column, np.histogram(column, 20)[1][:-1]) for column in codes.T]
    return np.array([[mutual_info_score(factor, column) for factor in factors.T] for column in binned])


def test_mutual_information_and_entropy_equal_scikit_learn(data: Data) -> None:
    codes, factors, *_ = data
    values = value_numbers(factors)
    np.testing.assert_allclose(
        mutual_information(discretise(codes), values), reference_information(codes, factors), atol=1e-12
    )
    np.testing.assert_allclose(entropies(values), [mutual_info_score(f, f) for f in factors.T], atol=1e-12)


def test_mig_and_modularity_equal_the_published_algorithm(data: Data) -> None:
    codes, factors, *_ = data
    information = reference_information(codes, factors)
    gaps = []
    for column, factor in zip(information.T, factors.T, strict=True):
        best, second = sorted(column, reverse=True)[:2]
        gaps.append((best - second) / mutual_info_score(factor, factor))
    modular = []
    for row in information:
        top = max(row) ** 2
        modular.append(1 - (sum(v**2 for v in row) - top) / (top * (len(row) - 1)))
    values = value_numbers(factors)
    found = mutual_information(discretise(codes), values)
    assert mutual_information_gap(found, entropies(values)) == pytest.approx(np.mean(gaps), rel=1e-9)
    assert modularity(found) == pytest.approx(np.mean(modular), rel=1e-9)
    assert 0.1 < np.mean(gaps) < 0.9  # neither trivial


def test_dci_equals_the_published_algorithm(data: Data) -> None:
    codes, factors, held_out, truth = data
    importance, accuracies = [], []
    for factor, right in zip(factors.T, truth.T, strict=True):
        model = GradientBoostingClassifier(random_state=5)
        model.fit(codes, factor)
        importance.append(model.feature_importances_)
        accuracies.append(np.mean(model.predict(held_out) == right))
    matrix = np.array(importance).T

    def mean_certainty(rows: Floats) -> float:
        certainty = [1 - scipy.stats.entropy(row + 1e-11, base=len(row)) for row in rows]
        return sum(c * row.sum() / rows.sum() for c, row in zip(certainty, rows, strict=True))

    found = dci(codes, value_numbers(factors), held_out, truth, seed=5)
    assert found["dci_disentanglement"] == pytest.approx(mean_certainty(matrix), rel=1e-9)
    assert found["dci_completeness"] == pytest.approx(mean_certainty(matrix.T), rel=1e-9)
    assert found["dci_informativeness"] == pytest.approx(np.mean(accuracies))
    assert 0.1 < found["dci_disentanglement"] < 0.95


def test_sap_equals_the_published_algorithm_for_discrete_factors(data: Data) -> None:
    codes, factors, held_out, truth = data
    scores = np.zeros((5, 3))
    for i, j in product(range(5), range(3)):
        machine = LinearSVC(C=0.01, class_weight="balanced")
        machine.fit(codes[:, i, np.newaxis], factors[:, j])
        scores[i, j] = np.mean(machine.predict(held_out[:, i, np.newaxis]) == truth[:, j])
    found = linear_scores(codes, factors, held_out, truth, seed=0)
    np.testing.assert_allclose(found, scores, atol=2 / 300)
    lead = np.mean([np.diff(np.sort(column)[-2:]) for column in scores.T])
    assert separated_attribute_predictability(found) == pytest.approx(lead, abs=5 / 300)


def test_sap_equals_the_published_algorithm_for_quantities(data: Data) -> None:
    codes, factors, *_ = data
    for i, j in product(range(5), range(3)):
        covariance = np.cov(codes[:, i], factors[:, j], ddof=1)
        expected = covariance[0, 1] ** 2 / (covariance[0, 0] * covariance[1, 1])
        assert squared_correlations(codes, factors)[i, j] == pytest.approx(expected, rel=1e-9)


def test_explicitness_equals_the_published_algorithm(data: Data) -> None:
    codes, factors, held_out, truth = data
    mean, deviation = codes.mean(0), codes.std(0)
    areas = []
    for factor, right in zip(factors.T, truth.T, strict=True):
        model = LogisticRegression().fit((codes - mean) / deviation, factor)
        belief = model.predict_proba((held_out - mean) / deviation)
        areas.append(roc_auc_score(np.equal.outer(right, model.classes_), belief))
    assert explicitness(codes, factors, held_out, truth) == pytest.approx(np.mean(areas), abs=1e-4)


# FactorVAE and beta-VAE draw their groups, so that two programs agree in distribution only. The reference draws new
# factors and looks their code up, as disentanglement_lib renders them; ours groups the rows of the grid.

GRID = np.array(list(product(range(4), range(3), range(5))))
GRID_CODES = np.random.default_rng(0).normal(size=(60, 4)) * 0.6 + np.c_[GRID, GRID.sum(1)]
POINTS, GROUP = 3000, 8


def drawn_factors(rng: np.random.Generator) -> Integers:
    return rng.integers((4, 3, 5), size=(GROUP, 3))


def look_up(factors: Integers) -> Floats:
    codes: Floats = GRID_CODES[factors @ (15, 5, 1)]
    return codes


def reference_factor_vae(rng: np.random.Generator) -> float:
    spread = look_up(rng.integers((4, 3, 5), size=(10_000, 3))).var(axis=0, ddof=1)

    def votes(points: int) -> Integers:
        counts = np.zeros((3, 4), dtype=np.int64)
        for _ in range(points):
            fixed, factors = rng.integers(3), drawn_factors(rng)
            factors[:, fixed] = factors[0, fixed]
            counts[fixed, np.argmin(look_up(factors).var(axis=0, ddof=1) / spread)] += 1
        return counts

    train, fresh = votes(POINTS), votes(POINTS)
    return sum(fresh[train[:, code].argmax(), code] for code in range(4)) / POINTS


def reference_beta_vae(rng: np.random.Generator) -> float:
    def sample(points: int) -> tuple[Floats, Integers]:
        differences, fixed = np.zeros((points, 4)), rng.integers(3, size=points)
        for point in range(points):
            one, other = drawn_factors(rng), drawn_factors(rng)
            other[:, fixed[point]] = one[:, fixed[point]]
            differences[point] = np.abs(look_up(one) - look_up(other)).mean(axis=0)
        return differences, fixed

    model = LogisticRegression().fit(*sample(POINTS))
    return float(model.score(*sample(POINTS)))


def our_factor_vae(rng: np.random.Generator) -> float:
    sizes = {"train_points": POINTS, "points": POINTS, "group_rows": GROUP}
    return factor_vae_score(GRID_CODES, GRID, rng, **sizes).accuracy


def our_beta_vae(rng: np.random.Generator) -> float:
    return beta_vae_accuracy(GRID_CODES, GRID, rng, POINTS, POINTS, GROUP)


@pytest.mark.parametrize(
    ("ours", "reference"), [(our_factor_vae, reference_factor_vae), (our_beta_vae, reference_beta_vae)]
)
def test_scores_of_drawn_groups_agree_with_the_published_algorithm(
    ours: Callable[[np.random.Generator], float], reference: Callable[[np.random.Generator], float]
) -> None:
    found, expected = ours(np.random.default_rng(1)), reference(np.random.default_rng(2))
    assert 0.4 < expected < 0.99
    assert found == pytest.approx(expected, abs=4 * (0.5 / POINTS) ** 0.5)  # 4 standard errors of two fresh samples
