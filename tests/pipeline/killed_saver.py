"""Saves checkpoints in processes that are killed; started by test_torn.py as a program.

Reads one order a line, `FOLDER STEP WHEN`, saves the checkpoint of STEP in a process forked for it, and prints the exit
code of that and what it said. WHEN is the number of the change of the file system before which it kills itself, or
`limited`: it may write no file of more than 3000 bytes; or `never`. It says how many changes it made, or the error.
"""

import itertools
import os
import resource
import signal
import sys
import tempfile
from typing import Any

import torch

from pipeline.errors import StorageFailed
from pipeline.train import checkpoints

CHANGES = {"os.rename", "os.remove", "os.mkdir", "os.rmdir", "os.truncate"}


def save(folder: str, step: int) -> None:
    model = torch.nn.Linear(20, 20)
    for parameter in model.parameters():
        parameter.grad = torch.full_like(parameter, float(step))
    optimizer = torch.optim.Adam(model.parameters())
    optimizer.step()
    checkpoints.save(folder, step, model, optimizer, {"best_step": 1})


def count(die_at: int) -> "itertools.count[int]":
    changes, fsync = itertools.count(), os.fsync

    def change() -> None:
        if next(changes) == die_at:
            os.kill(os.getpid(), signal.SIGKILL)

    def audit(event: str, arguments: tuple[Any, ...]) -> None:
        writes = event == "open" and isinstance(arguments[2], int) and arguments[2] & (os.O_WRONLY | os.O_RDWR)
        if event in CHANGES or writes:
            change()

    def counted_fsync(descriptor: int) -> None:
        change()
        fsync(descriptor)

    sys.addaudithook(audit)
    os.fsync = counted_fsync
    return changes


def child(folder: str, step: int, when: str) -> str:
    if when == "limited":
        resource.setrlimit(resource.RLIMIT_FSIZE, (3000, 3000))
    changes = count(int(when) if when.isdigit() else -1)
    try:
        save(folder, step)
    except StorageFailed as error:
        return str(error)
    return str(next(changes))


def main() -> None:
    torch.set_num_threads(1)
    with tempfile.TemporaryDirectory() as folder:
        save(folder, 1)  # imports once what every child would import anew
    for line in sys.stdin:
        reading, writing = os.pipe()
        process = os.fork()
        if process == 0:
            try:
                folder, step, when = line.rsplit(maxsplit=2)
                os.write(writing, child(folder, int(step), when).encode())
            except BaseException as error:
                print(f"{type(error).__name__}: {error}", file=sys.stderr, flush=True)
                os._exit(1)
            os._exit(0)
        os.close(writing)
        _, status = os.waitpid(process, 0)
        with os.fdopen(reading) as answer:
            print(os.waitstatus_to_exitcode(status), answer.read(), flush=True)


if __name__ == "__main__":
    main()
