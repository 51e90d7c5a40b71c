"""The watcher of spot notices, against a metadata service that speaks the real protocol, and a `ray` that notes."""

import inspect
import json
import os
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import UTC, datetime, timedelta
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest
from cluster_files import ROOT

SCRIPT = ROOT / "pipeline/cluster/spot_watch.py"
HEAD = "10.99.0.1:6379"
NODE = "ab" * 28


class Service(ThreadingHTTPServer):
    """The instance metadata service (IMDSv2): a PUT gives a token, every GET needs one, 404 until there is a notice."""

    def __init__(self) -> None:
        super().__init__(("127.0.0.1", 0), Handler)
        self.tokens: list[str] = []
        self.refused = self.asked = 0
        self.notice: dict[str, str] | None = None

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.server_port}"


class Handler(BaseHTTPRequestHandler):
    server: Service

    def do_PUT(self) -> None:
        lifetime = self.headers.get("X-aws-ec2-metadata-token-ttl-seconds", "")
        if self.path != "/latest/api/token" or not (lifetime.isdecimal() and 1 <= int(lifetime) <= 21600):
            self._answer(400)
            return
        self.server.tokens.append(f"token-{len(self.server.tokens)}")
        self._answer(200, self.server.tokens[-1])

    def do_GET(self) -> None:
        self.server.asked += 1
        if self.headers.get("X-aws-ec2-metadata-token") not in self.server.tokens[-1:]:
            self.server.refused += 1
            self._answer(401)
        elif self.path != "/latest/meta-data/spot/instance-action" or self.server.notice is None:
            self._answer(404)
        else:
            self._answer(200, json.dumps(self.server.notice))

    def _answer(self, status: int, text: str = "") -> None:
        self.send_response(status)
        self.send_header("Content-Length", str(len(text)))
        self.end_headers()
        self.wfile.write(text.encode())

    def log_message(self, *_: object) -> None:
        pass


@pytest.fixture
def service() -> Iterator[Service]:
    with Service() as server:
        thread = threading.Thread(target=server.serve_forever, args=(0.01,))
        thread.start()
        yield server
        server.shutdown()
        thread.join()


@contextmanager
def raylet() -> Iterator[None]:
    """A process with the arguments of a raylet: by them the watcher finds the node's id."""
    flags = [f"--node_id={NODE}", f"--gcs-address={HEAD}"]
    process = subprocess.Popen([sys.executable, "-c", "import time; time.sleep(60)", *flags])
    try:
        yield
    finally:
        process.kill()
        process.wait()


@pytest.fixture
def home(tmp_path: Path) -> Path:
    ray = tmp_path / "bin/ray"
    ray.parent.mkdir()
    ray.write_text(
        f"#!{sys.executable}\nimport json, pathlib, sys\n"
        "calls = pathlib.Path.home() / 'calls'\n"
        "before = calls.read_text() if calls.exists() else ''\n"
        "calls.write_text(before + json.dumps(sys.argv[1:]) + '\\n')\n"
        "sys.exit((pathlib.Path.home() / 'fails').exists() and not before)\n"
    )
    ray.chmod(0o755)
    return tmp_path


def watcher(home: Path, url: str) -> subprocess.Popen[str]:
    command = [sys.executable, "-I", str(SCRIPT), "--address", HEAD, "--imds", url, "--every", "0.05"]
    environment = {**os.environ, "HOME": str(home), "PATH": f"{home / 'bin'}:{os.environ['PATH']}"}
    return subprocess.Popen(command, env=environment, stdout=subprocess.PIPE, text=True)


def calls(home: Path) -> list[list[str]]:
    return [json.loads(line) for line in (home / "calls").read_text().splitlines()]


def soon(seconds: float = 100) -> str:
    return (datetime.now(UTC) + timedelta(seconds=seconds)).strftime("%Y-%m-%dT%H:%M:%SZ")


def wait_until_asked(service: Service, times: int) -> None:
    end = time.monotonic() + 60
    while service.asked < times:
        assert time.monotonic() < end, f"asked {service.asked} times"
        time.sleep(0.01)


