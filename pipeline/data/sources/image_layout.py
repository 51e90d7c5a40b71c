"""What the folders of images mean: classes, or splits with the classes inside."""

from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass

from pipeline import progress
from pipeline.data.config import ImageFolderSource, WavSource
from pipeline.data.sources.image_listing import Found
from pipeline.data.sources.labels import check_shared, nfc
from pipeline.data.sources.splits import official, split_of
from pipeline.errors import UserError


@dataclass(frozen=True, slots=True)
class Layout:
    """Splits by the names of the top folders that mean them; empty where the top folders are the classes."""

    splits: Mapping[str, str]

    @property
    def official(self) -> tuple[str, ...]:
        return official(self.splits.values())

    def split(self, name: str) -> str:
        """That of an image; one that lies in none of them is for training, as a row without a split in a table."""
        return self.splits.get(name.split("/")[0], "train")

    def label(self, name: str) -> str | None:
        """Name of the class, in NFC; None: the image lies in the folder of none."""
        folders = name.split("/")[1 if self.splits else 0 : -1]
        return nfc(folders[0]) if folders else None


def folder_layout(config: ImageFolderSource | WavSource, found: Mapping[str, Found]) -> Layout:
    """Top folders are splits where all are called so, and train and test are there.

    Raises:
        UserError: the classes should be folders, and the top folders are called as splits but hold no classes.
    """
    tops = {name.split("/")[0] for name in found if "/" in name}
    splits = {top: split for top in sorted(tops) if (split := split_of(top)) is not None}
    if not splits or len(splits) < len(tops):
        return Layout({})
    if config.labels == "folders":
        _check(config, splits, found)
    layout = Layout(splits if official(splits.values()) else {})
    if layout.official and (isinstance(config, WavSource) or config.columns.split is None):
        progress.say(f"{config.path}: splits {', '.join(layout.official)} from the names of the folders")
    return layout


def folder_classes(
    config: ImageFolderSource | WavSource, layout: Layout, found: Mapping[str, Found], given: tuple[str, ...] | None
) -> tuple[str, ...]:
    """The classes, where folders name them.

    Raises:
        UserError: no image lies in a folder of a class, or nearly every image has its own.
    """
    if config.labels != "folders":
        return ()
    labels = (layout.label(name) for name, each in found.items() if each.error is None)
    counts = Counter(label for label in labels if label is not None)
    if not counts:
        files = "WAV files" if isinstance(config, WavSource) else "images"
        raise UserError(
            f"data.source.labels: folders, but {config.path} has no subfolders with {files}. Put each class into a "
            "folder of its own, or set data.source.labels to none"
        )
    if given is None:
        remedy = f"Set data.source.labels to {_others(config)}"
        check_shared(counts, f"data.source.labels: folders, {config.path}", remedy)
    return given if given is not None else tuple(sorted(counts))


def _others(config: ImageFolderSource | WavSource) -> str:
    """What labels can be instead of folders."""
    return "none" if isinstance(config, WavSource) else "none or table"


def _check(config: ImageFolderSource | WavSource, splits: Mapping[str, str], found: Mapping[str, Found]) -> None:
    missing = [split for split in ("train", "test") if split not in splits.values()]
    direct = [name for name, each in found.items() if each.error is None and name.count("/") == 1]
    if not missing and not direct:
        return
    problem = f"{' and '.join(missing)} is missing" if missing else f"{direct[0]} lies in no folder of a class"
    raise UserError(
        f"data.source.labels: folders, but those in {config.path} are called as splits ({', '.join(splits)}), and "
        f"{problem}; "
        "expected train and test, and in each a folder for every class. Set data.source.path to one of them, or "
        f"data.source.labels to {_others(config)}"
    )
