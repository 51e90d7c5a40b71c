"""Ray Train as its user sees it: workers that are killed, faults of the code, and what is said of each."""

import json
import re
import signal
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import psutil
import pytest
import ray
import ray.exceptions
from ray.core.generated.common_pb2 import ActorDiedErrorContext, NodeDeathInfo
from ray.train.v2._internal import exceptions as inner
from ray.train.v2.api.exceptions import ControllerError, PreemptionError, WorkerGroupError
from ray.train.v2.api.preemption import PreemptionInfo

from pipeline.closure import ROOT
from pipeline.config import ComputeConfig
from pipeline.data.split_reader import Split
from pipeline.errors import ClusterFailed, Diverged, StorageFailed, UserError, WorkersFailed
from pipeline.train import failures
from pipeline.train import placing as placing_module
from pipeline.train.checkpoints import step_of
from pipeline.train.failures import Rank
from pipeline.train.placing import Placing, fit_into, grow, unseen
from pipeline.train.run import TrainRun
from pipeline.train.worker import fit

ray_test = pytest.mark.filterwarnings("ignore::DeprecationWarning", "ignore::ResourceWarning")  # Ray's own

KILLED = (
    "The actor is dead because its worker process has died. Worker exit type: SYSTEM_ERROR Worker exit detail: Worker "
    "unexpectedly exits with a connection error code 2. End of file. Some common causes include: (1) the process was "
    "killed by the OOM killer due to high memory usage, (2) ray stop --force was called, or (3) the worker crashed."
)
TERMINATED = (
    "Worker exits unexpectedly by a signal. SystemExit is raised. Exit code: 1. The process receives a SIGTERM."
)
NODE = "The actor died because its node has died. Node Id: 00ff. the actor's node was terminated unexpectedly"


def died(message: str, **details: Any) -> inner.WorkerHealthCheckFailedError:
    """What Ray Train tells of a worker whose process is gone."""
    context = ActorDiedErrorContext(
        error_message=message, class_name="RayTrainWorker", actor_id=bytes(16), pid=7, **details
    )
    return inner.WorkerHealthCheckFailedError("A worker health check failed.", ray.exceptions.ActorDiedError(context))


@pytest.mark.parametrize(
    ("error", "kind", "what"),
    [
        (died(KILLED), WorkersFailed, "was killed (signal 9, as when the machine runs out of memory)"),
        (died(TERMINATED), WorkersFailed, "was terminated (SIGTERM)"),
        (died("Worker exits with an exit code 3."), WorkersFailed, "ended with exit code 3"),
        (died(NODE), ClusterFailed, "its node was lost"),
        (
            died("x", node_death_info=NodeDeathInfo(reason=NodeDeathInfo.AUTOSCALER_DRAIN_PREEMPTED)),
            ClusterFailed, "its node was lost",
        ),
        (
            inner.WorkerHealthCheckFailedError("x", ray.exceptions.OutOfMemoryError("1 worker killed")),
            WorkersFailed, "out of memory",
        ),
        (
            died("1 worker(s) were killed due to the node running low on memory. Memory on the node was 30 / 32 GB"),
            WorkersFailed, "out of memory",
        ),
        (RuntimeError("CUDA out of memory. Tried to allocate 2 GiB"), WorkersFailed, "out of memory"),
        (RuntimeError("DefaultCPUAllocator: can't allocate memory: you tried"), WorkersFailed, "out of memory"),
        (MemoryError(), WorkersFailed, "out of memory"),
        (inner.WorkerHealthCheckTimeoutError("x"), WorkersFailed, "did not answer for ten minutes"),
        (OSError(28, "No space left on device", "/x"), StorageFailed, "[Errno 28] No space left on device: '/x'"),
        (Diverged("step 4: not finite"), Diverged, "step 4: not finite"),
        (ValueError("bad\nthing"), WorkersFailed, "ValueError: bad"),
        (
            RuntimeError("[/gloo/transport/tcp/pair.cc:547] Connection closed by peer [127.0.0.1]:37"), WorkersFailed,
            "lost the connection to another rank",
        ),
    ],
)  # fmt: skip
def test_what_happened_to_a_rank_is_told_in_words(error: Exception, kind: type[UserError], what: str) -> None:
    failure = failures.of_rank(error)
    assert (failure.error, failure.what) == (kind, what)


