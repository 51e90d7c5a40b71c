"""One process a directory; a cluster that does not answer is an error with a remedy; a stage ends with its dvc."""

import builtins
import os
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from pipeline import runtime
from pipeline.closure import ROOT
from pipeline.config import ComputeConfig
from pipeline.errors import UserError

HOLD = "import sys, time; from pathlib import Path; from pipeline.runtime import exclusive\n" + (
    "with exclusive(Path(sys.argv[1])): print('held', flush=True); time.sleep(600)"
)


@pytest.fixture
def holder(tmp_path: Path) -> Iterator[subprocess.Popen[str]]:
    """Another process that holds tmp_path / "run"."""
    process = subprocess.Popen(
        [sys.executable, "-c", HOLD, str(tmp_path / "run")], cwd=ROOT, stdout=subprocess.PIPE, text=True
    )
    with process:
        assert process.stdout is not None
        assert process.stdout.readline() == "held\n"
        yield process
        process.kill()


def test_a_directory_is_held_by_one_process(holder: subprocess.Popen[str], tmp_path: Path) -> None:
    message = rf"^{tmp_path}/run: process {holder.pid} is working here; wait for it, or stop it$"
    with pytest.raises(UserError, match=message), runtime.exclusive(tmp_path / "run"):
        pass
    with runtime.exclusive(tmp_path / "other"):
        pass


def test_a_killed_process_holds_nothing(holder: subprocess.Popen[str], tmp_path: Path) -> None:
    holder.send_signal(signal.SIGKILL)
    holder.wait()
    with runtime.exclusive(tmp_path / "run"):
        assert (tmp_path / "run" / "lock").read_text() == str(os.getpid())


def test_a_directory_is_free_after_the_block(tmp_path: Path) -> None:
    for _ in range(2):
        with runtime.exclusive(tmp_path / "deep" / "run"):
            assert (tmp_path / "deep" / "run" / "lock").read_text() == str(os.getpid())


ray_test = pytest.mark.filterwarnings("ignore::DeprecationWarning", "ignore::ResourceWarning")  # Ray's own


WATCH = (
    "import time; from pipeline.runtime import end_with_dvc; end_with_dvc(); print('up', flush=True); time.sleep(60)"
)
STARTS_A_STAGE = """
import subprocess, sys, time
stage = subprocess.Popen([sys.executable, "-c", sys.argv[2]], stdout=subprocess.PIPE, text=True)
stage.stdout.readline()
print(stage.pid, flush=True)
time.sleep(600)
"""


def alive(pid: int) -> bool:
    try:
        return "Z" not in Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0]
    except FileNotFoundError:
        return False


@pytest.mark.skipif(not Path("/proc/self/stat").exists(), reason="reads /proc")
def test_a_stage_ends_with_the_dvc_that_started_it() -> None:
    environment = {**os.environ, "DVC_STAGE": "train", "PYTHONPATH": str(ROOT)}
    with subprocess.Popen(
        [sys.executable, "-c", STARTS_A_STAGE, "dvc", WATCH], env=environment, stdout=subprocess.PIPE, text=True
    ) as dvc:
        assert dvc.stdout is not None
        stage = int(dvc.stdout.readline())
        assert alive(stage)
        dvc.kill()
    deadline = time.monotonic() + 20
    while alive(stage):
        assert time.monotonic() < deadline
        time.sleep(0.05)


def test_without_dvc_no_parent_is_watched(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("DVC_STAGE", raising=False)
    monkeypatch.setattr(runtime.threading, "Thread", None)
    before = threading.enumerate()
    runtime.end_with_dvc()
    assert threading.enumerate() == before


@ray_test
@pytest.mark.parametrize("scheme", ["", "ray://"])
def test_an_address_where_nothing_listens_is_refused_at_once(
    scheme: str, make_compute: Callable[..., ComputeConfig], monkeypatch: pytest.MonkeyPatch
) -> None:
    import ray

    monkeypatch.setattr(ray, "is_initialized", lambda: False)
    monkeypatch.setattr(ray, "init", None)
    with socket.socket() as bound:
        bound.bind(("127.0.0.1", 0))  # and does not listen
        address = f"{scheme}127.0.0.1:{bound.getsockname()[1]}"
        with pytest.raises(UserError) as error, runtime.cluster(make_compute(address=address)):
            pass
    assert str(error.value) == (
        f"params.yaml: compute.address: no Ray cluster answers at {address} ([Errno 111] Connection refused); "
        "start it (`ray up cluster.yaml`), or set compute.address to null to run on this machine"
    )


@ray_test
@pytest.mark.parametrize("error", ["ConnectionError", "RuntimeError", "AuthenticationError"])
def test_a_cluster_that_does_not_answer_names_the_remedy(
    error: str, make_compute: Callable[..., ComputeConfig], monkeypatch: pytest.MonkeyPatch
) -> None:
    import ray

    def refuse(**options: object) -> None:
        assert (options["address"], options["num_cpus"]) == ("auto", None)
        raise (getattr(builtins, error, None) or getattr(ray.exceptions, error))("no Ray here\nand more")

    monkeypatch.setattr(ray, "is_initialized", lambda: False)
    monkeypatch.setattr(ray, "init", refuse)
    with pytest.raises(UserError) as told, runtime.cluster(make_compute(address="auto")):
        pass
    assert str(told.value) == (
        "params.yaml: compute.address: no Ray cluster answers at auto (no Ray here); "
        "start it (`ray up cluster.yaml`), or set compute.address to null to run on this machine"
    )


@ray_test
@pytest.mark.usefixtures("ray_cluster")
def test_a_cluster_that_runs_is_used_and_left_running(make_compute: Callable[..., ComputeConfig]) -> None:
    import ray

    with runtime.cluster(make_compute()), runtime.cluster(make_compute()):
        assert ray.cluster_resources()["CPU"] == 2
    assert ray.is_initialized()
