"""Shards from an address: a manifest whose digest fits proves nothing of who wrote it."""

import hashlib
import json
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import fsspec
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from small_shards import LAYOUT, write_small
from strangers import bounded

from pipeline import files
from pipeline.data.config import ReadConfig
from pipeline.data.encoded import transcode
from pipeline.data.index import INDEX, MANIFEST, _digest, parse_manifest
from pipeline.data.node_cache import NodeCache
from pipeline.data.peer import ShardServer
from pipeline.data.split_reader import open_split
from pipeline.data.verified import Verified
from pipeline.errors import UserError

NAMES = ["../../secret", "/etc/passwd", "train/../../../secret.tar", "train/..tar", "train/a\nb.tar", "train\\x.tar",
         "train/a/../b.tar", "test/train-0.tar", "", ".", "~/x.tar", "train/\x1b[2J.tar"]  # fmt: skip
VALUES = [
    None,
    -1,
    2**70,
    1.5,
    True,
    "",
    "x",
    "../../../secret",
    "\x1b[2J",
    [],
    {},
    ["../../x"],
    {"a": "b"},
    float("nan"),
]


@pytest.fixture
def shards(home: Path) -> Path:
    write_small(home / "shards")
    return home / "shards"


def sealed(content: dict[str, Any]) -> bytes:
    """A manifest with the digest of its content, as anyone can make it."""
    return json.dumps({**content, "digest": _digest(content)}).encode()


def content_of(shards: Path) -> dict[str, Any]:
    content: dict[str, Any] = json.loads((shards / MANIFEST).read_bytes())
    del content["digest"]
    return content


def use(shards: Path | str, split: str = "train") -> int:
    """Open a split and read all of it."""
    opened = open_split(shards, split, ReadConfig(cache="cache", remote_timeout_s=2))
    rows = np.arange(len(opened), dtype=np.int64)
    return len(opened.batch(rows).images)


def attempt(shards: Path) -> str | None:
    """What the error says where there is one."""
    try:
        use(shards)
    except UserError as error:
        return str(error)
    return None


def paths_of(node: Any, at: tuple[Any, ...] = ()) -> Iterator[tuple[Any, ...]]:
    yield at
    for key, child in node.items() if isinstance(node, dict) else enumerate(node) if isinstance(node, list) else ():
        yield from paths_of(child, (*at, key))


def changed(content: dict[str, Any], at: tuple[Any, ...], value: Any) -> dict[str, Any]:
    copy: dict[str, Any] = json.loads(json.dumps(content))
    node = copy
    for key in at[:-1]:
        node = node[key]
    node[at[-1]] = value
    return copy


@pytest.mark.parametrize("name", NAMES)
def test_a_name_that_leads_out_is_refused_wherever_it_is_read(home: Path, shards: Path, name: str) -> None:
    (home.parent / "secret").read_bytes()
    data = sealed(changed(content_of(shards), ("shards", 0, "name"), name))
    (shards / MANIFEST).write_bytes(data)
    for read in (lambda: use(shards), lambda: parse_manifest(data, "s3://bucket"), lambda: ShardServer(str(shards))):
        with pytest.raises(
            UserError, match=r"manifest\.json: describes no shards: .* is not the name of a shard"
        ) as error:
            read()
        assert "\n" not in str(error.value)
    assert {path.name for path in home.iterdir()} <= {"shards", "cache"}


@pytest.mark.parametrize("key", ["sha256", "index"])
@pytest.mark.parametrize(
    "digest", ["../../x", "0" * 63, "0" * 65, "G" * 64, "A" * 64, f"{'0' * 64}\n", f"../{'0' * 64}"]
)
def test_a_digest_that_is_a_path_is_refused_before_it_names_a_file_of_the_cache(
    home: Path, shards: Path, key: str, digest: str
) -> None:
    at = ("index",) if key == "index" else ("shards", 0, "sha256")
    store = fsspec.filesystem("memory")
    for path in shards.rglob("*"):
        if path.is_file():
            store.pipe_file(f"/hostile/{path.relative_to(shards)}", path.read_bytes())
    store.pipe_file(f"/hostile/{MANIFEST}", sealed(changed(content_of(shards), at, digest)))
    with pytest.raises(UserError, match="expected a sha256 of 64 digits"):
        use("memory://hostile")
    assert not (home / "cache").exists()
    store.rm("/hostile", recursive=True)


def test_every_value_of_a_manifest_may_be_wrong(shards: Path) -> None:
    content, used = content_of(shards), 0
    with bounded(100, 20):
        for at in [path for path in paths_of(content) if path]:
            for value in VALUES:
                (shards / MANIFEST).write_bytes(sealed(changed(content, at, value)))
                said = attempt(shards)
                assert said is None or str(shards) in said, (at, value)
                used += said is None
    assert used  # names, of the data set for instance, may be any


@pytest.mark.parametrize(
    "data",
    [b"", b"[]", b"1", b"{}", b'{"digest": "x"}', b"[" * 100_000, b"9" * 10_000, b'{"digest": {"a":' * 5000,
     b"\xff\xfe", b'{"digest":"x","version":"\\u001b[2J"}'],
)  # fmt: skip
def test_what_is_no_manifest_is_one_line(data: bytes) -> None:
    with bounded(50, 5), pytest.raises(UserError, match=r"^folder/manifest\.json: [^\n]*$"):
        parse_manifest(data, "folder")


