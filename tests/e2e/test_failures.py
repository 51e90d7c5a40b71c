"""Told to end, or killed, a stage leaves what it reached, one line, its exit code, and no process."""

import os
import shutil
import signal
import subprocess
from collections.abc import Iterator

import psutil
import pytest
from e2e_project import Project, commit, environment, twin, wait_for

TRAIN = ("python", "-m", "pipeline", "train", "--family", "cvae")
REPRO = ("dvc", "repro", "-f", "-s", "train@cvae")
SECONDS = 240  # for everything to be gone on a busy machine; on a quiet one it takes five


@pytest.fixture(scope="module")
def project(with_data: Project, tmp_path_factory: pytest.TempPathFactory) -> Project:
    """A copy with a run that does not end while a test looks at it."""
    project = twin(with_data, tmp_path_factory.mktemp("told") / "to end")
    project.set(train__epochs=1000, train__global_batch_size=16, compute__checkpoint_every_steps=25)
    commit(project, "long run")
    return project


@pytest.fixture
def running(request: pytest.FixtureRequest, project: Project) -> Iterator[subprocess.Popen[str]]:
    """A command that trains, once it has written a checkpoint, as the leader of a group of processes."""
    shutil.rmtree(project.path / ".runs", ignore_errors=True)
    process = subprocess.Popen(
        request.param, cwd=project.path, env=environment(project.path), text=True, stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE, stderr=subprocess.STDOUT, start_new_session=True,
    )  # fmt: skip
    wait_for(lambda: list((project.path / ".runs").glob("*/checkpoints/step-*")), "a checkpoint", 200)
    yield process
    for left in family(process):
        left.kill()
    process.kill()
    process.communicate()


def family(process: subprocess.Popen[str]) -> list[psutil.Process]:
    try:
        return list(psutil.Process(process.pid).children(recursive=True))
    except psutil.NoSuchProcess:
        return []


def gone(processes: list[psutil.Process]) -> bool:
    return not [p for p in processes if p.is_running() and p.status() != psutil.STATUS_ZOMBIE]


@pytest.mark.parametrize("running", [TRAIN], indirect=True)
@pytest.mark.parametrize(
    ("number", "code", "line"),
    [
        (signal.SIGTERM, 143, "terminated; what was done is kept, run the same command again to continue"),
        (signal.SIGINT, 130, "interrupted; what was done is kept, run the same command again to continue"),
    ],
)
def test_a_stage_that_is_told_to_end_says_so_in_one_line(
    running: subprocess.Popen[str], number: int, code: int, line: str
) -> None:
    started = family(running)
    assert len(started) > 5
    running.send_signal(number)
    printed, _ = running.communicate(timeout=SECONDS)
    assert running.returncode == code
    assert printed.splitlines()[-1] == line
    assert "Traceback" not in printed
    wait_for(lambda: gone(started), "the end of Ray", SECONDS)


@pytest.mark.parametrize("running", [REPRO], indirect=True)
@pytest.mark.parametrize("how", ["dvc terminated", "dvc killed", "group interrupted", "stage killed"])
def test_whatever_ends_dvc_or_the_stage_leaves_no_process(running: subprocess.Popen[str], how: str) -> None:
    started = family(running)
    (stage,) = [process for process in started if process.cmdline()[1:4] == list(TRAIN[1:4])]
    assert len(started) > 5
    if how == "group interrupted":
        os.killpg(running.pid, signal.SIGINT)
    elif how == "stage killed":
        stage.kill()
    else:
        running.send_signal(signal.SIGTERM if how == "dvc terminated" else signal.SIGKILL)
    running.communicate(timeout=SECONDS)
    assert running.returncode != 0
    wait_for(lambda: gone(started), "the end of every process", SECONDS)
