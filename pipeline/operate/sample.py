"""draw new images, or sound, from a trained model -> sample.png, .npy or WAV files"""

import hashlib
from argparse import ArgumentParser, ArgumentTypeError, Namespace
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING

from pipeline.config import Params
from pipeline.errors import UserError
from pipeline.operate import _saved, _shown

if TYPE_CHECKING:
    from torch import Tensor

    from vae_core.priors import CodePrior

NOTE = """\
A model that is conditioned on labels draws --count images of each class that is named; one that is conditioned on
attributes or an embedding needs --like, an image that has them. Codes come from the prior in models/F/prior. The same
seed gives the same images. A name that ends in .npy becomes uint8 [N, H, W, C], class after class; for sound any other
name but .png a new folder of WAV files."""


def arguments(parser: ArgumentParser) -> None:
    _shown.model_arguments(
        parser,
        "--family vae --count 50",
        "--family cvae --labels 0,1,2 --temperature 0.8",
        "--family vqvae --count 1000 --seed 7 --out samples.npy",
        note=NOTE,
    )
    parser.add_argument("--count", metavar="N", type=_shown.integer(1), help="images, of each class [10]")
    _shown.label_arguments(parser)
    parser.add_argument("--like", metavar="ID", help="image whose attributes or embedding the samples shall have")
    parser.add_argument(
        "--temperature", metavar="T", type=_temperature, default=1.0, help="below 1 nearer to the typical image [1]"
    )
    parser.add_argument("--draw", action="store_true", help="draw the pixels too, instead of their means")
    parser.add_argument(
        "--seed", metavar="S", type=_shown.integer(0, 2**63 - 1), default=0, help="of the random numbers [0]"
    )
    _shown.out_argument(parser, "sample.png", "where the images go")


def main(params: Params, args: Namespace) -> None:
    out, form = Path(args.out), Path(args.out).suffix.lower()
    trained = _shown.open_trained(params, args)
    labels = _shown.chosen_labels(trained, args)
    prior = _prior(trained, args.temperature)
    like = _like(params, trained, args.like)
    each = args.count or _saved.IMAGES
    total = each * max(1, len(labels))
    rate = _shown.sample_rate(params)
    if form not in (".npy", ".png") and (rate is None or out.exists()):
        raise UserError(f"--out {out}: expected a name that ends in .png or .npy" + (", or a new folder" * bool(rate)))
    if form == ".png" and total > _saved.MOST_SHOWN:
        raise UserError(f"--out {out}: a picture shows at most {_saved.MOST_SHOWN} images, not {total}; name an .npy")
    means = _drawn(trained, args, labels, like, prior, total, params.evaluate.batch_size)
    if form == ".png":
        _save_picture(list(means), trained, args, labels, out)
    else:
        _save(means, trained, total, rate, out)
    print(f"{out}: {total:,} rows")


