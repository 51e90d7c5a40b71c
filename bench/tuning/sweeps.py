"""The two sweeps: ours, and the same trials by plain Ray Tune."""

import csv
import json
import os
import pickle
import subprocess
import sys
import time
from dataclasses import replace
from pathlib import Path
from typing import Any

from bench.training import stage
from pipeline.config import apply_overrides
from pipeline.train.run import TrainRun

SPACE: dict[str, list[Any]] = {
    "beta": [0.25, 0.5, 0.75, 1.0, 1.25, 1.5, 1.75, 2.0],
    "latent_dim": [10, 15, 20, 25, 30],
}
PRIMARY = "val_neg_elbo_nats"
ENVIRONMENT = {"RAY_USAGE_STATS_ENABLED": "0"}


def ours(folder: Path, shards: Path, base: TrainRun, count: int) -> tuple[Path, float]:
    """The project in which the stage `tune` ran, and its seconds; `train` before it is not counted.

    Raises:
        RuntimeError: a stage fails.
    """
    changes = {
        **stage.training(base.train),
        "tune.search": {"kind": "random", "trials": count, "seed": 0, "scheduler": "none", "rungs": []},
        "tune.publish": 0,
        "tune.spaces.vae": SPACE,
        "compute.trial_cpus": 1.0,
    }
    where = stage.project(folder, shards, changes)
    stage.run_stage(where, "train", "--family", "vae")
    return where, stage.run_stage(where, "tune", "--family", "vae")


def drawn(project: Path) -> list[dict[str, str]]:
    """The rows of our trials in their table."""
    with (project / "results" / "tune" / "vae" / "trials.csv").open() as file:
        return [row for row in csv.DictReader(file) if row["trial"] != "baseline"]


def run_of(base: TrainRun, row: dict[str, str]) -> TrainRun:
    """What a trial trained, from its row of the table."""
    overrides = {key: type(values[0])(row[key]) for key, values in SPACE.items()}
    model, train = apply_overrides(base.model, base.train, overrides)
    return replace(base, model=model, train=train)


def plain(folder: Path, runs: list[tuple[str, TrainRun]]) -> tuple[list[dict[str, Any]], float]:
    """The marks of each trial of plain Ray Tune, and the seconds of its program.

    Raises:
        RuntimeError: it fails.
    """
    folder.mkdir()
    trials, marks = folder / "trials.pickle", folder / "marks.json"
    trials.write_bytes(pickle.dumps(runs))
    command = [sys.executable, "-m", "bench.tuning.plain", str(trials), str(marks), str(folder / "storage")]
    start = time.perf_counter()
    done = subprocess.run(command, env=ENVIRONMENT | os.environ, stdout=subprocess.PIPE, stderr=subprocess.STDOUT)
    seconds = time.perf_counter() - start
    if done.returncode:
        raise RuntimeError(f"plain Ray Tune failed:\n{done.stdout.decode()}")
    return json.loads(marks.read_text()), seconds


def alike(rows: list[dict[str, str]], marks: list[dict[str, Any]]) -> int:
    """Trials with the same validation figure in both."""
    pairs = zip(rows, marks, strict=True)
    return sum(abs(float(row[PRIMARY]) - one["figures"]["neg_elbo_nats"]) < 1e-5 for row, one in pairs)
