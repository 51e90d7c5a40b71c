"""Training on shards that are elsewhere: in an S3-compatible store, or on the driver's node alone."""

import os
import secrets
import shutil
import socket
import subprocess
import tempfile
import time
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, ExitStack, contextmanager, suppress
from pathlib import Path

import pytest
from e2e_project import Project, copy_project, environment, set_params, wait_for
from s3_server import Server

from pipeline.data.index import Manifest, ShardEntry, read_manifest

TRAIN = ("python", "-m", "pipeline", "train", "--family", "cvae")
MODEL = "models/cvae/baseline"
BUCKET, URI = "bucket/shards", "s3://bucket/shards"
AWAY_S = 10
CORES = (os.cpu_count() or 1) // 2  # of each of two workers, on one node as on two: sums depend on the threads


@pytest.fixture(scope="module")
def project(tmp_path_factory: pytest.TempPathFactory) -> Project:
    """A project with many small shards on the disk."""
    project = copy_project(tmp_path_factory.mktemp("remote"))
    project.set(shard__shard_bytes=20480, train__global_batch_size=16, train__epochs=2, compute__remote_timeout_s=60)
    project.stage("ingest")
    project.stage("shard")
    return project


@pytest.fixture(scope="module")
def server(project: Project, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    """A store that holds the project's shards."""
    pytest.importorskip("s3fs")
    server = Server(tmp_path_factory.mktemp("s3") / "root")
    (server.root / "bucket").mkdir(parents=True)
    server.start()
    printed = project.stage("upload", URI, env=server.environment)
    count = sum(path.is_file() for path in (project.path / "data/shards").rglob("*"))
    assert printed.splitlines()[-1] == f"{URI}: {count - 1} files copied, 0 were there"  # and the manifest
    yield server
    server.stop()


@pytest.fixture(scope="module")
def manifest(project: Project) -> Manifest:
    return read_manifest(project.path / "data/shards")


def used(manifest: Manifest) -> list[ShardEntry]:
    """The shards that training reads."""
    return [*manifest.of_split("train"), *manifest.of_split("val")]


def gets(server: Server) -> Counter[str]:
    """How often each file of the folder was asked for, but for the manifest, which all processes read."""
    asked = {name.removeprefix("shards/"): count for name, count in server.gets().items()}
    return Counter({name: count for name, count in asked.items() if name != "manifest.json"})


@pytest.fixture(scope="module")
def two_ranks_on_one_node(project: Project, server: Server) -> tuple[Counter[str], dict[str, bytes]]:
    """What a run of two workers on remote shards asked for, and its model."""
    project.set(compute__shards=URI, compute__cache=".cache/of two ranks", compute__workers=2)
    server.log.write_text("")
    project.forget_runs()
    project.run(*TRAIN, env=server.environment)
    return gets(server), project.contents(MODEL)


def test_an_upload_is_verified_where_it_is(project: Project, server: Server, manifest: Manifest) -> None:
    project.set(compute__shards=None)
    printed = project.stage("verify", URI, env=server.environment)
    rows = sum(manifest.counts.values())
    assert f"{URI}: {len(manifest.shards)} shards, {rows:,} rows, " in printed.splitlines()[-1]
    assert printed.splitlines()[-1].endswith(": every byte is as it was written")


def test_training_goes_on_when_the_store_was_away(project: Project, server: Server, manifest: Manifest) -> None:
    project.set(compute__shards=None, compute__workers="auto")
    project.run(*TRAIN)
    expected = project.contents(MODEL)
    shutil.rmtree(project.path / MODEL)
    project.forget_runs()

    project.set(compute__shards=URI, compute__cache=".cache/of one rank")
    cache, entries = project.path / ".cache/of one rank", used(manifest)
    server.log.write_text("")
    training = project.start(*TRAIN, env=server.environment)
    try:
        wait_for(lambda: list(cache.glob("*.tar")), "the first shard", every=0.001)
        server.stop()
        kept = {path.name for path in cache.glob("*.tar")}
        time.sleep(AWAY_S)
        before = gets(server)
        server.start()
        printed, _ = training.communicate(timeout=600)
    finally:
        training.kill()
        training.communicate()
    assert training.returncode == 0, printed
    assert f"{URI} does not answer (" in printed
    assert f"{URI} answers again" in printed
    assert project.contents(MODEL) == expected

    asked = gets(server)
    assert set(asked) == {"index.parquet", *(entry.name for entry in entries)}
    assert 0 < len(kept) <= len(before) < len(asked)
    for entry in entries:
        broken = entry.name in before and f"{entry.sha256}.tar" not in kept  # by the kill, perhaps
        assert asked[entry.name] == 1 or (broken and asked[entry.name] == 2), entry.name


def test_two_ranks_of_a_node_download_each_shard_once(
    two_ranks_on_one_node: tuple[Counter[str], dict[str, bytes]], manifest: Manifest
) -> None:
    asked, _ = two_ranks_on_one_node
    assert asked == dict.fromkeys(["index.parquet", *(entry.name for entry in used(manifest))], 1)


def test_a_wrong_address_is_one_line_before_ray_starts(project: Project, server: Server) -> None:
    project.set(compute__shards="s3://no-bucket/shards")
    project.forget_runs()
    printed = project.run(*TRAIN, code=1, env=server.environment)
    assert printed.startswith("error: s3://no-bucket/shards/manifest.json: no such object (")
    assert printed.count("\n") == 1


def apart(hidden: Path) -> list[str]:
    """A command that runs another where the folder `hidden` is empty, and with which all its processes end."""
    for right in ([], ["--map-root-user"]):
        command = ["unshare", *right, "--mount", "--pid", "--fork", "--kill-child", "--mount-proc",
                   "sh", "-c", 'mount -t tmpfs none "$0" && exec "$@"', str(hidden)]  # fmt: skip
        listed = subprocess.run([*command, "ls", str(hidden)], capture_output=True, text=True, timeout=60)
        if (listed.returncode, listed.stdout) == (0, ""):
            return command
    pytest.skip(f"needs the right to mount in a namespace of its own: {listed.stderr.strip()}")


@contextmanager
def ray_node(project: Project, hidden: Path, env: dict[str, str], log: Path, *options: str) -> Iterator[None]:
    """A node of a Ray cluster that does not see the folder `hidden`."""
    # Ray waits 30 s for a node, which takes longer on busy cores: first in the queue, where that is allowed.
    command = ["nice", "-n", "-10", *apart(hidden), "ray", "start", "--block", f"--num-cpus={CORES}",
               "--object-store-memory=104857600", "--min-worker-port=0", "--max-worker-port=0",
               "--dashboard-agent-listen-port=0", *options]  # fmt: skip
    with log.open("w") as output:
        node = subprocess.Popen(
            command, cwd=project.path, env=environment(project.path) | env, stdin=subprocess.DEVNULL, stdout=output,
            stderr=subprocess.STDOUT,
        )  # fmt: skip
    try:
        wait_for(lambda: "Ray runtime started" in log.read_text() or node.poll() is not None, "a Ray node", every=0.1)
        assert node.poll() is None, log.read_text()
        yield
    finally:
        node.kill()
        node.wait()


@contextmanager
def two_nodes(project: Project, hidden: Path, env: dict[str, str], folder: Path) -> Iterator[str]:
    """The address of a cluster of two nodes, of which the second does not see the folder `hidden`."""
    import ray

    port, client_port = free_ports(2)
    address = f"{ray.util.get_node_ip_address()}:{port}"
    (folder / "nothing").mkdir(parents=True)
    head = ["--head", f"--port={port}", f"--ray-client-server-port={client_port}", "--include-dashboard=false"]
    with (
        tempfile.TemporaryDirectory(prefix="ray-") as short,  # sockets have short names
        ray_node(project, folder / "nothing", env, folder / "head.txt", *head, f"--temp-dir={short}"),
        ray_node(project, hidden, env, folder / "second.txt", f"--address={address}"),
    ):
        yield address


def free_ports(count: int) -> list[int]:
    """Below those that the system gives to connections, any of which could be taken before Ray listens."""
    ports: list[int] = []
    while len(ports) < count:
        port = 20_000 + secrets.randbelow(12_000)
        with suppress(OSError), socket.create_server(("", port)):
            ports.append(port)
    return ports


@contextmanager
def started(make: Callable[[int], AbstractContextManager[str]], attempts: int = 5) -> Iterator[str]:
    """A cluster of which all nodes came up: on a busy machine Ray gives up on a head that is slow to answer."""
    with ExitStack() as stack:
        for attempt in range(attempts):
            try:
                address = stack.enter_context(make(attempt))
                break
            except AssertionError:
                if attempt == attempts - 1:
                    raise
        yield address


def test_a_node_without_the_folder_takes_the_shards_from_the_driver(
    project: Project,
    manifest: Manifest,
    two_ranks_on_one_node: tuple[Counter[str], dict[str, bytes]],
    tmp_path: Path,
) -> None:
    """Each node has cores for one of the two workers."""
    _, expected = two_ranks_on_one_node
    shutil.rmtree(project.path / MODEL)
    project.forget_runs()
    env = {"RAY_AUTH_MODE": "token", "RAY_AUTH_TOKEN": secrets.token_hex(32), "RAY_USAGE_STATS_ENABLED": "0",
           "RAY_gcs_rpc_server_connect_timeout_s": "30"}  # fmt: skip
    shards = project.path / "data/shards"
    with started(lambda attempt: two_nodes(project, shards, env, tmp_path / str(attempt))) as address:
        changes = {"address": address, "shards": None, "cache": ".cache/of the second", "workers": 2}
        set_params(project.path, {f"compute.{key}": value for key, value in changes.items()})
        project.run(*TRAIN, env=env)
    assert project.contents(MODEL) == expected
    cached = {path.name for path in (project.path / ".cache/of the second").glob("*.*")}
    assert cached == {f"{manifest.index}.parquet", *(f"{entry.sha256}.tar" for entry in used(manifest))}
