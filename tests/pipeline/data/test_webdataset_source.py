"""Foreign tars: what is read, and that nothing which WebDataset loses in silence is lost here."""

import gzip
import hashlib
import io
import json
import os
import tarfile
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image
from source_rows import table_of as rows
from webdataset.tariterators import base_plus_ext, group_by_keys, tar_file_expander

from pipeline.data.config import WebDatasetSource
from pipeline.data.shape import Shape
from pipeline.data.sources import webdataset_tars
from pipeline.data.sources.base import Source
from pipeline.data.sources.tar_walk import Member, walk
from pipeline.data.sources.webdataset_tars import open_webdataset
from pipeline.data.tar import Layout
from pipeline.errors import UserError

MAX_BYTES = 10_000


def png(value: int = 7) -> bytes:
    file = io.BytesIO()
    Image.fromarray(np.full((2, 3), value, np.uint8)).save(file, "PNG")
    return file.getvalue()


def npy(array: Any) -> bytes:
    file = io.BytesIO()
    np.save(file, np.asarray(array))
    return file.getvalue()


def archive(members: Any, form: int = tarfile.GNU_FORMAT) -> bytes:
    """A tar; `members` are (name or TarInfo, content), in order."""
    file = io.BytesIO()
    with tarfile.open(fileobj=file, mode="w", format=form) as tar:
        for name, content in members.items() if isinstance(members, Mapping) else members:
            info = tarfile.TarInfo(name) if isinstance(name, str) else name
            info.size = len(content)
            tar.addfile(info, io.BytesIO(content))
    return file.getvalue()


def samples(count: int) -> dict[str, bytes]:
    return {name: data for n in range(count) for name, data in ((f"{n}.cls", b"%d\n" % n), (f"{n}.png", png(n)))}


Opener = Callable[..., Source]


@pytest.fixture
def opened(tmp_path: Path) -> Opener:
    """Opens a folder with tars, given by their names."""

    def go(tars: Mapping[str, bytes], classes: tuple[str, ...] | None = None, **config: Any) -> Source:
        for name, data in tars.items():
            (tmp_path / "tars" / name).parent.mkdir(parents=True, exist_ok=True)
            (tmp_path / "tars" / name).write_bytes(data)
        config = {"path": str(tmp_path / "tars"), **config}
        return open_webdataset(WebDatasetSource(kind="webdataset", **config), classes, MAX_BYTES)

    return go


def plain(data: bytes) -> list[dict[str, Any]]:
    """What WebDataset alone reads of a tar."""
    return list(group_by_keys(tar_file_expander([{"url": "x.tar", "stream": io.BytesIO(data)}])))


def test_samples_of_all_tars_come_in_the_order_of_the_names(opened: Opener) -> None:
    tars = {"b/1.tar": archive(samples(2)), "a.tar.gz": gzip.compress(archive(samples(3))), "c.tgz": archive({})}
    source = opened({**tars, "c.tgz": gzip.compress(archive({})), "notes.txt": b""})
    assert (source.name, source.pixels, source.classes) == ("tars", None, ("0", "1", "2"))
    assert [part.rows for part in source.partitions] == [3, 2, 0]
    table = rows(source)
    assert table["id"].to_pylist() == ["a.tar.gz:0", "a.tar.gz:1", "a.tar.gz:2", "b/1.tar:0", "b/1.tar:1"]
    assert table["image"].to_pylist() == [png(n) for n in (0, 1, 2, 0, 1)]
    assert table["label"].to_pylist() == [0, 1, 2, 0, 1]
    assert table["source"].to_pylist() == ["a.tar.gz"] * 3 + ["b/1.tar"] * 2
    assert table["error"].null_count == 5
    assert list(source.digests) == ["a.tar.gz", "b/1.tar", "c.tgz"]
    assert source.digests["b/1.tar"] == hashlib.sha256(tars["b/1.tar"]).hexdigest()


def test_a_pattern_names_tars_too(opened: Opener, tmp_path: Path) -> None:
    tars = {name: archive(samples(1)) for name in ("x-1.tar", "x-2.tar", "y-1.tar")}
    source = opened(tars, path=str(tmp_path / "tars" / "x-*.tar"))
    assert rows(source)["id"].to_pylist() == ["x-1.tar:0", "x-2.tar:0"]


