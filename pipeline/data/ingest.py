"""From a source to the prepared table: check every row, divide the rows into splits, account for all of them."""

from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from pipeline import files
from pipeline.config import DataConfig
from pipeline.data import table
from pipeline.data.quarantine import Quarantine
from pipeline.data.sources import open_source
from pipeline.data.sources.base import Source
from pipeline.data.split import SPLITS, assign, content_hash
from pipeline.errors import UserError


def ingest(config: DataConfig, downloads: Path, out: Path) -> dict[str, Any]:
    """Fetch and prepare the source that `config` names; see `prepare`.

    Args:
        downloads: folder that keeps fetched files between runs.
        out: folder to write into.
    """
    return prepare(open_source(config.source, downloads), config, out)


def prepare(source: Source, config: DataConfig, out: Path) -> dict[str, Any]:
    """Write `out`/prepared/part-NNNNN.parquet, `out`/quarantine.parquet and, last, `out`/dataset.json.

    The same rows and `config` give the same bytes.

    Returns:
        The content of dataset.json: name, digest of the prepared rows, image shape, classes, row counts, file digests.

    Raises:
        UserError: more rows are unusable than `max_bad_fraction` allows (the ledger is written nevertheless), or a
            split has no row.
    """
    quarantine = Quarantine(source.shape, source.classes)
    summary = _Summary(source)
    with files.new_directory(out / "prepared") as folder:
        with table.Parts(folder, source.shape) as parts:
            for batch in source.batches():
                usable = quarantine.usable(batch)
                hashes = content_hash(table.pixels(usable["image"].cast(pa.binary(source.shape.size))))
                splits = assign(usable["split"].to_pylist(), hashes, config)
                rows = table.prepared(usable, splits, source.shape)
                parts.write(rows)
                summary.add(batch.num_rows, rows, hashes, splits)
        quarantine.write(out / "quarantine.parquet")
        facts = summary.facts(quarantine.counts())
        _check(facts, config, out)
    files.write_json(out / "dataset.json", facts)
    return facts


class _Summary:
    """What dataset.json says, gathered batch by batch."""

    def __init__(self, source: Source) -> None:
        self._source = source
        self._digest = table.ContentDigest(source.shape, source.classes)
        self._rows_in = 0
        self._hashes: list[NDArray[np.uint64]] = [np.empty(0, np.uint64)]
        self._splits: list[NDArray[np.str_]] = [np.empty(0, "U5")]

    def add(self, rows_in: int, rows: pa.RecordBatch, hashes: NDArray[np.uint64], splits: NDArray[np.str_]) -> None:
        self._rows_in += rows_in
        self._digest.update(rows)
        self._hashes.append(hashes)
        self._splits.append(splits)

    def facts(self, quarantined: dict[str, int]) -> dict[str, Any]:
        hashes, splits = np.concatenate(self._hashes), np.concatenate(self._splits)
        rows_out, rows_bad = len(splits), sum(quarantined.values())
        assert self._rows_in == rows_out + rows_bad == self._source.rows, "a row was lost or repeated"
        return {
            "name": self._source.name,
            "digest": self._digest.hexdigest(),
            "image": self._source.shape._asdict(),
            "classes": list(self._source.classes),
            "counts": {name: int((splits == name).sum()) for name in SPLITS},
            "rows_in": self._rows_in,
            "rows_prepared": rows_out,
            "rows_quarantined": rows_bad,
            "quarantined": quarantined,
            "duplicate_images": rows_out - len(np.unique(hashes)),
            "test_images_also_in_train": int(np.isin(hashes[splits == "test"], hashes[splits == "train"]).sum()),
            "files": self._source.digests,
        }


def _check(facts: dict[str, Any], config: DataConfig, out: Path) -> None:
    rows, bad = facts["rows_in"], facts["rows_quarantined"]
    if bad > config.max_bad_fraction * rows:
        reasons = ", ".join(f"{error} {count:,}" for error, count in facts["quarantined"].items())
        raise UserError(
            f"data.max_bad_fraction: {bad:,} of {rows:,} rows cannot be used ({reasons}), which is more than the "
            f"fraction allowed, {config.max_bad_fraction:g}; {out / 'quarantine.parquet'} lists them. "
            "Correct the source, or raise data.max_bad_fraction"
        )
    keys = {"val": "validation_fraction", "test": "test_fraction"}
    for split, count in facts["counts"].items():
        if count == 0 and split in keys:
            value = getattr(config, keys[split])
            raise UserError(f"data.{keys[split]}: {value:g} of {rows:,} rows leaves the {split} split empty; raise it")
        if count == 0:
            raise UserError(
                f"data.validation_fraction: {config.validation_fraction:g} (and data.test_fraction: "
                f"{config.test_fraction:g}) of {rows:,} rows leave the train split empty; lower them"
            )
