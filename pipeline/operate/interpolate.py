"""draw the path between two images through a trained model's latent space -> interpolate.png"""

from argparse import ArgumentParser, Namespace
from typing import TYPE_CHECKING, Any

from pipeline.config import Params
from pipeline.errors import UserError
from pipeline.operate import _saved, _shown

if TYPE_CHECKING:
    from torch import Tensor

    from vae_core.sampling import Path as Along

NOTE = """\
ID is the `id` of an image in data/shards/index.parquet, or a row of the test split from 0. A conditional model sees
each image with its own label, attributes or embedding, and the path leads from those of the one to those of the
other."""


def arguments(parser: ArgumentParser) -> None:
    _shown.model_arguments(
        parser,
        "--family vae --from 0 --to 1",
        "--family vae --from 0 --to 1 --steps 20 --spherical --out path.png",
        note=NOTE,
    )
    parser.add_argument("--from", metavar="ID", dest="start", required=True, help="where the path begins")
    parser.add_argument("--to", metavar="ID", dest="end", required=True, help="where it ends")
    parser.add_argument("--steps", metavar="N", type=_shown.integer(2, 100), default=10, help="points, with ends [10]")
    parser.add_argument(
        "--spherical", action="store_true", help="along the great arc, on which a Gaussian's samples lie"
    )
    _shown.out_argument(parser, "interpolate.png", "where the picture goes")


def main(params: Params, args: Namespace) -> None:
    from vae_core.models import CodeModel

    out = _saved.picture_path(args.out)
    trained = _shown.open_trained(params, args)
    if args.spherical and isinstance(trained.model, CodeModel):
        raise UserError(f"--spherical: {trained.family} has codes, in which there is no arc; leave it out")
    start, end = (_shown.look_up(params, trained, *which) for which in ((args.start, "--from"), (args.end, "--to")))
    path = between(trained, start, end, args.steps, "spherical" if args.spherical else "linear").cpu()
    title = f"From {_saved.short(start.id)} to {_saved.short(end.id)}"
    if trained.model.data.height == 1:  # curves one below the other
        rows = [start.pixels, *path[:, None], end.pixels]
        names = ["from", *(f"{i / (args.steps - 1):.2f}" for i in range(args.steps)), "to"]
    else:
        rows = _saved.in_rows(_joined(start.pixels, path, end.pixels), args.steps + 2)
        names = [trained.family]
    _saved.save_picture(rows, names, title, out)
    print(out)


def between(
    trained: _shown.Trained, start: _shown.Image, end: _shown.Image, steps: int, path: "Along" = "linear"
) -> "Tensor":
    """[steps, C, H, W] means; the ends are the reconstructions of the two images, each under its own condition."""
    import torch

    from vae_core.models import CodeModel
    from vae_core.sampling import interpolate, slerp

    model = trained.model
    if start.c is None or end.c is None or torch.equal(start.c, end.c):
        return interpolate(model, start.x, end.x, steps, start.c, path=path)[0]
    walk: Any = slerp if path == "spherical" else torch.lerp
    if isinstance(model, CodeModel):
        walk = model.between
    with torch.no_grad():
        first: Any = model.represent(start.x, start.c)
        last: Any = model.represent(end.x, end.c)
        points = []
        for fraction in torch.linspace(0, 1, steps).tolist():
            latent = walk(first, last, fraction)
            points.append(model.decode(latent, torch.lerp(start.c, end.c, fraction)).mean)
    return torch.cat(points)


def _joined(*parts: "Tensor") -> "Tensor":
    import torch

    return torch.cat([part.float().cpu() for part in parts])
