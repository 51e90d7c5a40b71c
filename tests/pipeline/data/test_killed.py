"""Ingest and shard, killed anywhere: no part of a file under a final name, and the next run gives the same bytes."""

import json
import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, TypeAlias

import mortal
import numpy as np
import psutil
import pytest
from PIL import Image

PROGRAM = [sys.executable, mortal.__file__]
OLD, NEW = 3, 4  # side of the images
DELAYS = 12  # kills at places spread over the run
LINGER = ("ray::DashboardAgent", "ray::RuntimeEnvAgent")  # Ray's own: they first tell a dead server, for 60 s

Obey: TypeAlias = Callable[..., dict[str, Any]]
Tree: TypeAlias = dict[str, bytes]


@pytest.fixture(scope="module")
def obey() -> Iterator[Obey]:
    """Gives orders to a process that has imported everything, so that a kill costs a fork."""
    process = subprocess.Popen(PROGRAM, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)

    def order(stage: str, root: Path, size: int = NEW, **when: Any) -> dict[str, Any]:
        process.stdin.write(json.dumps({
            "stage": stage, "root": str(root), "size": size, "die_at": None, "die_after": None, **when
        }) + "\n")  # fmt: skip
        process.stdin.flush()
        return json.loads(process.stdout.readline())

    yield order
    process.stdin.close()
    process.wait(10)
    process.stdout.close()


def images(root: Path, count: int) -> None:
    random = np.random.default_rng(count)
    for number in range(count):
        path = root / "images" / "ab"[number % 2] / f"{number:03d}.ppm"
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(random.integers(0, 256, (5, 5, 3), np.uint8)).save(path)
        if number % 29 == 0:
            path.write_bytes(path.read_bytes()[:20])


def tree(path: Path) -> Tree:
    """What is there under a final name: of a folder all files, of a file itself; empty where there is nothing."""
    if path.is_file():
        return {"": path.read_bytes()}
    return {each.relative_to(path).as_posix(): each.read_bytes() for each in sorted(path.rglob("*")) if each.is_file()}


def outputs(root: Path) -> dict[str, Tree]:
    return {name: tree(root / "data" / name) for name in ("prepared", "quarantine.parquet", "dataset.json", "shards")}


@pytest.fixture(params=["ingest", "shard"])
def stage(request: pytest.FixtureRequest) -> str:
    return request.param


@pytest.fixture
def old_and_new(obey: Obey, stage: str, tmp_path: Path) -> Callable[[int], tuple[dict[str, Tree], ...]]:
    """Outputs before and after a run that replaces all of them; the former are left in place."""

    def made(count: int) -> tuple[dict[str, Tree], ...]:
        images(tmp_path, count)
        found = []
        for size in (NEW, OLD):
            for each in ("ingest", "shard"):
                assert obey(each, tmp_path, size)["ended"] == 0
            found.append(outputs(tmp_path))
        after, before = found
        if stage == "ingest":
            after = {**after, "shards": before["shards"]}
        else:  # of the prepared table that is new
            assert obey("ingest", tmp_path)["ended"] == 0
            before = {**after, "shards": before["shards"]}
        assert before != after
        shutil.copytree(tmp_path / "data", tmp_path / "kept")
        return before, after

    return made


def check_and_repeat(obey: Obey, stage: str, root: Path, before: dict[str, Tree], after: dict[str, Tree]) -> None:
    found = outputs(root)
    for name, there in found.items():
        assert there in ({}, before[name], after[name]), f"a part of {name}"
    if stage == "ingest" and found["dataset.json"]:
        whole = [{name: each[name] for name in found if name != "shards"} for each in (before, after)]
        assert {name: found[name] for name in found if name != "shards"} in whole, "dataset.json tells of other files"
    names = {path.name for path in (root / "data").iterdir()}
    assert all(name.startswith(".") and name.endswith(".tmp") for name in names - found.keys())
    assert obey(stage, root)["ended"] == 0
    assert outputs(root) == after
    left = [path for path in (root / "data").iterdir() if path.is_dir() and path.name.startswith(".")]
    assert left == []


