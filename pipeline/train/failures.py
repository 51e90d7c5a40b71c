"""Why an attempt at training ended, in one line, and the error class that tells it apart."""

import errno
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from pipeline.errors import ClusterFailed, StorageFailed, UserError, WorkersFailed

AGAIN = "run the same command again to continue"
_OUT_OF_MEMORY = re.compile(r"out of memory|can't allocate memory|memory pressure|\boom killed\b", re.IGNORECASE)
_LOST_PEER = re.compile(r"closed by peer|connection reset|broken pipe|connection refused|nccl.*(abort|remote)",
                        re.IGNORECASE)  # fmt: skip
_NODE_LOST = re.compile(r"node .*(died|is dead|was terminated|marked dead)|NODE_DIED", re.IGNORECASE)
_FATAL, _SIGNAL = re.compile(r"Fatal Python error: (.+)"), re.compile(r"\*\*\* (SIG\w+) received")
_FRAME = re.compile(r'File "([^"]+)", line (\d+), in (\S+)')


@dataclass(frozen=True)
class Rank:
    """Where a rank ran.

    Attributes:
        log: path of its log on that node.
    """

    node: str
    pid: int
    log: str | None

    def __str__(self) -> str:
        return f"{self.log or '(none)'} on {self.node}"


@dataclass(frozen=True)
class Failure:
    """Why a rank, or an attempt, ended.

    Attributes:
        what: for people, without the rank.
        error: what a run becomes that ends by it.
        remedy: what to do about it; none where `what` says it, as every message of ours does.
        fault: of a Python error, what is the same when it comes again.
        weight: of several ranks' failures the heaviest is the cause, the others follow from it.
    """

    what: str
    error: type[UserError] = WorkersFailed
    remedy: str = AGAIN
    fault: str | None = None
    weight: int = 0

    @property
    def is_ours(self) -> bool:
        """Whether it is an error that the training loop explains itself; another attempt would find it too."""
        return not self.remedy


_OF_MEMORY = Failure(
    "out of memory", remedy="lower compute.max_rows or compute.workers in params.yaml, or use larger nodes", weight=8
)


def of_rank(error: BaseException, trace: str = "", rank: Rank | None = None) -> Failure:
    """Why one rank ended.

    Args:
        error: what Ray says of it, or what the training loop raised there.
        trace: the traceback of the latter.
    """
    from ray.exceptions import OutOfMemoryError, RayActorError, RayTaskError
    from ray.train.v2._internal.exceptions import WorkerHealthCheckFailedError, WorkerHealthCheckTimeoutError

    if isinstance(error, WorkerHealthCheckFailedError):
        return of_rank(error.health_check_failure, trace, rank)
    if isinstance(error, RayTaskError) and error.cause is not None:
        return of_rank(error.cause, trace, rank)
    if isinstance(error, UserError):
        return Failure(str(error), type(error), remedy="", weight=9)
    if isinstance(error, WorkerHealthCheckTimeoutError):
        return Failure("did not answer for ten minutes", weight=4)
    if isinstance(error, OutOfMemoryError | MemoryError) or _OUT_OF_MEMORY.search(_first_words(error)):
        return _OF_MEMORY
    if isinstance(error, RayActorError):
        return _of_death(error, rank)
    if isinstance(error, OSError) and error.errno in {errno.ENOSPC, errno.EDQUOT}:
        return Failure(str(error), StorageFailed, remedy=f"make room, then {AGAIN}", weight=7)
    return _of_exception(error, trace)


def of_ranks(errors: Mapping[int, BaseException], traces: Mapping[int, str], ranks: Mapping[int, Rank]) -> Failure:
    """Why an attempt ended, by what each failed rank says: the cause, with its ranks and where their log is."""
    found = {rank: of_rank(error, traces.get(rank, ""), ranks.get(rank)) for rank, error in sorted(errors.items())}
    cause = max(found.values(), key=lambda failure: failure.weight)
    if cause.is_ours:
        return cause
    named = [rank for rank, failure in found.items() if failure.what == cause.what]
    what = f"{_numbered(named)}: {cause.what}"
    silent = sorted(set(ranks) - set(found))
    if cause.weight == 1 and silent:  # Ray has not noticed yet
        what, named = f"{_numbered(silent)}: gone, the others lost the connection", silent
    log = f"; its log: {ranks[named[0]]}" if named[0] in ranks else ""
    return replace(cause, what=f"{what}{log}")


def _numbered(ranks: Sequence[int]) -> str:
    return f"rank{'s' * (len(ranks) > 1)} {', '.join(map(str, ranks))}"


