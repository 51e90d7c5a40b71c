"""What a kill, a full, read-only or bad disk can leave: the run goes on to the same end, or says why not."""

import json
import os
import shutil
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import killed_saver
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from pipeline.__main__ import main
from pipeline.closure import ROOT
from pipeline.errors import StorageFailed, UserError
from pipeline.train import checkpoints, storage
from pipeline.train.lock import exclusive
from pipeline.train.loop import train
from pipeline.train.run import TrainRun
from pipeline.train.tracking import MetricLog, curves

NAME = "vae-torn"


@pytest.fixture(scope="module")
def run(make_run: Callable[..., TrainRun]) -> TrainRun:
    return make_run("vae")


def go_on(run: TrainRun, folder: Path, epochs: int | None = None) -> None:
    train(run, folder, on_epoch=lambda *_: None, checkpoint_every_steps=4, epochs=epochs)


def end(folder: Path) -> tuple[bytes, str]:
    """The weights and the table that a run leaves."""
    found = checkpoints.latest(folder / "checkpoints")
    assert found is not None
    return found.weights, curves(MetricLog(folder).rows())


@pytest.fixture(scope="module")
def stopped(run: TrainRun, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, tuple[bytes, str]]:
    """A run that was stopped after the first of two epochs, and how it ends."""
    folder = tmp_path_factory.mktemp("stopped") / NAME
    with pytest.MonkeyPatch.context() as monkeypatch:
        monkeypatch.setattr("os.fsync", lambda descriptor: None)
        storage.record(folder, {"kind": "train", "family": "vae", **run.described})
        go_on(run, folder, epochs=1)
        whole = Path(shutil.copytree(folder, folder.with_name("whole")))
        go_on(run, whole)
    return folder, end(whole)