def _drawn(
    trained: _shown.Trained,
    args: Namespace,
    labels: tuple[int, ...],
    like: "_shown.Image | None",
    prior: "CodePrior | None",
    total: int,
    batch_size: int,
) -> Iterator["Tensor"]:
    """[B, C, H, W] in [0, 1], a batch at a time."""
    import torch

    from pipeline.progress import track
    from vae_core.conditioning import Known
    from vae_core.sampling import sample

    classes = torch.tensor(labels, dtype=torch.int64).repeat_interleave(total // max(1, len(labels)))
    starts = range(0, total, batch_size)
    for start in track(starts, total=len(starts), what=f"sample {trained.family}", unit="batches"):
        count = min(batch_size, total - start)
        c = None if like is None or like.c is None else like.c.expand(count, -1)
        if labels:
            c = trained.model.condition(Known(labels=classes[start : start + count].to(trained.device)))
        yield sample(
            trained.model, count, c, seed=_seed(args.seed, start), temperature=args.temperature,
            pixels="draw" if args.draw else "mean", prior=prior,
        )  # fmt: skip


def _seed(seed: int, start: int) -> int:
    """Of a batch; hashed, so that the second batch of a seed is not the first one of the next."""
    if start == 0:
        return seed
    return int.from_bytes(hashlib.blake2b(f"{seed}/{start}".encode(), digest_size=7).digest())


def _prior(trained: _shown.Trained, temperature: float) -> "CodePrior | None":
    """The prior over the model's codes; None where the model has its own.

    Raises:
        UserError: it needs one and there is none, or one of another model; or it cannot be sampled from at all.
    """
    from vae_core.models import CodeModel
    from vae_core.sampling import can_sample

    model = trained.model
    if can_sample(model):  # the prior is part of what it was trained on
        if isinstance(model, CodeModel) and temperature != 1:
            raise UserError(f"--temperature: the prior of {trained.family} is uniform and has none; leave it out")
        return None
    if not isinstance(model, CodeModel):
        raise UserError(
            f"--family {trained.family}: a model of kind {model.config.kind} has no prior to draw from; name a family "
            "of another kind, or use `interpolate`"
        )
    return _learned_prior(trained)


def _learned_prior(trained: _shown.Trained) -> "CodePrior":
    from pipeline import files
    from pipeline.evaluate.models import open_prior
    from pipeline.stages import MODELS
    from vae_core.serialize import CONFIG

    directory, family = MODELS / trained.family / "prior", trained.family
    prior = open_prior(directory) if directory.is_dir() else None
    if prior is None:
        raise UserError(f"{directory}: no prior over the codes of {family}; train it with `dvc repro prior@{family}`")
    learned_from = files.read_json(directory / CONFIG).get("lineage", {}).get("model")
    if learned_from != trained.digest:
        raise UserError(
            f"{directory}: learned from the codes of the model {learned_from}, and models/{family}/{trained.which} is "
            f"{trained.digest}; use --model best, or train it anew with `dvc repro prior@{family}`"
        )
    return prior.to(trained.device)


def _like(params: Params, trained: _shown.Trained, name: str | None) -> "_shown.Image | None":
    """The image whose condition the samples shall have.

    Raises:
        UserError: it is needed and not named, or the other way round.
    """
    condition = trained.model.config.condition
    if condition in ("attributes", "embedding"):
        if name is None:
            raise UserError(f"--like: {trained.family} is conditioned on {condition}; name an image that has them")
        return _shown.look_up(params, trained, name, "--like")
    if name is not None:
        raise UserError(f"--like: {trained.family} is not conditioned on attributes or an embedding; leave it out")
    return None


def _save(means: Iterator["Tensor"], trained: _shown.Trained, total: int, rate: int | None, out: Path) -> None:
    """An .npy file, or a folder of sound."""
    from pipeline import files

    data = trained.model.data
    with _saved.written(out):
        if out.suffix.lower() == ".npy":
            _saved.save_array(means, (total, data.height, data.width, data.channels), out)
            return
        with files.new_directory(out) as folder:
            signals = (signal for mean in means for signal in mean)
            for row, signal in enumerate(signals):
                _saved.save_sound(signal, rate or 0, folder / f"{row:08d}.wav")


def _save_picture(
    drawn: list["Tensor"], trained: _shown.Trained, args: Namespace, labels: tuple[int, ...], out: Path
) -> None:
    """A row a class, or as many rows as there are."""
    import torch

    images, width = torch.cat(drawn).cpu(), _saved.columns(trained.model.data)
    rows, names = [], []
    for i, one in enumerate(images.split(len(images) // max(1, len(labels)))):
        parts = _saved.in_rows(one, min(width, len(one)))
        rows += parts
        names += [f"class {labels[i]}" if labels else "", *[""] * (len(parts) - 1)]
    what = "draws of the pixels" if args.draw else "pixel means"
    warmth = "" if args.temperature == 1 else f", temperature {args.temperature:g}"
    given = "" if args.like is None else f" like {_saved.short(args.like)}"
    _saved.save_picture(rows, names, f"Samples of {trained.family}{given} ({what}{warmth})", out)


def _temperature(text: str) -> float:
    try:
        value = float(text)
    except ValueError:
        value = 0.0
    if not 0 < value < float("inf"):
        raise ArgumentTypeError(f"expected a number above 0, found {text!r}")
    return value
