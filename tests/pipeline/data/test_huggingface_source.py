"""Data sets that the package `datasets` saved: read as it reads them; what is said of those not whole."""

import io
import json
import pickle
from pathlib import Path
from random import Random
from typing import Any

import pyarrow as pa
import pytest
from PIL import Image
from source_rows import column_of as column
from source_rows import rows_of as rows

from pipeline.data.config import Columns, HuggingFaceSource
from pipeline.data.sources.base import Source
from pipeline.data.sources.huggingface import open_huggingface
from pipeline.errors import UserError


def png(value: int) -> bytes:
    file = io.BytesIO()
    Image.new("L", (3, 2), value).save(file, "PNG")
    return file.getvalue()


def names_in(folder: Path) -> list[str]:
    return [entry["filename"] for entry in json.loads((folder / "state.json").read_text())["_data_files"]]


def change(path: Path, **values: Any) -> None:
    path.write_text(json.dumps({**json.loads(path.read_text()), **values}))


def save(folder: Path, batches: list[list[dict[str, Any]]], names: list[str] | None = None) -> Path:
    """One file, written as `datasets` writes it (a test below compares them)."""
    folder.mkdir(parents=True, exist_ok=True)
    image = pa.struct({"bytes": pa.binary(), "path": pa.string()})
    known = {
        "score": pa.float64(),
        "image": image,
        "label": pa.int64(),
        "part": pa.string(),
        "clip": pa.list_(pa.float32()),
    }
    schema = pa.schema({name: known[name] for name in (batches[0][0] if batches else known)})
    with pa.OSFile(str(folder / "data-00000-of-00001.arrow"), "wb") as file, pa.ipc.new_stream(file, schema) as stream:
        for batch in batches:
            stream.write_batch(pa.RecordBatch.from_pylist(batch, schema))
    features = {"image": {"_type": "Image"}, "label": {"names": names, "_type": "ClassLabel"} if names else {}}
    (folder / "dataset_info.json").write_text(json.dumps({"features": features}))
    (folder / "state.json").write_text(json.dumps({"_data_files": [{"filename": "data-00000-of-00001.arrow"}]}))
    return folder


def save_dict(folder: Path, **splits: list[list[dict[str, Any]]]) -> Path:
    for name, batches in splits.items():
        save(folder / name, batches)
    (folder / "dataset_dict.json").write_text(json.dumps({"splits": [*splits]}))
    return folder


def outside(folder: Path) -> None:
    """The file of a data set becomes a link out of its folder."""
    path = folder / "data-00000-of-00001.arrow"
    path.rename(folder.parent / "elsewhere.arrow")
    path.symlink_to(folder.parent / "elsewhere.arrow")


def made(*values: int, **more: Any) -> list[dict[str, Any]]:
    return [{"image": {"bytes": png(value), "path": None}, "label": value % 2, **more} for value in values]


def opened(folder: Path, classes: tuple[str, ...] | None = None, **columns: Any) -> Source:
    config = HuggingFaceSource(kind="huggingface", path=str(folder), columns=Columns(**columns))
    return open_huggingface(config, classes)


@pytest.fixture
def datasets(monkeypatch: pytest.MonkeyPatch, tmp_path: Path):
    monkeypatch.setenv("HF_HOME", str(tmp_path / "home"))
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    package = pytest.importorskip("datasets")
    package.disable_progress_bars()
    return package


def images(datasets, count: int):
    values = {
        "image": [Image.new("L", (3, 2), value) for value in range(count)],
        "label": [value % 2 for value in range(count)],
        "age": [value / 4 for value in range(count)],
        "clip": [[value, 1.0] for value in range(count)],
    }
    features = datasets.Features(
        image=datasets.Image(),
        label=datasets.ClassLabel(names=["cat", "dog"]),
        age=datasets.Value("float64"),
        clip=datasets.List(datasets.Value("float32"), length=2),
    )
    return datasets.Dataset.from_dict(values, features=features)


def test_what_datasets_saves_is_read_as_it_reads_it(datasets, tmp_path: Path) -> None:
    images(datasets, 7).save_to_disk(tmp_path / "saved", num_shards=3)
    source = opened(tmp_path / "saved", label="label", attributes=("age",), embedding="clip")
    assert (source.classes, source.embedding, source.official) == (("cat", "dog"), 2, ())
    theirs = datasets.load_from_disk(str(tmp_path / "saved"))
    ours = rows(source)
    assert [row["label"] for row in ours] == list(theirs["label"])
    assert [row["attributes"] for row in ours] == [[age] for age in theirs["age"]]
    assert [row["embedding"] for row in ours] == list(theirs["clip"])
    for row, image in zip(ours, theirs["image"], strict=True):
        assert Image.open(io.BytesIO(row["image"])).tobytes() == image.tobytes()
    assert [row["id"] for row in ours] == [f"data:{number}" for number in range(7)]
    assert sorted({row["source"] for row in ours}) == names_in(tmp_path / "saved") == sorted(source.digests)


