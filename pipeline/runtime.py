"""Ray: connect to the cluster that `compute.address` names, or start one on this machine for the length of a stage."""

import logging
import os
import secrets
import shlex
import signal
import subprocess
import sys
import threading
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager, nullcontext
from pathlib import Path
from typing import Any

from pipeline import token
from pipeline.ending import Terminated, end
from pipeline.errors import ClusterFailed, UserError, WorkersFailed
from pipeline.joining import join
from pipeline.progress import say
from pipeline.train.config import ComputeConfig

LOST_S = 2.0  # for this process to end by itself, where a signal went to all of Ray too
TORCH = ("torch",)  # what ranks and trials import first
OBJECT_STORE_BYTES = 128 * 1024**2  # data travels through files; Ray carries only small values

_ENVIRONMENT = {
    "RAY_TRAIN_HEALTH_CHECK_INTERVAL_S": "0.2",  # a report waits for the next poll; Ray's default is 2 s
    "RAY_CHDIR_TO_TRIAL_DIR": "0",
    "RAY_USAGE_STATS_ENABLED": "0",
    "RAY_ENABLE_UV_RUN_RUNTIME_ENV": "0",
    "RAY_TRAIN_WORKER_GROUP_START_TIMEOUT_S": "60",
    "RAY_DEDUP_LOGS": "1",
    "RAY_DEDUP_LOGS_SKIP_REGEX": "^A worker died|due to memory pressure|marked dead|^Raylet is terminated",  # we say it
    "TUNE_DISABLE_SIGINT_HANDLER": "1",
    "RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO": "0",
    "RAY_AIR_NEW_OUTPUT": "0",
    "TUNE_DISABLE_AUTO_CALLBACK_LOGGERS": "1",
    "RAY_AUTH_MODE": "token",
}
_PRIVATE = {  # there, nobody reads Ray's own figures, and no node is reclaimed: each part that is left out leaves cores
    "RAY_TRAIN_METRICS_ENABLED": "0",
    "RAY_enable_metrics_collection": "0",
    "RAY_TRAIN_ENABLE_PREEMPTION_WATCHER": "0",
    "REPORTER_UPDATE_INTERVAL_MS": "3600000",
    "RAY_worker_niceness": "0",  # workers give way to nobody, as this process does not: a rank that waits holds all up
    "RAY_idle_worker_killing_time_threshold_ms": "3600000",  # those that Ray has ready are kept until they are needed
    "RAY_ENABLE_WINDOWS_OR_OSX_CLUSTER": "0",  # as on those systems: every part of Ray listens on 127.0.0.1 alone
    "GLOO_SOCKET_IFNAME": "lo0" if sys.platform == "darwin" else "lo",
    "NCCL_SOCKET_IFNAME": "lo",
}
_UNNEEDED = ("start_monitor", "start_api_server", "start_log_monitor")  # methods of Ray's node
_OF_A_JOB = ("RAY_JOB_CONFIG_JSON_ENV_VAR", "RAY_ADDRESS")  # set for a job's driver; they name the job's cluster
_PARTS = {"raylet": "Ray's node manager (raylet)", "gcs_server": "Ray's control service (gcs_server)"}
_QUIET: dict[str, Any] = {"logging_level": logging.WARNING, "log_to_driver": False}


@contextmanager
def cluster(compute: ComputeConfig, preload: Sequence[str] = (), *, environments: bool = False) -> Iterator[None]:
    """Ray for the length of the block.

    Args:
        preload: modules that the processes of a Ray on this machine import while they wait for work.
        environments: whether tasks or actors have a runtime environment of their own.

    Raises:
        ClusterFailed: Ray does not start here, or the cluster at `compute.address` does not answer.
    """
    private = compute.address is None
    for name, value in {**_ENVIRONMENT, **(_PRIVATE if private else {})}.items():
        os.environ.setdefault(name, value)
    if private:  # its token lives and dies with this process, in no file
        os.environ.setdefault(token.VARIABLE, secrets.token_hex(32))
        os.environ["RAY_preload_python_modules"] = ",".join(preload)
    import ray  # reads the environment when it is imported

    if ray.is_initialized():  # a caller's cluster, for instance that of a test
        yield
        return
    with ExitStack() as stack:
        if private:
            stack.enter_context(_not_in_a_job())
            stack.enter_context(_reaped())
        with _own_signals():
            _connect(compute, environments)
        try:
            with _watched() if private else nullcontext():
                yield
        finally:
            ray.shutdown()


