"""A user's own data: a folder of photographs through `dvc repro`, more of them later, and what goes wrong."""

from pathlib import Path

import pyarrow.parquet as pq
import pytest
from e2e_project import Project, commit, copy_project
from photographs import CLASSES, write_photographs

from pipeline import files

COUNT, DAMAGED = 1000, 20


@pytest.fixture(scope="module")
def project(tmp_path_factory: pytest.TempPathFactory) -> Project:
    """A copy of the project with a folder of photographs as its source."""
    project = copy_project(tmp_path_factory.mktemp("own data"))
    write_photographs(project.path / "photos", COUNT, DAMAGED)
    project.set(
        data__source={"kind": "image_folder", "path": "photos"},
        data__image={"size": [32, 32], "fit": "crop", "mode": "rgb"},
        data__max_bad_fraction=0.03,
        data__validation_fraction=0.1,
        families=["cvae"],
        models__cvae__likelihood="gaussian",
        train__epochs=2,
    )
    project.stage("deps")
    with (project.path / ".gitignore").open("a") as ignored:
        ignored.write("/photos\n")
    commit(project, "photographs")
    return project


def test_a_folder_of_photographs_becomes_a_trained_model(project: Project) -> None:
    printed = project.run("dvc", "repro", "train@cvae")
    facts = files.read_json(project.path / "data/dataset.json")
    ledger = pq.read_table(project.path / "data/quarantine.parquet").to_pylist()
    assert f"{DAMAGED} of {COUNT:,} rows quarantined" in printed
    assert (facts["rows_in"], facts["rows_prepared"], len(ledger)) == (COUNT, COUNT - DAMAGED, DAMAGED)
    assert facts["classes"] == sorted(CLASSES)
    assert facts["image"] == {"height": 32, "width": 32, "channels": 3}
    assert {row["error"] for row in ledger} == {"undecodable", "truncated"}
    assert all(Path(project.path, "photos", row["id"]).is_file() for row in ledger)
    assert (project.path / "models/cvae/baseline/model.safetensors").exists()


def test_new_photographs_are_noticed(project: Project) -> None:
    assert "ingest:" not in project.run("dvc", "status", "ingest")
    extra = project.path / "photos" / CLASSES[0] / "new one.png"
    write_photographs(project.path / "more", 1, 0)
    (new,) = (project.path / "more").rglob("*.*g")
    extra.write_bytes(new.read_bytes())
    assert "photos" in project.run("dvc", "status", "ingest")
    extra.unlink()


def test_the_check_says_when_dvc_would_not_see_new_files(project: Project) -> None:
    (project.path / "elsewhere").mkdir()
    project.set(data__source__path="elsewhere")
    printed = project.stage("check", code=1)
    project.set(data__source__path="photos")
    assert printed == (
        "error: dvc.yaml: the stage ingest does not depend on elsewhere, so DVC would not see new files there; "
        "run `python -m pipeline deps`\n"
    )


@pytest.mark.parametrize(
    ("path", "why"),
    [("fotos", "no such file or folder; correct it in params.yaml"),
     (".", "the pipeline writes there; name a folder of its own"),
     ("data", "the pipeline writes there; name a folder of its own")],
)  # fmt: skip
def test_a_path_that_cannot_be_a_source_is_refused_before_dvc_sees_it(project: Project, path: str, why: str) -> None:
    project.set(data__source__path=path)
    printed = {project.stage(command, code=1) for command in ("check", "deps")}
    project.set(data__source__path="photos")
    assert printed == {f"error: data.source.path: {path}: {why}\n"}


def test_too_many_damaged_files_stop_the_stage_with_a_summary(project: Project) -> None:
    project.set(data__max_bad_fraction=0.01)
    printed = project.stage("ingest", code=1)
    project.set(data__max_bad_fraction=0.03)
    assert "data.max_bad_fraction: 20 of 1,000 rows cannot be used (undecodable " in printed
    assert "; such as " in printed
    assert "data/quarantine.parquet lists them" in printed
    assert "because the last ingest stopped" in project.stage("inspect")
