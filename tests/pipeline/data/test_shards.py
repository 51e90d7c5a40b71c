"""Shards: ordinary WebDataset tars with the right content, the same bytes for any number of writers."""

import errno
import io
import json
import os
import re
import shutil
import signal
import subprocess
import sys
import tarfile
import zlib
from contextlib import nullcontext
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from prepared_data import SHAPE, prepare_random, prepared_rows

from pipeline import files, runtime
from pipeline.data import external_shuffle, index_rows, shards, table
from pipeline.data.config import ShardConfig
from pipeline.data.external_shuffle import runs
from pipeline.data.index import read_manifest
from pipeline.data.order import permutation, philox
from pipeline.data.shape import Shape
from pipeline.data.shard_plan import cut, read_dataset, shard_plans
from pipeline.data.shards import deal, write_here
from pipeline.data.split import SPLITS
from pipeline.data.tar import Layout, key
from pipeline.errors import UserError
from pipeline.train.config import ComputeConfig

SMALL = 20_000  # bytes of a shard: about ten samples
ATTRIBUTES = ("size", "x")


def config(**changes: Any) -> ShardConfig:
    return ShardConfig(**{"seed": 0, "shard_bytes": SMALL, **changes})


def contents(folder: Path) -> dict[str, bytes]:
    return {str(path.relative_to(folder)): path.read_bytes() for path in sorted(folder.rglob("*")) if path.is_file()}


def samples(folder: Path) -> dict[str, dict[str, Any]]:
    """Every sample by key, through tarfile, json and numpy alone."""
    found: dict[str, dict[str, Any]] = {}
    for path in sorted(folder.rglob("*.tar")):
        with tarfile.open(path) as tar:
            for member in tar:
                name, kind = member.name.split(".", 1)
                assert kind not in found.setdefault(name, {})
                found[name][kind] = decoded(kind, tar.extractfile(member).read())
    return found


def decoded(kind: str, content: bytes) -> Any:
    if kind == "cls":
        return int(content)
    if kind == "json":
        return {name: np.float32(value) for name, value in json.loads(content).items()}
    return np.load(io.BytesIO(content), allow_pickle=False)


def comparable(sample: dict[str, Any]) -> tuple[Any, ...]:
    """A sample as it would be in the prepared table."""
    attributes = tuple(float(value) for value in sample["json"].values()) if "json" in sample else None
    embedding = tuple(sample["embedding.npy"].tolist()) if "embedding.npy" in sample else None
    return sample["npy"].tobytes(), sample.get("cls"), attributes, embedding


