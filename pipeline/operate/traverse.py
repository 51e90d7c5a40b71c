"""draw what each latent dimension of a trained model changes in an image -> traverse.png"""

from argparse import ArgumentParser, ArgumentTypeError, Namespace
from typing import TYPE_CHECKING

from pipeline.config import Params
from pipeline.errors import UserError
from pipeline.operate import _saved, _shown

if TYPE_CHECKING:
    from vae_core.models import ContinuousModel

MOST = 12  # dimensions without --dims
COMPARED = 256  # images of the test split whose latents say which dimensions vary
NOTE = """\
A row a dimension: the image's latent with that number set to values from -R to R, all others kept. Without --dims those
in which the test images differ most, at most 12. ID is the `id` of an image in data/shards/index.parquet, or a row of
the test split from 0."""


def arguments(parser: ArgumentParser) -> None:
    _shown.model_arguments(
        parser, "--family vae --image 0", "--family vae --image 0 --dims 0,1,2 --range 2 --out dims.png", note=NOTE
    )
    parser.add_argument("--image", metavar="ID", required=True, help="the image to start from")
    parser.add_argument("--dims", metavar="D,D", type=_shown.integers, help="which dimensions, from 0")
    parser.add_argument("--range", metavar="R", type=_range, default=3.0, help="how far from 0 [3]")
    _shown.out_argument(parser, "traverse.png", "where the picture goes")


def main(params: Params, args: Namespace) -> None:
    import torch

    from vae_core.models import ContinuousModel
    from vae_core.sampling import traverse

    out = _saved.picture_path(args.out)
    trained = _shown.open_trained(params, args)
    model = trained.model
    if not isinstance(model, ContinuousModel):
        raise UserError(f"--family {trained.family}: its latents are codes, not numbers to turn; use `interpolate`")
    for dim in args.dims or ():
        if dim >= model.latent_dim:
            raise UserError(f"--dims {dim}: {trained.family} has the dimensions 0 to {model.latent_dim - 1}")
    image = _shown.look_up(params, trained, args.image, "--image")
    dims = list(args.dims or _widest(params, trained, model))
    values = torch.linspace(-args.range, args.range, _saved.columns(trained.model.data))
    with torch.no_grad():
        z = model.represent(image.x, image.c)
    rows = traverse(model, z, values.to(trained.device), image.c, dims=dims)
    title = f"{_saved.short(image.id)}: one dimension at a time, from -{args.range:g} to {args.range:g}"
    _saved.save_picture(list(rows), [f"z{dim}" for dim in dims], title, out)
    print(out)


def _widest(params: Params, trained: _shown.Trained, model: "ContinuousModel") -> list[int]:
    """The dimensions in which the first test images differ most."""
    import torch

    split = _shown.open_data(params, trained, "test")
    latents, rows = [], 0
    for _, x, c in _shown.seen(trained, split, params.evaluate, "compare the dimensions"):
        with torch.no_grad():
            latents.append(model.represent(x, c))
        rows += len(x)
        if rows >= COMPARED:
            break
    spread: list[int] = torch.cat(latents).std(0).argsort(descending=True, stable=True)[:MOST].tolist()
    return spread


def _range(text: str) -> float:
    try:
        value = float(text)
    except ValueError:
        value = 0.0
    if not 0 < value <= 100:
        raise ArgumentTypeError(f"expected a number above 0, up to 100, found {text!r}")
    return value
