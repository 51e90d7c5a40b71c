"""New data beside those before: which lines hold, which are shown alone, and what is said of those that do not."""

import dataclasses
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from pipeline.data.index import INDEX, read_manifest
from pipeline.retrain.config import DriftConfig
from pipeline.retrain.drift import Statistics, compare

BEFORE = Statistics(
    digest="a", shape=(8, 8, 1), counts={"train": 80, "val": 10, "test": 10}, mean=(0.3,), std=(0.2,),
    classes={"cat": 50, "dog": 50},
)  # fmt: skip


def complaints(config: DriftConfig | None = None, before: Statistics = BEFORE, **changes: object) -> list[str]:
    now = dataclasses.replace(before, **changes)  # type: ignore[arg-type]
    return [row.complaint for row in compare(before, now, config or DriftConfig()) if not row.holds]


def test_the_same_data_hold_and_every_figure_is_shown() -> None:
    rows = compare(BEFORE, BEFORE, DriftConfig(mean=0, std=0, class_share=0, fewer_rows=0))
    assert all(row.holds for row in rows)
    assert [row.what for row in rows] == [
        "image shape", "rows", "rows of train", "rows of val", "rows of test", "pixel mean", "pixel std", "class cat",
        "class dog",
    ]  # fmt: skip


@pytest.mark.parametrize(
    ("changes", "complaint"),
    [
        ({"shape": (16, 8, 1)}, "image shape: 8x8x1 before, 16x8x1 now; allowed is the same"),
        ({"mean": (0.7,)}, "pixel mean: 0.3000 before, 0.7000 now; allowed is a change of at most 0.05"),
        ({"std": (0.01,)}, "pixel std: 0.2000 before, 0.0100 now; allowed is a change of at most 0.05"),
        ({"counts": {"train": 60, "val": 10, "test": 10}},
         "rows: 100 before, 80 now; allowed is at most 10.0% fewer"),
        ({"classes": {"cat": 60, "dog": 30, "eel": 10}},
         "class eel: none before, 10.00% now; allowed is no new classes"),
        ({"classes": {"cat": 100}}, "class dog: 50.00% before, none now; allowed is no vanished classes"),
        ({"classes": {}}, "class cat: 50.00% before, none now; allowed is no vanished classes"),
    ],
)  # fmt: skip
def test_what_drifted_is_named_with_both_values_and_the_limit(changes: dict[str, object], complaint: str) -> None:
    assert complaint in complaints(**changes)


def test_shares_of_classes_are_compared_one_by_one() -> None:
    assert complaints(classes={"cat": 58, "dog": 42}) == [
        "class cat: 50.00% before, 58.00% now; allowed is a change of at most 5.0%",
        "class dog: 50.00% before, 42.00% now; allowed is a change of at most 5.0%",
    ]


def test_null_is_no_limit_and_the_figures_are_shown_all_the_same() -> None:
    free = DriftConfig(mean=None, std=None, class_share=None, fewer_rows=None, new_classes=True, vanished_classes=True)
    now = dataclasses.replace(BEFORE, mean=(0.9,), std=(0.0,), counts={"train": 1}, classes={"eel": 1})
    rows = compare(BEFORE, now, free)
    assert all(row.holds for row in rows)
    assert {row.what: (row.before, row.now, row.limit) for row in rows}["pixel mean"] == ("0.3000", "0.9000", "")
    assert {"class cat", "class dog", "class eel"} <= {row.what for row in rows}


def test_another_shape_is_refused_whatever_is_allowed() -> None:
    free = DriftConfig(mean=None, std=None, class_share=None, fewer_rows=None)
    assert complaints(free, shape=(8, 8, 3), mean=(0.3,) * 3, std=(0.2,) * 3)


def test_channels_are_compared_one_by_one() -> None:
    colour = dataclasses.replace(BEFORE, shape=(8, 8, 3), mean=(0.1, 0.2, 0.3), std=(0.1, 0.1, 0.1))
    assert complaints(before=colour, mean=(0.1, 0.4, 0.3)) == [
        "pixel mean of channel 1: 0.2000 before, 0.4000 now; allowed is a change of at most 0.05"
    ]


@given(st.floats(0, 1), st.floats(0, 1), st.floats(0, 1))
def test_a_channel_holds_when_its_change_is_at_most_the_limit(old: float, new: float, limit: float) -> None:
    before = dataclasses.replace(BEFORE, mean=(old,))
    rows = {row.what: row for row in compare(before, dataclasses.replace(before, mean=(new,)), DriftConfig(mean=limit))}
    assert rows["pixel mean"].holds is (abs(new - old) <= limit)


def test_statistics_are_those_of_the_shards(shards: Path) -> None:
    found = Statistics.of(read_manifest(shards), (shards / INDEX).read_bytes())
    assert (found.shape, found.rows, sum(found.classes.values())) == ((8, 8, 1), 1797, 1797)
    assert list(found.classes) == [str(digit) for digit in range(10)]
    assert 0.09 < found.share("3") < 0.11
    assert 0.2 < found.mean[0] < 0.4