def test_no_tar_is_lost_where_two_names_look_alike(opened: Opener, tmp_path: Path) -> None:
    (tmp_path / "tars").mkdir()
    with open(os.fsencode(tmp_path) + b"/tars/\xff.tar", "wb") as file:
        file.write(archive({"a.png": png(1)}))
    source = opened({"\\xff.tar": archive({"a.png": png(0)})})
    assert rows(source)["id"].to_pylist() == ["\\xff.tar:a", "\\xff.tar':a"]
    assert rows(source)["image"].to_pylist() == [png(0), png(1)]


def test_labels_attributes_and_embeddings_are_found_where_the_user_says(opened: Opener) -> None:
    members = [
        ("a.jpg", b"image"),
        ("a.json", json.dumps({"kind": "cat", "age": 3, "size": 0.5, "vector": [1, 2]}).encode()),
        ("b.jpg", b"image"),
        ("b.json", json.dumps({"kind": "dog", "age": "old", "size": None, "vector": [3, 4.5]}).encode()),
        ("c.jpg", b"image"),
        ("c.json", b"{}"),
    ]
    source = opened({"x.tar": archive(members)}, label="json:kind", attributes=("age", "size"), embedding="json:vector")
    assert (source.classes, source.attributes, source.embedding) == (("cat", "dog"), ("age", "size"), 2)
    table = rows(source)
    assert table["label"].to_pylist() == [0, 1, None]
    assert table["attributes"].to_pylist() == [[3.0, 0.5], [None, None], [None, None]]
    assert table["embedding"].to_pylist() == [[1.0, 2.0], [3.0, 4.5], None]
    assert table["error"].null_count == 3


def test_labels_are_numbers_or_class_names_and_missing_ones_are_null(opened: Opener) -> None:
    texts = {"a": b" 3\n", "b": b"1", "c": b"", "d": b"two"}
    members = {f"{key}.{kind}": data for key, text in texts.items() for kind, data in (("txt", text), ("png", png()))}
    source = opened({"x.tar": archive({**members, "e.png": png()})}, label="TXT", classes=("zero", "one", "two"))
    table = rows(source)
    assert table["label"].to_pylist() == [3, 1, None, 2, None]
    assert table["error"].null_count == 5


def test_tars_without_labels_have_no_classes(opened: Opener) -> None:
    assert opened({"x.tar": archive({"a.png": png()})}).classes == ()
    assert opened({"x.tar": archive(samples(2))}, label=None).classes == ()


@pytest.mark.parametrize("shape", [(2, 3), (2, 3, 1), (2, 3, 3), (2, 3, 4)])
@pytest.mark.parametrize("order", ["C", "F"])
def test_an_npy_image_becomes_an_image_file_of_the_same_pixels(
    opened: Opener, shape: tuple[int, ...], order: Any
) -> None:
    pixels = np.asarray(np.random.default_rng(0).integers(0, 256, shape, np.uint8), order=order)
    (image,) = rows(opened({"x.tar": archive({"a.npy": npy(pixels)})}))["image"].to_pylist()
    np.testing.assert_array_equal(np.asarray(Image.open(io.BytesIO(image))).reshape(shape), pixels)


@pytest.mark.parametrize("image", ["npy", "png"])
def test_an_embedding_beside_an_npy_image_is_not_taken_for_it(opened: Opener, image: str) -> None:
    members = {
        "train-00000000.cls": b"1",
        "train-00000000.json": b'{"size":  5.00000000e-01}',
        "train-00000000.embedding.npy": npy(np.array([1, 2], np.float32)),
        f"train-00000000.{image}": png(9) if image == "png" else npy(np.full((2, 3, 1), 9, np.uint8)),
    }
    table = rows(opened({"x.tar": archive(members)}, attributes=("size",), embedding="embedding.npy"))
    assert table["error"].to_pylist() == [None]
    assert table["embedding"].to_pylist() == [[1.0, 2.0]]
    assert table["attributes"].to_pylist() == [[0.5]]
    (pixels,) = [np.asarray(Image.open(io.BytesIO(image))) for image in table["image"].to_pylist()]
    np.testing.assert_array_equal(pixels, np.full((2, 3), 9))
    assert rows(opened({"x.tar": archive(members)}))["error"].to_pylist() == [None]


