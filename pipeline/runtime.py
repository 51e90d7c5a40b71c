"""Ray: connect to the cluster that `compute.address` names, or start one on this machine for the length of a stage."""

import logging
import os
import secrets
import shlex
import signal
import socket
import sys
import threading
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import psutil

from pipeline.config import ComputeConfig
from pipeline.errors import UserError
from pipeline.progress import say

OBJECT_STORE_BYTES = 128 * 1024**2  # data travels through files; Ray carries only small values

_ENVIRONMENT = {
    "RAY_TRAIN_HEALTH_CHECK_INTERVAL_S": "0.2",  # a report waits for the next poll; Ray's default is 2 s
    "RAY_CHDIR_TO_TRIAL_DIR": "0",
    "RAY_USAGE_STATS_ENABLED": "0",
    "RAY_ENABLE_UV_RUN_RUNTIME_ENV": "0",
    "RAY_TRAIN_WORKER_GROUP_START_TIMEOUT_S": "60",
    "RAY_DEDUP_LOGS": "1",
    "RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO": "0",
    "RAY_AIR_NEW_OUTPUT": "0",
    "TUNE_DISABLE_AUTO_CALLBACK_LOGGERS": "1",
    "RAY_AUTH_MODE": "token",
}


@contextmanager
def cluster(compute: ComputeConfig) -> Iterator[None]:
    """Ray for the length of the block.

    Raises:
        UserError: the cluster at `compute.address` does not answer.
    """
    for name, value in _ENVIRONMENT.items():
        os.environ.setdefault(name, value)
    if compute.address is None:  # a private cluster: its token lives and dies with this process, in no file
        os.environ.setdefault("RAY_AUTH_TOKEN", secrets.token_hex(32))
    import ray  # reads the environment when it is imported

    if ray.is_initialized():  # a caller's cluster, for instance that of a test
        yield
        return
    local = compute.address is None
    try:
        if compute.address is not None:
            _knock(compute.address)
        say("starting Ray on this machine" if local else f"connecting to Ray at {compute.address}")
        ray.init(
            address=compute.address or "local",
            num_cpus=os.cpu_count() if local else None,
            object_store_memory=OBJECT_STORE_BYTES if local else None,
            logging_level=logging.WARNING,
            log_to_driver=False,
            runtime_env=_quoted_python() if local else None,
        )
    except (OSError, RuntimeError, ValueError, ray.exceptions.AuthenticationError) as error:
        if local:
            raise
        reason = str(error).strip().splitlines()[0]
        raise UserError(
            f"params.yaml: compute.address: no Ray cluster answers at {compute.address} ({reason}); "
            "start it (`ray up cluster.yaml`), or set compute.address to null to run on this machine"
        ) from None
    try:
        yield
    finally:
        ray.shutdown()


def results(references: Sequence[Any]) -> Iterator[Any]:
    """What Ray's tasks returned, in order, each as soon as it is there.

    Raises:
        UserError: a task raised it.
    """
    import ray

    for reference in references:
        try:
            yield ray.get(reference)
        except ray.exceptions.RayTaskError as error:
            if isinstance(error.cause, UserError):
                raise error.cause from None
            raise


def _knock(address: str) -> None:
    """Fail at once where nothing listens: Ray itself would go on trying for minutes."""
    host, _, port = address.removeprefix("ray://").rpartition(":")
    if port.isdigit():
        socket.create_connection((host, int(port)), timeout=10).close()


def _quoted_python() -> dict[str, str] | None:
    """Ray starts some workers through a shell without quoting the interpreter's path, which may hold a space."""
    quoted = shlex.quote(sys.executable)
    return None if quoted == sys.executable else {"py_executable": quoted}


def end_with_dvc() -> None:
    """End this process when the `dvc` that started it ends: DVC leaves its stages running when it is killed."""
    if "DVC_STAGE" not in os.environ:
        return
    dvc = next((parent for parent in psutil.Process().parents() if "dvc" in " ".join(parent.cmdline()[:4])), None)
    if dvc is not None:
        threading.Thread(target=_watch, args=(dvc,), daemon=True).start()


def _watch(process: psutil.Process) -> None:
    while process.is_running() and process.status() != psutil.STATUS_ZOMBIE:
        time.sleep(0.5)
    os.kill(os.getpid(), signal.SIGTERM)
    time.sleep(5)
    os._exit(143)


@contextmanager
def exclusive(directory: Path) -> Iterator[None]:
    """Hold `directory` for this process alone.

    Raises:
        UserError: another process that is still alive holds it.
    """
    import fcntl

    directory.mkdir(parents=True, exist_ok=True)
    with (directory / "lock").open("a+") as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            file.seek(0)
            raise UserError(
                f"{directory}: process {file.read().strip() or '(unknown)'} is working here; wait for it, or stop it"
            ) from None
        file.truncate(0)
        file.write(str(os.getpid()))
        file.flush()
        yield
