"""Folders of recordings: which segments are rows, what is said of the others, and the way to a batch and a picture."""

import faulthandler
import os
import pickle
import re
import sys
import tracemalloc
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.parquet as pq
import pytest
from mutations import mutants
from PIL import Image
from recordings import RATE, chord, form, noise, riff, tone, wav, write_recordings
from source_rows import rows_of
from source_rows import table_of as table

from pipeline.data import scan
from pipeline.data.audio import SILENCE, mu_law_decode, mu_law_encode
from pipeline.data.config import DataConfig, ImageConfig, PublishedSource, ReadConfig, ShardConfig, WavSource
from pipeline.data.contact_sheet import save_contact_sheet
from pipeline.data.ingest import prepare
from pipeline.data.inspection import inspect_path
from pipeline.data.loader import Loader
from pipeline.data.shards import write_here
from pipeline.data.sources import open_source
from pipeline.data.sources import wav as module
from pipeline.data.sources.base import Source
from pipeline.data.sources.wav import open_wav
from pipeline.data.split_reader import open_split
from pipeline.data.waveform import AXIS, INK, PAPER, pictures, waveform
from pipeline.errors import UserError
from pipeline.operate.inspect import describe
from vae_core.config import RangeError

LIMIT = 10**6
SEGMENT = 500


def settings(folder: Path, **changes: Any) -> WavSource:
    return WavSource(
        **{"kind": "wav", "path": str(folder), "sample_rate": RATE, "segment": SEGMENT, "labels": "none", **changes}
    )


def opened(folder: Path, classes: tuple[str, ...] | None = None, **changes: Any) -> Source:
    return open_wav(settings(folder, **changes), classes, LIMIT)


def data_config(source: Any, **changes: Any) -> DataConfig:
    return DataConfig(
        **{"source": source, "validation_fraction": 0.2, "test_fraction": 0.2, "max_bad_fraction": 0.0, **changes}
    )


def put(folder: Path, **files: bytes) -> Path:
    """Files by their names without the extension, `__` for a slash."""
    for name, data in files.items():
        path = folder / f"{name.replace('__', '/')}.wav"
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(data)
    return folder


def sound(samples: int, seed: int = 0, **kind: Any) -> bytes:
    return wav(noise(seed, samples / RATE), **kind)


def faults(source: Source) -> dict[str, tuple[str, str]]:
    return {row["id"]: (row["error"], row["detail"]) for row in rows_of(source) if row["error"]}


def test_files_are_cut_into_segments_with_the_name_of_their_file(tmp_path: Path) -> None:
    samples = noise(1, 1250 / RATE)
    source = opened(put(tmp_path, b=wav(samples), a__deep=sound(500)))
    assert tuple(source.pixels) == (1, SEGMENT, 1)
    found = rows_of(source)
    assert [row["id"] for row in found] == ["a/deep.wav#0", "b.wav#0", "b.wav#1", "b.wav#2"]
    assert [row["group"] for row in found] == [row["source"] for row in found] == ["a/deep.wav", *["b.wav"] * 3]
    assert {row[name] for row in found for name in ("error", "split", "label")} == {None}
    codes = np.frombuffer(b"".join(row["image"] for row in found[1:]), np.uint8)
    assert np.array_equal(codes[:1250], mu_law_encode(np.rint(samples * 2**15) / 2**15))
    assert (codes[1250:] == SILENCE).all()
    assert np.abs(mu_law_decode(codes[:1250]) - samples).max() < 0.02


