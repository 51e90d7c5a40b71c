"""Files are whole or absent, whatever kills the writer."""

import json
import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from pipeline import files


def names(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir())


def dead_process() -> int:
    """The number of a process that has ended."""
    process = subprocess.Popen([sys.executable, "-c", ""])
    process.wait()
    return process.pid


def test_a_new_directory_takes_the_place_of_the_old(tmp_path: Path) -> None:
    for content in ("old", "new"):
        with files.new_directory(tmp_path / "out" / "model") as folder:
            (folder / content).write_text(content)
            assert not (tmp_path / "out" / "model" / content).exists()
    assert names(tmp_path / "out" / "model") == ["new"]
    assert names(tmp_path / "out") == ["model"]


@pytest.mark.parametrize("error", [ValueError, KeyboardInterrupt])
def test_an_error_leaves_the_old_directory(tmp_path: Path, error: type[BaseException]) -> None:
    path = tmp_path / "model"
    with files.new_directory(path) as folder:
        (folder / "old").write_text("old")

    def broken_off() -> None:
        with files.new_directory(path) as folder:
            (folder / "new").write_text("new")
            raise error

    with pytest.raises(error):
        broken_off()
    assert names(path) == ["old"]
    assert names(tmp_path) == ["model"]


def test_what_a_dead_process_left_is_cleared(tmp_path: Path) -> None:
    for owner in (dead_process(), os.getpid()):  # in a container a number soon comes again
        left = tmp_path / f".model.{owner}.tmp"
        left.mkdir()
        (left / "half").write_text("half")
    with files.new_directory(tmp_path / "model") as folder:
        assert names(folder) == []
    assert names(tmp_path) == ["model"]


def test_what_others_are_writing_is_left_alone(tmp_path: Path) -> None:
    alive = tmp_path / f".model.{os.getppid()}.tmp"
    alive.mkdir()
    other = tmp_path / f".model.json.{dead_process()}.tmp"  # a file beside the directory, with its name as a prefix
    other.write_text("half")
    odd = tmp_path / ".model.mine.tmp"
    odd.mkdir()
    with files.new_directory(tmp_path / "model"):
        pass
    assert alive.exists()
    assert other.exists()
    assert odd.exists()


def test_a_name_with_brackets_is_no_pattern(tmp_path: Path) -> None:
    left = tmp_path / f".a.{dead_process()}.tmp"
    left.mkdir()
    with files.new_directory(tmp_path / "[a]"):
        pass
    assert left.exists()


def test_a_file_is_replaced_whole(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "deep" / "figures.json"
    files.write_json(path, {"b": 1, "a": "ö"})
    assert path.read_text() == '{\n  "b": 1,\n  "a": "ö"\n}\n'

    def fail(descriptor: int) -> None:
        raise OSError("no space left on device")

    monkeypatch.setattr(os, "fsync", fail)
    with pytest.raises(OSError, match="no space"):
        files.write_json(path, {"b": 2})
    assert files.read_json(path) == {"b": 1, "a": "ö"}


@pytest.mark.parametrize("value", [float("nan"), float("inf"), -float("inf")])
def test_json_holds_only_finite_numbers(tmp_path: Path, value: float) -> None:
    path = tmp_path / "figures.json"
    files.write_json(path, {"loss": 1.0})
    with pytest.raises(ValueError, match="not JSON compliant"):
        files.write_json(path, {"loss": [value]})
    assert json.loads(path.read_text()) == {"loss": 1.0}


def test_a_digest_is_that_of_the_content(tmp_path: Path) -> None:
    (tmp_path / "a").write_bytes(b"abc")
    assert files.sha256(tmp_path / "a") == "ba7816bf8f01cfea414140de5dae2223b00361a396177a9cb410ff61f20015ad"


KILLED = """
import os, signal, sys
from pathlib import Path
from pipeline import files

def die_at_rename(event, arguments):
    if event == "os.rename":
        renames.append(arguments)
        if len(renames) == int(sys.argv[2]):
            os.kill(os.getpid(), signal.SIGKILL)

renames = []
sys.addaudithook(die_at_rename)
with files.new_directory(Path(sys.argv[1])) as folder:
    (folder / "new").write_text("new")
"""


@pytest.mark.parametrize(("rename", "there"), [(1, ["old0", "old1", "old2"]), (2, None)])
def test_a_kill_leaves_no_part_of_the_old_directory(tmp_path: Path, rename: int, there: list[str] | None) -> None:
    path = tmp_path / "model"
    with files.new_directory(path) as folder:
        for number in range(3):
            (folder / f"old{number}").write_text("old")
    killed = subprocess.run([sys.executable, "-c", KILLED, str(path), str(rename)])
    assert killed.returncode == -signal.SIGKILL
    assert (names(path) if path.exists() else None) == there
    assert all(name == "model" or (name.startswith(".model.") and name.endswith(".tmp")) for name in names(tmp_path))
    with files.new_directory(path) as folder:
        (folder / "new").write_text("new")
    assert names(path) == ["new"]
    assert names(tmp_path) == ["model"]


def test_an_old_directory_that_cannot_be_replaced_is_kept(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "model"
    with files.new_directory(path) as folder:
        (folder / "old").write_text("old")
    rename = Path.rename

    def fail(self: Path, to: Path) -> Path:
        if to == path and ".old." not in self.name:
            raise OSError("input/output error")
        return rename(self, to)

    monkeypatch.setattr(Path, "rename", fail)
    with pytest.raises(OSError, match="input/output"), files.new_directory(path) as folder:
        (folder / "new").write_text("new")
    monkeypatch.undo()
    assert names(tmp_path) == ["model"]
    assert names(path) == ["old"]
