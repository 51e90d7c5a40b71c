"""draw and print the training images whose codes lie nearest to an image's -> nearest.png"""

from argparse import ArgumentParser, Namespace
from dataclasses import dataclass
from typing import TYPE_CHECKING

from pipeline.config import Params
from pipeline.operate import _saved, _shown

if TYPE_CHECKING:
    from torch import Tensor

    from pipeline.data.loader import Split

NOTE = """\
Distances are Euclidean between posterior means, or for codes the number of places at which they differ. The image
itself is left out. ID is the `id` of an image in data/shards/index.parquet, or a row of the test split from 0."""


def arguments(parser: ArgumentParser) -> None:
    _shown.model_arguments(parser, "--family vae --image 0", "--family vqvae --image 0 --count 30", note=NOTE)
    parser.add_argument("--image", metavar="ID", required=True, help="the image whose neighbours are wanted")
    parser.add_argument(
        "--count", metavar="K", type=_shown.integer(1, _saved.MOST_SHOWN), default=10, help="how many [10]"
    )
    _shown.out_argument(parser, "nearest.png", "where the picture goes")


@dataclass(frozen=True, slots=True)
class Neighbours:
    """Rows of the training split [K] and their distances [K], the nearest first; of equal ones the earlier row."""

    rows: "Tensor"
    distances: "Tensor"


def main(params: Params, args: Namespace) -> None:
    import torch

    from pipeline.data.shape import things

    out = _saved.picture_path(args.out)
    trained = _shown.open_trained(params, args)
    image = _shown.look_up(params, trained, args.image, "--image")
    train = _shown.open_data(params, trained, "train")
    found = nearest(params, trained, image, train, args.count)
    rows = found.rows.numpy()
    images = torch.from_numpy(train.images(rows)).permute(0, 3, 1, 2).float() / 255
    width = min(_saved.columns(trained.model.data), len(images))
    parts = _saved.in_rows(images, width)
    names = ["image", *(f"{i * width + 1} to {min((i + 1) * width, len(images))}" for i in range(len(parts)))]
    title = f"Training {things(train.manifest.shape)} nearest to {_saved.short(image.id)} in {trained.family}"
    labels, classes = train.labels(rows), train.manifest.classes
    for i, (name, distance) in enumerate(zip(train.ids(rows), found.distances.tolist(), strict=True)):
        label = "" if labels is None else f"  {_saved.plain(classes[labels[i]])}"
        print(f"{i + 1:>4}  {distance:<10.6g}  {_saved.plain(name)}{label}")
    _saved.save_picture([_saved.filled_up(image.pixels, width), *parts], names, title, out)
    print(out)


def nearest(params: Params, trained: _shown.Trained, image: _shown.Image, train: "Split", count: int) -> Neighbours:
    """The `count` rows of the training split with the nearest codes. Memory: one batch."""
    import torch

    distances, rows, start = torch.empty(0), torch.empty(0, dtype=torch.int64), 0
    with torch.no_grad():
        wanted = _vectors(trained.model.represent(image.x, image.c))
    for _, x, c in _shown.seen(trained, train, params.evaluate, f"encode {trained.family} train"):
        with torch.no_grad():
            found = _distances(wanted, _vectors(trained.model.represent(x, c))).cpu()
        if image.split == "train" and start <= image.row < start + len(x):
            found[image.row - start] = torch.inf
        rows = torch.cat((rows, torch.arange(start, start + len(x))))
        distances, order = torch.cat((distances, found)).sort(stable=True)
        distances, rows = distances[:count], rows[order[:count]]
        start += len(x)
    there = distances.isfinite()
    return Neighbours(rows[there], distances[there])


def _distances(wanted: "Tensor", vectors: "Tensor") -> "Tensor":
    """[B]: Euclidean between numbers, Hamming between codes."""
    import torch

    if torch.is_floating_point(vectors):
        return (vectors - wanted).square().sum(1).sqrt()
    return (vectors != wanted).sum(1).float()


def _vectors(latent: "Tensor | tuple[Tensor, ...]") -> "Tensor":
    """[B, length]: numbers, or the codes of all levels side by side."""
    import torch

    if isinstance(latent, torch.Tensor):
        return latent.float()
    return torch.cat([level.flatten(1) for level in latent], dim=1)
