"""python -m pipeline runs: what the store holds, in words, and removed or mended on demand."""

import json
import os
import shutil
from collections.abc import Callable, Iterator
from dataclasses import asdict, replace
from pathlib import Path

import fsspec
import pytest

from pipeline.__main__ import main
from pipeline.train import checkpoints, storage
from pipeline.train.folders import Folder, open_folder
from pipeline.train.lock import LEASE, Owner, exclusive
from pipeline.train.loop import train
from pipeline.train.run import TrainRun
from pipeline.train.tracking import MetricLog

Command = Callable[..., list[str]]


@pytest.fixture(autouse=True)
def fast(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("os.fsync", lambda descriptor: None)
    monkeypatch.setattr("pipeline.train.lock.SETTLE_S", 0.0)


@pytest.fixture(scope="module")
def run(make_run: Callable[..., TrainRun]) -> TrainRun:
    """The run that params.yaml describes."""
    return make_run("vae")


@pytest.fixture(scope="module")
def made(run: TrainRun, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A store with that run finished, the same with another seed stopped after an epoch, and a sweep. To be copied."""
    store = tmp_path_factory.mktemp("made")
    with pytest.MonkeyPatch.context() as monkeypatch:
        monkeypatch.setattr("os.fsync", lambda descriptor: None)
        for folder, epochs in ((store / run.folder_name("vae"), 2), (store / "vae-stopped", 1)):
            storage.record(folder, {"kind": "train", "family": "vae", **run.described})
            train(run, folder, on_epoch=lambda *_: None, checkpoint_every_steps=4, epochs=epochs)
        storage.finish(
            store / run.folder_name("vae"), {"figures": MetricLog(store / run.folder_name("vae")).epochs()[-1]}
        )
        storage.record(store / "vae-sweep-1", {"kind": "sweep", "family": "vae", "trials": ["vae-trial-1"]})
        (store / "seconds").mkdir()
        (store / "seconds" / "train@vae").write_text("1.5\n")
    return store


@pytest.fixture
def project(made: Path, params_text: str, shards: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A project's folder with that store, as working directory."""
    (tmp_path / "params.yaml").write_text(params_text)
    (tmp_path / "data").mkdir()
    (tmp_path / "data" / "shards").symlink_to(shards)
    shutil.copytree(made, tmp_path / ".runs")
    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv("DVC_STAGE", raising=False)
    return tmp_path


@pytest.fixture
def runs(project: Path, capsys: pytest.CaptureFixture[str]) -> Command:
    """Runs the command, and gives what it printed; what it failed with comes after its exit code."""

    def call(*argv: str, code: int = 0) -> list[str]:
        capsys.readouterr()
        assert main(["runs", *argv]) == code
        printed = capsys.readouterr()
        return (printed.err if code else printed.out).splitlines()

    return call


@pytest.fixture
def store(project: Path) -> Path:
    return project / ".runs"


@pytest.fixture
def finished(store: Path, run: TrainRun) -> Path:
    return store / run.folder_name("vae")


def content(folder: Path) -> dict[str, bytes]:
    return {str(path.relative_to(folder)): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def test_ls_has_a_line_a_run(runs: Command, finished: Path) -> None:
    lines = [line.split() for line in runs("ls")]
    assert [line[0] for line in lines] == ["name", finished.name, "vae-stopped", "vae-sweep-1"]
    epochs = [epoch["neg_elbo_nats"] for epoch in MetricLog(finished).epochs()]
    assert lines[1][1:6] == ["train", "finished", f"{min(epochs):.2f}", f"{epochs[-1]:.2f}", "neg_elbo_nats"]
    assert lines[2][1:5] == ["train", "stopped", "at", "epoch"]
    assert lines[2][5] == "1/2"
    assert lines[3][1:3] == ["sweep", "stopped"]


def test_ls_has_the_cost_of_a_prior(runs: Command, store: Path) -> None:
    storage.record(store / "vqvae-prior-1", {"kind": "prior", "family": "vqvae"})
    storage.finish(store / "vqvae-prior-1", {"figures": {"nll_nats": 12.5, "level_1_nats": 12.5}})
    assert runs("ls")[-1].split()[:6] == ["vqvae-prior-1", "prior", "finished", "12.50", "12.50", "nll_nats"]


def test_ls_of_an_empty_store_says_so(runs: Command, store: Path) -> None:
    shutil.rmtree(store)
    assert runs("ls") == [f"{store}: no runs"]


def test_a_run_that_is_worked_on_is_seen_and_left_alone(runs: Command, store: Path) -> None:
    before = content(store / "vae-stopped")
    with exclusive(store / "vae-stopped"):
        before = content(store / "vae-stopped")
        assert f"running (process {os.getpid()})" in "\n".join(runs("ls"))
        told = f"error: {store}/vae-stopped: process {os.getpid()} is working here"
        for argv in (("rm", "vae-stopped"), ("rm", "--all"), ("repair", "vae-stopped")):
            assert runs(*argv, code=7)[0].startswith(told)
        assert runs("repair") == [f"vae-stopped: process {os.getpid()} is working on it; left alone"]
        runs("rm", "--finished")
        assert content(store / "vae-stopped") == before
    assert sorted(path.name for path in store.iterdir()) == ["seconds", "vae-stopped", "vae-sweep-1"]


def test_show_tells_what_a_run_is_and_how_it_went(runs: Command, finished: Path, run: TrainRun) -> None:
    text = "\n".join(runs("show", finished.name[:7]))
    assert text.startswith(f"{finished.name}: train, finished\n  folder  {finished} (")
    for expected in (
        f"data    {run.data}",
        "model.latent_dim: 4",
        "train.learning_rate.peak: 0.002",
        "step 20: ",
        ", ok (the end)",
    ):
        assert expected in text
    epochs = [line.split() for line in text.splitlines()]
    assert [line[0] for line in epochs if len(line) == 5 and line[0].isdigit()] == ["1", "2"]
    row = json.loads((finished / "metrics.jsonl").read_text().splitlines()[-1])
    assert f"{row['neg_elbo_nats']:.3f}" in text


def test_show_has_the_speed_where_it_was_measured(runs: Command, finished: Path) -> None:
    (finished / "speed.jsonl").write_text(
        '{"epoch": 0, "images_per_s": 12345.6, "compute": 0.5, "peak_memory_bytes": 5e8}\n'
    )
    lines = runs("show", finished.name)
    at = lines.index("speed")
    assert lines[at + 1].split() == ["epoch", "images_per_s", "compute", "peak_memory_bytes"]
    assert lines[at + 2].split() == ["0", "12,346", "0.5", "500.0", "MB"]


def test_show_names_a_damaged_checkpoint(runs: Command, finished: Path) -> None:
    first = sorted((finished / "checkpoints").iterdir())[0]
    first.write_bytes(first.read_bytes()[:-1])
    lines = runs("show", finished.name)
    assert lines[0] == f"{finished.name}: train, damaged"
    assert [line.split(", ")[-1] for line in lines if line.startswith("  step ")] == ["damaged", "ok (the end)"]


def test_diff_has_the_values_that_differ(runs: Command, finished: Path, store: Path) -> None:
    assert runs("diff", finished.name, "vae-stopped") == ["data: the same", "code: the same", "params: the same"]
    what = json.loads((store / "vae-stopped" / "run.json").read_text())
    what["model"]["latent_dim"], what["train"]["seed"], what["code"] = 8, 1, "0" * 16
    del what["train"]["learning_rate"]["peak"]
    (store / "vae-stopped" / "run.json").write_text(json.dumps(what))
    lines = runs("diff", finished.name, "vae-stopped")
    code = json.loads((finished / "run.json").read_text())["code"]
    assert lines[:2] == ["data: the same", f"code: {code} -> {'0' * 16}"]
    assert [line.split() for line in lines[2:]] == [
        ["model.latent_dim", "4", "->", "8"],
        ["train.seed", "0", "->", "1"],
        ["train.learning_rate.peak", "0.002", "->", "(none)"],
    ]


@pytest.mark.parametrize(
    ("argv", "message"),
    [
        (("show", "vae"), "vae: several runs begin so: {finished}, vae-stopped, vae-sweep-1; give more of the name"),
        (("show", "vae-stoped"), "vae-stoped: no run of this name in {store}; did you mean 'vae-stopped'?"),
        (("rm", "vae-stopped", "x"), "x: no run of this name in {store}; known: {finished}, vae-stopped, vae-sweep-1"),
        (("rm",), "runs rm: expected names of runs, or --finished, or --all"),
        (("rm", "vae-stopped", "--all"), "runs rm: expected names of runs, or --finished, or --all"),
        (("--storage", "sss://x", "ls"), "sss://x: not a folder, and no address that fsspec opens "
         "(Protocol not known: sss)"),
    ],
)  # fmt: skip
def test_a_mistake_is_told_and_changes_nothing(
    runs: Command, store: Path, finished: Path, argv: tuple[str, ...], message: str
) -> None:
    before = content(store)
    assert runs(*argv, code=1) == [f"error: {message.format(store=store, finished=finished.name)}"]
    assert content(store) == before


@pytest.mark.parametrize("argv", [(), ("list",), ("show",), ("diff", "a"), ("ls", "a")])
def test_wrong_usage_is_code_2(runs: Command, argv: tuple[str, ...]) -> None:
    with pytest.raises(SystemExit) as ended:
        runs(*argv)
    assert ended.value.code == 2


def test_help_has_examples(capsys: pytest.CaptureFixture[str], project: Path) -> None:
    with pytest.raises(SystemExit) as ended:
        main(["runs", "--help"])
    assert ended.value.code == 0
    assert "python -m pipeline runs rm --finished" in capsys.readouterr().out


def test_rm_removes_what_it_is_told(runs: Command, store: Path, finished: Path) -> None:
    (line,) = runs("rm", "vae-st")
    assert line.startswith("removed 1 runs, ")
    assert line.endswith(": vae-stopped")
    assert runs("rm", "--finished")[0].endswith(f": {finished.name}")
    runs("rm", "--all")
    assert [path.name for path in store.iterdir()] == ["seconds"]
    assert runs("rm", "--all") == ["no such runs; nothing was removed"]


def test_nothing_is_mended_where_nothing_is_wrong(runs: Command, store: Path, finished: Path) -> None:
    before = {name: data for name, data in content(store).items() if not name.endswith("/lock")}
    assert runs("repair") == [f"{finished.name}, vae-stopped, vae-sweep-1: nothing to mend"]
    assert {name: data for name, data in content(store).items() if not name.endswith("/lock")} == before


@pytest.fixture
def address(finished: Path) -> Iterator[str]:
    """The same store at an address."""
    place, source = open_folder("memory://store"), open_folder(finished.parent)
    for name in source.names():
        place.write(name, source.read(name))
    yield "memory://store"
    fsspec.filesystem("memory").store.clear()


def test_a_store_at_an_address_is_treated_alike(runs: Command, finished: Path, address: str) -> None:
    here = [line.split()[:3] for line in runs("ls")]
    assert [line.split()[:3] for line in runs("--storage", address, "ls")] == here
    assert runs("--storage", address, "show", finished.name)[2:] == runs("show", finished.name)[2:]
    place: Folder = open_folder(address).sub(finished.name)
    newest = place.names("checkpoints/")[-1]
    place.write(newest, place.read(newest)[:100])
    storage.write_json(place, LEASE, asdict(replace(Owner.this(), started=0.0)))
    assert runs("--storage", address, "repair") == [
        f"{finished.name}: lock.json: left by a process that is gone; removed",
        f"{finished.name}: {newest}: damaged; removed, the run goes on from another one",
        f"{finished.name}: finished.json: its checkpoint is lost; removed, the same command trains the rest",
    ]
    found = checkpoints.latest(place.sub("checkpoints"))
    assert found is not None
    assert "lock.json" not in place.names()
    assert runs("--storage", address, "rm", "--all")[0].startswith("removed 3 runs")
    assert open_folder(address).names() == ["seconds/train@vae"]
