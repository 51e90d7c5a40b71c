"""A cluster that does not answer, or a Ray that does not start, is an error with a remedy."""

import os
import signal
import socket
import subprocess
from collections.abc import Callable
from contextlib import nullcontext
from pathlib import Path
from typing import Any

import pytest

from pipeline import joining, runtime
from pipeline.closure import ROOT
from pipeline.ending import Terminated
from pipeline.errors import ClusterFailed
from pipeline.train.config import ComputeConfig

pytestmark = pytest.mark.filterwarnings("ignore::DeprecationWarning", "ignore::ResourceWarning")  # Ray's own


@pytest.fixture(autouse=True)
def unconnected(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    """As if neither this process nor another on this machine, which `auto` would find, had a Ray."""
    import ray

    if "ray_cluster" in request.fixturenames:
        return
    monkeypatch.setattr(ray, "is_initialized", lambda: False)
    monkeypatch.setattr(joining, "_show_token", lambda address: None)


@pytest.mark.parametrize("scheme", ["", "ray://"])
def test_an_address_where_nothing_listens_is_refused_at_once(
    scheme: str, make_compute: Callable[..., ComputeConfig], monkeypatch: pytest.MonkeyPatch
) -> None:
    import ray

    monkeypatch.setattr(ray, "init", None)
    with socket.socket() as bound:
        bound.bind(("127.0.0.1", 0))  # and does not listen
        address = f"{scheme}127.0.0.1:{bound.getsockname()[1]}"
        with pytest.raises(ClusterFailed) as error, runtime.cluster(make_compute(address=address)):
            pass
    assert str(error.value) == (
        f"params.yaml: compute.address: no Ray cluster answers at {address} ([Errno 111] Connection refused); "
        "start it (`ray up cluster.yaml`), or set compute.address to null to run on this machine"
    )


@pytest.mark.parametrize("error", [ConnectionError, RuntimeError])
def test_a_cluster_that_does_not_answer_names_the_remedy(
    error: type[Exception], make_compute: Callable[..., ComputeConfig], monkeypatch: pytest.MonkeyPatch
) -> None:
    import ray

    def refuse(**options: object) -> None:
        assert options["address"] == "auto"
        assert "num_cpus" not in options
        raise error("no Ray here\nand more")

    monkeypatch.setattr(ray, "init", refuse)
    with pytest.raises(ClusterFailed) as told, runtime.cluster(make_compute(address="auto")):
        pass
    assert str(told.value) == (
        "params.yaml: compute.address: no Ray cluster answers at auto (no Ray here); "
        "start it (`ray up cluster.yaml`), or set compute.address to null to run on this machine"
    )


REMEDY = "copy that of the cluster to ~/.ray/auth_token (mode 600), or name its file in RAY_AUTH_TOKEN_PATH"


def test_a_token_that_is_refused_names_the_remedy(
    make_compute: Callable[..., ComputeConfig], monkeypatch: pytest.MonkeyPatch
) -> None:
    import ray

    def refuse(**_: object) -> None:
        raise ray.exceptions.AuthenticationError("the token is invalid")

    monkeypatch.setattr(ray, "init", refuse)
    with pytest.raises(ClusterFailed) as told, runtime.cluster(make_compute(address="auto")):
        pass
    assert str(told.value) == f"params.yaml: compute.address: auto refuses this token; {REMEDY}"


@pytest.mark.parametrize(
    ("mode", "told"), [(None, "no token for a cluster"), (0o640, "others can read the token"), (0o600, "")]
)
def test_a_token_is_there_and_nobody_else_reads_it(
    mode: int | None, told: str, make_compute: Callable[..., ComputeConfig], tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:  # fmt: skip
    import ray

    file = tmp_path / "token"
    if mode is not None:
        file.write_text("of nobody else\n")
        file.chmod(mode)
    monkeypatch.setattr(ray, "init", lambda **_: None)
    monkeypatch.setattr(ray, "shutdown", lambda: None)  # of the session's cluster
    monkeypatch.delenv("RAY_AUTH_TOKEN")
    monkeypatch.setenv("RAY_AUTH_TOKEN_PATH", str(file))
    with pytest.raises(ClusterFailed, match=told) if told else nullcontext():
        with runtime.cluster(make_compute(address="auto")):
            pass


def test_a_cluster_gets_the_code_of_this_checkout_and_a_job_keeps_its_environment(
    make_compute: Callable[..., ComputeConfig], monkeypatch: pytest.MonkeyPatch
) -> None:
    import ray

    brought = {}

    def init(*, runtime_env: dict[str, Any], **_: object) -> None:
        code = Path(runtime_env["working_dir"])
        brought.update(runtime_env, files={path.relative_to(code).as_posix() for path in code.rglob("*.*")})

    monkeypatch.setattr(ray, "init", init)
    monkeypatch.setattr(ray, "shutdown", lambda: None)
    monkeypatch.setenv("RAY_TRAIN_HEALTH_CHECK_INTERVAL_S", "7")
    with runtime.cluster(make_compute(address="auto")):
        assert not Path(brought["working_dir"]).exists()
    listed = subprocess.run(["git", "ls-files", "-co", "--exclude-standard", *joining.CODE], cwd=ROOT, text=True,
                            capture_output=True, check=True).stdout  # fmt: skip
    assert brought["files"] == {name for name in listed.split("\n") if (ROOT / name).is_file()}
    assert brought["env_vars"]["RAY_TRAIN_HEALTH_CHECK_INTERVAL_S"] == "7"
    assert not [name for name in brought["env_vars"] if "AUTH" in name]
    assert os.environ["RAY_OVERRIDE_JOB_RUNTIME_ENV"] == "1"


def test_a_ray_of_ones_own_is_no_part_of_the_job_that_it_runs_in(
    make_compute: Callable[..., ComputeConfig], monkeypatch: pytest.MonkeyPatch
) -> None:
    import ray

    def fail(**options: object) -> None:
        assert options["address"] == "local"
        assert options["runtime_env"] is None
        assert not {"RAY_ADDRESS", "RAY_JOB_CONFIG_JSON_ENV_VAR"} & os.environ.keys()
        raise RuntimeError("seen")

    monkeypatch.setattr(ray, "init", fail)
    monkeypatch.setenv("RAY_ADDRESS", "10.0.0.1:6379")
    monkeypatch.setenv("RAY_JOB_CONFIG_JSON_ENV_VAR", "{}")
    with pytest.raises(ClusterFailed, match="seen"):
        runtime.cluster(make_compute()).__enter__()
    assert os.environ["RAY_ADDRESS"] == "10.0.0.1:6379"


@pytest.mark.usefixtures("ray_cluster")
def test_ranks_meet_where_ray_does(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("GLOO_SOCKET_IFNAME")
    joining.join_network()
    assert os.environ["GLOO_SOCKET_IFNAME"] == runtime._PRIVATE["GLOO_SOCKET_IFNAME"]


def test_a_ray_that_cannot_start_here_says_where_to_look(
    make_compute: Callable[..., ComputeConfig], monkeypatch: pytest.MonkeyPatch
) -> None:
    import ray

    def fail(**options: object) -> None:
        signal.signal(signal.SIGTERM, signal.SIG_DFL)  # as Ray does
        raise RuntimeError("no raylet\nand more")

    before = signal.getsignal(signal.SIGTERM)
    monkeypatch.setattr(ray, "init", fail)
    with pytest.raises(ClusterFailed, match=r"^Ray cannot start on this machine \(no raylet\); its logs are in "):
        runtime.cluster(make_compute()).__enter__()
    assert signal.getsignal(signal.SIGTERM) is before


def test_a_signal_while_ray_starts_is_one_of_ours(
    make_compute: Callable[..., ComputeConfig], monkeypatch: pytest.MonkeyPatch
) -> None:
    import ray

    def fail(**options: object) -> None:
        raise SystemExit(signal.SIGTERM)  # what Ray's handler does

    ended: list[bool] = []
    monkeypatch.setattr(ray, "init", fail)
    monkeypatch.setattr(ray, "shutdown", lambda: ended.append(True))  # of the session's cluster
    with pytest.raises(Terminated):
        runtime.cluster(make_compute()).__enter__()
    assert ended


@pytest.mark.usefixtures("ray_cluster")
def test_a_cluster_that_runs_is_used_and_left_running(make_compute: Callable[..., ComputeConfig]) -> None:
    import ray

    with runtime.cluster(make_compute()), runtime.cluster(make_compute()):
        assert ray.cluster_resources()["CPU"] == 2
    assert ray.is_initialized()