def test_of_several_ranks_the_cause_is_named_with_its_log() -> None:
    ranks = {0: Rank("10.0.0.1", 5, "/logs/train/a.log"), 1: Rank("10.0.0.2", 6, "/logs/train/b.log")}
    collateral = RuntimeError("Connection closed by peer")
    failure = failures.of_ranks({0: collateral, 1: died(KILLED)}, {}, ranks)
    assert failure.what == (
        "rank 1: was killed (signal 9, as when the machine runs out of memory); its log: /logs/train/b.log on 10.0.0.2"
    )
    silent = failures.of_ranks({0: collateral}, {}, ranks)
    assert silent.what == "rank 1: gone, the others lost the connection; its log: /logs/train/b.log on 10.0.0.2"
    assert failures.of_ranks({0: collateral, 1: StorageFailed("full")}, {}, ranks).what == "full"
    both = failures.of_ranks({0: ValueError("a"), 1: ValueError("a")}, {}, ranks)
    assert both.what.startswith("ranks 0, 1: ValueError: a; its log: /logs/train/a.log")


def test_a_fault_of_the_code_says_where_it_is() -> None:
    trace = 'Traceback\n  File "/a/pipeline/train/loop.py", line 12, in _step\n    x\nValueError: bad'
    failure = failures.of_rank(ValueError("bad"), trace)
    assert failure.what == failure.fault == "ValueError: bad, loop.py line 12, in _step"


def test_a_crash_is_read_from_what_the_process_wrote(tmp_path: Path) -> None:
    (tmp_path / "train").mkdir()
    (tmp_path / "worker-ab-01-77.err").write_text("*** SIGSEGV received\nFatal Python error: Segmentation fault\n")
    rank = Rank("10.0.0.1", 77, str(tmp_path / "train" / "a.log"))
    assert failures.of_rank(died(KILLED), rank=rank).what == "crashed (Segmentation fault)"


@pytest.mark.parametrize(
    ("error", "kind", "transient"),
    [
        (ray.exceptions.ActorDiedError(None), WorkersFailed, True),
        (ControllerError(ray.exceptions.ActorDiedError(None)), WorkersFailed, True),
        (ControllerError(Diverged("no")), Diverged, False),
        (ControllerError(inner.WorkerGroupStartupTimeoutError(4)), ClusterFailed, False),
        (ControllerError(inner.InsufficientClusterResourcesError("no")), ClusterFailed, False),
        (PreemptionError(PreemptionInfo(deadline_ms=None, preempted_node_to_ranks={"n": [1]})), ClusterFailed, False),
        (WorkerGroupError("x", {1: died(NODE)}), ClusterFailed, False),
        (ray.exceptions.RaySystemError("GCS is gone"), ClusterFailed, True),
    ],
)
def test_what_ray_gives_up_with_has_its_class(error: Exception, kind: type[UserError], transient: bool) -> None:
    assert failures.of_run(error).error == kind
    assert failures.is_transient(error) == transient


@pytest.mark.parametrize(
    ("nodes", "workers", "expected"),
    [
        ([{"CPU": 8}], "auto", Placing(1, False, 8, 8)),
        ([{"CPU": 8}], 3, Placing(3, False, 2, 2)),
        ([{"CPU": 3}, {"CPU": 1}], 2, Placing(2, False, 1, 1)),
        ([{"CPU": 3}, {"CPU": 3}], 3, Placing(3, False, 1, 1)),
        ([{"CPU": 4}], (1, 8), Placing((1, 8), False, 1, 1)),
        ([{"CPU": 16}], (1, 2), Placing((1, 2), False, 8, 8)),
        ([{"CPU": 16, "GPU": 2}, {"CPU": 4}], "auto", Placing(2, True, 1, 8)),
    ],
)
def test_workers_share_the_cores_of_their_node(
    nodes: list[dict[str, float]], workers: Any, expected: Placing, make_compute: Callable[..., ComputeConfig]
) -> None:
    assert fit_into(nodes, make_compute(workers=workers)) == expected


def test_more_workers_than_there_is_room_for_are_refused(make_compute: Callable[..., ComputeConfig]) -> None:
    with pytest.raises(UserError, match=r"^params.yaml: compute.workers: 3 workers need as many cores, Ray has 2$"):
        fit_into([{"CPU": 2}], make_compute(workers=(3, 4)))
    with pytest.raises(UserError, match="2 workers need as many GPUs, Ray has 1"):
        fit_into([{"CPU": 8, "GPU": 1}], make_compute(workers=2))


