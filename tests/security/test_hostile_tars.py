"""Tars from strangers: their names are names, never paths, and their links and devices are never followed."""

import gzip
import io
import tarfile
from pathlib import Path

import pyarrow.parquet as pq
import pytest
from PIL import Image
from strangers import SECRET, bounded

from pipeline.data.config import DataConfig, ImageConfig, WebDatasetSource
from pipeline.data.ingest import prepare
from pipeline.data.sources import tar_walk
from pipeline.data.sources.webdataset_tars import open_webdataset
from pipeline.errors import UserError

TRAVERSING = ["../../x", "/tmp/absolute/x", "a/../../../x", "..", "./../x", "C:\\x", "a/b\x1b[2J\nc", "~root/x", "-rf"]


def png(value: int) -> bytes:
    file = io.BytesIO()
    Image.new("L", (4, 4), value).save(file, "PNG")
    return file.getvalue()


def member(
    tar: tarfile.TarFile, name: str, content: bytes = b"", kind: bytes = tarfile.REGTYPE, link: str = ""
) -> None:
    info = tarfile.TarInfo(name)
    info.size, info.type, info.linkname = len(content), kind, link
    tar.addfile(info, io.BytesIO(content))


def ingested(path: Path, out: Path) -> tuple[list[str], list[dict[str, str]]]:
    """Ids of the rows that are used, and the ledger."""
    source = WebDatasetSource(kind="webdataset", path=str(path))
    config = DataConfig(
        source=source, image=ImageConfig(size=(4, 4)), validation_fraction=0.3, test_fraction=0.3, max_bad_fraction=1.0
    )
    prepare([open_webdataset(source, None, 10**6)], config, out)
    ids: list[str] = pq.read_table(out / "prepared", columns=["id"])["id"].to_pylist()
    return ids, pq.read_table(out / "quarantine.parquet").to_pylist()


def test_names_that_lead_out_stay_names(home: Path) -> None:
    with tarfile.open(home / "a.tar", "w") as tar:
        for number in range(60):
            member(tar, f"{number:02d}.png", png(4 * number))
        for number, name in enumerate(TRAVERSING):
            member(tar, f"{name}-{number}.png", png(241 + number))
    ids, ledger = ingested(home / "a.tar", home / "out")
    everything = [*ids, *(str(row["id"]) for row in ledger)]
    assert len(everything) == 60 + len(TRAVERSING)
    assert any("../../x-0" in name for name in everything)
    assert all(name.isprintable() for name in everything)
    assert {path.name for path in home.iterdir()} == {"a.tar", "out"}
    assert {path.name for path in (home / "out").iterdir()} == {"prepared", "quarantine.parquet", "dataset.json"}


def test_links_and_devices_are_rows_of_the_ledger_and_reach_nothing(home: Path) -> None:
    kinds = {"symlink": tarfile.SYMTYPE, "hardlink": tarfile.LNKTYPE, "fifo": tarfile.FIFOTYPE,
             "char": tarfile.CHRTYPE, "block": tarfile.BLKTYPE}  # fmt: skip
    with tarfile.open(home / "a.tar", "w") as tar:
        for number in range(40):
            member(tar, f"{number:02d}.png", png(4 * number))
        for name, kind in kinds.items():
            member(tar, f"{name}.png", kind=kind, link=str(home.parent / "secret"))
    ids, ledger = ingested(home / "a.tar", home / "out")
    assert len(ids) == 40
    assert {row["id"]: row["error"] for row in ledger} == {
        f"a.tar:{name}": "symlink" if "link" in name else "unreadable" for name in kinds
    }
    assert not any(SECRET in path.read_bytes() for path in (home / "out").rglob("*") if path.is_file())


def test_a_member_that_inflates_without_end_is_put_aside_unread(home: Path) -> None:
    header = tarfile.TarInfo("bomb.png")
    header.size = 120 * 1024**2
    with gzip.open(home / "a.tar.gz", "wb", compresslevel=1) as file:
        file.write(header.tobuf())
        for _ in range(120):
            file.write(bytes(1024**2))
        with tarfile.open(fileobj=file, mode="w|") as tar:
            for number in range(40):
                member(tar, f"{number:02d}.png", png(4 * number))
    assert (home / "a.tar.gz").stat().st_size < 2 * 1024**2
    with bounded(60):
        ids, ledger = ingested(home / "a.tar.gz", home / "out")
    assert len(ids) == 40
    assert [(row["id"], row["error"]) for row in ledger] == [("a.tar.gz:bomb", "too_many_bytes")]


def test_members_without_end_are_refused_before_they_fill_the_memory(
    home: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(tar_walk, "_MEMBERS", 1000)
    header = tarfile.TarInfo("same.png").tobuf()
    with gzip.open(home / "a.tgz", "wb", compresslevel=1) as file:
        for _ in range(1000):
            file.write(header * 100)
    with bounded(50), pytest.raises(UserError, match=r"a\.tgz: from byte 512,000 .* more than 1,000 members") as error:
        open_webdataset(WebDatasetSource(kind="webdataset", path=str(home / "a.tgz")), None, 10**6)
    assert "\n" not in str(error.value)
