"""New data are found by DVC's digests, and worked on in a clone that shares all but the work tree."""

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import psutil
import pytest
from dvc_project import ROOT, environment
from retrain_project import RetrainProject

from pipeline.errors import UserError
from pipeline.retrain.child import ChildFailed
from pipeline.retrain.clone import PLACE, cloned
from pipeline.retrain.sources import Sources, look

pytestmark = pytest.mark.filterwarnings("ignore:_NoneStep:DeprecationWarning")  # of what DVC is built on

WORK = """
import sys
from pathlib import Path
from pipeline.config import load_params
from pipeline.retrain.clone import cloned
from pipeline.retrain.sources import look

home = Path.cwd()
params = load_params(home / "params.yaml")
with cloned(home, sys.argv[1], params, look(home, params, ("vae",))) as clone:
    clone.dvc("repro", "ingest")
"""


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> RetrainProject:
    return RetrainProject.make(tmp_path_factory.mktemp("to retrain"))


@pytest.fixture
def project(made: RetrainProject, monkeypatch: pytest.MonkeyPatch) -> Iterator[RetrainProject]:
    """The project, which each test leaves as it found it."""
    monkeypatch.setenv("RAN", str(made.tiny.ran_file))
    made.tiny.ran()
    yield made
    made.bring("1\n")
    (made.path / "kept.npz").write_text("kept\n")
    assert made.tiny.git("status", "--porcelain") == ""


def seen(project: RetrainProject) -> Sources:
    return look(project.path, project.params, ("vae",))


def test_what_dvc_lock_has_is_nothing_new(project: RetrainProject) -> None:
    found = seen(project)
    assert not found.is_new
    assert set(found.now) == {"incoming/images.npz", "kept.npz", "../elsewhere"}
    assert found.said() == "nothing new: ../elsewhere, incoming/images.npz, kept.npz as dvc.lock has it"
    assert Sources({}, {}, frozenset(), ()).said().startswith("nothing new: the source is a published set")


def test_other_content_is_new_and_the_same_content_again_is_not(project: RetrainProject) -> None:
    before = seen(project)
    project.bring("2\n")
    found = seen(project)
    assert found.changed == ["incoming/images.npz"]
    assert found.said() == "new data: incoming/images.npz changed since dvc.lock"
    assert found.digest != before.digest
    project.bring("1\n")
    assert seen(project) == before


def test_a_family_that_was_not_trained_on_these_data_is_behind(project: RetrainProject) -> None:
    found = look(project.path, project.params, ("vae", "vqvae"))
    assert (found.changed, found.behind, found.is_new) == ([], ("vqvae",), True)
    assert found.said() == "vqvae: not trained on the data that dvc.lock has"


def test_data_kept_by_dvc_are_known_when_they_are_not_here_and_refused_when_they_are_others(
    project: RetrainProject,
) -> None:
    (project.path / "kept.npz").unlink()
    assert not seen(project).is_new
    (project.path / "kept.npz").write_text("other\n")
    with pytest.raises(UserError, match=r"kept.npz: not what kept.npz.dvc has; `dvc add kept.npz`, and commit"):
        seen(project)


def test_a_source_that_is_missing_is_named(project: RetrainProject) -> None:
    (project.path / "incoming/images.npz").unlink()
    with pytest.raises(UserError, match=r"data.source.path: incoming/images.npz: no such file or folder"):
        seen(project)


def test_a_source_that_dvc_does_not_watch_is_named(project: RetrainProject) -> None:
    path = project.path / "dvc.yaml"
    text = path.read_text()
    path.write_text(text.replace("      - kept.npz\n", ""))
    try:
        with pytest.raises(UserError, match=r"does not depend on kept.npz, .*run `python -m pipeline deps`"):
            seen(project)
    finally:
        path.write_text(text)


def test_the_clone_has_every_source_cache_and_store_and_leaves_nothing(project: RetrainProject) -> None:
    project.bring("2\n")
    head, sources = project.tiny.git("rev-parse", "HEAD"), seen(project)
    with cloned(project.path, head, project.params, sources) as clone:
        clone.dvc("repro", *clone.pulling, "shard")
        assert (clone.root / "data/shards/all").read_text() == "2\nkept\na\n"
        assert clone.remote
        clone.check_data(sources)
        clone.dvc("push", "-q", "shard")
        assert json.loads(clone.env["PIPELINE_COMPUTE"])["storage"] == str(project.path / ".runs")
        assert clone.git("status", "--porcelain").split() == ["M", "dvc.lock"]
        assert (clone.root / ".dvc/config.local").stat().st_mode & 0o77 == 0
        project.bring("3\n")
        with pytest.raises(UserError, match=r"incoming/images.npz: changed while it was read; run the same command"):
            clone.check_data(seen(project))
        folder = clone.root
    assert not folder.exists()
    assert list((project.path.parent / "store").rglob("*.dir")), "pushed to the remote of the project"
    assert project.tiny.ran() == ["ingest"]

    project.bring("2\n")
    with cloned(project.path, head, project.params, seen(project)) as clone:
        clone.dvc("repro", "shard")
    assert project.tiny.ran() == [], "the run-cache has it"
    project.bring("1\n")
    assert json.loads(project.tiny.dvc("status", "--json")) == {}


@pytest.mark.parametrize(
    ("text", "code", "complaints"),
    [("bad\n", 1, ("data.max_bad_fraction: bad rows",)), ("full\n", 5, ("the disk is full",))],
)
def test_a_stage_that_fails_gives_its_code_and_what_it_said(
    project: RetrainProject, text: str, code: int, complaints: tuple[str, ...]
) -> None:
    project.bring(text)
    with (
        cloned(project.path, project.tiny.git("rev-parse", "HEAD"), project.params, seen(project)) as clone,
        pytest.raises(ChildFailed) as raised,
    ):
        clone.dvc("repro", "ingest")
    assert (raised.value.code, raised.value.complaints) == (code, complaints)
    assert complaints[0] in str(raised.value)


@pytest.mark.parametrize("number", [signal.SIGKILL, signal.SIGTERM])
def test_when_it_is_killed_dvc_ends_with_it(project: RetrainProject, number: int) -> None:
    """The stage here is a shell; those of the project watch the DVC that started them."""
    project.bring("slow\n")
    slow = Path(f"{project.tiny.ran_file}.slow")
    env = environment() | {"RAN": str(project.tiny.ran_file), "PYTHONPATH": str(ROOT)}
    head = project.tiny.git("rev-parse", "HEAD")
    running = subprocess.Popen([sys.executable, "-c", WORK, head], cwd=project.path, env=env, stderr=subprocess.DEVNULL)
    deadline = time.monotonic() + 120
    while not slow.exists():
        assert time.monotonic() < deadline
        time.sleep(0.05)
    slow.unlink()
    children = psutil.Process(running.pid).children(recursive=True)
    dvc = [child for child in children if "dvc" in child.cmdline()]
    assert dvc
    os.kill(running.pid, number)
    running.wait()
    assert psutil.wait_procs(dvc, timeout=120)[1] == []
    for child in psutil.wait_procs(children, timeout=0)[1]:
        child.kill()
    project.bring("1\n")
    with cloned(project.path, head, project.params, seen(project)):
        assert [path.name for path in (project.path / PLACE).glob("clone*")] == ["clone"]
