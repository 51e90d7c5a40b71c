"""What Ray Train's controller tells of a run: every failure as a line, while Ray goes on; and what Ray would repeat."""

from pathlib import Path
from typing import Any

from ray.train.v2._internal.exceptions import UserExceptionWithTraceback
from ray.train.v2._internal.execution.callback import ControllerCallback, WorkerGroupCallback
from ray.train.v2._internal.execution.controller.state import PreemptingState, ReschedulingState, RestartingState
from ray.train.v2._internal.execution.failure_handling import FailureDecision

from pipeline.errors import ClusterFailed, UserError, WorkersFailed
from pipeline.train import failures
from pipeline.train.checkpoints import step_of
from pipeline.train.failures import Failure, Rank
from pipeline.train.folders import Folder

SAID = "said-attempts.txt"
COUNT = "failures"  # a byte for each, beside Ray's own files, for the next controller should this one die


class Attempts(ControllerCallback, WorkerGroupCallback):
    """Runs inside the controller. Raising in `before_controller_execute_failure_decision` ends the run with that.

    Args:
        what: of the run, for people.
        allowed: failures before the run ends, those of earlier controllers included.
        count: where failures are counted, on the controller's machine, which is the driver's too.
    """

    def __init__(self, folder: Folder, what: str, allowed: int, count: Path) -> None:
        self._folder, self._what, self._allowed, self._count = folder, what, allowed, count
        self._ranks: dict[int, Rank] = {}
        self._failure: Failure | None = None
        self._reclaimed = False  # it was a node that went; compute.max_preemptions says how often that may be
        self._last: tuple[str, int] | None = None  # the fault of the attempt before, and the step it began at

    def after_worker_group_start(self, worker_group: Any) -> None:
        before = len(self._ranks)
        self._ranks = {
            worker.distributed_context.world_rank: Rank(
                worker.metadata.node_ip, worker.metadata.pid, worker.log_file_path
            )
            for worker in worker_group.get_workers()
        }
        if before not in {0, len(self._ranks)}:
            many = f"{len(self._ranks)} worker{'s' * (len(self._ranks) > 1)}"
            self._say(f"goes on with {many} from step {newest_step(self._folder):,}")

    def after_worker_group_poll_status(self, worker_group_status: Any) -> None:
        errors = worker_group_status.errors
        traces = {rank: _trace(status.error) for rank, status in worker_group_status.worker_statuses.items()}
        self._failure = failures.of_ranks(errors, traces, self._ranks) if errors else None
        self._reclaimed = worker_group_status.has_preempted_worker()

    def before_controller_execute_failure_decision(self, failure_decision: FailureDecision) -> None:
        failure, self._failure = self._failure, None
        if failure is None:  # no rank's: a node is reclaimed, or the group could not start
            return
        step = newest_step(self._folder)
        if failure.is_ours:
            raise failure.error(failure.what)
        if self._reclaimed:
            self._reclaim(failure, failure_decision, step)
            return
        failed = counted(self._count)
        if failure.fault and self._last == (failure.fault, step):
            raise WorkersFailed(f"{failure.what}: the same again from step {step:,}; {failure.remedy}")
        if failure_decision != FailureDecision.RETRY:
            raise ended(failure, self._folder, attempts=failed, allowed=self._allowed)
        self._last = (failure.fault, step) if failure.fault else None
        self._say(f"{failure.what}; attempt {failed + 1} of {self._allowed + 1} from step {step:,}")

    def _reclaim(self, failure: Failure, decision: FailureDecision, step: int) -> None:
        if decision != FailureDecision.RETRY:
            raise lost_nodes(failure, self._folder)
        self._say(f"{failure.what}; goes on from step {step:,}")

    def after_controller_state_update(self, previous_state: Any, current_state: Any) -> None:
        if isinstance(current_state, ReschedulingState):
            self._say(f"{failures.of_run(current_state.training_failed_error).what}; waiting for it")
        elif isinstance(current_state, RestartingState) and isinstance(previous_state, PreemptingState):
            self._say(f"starts again without that node, from step {newest_step(self._folder):,}")
        elif isinstance(current_state, PreemptingState) and not isinstance(previous_state, PreemptingState):
            ranks = ", ".join(map(str, current_state.preemption_info.preempted_ranks))
            self._say(f"the node of rank {ranks} is being reclaimed; a checkpoint is written, then the run goes on")

    def _say(self, text: str) -> None:
        try:
            self._folder.append(SAID, f"{self._what}: {text}\n".encode())
        except UserError:  # a failing store is told of by the ranks, which need it
            return


def ended(failure: Failure, folder: Folder, *, attempts: int, allowed: int) -> UserError:
    """The error of a run that failed once more than allowed."""
    budget = f" in attempt {attempts} of {allowed + 1} (compute.max_failures: {allowed})"
    return failure.error(f"{failure.what}{budget}; checkpoints are kept in {folder.location}; {failure.remedy}")


def lost_nodes(failure: Failure, folder: Folder) -> UserError:
    """The error of a run whose nodes went more often than allowed."""
    return ClusterFailed(
        f"{failure.what}; nodes went more often than compute.max_preemptions in params.yaml allows; checkpoints are "
        f"kept in {folder.location}; {failures.AGAIN}"
    )


def newest_step(folder: Folder) -> int:
    """That of the newest checkpoint; 0 where there is none."""
    try:
        return max([0, *map(step_of, folder.names("checkpoints/"))])
    except UserError:
        return 0


def counted(path: Path) -> int:
    """Count one failure more."""
    with path.open("ab") as file:
        file.write(b".")
    return path.stat().st_size


def _trace(error: BaseException | None) -> str:
    return str(error) if isinstance(error, UserExceptionWithTraceback) else ""
