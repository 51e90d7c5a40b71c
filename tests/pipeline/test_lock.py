"""One process a run, on a disk and at an address; what ends a process ends its hold."""

import os
import platform
import shutil
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import asdict, replace
from pathlib import Path
from typing import TextIO

import fsspec
import pytest

from pipeline.closure import ROOT
from pipeline.errors import Busy
from pipeline.train import lock
from pipeline.train.folders import Folder, open_folder
from pipeline.train.lock import LEASE, Owner, exclusive, owner, remove_run
from pipeline.train.storage import read_json, write_json

HOLD = "import sys, time; from pipeline.train.lock import exclusive\n" + (
    "with exclusive(sys.argv[1]): print('held', flush=True); time.sleep(600)"
)


@pytest.fixture
def hold(tmp_path: Path) -> Iterator[Callable[[], subprocess.Popen[str]]]:
    """Starts another process that holds tmp_path / "run"."""
    started = []

    def start() -> subprocess.Popen[str]:
        command = [sys.executable, "-c", HOLD, str(tmp_path / "run")]
        started.append(subprocess.Popen(command, cwd=ROOT, stdout=subprocess.PIPE, text=True))
        assert started[-1].stdout.readline() == "held\n"
        return started[-1]

    yield start
    for process in started:
        with process:
            process.kill()


def test_a_folder_is_held_by_one_process(hold: Callable[[], subprocess.Popen[str]], tmp_path: Path) -> None:
    holder = hold()
    message = rf"^{tmp_path}/run: process {holder.pid} is working here; wait for it, or stop it$"
    for taken in (lambda: exclusive(tmp_path / "run").__enter__(), lambda: remove_run(tmp_path / "run")):
        with pytest.raises(Busy, match=message):
            taken()
    found = owner(tmp_path / "run")
    assert found is not None
    assert found.pid == holder.pid
    with exclusive(tmp_path / "other"):
        pass


def test_a_killed_process_holds_nothing(hold: Callable[[], subprocess.Popen[str]], tmp_path: Path) -> None:
    holder = hold()
    holder.send_signal(signal.SIGKILL)
    holder.wait()
    assert owner(tmp_path / "run") is None
    with exclusive(tmp_path / "run"):
        assert (tmp_path / "run" / "lock").read_text() == f"{os.getpid()} {platform.node()}"


def test_it_may_wait_for_the_other_to_end(hold: Callable[[], subprocess.Popen[str]], tmp_path: Path) -> None:
    holder = hold()
    timer = threading.Timer(0.5, holder.kill)
    timer.start()
    with exclusive(tmp_path / "run", wait_s=60):
        assert holder.wait(60) == -signal.SIGKILL
    timer.join()


def test_a_folder_is_free_after_the_block(tmp_path: Path) -> None:
    for _ in range(2):
        assert owner(tmp_path / "deep" / "run") is None
        with exclusive(tmp_path / "deep" / "run"):
            assert str(owner(tmp_path / "deep" / "run")) == f"process {os.getpid()}"


def test_it_holds_within_one_process_too(tmp_path: Path) -> None:
    """A driver, and a trial in the same process."""
    with exclusive(tmp_path), pytest.raises(Busy), exclusive(tmp_path):
        pass


def test_what_a_killed_writer_left_is_cleared(tmp_path: Path) -> None:
    left = tmp_path / "checkpoints" / ".step-000000004-0123456789abcdef.safetensors.99.tmp"
    left.parent.mkdir()
    left.write_bytes(b"half")
    (tmp_path / "checkpoints" / ".hidden").touch()
    with exclusive(tmp_path):
        assert [path.name for path in left.parent.iterdir()] == [".hidden"]


def test_a_run_is_removed_with_its_lock(tmp_path: Path) -> None:
    (tmp_path / "run" / "checkpoints").mkdir(parents=True)
    remove_run(tmp_path / "run")
    assert list(tmp_path.iterdir()) == []
    with exclusive(tmp_path / "run"):
        pass


