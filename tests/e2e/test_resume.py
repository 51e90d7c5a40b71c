"""Kill it anywhere: the same command goes on, and the result is that of an uninterrupted run."""

import re
import shutil
import subprocess

import psutil
import pytest
from e2e_project import Project, commit, twin, wait_for

TRAIN = ("python", "-m", "pipeline", "train", "--family", "cvae")
MODEL = "models/cvae/baseline"


@pytest.fixture(scope="module")
def project(with_data: Project, tmp_path_factory: pytest.TempPathFactory) -> Project:
    """A copy with a run long enough to be killed in the middle."""
    project = twin(with_data, tmp_path_factory.mktemp("killed") / "and resumed")
    project.set(train__epochs=10, train__global_batch_size=16, compute__checkpoint_every_steps=25, compute__threads=1)
    commit(project, "long run")
    return project


def checkpoints(project: Project) -> list[str]:
    """Their names, the oldest first."""
    return sorted(path.name for path in (project.path / ".runs").glob("*/checkpoints/step-*"))


def of_ray(running: subprocess.Popen[str], name: str) -> list[psutil.Process]:
    """The processes of Ray under a stage that run an actor."""
    children = psutil.Process(running.pid).children(recursive=True)
    return [child for child in children if name in " ".join(child.cmdline())]


def kill_once_past(name: str, running: subprocess.Popen[str], victim: str, project: Project) -> None:
    """Kill an actor of Ray when there is a checkpoint newer than `name`."""
    wait_for(lambda: checkpoints(project)[-1] > name and of_ray(running, victim), "progress", 200)
    for process in of_ray(running, victim):
        process.kill()


def test_killed_training_resumes_and_ends_with_the_same_bytes(project: Project) -> None:
    """First the stage is killed, then a worker of the stage that took over."""
    project.run(*TRAIN)
    expected, curves = project.contents(MODEL), project.read("results/train/cvae/curves.tsv")
    for folder in ("models", "results", ".runs"):
        shutil.rmtree(project.path / folder)

    killed = project.start(*TRAIN)
    wait_for(lambda: len(checkpoints(project)) > 1, "a second checkpoint")
    killed.kill()
    killed.communicate()
    reached = checkpoints(project)[-1]
    assert not (project.path / MODEL).exists()

    again = project.start(*TRAIN)
    kill_once_past(reached, again, "RayTrainWorker", project)
    printed, _ = again.communicate(timeout=600)
    assert again.returncode == 0, printed
    assert project.contents(MODEL) == expected
    assert project.read("results/train/cvae/curves.tsv") == curves
    assert "rank 0: was killed (signal 9" in printed
    assert "Traceback" not in printed


def test_a_finished_run_trains_nothing_and_gives_its_outputs_again(project: Project) -> None:
    expected = project.contents(MODEL)
    shutil.rmtree(project.path / "models")
    printed = project.run(*TRAIN)
    assert project.contents(MODEL) == expected
    assert re.search(r"train cvae is finished; its outputs are written again from .+/\.runs/cvae-\w{16} ", printed)
    assert "starting Ray" not in printed


def test_two_runs_of_one_name_exclude_each_other(project: Project) -> None:
    shutil.rmtree(project.path / ".runs", ignore_errors=True)
    first = project.start(*TRAIN)
    try:
        wait_for(lambda: list((project.path / ".runs").glob("*/lock")), "the lock")
        printed = project.run(*TRAIN, code=7)
    finally:
        first.kill()
        first.communicate()
    assert f"process {first.pid} is working here" in printed


@pytest.mark.parametrize(
    ("part", "name"),
    [("raylet/raylet", "Ray's node manager (raylet)"), ("gcs_server", "Ray's control service (gcs_server)")],
)
def test_a_ray_that_loses_a_part_ends_the_stage_with_one_line(project: Project, part: str, name: str) -> None:
    project.forget_runs()
    running = project.start(*TRAIN)
    wait_for(lambda: checkpoints(project), "a checkpoint")
    for process in of_ray(running, part):
        process.kill()
    printed, _ = running.communicate(timeout=600)
    assert running.returncode == 6, printed
    remedy = "what was done is kept, run the same command again to continue"
    assert printed.splitlines()[-1] == f"error: {name} on this machine died; {remedy}"
