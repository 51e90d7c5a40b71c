"""python -m pipeline: exit codes, one line for a mistake, help that lists every command."""

import errno
import os
import re
import resource
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Mapping
from pathlib import Path

import pytest

from pipeline import files
from pipeline.__main__ import commands, main, summary, timings
from pipeline.closure import ROOT
from pipeline.ending import Terminated
from pipeline.errors import Busy, ClusterFailed, Diverged, StorageFailed, UserError, WorkersFailed
from pipeline.retrain.night import KEPT, NOTHING_NEW, DataRefused

AGAIN = "what was done is kept, run the same command again to continue"


@pytest.fixture
def folder(tmp_path: Path, params_text: str, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A project's folder with params.yaml, as working directory."""
    (tmp_path / "params.yaml").write_text(params_text)
    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv("DVC_STAGE", raising=False)
    return tmp_path


def test_a_typo_stops_the_command_before_anything_slow(folder: Path, params_text: str) -> None:
    (folder / "params.yaml").write_text(params_text.replace("learning_rate", "learning_rat"))
    before = resource.getrusage(resource.RUSAGE_CHILDREN)
    done = subprocess.run(
        [sys.executable, "-m", "pipeline", "train", "--family", "vae"],
        cwd=folder, env={"PYTHONPATH": str(ROOT)}, text=True, capture_output=True,
    )  # fmt: skip
    after = resource.getrusage(resource.RUSAGE_CHILDREN)
    line = params_text[: params_text.index("learning_rate")].count("\n") + 1
    message = f"error: params.yaml:{line}: train.learning_rat: unknown key; did you mean 'learning_rate'?\n"
    assert (done.returncode, done.stdout, done.stderr) == (1, "", message)
    assert after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime < 2  # of processor time
    assert [path.name for path in folder.iterdir()] == ["params.yaml"]


@pytest.mark.parametrize(
    ("argv", "message"),
    [
        (["train", "--family", "vea"], "--family vea: not under `families` in params.yaml; did you mean 'vae'?"),
        (["train", "--family", "x"], "--family x: not under `families` in params.yaml; known: vae, vqvae"),
        (["train"], "this stage runs for one family: add --family F, a name under `families` in params.yaml"),
        (["shard"], "data/dataset.json: no such file; prepare the data with `dvc repro ingest`"),
        (
            ["train", "--family", "vae"],
            "data/shards/manifest.json: no such file; write the shards with `dvc repro shard`",
        ),
        (
            ["evaluate", "--family", "vae"],
            "data/shards/manifest.json: no such file; write the shards with `dvc repro shard`",
        ),
        (["summary"], "results/evaluate/vae.json: no such file; run `dvc repro` first"),
    ],
)
def test_a_mistake_is_one_line_and_exits_1(
    folder: Path, capsys: pytest.CaptureFixture[str], argv: list[str], message: str
) -> None:
    assert main(argv) == 1
    assert capsys.readouterr() == ("", f"error: {message}\n")


@pytest.mark.parametrize(
    ("argv", "message"),
    [
        ([], "the following arguments are required: COMMAND"),
        (["trian"], "unknown command 'trian'; did you mean 'train'?"),
        (["train", "--famly", "vae"], "unrecognized arguments: --famly vae"),
        (["train", "--family"], "argument --family: expected one argument"),
    ],
)
def test_wrong_usage_exits_2(folder: Path, capsys: pytest.CaptureFixture[str], argv: list[str], message: str) -> None:
    with pytest.raises(SystemExit) as stopped:
        main(argv)
    assert stopped.value.code == 2
    assert message in capsys.readouterr().err


def test_every_mistake_has_its_line(folder: Path, params_text: str, capsys: pytest.CaptureFixture[str]) -> None:
    (folder / "params.yaml").write_text(params_text.replace("epochs: 2", "epochs: 0").replace("prior:", "priors:"))
    assert main(["check"]) == 1
    lines = capsys.readouterr().err.splitlines()
    assert [line.split(": ")[:3:2] for line in lines] == [["error", "train.epochs"], ["error", "priors"]]


def test_help_lists_every_command_with_its_line(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as stopped:
        main(["--help"])
    assert stopped.value.code == 0
    text = capsys.readouterr().out
    listed = dict(re.findall(r"^  (\w+) +(\S.*)$", text.split("commands:\n")[1].split("\n\n")[0], re.MULTILINE))
    modules = {
        path.stem: f"pipeline.{package}.{path.stem}"
        for package in ("stages", "operate")
        for path in (ROOT / "pipeline" / package).glob("[a-z]*.py")
    }
    assert commands() == modules
    assert listed == {name: summary(module) for name, module in modules.items()}
    assert all(len(line) > 10 for line in listed.values())


def test_a_right_file_passes_the_check(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["check"]) == 0
    assert capsys.readouterr().err == ""


@pytest.mark.parametrize(
    ("error", "code", "message"),
    [
        (UserError("a.tar: damaged\nb.tar: damaged"), 1, "error: a.tar: damaged\nerror: b.tar: damaged\n"),
        (Diverged("step 4: not finite"), 3, "error: step 4: not finite\n"),
        (WorkersFailed("rank 0: killed"), 4, "error: rank 0: killed\n"),
        (StorageFailed("/x: full"), 5, "error: /x: full\n"),
        (
            OSError(errno.ENOSPC, "No space left on device", "/x"),
            5,
            "error: /x: No space left on device; make room or make it writable, then run the same command again\n",
        ),
        (
            PermissionError(errno.EACCES, "Permission denied", "/x"),
            5,
            "error: /x: Permission denied; let this user read and write there, then run the same command again\n",
        ),
        (ClusterFailed("no Ray"), 6, "error: no Ray\n"),
        (Busy("process 7"), 7, "error: process 7\n"),
        (KeyboardInterrupt(), 130, f"interrupted; {AGAIN}\n"),
        (Terminated(), 143, f"terminated; {AGAIN}\n"),
    ],
)
def test_how_a_stage_ends_is_the_exit_code(
    folder: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], error: BaseException, code: int,
    message: str,
) -> None:  # fmt: skip
    def fail(*_: object) -> None:
        raise error

    monkeypatch.setattr("pipeline.operate.check.main", fail)
    assert main(["check"]) == code
    assert capsys.readouterr().err == message


def test_a_signal_ends_a_command_with_its_code(
    folder: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def wait(*_: object) -> None:
        os.kill(os.getpid(), signal.SIGTERM)
        time.sleep(60)

    monkeypatch.setattr("pipeline.operate.check.main", wait)
    assert main(["check"]) == 143
    assert capsys.readouterr().err == f"terminated; {AGAIN}\n"


def test_help_explains_every_exit_code(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        main(["--help"])
    listed = re.findall(r"^ +(\d+)  \S", capsys.readouterr().out.split("exit codes:\n")[1], re.MULTILINE)
    kinds = [
        UserError,
        DataRefused,
        *(kind for kind in UserError.__subclasses__() if kind.__module__ == UserError.__module__),
    ]
    assert {0, 2, 130, 143, KEPT, NOTHING_NEW, *(kind.code for kind in kinds)} == set(map(int, listed))


def test_times_stay_on_this_machine_where_the_store_is_an_address() -> None:
    assert timings("s3://bucket/runs") == Path(".runs/seconds")
    assert timings("/scratch/runs") == Path("/scratch/runs/seconds")


def test_a_fault_of_ours_is_not_dressed_up(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(*_: object) -> None:
        raise ZeroDivisionError

    monkeypatch.setattr("pipeline.operate.check.main", fail)
    with pytest.raises(ZeroDivisionError):
        main(["check"])


@pytest.mark.filterwarnings("ignore::DeprecationWarning")  # torch.onnx's own
def test_evaluate_export_and_summary_leave_their_files(
    folder: Path, shards: Path, published: Mapping[str, Path], capsys: pytest.CaptureFixture[str]
) -> None:
    (folder / "data").mkdir()
    (folder / "data" / "shards").symlink_to(shards)
    for name in ("baseline", "best"):
        shutil.copytree(published["vae"], folder / "models" / "vae" / name)
    assert main(["features"]) == 0
    assert re.search(r"^features: test accuracy 0\.\d+; data/features$", capsys.readouterr().err, re.MULTILINE)
    assert main(["prior", "--family", "vae"]) == 0
    assert main(["evaluate", "--family", "vae"]) == 0
    assert (folder / "results" / "diagnosis" / "vae.json").is_file()
    scores = files.read_json(folder / "results" / "evaluate" / "vae.json")
    assert scores["baseline"] == scores["best"]
    assert scores["best"]["test"]["rows"] == 330
    assert main(["export", "--family", "vae"]) == 0
    assert (folder / "artifacts" / "vae" / "decoder.onnx").is_file()
    stages = sorted(path.name for path in (folder / ".runs" / "seconds").iterdir())
    assert stages == ["evaluate@vae", "export@vae", "features", "prior@vae"]
    capsys.readouterr()
    shutil.copyfile(folder / "results" / "evaluate" / "vae.json", folder / "results" / "evaluate" / "vqvae.json")
    assert main(["summary"]) == 0
    printed = capsys.readouterr().out
    score = scores["best"]["test"]["neg_elbo_nats"]
    assert re.search(rf"^  vae +{score:.2f} +{score:.2f}$", printed, re.MULTILINE)
    assert re.search(r"^  evaluate@vae +\d+\.\d$", printed, re.MULTILINE)
