"""Parquet: image files and arrays in every layout that writers use, and what is said about files that do not fit."""

import io
import json
import os
import pickle
import struct
from pathlib import Path
from random import Random
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from PIL import Image
from source_rows import column_of as column
from source_rows import rows_of as rows

from pipeline.data.config import Columns, ParquetSource
from pipeline.data.shape import Shape
from pipeline.data.sources.base import Source
from pipeline.data.sources.parquet import open_parquet
from pipeline.errors import UserError

PIXELS = np.random.default_rng(0).integers(0, 256, (7, 2, 3, 3), np.uint8)
FLAT = PIXELS.reshape(7, 18)


def png(number: int) -> bytes:
    file = io.BytesIO()
    Image.fromarray(PIXELS[number]).save(file, "PNG")
    return file.getvalue()


FILES = [png(number) for number in range(7)]


def write(path: Path, rows: int | None = None, **columns: Any) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    pq.write_table(pa.table(columns), path, row_group_size=rows)
    return path


def opened(path: Path | str, classes: tuple[str, ...] | None = None, **config: Any) -> Source:
    return open_parquet(ParquetSource(kind="parquet", path=str(path), **config), classes)


@pytest.mark.parametrize(
    "images",
    [
        pa.array(FILES),
        pa.array(FILES, pa.large_binary()),
        pa.array([{"bytes": file, "path": "x.png"} for file in FILES]),
        pa.array([{"path": None, "bytes": file} for file in FILES]),
        pa.array([{"bytes": file} for file in FILES]),
    ],
    ids=str,
)
def test_image_files_are_the_same_rows_in_every_layout(tmp_path: Path, images: pa.Array) -> None:
    source = opened(write(tmp_path / "a.parquet", image=images))
    assert (source.pixels, source.name, source.classes) == (None, "a", ())
    assert column(source, "image") == FILES
    assert column(source, "id") == [f"a.parquet:{row}" for row in range(7)]
    assert set(column(source, "source")) == {"a.parquet"}
    assert set(column(source, "error")) == {None}


LAYOUTS = {
    "fixed binary": pa.array([row.tobytes() for row in FLAT], pa.binary(18)),
    "binary": pa.array([row.tobytes() for row in FLAT]),
    "list": pa.array(FLAT.tolist(), pa.list_(pa.uint8())),
    "large list": pa.array(FLAT.tolist(), pa.large_list(pa.uint8())),
    "fixed list": pa.array(FLAT.tolist(), pa.list_(pa.uint8(), 18)),
    "nested": pa.array(PIXELS.tolist(), pa.list_(pa.list_(pa.list_(pa.uint8())))),
    "nested fixed": pa.array(PIXELS.tolist(), pa.list_(pa.list_(pa.list_(pa.uint8(), 3), 3), 2)),
    "tensor": pa.FixedShapeTensorArray.from_numpy_ndarray(PIXELS),
}


@pytest.mark.parametrize("layout", LAYOUTS)
def test_arrays_are_the_same_rows_in_every_layout(tmp_path: Path, layout: str) -> None:
    source = opened(write(tmp_path / "a.parquet", 3, pixels=LAYOUTS[layout]), image="pixels", shape=(2, 3, 3))
    assert source.pixels == Shape(2, 3, 3)
    assert column(source, "image") == [row.tobytes() for row in FLAT]
    assert set(column(source, "error")) == {None}


def test_gray_arrays_may_be_rows_of_lists(tmp_path: Path) -> None:
    gray = PIXELS[..., 0]
    source = opened(
        write(tmp_path / "a.parquet", image=pa.array(gray.tolist(), pa.list_(pa.list_(pa.uint8())))), shape=(2, 3, 1)
    )
    assert column(source, "image") == [image.tobytes() for image in gray]


def test_a_row_without_image_is_kept_with_the_reason(tmp_path: Path) -> None:
    images = pa.array([{"bytes": FILES[0], "path": "x"}, {"bytes": None, "path": "../x.png"}, None])
    found = rows(opened(write(tmp_path / "a.parquet", image=images)))
    assert [(row["image"], row["error"], row["detail"]) for row in found] == [
        (FILES[0], None, None),
        (None, "image_missing", "the bytes are not in the file, only a path"),
        (None, "image_missing", "there is no image in this row"),
    ]


