"""Nodes that share no disk with the driver read its shards through Ray."""

from collections.abc import Iterator
from pathlib import Path

import pytest
from small_shards import write_small

from pipeline.data.config import ReadConfig
from pipeline.data.peer import PeerFolder, serve
from pipeline.data.places import LocalFolder, open_place
from pipeline.data.store import open_store
from pipeline.errors import UserError


@pytest.fixture
def read(tmp_path: Path) -> ReadConfig:
    return ReadConfig(cache=str(tmp_path / "cache"), remote_timeout_s=2)


@pytest.fixture
def served(tmp_path: Path, ray_cluster: None) -> Iterator[str]:
    write_small(tmp_path / "shards")
    with serve(tmp_path / "shards") as name:
        yield name


def test_the_drivers_shards_reach_a_node_without_them(
    served: str, tmp_path: Path, read: ReadConfig, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("pipeline.data.peer.PIECE_BYTES", 10240)  # some shards are a whole number of pieces
    here, there = open_store(tmp_path / "shards", read), open_store(tmp_path / "none", read, served)
    assert (there.manifest, there.location) == (here.manifest, here.location)
    there.check_split("train")
    assert there.index(["key"]).equals(here.index(["key"]))
    for entry in here.manifest.shards:
        assert there.raw(entry) != here.raw(entry)
        assert there.raw(entry).read_bytes() == here.raw(entry).read_bytes()


def test_a_node_with_other_shards_takes_the_drivers(served: str, tmp_path: Path, read: ReadConfig) -> None:
    write_small(tmp_path / "older", seed=1)
    assert isinstance(open_place(tmp_path / "shards", 2, served), LocalFolder)
    assert isinstance(open_place(tmp_path / "older", 2, served), PeerFolder)


def test_the_driver_gives_out_nothing_else(served: str, tmp_path: Path) -> None:
    (tmp_path / "shards/secret").touch()
    for name in ("secret", "../secret", "/etc/passwd"):
        with pytest.raises(UserError, match="no such file on the driver's node"):
            PeerFolder(served).read(name)


def test_a_driver_that_is_gone_is_named(tmp_path: Path, ray_cluster: None) -> None:
    write_small(tmp_path / "shards")
    with serve(tmp_path / "shards") as name:
        place = PeerFolder(name)
    for use in (lambda: PeerFolder(name), lambda: place.read("manifest.json")):
        with pytest.raises(UserError, match=rf"^{name}: the process that serves the driver's shards is gone; "):
            use()
