"""Image folders: which files are rows, what a table adds to them, and what is said about a folder that is not one."""

import hashlib
import io
import os
import pickle
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from PIL import Image
from source_rows import rows_of as rows

from pipeline.data.config import Columns, ImageFolderSource
from pipeline.data.sources import open_source
from pipeline.data.sources.base import Source
from pipeline.data.sources.image_folder import open_image_folder
from pipeline.errors import UserError

LIMIT = 10_000


def png(value: int = 0) -> bytes:
    file = io.BytesIO()
    Image.new("L", (3, 2), value).save(file, "PNG")
    return file.getvalue()


def put(folder: Path, *names: str) -> Path:
    for number, name in enumerate(names):
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_bytes(png(number))
    return folder


def opened(folder: Path, classes: tuple[str, ...] | None = None, **config: Any) -> Source:
    config.setdefault("labels", "none")
    return open_image_folder(ImageFolderSource(kind="image_folder", path=str(folder), **config), classes, LIMIT)


def ids(source: Source) -> list[str]:
    return [row["id"] for row in rows(source)]


def faults(source: Source) -> dict[str, tuple[str, str]]:
    return {row["id"]: (row["error"], row["detail"]) for row in rows(source) if row["error"]}


def write_csv(path: Path, *lines: str) -> str:
    path.write_text("\n".join(lines) + "\n", encoding="utf-8")
    return str(path)


def test_folders_are_the_classes_whatever_their_names(tmp_path: Path) -> None:
    names = ["Äpfel rot/1.png", "b.c d/x.PNG", "b.c d/deep/y.jpg", "日本/z.png"]
    source = opened(put(tmp_path, *reversed(names)), labels="folders")
    assert source.classes == ("b.c d", "Äpfel rot", "日本")
    found = rows(source)
    assert [row["id"] for row in found] == sorted(names)
    assert [source.classes[row["label"]] for row in found] == [name.split("/")[0] for name in sorted(names)]
    assert [row["image"] for row in found] == [(tmp_path / name).read_bytes() for name in sorted(names)]
    assert {row["error"] for row in found} == {row["split"] for row in found} == {None}
    assert [row["source"] for row in found] == sorted(names)
    assert (source.pixels, source.official, source.name) == (None, (), tmp_path.name)


def test_an_image_beside_the_class_folders_has_no_label(tmp_path: Path) -> None:
    source = opened(put(tmp_path, "a/1.png", "loose.png"), labels="folders")
    assert faults(source) == {
        "loose.png": ("label_missing", "expected the image in the folder of its class, found it beside them")
    }


def test_given_classes_fix_the_numbers_and_other_folders_are_unknown(tmp_path: Path) -> None:
    put(tmp_path, "cat/1.png", "dog/1.png", "emu/1.png")
    source = opened(tmp_path, ("dog", "owl", "cat"), labels="folders")
    assert source.classes == ("dog", "owl", "cat")
    assert [row["label"] for row in rows(source)] == [2, 0, None]
    assert faults(source) == {"emu/1.png": ("label_unknown", "expected a class, found 'emu'")}


def test_a_folder_without_images_is_no_class(tmp_path: Path) -> None:
    (put(tmp_path, "a/1.png") / "empty").mkdir()
    assert opened(tmp_path, labels="folders").classes == ("a",)


def test_hidden_files_are_not_looked_at_and_others_are_counted(tmp_path: Path, capsys) -> None:
    put(tmp_path, "a.png", ".hidden.png", ".cache/b.png", "c/._d.png")
    for name in ("README.txt", "Thumbs.db", "b.TXT", "Makefile", "c/paper.pdf"):
        (tmp_path / name).write_text("BM")
    assert ids(opened(tmp_path)) == ["a.png"]
    assert capsys.readouterr().err == (
        f"{tmp_path}: 5 files are no images that Pillow reads: 2 .txt, 1 without extension, 1 .db, 1 .pdf; "
        "they are not counted\n"
    )


