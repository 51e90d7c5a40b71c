"""The prepared table: every row is accounted for, and splits depend on nothing but the row."""

from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from pipeline import files
from pipeline.config import DataConfig, SourceConfig
from pipeline.data import table
from pipeline.data.ingest import ingest, prepare
from pipeline.data.shape import Shape
from pipeline.data.split import assign, content_hash
from pipeline.errors import UserError


def prepared(data: Path) -> pa.Table:
    return pq.read_table(data / "prepared")


def split_of(data: Path) -> dict[str, str]:
    rows = prepared(data)
    return dict(zip(rows["id"].to_pylist(), rows["split"].to_pylist(), strict=True))


def test_the_digits_are_prepared_with_their_facts(tmp_path: Path, make_config) -> None:
    facts = ingest(make_config(), tmp_path, tmp_path / "data")
    assert facts == files.read_json(tmp_path / "data" / "dataset.json")
    assert facts["image"] == {"height": 8, "width": 8, "channels": 1}
    assert facts["classes"] == list("0123456789")
    assert (facts["rows_in"], facts["rows_prepared"], facts["rows_quarantined"]) == (1797, 1797, 0)
    assert sum(facts["counts"].values()) == 1797
    rows = prepared(tmp_path / "data")
    assert rows.schema.remove_metadata() == table.schema(Shape(8, 8, 1))
    assert rows["split"].value_counts().to_pylist() == [
        {"values": name, "counts": facts["counts"][name]} for name in dict.fromkeys(rows["split"].to_pylist())
    ]


def test_an_empty_ledger_is_written_with_its_columns(digits: Path) -> None:
    ledger = pq.read_table(digits / "quarantine.parquet")
    assert ledger.num_rows == 0
    assert ledger.column_names == ["source", "id", "error", "detail"]


def test_the_same_rows_give_the_same_bytes(tmp_path: Path, make_source, make_rows, make_config) -> None:
    for name in ("one", "two"):
        prepare(make_source(make_rows(100)), make_config(), tmp_path / name)
    for file in ("prepared/part-00000.parquet", "quarantine.parquet", "dataset.json"):
        assert (tmp_path / "one" / file).read_bytes() == (tmp_path / "two" / file).read_bytes()


FAULTS = [
    ({"image": b"short"}, "image_size", "expected 6 bytes (2 x 3 x 1), found 5"),
    ({"image": None}, "image_size", "expected 6 bytes (2 x 3 x 1), found 0"),
    ({"label": 2}, "label_range", "expected a label from 0 to 1, found 2"),
    ({"label": -1}, "label_range", "expected a label from 0 to 1, found -1"),
    ({"label": None}, "label_missing", "expected a label from 0 to 1, found none"),
    ({"id": None}, "id_missing", "expected an id, found none"),
    ({"id": "r0"}, "id_duplicate", "the id occurs before"),
]


@pytest.mark.parametrize(("change", "error", "detail"), FAULTS)
def test_a_row_that_cannot_be_used_is_put_aside_with_the_reason(
    tmp_path: Path, make_source, make_rows, make_config, change: dict[str, object], error: str, detail: str
) -> None:
    rows = make_rows(100)
    rows[50].update(change)
    facts = prepare(make_source(rows), make_config(max_bad_fraction=0.01), tmp_path)
    ledger = pq.read_table(tmp_path / "quarantine.parquet").to_pylist()
    assert ledger == [{"source": "s", "id": rows[50]["id"], "error": error, "detail": detail}]
    assert (facts["rows_in"], facts["rows_prepared"], facts["rows_quarantined"]) == (100, 99, 1)
    assert facts["quarantined"] == {error: 1}
    images = prepared(tmp_path)["image"].to_pylist()
    assert images == [row["image"] for row in rows[:50] + rows[51:]]


def test_a_label_where_there_are_no_classes_is_put_aside(tmp_path: Path, make_source, make_rows, make_config) -> None:
    rows = make_rows(100, classes=0)
    rows[3]["label"] = 1
    facts = prepare(make_source(rows, classes=""), make_config(max_bad_fraction=0.5), tmp_path)
    assert facts["quarantined"] == {"label_range": 1}
    assert prepared(tmp_path)["label"].null_count == 99


def test_too_many_bad_rows_stop_the_stage_but_leave_the_ledger(
    tmp_path: Path, make_source, make_rows, make_config
) -> None:
    rows = make_rows(100)
    for row in rows[:3]:
        row["image"] = b""
    rows[7]["label"] = 9
    with pytest.raises(
        UserError, match=r"data.max_bad_fraction: 4 of 100 rows cannot be used \(image_size 3, label_range 1\)"
    ):
        prepare(make_source(rows), make_config(max_bad_fraction=0.03), tmp_path)
    assert pq.read_table(tmp_path / "quarantine.parquet").num_rows == 4
    assert [path.name for path in tmp_path.iterdir()] == ["quarantine.parquet"]


@pytest.mark.parametrize(
    ("changes", "split", "key"),
    [
        ({"test_fraction": 1e-9}, None, "data.test_fraction: 1e-09 of 100 rows leaves the test split empty; raise it"),
        ({"validation_fraction": 1e-9}, None, "data.validation_fraction: 1e-09 of 100 rows leaves the val split empty"),
        ({"test_fraction": 1 - 1e-9}, None, "empty"),
        ({"validation_fraction": 1 - 1e-9}, None, "data.validation_fraction: 1 .* leave the train split empty"),
        ({}, "train", "data.test_fraction: 0.2 of 100 rows leaves the test split empty"),
    ],
)
def test_an_empty_split_names_the_key(
    tmp_path: Path, make_source, make_rows, make_config, changes: dict[str, float], split: str | None, key: str
) -> None:
    with pytest.raises(UserError, match=key):
        prepare(make_source(make_rows(100, split=split)), make_config(**changes), tmp_path)
    assert not (tmp_path / "prepared").exists()


