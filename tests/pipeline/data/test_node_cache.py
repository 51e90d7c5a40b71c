"""The node's cache: each entry made once, checked, and dropped when it is the longest unused."""

import errno
import mmap
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from hashlib import sha256
from pathlib import Path

import pytest

from pipeline.data import node_cache
from pipeline.data.node_cache import Content, Damaged, NodeCache
from pipeline.data.verified import Mode, Verified
from pipeline.errors import UserError

DATA = b"shard" * 100
DIGEST = sha256(DATA).hexdigest()
NAME = f"{DIGEST}.tar"
CONTENT = Content(len(DATA), DIGEST)

MAKER = """
import sys, time
from pathlib import Path
from pipeline.data.node_cache import NodeCache
from pipeline.data.verified import Verified

folder, log, seconds, name = Path(sys.argv[1]), Path(sys.argv[2]), float(sys.argv[3]), sys.argv[4]

def make(to):
    to.write_bytes(b"shard")
    with log.open("a") as file:
        print("made", file=file)
    time.sleep(seconds)
    to.write_bytes(b"shard" * 100)

print(NodeCache(folder, 10**6, Verified(folder / "verified", "once")).get(name, make).read_bytes() == b"shard" * 100)
"""


def cache(folder: Path, limit: int = 10**6, mode: Mode = "once") -> NodeCache:
    return NodeCache(folder, limit, Verified(folder / "verified", mode))


def write(to: Path) -> None:
    to.write_bytes(DATA)


def never(to: Path) -> None:
    raise AssertionError("it was there already")


def entry(text: str, size: int = 100) -> tuple[str, Callable[[Path], None], Content]:
    data = text.encode().ljust(size, b".")
    digest = sha256(data).hexdigest()
    return f"{digest}.tar", lambda to: assert_written(to, data), Content(size, digest)


def assert_written(to: Path, data: bytes) -> None:
    assert to.write_bytes(data) == len(data)


@pytest.fixture
def start(tmp_path: Path) -> Iterator[Callable[[float], subprocess.Popen[str]]]:
    """Starts a process that gets the entry, and takes some seconds to make it."""
    started = []

    def run(seconds: float) -> subprocess.Popen[str]:
        arguments = [str(tmp_path / "cache"), str(tmp_path / "log"), str(seconds), NAME]
        process = subprocess.Popen([sys.executable, "-c", MAKER, *arguments], stdout=subprocess.PIPE, text=True)
        started.append(process)
        return process

    yield run
    for process in started:
        process.kill()
        process.wait()
        if process.stdout is not None:
            process.stdout.close()


def test_processes_of_a_node_make_an_entry_once(
    start: Callable[[float], subprocess.Popen[str]], tmp_path: Path
) -> None:
    answers = [process.communicate()[0] for process in [start(0.2) for _ in range(4)]]
    assert answers == ["True\n"] * 4
    assert (tmp_path / "log").read_text() == "made\n"


def test_threads_make_an_entry_once(tmp_path: Path) -> None:
    made = []

    def make(to: Path) -> None:
        made.append(to)
        time.sleep(0.05)
        write(to)

    with ThreadPoolExecutor(8) as pool:
        paths = set(pool.map(lambda _: cache(tmp_path).get(NAME, make, CONTENT), range(8)))
    assert (len(made), paths) == (1, {tmp_path / NAME})


def test_what_a_killed_process_left_is_made_again(
    start: Callable[[float], subprocess.Popen[str]], tmp_path: Path
) -> None:
    process, folder = start(60), tmp_path / "cache"
    while not (tmp_path / "log").exists():
        time.sleep(0.01)
    assert (folder / f".{NAME}.tmp").exists()
    other = entry("other")
    cache(folder).get(*other)
    assert (folder / f".{NAME}.tmp").exists(), "its maker lives"
    process.send_signal(signal.SIGKILL)
    process.wait()
    cache(folder).get(*entry("a third"))
    assert not list(folder.glob(".*.tmp"))
    assert cache(folder).get(NAME, write).read_bytes() == DATA


