"""The `data` and `shard` sections of params.yaml, and how shards are read: frozen dataclasses, checked on creation."""

from dataclasses import asdict, dataclass
from typing import Annotated, Literal, TypeAlias

from pydantic import Field

from vae_core.config import RangeError, Strict, check


@dataclass(frozen=True, kw_only=True, slots=True)
class Columns(Strict):
    """Which columns of a table hold what; null or empty: the table has none.

    Attributes:
        label: integers from 0, or the name of a class.
        attributes: numbers, one column each.
        embedding: lists of numbers, all of one length.
        id: unique names; null: made from the place of the row.
        group: rows of one group are never divided over two splits.
        split: train or test, where the publisher has fixed it; null: as the names of files or folders tell it.
    """

    label: str | None = None
    attributes: tuple[str, ...] = ()
    embedding: str | None = None
    id: str | None = None
    group: str | None = None
    split: str | None = None

    def __post_init__(self) -> None:
        check(self, "attributes", len(set(self.attributes)) == len(self.attributes), "each column once")


@dataclass(frozen=True, kw_only=True, slots=True)
class PublishedSource(Strict):
    """A data set whose files are known by their digests. `path`: a folder with them; null: fetch them."""

    kind: Literal["mnist", "fashion_mnist", "digits"]
    path: str | None = None


@dataclass(frozen=True, kw_only=True, slots=True)
class ImageFolderSource(Strict):
    """Image files below a folder.

    Attributes:
        labels: folders: the first folder below `path` is the class, or where these are called train, val and test, the
            second; table: `columns.label` of the table; none.
        table: CSV or Parquet with a row an image; its column `file` holds the image's path below `path`.
        columns: of the table.
    """

    kind: Literal["image_folder"]
    path: str
    labels: Literal["folders", "table", "none"] = "folders"
    table: str | None = None
    columns: Columns = Columns()

    def __post_init__(self) -> None:
        needed = self.labels != "table" or (self.table is not None and self.columns.label is not None)
        check(self, "labels", needed, "folders or none, or a table and columns.label")
        check(self, "columns", self.table is not None or self.columns == Columns(), "a table that has these columns")


@dataclass(frozen=True, kw_only=True, slots=True)
class ParquetSource(Strict):
    """Parquet files: one, a folder of them, or a pattern; train-00000-of-00002.parquet tells the split of its rows.

    Attributes:
        image: column of image files as bytes, of {bytes, path} as Hugging Face writes them, or of fixed-size arrays.
        shape: [height, width, channels] of the arrays; null where the images are files.
    """

    kind: Literal["parquet"]
    path: str
    image: str = "image"
    shape: tuple[int, int, int] | None = None
    columns: Columns = Columns()


@dataclass(frozen=True, kw_only=True, slots=True)
class HuggingFaceSource(Strict):
    """A data set that `datasets` saved to disk, its splits train and test kept."""

    kind: Literal["huggingface"]
    path: str
    image: str = "image"
    columns: Columns = Columns()


@dataclass(frozen=True, kw_only=True, slots=True)
class NumpySource(Strict):
    """Arrays: `path` is an .npz with the arrays named below, or an .npy of the images, then the others are .npy files.

    Attributes:
        images: [N, H, W] or [N, H, W, C]; uint8, bool, or numbers from 0 to 1.
        labels: [N] integers or text.
        attributes: [N, A] numbers.
        attribute_names: of the A columns; empty: attribute_0, attribute_1, ...
        embeddings: [N, E] numbers.
        groups: [N] integers or text.
    """

    kind: Literal["npz", "npy"]
    path: str
    images: str = "images"
    labels: str | None = None
    attributes: str | None = None
    attribute_names: tuple[str, ...] = ()
    embeddings: str | None = None
    groups: str | None = None


@dataclass(frozen=True, kw_only=True, slots=True)
class WebDatasetSource(Strict):
    """Foreign tars: a folder of them, or a pattern; train-000000.tar tells the split of its samples.

    Attributes:
        image: extensions that hold the image, the first one found counts.
        label: extension that holds the label: a number or a class name as text; or KEY in a .json, as "json:KEY".
        attributes: keys of the .json that hold numbers.
        embedding: extension that holds a vector as .npy, or "json:KEY".
    """

    kind: Literal["webdataset"]
    path: str
    image: tuple[str, ...] = ("jpg", "jpeg", "png", "webp", "ppm", "pgm", "npy")
    label: str | None = "cls"
    attributes: tuple[str, ...] = ()
    embedding: str | None = None


@dataclass(frozen=True, kw_only=True, slots=True)
class FreyFaceSource(Strict):
    """The 1,965 frames of Brendan Frey's face, 28 x 20 gray; `path` is the published frey_rawface.mat."""

    kind: Literal["frey_face"]
    path: str


@dataclass(frozen=True, kw_only=True, slots=True)
class DspritesSource(Strict):
    """dSprites, 64 x 64: the published .npz at `path`, or null: rendered to the published definition."""

    kind: Literal["dsprites"]
    path: str | None = None


@dataclass(frozen=True, kw_only=True, slots=True)
class WavSource(Strict):
    """WAV files below a folder, mixed to mono and cut into segments: sound as rows, one value high.

    Attributes:
        sample_rate: of every row, in Hz; files of another rate are resampled.
        segment: samples in a row.
        labels: folders: as in an image folder; none.
        remainder: what becomes of the end of a file that is no whole segment: pad: silence fills it; drop: put aside.
    """

    kind: Literal["wav"]
    path: str
    sample_rate: int
    segment: int
    labels: Literal["folders", "none"] = "folders"
    remainder: Literal["pad", "drop"] = "pad"

    def __post_init__(self) -> None:
        check(self, "sample_rate", 1000 <= self.sample_rate <= 192_000, "a number of Hz from 1000 to 192000")
        check(self, "segment", 16 <= self.segment <= 2**20, f"a number of samples from 16 to {2**20}")