def test_rows_come_in_the_order_of_names_and_in_parts_that_are_read_alone(tmp_path: Path) -> None:
    put(tmp_path, *(f"{number % 7}/{number}.png" for number in range(600)), "a.png", "a/b.png", "a-b.png")
    source = opened(tmp_path)
    assert [partition.rows for partition in source.partitions] == [512, 91]
    found = ids(source)
    assert found == sorted(found)
    assert len(set(found)) == 603
    alone = [
        [row for batch in part.batches() for row in batch.to_pylist()]
        for part in reversed(pickle.loads(pickle.dumps(source.partitions)))
    ]
    assert alone[1] + alone[0] == rows(source)
    assert len(pickle.dumps(source.partitions[1])) < 20_000, "a part does not carry the whole listing"


def test_a_batch_stays_small(tmp_path: Path, monkeypatch) -> None:
    put(tmp_path, *(f"{number}.png" for number in range(10)))
    everything = rows(opened(tmp_path))
    monkeypatch.setattr("pipeline.data.sources.image_folder.BATCH_BYTES", 2 * len(png()))
    assert [batch.num_rows for batch in opened(tmp_path).partitions[0].batches()] == [2] * 5
    assert rows(opened(tmp_path)) == everything


def test_names_that_look_alike_stay_apart(tmp_path: Path) -> None:
    names = ["é.png", "e\u0301.png", "a.png", "a.jpg", "new\nline.png"]
    assert ids(opened(put(tmp_path, *names))) == sorted(name.replace("\n", "\\n") for name in names)


def test_a_name_that_is_no_text_is_shown_with_its_bytes(tmp_path: Path) -> None:
    folder = os.fsencode(tmp_path) + b"/gr\xfcn"
    os.mkdir(folder)
    with open(folder + b"/\xff.png", "wb") as file:
        file.write(png())
    source = opened(tmp_path, labels="folders")
    assert source.classes == ("gr\\xfcn",)
    found = rows(pickle.loads(pickle.dumps(source)))
    assert [(row["id"], row["label"], row["image"]) for row in found] == [("gr\\xfcn/\\xff.png", 0, png())]


def test_no_file_is_lost_where_a_name_has_the_letters_of_such_a_byte(tmp_path: Path) -> None:
    for number, name in enumerate((b"\xff.png", b"\\xff.png")):
        with open(os.fsencode(tmp_path) + b"/" + name, "wb") as file:
            file.write(png(number))
    found = rows(opened(tmp_path))
    assert [(row["id"], row["image"]) for row in found] == [("\\xff.png", png(1)), ("\\xff.png'", png(0))]


def test_what_cannot_be_read_is_a_row_with_the_reason(tmp_path: Path) -> None:
    put(tmp_path, "good.png", "gone.png", "long.png")
    (tmp_path / "long.png").write_bytes(bytes(LIMIT + 1))
    (tmp_path / "empty.png").write_bytes(b"")
    (tmp_path / "broken.png").symlink_to("nothing.png")
    (tmp_path / "loop.png").symlink_to("loop.png")
    os.mkfifo(tmp_path / "pipe.png")
    (tmp_path / "folder.png").mkdir()
    source = opened(tmp_path)
    (tmp_path / "gone.png").unlink()
    assert faults(source) == {
        "broken.png": ("unreadable", "No such file or directory"),
        "gone.png": ("unreadable", "No such file or directory"),
        "loop.png": ("unreadable", "Too many levels of symbolic links"),
        "long.png": ("too_many_bytes", "expected at most 10,000 bytes, found 10,001"),
        "pipe.png": ("unreadable", "expected a file, found a pipe, socket or device"),
    }
    images = {row["id"]: row["image"] for row in rows(source)}
    assert images["empty.png"] == b""
    assert images["good.png"] == png()
    assert images["long.png"] is None