def test_what_was_made_of_the_files_is_said(tmp_path: Path, capsys) -> None:
    put(tmp_path, a=sound(1250), b=sound(1000), c=sound(2000, rate=2 * RATE), d=sound(700, rate=11_025))
    (tmp_path / "notes.txt").touch()
    source = opened(tmp_path)
    assert source.notes == (
        "9 segments of 500 samples (0.0625 s at 8,000 Hz, 8-bit mu-law) from 4 WAV files",
        "2 of the segments are the end of a file and not whole: filled up with silence",
        "2 files resampled: 1 of 11,025 Hz, 1 of 16,000 Hz",
    )
    said = capsys.readouterr().err
    assert all(f"{tmp_path}: {note}\n" in said for note in source.notes)
    assert "1 file is no WAV file: 1 .txt; it is not counted" in said
    put_aside = "2 of the segments are the end of a file and not whole: put aside (data.source.remainder: drop)"
    assert put_aside in opened(tmp_path, remainder="drop").notes


def test_a_dropped_end_is_in_the_ledger_and_no_bad_row(tmp_path: Path) -> None:
    for number in range(40):
        put(tmp_path / "in", **{f"{number:02d}": sound(1000 + number % 2 * 100, number)})
    config = settings(tmp_path / "in", remainder="drop")
    source = open_wav(config, None, LIMIT)
    assert faults(source)["01.wav#2"] == (
        "partial_segment", "expected 500 samples, found 100 (data.source.remainder: drop)"
    )  # fmt: skip
    facts = prepare([source], data_config(config), tmp_path / "data")
    assert (facts["rows_in"], facts["rows_prepared"]) == (100, 80)
    assert facts["quarantined"] == {"partial_segment": 20}
    assert facts["notes"] == list(source.notes)


def test_a_file_shorter_than_a_segment_is_one_row(tmp_path: Path) -> None:
    put(tmp_path, a=sound(1))
    (row,) = rows_of(opened(tmp_path))
    assert row["image"][1:] == bytes([SILENCE]) * (SEGMENT - 1)
    assert faults(opened(tmp_path, remainder="drop")).keys() == {"a.wav#0"}


def test_segments_of_a_resampled_file_are_those_of_the_whole_signal(tmp_path: Path, monkeypatch) -> None:
    put(tmp_path, a=wav(chord((200, 350, 700), 1.0, 44_100), rate=44_100))
    found = b"".join(row["image"] for row in rows_of(opened(tmp_path)))
    monkeypatch.setattr(module, "_RUN_SAMPLES", 1)
    assert b"".join(row["image"] for row in rows_of(opened(tmp_path))) == found
    expected = chord((200, 350, 700), 1.0)
    assert np.abs(mu_law_decode(np.frombuffer(found, np.uint8)) - expected)[100:-100].max() < 0.03


def test_channels_are_mixed_to_their_mean(tmp_path: Path) -> None:
    left, right = tone(440, 500 / RATE), noise(1, 500 / RATE)
    put(tmp_path, a=wav(np.stack([left, right], 1), "f4"), b=wav((left + right) / 2, "f4"))
    first, second = rows_of(opened(tmp_path))
    assert np.abs(np.frombuffer(first["image"], np.uint8).astype(int) - list(second["image"])).max() <= 1


def test_folders_are_classes_and_splits_as_for_images(tmp_path: Path) -> None:
    names = [f"{split}__{kind}__{n}" for split in ("train", "test") for kind in ("bell", "drum") for n in "12"]
    put(tmp_path, **{name: sound(900, number) for number, name in enumerate(names)})
    source = opened(tmp_path, labels="folders")
    assert (source.classes, source.official) == (("bell", "drum"), ("train", "test"))
    for row in rows_of(source):
        split, kind, _ = row["id"].split("/")
        assert (row["split"], source.classes[row["label"]]) == (split, kind)


def test_a_file_beside_the_classes_or_of_an_unknown_one_is_one_row(tmp_path: Path) -> None:
    put(tmp_path, cat__a=sound(1200), emu__b=sound(1200), loose=sound(1200))
    source = opened(tmp_path, ("cat", "dog"), labels="folders")
    assert faults(source) == {
        "emu/b.wav": ("label_unknown", "expected a class, found 'emu'"),
        "loose.wav": ("label_missing", "expected the file in the folder of its class, found it beside them"),
    }
    assert source.rows == 5


