"""Folders, tables and names from strangers."""

import io
import os
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from PIL import Image
from strangers import SECRET, small_params

from pipeline.__main__ import main
from pipeline.data.config import Columns, DataConfig, ImageConfig, ImageFolderSource
from pipeline.data.ingest import prepare
from pipeline.data.sources.image_folder import open_image_folder
from pipeline.errors import printable
from pipeline.progress import say

ESCAPE = "\x1b]0;title\x07\x1b[2J"


def image(path: Path, value: int) -> None:
    file = io.BytesIO()
    Image.new("L", (4, 4), value).save(file, "PNG")
    path.write_bytes(file.getvalue())


@pytest.mark.parametrize("kind", ["csv", "parquet"])
def test_a_table_cannot_name_files_outside_its_folder(home: Path, kind: str) -> None:
    (home / "images").mkdir()
    image(home.parent / "secret.png", 255)
    names = [f"{number:02d}.png" for number in range(40)]
    for number, name in enumerate(names):
        image(home / "images" / name, 4 * number)
    outside = [
        "../../secret.png",
        str(home.parent / "secret.png"),
        "a\\..\\..\\..\\secret.png",
        "/etc/passwd",
    ]
    listed = [*names, *outside]
    table = pa.table({"file": listed, "kind": ["a", "b"] * (len(listed) // 2) + ["a"] * (len(listed) % 2)})
    path = home / f"table.{kind}"
    if kind == "csv":
        path.write_text(
            "file,kind\n" + "".join(f"{file},{label}\n" for file, label in zip(*table.columns, strict=True))
        )
    else:
        pq.write_table(table, path)
    source = ImageFolderSource(
        kind="image_folder", path="images", labels="table", table=path.name, columns=Columns(label="kind")
    )
    config = DataConfig(
        source=source, image=ImageConfig(size=(4, 4)), validation_fraction=0.3, test_fraction=0.3, max_bad_fraction=1.0
    )
    prepare([open_image_folder(source, None, 10**6)], config, home / "out")
    ledger = pq.read_table(home / "out" / "quarantine.parquet").to_pylist()
    assert [row["error"] for row in ledger] == ["file_missing"] * len(outside)
    assert sorted(pq.read_table(home / "out" / "prepared", columns=["id"])["id"].to_pylist()) == names
    (home.parent / "secret.png").unlink()


def test_a_folder_is_not_left_through_links(home: Path) -> None:
    (home / "images" / "a").mkdir(parents=True)
    for number in range(40):
        image(home / "images" / "a" / f"{number:02d}.png", 4 * number)
    (home / "images" / "a" / "link.png").symlink_to(home.parent / "secret")
    (home / "images" / "b").symlink_to(home.parent)
    os.mkfifo(home / "images" / "a" / "pipe.png")
    source = ImageFolderSource(kind="image_folder", path="images")
    config = DataConfig(
        source=source, image=ImageConfig(size=(4, 4)), validation_fraction=0.3, test_fraction=0.3, max_bad_fraction=1.0
    )
    prepare([open_image_folder(source, None, 10**6)], config, home / "out")
    ledger = pq.read_table(home / "out" / "quarantine.parquet").to_pylist()
    assert {row["id"]: row["error"] for row in ledger} == {
        "a/link.png": "symlink", "a/pipe.png": "unreadable", "b": "symlink"
    }  # fmt: skip
    assert not any(SECRET in path.read_bytes() for path in (home / "out").rglob("*") if path.is_file())


@pytest.mark.parametrize(
    "text", ["plain, µ 字", "two\nlines", "\x1b[31mred", "\x9b2J", "bell\x07", "\u202eright to left", "\udcff", "\x00"]
)
def test_nothing_printable_is_changed_and_nothing_else_is_printed(text: str) -> None:
    shown = printable(text)
    assert all(line.isprintable() for line in shown.split("\n"))
    assert (shown == text) == all(line.isprintable() for line in text.split("\n"))


def test_names_in_messages_are_no_commands_to_a_terminal(home: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (home / "params.yaml").write_text(small_params(source={"kind": "image_folder", "path": str(home)}))
    (home / f"{ESCAPE}\nerror: all is lost").touch()
    assert main(["ingest"]) == 1
    printed = "".join(capsys.readouterr())
    assert printed.startswith("error: data.source.path: ")
    assert not set(printed) & set("\x1b\x07")
    assert main(["runs", "--storage", f"{home}/{ESCAPE}", "show", f"x{ESCAPE}"]) == 1
    assert not set("".join(capsys.readouterr())) & set("\x1b\x07")
    say(ESCAPE)
    assert capsys.readouterr().err == "\\x1b]0;title\\x07\\x1b[2J\n"


def test_a_store_of_runs_is_not_left_by_their_names(home: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (home / "params.yaml").write_text(small_params())
    for folder in (".runs/vae-1", f".runs/vae-{ESCAPE}", "elsewhere"):
        (home / folder).mkdir(parents=True)
        (home / folder / "run.json").write_text("{}")
    for name in ("../elsewhere", "../../secret", str(home / "elsewhere"), ".", "..", "vae-1/..", ""):
        assert main(["runs", "rm", name]) == 1, name
        assert capsys.readouterr().err.startswith("error: ")
    assert main(["runs", "ls"]) == 0
    assert "\x1b" not in "".join(capsys.readouterr())
    (home / ".runs" / "vae-link").symlink_to(home / "elsewhere")
    assert main(["runs", "rm", "--all"]) == 0
    assert (home / "elsewhere" / "run.json").exists()
    assert sorted(path.name for path in (home / ".runs").iterdir()) == ["vae-link"]