@pytest.mark.parametrize(
    ("wrong", "kind"),
    [
        (PIXELS[0].transpose(2, 0, 1).tolist(), pa.list_(pa.list_(pa.list_(pa.uint8())))),
        ([*PIXELS[0].tolist()[:1], [*PIXELS[0].tolist()[1][:2], [1, 2]]], pa.list_(pa.list_(pa.list_(pa.uint8())))),
        ([*PIXELS[0].tolist()[:1], None], pa.list_(pa.list_(pa.list_(pa.uint8())))),
        (FLAT[0].tolist()[:-1], pa.list_(pa.uint8())),
        ([*FLAT[0].tolist()[:-1], None], pa.list_(pa.uint8())),
        ([*FLAT[0].tolist()[:-1], None], pa.list_(pa.uint8(), 18)),
        ([], pa.list_(pa.uint8())),
    ],
)
def test_an_array_of_another_shape_is_kept_with_the_reason(tmp_path: Path, wrong: Any, kind: pa.DataType) -> None:
    good = [image.tolist() for image in (PIXELS if pa.types.is_list(kind.value_type) else FLAT)]
    path = write(tmp_path / "a.parquet", image=pa.array([good[0], wrong, None, good[1], wrong, good[2]], kind))
    found = rows(opened(path, shape=(2, 3, 3)))
    assert [row["error"] for row in found] == [None, "image_size", "image_missing", None, "image_size", None]
    assert [row["image"] for row in found if row["image"]] == [FLAT[number].tobytes() for number in range(3)]
    assert found[1]["detail"] == "expected 2 x 3 x 3 values in lists of these lengths, found others"


def test_a_folder_a_pattern_and_single_files_are_the_same_rows(tmp_path: Path) -> None:
    for number in (10, 9, 1):
        write(tmp_path / "d" / f"{number}" / "x.parquet", image=pa.array([FILES[number % 7]]))
    (tmp_path / "d" / "_SUCCESS").touch()
    write(tmp_path / "d" / ".cache" / "y.parquet", image=pa.array([b"hidden"]))
    folder, pattern = opened(tmp_path / "d"), opened(f"{tmp_path}/d/**/*.parquet")
    assert column(folder, "id") == ["1/x.parquet:0", "10/x.parquet:0", "9/x.parquet:0"]
    assert rows(folder) == rows(pattern)
    assert folder.digests == pattern.digests
    assert folder.name == pattern.name == "d"
    single = opened(tmp_path / "d" / "10" / "x.parquet")
    assert column(single, "image") == [FILES[3]]


def test_parts_are_whole_row_groups_that_are_read_alone_in_any_order(tmp_path: Path, monkeypatch) -> None:
    monkeypatch.setattr("pipeline.data.sources.tables.PARTITION_ROWS", 5)
    monkeypatch.setattr("pipeline.data.sources.parquet.BATCH_ROWS", 2)
    write(tmp_path / "a.parquet", 2, image=LAYOUTS["fixed binary"])
    write(tmp_path / "b.parquet", 7, image=LAYOUTS["fixed binary"])
    source = opened(tmp_path, shape=(2, 3, 3))
    assert [part.rows for part in source.partitions] == [4, 3, 7]
    assert [batch.num_rows for batch in source.partitions[2].batches()] == [2, 2, 2, 1]
    together = rows(source)
    assert [row["id"] for row in together] == [f"{name}.parquet:{row}" for name in "ab" for row in range(7)]
    parts = pickle.loads(pickle.dumps(source.partitions))
    alone = [[row for batch in part.batches() for row in batch.to_pylist()] for part in reversed(parts)]
    assert alone[2] + alone[1] + alone[0] == together


def test_a_batch_of_equal_images_stays_small(tmp_path: Path, monkeypatch) -> None:
    monkeypatch.setattr("pipeline.data.sources.image_columns.BATCH_BYTES", 100_000)
    source = opened(write(tmp_path / "a.parquet", image=pa.array([bytes(10_000)] * 600)))
    sizes = [batch.num_rows for part in source.partitions for batch in part.batches()]
    assert max(sizes) <= 11
    assert sum(sizes) == 600


