"""What the earlier stages left, read once. A missing or damaged file is an error that names it and the remedy."""

import csv
import io
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from PIL import Image

from pipeline import files
from pipeline.data.ledger import Reason, read_ledger
from pipeline.errors import UserError

Row = Mapping[str, str]

LEDGER = "data/quarantine.parquet"

CURVES = (
    "epoch",
    "train_neg_elbo_nats",
    "train_distortion_nats",
    "train_rate_nats",
    "val_neg_elbo_nats",
    "val_distortion_nats",
    "val_rate_nats",
)
TRIALS = (
    "trial", "status", "epochs", "val_neg_elbo_nats", "val_distortion_nats", "val_rate_nats", "metric", "best", "pareto"
)  # fmt: skip
SWEEP = ("rate_distortion", "parallel_coordinates", "importance")
STATISTICS = ("mean", "std", "min", "max")
FIGURES = ("reconstructions", "samples", "interpolation", "traversal", "style", "codes")


@dataclass(frozen=True, slots=True)
class Picture:
    """A PNG as it lies on the disk, with its size in pixels."""

    data: bytes
    width: int
    height: int


@dataclass(frozen=True, slots=True)
class Dataset:
    """What data/dataset.json and the quarantine ledger say.

    Attributes:
        image: height, width, channels.
        counts: rows of each split.
        generations: likewise, of the source and of each one appended to it.
        statistics: mean, std, min and max of each channel over the training rows, 0 to 255.
        embedding: length of the embedding vectors; 0: there are none.
        quarantined: reasons, the most frequent first.
    """

    name: str
    image: tuple[int, int, int]
    classes: Sequence[str]
    attributes: Sequence[str]
    embedding: int
    counts: Mapping[str, int]
    generations: Sequence[Mapping[str, int]]
    statistics: Mapping[str, Sequence[float]]
    quarantined: Sequence[Reason]
    rows_in: int
    rows_prepared: int
    rows_quarantined: int
    duplicate_images: int
    duplicates_across_splits: int
    test_images_also_in_train: int
    files: Mapping[str, str]
    digest: str


@dataclass(frozen=True, slots=True)
class Family:
    """Everything that was computed for one family.

    Attributes:
        objectives: the validation figures that the sweep was judged by; the first decided.
        explained: there were trials enough to say how much each key mattered.
    """

    name: str
    curves: Sequence[Row]
    trials: Sequence[Row]
    objectives: Sequence[str]
    sweep: Mapping[str, Picture]
    explained: bool
    metrics: Mapping[str, Mapping[str, Any]]
    figures: Mapping[str, Picture]
    findings: Sequence[Mapping[str, str]]
    model: Mapping[str, Any]
    lineage: Mapping[str, str]
    parity: Mapping[str, Any]
    artifact: Sequence[tuple[str, int]]


def read_dataset(root: Path) -> Dataset:
    """The one place that knows the keys of data/dataset.json."""
    file = Json.read(root, "data/dataset.json")
    image = file.at("image")
    ledger = read_ledger(root / LEDGER, LEDGER)
    if {reason.error: reason.rows for reason in ledger} != file.at("quarantined"):
        raise _damaged(LEDGER, "its rows are not those that data/dataset.json counts")
    return Dataset(
        name=str(file.at("name")),
        image=(image["height"], image["width"], image["channels"]),
        classes=tuple(map(str, file.at("classes") or ())),
        attributes=tuple(file.at("attributes")),
        embedding=file.at("embedding"),
        counts=file.at("counts"),
        generations=tuple(file.at("generations")),
        statistics={name: file.at("statistics", name) for name in STATISTICS},
        quarantined=ledger,
        rows_in=file.at("rows_in"),
        rows_prepared=file.at("rows_prepared"),
        rows_quarantined=file.at("rows_quarantined"),
        duplicate_images=file.at("duplicate_images"),
        duplicates_across_splits=file.at("duplicates_across_splits"),
        test_images_also_in_train=file.at("test_images_also_in_train"),
        files=file.at("files"),
        digest=str(file.at("digest")),
    )


def read_family(name: str, root: Path) -> Family:
    results = Json.read(root, f"results/evaluate/{name}.json")
    config = Json.read(root, f"artifacts/{name}/config.json")
    return Family(
        name=name,
        curves=_table(root, f"results/train/{name}/curves.tsv", "\t", CURVES),
        trials=_table(root, f"results/tune/{name}/trials.csv", ",", TRIALS),
        objectives=tuple(Json.read(root, f"results/tune/{name}/best.json").content),
        sweep={figure: _picture(root, f"results/tune/{name}/{figure}.png") for figure in SWEEP},
        explained="why" not in Json.read(root, f"results/tune/{name}/importance.json").content,
        metrics={which: results.at(which, "test") for which in ("baseline", "best")},
        figures=dict(_figures(root, f"results/evaluate/{name}")),
        findings=Json.read(root, f"results/diagnosis/{name}.json").content,
        model=config.at("model"),
        lineage=config.at("lineage"),
        parity=Json.read(root, f"artifacts/{name}/metrics.json").at("parity"),
        artifact=_sizes(root / "artifacts" / name),
    )


@dataclass(frozen=True, slots=True)
class Json:
    """A JSON file that knows its name, so that a key it lacks is reported with it."""

    name: str
    content: Any

    @classmethod
    def read(cls, root: Path, name: str) -> "Json":
        try:
            return cls(name, files.parse_json(_bytes(root, name)))
        except ValueError as error:
            raise _damaged(name, f"not valid JSON ({error})") from None

    def at(self, *keys: str) -> Any:
        node = self.content
        for depth, key in enumerate(keys, start=1):
            if not isinstance(node, dict) or key not in node:
                raise _damaged(self.name, f"no key {'.'.join(keys[:depth])!r}")
            node = node[key]
        return node


def _bytes(root: Path, name: str) -> bytes:
    try:
        return (root / name).read_bytes()
    except OSError:
        raise UserError(f"{name}: no such file, and the report shows it; make it with `dvc repro`") from None


def _damaged(name: str, why: str) -> UserError:
    return UserError(f"{name}: {why}; delete the file and make it again with `dvc repro`")


def _table(root: Path, name: str, delimiter: str, columns: Sequence[str]) -> list[Row]:
    text = _bytes(root, name).decode("utf-8", errors="replace")
    rows = list(csv.DictReader(io.StringIO(text), delimiter=delimiter))
    if not rows:
        raise _damaged(name, "it holds no rows")
    if missing := [column for column in columns if rows[0].get(column) is None]:
        raise _damaged(name, f"no column {missing[0]!r}")
    return list(rows)


def _figures(root: Path, folder: str) -> Iterator[tuple[str, Picture]]:
    for figure in FIGURES:
        if (root / folder / f"{figure}.png").exists():
            yield figure, _picture(root, f"{folder}/{figure}.png")


def _picture(root: Path, name: str) -> Picture:
    data = _bytes(root, name)
    try:
        with Image.open(io.BytesIO(data), formats=["PNG"]) as image:
            return Picture(data, image.width, image.height)
    except OSError:
        raise _damaged(name, "not a PNG image") from None


def _sizes(folder: Path) -> list[tuple[str, int]]:
    """Name and bytes of each file, by name; hidden files are not the artifact's."""
    files = {path.relative_to(folder).as_posix(): path for path in folder.rglob("*") if path.is_file()}
    return [(name, files[name].stat().st_size) for name in sorted(files) if not name.startswith(".")]
