"""Arrays from .npy and .npz files and the Frey face: what their rows are, and what each mistake is called."""

import hashlib
import io
import zipfile
from collections.abc import Callable
from pathlib import Path
from random import Random
from typing import Any

import numpy as np
import pyarrow as pa
import pytest
from scipy.io import savemat
from source_rows import table_of as rows

from pipeline.data.config import FreyFaceSource, NumpySource
from pipeline.data.sources import npy as npy_files
from pipeline.data.sources import numpy_arrays
from pipeline.data.sources.base import Source
from pipeline.data.sources.frey_face import open_frey_face
from pipeline.data.sources.npy import parse_npy
from pipeline.data.sources.numpy_arrays import open_numpy, to_uint8
from pipeline.errors import UserError

IMAGES = np.random.default_rng(0).integers(0, 256, (5, 3, 4), np.uint8)


def pixels(table: pa.Table) -> list[np.ndarray | None]:
    return [None if image is None else np.frombuffer(image, np.uint8) for image in table["image"].to_pylist()]


Opener = Callable[..., Source]


@pytest.fixture(params=["npz", "npy"])
def opened(request: pytest.FixtureRequest, tmp_path: Path) -> Opener:
    """Opens arrays, stored in one or the other way."""

    def npz(classes: tuple[str, ...] | None = None, names: tuple[str, ...] = (), **arrays: Any) -> Source:
        np.savez(tmp_path / "toys.npz", **arrays)
        fields: Any = {field: field for field in arrays}
        config = NumpySource(kind="npz", path=str(tmp_path / "toys.npz"), attribute_names=names, **fields)
        return open_numpy(config, classes, tmp_path / "downloads")

    def npy(classes: tuple[str, ...] | None = None, names: tuple[str, ...] = (), **arrays: Any) -> Source:
        for field, array in arrays.items():
            np.save(tmp_path / ("toys.npy" if field == "images" else f"{field}.npy"), array)
        fields: Any = {field: f"{field}.npy" for field in arrays if field != "images"}
        config = NumpySource(kind="npy", path=str(tmp_path / "toys.npy"), attribute_names=names, **fields)
        return open_numpy(config, classes, tmp_path / "downloads")

    return npz if request.param == "npz" else npy


def test_every_field_comes_back_from_both_kinds_of_file(opened: Opener) -> None:
    attributes, embeddings = np.arange(10.0).reshape(5, 2), np.ones((5, 3), np.float16)
    source = opened(
        images=IMAGES,
        labels=np.array(["cat", "dog", "cat", "", "dog"]),
        attributes=attributes,
        embeddings=embeddings,
        groups=np.array([7, 7, 8, 8, 9]),
        names=("size", "age"),
    )
    assert (source.name, source.pixels, source.classes) == ("toys", (3, 4, 1), ("cat", "dog"))
    assert (source.attributes, source.embedding, source.rows) == (("size", "age"), 3, 5)
    table = rows(source)
    assert table["id"].to_pylist() == [f"toys-{row:06d}" for row in range(5)]
    np.testing.assert_array_equal(np.stack(pixels(table)), IMAGES.reshape(5, -1))
    assert table["label"].to_pylist() == [0, 1, 0, None, 1]
    np.testing.assert_array_equal(table["attributes"].to_pylist(), attributes)
    np.testing.assert_array_equal(table["embedding"].to_pylist(), embeddings)
    assert table["group"].to_pylist() == ["7", "7", "8", "8", "9"]
    assert table["error"].null_count == table["split"].null_count == 5


@pytest.mark.parametrize(
    ("labels", "classes", "expected", "codes"),
    [
        (np.array([2, 0, 2, 0, 2]), None, ("0", "1", "2"), [2, 0, 2, 0, 2]),
        (np.array([2, 0, 2, 0, 2], np.uint8), ("a", "b"), ("a", "b"), [2, 0, 2, 0, 2]),
        (np.array([b"x", b"y", b"x", b"x", b"x"]), None, ("x", "y"), [0, 1, 0, 0, 0]),
        (np.array(["x", "y", "x", "x", "x"]), ("x",), ("x",), [0, None, 0, 0, 0]),
    ],
)
def test_labels_are_numbers_or_names(
    opened: Opener, labels: np.ndarray, classes: tuple[str, ...] | None, expected: tuple[str, ...], codes: list[Any]
) -> None:
    source = opened(images=IMAGES, labels=labels, classes=classes)
    assert source.classes == expected
    table = rows(source)
    assert table["label"].to_pylist() == codes
    unknown = [code is None for code in codes]
    assert [error == "label_unknown" for error in table["error"].to_pylist()] == unknown


