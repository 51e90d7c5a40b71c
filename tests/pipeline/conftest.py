"""A small sharded data set, small runs on it, and one Ray for the tests that need it."""

import gc
import os
import secrets
import warnings
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pytest
import torch
from digits_shards import write_digits

from pipeline import runtime
from pipeline.data.config import DataConfig, PublishedSource, ShardConfig
from pipeline.data.ingest import prepare
from pipeline.data.shape import Shape
from pipeline.data.shards import write_here
from pipeline.data.sources.base import Partition, Source, binary, record_batch
from pipeline.train.config import ComputeConfig, TrainConfig
from pipeline.train.loop import train
from pipeline.train.publish import publish_model
from pipeline.train.run import TrainRun
from vae_core.config import (
    AutoencoderConfig,
    CategoricalConfig,
    ConvConfig,
    HierarchicalConfig,
    IWAEConfig,
    MLPConfig,
    ModelConfig,
    OneCycleConfig,
    VAEConfig,
    VQVAE2Config,
    VQVAEConfig,
)

# Ray reads its environment when it is imported, which some test modules do while they are collected.
os.environ.update({**runtime._ENVIRONMENT, **runtime._PRIVATE, "RAY_AUTH_TOKEN": secrets.token_hex(32), **os.environ})

MLP = MLPConfig(kind="mlp", hidden=(32,))
SHALLOW = ConvConfig(kind="conv", channels=4, downsamples=1)
MODELS: Mapping[str, ModelConfig] = {
    "autoencoder": AutoencoderConfig(kind="autoencoder", latent_dim=4, network=MLP),
    "vae": VAEConfig(kind="vae", latent_dim=4, network=MLP),
    "cvae": VAEConfig(kind="vae", latent_dim=4, network=MLP, condition="label"),
    "vqvae": VQVAEConfig(
        kind="vqvae", num_codes=16, code_dim=4, network=ConvConfig(kind="conv", channels=8, downsamples=2)
    ),
    "iwae": IWAEConfig(kind="iwae", latent_dim=4, samples=3, network=MLP),
    "vqvae2": VQVAE2Config(kind="vqvae2", num_codes=8, code_dim=3, network=SHALLOW),
    "categorical": CategoricalConfig(kind="categorical", variables=5, categories=4, network=MLP),
    "hierarchical": HierarchicalConfig(kind="hierarchical", groups=1, latent_channels=1, network=SHALLOW),
}
PARAMS = """\
data:
  source: {kind: digits}
  validation_fraction: 0.2
  test_fraction: 0.2
  max_bad_fraction: 0.0
shard:
  seed: 0
  shard_bytes: 400000
families: [vae, vqvae]
models:
  vae:
    kind: vae
    latent_dim: 4
    network: {kind: mlp, hidden: [32]}
  vqvae:
    kind: vqvae
    num_codes: 16
    code_dim: 4
    network: {kind: conv, channels: 8, downsamples: 2}
train:
  seed: 0
  epochs: 2
  global_batch_size: 128
  learning_rate: {kind: one_cycle, peak: 0.002, warmup: 0.3}
  max_grad_norm: 1000.0
  window_shards: 2
tune:
  search:
    trials: 2
    seed: 0
    scheduler: halving
    rungs: [1]
  spaces:
    vae:
      beta: [0.5, 1.0]
    vqvae: {}
features: {steps: 20}
prior: {}
evaluate:
  seed: 0
  batch_size: 100
  nll_samples: 2
  figure_images: 10
  probe_images: 200
export:
  parity_images: 20
  tolerance: 1.0e-4
report:
  title: Digits
  data_images: 8
retrain: {}
compute:
  address: null
  workers: auto
  storage: .runs
  downloads: .cache
  checkpoint_every_steps: 4
  max_failures: 0
"""


@pytest.fixture(scope="module")
def own_git() -> Iterator[None]:
    """Git without a user's configuration."""
    with pytest.MonkeyPatch.context() as monkeypatch:
        for name in [name for name in os.environ if name.startswith("GIT_")]:
            monkeypatch.delenv(name)
        monkeypatch.setenv("GIT_CONFIG_GLOBAL", os.devnull)
        monkeypatch.setenv("GIT_CONFIG_SYSTEM", os.devnull)
        yield


@pytest.fixture(scope="session")
def params_text() -> str:
    """A whole params.yaml for the digits."""
    return PARAMS


@pytest.fixture(scope="session")
def models() -> Mapping[str, ModelConfig]:
    """A small model of each family."""
    return MODELS