@pytest.fixture
def project(params_text: str, shards: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A project's folder, as working directory."""
    (tmp_path / "params.yaml").write_text(params_text)
    (tmp_path / "data").mkdir()
    (tmp_path / "data" / "shards").symlink_to(shards)
    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv("DVC_STAGE", raising=False)
    return tmp_path


@pytest.fixture
def torn(project: Path, stopped: tuple[Path, object]) -> Path:
    return Path(shutil.copytree(stopped[0], project / ".runs" / NAME))


def repaired(capsys: pytest.CaptureFixture[str], *argv: str) -> list[str]:
    capsys.readouterr()
    assert main(["runs", "repair", *argv]) == 0
    return capsys.readouterr().out.splitlines()


def newest(folder: Path) -> Path:
    return max((folder / "checkpoints").glob("step-*.safetensors"))


def flip(path: Path) -> None:
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 1
    path.write_bytes(content)


def cut(path: Path, to: float) -> None:
    path.write_bytes(path.read_bytes()[: int(to * path.stat().st_size)])


def damage_all(folder: Path) -> None:
    for path in (folder / "checkpoints").iterdir():
        flip(path)


def leave_temporary(folder: Path) -> None:
    path = newest(folder)
    path.with_name(f".{path.name}.99999999.tmp").write_bytes(path.read_bytes()[:100])


def add_half_a_line(folder: Path) -> None:
    with (folder / "metrics.jsonl").open("a") as file:
        file.write('{"step": 14, "epo')


def lose_line(folder: Path) -> None:
    """That of the only validation."""
    lines = (folder / "metrics.jsonl").read_bytes().splitlines(keepends=True)
    (folder / "metrics.jsonl").write_bytes(b"".join(lines[:-1]))


def finish_and_lose_line(folder: Path) -> None:
    mark_finished(folder)
    lose_line(folder)


def lose_log_and_record(folder: Path) -> None:
    for name in ("metrics.jsonl", "run.json"):
        (folder / name).unlink()


def damage_line(folder: Path) -> None:
    lines = (folder / "metrics.jsonl").read_bytes().splitlines(keepends=True)
    (folder / "metrics.jsonl").write_bytes(b"\0\0\0\n" + b"".join(lines[1:]))


def mark_finished(folder: Path) -> None:
    storage.finish(folder, {})


def lose_the_end(folder: Path) -> None:
    mark_finished(folder)
    newest(folder).unlink()


def damage_mark(folder: Path) -> None:
    mark_finished(folder)
    cut(folder / "finished.json", 0.5)


def leave_ray(folder: Path) -> None:
    (folder / "ray" / "attempt").mkdir(parents=True)
    (folder / "ray" / "attempt" / "snapshot.json").write_text("{}")


def leave_earlier_version(folder: Path) -> None:
    (folder / "checkpoints" / "step-000000099").mkdir()
    (folder / "checkpoints" / "step-000000099" / "model.safetensors").write_bytes(b"of another layout")


def remove_all(folder: Path) -> None:
    shutil.rmtree(folder / "checkpoints")
    (folder / "checkpoints").mkdir()


# What happened, what `repair` says of it; and what goes on without a repair too.
HEALING: dict[str, tuple[Callable[[Path], object], str | None]] = {
    "newest checkpoint truncated": (lambda folder: cut(newest(folder), 0.7), "damaged; removed"),
    "newest checkpoint empty": (lambda folder: cut(newest(folder), 0), "damaged; removed"),
    "a byte of the newest checkpoint flipped": (lambda folder: flip(newest(folder)), "damaged; removed"),
    "newest checkpoint lost": (lambda folder: newest(folder).unlink(), None),
    "every checkpoint lost": (remove_all, None),
    "every checkpoint damaged": (damage_all, "there is no other"),
    "a temporary file left": (leave_temporary, "left by a writer that was killed"),
    "half a line at the end of the log": (add_half_a_line, "half a line at its end; cut there"),
    "what Ray left": (leave_ray, "left by a driver that was killed"),
    "a checkpoint of an earlier version": (leave_earlier_version, None),
    "run.json lost": (lambda folder: (folder / "run.json").unlink(), "run.json: lost"),
    "run.json damaged": (lambda folder: cut(folder / "run.json", 0.5), "run.json: lost"),
}  # fmt: skip
LASTING: dict[str, tuple[Callable[[Path], object], str]] = {
    "a damaged line in the log": (damage_line, "line 1 of 2 is damaged; cut there"),
    "half of a line that was written": (
        lambda folder: cut(folder / "metrics.jsonl", 0.97),
        "the log has lost rows before it; removed",
    ),
    "a line of the log lost": (lose_line, "the log has lost rows before it; removed"),
    "the log lost": (lambda folder: (folder / "metrics.jsonl").unlink(), "the log has lost rows before it"),
    "the log and run.json lost": (lose_log_and_record, "the log has lost rows before it"),
    "a line of a finished run's log lost": (finish_and_lose_line, "its checkpoint is lost; removed"),
    "the end of a finished run lost": (lose_the_end, "its checkpoint is lost; removed"),
    "finished.json damaged": (damage_mark, "finished.json: damaged; removed"),
}


@pytest.mark.parametrize("state", HEALING | LASTING)
def test_a_torn_run_is_repaired_and_ends_as_if_nothing_had_been(
    state: str, torn: Path, run: TrainRun, stopped: tuple[Path, tuple[bytes, str]], capsys: pytest.CaptureFixture[str]
) -> None:
    damage, told = (HEALING | LASTING)[state]
    damage(torn)
    found = {path: path.read_bytes() for path in torn.rglob("*") if path.is_file()}
    dry = repaired(capsys, "--dry-run")
    assert {path: path.read_bytes() for path in torn.rglob("*") if path.is_file()} == found
    said = repaired(capsys)
    if told is None:
        assert said == dry == [f"{NAME}: nothing to mend"]
    else:
        assert any(told in line for line in said), said
        assert dry == [*said, "nothing was changed; the same without --dry-run mends it"]
    again = repaired(capsys, NAME)
    assert again == [f"{NAME}: nothing to mend"] or "run.json: lost; params.yaml describes no such run" in again[0]
    assert not storage.is_finished(torn)
    go_on(run, torn)
    assert end(torn) == stopped[1]


@pytest.mark.parametrize("state", HEALING)
def test_a_torn_run_goes_on_without_a_repair(
    state: str, torn: Path, run: TrainRun, stopped: tuple[Path, tuple[bytes, str]]
) -> None:
    HEALING[state][0](torn)
    go_on(run, torn)
    assert end(torn) == stopped[1]


damages = st.tuples(st.integers(0, 30), st.sampled_from(["cut", "flip", "remove", "empty"]), st.floats(0, 1))


@settings(max_examples=12, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(which=st.lists(damages, min_size=1, max_size=3))
def test_whatever_is_damaged_a_repaired_run_ends_as_if_nothing_had_been(
    which: list[tuple[int, str, float]], torn: Path, run: TrainRun, stopped: tuple[Path, tuple[bytes, str]],
    capsys: pytest.CaptureFixture[str],
) -> None:  # fmt: skip
    """A flipped bit of a log is left out: it can change a digit, and nothing would tell."""
    shutil.rmtree(torn)
    shutil.copytree(stopped[0], torn)
    for number, how, place in which:
        files = sorted(path for path in torn.rglob("*") if path.is_file())
        path = files[number % len(files)] if files else torn / "none"
        if how == "remove":
            path.unlink(missing_ok=True)
        elif how == "flip" and path.suffix == ".safetensors" and path.stat().st_size:
            flip(path)
        elif files:
            cut(path, 0 if how == "empty" else place)
    repaired(capsys)
    go_on(run, torn)
    assert end(torn) == stopped[1]


def test_a_lost_run_json_is_written_again_where_params_still_describe_it(
    project: Path, torn: Path, run: TrainRun, capsys: pytest.CaptureFixture[str]
) -> None:
    own = torn.rename(torn.with_name(run.folder_name("vae")))
    before = json.loads((own / "run.json").read_text())
    (own / "run.json").unlink()
    assert repaired(capsys) == [f"{own.name}: run.json: lost; written again from params.yaml"]
    after = json.loads((own / "run.json").read_text())
    assert {**after, "begun": 0} == {**before, "begun": 0}


def test_what_is_in_no_run_is_removed(project: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (project / ".runs" / "empty" / "checkpoints").mkdir(parents=True)
    for owner in (99999999, os.getpid()):
        left = project / ".runs" / f".vae-1.{owner}.tmp"
        left.mkdir()
        (left / "run.json").touch()
    dead = ".vae-1.99999999.tmp: left by a process that was killed; removed"
    assert repaired(capsys) == [dead, "empty: empty; removed"]
    assert [path.name for path in (project / ".runs").iterdir()] == [f".vae-1.{os.getpid()}.tmp"]


@pytest.fixture(scope="module")
def saver() -> Iterator[Callable[..., tuple[int, str]]]:
    """Saves a checkpoint in another process, which may die on the way: its exit code, and what it said."""
    command = [sys.executable, killed_saver.__file__]
    process = subprocess.Popen(command, cwd=ROOT, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)

    def save(folder: Path, step: int, when: int | str = "never") -> tuple[int, str]:
        process.stdin.write(f"{folder} {step} {when}\n")
        process.stdin.flush()
        code, _, said = process.stdout.readline().strip().partition(" ")
        return int(code), said

    yield save
    process.stdin.close()
    process.wait(20)
    process.stdout.close()


def test_killed_at_every_change_of_a_save(tmp_path: Path, saver: Callable[..., tuple[int, str]]) -> None:
    """With two checkpoints and the best there, of which one goes; and with what the kills before have left."""
    folder = tmp_path / "checkpoints"
    for step in (1, 2, 3):
        assert saver(folder, step)[0] == 0
    changes = int(saver(folder, 4)[1])
    assert changes >= 5
    for number in range(changes):
        step = 10 + number
        before = checkpoints.latest(folder)
        assert saver(folder, step, number)[0] == -signal.SIGKILL
        after = checkpoints.latest(folder)
        assert before is not None
        assert after is not None
        assert after.state["step"] in (before.state["step"], step)
        best = checkpoints.best(folder, after)
        assert best is not None
        assert best.state["step"] == 1
        files = [path.name for path in folder.iterdir() if not path.name.endswith(".tmp")]
        assert all(checkpoints.is_whole(name, (folder / name).read_bytes()) for name in files)
    assert saver(folder, 99)[0] == 0
    assert len([path for path in folder.iterdir() if path.suffix == ".safetensors"]) == 3


def mounted(path: Path, *options: str) -> bool:
    path.mkdir(exist_ok=True)
    command = ["mount", "-t", "tmpfs", "-o", ",".join(options), "tmpfs", str(path)]
    return os.getuid() == 0 and subprocess.run(command, stderr=subprocess.DEVNULL).returncode == 0


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Path]:
    """A real file system of 512 KiB."""
    disk = tmp_path / "disk"
    if not mounted(disk, "size=512k"):
        pytest.skip("needs leave to mount a file system")
    yield disk
    subprocess.run(["umount", str(disk)], check=True)


def test_a_full_disk_ends_the_run_and_leaves_its_checkpoints(
    small_disk: Path, run: TrainRun, stopped: tuple[Path, tuple[bytes, str]], capsys: pytest.CaptureFixture[str]
) -> None:
    folder = Path(shutil.copytree(stopped[0], small_disk / NAME))
    before = end(folder)
    free = os.statvfs(small_disk).f_bavail * os.statvfs(small_disk).f_frsize
    (small_disk / "other").write_bytes(b"x" * (free - 4096))
    with pytest.raises(StorageFailed, match=rf"^{folder}/.*: No space left on device; make room "):
        go_on(run, folder)
    assert end(folder)[0] == before[0]
    assert not [path for path in folder.rglob("*") if path.name.endswith(".tmp")]
    (small_disk / "other").unlink()
    go_on(run, folder)
    assert end(folder) == stopped[1]


def test_runs_can_be_removed_from_a_full_disk(
    small_disk: Path, project: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    storage.finish(small_disk / "vae-1", {})
    free = os.statvfs(small_disk).f_bavail * os.statvfs(small_disk).f_frsize
    (small_disk / "vae-1" / "more").write_bytes(b"x" * free)
    assert main(["runs", "--storage", str(small_disk), "rm", "--finished"]) == 0
    assert list(small_disk.iterdir()) == []


@pytest.fixture
def read_only(tmp_path: Path, stopped: tuple[Path, object]) -> Iterator[Path]:
    """The stopped run on a file system that cannot be written; for other users than root, in such a folder."""
    disk = tmp_path / "disk"
    is_disk = mounted(disk, "size=8m")
    folder = Path(shutil.copytree(stopped[0], disk / NAME))
    if is_disk:
        subprocess.run(["mount", "-o", "remount,ro", str(disk)], check=True)
    else:
        for path in (folder, *folder.rglob("*")):
            path.chmod(path.stat().st_mode & ~0o222)
        if os.access(folder, os.W_OK):
            pytest.skip("needs leave to mount a file system, or a user who may not write everywhere")
    yield folder
    if is_disk:
        subprocess.run(["umount", str(disk)], check=True)
    else:
        for path in (folder, *folder.rglob("*")):
            path.chmod(path.stat().st_mode | 0o200)


def test_a_read_only_store_is_named_with_its_remedy(
    read_only: Path, run: TrainRun, project: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    before = end(read_only)
    for attempt in (lambda: go_on(run, read_only), lambda: exclusive(read_only).__enter__()):
        with pytest.raises(
            StorageFailed, match=rf"^{read_only}.*: (Read-only file system|Permission denied); let this "
        ):
            attempt()
    assert end(read_only) == before
    assert main(["runs", "--storage", str(read_only.parent), "ls"]) == 0
    assert "stopped at epoch 1/2" in capsys.readouterr().out
    assert main(["runs", "--storage", str(read_only.parent), "rm", "--all"]) == StorageFailed.code


def test_a_file_that_may_not_grow_is_as_a_full_disk(tmp_path: Path, saver: Callable[..., tuple[int, str]]) -> None:
    """By a limit that needs no leave to set."""
    assert [saver(tmp_path, step)[0] for step in (1, 2)] == [0, 0]
    code, said = saver(tmp_path, 3, "limited")
    assert code == 0
    assert said.startswith(f"{tmp_path}/step-000000003-")
    assert "File too large; make room (`python -m pipeline runs rm --finished`)" in said
    assert sorted(checkpoints.step_of(path.name) for path in tmp_path.iterdir()) == [1, 2]
    found = checkpoints.latest(tmp_path)
    assert found is not None
    assert found.state["step"] == 2


def test_a_file_in_the_place_of_the_folder_is_named(tmp_path: Path) -> None:
    (tmp_path / "run").write_text("not a folder")
    with pytest.raises(UserError, match=rf"^{tmp_path}/run.*; a file is where a folder is needed"):
        MetricLog(tmp_path / "run").write(step=1, epoch=0, samples=1, split="val", values={})
