"""Five nights of retraining, and a morning on which one goes back: real DVC, Git, an origin and a DVC remote.

Once with training and sharding in the processes of their stages, which gives the same bytes as on Ray in half the
time, and once on Ray. Each takes minutes.
"""

import json
import re
import shutil
import signal
import subprocess
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import psutil
import pytest
from e2e_project import Project, commit, copy_project, wait_for
from ruamel.yaml import YAML
from sklearn.datasets import load_digits

from pipeline.registry.versions import champion

RETRAIN = ("python", "-m", "pipeline", "retrain")
ENV = {"OMP_NUM_THREADS": "1"}  # so small a model only waits for more threads
LIMIT_S = 1500  # of one night on a busy machine
SOURCE = "incoming/images.npz"
VALUES = {
    "data.source": {"kind": "npz", "path": SOURCE, "labels": "labels"},
    "data.max_bad_fraction": 0.01,
    "families": ["vae"],
    "models.vae.latent_dim": 4,
    "models.vae.network.hidden": [32],
    "train.epochs": 8,
    "train.global_batch_size": 32,
    "tune.spaces.vae": {},
    "retrain.drift.fewer_rows": 0.3,
    "compute.checkpoint_every_steps": 20,
    "evaluate.nll_samples": 2,
    "evaluate.probe_images": 0,
    "evaluate.feature_images": 0,
    "features.steps": 5,
}
IN_PROCESS = {  # what is added to modules of the copy
    "pipeline/data/shards.py": """

def write_shards(data: Path, config: ShardConfig, compute: ComputeConfig) -> None:
    write_here(data, config)
""",
    "pipeline/train/worker.py": """

def fit(run: TrainRun, folder: Place, compute: ComputeConfig, *, what: str, total_steps: int) -> None:
    from pipeline.train.attempts import newest_step
    from pipeline.train.loop import train

    folder = open_folder(folder)
    say(f"{what}: from step {newest_step(folder):,}")
    every = compute.checkpoint_every_steps
    train(run, folder, on_epoch=lambda epoch, figures: None, checkpoint_every_steps=every)
""",
}
IMAGES = load_digits().images.astype(np.float32) / 16
LABELS = load_digits().target


@dataclass(frozen=True)
class Nights:
    """A checkout with its origin and its DVC remote, as a server has it on which a timer retrains."""

    project: Project
    origin: Path

    @classmethod
    def make(cls, folder: Path, *, on_ray: bool) -> "Nights":
        """After the first `dvc repro`, committed and pushed; nothing is in the registry."""
        project = copy_project(folder / "project")
        for name, text in {} if on_ray else IN_PROCESS.items():
            with (project.path / name).open("a") as file:
                file.write(text)
        nights = cls(project, folder / "origin.git")
        project.set(**{key.replace(".", "__"): value for key, value in VALUES.items()})
        with (project.path / ".gitignore").open("a") as ignored:
            ignored.write("/incoming/\n")
        nights.bring(slice(900))
        project.stage("deps")
        leave_out_report(project.path / "dvc.yaml")
        project.run("dvc", "remote", "add", "-q", "-d", "store", "../store")
        commit(project, "a source of our own")
        nights.run("dvc", "repro")
        commit(project, "results")
        project.run("dvc", "push", "-q")
        nights.git("init", "-q", "--bare", "-b", "main", str(nights.origin))
        nights.git("remote", "add", "origin", str(nights.origin))
        nights.git("push", "-q", "-u", "origin", "main")
        return nights

    def elsewhere(self) -> "Nights":
        """Another checkout with the same source, and without a cache or runs."""
        path = self.project.path.with_name("elsewhere")
        self.git("clone", "-q", str(self.origin), str(path))
        (path / ".venv").symlink_to(self.project.path / ".venv")
        (path / SOURCE).parent.mkdir()
        shutil.copy(self.project.path / SOURCE, path / SOURCE)
        return Nights(Project(path), self.origin)

    def git(self, *arguments: str) -> str:
        return self.project.run("git", *arguments).strip()

    def bring(self, rows: slice, images: Any = IMAGES) -> None:
        """Replace the source's file."""
        path = self.project.path / SOURCE
        path.parent.mkdir(exist_ok=True)
        np.savez(path, images=images[rows], labels=LABELS[rows])

    def retrain(self, *options: str, code: int) -> str:
        return self.run(*RETRAIN, *options, code=code)

    def run(self, *command: str, code: int = 0) -> str:
        running = self.project.start(*command, env=ENV)
        printed, _ = running.communicate(timeout=LIMIT_S)
        assert running.returncode == code, f"ended with {running.returncode}:\n{printed}"
        return printed

    def state(self) -> dict[str, object]:
        """What must not change unless a model is promoted."""
        listed = self.git("ls-remote", str(self.origin)).splitlines()
        return {
            "head": self.git("rev-parse", "HEAD"),
            "tags": self.git("tag", "--list").split(),
            "git": self.git("status", "--porcelain"),
            "dvc": json.loads(self.project.run("dvc", "status", "--json")),
            "origin": [line for line in listed if "^" not in line and "refs/exps/" not in line],
            "model": self.project.contents("models/vae/best"),
            "champion": self.champion,
        }

    @property
    def champion(self) -> tuple[str, str] | None:
        found = champion(self.project.path, "vae")
        return None if found is None else (found.version, found.commit)

    def experiments(self) -> list[str]:
        return sorted(self.git("for-each-ref", "--format=%(refname:lstrip=4)", "refs/exps/").split())

    def decision(self) -> dict[str, Any]:
        """The newest."""
        files = (self.project.path / ".runs/retrain").glob("*/decision.json")
        newest = max(files, key=lambda path: path.stat().st_mtime)
        found: dict[str, Any] = json.loads(newest.read_text())
        assert f"# Retraining {found['name']}: {found['verdict']}" in newest.with_suffix(".md").read_text()
        return found


