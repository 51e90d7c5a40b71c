"""Ranks that work together, each a process of its own, and the process alone that they are compared with.

As a program: `ranks.py WORK RANK WORLD DIRECTORY`. It joins a process group through a file in DIRECTORY, and leaves
what `results(DIRECTORY)` of the module WORK gives in DIRECTORY/rank-RANK.pt.
"""

import importlib
import os
import subprocess
import sys
from datetime import timedelta
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor

from vae_core import distributed

TIMEOUT_S = 240


def together(work: str, world: int, directory: Path) -> list[dict[str, Any]]:
    """The results of `world` ranks."""
    root = Path(distributed.__file__).parents[1]
    environment = {**os.environ, "PYTHONPATH": str(root), "PYTHONWARNINGS": "error", "OMP_NUM_THREADS": "1"}
    started = [
        subprocess.Popen(
            [sys.executable, __file__, work, str(rank), str(world), str(directory)],
            env=environment,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
        )
        for rank in range(world)
    ]
    try:
        printed = [process.communicate(timeout=TIMEOUT_S)[0] for process in started]
    finally:
        for process in started:
            process.kill()
            process.wait()
    assert [process.returncode for process in started] == [0] * world, "\n".join(printed)
    return [torch.load(directory / f"rank-{rank}.pt", weights_only=True) for rank in range(world)]


def alone(work: str, directory: Path) -> dict[str, Any]:
    """The results of this process, which has no process group."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    found = _results(work, directory)
    torch.set_num_threads(threads)
    return found


def own_places(rows: int) -> Tensor:
    """Every world-th place of a global batch, as many on each rank; places from `rows` on are padding."""
    world = distributed.world_size()
    return distributed.rank() + world * torch.arange(-(-rows // world))


def _results(work: str, directory: Path) -> dict[str, Any]:
    found: dict[str, Any] = importlib.import_module(work).results(directory)
    return found


def _main(work: str, rank: int, world: int, directory: Path) -> None:
    torch.set_num_threads(1)
    dist.init_process_group(
        "gloo", init_method=f"file://{directory}/group", rank=rank, world_size=world, timeout=timedelta(seconds=180)
    )
    torch.save(_results(work, directory), directory / f"rank-{rank}.pt")
    distributed.barrier()
    dist.destroy_process_group()


if __name__ == "__main__":
    # Gloo connects the ranks by the address of the host's name, which need not resolve on a laptop.
    os.environ.setdefault("GLOO_SOCKET_IFNAME", "lo0" if sys.platform == "darwin" else "lo")
    _main(sys.argv[1], int(sys.argv[2]), int(sys.argv[3]), Path(sys.argv[4]))
