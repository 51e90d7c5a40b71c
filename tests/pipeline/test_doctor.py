"""The doctor, shown real ailments: what it finds, how it says so, and that it never waits long nor prints a secret."""

import json
import os
import re
import secrets
import shutil
import socket
import subprocess
import sys
import threading
from collections.abc import Callable, Iterable, Iterator
from importlib import metadata
from pathlib import Path

import pytest
from answering import answering
from dvc_project import TinyProject, environment
from s3_server import ID, SECRET, Server

from pipeline.addresses import knock
from pipeline.closure import ROOT
from pipeline.config import load_params
from pipeline.doctor import accelerator, cluster, machine, places, project, token
from pipeline.doctor.checks import checks
from pipeline.doctor.finding import Check, Finding, run_all
from pipeline.errors import UserError

HASH = secrets.token_hex(32)


def only(found: Iterable[Finding]) -> Finding:
    (finding,) = found
    return finding


def levels(found: Iterable[Finding]) -> list[tuple[str, str]]:
    return [(finding.level, finding.what) for finding in found]


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return TinyProject.make(tmp_path_factory.mktemp("doctor") / "project").path


@pytest.fixture
def tiny(made: Path, tmp_path: Path, own_git: None) -> TinyProject:
    """A project in Git and DVC, all of it committed."""
    return TinyProject(shutil.copytree(made, tmp_path / "project"), tmp_path / "ran")


def remote(url: str) -> str:
    """A default remote, as DVC's configuration has it."""
    return f"[core]\n    remote = store\n['remote \"store\"']\n    url = {url}\n"


def configure(tiny: TinyProject, text: str) -> None:
    (tiny.path / ".dvc" / "config").write_text(text)


# how checks are run