def leave_out_report(dvc_yaml: Path) -> None:
    """The stage that nothing here asks anything of."""
    yaml = YAML()
    stages = yaml.load(dvc_yaml)
    del stages["stages"]["report"]
    yaml.dump(stages, dvc_yaml)


pytestmark = pytest.mark.chaos


@pytest.fixture(scope="module", params=[False, True], ids=["in process", "on Ray"])
def nights(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Nights:
    return Nights.make(tmp_path_factory.mktemp("five nights"), on_ray=request.param)


def unchanged(nights: Nights, before: dict[str, object], *, source: bool = True) -> None:
    """All as it was; `source`: DVC sees that the source has changed, which is as it should be."""
    after = nights.state()
    if source:
        before = before | {"dvc": {"ingest": [{"changed deps": {SOURCE: "modified"}}]}}
    assert after == before


def test_first_night_there_is_nothing_new(nights: Nights) -> None:
    before = nights.state()
    printed = nights.retrain("--push", code=11)
    assert f"nothing new: {SOURCE} as dvc.lock has it" in printed
    unchanged(nights, before, source=False)
    assert nights.experiments() == []
    assert not (nights.project.path / ".runs/retrain").exists()


def test_second_night_new_data_make_a_better_model_and_it_is_promoted(nights: Nights) -> None:
    before = nights.state()
    nights.bring(slice(1500))
    dry = nights.retrain("--dry-run", code=0)
    unchanged(nights, before)
    assert "promoted (dry run: nothing follows)" in dry
    assert nights.experiments() == []

    printed = nights.retrain("--push", code=0)
    decision, after = nights.decision(), nights.state()
    told = decision["families"]["vae"]
    assert decision["verdict"] == told["verdict"] == "promoted"
    assert told["gain"] > 0
    figures = (told["champion"]["figures"], told["challenger"]["figures"])
    assert figures[0]["rows"] == figures[1]["rows"], "not the same test split"
    assert told["gain"] == pytest.approx(figures[0]["neg_elbo_nats"] - figures[1]["neg_elbo_nats"], abs=1e-5)
    assert told["champion"]["commit"] == before["head"]
    assert after["head"] == decision["commits"]["result"] != before["head"]
    assert after["tags"] == ["vae#prod#1", "vae#prod#2", "vae@v1.0.0", "vae@v1.1.0"]
    assert after["champion"] == ("v1.1.0", after["head"])
    assert (after["git"], after["dvc"]) == ("", {})
    assert after["model"] != before["model"]
    assert nights.git("rev-parse", "HEAD^") == before["head"]
    assert {line.split("/")[0] for line in nights.git("diff", "--name-only", "HEAD^").splitlines()} == {
        "dvc.lock", "results"}  # fmt: skip
    assert f"{after['head']}\trefs/heads/main" in after["origin"]  # type: ignore[operator]
    assert len(after["origin"]) == 6  # type: ignore[arg-type]
    assert decision["name"] in nights.experiments()
    assert "promoted" in printed
    nights.retrain("--push", code=11)


def test_third_night_fewer_data_make_a_worse_model_and_the_champion_is_kept(nights: Nights) -> None:
    before = nights.state()
    nights.bring(slice(1150))
    printed = nights.retrain("--push", code=10)
    decision = nights.decision()
    unchanged(nights, before)
    told = decision["families"]["vae"]
    assert decision["verdict"] == told["verdict"] == "kept"
    assert told["champion"]["version"] == "v1.1.0"
    assert told["gain"] < 0
    assert "its neg_elbo_nats is no better than the champion's" in printed
    assert decision["name"] in nights.experiments(), "it can be looked at"

    again = nights.elsewhere().retrain("--push", code=10)
    assert "Running stage 'train" not in again, "other checkouts do not know that it was trained"
    unchanged(nights, before)


def test_fourth_night_poisoned_data_are_refused_before_training(nights: Nights) -> None:
    before, experiments = nights.state(), nights.experiments()
    nights.bring(slice(1500), images=1 - IMAGES)
    printed = nights.retrain("--push", code=12)
    assert "error: new data refused: pixel mean: 0.30" in printed
    assert "Running stage 'train" not in printed
    assert nights.decision()["verdict"] == "refused"
    unchanged(nights, before)

    spoilt = IMAGES.copy()
    spoilt[:100] = np.nan
    nights.bring(slice(1500), images=spoilt)
    printed = nights.retrain("--push", code=12)
    assert "error: new data refused: data.max_bad_fraction: 100 of 1,500 rows cannot be used" in printed
    assert "Running stage 'shard'" not in printed
    assert nights.decision()["families"] == {}
    unchanged(nights, before)
    assert nights.experiments() == experiments


def test_fifth_night_it_is_killed_while_it_trains_and_the_same_command_finishes(nights: Nights) -> None:
    before, experiments = nights.state(), nights.experiments()
    known = {path.name for path in (nights.project.path / ".runs").glob("vae-*")}
    nights.bring(slice(1797))
    running = nights.project.start(*RETRAIN, "--push", env=ENV)
    try:
        wait_for(lambda: (nights.project.path / ".dvc/tmp/retrain/clone").exists(), "the clone", LIMIT_S)
        printed = nights.retrain("--push", code=7)
        assert f"error: process {running.pid} is retraining here; wait for it (--wait SECONDS)" in printed
        wait_for(lambda: new_checkpoints(nights, known), "a checkpoint", LIMIT_S)
        children = psutil.Process(running.pid).children(recursive=True)
    finally:
        running.send_signal(signal.SIGKILL)
        running.communicate()
    alive = psutil.wait_procs(children, timeout=60)[1]
    assert alive == [], "what it started goes on"
    unchanged(nights, before)
    assert nights.experiments() == experiments

    printed = nights.retrain("--push", code=0)
    after = nights.state()
    assert int(re.findall(r"from step ([\d,]+)", printed)[0].replace(",", "")) > 0
    assert after["champion"] == ("v1.2.0", after["head"])
    assert nights.git("rev-parse", "HEAD^") == before["head"]
    assert (after["git"], after["dvc"]) == ("", {})
    assert list((nights.project.path / ".dvc/tmp/retrain").glob("clone*")) == []


def new_checkpoints(nights: Nights, known: set[str]) -> list[Path]:
    paths = (nights.project.path / ".runs").glob("vae-*/checkpoints/step-*")
    return [path for path in paths if path.parents[1].name not in known]


def test_in_the_morning_one_goes_back_to_the_earlier_model_byte_for_byte(nights: Nights, tmp_path: Path) -> None:
    commit_before = nights.git("rev-parse", "vae@v1.1.0^{commit}")
    nights.project.stage("registry", "rollback", "vae")
    assert nights.champion == ("v1.1.0", commit_before)
    got = tmp_path / "got"
    nights.project.run("dvc", "artifacts", "get", ".", "vae", "--stage", "prod", "-o", str(got))
    subprocess.run(["git", "clone", "-q", str(nights.project.path), tmp_path / "then"], check=True)
    shutil.copy(nights.project.path / ".dvc/config", tmp_path / "then/.dvc/config")
    nights.git("-C", str(tmp_path / "then"), "checkout", "-q", commit_before)
    cache = str(nights.project.path / ".dvc/cache")
    nights.project.run("dvc", "--cd", str(tmp_path / "then"), "cache", "dir", "--local", cache)
    nights.project.run("dvc", "--cd", str(tmp_path / "then"), "checkout", "-q", "artifacts/vae")
    expected = {path.name: path.read_bytes() for path in (tmp_path / "then/artifacts/vae").iterdir()}
    assert {path.name: path.read_bytes() for path in got.iterdir()} == expected
    assert len(expected) >= 4