def test_links_out_of_the_folder_are_not_followed(tmp_path: Path) -> None:
    outside, folder = put(tmp_path / "out", "secret.png"), put(tmp_path / "in", "a/1.png")
    (folder / "a" / "link.png").symlink_to(outside / "secret.png")
    (folder / "b").symlink_to(outside)
    (folder / "a" / "same.png").symlink_to("1.png")
    (folder / "a" / "loop").symlink_to(folder)
    source = opened(folder, labels="folders")
    assert faults(source) == {
        "a/link.png": ("symlink", "a link to a file elsewhere is not followed"),
        "b": ("symlink", "a link to a folder elsewhere is not followed"),
    }
    assert ids(source) == ["a/1.png", "a/link.png", "a/same.png", "b"]
    assert source.classes == ("a",)


def test_the_folder_itself_may_be_a_link(tmp_path: Path) -> None:
    (tmp_path / "link").symlink_to(put(tmp_path / "real", "a.png"))
    assert faults(opened(tmp_path / "link")) == {}


def test_the_digest_is_that_of_names_and_sizes(tmp_path: Path) -> None:
    one, two = put(tmp_path / "one", "b.png", "a.png"), put(tmp_path / "two", "b.png", "a.png")
    os.utime(two / "a.png", (0, 0))
    expected = hashlib.sha256(f"a.png\0{len(png(1))}\nb.png\0{len(png(0))}\n".encode()).hexdigest()
    assert opened(one).digests == opened(two).digests == {"listing": expected}
    (two / "a.png").write_bytes(b"longer" * 50)
    assert opened(two).digests != opened(one).digests


@pytest.mark.parametrize(
    ("make", "config", "message"),
    [
        (lambda path: None, {}, "data.source.path: {}: no such folder; set it to the folder that holds the images"),
        (
            lambda path: path.write_text(""),
            {},
            "data.source.path: {}: this is a file; set it to the folder that holds the images",
        ),
        (lambda path: path.mkdir(), {}, "data.source.path: {}: expected image files in it, found none"),
        (
            lambda path: (path.mkdir(), (path / "a.heix").touch()),
            {},
            "data.source.path: {}: expected image files in it, found none; "
            "1 file is no image that Pillow reads: 1 .heix; it is not counted",
        ),
        (
            lambda path: put(path, "a.png"),
            {"labels": "folders"},
            "data.source.labels: folders, but {} has no subfolders with images. Put each class into a folder of its "
            "own, or set data.source.labels to none",
        ),
        (
            lambda path: put(path, "a.png"),
            {"table": "labels.csv"},
            "data.source.table: labels.csv: no such file; set it to a CSV or Parquet file",
        ),
        (
            lambda path: (put(path, "a.png") / "labels.csv").touch(),
            {"table": "labels.csv"},
            "data.source.table: labels.csv: no such file; did you mean '{}/labels.csv'?",
        ),
        (
            lambda path: put(path, "a/b.png"),
            {"labels": "folders", "table": "t", "columns": Columns(label="kind")},
            "data.source.columns.label: expected null, because data.source.labels is folders; found 'kind'. "
            "Set it to null, or data.source.labels to table",
        ),
    ],
)
def test_a_wrong_folder_is_explained(tmp_path: Path, make, config: dict[str, Any], message: str) -> None:
    folder = tmp_path / "images"
    make(folder)
    with pytest.raises(UserError) as error:
        opened(folder, **config)
    assert str(error.value) == message.format(folder)


def test_a_path_that_the_system_refuses_is_an_error_that_names_it(tmp_path: Path) -> None:
    config = ImageFolderSource(kind="image_folder", path="a" * 5000)
    with pytest.raises(UserError, match=r"^data.source: a{5000}: File name too long; allow it, or correct it$"):
        open_source(config, None, LIMIT, tmp_path)


TABLE = (
    "file,kind,age,weight,who,part,unused",
    "b.png,dog,3,0.5,007,train,x",
    ".\\sub\\c.png,NA,,1.5,008,Validation,1",
    "./a.png,dog,1,2,007,TEST,",
)
COLUMNS = Columns(label="kind", attributes=("weight", "age"), group="who", split="part")


