"""Pictures of what a model does with test images."""

from collections.abc import Mapping, Sequence

import numpy as np
import torch
from matplotlib.figure import Figure
from torch import Tensor

from pipeline.config import EvaluateConfig
from pipeline.data.loader import Split
from vae_core.likelihoods import observe
from vae_core.models import Model
from vae_core.models.vae import VAE
from vae_core.models.vqvae import VQVAE
from vae_core.noise import Noise
from vae_core.sampling import interpolate, reconstruct, sample_prior

INTERPOLATED_PAIRS = 5


def figures(model: Model, split: Split, config: EvaluateConfig) -> Mapping[str, Figure]:
    """Name -> picture: reconstructions and interpolation for all, then samples (VAE) or codes (VQ-VAE)."""
    batch = split.batch(_one_of_each_class(split, max(config.figure_images, 2 * INTERPOLATED_PAIRS)))
    images, labels = batch.images, batch.labels
    x = observe(images, model.config.likelihood, Noise.of(batch, seed=config.seed, scope="figures", step=0))
    drawn = {"reconstructions": _reconstructions(model, images, x, labels, config.figure_images)}
    drawn["interpolation"] = _interpolation(model, x, labels, config.figure_images)
    if isinstance(model, VAE):
        drawn["samples"] = _samples(model, split, config)
    else:
        drawn["codes"] = _codes(model, images, x, config.figure_images)
    return drawn


def grid(rows: Sequence[Tensor], names: Sequence[str], title: str) -> Figure:
    """One picture of rows of images, each [n, C, H, W] in [0, 1], with a name before each row."""
    height, width = rows[0].shape[-2:]
    figure = Figure(figsize=(0.62 * len(rows[0]) + 1.4, 0.62 * len(rows) * height / width + 0.5), layout="constrained")
    axes = figure.add_subplot()
    stacked = torch.stack([_side_by_side(row) for row in rows])  # [rows, C, H, n * W]
    picture = torch.cat(stacked.unbind(0), dim=1).movedim(0, -1).clamp(0, 1).numpy()
    axes.imshow(
        picture.squeeze(-1) if picture.shape[-1] == 1 else picture, cmap="gray", vmin=0, vmax=1, interpolation="nearest"
    )
    axes.set_yticks([height * (i + 0.5) for i in range(len(rows))], names)
    axes.set_xticks([])
    axes.tick_params(length=0)
    axes.set_title(title)
    return figure


def _reconstructions(model: Model, images: Tensor, x: Tensor, labels: Tensor | None, count: int) -> Figure:
    shown = [images.float()[:count] / 255, x[:count], reconstruct(model, x, labels)[:count]]
    names = ["image", "input", "reconstruction"]
    if model.config.likelihood != "bernoulli":  # the input is the image itself
        shown, names = [shown[0], shown[2]], [names[0], names[2]]
    return grid(shown, names, "Test images and reconstructions")


def _interpolation(model: Model, x: Tensor, labels: Tensor | None, steps: int) -> Figure:
    start, end = x[:INTERPOLATED_PAIRS], x[INTERPOLATED_PAIRS : 2 * INTERPOLATED_PAIRS]
    between = interpolate(model, start, end, steps, None if labels is None else labels[:INTERPOLATED_PAIRS])
    conditional = isinstance(model, VAE) and model.condition is not None
    names = [f"as {int(c)}" if conditional and labels is not None else "" for c in _labels(labels)]
    return grid(list(between), names, "Between two test images")


def _samples(model: VAE, split: Split, config: EvaluateConfig) -> Figure:
    count = config.figure_images
    if model.condition is None:
        images = sample_prior(model, count * count, seed=config.seed)
        return grid(list(images.unflatten(0, (count, count))), [""] * count, "Samples from the prior (pixel means)")
    classes = split.spec.num_classes
    labels = torch.arange(classes).repeat_interleave(count)
    images = sample_prior(model, classes * count, seed=config.seed, labels=labels).unflatten(0, (classes, count))
    return grid(list(images), [f"class {c}" for c in range(classes)], "Samples of each class (pixel means)")


def _codes(model: VQVAE, images: Tensor, x: Tensor, count: int) -> Figure:
    with torch.no_grad():
        codes = model.quantizer.nearest(model.encode(x[:count]))
        decoded = model.decode(codes).mean
    scaled = codes[:, None].float() / (model.config.num_codes - 1)
    enlarged = torch.nn.functional.interpolate(scaled, size=images.shape[-2:], mode="nearest")
    enlarged = enlarged.expand(-1, images.shape[1], -1, -1)
    title = f"Codes ({model.code_height} x {model.code_width} of {model.config.num_codes}, shown by number)"
    return grid([images.float()[:count] / 255, enlarged, decoded], ["image", "codes", "decoded"], title)


def _side_by_side(row: Tensor) -> Tensor:
    return torch.cat(row.unbind(0), dim=-1)


def _one_of_each_class(split: Split, count: int) -> np.ndarray:
    """`count` rows of the split, going round the classes where there are labels."""
    everything = np.arange(len(split))
    labels = split.labels(everything)
    if labels is None:
        return everything[:count]
    turn = np.zeros(len(split), dtype=np.int64)
    for label in np.unique(labels):
        turn[labels == label] = np.arange((labels == label).sum())
    order: np.ndarray = np.lexsort((labels, turn))[:count]
    return order


def _labels(labels: Tensor | None) -> list[int]:
    return [0] * INTERPOLATED_PAIRS if labels is None else labels[:INTERPOLATED_PAIRS].tolist()
