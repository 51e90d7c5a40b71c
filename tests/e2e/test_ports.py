"""What a running pipeline lets in: nothing from other machines, and on this one nobody without the token."""

import subprocess
import sys
from pathlib import Path

import psutil
from e2e_project import Project, wait_for

TRAIN = ("python", "-m", "pipeline", "train", "--family", "cvae")
CALL = Path(__file__).parents[1] / "grpc_call.py"
PARTS = ("gcs_server",)
LOOPBACK = {"127.0.0.1", "::1", "::ffff:127.0.0.1"}


def listeners(of: psutil.Process) -> set[tuple[str, str, int]]:
    """Name, address and port of whatever listens in a process and those that it started."""
    found = set()
    for process in (of, *of.children(recursive=True)):
        try:
            sockets, name = process.net_connections("inet"), process.name()
        except psutil.NoSuchProcess:
            continue
        found |= {(name, one.laddr.ip, one.laddr.port) for one in sockets if one.status == psutil.CONN_LISTEN}
    return found


def checkpoints(project: Project) -> set[Path]:
    return set((project.path / ".runs").glob("cvae-*/checkpoints/step-*"))


def call(port: int) -> str:
    """What a call without a token is answered."""
    done = subprocess.run([sys.executable, CALL, f"127.0.0.1:{port}"], capture_output=True, text=True, check=True)
    return done.stdout.strip()


def test_a_run_listens_to_this_machine_alone_and_asks_for_the_token(reproduced: Project) -> None:
    reproduced.set(train__epochs=200, compute__workers=2)
    before = checkpoints(reproduced)
    running = reproduced.start(*TRAIN)
    try:
        wait_for(lambda: checkpoints(reproduced) - before, "training", 240)
        seen = listeners(psutil.Process(running.pid))
        refusals = {name: call(port) for name, _, port in seen if name in PARTS}
    finally:
        running.terminate()
        printed, _ = running.communicate()
        reproduced.run("git", "checkout", "-q", ".")
    names = {name for name, _, _ in seen}
    assert {"gcs_server", "raylet"} <= names, printed
    assert any("RayTrainWorker" in name for name in names), names
    assert {one for one in seen if one[1] not in LOOPBACK} == set()
    assert refusals == dict.fromkeys(PARTS, "UNAUTHENTICATED")
