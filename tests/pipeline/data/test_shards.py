"""Shards: ordinary WebDataset tars with the right content, the same bytes for any number of writers."""

import gc
import io
import tarfile
import zlib
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from pipeline import runtime
from pipeline.config import ComputeConfig, ShardConfig
from pipeline.data import shards, table
from pipeline.data.index import read_manifest
from pipeline.data.ingest import prepare
from pipeline.data.loader import open_split
from pipeline.data.shape import Shape
from pipeline.data.shard_writer import write_group
from pipeline.data.split import SPLITS
from pipeline.data.tar import Layout, key
from pipeline.errors import UserError


def contents(folder: Path) -> dict[str, bytes]:
    return {str(path.relative_to(folder)): path.read_bytes() for path in sorted(folder.rglob("*")) if path.is_file()}


def samples(folder: Path) -> dict[str, tuple[np.ndarray, int | None]]:
    """Every sample by key, through tarfile alone."""
    found: dict[str, tuple[np.ndarray, int | None]] = {}
    for path in sorted(folder.rglob("*.tar")):
        with tarfile.open(path) as tar:
            members = {member.name: tar.extractfile(member).read() for member in tar}
        for name in (name for name in members if name.endswith(".npy")):
            stem = name.removesuffix(".npy")
            assert stem not in found
            label = members.get(f"{stem}.cls")
            found[stem] = np.load(io.BytesIO(members[name])), None if label is None else int(label)
    return found


def by_content(data: Path, split: str) -> list[tuple[bytes, int]]:
    rows = pq.read_table(data / "prepared").filter(pa.compute.field("split") == split)
    return sorted(zip(rows["image"].to_pylist(), rows["label"].to_pylist(), strict=True))


def test_tarfile_finds_every_prepared_row_once(digits: Path) -> None:
    found = samples(digits / "shards")
    for split in SPLITS:
        there = {name: sample for name, sample in found.items() if name.startswith(split)}
        assert sorted(there) == [key(split, row) for row in range(len(there))]
        assert sorted((image.tobytes(), label) for image, label in there.values()) == by_content(digits, split)
    assert {(image.shape, image.dtype.name) for image, _ in found.values()} == {((8, 8, 1), "uint8")}


@pytest.mark.filterwarnings("ignore::ResourceWarning", "ignore::pytest.PytestUnraisableExceptionWarning")
@pytest.mark.parametrize("split", SPLITS)
def test_plain_webdataset_reads_every_sample_once(digits: Path, split: str) -> None:
    import webdataset

    paths = [str(path) for path in sorted((digits / "shards" / split).glob("*.tar"))]
    read = list(webdataset.WebDataset(paths, shardshuffle=False, empty_check=False).decode())
    ours = open_split(digits / "shards", split)
    rows = np.arange(len(ours))
    assert [sample["__key__"] for sample in read] == [key(split, row) for row in rows]
    np.testing.assert_array_equal(np.stack([sample["npy"] for sample in read]), ours.images(rows))
    assert [sample["cls"] for sample in read] == ours.labels(rows).tolist()
    gc.collect()  # webdataset leaves its files open; closed here, they warn in no other test


def test_headers_hold_no_time_and_no_user(digits: Path) -> None:
    for path in (digits / "shards").rglob("*.tar"):
        assert path.stat().st_size % 10240 == 0
        assert path.read_bytes().endswith(bytes(1024))
        with tarfile.open(path) as tar:
            for member in tar:
                assert member.isreg()
                assert (member.mtime, member.uid, member.gid, member.mode) == (0, 0, 0, 0o644)
                assert (member.uname, member.gname, member.pax_headers) == ("", "", {})


@settings(deadline=None)
@given(
    st.tuples(st.integers(1, 40), st.integers(1, 40), st.integers(1, 4)),
    st.integers(0, 1001),
    st.integers(1, 30),
    st.integers(0, 10**8 - 30),
)
def test_any_layout_is_what_tarfile_would_write(
    shape: tuple[int, int, int], classes: int, rows: int, first: int
) -> None:
    layout = Layout(Shape(*shape), classes)
    generator = np.random.default_rng(rows)
    images = generator.integers(0, 256, (rows, layout.shape.size), np.uint8)
    labels = generator.integers(0, max(classes, 1), rows)
    tar = np.zeros(layout.file_bytes(rows), np.uint8)
    view = layout.samples(tar, rows)
    layout.write_frame(view, "val", first)
    layout.images(view)[:] = images
    if classes:
        layout.write_labels(view, np.arange(rows), labels)
        np.testing.assert_array_equal(layout.labels(view), labels)
    assert tar.tobytes() == by_tarfile(images.reshape(rows, *shape), labels if classes else None, layout, first)


