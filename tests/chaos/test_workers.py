"""The number of workers changes the clock alone, and may change on the way."""

import json
import subprocess
import sys
from pathlib import Path

import pytest

HERE = Path(__file__).parent
MNIST = HERE.parents[1] / "data" / "shards" / "manifest.json"


@pytest.mark.chaos
@pytest.mark.parametrize(
    "data", ["digits", pytest.param("mnist", marks=pytest.mark.skipif(not MNIST.exists(), reason="no data/shards"))]
)
def test_one_two_and_four_workers_see_the_same_batches_and_reach_the_same_elbo(tmp_path: Path, data: str) -> None:
    out = tmp_path / "report.json"
    command = [sys.executable, HERE / "workers.py", "--data", data, "--out", out]
    done = subprocess.run(list(map(str, command)), check=False, stdout=subprocess.PIPE, text=True, timeout=3600)
    assert done.returncode == 0, done.stdout
    report = json.loads(out.read_text())
    nats = report["test_neg_elbo_nats"]
    assert set(nats) == {"1", "2", "4", "changing"}
    assert max(nats.values()) - min(nats.values()) < 0.1
    assert len(report["workers_changed_at_steps"]) == 2