def test_a_csv_gives_labels_attributes_groups_and_splits(tmp_path: Path) -> None:
    folder = put(tmp_path / "in", "a.png", "b.png", "sub/c.png")
    source = opened(folder, labels="table", table=write_csv(folder / "labels.csv", *TABLE), columns=COLUMNS)
    assert source.classes == ("NA", "dog")
    assert source.attributes == ("weight", "age")
    assert source.official == ("train", "val", "test")
    assert list(source.digests) == ["listing", "labels.csv"]
    a, b, c = rows(source)
    assert [row["id"] for row in (a, b, c)] == ["a.png", "b.png", "sub/c.png"]
    assert [row["label"] for row in (a, b, c)] == [1, 1, 0]
    assert [row["group"] for row in (a, b, c)] == ["007", "007", "008"]
    assert [row["split"] for row in (a, b, c)] == ["test", "train", "val"]
    assert (a["attributes"], b["attributes"], c["attributes"][0]) == ([2, 1], [0.5, 3], 1.5)
    assert c["attributes"][1] != c["attributes"][1], "a missing number is NaN"
    assert [row["image"] for row in (a, b, c)] == [png(0), png(1), png(2)]


def test_a_table_names_files_as_their_ids_are_shown(tmp_path: Path) -> None:
    folder = put(tmp_path / "in", "new\nline.png", "b\\c.png")
    pq.write_table(pa.table({"file": ["new\nline.png", "b\\c.png"]}), tmp_path / "t.parquet")
    assert faults(opened(folder, table=str(tmp_path / "t.parquet"))) == {}


def test_a_csv_and_the_same_parquet_give_the_same_rows(tmp_path: Path) -> None:
    folder = put(tmp_path / "in", "a.png", "b.png", "sub/c.png", "no row.png")
    csv_path = write_csv(tmp_path / "labels.csv", *TABLE, "gone.png,dog,1,1,009,train,")
    table = pa.table(
        {
            "file": ["b.png", ".\\sub\\c.png", "./a.png", "gone.png"],
            "kind": pa.array(["dog", "NA", "dog", "dog"]).dictionary_encode(),
            "age": pa.array([3, None, 1, 1], pa.int8()),
            "weight": [0.5, 1.5, 2.0, 1.0],
            "who": ["007", "008", "007", "009"],
            "part": ["train", "Validation", "TEST", "train"],
        }
    )
    pq.write_table(table, tmp_path / "labels.parquet")
    found = [
        repr(rows(opened(folder, labels="table", table=path, columns=COLUMNS)))
        for path in (csv_path, str(tmp_path / "labels.parquet"))
    ]
    assert found[0] == found[1]


def test_files_and_rows_without_each_other_are_rows_with_the_reason(tmp_path: Path) -> None:
    folder = put(tmp_path / "in", "a.png", "b.png")
    table = write_csv(tmp_path / "t.csv", "file,name", "a.png,first", "../b.png,second", ",third")
    source = opened(folder, table=table, columns=Columns(id="name"))
    assert faults(source) == {
        "second": ("file_missing", "the table names this file, and it is not there"),
        "b.png": ("table_missing", "the table has no row for this file"),
        "third": ("file_missing", "the table names this file, and it is not there"),
    }
    assert {row["id"]: row["source"] for row in rows(source)}["first"] == "a.png"


def test_a_parquet_table_gives_vectors(tmp_path: Path) -> None:
    folder = put(tmp_path / "in", "a.png", "b.png", "c.png")
    table = pa.table(
        {"file": ["c.png", "a.png", "b.png"], "clip": pa.array([[1, 2], None, [3, 4]], pa.list_(pa.int32()))}
    )
    pq.write_table(table, tmp_path / "t.parquet")
    source = opened(folder, table=str(tmp_path / "t.parquet"), columns=Columns(embedding="clip"))
    assert source.embedding == 2
    assert [row["embedding"] for row in rows(source)] == [None, [3, 4], [1, 2]]


