"""A training run: everything that decides its result, and the name that follows from that."""

from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Literal

from pipeline.closure import code_fingerprint
from pipeline.config import fingerprint
from pipeline.data.config import ReadConfig
from pipeline.data.index import MANIFEST, Manifest, read_manifest
from pipeline.data.split_reader import Split, open_split
from pipeline.data.store import DEFAULT, open_store
from pipeline.errors import UserError
from pipeline.train.config import ComputeConfig, TrainConfig
from pipeline.train.folders import Folder, store_of
from vae_core.config import ModelConfig, to_dict

LOOP = "pipeline.train.loop"


@dataclass(frozen=True, kw_only=True)
class Reading:
    """Where and how each rank reads the shards. No part of what is computed, so no part of a run's name.

    Attributes:
        shards: absolute path of a folder, or an address.
        device_cache: keep the splits on the device; auto: where there is room enough.
        peer: name of the actor that hands out `shards` to nodes that do not have the folder.
    """

    shards: str | Path
    read: ReadConfig = DEFAULT
    device_cache: bool | Literal["auto"] = "auto"
    peer: str | None = None

    @classmethod
    def of(cls, shards: Path, compute: ComputeConfig | None = None) -> "Reading":
        """As `compute` says; without a place of its own there, from the folder `shards`.

        Raises:
            UserError: `compute` names a folder without shards.
        """
        if compute is None:
            return cls(shards=shards.resolve())
        return cls(
            shards=shards.resolve() if compute.shards is None else _named(compute.shards),
            read=replace(compute.read, cache_below=str(Path.cwd())),  # workers have a working directory of their own
            device_cache=compute.device_cache,
        )

    def manifest(self) -> Manifest:
        """The manifest at `shards`.

        Raises:
            UserError: there is none, it is damaged, or the place does not answer.
        """
        return open_store(self.shards, self.read, self.peer).manifest


@dataclass(frozen=True, kw_only=True)
class TrainRun:
    """What is trained, on what, by which code. Equal runs give equal results, so a run can resume under its name.

    Attributes:
        reading: where the shards are.
        data: digest of the shards.
        code: fingerprint of the files that the training loop imports.
    """

    model: ModelConfig
    train: TrainConfig
    reading: Reading
    data: str
    code: str

    @classmethod
    def of(
        cls, model: ModelConfig, train: TrainConfig, shards: Path, compute: ComputeConfig | None = None
    ) -> "TrainRun":
        """A run on the folder `shards`, or where that is not on this machine, on those that `compute` names.

        Raises:
            UserError: there are no shards, or their manifest is damaged.
        """
        reading = Reading.of(shards, compute)
        here = (shards / MANIFEST).exists() or compute is None or compute.shards is None
        manifest = read_manifest(shards) if here else reading.manifest()
        return cls(model=model, train=train, reading=reading, data=manifest.digest, code=code_fingerprint(LOOP))

    @property
    def shards(self) -> str | Path:
        """Absolute path of the folder of shards, or its address."""
        return self.reading.shards

    def open(self, split: str) -> Split:
        """A split of the run's data, as this process reads them.

        Raises:
            UserError: the shards are damaged, or others lie there.
        """
        opened = open_split(self.shards, split, self.reading.read, self.reading.peer)
        self.expect(opened.digest)
        return opened

    def expect(self, found: str) -> None:
        """Compare the digest of the shards at `reading` with that of the run's data.

        Raises:
            UserError: they are others.
        """
        if found == self.data:
            return
        place = str(self.shards)
        copy = f"copy data/shards there{f' (`python -m pipeline upload {place}`)' if '://' in place else ''}"
        raise UserError(
            f"{place}: expected the shards with digest {self.data}, found {found}; {copy}, or correct compute.shards "
            "in params.yaml"
        )

    @property
    def params(self) -> str:
        """Fingerprint of the configuration alone."""
        return fingerprint((self.model, self.train))

    @property
    def name(self) -> str:
        """The run's identity: the same for the same configuration, data and code, and for nothing else."""
        return fingerprint((self.params, self.data, self.code))

    def folder_name(self, family: str, kind: Literal["train", "trial"] = "train") -> str:
        """Of the run's folder below compute.storage: readable, and its identity."""
        return "-".join([family, *(["trial"] if kind == "trial" else []), self.name])

    def folder(self, family: str, compute: ComputeConfig, kind: Literal["train", "trial"] = "train") -> Folder:
        """The run's folder, on the disk or at the address of compute.storage."""
        return store_of(compute).sub(self.folder_name(family, kind))

    @property
    def described(self) -> dict[str, Any]:
        """What `storage.record` keeps besides `kind` and `family`: the run's identity and what it follows from."""
        return {
            **self.lineage,
            "steps_per_epoch": -(-self.reading.manifest().counts["train"] // self.train.global_batch_size),
            "model": to_dict(self.model),
            "train": to_dict(self.train),
        }

    @property
    def lineage(self) -> dict[str, str]:
        return {"data": self.data, "params": self.params, "code": self.code}


def _named(shards: str) -> str | Path:
    """The place that compute.shards names."""
    if "://" in shards:
        return shards
    folder = _absolute(shards)
    if not (folder / MANIFEST).is_file():
        raise UserError(
            f"params.yaml: compute.shards: {folder / MANIFEST}: no such file; copy data/shards there, or set "
            "compute.shards to null to read data/shards"
        )
    return folder


def _absolute(path: str) -> Path:
    return Path(path).expanduser().resolve()