def with_index(shards: Path, change: Callable[[pa.Table], pa.Table] | bytes) -> None:
    """Exchange the index, and name its digest in the manifest."""
    path = shards / INDEX
    if isinstance(change, bytes):
        path.write_bytes(change)
    else:
        pq.write_table(change(pq.read_table(path)), path)
    (shards / MANIFEST).write_bytes(sealed({**content_of(shards), "index": files.sha256(path)}))


def column(name: str, values: pa.Array | Callable[[pa.Array], pa.Array]) -> Callable[[pa.Table], pa.Table]:
    def change(table: pa.Table) -> pa.Table:
        new = values(table[name].combine_chunks()) if callable(values) else values
        return table.set_column(table.schema.get_field_index(name), name, new)

    return change


INDEXES: dict[str, Callable[[pa.Table], pa.Table] | bytes] = {
    "no Parquet": b"PAR1" + b"\0" * 100 + b"PAR1",
    "empty": b"",
    "no rows": lambda table: table.slice(0, 0),
    "few rows": lambda table: table.slice(0, 30),
    "twice the rows": lambda table: pa.concat_tables([table, table]),
    "no label": lambda table: table.drop_columns(["label"]),
    "no split": lambda table: table.drop_columns(["split"]),
    "label as text": column("label", lambda old: pa.array(["../../x"] * len(old))),
    "label too large": column("label", lambda old: pa.array([2**40] * len(old))),
    "label negative": column("label", lambda old: pa.array([-1] * len(old))),
    "label missing": column("label", lambda old: pa.array([None] * len(old), pa.int64())),
    "attributes as text": column("attributes", lambda old: pa.array(["x"] * len(old))),
    "attributes missing": column("attributes", lambda old: pa.array([None] * len(old), old.type)),
    "attributes of another length": column(
        "attributes", lambda old: pa.array([[1.0]] * len(old), pa.list_(pa.float32(), 1))
    ),
    "attributes of texts": column(
        "attributes", lambda old: pa.array([["a", "b"]] * len(old), pa.list_(pa.string(), 2))
    ),
    "other splits": column("split", lambda old: pa.array(["test"] * len(old))),
}


@pytest.mark.parametrize("case", INDEXES)
def test_an_index_that_contradicts_its_manifest_is_refused(shards: Path, case: str) -> None:
    with_index(shards, INDEXES[case])
    with bounded(100, 10), pytest.raises(UserError, match=r"shards") as error:
        use(shards)
    assert "\n" not in str(error.value)


PLACES: list[tuple[list[int], list[int]]] = [
    ([-1, -1], [10, 10]),
    ([0, 0], [10, 10]),
    ([2**62, 2**62], [2**62, 2**62]),
    ([512, 512], [2**63 - 1, 10]),
    ([LAYOUT.payload_at, LAYOUT.payload_at], [-5, -5]),
    ([LAYOUT.payload_at + 1, LAYOUT.payload_at + 1], [10, 10]),
    ([LAYOUT.payload_at, 10**9], [10, 10]),
]


@pytest.mark.parametrize("places", PLACES)
def test_places_in_an_encoded_shard_lead_nowhere_else(home: Path, places: tuple[list[int], list[int]]) -> None:
    write_small(home / "png", encoding="png")
    tar = home / "png" / "train" / "train-000000.tar"
    offsets, sizes = (np.array(values, np.int64) for values in places)
    with bounded(50, 5), pytest.raises(UserError, match=rf"^{tar}: "):
        transcode(tar, LAYOUT, offsets, sizes, home / "raw.tar")
    assert {path.name for path in home.iterdir()} == {"png"}


def test_an_encoded_shard_with_another_image_is_refused(home: Path) -> None:
    """The digest of the tar is right, because who wrote the manifest wrote the tar too."""
    shards = home / "png"
    write_small(shards, encoding="png")
    tar = shards / "train" / "train-000000.tar"
    data = bytearray(tar.read_bytes())
    at = data.index(b"\x89PNG")
    data[at + 16 : at + 24] = (60_000).to_bytes(4, "big") * 2
    tar.write_bytes(data)
    content = content_of(shards)
    content["shards"][0]["sha256"] = hashlib.sha256(data).hexdigest()
    (shards / MANIFEST).write_bytes(sealed(content))
    with bounded(50, 5), pytest.raises(UserError, match="not the image that was written"):
        use(shards)


def test_the_peer_gives_out_no_file_behind_a_link_or_path(home: Path, shards: Path) -> None:
    server = ShardServer(str(shards))
    for name in (*NAMES, "../cache", "train", "train/", "./manifest.json", "manifest.json/../manifest.json"):
        assert server.read(name, 0, 100) is None, name
    assert server.read(MANIFEST, 0, 10) == (shards / MANIFEST).read_bytes()[:10]


@pytest.mark.parametrize("name", ["../x.tar", f"../{'0' * 64}.tar", f"{'0' * 64}.tar/../../x.tar", "/etc/passwd"])
def test_a_cache_makes_no_file_of_another_name(home: Path, name: str) -> None:
    cache = NodeCache(home / "cache", 10**6, Verified(home / "cache" / "verified", "once"))
    with pytest.raises(AssertionError):
        cache.get(name, lambda path: path.touch())
    shutil.rmtree(home / "cache", ignore_errors=True)
    assert list(home.iterdir()) == []
