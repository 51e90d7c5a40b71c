"""Join a cluster that runs: with its token, and with the code and the settings that its workers get from this driver.

A cluster's nodes need this project's dependencies, not its code: each driver brings the code that it runs itself.
"""

import os
import shutil
import tempfile
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import psutil

from pipeline import token
from pipeline.addresses import knock
from pipeline.errors import ClusterFailed

KNOCK_S = 10.0
CODE = ("pipeline", "vae_core")  # folders of this checkout that workers import


def join(address: str, settings: Iterable[str], **options: Any) -> None:
    """Make this process a driver of the cluster at `address`.

    Args:
        settings: variables of this process's environment that workers get too.
        options: of `ray.init`.

    Raises:
        ClusterFailed: this user has no token, or not the cluster's.
        OSError: nothing listens there.
    """
    import ray

    knock(address, KNOCK_S)
    if os.environ["RAY_AUTH_MODE"] == "token":
        token.find_token()
    _show_token(address)
    with _code() as folder:
        try:
            ray.init(address=address, runtime_env=_brought(folder, settings), **options)
        except ray.exceptions.AuthenticationError:
            raise _refused(address) from None


def _show_token(address: str) -> None:
    """Fail at once where a cluster does not accept the token: Ray would ask for 20 s, and then not say why.

    Raises:
        ClusterFailed: it does not.
    """
    from ray._private.grpc_utils import grpc, init_grpc_channel
    from ray._private.services import canonicalize_bootstrap_address
    from ray.core.generated import gcs_service_pb2, gcs_service_pb2_grpc

    place = None if "://" in address else canonicalize_bootstrap_address(address)
    if place is None:
        return
    with init_grpc_channel(place) as channel:
        try:
            ask = gcs_service_pb2_grpc.NodeInfoGcsServiceStub(channel).GetClusterId
            ask(gcs_service_pb2.GetClusterIdRequest(), timeout=KNOCK_S)
        except grpc.RpcError as error:
            if error.code() == grpc.StatusCode.UNAUTHENTICATED:
                raise _refused(address) from None


def _refused(address: str) -> ClusterFailed:
    return ClusterFailed(f"params.yaml: compute.address: {address} refuses this token; {token.COPY}")


@contextmanager
def _code() -> Iterator[Path]:
    """A folder that holds this checkout's code and nothing else."""
    checkout = Path(__file__).parents[1]
    with tempfile.TemporaryDirectory(prefix="vae-code-") as folder:
        for name in CODE:
            shutil.copytree(checkout / name, Path(folder, name), ignore=shutil.ignore_patterns("__pycache__"))
        yield Path(folder)


def _brought(code: Path, settings: Iterable[str]) -> dict[str, Any]:
    """Ray's runtime environment: what workers get from this process, wherever they run.

    As a working directory, the code comes before whatever a node has at the path of this process's own.
    """
    os.environ["RAY_OVERRIDE_JOB_RUNTIME_ENV"] = "1"  # in a job: ours instead of the folder that was submitted
    return {
        "working_dir": str(code),
        "env_vars": {name: os.environ[name] for name in settings},
        "worker_process_setup_hook": f"{__name__}.{join_network.__name__}",
    }


def join_network() -> None:
    """Let gloo listen where Ray does; by itself it takes the address of the host's name, which is often loopback.

    Each worker of a cluster calls it when it starts.
    """
    import ray

    address = ray.util.get_node_ip_address()
    for name, found in psutil.net_if_addrs().items():
        if any(one.address == address for one in found):
            os.environ.setdefault("GLOO_SOCKET_IFNAME", name)
