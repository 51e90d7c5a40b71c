"""Where and how shards are read: it changes nothing that is computed, and other shards are refused."""

from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from pipeline.data.config import ReadConfig
from pipeline.data.index import read_manifest, write_manifest
from pipeline.data.store import cache_folder
from pipeline.errors import UserError
from pipeline.train import worker
from pipeline.train.config import ComputeConfig
from pipeline.train.loop import train
from pipeline.train.run import Reading, TrainRun


@pytest.fixture(autouse=True)
def fast_disk(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("os.fsync", lambda descriptor: None)


def outcome(directory: Path) -> dict[str, bytes]:
    """Every byte of the final checkpoint, and every row of figures."""
    (last,) = (directory / "checkpoints").glob("step-000000020-*")
    return {last.name: last.read_bytes(), "rows": (directory / "metrics.jsonl").read_bytes()}


@pytest.mark.parametrize("where", ["address", "device cache", "address and device cache"])
def test_how_shards_are_read_changes_nothing(
    where: str, shards: Path, trained: Mapping[str, Path], make_run: Callable[..., TrainRun], tmp_path: Path
) -> None:
    reading = Reading(
        shards=f"file://{shards}" if "address" in where else shards,
        read=ReadConfig(cache=str(tmp_path / "cache")),
        device_cache="device cache" in where,
    )
    run = replace(make_run("vqvae"), reading=reading)
    assert run.name == make_run("vqvae").name
    train(run, tmp_path / "run", on_epoch=lambda *_: None, checkpoint_every_steps=4)
    assert outcome(tmp_path / "run") == outcome(trained["vqvae"])


def test_other_shards_than_those_of_the_run_are_refused(make_run: Callable[..., TrainRun], tmp_path: Path) -> None:
    run = replace(make_run(), data="0" * 64)
    with pytest.raises(
        UserError, match=r"expected the shards with digest 0{64}, found [0-9a-f]{64}; copy data/shards "
    ):
        train(run, tmp_path, on_epoch=lambda *_: None, checkpoint_every_steps=4)


def test_places_are_the_same_from_any_working_directory(
    make_compute: Callable[..., ComputeConfig], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    plain = Reading.of(Path("data/shards"), make_compute(cache="c", remote_timeout_s=3.0))
    read = ReadConfig(cache="c", cache_below=str(tmp_path), remote_timeout_s=3.0)
    assert plain == Reading(shards=tmp_path / "data/shards", read=read, device_cache="auto")
    (tmp_path / "far/shards").mkdir(parents=True)
    (tmp_path / "far/shards/manifest.json").touch()
    assert Reading.of(Path("data/shards"), make_compute(shards="far/shards")).shards == tmp_path / "far/shards"
    assert Reading.of(Path("data/shards"), make_compute(shards="s3://bucket/shards")).shards == "s3://bucket/shards"
    assert Reading.of(Path("data/shards"), make_compute(device_cache=True)).device_cache is True


def test_the_cache_of_a_node_without_the_drivers_folder_is_below_its_home(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("HOME", str(tmp_path))
    read = ReadConfig(cache=".cache/shards")
    assert cache_folder(read) == Path.cwd() / ".cache/shards"
    assert cache_folder(replace(read, cache_below=str(tmp_path))) == tmp_path / ".cache/shards"
    assert cache_folder(replace(read, cache_below="/no/such")) == tmp_path / ".vae-pipeline/.cache/shards"
    assert cache_folder(replace(read, cache="~/fast", cache_below="/no/such")) == tmp_path / "fast"


def test_a_machine_without_the_shards_asks_the_place_that_has_them(
    shards: Path, tmp_path: Path, make_run: Callable[..., TrainRun], make_compute: Callable[..., ComputeConfig]
) -> None:
    here = make_run()
    compute = make_compute(shards=f"file://{shards}", cache=str(tmp_path / "cache"))
    there = TrainRun.of(here.model, here.train, tmp_path / "none", compute)
    assert (there.data, there.name) == (here.data, here.name)
    with pytest.raises(UserError, match=r"none/manifest.json: no such file"):
        TrainRun.of(here.model, here.train, tmp_path / "none", make_compute())


def test_a_place_that_cannot_be_right_is_told_before_ray_starts(
    shards: Path,
    tmp_path: Path,
    make_run: Callable[..., TrainRun],
    make_compute: Callable[..., ComputeConfig],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(worker.runtime, "cluster", None)
    run = make_run()
    empty = make_compute(shards=str(tmp_path))
    with pytest.raises(UserError, match=rf"^params.yaml: compute.shards: {tmp_path}/manifest.json: no such file; copy"):
        TrainRun.of(run.model, run.train, shards, empty)
    manifest = read_manifest(shards)
    write_manifest(tmp_path, replace(manifest, source="another"))
    others = make_compute(shards=f"file://{tmp_path}")
    run = TrainRun.of(run.model, run.train, shards, others)
    with pytest.raises(UserError, match=rf"^file://{tmp_path}: expected the shards with digest .*; copy data/shards "):
        worker.fit(run, tmp_path / "run", others, what="train", total_steps=20)


@pytest.mark.parametrize(
    ("shards", "address", "peer"),
    [
        (Path("/data/shards"), None, None),
        (Path("/data/shards"), "auto", "server"),
        ("s3://bucket/shards", "auto", None),
    ],
)
def test_a_folder_is_served_to_the_nodes_of_a_cluster(
    shards: str | Path, address: str | None, peer: str | None, make_compute: Callable[..., ComputeConfig],
    monkeypatch: pytest.MonkeyPatch,
) -> None:  # fmt: skip
    @contextmanager
    def serve(folder: Path) -> Iterator[str]:
        served.append(folder)
        yield "server"
        served.append("ended")

    served: list[Any] = []
    monkeypatch.setattr(worker.peer, "serve", serve)
    reading = Reading(shards=shards)
    with worker.served(reading, make_compute(address=address)) as given:
        assert given == replace(reading, peer=peer)
    assert served == ([shards, "ended"] if peer else [])
