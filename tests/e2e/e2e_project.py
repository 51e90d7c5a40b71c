"""A small copy of the project that runs on the digits."""

import os
import shutil
import subprocess
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from ruamel.yaml import YAML

ROOT = Path(__file__).parents[2]
FAMILIES = ("cvae", "vqvae")

SMALL = {
    "data.source.kind": "digits",
    "shard.shard_bytes": 262144,
    "families": list(FAMILIES),
    "models.cvae.latent_dim": 4,
    "models.cvae.network.hidden": [32],
    "models.vqvae.num_codes": 16,
    "models.vqvae.code_dim": 4,
    "models.vqvae.network.channels": 4,
    "train.epochs": 3,
    "tune.search.trials": 2,
    "tune.search.rungs": [1],
    "evaluate.nll_samples": 5,
    "evaluate.batch_size": 64,
    "evaluate.feature_images": 200,
    "evaluate.probe_images": 500,
    "evaluate.coded_images": 20,
    "features.steps": 60,
    "prior.epochs": 1,
    "prior.network.channels": 8,
    "prior.network.layers": 2,
    "export.parity_images": 32,
}


@dataclass(frozen=True)
class Project:
    """A checkout, what its first `make repro` printed, and where Ray kept its sessions then."""

    path: Path
    printed: str = ""
    ray: Path | None = None

    def run(self, *command: str, code: int = 0, env: dict[str, str] | None = None) -> str:
        """Standard output and error of a command, which must end with `code`."""
        done = subprocess.run(
            command, cwd=self.path, env=environment(self.path) | (env or {}), text=True, timeout=1500,
            stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, check=False,
        )  # fmt: skip
        assert done.returncode == code, f"{command} ended with {done.returncode}:\n{done.stdout}"
        return done.stdout

    def start(self, *command: str, env: dict[str, str] | None = None) -> subprocess.Popen[str]:
        """A command that runs on; `communicate` gives its standard output and error together."""
        return subprocess.Popen(
            command, cwd=self.path, env=environment(self.path) | (env or {}), text=True, stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE, stderr=subprocess.STDOUT,
        )  # fmt: skip

    def stage(self, *arguments: str, code: int = 0, env: dict[str, str] | None = None) -> str:
        return self.run("python", "-m", "pipeline", *arguments, code=code, env=env)

    def forget_runs(self) -> None:
        """Let the next command train, though it did before."""
        shutil.rmtree(self.path / ".runs", ignore_errors=True)

    def set(self, **values: object) -> None:
        """Change params.yaml; `a__b` stands for the key a.b."""
        set_params(self.path, {key.replace("__", "."): value for key, value in values.items()})

    def read(self, name: str) -> bytes:
        return (self.path / name).read_bytes()

    def contents(self, folder: str) -> dict[str, bytes]:
        """Name -> bytes of each file directly in a folder."""
        return {file.name: file.read_bytes() for file in (self.path / folder).iterdir()}


def wait_for(condition: Callable[[], object], what: str, seconds: float = 240, every: float = 0.02) -> None:
    end = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < end, f"{what} did not come in {seconds} s"
        time.sleep(every)


def environment(project: Path) -> dict[str, str]:
    """A stranger's: no variable of this test run, the project's own environment first on PATH."""
    dropped = ("PYTEST", "COV_", "RAY_", "DVC_", "VIRTUAL_ENV", "PYTHONPATH", "OMP_", "AWS_")
    kept = {name: value for name, value in os.environ.items() if not name.startswith(dropped)}
    identity = {
        f"GIT_{who}_{what}": "test@example.org" for who in ("AUTHOR", "COMMITTER") for what in ("NAME", "EMAIL")
    }
    return kept | identity | {"PATH": f"{project / '.venv' / 'bin'}{os.pathsep}{os.environ['PATH']}"}


def set_params(project: Path, values: dict[str, object]) -> None:
    yaml, path = YAML(), project / "params.yaml"
    params = yaml.load(path.read_text())
    for key, value in values.items():
        node = params
        *parents, leaf = key.split(".")
        for part in parents:
            node = node[part]
        node[leaf] = value
    with path.open("w") as file:
        yaml.dump(params, file)


def copy_project(to: Path) -> Project:
    """The files that Git knows or would add, without the committed results, as a repository of its own."""
    listed = ["git", "ls-files", "-z", "--cached", "--others", "--exclude-standard"]
    names = subprocess.run(listed, cwd=ROOT, capture_output=True, text=True, check=True).stdout
    for name in filter(None, names.split("\0")):
        if not name.startswith(("results/", "tests/", "dvc.lock")) and (ROOT / name).is_file():
            (to / name).parent.mkdir(parents=True, exist_ok=True)
            shutil.copy(ROOT / name, to / name)
    _lend_environment(to)
    set_params(to, SMALL)
    project = Project(to)
    project.run("git", "init", "-q", "-b", "main")
    commit(project, "start")
    return project


def twin(project: Project, to: Path) -> Project:
    """The same in another folder, with a DVC cache and a store of runs of its own."""
    shutil.copytree(project.path, to, symlinks=True)
    return Project(to)


def commit(project: Project, message: str) -> None:
    project.run("git", "add", "-A")
    project.run("git", "commit", "-q", "-m", message)


def _lend_environment(to: Path) -> None:
    """The environment that runs these tests, as the copy's `.venv`, so that `make` need not install again."""
    venv = to / ".venv"
    venv.mkdir()
    for name in ("bin", "lib"):
        (venv / name).symlink_to(Path(sys.prefix) / name)
    shutil.copy(Path(sys.prefix) / "pyvenv.cfg", venv)
    for name in ("installed", "tested"):
        (venv / name).touch()
    for name in ("pyproject.toml", "constraints.txt"):
        os.utime(to / name, (0, 0))