def test_shards_of_this_pipeline_are_foreign_tars_too(opened: Opener) -> None:
    layout = Layout(Shape(4, 5, 3), classes=12)
    tar = np.zeros(layout.file_bytes(3), np.uint8)
    view = layout.samples(tar, 3)
    layout.write_frame(view, "train", 0)
    pixels = np.random.default_rng(0).integers(0, 256, (3, 60), np.uint8)
    layout.images(view)[:] = pixels
    layout.write_labels(view, np.arange(3), np.array([11, 0, 7]))
    source = opened({"train-000000.tar": tar.tobytes()})
    table = rows(source)
    assert table["id"][2].as_py() == "train-000000.tar:train-00000002"
    assert table["label"].to_pylist() == [11, 0, 7]
    images = [np.asarray(Image.open(io.BytesIO(image))).reshape(-1) for image in table["image"].to_pylist()]
    np.testing.assert_array_equal(images, pixels)


WHOLE = archive(samples(3))  # each member: 512 of header, 512 of content
CONTENTS_END = 6 * 1024
PACKED = gzip.compress(WHOLE)


def flipped(at: int) -> bytes:
    return WHOLE[:at] + bytes([WHOLE[at] ^ 1]) + WHOLE[at + 1 :]


@pytest.mark.parametrize(
    ("data", "kept", "at", "what"),
    [
        (WHOLE[:CONTENTS_END], 3, CONTENTS_END, "it ends without the mark of its end, two blocks of zeros, so members"),
        (WHOLE[:4096], 2, 4096, "it ends without the mark of its end"),  # between two samples
        (WHOLE[:5120], 3, 5120, "it ends without the mark of its end"),  # between the members of the last sample
        (WHOLE[:4396], 2, 4096, "it ends inside a header, after 300 of 512 bytes"),
        (WHOLE[:4700], None, 4608, "it ends inside a member of 2 bytes"),
        (WHOLE[: CONTENTS_END + 512], 3, CONTENTS_END, "one block of zeros where the mark of the end has two"),
        (flipped(2048 + 5), 1, 2048, r"expected the header of a member, found other or damaged bytes \(bad checksum\)"),
        (flipped(2048 + 150), 1, 2048, "expected the header of a member"),  # a digit of the checksum itself
        (flipped(0), None, 0, "expected the header of a member"),
        (WHOLE[:2048] + bytes(2048) + WHOLE[4096:], 1, 2048, "more bytes after the mark of its end"),  # a hole
        (WHOLE + WHOLE, 3, CONTENTS_END, "more bytes after the mark of its end, as in two tars joined to one"),
        (b"", None, 0, "it ends without the mark of its end"),
        (b"<html>not found</html>" * 50, None, 0, "expected the header of a member"),
    ],
)
@pytest.mark.parametrize("packed", [False, True])
def test_damage_that_webdataset_passes_over_is_an_error(
    opened: Opener, tmp_path: Path, data: bytes, kept: int | None, at: int, what: str, packed: bool
) -> None:
    if kept is not None and not packed:  # WebDataset: no error, and of three samples this many
        assert len(plain(data)) == kept
    name = "x.tar.gz" if packed else "x.tar"
    with pytest.raises(UserError, match=f"{name}: from byte {at:,} on it cannot be read: {what}") as caught:
        opened({name: gzip.compress(data) if packed else data})
    assert str(caught.value).startswith(f"{tmp_path}/tars/{name}: ")
    assert str(caught.value).endswith("; fetch it again, or pack its files again")


@pytest.mark.parametrize("data", [PACKED[:-100], PACKED[:-4] + b"size", PACKED[:40] + b"****" + PACKED[44:]])
def test_a_damaged_gzip_file_is_an_error(opened: Opener, data: bytes) -> None:
    with pytest.raises(UserError, match=r"x.tgz: damaged gzip data \(.*\); fetch it again"):
        opened({"x.tgz": data})


