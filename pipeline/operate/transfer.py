"""draw an image as other classes, its style kept, by a model that knows labels -> transfer.png"""

from argparse import ArgumentParser, Namespace

from pipeline.config import Params
from pipeline.errors import UserError
from pipeline.operate import _saved, _shown

NOTE = """\
The image is encoded with its own label and decoded with another: what the label does not explain, such as slant and
stroke width, stays. ID is the `id` of an image in data/shards/index.parquet, or a row of the test split from 0."""


def arguments(parser: ArgumentParser) -> None:
    _shown.model_arguments(
        parser, "--family cvae --image 0", "--family cvae --image 0 --label 7 --out seven.png", note=NOTE
    )
    parser.add_argument("--image", metavar="ID", required=True, help="the image")
    _shown.label_arguments(parser)
    _shown.out_argument(parser, "transfer.png", "where the picture goes")


def main(params: Params, args: Namespace) -> None:
    import torch

    from vae_core.conditioning import Known
    from vae_core.sampling import reconstruct, transfer_style

    out = _saved.picture_path(args.out)
    trained = _shown.open_trained(params, args)
    labels = _shown.chosen_labels(trained, args)
    if not labels:
        raise UserError(f"--family {trained.family}: not conditioned on labels; name a family with `condition: label`")
    image = _shown.look_up(params, trained, args.image, "--image")
    other = trained.model.condition(Known(labels=torch.tensor(labels, device=trained.device)))
    assert image.c is not None
    assert other is not None
    count = len(labels)
    own = image.x.expand(count, -1, -1, -1), image.c.expand(count, -1)
    drawn = transfer_style(trained.model, *own, other)
    first = torch.cat((image.pixels, reconstruct(trained.model, image.x, image.c).cpu()))
    width = min(_saved.columns(trained.model.data), max(2, count))
    parts = [_saved.filled_up(row, width) for row in drawn.cpu().split(width)]
    names = [_named(labels[i : i + width]) for i in range(0, count, width)]
    title = f"{_saved.short(image.id)} and its style in other classes"
    _saved.save_picture([_saved.filled_up(first, width), *parts], [f"image, as {image.label}", *names], title, out)
    print(out)


def _named(labels: tuple[int, ...]) -> str:
    first, last = labels[0], labels[-1]
    if len(labels) > 2 and labels == tuple(range(first, last + 1)):
        return f"as {first} to {last}"
    return f"as {', '.join(map(str, labels))}"
