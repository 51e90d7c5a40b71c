"""A tiny real project in Git and DVC with the stages of a family, whose commands are a few lines of shell."""

import csv
import io
import os
import subprocess
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

ROOT = Path(__file__).parents[2]

DVC_YAML = """\
stages:
  shard:
    cmd: mkdir -p data/shards && echo images > data/shards/a
    outs:
      - data/shards
  train:
    matrix:
      family: ${families}
    cmd: sh stage.sh train ${item.family}
    deps:
      - data/shards
      - stage.sh
    params:
      - models.${item.family}
      - train
    outs:
      - models/${item.family}/baseline
    metrics:
      - results/train/${item.family}/metrics.json:
          cache: false
    plots:
      - results/train/${item.family}/curves.tsv:
          cache: false
          x: epoch
          y: loss
  tune:
    matrix:
      family: ${families}
    cmd: sh stage.sh tune ${item.family}
    deps:
      - data/shards
      - models/${item.family}/baseline
      - stage.sh
    params:
      - models.${item.family}
      - train
    outs:
      - models/${item.family}/best
    plots:
      - results/tune/${item.family}/trials.csv:
          cache: false
          x: trial
          y: loss
  evaluate:
    matrix:
      family: ${families}
    cmd: sh stage.sh evaluate ${item.family}
    deps:
      - models/${item.family}/best
      - models/${item.family}/baseline
    metrics:
      - results/evaluate/${item.family}.json:
          cache: false
    outs:
      - results/evaluate/${item.family}
"""

PARAMS = """\
families: [vae, other]    # two
models:
  vae: {beta: 1.0, size: 4}   # of a family
  other: {beta: 2.0}
train:
  epochs: 3
"""

STAGE_SH = """\
echo "$1@$2" >> "$RAN"
case "$1" in
  train)
    mkdir -p "models/$2/baseline" "results/train/$2"
    echo "baseline of $2" > "models/$2/baseline/model"
    echo '{"val_loss": 9.0}' > "results/train/$2/metrics.json"
    printf 'epoch\\tloss\\n1\\t9.0\\n' > "results/train/$2/curves.tsv";;
  tune)
    mkdir -p "models/$2/best" "results/tune/$2"
    echo "best of $2" > "models/$2/best/model"
    printf 'trial,loss\\nbaseline,9.0\\n' > "results/tune/$2/trials.csv"
    if [ -n "$PUBLISH" ]; then "$PYTHON" "$PUBLISH" "$2"; fi;;
  evaluate)
    mkdir -p "results/evaluate/$2"
    cat "models/$2/baseline/model" > "results/evaluate/$2/picture"
    echo '{"test_loss": 8.0}' > "results/evaluate/$2.json";;
esac
"""

IGNORED = "/data/\n/models/\n/results/evaluate/*/\n"


@dataclass(frozen=True)
class TinyProject:
    """The project, and a file with the stages that ran."""

    path: Path
    ran_file: Path

    @classmethod
    def make(cls, path: Path, top: Path | None = None) -> "TinyProject":
        """A project in `path`, of a repository in `top`, with one commit; no stage has run."""
        path.mkdir(parents=True, exist_ok=True)
        files = {"dvc.yaml": DVC_YAML, "params.yaml": PARAMS, "stage.sh": STAGE_SH, ".gitignore": IGNORED}
        for name, text in files.items():
            (path / name).write_text(text)
        project = cls(path, path.parent / f"{path.name}-ran")
        project.run("git", "init", "-q", "-b", "main", str(top or path))
        project.run("git", "config", "user.name", "A. User")
        project.run("git", "config", "user.email", "user@example.org")
        project.dvc("init", "-q", *(["--subdir"] if top else []))
        project.dvc("config", "core.analytics", "false")
        project.commit("start")
        return project

    def run(self, *command: str, code: int = 0, **env: str) -> str:
        """Standard output and error of a command, which must end with `code`."""
        done = subprocess.run(
            command, cwd=self.path, env=environment() | {"RAN": str(self.ran_file)} | env, text=True, timeout=300,
            stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, check=False,
        )  # fmt: skip
        assert done.returncode == code, f"{command} ended with {done.returncode}:\n{done.stdout}"
        return done.stdout

    def dvc(self, *arguments: str, code: int = 0, **env: str) -> str:
        return self.run(sys.executable, "-m", "dvc", *arguments, code=code, **env)

    def git(self, *arguments: str) -> str:
        return self.run("git", *arguments).strip()

    def commit(self, message: str) -> None:
        self.git("add", "-A")
        self.git("commit", "-q", "-m", message)

    def ran(self) -> list[str]:
        """The stages that ran since the last call, in alphabetical order."""
        names = sorted(self.ran_file.read_text().split()) if self.ran_file.exists() else []
        self.ran_file.unlink(missing_ok=True)
        return names

    def experiments(self) -> dict[str, str]:
        """Name of each experiment on any commit -> its commit."""
        listed = self.git("for-each-ref", "--format=%(refname) %(objectname)", "refs/exps")
        rows = [line.split() for line in listed.splitlines() if not line.startswith("refs/exps/exec")]
        return {ref.rsplit("/", 1)[1]: commit for ref, commit in rows}

    def shown(self, *options: str) -> dict[str, dict[str, str]]:
        """What `dvc exp show` shows of each experiment."""
        rows = csv.DictReader(io.StringIO(self.dvc("exp", "show", "--csv", *options)))
        return {row["Experiment"]: row for row in rows if row["Experiment"]}


def environment() -> dict[str, str]:
    """Without variables of this test run, of Git's or DVC's, and without a user's configuration."""
    dropped = ("PYTEST", "COV_", "RAY_", "DVC_", "GIT_")
    kept: Sequence[tuple[str, str]] = [(k, v) for k, v in os.environ.items() if not k.startswith(dropped)]
    own = {"PYTHONPATH": str(ROOT), "PYTHON": sys.executable, "GIT_CONFIG_GLOBAL": os.devnull, "LC_ALL": "C.UTF-8"}
    return dict(kept) | own | {"GIT_CONFIG_SYSTEM": os.devnull}
