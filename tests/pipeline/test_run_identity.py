"""A run's name: it follows from parameters, data and code, and from nothing else."""

import dataclasses
import json
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest

from pipeline import closure
from pipeline.closure import ROOT, code_fingerprint
from pipeline.data.index import read_manifest, write_manifest
from pipeline.train.config import ComputeConfig
from pipeline.train.folders import DiskFolder
from pipeline.train.run import LOOP, TrainRun
from vae_core.config import MLPConfig, ModelConfig, RampConfig, VAEConfig, model_from_dict


def test_equal_runs_have_one_name(make_run: Callable[..., TrainRun]) -> None:
    assert make_run().name == make_run().name
    assert len(make_run().name) == 16


def test_the_name_changes_with_every_key_of_model_and_training(make_run: Callable[..., TrainRun]) -> None:
    base = make_run()
    model = VAEConfig(kind="vae", latent_dim=4, network=MLPConfig(kind="mlp", hidden=(32,)))
    assert make_run(model).name == base.name
    models: list[ModelConfig] = [
        dataclasses.replace(model, latent_dim=5),
        dataclasses.replace(model, beta=1.5),
        dataclasses.replace(model, beta=RampConfig(kind="linear", start=0.0, end=1.0)),
        dataclasses.replace(model, beta=RampConfig(kind="cosine", start=0.0, end=1.0)),
        dataclasses.replace(model, free_bits=0.1),
        dataclasses.replace(model, likelihood="gaussian"),
        dataclasses.replace(model, condition="label"),
        dataclasses.replace(model, network=MLPConfig(kind="mlp", hidden=(33,))),
        dataclasses.replace(model, network=MLPConfig(kind="mlp", hidden=(32,), activation="tanh")),
    ]
    train = {field.name: getattr(base.train, field.name) for field in dataclasses.fields(base.train)}
    others = {"learning_rate": 0.002, "precision": "bf16", "compile": "on"}
    changed = [
        make_run(**{name: others.get(name) or value + (1 if isinstance(value, int) else 0.1)})
        for name, value in train.items()
    ]
    names = {run.name for run in (base, *map(make_run, models), *changed)}
    assert len(names) == 1 + len(models) + len(train)


def test_the_name_does_not_depend_on_where_the_shards_are(
    shards: Path, tmp_path: Path, make_run: Callable[..., TrainRun], monkeypatch: pytest.MonkeyPatch
) -> None:
    moved = Path(shutil.copytree(shards, tmp_path / "shards"))
    assert make_run(folder=moved).name == make_run().name
    monkeypatch.chdir(tmp_path)
    relative = make_run(folder=Path("shards"))
    assert relative.shards == moved, "workers have other working directories"
    assert relative.name == make_run().name


def test_the_name_changes_with_the_data(shards: Path, tmp_path: Path, make_run: Callable[..., TrainRun]) -> None:
    manifest = read_manifest(shards)
    first, *others = manifest.shards
    changed = dataclasses.replace(manifest, shards=(dataclasses.replace(first, sha256="0" * 64), *others))
    write_manifest(tmp_path, changed)
    assert make_run(folder=tmp_path).data != make_run().data
    assert make_run(folder=tmp_path).name != make_run().name


def test_nothing_else_decides_a_run() -> None:
    assert [field.name for field in dataclasses.fields(TrainRun)] == ["model", "train", "reading", "data", "code"]


@pytest.fixture
def project(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A copy of the project's code that a test may change."""
    for package in closure.PACKAGES:
        shutil.copytree(ROOT / package, tmp_path / package, ignore=shutil.ignore_patterns("__pycache__"))
    monkeypatch.setattr(closure, "ROOT", tmp_path)
    return tmp_path


@pytest.mark.parametrize(
    ("path", "changes"),
    [
        ("pipeline/train/loop.py", True),
        ("pipeline/data/order.py", True),
        ("vae_core/__init__.py", True),
        ("vae_core/noise.py", True),
        ("pipeline/tune/search.py", False),
        ("pipeline/report/page.py", False),
        ("pipeline/evaluate/metrics.py", False),
    ],
)
def test_the_code_is_that_of_the_training_loop(project: Path, path: str, changes: bool) -> None:
    before = code_fingerprint(LOOP)
    (project / path).write_text((project / path).read_text() + "# changed\n")
    assert (code_fingerprint(LOOP) != before) is changes


def test_lineage_names_what_decides_the_run(make_run: Callable[..., TrainRun]) -> None:
    run = make_run()
    assert run.lineage == {"data": run.data, "params": run.params, "code": code_fingerprint(LOOP)}
    assert make_run(folder=run.shards, seed=1).params != run.params


def test_a_folder_is_named_by_family_kind_and_identity(make_run: Callable[..., TrainRun]) -> None:
    run = make_run("vae")
    assert run.folder_name("cvae") == f"cvae-{run.name}"
    assert run.folder_name("vae", "trial") == f"vae-trial-{run.name}"


def test_the_folder_is_below_compute_storage(
    make_run: Callable[..., TrainRun], make_compute: Callable[..., ComputeConfig], tmp_path: Path
) -> None:
    run = make_run("vae")
    assert run.folder("vae", make_compute()) == DiskFolder(tmp_path / run.folder_name("vae"))
    elsewhere = run.folder("vae", make_compute(storage="memory://store"), "trial")
    assert elsewhere.location == f"memory://store/{run.folder_name('vae', 'trial')}"


def test_a_run_is_described_by_all_that_it_follows_from(make_run: Callable[..., TrainRun]) -> None:
    run = make_run("vae", seed=3)
    described = json.loads(json.dumps(run.described))
    assert {name: described[name] for name in run.lineage} == run.lineage
    assert described["train"]["seed"] == 3
    assert model_from_dict(described["model"]) == run.model
    assert described["steps_per_epoch"] == 10
    assert make_run("vae", seed=4).described != run.described


def test_where_a_run_is_kept_changes_nothing_of_it(
    make_run: Callable[..., TrainRun], make_compute: Callable[..., ComputeConfig], shards: Path
) -> None:
    run = make_run("vae")
    for compute in (make_compute(), make_compute(storage="memory://store"), make_compute(workers=2, keep_runs=1)):
        placed = TrainRun.of(run.model, run.train, shards, compute)
        assert (placed.name, placed.described) == (run.name, run.described)
