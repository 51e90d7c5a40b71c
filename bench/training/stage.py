"""The stage `train` as DVC runs it, in a project of its own: what Ray Train and all else around the loop cost."""

import subprocess
import sys
import time
from dataclasses import dataclass
from pathlib import Path

from ruamel.yaml import YAML

from pipeline.config import PARAMS_FILE
from pipeline.train.config import TrainConfig
from vae_core.config import to_dict

POLL_S = 0.05  # a glance each takes a few tenths of a per cent of a core
VALIDATED = '"split": "val"'  # in the row of the log that ends an epoch


@dataclass(frozen=True)
class StageRun:
    """Seconds of the whole stage, and from its start to the end of each epoch."""

    seconds: float
    ends: list[float]


def project(folder: Path, shards: Path, changes: dict[str, object], params: Path = PARAMS_FILE) -> Path:
    """A folder in which stages run: `params` with `changes` (a dotted key each), and a link to the shards."""
    yaml = YAML(typ="rt")
    values = yaml.load(params.read_text(encoding="utf-8"))
    for key, value in changes.items():
        *parents, leaf = key.split(".")
        node = values
        for parent in parents:
            node = node[parent]
        node[leaf] = value
    (folder / "data").mkdir(parents=True)
    (folder / "data" / "shards").symlink_to(shards.resolve())
    with (folder / PARAMS_FILE.name).open("w") as file:
        yaml.dump(values, file)
    return folder


def training(config: TrainConfig) -> dict[str, object]:
    """The changes to params.yaml with which the stages train `vae` in this way."""
    return {
        "families": ["vae"],
        "train": to_dict(config),
        "tune.search.rungs": [],  # they would have to be below the epochs
    }


def run_stage(where: Path, *arguments: str) -> float:
    """Seconds that `python -m pipeline ARGUMENTS` takes in a project.

    Raises:
        RuntimeError: it fails.
    """
    return watch_stage(where, *arguments).seconds


def watch_stage(where: Path, *arguments: str) -> StageRun:
    """Run a stage, and see in the log of its one run when epochs end."""
    said = where / "said.txt"
    start = time.perf_counter()
    with said.open("w") as file:
        process = subprocess.Popen(
            [sys.executable, "-m", "pipeline", *arguments], cwd=where, stdout=file, stderr=subprocess.STDOUT
        )
        ends: list[float] = []
        while process.poll() is None:
            time.sleep(POLL_S)
            ends += [time.perf_counter() - start] * (_epochs(where) - len(ends))
    if process.returncode:
        raise RuntimeError(f"python -m pipeline {' '.join(arguments)} failed:\n{said.read_text()}")
    return StageRun(time.perf_counter() - start, ends)


def _epochs(where: Path) -> int:
    for log in where.glob(".runs/*/metrics.jsonl"):
        try:
            return log.read_text().count(VALIDATED)
        except FileNotFoundError:  # it is being replaced
            return 0
    return 0
