"""What the commands that use a trained model share: their arguments, opening it, images as it sees them."""

from argparse import ArgumentParser, ArgumentTypeError, Namespace, RawDescriptionHelpFormatter
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from pipeline.config import Params
from pipeline.errors import UserError, did_you_mean

if TYPE_CHECKING:
    import torch
    from torch import Tensor

    from pipeline.config import EvaluateConfig
    from pipeline.data.loader import Split
    from pipeline.data.store import Store
    from vae_core.models import Model


@dataclass(frozen=True, slots=True)
class Trained:
    """A model that a stage left, on its device.

    Attributes:
        which: best or baseline.
        digest: of its weights and configuration.
        written: the content of its config.json.
    """

    family: str
    which: str
    model: "Model"
    device: "torch.device"
    digest: str
    written: dict[str, Any]


@dataclass(frozen=True, slots=True)
class Image:
    """One row of the data.

    Attributes:
        pixels: [1, C, H, W], in [0, 1].
        x: what the model sees of them, on its device.
        c: [1, E], or None.
    """

    id: str
    split: str
    row: int
    label: int | None
    pixels: "Tensor"
    x: "Tensor"
    c: "Tensor | None"


def model_arguments(parser: ArgumentParser, *examples: str, note: str = "") -> None:
    """--family and --model, and examples below the help."""
    shown = "\n".join(f"  {parser.prog} {example}" for example in examples)
    parser.formatter_class = RawDescriptionHelpFormatter
    parser.epilog = f"{note}\n\nexamples:\n{shown}".lstrip()
    parser.add_argument("--family", metavar="F", required=True, help="a name under `families` in params.yaml")
    parser.add_argument("--model", choices=("best", "baseline"), default="best", help="which of its models [best]")


def out_argument(parser: ArgumentParser, default: str, what: str) -> None:
    parser.add_argument("--out", metavar="PATH", default=default, help=f"{what} [{default}]")


def integer(least: int, most: int | None = None) -> Callable[[str], int]:
    """The type of an argument that is a whole number in a range."""

    def read(text: str) -> int:
        if not text.isascii() or not text.isdigit() or int(text) < least or (most is not None and int(text) > most):
            up_to = "" if most is None else f" to {most}"
            raise ArgumentTypeError(f"expected an integer from {least}{up_to or ' on'}, found {text!r}")
        return int(text)

    return read


def integers(text: str) -> tuple[int, ...]:
    """The type of an argument such as 0,1,2."""
    return tuple(integer(0)(part) for part in text.split(","))


def open_trained(params: Params, args: Namespace) -> Trained:
    """The model that the arguments name.

    Raises:
        UserError: there is no such family, or its model is missing or damaged.
    """
    if args.family not in params.families:
        nearest = did_you_mean(args.family, params.families)
        raise UserError(f"--family {args.family}: not under `families` in params.yaml{nearest}")
    import torch

    from pipeline import files
    from pipeline.evaluate.models import digest, open_model
    from pipeline.stages import MODELS
    from vae_core.serialize import CONFIG

    directory, stage = MODELS / args.family / args.model, {"best": "tune", "baseline": "train"}[args.model]
    if not directory.is_dir():
        raise UserError(
            f"{directory}: no such model; make it with `dvc repro {stage}@{args.family}`, or restore it with "
            "`dvc checkout`"
        )
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    model = open_model(directory).to(device)
    return Trained(args.family, args.model, model, device, digest(directory), files.read_json(directory / CONFIG))


def shards(params: Params) -> str | Path:
    """data/shards, or where that is not on this machine, what compute.shards names."""
    from pipeline.data.index import MANIFEST
    from pipeline.stages import SHARDS

    return SHARDS if params.compute.shards is None or (SHARDS / MANIFEST).exists() else params.compute.shards


def open_data(params: Params, trained: Trained, split: str) -> "Split":
    """A split of data that the model can read.

    Raises:
        UserError: the shards are damaged, or hold other images or columns than the model was trained on.
    """
    from pipeline.data.loader import open_split

    opened = open_split(shards(params), split, params.compute.read)
    here, there, condition = opened.spec, trained.model.data, trained.model.config.condition
    column = {"none": "", "label": "num_classes", "attributes": "attributes", "embedding": "embedding"}[condition]
    for name in ("channels", "height", "width", *([column] if column else [])):
        if getattr(here, name) != getattr(there, name):
            raise UserError(
                f"{shards(params)}: expected {name} {getattr(there, name)}, which {trained.family} was trained on, "
                f"found {getattr(here, name)}; train it on these data with `dvc repro`"
            )
    return opened


