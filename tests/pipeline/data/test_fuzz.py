"""Damaged inputs: each is a row that is used, a row of the ledger, or an error that names the file; nothing is lost."""

import faulthandler
import gzip
import hashlib
import io
import json
import struct
import sys
import tarfile
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import suppress
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from image_samples import image_samples
from mutations import mutants
from PIL import Image
from prepared_data import prepare_random
from pyarrow import csv
from small_shards import write_small

from pipeline.data.config import (
    Columns,
    DataConfig,
    HuggingFaceSource,
    ImageConfig,
    ImageFolderSource,
    NumpySource,
    ParquetSource,
    PublishedSource,
    ReadConfig,
    ShardConfig,
    WebDatasetSource,
)
from pipeline.data.index import INDEX, MANIFEST
from pipeline.data.ingest import prepare
from pipeline.data.shape import Shape
from pipeline.data.shards import write_here
from pipeline.data.sources.base import Source
from pipeline.data.sources.fetch import DataFile, Download
from pipeline.data.sources.huggingface import open_huggingface
from pipeline.data.sources.idx import inflate, parse
from pipeline.data.sources.image_folder import open_image_folder
from pipeline.data.sources.mnist import IdxSet, open_idx_set
from pipeline.data.sources.numpy_arrays import open_numpy
from pipeline.data.sources.parquet import open_parquet
from pipeline.data.sources.webdataset_tars import open_webdataset
from pipeline.data.split_reader import open_split
from pipeline.errors import UserError
from pipeline.operate.verify import verify

USED, LEDGER, ERROR = "used", "ledger", "error"
ROWS = 24  # of a table, array or tar
SECONDS = 120  # of one test: a hang ends with a traceback

COUNTS = {
    "images": 900, "idx": 240, "parquet": 360, "tar": 360, "npy": 120, "npz": 60, "arrow": 240, "shards": 240,
    "prepared": 120, "dataset": 120, "table": 240,
}  # fmt: skip

CONFIG = DataConfig(
    source=PublishedSource(kind="digits"),
    image=ImageConfig(size=(4, 4), max_pixels=10**6),
    validation_fraction=0.3,
    test_fraction=0.3,
    max_bad_fraction=1.0,
)


@pytest.fixture(autouse=True)
def _no_hang() -> Iterator[None]:
    faulthandler.dump_traceback_later(SECONDS, exit=True, file=sys.__stderr__)
    yield
    faulthandler.cancel_dump_traceback_later()


def test_two_thousand_inputs_are_damaged() -> None:
    assert sum(COUNTS.values()) >= 2000


def attempt(use: Callable[[], Any]) -> tuple[Any, str]:
    """What `use` returns, or what its UserError says."""
    try:
        return use(), ""
    except UserError as error:
        return None, str(error)


def account(open_source: Callable[[], Source], name: str, out: Path, least: int = ROWS, most: int = ROWS) -> str:
    """What became of a source of `least` to `most` rows in a file whose name starts with `name`."""
    source, said = attempt(open_source)
    if not said:
        facts, said = attempt(lambda: prepare([source], CONFIG, out))
    if said:
        assert name in said or str(out / "fuzzed") in said or (source and f" of {source.rows} rows" in said), said
        return ERROR
    ids = pq.read_table(out / "prepared", columns=["id"])["id"].to_pylist()
    ledger = pq.read_table(out / "quarantine.parquet").to_pylist()
    assert facts["rows_in"] == source.rows == len(ids) + len(ledger)
    assert least <= source.rows <= most
    assert len({*ids, *(entry["id"] for entry in ledger)}) == source.rows
    assert all(entry["source"] and entry["error"] and entry["detail"] for entry in ledger)
    return LEDGER if ledger else USED


def report(what: str, found: Counter[str], tests: int, *expected: str) -> None:
    print(f"{what}: {sum(found.values())} inputs, {dict(sorted(found.items()))}")
    assert sum(found.values()) == COUNTS[what] // tests
    assert {kind for kind in (USED, LEDGER, ERROR) if found[kind]} >= {*expected}


def test_damaged_image_files(tmp_path: Path) -> None:
    samples = image_samples()
    folder, names = tmp_path / "images", set()
    each = COUNTS["images"] // len(samples)
    assert each * len(samples) == COUNTS["images"]
    for seed, (sample, data) in enumerate(samples.items()):
        (folder / sample.split(".")[1]).mkdir(parents=True, exist_ok=True)
        for number, mutant in enumerate(mutants(data, each, seed)):
            name = f"{sample.split('.')[1]}/{number:03d}-{sample}"
            (folder / name).write_bytes(mutant)
            names.add(name)
    source = open_image_folder(ImageFolderSource(kind="image_folder", path=str(folder)), None, 10**6)
    facts = prepare([source], CONFIG, tmp_path)
    used = pq.read_table(tmp_path / "prepared", columns=["id"])["id"].to_pylist()
    ledger = pq.read_table(tmp_path / "quarantine.parquet")
    assert facts["rows_in"] == len(names) == len(used) + ledger.num_rows
    assert {*used, *ledger["id"].to_pylist()} == names
    assert facts["quarantined"] == Counter(ledger["error"].to_pylist())
    report("images", Counter({USED: len(used), LEDGER: ledger.num_rows}), 1, USED, LEDGER)


