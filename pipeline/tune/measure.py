"""Objectives that the training loop does not report: measured on the validation split when a trial passes a rung."""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from safetensors.torch import load

from pipeline.config import EvaluateConfig, fingerprint
from pipeline.errors import UserError
from pipeline.train import checkpoints
from pipeline.train.run import TrainRun
from pipeline.train.storage import Folder
from pipeline.tune.objectives import Objectives
from vae_core.config import DataSpec
from vae_core.metrics.primary import primary
from vae_core.models import Model, build_model

if TYPE_CHECKING:
    from vae_core.metrics.features import FeatureClassifier

# Not the section `evaluate`: another number of samples on the test split should not sweep anew.
HOW = EvaluateConfig(seed=0, batch_size=500, nll_samples=100, figure_images=1)


@dataclass(frozen=True)
class Measures:
    """Figures of `pipeline.evaluate`, and what they are measured with; can be pickled.

    Attributes:
        measured_by: fingerprint of the code, and of the classifier in whose features distances are taken.
    """

    names: tuple[str, ...]
    classifier: "FeatureClassifier | None" = field(repr=False)
    measured_by: str

    @property
    def identity(self) -> str:
        return fingerprint((self.names, HOW, self.measured_by))


def objectives(wanted: Sequence[str], reported: Mapping[str, float]) -> Objectives:
    """What trials are compared by: the figures `wanted`, or the primary one of those that the loop reported."""
    if not wanted:
        return Objectives((primary(reported),), ("min",))
    from pipeline.evaluate.validation import direction

    return Objectives(tuple(wanted), tuple(map(direction, wanted)))


def check_measurable(
    wanted: Sequence[str], reported: Mapping[str, float], model: Any, data: DataSpec
) -> tuple[str, ...]:
    """Those of the figures `wanted` that the loop does not report.

    Raises:
        UserError: neither it nor the evaluation does.
    """
    extra = tuple(name for name in wanted if name not in reported)
    if extra:
        from pipeline.evaluate.validation import check_names
        from pipeline.evaluate.validation import reported as measurable

        try:
            check_names(extra, list(dict.fromkeys([*reported, *measurable(model, data, HOW)])), model.kind)
        except UserError as error:
            raise UserError(f"params.yaml: tune.metric: {error}") from None
    return extra


def measured(run: TrainRun, folder: Folder, measures: Measures) -> dict[str, float]:
    """The figures of a run as it stands; without those that are not finite.

    Raises:
        UserError: the data do not have what a figure needs.
    """
    newest = checkpoints.latest(folder.sub("checkpoints"))
    assert newest is not None  # it has just been trained
    model = build_model(run.model, run.reading.manifest().spec, seed=run.train.seed)
    model.load_state_dict(load(newest.weights))
    return measured_of(model, run, measures)


def measured_of(model: Model, run: TrainRun, measures: Measures) -> dict[str, float]:
    """Likewise, of a model of the run's data."""
    from pipeline.evaluate.validation import validation_figures

    found = validation_figures(
        model,
        run.open("train"),
        run.open("val"),
        names=measures.names,
        config=HOW,
        classifier=measures.classifier,
    )
    return {name: value for name, value in found.items() if math.isfinite(value)}