@pytest.mark.parametrize(
    ("labels", "given", "classes", "found"),
    [
        (["0", "2", "10"], None, tuple(str(n) for n in range(11)), [0, 2, 10]),
        (["1.0", "0.0", ""], None, ("0", "1"), [1, 0, None]),
        (["9" * 400, "0", "1"], None, ("0", "1", "9" * 400), [2, 0, 1]),
        (["01", "02", "1"], None, ("01", "02", "1"), [0, 1, 2]),
        (["1", "2", "1"], ("2", "1"), ("2", "1"), [1, 0, 1]),
        (["1", "0", "1"], ("cat", "dog"), ("cat", "dog"), [1, 0, 1]),
        (["dog", "emu", ""], ("cat", "dog"), ("cat", "dog"), [1, None, None]),
    ],
)
def test_labels_of_a_csv_are_numbers_or_names(tmp_path: Path, labels, given, classes, found) -> None:
    folder = put(tmp_path / "in", "a.png", "b.png", "c.png")
    lines = [f"{name}.png,{label}" for name, label in zip("abc", labels, strict=True)]
    table = write_csv(tmp_path / "t.csv", "file,y", *lines)
    source = opened(folder, given, labels="table", table=table, columns=Columns(label="y"))
    assert source.classes == classes
    assert [row["label"] for row in rows(source)] == found
    assert [row["error"] for row in rows(source)].count("label_unknown") == labels.count("emu")


@pytest.mark.parametrize(
    ("content", "columns", "message"),
    [
        (b"file,kint\na.png,1\n", Columns(label="kind"),
         "data.source.columns.label: {0}: no column 'kind'; did you mean 'kint'?"),
        (b"path,kind\na.png,1\n", Columns(label="kind"),
         "data.source.table: {0}: no column 'file'; known: kind, path; expected the path of each image in it"),
        (b"file;kind\na.png;1\n", Columns(label="kind"),
         "data.source.table: {0}: no column 'file'; did you mean 'file;kind'?; expected the path of each image in it. "
         "Separate the columns by commas"),
        (b"file,kind,kind\na.png,1,1\n", Columns(label="kind"),
         "data.source.columns.label: {0}: column 'kind' is there 2 times"),
        (b"file,age\na.png,young\n", Columns(attributes=("age",)),
         "data.source.columns.attributes: {0}: column 'age': expected numbers, found string"),
        (b"file,age\na.png,1\n", Columns(attributes=("agf",), group="x"),
         "data.source.columns.attributes: {0}: no column 'agf'; did you mean 'age'?\n"
         "data.source.columns.group: {0}: no column 'x'; known: age, file"),
        (b"file,v\na.png,1\n", Columns(embedding="v"),
         "data.source.columns.embedding: {0}: expected null, because a CSV cannot hold vectors; found 'v'. "
         "Write the table as Parquet with a column of lists"),
        (b"file,part\na.png,train\nb.png,dev\n", Columns(split="part"),
         "data.source.columns.split: {0}, column 'part': expected train, val or test, found 'dev'. "
         "Correct the column, or set data.source.columns.split to null"),
        (b"file\na.png\nb.png\n./a.png\n", Columns(),
         "data.source.table: {0}: 'a.png' is in the rows 1 and 3. Keep one row a file"),
        (b"file\n/data/a.png\n", Columns(),
         "data.source.table: {0}: expected paths below {1} such as 'a.png', found only others, such as '/data/a.png'. "
         "Correct the column 'file'"),
        (b"file,kind\n", Columns(label="kind"),
         "data.source.table: {0}: expected a row for each image, found none"),
        (b"file,kind\na.png,\n", Columns(label="kind"),
         "data.source.columns.label: {0}, column 'kind': expected labels, found none in any row. "
         "Name another column, or set it to null"),
        (b"file,kind\na.png,gr\xfcn\n", Columns(label="kind"),
         "data.source.table: {0}: expected UTF-8, found the byte 0xfc in line 2; save it as UTF-8"),
        ("file,kind\na.png,1\n".encode("utf-16"), Columns(label="kind"),
         "data.source.table: {0}: expected UTF-8, found the byte 0xff in line 1; save it as UTF-8"),
        (b"file,kind\na.png,0.0067\nb.png,1\n", Columns(label="kind"),
         "data.source.columns.label: {0}, column 'kind': expected class names or whole numbers, found 0.0067; "
         "name it under columns.attributes instead"),
        (b"file,kind\na.png,1,2\n", Columns(label="kind"),
         "{0}: cannot be read as CSV (CSV parse error: Expected 2 columns, got 3: a.png,1,2). "
         "Put a whole copy in its place, or take it away"),
    ],
)  # fmt: skip
def test_a_wrong_table_is_explained(tmp_path: Path, content: bytes, columns: Columns, message: str) -> None:
    folder, path = put(tmp_path / "in", "a.png", "b.png"), tmp_path / "t.csv"
    path.write_bytes(content)
    with pytest.raises(UserError) as error:
        opened(folder, labels="table" if columns.label else "none", table=str(path), columns=columns)
    assert str(error.value) == message.format(path, folder)