def test_a_shuffled_selection_that_datasets_saves_is_read_in_its_order(datasets, tmp_path: Path) -> None:
    chosen = images(datasets, 7).shuffle(seed=1).select([5, 0, 3])
    datasets.DatasetDict(train=chosen, validation=chosen, test=chosen).save_to_disk(tmp_path / "saved")
    source = opened(tmp_path / "saved", attributes=("age",))
    assert source.official == ("train", "val", "test")
    assert column(source, "attributes") == [[age] for age in chosen["age"]] * 3
    assert column(source, "split") == ["train"] * 3 + ["val"] * 3 + ["test"] * 3


def test_the_files_of_these_tests_are_those_of_datasets(datasets, tmp_path: Path) -> None:
    rows_ = made(0, 1, 2)
    features = datasets.Features(image=datasets.Image(), label=datasets.ClassLabel(names=["a", "b"]))
    datasets.Dataset.from_list(rows_, features=features).save_to_disk(tmp_path / "theirs")
    save(tmp_path / "ours", [rows_], ["a", "b"])
    ours, theirs = (opened(tmp_path / name, label="label") for name in ("ours", "theirs"))
    assert rows(ours) == rows(theirs)
    assert ours.classes == theirs.classes == ("a", "b")


def test_the_splits_of_a_dict_are_kept(tmp_path: Path) -> None:
    source = opened(save_dict(tmp_path, train=[made(0, 1), made(2)], test=[made(3)]), label="label")
    assert source.official == ("train", "test")
    assert column(source, "id") == ["train:0", "train:1", "train:2", "test:0"]
    assert column(source, "split") == ["train", "train", "train", "test"]
    assert column(source, "image") == [png(value) for value in range(4)]
    assert column(source, "label") == [0, 1, 0, 1]
    assert column(source, "source")[3] == "test/data-00000-of-00001.arrow"


def test_without_train_and_test_the_rows_are_split_anew(tmp_path: Path, capsys) -> None:
    source = opened(save_dict(tmp_path, train=[made(0)], extra=[made(1)]))
    assert source.official == ()
    assert column(source, "split") == [None, None]
    assert capsys.readouterr().err == f"{tmp_path}: does not have both train and test; the rows are split anew\n"


def test_a_column_of_splits_counts_more_than_the_folders(tmp_path: Path) -> None:
    folder = save_dict(tmp_path, train=[made(0, part="test")], test=[made(1, part="train")])
    assert column(opened(folder, split="part"), "split") == ["test", "train"]


def test_parts_are_whole_record_batches_that_are_read_alone_in_any_order(tmp_path: Path, monkeypatch) -> None:
    monkeypatch.setattr("pipeline.data.sources.tables.PARTITION_ROWS", 5)
    monkeypatch.setattr("pipeline.data.sources.image_columns.BATCH_BYTES", 2 * len(png(0)))
    source = opened(save(tmp_path, [made(0, 1), made(2, 3, 4), made(5), made(*range(6, 14)), made(14)]))
    assert [part.rows for part in source.partitions] == [5, 1, 8, 1]
    assert max(batch.num_rows for batch in source.partitions[2].batches()) <= 3
    assert column(source, "image") == [png(value) for value in range(15)]
    assert column(source, "id") == [f"data:{row}" for row in range(15)]
    parts = pickle.loads(pickle.dumps(source.partitions))
    alone = [[row for batch in part.batches() for row in batch.to_pylist()] for part in reversed(parts)]
    assert [row for part in reversed(alone) for row in part] == rows(source)


def test_a_row_with_only_a_path_is_kept_with_the_reason(tmp_path: Path) -> None:
    (tmp_path / "x.png").write_bytes(png(0))
    only_path = {"image": {"bytes": None, "path": str(tmp_path / "x.png")}, "label": 0}
    found = rows(opened(save(tmp_path / "d", [[*made(1), only_path]])))
    assert [row["error"] for row in found] == [None, "image_missing"]
    assert (found[1]["image"], found[1]["detail"]) == (None, "the bytes are not in the file, only a path")