def by_tarfile(images: np.ndarray, labels: np.ndarray | None, layout: Layout, first: int) -> bytes:
    stream = io.BytesIO()
    with tarfile.open(fileobj=stream, mode="w", format=tarfile.USTAR_FORMAT) as tar:
        for row, image in enumerate(images):
            npy = io.BytesIO()
            np.save(npy, image)
            members = {"npy": npy.getvalue()}
            if labels is not None:
                members["cls"] = f"{labels[row]:0{layout.label_digits}d}".encode()
            for kind, content in members.items():
                member = tarfile.TarInfo(f"{key('val', first + row)}.{kind}")
                member.size = len(content)
                tar.addfile(member, io.BytesIO(content))
    return stream.getvalue()


def test_the_index_points_at_every_payload(digits: Path) -> None:
    folder = digits / "shards"
    index = pq.read_table(folder / "index.parquet").to_pylist()
    assert [row["key"] for row in index] == sorted(samples(folder), key=lambda k: (SPLITS.index(k.split("-")[0]), k))
    found = samples(folder)
    for row in index:
        with (folder / row["shard"]).open("rb") as file:
            file.seek(row["offset"])
            payload = file.read(row["size"])
        assert zlib.crc32(payload) == row["crc32"]
        image, label = found[row["key"]]
        np.testing.assert_array_equal(np.load(io.BytesIO(payload)), image)
        assert (row["label"], row["split"]) == (label, row["key"].split("-")[0])


def test_the_manifest_tells_what_is_there(digits: Path) -> None:
    manifest = read_manifest(digits / "shards")
    assert manifest.counts == {split: len(by_content(digits, split)) for split in SPLITS}
    for split, count in manifest.counts.items():
        rows = [entry.rows for entry in manifest.of_split(split)]
        assert sum(rows) == count
        assert max(rows) - min(rows) <= 1
    assert max(entry.bytes for entry in manifest.shards) <= 400_000 + 10240
    assert len(manifest.of_split("train")) > 3
    train = np.concatenate([np.frombuffer(image, np.uint8) for image, _ in by_content(digits, "train")]) / 255
    assert manifest.mean == (pytest.approx(train.mean(), rel=1e-12),)
    assert manifest.std == (pytest.approx(train.std(), rel=1e-12),)
    assert (manifest.source, manifest.classes, manifest.shape) == ("digits", tuple("0123456789"), Shape(8, 8, 1))


def test_statistics_are_by_channel(
    tmp_path: Path, make_source: Any, make_rows: Any, make_config: Any, shard: Callable[..., Path]
) -> None:
    prepare(make_source(make_rows(100, size=12), Shape(2, 2, 3)), make_config(), tmp_path)
    split = open_split(shard(tmp_path), "train")
    pixels = split.images(np.arange(len(split))) / 255
    assert split.manifest.mean == pytest.approx(pixels.mean((0, 1, 2)).tolist(), rel=1e-12)
    assert split.manifest.std == pytest.approx(pixels.std((0, 1, 2)).tolist(), rel=1e-12)


def test_data_without_classes_have_no_labels(
    tmp_path: Path, make_source: Any, make_rows: Any, make_config: Any, shard: Callable[..., Path]
) -> None:
    prepare(make_source(make_rows(60, classes=0), classes=""), make_config(), tmp_path)
    folder = shard(tmp_path)
    assert {label for _, label in samples(folder).values()} == {None}
    assert pq.read_table(folder / "index.parquet")["label"].null_count == 60
    assert open_split(folder, "train").labels(np.arange(3)) is None
    assert open_split(folder, "train").spec.num_classes == 0


def test_rows_are_permuted_by_the_seed(
    tmp_path: Path, make_source: Any, make_rows: Any, make_config: Any, shard: Callable[..., Path]
) -> None:
    rows = sorted(make_rows(200), key=lambda row: row["label"])
    prepare(make_source(rows), make_config(), tmp_path)
    labels = {}
    for seed in (0, 1):
        split = open_split(shard(tmp_path, seed=seed), "train")
        labels[seed] = split.labels(np.arange(len(split)))
    assert (labels[0] != labels[1]).any()
    assert (np.diff(labels[0]) != 0).sum() > 30, "rows sorted by class stayed sorted"


@pytest.mark.parametrize("writers", [2, 3, 50])
def test_the_bytes_do_not_depend_on_the_number_of_writers(
    tmp_path: Path, make_source: Any, make_rows: Any, make_config: Any, shard: Callable[..., Path], writers: int
) -> None:
    prepare(make_source(make_rows(150)), make_config(), tmp_path)
    alone = contents(shard(tmp_path, shard_bytes=20_000))
    assert len(alone) > 10
    assert contents(shard(tmp_path, shard_bytes=20_000, writers=writers)) == alone


