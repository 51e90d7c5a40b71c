"""A command ends on a signal and with its dvc, and takes what it started along."""

import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from pipeline import ending
from pipeline.closure import ROOT

WATCH = "import time; from pipeline.ending import end_with_dvc; end_with_dvc(); print('up', flush=True); time.sleep(60)"
STARTS_A_STAGE = """
import subprocess, sys, time
stage = subprocess.Popen([sys.executable, "-c", sys.argv[1]], stdout=subprocess.PIPE, text=True)
stage.stdout.readline()
print(stage.pid, flush=True)
time.sleep(600)
"""
STUBBORN = """
import subprocess, sys, time
from pipeline import ending
child = subprocess.Popen([sys.executable, "-c", "import time; time.sleep(600)"], stdout=subprocess.DEVNULL)
try:
    with ending.by_signal():
        print(child.pid, flush=True)
        time.sleep(600)
except KeyboardInterrupt as error:
    code = ending.say_interrupted(error)
    with ending.by_signal():
        ending._told.append(15)  # this process is still tidying up when the second signal comes
        print("tidying", flush=True)
        time.sleep(600)
"""


def alive(pid: int) -> bool:
    try:
        return "Z" not in Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0]
    except FileNotFoundError:
        return False


def wait_for_the_end_of(pid: int) -> None:
    deadline = time.monotonic() + 60
    while alive(pid):
        assert time.monotonic() < deadline
        time.sleep(0.05)


on_linux = pytest.mark.skipif(not Path("/proc/self/stat").exists(), reason="reads /proc")


@on_linux
def test_a_stage_ends_with_the_dvc_that_started_it(tmp_path: Path) -> None:
    """By its real command: `python …/dvc`."""
    (tmp_path / "dvc").write_text(STARTS_A_STAGE)
    environment = {**os.environ, "DVC_STAGE": "train", "PYTHONPATH": str(ROOT)}
    with subprocess.Popen(
        [sys.executable, tmp_path / "dvc", WATCH], env=environment, stdout=subprocess.PIPE, text=True
    ) as dvc:
        assert dvc.stdout is not None
        stage = int(dvc.stdout.readline())
        assert alive(stage)
        dvc.kill()
    wait_for_the_end_of(stage)


@pytest.mark.parametrize(
    ("command", "expected"),
    [
        (["/usr/bin/dvc", "repro"], True),
        (["/venv/bin/python3.11", "/venv/bin/dvc", "repro"], True),
        (["python", "-X", "dev", "-u", "-m", "dvc", "repro"], True),
        (["python", "-m", "dvc.cli"], True),
        (["C:/Scripts/dvc.exe", "repro"], True),
        (["/bin/sh", "-c", "cd dvc && dvc repro"], False),
        (["python", "tools/dvc/check.py", "dvc"], False),
        (["python", "-c", "import dvc"], False),
        (["vim", "dvc.yaml"], False),
        (["/home/dvc/bin/python", "-m", "pipeline", "train"], False),
        ([], False),
    ],
)
def test_dvc_is_known_by_its_command(command: list[str], expected: bool) -> None:
    assert ending.is_dvc(command) == expected


def test_without_dvc_no_parent_is_watched(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("DVC_STAGE", raising=False)
    before = threading.enumerate()
    ending.end_with_dvc()
    assert threading.enumerate() == before


@contextmanager
def as_ray_does() -> Iterator[None]:
    try:
        yield
    except ending.Terminated:
        raise KeyboardInterrupt from None


@contextmanager
def closing_into(tidied: list[bool]) -> Iterator[None]:
    try:
        yield
    finally:
        tidied.append(True)


@pytest.mark.parametrize(
    ("number", "kind", "code", "word"),
    [(signal.SIGINT, KeyboardInterrupt, 130, "interrupted"), (signal.SIGTERM, ending.Terminated, 143, "terminated")],
)
def test_a_signal_unwinds_the_block_and_has_its_code(
    number: signal.Signals, kind: type[KeyboardInterrupt], code: int, word: str, capsys: pytest.CaptureFixture[str]
) -> None:
    before = [signal.getsignal(signal.SIGINT), signal.getsignal(signal.SIGTERM)]
    tidied: list[bool] = []
    with pytest.raises(kind) as told, ending.by_signal(), closing_into(tidied):
        signal.raise_signal(number)
    assert tidied == [True]
    assert [signal.getsignal(signal.SIGINT), signal.getsignal(signal.SIGTERM)] == before
    assert ending.say_interrupted(told.value) == code
    assert capsys.readouterr().err == f"{word}; what was done is kept, run the same command again to continue\n"


def test_what_ray_makes_of_sigterm_is_still_sigterm() -> None:
    """Waiting for a result, it raises KeyboardInterrupt of its own."""
    with pytest.raises(ending.Terminated), ending.by_signal(), as_ray_does():
        signal.raise_signal(signal.SIGTERM)


@on_linux
def test_a_second_signal_kills_the_process_and_its_children() -> None:
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    with subprocess.Popen(
        [sys.executable, "-c", STUBBORN], env=environment, stdout=subprocess.PIPE, text=True
    ) as process:
        assert process.stdout is not None
        child = int(process.stdout.readline())
        process.send_signal(signal.SIGTERM)
        assert process.stdout.readline() == "tidying\n"
        process.send_signal(signal.SIGTERM)
        assert process.wait(60) == 143
    wait_for_the_end_of(child)
