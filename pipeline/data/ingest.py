"""From sources to the prepared table: prepare every partition, find copies and repeated ids, account for all rows."""

import hashlib
import json
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from pipeline import files, progress, runtime
from pipeline.data.config import DataConfig
from pipeline.data.images import BadImage, converted_shape, decode
from pipeline.data.prepare import Part, Recipe, prepare_partition, rewrite_without
from pipeline.data.quarantine import COPY, MEANT, Entry, Expected, counts, write_ledger
from pipeline.data.shape import Shape
from pipeline.data.sources import open_source
from pipeline.data.sources.base import Source
from pipeline.data.split import SPLITS, copies_in_other_splits
from pipeline.errors import UserError
from pipeline.train.config import ComputeConfig


def ingest(config: DataConfig, compute: ComputeConfig, out: Path) -> dict[str, Any]:
    """Fetch and prepare the sources that `config` names; see `prepare`."""
    downloads, limit = Path(compute.downloads), config.image.max_bytes
    sources = [open_source(config.source, config.classes, limit, downloads)]
    if config.classes is not None and sources[0].classes != config.classes:
        why = "names its own classes" if sources[0].classes else "has no labels"
        raise UserError(f"data.classes: expected null, because this source {why}; set it to null")
    for number, later in enumerate(config.append):
        try:
            sources.append(open_source(later, sources[0].classes or None, limit, downloads))
        except UserError as error:
            raise UserError(str(error).replace("data.source", f"data.append.{number}")) from None
    return prepare(sources, config, out, compute)


def prepare(
    sources: Sequence[Source], config: DataConfig, out: Path, compute: ComputeConfig | None = None
) -> dict[str, Any]:
    """Write `out`/prepared/part-NNNNN.parquet, `out`/quarantine.parquet and, last, `out`/dataset.json.

    The same rows and `config` give the same bytes, whatever the number of processes.

    Args:
        sources: the first one, and those appended to it.
        compute: how Ray is started for sources that are not in memory; None: everything in this process.

    Returns:
        The content of dataset.json.

    Raises:
        UserError: a source cannot be read or does not fit the first, more rows are unusable than `max_bad_fraction`
            allows (the ledger is written nevertheless), or a split has no row.
    """
    recipes = _recipes(sources, config)
    with files.new_directory(out / "prepared") as folder:
        folder = folder.resolve()
        parts = list(_parts(sources, recipes, folder, compute))
        parts = _without_copies(parts, recipes, folder)
        (out / "dataset.json").unlink(missing_ok=True)  # it is never there beside a table or ledger of other rows
        write_ledger(out / "quarantine.parquet", (entry for part in parts for entry in part.entries))
        facts = _facts(sources, recipes[0], parts)
        _check(facts, [entry for part in parts for entry in part.entries], config, out)
    files.write_json(out / "dataset.json", facts)
    return facts


def _recipes(sources: Sequence[Source], config: DataConfig) -> list[Recipe]:
    first = sources[0]
    expected = Expected(len(first.classes), first.attributes, first.embedding)
    shape = _shape(first, config)
    for number, source in enumerate(sources[1:]):
        if (source.attributes, source.embedding) != (first.attributes, first.embedding):
            raise UserError(
                f"data.append: {number}: expected attributes {list(first.attributes)} and embeddings of "
                f"{first.embedding} numbers, as in data.source; found {list(source.attributes)} and {source.embedding}"
            )
    return [
        Recipe(
            config=config,
            expected=expected,
            pixels=source.pixels,
            shape=shape,
            fixed=source.official,
            generation=generation,
            prefix=f"append-{generation}/" if generation else "",
        )
        for generation, source in enumerate(sources)
    ]


def _shape(source: Source, config: DataConfig) -> Shape:
    """Of every prepared image: what `config` asks for, else what the source has, else what its first good file has."""
    if source.pixels is not None:
        return converted_shape(source.pixels, config.image)
    if config.image.size is not None:
        return converted_shape(Shape(*config.image.size, 3), config.image)
    for partition in source.partitions:
        for batch in partition.batches():
            for data in batch["image"].drop_null():
                try:
                    return Shape(*decode(data.as_py(), config.image).shape)
                except BadImage:
                    continue
    raise UserError(
        f"data.source: none of the {source.rows:,} images of {source.name} can be decoded; check data.source"
    )


def _parts(
    sources: Sequence[Source], recipes: Sequence[Recipe], folder: Path, compute: ComputeConfig | None
) -> Iterator[Part]:
    """Every partition prepared, in the order of the rows."""
    jobs = [
        (partition, recipe, source.in_memory)
        for source, recipe in zip(sources, recipes, strict=True)
        for partition in source.partitions
    ]
    if compute is None or len(jobs) == 1 or all(in_memory for *_, in_memory in jobs):
        work = (prepare_partition(job, number, recipe, folder) for number, (job, recipe, _) in enumerate(jobs))
        yield from progress.track(work, total=len(jobs), what="ingest", unit="parts")
        return
    with runtime.cluster(replace(compute, address=None)):  # what it reads and writes is on this machine
        import ray

        task = ray.remote(num_cpus=1)(prepare_partition)
        results = [task.remote(job, number, recipe, folder) for number, (job, recipe, _) in enumerate(jobs)]
        yield from progress.track(runtime.results(results), total=len(jobs), what="ingest", unit="parts")


