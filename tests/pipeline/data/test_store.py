"""A folder of shards as verified local files: its own, or copies in the node's cache."""

import os
import shutil
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
from small_shards import ROWS, age, write_small

from pipeline import files
from pipeline.data.config import ReadConfig
from pipeline.data.index import Manifest
from pipeline.data.places import LocalFolder
from pipeline.data.store import Store, open_store
from pipeline.data.verified import Mode
from pipeline.errors import UserError

FIRST = "train/train-000000.tar"


@pytest.fixture
def shards(tmp_path: Path) -> Path:
    write_small(tmp_path / "shards")
    return tmp_path / "shards"


@pytest.fixture
def config(tmp_path: Path) -> Callable[..., ReadConfig]:
    def make(verify: Mode = "once") -> ReadConfig:
        return ReadConfig(cache=str(tmp_path / "cache"), verify=verify, remote_timeout_s=2)

    return make


@pytest.fixture
def hashed(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """Names of the files whose bytes were read to check them."""
    names: list[str] = []

    def sha256(path: Path, real: Callable[[Path], str] = files.sha256) -> str:
        names.append(path.name)
        return real(path)

    monkeypatch.setattr(files, "sha256", sha256)
    return names


def flip(path: Path, at: int = 700) -> None:
    content = bytearray(path.read_bytes())
    content[at] ^= 1
    path.write_bytes(content)


class Elsewhere(LocalFolder):
    """A folder whose first answers for each shard are damaged on the way."""

    def __init__(self, folder: Path, bad: int) -> None:
        super().__init__(folder)
        self.bad = bad

    def fetch(self, name: str, to: Path) -> None:
        super().fetch(name, to)
        if self.bad:
            self.bad -= 1
            flip(to)


def test_local_raw_shards_are_read_where_they_lie(shards: Path, config: Callable[..., ReadConfig]) -> None:
    store = open_store(shards, config())
    assert (store.local, store.location) == (True, str(shards))
    store.check_split("train")
    assert [store.raw(entry) for entry in store.manifest.shards] == [shards / e.name for e in store.manifest.shards]
    assert not list(shards.parent.glob("cache/*.tar"))


def test_the_index_gives_columns_of_a_split(shards: Path, config: Callable[..., ReadConfig]) -> None:
    store = open_store(shards, config())
    assert store.index(["key"])["key"].to_pylist()[::30] == ["train-00000000", "train-00000030", "val-00000007"]
    val = store.index(["label", "attributes"], "val")
    assert (val.column_names, len(val)) == (["label", "attributes"], ROWS["val"][0])
    assert val["label"].to_pylist() == [row % 3 for row in range(9)]


@pytest.mark.parametrize("encoding", ["raw", "png"])
def test_every_place_gives_the_same_bytes(tmp_path: Path, encoding: str, config: Callable[..., ReadConfig]) -> None:
    write_small(tmp_path / "raw")
    write_small(tmp_path / "shards", encoding=encoding)
    for shards in (tmp_path / "shards", f"file://{tmp_path}/shards"):
        store = open_store(shards, config())
        store.check_split("train")
        for entry in store.manifest.shards:
            assert store.raw(entry).read_bytes() == (tmp_path / "raw" / entry.name).read_bytes()
            assert store.tar(entry).read_bytes() == (tmp_path / "shards" / entry.name).read_bytes()
        assert store.index(["key"]).equals(open_store(tmp_path / "raw", config()).index(["key"]))
        shutil.rmtree(tmp_path / "cache")


def test_threads_may_share_a_store(tmp_path: Path, config: Callable[..., ReadConfig]) -> None:
    write_small(tmp_path / "shards", encoding="png")
    store = open_store(f"file://{tmp_path}/shards", config())
    with ThreadPoolExecutor(8) as pool:
        paths = list(pool.map(store.raw, store.manifest.shards * 4))
    assert len(set(paths)) == len(store.manifest.shards)


def test_once_reads_each_file_once_a_node(shards: Path, config: Callable[..., ReadConfig], hashed: list[str]) -> None:
    age(shards / "index.parquet")
    open_store(shards, config()).check_split("train")
    assert sorted(hashed) == ["index.parquet", *(f"train-00000{n}.tar" for n in range(3))]
    hashed.clear()
    again = open_store(shards, config())
    again.check_split("train")
    again.raw(again.manifest.shards[0])
    assert hashed == []
    os.utime(shards / FIRST)
    again.check_split("train")
    assert hashed == ["train-000000.tar"]


def test_always_reads_each_file_once_an_opening(
    shards: Path, config: Callable[..., ReadConfig], hashed: list[str]
) -> None:
    for _ in range(2):
        store = open_store(shards, config("always"))
        store.check_split("train")
        store.raw(store.manifest.shards[0])
        store.index(["key"])
    assert sorted(hashed) == sorted(["index.parquet", *(f"train-00000{n}.tar" for n in range(3))] * 2)


def test_never_compares_lengths_alone(shards: Path, config: Callable[..., ReadConfig], hashed: list[str]) -> None:
    flip(shards / FIRST)
    open_store(shards, config("never")).check_split("train")
    assert hashed == []
    (shards / FIRST).write_bytes(b"")
    with pytest.raises(UserError, match=r"train-000000.tar: expected [\d,]+ bytes, found 0; restore"):
        open_store(shards, config("never")).check_split("train")


@pytest.mark.parametrize("replace", [False, True], ids=["written to", "exchanged"])
def test_a_stamp_does_not_hide_a_change(shards: Path, config: Callable[..., ReadConfig], replace: bool) -> None:
    open_store(shards, config()).check_split("train")
    before, path = (shards / FIRST).stat(), shards / FIRST
    if replace:  # a file with the same time, as `cp -p` leaves it
        shutil.copy(path, shards / "copy")
        (shards / "copy").replace(path)
    flip(path)
    if replace:
        os.utime(path, ns=(before.st_atime_ns, before.st_mtime_ns))
    with pytest.raises(UserError, match=r"train-000000.tar: damaged or exchanged: expected sha256"):
        open_store(shards, config()).check_split("train")


def test_a_file_that_was_just_written_gets_no_stamp(
    shards: Path, config: Callable[..., ReadConfig], hashed: list[str]
) -> None:
    later = time.time_ns() + 10**7
    os.utime(shards / FIRST, ns=(later, later))
    for _ in range(2):
        open_store(shards, config()).check_split("train")
    assert hashed.count("train-000000.tar") == 2


def test_local_shards_need_no_cache(shards: Path, config: Callable[..., ReadConfig]) -> None:
    (shards.parent / "cache").touch()  # no folder can be made there
    store = open_store(shards, config())
    store.check_split("train")
    store.raw(store.manifest.shards[0])
    away = open_store(f"file://{shards}", config())
    away.check_split("train")
    with pytest.raises(UserError, match=r"compute.cache: .*/cache: .*; make it a folder that this user may write"):
        away.raw(away.manifest.shards[0])


def test_every_problem_is_a_line_up_to_ten(shards: Path, config: Callable[..., ReadConfig]) -> None:
    flip(shards / FIRST)
    (shards / "train/train-000002.tar").unlink()
    for number in range(9):
        (shards / f"train/more-{number}.tar").touch()
    with pytest.raises(UserError) as error:
        open_store(shards, config()).check_split("train")
    lines = str(error.value).splitlines()
    assert len(lines) == 11
    assert all(
        line.startswith(f"{shards}/train/") and f"`rm -r {shards} && dvc checkout`" in line for line in lines[:-1]
    )
    assert lines[9].startswith(f"{shards}/train/train-000000.tar: damaged or exchanged")
    assert lines[10] == f"{shards}: and 1 more; `python -m pipeline verify {shards}` lists them"


def test_other_splits_are_not_looked_at(shards: Path, config: Callable[..., ReadConfig]) -> None:
    flip(shards / FIRST)
    open_store(shards, config()).check_split("val")
    with pytest.raises(UserError, match="no split 'test'; there are train, val"):
        open_store(shards, config()).check_split("test")


@pytest.mark.parametrize("encoding", ["raw", "png"])
def test_a_bad_download_is_tried_once_more(tmp_path: Path, encoding: str, config: Callable[..., ReadConfig]) -> None:
    manifest = write_small(tmp_path / "there", encoding=encoding)
    store = remote(manifest, tmp_path / "there", config(), bad=1)
    assert store.raw(manifest.shards[0]).stat().st_size
    store = remote(manifest, tmp_path / "there", config(), bad=2)
    with pytest.raises(
        UserError, match=rf"^remote://shards/{FIRST.replace('0.tar', '1.tar')}: damaged or exchanged: .*, twice; "
    ):
        store.raw(manifest.shards[1])
    assert not list((tmp_path / "cache").glob(".*"))
    assert store.raw(manifest.shards[1]).exists()


def remote(manifest: Manifest, folder: Path, read: ReadConfig, bad: int) -> Store:
    class Remote:
        location = "remote://shards"
        inner = Elsewhere(folder, 0)

        def read(self, name: str) -> bytes:
            return self.inner.read(name)

        def fetch(self, name: str, to: Path) -> None:
            self.inner.fetch(name, to)

        def names(self) -> list[str]:
            return self.inner.names()

    place = Remote()
    store = Store(place, manifest, read)
    store.index(["key"])
    place.inner.bad = bad
    return store


@pytest.mark.parametrize(
    ("address", "message"),
    [
        ("foo://bucket/shards", "foo://bucket/shards: not a folder, and no address that fsspec opens"),
        ("abfs://bucket/shards", r"the package for abfs:// is missing; install it with `pip install 'adlfs'`"),
    ],
)
def test_an_address_that_cannot_be_opened(address: str, message: str, config: Callable[..., ReadConfig]) -> None:
    with pytest.raises(UserError, match=message):
        open_store(address, config())


def test_a_missing_object_is_an_error_at_once(tmp_path: Path, config: Callable[..., ReadConfig]) -> None:
    with pytest.raises(UserError, match=rf"file://{tmp_path}/none/manifest.json: no such object"):
        open_store(f"file://{tmp_path}/none", config())
    with pytest.raises(UserError, match=r"none/manifest.json: no such file; write the shards with `dvc repro shard`"):
        open_store(tmp_path / "none", config())