@pytest.mark.filterwarnings("ignore")
def test_ray_tasks_write_the_same_bytes_and_leave_nothing_else(
    tmp_path: Path, make_source: Any, make_rows: Any, make_config: Any, shard: Callable[..., Path]
) -> None:
    compute = ComputeConfig(
        address=None, workers="auto", storage=str(tmp_path), downloads=str(tmp_path), checkpoint_every_steps=1,
        max_failures=0)  # fmt: skip
    data = tmp_path / "data"
    prepare(make_source(make_rows(2000)), make_config(), data)
    expected = contents(shard(data, shard_bytes=200_000))
    config = ShardConfig(seed=0, shard_bytes=200_000)
    with runtime.cluster(compute):
        shards.write_shards(data, config, compute)
        assert contents(data / "shards") == expected
        damage(data / "prepared" / "part-00000.parquet")
        with pytest.raises(UserError, match=r"part-00000.parquet: damaged .*; run `dvc repro -f ingest`$"):
            shards.write_shards(data, config, compute)
    assert contents(data / "shards") == expected
    assert sorted(path.name for path in data.iterdir()) == ["dataset.json", "prepared", "quarantine.parquet", "shards"]


def damage(part: Path) -> None:
    """Flip a bit in the middle of the images of the first row group."""
    column = pq.ParquetFile(part).metadata.row_group(0).column(1)
    at = column.data_page_offset + column.total_compressed_size // 2
    content = bytearray(part.read_bytes())
    content[at] ^= 1
    part.write_bytes(content)


def test_a_kill_leaves_the_old_shards_whole(
    tmp_path: Path, make_source: Any, make_rows: Any, make_config: Any, shard: Callable[..., Path], monkeypatch: Any
) -> None:
    prepare(make_source(make_rows(100)), make_config(), tmp_path)
    before = contents(shard(tmp_path))
    monkeypatch.setattr(shards, "write_manifest", lambda *_: (_ for _ in ()).throw(KeyboardInterrupt))
    with pytest.raises(KeyboardInterrupt):
        shard(tmp_path, seed=1)
    assert contents(tmp_path / "shards") == before


def test_what_a_killed_writer_left_is_overwritten(digits: Path, tmp_path: Path) -> None:
    dataset, layout = shards.read_dataset(digits)
    plans = shards.plan(digits, dataset["counts"], layout, ShardConfig(seed=0, shard_bytes=400_000))[:1]
    shards.make_folders(tmp_path)
    (tmp_path / "train" / ".train-000000.tar.tmp").write_bytes(b"x" * 1_000_000)
    write_group(digits / "prepared", tmp_path, layout, plans)
    assert [path.name for path in (tmp_path / "train").iterdir()] == ["train-000000.tar"]
    written = (tmp_path / "train" / "train-000000.tar").read_bytes()
    assert written == (digits / "shards" / "train" / "train-000000.tar").read_bytes()


def test_too_many_shards_for_one_task_are_dealt_to_more() -> None:
    groups = shards.deal(list(range(1000)), 2)  # type: ignore[arg-type]
    assert len(groups) == 4
    assert sorted(item for group in groups for item in group) == list(range(1000))


def test_missing_or_other_prepared_rows_are_refused(tmp_path: Path, digits: Path, shard: Callable[..., Path]) -> None:
    with pytest.raises(UserError, match=r"dataset.json: no such file; prepare the data with `dvc repro ingest`"):
        shards.read_dataset(tmp_path)
    dataset, layout = shards.read_dataset(digits)
    counts = {**dataset["counts"], "val": 3}
    with pytest.raises(UserError, match=r"prepared: expected 3 val rows, found \d+"):
        shards.plan(digits, counts, layout, ShardConfig(seed=0, shard_bytes=4096))


@settings(deadline=None)
@given(st.integers(1, 60), st.integers(4096, 200_000), st.integers(0, 2**64 - 1))
def test_a_plan_holds_every_row_once_in_shards_of_nearly_one_size(rows: int, shard_bytes: int, seed: int) -> None:
    layout = Layout(Shape(8, 8, 1), 10)
    numbers = np.arange(rows) * 3
    plans = list(shards.cut("train", numbers, layout, shard_bytes))
    np.testing.assert_array_equal(np.concatenate([plan.rows for plan in plans]), numbers)
    sizes = [len(plan.rows) for plan in plans]
    assert max(sizes) - min(sizes) <= 1
    assert max(sizes) * layout.stride <= max(shard_bytes, layout.stride)
    assert [plan.first for plan in plans] == np.cumsum([0, *sizes[:-1]]).tolist()


def test_pixels_of_a_slice_are_its_own() -> None:
    column = pa.array([bytes([i] * 4) for i in range(5)], pa.binary(4))
    assert table.pixels(column[2:4]).tolist() == [[2] * 4, [3] * 4]