def row_content(row: dict[str, Any]) -> tuple[Any, ...]:
    vectors = (None if row[name] is None else tuple(row[name]) for name in ("attributes", "embedding"))
    return row["image"], row["label"], *vectors


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Two generations with everything a sample can have, sharded. Not to be changed."""
    data = prepare_random(tmp_path_factory.mktemp("shards") / "data", (120, 60), attributes=ATTRIBUTES, embedding=5)
    write_here(data, config())
    return data


@pytest.mark.parametrize(
    "facts",
    [
        {},
        {"classes": 0},
        {"classes": 12, "attributes": ("a",)},
        {"classes": 0, "attributes": ATTRIBUTES, "embedding": 3},
        {"shape": Shape(4, 1, 3), "embedding": 200},
    ],
)
def test_tarfile_finds_every_prepared_row_once(tmp_path: Path, facts: dict[str, Any]) -> None:
    data = prepare_random(tmp_path, (80, 30), **facts)
    found = samples(write_here(data, config()))
    for split in SPLITS:
        there = {name: sample for name, sample in found.items() if name.startswith(f"{split}-")}
        assert sorted(there) == [key(split, row) for row in range(len(there))]
        assert sorted(map(comparable, there.values()), key=repr) == sorted(
            map(row_content, prepared_rows(data, split)), key=repr
        )
    shape = facts.get("shape", SHAPE)
    assert {(sample["npy"].shape, sample["npy"].dtype.name) for sample in found.values()} == {(tuple(shape), "uint8")}
    for sample in found.values():
        assert ("cls" in sample) == (facts.get("classes", 3) > 0)
        assert tuple(sample.get("json", ())) == facts.get("attributes", ())


def test_headers_hold_no_time_and_no_user(data: Path) -> None:
    for path in (data / "shards").rglob("*.tar"):
        assert path.stat().st_size % 10240 == 0
        assert path.read_bytes().endswith(bytes(1024))
        with tarfile.open(path) as tar:
            for member in tar:
                assert member.isreg()
                assert (member.mtime, member.uid, member.gid, member.mode) == (0, 0, 0, 0o644)
                assert (member.uname, member.gname, member.pax_headers) == ("", "", {})


def test_the_index_points_at_every_image(data: Path) -> None:
    folder = data / "shards"
    index = pq.read_table(folder / "index.parquet")
    assert index.schema.field("shard").type == pa.dictionary(pa.int32(), pa.string())
    found = samples(folder)
    assert index["key"].to_pylist() == sorted(found, key=lambda name: (SPLITS.index(name.split("-")[0]), name))
    for row in index.to_pylist():
        with (folder / row["shard"]).open("rb") as file:
            file.seek(row["offset"])
            payload = file.read(row["size"])
        assert zlib.crc32(payload) == row["crc32"]
        sample = found[row["key"]]
        np.testing.assert_array_equal(np.load(io.BytesIO(payload)), sample["npy"])
        assert (row["label"], row["split"]) == (sample["cls"], row["key"].split("-")[0])
        assert row["attributes"] == [float(value) for value in sample["json"].values()]


def test_the_manifest_tells_what_is_there(data: Path) -> None:
    folder = data / "shards"
    manifest = read_manifest(folder)
    assert manifest.counts == {split: len(prepared_rows(data, split)) for split in SPLITS}
    for split in SPLITS:
        for generation in (0, 1):
            rows = [entry.rows for entry in manifest.of_split(split) if entry.generation == generation]
            assert sum(rows) == sum(row["generation"] == generation for row in prepared_rows(data, split))
            assert max(rows) - min(rows) <= 1
    for entry in manifest.shards:
        assert files.sha256(folder / entry.name) == entry.sha256
        assert (folder / entry.name).stat().st_size == entry.bytes <= SMALL + 10240
    assert manifest.index == files.sha256(folder / "index.parquet")
    assert [entry.name for entry in manifest.of_split("train")] == [
        f"train/train-{number:06d}.tar" for number in range(len(manifest.of_split("train")))
    ]
    assert (manifest.source, manifest.classes, manifest.shape) == ("random", ("class 0", "class 1", "class 2"), SHAPE)
    assert (manifest.mean, manifest.std) == ((0.2,), (0.1,))
    assert (manifest.attributes, manifest.embedding, manifest.encoding) == (ATTRIBUTES, 5, "raw")


def test_rows_are_permuted_by_the_seed_as_in_every_version(tmp_path: Path) -> None:
    data = prepare_random(tmp_path, (200, 100))
    for seed in (0, 1):
        found = samples(write_here(data, config(seed=seed)))
        for number, split in enumerate(SPLITS):
            start = 0
            for generation in (0, 1):
                mine = [row for row in prepared_rows(data, split) if row["generation"] == generation]
                rows = [row["image"] for row in sorted(mine, key=lambda row: row["id"])]
                order = permutation(len(rows), philox(seed, 3 * generation + number))
                there = [found[key(split, start + place)]["npy"].tobytes() for place in range(len(rows))]
                assert there == [rows[row] for row in order]
                start += len(rows)


@pytest.mark.parametrize(
    ("encoding", "writers", "group_bytes", "chunk_bytes"),
    [("raw", 2, 10**9, 10**9), ("raw", 5, 30_000, 10**9), ("raw", 1, 1, 100), ("png", 50, 60_000, 1)],
)
def test_the_bytes_depend_on_no_number_of_writers_groups_or_chunks(
    data: Path, tmp_path: Path, monkeypatch: Any, encoding: Any, writers: int, group_bytes: int, chunk_bytes: int
) -> None:
    shutil.copytree(data / "prepared", tmp_path / "prepared")
    shutil.copy(data / "dataset.json", tmp_path)
    monkeypatch.setattr(index_rows, "_ROW_GROUP", 32)
    alone = contents(write_here(tmp_path, config(encoding=encoding)))
    assert len(alone) > 30
    groups = pq.ParquetFile(tmp_path / "shards/index.parquet").metadata
    assert [groups.row_group(number).num_rows for number in range(groups.num_row_groups)] == [32] * 5 + [20]
    monkeypatch.setattr(external_shuffle, "CHUNK_BYTES", chunk_bytes)
    assert contents(write_here(tmp_path, config(encoding=encoding), writers=writers, group_bytes=group_bytes)) == alone


def test_the_bytes_do_not_depend_on_the_parts_of_the_table(tmp_path: Path) -> None:
    found = [
        contents(write_here(prepare_random(tmp_path / str(rows), (150, 31), part_rows=rows), config()))
        for rows in (1000, 40, 7)
    ]
    assert found[0] == found[1] == found[2]


@pytest.mark.parametrize("encoding", ["raw", "png"])
def test_a_new_generation_leaves_the_older_shards_as_they_are(tmp_path: Path, encoding: Any) -> None:
    before = write_here(prepare_random(tmp_path / "before", (150,), attributes=("a",)), config(encoding=encoding))
    after = write_here(prepare_random(tmp_path / "after", (150, 70), attributes=("a",)), config(encoding=encoding))
    old, new = read_manifest(before), read_manifest(after)
    for split in SPLITS:
        assert new.of_split(split)[: len(old.of_split(split))] == old.of_split(split)
        assert {entry.generation for entry in new.of_split(split)[len(old.of_split(split)) :]} == {1}
    tars = {name: content for name, content in contents(before).items() if name.endswith((".tar", ".tar.idx"))}
    assert tars.items() <= contents(after).items()
    indexes = [pq.read_table(folder / "index.parquet").to_pylist() for folder in (before, after)]
    kept = {entry.name for entry in old.shards}
    assert [row for row in indexes[1] if row["shard"] in kept] == indexes[0]


@pytest.mark.filterwarnings("ignore")
def test_ray_tasks_write_the_same_bytes_and_leave_nothing_else(tmp_path: Path, monkeypatch: Any) -> None:
    here = ComputeConfig(
        address=None, workers="auto", storage=str(tmp_path), downloads=str(tmp_path),
        checkpoint_every_steps=1, max_failures=0)  # fmt: skip
    elsewhere = replace(here, address="ray://elsewhere:1")
    started: list[ComputeConfig] = []
    data = prepare_random(tmp_path / "data", (600, 200), attributes=("a",), part_rows=300)
    expected = contents(write_here(data, config()))
    with runtime.cluster(here):
        monkeypatch.setattr(shards.runtime, "cluster", lambda compute: nullcontext(started.append(compute)))
        shards.write_shards(data, config(), elsewhere)
        assert started == [here]
        assert contents(data / "shards") == expected
        damage(data / "prepared" / "part-00000.parquet")
        with pytest.raises(UserError, match=r"part-00000.parquet: damaged .*; run `dvc repro -f ingest`$"):
            shards.write_shards(data, config(), elsewhere)
    assert contents(data / "shards") == expected
    assert sorted(path.name for path in data.iterdir()) == ["dataset.json", "prepared", "shards"]


def damage(part: Path) -> None:
    """Flip a bit in the middle of the images of the first row group."""
    column = pq.ParquetFile(part).metadata.row_group(0).column(1)
    at = column.data_page_offset + column.total_compressed_size // 2
    content = bytearray(part.read_bytes())
    content[at] ^= 1
    part.write_bytes(content)


def test_a_fault_leaves_the_old_shards_whole_and_nothing_else(tmp_path: Path, monkeypatch: Any) -> None:
    data = prepare_random(tmp_path)
    before = contents(write_here(data, config()))
    monkeypatch.setattr(shards, "write_manifest", lambda *_: (_ for _ in ()).throw(KeyboardInterrupt))
    with pytest.raises(KeyboardInterrupt):
        write_here(data, config(seed=1))
    assert contents(data / "shards") == before
    assert sorted(path.name for path in data.iterdir()) == ["dataset.json", "prepared", "shards"]


KILLED = """
import os, signal, sys
from pathlib import Path
from pipeline.data import shards
from pipeline.data.config import ShardConfig
write = shards.ShardWriter.write
def write_and_die(self, group):
    write(self, group)
    (self.folder / "train" / ".train-000001.tar.tmp").write_bytes(b"half")
    os.kill(os.getpid(), signal.SIGKILL)
