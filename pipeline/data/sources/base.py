"""What every source of images offers: a few facts, and partitions that give its rows as Arrow record batches."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from numpy.typing import NDArray

from pipeline.data.shape import Shape

ROWS = pa.schema(
    {
        "id": pa.string(),  # stable: the same row has the same id in every version of the source
        "image": pa.binary(),  # uint8 [H, W, C] in C order, or an image file's bytes: see Source.pixels
        "label": pa.int64(),  # null where there are no classes
        "attributes": pa.list_(pa.float32()),  # one number for each of Source.attributes
        "embedding": pa.list_(pa.float32()),  # Source.embedding numbers
        "group": pa.string(),  # rows of a group stay in one split; null: a row is its own group
        "source": pa.string(),  # the file or object that the row came from
        "split": pa.string(),  # "train", "val" or "test" where the publisher says so, else null
        "error": pa.string(),  # why the row cannot be used, where the source itself found that; else null
        "detail": pa.string(),  # of the error
    }
)

PARTITION_BYTES = 64 * 1024**2  # of images in a partition, about
PARTITION_ROWS = 16_384
BATCH_BYTES = 16 * 1024**2  # of images in a record batch, about
BATCH_ROWS = 8192


class Partition(Protocol):
    """A part of a source that is read alone, in any process: picklable and small.

    Attributes:
        rows: how many rows `batches` gives, known before they are read.
    """

    @property
    def rows(self) -> int: ...

    def batches(self) -> Iterator[pa.RecordBatch]:
        """Every row once, in an order that never changes, with the columns of `ROWS`.

        At most BATCH_ROWS rows and about BATCH_BYTES a batch. A fault that concerns more than one row (a file that
        vanished, a damaged archive) raises UserError with what, where and remedy. A row that cannot be used is given
        all the same, with `detail` and one of these as `error`:

            label_unknown         its label is not one of the classes
            label_missing         its image lies beside the folders of the classes
            label_unreadable      the text that holds its label is too long, or not UTF-8
            image_missing         it has no image
            image_size            its array has not the shape that the source says
            pixel_range           its pixels are not numbers from 0 to 1
            undecodable           its .npy holds no image
            unsupported_format    its file is of an image format that Pillow does not read here
            unreadable            its file vanished, may not be read, or is a pipe or device
            too_many_bytes        its file is longer than the limit
            symlink               its file is a link, which is not followed
            file_missing          the table names its file, and there is none
            table_missing         the table does not name its file
            json_unreadable       its .json holds no JSON object
            embedding_unreadable  what should hold its embedding holds no vector
            duplicate_member      a tar has the same member of its sample twice
            key_has_dots          the name of its image in a tar has a dot before its extension
            not_a_sample          a member of a tar that is in no sample
            not_wav               its file does not begin as a WAV file
            truncated             its WAV file is shorter than its header says
            wav_malformed         its WAV file contradicts itself
            unknown_codec         its WAV file holds neither PCM nor floating point
            sample_rate           its WAV file has a sample rate that cannot be brought to the one wanted
            no_samples            its WAV file is of no length
            too_many_samples      its WAV file would become more samples than any recording
            sample_range          its samples are infinite, NaN, or far beyond full scale
            partial_segment       the end of its file is no whole segment, and is to be dropped
        """
        ...


@dataclass(frozen=True, slots=True, kw_only=True)
class Source:
    """A set of images, checked as far as that is possible without reading every row.

    Attributes:
        name: short name of the data set.
        partitions: in the order of the rows; where they are cut depends on the source alone.
        pixels: shape of every image, which are then raw bytes; None: each image is a file that Pillow decodes.
        classes: name of each label from 0; empty where the rows have no labels.
        attributes: name of each attribute; empty where there are none.
        embedding: length of the embedding vectors; 0 where there are none.
        digests: name of each file -> sha256 that identifies it, as cheaply as that can be done.
        official: the splits that the publisher fixed; empty, or with both "train" and "test".
        notes: what was done to the rows that a reader of the data should know, in words.
        in_memory: the rows are already in the memory of this process.
    """

    name: str
    partitions: tuple[Partition, ...]
    pixels: Shape | None
    classes: tuple[str, ...] = ()
    attributes: tuple[str, ...] = ()
    embedding: int = 0
    digests: dict[str, str]
    official: tuple[str, ...] = ()
    notes: tuple[str, ...] = ()
    in_memory: bool = False

    @property
    def rows(self) -> int:
        return sum(partition.rows for partition in self.partitions)


def record_batch(ids: Sequence[str | None], images: Any, **columns: Any) -> pa.RecordBatch:
    """A batch with the columns of `ROWS`; a column that is not given is null, a single text stands for every row."""
    given = {"id": ids, "image": images, **columns}
    arrays = []
    for field in ROWS:
        values = given.pop(field.name, None)
        if values is None or isinstance(values, str):
            values = pa.nulls(len(ids), field.type) if values is None else [values] * len(ids)
        if isinstance(values, np.ndarray) and values.ndim == 2:
            values = fixed_lists(values).cast(field.type)
        arrays.append(values.cast(field.type) if isinstance(values, pa.Array) else pa.array(values, field.type))
    assert not given, f"no such columns: {', '.join(given)}"
    return pa.RecordBatch.from_arrays(arrays, schema=ROWS)


def first_faults(*found: tuple[Any, ...]) -> dict[str, pa.Array]:
    """The columns error and detail from several (errors, details): those of the first that has an error for a row."""
    columns = zip(*found, strict=True)
    return {
        name: pc.coalesce(*(pa.array(column, pa.string()) for column in given))
        for name, given in zip(("error", "detail"), columns, strict=True)
    }


def fixed_lists(values: NDArray[Any]) -> pa.FixedSizeListArray:
    """float32 lists [N] from numbers [N, M]."""
    with np.errstate(over="ignore"):  # infinite then, which is for the quarantine to say
        flat = pa.array(np.ascontiguousarray(values, np.float32).reshape(-1))
    return pa.FixedSizeListArray.from_arrays(flat, values.shape[1])


def binary(images: NDArray[np.uint8]) -> pa.Array:
    """uint8 [N, ...] -> Arrow binary [N], sharing the memory."""
    size = images[0].size if len(images) else 0
    offsets = np.arange(len(images) + 1, dtype=np.int32) * size
    buffers = [None, pa.py_buffer(offsets.astype(np.int32)), pa.py_buffer(np.ascontiguousarray(images))]
    return pa.BinaryArray.from_buffers(pa.binary(), len(images), buffers)


@dataclass(frozen=True, slots=True)
class Rows:
    """A partition held as arrays; also the rows of a source that fits in memory.

    Attributes:
        images: uint8 [N, ...], the values of an image in the order H, W, C.
        labels: integers [N].
        prefix: ids are this and the row's number.
        source: the file or object that all of them came from.
        split: "train", "test" or None, the same for all.
    """

    images: NDArray[np.uint8]
    labels: NDArray[np.integer]
    prefix: str
    source: str
    split: str | None

    @property
    def rows(self) -> int:
        return len(self.images)

    def batches(self) -> Iterator[pa.RecordBatch]:
        for start in range(0, len(self.images), BATCH_ROWS):
            images = self.images[start : start + BATCH_ROWS]
            yield record_batch(
                [f"{self.prefix}-{row:06d}" for row in range(start, start + len(images))],
                binary(images),
                label=pa.array(self.labels[start : start + len(images)].astype(np.int64)),
                source=self.source,
                split=self.split,
            )