def test_a_split_stays_when_rows_are_added(tmp_path: Path, make_source, make_rows, make_config) -> None:
    rows = make_rows(300)
    prepare(make_source(rows[:200]), make_config(), tmp_path / "before")
    prepare(make_source(rows[250:] + rows[:250]), make_config(), tmp_path / "after")
    before, after = split_of(tmp_path / "before"), split_of(tmp_path / "after")
    assert before == {row: after[row] for row in before}


def test_equal_images_are_on_one_side(tmp_path: Path, make_source, make_rows, make_config) -> None:
    rows = make_rows(100)
    again = [{**row, "id": f"again-{row['id']}", "label": 1 - row["label"]} for row in rows]
    facts = prepare(make_source(rows + again), make_config(), tmp_path)
    splits = split_of(tmp_path)
    assert all(splits[row["id"]] == splits[f"again-{row['id']}"] for row in rows)
    assert (facts["duplicate_images"], facts["test_images_also_in_train"]) == (100, 0)


def test_a_published_test_split_is_kept_and_its_leak_is_counted(
    tmp_path: Path, make_source, make_rows, make_config
) -> None:
    train, test = make_rows(100, split="train"), make_rows(40, split="test")
    for i, row in enumerate(test):
        row["id"] = f"t{i}"
    prepare(make_source(train + test), make_config(), tmp_path / "clean")
    leaked = next(row for row in train if split_of(tmp_path / "clean")[row["id"]] == "train")
    test[0]["image"] = leaked["image"]
    facts = prepare(make_source(train + test), make_config(), tmp_path)
    assert {name for name, split in split_of(tmp_path).items() if split == "test"} == {row["id"] for row in test}
    assert facts["test_images_also_in_train"] == 1


@settings(deadline=None)
@given(
    validation=st.floats(0.05, 0.9),
    test=st.floats(0.05, 0.9),
    official=st.sampled_from([None, "train", "test"]),
)
def test_fractions_are_those_asked_for(validation: float, test: float, official: str | None) -> None:
    config = DataConfig(
        source=SourceConfig(kind="digits"), validation_fraction=validation, test_fraction=test, max_bad_fraction=0.0
    )
    hashes = ((np.arange(2000) + 0.5) / 2000 * 2.0**64).astype(np.uint64)
    splits = assign([official] * 2000, hashes, config)
    expected_test = {None: test, "train": 0.0, "test": 1.0}[official]
    assert (splits == "test").mean() == pytest.approx(expected_test, abs=1e-3)
    assert (splits == "val").mean() == pytest.approx((1 - expected_test) * validation, abs=1e-3)


def test_the_hash_is_of_the_content_alone() -> None:
    images = np.random.default_rng(0).integers(0, 256, (50, 6), np.uint8)
    order = np.random.default_rng(1).permutation(50)
    np.testing.assert_array_equal(content_hash(images)[order], content_hash(images[order]))
    assert len(np.unique(content_hash(images))) == 50


def test_the_digest_depends_on_every_column_and_on_no_batch(tmp_path: Path, make_rows) -> None:
    rows = [{**row, "split": "train", "attributes": None} for row in make_rows(30)]

    def digest(rows: list[dict[str, object]], batch: int) -> str:
        found = table.ContentDigest(Shape(2, 3, 1), ("a", "b"))
        for start in range(0, len(rows), batch):
            found.update(pa.RecordBatch.from_pylist(rows[start : start + batch], table.schema(Shape(2, 3, 1))))
        return found.hexdigest()

    same = digest(rows, 30)
    assert {digest(rows, batch) for batch in (1, 7, 29)} == {same}
    for change in ({"id": "x"}, {"image": bytes(6)}, {"label": 1}, {"split": "val"}):
        assert digest([{**rows[0], **change}, *rows[1:]], 30) != same
    assert digest(rows[::-1], 30) != same


def test_many_parts_read_back_as_one(tmp_path: Path, monkeypatch, make_source, make_rows, make_config) -> None:
    monkeypatch.setattr(table, "PART_BYTES", 100)
    rows = make_rows(100)
    prepare(make_source(rows), make_config(), tmp_path)
    assert len(list((tmp_path / "prepared").iterdir())) > 3
    images = np.concatenate([table.pixels(b["image"]) for b in table.read(tmp_path / "prepared", ["image"])])
    assert images.tobytes() == b"".join(row["image"] for row in rows)


def test_a_damaged_part_is_named(tmp_path: Path, make_source, make_rows, make_config) -> None:
    prepare(make_source(make_rows(2000)), make_config(), tmp_path)
    part = tmp_path / "prepared" / "part-00000.parquet"
    whole = part.read_bytes()
    at = pq.ParquetFile(part).metadata.row_group(0).column(1).data_page_offset + 40
    part.write_bytes(whole[:at] + bytes([whole[at] ^ 1]) + whole[at + 1 :])
    with pytest.raises(UserError, match=r"part-00000.parquet: damaged .*; run `dvc repro -f ingest`"):
        list(table.read(tmp_path / "prepared", ["id", "image", "label", "split"]))
    part.write_bytes(whole[:-20])
    with pytest.raises(UserError, match=r"part-00000.parquet: damaged"):
        list(table.read(tmp_path / "prepared", ["split"]))
