"""Figures of the validation split that a sweep can be judged by: their names, which way is better, their values."""

from collections.abc import Collection
from typing import Literal

import torch

from pipeline.config import EvaluateConfig
from pipeline.data.loader import Split
from pipeline.errors import UserError
from pipeline.evaluate.metrics import evaluate_model, figure_names
from vae_core.config import DataSpec, ModelConfig
from vae_core.metrics.features import FeatureClassifier
from vae_core.models import Model, build_model
from vae_core.priors import CodePrior

# Of every model of a family the same, or no property of the model
UNCOMPARED = ("nll_samples", "aggregate_rows", "coded_images", "mutual_information_limit_nats")
HIGHER = (
    "psnr_db",
    "ssim",
    "sharpness_ratio",
    "effective_samples",
    "active_units",
    "mutual_information_nats",
    "prior_saving_fraction",
    "probe_accuracy",
)


def direction(name: str) -> Literal["min", "max"]:
    """Whether less or more of a figure is better."""
    return "max" if name in HIGHER or name.startswith(("codebook_", "disentanglement_")) else "min"


def validation_figures(
    model: Model,
    train: Split,
    val: Split,
    *,
    names: Collection[str],
    config: EvaluateConfig,
    classifier: FeatureClassifier | None,
    prior: CodePrior | None = None,
) -> dict[str, float]:
    """The figures `names` of a model on the validation split, as `evaluate_model` gives them and nothing more.

    The model may be one in training: it is left as it was. In a process group every rank would have to call it.

    Raises:
        UserError: the model reports no figure of such a name, or not on these data.
    """
    check_names(names, _comparable(model, config, prior, classified=classifier is not None), model.config.kind)
    what = f"{', '.join(names)} of the validation split"
    found = evaluate_model(model, train, val, config, prior=prior, classifier=classifier, what=what, names=names)
    absent = [name for name in names if name not in found]
    if absent:
        raise UserError(
            f"{', '.join(absent)}: not to be had of these data; distances need two images in the validation split, "
            "disentanglement two attributes of 2 to 64 values each, sharpness images that are not flat"
        )
    return {name: found[name] for name in names}


def reported(config: ModelConfig, data: DataSpec, evaluate: EvaluateConfig) -> list[str]:
    """The figures by which models of a configuration can be compared on such data, before there is any model.

    Raises:
        ValueError: the model does not fit the data.
    """
    with torch.device("meta"):
        model = build_model(config, data)
    return _comparable(model, evaluate, None, classified=data.num_classes > 1)


def check_names(names: Collection[str], known: Collection[str], kind: str) -> None:
    """See that all names are among the `known` ones.

    Raises:
        UserError: one is not; the known ones are listed.
    """
    unknown = [name for name in names if name not in known]
    if unknown:
        raise UserError(
            f"{', '.join(unknown)}: not a figure of a model of kind {kind} on these data; it reports {', '.join(known)}"
        )


def _comparable(model: Model, config: EvaluateConfig, prior: CodePrior | None, *, classified: bool) -> list[str]:
    names = figure_names(model, config, prior=prior, classified=classified)
    return [name for name in names if name not in UNCOMPARED and not name.endswith("_standard_error_nats")]