def test_every_cut_of_a_tar_is_noticed(opened: Opener) -> None:
    for length in range(0, CONTENTS_END + 1024, 128):
        with pytest.raises(UserError, match=r"x.tar: from byte .* fetch it again"):
            opened({"x.tar": WHOLE[:length]})
    assert opened({"x.tar": WHOLE[: CONTENTS_END + 1024]}).rows == 3


def test_a_key_with_dots_is_an_error_for_each_image_it_loses(opened: Opener) -> None:
    names = [f"img_v1.{n}.{kind}" for n in range(3) for kind in ("cls", "png")]
    data = archive({name: png() if name.endswith("png") else b"1" for name in names})
    assert len(plain(data)) == 1
    table = rows(opened({"x.tar": data}))
    assert table["error"].to_pylist() == ["key_has_dots"] * 3
    assert table["id"].to_pylist() == ["x.tar:img_v1.0.png@1024", "x.tar:img_v1.1.png@3072", "x.tar:img_v1.2.png@5120"]
    assert table["detail"][0].as_py() == (
        "img_v1.0.png: expected no dot in the key: as WebDataset reads it, a name ends and its extension begins at the "
        "first dot"
    )


def test_an_extension_with_a_dot_is_no_key_with_a_dot(opened: Opener) -> None:
    members = {"a.png": png(), "a.mask.png": png(), "a.1.png": png(), "b.rgb.png": png(1), "b.mask.png": png()}
    table = rows(opened({"x.tar": archive(members)}, image=("rgb.png", "png")))
    assert table["id"].to_pylist() == ["x.tar:a.1.png@2048", "x.tar:a", "x.tar:b"]
    assert table["error"].to_pylist() == ["key_has_dots", None, None]
    assert table["image"].to_pylist() == [None, png(), png(1)]


@pytest.mark.parametrize(
    ("members", "expected"),
    [
        ([("a.png", png()), ("a.png", png(1))], [("a.png@0", "duplicate_member"), ("a.png@1024", "duplicate_member")]),
        ([("a.png", png()), ("a.PNG", png(1))], [("a.png@0", "duplicate_member"), ("a.PNG@1024", "duplicate_member")]),
        ([("a.cls", b"1"), ("a.cls", b"2"), ("a.png", png())], [("a.png@2048", "duplicate_member")]),
        ([("README", b"x"), ("a.png", png()), (".DS_Store", b"")], [("a", None), ("README@0", "not_a_sample"),
                                                                   (".DS_Store@2048", "not_a_sample")]),
        ([("a.cls", b"1"), ("README", b"x"), ("a.png", png())], [("a", None), ("README@1024", "not_a_sample")]),
        ([("a.cls", b"1"), ("b.png", png())], [("a", "image_missing"), ("b", None)]),
        ([("__note__", b""), ("__x__/a.png", png())], [("__x__/a", None)]),
        ([("a.png", bytes(MAX_BYTES + 1)), ("b.png", png())], [("a", "too_many_bytes"), ("b", None)]),
        ([("/abs/a.png", png()), ("./b.png", png()), ("../c.png", png())],
         [("abs/a", None), ("b", None), ("../c", None)]),
        ([("a\nb\x07.png", png()), ("\udcffx.png", png()), ("é.png", png())],
         [(r"a\nb\x07", None), (r"\xffx", None), ("é", None)]),
    ],
)  # fmt: skip
def test_everything_in_a_tar_has_a_row(opened: Opener, members: Any, expected: list[tuple[str, str | None]]) -> None:
    table = rows(opened({"x.tar": archive(members)}))
    names = [name.removeprefix("x.tar:") for name in table["id"].to_pylist()]
    assert list(zip(names, table["error"].to_pylist(), strict=True)) == expected
    assert [image is None for image in table["image"].to_pylist()] == [error is not None for _, error in expected]


def test_errors_say_what_was_expected_and_found(opened: Opener) -> None:
    table = rows(opened({"x.tar": archive({"a.cls": b"1", "b.png": bytes(MAX_BYTES + 1)})}))
    assert table["detail"].to_pylist() == [
        "expected one of jpg, jpeg, png, webp, ppm, pgm, npy; found cls",
        "b.png: expected at most 10,000 bytes, found 10,001",
    ]


