"""python -m pipeline inspect: what it counts, says and draws, against the arrays that the data were made from."""

import io
import json
import sys
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import matplotlib as mpl
import numpy as np
import pyarrow.parquet as pq
import pytest
from PIL import Image

from pipeline import files
from pipeline.__main__ import main
from pipeline.data import contact_sheet, scan, table
from pipeline.data.config import DataConfig, NumpySource, ReadConfig, ShardConfig
from pipeline.data.contact_sheet import drawable, fitted, save_contact_sheet
from pipeline.data.doubts import doubts
from pipeline.data.ingest import prepare
from pipeline.data.inspection import Channel, Inspection, inspect_path
from pipeline.data.ledger import EXAMPLES, read_ledger
from pipeline.data.quarantine import Entry, write_ledger
from pipeline.data.shape import Shape
from pipeline.data.shards import write_here
from pipeline.data.sources import open_source
from pipeline.errors import UserError
from pipeline.operate.inspect import describe

NAMES = ("cat", "кошка", "Straßenbahn mit Anhänger", "猫", "$x$")
ROWS, BAD = 300, 4


def make_data(
    folder: Path, images: np.ndarray, *, names: Sequence[str] = NAMES, attributes: np.ndarray | None = None
) -> Path:
    """A data folder of `images` [N, H, W, C], row i of class i modulo their number."""
    arrays: dict[str, Any] = {"images": images}
    if names:
        arrays["labels"] = np.arange(len(images)) % len(names)
    if attributes is not None:
        arrays["attributes"] = attributes
    folder.mkdir(parents=True)
    np.savez(folder / "set.npz", **arrays)
    source = NumpySource(
        kind="npz",
        path=str(folder / "set.npz"),
        labels="labels" if names else None,
        attributes=None if attributes is None else "attributes",
        attribute_names=() if attributes is None else ("size", "hue"),
    )
    config = DataConfig(source=source, validation_fraction=0.2, test_fraction=0.2, max_bad_fraction=1.0)
    prepare([open_source(source, tuple(names) or None, 2**20, folder)], config, folder / "data")
    return folder / "data"


def pictures(shape: tuple[int, ...], rows: int = ROWS) -> np.ndarray:
    return np.random.default_rng(0).integers(1, 250, (rows, *shape), np.uint8)


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """RGB images, two of them blank, some twice, some with attributes that are no numbers; with shards."""
    images = pictures((6, 5, 3))
    images[10], images[20] = (9, 8, 7), (1, 2, 3)
    images[100:103] = images[50:53]
    attributes = np.random.default_rng(1).normal(size=(ROWS, 2)).astype(np.float32)
    attributes[-BAD:, 1] = np.nan
    made = make_data(tmp_path_factory.mktemp("inspected") / "set", images, attributes=attributes)
    write_here(made, ShardConfig(seed=0, shard_bytes=80_000))
    return made


@pytest.fixture
def read(tmp_path: Path) -> ReadConfig:
    return ReadConfig(cache=str(tmp_path / "cache"))


@pytest.fixture
def found(data: Path, read: ReadConfig) -> Inspection:
    return inspect_path(str(data), 4, read)


def rows_of(data: Path, split: str) -> dict[str, np.ndarray]:
    kept = pq.read_table(data / "prepared", filters=[("split", "==", split)])
    flat = np.frombuffer(b"".join(kept["image"].to_pylist()), np.uint8)
    return {
        "label": kept["label"].to_numpy(),
        "image": flat.reshape(len(kept), 6, 5, 3),
        "attributes": np.array(kept["attributes"].to_pylist()),
    }


