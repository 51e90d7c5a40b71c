"""A training run: everything that decides its result, and the name that follows from that."""

from dataclasses import dataclass
from pathlib import Path

from pipeline.closure import code_fingerprint
from pipeline.config import TrainConfig, fingerprint
from pipeline.data.index import read_manifest
from vae_core.config import ModelConfig

LOOP = "pipeline.train.loop"


@dataclass(frozen=True, kw_only=True)
class TrainRun:
    """What is trained, on what, by which code. Equal runs give equal results, so a run can resume under its name.

    Attributes:
        shards: absolute path of the shards.
        data: digest of the shards.
        code: fingerprint of the files that the training loop imports.
    """

    model: ModelConfig
    train: TrainConfig
    shards: Path
    data: str
    code: str

    @classmethod
    def of(cls, model: ModelConfig, train: TrainConfig, shards: Path) -> "TrainRun":
        return cls(
            model=model,
            train=train,
            shards=shards.resolve(),
            data=read_manifest(shards).digest,
            code=code_fingerprint(LOOP),
        )

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
