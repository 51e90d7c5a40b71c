"""Conditions: the vector that a model is given of each row, from the column that its configuration names."""

from typing import Any

import pytest
import torch
from core_models import DIGITS, digits
from hypothesis import given, settings
from hypothesis import strategies as st

from vae_core.conditioning import Conditioner, Known
from vae_core.config import Condition, DataSpec

CONDITIONS: dict[Condition, tuple[str, int]] = {
    "label": ("labels", 10),
    "attributes": ("attributes", 2),
    "embedding": ("embedding", 3),
}
every_condition = pytest.mark.parametrize("condition", CONDITIONS)
BARE = DataSpec(channels=1, height=8, width=8)


@every_condition
def test_a_condition_is_one_float32_vector_a_row(condition: Condition) -> None:
    _, dim = CONDITIONS[condition]
    conditioner = Conditioner(condition, DIGITS)
    found = conditioner(digits(5))
    assert conditioner.dim == dim
    assert found.shape == (5, dim)
    assert found.dtype == torch.float32


@settings(max_examples=20)
@given(st.lists(st.integers(0, 9), max_size=20))
def test_a_label_is_one_hot(labels: list[int]) -> None:
    found = Conditioner("label", DIGITS)(Known(labels=torch.tensor(labels, dtype=torch.int64)))
    assert found.shape == (len(labels), 10)
    assert found.argmax(1).tolist() == labels if labels else True
    assert found.sum(1).tolist() == [1.0] * len(labels)
    assert set(found.flatten().tolist()) <= {0.0, 1.0}


@pytest.mark.parametrize("condition", ["attributes", "embedding"])
def test_attributes_and_embeddings_are_given_as_they_are(condition: Condition) -> None:
    column, dim = CONDITIONS[condition]
    values = torch.randn(4, dim)
    conditioner = Conditioner(condition, DIGITS)
    assert torch.equal(conditioner(Known(**{column: values})), values)
    assert conditioner(Known(**{column: values.double()})).dtype == torch.float32


@every_condition
def test_columns_other_than_the_named_one_are_not_read(condition: Condition) -> None:
    column, _ = CONDITIONS[condition]
    batch = digits(4)
    alone = Known(**{column: getattr(batch, column)})
    conditioner = Conditioner(condition, DIGITS)
    assert torch.equal(conditioner(alone), conditioner(batch))


@every_condition
def test_a_row_has_the_same_condition_in_any_company(condition: Condition) -> None:
    conditioner = Conditioner(condition, DIGITS)
    assert torch.equal(conditioner(digits(9))[3:5], conditioner(digits(2, start=3)))


@every_condition
def test_a_missing_column_is_refused_by_name(condition: Condition) -> None:
    with pytest.raises(ValueError, match=f"a model conditioned on {condition} was called without"):
        Conditioner(condition, DIGITS)(Known())


@pytest.mark.parametrize("condition", ["attributes", "embedding"])
@pytest.mark.parametrize("width", [0, 1, 7])
def test_a_column_of_another_width_is_refused_with_both_widths(condition: Condition, width: int) -> None:
    column, dim = CONDITIONS[condition]
    with pytest.raises(ValueError, match=f"condition: {condition}: expected {dim} numbers a row, got {width}"):
        Conditioner(condition, DIGITS)(Known(**{column: torch.zeros(2, width)}))


@pytest.mark.parametrize("label", [-1, 10])
def test_a_label_beyond_the_classes_is_refused(label: int) -> None:
    with pytest.raises(RuntimeError, match="Class values must be"):
        Conditioner("label", DIGITS)(Known(labels=torch.tensor([label])))


WANTED = {"label": "at least two classes", "attributes": "attributes", "embedding": "an embedding"}


@pytest.mark.parametrize(("condition", "wanted"), WANTED.items())
def test_data_without_the_column_are_refused(condition: Any, wanted: str) -> None:
    with pytest.raises(ValueError, match=f"condition: {condition} needs data with {wanted}; these have none"):
        Conditioner(condition, BARE)


def test_a_single_class_is_no_condition() -> None:
    with pytest.raises(ValueError, match="at least two classes"):
        Conditioner("label", DataSpec(channels=1, height=8, width=8, num_classes=1))


def test_a_model_without_a_condition_is_not_asked_for_one() -> None:
    conditioner = Conditioner("none", BARE)
    assert conditioner.dim == 0
    with pytest.raises(ValueError, match="a model without a condition was asked for one"):
        conditioner(digits(2))
