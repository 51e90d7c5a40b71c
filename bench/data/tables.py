"""The tables of the benchmark: who is measured, on what, and how."""

import math
import shutil
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from bench.data import mosaic, sets
from bench.data.measure import cold, first_batch, iid_mixing, in_turn, mixing, warm
from bench.data.readers import BATCH, WINDOW, Contender, InMemory, Ours, PlainWebDataset, TorchLoader, streaming
from bench.data.sets import Encoding, Images
from bench.report import Row, Table

OURS, SAME_TARS, LIMIT = "ours", "webdataset, the same tars", "limit: numpy, array in memory"
TARS_ALONE = "  its tars alone, as the others"
SHARD_ROWS = 1000
FEW_ROWS = 16


@dataclass(frozen=True, slots=True)
class Size:
    """How much is measured.

    Attributes:
        gray: images 28x28.
        rgb: images 64x64.
        shards: that are opened.
        rounds: of which the median counts.
        seconds: for each measurement of reading.
        written: rows for each slow writer.
    """

    gray: int
    rgb: int
    shards: int
    rounds: int
    seconds: float
    written: int


@dataclass(frozen=True, slots=True)
class Places:
    """A set as each library keeps it."""

    images: Images
    folder: Path

    @property
    def shards(self) -> Path:
        return self.folder / "shards"

    @property
    def cache(self) -> Path:
        return self.folder / "cache"

    @property
    def gray(self) -> bool:
        return self.images.channels == 1

    def tars(self, kind: str) -> list[str]:
        return sorted(str(path) for path in (self.folder / f"webdataset-{kind}").glob("*.tar"))


def written(folder: Path, size: Size) -> tuple[Places, Places, Places]:
    """The three sets on the disk, in every form that is read."""
    gray = Places(sets.digits(size.gray), folder / "gray")
    rgb = Places(sets.scenes(size.rgb), folder / "rgb")
    png = Places(rgb.images, folder / "png")
    forms: list[tuple[Places, Encoding]] = [(gray, "raw"), (rgb, "raw"), (png, "png")]
    for places, encoding in forms:
        images = places.images
        places.folder.mkdir(parents=True)
        sets.prepare_table(images, places.folder)
        sets.write_ours(images, places.folder, encoding, SHARD_ROWS)
        if places is not rgb:
            sets.write_webdataset(images, places.folder / "webdataset-png", "png", SHARD_ROWS)
        if not mosaic.MISSING:
            mosaic.write(images, places.folder / "mosaic", encoding, SHARD_ROWS)
    (rgb.folder / "webdataset-png").symlink_to((png.folder / "webdataset-png").absolute())
    return gray, rgb, png


def _contenders(places: Places, encoding: Encoding) -> list[Contender]:
    shards, kind = places.shards, "npy" if encoding == "raw" else "png"
    train = sorted(str(path) for path in (shards / "train").glob("*.tar"))
    own = places.tars("png")
    return [
        Contender(OURS, lambda: Ours(shards, places.cache), shards if encoding == "raw" else places.cache),
        Contender(SAME_TARS, lambda: PlainWebDataset(train, kind, places.gray), shards),
        Contender(
            "webdataset, its own tars, png",
            lambda: PlainWebDataset(own, "png", places.gray),
            places.folder / "webdataset-png",
        ),
        streaming(places.folder / "mosaic"),
        Contender("torch DataLoader, the same tars", lambda: TorchLoader(shards, 0), shards),
        Contender("  with 2 processes, on all cores", lambda: TorchLoader(shards, 2), shards, all_cores=True),
        Contender(LIMIT, lambda: InMemory(places.images)),
    ]


def reading(places: Places, encoding: Encoding, size: Size, dropped: bool) -> Table:
    contenders = _contenders(places, encoding)
    first = _transcoding(places) if encoding == "png" else None
    found = in_turn(contenders, size.rounds, lambda contender: warm(contender, size.seconds))
    on_disk = [contender for contender in contenders if contender.files is not None and dropped]
    chilled = in_turn(on_disk, min(3, size.rounds), lambda contender: cold(contender, size.seconds))
    rows = [
        Row(
            contender.name,
            {
                "warm": found.get(contender.name),
                "x webdataset": _ratio(found.get(contender.name), found[SAME_TARS]),
                "of the limit": _ratio(found.get(contender.name), found[LIMIT]),
                "cold": chilled.get(contender.name),
            },
            contender.missing,
        )
        for contender in contenders
    ]
    if first is not None:
        rows.insert(
            1, Row("  its first epoch, which decodes", {"warm": first, "x webdataset": first / found[SAME_TARS]})
        )
    note = "" if dropped else " (not measured: the folder lies in memory)"
    return Table(
        f"Read: samples a second, {places.images.name}, {encoding}, {len(places.images):,} images",
        f"one core, batches of {BATCH} images and labels in random order, shards of {SHARD_ROWS:,} rows; "
        f"warm: epochs back to back for {size.seconds:g} s after opening, median of {size.rounds} rounds, all in turn; "
        f"cold: one epoch, or {size.seconds:g} s of it, the files dropped from this system's page cache{note}; "
        f"ours with windows of {WINDOW} shards{', from its cache of decoded shards' if encoding == 'png' else ''}",
        rows,
        {"warm": ",.0f", "x webdataset": ",.2f", "of the limit": ".4f", "cold": ",.0f"},
    )