SourceConfig: TypeAlias = Annotated[
    PublishedSource
    | ImageFolderSource
    | ParquetSource
    | HuggingFaceSource
    | NumpySource
    | WebDatasetSource
    | FreyFaceSource
    | DspritesSource
    | WavSource,
    Field(discriminator="kind"),
]


@dataclass(frozen=True, kw_only=True, slots=True)
class ImageConfig(Strict):
    """What every image becomes.

    Attributes:
        size: [height, width]; null: as the source has them, which must then all be alike.
        fit: how an image of other proportions is fitted: crop: fill and cut the middle out; pad: fit inside; stretch.
        mode: gray or rgb; null: as the source has them (files: rgb).
        background: around a padded image, and behind a transparent one.
        max_pixels: a file that would decode to more is put aside undecoded.
        max_bytes: a file that is longer is put aside unread.
    """

    size: tuple[int, int] | None = None
    fit: Literal["crop", "pad", "stretch"] = "crop"
    mode: Literal["gray", "rgb"] | None = None
    background: Literal["black", "white"] = "black"
    interpolation: Literal["nearest", "bilinear", "bicubic", "lanczos"] = "bicubic"
    max_pixels: int = 89_478_485
    max_bytes: int = 64 * 1024**2

    def __post_init__(self) -> None:
        within = self.size is None or all(1 <= side <= 4096 for side in self.size)
        check(self, "size", within, "[height, width], each from 1 to 4096")
        for name in ("max_pixels", "max_bytes"):
            check(self, name, getattr(self, name) >= 1, "an integer of at least 1")


@dataclass(frozen=True, kw_only=True, slots=True)
class DataConfig(Strict):
    """The section `data`.

    Attributes:
        append: later sources, whose rows make new shards and leave the older ones as they are.
        classes: names of the classes in their order; null: found in the source.
    """

    source: SourceConfig
    append: tuple[SourceConfig, ...] = ()
    image: ImageConfig = ImageConfig()
    classes: tuple[str, ...] | None = None
    validation_fraction: float
    test_fraction: float
    max_bad_fraction: float

    def __post_init__(self) -> None:
        for name in ("validation_fraction", "test_fraction"):
            check(self, name, 0 < getattr(self, name) < 1, "a number between 0 and 1, both excluded")
        named = all(source.path != "" for source in (self.source, *self.append))
        check(self, "source", named, "a path that is not empty")
        check(self, "max_bad_fraction", 0 <= self.max_bad_fraction <= 1, "a number from 0 to 1")
        self._check_audio()
        distinct = self.classes is None or (0 < len(self.classes) == len(set(self.classes)))
        check(self, "classes", distinct, "at least one name, each once")

    def _check_audio(self) -> None:
        sources = (self.source, *self.append)
        audio = [source for source in sources if isinstance(source, WavSource)]
        if not audio:
            return
        alike = len(audio) == len(sources) and len({(each.sample_rate, each.segment) for each in audio}) == 1
        check(self, "append", alike, "wav sources alone, all of one sample_rate and segment")
        image, unset = asdict(self.image), asdict(ImageConfig(max_bytes=self.image.max_bytes))
        if changed := {name: value for name, value in image.items() if value != unset[name]}:
            raise RangeError("image", "nothing but max_bytes, because a wav source has no pictures to fit", changed)


@dataclass(frozen=True, kw_only=True, slots=True)
class ShardConfig(Strict):
    """The section `shard`.

    Attributes:
        encoding: raw: KEY.npy, read without decoding; png; jpeg: smaller, and no longer the exact pixels.
    """

    seed: int
    shard_bytes: int
    encoding: Literal["raw", "png", "jpeg"] = "raw"
    jpeg_quality: int = 95

    def __post_init__(self) -> None:
        check(self, "seed", self.seed >= 0, "an integer of at least 0")
        check(self, "shard_bytes", self.shard_bytes >= 4096, "a number of bytes of at least 4096")
        check(self, "jpeg_quality", 1 <= self.jpeg_quality <= 100, "an integer from 1 to 100")


@dataclass(frozen=True, kw_only=True, slots=True)
class ReadConfig(Strict):
    """How a node reads shards: a part of the section `compute`, and so no part of what is computed.

    Attributes:
        verify: once: each shard when this node first opens it; always: at each opening; never.
        cache: folder of this node for shards from elsewhere, and for decoded png and jpeg shards.
        cache_below: a folder of the driver, which a relative `cache` is below; none: the working directory.
        cache_bytes: the longest unused files leave the cache when it would grow beyond this.
        remote_timeout_s: how long a remote place may stay silent before that is an error.
    """

    verify: Literal["once", "always", "never"] = "once"
    cache: str = ".cache/shards"
    cache_bytes: int = 50 * 1024**3
    remote_timeout_s: float = 120.0
    cache_below: str | None = None

    def __post_init__(self) -> None:
        check(self, "cache_bytes", self.cache_bytes >= 1, "an integer of at least 1")
        check(self, "remote_timeout_s", self.remote_timeout_s > 0, "a number above 0")