def test_given_classes_are_matched_by_name(tmp_path: Path) -> None:
    source = opened(save(tmp_path, [made(0, 1)], ["cat", "dog"]), ("dog", "cat"), label="label")
    assert source.classes == ("dog", "cat")
    assert column(source, "label") == [1, 0]


def test_splits_with_other_class_names_are_not_mixed(tmp_path: Path) -> None:
    folder = save_dict(tmp_path, train=[made(0, 1)], test=[made(0, 1)])
    save(folder / "train", [made(0, 1)], ["cat", "dog"])
    save(folder / "test", [made(0, 1)], ["dog", "cat"])
    with pytest.raises(UserError) as error:
        opened(folder, label="label")
    assert str(error.value) == (
        "data.source.path: test/data-00000-of-00001.arrow differs from train/data-00000-of-00001.arrow: its labels "
        "have other class names. Write all files alike"
    )


def test_the_digest_changes_with_the_content(tmp_path: Path) -> None:
    one = opened(save(tmp_path / "1", [made(0, 1)])).digests
    assert opened(save(tmp_path / "2", [made(0, 1)])).digests == one
    assert opened(save(tmp_path / "3", [made(1, 0)])).digests != one


SPLIT = "data.source.path: {0}: expected the splits train, validation and test, found 'unsupervised' too. "


@pytest.mark.parametrize(
    ("make", "columns", "message"),
    [
        (lambda path: None, {},
         "data.source.path: {0}: no such folder; set it to what ds.save_to_disk(...) wrote"),
        (lambda path: path.mkdir(), {},
         "data.source.path: {0}: expected state.json, as ds.save_to_disk(...) writes it; found none. "
         "For a folder of Parquet files use kind: parquet"),
        (lambda path: change(save(path, [made(0)]) / "state.json", _indices_files=[{"filename": "indices.arrow"}]), {},
         "data.source.path: {0}: its rows were selected or shuffled, and the files still hold the old order. "
         "Save it again: ds.flatten_indices().save_to_disk(...)"),
        (lambda path: change(save(path, [made(0)]) / "state.json", _data_files=[{"filename": "../x.arrow"}]), {},
         "{0}/state.json: expected the names of data files, found [{{'filename': '../x.arrow'}}]. Save it again"),
        (lambda path: change(save(path, [made(0)]) / "state.json", _data_files=5), {},
         "{0}/state.json: expected the names of data files, found 5. Save it again"),
        (lambda path: change(save(path, [made(0)]) / "state.json", _data_files=[{"filename": "\ud800"}]), {},
         "{0}/state.json: expected the names of data files, found [{{'filename': '\\ud800'}}]. Save it again"),
        (lambda path: outside(save(path, [made(0)])), {},
         "{0}/data-00000-of-00001.arrow: a link to a place outside {0} is not followed; put a copy there"),
        (lambda path: change(save(path, [made(0)]) / "state.json", _data_files=None), {},
         "{0}/state.json: expected the names of data files, found None. Save it again"),
        (lambda path: (save(path, [made(0)]) / "state.json").write_text("[]"), {},
         "{0}/state.json: expected an object, found list. Save the data set again"),
        (lambda path: change(save_dict(path, train=[made(0)]) / "dataset_dict.json", splits=["../train"]), {},
         "{0}/dataset_dict.json: expected the names of splits, found ['../train']. Save it again"),
        (lambda path: save_dict(path, train=[made(0)], test=[made(0)], unsupervised=[made(0)]), {},
         SPLIT + "Save it without: del ds['unsupervised']"),
        (lambda path: save(path, [made(0)]), {"label": "lable"},
         "data.source.columns.label: data-00000-of-00001.arrow: no column 'lable'; did you mean 'label'?"),
        (lambda path: save(path, []), {}, "data.source.path: {0}: no rows in it. Save a data set that has some"),
        (lambda path: save(path, []), {"label": "label"},
         "data.source.path: {0}: no rows in it. Save a data set that has some"),
        (lambda path: save(path, [[{**row, "clip": [1.0]} for row in made(0)]]), {"label": "clip"},
         "data.source.columns.label: data-00000-of-00001.arrow: column 'clip': expected numbers or text, found "
         "list<item: float>"),
        (lambda path: save(path, [[{"label": 1}]]), {},
         "data.source.image: data-00000-of-00001.arrow: no column 'image'; known: label"),
        (lambda path: save_dict(path, train=[made(0)], test=[[{"image": None}]]), {"label": "label"},
         "data.source.path: test/data-00000-of-00001.arrow differs from train/data-00000-of-00001.arrow: "
         "no column 'label'; known: image. Write all files alike"),
    ],
)  # fmt: skip
def test_a_wrong_data_set_is_explained(tmp_path: Path, make, columns: dict[str, Any], message: str) -> None:
    folder = tmp_path / "saved"
    make(folder)
    with pytest.raises(UserError) as error:
        opened(folder, **columns)
    assert str(error.value) == message.format(folder)


