"""A training run: everything that decides its result, and the name that follows from that."""

from dataclasses import dataclass, replace
from pathlib import Path
from typing import Literal

from pipeline.closure import code_fingerprint
from pipeline.config import ComputeConfig, TrainConfig, fingerprint
from pipeline.data.config import ReadConfig
from pipeline.data.index import MANIFEST, Manifest, read_manifest
from pipeline.data.store import DEFAULT, open_store
from vae_core.config import ModelConfig

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
        """As `compute` says; without a place of its own there, from the folder `shards`."""
        if compute is None:
            return cls(shards=shards.resolve())
        cache = str(Path(compute.read.cache).resolve())  # workers have a working directory of their own
        return cls(
            shards=_absolute(compute.shards or shards),
            read=replace(compute.read, cache=cache),
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

    @property
    def params(self) -> str:
        """Fingerprint of the configuration alone."""
        return fingerprint((self.model, self.train))

    @property
    def name(self) -> str:
        """The run's directory name: the same for the same configuration, data and code, and for nothing else."""
        return fingerprint((self.params, self.data, self.code))

    @property
    def lineage(self) -> dict[str, str]:
        return {"data": self.data, "params": self.params, "code": self.code}


def _absolute(shards: str | Path) -> str | Path:
    return shards if "://" in str(shards) else Path(shards).resolve()
