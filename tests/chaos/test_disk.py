"""Disks, stores, memory and numbers that fail: each ends in its documented way, and harms nothing."""

import os
import re
import shutil
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest
from e2e_project import Project, copy_project, wait_for
from s3_server import Server

TRAIN = ("python", "-m", "pipeline", "train", "--family", "cvae")
TUNE = ("python", "-m", "pipeline", "tune", "--family", "cvae")
REFUSED, DIVERGED, WORKERS, STORAGE = 1, 3, 4, 5  # exit codes
NO_MEMORY = {"RAY_memory_usage_threshold": "0.0", "RAY_memory_monitor_refresh_ms": "100"}  # Ray kills who trains
HALF_FULL_MIB, ROOMY_MIB = 8, 64  # room for one checkpoint of 4.5 MiB, and for all

LONG_S = 300.0  # until a busy machine has done it

pytestmark = pytest.mark.chaos


@pytest.fixture(scope="module")
def mounts() -> None:
    """A disk can be mounted for a test alone, in a mount namespace of its own."""
    if os.geteuid() != 0 or shutil.which("unshare") is None or subprocess.call(["unshare", "-m", "true"]) != 0:
        pytest.skip("needs root and `unshare -m`, to mount a small disk")


@pytest.fixture(scope="module")
def project(tmp_path_factory: pytest.TempPathFactory) -> Project:
    """A project with its shards, and a model of which a small disk cannot hold two checkpoints."""
    project = copy_project(tmp_path_factory.mktemp("failing"))
    project.set(
        families=["cvae"],
        models__cvae__network__hidden=[400, 400],
        train__epochs=6,
        train__global_batch_size=32,
        tune__search__rungs=[2],
        compute__checkpoint_every_steps=20,
        compute__remote_timeout_s=10,
        compute__max_failures=0,
    )
    project.stage("ingest")
    project.stage("shard")
    return project


@pytest.fixture(scope="module")
def expected(project: Project) -> dict[str, bytes]:
    """What train leaves where nothing fails."""
    project.run(*TRAIN)
    return outputs(project)


@pytest.fixture
def afresh(project: Project, expected: dict[str, bytes]) -> Iterator[Project]:
    """The project with its data alone; afterwards it has the parameters of before."""
    params = project.read("params.yaml")
    for folder in (".runs", "models", "results"):
        shutil.rmtree(project.path / folder, ignore_errors=True)
    yield project
    (project.path / "params.yaml").write_bytes(params)


def outputs(project: Project) -> dict[str, bytes]:
    """Path -> bytes of all that train and tune leave."""
    found = (path for folder in ("models", "results") for path in (project.path / folder).rglob("*") if path.is_file())
    return {str(path.relative_to(project.path)): path.read_bytes() for path in found}


def told(printed: str) -> str:
    """The one line that a failure ends with."""
    assert "Traceback" not in printed, printed
    lines = [line for line in printed.splitlines() if line.startswith("error: ")]
    assert len(lines) == 1, printed
    return lines[0]


def on_small_disk(project: Project, script: str) -> list[str]:
    """Run a shell script in a mount namespace of its own; what it printed, cut at its lines `code N`."""
    printed = project.run("unshare", "-m", "sh", "-uc", f"mkdir -p .runs && {script}")
    return re.split(r"^code (\d+)\n", printed, flags=re.MULTILINE)


@pytest.mark.usefixtures("mounts")
def test_a_full_disk_is_told_of_and_room_on_it_lets_the_run_go_on(afresh: Project, expected: dict[str, bytes]) -> None:
    run = f"{' '.join(TRAIN)}; echo code $?"
    full, code, resumed, again, _ = on_small_disk(
        afresh,
        f"mount -t tmpfs -o size={HALF_FULL_MIB}m none .runs && {run}; mount -o remount,size={ROOMY_MIB}m .runs; {run}",
    )
    assert code == str(STORAGE), full
    assert re.search("full|No space", told(full))
    assert again == "0", resumed
    assert outputs(afresh) == expected


@pytest.mark.usefixtures("mounts")
def test_a_read_only_store_is_told_of_and_harms_nothing(afresh: Project, expected: dict[str, bytes]) -> None:
    run = f"{' '.join(TRAIN)}; echo code $?"
    refused, code, resumed, again, _ = on_small_disk(
        afresh, f"mount -t tmpfs -o size={ROOMY_MIB}m,ro none .runs && {run}; mount -o remount,rw .runs; {run}"
    )
    assert code == str(STORAGE), refused
    assert re.search("[Rr]ead-only", told(refused))
    assert again == "0", resumed
    assert outputs(afresh) == expected


def test_a_store_that_goes_away_is_told_of_and_the_run_goes_on_when_it_is_back(
    afresh: Project, expected: dict[str, bytes], tmp_path: Path
) -> None:
    pytest.importorskip("s3fs")
    server = Server(tmp_path / "root")
    bucket = server.root / "bucket"
    bucket.mkdir(parents=True)
    server.start()
    try:
        afresh.set(compute__storage="s3://bucket/runs")
        running = afresh.start(*TRAIN, env=server.environment)
        wait_for(lambda: len(list(bucket.glob("runs/**/step-*"))) > 1, "a second checkpoint", LONG_S)
        server.stop()
        printed, _ = running.communicate(timeout=LONG_S)
        assert running.returncode == STORAGE, printed
        assert "s3://bucket/runs" in told(printed)
        server.start()
        afresh.run(*TRAIN, env=server.environment)
    finally:
        server.stop()
    assert outputs(afresh) == expected


def test_trials_without_memory_are_told_of_and_the_same_command_goes_on(afresh: Project) -> None:
    afresh.run(*TRAIN)
    afresh.run(*TUNE)
    expected = outputs(afresh)
    for folder in (".runs", "models/cvae/best", "results/tune"):
        shutil.rmtree(afresh.path / folder)
    printed = afresh.run(*TUNE, code=WORKERS, env=NO_MEMORY)
    assert "memory" in told(printed)
    afresh.run(*TUNE)
    assert outputs(afresh) == expected


def test_a_trial_that_no_memory_could_hold_is_refused_before_anything_starts(afresh: Project) -> None:
    afresh.run(*TRAIN)
    afresh.set(tune__spaces__cvae={"latent_dim": [4, 100_000_000_000]})
    printed = afresh.run(*TUNE, code=REFUSED)
    assert re.search(r"trial-\d+ \(latent_dim: 100000000000\)", told(printed))
    assert "starting Ray" not in printed


def test_a_loss_that_is_not_finite_ends_the_run_and_publishes_nothing(
    afresh: Project, expected: dict[str, bytes]
) -> None:
    afresh.set(train__learning_rate=1.0e30)
    printed = afresh.run(*TRAIN, code=DIVERGED)
    assert "not finite" in told(printed)
    assert outputs(afresh) == {}
    afresh.set(train__learning_rate={"kind": "one_cycle", "peak": 0.004, "warmup": 0.3})
    afresh.run(*TRAIN)
    assert outputs(afresh) == expected
