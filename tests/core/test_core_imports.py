"""vae_core stands alone: it needs torch, numpy and safetensors, and does nothing when imported."""

import ast
import json
import pkgutil
import subprocess
import sys
from pathlib import Path

import pytest

import vae_core

ROOT = Path(vae_core.__file__).parents[1]
FORBIDDEN = ("ray", "dvc", "webdataset", "pyarrow", "pydantic", "yaml", "ruamel", "pipeline", "sklearn", "matplotlib")
ALLOWED = {"vae_core", "torch", "numpy", "safetensors", *sys.stdlib_module_names}

PROGRAM = """
import json, random, sys
import numpy as np, torch
before = torch.get_rng_state(), np.random.get_state()[1].tolist(), random.getstate(), torch.get_num_threads()
for name in json.loads(sys.argv[1]):
    __import__(name)
after = torch.get_rng_state(), np.random.get_state()[1].tolist(), random.getstate(), torch.get_num_threads()
untouched = bool(torch.equal(before[0], after[0])) and before[1:] == after[1:]
print(json.dumps({"roots": sorted({name.split(".")[0] for name in sys.modules}), "untouched": untouched}))
"""


@pytest.fixture(scope="module")
def fresh_import() -> dict[str, object]:
    """What a new interpreter holds after importing every module of vae_core."""
    found = pkgutil.walk_packages(vae_core.__path__, "vae_core.")
    names = ["vae_core", *(module.name for module in found)]
    assert "vae_core.metrics.likelihood" in names
    command = [sys.executable, "-c", PROGRAM, json.dumps(names)]
    done = subprocess.run(command, capture_output=True, text=True, check=True, cwd=ROOT)
    assert done.stderr == ""
    result: dict[str, object] = json.loads(done.stdout)
    return result


def test_importing_every_module_brings_in_no_pipeline_library(fresh_import: dict[str, object]) -> None:
    roots = fresh_import["roots"]
    assert isinstance(roots, list)
    assert "vae_core" in roots
    assert [name for name in FORBIDDEN if name in roots] == []


def test_importing_leaves_global_generators_and_threads_alone(fresh_import: dict[str, object]) -> None:
    assert fresh_import["untouched"] is True


def imported(file: Path) -> set[str]:
    """The packages that a file imports anywhere in it, by their first names."""
    found = set()
    for node in ast.walk(ast.parse(file.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            found |= {alias.name.split(".")[0] for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{file} imports relatively"
            found.add(str(node.module).split(".")[0])
    return found


def test_no_module_imports_anything_but_torch_numpy_safetensors_and_the_standard_library() -> None:
    files = sorted((ROOT / "vae_core").rglob("*.py"))
    assert len(files) > 40
    assert {str(file): sorted(other) for file in files if (other := imported(file) - ALLOWED)} == {}


def test_the_configuration_needs_no_torch() -> None:
    files = sorted((ROOT / "vae_core" / "config").glob("*.py"))
    assert files
    assert [file.name for file in files if imported(file) & {"torch", "numpy", "safetensors"}] == []


def test_no_module_reads_a_global_generator_or_pickles() -> None:
    for file in (ROOT / "vae_core").rglob("*.py"):
        assert not imported(file) & {"random", "pickle", "shelve", "marshal"}, file
        text = file.read_text(encoding="utf-8")
        assert "torch.load(" not in text, file
        assert "torch.save(" not in text, file
