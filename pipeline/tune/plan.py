"""What a sweep is about, from params.yaml and the baseline that train@F left."""

from collections.abc import Sequence
from pathlib import Path

from pipeline import files
from pipeline.closure import code_fingerprint
from pipeline.config import fingerprint
from pipeline.errors import UserError
from pipeline.train.computing import computing
from pipeline.train.config import ComputeConfig
from pipeline.train.publish import METRICS
from pipeline.train.run import TrainRun
from pipeline.tune.config import SearchConfig
from pipeline.tune.measure import Measures, check_measurable, measured_of, objectives
from pipeline.tune.objectives import Figures
from pipeline.tune.space import Space
from pipeline.tune.trials import Sweep, threads_of
from vae_core.serialize import WEIGHTS


def plan(
    family: str,
    run: TrainRun,
    baseline: Path,
    *,
    search: SearchConfig,
    space: Space,
    metric: str | Sequence[str] | None,
    compute: ComputeConfig,
    features: Path,
) -> Sweep:
    """The sweep around `run`, whose model is in the directory `baseline`.

    Args:
        metric: one or several figures of the validation split; None for the family's primary one.
        features: directory of the classifier in whose features distances are taken.

    Raises:
        UserError: the baseline is missing, or there is no such figure.
    """
    wanted = (metric,) if isinstance(metric, str) else tuple(metric or ())
    known = _reported(baseline)
    extra = check_measurable(wanted, known, run.model, run.reading.manifest().spec)
    measures = _measures(extra, run, features) if extra else None
    if measures:
        known = {**known, **_measured(baseline, run, measures, compute)}
    judged = objectives(wanted, known)
    absent = [name for name in judged.names if name not in known]
    if absent:
        raise UserError(f"params.yaml: tune.metric: {', '.join(absent)}: not finite for the baseline; choose another")
    return Sweep(family, run, search, space, judged, known, compute, measures)


def _reported(baseline: Path) -> Figures:
    try:
        figures: Figures = files.read_json(baseline / METRICS)["val"]
    except (OSError, KeyError, ValueError) as error:
        raise UserError(
            f"{baseline / METRICS}: {error}; restore it with `dvc checkout`, or make it again with `dvc repro`"
        ) from None
    return figures


def _measures(names: tuple[str, ...], run: TrainRun, features: Path) -> Measures:
    from pipeline.evaluate.classifier import open_classifier

    classifier = open_classifier(features, run.open("val"))
    sight = files.sha256(features / WEIGHTS) if classifier else ""
    return Measures(names, classifier, fingerprint((sight, code_fingerprint("pipeline.evaluate.validation"))))


def _measured(baseline: Path, run: TrainRun, measures: Measures, compute: ComputeConfig) -> Figures:
    """The baseline's figures, with as many threads as a trial has."""
    from pipeline.evaluate.models import open_model

    with computing(threads_of(compute)):
        return measured_of(open_model(baseline), run, measures)