def test_columns_become_labels_attributes_vectors_groups_and_ids(tmp_path: Path) -> None:
    path = write(
        tmp_path / "a.parquet",
        image=pa.array(FILES[:3]),
        kind=pa.array(["b", None, "a"]).dictionary_encode(),
        size=pa.array([1, None, 2**30]),
        ok=pa.array([True, False, None]),
        vec=pa.array([[1.0, 2.0], None, [3.0, None]], pa.list_(pa.float64(), 2)),
        who=pa.array([7, 7, None]),
        name=pa.array(["x", "y", "z"], pa.large_string()),
    )
    columns = Columns(label="kind", attributes=("size", "ok"), embedding="vec", group="who", id="name")
    source = opened(path, columns=columns)
    assert (source.classes, source.attributes, source.embedding) == (("a", "b"), ("size", "ok"), 2)
    assert column(source, "label") == [1, None, 0]
    assert str(column(source, "attributes")) == "[[1.0, 1.0], [nan, 0.0], [1073741824.0, nan]]"
    assert str(column(source, "embedding")) == "[[1.0, 2.0], None, [3.0, nan]]"
    assert column(source, "group") == ["7", "7", None]
    assert column(source, "id") == ["x", "y", "z"]


@pytest.mark.parametrize(
    ("labels", "classes", "found"),
    [
        (pa.array([2, 0, None], pa.uint8()), ("0", "1", "2"), [2, 0, None]),
        (pa.array([1.0, 0.0, float("nan")]), ("0", "1"), [1, 0, None]),
        (pa.array([True, False, True]), ("0", "1"), [1, 0, 1]),
        (pa.array(["10", "9", "10"]), ("10", "9"), [0, 1, 0]),
        (pa.array(["ü b", "a", "ü b"]), ("a", "ü b"), [1, 0, 1]),
    ],
    ids=str,
)
def test_labels_are_numbers_or_names(tmp_path: Path, labels: pa.Array, classes, found) -> None:
    source = opened(write(tmp_path / "a.parquet", image=pa.array(FILES[:3]), y=labels), columns=Columns(label="y"))
    assert source.classes == classes
    assert column(source, "label") == found
    assert set(column(source, "error")) == {None}


def hugging_face(path: Path, names: list[str], labels: list[int]) -> Path:
    features = {"image": {"_type": "Image"}, "y": {"names": names, "_type": "ClassLabel"}}
    table = pa.table({"image": [{"bytes": file, "path": None} for file in FILES[: len(labels)]], "y": labels})
    pq.write_table(table.replace_schema_metadata({"huggingface": json.dumps({"info": {"features": features}})}), path)
    return path


def test_class_names_in_the_file_are_used_and_matched_by_name(tmp_path: Path) -> None:
    path = hugging_face(tmp_path / "a.parquet", ["cat", "dog", "emu"], [0, 1, 1, 2, -1])
    source = opened(path, columns=Columns(label="y"))
    assert source.classes == ("cat", "dog", "emu")
    assert column(source, "label") == [0, 1, 1, 2, None]
    given = opened(path, ("dog", "cat"), columns=Columns(label="y"))
    assert column(given, "label") == [1, 0, 0, None, None]
    assert column(given, "detail")[3:] == ["expected a class, found 'emu'", "expected a class, found 'number -1'"]


def test_files_with_other_class_names_are_not_mixed(tmp_path: Path) -> None:
    hugging_face(tmp_path / "a.parquet", ["cat", "dog"], [0, 1])
    hugging_face(tmp_path / "b.parquet", ["dog", "cat"], [0, 1])
    with pytest.raises(UserError) as error:
        opened(tmp_path, columns=Columns(label="y"))
    assert str(error.value) == (
        "data.source.path: b.parquet differs from a.parquet: its labels have other class names. Write all files alike"
    )


