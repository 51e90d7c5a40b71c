"""GPUs, and whether processes can add numbers up together: gloo on this machine, NCCL between its GPUs.

python -m pipeline.doctor.accelerator    a finding a line, as JSON

A process of its own, each part of it in forks of one that has imported torch: a driver or a network that hangs leaves
the rest alone.
"""

import json
import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from dataclasses import asdict
from datetime import timedelta
from functools import partial
from pathlib import Path
from typing import Any

from pipeline.doctor.finding import Finding, broken, ok, warning

LIMIT_S, PART_S = 90.0, 20.0
DRIVER = Path("/proc/driver/nvidia/version")
RANKS = 2
IFNAME = "`export GLOO_SOCKET_IFNAME=lo` on one machine; on several the interface's name (`ip -brief address`)"


def look(root: Path) -> Iterator[Finding]:
    """Findings of a process of its own."""
    command = [sys.executable, "-m", "pipeline.doctor.accelerator"]
    with subprocess.Popen(
        command,
        cwd=root,
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        start_new_session=True,
    ) as child:
        try:
            out, said = child.communicate(timeout=LIMIT_S)
        except subprocess.TimeoutExpired:
            os.killpg(child.pid, signal.SIGKILL)
            out, said = child.communicate()
    found = [Finding(**json.loads(line)) for line in out.splitlines() if line.startswith("{")]
    yield from found
    if not found or child.returncode:
        reason = (said.strip().splitlines() or ["no reason given"])[-1]
        yield broken("torch", f"ended with {child.returncode} ({reason})", "install torch of constraints.txt again")


def host_name(resolve: Callable[[str], str] = socket.gethostbyname) -> Iterator[Finding]:
    """gloo listens where this machine's name leads."""
    name = socket.gethostname()
    try:
        resolve(name)
    except OSError:
        yield warning("host name", f"{name} leads to no address", f"add it to /etc/hosts, or {IFNAME}")
    else:
        yield ok("host name", f"{name} resolves")


def main() -> None:
    import torch

    torch.set_num_threads(1)
    for finding in _all():
        print(json.dumps(asdict(finding)), flush=True)


def _all() -> Iterator[Finding]:
    yield _together("gloo", "cpu", IFNAME)
    count, failure = _forked(_gpus)
    if failure is not None:
        remedy = "look at `nvidia-smi`; a torch built for a newer CUDA than the driver's says so too"
        yield broken("GPU", failure, remedy)
        return
    names = json.loads(count)
    if not names:
        yield _no_gpu()
        return
    yield ok("GPU", f"{len(names)}: {', '.join(dict.fromkeys(names))}; multiplies matrices")
    if len(names) >= RANKS:
        yield _together("nccl", "cuda", "`export NCCL_DEBUG=INFO` shows why; NCCL_SOCKET_IFNAME names the interface")


def _no_gpu() -> Finding:
    import torch

    if DRIVER.exists():
        built = torch.version.cuda or "none"
        return broken(
            "GPU",
            f"there is an NVIDIA driver, but torch sees no GPU (built for CUDA {built})",
            "install the torch build with CUDA; see CUDA_VISIBLE_DEVICES and `nvidia-smi`",
        )
    return ok("GPU", "none; training runs on the CPU")


def _gpus() -> str:
    """Names of the GPUs, each of which has multiplied two matrices."""
    import torch

    names = []
    for at in range(torch.cuda.device_count() if torch.cuda.is_available() else 0):
        ones = torch.ones(256, 256, device=f"cuda:{at}")
        if float((ones @ ones).sum()) != 256.0**3:
            raise RuntimeError(f"GPU {at} multiplies wrongly")
        names.append(torch.cuda.get_device_name(at))
    return json.dumps(names)


def _together(backend: str, device: str, remedy: str) -> Finding:
    """Two processes add their ranks up."""
    with socket.create_server(("127.0.0.1", 0)) as free:
        port = free.getsockname()[1]
    start = time.monotonic()
    ranks = [_fork(partial(_add_up, backend, device, rank, port)) for rank in range(RANKS)]
    ends = [_joined(*rank) for rank in ranks]
    failures = [failure for _, failure in ends if failure is not None]
    what = f"collectives ({backend})"
    if failures:
        return broken(what, f"{RANKS} processes cannot add up ({failures[0]})", remedy)
    return ok(what, f"{RANKS} processes add up, in {time.monotonic() - start:.1f} s")


def _add_up(backend: str, device: str, rank: int, port: int) -> str:
    import torch
    import torch.distributed as dist

    where = f"cuda:{rank}" if device == "cuda" else "cpu"
    if device == "cuda":
        torch.cuda.set_device(rank)
    dist.init_process_group(
        backend,
        init_method=f"tcp://127.0.0.1:{port}",
        rank=rank,
        world_size=RANKS,
        timeout=timedelta(seconds=PART_S / 2),
    )
    total = torch.full((1000,), float(rank + 1), device=where)
    dist.all_reduce(total)
    if not bool((total == sum(range(1, RANKS + 1))).all()):
        raise RuntimeError(f"the sum is {float(total[0])}")
    dist.destroy_process_group()
    return ""


def _forked(work: Callable[[], str]) -> tuple[str, str | None]:
    return _joined(*_fork(work))


def _fork(work: Callable[[], str]) -> tuple[int, int]:
    """A child at work: its number, and where it writes."""
    read, write = os.pipe()
    child = os.fork()
    if child:
        os.close(write)
        return child, read
    code = 1
    try:
        text: Any = {"result": work()}
        code = 0
    except BaseException as error:  # the parent tells of it
        text = {"failure": (str(error).strip() or type(error).__name__).splitlines()[0]}
    os.write(write, json.dumps(text).encode())
    os._exit(code)


def _joined(child: int, read: int) -> tuple[str, str | None]:
    """What it gave, or why it did not."""
    import select

    ready, _, _ = select.select([read], [], [], PART_S)
    if not ready:
        os.kill(child, signal.SIGKILL)
    said = os.read(read, 1 << 16) if ready else b""
    os.close(read)
    _, status = os.waitpid(child, 0)
    if not ready:
        return "", f"no answer in {PART_S:g} s"
    if not said:
        return "", f"died of signal {os.WTERMSIG(status)}" if os.WIFSIGNALED(status) else "died"
    told = json.loads(said)
    return told.get("result", ""), told.get("failure")


if __name__ == "__main__":
    main()
