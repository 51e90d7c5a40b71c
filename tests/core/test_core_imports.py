"""vae_core stands alone: it needs torch, numpy and safetensors, and does nothing when imported."""

import json
import pkgutil
import subprocess
import sys
from pathlib import Path

import pytest

import vae_core

ROOT = Path(vae_core.__file__).parents[1]
FORBIDDEN = ("ray", "dvc", "webdataset", "pyarrow", "pydantic", "yaml", "ruamel", "pipeline", "sklearn", "matplotlib")

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