def test_counts_and_figures_are_those_of_the_rows(data: Path, found: Inspection) -> None:
    parts = {split: rows_of(data, split) for split in ("train", "val", "test")}
    assert found.counts == {split: len(part["label"]) for split, part in parts.items()}
    assert found.labels.tolist() == [np.bincount(part["label"], minlength=5).tolist() for part in parts.values()]
    values = np.concatenate([part["attributes"] for part in parts.values()])
    for place, attribute in enumerate(found.attributes):
        column = values[:, place]
        assert attribute[1:] == pytest.approx((column.min(), column.mean(), column.max()))
    train = parts["train"]["image"].reshape(-1, 3).astype(float)
    expected = (train.mean(0), train.std(0), train.min(0), train.max(0))
    assert np.array(found.channels).T.tolist() == [pytest.approx(list(values)) for values in expected]
    assert [attribute.name for attribute in found.attributes] == ["size", "hue"]
    assert (found.constant, found.duplicates, found.rows_in, found.encoding) == (2, 3, ROWS, "raw")


def test_rows_put_aside_come_with_the_first_of_each_reason(data: Path, found: Inspection) -> None:
    (reason,) = found.reasons
    assert (reason.error, reason.rows, len(reason.examples)) == ("attribute_not_finite", BAD, EXAMPLES)
    assert "nan in hue" in reason.examples[0].detail
    assert sum(reason.rows for reason in found.reasons) == ROWS - sum(found.counts.values())