def test_a_folder_that_is_removed_before_it_is_locked_is_made_again(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Else the lock of a file that has no name any more would keep nobody out."""
    flock, removals = lock._flock, [tmp_path / "run"]

    def late(file: TextIO, shared: bool = False) -> bool:
        for folder in removals:
            shutil.rmtree(folder)
        removals.clear()
        return flock(file, shared)

    monkeypatch.setattr(lock, "_flock", late)
    with exclusive(tmp_path / "run"):
        with pytest.raises(Busy), exclusive(tmp_path / "run"):
            pass


@pytest.fixture
def address(monkeypatch: pytest.MonkeyPatch) -> Iterator[Folder]:
    """A run at an address, whose leases are renewed quickly."""
    for name, value in {"BEAT_S": 0.05, "SETTLE_S": 0.05, "RETRY_S": 0.02}.items():
        monkeypatch.setattr(lock, name, value)
    yield open_folder("memory://store").sub("run")
    fsspec.filesystem("memory").store.clear()


def elsewhere(age_s: float) -> Owner:
    """The process of another machine, silent since `age_s` seconds."""
    return replace(Owner.this(), host="other", pid=77, beat=time.time() - age_s)


def until(true: Callable[[], bool]) -> None:
    end = time.monotonic() + 120
    while not true():
        assert time.monotonic() < end
        time.sleep(0.01)


def test_a_lease_is_held_and_given_back(address: Folder) -> None:
    with exclusive(address):
        assert str(owner(address)) == f"process {os.getpid()}"
        with pytest.raises(Busy, match=rf"^memory://store/run: process {os.getpid()} is working here"):
            remove_run(address)
    assert owner(address) is None
    assert address.names() == []


def test_a_lease_is_renewed(address: Folder) -> None:
    with exclusive(address):
        first = owner(address)
        assert first is not None
        until(lambda: read_json(address, LEASE)["beat"] > first.beat)  # type: ignore[index]


def test_a_lease_of_another_machine_is_respected_for_a_minute(address: Folder) -> None:
    write_json(address, LEASE, asdict(elsewhere(30)))
    with pytest.raises(Busy, match="process 77 of other is working here"), exclusive(address):
        pass
    assert str(owner(address)) == "process 77 of other"


def test_a_silent_one_is_taken_over(address: Folder) -> None:
    write_json(address, LEASE, asdict(elsewhere(100)))
    assert owner(address) is None
    with exclusive(address):
        assert str(owner(address)) == f"process {os.getpid()}"


def test_one_whose_clock_is_behind_is_seen_to_be_alive(address: Folder, monkeypatch: pytest.MonkeyPatch) -> None:
    behind, beats = elsewhere(100), [5.0]
    write_json(address, LEASE, asdict(behind))

    def beat(seconds: float) -> None:
        if beats:
            write_json(address, LEASE, asdict(replace(behind, beat=behind.beat + beats.pop())))

    monkeypatch.setattr("time.sleep", beat)
    with pytest.raises(Busy), exclusive(address):
        pass


def test_a_dead_process_of_this_machine_is_taken_over_at_once(address: Folder) -> None:
    process = subprocess.Popen([sys.executable, "-c", ""])
    process.wait()
    for pid, started in ((process.pid, time.time()), (os.getpid(), 0.0)):  # the number may have come again
        write_json(address, LEASE, asdict(replace(Owner.this(), pid=pid, started=started)))
        with exclusive(address):
            assert str(owner(address)) == f"process {os.getpid()}"


def test_of_two_that_come_at_once_the_last_to_write_goes_on(address: Folder, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("time.sleep", lambda _: write_json(address, LEASE, asdict(elsewhere(0))))
    with pytest.raises(Busy, match="process 77 of other"), exclusive(address):
        pass


def test_many_that_come_at_once_are_one(address: Folder, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(lock, "SETTLE_S", 1.0)
    held, most, ends = [], [], []
    start = threading.Barrier(6)

    def take() -> None:
        start.wait()
        try:
            with exclusive(address, lost=ends.append):
                held.append(1)
                most.append(len(held))
                time.sleep(0.3)
                held.pop()
        except Busy:
            ends.append("busy")

    threads = [threading.Thread(target=take) for _ in range(6)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert most == [1]
    assert ends == ["busy"] * 5


def test_one_who_was_taken_over_is_told(address: Folder) -> None:
    told: list[str] = []
    with exclusive(address, lost=told.append):
        write_json(address, LEASE, asdict(elsewhere(0)))
        until(lambda: bool(told))
    assert told == ["memory://store/run: taken over by process 77 of other; this one ends"]
    assert str(owner(address)) == "process 77 of other", "it is no longer ours to give back"


def test_a_run_at_an_address_is_removed_with_its_lease(address: Folder) -> None:
    address.write("checkpoints/a", b"1")
    address.write("finished.json", b"{}")
    remove_run(address)
    assert address.names() == []