@pytest.fixture(scope="session")
def shards(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Shards of scikit-learn's digits, written without Ray: 1163 train, 304 val, 330 test. Not to be changed."""
    return write_digits(tmp_path_factory.mktemp("digits") / "data")


class Squares:
    """Bright squares on a dim ground; column, row and brightness of each are its attributes. No two are alike."""

    rows = 500

    def batches(self) -> Iterator[pa.RecordBatch]:
        random = np.random.default_rng(0)
        factors = np.stack([random.integers(0, size, self.rows) for size in (3, 3, 2)], 1)
        images = random.integers(0, 40, (self.rows, 8, 8, 1), np.uint8)
        for image, (column, row, bright) in zip(images, factors, strict=True):
            image[2 * row + 1 : 2 * row + 3, 2 * column + 1 : 2 * column + 3] += np.uint8(100 + 100 * bright)
        ids = [f"square-{row}" for row in range(self.rows)]
        yield record_batch(ids, binary(images), attributes=factors.astype(np.float32), source="made")


class Waves:
    """Signals of one channel, one value high: a sine of some frequency and phase, without labels."""

    rows = 60

    def batches(self) -> Iterator[pa.RecordBatch]:
        at = np.arange(self.rows)[:, None]
        waves = np.sin(np.arange(64) * (0.1 + at / 100) + at)
        yield record_batch([f"wave-{row}" for row in range(self.rows)], binary(np.uint8(127 + 120 * waves)), source="m")


def sharded(data: Path, partition: Partition, pixels: Shape, attributes: tuple[str, ...]) -> Path:
    source = Source(
        name="made", partitions=(partition,), pixels=pixels, attributes=attributes, digests={"made": "0" * 64}
    )
    config = DataConfig(
        source=PublishedSource(kind="digits"), validation_fraction=0.2, test_fraction=0.3, max_bad_fraction=0.0
    )
    prepare([source], config, data)
    return write_here(data, ShardConfig(seed=0, shard_bytes=1 << 20))


@pytest.fixture(scope="session")
def squares(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Shards of images whose attributes are their factors. Not to be changed."""
    attributes = ("column", "row", "bright")
    return sharded(tmp_path_factory.mktemp("squares") / "data", Squares(), Shape(8, 8, 1), attributes)


@pytest.fixture(scope="session")
def waves(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Shards of signals of height 1, without labels. Not to be changed."""
    return sharded(tmp_path_factory.mktemp("waves") / "data", Waves(), Shape(1, 64, 1), ())


@pytest.fixture(scope="session")
def make_run(shards: Path) -> Callable[..., TrainRun]:
    """A run of a family, ten steps an epoch; keywords change the `train` section."""

    def make(model: str | ModelConfig = "vae", folder: Path = shards, **changes: Any) -> TrainRun:
        values: dict[str, Any] = {
            "seed": 0, "epochs": 2, "global_batch_size": 128, "max_grad_norm": 1000.0, "window_shards": 2,
            "learning_rate": OneCycleConfig(kind="one_cycle", peak=0.002)}  # fmt: skip
        config = TrainConfig(**{**values, **changes})
        return TrainRun.of(MODELS[model] if isinstance(model, str) else model, config, folder)

    return make


@pytest.fixture(scope="session")
def trained(make_run: Callable[..., TrainRun], tmp_path_factory: pytest.TempPathFactory) -> Mapping[str, Path]:
    """The directory of an uninterrupted run of each family. Not to be changed."""
    folder = tmp_path_factory.mktemp("trained")
    for family in MODELS:
        train(make_run(family), folder / family, on_epoch=lambda *_: None, checkpoint_every_steps=4)
    return {family: folder / family for family in MODELS}


@pytest.fixture(scope="session")
def published(
    trained: Mapping[str, Path], make_run: Callable[..., TrainRun], tmp_path_factory: pytest.TempPathFactory
) -> Mapping[str, Path]:
    """The model that each of those runs leaves. Not to be changed."""
    folder = tmp_path_factory.mktemp("published")
    for family, directory in trained.items():
        publish_model(make_run(family), directory, folder / family)
    return {family: folder / family for family in MODELS}


@pytest.fixture
def make_compute(tmp_path: Path) -> Callable[..., ComputeConfig]:
    """This machine, with folders of the test's own."""

    def make(**changes: Any) -> ComputeConfig:
        values: dict[str, Any] = {
            "address": None, "workers": "auto", "storage": str(tmp_path), "downloads": str(tmp_path),
            "checkpoint_every_steps": 4, "max_failures": 0}  # fmt: skip
        return ComputeConfig(**{**values, **changes})

    return make


@pytest.fixture(scope="session")
def ray_cluster() -> Iterator[None]:
    """Ray with two cores, one for the session: `runtime.cluster` finds it and leaves it running."""
    compute = ComputeConfig(
        address=None, workers="auto", storage="", downloads="", checkpoint_every_steps=1, max_failures=0
    )
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # Ray's own
        with pytest.MonkeyPatch.context() as monkeypatch:
            monkeypatch.setattr(os, "cpu_count", lambda: 2)
            cluster = runtime.cluster(compute)
            cluster.__enter__()
        yield
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        cluster.__exit__(None, None, None)
        gc.collect()  # of the processes that it leaves behind; found here, they warn in no other test


@pytest.fixture(scope="session", autouse=True)
def one_thread() -> Iterator[None]:
    """Small models are fastest so, above all where other processes want the cores too."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


@pytest.fixture
def threads() -> Iterator[Callable[[int], None]]:
    """Sets the number of torch threads, on which the last bits of a sum depend."""
    before = torch.get_num_threads()
    yield torch.set_num_threads
    torch.set_num_threads(before)
