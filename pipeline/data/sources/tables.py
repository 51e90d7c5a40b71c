"""Tables about images: what each column means, and its rows as rows of a source."""

from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any, TypeAlias

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from pyarrow import types

from pipeline import progress
from pipeline.data.config import Columns
from pipeline.data.sources.base import (
    PARTITION_BYTES,
    PARTITION_ROWS,
    first_faults,
    record_batch,
)
from pipeline.data.sources.columns import (
    distinct,
    is_label,
    is_number,
    is_text,
    is_vector,
    missing,
    numbers,
    plain,
    plain_type,
    vectors,
)
from pipeline.data.sources.image_columns import Images
from pipeline.data.sources.labels import MAX_CLASSES, check_whole, class_names, encode_labels, nfc
from pipeline.data.sources.paths import shown
from pipeline.data.sources.splits import official, split_of
from pipeline.errors import UserError

Scan: TypeAlias = Callable[[str], Iterable[pa.Array]]  # name of a column -> its values, in chunks


@dataclass(frozen=True, slots=True, kw_only=True)
class Meaning:
    """What the columns of a table mean, found once for the whole of it.

    Attributes:
        names: of the numbers in the label column; empty: a number is the label itself.
        embedding: length of the vectors; 0 where there are none.
        official: as in `Source`.
    """

    columns: Columns
    classes: tuple[str, ...] = ()
    names: tuple[str, ...] = ()
    embedding: int = 0
    official: tuple[str, ...] = ()

    def values(self, rows: pa.RecordBatch) -> dict[str, Any]:
        """The columns of `ROWS` that this table fills, by name; a number that is missing is NaN."""
        given, out = self.columns, {}
        if given.label is not None:
            out.update(self._labels(rows.column(given.label)))
        if given.attributes:
            out["attributes"] = np.stack([numbers(rows.column(name)) for name in given.attributes], axis=1)
        if given.embedding is not None:
            out["embedding"] = vectors(rows.column(given.embedding))
        if given.id is not None:
            out["id"] = plain(rows.column(given.id)).cast(pa.string())
        if given.group is not None:
            out["group"] = plain(rows.column(given.group)).cast(pa.string())
        if given.split is not None and self.official:
            texts = plain(rows.column(given.split)).cast(pa.string()).to_pylist()
            out["split"] = pa.array([split_of(text) if text is not None else "train" for text in texts], pa.string())
        return out

    def _labels(self, column: pa.Array) -> dict[str, pa.Array]:
        encoded = distinct(column)  # so that each is looked at once
        codes = encode_labels([self._named(value) for value in encoded.dictionary.to_pylist()], self.classes)
        return {
            "label": pa.array(codes.labels, pa.int64()).take(encoded.indices),
            "error": pa.array(codes.errors, pa.string()).take(encoded.indices),
            "detail": pa.array(codes.details, pa.string()).take(encoded.indices),
        }

    def _named(self, value: Any) -> Any:
        if not self.names or not isinstance(value, int):
            return value
        return self.names[value] if 0 <= value < len(self.names) else f"number {value}"


def learn(
    columns: Columns,
    classes: tuple[str, ...] | None,
    schema: pa.Schema,
    scan: Scan,
    where: str,
    names: tuple[str, ...] | None = None,
) -> Meaning:
    """Find the classes, the length of the vectors and the splits, reading only the columns that tell.

    Args:
        columns, schema: which `check_columns` has accepted.
        where: what holds the table, for messages.
        names: of the numbers in the label column, where the table says so.

    Raises:
        UserError: a column does not hold what it should.
    """
    return Meaning(
        columns=columns,
        classes=_classes(columns.label, classes, names, scan, where),
        names=names or (),
        embedding=_length(columns.embedding, schema, scan, where),
        official=_official(columns.split, scan, where),
    )


def check_columns(columns: Columns, schema: pa.Schema, where: str) -> None:
    """Every named column is there and of a type that can be read.

    Raises:
        UserError: with one line for each column that is not.
    """
    text, whole = is_text, lambda type_: is_text(type_) or types.is_integer(type_)
    wanted = [
        ("label", columns.label, is_label, "numbers or text"),
        *(("attributes", name, is_number, "numbers") for name in columns.attributes),
        ("embedding", columns.embedding, is_vector, "lists of numbers"),
        ("id", columns.id, whole, "text or whole numbers"),
        ("group", columns.group, whole, "text or whole numbers"),
        ("split", columns.split, text, "text"),
    ]
    problems = []
    for key, name, fits, expected in wanted:
        if name is None:
            continue
        problem = missing(schema, name)
        if problem is None and not fits(plain_type(schema.field(name).type)):
            problem = f"column {name!r}: expected {expected}, found {schema.field(name).type}"
        if problem is not None:
            problems.append(f"data.source.columns.{key}: {where}: {problem}")
    if problems:
        raise UserError("\n".join(problems))


def used(columns: Columns, *others: str) -> tuple[str, ...]:
    """Names of `others` and of all columns that are named, each once."""
    named = (columns.label, *columns.attributes, columns.embedding, columns.id, columns.group, columns.split)
    return tuple(dict.fromkeys(name for name in (*others, *named) if name is not None))