def _without_copies(parts: Sequence[Part], recipes: Sequence[Recipe], folder: Path) -> list[Part]:
    """Put aside rows whose id came before, and copies of an image in a split that goes before."""
    ids, content, splits = (
        np.concatenate([getattr(part, name) for part in parts]) for name in ("ids", "content", "splits")
    )
    generations = np.repeat([part.generation for part in parts], [len(part.ids) for part in parts]).astype(np.int32)
    repeated = np.ones(len(ids), bool)
    repeated[np.unique(ids, return_index=True)[1]] = False
    copies = np.zeros(len(ids), bool)
    copies[~repeated] = copies_in_other_splits(content[~repeated], splits[~repeated], generations[~repeated])
    out, start = [], 0
    for part in parts:
        here = slice(start, start + len(part.ids))
        start += len(part.ids)
        dropped: NDArray[np.bool_] = repeated[here] | copies[here]
        if not dropped.any():
            out.append(part)
            continue
        reasons = [
            ("id_duplicate", "the id occurs before")
            if again
            else (COPY, "the same image is in a split that goes before (test, then val, then train; older rows first)")
            for again in repeated[here][dropped].tolist()
        ]
        out.append(rewrite_without(part, dropped, reasons, recipes[part.generation], folder))
    return out


def _facts(sources: Sequence[Source], recipe: Recipe, parts: Sequence[Part]) -> dict[str, Any]:
    """The content of dataset.json."""
    content, splits = (np.concatenate([getattr(part, name) for part in parts]) for name in ("content", "splits"))
    entries = [entry for part in parts for entry in part.entries]
    rows_in = sum(part.rows_in for part in parts)
    assert rows_in == len(splits) + len(entries) == sum(source.rows for source in sources), "a row was lost or repeated"
    first = sources[0]
    head = [list(recipe.shape), list(first.classes), list(first.attributes), first.embedding]
    of = {name: content[splits == place] for place, name in enumerate(SPLITS)}
    reasons = counts(entries)
    notes = [note for source in sources for note in source.notes]
    return {
        "name": first.name,
        "digest": hashlib.sha256(b"".join([json.dumps(head).encode(), *(part.digest for part in parts)])).hexdigest(),
        "image": recipe.shape._asdict(),
        "classes": list(first.classes),
        "attributes": list(first.attributes),
        "embedding": first.embedding,
        "counts": {name: len(of[name]) for name in SPLITS},
        "generations": [_counts(parts, generation) for generation in range(len(sources))],
        "rows_in": rows_in,
        "rows_prepared": len(splits),
        "rows_quarantined": len(entries),
        "quarantined": reasons,
        "duplicate_images": len(content) - len(np.unique(content)),
        "duplicates_across_splits": reasons.get(COPY, 0),
        "test_images_also_in_train": int(np.isin(of["test"], of["train"]).sum()),
        "statistics": _statistics(sum((part.histogram for part in parts), np.zeros((1, 256), np.int64))),
        "files": {name: digest for source in sources for name, digest in source.digests.items()},
        **({"notes": notes} if notes else {}),
    }


def _counts(parts: Sequence[Part], generation: int) -> dict[str, int]:
    rows = [part.splits for part in parts if part.generation == generation]
    return {name: int(sum((splits == place).sum() for splits in rows)) for place, name in enumerate(SPLITS)}


def _statistics(histogram: NDArray[np.int64]) -> dict[str, list[float]]:
    """Of each channel over the training rows, values from 0 to 255; exact until the last division."""
    out: dict[str, list[float]] = {"mean": [], "std": [], "min": [], "max": []}
    for times in histogram:
        values = np.flatnonzero(times)
        if not len(values):
            continue
        count, total = int(times.sum()), sum(int(value) * int(times[value]) for value in values)
        square = sum(int(value) ** 2 * int(times[value]) for value in values)
        out["mean"].append(total / count)
        out["std"].append(((count * square - total**2) ** 0.5) / count)
        out["min"].append(int(values[0]))
        out["max"].append(int(values[-1]))
    return out


def _check(facts: dict[str, Any], entries: Sequence[Entry], config: DataConfig, out: Path) -> None:
    """A copy in another split, and what the configuration drops, is put aside, but is no bad row."""
    rows, bad = facts["rows_in"], [entry for entry in entries if entry.error not in MEANT]
    if len(bad) > config.max_bad_fraction * rows:
        reasons = Counter(entry.error for entry in bad).most_common()
        listed = ", ".join(f"{error} {count:,}" for error, count in reasons)
        shown = next(entry for entry in bad if entry.error == reasons[0][0])
        raise UserError(
            f"data.max_bad_fraction: {len(bad):,} of {rows:,} rows cannot be used ({listed}; such as {shown.id}: "
            f"{shown.detail}), which is more than the fraction allowed, {config.max_bad_fraction:g}; "
            f"{out / 'quarantine.parquet'} lists them. Correct the source, or raise data.max_bad_fraction"
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