def _connect(compute: ComputeConfig, environments: bool) -> None:
    import ray
    from ray._common.utils import get_default_ray_temp_dir

    address = compute.address
    say("starting Ray on this machine" if address is None else f"connecting to Ray at {address}")
    try:
        if address is None:
            environment = _quoted_python() if environments else None
            with _bare():
                ray.init(address="local", num_cpus=cores(), object_store_memory=OBJECT_STORE_BYTES,
                         include_dashboard=False, runtime_env=environment, **_QUIET)  # fmt: skip
        else:
            join(address, [name for name in _ENVIRONMENT if name != "RAY_AUTH_MODE"], **_QUIET)
    except SystemExit:  # what Ray makes of SIGTERM
        ray.shutdown()
        raise Terminated from None
    except ClusterFailed:
        raise
    except Exception as error:  # Ray raises just that where a part of it does not come up
        reason = (str(error).strip() or type(error).__name__).splitlines()[0]
        if address is None:
            raise ClusterFailed(
                f"Ray cannot start on this machine ({reason}); its logs are in {get_default_ray_temp_dir()}/"
                "session_latest/logs; is there room on the disk and in /dev/shm?"
            ) from error
        raise ClusterFailed(
            f"params.yaml: compute.address: no Ray cluster answers at {address} ({reason}); "
            "start it (`ray up cluster.yaml`), or set compute.address to null to run on this machine"
        ) from None


@contextmanager
def _bare() -> Iterator[None]:
    """Let Ray start without its autoscaler, its dashboard, and what would copy logs to the screen."""
    from ray._private.node import Node

    kept = {name: getattr(Node, name) for name in _UNNEEDED}
    for name in kept:
        setattr(Node, name, lambda *_, **__: None)
    try:
        yield
    finally:
        for name, start in kept.items():
            setattr(Node, name, start)


@contextmanager
def _not_in_a_job() -> Iterator[None]:
    """A Ray that the driver of a job starts for itself is not to take over what the cluster gave the job."""
    before = {name: os.environ.pop(name) for name in _OF_A_JOB if name in os.environ}
    try:
        yield
    finally:
        os.environ.update(before)


@contextmanager
def _watched() -> Iterator[None]:
    """End this process where Ray's node manager or control service died.

    Nothing goes on without them, and Ray would end this process too, or wait for ever: both without a word.
    """
    import ray

    done = threading.Event()
    node = ray._private.worker._global_node
    threading.Thread(target=_end_with, args=(node, done), daemon=True).start()
    try:
        yield
    finally:
        done.set()


def _end_with(node: Any, done: threading.Event) -> None:
    while not done.wait(1):
        lost = [part for part, _ in node.dead_processes() if part in _PARTS]
        if lost and not done.wait(LOST_S):
            remedy = "what was done is kept, run the same command again to continue"
            print(f"error: {_PARTS[lost[0]]} on this machine died; {remedy}", file=sys.stderr, flush=True)
            end(ClusterFailed.code)


@contextmanager
def _reaped() -> Iterator[None]:
    """A process that ends Ray's, should this one be killed before the block ends."""
    script = Path(__file__).with_name("reaper.py")
    command = [sys.executable, "-I", str(script)]
    with subprocess.Popen(command, stdin=subprocess.PIPE, start_new_session=True) as reaper:
        try:
            yield
        finally:
            reaper.communicate(b"\n")


@contextmanager
def _own_signals() -> Iterator[None]:
    """Put back what this process does on SIGINT and SIGTERM, which Ray changes when it starts."""
    numbers = (signal.SIGINT, signal.SIGTERM) if threading.current_thread() is threading.main_thread() else ()
    before = {number: signal.getsignal(number) for number in numbers}
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


def cores() -> int:
    """Of this machine, as many as this process may use: a container has a share, a batch system pins."""
    from ray._private.utils import get_num_cpus

    pinned = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    return min(int(get_num_cpus()), pinned)


def results(references: Sequence[Any]) -> Iterator[Any]:
    """What Ray's tasks returned, in order, each as soon as it is there.

    Raises:
        UserError: a task raised it.
        WorkersFailed: its process died more often than Ray starts it again.
    """
    import ray

    for reference in references:
        try:
            yield ray.get(reference)
        except ray.exceptions.RayTaskError as error:
            if isinstance(error.cause, UserError):
                raise error.cause from None
            raise
        except ray.exceptions.RayError as error:
            reason = (str(error).strip() or type(error).__name__).splitlines()[0]
            raise WorkersFailed(f"a task died ({reason}); is there enough memory? run the same command again") from None


def _quoted_python() -> dict[str, str] | None:
    """Ray starts workers of an environment through a shell, and does not quote the interpreter's path for it."""
    quoted = shlex.quote(sys.executable)
    return None if quoted == sys.executable else {"py_executable": quoted}