def _transcoding(places: Places) -> float:
    """Samples a second of the first epoch of encoded shards on a node, from opening to its end."""
    shutil.rmtree(places.cache, ignore_errors=True)
    start = time.perf_counter()
    rows = sum(len(labels) for _, labels in Ours(places.shards, places.cache).epoch(0))
    return rows / (time.perf_counter() - start)


def writing(places: Places, size: Size, folder: Path) -> Table:
    images = places.images
    few = images.head(size.written)
    jobs: dict[str, tuple[int, Callable[[], object]]] = {
        OURS: (len(images), lambda: sets.write_ours(images, places.folder, "raw", SHARD_ROWS)),
        TARS_ALONE: (len(images), lambda: sets.write_tars(images, folder, SHARD_ROWS)),
        "webdataset.ShardWriter, npy + cls": (len(few), lambda: sets.write_webdataset(few, folder, "npy", SHARD_ROWS)),
        "webdataset.ShardWriter, png + cls": (len(few), lambda: sets.write_webdataset(few, folder, "png", SHARD_ROWS)),
    }
    mds = "MosaicML MDSWriter"
    if not mosaic.MISSING:
        jobs[mds] = (len(images), lambda: mosaic.write(images, folder, "raw", SHARD_ROWS))
    found = {name: _writing(*job, rounds=min(3, size.rounds), folder=folder) for name, job in jobs.items()}
    peer = found["webdataset.ShardWriter, npy + cls"]
    rows = [Row(name, {"written": rate, "x ShardWriter": rate / peer}) for name, rate in found.items()]
    if mds not in jobs:
        rows.append(Row(mds, note=mosaic.MISSING))
    return Table(
        f"Written: samples a second, {images.name}",
        "one core; ours: one process without Ray, from the prepared table to permuted, hashed and synced tars with "
        "their index and manifest; the others: from an array in memory, neither permuted, hashed nor synced; "
        f"median of {min(3, size.rounds)}",
        rows,
        {"written": ",.0f", "x ShardWriter": ",.2f"},
    )


def _writing(rows: int, write: Callable[[], object], *, rounds: int, folder: Path) -> float:
    rates = []
    for _ in range(rounds):
        shutil.rmtree(folder, ignore_errors=True)
        start = time.perf_counter()
        write()
        rates.append(rows / (time.perf_counter() - start))
    shutil.rmtree(folder, ignore_errors=True)
    return sorted(rates)[len(rates) // 2]


def opening(folder: Path, size: Size) -> Table:
    rows_needed = math.ceil(size.shards * FEW_ROWS / 0.97)  # a few go to the other splits
    places = Places(sets.digits(rows_needed), folder)
    folder.mkdir(parents=True)
    sets.prepare_table(places.images, folder)
    sets.write_ours(places.images, folder, "raw", FEW_ROWS)
    tars = sets.write_webdataset(places.images, folder / "webdataset-npy", "npy", FEW_ROWS)
    contenders = [
        Contender(OURS, lambda: Ours(places.shards, places.cache)),
        Contender("webdataset", lambda: PlainWebDataset(tars, "npy", True)),
        streaming(folder / "mosaic"),
    ]
    if not mosaic.MISSING:
        mosaic.write(places.images, folder / "mosaic", "raw", FEW_ROWS)
    checking = first_batch(contenders[0])
    found = in_turn(contenders, size.rounds, first_batch)
    rows = [Row(one.name, {"seconds": found.get(one.name)}, one.missing) for one in contenders]
    rows.insert(1, Row("  the first time, checking sha256", {"seconds": checking}))
    return Table(
        f"Opening: seconds to the first batch of {size.shards:,} shards, 28x28 gray",
        f"one core, warm, in a process that has all modules loaded; {FEW_ROWS} images a shard; median of {size.rounds}",
        rows,
        {"seconds": ".3f"},
    )


def shuffling(places: Places) -> Table:
    train = places.tars("png")
    contenders = [
        Contender("ours, window of 1 shard", lambda: Ours(places.shards, places.cache, 1)),
        Contender(f"ours, window of {WINDOW} shards", lambda: Ours(places.shards, places.cache)),
        Contender("webdataset, shuffle(1000)", lambda: PlainWebDataset(train, "png", True)),
        streaming(places.folder / "mosaic"),
    ]
    found = in_turn(contenders, 1, lambda contender: mixing(contender, sets.CLASSES))
    found["limit: labels drawn at random"] = iid_mixing(BATCH, sets.CLASSES)
    rows = [Row(name, {"total variation": value}) for name, value in found.items()]
    rows += [Row(one.name, note=one.missing) for one in contenders if one.missing]
    return Table(
        "Mixing: mean total variation between the labels of a batch and those of the set",
        f"{len(places.images):,} rows sorted by class, {len(train)} shards, batches of {BATCH}, one epoch; "
        "0: every batch has the classes in proportion, 1: nothing in common; "
        "webdataset with shardshuffle=100, streaming with py1e",
        rows,
        {"total variation": ".3f"},
    )


def _ratio(rate: float | None, of: float) -> float | None:
    return None if rate is None else rate / of
