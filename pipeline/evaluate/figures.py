"""Pictures of what a model does with test images."""

from collections.abc import Iterator, Mapping, Sequence

import numpy as np
import torch
from matplotlib.figure import Figure
from torch import Tensor

from pipeline.config import EvaluateConfig
from pipeline.data.loader import Split
from vae_core.batch import Batch
from vae_core.conditioning import Known
from vae_core.likelihoods import observe
from vae_core.models import CodeModel, ContinuousModel, Model
from vae_core.noise import Noise
from vae_core.priors import CodePrior
from vae_core.sampling import can_sample, interpolate, reconstruct, sample, transfer_style, traverse

INTERPOLATED_PAIRS = 5
TRAVERSED = 12  # dimensions at most, those of the widest spread first
TRAVERSAL = 3.0  # standard deviations of the prior, to either side


def figures(model: Model, split: Split, config: EvaluateConfig, prior: CodePrior | None) -> Mapping[str, Figure]:
    """Name -> picture: reconstructions and interpolation for all, the rest where the family can do it."""
    count = config.figure_images
    batch = split.batch(_one_of_each_class(split, max(count, 2 * INTERPOLATED_PAIRS)))
    x = observe(batch.images, model.config.likelihood, Noise.of(batch, seed=config.seed, scope="figures", step=0))
    c = model.condition(batch)
    drawn = {"reconstructions": _reconstructions(model, batch.images, x, c, count)}
    drawn["interpolation"] = _interpolation(model, x, c, batch, count)
    if can_sample(model, prior):
        drawn["samples"] = _samples(model, batch, config, prior)
    if isinstance(model, ContinuousModel):
        drawn["traversal"] = _traversal(model, x, c, count)
    if isinstance(model, CodeModel):
        drawn["codes"] = _codes(model, batch.images, x, c, count)
    if model.config.condition == "label":
        drawn["style"] = _style(model, x, batch, count)
    return drawn


def grid(rows: Sequence[Tensor], names: Sequence[str], title: str) -> Figure:
    """One picture of rows of images, each [n, C, H, W] in [0, 1], with a name before each row; signals as curves."""
    return _curves(rows, names, title) if rows[0].shape[-2] == 1 else _images(rows, names, title)


def _images(rows: Sequence[Tensor], names: Sequence[str], title: str) -> Figure:
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


def _curves(rows: Sequence[Tensor], names: Sequence[str], title: str) -> Figure:
    columns = min(len(rows[0]), 5)
    figure = Figure(figsize=(2.0 * columns + 1.0, 0.8 * len(rows) + 0.6), layout="constrained")
    axes = figure.subplots(len(rows), columns, squeeze=False, sharex=True, sharey=True)
    for row, name, line in zip(rows, names, axes, strict=True):
        line[0].set_ylabel(name, rotation=0, ha="right", va="center")
        for signal, cell in zip(row, line, strict=False):
            cell.plot(signal[0, 0].numpy(), linewidth=0.6)
            cell.set(xticks=[], yticks=[], ylim=(0, 1))
    figure.suptitle(title)
    return figure


def _reconstructions(model: Model, images: Tensor, x: Tensor, c: Tensor | None, count: int) -> Figure:
    shown = [images.float()[:count] / 255, x[:count], reconstruct(model, x, c)[:count]]
    names = ["image", "input", "reconstruction"]
    if model.config.likelihood != "bernoulli":  # the input is the image itself
        shown, names = [shown[0], shown[2]], [names[0], names[2]]
    return grid(shown, names, "Test images and reconstructions")


def _interpolation(model: Model, x: Tensor, c: Tensor | None, batch: Batch, steps: int) -> Figure:
    pairs = INTERPOLATED_PAIRS
    between = interpolate(model, x[:pairs], x[pairs : 2 * pairs], steps, None if c is None else c[:pairs])
    by_label = model.config.condition == "label" and batch.labels is not None
    names = [f"as {int(label)}" if by_label else "" for label in (batch.labels[:pairs] if by_label else range(pairs))]  # type: ignore[index]
    return grid(list(between), names, "Between two test images")


def _samples(model: Model, batch: Batch, config: EvaluateConfig, prior: CodePrior | None) -> Figure:
    count, seed = config.figure_images, config.seed
    match model.config.condition:
        case "none":
            c, names, title = None, [""] * count, "Samples from the prior (pixel means)"
        case "label":
            classes = range(min(model.data.num_classes, 20))
            labels = torch.arange(len(classes)).repeat_interleave(count)
            c, names = model.condition(Known(labels=labels)), [f"class {i}" for i in classes]
            title = "Samples of each class (pixel means)"
        case kind:
            rows = min(count, len(batch.images))
            c = model.condition(batch)
            c = None if c is None else c[:rows].repeat_interleave(count, dim=0)
            names, title = [f"image {i + 1}" for i in range(rows)], f"Samples given the {kind} of test images"
    drawn = sample(model, len(names) * count, c, seed=seed, prior=prior)
    return grid(list(drawn.unflatten(0, (len(names), count))), names, title)


def _traversal(model: ContinuousModel, x: Tensor, c: Tensor | None, count: int) -> Figure:
    """Of the first image, along the dimensions in which the images' codes differ most."""
    with torch.no_grad():
        z = model.represent(x, c)
    shown = z.std(0).argsort(descending=True)[:TRAVERSED].tolist()
    values = torch.linspace(-TRAVERSAL, TRAVERSAL, count)
    rows = traverse(model, z[:1], values, None if c is None else c[:1], dims=shown)
    return grid(
        list(rows), [f"z{dim}" for dim in shown], f"One dimension at a time, from -{TRAVERSAL:g} to {TRAVERSAL:g}"
    )


def _style(model: Model, x: Tensor, batch: Batch, count: int) -> Figure:
    """A row an image: decoded as each class in turn."""
    assert batch.labels is not None
    classes, rows = min(model.data.num_classes, 20), min(count, len(x))
    as_is = model.condition(batch)
    assert as_is is not None
    images = x[:rows].repeat_interleave(classes, dim=0)
    other = model.condition(Known(labels=torch.arange(classes).repeat(rows)))
    assert other is not None
    drawn = transfer_style(model, images, as_is[:rows].repeat_interleave(classes, dim=0), other)
    shown = [torch.cat((x[i : i + 1], row)) for i, row in enumerate(drawn.unflatten(0, (rows, classes)))]
    return grid(
        shown, [f"{int(label)} as" for label in batch.labels[:rows]], f"Each image, then as class 0 to {classes - 1}"
    )


def _codes(model: CodeModel, images: Tensor, x: Tensor, c: Tensor | None, count: int) -> Figure:
    c = None if c is None else c[:count]
    with torch.no_grad():
        codes = model.represent(x[:count], c)
        decoded = model.decode(codes, c).mean
    sizes = " and ".join(f"{h} x {w}" for h, w in model.grids)
    rows = [images.float()[:count] / 255, *_pictures(codes, model.num_codes, images), decoded]
    names = ["image", *(f"codes {h} x {w}" for h, w in model.grids), "decoded"]
    return grid(rows, names, f"Codes ({sizes} of {model.num_codes}, shown by number)")


def _pictures(codes: Sequence[Tensor], num_codes: int, images: Tensor) -> Iterator[Tensor]:
    """Each level of codes as grey images of the size of `images`."""
    for level in codes:
        scaled = level[:, None].float() / (num_codes - 1)
        enlarged = torch.nn.functional.interpolate(scaled, size=images.shape[-2:], mode="nearest")
        yield enlarged.expand(-1, images.shape[1], -1, -1)


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
