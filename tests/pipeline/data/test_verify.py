"""Every damage that a folder of shards can have is found at opening and by `verify`, which also tells the rows."""

import shutil
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pyarrow.parquet as pq
import pytest
from small_shards import LAYOUT, write_small

from pipeline import files
from pipeline.__main__ import main
from pipeline.data.config import ReadConfig
from pipeline.data.index import INDEX, read_manifest, write_manifest
from pipeline.data.store import open_store
from pipeline.errors import UserError
from pipeline.operate.verify import verify

SHARD = "train/train-000001.tar"  # keys train-00000020 to train-00000039
ROW = 2 * LAYOUT.stride  # where train-00000022 starts in it
PAYLOAD_END = ROW + LAYOUT.payload_at + LAYOUT.payload


@pytest.fixture(scope="module")
def written(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("written") / "shards"
    write_small(folder)
    return folder


@pytest.fixture
def shards(written: Path, tmp_path: Path) -> Path:
    """Shards that a test may damage."""
    return Path(shutil.copytree(written, tmp_path / "shards"))


@pytest.fixture
def config(tmp_path: Path) -> ReadConfig:
    return ReadConfig(cache=str(tmp_path / "cache"), remote_timeout_s=2)


def cut(at: int) -> Callable[[Path], object]:
    return lambda folder: (folder / SHARD).write_bytes((folder / SHARD).read_bytes()[:at])


def flip(at: int, name: str = SHARD) -> Callable[[Path], object]:
    def inflict(folder: Path) -> None:
        content = bytearray((folder / name).read_bytes())
        content[at] ^= 1
        (folder / name).write_bytes(content)

    return inflict


def swap(folder: Path) -> None:
    first, second = folder / "train/train-000000.tar", folder / SHARD
    assert first.stat().st_size == second.stat().st_size
    first.rename(folder / "aside")
    second.rename(first)
    (folder / "aside").rename(second)


def age(folder: Path) -> None:
    """The shard as an earlier version of the data had it."""
    write_small(folder.parent / "older", seed=1)
    (folder.parent / "older" / SHARD).replace(folder / SHARD)


def edit_manifest(folder: Path) -> None:
    path = folder / "manifest.json"
    path.write_text(path.read_text().replace('"rows": 20', '"rows": 19'))


def edit_index(folder: Path) -> None:
    table = pq.read_table(folder / INDEX)
    labels = table["label"].to_pylist()
    labels[0] = 2
    pq.write_table(table.set_column(table.column_names.index("label"), "label", [labels]), folder / INDEX)


WRONG_SIZE = rf"{SHARD}: expected [\d,]+ bytes, found [\d,]+; restore"
DAMAGED = rf"{SHARD}: damaged or exchanged: expected sha256 \w{{64}}, found \w{{64}}; restore"
LOST = rf"{SHARD}: images that are not those of the index: train-00000022, train-00000023, .* and 13 more; "
# What is done; what opening says; what verify says besides.
DAMAGES: dict[str, tuple[Callable[[Path], object], str, str]] = {
    "cut between samples": (cut(ROW), WRONG_SIZE, LOST),
    "cut between the files of a sample": (
        cut(ROW + 1024),
        WRONG_SIZE,
        rf"{SHARD}: expected the header of train-00000022.json at byte {ROW + 1024:,}, found none \(empty header\)",
    ),
    "cut inside a header": (
        cut(ROW + 100),
        WRONG_SIZE,
        r"expected the header of train-00000022.cls .*truncated header",
    ),
    "cut inside an image": (
        cut(PAYLOAD_END - 9),
        WRONG_SIZE,
        rf"{SHARD}: train-00000022.npy: cut after {LAYOUT.payload - 9} of {LAYOUT.payload} bytes",
    ),
    "flipped header byte": (flip(ROW + 3), DAMAGED, rf"header of train-00000022.cls at byte {ROW:,}, .*bad checksum"),
    "flipped image byte": (
        flip(ROW + LAYOUT.image_at + 5),
        DAMAGED,
        rf"{SHARD}: images that are not those of the index: train-00000022; ",
    ),
    "flipped digit of a label": (flip(ROW + 512), DAMAGED, r"train-00000022.cls: expected 2, as in the index, found 3"),
    "flipped digit of an attribute": (
        flip(ROW + 1024 + 512 + 13),
        DAMAGED,
        r"train-00000022.json: expected \[.*\], as in the index, found",
    ),
    "flipped padding": (
        flip(PAYLOAD_END + 1),
        DAMAGED,
        rf"train-00000022.npy: expected zeros after it, at byte {PAYLOAD_END:,}",
    ),
    "flipped end": (flip(-1), DAMAGED, rf"{SHARD}: expected zeros from byte [\d,]+ to the end"),
    "missing shard": (
        lambda folder: (folder / SHARD).unlink(),
        rf"{SHARD}: no such file, and the manifest names it; restore",
        "",
    ),
    "extra shard": (
        lambda folder: shutil.copy(folder / "val/val-000000.tar", folder / "train/more.tar"),
        r"train/more.tar: the manifest does not name this (shard|file); restore",
        "",
    ),
    "two shards exchanged": (
        swap,
        DAMAGED,
        r"train-000000.tar: expected train-00000000.cls at .* 'train-00000020.cls'",
    ),
    "shard of an older version": (
        age,
        DAMAGED,
        rf"{SHARD}: images that are not those of the index: train-00000020, .* and 15 more; ",
    ),
    "emptied shard": (
        lambda folder: (folder / SHARD).write_bytes(b""),
        rf"{SHARD}: expected [\d,]+ bytes, found 0; restore",
        r"images that are not those of the index: train-00000020, .* and 15 more; ",
    ),
    "edited manifest": (edit_manifest, r"manifest.json: changed since it was written: digest \w+, content \w+; ", ""),
    "cut manifest": (
        lambda folder: (folder / "manifest.json").write_bytes((folder / "manifest.json").read_bytes()[:300]),
        "manifest.json: not a manifest; restore",
        "",
    ),
    "emptied manifest": (lambda folder: (folder / "manifest.json").write_text("{}"), "json: not a manifest; ", ""),
    "edited index": (
        edit_index,
        r"index.parquet: damaged or exchanged: expected sha256 \w{64}, found \w{64}; restore",
        "",
    ),
    "flipped byte of the index": (flip(100, INDEX), r"index.parquet: damaged or exchanged: expected sha256 ", ""),
    "missing index": (
        lambda folder: (folder / INDEX).unlink(),
        "index.parquet: no such file, and the manifest names it; restore",
        "",
    ),
    "missing manifest": (lambda folder: (folder / "manifest.json").unlink(), "manifest.json: no such file; write", ""),
}


@pytest.mark.parametrize("damage", DAMAGES)
def test_opening_finds_the_damage(shards: Path, config: ReadConfig, damage: str) -> None:
    inflict, message, _ = DAMAGES[damage]
    open_store(shards, config).check_split("train")
    inflict(shards)
    with pytest.raises(UserError, match=message) as error:
        open_store(shards, config).check_split("train")
    tells_the_remedy(str(error.value))


@pytest.mark.parametrize("damage", DAMAGES)
def test_verify_finds_the_damage_and_its_rows(shards: Path, config: ReadConfig, damage: str) -> None:
    inflict, message, more = DAMAGES[damage]
    inflict(shards)
    with pytest.raises(UserError, match=message) as error:
        verify(str(shards), config)
    tells_the_remedy(str(error.value))
    assert error.match(more)


def tells_the_remedy(message: str) -> None:
    for line in message.splitlines():
        assert "`dvc repro -f shard`" in line or "`dvc repro shard`" in line


@pytest.mark.parametrize("encoding", ["raw", "png"])
@pytest.mark.parametrize("scheme", ["", "file://"])
def test_whole_shards_are_a_line(tmp_path: Path, config: ReadConfig, encoding: str, scheme: str) -> None:
    manifest = write_small(tmp_path / "shards", encoding=encoding)
    size = sum(entry.bytes for entry in manifest.shards) / 1000
    (tmp_path / "shards/train/train-000000.tar.idx").touch()
    (tmp_path / "shards/wids.json").touch()
    answer = verify(f"{scheme}{tmp_path}/shards", config)
    assert answer == f"{scheme}{tmp_path}/shards: 4 shards, 62 rows, {size:.0f} KB: every byte is as it was written"
    assert not list((tmp_path / "cache").glob("*")), "what comes to be checked does not stay"


def test_a_damaged_shard_elsewhere_is_told_with_its_rows(shards: Path, config: ReadConfig) -> None:
    store = open_store(f"file://{shards}", config)
    store.raw(store.manifest.shards[1])  # the cache has it, and that does not count
    flip(ROW + LAYOUT.image_at)(shards)
    with pytest.raises(UserError, match=rf"^file://{shards}/{SHARD}: damaged") as error:
        verify(f"file://{shards}", config)
    assert "images that are not those of the index: train-00000022;" in str(error.value)


def test_what_comes_to_be_checked_needs_a_folder(shards: Path, config: ReadConfig) -> None:
    Path(config.cache).touch()
    with pytest.raises(UserError, match=r"^compute.cache: \S+/cache: File exists; set it to a folder with room"):
        verify(f"file://{shards}", config)


def test_an_index_that_tells_other_labels_than_the_tars_is_found(shards: Path, config: ReadConfig) -> None:
    """As a defective writer would leave it: every digest is right."""
    edit_index(shards)
    write_manifest(shards, replace(read_manifest(shards), index=files.sha256(shards / INDEX)))
    open_store(shards, config).check_split("train")
    with pytest.raises(
        UserError, match=r"^\S+train-000000.tar: train-00000000.cls: expected 2, as in the index, found 0"
    ):
        verify(str(shards), config)


def test_the_command_prints_a_line_a_problem_and_fails(
    shards: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    shutil.copy(Path(__file__).parents[3] / "params.yaml", tmp_path)
    monkeypatch.chdir(tmp_path)
    assert main(["verify", "shards"]) == 0
    assert capsys.readouterr().out.startswith("shards: 4 shards, 62 rows, ")
    (shards / SHARD).unlink()
    flip(3, "val/val-000000.tar")(shards)
    assert main(["verify", "shards"]) == 1
    problems = [line for line in capsys.readouterr().err.splitlines() if line.startswith("error: ")]
    assert [line.split(":")[1].strip() for line in problems] == [f"shards/{SHARD}", *["shards/val/val-000000.tar"] * 2]


def test_without_an_argument_it_checks_what_training_reads(
    shards: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    shutil.copy(Path(__file__).parents[3] / "params.yaml", tmp_path)
    monkeypatch.chdir(tmp_path)
    assert main(["verify"]) == 1
    assert "error: data/shards/manifest.json: no such file" in capsys.readouterr().err
    shutil.copytree(shards, tmp_path / "data/shards")
    assert main(["verify"]) == 0


@pytest.mark.parametrize(
    "content", [b"[" * 100_000, b'{"digest": "", "version": "\\ud800"}', b'{"digest": 1}', b"7", b""]
)
def test_what_is_no_manifest_is_named(shards: Path, config: ReadConfig, content: bytes) -> None:
    (shards / "manifest.json").write_bytes(content)
    for use in (lambda: open_store(str(shards), config), lambda: verify(str(shards), config)):
        with pytest.raises(UserError, match=r"manifest.json: not a manifest; restore it with"):
            use()