def test_threads_may_be_set(make_compute: Callable[..., ComputeConfig]) -> None:
    placing = fit_into([{"CPU": 4}], make_compute(workers=2, threads=1))
    assert (placing.cores, placing.threads) == (2, 1)
    assert str(placing) == "2 workers on the CPU with 1 thread each"


@pytest.mark.parametrize(
    ("address", "there", "demands"),
    [
        (None, [{"CPU": 1.0}], []),
        ("auto", [{"CPU": 2.0}], []),
        ("auto", [{"CPU": 1.0}], [[{"CPU": 1}] * 2]),
        ("auto", [{}], [[{"CPU": 1}], [{"GPU": 1}] * 2]),
    ],
)
def test_a_cluster_that_grows_is_asked_for_the_fewest_workers(
    address: str | None, there: list[dict[str, float]], demands: list[object],
    make_compute: Callable[..., ComputeConfig], monkeypatch: pytest.MonkeyPatch,
) -> None:  # fmt: skip
    asked: list[object] = []
    nodes = list(there)

    def demand(bundles: list[dict[str, float]]) -> None:
        asked.append(bundles)
        nodes.append({"CPU": 4.0, "GPU": 1.0})

    monkeypatch.setattr(placing_module, "_nodes", lambda: nodes)
    monkeypatch.setattr(placing_module, "_demand", demand)
    grow(make_compute(address=address), 2)
    assert asked == demands


@ray_test
@pytest.mark.usefixtures("ray_cluster")
def test_a_node_that_does_not_see_a_folder_is_named(tmp_path: Path) -> None:
    (tmp_path / "here").touch()
    (node,) = ray.nodes()
    nodes = {node["NodeID"]: node["NodeManagerAddress"]}
    assert unseen(tmp_path / "here", nodes) == []
    assert unseen(tmp_path / "not here", nodes) == [node["NodeManagerAddress"]]


class Faulty(TrainRun):
    """A run whose data can be opened by the driver alone."""

    def open(self, split: str) -> Split:
        if ray.get_runtime_context().get_actor_id() is not None:
            raise ZeroDivisionError("a fault")
        return super().open(split)


@pytest.fixture
def long_run(make_run: Callable[..., TrainRun]) -> TrainRun:
    """Of 5840 steps."""
    return make_run(epochs=80, global_batch_size=16)


def of_ray(name: str) -> list[psutil.Process]:
    """The processes of this test's Ray that run an actor."""
    children = psutil.Process().children(recursive=True)
    return [child for child in children if name in " ".join(child.cmdline())]


def newest(folder: Path) -> int:
    return max((step_of(path.name) for path in folder.glob("checkpoints/*.safetensors")), default=0)


@contextmanager
def killing(folder: Path, times: int, number: signal.Signals, victim: str = "RayTrainWorker") -> Iterator[list[int]]:
    """So often, once training has gone on, a worker gets a signal. Yields the steps at which it did."""
    done, steps = threading.Event(), list[int]()

    def kill() -> None:
        for _ in range(times):
            before = newest(folder)
            while newest(folder) <= before or not of_ray("RayTrainWorker"):
                if done.wait(0.05):
                    return
            steps.append(newest(folder))
            of_ray("RayTrainWorker")[0].send_signal(number)

    thread = threading.Thread(target=kill)
    thread.start()
    try:
        yield steps
    finally:
        done.set()
        thread.join()


@ray_test
@pytest.mark.usefixtures("ray_cluster")
def test_a_killed_worker_is_started_again_as_often_as_allowed(
    tmp_path: Path, long_run: TrainRun, make_compute: Callable[..., ComputeConfig], capsys: pytest.CaptureFixture[str]
) -> None:
    compute = make_compute(max_failures=1, checkpoint_every_steps=25)
    with pytest.raises(WorkersFailed) as told, killing(tmp_path, 2, signal.SIGKILL) as steps:
        fit(long_run, tmp_path, compute, what="train vae", total_steps=5840)
    assert len(steps) == 2
    log = r"; its log: /tmp/ray/session\S+/logs/train/\S+\.log on [0-9.]+"
    what = rf"rank 0: was killed \(signal 9, as when the machine runs out of memory\){log}"
    said = re.search(rf"^train vae: {what}; attempt 2 of 2 from step ([0-9,]+)$", capsys.readouterr().err, re.MULTILINE)
    assert said is not None
    assert steps[0] <= int(said[1].replace(",", "")) <= steps[1]
    assert re.fullmatch(
        rf"{what} in attempt 2 of 2 \(compute.max_failures: 1\); checkpoints are kept in {tmp_path}; "
        "run the same command again to continue",
        str(told.value),
    )
    assert told.value.code == 4


