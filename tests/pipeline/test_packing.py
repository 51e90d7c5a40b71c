"""Trials in processes of Ray Tune: the same bytes as in this one, and what becomes of those that die."""

import json
import os
import signal
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
from trainers import Racing

from pipeline.errors import UserError, WorkersFailed
from pipeline.train.config import ComputeConfig
from pipeline.train.run import TrainRun
from pipeline.train.storage import is_finished
from pipeline.tune.config import SearchConfig
from pipeline.tune.objectives import Objectives
from pipeline.tune.packing import packed
from pipeline.tune.search import search
from pipeline.tune.trials import Sweep, Trial

SPACE = {"beta": (0.5, 1.0, 1.5, 2.0), "latent_dim": (2, 3, 5)}

pytestmark = [pytest.mark.filterwarnings("ignore::DeprecationWarning", "ignore::ResourceWarning")]  # Ray's own


@pytest.fixture
def make_sweep(
    make_run: Callable[..., TrainRun], make_compute: Callable[..., ComputeConfig], tmp_path: Path
) -> Callable[..., Sweep]:
    """A sweep of two epochs with a rung in the middle."""

    def make(name: str, compute: Any = None, **changes: Any) -> Sweep:
        values = {"trials": 3, "seed": 0, "scheduler": "halving", "rungs": (1,), **changes}
        settings = make_compute(storage=str(tmp_path / name), **(compute or {}))
        known = {"neg_elbo_nats": 30.0}
        space = values.pop("space", SPACE)
        objectives = Objectives(("neg_elbo_nats",), ("min",))
        return Sweep("vae", make_run(), SearchConfig(**values), space, objectives, known, settings)

    return make


def contents(trial: Trial) -> dict[str, bytes]:
    names = [name for name in trial.folder.names() if name.startswith(("checkpoints/", "metrics"))]
    return {name: trial.folder.read(name) for name in names}


def run(sweep: Sweep) -> list[Trial]:
    with packed(sweep.compute) as trainer:
        return search(sweep, trainer)


@pytest.mark.usefixtures("ray_cluster")
def test_trials_of_ray_tune_give_the_same_bytes_and_are_not_trained_twice(make_sweep: Any) -> None:
    there = run(make_sweep("there"))
    here = search(make_sweep("here"), Racing())
    for one, other in zip(there, here, strict=True):
        assert (one.status, one.epochs) == (other.status, other.epochs)
        assert contents(one) == contents(other)
    assert sorted(trial.status for trial in there) == ["completed", "completed", "stopped"]
    assert not (Path(there[0].folder.location) / "error.json").exists()


def test_a_finished_sweep_starts_no_ray(make_sweep: Any) -> None:
    before = search(make_sweep("here"), Racing())
    assert run(make_sweep("here", compute={"address": "ray://127.0.0.1:1"})) == before


@pytest.mark.usefixtures("ray_cluster")
def test_a_race_stops_trials_on_the_way(make_sweep: Any) -> None:
    space = {"train.learning_rate.peak": (1e-3, 2e-3, 3e-3, 1e30)}
    sweep = make_sweep("race", scheduler="asha", kind="grid", trials=4, space=space)
    trials = run(sweep)
    *alive, diverged = (trial for trial in trials if trial.name != "trial-001")  # the baseline's own combination
    assert diverged.status == "failed"
    reached = [len(trial.epochs) for trial in alive]
    assert set(reached) <= {1, 2}
    assert 2 in reached
    for trial in alive:
        assert trial.status == ("completed" if len(trial.epochs) == 2 else "stopped")
        assert is_finished(trial.folder) is (trial.status == "completed")
    assert search(sweep, Racing()) == trials


@pytest.mark.usefixtures("ray_cluster")
def test_a_trial_of_two_workers_gives_the_same_figures(make_sweep: Any) -> None:
    (two,) = run(make_sweep("two", compute={"trial_workers": 2}, trials=1, rungs=()))
    (one,) = search(make_sweep("one", trials=1, rungs=()), Racing())
    assert two.status == "completed"
    for epoch, expected in zip(two.epochs, one.epochs, strict=True):
        assert epoch == pytest.approx(expected, abs=0.1)


@pytest.mark.usefixtures("ray_cluster")
def test_a_trial_that_does_not_fit_the_cluster_is_refused(make_sweep: Any) -> None:
    with pytest.raises(UserError, match=r"^params.yaml: compute: a trial needs 64 cores, Ray has 2 cores"):
        run(make_sweep("large", compute={"trial_cpus": 64.0}))


@contextmanager
def killing(store: Path, trial: int) -> Iterator[list[int]]:
    """Kill, as often as it appears, the process that holds the folder of the trial of so many epochs."""
    killed: list[int] = []
    done = threading.Event()

    def kill() -> None:
        while not done.wait(0.05):
            for about in store.glob("vae-trial-*/run.json"):
                lock = about.with_name("lock")
                pid = int((lock.read_text().split() or ["0"])[0]) if lock.exists() else 0
                if pid and pid not in killed and json.loads(about.read_text())["train"]["epochs"] == trial:
                    os.kill(pid, signal.SIGKILL)
                    killed.append(pid)

    thread = threading.Thread(target=kill)
    thread.start()
    try:
        yield killed
    finally:
        done.set()
        thread.join()


@pytest.mark.usefixtures("ray_cluster")
def test_a_trial_that_dies_too_often_ends_the_sweep_and_leaves_the_others_work(make_sweep: Any, tmp_path: Path) -> None:
    sweep = make_sweep(
        "mortal", {"max_failures": 1}, kind="grid", scheduler="none", space={"train.epochs": (1, 1_000_000)}
    )
    with (
        killing(tmp_path / "mortal", 1_000_000) as killed,
        pytest.raises(WorkersFailed, match=r"^trial-001: was killed .*, twice \(compute.max_failures: 1\)") as caught,
    ):
        run(sweep)
    assert len(killed) == 2
    assert f"kept in {tmp_path / 'mortal'}; run the same command" in str(caught.value)
    folders = {json.loads(path.read_text())["train"]["epochs"]: path.parent
               for path in (tmp_path / "mortal").glob("vae-trial-*/run.json")}  # fmt: skip
    assert is_finished(folders[1])
    assert not is_finished(folders[1_000_000])
