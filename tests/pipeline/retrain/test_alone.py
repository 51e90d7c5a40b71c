"""Of two retrainings at once the second one leaves, or waits; one that was killed is in nobody's way."""

import subprocess
import sys
import time
from pathlib import Path

import pytest
from dvc_project import ROOT, environment

from pipeline.errors import Busy
from pipeline.retrain.alone import alone

HOLD = """
import sys, time
from pathlib import Path
from pipeline.retrain.alone import alone

with alone(Path(sys.argv[1]), wait_s=0):
    print("held", flush=True)
    time.sleep(60)
"""


def holder(path: Path) -> subprocess.Popen[str]:
    """A process that has the lock."""
    env = environment() | {"PYTHONPATH": str(ROOT)}
    process = subprocess.Popen([sys.executable, "-c", HOLD, str(path)], env=env, stdout=subprocess.PIPE, text=True)
    assert process.stdout is not None
    assert process.stdout.readline() == "held\n"
    return process


def test_the_second_one_leaves_or_waits_until_the_first_one_is_gone(tmp_path: Path) -> None:
    path = tmp_path / "place" / "lock"
    with holder(path) as first:
        with pytest.raises(Busy, match=f"^process {first.pid} is retraining here; wait for it") as raised:
            with alone(path, wait_s=0):
                pass
        assert raised.value.code == 7
        start = time.monotonic()
        with pytest.raises(Busy), alone(path, wait_s=0.6):
            pass
        assert time.monotonic() - start >= 0.6
        first.kill()
    with alone(path, wait_s=0):
        assert path.exists()


def test_what_it_starts_does_not_keep_the_lock(tmp_path: Path) -> None:
    with alone(tmp_path / "lock", wait_s=0):
        child = subprocess.Popen(["sleep", "60"], close_fds=False)
    try:
        with alone(tmp_path / "lock", wait_s=0):
            assert child.poll() is None
    finally:
        child.kill()
        child.wait()