def test_examples_are_spread_over_the_training_rows_of_their_class(data: Path, found: Inspection) -> None:
    train = rows_of(data, "train")
    for label, images in enumerate(found.examples):
        rows = np.flatnonzero(train["label"] == label)
        assert np.array_equal(images, train["image"][rows[np.arange(4) * len(rows) // 4]])


def test_rows_may_come_in_any_portions(data: Path, found: Inspection, monkeypatch: pytest.MonkeyPatch) -> None:
    whole = table.read
    monkeypatch.setattr(
        table, "read", lambda *what: (batch.slice(at, 7) for batch in whole(*what) for at in range(0, len(batch), 7))
    )
    again = inspect_path(str(data), 4, ReadConfig())
    assert list(describe(again)) == list(describe(found))
    assert all(map(np.array_equal, again.examples, found.examples))


def test_shards_say_the_same(data: Path, found: Inspection, read: ReadConfig) -> None:
    shards = inspect_path(str(data / "shards"), 4, read)
    assert shards.labels.tolist() == found.labels.tolist()
    for here, there in zip(
        (*shards.channels, *(a[1:] for a in shards.attributes)),
        (*found.channels, *(a[1:] for a in found.attributes)),
        strict=True,
    ):
        assert tuple(here) == pytest.approx(tuple(there))
    assert (shards.constant, shards.duplicates, shards.rows_in) == (2, None, None)
    assert shards.tars == found.tars
    assert sum(tars.number for tars in shards.tars) == len([*(data / "shards").rglob("*.tar")])
    assert shards.digest == json.loads((data / "shards/manifest.json").read_text())["digest"]
    assert "duplicates and rows put aside: in the data folder, not in the shards" in list(describe(shards))


def test_of_shards_elsewhere_only_the_images_shown_are_read(data: Path, read: ReadConfig) -> None:
    shards = inspect_path((data / "shards").as_uri(), 3, read)
    assert [len(images) for images in shards.examples] == [3] * 5
    assert (shards.constant, shards.channels[0].low) == (None, None)
    assert any("only the images of the contact sheet were read" in line for line in describe(shards))


def test_generations_are_counted_apart(found: Inspection) -> None:
    first, second = {"train": 90, "val": 20, "test": 10}, {"train": 9, "val": 2, "test": 1}
    text = "\n".join(describe(replace(found, generations=(first, second))))
    assert "split  rows   share  source  append 1" in text
    assert "train    99  75.0 %      90         9" in text


def test_description_is_aligned_and_whole(found: Inspection) -> None:
    text = "\n".join(describe(found))
    lines = text.splitlines()
    assert lines[0] == f"{found.name} {found.digest[:12]}"
    assert lines[1] == "296 images, 6 x 5 RGB"
    assert "put aside: 4 of 300 rows" in lines
    assert "duplicates: 3 images equal another one of their split" in lines
    assert "duplicates: none" in list(describe(replace(found, duplicates=0)))
    start = next(number for number, line in enumerate(lines) if line.startswith("class"))
    shares = [line.index("%") + ("猫" in line) for line in lines[start + 1 : start + 6]]  # its letter is two columns
    assert len(set(shares)) == 1
    assert not any(line != line.rstrip() for line in lines)
    assert "shards, raw" in text


def test_many_classes_are_cut_short(found: Inspection) -> None:
    labels = np.ones((3, 45), np.int64)
    text = "\n".join(describe(replace(found, classes=tuple(f"c{n}" for n in range(45)), labels=labels)))
    assert "\nc29 " in text
    assert "\nc30 " not in text
    assert "and 15 more classes" in text


def test_nothing_that_a_terminal_obeys_is_printed(found: Inspection) -> None:
    entries = (Entry("\x1b]0;x\x07", "a\nb", "odd\x1b[31m", "\udc80 and \r"),)
    hostile = replace(
        found, name="\x1b[2J", classes=("a\nb", *NAMES[1:]), reasons=(found.reasons[0]._replace(examples=entries),)
    )
    text = "".join(describe(hostile))
    assert text.isprintable()
    assert "a\\nb" in text
    assert "\\udc80" in text


def changed(found: Inspection, **changes: Any) -> Inspection:
    """With some counts changed: `labels` as [splits, classes]."""
    if "labels" in changes:
        changes["labels"] = np.array(changes["labels"])
        changes["classes"] = tuple("abcdefghij"[: changes["labels"].shape[1]])
        rows = changes["labels"].sum(1).tolist()
        changes["generations"] = (dict(zip(("train", "val", "test"), rows, strict=True)),)
    return replace(found, **{"constant": 0, "duplicates": 0, **changes})


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"labels": [[90, 0], [10, 9], [10, 3]]}, "no training image of 'b' (12 in val and test)"),
        ({"labels": [[90] + 8 * [0], [10] * 9, [10] * 9]}, "'b', 'c', 'd', 'e', 'f' and 3 more classes"),
        ({"labels": [[90, 90], [5, 4], [10, 3]]}, "the val split has 9 images, too few"),
        ({"labels": [[90, 90], [5, 4], [10, 3]]}, "raise data.validation_fraction, or add images"),
        ({"labels": [[90, 90], [5, 9], [1, 0]]}, "the test split has 1 image, too few"),
        ({"labels": [[4, 4], [9, 9], [9, 9]]}, "lower data.validation_fraction and data.test_fraction"),
        ({"labels": [[900, 9], [9, 9], [9, 9]]}, "'a' has 900 training images and 'b' 9;"),
        ({"constant": 1}, "1 image with the same value in every pixel"),
        ({"channels": (Channel(0.5, 0.5, 0, 1),)}, "no pixel of a training image is above 1 of 255"),
        ({"duplicates": 40}, "40 of 296 images repeat another one exactly"),
        ({"remarks": ("mend it",)}, "mend it"),
    ],
)
def test_what_looks_wrong_is_said_with_the_remedy(found: Inspection, changes: dict[str, Any], said: str) -> None:
    assert list(doubts(changed(found, labels=[[90, 90], [30, 30], [28, 28]]))) == []
    if "labels" not in changes:
        changes = {"labels": [[90, 90], [30, 30], [28, 28]], **changes}
    lines = list(doubts(changed(found, **changes)))
    assert any(said in line for line in lines), lines


def test_shards_of_other_rows_and_damaged_ones_are_noticed(tmp_path: Path, read: ReadConfig) -> None:
    made = make_data(tmp_path / "set", pictures((4, 4, 1), 100), names="ab")
    write_here(made, ShardConfig(seed=0, shard_bytes=80_000))
    assert inspect_path(str(made), 2, read).remarks == ()
    facts = files.read_json(made / "dataset.json")
    files.write_json(made / "dataset.json", {**facts, "digest": "0" * 64})
    assert "holds other rows" in inspect_path(str(made), 2, read).remarks[0]
    (made / "shards/manifest.json").write_text("{")
    assert "not a manifest" in inspect_path(str(made), 2, read).remarks[0]