@pytest.mark.parametrize(
    ("texts", "official", "splits"),
    [
        (["train", "TEST", " Valid"], ("train", "val", "test"), ["train", "test", "val"]),
        (["train", "test", None], ("train", "test"), ["train", "test", "train"]),
        (["train", "val", "val"], (), [None, None, None]),
        ([None, None, "test"], (), [None, None, None]),
    ],
)
def test_splits_are_kept_where_train_and_test_are_there(tmp_path: Path, texts, official, splits) -> None:
    path = write(tmp_path / "a.parquet", image=pa.array(FILES[:3]), part=pa.array(texts))
    source = opened(path, columns=Columns(split="part"))
    assert source.official == official
    assert column(source, "split") == splits


def test_an_error_of_the_image_stands_before_one_of_the_label(tmp_path: Path) -> None:
    path = write(tmp_path / "a.parquet", image=pa.array([None, FILES[0]]), y=pa.array(["x", "y"]))
    source = opened(path, ("a",), columns=Columns(label="y"))
    assert column(source, "error") == ["image_missing", "label_unknown"]
    assert column(source, "detail")[1] == "expected a class, found 'y'"


def test_the_digest_changes_with_the_content(tmp_path: Path) -> None:
    one = opened(write(tmp_path / "1" / "a.parquet", image=pa.array(FILES))).digests
    assert opened(write(tmp_path / "2" / "a.parquet", image=pa.array(FILES))).digests == one
    assert opened(write(tmp_path / "3" / "a.parquet", image=pa.array(FILES[1:]))).digests != one


IMAGES = pa.array(FILES)
NESTED = LAYOUTS["nested"]


@pytest.mark.parametrize(
    ("columns", "config", "message"),
    [
        ({"img": IMAGES}, {}, "data.source.image: a.parquet: no column 'image'; did you mean 'img'?"),
        ({"image": pa.array(["x.png"])}, {},
         "data.source.image: a.parquet: column 'image': expected image files as bytes or as {bytes, path}, found "
         "string. For paths of image files use kind: image_folder with this table"),
        ({"image": LAYOUTS["list"]}, {},
         "data.source.image: a.parquet: column 'image': expected image files as bytes or as {bytes, path}, found "
         "list<element: uint8>. For arrays set data.source.shape to their [height, width, channels]"),
        ({"image": pa.array([{"bytes": b""}])}, {"shape": (2, 3, 3)},
         "data.source.image: a.parquet: expected arrays of 2 x 3 x 3 uint8 values, found struct<bytes: binary>. "
         "For image files set data.source.shape to null"),
        ({"image": pa.array(FLAT.tolist())}, {"shape": (2, 3, 3)},
         "data.source.image: a.parquet: expected arrays of 2 x 3 x 3 uint8 values, found int64. "
         "Convert them to uint8 from 0 to 255"),
        ({"image": LAYOUTS["fixed binary"]}, {"shape": (2, 3, 1)},
         "data.source.image: a.parquet: expected arrays of 2 x 3 x 1 uint8 values, found fixed_size_binary[18]"),
        ({"image": LAYOUTS["tensor"]}, {"shape": (3, 2, 3)},
         "data.source.image: a.parquet: expected arrays of 3 x 2 x 3 uint8 values, found tensors of 2 x 3 x 3"),
        ({"image": pa.array([1.5])}, {"shape": (1, 1, 1)},
         "data.source.image: a.parquet: expected arrays of 1 x 1 x 1 uint8 values, found double"),
        ({"image": IMAGES}, {"shape": (0, 1, 1)},
         "data.source.shape: expected [height, width, channels], each at least 1, together at most 16,777,216 values; "
         "found [0, 1, 1]"),
        ({"image": IMAGES}, {"shape": (2**40, 2**40, 3)},
         "data.source.shape: expected [height, width, channels], each at least 1, together at most 16,777,216 values; "
         "found [1099511627776, 1099511627776, 3]"),
        ({"image": IMAGES, "y": IMAGES}, {"columns": Columns(label="y")},
         "data.source.columns.label: a.parquet: column 'y': expected numbers or text, found binary"),
        ({"image": IMAGES, "y": pa.array(["a"] * 7)}, {"columns": Columns(attributes=("y",), embedding="y", split="z")},
         "data.source.columns.attributes: a.parquet: column 'y': expected numbers, found string\n"
         "data.source.columns.embedding: a.parquet: column 'y': expected lists of numbers, found string\n"
         "data.source.columns.split: a.parquet: no column 'z'; known: image, y"),
        ({"image": IMAGES, "y": pa.array(["train", "dev"] * 3 + ["test"])}, {"columns": Columns(split="y")},
         "data.source.columns.split: {}, column 'y': expected train, val or test, found 'dev'. "
         "Correct the column, or set data.source.columns.split to null"),
        ({"image": IMAGES, "y": pa.array([-1, 0, 1, 2, 3, 4, 5])}, {"columns": Columns(label="y")}, None),
        ({"image": IMAGES, "y": pa.array([None] * 7, pa.list_(pa.float32()))}, {"columns": Columns(embedding="y")},
         "data.source.columns.embedding: {}, column 'y': expected vectors, found none in any row. "
         "Name another column, or set it to null"),
        ({"image": pa.array([], pa.binary())}, {},
         "data.source.path: {}: no rows in 1 Parquet files; name others"),
        ({"image": pa.array([], pa.binary()), "y": pa.array([], pa.string())}, {"columns": Columns(label="y")},
         "data.source.path: {}: no rows in 1 Parquet files; name others"),
    ],
)  # fmt: skip
def test_a_wrong_column_is_explained(tmp_path: Path, columns, config: dict[str, Any], message: str | None) -> None:
    path = write(tmp_path / "a.parquet", **columns)
    if message is None:
        assert column(opened(path, **config), "label") == [-1, 0, 1, 2, 3, 4, 5]
        return
    with pytest.raises(UserError) as error:
        opened(path, **config)
    assert str(error.value) == message.replace("{}", str(path))


