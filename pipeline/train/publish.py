"""A finished run -> the files that a stage leaves: the model, its figures and its curves."""

from pathlib import Path

from pipeline import files
from pipeline.train import checkpoints
from pipeline.train.run import TrainRun
from pipeline.train.tracking import MetricLog, curves
from vae_core.serialize import CONFIG, WEIGHTS, describe

METRICS = "metrics.json"


def publish_model(run: TrainRun, directory: Path, out: Path) -> None:
    """Write the model of a finished run to `out`: weights, configuration with lineage, validation figures."""
    newest = checkpoints.latest(directory / "checkpoints")
    epochs = MetricLog(directory).epochs()
    if newest is None or len(epochs) < run.train.epochs:
        raise RuntimeError(f"{directory}: the run is not finished")
    with files.new_directory(out) as temporary:
        (temporary / WEIGHTS).write_bytes(newest.weights)
        description = describe(run.model, run.reading.manifest().spec)
        files.write_json(temporary / CONFIG, {**description, "lineage": run.lineage})
        files.write_json(temporary / METRICS, {"epochs": len(epochs), "val": epochs[-1]})


def publish_curves(directory: Path, out: Path) -> None:
    """Write the figures of each epoch as a table."""
    files.write_text(out, curves(MetricLog(directory).rows()))