shards.ShardWriter.write = write_and_die
shards.write_here(Path(sys.argv[1]), ShardConfig(seed=1, shard_bytes=20_000), writers=3)
"""


def test_what_a_killed_process_left_is_cleared_away(tmp_path: Path) -> None:
    data = prepare_random(tmp_path)
    before = contents(write_here(data, config()))
    died = subprocess.run([sys.executable, "-c", KILLED, data], cwd=os.getcwd(), capture_output=True)
    assert died.returncode == -signal.SIGKILL, died.stderr
    left = {re.sub(r"\d+", "N", path.name) for path in data.iterdir()}
    assert left == {"dataset.json", "prepared", "shards", ".shards.N.tmp", ".shards.scratch.N.tmp"}
    assert contents(data / "shards") == before
    assert contents(write_here(data, config())) == before
    assert sorted(path.name for path in data.iterdir()) == ["dataset.json", "prepared", "shards"]


def test_a_second_try_of_a_task_overwrites_the_first(tmp_path: Path) -> None:
    data = prepare_random(tmp_path)
    alone = contents(write_here(data, config()))

    def twice(function: Any, tasks: Any) -> Any:
        for task in tasks:
            if task == tasks[0] and hasattr(task, "shards"):
                path = function.__self__.folder / task.shards[0].name
                path.with_name(f".{path.name}.tmp").write_bytes(b"x" * 100_000)
            function(task)
            yield function(task)

    assert contents(shards.execute(shards.plan(data, config()), 3, twice)) == alone


def test_a_full_disk_is_said_in_one_line(tmp_path: Path, monkeypatch: Any) -> None:
    def full(*_: Any) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    data = prepare_random(tmp_path)
    monkeypatch.setattr(shards.ShardWriter, "write", full)
    with pytest.raises(UserError, match=r"shards: the disk is full: the shards take up to 0.0 GB.* make room"):
        write_here(data, config())
    assert sorted(path.name for path in data.iterdir()) == ["dataset.json", "prepared"]


def test_missing_or_other_prepared_rows_are_refused(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"dataset.json: no such file; prepare the data with `dvc repro ingest`"):
        read_dataset(tmp_path)
    data = prepare_random(tmp_path / "data", (50, 20))
    dataset = files.read_json(data / "dataset.json")
    dataset["generations"][1]["val"] += 1
    files.write_json(data / "dataset.json", dataset)
    with pytest.raises(UserError, match=r"prepared: expected \d+ val rows in generation 1, found \d+; .*dvc repro -f"):
        write_here(data, config())
    files.write_json(data / "dataset.json", {**dataset, "generations": dataset["generations"][:1]})
    with pytest.raises(UserError, match=r"prepared: expected 1 generations of rows, found more; .*dvc repro -f"):
        write_here(data, config())


@pytest.mark.parametrize(
    "change",
    [
        {"classes": None}, {"classes": [1]}, {"name": "\ud800"}, {"embedding": -1}, {"embedding": True}, {"files": []},
        {"image": {"height": 2, "width": 3}}, {"image": {"height": 0, "width": 3, "channels": 1}},
        {"generations": [{}]},
        {"counts": {"train": 1}}, {"statistics": {"mean": [0.5]}}, {"statistics": {"mean": [0, 0], "std": [1, 1]}},
        {"image": {"height": 3, "width": 3, "channels": 1}}, {"attributes": ["width"]},
    ],
)  # fmt: skip
def test_a_description_that_is_not_of_the_prepared_rows_is_refused(tmp_path: Path, change: dict[str, Any]) -> None:
    data = prepare_random(tmp_path / "data")
    dataset = files.read_json(data / "dataset.json")
    (data / "dataset.json").write_text(json.dumps(dataset | change))
    with pytest.raises(UserError, match=r"data/(dataset.json|prepared).*dvc repro -f ingest"):
        write_here(data, config())


@given(st.integers(0, 5000), st.integers(4096, 200_000))
def test_shards_are_of_nearly_one_size(rows: int, shard_bytes: int) -> None:
    layout = Layout(Shape(8, 8, 1), 10)
    borders = cut(rows, layout, shard_bytes)
    assert (borders[0], borders[-1]) == (0, rows)
    sizes = np.diff(borders)
    if rows:
        assert sizes.min() >= 1
        assert sizes.max() - sizes.min() <= 1
        assert sizes.max() * layout.stride <= max(shard_bytes, layout.stride)


@settings(max_examples=50)
@given(st.integers(3, 300), st.integers(4096, 40_000), st.integers(1, 9), st.integers(1, 200_000))
def test_groups_hold_every_shard_once_and_no_more_than_they_may(
    rows: int, shard_bytes: int, writers: int, group_bytes: int
) -> None:
    layout = Layout(Shape(8, 8, 1), 10)
    plans = list(shard_plans([{"train": rows, "val": 2, "test": 0}], layout, shard_bytes))
    groups = deal(plans, layout, writers, group_bytes)
    assert [shard for group in groups for shard in group.shards] == plans
    assert [group.number for group in groups] == list(range(len(groups)))
    for group in groups:
        size = sum(shard.rows for shard in group.shards) * layout.stride
        assert size <= group_bytes or len(group.shards) == 1


@given(st.lists(st.integers(1, 50), max_size=30), st.integers(1, 200))
def test_runs_hold_every_part_once(rows: list[int], wanted: int) -> None:
    parts = [(Path(str(number)), count) for number, count in enumerate(rows)]
    found = runs(parts, wanted)
    assert [path for run in found for path in run.paths] == [path for path, _ in parts]
    starts = {path: sum(rows[:number]) for number, (path, _) in enumerate(parts)}
    assert [run.first for run in found] == [starts[run.paths[0]] for run in found]


def test_pixels_of_a_slice_are_its_own() -> None:
    column = pa.array([bytes([i] * 4) for i in range(5)], pa.binary(4))
    assert table.pixels(column[2:4]).tolist() == [[2] * 4, [3] * 4]