def idx(values: np.ndarray) -> bytes:
    return struct.pack(f">HBB{values.ndim}I", 0, 8, values.ndim, *values.shape) + values.tobytes()


def test_damaged_idx_files(tmp_path: Path) -> None:
    random, contents = np.random.default_rng(0), {}
    for part in ("train", "test"):
        contents[f"{part}-images"] = idx(random.integers(0, 256, (ROWS, 4, 4), np.uint8))
        contents[f"{part}-labels"] = idx(np.arange(ROWS, dtype=np.uint8) % 3)
    files = tuple(DataFile(name, hashlib.sha256(data).hexdigest(), len(data)) for name, data in contents.items())
    download = Download(name="small", files=files, mirrors=(), package="no package", unpack=lambda *_: None)
    which = IdxSet(download, Shape(4, 4, 1), ("0", "1", "2"))
    found = Counter()
    for number, name in enumerate(contents):
        for packed in (False, True):
            folder = tmp_path / f"{name}-{packed}"
            folder.mkdir()
            for other, data in contents.items():
                (folder / f"{other}.gz").write_bytes(gzip.compress(data, mtime=0))
            (folder / f"{name}.gz").unlink()
            data = gzip.compress(contents[name], mtime=0) if packed else contents[name]
            path = folder / (f"{name}.gz" if packed else name)
            for mutant in mutants(data, COUNTS["idx"] // 8, number * 2 + packed):
                path.write_bytes(mutant)
                found[
                    account(partial(open_idx_set, which, str(folder), tmp_path), name, tmp_path, 2 * ROWS, 2 * ROWS)
                ] += 1
    report("idx", found, 1, USED, ERROR)


@pytest.mark.parametrize("axes", [1, 3])
def test_a_damaged_idx_array_is_as_long_as_its_header_says(tmp_path: Path, axes: int) -> None:
    data = idx(np.zeros((5, 4, 3)[:axes], np.uint8))
    for mutant in mutants(data, 200, axes):
        (tmp_path / "file").write_bytes(mutant)
        with suppress(ValueError):
            values = parse(inflate(tmp_path / "file", 1000), axes)
            assert mutant == mutant[: 4 + 4 * axes] + values.tobytes()


def pngs(count: int) -> list[bytes]:
    out = []
    for pixels in np.random.default_rng(count).integers(0, 256, (count, 4, 4), np.uint8):
        file = io.BytesIO()
        Image.fromarray(pixels).save(file, "PNG")
        out.append(file.getvalue())
    return out


def columns(count: int) -> dict[str, Any]:
    return {
        "label": pa.array([f"class {row % 3}" for row in range(count)]),
        "width": pa.array([row / 2 for row in range(count)]),
        "clip": pa.array([[row, 1.0] for row in range(count)], pa.list_(pa.float32())),
    }


MEANING = Columns(label="label", attributes=("width",), embedding="clip")


def test_damaged_parquet_files(tmp_path: Path) -> None:
    path, found = tmp_path / "fuzzed.parquet", Counter()
    pixels = np.random.default_rng(0).integers(0, 256, (ROWS, 16), np.uint8)
    arrays = [pixels[row].tobytes() for row in range(ROWS)]
    images = {
        None: pa.array([{"bytes": data, "path": None} for data in pngs(ROWS)]),
        (4, 4, 1): pa.array(arrays, pa.binary(16)),
    }
    for seed, (shape, image) in enumerate(images.items()):
        for compression in ("none", "snappy", "zstd"):
            file = io.BytesIO()
            pq.write_table(
                pa.table({"image": image, **columns(ROWS)}), file, row_group_size=8, compression=compression,
                write_page_checksum=True,
            )  # fmt: skip
            config = ParquetSource(kind="parquet", path=str(path), shape=shape, columns=MEANING)
            for mutant in mutants(file.getvalue(), COUNTS["parquet"] // 6, 10 * seed + len(compression)):
                path.write_bytes(mutant)
                found[account(partial(open_parquet, config, None), "fuzzed", tmp_path)] += 1
    report("parquet", found, 1, ERROR)


@pytest.mark.parametrize("kind", ["csv", "parquet"])
def test_damaged_tables_beside_images(tmp_path: Path, kind: str) -> None:
    """A row of the table and a file that do not find each other are both in the ledger."""
    folder, path, found = tmp_path / "images", tmp_path / f"fuzzed.{kind}", Counter()
    folder.mkdir()
    for row, data in enumerate(pngs(ROWS)):
        (folder / f"{row:02d}.png").write_bytes(data)
    names = pa.array([f"{row:02d}.png" for row in range(ROWS)])
    table = pa.table({"file": names, **{name: columns(ROWS)[name] for name in ("label", "width")}})
    (csv.write_csv if kind == "csv" else pq.write_table)(table, path)
    config = ImageFolderSource(
        kind="image_folder", path=str(folder), labels="table", table=str(path),
        columns=Columns(label="label", attributes=("width",)),
    )  # fmt: skip
    for mutant in mutants(path.read_bytes(), COUNTS["table"] // 2, 0):
        path.write_bytes(mutant)
        found[account(partial(open_image_folder, config, None, 10**6), "fuzzed", tmp_path, ROWS, 3 * ROWS)] += 1
    report("table", found, 2, ERROR, *([USED, LEDGER] if kind == "csv" else []))


def npy(array: Any) -> bytes:
    file = io.BytesIO()
    np.save(file, array)
    return file.getvalue()


def tar_of(form: int) -> bytes:
    """ROWS samples of four members each; but for USTAR their names need extended headers."""
    file = io.BytesIO()
    with tarfile.open(fileobj=file, mode="w", format=form) as tar:
        for row, data in enumerate(pngs(ROWS)):
            key = f"{row:03d}" if form == tarfile.USTAR_FORMAT else f"{'long' * 30}é{row:03d}"
            members = {"png": data, "cls": str(row % 3).encode(), "json": b'{"width": %d}' % row}
            for extension, content in {**members, "clip.npy": npy(np.ones(2, np.float32))}.items():
                info = tarfile.TarInfo(f"{key}.{extension}")
                info.size = len(content)
                tar.addfile(info, io.BytesIO(content))
    return file.getvalue()


@pytest.mark.parametrize("form", [tarfile.USTAR_FORMAT, tarfile.GNU_FORMAT, tarfile.PAX_FORMAT])
@pytest.mark.parametrize(("name", "step"), [("fuzzed.tar", 1), ("fuzzed.tar", tarfile.BLOCKSIZE), ("fuzzed.tar.gz", 1)])
def test_damaged_tars(tmp_path: Path, form: int, name: str, step: int) -> None:
    """What is still a tar has the samples that another reader finds: nothing tells of members taken out whole."""
    path, found = tmp_path / name, Counter()
    config = WebDatasetSource(kind="webdataset", path=str(path), attributes=("width",), embedding="clip.npy")
    packed = name.endswith(".gz")
    data = gzip.compress(tar_of(form), mtime=0) if packed else tar_of(form)
    for mutant in mutants(data, COUNTS["tar"] // 9, form + 3 * step, step=step):
        path.write_bytes(mutant)
        least = ROWS if packed else len(keys_in(path))
        found[account(partial(open_webdataset, config, None, 10**6), "fuzzed", tmp_path, least, 5 * ROWS)] += 1
    report("tar", found, 9, ERROR, *([] if packed else [USED]))


def keys_in(path: Path) -> set[str]:
    """Of the samples that the standard library finds."""
    try:
        with tarfile.open(path) as tar:
            return {key for name in tar.getnames() if (key := name.split(".")[0])[-3:].isdigit()}
    except (tarfile.TarError, UnicodeError, EOFError, OSError):
        return set()


@pytest.mark.parametrize("kind", ["npy", "npz"])
def test_damaged_arrays(tmp_path: Path, kind: str) -> None:
    path, found = tmp_path / f"fuzzed.{kind}", Counter()
    images = np.random.default_rng(0).random((ROWS, 4, 4), np.float32)
    others = {"labels": np.arange(ROWS) % 3, "attributes": np.ones((ROWS, 2)), "groups": np.array(["a", "bé"] * 12)}
    if kind == "npz":
        np.savez_compressed(path, images=images, **others)
        config = NumpySource(kind="npz", path=str(path), **{name: name for name in others})
        sound = {path: path.read_bytes()}
    else:
        sound = {tmp_path / f"fuzzed-{name}.npy": npy(values) for name, values in others.items()} | {path: npy(images)}
        config = NumpySource(kind="npy", path=str(path), **{name: f"fuzzed-{name}.npy" for name in others})
    for seed, (damaged, data) in enumerate(sound.items()):
        for other, content in sound.items():
            other.write_bytes(content)
        for mutant in mutants(data, COUNTS[kind] // len(sound), seed):
            damaged.write_bytes(mutant)
            found[account(partial(open_numpy, config, None, tmp_path / "cache"), "fuzzed", tmp_path)] += 1
    report(kind, found, 1, ERROR, *([USED] if kind == "npy" else []))


def test_damaged_arrow_files(tmp_path: Path) -> None:
    folder, found = tmp_path / "fuzzed", Counter()
    folder.mkdir()
    image = pa.array([{"bytes": data, "path": None} for data in pngs(ROWS)])
    table = pa.table({"image": image, **columns(ROWS)})
    file = io.BytesIO()
    with pa.ipc.new_stream(file, table.schema) as stream:
        stream.write_table(table, max_chunksize=10)
    features = {"image": {"_type": "Image"}, "label": {"_type": "Value", "dtype": "string"}}
    sound = {
        folder / "data-00000-of-00001.arrow": file.getvalue(),
        folder / "state.json": json.dumps({"_data_files": [{"filename": "data-00000-of-00001.arrow"}]}).encode(),
        folder / "dataset_info.json": json.dumps({"features": features}).encode(),
    }
    config = HuggingFaceSource(kind="huggingface", path=str(folder), columns=MEANING)
    for seed, (damaged, data) in enumerate(sound.items()):
        for other, content in sound.items():
            other.write_bytes(content)
        share = COUNTS["arrow"] * 2 // 3 if seed == 0 else COUNTS["arrow"] // 6
        for mutant in mutants(data, share, seed):
            damaged.write_bytes(mutant)
            found[account(partial(open_huggingface, config, None), damaged.name, tmp_path)] += 1
    report("arrow", found, 1, USED, LEDGER, ERROR)


def contents(folder: Path, read: ReadConfig) -> list[Any]:
    """Every row of every split."""
    out: list[Any] = []
    for split in ("train", "val"):
        found = open_split(folder, split, read)
        rows = np.arange(len(found))
        out += [found.images(rows).tobytes(), found.labels(rows).tobytes(), found.attributes(rows).tobytes()]
        out.append(found.embeddings(rows).tobytes())
    return out


@pytest.mark.parametrize("encoding", ["raw", "png"])
def test_damaged_shards(tmp_path: Path, encoding: Any) -> None:
    """A damage that is not an error has changed nothing that is read."""
    folder, found = tmp_path / "shards", Counter()
    write_small(folder, encoding=encoding)
    read = ReadConfig(cache=str(tmp_path / "cache"))
    sound = contents(folder, read)
    for seed, name in enumerate([MANIFEST, INDEX, "train/train-000001.tar", "val/val-000000.tar"]):
        data = (folder / name).read_bytes()
        for mutant in mutants(data, COUNTS["shards"] // 8, seed):
            (folder / name).write_bytes(mutant)
            found[shards_outcome(folder, name, sound, read)] += 1
        (folder / name).write_bytes(data)
    assert contents(folder, read) == sound
    report("shards", found, 2, ERROR)


def shards_outcome(folder: Path, name: str, sound: list[Any], read: ReadConfig) -> str:
    found, said = attempt(lambda: contents(folder, read))
    _, verified = attempt(lambda: verify(str(folder), read))
    assert bool(said) == bool(verified)
    assert (name in said and name in verified) if said else found == sound, said
    return ERROR if said else USED


def test_damaged_prepared_tables(tmp_path: Path) -> None:
    """Shards are what they would have been, or there are none."""
    data = prepare_random(tmp_path / "data", (60,), attributes=("width",), embedding=2)
    found, config = Counter(), ShardConfig(seed=0, shard_bytes=65536)
    sound = (write_here(data, config) / MANIFEST).read_bytes()
    for seed, path in enumerate(sorted((data / "prepared").iterdir())):
        content = path.read_bytes()
        for mutant in mutants(content, COUNTS["prepared"] // 2, seed):
            path.write_bytes(mutant)
            shards, said = attempt(lambda: write_here(data, config))
            assert str(data / "prepared") in said if said else (shards / MANIFEST).read_bytes() == sound
            found[ERROR if said else USED] += 1
        path.write_bytes(content)
    report("prepared", found, 1, ERROR)


def test_damaged_descriptions_of_the_prepared_table(tmp_path: Path) -> None:
    """Nothing vouches for the names in dataset.json; all else must fit the rows, of which none is lost."""
    data = prepare_random(tmp_path / "data", (60,), attributes=("width",), embedding=2)
    path, found, config = data / "dataset.json", Counter(), ShardConfig(seed=0, shard_bytes=65536)
    for mutant in mutants(path.read_bytes(), COUNTS["dataset"], 0):
        path.write_bytes(mutant)
        shards, said = attempt(lambda: write_here(data, config))
        assert str(data) in said if said else pq.read_metadata(shards / INDEX).num_rows == 60
        found[ERROR if said else USED] += 1
    report("dataset", found, 1, USED, ERROR)
