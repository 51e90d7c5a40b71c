"""The tiny project with an origin and a DVC remote, from which jobs are submitted, and a head that runs them."""

import json
import os
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path

from dvc_project import TinyProject, environment

from pipeline.jobs.command import Command
from pipeline.jobs.source import Source
from pipeline.jobs.spec import Job

FAILING, WAITING = 13, 60  # as train.epochs: the stage fails with code 3; it sleeps
DVC_YAML = """\
stages:
  shard:
    cmd: sh stage.sh shard
    deps: [stage.sh]
    outs: [data/shards]
  train:
    cmd: sh stage.sh train
    deps: [data/shards, stage.sh]
    params: [models.vae, train]
    outs: [models/vae]
    metrics:
      - results/metrics.json:
          cache: false
"""
STAGE = f"""\
echo "$1" >> "$RAN"
if [ "$1" = shard ]; then mkdir -p data/shards && echo images > data/shards/a; exit; fi
if grep -q 'epochs: {FAILING}' params.yaml && [ ! -e "$MENDED" ]; then exit 3; fi
if grep -q 'epochs: {WAITING}' params.yaml; then echo asleep; sleep 300; fi
mkdir -p models/vae results
echo weights > models/vae/model
echo '{{"test_loss": 8.0}}' > results/metrics.json
"""
FAIL, WAIT = f"train.epochs={FAILING}", f"train.epochs={WAITING}"


@dataclass(frozen=True)
class Submitter:
    """A project whose commit is at origin, and the folder of a head that is this machine."""

    project: TinyProject
    origin: Path
    remote: Path
    head: Path

    @classmethod
    def make(cls, folder: Path, params: str) -> "Submitter":
        project = TinyProject.make(folder / "project")
        origin, remote = folder / "origin.git", folder / "remote"
        project.git("init", "-q", "--bare", "-b", "main", str(origin))
        project.git("remote", "add", "origin", str(origin))
        (project.path / "params.yaml").write_text(params)
        (project.path / "stage.sh").write_text(STAGE)
        (project.path / "dvc.yaml").write_text(DVC_YAML)
        (project.path / ".dvc" / "config").write_text(
            f"[core]\n    analytics = false\n    remote = store\n['remote \"store\"']\n    url = {remote}\n"
        )
        submitter = cls(project, origin, remote, folder / "head")
        submitter.push("project")
        return submitter

    def push(self, message: str) -> None:
        self.project.commit(message)
        self.project.git("push", "-q", "origin", "HEAD:main")

    def job(self, *command: str, dirty: bool = False, name: str | None = None) -> Job:
        source = Source.of(self.project.path, dirty=dirty)
        return Job.of(source, Command.of(command), {"address": "auto"}, name)

    @property
    def environment(self) -> dict[str, str]:
        """Of the head: its own folders, and nobody's Git configuration."""
        own = {"VAE_PIPELINE_HOME": str(self.head), "RAN": str(self.project.ran_file)}
        own["MENDED"] = str(self.head.parent / "mended")
        env = {name: value for name, value in environment().items() if name != "PYTHONPATH"}
        return env | own | {"PATH": f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}"}

    def start(self, job: Job) -> subprocess.Popen[str]:
        """Run the job as the head does, without Ray."""
        sent = self.head.parent / "sent" / job.id
        if not sent.exists():
            sent.mkdir(parents=True)
            job.write(sent)
        return subprocess.Popen(
            [sys.executable, "-m", "head"], cwd=sent, env=self.environment, text=True, stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE, stderr=subprocess.STDOUT, start_new_session=True,
        )  # fmt: skip

    def run(self, job: Job, code: int = 0) -> str:
        """What the job prints; it must end with `code`."""
        process = self.start(job)
        printed, _ = process.communicate(timeout=120)
        assert process.returncode == code, f"ended with {process.returncode}:\n{printed}"
        return printed

    def clone(self, job: Job) -> Path:
        return self.clone_of(job.id)

    def clone_of(self, id: str) -> Path:
        return self.head / "jobs" / id / "clone"

    def at_origin(self) -> set[str]:
        """Names of the experiments there."""
        listed = self.project.git("ls-remote", str(self.origin), "refs/exps/*")
        return {line.rsplit("/", 1)[1] for line in listed.splitlines()}

    def shown(self, name: str) -> dict[str, str]:
        """What `dvc exp show` shows of an experiment at home, after it was pulled."""
        self.project.dvc("exp", "pull", "origin", name)
        return self.project.shown("-n", "1")[name]

    def described(self, job: Job) -> dict[str, object]:
        """The job.json that the head keeps."""
        kept: dict[str, object] = json.loads((self.clone(job).parent / "job.json").read_text())
        return kept
