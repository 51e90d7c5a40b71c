"""A real Ray head with dashboard and token, in folders and on ports of its own."""

import secrets
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Mapping
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path

START_S = 120
READY = "will now block forever"


@dataclass(frozen=True)
class Head:
    """A head that runs; `address` is that of its dashboard."""

    address: str
    token: str
    folder: Path


@contextmanager
def ray_head(environment: Mapping[str, str]) -> Iterator[Head]:
    """A head without cores of its own, as a cluster's is, whose jobs have this environment besides."""
    token, folder = secrets.token_hex(32), Path(tempfile.mkdtemp(prefix="ray", dir="/tmp"))  # short: of sockets
    gcs, dashboard, agent, client, metrics = _free_ports(5)
    command = [
        sys.executable, "-m", "ray.scripts.scripts", "start", "--head", "--block", "--num-cpus=0",
        f"--temp-dir={folder}", f"--port={gcs}", "--dashboard-host=127.0.0.1", f"--dashboard-port={dashboard}",
        f"--dashboard-agent-listen-port={agent}", f"--ray-client-server-port={client}",
        f"--metrics-export-port={metrics}", "--min-worker-port=0", "--max-worker-port=0",
        "--object-store-memory=100000000", "--disable-usage-stats",
    ]  # fmt: skip
    own = {"RAY_AUTH_MODE": "token", "RAY_AUTH_TOKEN": token, "RAY_ENABLE_UV_RUN_RUNTIME_ENV": "0"}
    with (folder / "head.log").open("w") as log:
        process = subprocess.Popen(
            command, env={**environment, **own}, stdin=subprocess.DEVNULL, stdout=log, stderr=log,
            start_new_session=True,
        )  # fmt: skip
    head = Head(f"http://127.0.0.1:{dashboard}", token, folder)
    try:
        _wait_for(head, process)
        yield head
        assert process.poll() is None, (folder / "head.log").read_text()
    finally:
        process.send_signal(signal.SIGTERM)  # it ends its own processes, and no others
        try:
            process.wait(30)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()
        shutil.rmtree(folder, ignore_errors=True)


def _wait_for(head: Head, process: "subprocess.Popen[bytes]") -> None:
    end = time.monotonic() + START_S
    while READY not in (head.folder / "head.log").read_text():
        if process.poll() is not None or time.monotonic() > end:
            raise TimeoutError((head.folder / "head.log").read_text())
        time.sleep(0.1)


def _free_ports(count: int) -> list[int]:
    with ExitStack() as stack:
        found = [stack.enter_context(socket.create_server(("127.0.0.1", 0))) for _ in range(count)]
        return [free.getsockname()[1] for free in found]
