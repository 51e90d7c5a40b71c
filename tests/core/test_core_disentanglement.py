"""Disentanglement scores: the bounds of the papers, the cases of disentanglement_lib's tests, and what is refused.

The cases named "identity", "duplicated", "permuted" and the importance matrices are those of disentanglement_lib
(Apache-2.0), disentanglement_lib/evaluation/metrics/{mig,dci,sap_score,factor_vae,modularity_explicitness}_test.py:
ten factors of ten values each, and the representation is made of the factors themselves.
"""

import math
from itertools import product

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray

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
    squared_correlations,
)
from vae_core.metrics.disentanglement.pairs import beta_vae_points, factor_vae_score, partners, shareable

Integers = NDArray[np.int64]
Floats = NDArray[np.float64]

DIAGONAL = np.diag(5.0 * np.ones(5))
IMPORTANCES = {
    "diagonal": DIAGONAL,
    "diagonal, empty code": np.array([[1.0, 0], [0, 1], [0, 0]]),
    "zero": np.zeros((10, 10)),
    "redundant codes": np.vstack([DIAGONAL, DIAGONAL]),
    "missed factors": DIAGONAL[:2],
    "one code for two factors": np.hstack([DIAGONAL, DIAGONAL]),
}


def ten_factors(rows: int = 3000, seed: int = 0) -> Integers:
    return np.random.default_rng(seed).integers(1, 11, (rows, 10))


def gap(codes: Floats, factors: Integers, bins: int = 20) -> float:
    values = value_numbers(factors)
    return mutual_information_gap(mutual_information(discretise(codes, bins), values), entropies(values))


def permuted_rows(factors: Integers) -> Floats:
    return np.random.default_rng(1).permuted(factors.astype(np.float64), axis=1)


# Counts: discretise, mutual information, entropy


def test_bins_are_of_equal_width_between_the_least_and_the_greatest_value() -> None:
    codes = np.array([[0.0, -1], [0.24, 3], [0.26, 1], [0.5, 1], [1.0, 1]])
    np.testing.assert_array_equal(discretise(codes, bins=4)[:, 0], [0, 0, 1, 2, 3])
    np.testing.assert_array_equal(discretise(codes, bins=4)[:, 1], [0, 3, 2, 2, 2])


def test_the_greatest_value_shares_the_last_bin() -> None:
    assert discretise(np.linspace(0, 1, 1000)[:, None]).max() == 19


@pytest.mark.parametrize("value", [0.0, -3.5, 1e300])
def test_a_code_that_does_not_vary_is_in_one_bin(value: float) -> None:
    assert len(np.unique(discretise(np.full((50, 1), value)))) == 1


def test_a_code_that_varies_by_the_last_bit_is_binned() -> None:
    codes = np.array([[1.0], [np.nextafter(1.0, 2)]])
    assert len(np.unique(discretise(codes))) == 2


@pytest.mark.parametrize("bad", [math.nan, math.inf])
def test_codes_that_are_not_finite_are_refused(bad: float) -> None:
    with pytest.raises(ValueError, match="codes: expected finite numbers, got NaN or infinity"):
        discretise(np.array([[1.0], [bad]]))


def test_values_of_factors_are_numbered_without_gaps() -> None:
    np.testing.assert_array_equal(value_numbers(np.array([[7, -1], [100, 5], [7, 3]])), [[0, 0], [1, 2], [0, 1]])


def test_a_factor_of_one_value_is_refused_by_number() -> None:
    with pytest.raises(ValueError, match=r"factors: each needs two values or more in these rows; columns \[1\] have"):
        value_numbers(np.array([[1, 5], [2, 5]]))


def test_factors_that_are_not_integers_are_refused() -> None:
    with pytest.raises(ValueError, match=r"factors: expected integers \[rows, factors\], got float64 \(2, 1\)"):
        value_numbers(np.array([[1.0], [2.0]]))  # type: ignore[arg-type]


def test_codes_and_factors_of_different_rows_are_refused() -> None:
    with pytest.raises(ValueError, match="codes and factors: expected as many rows of each, got 3 and 2"):
        mutual_information(np.zeros((3, 1), np.int64), np.zeros((2, 1), np.int64))


def test_the_entropy_of_an_even_factor_is_the_log_of_its_values() -> None:
    values = np.stack([np.arange(12) % 2, np.arange(12) % 3, np.arange(12)], axis=1)
    np.testing.assert_allclose(entropies(values), np.log([2, 3, 12]))