def test_links_and_devices_are_not_followed_and_folders_are_passed_over(opened: Opener) -> None:
    members = []
    for name, kind in (("f", tarfile.DIRTYPE), ("f/a.png", tarfile.SYMTYPE), ("f/b.png", tarfile.LNKTYPE),
                       ("f/c.png", tarfile.FIFOTYPE)):  # fmt: skip
        info = tarfile.TarInfo(name)
        info.type, info.linkname = kind, "/etc/passwd"
        members.append((info, b""))
    table = rows(opened({"x.tar": archive([*members, ("f/d.png", png())])}))
    assert table["id"].to_pylist() == ["x.tar:f/a", "x.tar:f/b", "x.tar:f/c", "x.tar:f/d"]
    assert table["error"].to_pylist() == ["symlink", "symlink", "unreadable", None]
    assert table["detail"][0].as_py() == "f/a.png: expected a file, found a link"


@pytest.mark.parametrize(
    ("name", "content", "config", "error", "detail"),
    [
        ("a.json", b"{", {"label": "json:y"}, "json_unreadable", "Expecting property name"),
        ("a.json", b"[1]", {"label": "json:y"}, "json_unreadable", "expected an object, found list"),
        ("a.json", b"[" * 9000, {"label": "json:y"}, "json_unreadable", "recursion"),
        ("a.json", b'{"y": {"z": 1}}', {"label": "json:y"}, "label_unknown", "expected a class, found \"{'z': 1}\""),
        ("a.cls", b"\xff\xfe", {}, "label_unreadable", r"expected UTF-8 text, found b'\xff\xfe'"),
        ("a.json", b'{"y": "\\ud800"}', {"label": "json:y"}, "label_unreadable", "expected UTF-8 text"),
        ("a.cls", b"x" * 1001, {}, "label_unreadable", "expected at most 1000 bytes, found 1,001"),
        ("a.v.npy", npy(np.ones((2, 2))), {"embedding": "v.npy"}, "embedding_unreadable", "found float64 [2, 2]"),
        ("a.v.npy", npy(np.array(["x"])), {"embedding": "v.npy"}, "embedding_unreadable", "found <U1 [1]"),
        ("a.v.npy", npy([{}]), {"embedding": "v.npy"}, "embedding_unreadable", "holds Python objects, which are never"),
        ("a.v.npy", npy([1.0])[:-1], {"embedding": "v.npy"}, "embedding_unreadable", "truncated"),
        ("a.json", b'{"v": [[1], 2]}', {"embedding": "json:v"}, "embedding_unreadable", "inhomogeneous"),
        ("a.json", b'{"v": "text"}', {"embedding": "json:v"}, "embedding_unreadable", "found <U4 []"),
    ],
)  # fmt: skip
def test_a_member_that_is_not_what_it_should_be_spoils_its_sample_alone(
    opened: Opener, name: str, content: bytes, config: dict[str, Any], error: str, detail: str
) -> None:
    good = {"b.png": png(), "b.cls": b"0", "b.v.npy": npy(np.ones(2)), "b.json": b'{"y": 0, "v": [1, 2]}'}
    table = rows(opened({"x.tar": archive({"a.png": png(), name: content, **good})}, **config))
    assert table["error"].to_pylist() == [error, None]
    assert detail in table["detail"][0].as_py()


@pytest.mark.parametrize(
    ("pixels", "detail"),
    [
        (np.zeros((2, 3), np.uint16), "found uint16 [2, 3]"),
        (np.zeros((2, 3, 2), np.uint8), "found uint8 [2, 3, 2]"),
        (np.zeros((0, 3), np.uint8), "found uint8 [0, 3]"),
        (np.zeros(6, np.uint8), "found uint8 [6]"),
        (np.array([None]), "holds Python objects, which are never loaded"),
    ],
)
def test_an_npy_that_is_no_image_is_put_aside(opened: Opener, pixels: np.ndarray, detail: str) -> None:
    table = rows(opened({"x.tar": archive({"a.npy": npy(pixels)})}))
    assert table["error"].to_pylist() == ["undecodable"]
    assert detail in table["detail"][0].as_py()