def of_run(error: BaseException) -> Failure:
    """Why Ray Train gave up, where it was not a rank's failure."""
    from ray.exceptions import OutOfMemoryError, RayActorError, RayError
    from ray.train.v2._internal.exceptions import InsufficientClusterResourcesError, WorkerGroupStartupTimeoutError
    from ray.train.v2.api.exceptions import ControllerError, PreemptionError, WorkerGroupError

    if isinstance(error, ControllerError):
        return of_run(error.controller_failure)
    if isinstance(error, UserError):
        return Failure(str(error), type(error), remedy="", weight=9)
    if isinstance(error, WorkerGroupError):
        return of_ranks(error.worker_failures, {}, {})
    if isinstance(error, PreemptionError):
        ranks = ", ".join(map(str, error.preemption_info.preempted_ranks))
        return Failure(f"the node of rank {ranks} was reclaimed", ClusterFailed)
    if isinstance(error, WorkerGroupStartupTimeoutError):
        return Failure(
            f"Ray found no room for {error.num_workers} workers", ClusterFailed,
            f"look at `ray status`, lower compute.workers in params.yaml, or {AGAIN}",
        )  # fmt: skip
    if isinstance(error, InsufficientClusterResourcesError):
        return Failure(_first_words(error), ClusterFailed, "lower compute.workers in params.yaml")
    if isinstance(error, RayActorError) and error.actor_init_failed:
        return Failure(f"Ray Train could not start: {_last_words(error)}", ClusterFailed)
    if isinstance(error, RayActorError):
        dead = _of_death(error, None)
        return Failure(f"a worker or the controller of Ray Train {dead.what}", dead.error)
    if isinstance(error, OutOfMemoryError):
        return replace(_OF_MEMORY, what=f"Ray Train's controller {_OF_MEMORY.what}")
    kind = ClusterFailed if isinstance(error, RayError | ConnectionError) else WorkersFailed
    return Failure(f"{type(error).__name__}: {_first_words(error)}", kind)


def is_transient(error: BaseException) -> bool:
    """Whether Ray itself failed in a way that a new start of it may mend."""
    from ray.exceptions import RayActorError, RayError
    from ray.train.v2.api.exceptions import ControllerError

    if isinstance(error, ControllerError):
        return is_transient(error.controller_failure)
    if isinstance(error, RayActorError) and error.actor_init_failed:
        return False
    return isinstance(error, RayError | ConnectionError)


def _of_death(error: Any, rank: Rank | None) -> Failure:
    """Why a process ended, as far as Ray knows."""
    text = str(error)
    if "low on memory" in text:  # Ray's monitor of the node's memory
        return _OF_MEMORY
    if error.preempted or _NODE_LOST.search(text):
        return Failure("its node was lost", ClusterFailed, weight=7)
    if "SIGTERM" in text:
        return Failure("was terminated (SIGTERM)", weight=6)
    crash = _crash(rank)
    if crash:
        return Failure(f"crashed ({crash})", remedy="the log shows where", weight=6)
    code = re.search(r"exit code:? (\d+)", text, re.IGNORECASE)
    if code and "End of file" not in text:
        return Failure(f"ended with exit code {code[1]}", weight=6)
    return Failure("was killed (signal 9, as when the machine runs out of memory)", weight=6)


def _crash(rank: Rank | None) -> str | None:
    """What the process wrote when it crashed, where its node is this one."""
    if rank is None or rank.log is None:
        return None
    for path in Path(rank.log).parents[1].glob(f"worker-*-{rank.pid}.err"):
        text = path.read_text(errors="replace")
        if found := _FATAL.search(text) or _SIGNAL.search(text):
            return found[1]
    return None


def _of_exception(error: BaseException, trace: str) -> Failure:
    words = f"{type(error).__name__}: {_first_words(error)}"
    if _LOST_PEER.search(words):
        return Failure("lost the connection to another rank", weight=1)
    frames = _FRAME.findall(trace)
    place = f", {Path(frames[-1][0]).name} line {frames[-1][1]}, in {frames[-1][2]}" if frames else ""
    return Failure(f"{words}{place}", remedy="the log has the traceback", fault=f"{words}{place}", weight=5)


def _last_words(error: BaseException) -> str:
    """The line of a traceback that says what went wrong."""
    return [line.strip() for line in str(error).splitlines() if line.strip()][-1]


def _first_words(error: BaseException, length: int = 300) -> str:
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    text = lines[0] if lines else "no message"
    return text if len(text) <= length else f"{text[:length]}…"