def test_an_entry_is_found_by_later_processes_unread(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    cache(tmp_path).get(NAME, write, CONTENT)
    monkeypatch.setattr("pipeline.files.sha256", never)
    assert cache(tmp_path).get(NAME, never, CONTENT) == tmp_path / NAME


@pytest.mark.parametrize("content", [CONTENT, None], ids=["known", "written down"])
@pytest.mark.parametrize(
    ("damage", "mode"), [(DATA[:-1], "never"), (b"S" + DATA[1:], "once"), (b"S" + DATA[1:], "always"), (b"", "once")]
)
def test_a_damaged_entry_is_made_again(tmp_path: Path, content: Content | None, damage: bytes, mode: Mode) -> None:
    path = cache(tmp_path, mode=mode).get(NAME, write, content)
    path.write_bytes(damage)
    assert cache(tmp_path, mode=mode).get(NAME, write, content).read_bytes() == DATA


def test_always_reads_what_an_untouched_stamp_would_hide(tmp_path: Path) -> None:
    path = cache(tmp_path).get(NAME, write, CONTENT)
    before = path.stat()
    path.write_bytes(b"S" + DATA[1:])
    os.utime(path, ns=(before.st_atime_ns, before.st_mtime_ns))  # as a failing disk would do it
    assert cache(tmp_path).get(NAME, never, CONTENT).read_bytes() != DATA
    assert cache(tmp_path, mode="always").get(NAME, write, CONTENT).read_bytes() == DATA


def test_a_maker_has_a_second_try(tmp_path: Path) -> None:
    tries = iter([b"half", DATA, b"bad", b"worse"])
    path = cache(tmp_path).get(NAME, lambda to: assert_written(to, next(tries)), CONTENT)
    assert path.read_bytes() == DATA
    path.unlink()
    with pytest.raises(Damaged, match=rf"expected sha256 {DIGEST}, found [0-9a-f]{{64}} in 5 bytes, twice"):
        cache(tmp_path).get(NAME, lambda to: assert_written(to, next(tries)), CONTENT)
    assert not list(tmp_path.glob("*.tar"))
    assert not list(tmp_path.glob(".*"))


def fill(folder: Path, monkeypatch: pytest.MonkeyPatch, grace: float = 0) -> list[Path]:
    """Three entries of 100 bytes in a cache of 350, used 30, 20 and 10 seconds ago."""
    monkeypatch.setattr(node_cache, "GRACE_S", grace)
    paths = [cache(folder, 350).get(*entry(text)) for text in "abc"]
    for path, seconds in zip(paths, (30, 20, 10), strict=True):
        os.utime(path, ns=(time.time_ns() - seconds * 10**9, path.stat().st_mtime_ns))
    return paths


def test_the_longest_unused_leave(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    first, second, third = fill(tmp_path, monkeypatch)
    foreign = tmp_path / "notes.tar"
    foreign.write_bytes(bytes(1000))
    cache(tmp_path, 350).get(entry("a")[0], never, entry("a")[2])
    new = cache(tmp_path, 350).get(*entry("d", 200))
    assert [path.exists() for path in (first, second, third, new, foreign)] == [True, False, False, True, True]
    assert cache(tmp_path, 350).get(*entry("b")) == second


def test_what_was_just_handed_out_stays(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    paths = [*fill(tmp_path, monkeypatch, grace=15), cache(tmp_path, 350).get(*entry("d", 300))]
    assert [path.exists() for path in paths] == [False, False, True, True]


def test_a_mapped_entry_stays_readable(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path, *_ = fill(tmp_path, monkeypatch)
    with path.open("rb") as file, mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as mapped:
        cache(tmp_path, 350).get(*entry("d", 300))
        assert not path.exists()
        assert mapped[:1] == b"a"


def test_an_entry_above_the_limit_is_kept_alone(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    paths = fill(tmp_path, monkeypatch)
    large = cache(tmp_path, 350).get(*entry("large", 400))
    assert [path.exists() for path in (*paths, large)] == [False, False, False, True]
    said = capsys.readouterr().err
    assert f"{large}: 400 bytes, more than all of compute.cache_bytes (350); kept alone\n" == said


def test_a_folder_that_cannot_be_written_is_named(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    with pytest.raises(UserError, match=r"^compute.cache: .*/file/cache: Not a directory; make it a folder"):
        cache(tmp_path / "file" / "cache").get(NAME, write, CONTENT)


def test_a_full_disk_is_named(tmp_path: Path) -> None:
    def make(to: Path) -> None:
        to.write_bytes(b"part")
        raise OSError(errno.ENOSPC, "No space left on device")

    with pytest.raises(UserError, match=r"^compute.cache: .*: the disk is full; free .* compute.cache_bytes"):
        cache(tmp_path).get(NAME, make, CONTENT)
    assert not list(tmp_path.glob(".*"))
