"""Kill it anywhere: the same command goes on, and the result is that of an uninterrupted run."""

import os
import shutil
import signal
import subprocess
from pathlib import Path

import psutil
import pytest
from e2e_project import Project, commit, copy_project, wait_for

TRAIN = ("python", "-m", "pipeline", "train", "--family", "cvae")
MODEL = "models/cvae/baseline"


@pytest.fixture(scope="module")
def project(tmp_path_factory: pytest.TempPathFactory) -> Project:
    """A copy with the data in place and a run long enough to be killed in the middle."""
    project = copy_project(tmp_path_factory.mktemp("killed"))
    project.stage("ingest")
    project.stage("shard")
    project.set(train__epochs=10, train__global_batch_size=16, compute__checkpoint_every_steps=25)
    commit(project, "long run")
    return project


def checkpoints(project: Project) -> list[Path]:
    return sorted((project.path / ".runs").glob("*/checkpoints/step-*"))


def workers(running: subprocess.Popen[str]) -> list[psutil.Process]:
    children = psutil.Process(running.pid).children(recursive=True)
    return [child for child in children if "RayTrainWorker" in " ".join(child.cmdline())]


def test_killed_training_resumes_and_ends_with_the_same_bytes(project: Project) -> None:
    """First the stage is killed, then a worker of the stage that took over: Ray Train starts that one again."""
    project.run(*TRAIN)
    expected, curves = project.contents(MODEL), project.read("results/train/cvae/curves.tsv")
    shutil.rmtree(project.path / "models")
    shutil.rmtree(project.path / "results")

    killed = project.start(*TRAIN)
    wait_for(lambda: len(checkpoints(project)) > 1, "a second checkpoint")
    killed.kill()
    killed.communicate()
    reached = checkpoints(project)[-1].name
    assert not (project.path / MODEL).exists()

    again = project.start(*TRAIN)
    wait_for(lambda: checkpoints(project)[-1].name > reached, "progress")
    assert checkpoints(project)[0].name >= reached  # nothing before it was made again
    victims = workers(again)
    assert victims
    for worker in victims:
        worker.kill()
    printed, _ = again.communicate(timeout=200)
    assert again.returncode == 0, printed
    assert project.contents(MODEL) == expected
    assert project.read("results/train/cvae/curves.tsv") == curves
    assert checkpoints(project) == []  # a finished run leaves nothing behind


def test_a_stage_ends_with_the_dvc_that_started_it(project: Project) -> None:
    shutil.rmtree(project.path / ".runs", ignore_errors=True)
    dvc = project.start("dvc", "repro", "-f", "-s", "train@cvae")
    wait_for(lambda: checkpoints(project), "a checkpoint")
    stage = next(p for p in psutil.Process(dvc.pid).children(recursive=True) if p.cmdline()[1:4] == list(TRAIN[1:4]))
    os.kill(dvc.pid, signal.SIGTERM)
    dvc.communicate()
    wait_for(lambda: not stage.is_running() or stage.status() == psutil.STATUS_ZOMBIE, "the end of the stage", 15)
    assert checkpoints(project)  # and what it had reached is kept


def test_two_runs_of_one_name_exclude_each_other(project: Project) -> None:
    shutil.rmtree(project.path / ".runs", ignore_errors=True)  # where a run that was ended has left its lock
    first = project.start(*TRAIN)
    try:
        wait_for(lambda: list((project.path / ".runs").glob("*/lock")), "the lock")
        printed = project.run(*TRAIN, code=1)
    finally:
        first.kill()
        first.communicate()
    assert f"process {first.pid} is working here" in printed
