"""After a whole run on a machine that holds secrets, none of them is in anything that the run left or said."""

import json
from pathlib import Path

import numpy as np
import onnx
import planted
import pytest
from e2e_project import FAMILIES, Project
from onnx import numpy_helper

EXPECTED = (
    "params.yaml",
    "dvc.lock",
    "models",
    "results",
    "artifacts",
    "report",
    ".runs",
    "data",
    ".dvc/cache",
    ".git",
)


def holding(files: list[Path]) -> list[str]:
    """Those of the files that hold one of the secrets."""
    return [str(path) for path in files if any(secret.encode() in path.read_bytes() for secret in planted.EVERY)]


def files_of(folder: Path) -> list[Path]:
    return [path for path in folder.rglob("*") if path.is_file() and ".venv" not in path.relative_to(folder).parts]


def test_the_run_had_the_secrets(reproduced: Project) -> None:
    """Else the other tests could not fail."""
    assert sorted(holding([reproduced.path / name for name in planted.HOLDERS])) == sorted(
        str(reproduced.path / name) for name in planted.HOLDERS
    )
    assert len(set(planted.EVERY)) == len(planted.EVERY) == 8


def test_nothing_that_was_printed_holds_a_secret(reproduced: Project) -> None:
    assert "error" not in reproduced.printed.lower().replace("standard error", "")
    assert not [secret for secret in planted.EVERY if secret in reproduced.printed]


def test_no_file_of_the_project_holds_a_secret(reproduced: Project) -> None:
    files = files_of(reproduced.path)
    there = {path.relative_to(reproduced.path).as_posix() for path in files}
    assert all(any(name == each or name.startswith(f"{each}/") for name in there) for each in EXPECTED)
    assert sorted(holding(files)) == sorted(str(reproduced.path / name) for name in planted.HOLDERS)


def test_no_object_of_git_holds_a_secret(reproduced: Project) -> None:
    """Commits, experiments and whatever was ever added, not packed but as it is."""
    everything = reproduced.run(
        "sh", "-c", "git cat-file --batch-all-objects --batch --buffer | tr -c '[:print:]' '[\\n*]'; git for-each-ref"
    )
    assert "refs/exps/" in everything
    assert "nll_samples" in everything
    assert not [secret for secret in planted.EVERY if secret in everything]


def test_no_log_of_ray_holds_a_secret(reproduced: Project) -> None:
    assert reproduced.ray is not None
    logs = [path for path in files_of(reproduced.ray) if "session_" in str(path)]
    assert any("raylet" in path.name for path in logs)
    assert any("worker" in path.name for path in logs)
    assert holding(logs) == []


@pytest.mark.parametrize("family", FAMILIES)
def test_exported_networks_are_one_file_of_standard_operators(reproduced: Project, family: str) -> None:
    """So nothing but the file itself is read, and no code of ours or anyone's is needed."""
    for path in (reproduced.path / "artifacts" / family).glob("*.onnx"):
        proto = onnx.load(path, load_external_data=False)
        assert {entry.domain for entry in proto.opset_import} <= {"", "pkg.onnxscript.torch_lib.common"}
        assert {node.domain for node in proto.graph.node} <= {""}
        for tensor in proto.graph.initializer:
            assert tensor.data_location == onnx.TensorProto.DEFAULT
            assert np.isfinite(numpy_helper.to_array(tensor).astype(np.float64)).all()
    described = json.loads(reproduced.read(f"artifacts/{family}/config.json"))
    assert described["lineage"].keys() == {"data", "params", "code"}
