"""A cluster that does not answer, or a Ray that does not start, is an error with a remedy."""

import builtins
import signal
import socket
from collections.abc import Callable

import pytest

from pipeline import runtime
from pipeline.ending import Terminated
from pipeline.errors import ClusterFailed
from pipeline.train.config import ComputeConfig

ray_test = pytest.mark.filterwarnings("ignore::DeprecationWarning", "ignore::ResourceWarning")  # Ray's own


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
        with pytest.raises(ClusterFailed) as error, runtime.cluster(make_compute(address=address)):
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
        assert options["address"] == "auto"
        assert "num_cpus" not in options
        raise (getattr(builtins, error, None) or getattr(ray.exceptions, error))("no Ray here\nand more")

    monkeypatch.setattr(ray, "is_initialized", lambda: False)
    monkeypatch.setattr(ray, "init", refuse)
    with pytest.raises(ClusterFailed) as told, runtime.cluster(make_compute(address="auto")):
        pass
    assert str(told.value) == (
        "params.yaml: compute.address: no Ray cluster answers at auto (no Ray here); "
        "start it (`ray up cluster.yaml`), or set compute.address to null to run on this machine"
    )


@ray_test
def test_a_ray_that_cannot_start_here_says_where_to_look(
    make_compute: Callable[..., ComputeConfig], monkeypatch: pytest.MonkeyPatch
) -> None:
    import ray

    def fail(**options: object) -> None:
        signal.signal(signal.SIGTERM, signal.SIG_DFL)  # as Ray does
        raise RuntimeError("no raylet\nand more")

    before = signal.getsignal(signal.SIGTERM)
    monkeypatch.setattr(ray, "is_initialized", lambda: False)
    monkeypatch.setattr(ray, "init", fail)
    with pytest.raises(ClusterFailed, match=r"^Ray cannot start on this machine \(no raylet\); its logs are in "):
        runtime.cluster(make_compute()).__enter__()
    assert signal.getsignal(signal.SIGTERM) is before


@ray_test
def test_a_signal_while_ray_starts_is_one_of_ours(
    make_compute: Callable[..., ComputeConfig], monkeypatch: pytest.MonkeyPatch
) -> None:
    import ray

    def fail(**options: object) -> None:
        raise SystemExit(signal.SIGTERM)  # what Ray's handler does

    ended: list[bool] = []
    monkeypatch.setattr(ray, "is_initialized", lambda: False)
    monkeypatch.setattr(ray, "init", fail)
    monkeypatch.setattr(ray, "shutdown", lambda: ended.append(True))  # of the session's cluster
    with pytest.raises(Terminated):
        runtime.cluster(make_compute()).__enter__()
    assert ended


@ray_test
@pytest.mark.usefixtures("ray_cluster")
def test_a_cluster_that_runs_is_used_and_left_running(make_compute: Callable[..., ComputeConfig]) -> None:
    import ray

    with runtime.cluster(make_compute()), runtime.cluster(make_compute()):
        assert ray.cluster_resources()["CPU"] == 2
    assert ray.is_initialized()