def test_too_many_classes_are_refused_before_they_fill_the_memory(tmp_path: Path) -> None:
    labels = pa.array([f"name {number}" for number in range(100_001)])
    path = write(tmp_path / "a.parquet", image=pa.array([b""] * 100_001), y=labels)
    with pytest.raises(UserError, match="expected at most 100,000 classes, found more distinct labels"):
        opened(path, columns=Columns(label="y"))


def test_a_file_with_other_columns_is_named(tmp_path: Path) -> None:
    write(tmp_path / "a.parquet", image=IMAGES, y=pa.array([1] * 7), unused=pa.array([1] * 7))
    write(tmp_path / "b.parquet", image=IMAGES, y=pa.array(["1"] * 7))
    with pytest.raises(UserError) as error:
        opened(tmp_path, columns=Columns(label="y"))
    assert str(error.value) == (
        "data.source.path: b.parquet differs from a.parquet: column 'y': expected int64, found string. "
        "Write all files alike"
    )
    assert opened(tmp_path).rows == 14, "a column that is not used does not matter"


@pytest.mark.parametrize("path", ["{}/no", "{}", "{}/*.pq"])
def test_a_wrong_path_is_explained(tmp_path: Path, path: str) -> None:
    path = path.format(tmp_path)
    with pytest.raises(UserError) as error:
        opened(path)
    assert str(error.value) == (
        f"data.source.path: {path}: no Parquet files; set it to a folder that holds .parquet files, to one of them, or "
        "to a pattern such as folder/train-*.parquet"
    )


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda path, out: os.mkfifo(path / "x.parquet"),
         "{}/x.parquet: expected a file, found a folder, pipe, socket or device; take it away"),
        (lambda path, out: (path / "x.parquet").symlink_to(out / "a.parquet"),
         "{}/x.parquet: a link to a place outside {} is not followed; put a copy there"),
        (lambda path, out: (path / "sub").symlink_to(out),
         "{}/sub: a link to a place outside {} is not followed; put a copy there"),
    ],
)  # fmt: skip
def test_what_is_not_opened_in_a_folder_is_named(tmp_path: Path, make, message: str) -> None:
    folder, out = tmp_path / "in", tmp_path / "out"
    for place in (folder, out):
        write(place / "a.parquet", image=IMAGES)
    make(folder, out)
    with pytest.raises(UserError) as error:
        opened(folder)
    assert str(error.value) == message.replace("{}", str(folder))


