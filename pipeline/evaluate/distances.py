"""How far samples and reconstructions are from test images, measured between features of another network."""

from collections.abc import Callable, Collection, Iterator, Sequence
from pathlib import Path
from typing import TypeAlias

import numpy as np
import torch
from torch import Tensor

from pipeline.config import EvaluateConfig
from pipeline.data.loader import Split
from pipeline.evaluate.inception import inception_features
from vae_core.batch import Batch
from vae_core.likelihoods import observe
from vae_core.metrics.features import FeatureClassifier
from vae_core.metrics.frechet import FeatureMoments, Moments, frechet_distance, kernel_distance
from vae_core.models import Model
from vae_core.noise import Noise
from vae_core.priors import CodePrior
from vae_core.sampling import can_sample, reconstruct, sample

SUBSET_ROWS = 500
KEPT = 500  # images decoded at once

Extract: TypeAlias = Callable[[Tensor], Tensor]


def distance_names(
    model: Model, config: EvaluateConfig, *, prior: CodePrior | None = None, classified: bool
) -> list[str]:
    """The names that `distances` may give; `classified`: there is a classifier."""
    kinds = [*["classifier"] * classified, *["inception"] * (config.inception_weights is not None)]
    made = ["reconstruction", *["sample"] * can_sample(model, prior)]
    if config.feature_images < 2:
        return []
    return [f"{what}_{kind}_{name}" for kind in kinds for what in made for name in ("frechet", "kernel")]


def distances(
    model: Model,
    test: Split,
    config: EvaluateConfig,
    wanted: Collection[str],
    *,
    prior: CodePrior | None,
    classifier: FeatureClassifier | None,
) -> dict[str, float]:
    """The wanted ones of `sample_*` and `reconstruction_*` distances to test images, in two kinds of features.

    `classifier`: the classifier trained here; `inception`: torch-fidelity's, where its weights are given. Samples have
    the conditions of the same test images; a family without a prior has none.
    """
    possible = distance_names(model, config, prior=prior, classified=classifier is not None)
    chosen = [name for name in possible if name in wanted]
    rows = min(config.feature_images, len(test))
    if not chosen or rows < 2:
        return {}
    device = next(model.parameters()).device
    batches = list(_batches(test, rows, device))
    images = [batch.images.float() / 255 for batch in batches]
    made = {what: _made(what, model, batches, config, prior) for what in _parts(chosen, 0)}
    figures: dict[str, float] = {}
    for kind in _parts(chosen, 1):
        extract = _extract(kind, config, classifier, device)
        real = _features(images, extract)
        moments = _moments(real)
        for what in made:
            fake = _features(made[what], extract)
            if (name := f"{what}_{kind}_frechet") in chosen:
                figures[name] = frechet_distance(moments, _moments(fake))
            if (name := f"{what}_{kind}_kernel") in chosen:
                kernel = kernel_distance(real, fake, seed=config.seed, subset_rows=min(SUBSET_ROWS, rows))
                figures[name] = kernel.mean
    return figures


def _parts(names: Sequence[str], place: int) -> list[str]:
    """Each word that stands at this place of a name, once."""
    return list(dict.fromkeys(name.split("_")[place] for name in names))


def _extract(kind: str, config: EvaluateConfig, classifier: FeatureClassifier | None, device: torch.device) -> Extract:
    if kind == "inception":
        return inception_features(Path(str(config.inception_weights)), device)
    assert classifier is not None
    return classifier.to(device).features


def _made(
    what: str, model: Model, batches: Sequence[Batch], config: EvaluateConfig, prior: CodePrior | None
) -> list[Tensor]:
    if what == "reconstruction":
        return [_reconstructions(model, batch, config.seed, i) for i, batch in enumerate(batches)]
    return [
        sample(model, len(batch.images), model.condition(batch), seed=config.seed + i, prior=prior)
        for i, batch in enumerate(batches)
    ]


def _features(images: Sequence[Tensor], extract: Extract) -> Tensor:
    return torch.cat([extract(part.float()).cpu() for part in images])


def _batches(test: Split, rows: int, device: torch.device) -> Iterator[Batch]:
    for start in range(0, rows, KEPT):
        yield test.batch(np.arange(start, min(start + KEPT, rows))).to(device)


def _reconstructions(model: Model, batch: Batch, seed: int, step: int) -> Tensor:
    noise = Noise.of(batch, seed=seed, scope="features", step=step)
    return reconstruct(model, observe(batch.images, model.config.likelihood, noise), model.condition(batch))


def _moments(features: Tensor) -> Moments:
    sums = FeatureMoments(features.shape[1])
    sums.add(features, torch.ones(len(features)))
    return sums.compute()