@pytest.mark.parametrize(
    ("spoil", "message"),
    [
        (lambda data: (data / "dataset.json").write_text("{"), r"dataset.json: not valid JSON.*dvc repro -f ingest"),
        (lambda data: (data / "dataset.json").write_text("{}"), r"dataset.json: no key 'name'.*dvc repro -f ingest"),
        (lambda data: (data / "quarantine.parquet").unlink(), r"quarantine.parquet: no such file.*dvc repro ingest"),
        (lambda data: (data / "quarantine.parquet").write_text("x"), r"quarantine.parquet: not a ledger"),
        (lambda data: (data / "prepared/part-00000.parquet").unlink(), r"expected 60 rows .* found 0; .*dvc repro -f"),
    ],
)
def test_a_damaged_data_folder_is_an_error(tmp_path: Path, read: ReadConfig, spoil: Any, message: str) -> None:
    made = make_data(tmp_path / "set", pictures((2, 2, 1), 60), names="ab")
    spoil(made)
    with pytest.raises(UserError, match=message):
        inspect_path(str(made), 2, read)


def test_what_is_no_data_folder_is_an_error(tmp_path: Path, read: ReadConfig) -> None:
    (tmp_path / "photos").mkdir()
    for name in "edcba":
        (tmp_path / "photos" / name).touch()
    for path, there in (("nowhere", "nothing"), ("photos", "a, b, c, d, ..."), ("photos/a", "a file")):
        with pytest.raises(UserError, match=rf"{path}: expected a data folder .*manifest.json.*; found {there}\. Name"):
            inspect_path(str(tmp_path / path), 2, read)
    with pytest.raises(UserError, match=r"no-such-place"):
        inspect_path(f"file://{tmp_path}/no-such-place", 2, read)


def test_a_ledger_of_other_columns_is_an_error(tmp_path: Path) -> None:
    import pyarrow as pa

    pq.write_table(pa.table({"id": ["a"]}), tmp_path / "ledger")
    with pytest.raises(UserError, match=r"ledger: not a ledger"):
        read_ledger(tmp_path / "ledger")
    write_ledger(tmp_path / "ledger", [])
    assert read_ledger(tmp_path / "ledger") == ()


def opened(path: Path) -> np.ndarray:
    with Image.open(path) as image:
        return np.asarray(image.convert("RGB"))


def contains(picture: np.ndarray, block: np.ndarray) -> bool:
    """Whether `block` [h, w, 3] occurs in `picture`."""
    height, width = block.shape[:2]
    windows = np.lib.stride_tricks.sliding_window_view(picture, (height, width), axis=(0, 1))
    starts = np.argwhere((windows[..., 0, 0] == block[0, 0]).all(-1))
    return any(np.array_equal(picture[y : y + height, x : x + width], block) for y, x in starts)


def test_contact_sheet_shows_the_pixels_themselves(found: Inspection, tmp_path: Path) -> None:
    save_contact_sheet(found, tmp_path / "sheet.png", 4)
    picture = opened(tmp_path / "sheet.png")
    factor = round(contact_sheet.CELL_PIXELS / 6)
    for images in found.examples:
        for image in images:
            assert contains(picture, image.repeat(factor, 0).repeat(factor, 1))


def test_contact_sheet_has_the_same_bytes_whatever_the_settings(found: Inspection, tmp_path: Path) -> None:
    save_contact_sheet(found, tmp_path / "one.png", 4)
    with mpl.rc_context({"font.size": 30, "font.family": "serif", "savefig.dpi": 10, "text.usetex": True}):
        save_contact_sheet(found, tmp_path / "two.png", 4)
    assert (tmp_path / "one.png").read_bytes() == (tmp_path / "two.png").read_bytes()


