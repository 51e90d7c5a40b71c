"""Runs ingest and shard in processes that are killed; started by test_killed.py as a program.

Reads one order a line, runs it in a process forked for it, and prints how that ended. Orders:

    {"stage": "ingest" or "shard", "root": FOLDER, "size": N, "die_at": STEP or null, "die_after": SECONDS or null}

A step is a call that changes the file system: open for writing, rename, remove, make or remove a folder, sync. The
process kills itself before the step of that number.
"""

import itertools
import json
import os
import signal
import sys
import time
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path
from typing import Any

from PIL import Image

from pipeline.data.config import DataConfig, ImageConfig, ImageFolderSource, ShardConfig
from pipeline.data.ingest import ingest, prepare
from pipeline.data.shards import write_here
from pipeline.data.sources import image_folder
from pipeline.train.config import ComputeConfig

STEPS = {"os.rename", "os.remove", "os.mkdir", "os.rmdir"}
PARTITION_FILES = 20


def data_config(root: Path, size: int) -> DataConfig:
    return DataConfig(
        source=ImageFolderSource(kind="image_folder", path=str(root / "images")),
        image=ImageConfig(size=(size, size)),
        validation_fraction=0.2,
        test_fraction=0.2,
        max_bad_fraction=0.5,
    )


def run(stage: str, root: Path, size: int) -> None:
    """Without Ray: every call is made by this process."""
    if stage == "shard":
        write_here(root / "data", ShardConfig(seed=0, shard_bytes=150_000))
        return
    config = data_config(root, size)
    prepare([image_folder.open_image_folder(config.source, None, 10**6)], config, root / "data")


def count_steps(die_at: int | None) -> Iterator[int]:
    steps, fsync = itertools.count(), os.fsync  # count: threads take steps too

    def step() -> None:
        if next(steps) == die_at:
            os.kill(os.getpid(), signal.SIGKILL)

    def audit(event: str, arguments: tuple[Any, ...]) -> None:
        writes = event == "open" and isinstance(arguments[2], int) and arguments[2] & (os.O_WRONLY | os.O_RDWR)
        if event in STEPS or writes:
            step()

    def counted_fsync(descriptor: Any) -> None:
        step()
        fsync(descriptor)

    sys.addaudithook(audit)
    os.fsync = counted_fsync
    return steps


def child(order: dict[str, Any], answer: int) -> None:
    os.dup2(os.open(os.devnull, os.O_WRONLY), 2)
    steps = count_steps(order["die_at"])
    run(order["stage"], Path(order["root"]), order["size"])
    os.write(answer, str(next(steps)).encode())


def obey(order: dict[str, Any]) -> dict[str, Any]:
    """The signal that ended the process, how many steps it took, and for how long it ran."""
    reading, writing = os.pipe()
    start = time.monotonic()
    process = os.fork()
    if process == 0:
        try:
            child(order, writing)
        except BaseException as error:
            print(f"{type(error).__name__}: {error}", file=sys.__stderr__, flush=True)
            os._exit(1)
        os._exit(0)
    os.close(writing)
    if order["die_after"] is not None:
        time.sleep(order["die_after"])
        os.kill(process, signal.SIGKILL)
    _, status = os.waitpid(process, 0)
    seconds = time.monotonic() - start
    with os.fdopen(reading) as answer:
        steps = answer.read()
    return {"ended": os.waitstatus_to_exitcode(status), "steps": int(steps or -1), "seconds": seconds}


def main() -> None:
    if len(sys.argv) == 2:  # with Ray, as the stage does it
        root = Path(sys.argv[1])
        compute = ComputeConfig(
            address=None, workers="auto", storage=".runs", downloads=".cache", checkpoint_every_steps=1, max_failures=0
        )
        ingest(data_config(root, 4), compute, root / "data")
        return
    image_folder.PARTITION_FILES = PARTITION_FILES
    Image.init()  # what is imported later, every child would import anew
    with suppress(ImportError):
        import pandas  # noqa: F401
    for line in sys.stdin:
        print(json.dumps(obey(json.loads(line))), flush=True)


if __name__ == "__main__":
    main()
