"""Ends what is left of Ray when the process that started it was killed. A process of its own, run as a script.

Linux ends most of Ray's processes with their parent, but two agents would go on for a minute. Standard input is a pipe
of the process to watch: its end says that the process is gone, a byte that Ray was stopped in order.
"""

import contextlib
import os
import select
import sys
import time

import psutil

LOOKS_S = (1.0,) * 10 + (10.0,)  # between looks for new processes; those that matter start in the first seconds
GRACE_S = 1.0  # to end by themselves


def main() -> None:
    watched = psutil.Process(os.getppid())
    known: set[psutil.Process] = set()
    looks = 0
    while not select.select([sys.stdin], [], [], LOOKS_S[min(looks, len(LOOKS_S) - 1)])[0]:
        with contextlib.suppress(psutil.NoSuchProcess):
            known = set(watched.children(recursive=True)) or known
        looks += 1
    if sys.stdin.read(1):
        return
    time.sleep(GRACE_S)
    for process in known - {psutil.Process()}:
        with contextlib.suppress(psutil.NoSuchProcess):  # which it also raises where the number is another's now
            process.kill()


if __name__ == "__main__":
    main()
