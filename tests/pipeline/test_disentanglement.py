"""All disentanglement scores of one representation: the bounds of disentanglement_lib's tests, on smaller data."""

from itertools import product

import numpy as np
import pytest
from numpy.typing import NDArray

from pipeline.evaluate.disentanglement import disentanglement_scores, explicitness

Floats = NDArray[np.float64]
Integers = NDArray[np.int64]

NAMES = {
    "mig", "modularity", "dci_disentanglement", "dci_completeness", "dci_informativeness", "sap", "explicitness",
    "factor_vae", "beta_vae",
}  # fmt: skip
GRID = np.array(list(product(range(4), range(3), range(4), range(4))))  # 192 rows


def scores(codes: Floats, factors: Integers = GRID, seed: int = 0) -> dict[str, float]:
    return disentanglement_scores(codes, factors, seed=seed, train_rows=400, test_rows=200, group_rows=8)


@pytest.fixture(scope="module")
def identity() -> dict[str, float]:
    return scores(GRID.astype(np.float64))


def test_factors_themselves_score_one(identity: dict[str, float]) -> None:
    assert identity.keys() == NAMES
    assert all(0 <= score <= 1 for score in identity.values())
    high = ("mig", "modularity", "dci_disentanglement", "dci_completeness", "dci_informativeness", "factor_vae",
            "beta_vae", "explicitness")  # fmt: skip
    assert {name: identity[name] for name in high if identity[name] < 0.8} == {}
    assert identity["sap"] > 0.2  # a linear machine cannot find the middle values of a factor in one code


def test_codes_twice_over_leave_no_gap_but_keep_disentanglement() -> None:
    found = scores(np.hstack([GRID, GRID]).astype(np.float64))
    assert found["mig"] == 0
    assert found["sap"] < 0.05
    assert found["modularity"] > 0.9
    assert found["dci_disentanglement"] > 0.9
    assert found["dci_completeness"] == pytest.approx(1 - np.log(2) / np.log(8), abs=0.15)


def test_codes_in_any_order_score_low() -> None:
    codes = np.random.default_rng(0).permuted(GRID.astype(np.float64), axis=1)
    found = scores(codes)
    assert found["mig"] < 0.15
    assert found["dci_disentanglement"] < 0.3
    assert found["factor_vae"] < 0.5
    assert found["beta_vae"] < 0.5


def test_scores_follow_rows_and_seed_and_no_global_generator() -> None:
    codes = GRID[:, :2] + np.random.default_rng(0).normal(size=(192, 2))
    np.random.seed(1)
    one = scores(codes, GRID[:, :2])
    np.random.seed(2)
    assert scores(codes, GRID[:, :2]) == one
    assert scores(codes, GRID[:, :2], seed=1) != one


def test_classifiers_are_judged_on_rows_that_they_did_not_see() -> None:
    """Factors that the codes do not tell: trees that are judged on their own rows would find them."""
    rng = np.random.default_rng(0)
    found = disentanglement_scores(
        rng.normal(size=(300, 3)), rng.integers(2, size=(300, 2)), seed=0, train_rows=200, test_rows=100, group_rows=4
    )
    assert found["dci_informativeness"] == pytest.approx(0.5, abs=0.15)
    assert found["explicitness"] == pytest.approx(0.5, abs=0.15)


def test_a_value_that_was_never_trained_on_counts_as_wrong() -> None:
    factors = np.c_[np.arange(60) % 2, np.arange(60) % 3]
    factors[0] = 77, 99  # one row of its own value, in train or in test
    found = disentanglement_scores(factors + np.zeros(2), factors, seed=0, train_rows=40, test_rows=20, group_rows=4)
    assert all(np.isfinite(score) for score in found.values())


def test_a_constant_code_does_no_harm() -> None:
    factors = np.random.default_rng(0).integers(2, size=(200, 2))
    codes = np.hstack([factors, np.full((200, 1), 3.0)]).astype(np.float64)
    x, y = codes[:100], factors[:100]
    assert explicitness(x, y, codes[100:], factors[100:]) == 1.0


def test_what_scores_cannot_be_made_of_is_named() -> None:
    with pytest.raises(ValueError, match=r"factors: each needs two values or more in these rows; columns \[0\]"):
        scores(np.zeros((192, 2)), GRID[:, :2] * [0, 1])
    with pytest.raises(ValueError, match="codes: expected finite numbers"):
        scores(np.full((192, 2), np.nan))