def test_numbers_too_large_for_a_float_are_left_to_the_quarantine(opened: Opener) -> None:
    members = {"a.png": png(), "a.json": b'{"x": 1%s, "v": [1e300]}' % (b"0" * 400)}
    table = rows(opened({"x.tar": archive(members)}, label=None, attributes=("x",), embedding="json:v"))
    assert table["attributes"].to_pylist() == [[None]]
    assert table["embedding"].to_pylist() == [[float("inf")]]


@pytest.mark.parametrize("form", [tarfile.USTAR_FORMAT, tarfile.GNU_FORMAT, tarfile.PAX_FORMAT])
def test_long_names_are_read_in_every_format(opened: Opener, form: int) -> None:
    name = "/".join(["folder" * 8] * (3 if form == tarfile.USTAR_FORMAT else 9)) + "/näme.png"
    table = rows(opened({"x.tar": archive({name: png(), "b.png": png(1)}, form)}))
    assert table["id"].to_pylist() == [f"x.tar:{name.removesuffix('.png')}", "x.tar:b"]
    assert table["image"].to_pylist() == [png(), png(1)]


@pytest.mark.parametrize(
    ("size", "what"), [(2 * 1024**2, "a name of 2,097,168 bytes"), (3, "a PAX header with a record of wrong length")]
)
def test_an_extended_header_that_makes_no_sense_is_damage(opened: Opener, size: int, what: str) -> None:
    info = tarfile.TarInfo("x")
    info.type = tarfile.XHDTYPE
    with pytest.raises(UserError, match=what):
        opened({"x.tar.gz": gzip.compress(archive([(info, b"9 path=abcdefgh\n"[:size] * (size // 16 + 1))]))})


def test_a_header_about_the_whole_archive_is_passed_over(opened: Opener) -> None:
    file = io.BytesIO()
    with tarfile.open(fileobj=file, mode="w", pax_headers={"comment": "0123abc"}) as tar:
        tar.add(__file__, "a.png")
    assert rows(opened({"x.tar": file.getvalue()}))["id"].to_pylist() == ["x.tar:a"]


def test_a_name_that_no_file_can_have_is_damage(opened: Opener) -> None:
    data = archive({"/" * 5000 + "a.png": png()})
    with pytest.raises(UserError, match="from byte 5,632 on it cannot be read: a name of 5,005 characters"):
        opened({"x.tar": data})


def test_a_size_that_no_file_can_have_is_damage(opened: Opener) -> None:
    info = tarfile.TarInfo("a.png")
    info.size = 2**70
    header = info.tobuf(tarfile.GNU_FORMAT)
    with pytest.raises(UserError, match=f"expected the size of a member, found '{2**70}'"):
        opened({"x.tar": header + bytes(1024)})


def test_a_sparse_file_is_refused(opened: Opener) -> None:
    info = tarfile.TarInfo("a.png")
    info.pax_headers = {"GNU.sparse.major": "1"}
    with pytest.raises(UserError, match=r"from byte 1,024 on it cannot be read: 'a.png' is stored as a sparse file; "):
        opened({"x.tar": archive([(info, png())], tarfile.PAX_FORMAT)})


def test_all_damaged_tars_are_named_at_once(opened: Opener, tmp_path: Path) -> None:
    tars = {"a.tar": WHOLE[:4096], "b.tar": WHOLE, "c.tar": flipped(0)}
    with pytest.raises(UserError) as caught:
        opened(tars)
    assert [line.split(": ")[0] for line in str(caught.value).splitlines()] == [
        str(tmp_path / "tars" / name) for name in ("a.tar", "c.tar")
    ]
    (tmp_path / "tars" / "a.tar").unlink()
    (tmp_path / "tars" / "a.tar").symlink_to("gone.tar")
    with pytest.raises(UserError, match=r"a.tar: cannot be read: No such file or directory"):
        opened({"c.tar": WHOLE})


def test_the_members_of_a_sample_must_be_neighbours(opened: Opener, tmp_path: Path) -> None:
    data = archive({"a.png": png(), "b.png": png(), "a.cls": b"1", "b.cls": b"2"})
    assert len(plain(data)) == 4
    with pytest.raises(UserError) as caught:
        opened({"x.tar": data})
    assert str(caught.value) == (
        f"{tmp_path}/tars/x.tar: from byte 2,048 on it cannot be read: 'a.cls' stands apart from the other members of "
        "its sample; fetch it again, or pack its files again"
    )


def test_names_are_split_as_webdataset_splits_them() -> None:
    for name in ("a.png", "a.b.png", "d.e/a.b.PNG", "d/.hidden", ".hidden", "none", "d.e/none", "./a.x", "a.", "a..b"):
        key, extension = base_plus_ext(name)
        assert Member(name, 0, 0, "file").parts == (key, (extension or "").lower())


def test_what_webdataset_reads_must_be_what_the_headers_announce(
    opened: Opener, monkeypatch: pytest.MonkeyPatch
) -> None:
    source = opened({"x.tar": WHOLE})

    def renamed(stream: Any) -> Any:
        return (member._replace(name="0.jpg") if member.name == "0.png" else member for member in walk(stream))

    monkeypatch.setattr(webdataset_tars, "walk", renamed)
    with pytest.raises(
        UserError, match=r"x.tar: from byte 1,024 on .*: WebDataset reads other members than the headers"
    ):
        list(source.partitions[0].batches())


def test_a_tar_that_changes_between_opening_and_reading_is_noticed(opened: Opener, tmp_path: Path) -> None:
    source = opened({"x.tar": WHOLE})
    (tmp_path / "tars" / "x.tar").write_bytes(archive(samples(2)))
    with pytest.raises(UserError, match=r"x.tar changed while it was read; start the stage again"):
        list(source.partitions[0].batches())
    os.unlink(tmp_path / "tars" / "x.tar")
    with pytest.raises(UserError, match=r"x.tar: cannot be read: No such file or directory"):
        list(source.partitions[0].batches())


def test_batches_are_bounded_in_bytes(opened: Opener, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(webdataset_tars, "BATCH_BYTES", 2 * len(png()))
    batches = list(opened({"x.tar": archive({f"{n}.png": png() for n in range(5)})}).partitions[0].batches())
    assert [batch.num_rows for batch in batches] == [2, 2, 1]
    vectors = {f"{n}.v.npy": npy(np.ones(len(png()), np.float32)) for n in range(5)}
    members = dict(sorted({**vectors, **{f"{n}.png": png() for n in range(5)}}.items()))
    source = opened({"x.tar": archive(members)}, embedding="v.npy")
    assert [batch.num_rows for batch in source.partitions[0].batches()] == [1] * 5, "vectors take memory too"


@pytest.mark.parametrize(
    ("config", "message"),
    [
        ({"label": "clss"}, "data.source.label: {path}: no sample has 'clss'; did you mean 'cls'?"),
        ({"label": "json:y"}, "data.source.label: {path}: no sample has 'json:y'; name a key of the .json members"),
        ({"embedding": "vector.npy"}, "data.source.embedding: {path}: no sample has 'vector.npy'; known: cls, png"),
        (
            {"image": ("tif", "bmp")},
            "data.source.image: {path}: expected one of the extensions tif, bmp, found cls, png; name that of the "
            "images",
        ),
        (
            {"attributes": ("age",)},
            "data.source.attributes: {path}: no sample has 'age' in its .json; name keys of the .json members",
        ),
    ],
)
def test_what_no_sample_has_is_named(opened: Opener, tmp_path: Path, config: dict[str, Any], message: str) -> None:
    with pytest.raises(UserError) as caught:
        opened({"x.tar": WHOLE}, **config)
    assert str(caught.value) == message.format(path=tmp_path / "tars")


def test_labels_that_are_no_classes_are_refused(opened: Opener, monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(UserError, match=r"data.source.label: .*tars: cls: expected class names, or whole numbers"):
        opened({"x.tar": archive({"a.png": png(), "a.cls": b"cat", "b.png": png(), "b.cls": b"3"})})
    monkeypatch.setattr("pipeline.data.sources.labels.MAX_CLASSES", 2)
    with pytest.raises(UserError, match=r"data.source.label: .*tars: cls: expected at most 2 classes, found more"):
        opened({"x.tar": WHOLE})


def test_a_place_without_tars_or_samples_is_named(opened: Opener, tmp_path: Path) -> None:
    with pytest.raises(UserError) as caught:
        opened({"notes.txt": b""})
    assert str(caught.value) == (
        f"data.source.path: {tmp_path}/tars: no tars; set it to a folder that holds .tar, .tar.gz, .tgz files, to one "
        "of them, or to a pattern such as folder/train-*.tar"
    )
    with pytest.raises(UserError, match=r"none-\{0..3\}.tar: no tars; set it to"):
        opened({}, path=str(tmp_path / "tars" / "none-{0..3}.tar"))
    os.mkfifo(tmp_path / "tars" / "pipe.tar")
    with pytest.raises(UserError, match=r"pipe.tar: expected a file, found a folder, pipe, socket or device"):
        opened({})
    (tmp_path / "tars" / "pipe.tar").unlink()
    with pytest.raises(UserError, match="expected samples, found none in 1 tars"):
        opened({"x.tar": archive({})})


@pytest.mark.parametrize("form", [tarfile.GNU_FORMAT, tarfile.PAX_FORMAT])
def test_a_long_name_without_its_member_is_an_error(opened: Opener, form: int) -> None:
    tar = archive({f"{'long' * 30}{n}.png": png(n) for n in range(2)}, form)
    with pytest.raises(UserError, match=r"x.tar: from byte 1,024 on it cannot be read: a second header about one"):
        opened({"x.tar": tar[:1024] + tar[2048:]})  # two blocks of the name, one of the header, one of the content


def test_an_attribute_that_only_some_samples_have_is_no_mistake(opened: Opener) -> None:
    tars = {
        "x.tar": archive({"a.png": png(), "a.json": b"{}"}),
        "y.tar": archive({"b.png": png(), "b.json": b"no", "c.png": png(), "c.json": b'{"age": null}'}),
    }
    assert opened(tars, attributes=("age",)).attributes == ("age",)


def test_measurements_and_names_of_rows_are_no_labels(opened: Opener) -> None:
    members = {"a.png": png(), "a.cls": b"0.5", "b.png": png(), "b.cls": b"1"}
    with pytest.raises(UserError, match=r"tars: cls: expected class names or whole numbers, found 0.5; write it into"):
        opened({"x.tar": archive(members)})
    many = {f"{n}.{kind}": data for n in range(1001) for kind, data in (("cls", b"name %d" % n), ("png", b""))}
    with pytest.raises(UserError, match=r"tars: cls: expected classes, found 1,001 labels: nearly every row has"):
        opened({"x.tar": archive(many)})


@pytest.mark.parametrize(
    ("names", "splits"),
    [
        (("train-0.tar", "val-0.tar.gz", "test-0.tgz"), ["test", "train", "val"]),
        (("train/train-000000.tar", "valid/valid-000000.tar", "test/test-000000.tar"), ["test", "train", "val"]),
        (("train-0.tar", "train-1.tar"), None),
        (("train-0.tar", "test-0.tar", "other.tar"), None),
    ],
)
def test_names_of_all_tars_tell_the_splits(
    opened: Opener, tmp_path: Path, capsys: pytest.CaptureFixture[str], names: tuple[str, ...], splits: Any
) -> None:
    tar = archive(samples(1))
    source = opened({name: tar if name.endswith(".tar") else gzip.compress(tar) for name in names})
    assert rows(source)["split"].to_pylist() == (splits or [None] * len(names))
    expected = tuple(split for split in ("train", "val", "test") if split in (splits or ()))
    assert source.official == expected
    said = f"{tmp_path}/tars: splits {', '.join(expected)} from the names of the files\n"
    assert capsys.readouterr().err == (said if splits else "")


def test_messages_have_the_path_that_the_user_gave(
    opened: Opener, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    (part,) = opened({"x.tar": WHOLE}, path="tars").partitions
    monkeypatch.chdir("/")
    assert sum(batch.num_rows for batch in part.batches()) == 3, "another process reads it from elsewhere"
    (tmp_path / "tars" / "x.tar").write_bytes(WHOLE[:1000])
    with pytest.raises(UserError, match=r"^tars/x.tar: from byte"):
        list(part.batches())
