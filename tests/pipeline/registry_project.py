"""A tiny project in Git and DVC with a model to register: its stages are lines of shell, its remotes two folders."""

import contextlib
import shutil
import warnings
from dataclasses import dataclass
from pathlib import Path

from dvc.cli import main as dvc_main
from dvc_project import ROOT, TinyProject
from ruamel.yaml import YAML

DVC_YAML = """\
stages:
  shard:
    cmd: mkdir -p data/shards && cp images/all data/shards/images
    deps:
      - images
    outs:
      - data/shards
  evaluate:
    matrix:
      family: ${families}
    cmd: >-
      mkdir -p results/evaluate && printf '{"best":{"test":{"neg_elbo_nats":%s}}}' $(wc -c < data/shards/images)
      > results/evaluate/${item.family}.json
    deps:
      - data/shards
    metrics:
      - results/evaluate/${item.family}.json:
          cache: false
  export:
    matrix:
      family: ${families}
    cmd: sh export.sh ${item.family} && echo export@${item.family} >> ../project-ran
    deps:
      - data/shards
      - export.sh
      - results/evaluate/${item.family}.json
    params:
      - models.${item.family}
    outs:
      - artifacts/${item.family}
artifacts:
  vae:
    path: artifacts/vae
    type: model
    desc: the best vae
  wake-sleep:
    path: artifacts/wake_sleep
    type: model
"""

EXPORT_SH = """\
mkdir -p "artifacts/$1"
cat data/shards/images params.yaml > "artifacts/$1/model.safetensors"
printf '{"lineage": {"data": "d1", "params": "p1", "code": "c1"}}' > "artifacts/$1/config.json"
"""


@dataclass(frozen=True)
class RegistryProject:
    """A checkout `project`, its DVC remote `remote`, its Git remote `origin.git`, all below one folder."""

    folder: Path

    @classmethod
    def make(cls, folder: Path) -> "RegistryProject":
        """With one commit, whose model is in the cache and in the DVC remote."""
        tiny = TinyProject.make(folder / "project")
        project = cls(folder)
        params = (ROOT / "params.yaml").read_text().replace("families: [vae, cvae, vqvae]", "families: [vae, cvae]")
        for name, text in {"dvc.yaml": DVC_YAML, "export.sh": EXPORT_SH, "images/all": "many images\n",
                           "params.yaml": params, ".gitignore": "/data/\n/artifacts/\n"}.items():  # fmt: skip
            (tiny.path / name).parent.mkdir(exist_ok=True)
            (tiny.path / name).write_text(text)
        (tiny.path / "stage.sh").unlink()
        tiny.run("git", "init", "-q", "--bare", "-b", "main", str(folder / "origin.git"))
        (folder / "remote").mkdir()
        tiny.git("remote", "add", "origin", "../origin.git")
        project.dvc("remote", "add", "-q", "-d", "store", "../remote")
        project.dvc("repro", "-q")
        project.dvc("push", "-q")
        tiny.commit("first")
        tiny.git("push", "-q", "-u", "origin", "main")
        return project

    def copy(self, to: Path) -> "RegistryProject":
        shutil.copytree(self.folder, to, symlinks=True)
        return RegistryProject(to)

    @property
    def path(self) -> Path:
        return self.folder / "project"

    @property
    def tiny(self) -> TinyProject:
        return TinyProject(self.path, self.folder / "project-ran")

    @property
    def origin(self) -> Path:
        return self.folder / "origin.git"

    @property
    def head(self) -> str:
        return self.tiny.git("rev-parse", "HEAD")

    def set(self, key: str, value: object) -> None:
        yaml, path = YAML(), self.path / "params.yaml"
        params = yaml.load(path.read_text())
        *parents, leaf = key.split(".")
        node = params
        for parent in parents:
            node = node[parent]
        node[leaf] = value
        with path.open("w") as file:
            yaml.dump(params, file)

    def train(self, latent_dim: int) -> str:
        """Another model of the family vae, committed but not pushed; its commit."""
        self.set("models.vae.latent_dim", latent_dim)
        self.dvc("repro", "-q")
        self.tiny.commit(f"latent_dim {latent_dim}")
        return self.head

    def dvc(self, *arguments: str, folder: Path | None = None) -> None:
        """A command of DVC's, in this process: to start another takes a second each."""
        with contextlib.chdir(folder or self.path), warnings.catch_warnings():
            warnings.simplefilter("ignore")
            assert dvc_main(list(arguments)) == 0

    def model(self) -> dict[str, bytes]:
        return contents(self.path / "artifacts" / "vae")

    def tags(self, repository: Path | None = None) -> list[str]:
        at = repository or self.path
        return self.tiny.run("git", "-C", str(at), "tag", "--list").split()


def contents(folder: Path) -> dict[str, bytes]:
    return {file.name: file.read_bytes() for file in folder.iterdir()}