def test_one_column_of_attributes_needs_no_second_axis_and_no_name(opened: Opener) -> None:
    source = opened(images=IMAGES, attributes=np.arange(5))
    assert source.attributes == ("attribute_0",)
    assert rows(source)["attributes"].to_pylist() == [[0.0], [1.0], [2.0], [3.0], [4.0]]


@pytest.mark.parametrize("order", ["C", "F"])
def test_colors_and_other_memory_orders_keep_height_width_channels(opened: Opener, order: Any) -> None:
    images = np.random.default_rng(1).integers(0, 256, (5, 3, 4, 3), np.uint8)
    source = opened(images=np.asarray(images, order=order))
    assert source.pixels == (3, 4, 3)
    np.testing.assert_array_equal(np.stack(pixels(rows(source))), images.reshape(5, -1))


def test_partitions_and_batches_cut_the_rows_without_loss(opened: Opener, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(numpy_arrays, "PARTITION_BYTES", 2 * 12)
    monkeypatch.setattr(numpy_arrays, "BATCH_ROWS", 1)
    source = opened(images=IMAGES, labels=np.arange(5))
    assert [part.rows for part in source.partitions] == [2, 2, 1]
    table = rows(source)
    assert table["label"].to_pylist() == [0, 1, 2, 3, 4]
    np.testing.assert_array_equal(np.stack(pixels(table)), IMAGES.reshape(5, -1))


def test_floating_pixels_are_scaled_and_a_row_out_of_range_is_put_aside(opened: Opener) -> None:
    images = np.array([[[0, 0.5]], [[1, 1 / 3]], [[0, 255]], [[0, np.nan]], [[-0.1, 0]]])
    table = rows(opened(images=images))
    assert [None if image is None else image.tolist() for image in pixels(table)] == [[0, 128], [255, 85], *[None] * 3]
    assert table["error"].to_pylist() == [None, None, *["pixel_range"] * 3]
    assert table["detail"].to_pylist()[2:] == [
        "expected values from 0 to 1, found from 0 to 255",
        "expected values from 0 to 1, found from nan to nan",
        "expected values from 0 to 1, found from -0.1 to 0",
    ]


@pytest.mark.parametrize("kind", [np.float16, np.float32, np.float64, ">f4"])
def test_every_pixel_survives_as_a_fraction(kind: Any) -> None:
    values = np.arange(256, dtype=np.uint8).reshape(1, 16, 16)
    np.testing.assert_array_equal(to_uint8((values / 255).astype(kind))[0], values)


def test_booleans_are_black_and_white(opened: Opener) -> None:
    assert pixels(rows(opened(images=np.eye(2, dtype=bool)[None])))[0].tolist() == [255, 0, 0, 255]  # type: ignore[union-attr]


@pytest.mark.parametrize(
    ("arrays", "message"),
    [
        ({"images": IMAGES.astype(np.int64)}, "expected images of uint8, bool or floating type, found int64; convert"),
        (
            {"images": np.zeros((2, 3, 8, 9), np.uint8)},
            r"expected \[N, H, W, C\], found \[2, 3, 8, 9\], which looks like \[N, C, H, W\]; "
            r"save images.transpose\(0, 2, 3, 1\)",
        ),
        ({"images": np.zeros((2, 8, 9, 5), np.uint8)}, r"\[N, H, W, C\] with C from 1 to 4, found \[2, 8, 9, 5\]"),
        ({"images": np.zeros((0, 8, 9), np.uint8)}, r"expected \[N, H, W\] or .*, found \[0, 8, 9\]"),
        ({"images": np.zeros(7, np.uint8)}, r"expected \[N, H, W\] or .*, found \[7\]"),
        ({"images": IMAGES, "labels": np.ones(5)}, r"expected integers or text \[N\], found float64 \[5\]"),
        ({"images": IMAGES, "labels": np.eye(5, dtype=int)}, r"expected integers or text \[N\], found int64 \[5, 5\]"),
        ({"images": IMAGES, "labels": np.array([0, -1, 0, 0, 0])}, None),
        ({"images": IMAGES, "labels": np.frombuffer(b"\xff" * 20, "<U1")}, "expected text, found what is not Unicode"),
        ({"images": IMAGES, "labels": np.frombuffer(b"\0\xd8\0\0" * 5, "<U1")}, "expected text, found what is not Uni"),
        ({"images": IMAGES, "attributes": np.array(list("abcde"))}, r"expected numbers \[N\], found <U1 \[5\]"),
        ({"images": IMAGES, "embeddings": np.ones(5)}, r"expected numbers \[N, length\], found float64 \[5\]"),
        ({"images": IMAGES, "groups": np.ones((5, 1), int)}, r"expected integers or text \[N\], found int64 \[5, 1\]"),
        ({"images": IMAGES, "labels": np.array([None] * 5)}, "holds Python objects, which are never loaded"),
        (
            {"images": IMAGES, "attributes": np.ones((5, 2)), "names": ("a", "a")},
            "data.source.attribute_names: expected 2 different names, one for each column of .*, found a, a",
        ),
        (
            {"images": IMAGES, "names": ("a",)},
            "data.source.attribute_names: names without an array; set data.source.at",
        ),
    ],
)
def test_arrays_that_a_field_cannot_have_are_refused(
    opened: Opener, arrays: dict[str, Any], message: str | None
) -> None:
    if message is None:  # what number is a class is for the quarantine to say
        assert rows(opened(**arrays))["label"].to_pylist() == [0, -1, 0, 0, 0]
        return
    with pytest.raises(UserError, match=message):
        opened(**arrays)


def test_both_arrays_of_a_difference_are_named(tmp_path: Path) -> None:
    np.savez(tmp_path / "a.npz", images=IMAGES, y=np.arange(4))
    with pytest.raises(UserError) as caught:
        open_numpy(NumpySource(kind="npz", path=str(tmp_path / "a.npz"), labels="y"), None, tmp_path)
    at = tmp_path / "a.npz"
    assert str(caught.value) == (
        f"data.source.labels: {at}: y: expected 5 rows, as many as data.source.images: {at}: images, found 4; "
        "save arrays of the same rows"
    )


def test_an_unknown_array_has_its_likely_name_in_the_message(tmp_path: Path) -> None:
    np.savez(tmp_path / "a.npz", images=IMAGES, labels=np.arange(5))
    config = NumpySource(kind="npz", path=str(tmp_path / "a.npz"), labels="lables")
    with pytest.raises(UserError) as caught:
        open_numpy(config, None, tmp_path)
    message = f"data.source.labels: {tmp_path}/a.npz has no array 'lables'; did you mean 'labels'?"
    assert str(caught.value) == message


def npz(path: Path, **members: bytes) -> NumpySource:
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive:
        for name, content in members.items():
            archive.writestr(f"{name}.npy", content)
    return NumpySource(kind="npz", path=str(path))


def npy(array: np.ndarray) -> bytes:
    file = io.BytesIO()
    np.save(file, array)
    return file.getvalue()


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (npy(IMAGES)[:-1], "truncated: its header promises 188 bytes, found 187"),
        (npy(IMAGES) + bytes(10_000_000), "too long: its header promises 188 bytes, found 10,000,188"),
        (npy(IMAGES)[:30], "not an .npy file"),
        (b"<html>gone</html>", "not an .npy file"),
        (b"", "not an .npy file"),
        (b"\x93NUMPY\x01\x00\x10\x27" + b"-" * 10_000, "not an .npy file"),  # as Python this exhausts the stack
        (b"\x93NUMPY\x01\x00\x10\x00{'descr':('f4',)}", "not an .npy file"),
        (npy(IMAGES).replace(b"(5, 3, 4)", b"(-5,-3,4"), "not an .npy file"),
        (npy(np.array([{}], object)), "holds Python objects, which are never loaded; save it as numbers or as text"),
    ],
)
@pytest.mark.parametrize("kind", ["npz", "npy"])
def test_a_member_that_is_not_what_its_header_says_is_refused(
    tmp_path: Path, kind: str, content: bytes, message: str
) -> None:
    config = npz(tmp_path / "a.npz", images=content)
    if kind == "npy":
        (tmp_path / "a.npy").write_bytes(content)
        config = NumpySource(kind="npy", path=str(tmp_path / "a.npy"))
    with pytest.raises(UserError, match=message):
        open_numpy(config, None, tmp_path / "downloads")
    assert not list((tmp_path / "downloads").rglob("*.npy*"))
    with pytest.raises(ValueError, match=message):
        parse_npy(content)


