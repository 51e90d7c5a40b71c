"""Shards in an S3-compatible store, with its silences and refusals."""

import errno
import os
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from functools import partial
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any, ClassVar

import fsspec
import pytest
from fsspec.implementations.local import LocalFileSystem
from s3_server import Server
from small_shards import write_small

from pipeline.data import places
from pipeline.data.config import ReadConfig
from pipeline.data.places import RemoteFolder
from pipeline.data.store import open_store
from pipeline.errors import UserError
from pipeline.operate.upload import upload
from pipeline.operate.verify import verify

URI = "s3://bucket/shards"

READER = """
import sys
from pipeline.data.config import ReadConfig
from pipeline.data.store import open_store

store = open_store(sys.argv[1], ReadConfig(cache=sys.argv[2]))
for entry in store.manifest.shards:
    assert store.raw(entry).stat().st_size == entry.bytes
print(len(store.index(["key"])))
"""

FORKED = """
import os, sys
from pipeline.data.config import ReadConfig
from pipeline.data.store import open_store

store = open_store(sys.argv[1], ReadConfig(cache=sys.argv[2]))
store.raw(store.manifest.shards[0])
child = os.fork()
if child == 0:
    store.raw(store.manifest.shards[1])
    os._exit(0)
sys.exit(os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]))
"""