def restore(root: Path) -> None:
    shutil.rmtree(root / "data")
    shutil.copytree(root / "kept", root / "data")


def test_killed_at_every_step(obey: Obey, stage: str, tmp_path: Path, old_and_new: Any) -> None:
    before, after = old_and_new(40)
    steps = obey(stage, tmp_path)["steps"]
    assert outputs(tmp_path) == after
    assert steps > 15
    for step in range(steps):
        restore(tmp_path)
        assert obey(stage, tmp_path, die_at=step)["ended"] == -signal.SIGKILL
        check_and_repeat(obey, stage, tmp_path, before, after)


def test_killed_at_any_time(obey: Obey, stage: str, tmp_path: Path, old_and_new: Any) -> None:
    before, after = old_and_new(600)
    seconds = min(obey(stage, tmp_path)["seconds"] for _ in range(3))
    ends = []
    for number in range(DELAYS):
        restore(tmp_path)
        ends.append(obey(stage, tmp_path, die_after=seconds * number / DELAYS)["ended"])
        check_and_repeat(obey, stage, tmp_path, before, after)
    assert ends.count(-signal.SIGKILL) >= DELAYS // 4  # fewer where the machine was busy at first


def test_killed_again_and_again(obey: Obey, stage: str, tmp_path: Path, old_and_new: Any) -> None:
    """What each dead process leaves behind does not stop the next one."""
    before, after = old_and_new(70)
    for step in range(0, obey(stage, tmp_path)["steps"], 3):
        assert obey(stage, tmp_path, die_at=step)["ended"] in (0, -signal.SIGKILL)  # there is less and less to remove
    check_and_repeat(obey, stage, tmp_path, before, after)


def test_ray_ends_with_a_killed_driver(tmp_path: Path) -> None:
    """The tasks of a private cluster do not outlive ingest, and the next run gives the bytes of one process."""
    images(tmp_path, 1100)
    environment = {**os.environ, "RAY_TMPDIR": "/tmp"}
    driver = subprocess.Popen([*PROGRAM, str(tmp_path)], env=environment, stderr=subprocess.DEVNULL)
    processes = _when_tasks_write(driver, tmp_path / "data")
    driver.kill()
    driver.wait()
    assert {path.name[0] for path in (tmp_path / "data").iterdir()} == {"."}
    processes = [process for name, process in processes if name not in LINGER]
    end = time.monotonic() + 120
    while alive := [process for process in processes if _is_alive(process)]:
        assert time.monotonic() < end, alive
        time.sleep(0.1)
    subprocess.run([*PROGRAM, str(tmp_path)], env=environment, check=True, stderr=subprocess.DEVNULL)
    found = outputs(tmp_path)
    (tmp_path / "data").rename(tmp_path / "by_ray")
    config = mortal.data_config(tmp_path, NEW)
    source = mortal.image_folder.open_image_folder(config.source, None, 10**6)
    mortal.prepare([source], config, tmp_path / "data")
    assert outputs(tmp_path) == found


def _is_alive(process: psutil.Process) -> bool:
    try:
        return process.is_running() and process.status() != psutil.STATUS_ZOMBIE
    except psutil.NoSuchProcess:
        return False


def _when_tasks_write(driver: subprocess.Popen[bytes], data: Path) -> list[tuple[str, psutil.Process]]:
    """All processes that the driver has started, with their names, once there is the start of a part."""
    for _ in range(6000):
        if any(data.glob(".prepared.*.tmp/*")):
            return [(process.name(), process) for process in psutil.Process(driver.pid).children(recursive=True)]
        assert driver.poll() is None
        time.sleep(0.01)
    raise AssertionError("no part was started")