def test_a_check_that_fails_or_hangs_is_one_line_and_leaves_the_others(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", "hidden-away")

    def mistaken() -> Iterator[Finding]:
        raise UserError("params.yaml: a mistake; mend it")

    def defective() -> Iterator[Finding]:
        yield Finding("ok", "first", "seen")
        raise ValueError("hidden-away\nsecond line")

    over = threading.Event()

    def hanging() -> Iterator[Finding]:
        over.wait()
        yield Finding("ok", "never", "")

    found = run_all([Check("a", hanging, 0.2, "pull the plug"), Check("b", mistaken), Check("c", defective)])
    over.set()
    assert list(map(str, found)) == [
        "broken   a: no answer in 0.2 s; pull the plug",
        "broken   b: params.yaml: a mistake; mend it",
        "ok       first: seen",
        "broken   c: ValueError: ***; this check itself failed; see whether this machine is overloaded",
    ]


def test_checks_wait_beside_each_other() -> None:
    together = threading.Barrier(6)

    def slow() -> Iterator[Finding]:
        together.wait()
        yield Finding("ok", "slow", "")

    assert list(map(str, run_all([Check("slow", slow)] * 6))) == ["ok       slow: "] * 6


# the token


@pytest.fixture
def token_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Where this user's token is looked for; there is none."""
    for name in ("RAY_AUTH_MODE", "RAY_AUTH_TOKEN", "RAY_AUTH_TOKEN_PATH"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("HOME", str(tmp_path))
    return tmp_path / ".ray" / "auth_token"


def test_a_token_that_others_can_read_is_broken(token_file: Path) -> None:
    token_file.parent.mkdir()
    token_file.write_text(HASH)
    token_file.chmod(0o644)
    found = only(token.look(False))
    assert (found.level, found.told) == ("broken", f"{token_file}: others can read the token (mode 0644)")
    assert found.remedy.startswith(f"`chmod 600 {token_file}`")
    token_file.chmod(0o600)
    assert str(only(token.look(True))) == f"ok       token: in {token_file}, for you alone"
    token_file.write_text("\n")
    assert only(token.look(True)).told == f"{token_file}: the token is empty"


def test_a_cluster_needs_a_token_and_it_must_be_asked_for(token_file: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    missing = "no token for a cluster (No such file or directory)"
    assert only(token.look(True)).told == f"{token_file}: {missing}"
    assert only(token.look(False)).level == "ok"
    monkeypatch.setenv("RAY_AUTH_TOKEN_PATH", "/no/file")
    assert only(token.look(False)).told == f"/no/file: {missing}"
    monkeypatch.setenv("RAY_AUTH_TOKEN", HASH)
    assert only(token.look(True)).told == "in RAY_AUTH_TOKEN"
    monkeypatch.setenv("RAY_AUTH_MODE", "disabled")
    found = only(token.look(True))
    assert (found.level, found.what, found.remedy) == ("broken", "token", "`export RAY_AUTH_MODE=token`")


# this machine


def test_packages_are_held_against_constraints_txt(tmp_path: Path) -> None:
    names = '["no-such-package>=1", "numpy>=2", "Ruamel_Yaml>=0.1", "ray[default,train]>=2", "psutil"]'
    (tmp_path / "pyproject.toml").write_text(f"[project]\nname = 'x'\ndependencies = {names}\n")
    (tmp_path / "constraints.txt").write_text("# pinned\nno-such-package==1.0\nnumpy==0.0.1\nruamel.yaml==0.19.1\n")
    found = list(machine.packages(machine.wanted_packages(tmp_path)))
    assert levels(found) == [
        ("broken", "package no-such-package"), ("warning", "package numpy"), ("ok", "packages")]  # fmt: skip
    assert found[1].told.endswith("is installed, constraints.txt has 0.0.1")
    assert found[2].told == "3 of 5 as in constraints.txt"


def test_the_packages_of_this_project_are_those_of_its_constraints() -> None:
    wanted = machine.wanted_packages(ROOT)
    assert {"torch", "ray", "dvc", "ruamel.yaml"} <= set(wanted)
    assert None not in wanted.values()


def test_small_shared_memory_and_a_missing_one_are_warnings(tmp_path: Path) -> None:
    assert only(machine.shared_memory(tmp_path, least=1 << 60)).level == "warning"
    assert only(machine.shared_memory(tmp_path, least=1)).level == "ok"
    assert only(machine.shared_memory(tmp_path / "none")).level == "warning"


def test_a_full_disk_is_broken(tmp_path: Path) -> None:
    with mounted(tmp_path, "size=64k"):
        found = only(machine.disk("the cache", tmp_path / "to" / "be"))
    assert (found.level, found.told) == ("broken", "0.0 GiB free")


# the project


def test_a_clean_repository_is_well_and_a_changed_one_is_named(tiny: TinyProject) -> None:
    assert only(project.repository(tiny.path)).level == "ok"
    for name in ("one", "two", "three", "four", "five"):
        (tiny.path / name).touch()
    found = only(project.repository(tiny.path))
    assert found.level == "warning"
    assert found.told.endswith("changed since: five, four, one and 2 more")


def test_a_shallow_clone_and_none_at_all_are_found(tiny: TinyProject) -> None:
    tiny.git("commit", "-q", "--allow-empty", "-m", "second")
    shallow = tiny.path.parent / "shallow"
    tiny.git("clone", "-q", "--depth", "1", f"file://{tiny.path}", str(shallow))
    assert levels(project.repository(shallow)) == [("ok", "Git"), ("warning", "Git history")]
    (tiny.path.parent / "none").mkdir()
    assert only(project.repository(tiny.path.parent / "none")).told.startswith("no repository with a commit")


def test_git_without_an_identity_is_broken(tiny: TinyProject, monkeypatch: pytest.MonkeyPatch) -> None:
    assert only(project.identity(tiny.path)).told == "A. User <user@example.org>"
    tiny.git("config", "--unset", "user.email")
    for name in ("GIT_AUTHOR_EMAIL", "GIT_COMMITTER_EMAIL", "EMAIL"):
        monkeypatch.delenv(name, raising=False)
    found = only(project.identity(tiny.path))
    assert (found.level, found.told) == ("broken", "Git does not know who you are")


def test_an_origin_that_does_not_answer_is_broken_without_its_password(tiny: TinyProject) -> None:
    assert only(project.origin(tiny.path)).level == "warning"
    tiny.git("remote", "add", "origin", "http://me:hush@127.0.0.1:1/x.git")
    found = only(run_all([Check("Git origin", lambda: project.origin(tiny.path))]))
    assert found.level == "broken"
    assert found.told.startswith("http://127.0.0.1:1/x.git: `git ls-remote`: unable to access")
    assert "hush" not in str(found)
    tiny.git("remote", "set-url", "origin", str(tiny.path))
    assert only(project.origin(tiny.path)).level == "ok"


def test_dvc_without_git_or_without_a_project_is_broken(tiny: TinyProject) -> None:
    assert levels(project.dvc_project(tiny.path)) == [("ok", "DVC cache"), ("warning", "dvc.lock")]
    configure(tiny, "[core]\n    no_scm = true\n")
    assert ("broken", "DVC") in levels(project.dvc_project(tiny.path))
    assert only(project.dvc_project(tiny.path.parent)).told == "no project here"


def test_locks_of_dvc_are_told_apart_by_who_holds_them(tiny: TinyProject) -> None:
    assert str(only(project.dvc_locks(tiny.path))) == "ok       DVC locks: none"
    path = tiny.path / ".dvc" / "tmp" / "rwlock"
    path.parent.mkdir(exist_ok=True)
    gone = subprocess.Popen(["true"])
    gone.wait()
    holders = {"a": {"pid": os.getpid(), "cmd": "dvc repro"}, "b": {"pid": gone.pid, "cmd": "dvc pull"}}
    path.write_text(json.dumps({"write": holders, "read": {"c": [holders["b"]]}}))
    alive, dead = project.dvc_locks(tiny.path)
    assert alive.told == f"process {os.getpid()} is at work here (`dvc repro`)"
    assert (dead.told, dead.remedy) == (
        f"left by dead processes {gone.pid}", f"once no DVC command runs here: `rm {path}`")  # fmt: skip
    path.write_text("{")
    assert only(project.dvc_locks(tiny.path)).level == "broken"


def test_placeholders_of_the_cluster_file_are_told_with_their_lines(tmp_path: Path) -> None:
    (tmp_path / "cluster.yaml").write_text("# ami-REPLACE_ME\na: ami-REPLACE_ME\nb: 1\nc: fs-REPLACE_ME\n")
    assert only(project.cluster_file(tmp_path)).told == "REPLACE_ME on lines 2, 4"
    (tmp_path / "cluster.yaml").unlink()
    assert list(project.cluster_file(tmp_path)) == []


# places


class mounted:
    """A small tmpfs on a folder."""

    def __init__(self, path: Path, *options: str) -> None:
        self.path, self.options = path, options

    def __enter__(self) -> None:
        command = ["mount", "-t", "tmpfs", "-o", ",".join(self.options), "tmpfs", str(self.path)]
        if os.getuid() != 0 or subprocess.run(command, stderr=subprocess.DEVNULL).returncode:
            pytest.skip("needs leave to mount a file system")

    def __exit__(self, *_: object) -> None:
        subprocess.run(["umount", str(self.path)], check=True)


def test_storage_that_is_read_only_is_broken_and_nothing_stays_in_one_that_is_not(tmp_path: Path) -> None:
    well = list(places.storage("compute.storage", str(tmp_path)))
    assert levels(well) == [("ok", "compute.storage"), ("ok", "clock of compute.storage")]
    assert list(tmp_path.iterdir()) == []
    assert only(places.storage("compute.storage", "/proc/no/such")).told.startswith("/proc/no/such cannot be made (")
    with mounted(tmp_path, "ro"):
        found = only(places.storage("compute.storage", str(tmp_path)))
    assert (found.level, found.remedy) == (
        "broken", "let this user write there, or set compute.storage to a folder where it may")  # fmt: skip


def test_clocks_may_differ_by_five_seconds() -> None:
    assert places.clock("clock", "the store", 4.0).level == "ok"
    assert places.clock("clock", "the store", 61.2).told == "that of the store and this machine's differ by 61 s"


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    pytest.importorskip("s3fs")
    root = tmp_path_factory.mktemp("s3") / "root"
    (root / "bucket").mkdir(parents=True)
    server = Server(root)
    server.start()
    yield server
    server.stop()


@pytest.fixture
def s3(server: Server, monkeypatch: pytest.MonkeyPatch) -> str:
    for name, value in server.environment.items():
        monkeypatch.setenv(name, value)
    return f"http://127.0.0.1:{server.port}"


def test_storage_and_remote_at_an_address_are_probed(s3: str, server: Server, tiny: TinyProject) -> None:
    assert levels(places.storage("compute.storage", "s3://bucket/runs"))[0] == ("ok", "compute.storage")
    configure(tiny, remote("s3://bucket/dvc") + f"    endpointurl = {s3}\n    access_key_id = {ID}\n")
    (tiny.path / ".dvc" / "config.local").write_text("['remote \"store\"']\n    secret_access_key = a-secret-of-it\n")
    settings = places.remote_settings(tiny.path)
    assert settings is not None
    assert "a-secret-of-it" in settings.values()
    assert "a-secret-of-it" not in places.public(settings).values()
    assert str(only(places.remote("DVC remote", places.public(settings)))) == (
        "ok       DVC remote: s3://bucket/dvc is readable and writable"
    )
    assert [path for path in (server.root / "bucket").rglob("*") if path.is_file()] == []


def test_a_wrong_secret_is_refused_and_not_printed(s3: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", "not-the-right-secret")
    found = only(places.storage("compute.storage", "s3://bucket/runs"))
    assert found.level == "broken"
    assert "not-the-right-secret" not in str(found)
    assert SECRET not in str(found)


def test_no_remote_a_remote_not_made_yet_and_one_that_is_read_only(tiny: TinyProject) -> None:
    assert only(places.remote("DVC remote", places.remote_settings(tiny.path))).told == "none"
    folder = tiny.path.parent / "remote"
    configure(tiny, remote(str(folder)))
    settings = places.remote_settings(tiny.path)
    assert only(places.remote("DVC remote", settings)).told == f"{folder}: no such folder yet"
    folder.mkdir()
    assert only(places.remote("DVC remote", settings)).level == "ok"
    with mounted(folder, "ro"):
        found = only(places.remote("DVC remote", settings))
    assert (found.level, "Read-only file system" in found.told) == ("broken", True)


def test_shards_without_a_manifest_are_a_warning(tmp_path: Path, shards: Path) -> None:
    assert only(places.shards("compute.shards", str(shards))).level == "ok"
    assert only(places.shards("compute.shards", str(tmp_path))).level == "warning"


# torch


def test_a_host_name_that_leads_nowhere_is_told_with_the_variable_of_gloo() -> None:
    def unknown(name: str) -> str:
        raise OSError(name)

    found = only(accelerator.host_name(unknown))
    assert found.level == "warning"
    assert "`export GLOO_SOCKET_IFNAME=lo`" in found.remedy


def test_two_processes_add_up_over_gloo_and_an_unknown_interface_is_broken(monkeypatch: pytest.MonkeyPatch) -> None:
    found = list(accelerator.look(ROOT))
    assert ("ok", "collectives (gloo)") in levels(found)
    assert "GPU" in [finding.what for finding in found]
    monkeypatch.setenv("GLOO_SOCKET_IFNAME", "no-such-interface")
    found = list(accelerator.look(ROOT))
    assert levels(found)[0] == ("broken", "collectives (gloo)")
    assert "no-such-interface" in found[0].told


# Ray


@pytest.mark.parametrize("address", ["127.0.0.1:1", "ray://127.0.0.1:1", "http://127.0.0.1:1", "[::1]:1"])
def test_a_dead_address_is_one_line_at_once(address: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("RAY_AUTH_TOKEN", HASH)
    found = only(cluster.look(ROOT, address))
    assert (found.level, found.what) == ("broken", "Ray")
    assert address in found.told
    assert "Connection refused" in found.told
    assert found.remedy.startswith("start it")


def test_an_address_of_ipv6_is_knocked_at() -> None:
    with socket.create_server(("::1", 0), family=socket.AF_INET6) as server:
        knock(f"[::1]:{server.getsockname()[1]}", 5)
        address = f"ray://[::1]:{server.getsockname()[1]}"
        knock(address, 5)
    with pytest.raises(OSError, match="refused"):
        knock(address, 5)


def test_the_token_travels_neither_in_clear_text_nor_through_a_proxy(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("RAY_AUTH_TOKEN", HASH)
    asked: list[bytes] = []
    through: list[bytes] = []
    page = b"HTTP/1.0 200 OK\r\n\r\n<html>"
    with answering(page, asked) as address, answering(page, through) as proxy:
        monkeypatch.setenv("http_proxy", proxy)
        assert "is not Ray's dashboard" in only(cluster.look(ROOT, address)).told
        found = only(cluster.look(ROOT, "http://192.0.2.1:8265"))
        assert (found.level, found.told) == (
            "broken", "--address http://192.0.2.1:8265: the token would travel in clear text")  # fmt: skip
        assert (len(asked), through) == (1, [])
        cluster_answers = only(cluster.look(ROOT, "http://192.0.2.1:8265", plain_http=True))
    assert "is not Ray's dashboard" in cluster_answers.told
    assert HASH.encode() in through[0]


def test_the_command_answers_in_time_where_the_address_is_dead(tiny: TinyProject) -> None:
    """With all its other checks, in a project of its own."""
    for name in ("params.yaml", "pyproject.toml", "constraints.txt"):
        shutil.copy(ROOT / name, tiny.path)
    printed = tiny.run(
        sys.executable, "-m", "pipeline", "doctor", "--address", "127.0.0.1:1", "--json", code=1, RAY_AUTH_TOKEN=HASH
    )
    assert HASH not in printed
    text, _, error = printed.rpartition("]\n")
    found = [Finding(**each) for each in json.loads(f"{text}]")]
    assert error == f"error: 1 of {len(found)} broken: Ray; each line above ends with its remedy\n"
    assert [finding.what for finding in found if finding.level == "broken"] == ["Ray"]
    assert {"Python", "packages", "params.yaml", "Git", "Git identity", "DVC remote", "token", "memory"} <= {
        finding.what for finding in found
    }


def test_without_an_address_ray_is_left_alone() -> None:
    params = load_params(ROOT / "params.yaml")
    names = [check.what for check in checks(ROOT, params, None, start_ray=False)]
    assert "Ray" not in names
    assert [check.what for check in checks(ROOT, params, None, start_ray=True)] == [*names, "Ray"]


CLUSTER = """
import socket, sys
from ray.cluster_utils import Cluster

with socket.create_server(("127.0.0.1", 0)) as free:
    port = free.getsockname()[1]
cluster = Cluster(initialize_head=True, head_node_args={"num_cpus": 1, "dashboard_port": port})
cluster.add_node(num_cpus=1)
cluster.wait_for_nodes()
print(cluster.address, port, flush=True)
sys.stdin.read()
cluster.shutdown()
"""


@pytest.fixture(scope="module")
def two_nodes() -> Iterator[tuple[str, str]]:
    """The addresses of the control service and of the job server of a cluster of two nodes, whose token is HASH."""
    env = environment() | {"RAY_AUTH_MODE": "token", "RAY_AUTH_TOKEN": HASH, "RAY_USAGE_STATS_ENABLED": "0"}
    with subprocess.Popen(
        [sys.executable, "-c", CLUSTER], cwd=ROOT, env=env, text=True, stdin=subprocess.PIPE, stdout=subprocess.PIPE,
        stderr=subprocess.DEVNULL,
    ) as process:  # fmt: skip
        assert process.stdout is not None
        address, port = process.stdout.readline().split()
        yield address, f"http://127.0.0.1:{port}"
        process.communicate("")


@pytest.fixture
def examined(tiny: TinyProject, monkeypatch: pytest.MonkeyPatch) -> Callable[..., list[Finding]]:
    """What is found of Ray and its nodes, with a token and a folder as compute.storage."""

    def examined(address: str, *, token: str = HASH, storage: str = ".runs") -> list[Finding]:
        text = (ROOT / "params.yaml").read_text().replace("storage: .runs", f"storage: {storage}")
        (tiny.path / "params.yaml").write_text(text)
        for name in ("pyproject.toml", "constraints.txt"):
            shutil.copy(ROOT / name, tiny.path)
        for name, value in {"RAY_AUTH_TOKEN": token, "RAY_AUTH_MODE": "token", "PYTHONPATH": str(ROOT)}.items():
            monkeypatch.setenv(name, value)
        return list(cluster.look(tiny.path, address))

    return examined


def test_every_node_is_asked(
    two_nodes: tuple[str, str], examined: Callable[..., list[Finding]], tiny: TinyProject, tmp_path: Path
) -> None:
    (tmp_path / "remote").mkdir()
    configure(tiny, remote(str(tmp_path / "remote")))
    ray, *nodes = examined(two_nodes[0], storage=str(tmp_path / "runs"))
    assert ray.told.endswith(f": 2 nodes at {two_nodes[0]}, token accepted")
    assert [each.level for each in nodes if " (head)" in each.what] != []
    assert len({each.what for each in nodes if each.level == "ok"}) == 2
    for each in nodes:
        if each.level == "ok":
            for text in ("compute.storage", "DVC remote", "as in constraints.txt", "clock within 5 s", "Python 3."):
                assert text in each.told, each


def test_storage_that_nodes_cannot_write_is_told_of_each(
    two_nodes: tuple[str, str], examined: Callable[..., list[Finding]], tmp_path: Path
) -> None:
    (tmp_path / "runs").mkdir()
    with mounted(tmp_path / "runs", "ro"):
        found = examined(two_nodes[0], storage=str(tmp_path / "runs"))
    ailing = [each for each in found if each.level == "broken"]
    assert [each.what.endswith(": compute.storage") for each in ailing] == [True, True]
    assert all("Read-only file system" in each.told for each in ailing)


def test_a_wrong_token_is_refused_at_both_doors(
    two_nodes: tuple[str, str], examined: Callable[..., list[Finding]]
) -> None:
    wrong = secrets.token_hex(32)
    for address in two_nodes:
        found = only(examined(address, token=wrong))
        assert (found.level, re.search("refuses th(e|is) token", found.told) is not None) == ("broken", True), found
        assert wrong not in str(found)
    assert only(examined(two_nodes[1])).told.startswith(f"{metadata.version('ray')} at http://127.0.0.1:")