@pytest.fixture(scope="module")
def running(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    pytest.importorskip("s3fs")
    root = tmp_path_factory.mktemp("s3") / "root"
    write_small(root / "bucket/shards")
    write_small(root / "bucket/png", encoding="png")
    server = Server(root)
    server.start()
    yield server
    server.stop()


@pytest.fixture
def server(running: Server, monkeypatch: pytest.MonkeyPatch) -> Server:
    """Reached through the environment, as a user would set it."""
    for name in [name for name in os.environ if name.startswith("AWS_")]:
        monkeypatch.delenv(name)
    for name, value in running.environment.items():
        monkeypatch.setenv(name, value)
    running.log.write_text("")
    return running


@pytest.fixture
def read(tmp_path: Path) -> ReadConfig:
    return ReadConfig(cache=str(tmp_path / "cache"), remote_timeout_s=2)


@pytest.mark.parametrize("name", ["shards", "png"])
def test_a_cold_read_equals_a_local_one(server: Server, read: ReadConfig, name: str) -> None:
    there, here = open_store(f"s3://bucket/{name}/", read), open_store(server.root / "bucket" / name, read)
    there.check_split("train")
    assert (there.local, there.location, there.manifest) == (False, f"s3://bucket/{name}", here.manifest)
    assert there.index(["key", "attributes"]).equals(here.index(["key", "attributes"]))
    for entry in there.manifest.shards:
        assert there.raw(entry).read_bytes() == (server.root / "bucket/shards" / entry.name).read_bytes()


def run(script: str, *arguments: str) -> subprocess.Popen[str]:
    return subprocess.Popen([sys.executable, "-c", script, *arguments], stdout=subprocess.PIPE, text=True)


def test_a_node_asks_for_each_object_once(server: Server, read: ReadConfig) -> None:
    processes = [run(READER, URI, read.cache) for _ in range(3)]
    assert [process.communicate()[0] for process in processes] == ["62\n"] * 3
    gets = server.gets()
    assert gets.pop("shards/manifest.json") == 3  # small, and what all else is checked against
    manifest = open_store(URI, read).manifest
    assert gets == dict.fromkeys(["shards/index.parquet", *(f"shards/{entry.name}" for entry in manifest.shards)], 1)


def test_a_store_may_be_used_after_a_fork(server: Server, read: ReadConfig) -> None:
    process = run(FORKED, URI, read.cache)
    process.communicate(timeout=120)
    assert process.returncode == 0


def test_reading_goes_on_when_the_server_is_back(
    server: Server, read: ReadConfig, capsys: pytest.CaptureFixture[str]
) -> None:
    store = open_store(URI, ReadConfig(cache=read.cache, remote_timeout_s=30))
    first, second, third = store.manifest.shards[:3]
    store.raw(first)
    server.stop()
    back = threading.Timer(1.0, server.start)
    back.start()
    assert store.raw(second).exists()
    back.join()
    assert store.raw(third).exists()
    first_line, last_line = capsys.readouterr().err.splitlines()
    assert first_line.startswith(f"{URI} does not answer (Could not connect to the endpoint URL: ")
    assert first_line.endswith("; trying again for up to 30 s")
    assert last_line == f"{URI} answers again"


def test_a_server_that_stays_silent_is_an_error_in_time(
    server: Server, read: ReadConfig, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("AWS_ENDPOINT_URL_S3", "http://127.0.0.1:9")
    start = time.monotonic()
    with pytest.raises(UserError, match=rf"^{URI}/manifest.json: no answer for 2 s \(Could not connect .*timeout_s"):
        open_store(URI, read)
    assert time.monotonic() - start >= 2


def test_a_server_that_accepts_and_says_nothing_is_an_error_in_time(
    server: Server, read: ReadConfig, monkeypatch: pytest.MonkeyPatch
) -> None:
    with socket.create_server(("127.0.0.1", 0)) as deaf:
        address = f"http://127.0.0.1:{deaf.getsockname()[1]}"
        monkeypatch.setenv("AWS_ENDPOINT_URL", address)
        for uri, reason in ((URI, "Read timeout"), (f"{address}/shards", "it timed out")):
            with pytest.raises(UserError, match=rf"no answer for 1 s \({reason}"):
                open_store(uri, ReadConfig(cache=read.cache, remote_timeout_s=1))


@pytest.mark.parametrize(
    ("uri", "message"),
    [
        ("s3://bucket/none", r"s3://bucket/none/manifest.json: no such object"),
        ("s3://no-bucket/shards", r"s3://no-bucket/shards/manifest.json: no such object \(The specified bucket does"),
    ],
)
def test_what_is_not_there_is_an_error_at_once(server: Server, read: ReadConfig, uri: str, message: str) -> None:
    with pytest.raises(UserError, match=message):
        open_store(uri, read)


def test_a_shard_that_is_not_there_is_named(server: Server, read: ReadConfig) -> None:
    uri = "s3://bucket/lost"
    upload(server.root / "bucket/shards", uri, read)
    store = open_store(uri, read)
    RemoteFolder(uri, 2).remove("val/val-000000.tar")
    with pytest.raises(UserError, match=rf"^{uri}/val/val-000000.tar: no such object"):
        store.raw(store.manifest.of_split("val")[0])
    with pytest.raises(UserError, match=rf"^{uri}/val/val-000000.tar: no such file, and the manifest names it"):
        verify(uri, read)


WITHOUT_S3FS = """
import sys
from pipeline.data.store import open_store
from pipeline.errors import UserError

sys.modules["s3fs"] = None
try:
    open_store(sys.argv[1])
except UserError as error:
    print(error)
"""


def test_a_missing_package_is_named() -> None:
    told, _ = run(WITHOUT_S3FS, URI).communicate()
    assert told == (
        f"{URI}: the package for s3:// is missing; install it with `pip install 's3fs'`, or this project with its "
        "extra `s3`\n"
    )


@pytest.mark.parametrize("secret", ["another-long-secret", None])
def test_a_refusal_is_an_error_at_once(
    server: Server,
    read: ReadConfig,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    secret: str | None,
) -> None:
    if secret is None:
        monkeypatch.delenv("AWS_ACCESS_KEY_ID")
        monkeypatch.setenv("AWS_SHARED_CREDENTIALS_FILE", os.devnull)
        monkeypatch.setenv("AWS_CONFIG_FILE", os.devnull)
    else:
        monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", secret)
    with pytest.raises(UserError, match=rf"^{URI}/manifest.json: access refused \(.*set AWS_ACCESS_KEY_ID and "):
        open_store(URI, read)
    assert capsys.readouterr().err == ""  # where it tries again, it says so


def test_upload_copies_what_is_missing_and_the_manifest_last(server: Server, tmp_path: Path, read: ReadConfig) -> None:
    folder, uri = tmp_path / "shards", "s3://bucket/copy"
    first, *_ = write_small(folder).shards
    assert upload(folder, uri, read) == f"{uri}: 5 files copied, 0 were there"
    assert upload(folder, uri, read) == f"{uri}: 0 files copied, 5 were there"
    place = RemoteFolder(uri, 2)
    place.remove("manifest.json")  # as when it was broken off
    (tmp_path / "zeros").write_bytes(bytes(first.bytes))
    place.store(tmp_path / "zeros", first.name)
    assert upload(folder, uri, read) == f"{uri}: 1 files copied, 4 were there"
    assert verify(uri, read).startswith(f"{uri}: 4 shards, 62 rows")
    write_small(tmp_path / "new", seed=1)  # other shards, of the same lengths
    assert upload(tmp_path / "new", uri, read) == f"{uri}: 5 files copied, 0 were there"
    assert verify(uri, read).startswith(f"{uri}: 4 shards, 62 rows")


def test_upload_copies_only_whole_shards(tmp_path: Path, read: ReadConfig) -> None:
    write_small(tmp_path / "shards")
    (tmp_path / "shards/val/val-000000.tar").write_bytes(b"")
    with pytest.raises(UserError, match=r"val-000000.tar: expected [\d,]+ bytes, found 0"):
        upload(tmp_path / "shards", f"file://{tmp_path}/copy", read)
    assert not (tmp_path / "copy").exists()
    with pytest.raises(UserError, match=r"^copy: not an address; expected one such as s3://"):
        upload(tmp_path / "shards", "copy", read)


class Quiet(SimpleHTTPRequestHandler):
    def log_message(self, *_: object) -> None:
        pass


@pytest.fixture
def web(tmp_path: Path) -> Iterator[str]:
    """The address of a web server of shards."""
    write_small(tmp_path / "shards")
    with ThreadingHTTPServer(("127.0.0.1", 0), partial(Quiet, directory=str(tmp_path))) as server:
        threading.Thread(target=server.serve_forever).start()
        yield f"http://127.0.0.1:{server.server_port}/shards"
        server.shutdown()


def test_a_web_server_will_do(web: str, tmp_path: Path, read: ReadConfig) -> None:
    store = open_store(web, read)
    assert len(store.index(["key"], "val")) == 9
    for entry in store.manifest.shards:
        assert store.raw(entry).read_bytes() == (tmp_path / "shards" / entry.name).read_bytes()
    assert verify(web, read).startswith(f"{web}: 4 shards, 62 rows")
    with pytest.raises(UserError, match=r"/none/manifest.json: no such object"):
        open_store(f"{web}/none", read)


class Unsteady(LocalFileSystem):
    """Files whose transfers break: `script` tells for each how many bytes come, or which error instead."""

    protocol = "unsteady"
    script: ClassVar[list[int | Exception]] = []

    def get_file(self, path: str, to: str, callback: Any = None, **_: Any) -> None:
        step = self.script.pop(0) if self.script else 10**9
        if isinstance(step, Exception):
            raise step
        data = Path(path).read_bytes()
        Path(to).write_bytes(data[:step])
        callback.relative_update(min(step, len(data)))
        if step < len(data):
            time.sleep(0.1)
            raise ConnectionResetError("Connection reset by peer")


@pytest.fixture
def unsteady(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> RemoteFolder:
    """A folder with a file of ten bytes; silence of 0.25 s is too long."""
    fsspec.register_implementation("unsteady", Unsteady, clobber=True)
    monkeypatch.setattr(places, "FIRST_WAIT_S", 0.01)
    monkeypatch.setattr(Unsteady, "script", [])
    (tmp_path / "file").write_bytes(b"0123456789")
    return RemoteFolder(f"unsteady://{tmp_path}", 0.25)


def test_a_transfer_that_gets_further_each_time_may_take_long(
    unsteady: RemoteFolder, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    Unsteady.script[:] = [1, 2, 3, 4, 5, 6]
    unsteady.fetch("file", tmp_path / "to")
    assert (tmp_path / "to").read_bytes() == b"0123456789"
    assert capsys.readouterr().err.count("\n") == 2


def test_one_that_gets_no_further_is_given_up(unsteady: RemoteFolder, tmp_path: Path) -> None:
    Unsteady.script[:] = [5, 5, 4, 5, 3, 5, 5, 5]
    with pytest.raises(UserError, match=r"file: no answer for 0.25 s \(Connection reset by peer\)"):
        unsteady.fetch("file", tmp_path / "to")
    assert len(Unsteady.script) > 2


@pytest.mark.parametrize(
    ("error", "raised"),
    [
        (OSError(errno.ENOSPC, "No space left on device"), OSError),  # of this node: for the cache to tell
        (TypeError("a defect"), TypeError),
        (OSError(errno.EINVAL, "The authorization header is malformed"), UserError),
    ],
)
def test_what_waiting_does_not_mend_is_raised_at_once(
    unsteady: RemoteFolder, tmp_path: Path, error: Exception, raised: type[Exception]
) -> None:
    Unsteady.script[:] = [error, 10]
    with pytest.raises(raised):
        unsteady.fetch("file", tmp_path / "to")
    assert Unsteady.script == [10]


def test_a_password_in_an_address_is_not_shown(tmp_path: Path, unsteady: RemoteFolder) -> None:
    assert RemoteFolder("unsteady://user:secret@host/shards/", 1).location == "unsteady://host/shards"