@ray_test
@pytest.mark.usefixtures("ray_cluster")
def test_on_this_machine_ray_starts_nothing_beside_the_workers(
    tmp_path: Path, long_run: TrainRun, make_compute: Callable[..., ComputeConfig]
) -> None:
    """Each further process costs seconds to start, and cores. The barrier of reports is Ray's own."""
    actors = set[str]()
    compute, done = make_compute(max_failures=0, checkpoint_every_steps=25), threading.Event()

    def look() -> None:
        while not done.wait(0.05):
            if newest(tmp_path) > 0 and not actors:
                actors.update(child.cmdline()[0].split(".")[0].strip() for child in of_ray("ray::"))
                of_ray("RayTrainWorker")[0].kill()

    thread = threading.Thread(target=look)
    thread.start()
    with pytest.raises(WorkersFailed):
        fit(long_run, tmp_path, compute, what="train vae", total_steps=5840)
    done.set()
    thread.join()
    assert actors - {"ray::IDLE", "ray::DashboardAgent", "ray::RuntimeEnvAgent"} == {
        "ray::RayTrainWorker", "ray::SynchronizationActor"}  # fmt: skip


@ray_test
@pytest.mark.usefixtures("ray_cluster")
def test_a_fault_of_the_code_is_tried_twice_and_named_with_its_place(
    tmp_path: Path, make_run: Callable[..., TrainRun], make_compute: Callable[..., ComputeConfig]
) -> None:
    ray.cloudpickle.register_pickle_by_value(sys.modules[__name__])  # Ray's workers cannot import it
    run = make_run()
    faulty = Faulty(model=run.model, train=run.train, reading=run.reading, data=run.data, code=run.code)
    with pytest.raises(WorkersFailed) as told:
        fit(faulty, tmp_path, make_compute(max_failures=5), what="train vae", total_steps=20)
    assert re.fullmatch(
        r"rank 0: ZeroDivisionError: a fault, test_worker.py line \d+, in open; its log: \S+ on [0-9.]+: "
        r"the same again from step 0; the log has the traceback",
        str(told.value),
    )


@ray_test
@pytest.mark.usefixtures("ray_cluster")
def test_what_a_rank_finds_ends_the_run_at_once_with_its_class(
    tmp_path: Path, make_run: Callable[..., TrainRun], make_compute: Callable[..., ComputeConfig],
    capsys: pytest.CaptureFixture[str],
) -> None:  # fmt: skip
    run = make_run(learning_rate=1e12, max_skipped_steps=2)
    with pytest.raises(Diverged, match=r"^step 4: loss or gradient not finite"):
        fit(run, tmp_path, make_compute(max_failures=3), what="train vae", total_steps=20)
    assert "attempt" not in capsys.readouterr().err


@pytest.mark.chaos  # minutes of waiting for Ray
@pytest.mark.skipif(not Path("/proc/self/stat").exists(), reason="its nodes are processes of Linux")
def test_a_reclaimed_node_a_lost_one_and_a_dead_controller_cost_what_they_must(shards: Path, tmp_path: Path) -> None:
    """Two nodes of one core each, in a driver of its own, since two clusters do not go into one process."""
    script = Path(__file__).with_name("two_nodes.py")
    done = subprocess.run(
        [sys.executable, script, shards, tmp_path], cwd=ROOT, text=True, capture_output=True, timeout=900, check=False
    )
    assert done.returncode == 0, done.stderr
    seen = json.loads((tmp_path / "seen.json").read_text())
    assert seen["between epochs"]  # checkpoints, which nothing but the notice asks for
    drained, lost, killed = re.split("--- .*\n", done.stderr)
    assert re.search(r"train drained: the node of rank [01] is being reclaimed; a checkpoint is written", drained)
    assert re.search(r"train drained: goes on with 1 worker from step \d+", drained)
    gone = r"gone, the others lost the connection|its node was lost"
    assert re.search(rf"train lost: rank [01]: ({gone}); its log: .*; attempt 2 of 2 from step \d+", lost)
    assert re.search(r"train lost: goes on with 1 worker from step \d+", lost)
    assert re.search(
        r"train killed: .*controller of Ray Train was killed .*; Ray is started anew for attempt 2 of 2", killed
    )
    assert "Traceback" not in done.stderr