def test_no_split_has_a_part_of_a_recording_that_another_has(tmp_path: Path) -> None:
    config = settings(write_recordings(tmp_path / "in", 60), labels="folders")
    facts = prepare([open_wav(config, None, LIMIT)], data_config(config), tmp_path / "data")
    splits: dict[str, set[str]] = {}
    for row in pq.read_table(tmp_path / "data/prepared", columns=["id", "split", "source"]).to_pylist():
        assert row["id"].rpartition("#")[0] == row["source"]
        splits.setdefault(row["source"], set()).add(row["split"])
    assert len(splits) == 60
    assert {len(found) for found in splits.values()} == {1}
    assert min(facts["counts"].values()) > 0


def test_what_cannot_be_used_is_a_row_with_the_reason(tmp_path: Path) -> None:
    put(tmp_path, good=sound(600), cut=sound(600)[:-1], text=b"hello", empty=b"", long=sound(LIMIT))
    put(tmp_path, silent=riff(form("i2", 1, RATE), b"data\0\0\0\0"), odd=sound(600, rate=65_537 * 11), gone=sound(600))
    (tmp_path / "song.MP3").touch()
    (tmp_path / "link.wav").symlink_to("nothing")
    os.mkfifo(tmp_path / "pipe.wav")
    source = opened(tmp_path)
    found = {name: error for name, (error, _) in faults(source).items()}
    assert found == {
        "cut.wav": "truncated", "text.wav": "not_wav", "empty.wav": "not_wav", "long.wav": "too_many_bytes",
        "silent.wav": "no_samples", "odd.wav": "sample_rate", "song.MP3": "unsupported_format",
        "link.wav": "unreadable", "pipe.wav": "unreadable",
    }  # fmt: skip
    assert faults(source)["song.MP3"][1] == "expected WAV, found MP3; convert it to WAV"
    (tmp_path / "gone.wav").unlink()
    later = faults(source)
    assert later.keys() - found.keys() == {f"gone.wav#{number}" for number in range(2)}
    assert later["gone.wav#0"] == ("unreadable", "No such file or directory")


def test_a_file_that_would_become_more_than_a_recording_is_put_aside_unread(tmp_path: Path, monkeypatch) -> None:
    monkeypatch.setattr("pipeline.data.sources.wav_files.MAX_SAMPLES", 10**6)
    put(tmp_path, bomb=wav(np.zeros(6000), "u1", 1000), good=sound(600))
    assert faults(opened(tmp_path, sample_rate=192_000)) == {
        "bomb.wav": ("too_many_samples", "expected at most 1,000,000 samples, found 1,152,000")
    }


def test_a_file_that_changed_since_it_was_counted_keeps_its_number_of_rows(tmp_path: Path) -> None:
    source = opened(put(tmp_path, a=sound(1400), b=sound(400)))
    put(tmp_path, a=sound(5000))
    assert source.rows == 4
    changed = ("unreadable", "it changed while it was read; start the stage again")
    assert faults(source) == {f"a.wav#{number}": changed for number in range(3)}


@pytest.mark.parametrize(("value", "found"), [(np.nan, "nan"), (np.inf, "inf"), (-32768.0, "32768")])
def test_a_segment_with_samples_that_are_none_is_put_aside_and_its_neighbours_are_not(
    tmp_path: Path, value: float, found: str
) -> None:
    samples = noise(1, 1500 / RATE)
    samples[700] = value
    source = opened(put(tmp_path, a=wav(samples, "f4"), b=wav(samples, "f8", 3 * RATE)))
    assert {name: fault for name, fault in faults(source).items() if name[0] == "a"} == {
        "a.wav#1": ("sample_range", f"expected amplitudes from -1 to 1, found up to {found}")
    }
    assert "b.wav#0" in faults(source)


def test_a_little_beyond_full_scale_is_clipped(tmp_path: Path) -> None:
    source = opened(put(tmp_path, a=wav(1.5 * np.ones(500), "f4")))
    assert rows_of(source)[0]["image"] == b"\xff" * 500


