"""A tiny project with data of its own, as retraining sees one: its stages are lines of shell."""

from dataclasses import dataclass
from pathlib import Path

from dvc_project import ROOT, TinyProject
from ruamel.yaml import YAML

from pipeline.config import Params, load_params

DVC_YAML = """\
stages:
  ingest:
    cmd: sh ingest.sh
    deps:
      - ../elsewhere
      - incoming/images.npz
      - kept.npz
    outs:
      - data/prepared
  shard:
    cmd: cp -r data/prepared data/shards
    deps:
      - data/prepared
    outs:
      - data/shards
  train:
    matrix:
      family: [vae]
    cmd: cp -r data/shards model
    deps:
      - data/shards
    outs:
      - model
"""

INGEST_SH = """\
echo ingest >> "$RAN"
if grep -q bad incoming/images.npz; then echo "error: data.max_bad_fraction: bad rows" >&2; exit 1; fi
if grep -q full incoming/images.npz; then echo "error: the disk is full" >&2; exit 5; fi
if grep -q slow incoming/images.npz; then touch "$RAN.slow"; sleep 60; fi
mkdir -p data/prepared && cat incoming/images.npz kept.npz ../elsewhere/a > data/prepared/all
"""

SOURCE = {"kind": "npz", "path": "incoming/images.npz"}
LATER = [{"kind": "npz", "path": "kept.npz"}, {"kind": "image_folder", "path": "../elsewhere"}]
FILES = {
    "dvc.yaml": DVC_YAML,
    "ingest.sh": INGEST_SH,
    "kept.npz": "kept\n",
    ".gitignore": "/data/\n/model\n/incoming\n/kept.npz\n",
    "../elsewhere/a": "a\n",
    "incoming/images.npz": "1\n",
}


@dataclass(frozen=True)
class RetrainProject:
    """The project; its sources are a file that nobody tracks, one kept by `dvc add`, and a folder outside."""

    tiny: TinyProject

    @classmethod
    def make(cls, folder: Path) -> "RetrainProject":
        """With everything run and committed."""
        tiny = TinyProject.make(folder / "project")
        yaml = YAML()
        params = yaml.load(ROOT / "params.yaml")
        params["data"] |= {"source": SOURCE, "append": LATER}
        yaml.dump(params, tiny.path / "params.yaml")
        for name, text in FILES.items():
            (tiny.path / name).parent.mkdir(exist_ok=True)
            (tiny.path / name).write_text(text)
        tiny.dvc("add", "-q", "kept.npz")
        tiny.dvc("remote", "add", "-q", "-d", "store", "../store")
        tiny.dvc("repro", "-q")
        tiny.commit("first")
        return cls(tiny)

    @property
    def path(self) -> Path:
        return self.tiny.path

    @property
    def params(self) -> Params:
        return load_params(self.path / "params.yaml")

    def bring(self, text: str) -> None:
        (self.path / "incoming/images.npz").write_text(text)
