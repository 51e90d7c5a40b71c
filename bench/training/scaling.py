"""Our loop on several gloo workers of this machine, a core each."""

import os
import tempfile
from contextlib import suppress
from dataclasses import replace
from pathlib import Path

import torch
import torch.distributed as dist
from torch.multiprocessing.spawn import spawn

from bench.training.clock import Clock, Enough
from bench.training.ours import train_in
from pipeline import files
from pipeline.train.run import TrainRun

TIMES = "seconds.json"


def rate(run: TrainRun, workers: int, batch: int, epochs: int) -> float:
    """Images a second of the epochs after the first.

    Args:
        batch: rows over all workers.
    """
    run = replace(run, train=replace(run.train, global_batch_size=batch))
    with tempfile.TemporaryDirectory() as folder:
        spawn(_rank, (workers, run, Path(folder), epochs), nprocs=workers)
        seconds = files.read_json(Path(folder) / TIMES)
    return run.reading.manifest().counts["train"] * (epochs - 1) / (seconds[-1] - seconds[0])


def _rank(rank: int, world: int, run: TrainRun, folder: Path, epochs: int) -> None:
    cores = sorted(os.sched_getaffinity(0))
    os.sched_setaffinity(0, {cores[rank % len(cores)]})
    torch.set_num_threads(1)
    dist.init_process_group("gloo", init_method=(folder / "meeting").as_uri(), rank=rank, world_size=world)
    clock = Clock(epochs)
    with suppress(Enough):
        train_in(folder, run, clock)
    if rank == 0:
        files.write_json(folder / TIMES, clock.seconds)
    dist.barrier()
    dist.destroy_process_group()
