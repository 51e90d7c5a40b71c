"""The prepared table: every row is accounted for, and splits depend on nothing but the row."""

import io
from dataclasses import replace
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image

from pipeline import files
from pipeline.data import table
from pipeline.data.config import DataConfig, PublishedSource
from pipeline.data.ingest import ingest, prepare
from pipeline.data.shape import Shape
from pipeline.data.sources.base import Rows
from pipeline.data.sources.digits import open_digits
from pipeline.data.split import assign, content_hash
from pipeline.errors import UserError
from pipeline.train.config import ComputeConfig


def prepared(data: Path) -> pa.Table:
    return pq.read_table(data / "prepared")


def ledger(data: Path) -> list[dict[str, str]]:
    return pq.read_table(data / "quarantine.parquet").to_pylist()


def compute(folder: Path) -> ComputeConfig:
    return ComputeConfig(
        address=None, workers=1, storage=str(folder), downloads=str(folder), checkpoint_every_steps=1, max_failures=0
    )


def png(mode: str = "RGB", size: tuple[int, int] = (5, 4), seed: int = 0) -> bytes:
    pixels = np.random.default_rng(seed).integers(0, 256, (size[1], size[0], 3), np.uint8)
    stream = io.BytesIO()
    Image.fromarray(pixels).convert(mode).save(stream, "PNG")
    return stream.getvalue()


def split_of(data: Path) -> dict[str, str]:
    rows = prepared(data)
    return dict(zip(rows["id"].to_pylist(), rows["split"].to_pylist(), strict=True))


def test_the_digits_are_prepared_with_their_facts(tmp_path: Path, make_config) -> None:
    facts = ingest(make_config(), compute(tmp_path), tmp_path / "data")
    assert facts == files.read_json(tmp_path / "data" / "dataset.json")
    assert facts["image"] == {"height": 8, "width": 8, "channels": 1}
    assert facts["classes"] == list("0123456789")
    assert (facts["rows_in"], facts["rows_prepared"], facts["rows_quarantined"]) == (1797, 1797, 0)
    assert sum(facts["counts"].values()) == 1797
    rows = prepared(tmp_path / "data")
    assert rows.schema.remove_metadata() == table.schema(Shape(8, 8, 1), 0, 0)
    assert rows["split"].value_counts().to_pylist() == [
        {"values": name, "counts": facts["counts"][name]} for name in dict.fromkeys(rows["split"].to_pylist())
    ]


def test_an_empty_ledger_is_written_with_its_columns(digits: Path) -> None:
    ledger = pq.read_table(digits / "quarantine.parquet")
    assert ledger.num_rows == 0
    assert ledger.column_names == ["source", "id", "error", "detail"]


def test_the_same_rows_give_the_same_bytes(tmp_path: Path, make_source, make_rows, make_config) -> None:
    for name in ("one", "two"):
        prepare([make_source(make_rows(100))], make_config(), tmp_path / name)
    for file in ("prepared/part-00000.parquet", "quarantine.parquet", "dataset.json"):
        assert (tmp_path / "one" / file).read_bytes() == (tmp_path / "two" / file).read_bytes()


FAULTS = [
    ({"image": b"short"}, "image_size", "expected 6 bytes (2 x 3 x 1), found 5"),
    ({"image": None}, "image_missing", "expected an image, found none"),
    ({"error": "unreadable", "detail": "no permission"}, "unreadable", "no permission"),
    ({"attributes": [1.0]}, "attribute_size", "expected 0 numbers, found 1"),
    ({"embedding": [1.0, 2.0]}, "embedding_size", "expected 0 numbers, found 2"),
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
    facts = prepare([make_source(rows)], make_config(max_bad_fraction=0.01), tmp_path)
    assert ledger(tmp_path) == [{"source": "s", "id": rows[50]["id"], "error": error, "detail": detail}]
    assert (facts["rows_in"], facts["rows_prepared"], facts["rows_quarantined"]) == (100, 99, 1)
    assert facts["quarantined"] == {error: 1}
    images = prepared(tmp_path)["image"].to_pylist()
    assert images == [row["image"] for row in rows[:50] + rows[51:]]


def test_a_label_where_there_are_no_classes_is_put_aside(tmp_path: Path, make_source, make_rows, make_config) -> None:
    rows = make_rows(100, classes=0)
    rows[3]["label"] = 1
    facts = prepare([make_source(rows, classes="")], make_config(max_bad_fraction=0.5), tmp_path)
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
        UserError,
        match=r"data.max_bad_fraction: 4 of 100 rows cannot be used \(image_size 3, label_range 1; such as r0: "
        r"expected 6 bytes \(2 x 3 x 1\), found 0\)",
    ):
        prepare([make_source(rows)], make_config(max_bad_fraction=0.03), tmp_path)
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
        prepare([make_source(make_rows(100, split=split))], make_config(**changes), tmp_path)
    assert not (tmp_path / "prepared").exists()