def check_alike(schema: pa.Schema, name: str, first: pa.Schema, first_name: str, columns: Iterable[str]) -> None:
    """Two files of a data set have the same types in these columns; the others do not matter.

    Raises:
        UserError: naming the file that differs from the first, and how.
    """
    for column in columns:
        problem, expected = missing(schema, column), first.field(column).type
        if problem is None and schema.field(column).type != expected:
            problem = f"column {column!r}: expected {expected}, found {schema.field(column).type}"
        if problem is not None:
            raise UserError(f"data.source.path: {name} differs from {first_name}: {problem}. Write all files alike")


def check_names(names: tuple[str, ...] | None, name: str, first: tuple[str, ...] | None, first_name: str) -> None:
    """Two files have the same class names, or one number would mean two classes.

    Raises:
        UserError: they have others.
    """
    if names != first:
        raise UserError(
            f"data.source.path: {name} differs from {first_name}: its labels have other class names. "
            "Write all files alike"
        )


def feature_names(features: Any, column: str | None) -> tuple[str, ...] | None:
    """Class names of a `ClassLabel` column in the features that Hugging Face writes; None: it has none."""
    feature = features.get(column) if isinstance(features, Mapping) and column is not None else None
    names = feature.get("names") if isinstance(feature, Mapping) and feature.get("_type") == "ClassLabel" else None
    spelled = tuple(nfc(shown(str(name))) for name in names) if isinstance(names, list) else ()
    return spelled if 0 < len(set(spelled)) == len(spelled) else None


def together(counts: Iterable[tuple[int, int]]) -> Iterator[tuple[int, int]]:
    """Join neighbours of (rows, bytes) to (first, stop) for a partition each; one that is too large stays alone."""
    first = stop = rows = size = 0
    for stop, (more_rows, more_bytes) in enumerate(counts):
        if stop > first and (rows + more_rows > PARTITION_ROWS or size + more_bytes > PARTITION_BYTES):
            yield first, stop
            first, rows, size = stop, 0, 0
        rows, size = rows + more_rows, size + more_bytes
    if rows:
        yield first, stop + 1


def row_batch(
    rows: pa.RecordBatch, images: Images, meaning: Meaning, ids: Iterable[str], **fixed: str | None
) -> pa.RecordBatch:
    """A batch of `ROWS`; an error of the image stands before one of the label. `ids` where the table has none."""
    values: dict[str, Any] = {"id": list(ids), **fixed, **meaning.values(rows)}
    labels = [(values["error"], values["detail"])] if "error" in values else []
    values.update(first_faults((images.errors, images.details), *labels))
    return record_batch(values.pop("id"), images.values, **values)


def _classes(
    label: str | None, given: tuple[str, ...] | None, names: tuple[str, ...] | None, scan: Scan, where: str
) -> tuple[str, ...]:
    if label is None:
        return ()
    if names is not None:
        return given if given is not None else names
    place = f"data.source.columns.label: {where}, column {label!r}"
    counts = _counts(scan(label))
    if given is not None:
        if counts.keys().isdisjoint(given):  # else a row of another label would be put aside alone
            check_whole(counts, place)
        return given
    found = class_names(counts, None, place)
    if not found:
        raise UserError(f"{place}: expected labels, found none in any row. Name another column, or set it to null")
    return found


def _counts(chunks: Iterable[pa.Array]) -> Counter[Any]:
    """How often each value is there, but for null and NaN."""
    counts: Counter[Any] = Counter()
    for chunk in chunks:
        values, numbers_of = distinct(chunk).value_counts().flatten()
        for value, count in zip(values.to_pylist(), numbers_of.to_pylist(), strict=True):
            if value is not None and value == value:
                counts[value] += count
        if len(counts) > MAX_CLASSES:  # already an error, before they fill the memory
            break
    return counts


def _length(name: str | None, schema: pa.Schema, scan: Scan, where: str) -> int:
    if name is None:
        return 0
    kind = plain_type(schema.field(name).type)
    if types.is_fixed_size_list(kind):
        return int(kind.list_size)
    for chunk in scan(name):
        lengths = pc.list_value_length(plain(chunk)).drop_null()
        if len(lengths) and lengths[0].as_py() > 0:
            return int(lengths[0].as_py())
    raise UserError(
        f"data.source.columns.embedding: {where}, column {name!r}: expected vectors, found none in any row. "
        "Name another column, or set it to null"
    )


def _official(name: str | None, scan: Scan, where: str) -> tuple[str, ...]:
    if name is None:
        return ()
    found = set()
    for chunk in scan(name):
        for text in distinct(chunk).unique().to_pylist():
            if text is not None and split_of(text) is None:
                raise UserError(
                    f"data.source.columns.split: {where}, column {name!r}: expected train, val or test, found "
                    f"{text!r}. Correct the column, or set data.source.columns.split to null"
                )
            found.add(split_of(text) if text is not None else None)
    splits = official(split for split in found if split is not None)
    if not splits:
        progress.say(f"{where}: column {name!r} does not have both train and test; the rows are split anew")
    return splits
