"""Copies of the project that train small models long enough to be killed many times, and what they end with."""

import json
import re
import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parents[1] / "e2e"))

from e2e_project import Project, commit, copy_project
from ruamel.yaml import YAML

CHECKPOINT = re.compile(r"step-(\d{9})")
OUTPUTS = ("dvc.lock", "models", "results/train", "results/tune")
LONG = {
    "train.epochs": 60,
    "train.global_batch_size": 16,
    "tune.search.trials": 3,
    "tune.publish": 1,
    "tune.search.rungs": [8, 25],
    "compute.workers": 2,
    "compute.checkpoint_every_steps": 25,
}
SMALL_VAE = {"models.vae.latent_dim": 4, "models.vae.network.hidden": [32]}


def make(to: Path, families: list[str], epochs: int | None = None) -> Project:
    """A project with its shards, ready to train `families`."""
    to.mkdir(parents=True)
    project = copy_project(to)
    values = {**SMALL_VAE, **LONG, "families": families}
    if epochs is not None:
        values |= {"train.epochs": epochs, "tune.search.rungs": [max(1, epochs // 8), max(2, epochs // 3)]}
    project.set(**{key.replace(".", "__"): value for key, value in values.items()})
    project.run("dvc", "repro", "shard")
    commit(project, "data")
    return project


def outputs(project: Project) -> dict[str, bytes]:
    """Path -> bytes of all that train and tune leave."""
    found = {}
    for name in OUTPUTS:
        top = project.path / name
        files = [top] if top.is_file() else sorted(path for path in top.rglob("*") if path.is_file())
        found |= {str(path.relative_to(project.path)): path.read_bytes() for path in files}
    return {**found, "dvc.lock": _by_stage(found["dvc.lock"])}


def _by_stage(lock: bytes) -> bytes:
    """The lock file with its stages by name: DVC adds those that it has not yet in the order in which it ran them.

    That order it chooses anew at each start. In a clone, whose lock has them all, they stay where they are.
    """
    return json.dumps(YAML(typ="safe").load(lock), sort_keys=True).encode()


def differences(expected: dict[str, bytes], got: dict[str, bytes]) -> list[str]:
    """Paths that are in one only, or whose bytes differ."""
    return sorted(name for name in expected.keys() | got.keys() if expected.get(name) != got.get(name))


def steps(project: Project) -> dict[str, int]:
    """Run in the store -> the step of its newest checkpoint."""
    return newest_steps(project.path / ".runs")


def newest_steps(store: Path) -> dict[str, int]:
    """Folder of each run at or below `store`, relative to it -> the step of its newest checkpoint."""
    reached: dict[str, int] = {}
    for folder in store.glob("**/checkpoints"):
        found = [int(match[1]) for entry in _listed(folder) if (match := CHECKPOINT.match(entry))]
        if found:
            reached[str(folder.parent.relative_to(store))] = max(found)
    return reached


def leftovers(project: Project) -> list[str]:
    """What no finished run leaves in the store: temporary files, and reports of failures."""
    names = [path for path in (project.path / ".runs").rglob("*") if path.is_file() or path.name.endswith(".tmp")]
    return sorted(str(p.relative_to(project.path)) for p in names if p.name == "failure.json" or ".tmp" in p.name)


def _listed(folder: Path) -> list[str]:
    try:
        return [entry.name for entry in folder.iterdir() if not entry.name.startswith(".")]
    except FileNotFoundError:  # a finished run's folder may go at any moment
        return []