def test_a_split_stays_when_rows_are_added(tmp_path: Path, make_source, make_rows, make_config) -> None:
    rows = make_rows(300)
    prepare([make_source(rows[:200])], make_config(), tmp_path / "before")
    prepare([make_source(rows[250:] + rows[:250])], make_config(), tmp_path / "after")
    before, after = split_of(tmp_path / "before"), split_of(tmp_path / "after")
    assert before == {row: after[row] for row in before}


def test_equal_images_are_on_one_side(tmp_path: Path, make_source, make_rows, make_config) -> None:
    rows = make_rows(100)
    again = [{**row, "id": f"again-{row['id']}", "label": 1 - row["label"]} for row in rows]
    facts = prepare([make_source(rows + again)], make_config(), tmp_path)
    splits = split_of(tmp_path)
    assert all(splits[row["id"]] == splits[f"again-{row['id']}"] for row in rows)
    assert (facts["duplicate_images"], facts["test_images_also_in_train"]) == (100, 0)


def test_a_published_test_split_is_kept_and_copies_of_it_leave_the_others(
    tmp_path: Path, make_source, make_rows, make_config
) -> None:
    train, test = make_rows(100, split="train"), make_rows(40, split="test")
    for i, row in enumerate(test):
        row["id"] = f"t{i}"
    train[3]["image"] = train[60]["image"] = test[0]["image"]
    facts = prepare([make_source(train + test, official=("train", "test"))], make_config(), tmp_path)
    assert {name for name, split in split_of(tmp_path).items() if split == "test"} == {row["id"] for row in test}
    assert (facts["duplicates_across_splits"], facts["test_images_also_in_train"]) == (2, 0)
    assert [(row["id"], row["error"]) for row in ledger(tmp_path)] == [
        ("r3", "copy_in_other_split"), ("r60", "copy_in_other_split"),
    ]  # fmt: skip
    assert facts["rows_in"] == 140 == facts["rows_prepared"] + 2


def test_published_splits_are_all_kept_where_validation_is_one_of_them(
    tmp_path: Path, make_source, make_rows, make_config
) -> None:
    rows = make_rows(90)
    for i, row in enumerate(rows):
        row["split"] = ("train", "val", "test")[i % 3]
    prepare([make_source(rows, official=("train", "val", "test"))], make_config(), tmp_path)
    assert split_of(tmp_path) == {row["id"]: row["split"] for row in rows}


def test_rows_of_a_group_are_on_one_side(tmp_path: Path, make_source, make_rows, make_config) -> None:
    rows = make_rows(300)
    for i, row in enumerate(rows):
        row["group"] = f"patient {i % 30}"
    facts = prepare([make_source(rows)], make_config(), tmp_path)
    splits = split_of(tmp_path)
    for group in range(30):
        assert len({splits[f"r{row}"] for row in range(group, 300, 30)}) == 1
    assert all(facts["counts"].values())


def test_a_copy_in_another_group_is_put_aside(tmp_path: Path, make_source, make_rows, make_config) -> None:
    rows = make_rows(300)
    for i, row in enumerate(rows):
        row["group"] = f"patient {i % 30}"
    prepare([make_source(rows)], make_config(), tmp_path / "clean")
    splits = split_of(tmp_path / "clean")
    test, train = (next(row for row in rows if splits[row["id"]] == name) for name in ("test", "train"))
    train["image"] = test["image"]
    facts = prepare([make_source(rows)], make_config(), tmp_path)
    assert [(row["id"], row["error"]) for row in ledger(tmp_path)] == [(train["id"], "copy_in_other_split")]
    assert facts["quarantined"] == {"copy_in_other_split": 1}