def test_a_column_without_images_is_explained(tmp_path: Path) -> None:
    save(tmp_path, [made(0)])
    config = HuggingFaceSource(kind="huggingface", path=str(tmp_path), image="label")
    with pytest.raises(UserError) as error:
        open_huggingface(config, None)
    assert str(error.value) == (
        "data.source.image: data-00000-of-00001.arrow: column 'label': expected image files as bytes or as "
        "{bytes, path}, found int64. Cast the column: ds.cast_column(NAME, Image())"
    )


def test_a_file_cut_anywhere_is_named_and_never_read_in_part(tmp_path: Path) -> None:
    folder = save(tmp_path, [made(number) for number in range(4)])
    path = folder / "data-00000-of-00001.arrow"
    whole = path.read_bytes()
    for length in range(0, len(whole), 8):
        path.write_bytes(whole[:length])
        with pytest.raises(UserError, match=rf"^{path}: cannot be read as an Arrow stream \([^\n]*$"):
            opened(folder, label="label")


def test_an_end_in_the_middle_of_a_file_is_an_error(tmp_path: Path) -> None:
    path = save(tmp_path, [made(0)]) / "data-00000-of-00001.arrow"
    path.write_bytes(path.read_bytes() + path.read_bytes())
    with pytest.raises(UserError, match=r"cannot be read as an Arrow stream \(it goes on after its end\)"):
        opened(tmp_path)


@pytest.mark.parametrize("seed", range(5))
def test_damaged_bytes_give_rows_or_an_error_never_a_crash(tmp_path: Path, seed: int) -> None:
    folder = save(tmp_path, [made(0, 1, part="train", clip=[1.0, 2.0]), made(2, part="test", clip=[1.0, 2.0])])
    path = folder / "data-00000-of-00001.arrow"
    whole, random = path.read_bytes(), Random(seed)
    for _ in range(20):
        damaged = bytearray(whole)
        for _ in range(random.choice([1, 3, 10])):
            damaged[random.randrange(len(damaged))] = random.randrange(256)
        path.write_bytes(damaged)
        try:
            outcome = len(rows(opened(folder, label="label", split="part", embedding="clip")))
        except UserError as error:
            outcome = str(error)
        assert outcome == 3 or str(tmp_path) in outcome or path.name in outcome


def test_a_file_that_is_missing_is_named(tmp_path: Path) -> None:
    path = save(tmp_path, [made(0)]) / "data-00000-of-00001.arrow"
    source = opened(tmp_path)
    path.unlink()
    for use in (lambda: opened(tmp_path), lambda: rows(source)):
        with pytest.raises(UserError, match=rf"^{path}: cannot be read as an Arrow stream \(.*No such file"):
            use()


def test_a_file_that_changed_since_is_named(tmp_path: Path) -> None:
    source = opened(save(tmp_path, [made(0), made(1)]))
    save(tmp_path, [made(0)])
    with pytest.raises(UserError, match=r"data-00000-of-00001.arrow: expected 2 rows, found 1. Start again"):
        rows(source)


def test_measurements_are_no_labels(tmp_path: Path) -> None:
    folder = save(tmp_path / "saved", [[{**row, "score": 0.25} for row in made(0, 1)]])
    with pytest.raises(UserError, match=r"column 'score': expected class names or whole numbers, found 0.25; name it"):
        opened(folder, label="score")


def test_messages_have_the_path_that_the_user_gave(tmp_path: Path, monkeypatch) -> None:
    file = save(tmp_path / "in", [made(0, 1)]) / "data-00000-of-00001.arrow"
    monkeypatch.chdir(tmp_path)
    (part,) = opened(Path("in")).partitions
    monkeypatch.chdir("/")
    assert sum(batch.num_rows for batch in part.batches()) == 2, "another process reads it from elsewhere"
    file.write_bytes(b"")
    with pytest.raises(UserError, match=r"^in/data-00000-of-00001.arrow: cannot be read as an Arrow stream"):
        list(part.batches())