@settings(max_examples=40)
@given(st.integers(0, 2**31), st.integers(2, 60), st.integers(2, 7), st.integers(2, 7))
def test_information_is_symmetric_and_between_zero_and_the_entropies(seed: int, rows: int, a: int, b: int) -> None:
    rng = np.random.default_rng(seed)
    one, other = rng.integers(a, size=(rows, 1)), rng.integers(b, size=(rows, 1))
    information = mutual_information(one, other)
    np.testing.assert_allclose(information, mutual_information(other, one), atol=1e-12)
    assert 0 <= information[0, 0] <= min(entropies(one)[0], entropies(other)[0]) + 1e-12


def test_the_order_of_rows_and_the_names_of_values_do_not_matter() -> None:
    rng = np.random.default_rng(0)
    codes, factors = rng.normal(size=(400, 3)), rng.integers(4, size=(400, 2))
    codes[:, 0] += factors[:, 0]
    order = rng.permutation(400)
    assert gap(codes[order], 17 - 5 * factors[order]) == pytest.approx(gap(codes, factors), rel=1e-12)


# Scores from information


def test_mig_of_the_identity_is_nearly_one() -> None:
    factors = ten_factors()
    assert 0.9 <= gap(factors.astype(np.float64), factors, bins=10) <= 1.0


def test_mig_of_a_constant_representation_is_zero() -> None:
    assert gap(np.zeros((3000, 10)), ten_factors()) == 0


def test_mig_of_a_duplicated_representation_is_zero() -> None:
    factors = ten_factors()
    assert gap(np.hstack([factors, factors]).astype(np.float64), factors, bins=10) == 0


def test_mig_divides_by_the_entropy_of_the_factor_and_not_of_the_code() -> None:
    values = np.tile(np.repeat([0, 1], 8), 4)[:, None]  # ln 2
    fine = values * 8 + np.tile(np.arange(8), 8)[:, None]  # tells the factor, and eight times as much besides
    constant = np.zeros_like(fine)
    information = mutual_information(np.hstack([fine, constant]), values)
    assert mutual_information_gap(information, entropies(values)) == pytest.approx(1.0)


def test_mig_needs_two_codes() -> None:
    with pytest.raises(ValueError, match="the gap between the best two needs two or more, got 1"):
        mutual_information_gap(np.ones((1, 3)), np.ones(3))


@pytest.mark.parametrize(
    ("case", "expected"),
    [("diagonal", 1.0), ("diagonal, empty code", 2 / 3), ("zero", 0.0), ("redundant codes", 1.0),
     ("missed factors", 1.0), ("one code for two factors", 1 - 1 / 9)],
)  # fmt: skip
def test_modularity_of_the_cases_of_disentanglement_lib(case: str, expected: float) -> None:
    assert modularity(IMPORTANCES[case]) == pytest.approx(expected, abs=1e-12)


def test_modularity_of_identity_duplicated_and_permuted() -> None:
    factors = ten_factors(20000)
    identity = factors.astype(np.float64)

    def score(codes: Floats) -> float:
        return modularity(mutual_information(discretise(codes, 10), value_numbers(factors)))

    assert 0.9 <= score(identity) <= 1.0
    assert 0.9 <= score(np.hstack([identity, identity])) <= 1.0
    assert 0.0 <= score(permuted_rows(factors)) <= 0.2


def test_modularity_needs_two_factors() -> None:
    with pytest.raises(ValueError, match="factors: modularity needs two or more, got 1"):
        modularity(np.ones((4, 1)))


# Scores from what classifiers say


@pytest.mark.parametrize(
    ("case", "disentanglement", "completeness"),
    [
        ("diagonal", 1.0, 1.0),
        ("diagonal, empty code", 1.0, 1.0),
        ("zero", 0.0, 0.0),
        ("redundant codes", 1.0, 1 - math.log(2) / math.log(10)),
        ("missed factors", 1.0, 1.0),
        ("one code for two factors", 1 - math.log(2) / math.log(10), 1.0),
    ],
)
def test_dci_of_the_cases_of_disentanglement_lib(case: str, disentanglement: float, completeness: float) -> None:
    assert dci_disentanglement(IMPORTANCES[case]) == pytest.approx(disentanglement, abs=1e-7)
    assert dci_completeness(IMPORTANCES[case]) == pytest.approx(completeness, abs=1e-7)


def test_dci_weighs_codes_by_their_importance() -> None:
    importance = np.array([[9.0, 0.0], [0.5, 0.5]])  # the second code is of no use in telling which, and matters little
    assert dci_disentanglement(importance) == pytest.approx(0.9, abs=1e-9)


