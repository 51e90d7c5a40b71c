"""A finished run -> the files that a stage leaves: the model, its figures and its curves."""

from pathlib import Path

from pipeline import files
from pipeline.errors import UserError
from pipeline.train import checkpoints
from pipeline.train.folders import Place, open_folder
from pipeline.train.run import TrainRun
from pipeline.train.tracking import MetricLog, curves
from vae_core.serialize import CONFIG, WEIGHTS, describe

METRICS = "metrics.json"


def publish_model(run: TrainRun, place: Place, out: Path) -> None:
    """Write the model of a finished run to `out`: weights, configuration with lineage, validation figures.

    Raises:
        UserError: the run is not finished.
        StorageFailed: the run's folder cannot be read.
    """
    folder = open_folder(place)
    newest = checkpoints.latest(folder.sub("checkpoints"))
    epochs = MetricLog(folder).epochs()
    if newest is None or len(epochs) < run.train.epochs:
        raise UserError(
            f"{folder.location}: {len(epochs)} of {run.train.epochs} epochs are there, so the run is not finished, or "
            "its log was damaged; run `python -m pipeline runs repair`, then the same command again"
        )
    with files.new_directory(out) as temporary:
        (temporary / WEIGHTS).write_bytes(newest.weights)
        description = describe(run.model, run.reading.manifest().spec)
        files.write_json(temporary / CONFIG, {**description, "lineage": run.lineage})
        files.write_json(temporary / METRICS, {"epochs": len(epochs), "val": epochs[-1]})


def publish_history(place: Place, family: str, out: Path) -> None:
    """Write to the folder `out` the figures of each epoch as a table, and those of the last as metrics of `family`."""
    log = MetricLog(place)
    files.write_text(out / "curves.tsv", curves(log.rows()))
    last = {name: round(value, 6) for name, value in log.epochs()[-1].items()}
    files.write_json(out / METRICS, {"val": {family: last}})
