"""A run's folder on a disk, in a real S3-compatible store, and at an address of another kind: one behaviour."""

import os
import pickle
import secrets
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import fsspec
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from s3_server import Server

from pipeline.closure import ROOT
from pipeline.errors import StorageFailed, UserError
from pipeline.train import checkpoints
from pipeline.train.folders import DiskFolder, Folder, ObjectFolder, open_folder
from pipeline.train.lock import LEASE, exclusive, owner
from pipeline.train.loop import train
from pipeline.train.publish import publish_history, publish_model
from pipeline.train.retention import forget_oldest
from pipeline.train.run import TrainRun
from pipeline.train.storage import finish, is_finished, read_json, record

BUCKET = "s3://bucket/store"


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    """Reached through the environment, as a user would set it."""
    pytest.importorskip("s3fs")
    root = tmp_path_factory.mktemp("s3") / "root"
    (root / "bucket").mkdir(parents=True)
    with pytest.MonkeyPatch.context() as monkeypatch:
        server = Server(root)
        for name in [name for name in os.environ if name.startswith("AWS_")]:
            monkeypatch.delenv(name)
        for name, value in server.environment.items():
            monkeypatch.setenv(name, value)
        server.start()
        yield server
        server.stop()


@pytest.fixture(params=["disk", "s3", "memory"])
def store(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[Folder]:
    """An empty folder of each kind."""
    if request.param == "disk":
        yield open_folder(tmp_path)
    elif request.param == "s3":
        request.getfixturevalue("server")
        yield open_folder(f"{BUCKET}/{secrets.token_hex(4)}", 5)
    else:
        yield open_folder("memory://store")
        fsspec.filesystem("memory").store.clear()


@pytest.fixture
def folder(store: Folder) -> Folder:
    return store.sub("run")


def test_what_is_written_is_read(folder: Folder) -> None:
    for data in (b"first", b"", b"the second, which is longer"):
        folder.write("checkpoints/a", data)
        assert folder.read("checkpoints/a") == data
    assert folder.read("checkpoints/a", 4) == b"second, which is longer"
    assert folder.read("checkpoints/a", 27) == b""
    assert folder.read("checkpoints/a", 1000) == b""


def test_a_missing_file_is_told_from_a_failure(folder: Folder) -> None:
    for _ in range(2):
        with pytest.raises(FileNotFoundError):
            folder.read("checkpoints/a")
        folder.write("checkpoints/b", b"1")


def test_lines_are_appended(folder: Folder) -> None:
    for line in (b"one\n", b"two\n", b"three\n"):
        folder.append("log", line)
        folder.sync("log")
    assert folder.read("log") == b"one\ntwo\nthree\n"


def test_names_are_those_of_finished_files_in_the_folder_alone(folder: Folder, store: Folder) -> None:
    assert folder.names() == []
    for name in ("b", "checkpoints/step-2", "checkpoints/step-1", "checkpoints/.x.1.tmp", "checkpoint", "deep/er/a"):
        folder.write(name, b"123")
    store.write("run-2/c", b"1")
    store.write("ru", b"1")
    assert folder.names() == ["b", "checkpoint", "checkpoints/step-1", "checkpoints/step-2", "deep/er/a"]
    assert folder.names("checkpoints/") == ["checkpoints/step-1", "checkpoints/step-2"]
    assert folder.names("checkpoints/step-2") == ["checkpoints/step-2"]
    assert folder.names("check") == ["checkpoint", "checkpoints/step-1", "checkpoints/step-2"]
    assert folder.names("none/") == []
    assert folder.sub("checkpoints").names() == ["step-1", "step-2"]
    assert "checkpoints/.x.1.tmp" in folder.details()


def test_details_are_length_and_age(folder: Folder) -> None:
    folder.write("a", b"1234")
    (found,) = folder.details().values()
    assert found.bytes == 4
    assert abs(found.modified - time.time()) < 60


def test_what_is_removed_is_gone_and_may_have_been(folder: Folder) -> None:
    for name in ("a", "b", "c"):
        folder.write(name, b"1")
    folder.remove("a", "never", "c")
    assert folder.names() == ["b"]
    folder.clear()
    assert folder.names() == []
    folder.clear()
    folder.write("a", b"2")
    assert folder.names() == ["a"]


def test_a_folder_travels_to_another_process(folder: Folder) -> None:
    folder.sub("deep").write("a", b"1")
    for place in (folder, folder.sub("deep")):
        copy = pickle.loads(pickle.dumps(place))
        assert copy.names() == place.names()
        assert copy.location == place.location


def test_a_checkpoint_and_its_marks_are_kept_anywhere(folder: Folder) -> None:
    write_checkpoints(folder, 1, 2, 3)
    assert [checkpoints.step_of(name) for name in folder.names("checkpoints/")] == [2, 3]
    assert not is_finished(folder)
    finish(folder, {"val": {"neg_elbo_nats": 99.5}})
    assert is_finished(folder)
    with exclusive(folder, lost=pytest.fail):
        assert owner(folder) is not None
    assert owner(folder) is None
    assert is_finished(folder)


def write_checkpoints(folder: Folder, *steps: int) -> None:
    import torch

    for step in steps:
        model = torch.nn.Linear(3, 3)
        optimizer = torch.optim.Adam(model.parameters())
        checkpoints.save(folder.sub("checkpoints"), step, model, optimizer, {})


@pytest.mark.parametrize("damage", [b"", None])
def test_a_run_whose_last_checkpoint_is_lost_is_not_finished(tmp_path: Path, damage: bytes | None) -> None:
    """It goes on from the one before."""
    folder = open_folder(tmp_path)
    write_checkpoints(folder, 1, 2)
    finish(folder, {})
    newest = tmp_path / folder.names("checkpoints/")[-1]
    newest.unlink()
    if damage is not None:
        newest.write_bytes(damage)
    assert not is_finished(folder)


def test_a_run_without_checkpoints_can_be_finished(tmp_path: Path) -> None:
    """A sweep: its trials have them."""
    finish(tmp_path, {"best": "trial-003"})
    assert is_finished(tmp_path)
    assert read_json(open_folder(tmp_path), "finished.json")["best"] == "trial-003"  # type: ignore[index]


def test_a_record_stays_as_it_was_first_written(tmp_path: Path) -> None:
    what = {"kind": "train", "model": {"hidden": (1, 2)}}
    record(tmp_path, what)
    before = (tmp_path / "run.json").read_bytes()
    record(tmp_path, what)
    assert (tmp_path / "run.json").read_bytes() == before
    (tmp_path / "run.json").write_bytes(before[:20])
    record(tmp_path, what)
    found = read_json(open_folder(tmp_path), "run.json")
    assert found is not None
    assert {name: found[name] for name in what} == {"kind": "train", "model": {"hidden": [1, 2]}}


def test_places_are_paths_addresses_and_folders(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    for place in (tmp_path / "run", str(tmp_path / "run"), "run", f"file://{tmp_path}/run"):
        assert open_folder(place) == DiskFolder(tmp_path / "run"), "workers have other working directories"
    found = open_folder("memory://store")
    assert isinstance(found, ObjectFolder)
    assert open_folder(found) is found
    with pytest.raises(UserError, match="no address that fsspec opens"):
        open_folder("sss://bucket")


def test_a_password_is_in_no_message(monkeypatch: pytest.MonkeyPatch) -> None:
    assert open_folder("memory://user:secret@store/runs").sub("vae").location == "memory://store/runs/vae"


def test_a_bucket_that_is_not_there_is_a_failure_of_the_store(server: Server) -> None:
    folder = open_folder("s3://none/store", 1)
    assert folder.names() == []
    with pytest.raises(StorageFailed, match=r"^s3://none/store/a: .*NoSuchBucket|^s3://none/store/a: no such"):
        folder.write("a", b"1")


def test_a_store_that_stops_fails_the_write_and_keeps_what_it_had(server: Server) -> None:
    folder = open_folder(f"{BUCKET}/stopped", 1)
    write_checkpoints(folder, 1)
    before = folder.names("checkpoints/")
    server.stop()
    try:
        for write in (lambda: write_checkpoints(folder, 2), lambda: folder.read("a"), lambda: folder.names()):
            with pytest.raises(StorageFailed, match=rf"^{BUCKET}/stopped.*: no answer for 1 s .*check the address"):
                write()
    finally:
        server.start()
    assert folder.names("checkpoints/") == before
    found = checkpoints.latest(folder.sub("checkpoints"))
    assert found is not None
    assert found.state["step"] == 1
    write_checkpoints(folder, 2)
    assert len(folder.names("checkpoints/")) == 2


def test_a_run_goes_on_at_an_address_and_ends_as_on_a_disk(
    server: Server, make_run: Callable[..., TrainRun], tmp_path: Path
) -> None:
    run, there = make_run("vae"), open_folder(f"{BUCKET}/trained", 10)
    for place, epochs in ((there, 1), (there, None), (tmp_path / "run", None)):
        train(run, place, on_epoch=lambda *_: None, checkpoint_every_steps=4, epochs=epochs)
    left = []
    for place, name in ((there, "there"), (tmp_path / "run", "here")):
        publish_model(run, place, tmp_path / name)
        publish_history(place, "vae", tmp_path / name)
        left.append({path.name: path.read_bytes() for path in (tmp_path / name).iterdir()})
    assert left[0] == left[1]


SAVE = """
import sys, torch
from pipeline.train import checkpoints
from pipeline.train.folders import open_folder

folder = open_folder(sys.argv[1], 1).sub("checkpoints")
model = torch.nn.Linear(1500, 1000)
optimizer = torch.optim.Adam(model.parameters())
for step in range(1, 1000):
    checkpoints.save(folder, step, model, optimizer, {})
    print(step, flush=True)
"""


def test_a_server_that_is_killed_during_writes_leaves_a_checkpoint_that_verifies(server: Server) -> None:
    url = f"{BUCKET}/killed"
    command = [sys.executable, "-c", SAVE, url]
    writer = subprocess.Popen(command, cwd=ROOT, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    assert writer.stdout is not None
    reached = [int(writer.stdout.readline()) for _ in range(3)]
    server.stop()  # in the midst of a put, as likely as not
    out, error = writer.communicate(timeout=600)
    server.start()
    assert f"StorageFailed: {url}/checkpoints" in error.splitlines()[-1]
    assert "no answer for 1 s" in error.splitlines()[-1]
    found = checkpoints.latest(f"{url}/checkpoints")
    assert found is not None
    assert found.state["step"] >= max([*reached, *map(int, out.split())])


def test_a_lease_of_a_killed_process_is_taken_over_in_a_real_store(server: Server) -> None:
    code = "import os, sys, time; from pipeline.train.lock import exclusive\n" + (
        "with exclusive(sys.argv[1]): print('held', flush=True); time.sleep(600)"
    )
    url = f"{BUCKET}/leased"
    with subprocess.Popen([sys.executable, "-c", code, url], cwd=ROOT, stdout=subprocess.PIPE, text=True) as holder:
        assert holder.stdout is not None
        assert holder.stdout.readline() == "held\n"
        found = owner(url)
        assert found is not None
        assert found.pid == holder.pid
        with pytest.raises(UserError, match=f"process {holder.pid} is working here"), exclusive(url):
            pass
        holder.kill()
    with exclusive(url, lost=pytest.fail):
        assert owner(url).pid == os.getpid()  # type: ignore[union-attr]
    assert LEASE not in open_folder(url).names()


def finished(store: Folder, *names: str, **what: object) -> None:
    for name in names:
        record(store.sub(name), {"kind": "train", **what})
        finish(store.sub(name), {})


def aged(store: DiskFolder) -> None:
    """Let what is there be of an earlier hour."""
    for number, path in enumerate(sorted(store.path.rglob("*.json"), key=lambda path: path.stat().st_mtime_ns)):
        os.utime(path, (time.time() - 1000 + number,) * 2)


def names_of(store: Folder) -> list[str]:
    return sorted({name.split("/")[0] for name in store.names()})


def test_the_oldest_finished_runs_go(tmp_path: Path) -> None:
    store = DiskFolder(tmp_path)
    finished(store, "vae-2", "vae-1")
    aged(store)
    finished(store, "vae-3")
    record(store.sub("unfinished"), {"kind": "train"})
    store.write("seconds/train@vae", b"1.5")
    assert forget_oldest(store, 3) == []
    assert forget_oldest(store, 2) == ["vae-2"]
    assert names_of(store) == ["seconds", "unfinished", "vae-1", "vae-3"]
    assert forget_oldest(store, 0) == ["vae-1", "vae-3"]
    assert names_of(store) == ["seconds", "unfinished"]


def test_trials_stay_as_long_as_their_sweep(tmp_path: Path) -> None:
    store = DiskFolder(tmp_path)
    finished(store, "trial-a", "trial-b")
    aged(store)
    finished(store, "sweep-1", trials=["trial-a", "trial-b"])
    aged(store)
    finished(store, "sweep-2", trials=["trial-b", "trial-c"])
    finished(store, "trial-c")
    assert forget_oldest(store, 2) == []
    assert forget_oldest(store, 1) == ["sweep-1", "trial-a"]
    assert names_of(store) == ["sweep-2", "trial-b", "trial-c"]


def test_a_run_that_is_worked_on_is_not_forgotten(tmp_path: Path) -> None:
    store = DiskFolder(tmp_path)
    finished(store, "vae-1", "vae-2")
    with exclusive(tmp_path / "vae-1"):
        assert forget_oldest(store, 0) == ["vae-2"]


def test_runs_are_forgotten_at_an_address_too(server: Server) -> None:
    store = open_folder(f"{BUCKET}/many", 5)
    finished(store, "vae-1", "vae-2")
    with pytest.MonkeyPatch.context() as monkeypatch:
        monkeypatch.setattr("pipeline.train.lock.SETTLE_S", 0.1)
        assert len(forget_oldest(store, 1)) == 1
    assert len(names_of(store)) == 1


contents = st.dictionaries(st.sampled_from(["a", "b", "c/d", "c/e"]), st.binary(max_size=40), max_size=4)


@settings(max_examples=40, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(written=st.lists(contents, max_size=4), removed=st.sets(st.sampled_from(["a", "b", "c/d"])))
def test_a_folder_is_a_mapping_of_names_to_bytes(
    tmp_path: Path, written: list[dict[str, bytes]], removed: set[str]
) -> None:
    for place in (tmp_path / "run", "memory://mapped/run"):
        folder = open_folder(place)
        folder.clear()
        expected: dict[str, bytes] = {}
        for part in written:
            for name, data in part.items():
                folder.write(name, data)
            expected |= part
        folder.remove(*removed)
        expected = {name: data for name, data in expected.items() if name not in removed}
        assert {name: folder.read(name) for name in folder.names()} == expected
        assert {name: file.bytes for name, file in folder.details().items()} == {n: len(d) for n, d in expected.items()}