def test_a_notice_drains_this_node_with_the_time_that_is_left(service: Service, home: Path) -> None:
    with raylet(), watcher(home, service.url) as process:
        wait_until_asked(service, 3)
        assert not (home / "calls").exists()  # 404: the instance stays
        service.notice = {"action": "terminate", "time": soon(100)}
        said, _ = process.communicate(timeout=60)
    assert process.returncode == 0
    (call,) = calls(home)
    assert call[:7] == ["drain-node", "--address", HEAD, "--node-id", NODE, "--reason", "DRAIN_NODE_REASON_PREEMPTION"]
    assert call[7] == "--reason-message"
    assert call[8].startswith("EC2 takes this spot instance back: terminate at ")
    assert call[9] == "--deadline-remaining-seconds"
    assert 90 <= int(call[10]) <= 100
    assert f"drained {NODE}" in said
    assert (len(service.tokens), service.refused) == (1, 0)


def test_a_token_that_expired_is_renewed(service: Service, home: Path) -> None:
    with raylet(), watcher(home, service.url) as process:
        wait_until_asked(service, 1)
        service.tokens.append("another")  # the one that it has is no longer taken
        wait_until_asked(service, service.asked + 3)
        service.notice = {"action": "stop", "time": soon()}
        process.communicate(timeout=60)
    assert process.returncode == 0
    assert service.refused == 1
    assert len(calls(home)) == 1


def test_a_drain_that_fails_is_tried_again(service: Service, home: Path) -> None:
    (home / "fails").touch()
    service.notice = {"action": "terminate", "time": soon()}
    with raylet(), watcher(home, service.url) as process:
        said, _ = process.communicate(timeout=60)
    assert process.returncode == 0
    assert len(calls(home)) == 2
    assert "not drained; trying again" in said


def test_without_a_node_it_ends_when_the_time_is_over(service: Service, home: Path) -> None:
    with watcher(home, service.url) as process:
        wait_until_asked(service, 1)
        service.notice = {"action": "terminate", "time": soon(2)}
        said, _ = process.communicate(timeout=60)
    assert process.returncode == 1
    assert f"no Ray node of {HEAD} runs here" in said
    assert not (home / "calls").exists()


def test_a_second_watcher_of_the_same_node_leaves(service: Service, home: Path) -> None:
    with watcher(home, service.url) as first:
        wait_until_asked(service, 1)
        with watcher(home, service.url) as second:
            said, _ = second.communicate(timeout=60)
        assert second.returncode == 0
        assert "another one watches here already" in said
        first.kill()


def test_a_service_that_is_silent_is_asked_on(home: Path) -> None:
    with raylet(), watcher(home, "http://127.0.0.1:9") as process:
        assert process.stdout is not None
        assert "watching" in process.stdout.readline()
        assert "does not answer as it should" in process.stdout.readline()
        time.sleep(0.3)  # six questions
        assert process.poll() is None
        process.kill()
        assert process.communicate()[0] == ""  # said once


def test_ray_takes_these_arguments_and_its_raylet_has_those() -> None:
    """Both are hidden parts of Ray: a new version that renames them is to be seen here."""
    from ray._private.services import start_raylet
    from ray.scripts.scripts import drain_node

    options = {option for parameter in drain_node.params for option in parameter.opts}
    assert {"--address", "--node-id", "--reason", "--reason-message", "--deadline-remaining-seconds"} <= options
    reason = next(parameter for parameter in drain_node.params if parameter.name == "reason")
    assert "DRAIN_NODE_REASON_PREEMPTION" in reason.type.choices
    source = inspect.getsource(start_raylet)
    assert 'f"--node_id={node_id}"' in source
    assert 'f"--gcs-address={gcs_address}"' in source


def test_it_needs_nothing_but_python() -> None:
    imported = {
        line.split()[1].split(".")[0]
        for line in SCRIPT.read_text().splitlines()
        if line.startswith(("import ", "from "))
    }
    assert imported <= sys.stdlib_module_names