def test_partitions_are_cut_at_the_same_places_and_read_alone(tmp_path: Path, monkeypatch) -> None:
    put(tmp_path, **{f"{number}": sound(300 + 400 * number, number) for number in range(8)}, bad=b"RIFF")
    everything = table(opened(tmp_path))
    monkeypatch.setattr(module, "PARTITION_ROWS", 5)
    monkeypatch.setattr(module, "PARTITION_FILES", 2)
    monkeypatch.setattr(module, "BATCH_ROWS", 2)
    source = opened(tmp_path)
    assert [part.rows for part in source.partitions] == [3, 5, 5, 5, 5, 5, 4]
    assert source.partitions == opened(tmp_path).partitions
    assert table(source).equals(everything)
    alone = [batch.to_pylist() for batch in pickle.loads(pickle.dumps(source.partitions[3])).batches()]
    assert [len(batch) for batch in alone] == [2, 2, 1]
    assert [row for batch in alone for row in batch] == everything.to_pylist()[13:18]


def test_a_long_recording_is_read_piece_by_piece(tmp_path: Path, monkeypatch) -> None:
    monkeypatch.setattr(module, "_RUN_SAMPLES", 2**14)
    monkeypatch.setattr(module, "BATCH_BYTES", 2**16)
    (tmp_path / "long.wav").write_bytes(wav(np.zeros((400_000, 8)), rate=3 * RATE))
    (part,) = open_wav(settings(tmp_path), None, 10**8).partitions
    assert sum(batch.num_rows for batch in part.batches()) == 267
    tracemalloc.start()
    try:
        for _ in part.batches():
            pass
        assert tracemalloc.get_traced_memory()[1] < 3 * 10**6 < (tmp_path / "long.wav").stat().st_size / 2
    finally:
        tracemalloc.stop()


def test_names_that_are_no_text_are_read_and_stored(tmp_path: Path) -> None:
    with open(os.fsencode(tmp_path) + b"/\xff\n.wav", "wb") as file:
        file.write(sound(100))
    assert [(row["id"], row["error"]) for row in rows_of(opened(tmp_path))] == [("\\xff\\n.wav#0", None)]


def test_a_link_to_elsewhere_is_not_followed(tmp_path: Path) -> None:
    put(tmp_path / "out", secret=sound(10))
    put(tmp_path / "in", own=sound(10))
    (tmp_path / "in/link.wav").symlink_to(tmp_path / "out/secret.wav")
    (tmp_path / "in/folder").symlink_to(tmp_path / "out")
    assert {name: error for name, (error, _) in faults(opened(tmp_path / "in")).items()} == {
        "link.wav": "symlink", "folder": "symlink"
    }  # fmt: skip


@pytest.mark.parametrize(
    ("make", "changes", "message"),
    [
        (lambda path: None, {}, "no such folder; set it to the folder that holds the WAV files"),
        (lambda path: path.write_text(""), {}, "this is a file; set it to the folder that holds the WAV files"),
        (lambda path: path.mkdir(), {}, "expected WAV files in it, found none"),
        (
            lambda path: (path.mkdir(), (path / "a.flac").touch(), (path / "b.pdf").touch()),
            {},
            "found none; 1 files to convert to WAV; 1 file is no WAV file: 1 .pdf; it is not counted",
        ),
        (
            lambda path: put(path, a=sound(10)),
            {"labels": "folders"},
            "has no subfolders with WAV files. Put each class into a folder of its own, or set data.source.labels to "
            "none",
        ),
        (
            lambda path: put(path, train__a=sound(10)),
            {"labels": "folders"},
            "Set data.source.path to one of them, or data.source.labels to none",
        ),
    ],
)
def test_a_wrong_folder_is_explained(tmp_path: Path, make: Any, changes: dict[str, Any], message: str) -> None:
    make(tmp_path / "sounds")
    with pytest.raises(UserError) as error:
        opened(tmp_path / "sounds", **changes)
    assert str(error.value).endswith(message)
    assert str(tmp_path / "sounds") in str(error.value)