def test_a_pattern_finds_links_and_goes_through_no_loop(tmp_path: Path) -> None:
    write(tmp_path / "out" / "a.parquet", image=IMAGES)
    (tmp_path / "in").mkdir()
    (tmp_path / "in" / "b.PARQUET").symlink_to(tmp_path / "out" / "a.parquet")
    (tmp_path / "in" / "loop").symlink_to(tmp_path / "in")
    assert column(opened(tmp_path / "in" / "*"), "source")[0] == "b.PARQUET"
    assert opened(tmp_path / "in" / "**" / "*.PARQUET").rows == 7, "each file once"
    with pytest.raises(UserError, match=r"in/a\*\*: not a pattern \(.*\); correct it"):
        opened(tmp_path / "in" / "a**")


@pytest.mark.parametrize("damage", ["empty", "cut", "footer", "text"])
def test_a_file_with_a_damaged_end_is_named(tmp_path: Path, damage: str) -> None:
    path = write(tmp_path / "a.parquet", image=IMAGES)
    data = path.read_bytes()
    length = struct.unpack("<I", data[-8:-4])[0]
    footer = bytearray(data)
    footer[-8 - length : -8] = bytes(255 - byte for byte in data[-8 - length : -8])
    path.write_bytes({"empty": b"", "cut": data[:-20], "footer": bytes(footer), "text": b"not Parquet at all"}[damage])
    with pytest.raises(UserError, match=rf"^{path}: cannot be read as Parquet \([^\n]*\)\. Put a whole copy[^\n]*$"):
        opened(tmp_path)


def test_a_damaged_page_is_an_error_that_names_the_file(tmp_path: Path) -> None:
    path = tmp_path / "a.parquet"
    pq.write_table(pa.table({"image": [bytes(np.arange(200) % 251)] * 50}), path, write_page_checksum=True)
    source = opened(path)
    data = bytearray(path.read_bytes())
    data[120] ^= 1
    path.write_bytes(bytes(data))
    with pytest.raises(UserError, match=rf"^{path}: cannot be read as Parquet \("):
        rows(source)


@pytest.mark.parametrize("seed", range(5))
def test_damaged_bytes_give_rows_or_an_error_never_a_crash(tmp_path: Path, seed: int) -> None:
    path = write(tmp_path / "a.parquet", 3, image=LAYOUTS["nested"], y=pa.array(list("abcabca")))
    whole, random = path.read_bytes(), Random(seed)
    for _ in range(20):
        damaged = bytearray(whole)
        for _ in range(random.choice([1, 3, 10])):
            damaged[random.randrange(len(damaged))] = random.randrange(256)
        path.write_bytes(damaged)
        try:
            outcome = len(rows(opened(path, shape=(2, 3, 3), columns=Columns(label="y"))))
        except UserError as error:
            outcome = str(error)
        assert outcome == 7 or path.name in outcome


def test_a_file_that_vanished_or_shrank_is_an_error_that_names_it(tmp_path: Path) -> None:
    path = write(tmp_path / "a.parquet", 2, image=IMAGES)
    source = opened(path)
    write(path, 7, image=IMAGES)
    with pytest.raises(UserError, match=rf"^{path}: changed while it was read. Start again"):
        rows(source)
    write(path, 2, other=IMAGES)
    for change in (lambda: None, path.unlink):
        change()
        with pytest.raises(UserError, match=rf"^{path}: cannot be read as Parquet \("):
            rows(source)


@pytest.mark.parametrize("labels", [[1.0, 0.0067, 1.0], ["1", "0.0067", " 2e-1"]])
@pytest.mark.parametrize("classes", [None, ("cat", "dog")])
def test_measurements_are_no_labels(tmp_path: Path, labels: list[Any], classes) -> None:
    path = write(tmp_path / "a.parquet", image=pa.array(FILES[:3]), y=pa.array(labels))
    with pytest.raises(UserError) as error:
        opened(path, classes, columns=Columns(label="y"))
    found = " 2e-1" if isinstance(labels[0], str) else "0.0067"
    assert str(error.value) == (
        f"data.source.columns.label: {path}, column 'y': expected class names or whole numbers, found {found}; name it "
        "under columns.attributes instead"
    )