def seen(
    trained: Trained, split: "Split", config: "EvaluateConfig", what: str
) -> Iterator[tuple[Any, "Tensor", "Tensor | None"]]:
    """Batch, observed pixels and condition of every row of a split, in its order.

    Pixels of a Bernoulli likelihood are binary draws, for each row the same ones in every command and on every device.
    """
    from pipeline.data.loader import Loader
    from pipeline.progress import track
    from vae_core.likelihoods import observe
    from vae_core.noise import Noise

    model, size = trained.model, config.batch_size
    loader = Loader(split, seed=config.seed, window_shards=1, global_batch_size=size)
    batches = track(loader.sequential(size), total=loader.steps_per_epoch, what=what, unit="batches")
    for step, batch in enumerate(batches):
        noise = Noise.of(batch, seed=config.seed, scope=_scope(split), step=step)
        x = observe(batch.images, model.config.likelihood, noise).to(trained.device)
        yield batch, x, model.condition(batch.to(trained.device))


def look_up(params: Params, trained: Trained, name: str, option: str) -> Image:
    """The image with this id, or at this row of the test split, as `seen` gives it.

    Raises:
        UserError: there is none.
    """
    import numpy as np
    import torch

    from vae_core.likelihoods import observe
    from vae_core.noise import Noise

    split_name, row = _place(params, name, option)
    split, config = open_data(params, trained, split_name), params.evaluate
    rows = np.array([row], dtype=np.int64)
    batch = split.batch(rows)
    step, position = divmod(row, config.batch_size)
    there = min(config.batch_size, len(split) - step * config.batch_size)
    noise = Noise(config.seed, _scope(split), step, torch.tensor([position]), there)
    x = observe(batch.images, trained.model.config.likelihood, noise).to(trained.device)
    label = None if batch.labels is None else int(batch.labels[0])
    c = trained.model.condition(batch.to(trained.device))
    return Image(split.ids(rows)[0], split_name, row, label, batch.images.float() / 255, x, c)


def open_images(params: Params) -> "Store":
    """The store of the shards, for their ids."""
    from pipeline.data.store import open_store

    return open_store(shards(params), params.compute.read)


def chosen_labels(trained: Trained, args: Namespace) -> tuple[int, ...]:
    """The classes of --label or --labels; without them the first 20; none for a model that knows no labels.

    Raises:
        UserError: the model is not conditioned on labels, or does not know one of them.
    """
    wanted = args.labels if args.label is None else (args.label,)
    option = "--labels" if args.label is None else "--label"
    model, classes = trained.model, trained.model.data.num_classes
    if model.config.condition != "label":
        if wanted is None:
            return ()
        raise UserError(
            f"{option}: {trained.family} is not conditioned on labels (condition: {model.config.condition}); leave it "
            "out, or name a family with `condition: label`"
        )
    if wanted is None:
        return tuple(range(min(classes, 20)))
    for label in wanted:
        if label >= classes:
            raise UserError(f"{option} {label}: {trained.family} knows the labels 0 to {classes - 1}; name one of them")
    return tuple(wanted)


def label_arguments(parser: ArgumentParser) -> None:
    group = parser.add_mutually_exclusive_group()
    group.add_argument("--label", metavar="L", type=integer(0), help="one class, by number")
    group.add_argument("--labels", metavar="L,L", type=integers, help="several classes [all]")


def sample_rate(params: Params) -> int | None:
    """Of the data, in Hz, where they are sound."""
    return params.data.source.sample_rate if params.data.source.kind == "wav" else None


def _scope(split: "Split") -> str:
    return f"encode/{split.name}"


def _place(params: Params, name: str, option: str) -> tuple[str, int]:
    """Split and row of an id, or of a row of the test split."""
    import pyarrow.compute as pc

    store = open_images(params)
    index = store.index(["id", "split"])
    found = pc.index(index["id"], name).as_py()
    if found >= 0:
        split = index["split"][found].as_py()
        return split, pc.sum(pc.equal(index["split"].slice(0, found), split)).as_py() or 0
    rows = store.manifest.counts.get("test", 0)
    if name.isascii() and name.isdigit() and int(name) < rows:
        return "test", int(name)
    raise UserError(
        f"{option} {name}: neither an id in {store.location}/index.parquet (such as {index['id'][0].as_py()!r}) nor a "
        f"row of the test split (0 to {rows - 1}); name one of these"
    )