def test_a_column_of_files_that_holds_no_text_is_explained(tmp_path: Path) -> None:
    pq.write_table(pa.table({"file": [1]}), tmp_path / "t.parquet")
    with pytest.raises(UserError, match=r"t.parquet: column 'file': expected text, found int64"):
        opened(put(tmp_path / "in", "a.png"), table=str(tmp_path / "t.parquet"))


@pytest.mark.parametrize(("name", "content"), [("t.csv", b""), ("t.parquet", b"PAR1 and so on")])
def test_a_damaged_table_is_named(tmp_path: Path, name: str, content: bytes) -> None:
    (tmp_path / name).write_bytes(content)
    with pytest.raises(UserError, match=rf"^{tmp_path / name}: cannot be read as [^\n]*$"):
        opened(put(tmp_path / "in", "a.png"), table=str(tmp_path / name))


def test_splits_are_folders_with_the_classes_inside(tmp_path: Path, capsys) -> None:
    names = ["Test/a/1.png", "train/a/1.png", "train/b/deep/2.png", "valid/b/3.png"]
    source = opened(put(tmp_path, *names, "loose.png"), labels="folders")
    assert (source.classes, source.official) == (("a", "b"), ("train", "val", "test"))
    found = {row["id"]: row for row in rows(source)}
    assert [found[name]["split"] for name in names] == ["test", "train", "train", "val"]
    assert [found[name]["label"] for name in names] == [0, 0, 1, 1]
    assert list(faults(source)) == ["loose.png"]
    assert capsys.readouterr().err == f"{tmp_path}: splits train, val, test from the names of the folders\n"


@pytest.mark.parametrize(
    ("names", "problem"),
    [
        (("train/a/1.png", "val/a/1.png"), "(train, val), and test is missing"),
        (("Val/a/1.png",), "(Val), and train and test is missing"),
        (("train/a/1.png", "test/1.png"), "(test, train), and test/1.png lies in no folder of a class"),
    ],
)
def test_splits_that_do_not_hold_classes_are_explained(tmp_path: Path, names: tuple[str, ...], problem: str) -> None:
    with pytest.raises(UserError) as error:
        opened(put(tmp_path, *names), labels="folders")
    assert str(error.value) == (
        f"data.source.labels: folders, but those in {tmp_path} are called as splits {problem}; expected train and "
        "test, and in each a folder for every class. Set data.source.path to one of them, or "
        "data.source.labels to none or table"
    )


def test_splits_are_taken_from_folders_without_labels_too(tmp_path: Path, capsys) -> None:
    folder = put(tmp_path / "in", "train/1.png", "test/x/2.png", "0.png")
    source = opened(folder)
    assert source.official == ("train", "test")
    assert [row["split"] for row in rows(source)] == ["train", "test", "train"]
    assert "splits train, test from the names of the folders" in capsys.readouterr().err
    table = write_csv(tmp_path / "t.csv", "file,y,part", "train/1.png,a,test", "test/x/2.png,b,train", "0.png,a,train")
    labelled = opened(folder, labels="table", table=table, columns=Columns(label="y"))
    assert [(row["split"], row["label"]) for row in rows(labelled)] == [("train", 0), ("test", 1), ("train", 0)]
    assert capsys.readouterr().err.count("names of the folders") == 1
    by_column = opened(folder, table=table, columns=Columns(split="part"))
    assert [row["split"] for row in rows(by_column)] == ["train", "train", "test"]
    assert capsys.readouterr().err == ""