@settings(max_examples=40)
@given(st.integers(0, 2**31), st.integers(2, 8), st.integers(2, 8), st.floats(1e-3, 1e3))
def test_dci_lies_between_zero_and_one_whatever_the_scale(seed: int, codes: int, factors: int, scale: float) -> None:
    importance = np.random.default_rng(seed).exponential(size=(codes, factors))
    for score in (dci_disentanglement, dci_completeness):
        assert 0 <= score(importance) <= 1
        assert score(scale * importance) == pytest.approx(score(importance), abs=1e-6)
    assert dci_completeness(importance) == dci_disentanglement(importance.T)


@pytest.mark.parametrize("bad", [-0.1, math.nan, math.inf])
def test_dci_refuses_what_is_no_importance(bad: float) -> None:
    with pytest.raises(ValueError, match="importance: expected finite numbers of at least 0"):
        dci_disentanglement(np.array([[1.0, bad], [0.0, 1.0]]))


def test_dci_needs_two_factors_and_two_codes() -> None:
    with pytest.raises(ValueError, match="factors: DCI needs two or more, got 1"):
        dci_disentanglement(np.ones((3, 1)))
    with pytest.raises(ValueError, match="codes: DCI needs two or more, got 1"):
        dci_completeness(np.ones((1, 3)))


def test_sap_is_the_mean_lead_of_the_best_code() -> None:
    assert separated_attribute_predictability(np.array([[0.9, 0.2], [0.5, 0.4], [0.6, 0.8]])) == pytest.approx(0.35)
    with pytest.raises(ValueError, match="needs two or more, got 1"):
        separated_attribute_predictability(np.ones((1, 2)))


def test_sap_of_quantities_for_identity_constant_and_duplicated() -> None:
    factors = ten_factors()
    identity = factors.astype(np.float64)
    cases = {"identity": identity, "constant": np.zeros((3000, 10)), "duplicated": np.hstack([identity, identity])}
    found = {
        name: separated_attribute_predictability(squared_correlations(codes, factors)) for name, codes in cases.items()
    }
    assert 0.9 <= found["identity"] <= 1.0
    assert found["constant"] == 0
    assert 0.0 <= found["duplicated"] <= 0.2


def test_squared_correlations_equal_numpy() -> None:
    rng = np.random.default_rng(3)
    codes, factors = rng.normal(size=(50, 3)).astype(np.float32) + 100, rng.integers(5, size=(50, 2))
    expected = np.corrcoef(codes.T.astype(np.float64), factors.T)[:3, 3:] ** 2
    np.testing.assert_allclose(squared_correlations(codes, factors), expected, rtol=1e-9)


def test_auc_is_the_share_of_pairs_in_order() -> None:
    rng = np.random.default_rng(0)
    scores, truth = rng.integers(5, size=(40, 3)).astype(float), rng.integers(3, size=40)  # many equal scores
    expected = []
    for number in range(3):
        pairs = [
            (a > b) + (a == b) / 2 for a, b in product(scores[truth == number, number], scores[truth != number, number])
        ]
        expected.append(np.mean(pairs))
    assert one_versus_rest_auc(scores, truth) == pytest.approx(np.mean(expected))


def test_auc_leaves_out_a_class_that_does_not_occur() -> None:
    scores = np.array([[0.9, 0.1, 0.0], [0.2, 0.8, 0.0], [0.7, 0.3, 0.0]])
    assert one_versus_rest_auc(scores, np.array([0, 1, 0])) == 1.0
    with pytest.raises(ValueError, match="explicitness: expected rows of two classes or more, got one"):
        one_versus_rest_auc(scores, np.array([1, 1, 1]))


# Pairs


@settings(max_examples=40)
@given(st.integers(0, 2**31), st.integers(1, 50), st.integers(1, 9))
def test_partners_have_the_value_of_their_row(seed: int, rows: int, values: int) -> None:
    rng = np.random.default_rng(seed)
    factor = 3 * rng.integers(values, size=rows) - 4
    wanted = rng.integers(rows, size=(7, 5))
    found = partners(factor, wanted, rng)
    np.testing.assert_array_equal(factor[found], factor[wanted])


def test_partners_are_drawn_evenly_from_all_that_share_the_value() -> None:
    factor = np.array([0, 1, 0, 1, 0, 2])
    found = partners(factor, np.zeros(30_000, np.int64), np.random.default_rng(0))
    share = np.bincount(found, minlength=6) / 30_000
    np.testing.assert_allclose(share, [1 / 3, 0, 1 / 3, 0, 1 / 3, 0], atol=0.01)


