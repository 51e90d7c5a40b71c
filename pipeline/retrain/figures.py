"""The figures of challenger and champion: of one test split, with the same seeds and draws, by the same code."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from pipeline import files
from pipeline.config import Params
from pipeline.data.index import Manifest
from pipeline.errors import UserError, did_you_mean
from pipeline.report.vocabulary import METRICS
from pipeline.retrain.champions import Champion, fetch
from pipeline.retrain.clone import Clone
from pipeline.stages import FEATURES, MODELS, RESULTS, SHARDS
from vae_core.config import DataSpec

OF_PRIOR = ("prior_nats", "prior_saving_fraction", "neg_elbo_learned_prior_nats", "coded_bits")  # of learned ones
Figures = Mapping[str, float]


def check_names(params: Params, families: Sequence[str], manifest: Manifest) -> None:
    """That retrain.metric and retrain.limits name figures that there will be, before anything is trained for hours.

    Raises:
        UserError: one of them is no figure of a family that must have it, or no figure at all.
    """
    reported = {family: _reported(params, family, manifest) for family in families}
    metric, limits = params.retrain.metric, params.retrain.limits
    known = {*METRICS, *(name for names in reported.values() for name in names)}
    for name in limits:
        if name not in known:
            raise UserError(f"params.yaml: retrain.limits.{name}: no figure of any family{did_you_mean(name, known)}")
    required = [f"limits.{name}" for name, limit in limits.items() if limit.required]
    for key in [*([] if metric is None else [f"metric.{metric}"]), *required]:
        where, _, name = key.partition(".")
        for family, names in reported.items():
            if name not in names:
                raise UserError(f"params.yaml: retrain.{where}: {family} reports no {name}{did_you_mean(name, names)}")


def _reported(params: Params, family: str, manifest: Manifest) -> list[str]:
    from pipeline.evaluate.validation import reported

    try:
        names = reported(params.models[family], manifest.spec, params.evaluate)
    except ValueError as error:
        raise UserError(f"params.yaml: models.{family}: {error}") from None
    return [*names, *(OF_PRIOR if any(name.startswith("codebook_") for name in names) else ())]


def of_challenger(clone: Clone, family: str) -> Figures:
    """What the stage evaluate@F has just measured of its best model."""
    figures: Figures = files.read_json(clone.root / RESULTS / "evaluate" / f"{family}.json")["best"]["test"]
    return figures


@dataclass(frozen=True)
class Brought:
    """A champion, and the folder with its files."""

    champion: Champion
    folder: Path


def bring(clone: Clone, found: Champion, spec: DataSpec) -> Brought:
    """Get a champion's files, before anything is trained that could not be compared with it.

    Raises:
        UserError: they cannot be had, or the model does not fit the data.
    """
    from pipeline.evaluate.models import open_model

    folder = fetch(clone.home, found, clone.root.parent / "champions" / found.family)
    model = open_model(folder / "best")
    if model.data.shape != spec.shape or (model.conditioner is not None and model.data != spec):
        raise UserError(
            f"the champion of {found.family}, {found}, is a model of {model.data}, and the data are {spec}: they "
            "cannot be compared; train on these data by hand (`dvc repro`), and promote what you choose"
        )
    return Brought(found, folder)


def of_champion(clone: Clone, params: Params, brought: Brought) -> Figures:
    """What the stage evaluate@F would measure of the champion's model, on the test split that is current now."""
    from pipeline.evaluate.models import same_model

    family = brought.champion.family
    if same_model(brought.folder / "best", clone.root / MODELS / family / "best"):
        return of_challenger(clone, family)
    return evaluated(clone.root, params, brought.folder, f"evaluate {family} champion")


def evaluated(root: Path, params: Params, models: Path, what: str) -> Figures:
    """The figures on the test split of the project at `root` of the model in `models`/best with its prior."""
    from pipeline.data.loader import open_split
    from pipeline.evaluate.classifier import open_classifier
    from pipeline.evaluate.metrics import evaluate_model
    from pipeline.evaluate.models import open_model, open_prior

    train, test = (open_split(root / SHARDS, name, params.compute.read) for name in ("train", "test"))
    classifier, prior = open_classifier(root / FEATURES, test), open_prior(models / "prior")
    model = open_model(models / "best")
    return evaluate_model(model, train, test, params.evaluate, prior=prior, classifier=classifier, what=what)