def test_a_class_may_be_called_as_a_split_beside_others(tmp_path: Path) -> None:
    source = opened(put(tmp_path, "train/1.png", "test/2.png", "plane/3.png"), labels="folders")
    assert (source.classes, source.official) == (("plane", "test", "train"), ())
    assert opened(put(tmp_path / "val", "train/1.png")).official == ()


def test_an_image_of_a_format_that_is_not_read_is_a_row(tmp_path: Path) -> None:
    put(tmp_path, "a/1.png", "a/2.HEIC", "b/3.svg")
    source = opened(tmp_path, labels="folders")
    detail = "expected a format that Pillow reads here, found {}; convert it to JPEG or PNG"
    assert faults(source) == {
        "a/2.HEIC": ("unsupported_format", detail.format("HEIC")),
        "b/3.svg": ("unsupported_format", detail.format("SVG")),
    }
    (tmp_path / "a" / "1.png").unlink()
    with pytest.raises(UserError, match=r"found none; 2 images to convert to JPEG or PNG \(1 .heic, 1 .svg\)$"):
        opened(tmp_path)


@pytest.mark.parametrize("kind", ["PNG", "JPEG", "GIF", "WEBP", "BMP", "TIFF"])
def test_a_file_without_extension_is_an_image_where_it_begins_as_one(tmp_path: Path, kind: str) -> None:
    Image.new("RGB", (20, 20)).save(tmp_path / "image", kind)
    (tmp_path / "notes").write_text("BMW and others")
    (tmp_path / "table").write_bytes(png())
    os.mkfifo(tmp_path / "pipe")
    (tmp_path / "broken").symlink_to("nothing")
    assert "image" in ids(opened(tmp_path))
    assert ids(opened(tmp_path)) == ["image", "table"]


def test_a_class_has_one_name_however_its_letters_are_composed(tmp_path: Path) -> None:
    put(tmp_path, "\u00e9/1.png", "e\u0301/2.png", "f/3.png")
    source = opened(tmp_path, labels="folders")
    assert source.classes == ("f", "\u00e9")
    assert [row["label"] for row in rows(source)] == [1, 0, 1]
    given = opened(tmp_path, ("e\u0301", "f"), labels="folders")
    assert [row["label"] for row in rows(given)] == [0, 1, 0]


def test_a_table_names_files_however_their_letters_are_composed(tmp_path: Path) -> None:
    folder = put(tmp_path / "in", "e\u0301.png", "o\u0308.png", "\u00f6.png")
    table = write_csv(tmp_path / "t.csv", "file,n", "./\u00e9.png,1", "\u00f6.png,2", "o\u0308.png,3")
    source = opened(folder, table=table, columns=Columns(attributes=("n",)))
    assert faults(source) == {}
    assert [row["attributes"] for row in rows(source)] == [[1], [3], [2]]


def test_a_folder_for_nearly_every_image_is_no_class(tmp_path: Path) -> None:
    put(tmp_path, *(f"{number}/a.png" for number in range(1001)))
    with pytest.raises(
        UserError, match=r"found 1,001 labels: nearly every row has a label of its own. Set data.source"
    ):
        opened(tmp_path, labels="folders")


def test_files_are_read_from_a_relative_path_in_any_folder(tmp_path: Path, monkeypatch) -> None:
    put(tmp_path / "in", "a.png")
    monkeypatch.chdir(tmp_path)
    source = opened(Path("in"))
    monkeypatch.chdir("/")
    assert faults(source) == {}
