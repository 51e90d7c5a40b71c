"""What a running pipeline lets in: nothing from other machines, and on this one nobody without the token."""

import subprocess
import sys

import psutil
import pytest
from e2e_project import Project, wait_for

TRAIN = ("python", "-m", "pipeline", "train", "--family", "cvae")
CALL = """\
import sys, grpc
from ray.core.generated import gcs_service_pb2 as gcs, gcs_service_pb2_grpc as services
with grpc.insecure_channel(sys.argv[1]) as channel:
    try:
        services.NodeInfoGcsServiceStub(channel).GetAllNodeInfo(gcs.GetAllNodeInfoRequest(), timeout=10)
        print("let in")
    except grpc.RpcError as error:
        print(error.code().name)
"""
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


def test_a_run_listens_to_this_machine_alone_and_asks_for_the_token(reproduced: Project) -> None:
    reproduced.set(train__epochs=60, compute__workers=2)
    running = reproduced.start(*TRAIN)
    try:
        wait_for(lambda: list((reproduced.path / ".runs").glob("cvae-*/checkpoints/step-*[!0]0-*")), "training")
        seen = listeners(psutil.Process(running.pid))
    finally:
        running.terminate()
        printed, _ = running.communicate()
        reproduced.run("git", "checkout", "-q", ".")
    names = {name for name, _, _ in seen}
    assert {"gcs_server", "raylet"} <= names, printed
    assert any("RayTrainWorker" in name for name in names), names
    assert {one for one in seen if one[1] not in LOOPBACK} == set()