@pytest.mark.parametrize(
    ("changes", "key"),
    [
        ({"image": ImageConfig(size=(1, 500))}, "image"),
        ({"image": ImageConfig(mode="gray")}, "image"),
        ({"image": ImageConfig(fit="stretch", max_pixels=5)}, "image"),
        ({"append": (PublishedSource(kind="digits"),)}, "append"),
        ({"append": (WavSource(kind="wav", path="b", sample_rate=8000, segment=400),)}, "append"),
        ({"append": (WavSource(kind="wav", path="b", sample_rate=16_000, segment=500),)}, "append"),
    ],
)
def test_settings_that_have_no_meaning_for_sound_are_refused(changes: dict[str, Any], key: str) -> None:
    with pytest.raises(RangeError) as error:
        data_config(settings(Path("a")), **changes)
    assert error.value.field == key
    data_config(settings(Path("a")), image=ImageConfig(max_bytes=10**9), append=(settings(Path("b")),))


@pytest.mark.parametrize(
    ("key", "value"), [("sample_rate", 999), ("sample_rate", 192_001), ("segment", 15), ("segment", 2**21)]
)
def test_settings_have_limits(key: str, value: int) -> None:
    with pytest.raises(RangeError) as error:
        settings(Path("a"), **{key: value})
    assert error.value.field == key


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The data folder of 60 recordings, one of them damaged, with shards."""
    root = tmp_path_factory.mktemp("sounds")
    write_recordings(root / "sounds", 60)
    (root / "sounds/tone/bad.wav").write_bytes(b"RIFF")
    config = data_config(settings(root / "sounds", labels="folders"), max_bad_fraction=0.1)
    prepare([open_source(config.source, None, LIMIT, root)], config, root / "data")
    write_here(root / "data", ShardConfig(seed=0, shard_bytes=100_000))
    return root / "data"


def test_recordings_become_batches(data: Path) -> None:
    split = open_split(data / "shards", "train")
    assert split.spec.channels == split.spec.height == 1
    assert split.spec.width == SEGMENT
    loader = Loader(split, seed=0, window_shards=2, global_batch_size=16)
    batches = list(loader)
    assert {tuple(batch.images.shape) for batch in batches[:-1]} == {(16, 1, 1, SEGMENT)}
    prepared = pq.read_table(data / "prepared", filters=[("split", "==", "train")])
    expected = Counter(zip(prepared["image"].to_pylist(), prepared["label"].to_pylist(), strict=True))
    found = Counter(
        (row.numpy().tobytes(), label)
        for batch in batches
        for row, label, weight in zip(batch.images, batch.labels.tolist(), batch.weight.tolist(), strict=True)
        if weight
    )
    assert found == expected
    assert prepared.num_rows > 100


def test_sound_is_not_stored_as_jpeg(data: Path) -> None:
    with pytest.raises(UserError, match=r"shard.encoding: jpeg is for pictures, found sequences; set it to raw or png"):
        write_here(data, ShardConfig(seed=0, shard_bytes=100_000, encoding="jpeg"))


def test_the_same_recordings_give_the_same_bytes(data: Path, tmp_path: Path) -> None:
    config = data_config(settings(data.parent / "sounds", labels="folders"), max_bad_fraction=0.1)
    facts = prepare([open_source(config.source, None, LIMIT, tmp_path)], config, tmp_path / "again")
    assert (tmp_path / "again/dataset.json").read_bytes() == (data / "dataset.json").read_bytes()
    assert facts["quarantined"]["not_wav"] == 1


def test_inspect_calls_them_sequences_and_draws_their_curves(data: Path, tmp_path: Path) -> None:
    found = inspect_path(str(data), 4, ReadConfig(cache=str(tmp_path)))
    text = "\n".join(describe(found))
    assert re.search(r"\n\d+ sequences, 500 values\n\d+ segments of 500 samples", text)
    assert "filled up with silence" in text
    assert "values, 0 to 255" in text
    assert "not_wav 1" in text
    save_contact_sheet(found, tmp_path / "sheet.png", 4)
    with Image.open(tmp_path / "sheet.png") as image:
        sheet = np.asarray(image.convert("RGB"))
    assert sheet.shape[0] > 3 * 64
    assert (sheet == INK).all(-1).sum() > 1000
    shards = inspect_path(str(data / "shards"), 4, ReadConfig(cache=str(tmp_path)))
    save_contact_sheet(shards, tmp_path / "shards.png", 4)


def drawn_on(picture: np.ndarray) -> np.ndarray:
    """The pixels of the curve, its faint ones too."""
    return ~((picture == PAPER).all(-1) | (picture == AXIS).all(-1))


def test_a_curve_is_high_where_the_value_is() -> None:
    row = np.zeros((1, 400, 1), np.uint8)
    row[0, 200:] = 255
    row[0, 100] = 128
    inked = drawn_on(waveform(row, 64, 40))
    assert inked[63, :10].all()
    assert not inked[:62, :9].any()
    assert inked[32, 10], "a peak of one value is not lost"
    assert inked[:, 20].all(), "the rise is a line"
    assert inked[0, 21:].all()
    assert not inked[1:, 21:].any()


@pytest.mark.parametrize("width", [2, 40, 128, 5000])
def test_a_curve_has_ink_in_every_column_whatever_the_length(width: int) -> None:
    rows = np.random.default_rng(0).integers(0, 256, (3, 1, width, 2), np.uint8)
    drawn = pictures(rows)
    assert drawn.shape == (3, 64, 128, 3)
    assert drawn_on(drawn).any(1).all()
    assert (drawn == INK).all(-1).any(1)[:, :: max(1, 128 // width)].any()
    assert pictures(rows[:0]).shape == (0, 64, 128, 3)
    assert pictures(rows.reshape(3, width, 1, 2)).shape == (3, width, 1, 2)


def test_of_a_long_row_the_start_is_shown() -> None:
    row = np.arange(40_000, dtype=np.int64).astype(np.uint8).reshape(1, 1, -1, 1)
    assert np.array_equal(scan.thumbnails(row), row[:, :, : scan.THUMBNAIL**2])


@pytest.fixture
def _no_hang() -> Iterator[None]:
    faulthandler.dump_traceback_later(120, exit=True, file=sys.__stderr__)
    yield
    faulthandler.cancel_dump_traceback_later()


@pytest.mark.usefixtures("_no_hang")
def test_damaged_recordings(tmp_path: Path) -> None:
    """Each of 240 is used, or in the ledger with the reason; nothing is lost, whatever a header claims."""
    kinds = [{"kind": kind, "extensible": form} for kind in ("u1", "i2", "i3", "f4") for form in (False, True)]
    for seed, kind in enumerate(kinds):
        for number, mutant in enumerate(mutants(sound(700, seed, **kind), 30, seed)):
            put(tmp_path / "in", **{f"{seed}-{number:02d}": mutant})
    config = settings(tmp_path / "in")
    source = open_wav(config, None, LIMIT)
    facts = prepare([source], data_config(config, max_bad_fraction=1.0), tmp_path / "data")
    used = pq.read_table(tmp_path / "data/prepared", columns=["id"])["id"].to_pylist()
    ledger = pq.read_table(tmp_path / "data/quarantine.parquet").to_pylist()
    assert facts["rows_in"] == source.rows == len(used) + len(ledger) == len({*used, *(row["id"] for row in ledger)})
    assert all(row["source"] and row["error"] and row["detail"] for row in ledger)
    files = {name.partition("#")[0] for name in (*used, *(row["id"] for row in ledger))}
    assert len(files) == 240
    reasons = Counter(row["error"] for row in ledger)
    assert {"not_wav", "truncated", "wav_malformed", "unknown_codec"} <= reasons.keys()
    assert len(used) > 100