@pytest.mark.parametrize("partition", [1, 7, 64, 1000])
def test_partitions_change_nothing_but_the_parts(
    tmp_path: Path, make_source, make_rows, make_config, partition: int
) -> None:
    rows = make_rows(100)
    rows[70]["id"], rows[80]["image"], rows[90]["label"] = rows[2]["id"], rows[3]["image"], 9
    parts = {}
    for name, size in (("whole", 1000), ("cut", partition)):
        facts = prepare([make_source(rows, partition=size)], make_config(max_bad_fraction=0.1), tmp_path / name)
        del facts["digest"]
        parts[name] = prepared(tmp_path / name), facts, sorted(map(str, ledger(tmp_path / name)))
    assert parts["whole"] == parts["cut"]
    assert len(list((tmp_path / "cut" / "prepared").iterdir())) == -(-100 // partition)


def tars(data: Path) -> dict[str, bytes]:
    return {str(path.relative_to(data)): path.read_bytes() for path in sorted((data / "shards").rglob("*.tar"))}


def test_shards_do_not_depend_on_the_order_of_the_source(
    tmp_path: Path, make_source, make_rows, make_config, shard
) -> None:
    rows = make_rows(200)
    written = []
    for name, order in (("given", range(200)), ("shuffled", np.random.default_rng(0).permutation(200))):
        prepare([make_source([rows[i] for i in order], partition=30)], make_config(), tmp_path / name)
        shard(tmp_path / name)
        written.append(tars(tmp_path / name))
    assert written[0] == written[1] != {}


def test_appended_rows_leave_the_older_shards_as_they_are(
    tmp_path: Path, make_source, make_rows, make_config, shard
) -> None:
    sources = [make_source(make_rows(300)), make_source(make_rows(31))]
    for name, count in (("before", 1), ("after", 2)):
        prepare(sources[:count], make_config(), tmp_path / name)
        shard(tmp_path / name, shard_bytes=8192)
    before, after = tars(tmp_path / "before"), tars(tmp_path / "after")
    assert before == {name: after.get(name) for name in before}
    assert len(after) > len(before)


def test_appended_rows_leave_the_older_ones_as_they_are(tmp_path: Path, make_source, make_rows, make_config) -> None:
    old, new = make_rows(200), make_rows(57)
    new[5]["image"] = next(row for row in old if row["id"] == "r17")["image"]
    prepare([make_source(old)], make_config(), tmp_path / "before")
    facts = prepare([make_source(old), make_source(new)], make_config(), tmp_path / "after")
    part = "prepared/part-00000.parquet"
    assert (tmp_path / "before" / part).read_bytes() == (tmp_path / "after" / part).read_bytes()
    appended = prepared(tmp_path / "after").filter(pa.compute.field("generation") == 1)
    assert appended["id"].to_pylist() == [f"append-1/{row['id']}" for row in new]
    assert [sum(counts.values()) for counts in facts["generations"]] == [200, 57]
    assert facts["duplicate_images"] == 1


def test_an_appended_copy_of_an_older_image_in_another_split_is_put_aside(
    tmp_path: Path, make_source, make_rows, make_config
) -> None:
    old, new = make_rows(200), make_rows(50, split="test") + make_rows(51, split="train")
    for i, row in enumerate(new):
        row["id"] = f"n{i}"
    prepare([make_source(old)], make_config(), tmp_path / "before")
    splits = split_of(tmp_path / "before")
    new[0]["image"] = next(row for row in old if splits[row["id"]] == "train")["image"]
    both = [make_source(old), make_source(new, official=("train", "test"))]
    facts = prepare(both, make_config(), tmp_path / "after")
    assert [row["id"] for row in ledger(tmp_path / "after")] == ["append-1/n0"]
    assert facts["generations"][0] == {name: list(splits.values()).count(name) for name in ("train", "val", "test")}


def test_an_appended_source_must_have_what_the_first_has(tmp_path: Path, make_source, make_rows, make_config) -> None:
    later = make_source(make_rows(9), attributes=("age",))
    with pytest.raises(UserError, match=r"data.append: 0: expected attributes \[\] .* found \['age'\]"):
        prepare([make_source(make_rows(100)), later], make_config(), tmp_path)


def test_attributes_and_embeddings_are_kept_and_checked(tmp_path: Path, make_source, make_rows, make_config) -> None:
    rows = make_rows(100)
    for i, row in enumerate(rows):
        row.update(attributes=[i / 7, -i], embedding=[i, i + 0.5, 1e30])
    rows[10]["attributes"] = [float("nan"), 1.0]
    rows[11]["attributes"] = [1.0, None]
    rows[12]["attributes"] = None
    rows[13]["embedding"] = [1.0, 2.0, float("inf")]
    rows[14]["embedding"] = [1.0]
    source = make_source(rows, attributes=("size", "age"), embedding=3)
    facts = prepare([source], make_config(max_bad_fraction=0.05), tmp_path)
    assert {row["id"]: (row["error"], row["detail"]) for row in ledger(tmp_path)} == {
        "r10": ("attribute_not_finite", "expected finite numbers, found nan in size"),
        "r11": ("attribute_not_finite", "expected finite numbers, found none in age"),
        "r12": ("attribute_size", "expected 2 numbers, found 0"),
        "r13": ("embedding_not_finite", "expected finite numbers, found inf at place 2"),
        "r14": ("embedding_size", "expected 3 numbers, found 1"),
    }
    table_ = prepared(tmp_path)
    kept = [row for i, row in enumerate(rows) if not 10 <= i <= 14]
    assert table_["attributes"].to_pylist() == [np.float32(row["attributes"]).tolist() for row in kept]
    assert table_["embedding"].to_pylist() == [np.float32(row["embedding"]).tolist() for row in kept]
    assert (facts["attributes"], facts["embedding"], facts["rows_quarantined"]) == (["size", "age"], 3, 5)


def test_image_files_are_decoded_and_bad_ones_are_put_aside(
    tmp_path: Path, make_source, make_rows, make_config
) -> None:
    rows = make_rows(40)
    for i, row in enumerate(rows):
        row["image"] = png(seed=i)
    rows[5]["image"], rows[6]["image"], rows[7]["image"] = b"", png()[:-30], b"no image"
    rows[8]["image"] = png(size=(9, 9))
    config = make_config(max_bad_fraction=0.2)
    facts = prepare([make_source(rows, None)], config, tmp_path)
    assert facts["image"] == {"height": 4, "width": 5, "channels": 3}
    assert {row["id"]: row["error"] for row in ledger(tmp_path)} == {
        "r5": "undecodable", "r6": "truncated", "r7": "undecodable", "r8": "image_size",
    }  # fmt: skip
    assert "data.image.size" in ledger(tmp_path)[-1]["detail"]
    first = np.frombuffer(prepared(tmp_path)["image"][0].as_py(), np.uint8).reshape(4, 5, 3)
    np.testing.assert_array_equal(first, np.asarray(Image.open(io.BytesIO(rows[0]["image"]))))


def test_a_source_without_one_good_image_says_so(tmp_path: Path, make_source, make_rows, make_config) -> None:
    with pytest.raises(UserError, match="none of the 100 images of list can be decoded"):
        prepare([make_source(make_rows(100), None)], make_config(), tmp_path)


def test_statistics_are_of_the_training_pixels(tmp_path: Path, make_source, make_rows, make_config) -> None:
    facts = prepare([make_source(make_rows(200, size=18), Shape(2, 3, 3))], make_config(), tmp_path)
    rows = prepared(tmp_path)
    images = np.array([list(row["image"]) for row in rows.to_pylist() if row["split"] == "train"], float)
    channels = images.reshape(-1, 3)
    np.testing.assert_allclose(facts["statistics"]["mean"], channels.mean(0))
    np.testing.assert_allclose(facts["statistics"]["std"], channels.std(0))
    assert facts["statistics"]["max"] == channels.max(0).tolist()


def test_ray_tasks_write_what_one_process_writes(tmp_path: Path, ray_cluster: None, make_config) -> None:
    digits = open_digits(None)
    (rows,) = digits.partitions
    cut = tuple(
        Rows(rows.images[at : at + 700], rows.labels[at : at + 700] + (at == 700), f"d{at}", "s", None)
        for at in range(0, 1797, 700)
    )
    source = replace(digits, partitions=cut, in_memory=False)
    for name, how in (("here", None), ("ray", compute(tmp_path))):
        facts = prepare([source], make_config(max_bad_fraction=0.1), tmp_path / name, how)
    assert facts["quarantined"].keys() == {"label_range"}
    for file in (*(f"prepared/part-0000{part}.parquet" for part in range(3)), "quarantine.parquet", "dataset.json"):
        assert (tmp_path / "here" / file).read_bytes() == (tmp_path / "ray" / file).read_bytes()


@given(
    validation=st.floats(0.05, 0.9),
    test=st.floats(0.05, 0.9),
    official=st.sampled_from([None, "train", "test"]),
)
def test_fractions_are_those_asked_for(validation: float, test: float, official: str | None) -> None:
    config = DataConfig(
        source=PublishedSource(kind="digits"), validation_fraction=validation, test_fraction=test, max_bad_fraction=0.0
    )
    hashes = ((np.arange(2000) + 0.5) / 2000 * 2.0**64).astype(np.uint64)
    splits = assign([official] * 2000, [None] * 2000, hashes, config, ("train", "test"))
    expected_test = {None: test, "train": 0.0, "test": 1.0}[official]
    assert (splits == 2).mean() == pytest.approx(expected_test, abs=1e-3)
    assert (splits == 1).mean() == pytest.approx((1 - expected_test) * validation, abs=1e-3)


def test_the_hash_is_of_the_content_alone() -> None:
    images = np.random.default_rng(0).integers(0, 256, (50, 6), np.uint8)
    order = np.random.default_rng(1).permutation(50)
    np.testing.assert_array_equal(content_hash(images)[order], content_hash(images[order]))
    assert len(np.unique(content_hash(images))) == 50


def test_the_digest_depends_on_every_column_and_on_no_batch(tmp_path: Path, make_rows) -> None:
    schema = table.schema(Shape(2, 3, 1), 1, 2)
    rows = [
        {**row, "split": "train", "attributes": [0.5], "embedding": [1.0, 2.0], "generation": 0}
        for row in make_rows(30)
    ]

    def digest(rows: list[dict[str, object]], batch: int) -> bytes:
        with table.PartWriter(tmp_path / "part.parquet", schema) as writer:
            for start in range(0, len(rows), batch):
                writer.write(pa.RecordBatch.from_pylist(rows[start : start + batch], schema))
            return writer.digest()

    same = digest(rows, 30)
    assert {digest(rows, batch) for batch in (1, 7, 29)} == {same}
    changes = ({"id": "x"}, {"image": bytes(6)}, {"label": 1}, {"split": "val"}, {"attributes": [0.25]},
               {"embedding": [1.0, 3.0]}, {"generation": 1})  # fmt: skip
    for change in changes:
        assert digest([{**rows[0], **change}, *rows[1:]], 30) != same
    assert digest(rows[::-1], 30) != same


def test_a_damaged_part_is_named(tmp_path: Path, make_source, make_rows, make_config) -> None:
    prepare([make_source(make_rows(2000))], make_config(), tmp_path)
    part = tmp_path / "prepared" / "part-00000.parquet"
    whole = part.read_bytes()
    at = pq.ParquetFile(part).metadata.row_group(0).column(1).data_page_offset + 40
    part.write_bytes(whole[:at] + bytes([whole[at] ^ 1]) + whole[at + 1 :])
    with pytest.raises(UserError, match=r"part-00000.parquet: damaged .*; run `dvc repro -f ingest`"):
        list(table.read(tmp_path / "prepared", ["id", "image", "label", "split"]))
    part.write_bytes(whole[:-20])
    with pytest.raises(UserError, match=r"part-00000.parquet: damaged"):
        list(table.read(tmp_path / "prepared", ["split"]))
