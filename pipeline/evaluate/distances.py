"""How far samples and reconstructions are from test images, measured between features of another network."""

from collections.abc import Callable, Iterator
from pathlib import Path

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
from vae_core.models import HasPrior, Model
from vae_core.noise import Noise
from vae_core.priors import CodePrior
from vae_core.sampling import reconstruct, sample

SUBSET_ROWS = 500
KEPT = 500  # images decoded at once


def distances(
    model: Model, test: Split, config: EvaluateConfig, *, prior: CodePrior | None, classifier: FeatureClassifier | None
) -> dict[str, float]:
    """`sample_*` and `reconstruction_*` distances to test images, in each kind of features that there is.

    `classifier`: the classifier trained here; `inception`: torch-fidelity's, where its weights are given. Samples have
    the conditions of the same test images; a family without a prior has none.
    """
    features: dict[str, Callable[[Tensor], Tensor]] = {}
    if classifier is not None:
        features["classifier"] = classifier.to(next(model.parameters()).device).features
    if config.inception_weights is not None:
        features["inception"] = inception_features(Path(config.inception_weights), next(model.parameters()).device)
    rows = min(config.feature_images, len(test))
    if not features or rows < 2:
        return {}
    batches = list(_batches(test, rows, next(model.parameters()).device))
    made = {"reconstruction": [_reconstructions(model, batch, config.seed, i) for i, batch in enumerate(batches)]}
    if isinstance(model, HasPrior) or prior is not None or model.config.kind == "categorical":
        made["sample"] = [
            sample(model, len(batch.images), model.condition(batch), seed=config.seed + i, prior=prior)
            for i, batch in enumerate(batches)
        ]
    images = [batch.images.float() / 255 for batch in batches]
    figures: dict[str, float] = {}
    for kind, extract in features.items():
        real = torch.cat([extract(part).cpu() for part in images])
        for what, parts in made.items():
            fake = torch.cat([extract(part.float()).cpu() for part in parts])
            figures[f"{what}_{kind}_frechet"] = frechet_distance(_moments(real), _moments(fake))
            kernel = kernel_distance(real, fake, seed=config.seed, subset_rows=min(SUBSET_ROWS, rows))
            figures[f"{what}_{kind}_kernel"] = kernel.mean
    return figures


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