@pytest.mark.parametrize("shape", [(7, 9, 1), (4, 4, 2), (4, 4, 4), (1, 40, 1), (300, 200, 3)])
def test_contact_sheet_of_any_shape_without_classes(
    tmp_path: Path, read: ReadConfig, shape: tuple[int, ...], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", None)  # other tests leave their limit
    found = inspect_path(str(make_data(tmp_path / "set", pictures(shape, 60), names=())), 5, read)
    assert found.shape == Shape(*shape)
    assert len(found.examples[0]) == min(5 * scan.ROWS_WITHOUT_CLASSES, found.counts["train"])
    assert max(found.examples[0].shape[1:3]) <= scan.THUMBNAIL
    save_contact_sheet(found, tmp_path / "sheet.png", 5)
    assert opened(tmp_path / "sheet.png").shape[1] >= contact_sheet.MIN_WIDTH
    assert "no classes" in list(describe(found))


def test_a_class_without_training_images_has_an_empty_row(found: Inspection, tmp_path: Path) -> None:
    none = replace(found, examples=(found.examples[0][:0], *found.examples[1:]))
    save_contact_sheet(none, tmp_path / "sheet.png", 4)
    cell = np.full((6, 5, 3), contact_sheet.CELL, np.uint8)
    assert contains(opened(tmp_path / "sheet.png"), cell)


def test_letters_that_the_font_lacks_are_escaped() -> None:
    assert drawable("кошка γάτα naïve $x$") == "кошка γάτα naïve $x$"
    assert drawable("猫\n\udc80") == "\\u732b\\n\\udc80"


def test_long_names_end_in_an_ellipsis() -> None:
    assert fitted("short", 9, 200) == "short"
    shown = fitted("a very long name " * 9, 9, 200)
    assert shown.endswith("…")
    assert contact_sheet._width(shown, 9) <= 200 < contact_sheet._width(f"{shown[:-1]} long…", 9)


@pytest.fixture
def project(tmp_path: Path, params_text: str, monkeypatch: pytest.MonkeyPatch) -> Path:
    (tmp_path / "params.yaml").write_text(params_text)
    monkeypatch.chdir(tmp_path)
    return tmp_path


def test_command_prints_and_draws(data: Path, project: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["inspect", str(data), "--images", "3", "--out", "new/sheet.png"]) == 0
    out, err = capsys.readouterr()
    assert "█" in out
    assert out.endswith("\n\ncontact sheet: new/sheet.png\n")
    assert err == ""
    assert opened(project / "new/sheet.png").shape[2] == 3


def test_command_prints_where_not_every_letter_can_be_shown(
    data: Path, project: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    sink = io.TextIOWrapper(io.BytesIO(), encoding="ascii")
    monkeypatch.setattr(sys, "stdout", sink)
    assert main(["inspect", str(data)]) == 0
    sink.flush()
    text = sink.buffer.getvalue().decode("ascii")  # type: ignore[attr-defined]
    assert "####" in text
    assert "\\u732b" in text


@pytest.mark.parametrize(
    ("argv", "message"),
    [
        ([], "error: data: expected a data folder"),
        (["--out", "sheet.jpg"], "error: --out sheet.jpg: expected a name that ends in .png\n"),
    ],
)
def test_mistakes_are_one_line(
    project: Path, capsys: pytest.CaptureFixture[str], argv: list[str], message: str
) -> None:
    assert main(["inspect", *argv]) == 1
    err = capsys.readouterr().err
    assert err.startswith(message)
    assert err.count("\n") == 1


def test_a_sheet_that_cannot_be_written_is_an_error(
    data: Path, project: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (project / "taken.png").mkdir()
    assert main(["inspect", str(data), "--out", "taken.png"]) == 1
    assert "error: --out taken.png: cannot be written (" in capsys.readouterr().err


@pytest.mark.parametrize("number", ["0", "51", "-1", "x", "²"])
def test_number_of_images_has_limits(project: Path, capsys: pytest.CaptureFixture[str], number: str) -> None:
    with pytest.raises(SystemExit, match="2"):
        main(["inspect", f"--images={number}"])
    assert "expected an integer from 1 to 50" in capsys.readouterr().err
