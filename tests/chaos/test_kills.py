"""Kills at random moments change nothing in what a run ends with."""

import json
import subprocess
import sys
from pathlib import Path

import pytest

HERE = Path(__file__).parent


@pytest.mark.chaos
@pytest.mark.parametrize("seed", [0])
def test_twenty_kills_end_with_the_bytes_of_an_undisturbed_run(tmp_path: Path, seed: int) -> None:
    out = tmp_path / "report.json"
    command = [sys.executable, HERE / "kill.py", "--kills", "20", "--seed", str(seed), "--out", out]
    done = subprocess.run(list(map(str, command)), check=False, stdout=subprocess.PIPE, text=True, timeout=3600)
    assert done.returncode == 0, done.stdout
    report = json.loads(out.read_text())
    assert report["identical"]
    assert len(report["kills"]) + len(report["not_done"]) == 20
    assert len(report["kills"]) >= 18  # a stage may end before its last kill comes
    assert set(report["by_victim"]) == {"rank", "group", "trial", "driver", "node", "gcs", "dvc"}