def test_rows_whose_value_no_other_has_take_no_part() -> None:
    np.testing.assert_array_equal(shareable(np.array([5, 7, 5, 9])), [0, 2])
    with pytest.raises(ValueError, match="rows that share a value, got one of which every row has its own"):
        shareable(np.arange(4))


def factor_vae(codes: Floats, factors: Integers, seed: int = 0, **fields: float) -> float:
    rng = np.random.default_rng(seed)
    sizes = {"train_points": 3000, "points": 2000, "group_rows": 5}
    return factor_vae_score(codes, factors, rng, **{**sizes, **fields}).accuracy  # type: ignore[arg-type]


def test_factor_vae_of_identity_and_constant() -> None:
    factors = ten_factors(2500)
    score = factor_vae_score(
        factors.astype(float), factors, np.random.default_rng(0), train_points=3000, points=2000, group_rows=5
    )
    assert score.active_codes == 10
    assert 0.9 <= score.train_accuracy <= 1.0
    assert 0.9 <= score.accuracy <= 1.0
    assert factor_vae(np.zeros((2500, 10)), factors) == 0


def test_factor_vae_of_noise_is_the_share_of_the_commonest_factor() -> None:
    factors = np.random.default_rng(1).integers(4, size=(2000, 4))
    codes = np.random.default_rng(2).normal(size=(2000, 6))
    assert factor_vae(codes, factors) == pytest.approx(0.25, abs=0.05)


def test_factor_vae_leaves_out_codes_below_the_least_standard_deviation() -> None:
    factors = ten_factors(1000)
    unused = 0.049 * np.sign(np.arange(1000) % 2 - 0.5)[:, None]  # variance 0.0024, deviation 0.049
    used = unused * (0.06 / 0.049)  # variance 0.0036 is below 0.05, but the deviation is not
    codes = np.hstack([factors, unused, used])
    rng = np.random.default_rng(0)
    assert factor_vae_score(codes, factors, rng, train_points=10, points=10).active_codes == 11
    assert factor_vae_score(codes, factors, rng, train_points=10, points=10, least_deviation=0).active_codes == 12


def test_factor_vae_does_not_depend_on_the_scale_of_a_code() -> None:
    factors = np.random.default_rng(0).integers(5, size=(500, 3))
    codes = factors + 0.5 * np.random.default_rng(1).normal(size=(500, 3))
    assert factor_vae(codes * [1, 100, 0.5], factors) == factor_vae(codes, factors)


def test_a_code_that_never_varies_wins_no_vote_even_where_none_is_pruned() -> None:
    factors = ten_factors(1000)
    codes = np.hstack([np.zeros((1000, 1)), factors])
    assert factor_vae(codes, factors, least_deviation=1e-12) >= 0.9


def test_scores_from_pairs_follow_their_generator() -> None:
    factors = np.random.default_rng(0).integers(5, size=(500, 3))
    codes = factors + np.random.default_rng(1).normal(size=(500, 3))
    assert factor_vae(codes, factors, seed=7) == factor_vae(codes, factors, seed=7)
    assert factor_vae(codes, factors, seed=7) != factor_vae(codes, factors, seed=8)
    one, again, other = (beta_vae_points(codes, factors, np.random.default_rng(s), points=9) for s in (7, 7, 8))
    np.testing.assert_array_equal(one[0], again[0])
    assert not np.array_equal(one[0], other[0])


def test_pairs_of_the_beta_vae_metric_differ_least_in_the_code_of_the_shared_factor() -> None:
    factors = ten_factors(1000)
    points, shared = beta_vae_points(factors.astype(float), factors, np.random.default_rng(0), points=2000, pairs=5)
    assert points.shape == (2000, 10)
    np.testing.assert_array_equal(points[np.arange(2000), shared], 0)
    assert np.bincount(shared, minlength=10) == pytest.approx(200, abs=60)


def test_points_do_not_depend_on_how_much_is_gathered_at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    factors = np.random.default_rng(0).integers(5, size=(300, 3))
    codes = factors + np.random.default_rng(1).normal(size=(300, 3))
    whole = beta_vae_points(codes, factors, np.random.default_rng(0), points=50), factor_vae(codes, factors)
    monkeypatch.setattr("vae_core.metrics.disentanglement.pairs._AT_ONCE", 100)
    parts = beta_vae_points(codes, factors, np.random.default_rng(0), points=50), factor_vae(codes, factors)
    np.testing.assert_allclose(parts[0][0], whole[0][0])
    assert parts[1] == whole[1]
