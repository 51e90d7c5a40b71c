"""Following a job: its log as it comes, and how it ended."""

import asyncio
import re
import sys
import time

from pipeline.ending import Terminated
from pipeline.errors import ClusterFailed, UserError
from pipeline.jobs.cluster import Cluster, Record
from pipeline.jobs.head.job import TERMINATED
from pipeline.jobs.spec import bring_home
from pipeline.progress import say

AWAY_S = 120.0  # that a cluster may not answer, for instance while a tunnel is opened again
RETRY_S = 2.0
AT_HOME = re.compile(r"^job: experiment \S+ is at origin$", re.MULTILINE)
BEGUN = "Running entrypoint for job "
KEPT = 64 * 1024  # characters of a log: a job says last that its experiment is home


class JobFailed(UserError):
    """A job ended otherwise than well; exits with its code."""

    def __init__(self, message: str, code: int) -> None:
        super().__init__(message)
        self.code = code


class Log:
    """The log of a job, shown as it comes.

    Attributes:
        seen: characters that came.
        text: the end of it, of the last attempt alone.
    """

    def __init__(self, skip: int) -> None:
        self.seen, self.skip, self.text = 0, skip, ""

    def take(self, part: str) -> None:
        fresh = part[max(0, self.skip - self.seen) :]
        self.seen += len(part)
        self.text = (self.text + fresh).rpartition(BEGUN)[2][-KEPT:]
        sys.stdout.write(fresh)
        sys.stdout.flush()


def follow(cluster: Cluster, id: str, *, skip: int = 0) -> None:
    """Show the log until the job is over, without its first `skip` characters; then how to see the results.

    Raises:
        JobFailed: it failed, or was stopped.
        ClusterFailed: the cluster does not answer for long.
        KeyboardInterrupt: on Ctrl-C, which leaves the job running.
    """
    log = Log(skip)
    try:
        record = asyncio.run(_followed(cluster, id, log))
    except KeyboardInterrupt as error:
        option = cluster.option()
        say(
            f"\n{id} runs on; follow it: python -m pipeline jobs logs -f{option} {id}; "
            f"stop it: python -m pipeline jobs stop{option} {id}"
        )
        raise Terminated if isinstance(error, Terminated) else KeyboardInterrupt from None
    tell_end(record, pushed=is_home(log.text))


async def _followed(cluster: Cluster, id: str, log: Log) -> Record:
    from aiohttp import ClientError

    answered = time.monotonic()
    while True:
        log.skip, log.seen = max(log.skip, log.seen), 0
        try:
            async for part in cluster.tail(id):
                log.take(part)
                answered = time.monotonic()
            record = cluster.record(id)
            answered = time.monotonic()
        except (
            OSError,
            ClientError,
            RuntimeError,
            ClusterFailed,
        ) as error:  # RuntimeError: what Ray makes of a lost connection
            if time.monotonic() - answered > AWAY_S:
                raise ClusterFailed(
                    f"{cluster.access.address}: the cluster no longer answers ({str(error) or type(error).__name__}); "
                    f"{id} may run on: python -m pipeline jobs logs -f {id}"
                ) from None
        else:
            if record is None:
                raise ClusterFailed(f"{id}: the cluster knows it no more; submit it again")
            if record.is_over:
                return record
        await asyncio.sleep(RETRY_S)


def is_home(log: str) -> bool:
    """Whether the last attempt that a log tells of has sent an experiment home."""
    return AT_HOME.search(log.rpartition(BEGUN)[2]) is not None


def tell_end(record: Record, *, pushed: bool) -> None:
    """How a job ended.

    Raises:
        JobFailed: not well.
    """
    if record.status == "STOPPED":
        raise JobFailed(f"{record.id} was stopped; the same submission goes on from there", TERMINATED)
    if record.status == "FAILED" and record.code is None:
        raise JobFailed(f"{record.id} could not run: {record.message}", ClusterFailed.code)
    if record.status == "FAILED":
        raise JobFailed(
            f"{record.id} failed with exit code {record.code}; see its log; the same submission goes on from there",
            record.code or UserError.code,
        )
    say(f"{record.id} succeeded; its results at home:" if pushed else f"{record.id} succeeded")
    for line in bring_home(record.metadata) if pushed else ():
        print(line, flush=True)
