"""What is trained: the model and the data."""

from dataclasses import replace
from pathlib import Path

from bench.data import sets
from pipeline.config import Params
from pipeline.errors import UserError
from pipeline.train.run import TrainRun
from vae_core.config import to_dict
from vae_core.training import Precision

RATE = 1e-3
QUICK_ROWS = 1500


def base_run(params: Params, shards: Path, epochs: int, precision: Precision = "fp32") -> TrainRun:
    """The model `vae` at a constant rate, uncompiled.

    Raises:
        UserError: there are no shards, or params.yaml has no such model.
    """
    if not (shards / "manifest.json").exists():
        raise UserError(f"{shards}: no data; run `dvc repro shard` first (MNIST is what params.yaml asks for)")
    if "vae" not in params.models:
        raise UserError("params.yaml: models: the model `vae` is what everyone trains here, and it is not there")
    train = replace(params.train, learning_rate=RATE, epochs=epochs, precision=precision, compile="off", ema_decay=0.0)
    return TrainRun.of(params.models["vae"], train, shards)


def digits(folder: Path) -> Path:
    """Shards of scikit-learn's digits at 28 x 28."""
    sets.prepare_table(sets.digits(QUICK_ROWS), folder)
    return sets.write_ours(sets.digits(QUICK_ROWS), folder, "raw", QUICK_ROWS)


def protocol(run: TrainRun) -> dict[str, object]:
    counts = run.reading.manifest().counts
    return {
        "model": to_dict(run.model),
        "data": f"{counts['train']} training and {counts['val']} validation images",
        "batch": run.train.global_batch_size,
        "learning rate": run.train.learning_rate,
        "optimizer": "Adam",
    }