def test_an_archive_larger_than_the_disk_is_not_unpacked(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(npy_files.shutil, "disk_usage", lambda _: type("Usage", (), {"free": 100}))
    config = npz(tmp_path / "a.npz", images=npy(IMAGES))
    with pytest.raises(UserError, match=r"a.npz: images: 188 bytes unpacked, but .* has 100 left; free some, or set"):
        open_numpy(config, None, tmp_path / "downloads")


def test_a_damaged_archive_is_named(tmp_path: Path) -> None:
    config = npz(tmp_path / "a.npz", images=npy(IMAGES))
    data = bytearray((tmp_path / "a.npz").read_bytes())
    data[120] ^= 255
    (tmp_path / "a.npz").write_bytes(data)
    with pytest.raises(UserError, match=r"data.source.path: .*a.npz: not a whole .npz archive .*; fetch or save it ag"):
        open_numpy(config, None, tmp_path / "downloads")
    assert not [file for file in (tmp_path / "downloads").rglob("*") if file.is_file()]
    (tmp_path / "a.npz").write_bytes(data[:-30])
    with pytest.raises(UserError, match=r"not a whole .npz archive"):
        open_numpy(config, None, tmp_path / "downloads")


@pytest.mark.parametrize("method", [zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED, zipfile.ZIP_BZIP2, zipfile.ZIP_LZMA])
def test_damaged_bytes_give_rows_or_an_error_never_a_crash(tmp_path: Path, method: int) -> None:
    with zipfile.ZipFile(tmp_path / "a.npz", "w", method) as archive:
        archive.writestr("images.npy", npy(IMAGES))
    whole, random = (tmp_path / "a.npz").read_bytes(), Random(method)
    for _ in range(50):
        damaged = bytearray(whole)
        damaged[random.randrange(len(damaged))] = random.randrange(256)
        (tmp_path / "a.npz").write_bytes(damaged)
        try:
            outcome = rows(open_numpy(NumpySource(kind="npz", path=str(tmp_path / "a.npz")), None, tmp_path)).num_rows
        except UserError as error:
            outcome = str(error)
        assert outcome == 5 or "a.npz" in str(outcome)


def test_an_archive_is_unpacked_once_and_again_where_that_was_cut_off(tmp_path: Path) -> None:
    config = npz(tmp_path / "a.npz", images=npy(IMAGES), other=b"never read")
    digest = hashlib.sha256((tmp_path / "a.npz").read_bytes()).hexdigest()
    assert open_numpy(config, None, tmp_path / "downloads").digests == {"a.npz": digest}
    (kept,) = (file for file in (tmp_path / "downloads").rglob("*") if file.is_file())
    assert kept.relative_to(tmp_path / "downloads").as_posix() == f"unpacked/{digest}/images.npy"
    before = kept.stat().st_mtime_ns
    open_numpy(config, None, tmp_path / "downloads")
    assert kept.stat().st_mtime_ns == before
    kept.write_bytes(b"part")
    np.testing.assert_array_equal(
        np.stack(pixels(rows(open_numpy(config, None, tmp_path / "downloads")))), IMAGES.reshape(5, -1)
    )


def test_a_name_in_an_archive_cannot_choose_where_it_lands(tmp_path: Path) -> None:
    npz(tmp_path / "a.npz", **{"../../evil": npy(IMAGES)})
    config = NumpySource(kind="npz", path=str(tmp_path / "a.npz"), images="../../evil")
    open_numpy(config, None, tmp_path / "downloads")
    (kept,) = (file for file in (tmp_path / "downloads").rglob("*") if file.is_file())
    assert kept.name == "..%2F..%2Fevil.npy"
    assert kept.parent.parent == tmp_path / "downloads" / "unpacked"


def test_digests_are_those_of_the_files(tmp_path: Path) -> None:
    for name, array in (("x.npy", IMAGES), ("y.npy", np.arange(5))):
        np.save(tmp_path / name, array)
    config = NumpySource(kind="npy", path=str(tmp_path / "x.npy"), labels=str(tmp_path / "y.npy"))
    source = open_numpy(config, None, tmp_path)
    assert source.digests == {
        "x.npy": hashlib.sha256((tmp_path / "x.npy").read_bytes()).hexdigest(),
        f"{tmp_path}/y.npy": hashlib.sha256((tmp_path / "y.npy").read_bytes()).hexdigest(),
    }


@pytest.mark.parametrize(
    ("kind", "path", "labels", "message"),
    [
        ("npz", "none.npz", None, r"data.source.path: .*none.npz: no such file; set it to an .npz file"),
        ("npy", "x.npy", "y.npy", r"data.source.labels: .*y.npy: no such file; name an .npy file"),
        ("npy", "x.npz", None, r"x.npz: an .npz archive where an .npy file is expected; set data.source.kind to npz"),
        ("npz", "x.npy", None, r"data.source.path: .*x.npy: not a whole .npz archive"),
    ],
)
def test_a_file_that_is_not_there_or_of_the_other_kind_is_named(
    tmp_path: Path, kind: Any, path: str, labels: str | None, message: str
) -> None:
    np.save(tmp_path / "x.npy", IMAGES)
    np.savez(tmp_path / "x.npz", images=IMAGES)
    with pytest.raises(UserError, match=message):
        open_numpy(NumpySource(kind=kind, path=str(tmp_path / path), labels=labels), None, tmp_path)


def test_a_file_that_changes_between_opening_and_reading_is_noticed(tmp_path: Path) -> None:
    np.save(tmp_path / "x.npy", IMAGES)
    source = open_numpy(NumpySource(kind="npy", path=str(tmp_path / "x.npy")), None, tmp_path)
    np.save(tmp_path / "x.npy", IMAGES[:4])
    with pytest.raises(UserError, match=r"x.npy changed while it was read; start the stage again"):
        rows(source)


FRAMES = np.random.default_rng(2).integers(0, 256, (1965, 28, 20), np.uint8)


def test_the_frey_face_has_a_frame_in_each_column(tmp_path: Path) -> None:
    savemat(tmp_path / "frey_rawface.mat", {"ff": FRAMES.reshape(1965, 560).T}, do_compression=True)
    source = open_frey_face(FreyFaceSource(kind="frey_face", path=str(tmp_path / "frey_rawface.mat")))
    assert (source.name, source.rows, source.pixels, source.classes) == ("frey_face", 1965, (28, 20, 1), ())
    table = rows(source)
    np.testing.assert_array_equal(np.stack(pixels(table)).reshape(-1, 28, 20), FRAMES)
    assert table["id"][1964].as_py() == "frey_face-001964"
    assert table["label"].null_count == 1965


def test_neighbouring_frames_of_the_frey_face_share_a_group(tmp_path: Path) -> None:
    savemat(tmp_path / "ff.mat", {"ff": FRAMES.reshape(1965, 560).T})
    groups = rows(open_frey_face(FreyFaceSource(kind="frey_face", path=str(tmp_path / "ff.mat"))))["group"]
    assert groups[0].as_py() == groups[19].as_py() == "frames-0000"
    assert (groups[20].as_py(), groups[1964].as_py()) == ("frames-0001", "frames-0098")
    assert len(groups.unique()) == 99


@pytest.mark.parametrize(
    ("variables", "found"),
    [
        ({"faces": FRAMES[:2, 0]}, "faces uint8 [2, 20]"),
        ({"ff": FRAMES[:, 0]}, "ff uint8 [1965, 20]"),
        ({"ff": np.zeros((560, 1965))}, "ff double [560, 1965]"),
        ({}, "nothing"),
    ],
)
def test_another_matlab_file_is_refused(tmp_path: Path, variables: dict[str, np.ndarray], found: str) -> None:
    path = tmp_path / "other.mat"
    savemat(path, variables)
    with pytest.raises(UserError) as caught:
        open_frey_face(FreyFaceSource(kind="frey_face", path=str(path)))
    assert str(caught.value) == (
        f"data.source.path: {path}: expected the variable ff, uint8 [560, 1965], found {found}; "
        "set it to the published frey_rawface.mat"
    )


@pytest.mark.parametrize("keep", [0, 100, 1000, 30_000])
def test_what_is_no_whole_matlab_file_is_refused(tmp_path: Path, keep: int) -> None:
    savemat(tmp_path / "whole.mat", {"ff": FRAMES.reshape(1965, 560).T})
    path = tmp_path / "cut.mat"
    path.write_bytes((tmp_path / "whole.mat").read_bytes()[:keep] or b"<html>not found</html>" * 20)
    with pytest.raises(UserError, match=r"not a whole MATLAB 5 file .*; fetch frey_rawface.mat again"):
        open_frey_face(FreyFaceSource(kind="frey_face", path=str(path)))


def test_a_missing_matlab_file_is_named(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"none.mat: no such file; set it to the published frey_rawface.mat"):
        open_frey_face(FreyFaceSource(kind="frey_face", path=str(tmp_path / "none.mat")))


def test_measurements_as_text_are_no_labels(opened: Opener) -> None:
    with pytest.raises(UserError, match=r"expected class names or whole numbers, found 0.5; name an array of such"):
        opened(images=IMAGES, labels=np.array(["0.5", "1", "2", "3", "1"]))
    source = opened(images=IMAGES, labels=np.array(["e\u0301", "\u00e9", "f", "f", "f"]))
    assert (source.classes, rows(source)["label"].to_pylist()) == (("f", "\u00e9"), [1, 1, 0, 0, 0])
