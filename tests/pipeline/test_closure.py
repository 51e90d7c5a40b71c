"""What a stage depends on: the imports that are written down are those that happen."""

import ast
import json
import os
import subprocess
import sys
from collections.abc import Mapping
from pathlib import Path

import pytest

from pipeline import closure as module
from pipeline.closure import PACKAGES, ROOT, closure, code_fingerprint
from pipeline.operate.deps import modules

STAGES = [path.stem for path in sorted((ROOT / "pipeline" / "stages").glob("[a-z]*.py"))]


@pytest.fixture
def project(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A project of a few modules, in which `pipeline.a` is where a test starts."""
    contents = {
        "pipeline/__init__.py": "",
        "pipeline/a.py": "import os\nfrom pipeline import b\ndef f():\n    from pipeline.lazy.c import g\n",
        "pipeline/b.py": "import vae_core.d as d\nif d:\n    from pipeline.a import f\n",
        "pipeline/lazy/__init__.py": "",
        "pipeline/lazy/c.py": "g = 1\n",
        "pipeline/lazy/page.html": "<html>",
        "pipeline/lazy/notes.txt": "",
        "pipeline/lazy/other.py": "",
        "pipeline/unused.py": "import pipeline.a\n",
        "vae_core/__init__.py": "from vae_core.e import x",
        "vae_core/d.py": "",
        "vae_core/e.py": "x = 1",
    }
    for name, text in contents.items():
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_text(text)
    monkeypatch.setattr(module, "ROOT", tmp_path)
    closure.cache_clear()
    yield tmp_path
    closure.cache_clear()


def test_imports_of_every_form_are_followed(project: Path) -> None:
    assert closure("pipeline.a") == (
        "pipeline/__init__.py", "pipeline/a.py", "pipeline/b.py", "pipeline/lazy/__init__.py", "pipeline/lazy/c.py",
        "pipeline/lazy/page.html", "vae_core/__init__.py", "vae_core/d.py", "vae_core/e.py")  # fmt: skip
    assert "pipeline/unused.py" in closure("pipeline.unused")


def test_a_name_that_is_no_module_adds_nothing(project: Path) -> None:
    assert closure("pipeline.lazy.c.g") == closure("pipeline.lazy.c")
    assert closure("pipeline.absent") == ("pipeline/__init__.py",)


@pytest.mark.parametrize(
    ("path", "changes"),
    [("pipeline/lazy/c.py", True), ("pipeline/lazy/page.html", True), ("pipeline/lazy/other.py", False),
     ("pipeline/unused.py", False)],
)  # fmt: skip
def test_the_fingerprint_is_that_of_the_content(project: Path, path: str, changes: bool) -> None:
    before = code_fingerprint("pipeline.a")
    (project / path).write_text("z = 1")
    closure.cache_clear()
    assert (code_fingerprint("pipeline.a") != before) is changes


@pytest.mark.parametrize("package", PACKAGES)
def test_nothing_is_imported_relatively(package: str) -> None:
    """`closure` does not follow relative imports. What runs on a cluster's head travels as a package of its own."""
    for path in (path for path in (ROOT / package).rglob("*.py") if path.parent != ROOT / "pipeline/jobs/head"):
        imports = [n for n in ast.walk(ast.parse(path.read_text())) if isinstance(n, ast.ImportFrom)]
        assert [node.lineno for node in imports if node.level] == [], path


def test_the_models_import_nothing_of_the_pipeline() -> None:
    for path in (ROOT / "vae_core").rglob("*.py"):
        name = path.relative_to(ROOT).with_suffix("").as_posix().replace("/", ".").removesuffix(".__init__")
        assert [file for file in closure(name) if file.startswith("pipeline/")] == []


IMPORT_EACH = """
import ast, importlib, json, os, sys
import torch, matplotlib.figure, onnx, onnxruntime, pyarrow.parquet  # once, for all children
from pathlib import Path

root, stages = Path(sys.argv[1]), sys.argv[2:]

def project():
    paths = (getattr(m, "__file__", None) for m in list(sys.modules.values()))
    files = {Path(path).resolve() for path in paths if path}
    return {f for f in files if f.is_relative_to(root / "pipeline") or f.is_relative_to(root / "vae_core")}

def lazily(file):
    for function in ast.walk(ast.parse(file.read_text())):
        if isinstance(function, ast.FunctionDef):
            for node in ast.walk(function):
                if isinstance(node, ast.ImportFrom) and node.module.split(".")[0] in ("pipeline", "vae_core"):
                    yield node.module

for stage in stages:
    read, write = os.pipe()
    child = os.fork()
    if child == 0:
        importlib.import_module("pipeline.__main__")
        importlib.import_module("pipeline.stages." + stage)
        seen = set()
        while seen != project():
            new = project() - seen
            seen |= new
            for name in {name for file in new for name in lazily(file)}:
                importlib.import_module(name)
        os.write(write, json.dumps(sorted(f.relative_to(root).as_posix() for f in seen)).encode())
        os._exit(0)
    os.close(write)
    with open(read) as found:
        print(json.dumps([stage, json.load(found)]))
    os.waitpid(child, 0)
"""


@pytest.fixture(scope="module")
def loaded() -> Mapping[str, list[str]]:
    """The project's files that Python loads for each stage, imports inside functions included."""
    done = subprocess.run(
        [sys.executable, "-W", "ignore", "-c", IMPORT_EACH, str(ROOT), *STAGES],
        cwd=ROOT, check=True, text=True, capture_output=True, env={**os.environ, "MPLBACKEND": "agg"},
    )  # fmt: skip
    return dict(json.loads(line) for line in done.stdout.splitlines())


@pytest.mark.parametrize("stage", STAGES)
def test_a_stage_loads_exactly_the_modules_it_depends_on(loaded: Mapping[str, list[str]], stage: str) -> None:
    assert loaded[stage] == [path for path in modules(stage) if path.endswith(".py")]


def test_stages_that_train_nothing_do_not_depend_on_the_training_loop() -> None:
    with_loop = [stage for stage in STAGES if "pipeline/train/loop.py" in modules(stage)]
    assert with_loop == ["train", "tune"]