def test_numbers_beside_names_and_given_names_of_numbers_are_labels(tmp_path: Path) -> None:
    path = write(tmp_path / "a.parquet", image=pa.array(FILES[:3]), y=pa.array(["0.5", "cat", "1"]))
    assert opened(path, columns=Columns(label="y")).classes == ("0.5", "1", "cat")
    path = write(tmp_path / "a.parquet", image=pa.array(FILES[:3]), y=pa.array(["0.5", "1.5", "2"]))
    source = opened(path, ("1.5", "0.5"), columns=Columns(label="y"))
    assert column(source, "label") == [1, 0, None]
    assert column(source, "error") == [None, None, "label_unknown"]


@pytest.mark.parametrize("make", [str, int])
def test_a_label_for_nearly_every_row_is_refused(tmp_path: Path, make) -> None:
    def one(alone: int, shared: int) -> Source:
        labels = pa.array([make(number) for number in [*range(alone), *[alone] * shared]])
        path = write(tmp_path / "a.parquet", image=pa.array([b""] * len(labels)), y=labels)
        return opened(path, columns=Columns(label="y"))

    with pytest.raises(
        UserError, match="expected classes, found 1,001 labels: nearly every row has a label of its own"
    ):
        one(1000, 999)
    assert len(one(1000, 1000).classes) == 1001, "half of the rows share one"
    assert len(one(999, 1).classes) == 1000, "few classes may have a row each"


@pytest.mark.parametrize(
    ("names", "splits"),
    [
        (("train", "test"), ["test", "train"]),
        (("train-00000-of-00002", "train-00001-of-00002", "Valid", "test-00000-of-00001-0123456789abcdef"),
         ["val", "test", "train", "train"]),
        (("en/validation/0", "en/train/0", "en/test/x-1"), ["test", "train", "val"]),
        (("train", "validation"), None),
        (("train", "test", "extra"), None),
        (("train-small", "test"), None),
        (("train/test", "test/test", "train/train"), None),
    ],
)  # fmt: skip
def test_names_of_all_files_tell_the_splits(tmp_path: Path, capsys, names: tuple[str, ...], splits) -> None:
    for name in names:
        write(tmp_path / f"{name}.parquet", image=pa.array(FILES[:1]))
    source = opened(tmp_path)
    assert column(source, "split") == (splits or [None] * len(names))
    expected = tuple(split for split in ("train", "val", "test") if split in (splits or ()))
    assert source.official == expected
    said = f"{tmp_path}: splits {', '.join(expected)} from the names of the files\n"
    assert capsys.readouterr().err == (said if splits else "")


def test_a_column_of_splits_counts_more_than_the_names_of_files(tmp_path: Path) -> None:
    for name in ("train", "test"):
        write(tmp_path / f"{name}.parquet", image=pa.array(FILES[:2]), part=pa.array(["test", "train"]))
    assert column(opened(tmp_path, columns=Columns(split="part")), "split") == ["test", "train"] * 2


def test_class_names_are_compared_in_one_spelling(tmp_path: Path) -> None:
    labels = pa.array(["\u00e9", "e\u0301", "f"])
    path = write(tmp_path / "a.parquet", image=pa.array(FILES[:3]), y=labels)
    assert opened(path, columns=Columns(label="y")).classes == ("f", "\u00e9")
    assert column(opened(path, columns=Columns(label="y")), "label") == [1, 1, 0]
    given = opened(path, ("e\u0301", "f"), columns=Columns(label="y"))
    assert (given.classes, column(given, "label")) == (("e\u0301", "f"), [0, 0, 1])


def test_messages_have_the_path_that_the_user_gave(tmp_path: Path, monkeypatch) -> None:
    monkeypatch.chdir(write(tmp_path / "in" / "a.parquet", image=pa.array(FILES)).parent.parent)
    (part,) = opened("in").partitions
    monkeypatch.chdir("/")
    assert sum(batch.num_rows for batch in part.batches()) == 7, "another process reads it from elsewhere"
    (tmp_path / "in" / "a.parquet").write_bytes(b"PAR1")
    with pytest.raises(UserError, match=r"^in/a.parquet: cannot be read as Parquet"):
        list(part.batches())
    monkeypatch.chdir(tmp_path)
    with pytest.raises(UserError, match=r"^in/a.parquet: cannot be read as Parquet"):
        opened("in")
